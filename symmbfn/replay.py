"""Retraining without forgetting: what is replayed, and from where the new checkpoint samples.

Where the data that the parent was trained on are at hand, they are replayed. Where they are not,
the parent's own samples take their place (`self_replay`): on crystals drawn from the parent, with
the targets that they were drawn for as properties, the expected loss is the cross-entropy to the
parent, which nothing lowers but the parent itself. So they hold the new model to what the parent
knew, as the data would, and the new crystals move it only in what they speak about.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from symmbfn.checkpoint import Card, load_model, save_checkpoint
from symmbfn.conditions import Conditions
from symmbfn.crystal import to_structures
from symmbfn.data import CrystalData, preprocess
from symmbfn.mixture import repeated
from symmbfn.model import SymmBFN
from symmbfn.sample import sample
from symmbfn.train import mean_losses

GROUPS = 8  # different targets of a self-replay, half of which is drawn for targets
BASE_TEMPLATES = "base_templates"  # in a checkpoint's `training`: so many are not of new crystals


def self_replay(
    card: Card, n: int, seed: int, on_crystal: Callable[[], None] | None = None
) -> CrystalData:
    """About n samples of a checkpoint, half of them drawn for targets, which are their properties.

    The targets are properties of training crystals, so that the conditions are replayed as well.
    """
    targets = _targets(card, seed)
    each = n // (2 * GROUPS)
    plan = [(n - each * len(targets), {}), *((each, target) for target in targets if each)]
    structures, columns = [], {name: list[float]() for name in card.properties}
    for turn, (size, target) in enumerate(plan):
        crystals = sample(
            card.path,
            size,
            seed=seed * (GROUPS + 1) + turn,
            proposals=1,  # the network's own distribution
            conditions=Conditions(target),
        )
        structures += to_structures(crystals)
        for name, column in columns.items():
            column += [target.get(name, np.nan)] * len(crystals)
    data, _ = preprocess(structures, columns, seed=seed, on_crystal=on_crystal)
    return data


def _targets(card: Card, seed: int) -> list[dict[str, float]]:
    """Properties of `GROUPS` training crystals that have any."""
    properties = load_model(card).template_properties.float().numpy()
    known = np.flatnonzero(np.isfinite(properties).any(1))
    if not known.size:
        return []
    return [
        {n: float(v) for n, v in zip(card.properties, row, strict=True) if np.isfinite(v)}
        for row in properties[np.random.default_rng(seed).choice(known, GROUPS)]
    ]


@dataclass(frozen=True)
class Origin:
    """What a retrained checkpoint stands on.

    Attributes:
        parent: The checkpoint that the training started from.
        base: The data replayed; None where the parent replayed itself.
        new: The new crystals.
        share: Of them among the templates.
    """

    parent: Card
    base: CrystalData | None
    new: CrystalData
    share: float


@torch.no_grad()
def finish(trained: Card, origin: Origin, out: Path) -> Path:
    """Write the checkpoint of a finished training, sampling from the base data and new crystals.

    Space group, number of orbits and of elements are drawn from the templates, and targets find
    their like among the templates' properties. They are those of the base data (without them, the
    parent's, less those of crystals that were new to it), and of the new crystals, repeated to
    `share` of all. Elements may be those of either.

    Returns:
        The folder.
    """
    model, parent = load_model(trained), load_model(origin.parent)
    if origin.base is not None:
        source = SymmBFN.for_data(trained.model, origin.base)
        kept = len(source.templates)
    else:
        source = parent
        kept = int(str(origin.parent.training.get(BASE_TEMPLATES, len(source.templates))))
    new = SymmBFN.for_data(trained.model, origin.new)
    rows = repeated(len(origin.new), kept, origin.share, seed=0)
    model.templates = torch.cat([source.templates[:kept], new.templates[rows]])
    model.template_properties = torch.cat(
        [source.template_properties[:kept], new.template_properties[rows]]
    )
    model.elements = source.elements | new.elements
    known = (parent.known_sites, source.known_sites, new.known_sites)
    model.known_sites = torch.cat(known).unique()
    training = {**trained.training, BASE_TEMPLATES: kept}
    return save_checkpoint(out, model, model.state_dict(), training)


def loss_on(card: Card, data: CrystalData) -> dict[str, float]:
    """Losses of a checkpoint on crystals, always with the same noise; see `train.PARTS`."""
    model = load_model(card)
    columns = [data.names.index(n) if n in data.names else -1 for n in card.properties]
    return mean_losses(model, data, columns)
