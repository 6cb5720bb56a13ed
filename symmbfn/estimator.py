"""The estimator: the properties that a crystal will have, told from its sites alone.

Where a property is asked for, the sampler proposes several arrangements of sites for each crystal,
and this head (`symmbfn.site_heads`) tells which of them come near.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from symmbfn.errors import SymmBFNError
from symmbfn.site_heads import FEWEST, apart, summaries_of, with_head

if TYPE_CHECKING:
    from symmbfn.checkpoint import Card
    from symmbfn.data import CrystalData


def enough(data: "CrystalData", properties: Sequence[str]) -> bool:
    """Whether any of the properties can be learned."""
    return bool(_learnable(data, properties))


def _learnable(data: "CrystalData", properties: Sequence[str]) -> list[int]:
    """Places of the properties that at least `FEWEST` crystals have."""
    known = dict(zip(data.names, (~data.properties.isnan()).sum(0).tolist(), strict=True))
    return [i for i, name in enumerate(properties) if known.get(name, 0) >= FEWEST]


def add_estimator(
    card: "Card", data: "CrystalData", out: str | Path | None = None, *, seed: int = 0
) -> Path:
    """Write a checkpoint whose estimator has learned from crystals; all else stays as it is.

    Its skill at each property, by which the sampler weighs what it says, is the share of the
    variance that it explains on held-out crystals; 0 where fewer than `FEWEST` have the property.

    Args:
        card: The checkpoint.
        data: Crystals with the checkpoint's properties, which may be missing on some.
        out: Folder; that of `card` unless given. What was measured of that one is left out.
        seed: Of the training.

    Returns:
        The folder.

    Raises:
        SymmBFNError: no property is known of `FEWEST` crystals.
    """
    from symmbfn.checkpoint import load_model, save_checkpoint
    from symmbfn.mixture import join

    learned = _learnable(data, card.properties)
    if not learned:
        raise SymmBFNError(
            f"fewer than {FEWEST} crystals have {' or '.join(card.properties) or 'any property'}: "
            "the estimator needs more to learn from"
        )
    model = with_head(load_model(card), "estimator")
    assert model.estimator is not None
    data = join([data], card.properties)
    summaries, labels = summaries_of(model, data), model.standardise(data.properties)
    judged = apart(data)
    model.estimator.learn(summaries[~judged], labels[~judged], seed)
    with torch.no_grad():
        errors = (model.estimator(summaries[judged]) - labels[judged])[:, learned]
    skill = 1 - errors.square().nanmean(0) / _variance(labels[:, learned])
    model.estimator_skill[learned] = skill.nan_to_num(0.0).clamp(0, 1)
    told = errors.abs().nanmean(0) * model.property_std[learned]
    figures = {
        card.properties[i]: {"mean_absolute_error": round(error, 4), "skill": round(share, 3)}
        for i, error, share in zip(
            learned, told.tolist(), model.estimator_skill[learned].tolist(), strict=True
        )
    }
    training = {**card.training, "estimator": figures}
    return save_checkpoint(out or card.path, model, model.state_dict(), training)


def _variance(values: Tensor) -> Tensor:
    """(P,) of the known of (n, P)."""
    return (values - values.nanmean(0)).square().nanmean(0)
