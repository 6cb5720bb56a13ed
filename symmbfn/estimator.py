"""The estimator: the properties that a crystal will have, told from its sites alone.

Where a property is asked for, the sampler proposes several arrangements of sites for each crystal,
and this head (`symmbfn.site_heads`) tells which of them come near.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from symmbfn.errors import SymmBFNError
from symmbfn.site_heads import FEWEST, WIDTH, apart, summaries_of

if TYPE_CHECKING:
    from symmbfn.checkpoint import Card
    from symmbfn.data import CrystalData


def enough(data: "CrystalData", properties: Sequence[str]) -> bool:
    """Whether there is something to learn, and each of the properties can be learned."""
    known = dict(zip(data.names, (~data.properties.isnan()).sum(0).tolist(), strict=True))
    return bool(properties) and all(known.get(name, 0) >= FEWEST for name in properties)


def add_estimator(
    card: "Card", data: "CrystalData", out: str | Path | None = None, *, seed: int = 0
) -> Path:
    """Write a checkpoint whose estimator has learned from crystals; all else stays as it is.

    Args:
        card: The checkpoint.
        data: Crystals with the checkpoint's properties, which may be missing on some.
        out: Folder; that of `card` unless given. What was measured of that one is left out.
        seed: Of the training.

    Returns:
        The folder.

    Raises:
        SymmBFNError: fewer than `FEWEST` of the crystals have one of the properties.
    """
    from symmbfn.checkpoint import load_model, save_checkpoint
    from symmbfn.mixture import join
    from symmbfn.model import SymmBFN

    if not enough(data, card.properties):
        raise SymmBFNError(
            f"fewer than {FEWEST} crystals have {' or '.join(card.properties) or 'any property'}: "
            "the estimator needs more to learn from"
        )
    parent = load_model(card)
    model = SymmBFN(replace(parent.config, estimator=WIDTH), len(parent.templates)).eval()
    model.known_sites = torch.zeros_like(parent.known_sites)
    weights = {n: v for n, v in parent.state_dict().items() if not n.startswith("estimator.")}
    model.load_state_dict(weights, strict=False)
    assert model.estimator is not None
    data = join([data], card.properties)
    summaries, labels = summaries_of(model, data), model.standardise(data.properties)
    judged = apart(data)
    model.estimator.learn(summaries[~judged], labels[~judged], seed)
    with torch.no_grad():
        errors = (model.estimator(summaries[judged]) - labels[judged]) * model.property_std
    figures = dict(zip(card.properties, errors.abs().nanmean(0).tolist(), strict=True))
    known = {name: round(error, 4) for name, error in figures.items() if error == error}
    training = {**card.training, "estimator_error": known}
    return save_checkpoint(out or card.path, model, model.state_dict(), training)
