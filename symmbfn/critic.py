"""The critic: how far above the hull a crystal will come to rest, told from its sites alone.

The sampler proposes several arrangements of sites for each crystal and keeps the one that this head
(`symmbfn.site_heads`) likes best.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from symmbfn.errors import SymmBFNError
from symmbfn.site_heads import FEWEST, apart, summaries_of, with_head

if TYPE_CHECKING:
    from symmbfn.checkpoint import Card
    from symmbfn.data import CrystalData
    from symmbfn.model import SymmBFN

TARGET = "energy_above_hull"
LOWEST, HIGHEST = -0.2, 0.6  # eV/atom; what lies further out is as good or bad as these
UNIT = 0.15  # eV/atom, where errors stop to count squared


def add_critic(
    card: "Card",
    data: "CrystalData",
    out: str | Path,
    *,
    replay: "CrystalData | None" = None,
    teacher: "Card | None" = None,
    seed: int = 0,
) -> Path:
    """Write a checkpoint whose critic has learned from crystals; its networks stay as they are.

    Args:
        card: The checkpoint to start from.
        data: Crystals as drawn, with `energy_above_hull` (eV/atom), also of unstable ones.
        out: Folder, which may be that of `card`; what was measured of that one is left out.
        replay: Other crystals. What the critic of the teacher says of them is learned again, so
            that little is forgotten; where it has none, their own `energy_above_hull`, if known.
        teacher: `card` unless given, or the checkpoint that its networks were fine-tuned from.
        seed: Of the training.

    Returns:
        The folder.

    Raises:
        SymmBFNError: fewer than `FEWEST` of the crystals have an energy above the hull.
    """
    from symmbfn.checkpoint import load_model, save_checkpoint

    parent = load_model(card)
    model = with_head(parent, "critic")
    found = _with_energies(data)
    if len(found) < FEWEST:
        raise SymmBFNError(
            f"{len(found)} crystals with {TARGET}: the critic needs {FEWEST} to learn from"
        )
    replayed = _replayed(parent if teacher is None else load_model(teacher), replay)
    figures = _fit(model, found, replayed, seed)
    return save_checkpoint(out, model, model.state_dict(), {**card.training, "critic": figures})


def _with_energies(data: "CrystalData") -> "CrystalData":
    """The crystals whose energy above the hull is known."""
    from symmbfn.mixture import take

    if TARGET not in data.names:
        return take(data, [])
    return take(data, (~_energies(data).isnan()).nonzero()[:, 0])


def _energies(data: "CrystalData") -> Tensor:
    return data.properties[:, data.names.index(TARGET)].clamp(LOWEST, HIGHEST)


def _replayed(teacher: "SymmBFN", data: "CrystalData | None") -> "CrystalData | None":
    """The crystals with what the teacher's critic says of them, or else what is known."""
    if data is None or teacher.critic is None:
        return None if data is None else _with_energies(data)
    with torch.no_grad():
        energies = teacher.critic(summaries_of(teacher, data)) * UNIT
    return replace(data, properties=energies, names=(TARGET,))


def _fit(
    model: "SymmBFN", data: "CrystalData", replayed: "CrystalData | None", seed: int
) -> dict[str, float | None]:
    """Fit the critic of a model; return how well it does on held-out crystals of the data."""
    assert model.critic is not None
    summaries, energies = summaries_of(model, data), _energies(data)
    judged = apart(data)
    shown = [summaries[~judged]], [energies[~judged]]
    if replayed is not None and len(replayed):
        shown[0].append(summaries_of(model, replayed))
        shown[1].append(_energies(replayed))
    model.critic.learn(torch.cat(shown[0]), torch.cat(shown[1])[:, None] / UNIT, seed)
    with torch.no_grad():
        told = model.critic(summaries[judged])[:, 0] * UNIT
    correlation = _rank_correlation(told, energies[judged])
    return {
        "crystals": int((~judged).sum()),
        "replayed": 0 if replayed is None else len(replayed),
        "held_out": int(judged.sum()),
        "mean_absolute_error": round(float((told - energies[judged]).abs().mean()), 4),
        "rank_correlation": round(correlation, 3) if math.isfinite(correlation) else None,
    }


def _rank_correlation(one: Tensor, other: Tensor) -> float:
    """Spearman's, ties in the order in which they stand."""
    ranks = torch.stack([x.argsort(stable=True).argsort() for x in (one, other)]).double()
    return float(torch.corrcoef(ranks)[0, 1]) if ranks.shape[1] > 1 else math.nan
