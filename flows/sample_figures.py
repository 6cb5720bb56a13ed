"""What a sample of a checkpoint is like: validity, finds, diversity, signs of drift."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from db import queries, training
from db.session import Database
from db.training import Sampled

if TYPE_CHECKING:
    from pymatgen.core.structure import Structure


@dataclass(frozen=True)
class Mean:
    """A mean, its standard error, and of how many; NaN of none."""

    value: float
    error: float
    n: int


@dataclass(frozen=True)
class Figures:
    """What a sample is like; each different crystal counts once.

    Attributes:
        n: Crystals asked for.
        draws: Draws made for them.
        valid_draws: How many of those were worth relaxing.
        crystals: Different crystals among them.
        composition_valid: How many of these have charges that can balance.
        stable, metastable: How many are.
        novel: How many are unique, and known neither to the reference nor from the own training.
        sun, msun: How many are stable, or metastable, and novel in that sense.
        formulas, chemical_systems, space_groups: How many different ones.
        hhi: Herfindahl index of the elements, each as often as crystals have it.
        elements: How many crystals have each element.
        correction: MP2020 correction of the metastable ones, eV/atom. A generator that learns to
            please the corrections rather than physics is seen here first.
    """

    n: int
    draws: int
    valid_draws: int
    crystals: int
    composition_valid: int
    stable: int
    metastable: int
    novel: int
    sun: int
    msun: int
    formulas: int
    chemical_systems: int
    space_groups: int
    hhi: float
    elements: dict[str, int]
    correction: Mean


def measure(database: Database, campaign_id: int, checkpoint_id: int | None = None) -> Figures:
    """Measure what a campaign drew.

    Args:
        database: Where it is.
        campaign_id: The campaign, when it is over.
        checkpoint_id: Whose training, and whose ancestors', does not count as novel.
    """
    with database.session(write=False) as session:
        crystals = training.sampled(session, campaign_id)
        counts = queries.campaign_counts(session, campaign_id)
        tally = queries.campaign_tally(session, campaign_id)
        own = [] if checkpoint_id is None else training.trained_on(session, checkpoint_id)
    n = counts["generated"]
    return figures(crystals, own, n=n, draws=tally.get("drawn", n), valid_draws=counts["valid"])


def figures(
    crystals: Sequence[Sampled],
    own: Sequence[Structure],
    *,
    n: int,
    draws: int,
    valid_draws: int,
) -> Figures:
    """Count what a sample is like.

    Args:
        crystals: The different ones that were drawn.
        own: Generated crystals that the generator was trained on; their likes are not novel.
        n: How many were asked for.
        draws: How many draws were made.
        valid_draws: How many of them were worth relaxing.
    """
    from symmbfn.metrics import composition_valid, space_group

    good = [one for one in crystals if one.is_valid]
    compositions = [one.drawn.composition for one in good]
    ended = [(one, one.relaxed) for one in good if one.relaxed is not None]
    new = _new(ended, own)
    elements = Counter(e.symbol for one in compositions for e in one.elements)
    return Figures(
        n=n,
        draws=draws,
        valid_draws=valid_draws,
        crystals=len(good),
        composition_valid=sum(map(composition_valid, compositions)),
        stable=sum(one.is_stable for one, _ in ended),
        metastable=sum(one.is_metastable for one, _ in ended),
        novel=sum(new),
        sun=sum(one.is_stable and flag for (one, _), flag in zip(ended, new, strict=True)),
        msun=sum(one.is_metastable and flag for (one, _), flag in zip(ended, new, strict=True)),
        formulas=len({one.reduced_formula for one in compositions}),
        chemical_systems=len({one.chemical_system for one in compositions}),
        space_groups=len({space_group(one.drawn) for one in good}),
        hhi=concentration(elements),
        elements=dict(sorted(elements.items())),
        correction=mean_correction([s for one, s in ended if one.is_metastable]),
    )


def _new(ended: Sequence[tuple[Sampled, Structure]], own: Sequence[Structure]) -> list[bool]:
    """Tell which relaxed crystals are the first of their kind, and not known from anywhere."""
    from relax.matching import Reference, unique

    structures = [structure for _, structure in ended]
    known = Reference.from_structures(own).novel(structures) if own else [True] * len(ended)
    return [
        one.is_novel and bool(unknown) and int(first) == place
        for place, ((one, _), unknown, first) in enumerate(
            zip(ended, known, unique(structures), strict=True)
        )
    ]


def concentration(counts: Mapping[str, int]) -> float:
    """Herfindahl index of counts: 1 where all are of one kind, 1/k where k are equally common."""
    total = sum(counts.values())
    return sum((count / total) ** 2 for count in counts.values()) if total else 0.0


def mean_correction(structures: Sequence[Structure]) -> Mean:
    """Mean MP2020 correction of crystals, eV/atom; those that have none are left out."""
    import numpy as np

    from relax.corrections import correction

    values = np.array([correction(structure).per_atom for structure in structures])
    known = values[np.isfinite(values)]
    if len(known) < 2:
        return Mean(float(known[0]) if len(known) else math.nan, math.nan, len(known))
    error = float(known.std(ddof=1)) / math.sqrt(len(known))
    return Mean(float(known.mean()), error, len(known))
