"""Verdicts on crystals in memory: stable, unique, novel; for the commands without a database."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from flows import inputs
from flows.settings import CampaignConfig, ThresholdSettings, one_line

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from pymatgen.core.structure import Structure

    from relax.hull import Hull
    from relax.optimize import RelaxResult
    from relax.potentials import PotentialInfo


class Tiered:
    """What has a verdict, see `tier`; empty where there is none."""

    verdict: str

    @property
    def is_stable(self) -> bool:
        """At or below the stable threshold, and not suspiciously far below."""
        return self.verdict == "stable"

    @property
    def is_metastable(self) -> bool:
        """Stable, or at or below the metastable threshold."""
        return self.verdict in ("stable", "metastable")


@dataclass(frozen=True)
class Verdict(Tiered):
    """The verdict on one crystal; energies in eV/atom, NaN where not assessable."""

    energy_above_hull: float
    formation_energy_per_atom: float
    verdict: str
    is_unique: bool
    is_novel: bool
    reason: str | None = None
    """Why it could not be judged, where that is not for want of known phases."""

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Opinion(Tiered):
    """What a judge says of one crystal; energies in eV/atom, NaN where not assessable."""

    energy_above_hull: float
    formation_energy_per_atom: float
    verdict: str
    reason: str | None


def opinion(result: RelaxResult, hull: Hull, thresholds: ThresholdSettings) -> Opinion:
    """Judge a relaxed crystal by its energy alone; one that cannot be never stops the others."""
    from relax.errors import RelaxError

    formation, above, reason = math.nan, math.nan, result.reason or None
    if result.status == "converged" and result.structure is not None:
        assert result.energy_per_atom is not None  # as every converged result has
        try:
            formation, above = place(
                hull, result.potential, result.structure, result.energy_per_atom
            )
        except RelaxError:  # the settings are wrong, not the crystal
            raise
        except Exception as error:  # Qhull raises whatever a strange crystal makes it
            reason = f"{type(error).__name__}: {one_line(error)}"
    return Opinion(above, formation, tier(above, thresholds), reason)


def spread(
    told: Opinion, hull: Hull, first: PotentialInfo, structure: Structure, energy: float
) -> float:
    """By how much a judge and the first potential differ, both placed against the judge's hull.

    Args:
        told: What the judge says.
        hull: The judge's.
        first: The first potential.
        structure: The crystal as the first potential left it.
        energy: Of the first potential, eV/atom.

    Returns:
        eV/atom; NaN where one of them cannot be placed there.
    """
    from relax.errors import RelaxError

    try:
        return abs(told.energy_above_hull - place(hull, first, structure, energy)[1])
    except RelaxError:  # energies of another scheme than the hull's
        return math.nan


def tier(energy_above_hull: float, thresholds: ThresholdSettings) -> str:
    """Name the tier of an energy above the hull in eV/atom; NaN: not assessable."""
    if math.isnan(energy_above_hull):
        return "not_assessable"
    if energy_above_hull < thresholds.suspect:
        return "quarantined"
    if energy_above_hull <= thresholds.stable:
        return "stable"
    return "metastable" if energy_above_hull <= thresholds.metastable else "unstable"


def place(
    hull: Hull, potential: PotentialInfo, structure: Structure, energy: float
) -> tuple[float, float]:
    """Place one crystal, with its energy of the potential in eV/atom, against a hull.

    Returns:
        Its formation energy and its energy above the hull, eV/atom; NaN where not assessable.
    """
    composition = [structure.composition]
    formation = hull.formation_energy_per_atom(composition, [energy], potential, [structure])
    return float(formation[0]), float(hull.energy_above_hull(composition, formation)[0])


def assess(
    config: CampaignConfig, structures: Sequence[Structure], energies: ArrayLike
) -> list[Verdict]:
    """Judge crystals against the first hull and the known structures of the settings.

    One that cannot be judged is `not_assessable`, with the reason; it never stops the others.

    Args:
        config: Its potential, first hull, reference and thresholds count.
        structures: As relaxed.
        energies: Of the potential, eV/atom.
    """
    import numpy as np

    from relax.errors import RelaxError
    from relax.matching import unique

    hull, known = inputs.load_hull(config.hulls[0]), inputs.load_reference(config.reference)
    potential = inputs.potential_info(config.potential)
    numbers = np.asarray(energies, dtype=float)
    firsts = unique(structures)
    verdicts = []
    for index, (structure, energy) in enumerate(zip(structures, numbers, strict=True)):
        try:
            formation, above = place(hull, potential, structure, float(energy))
            verdict = Verdict(
                energy_above_hull=above,
                formation_energy_per_atom=formation,
                verdict=tier(above, config.thresholds),
                is_unique=int(firsts[index]) == index,
                is_novel=bool(known.novel([structure])[0]),
            )
        except RelaxError:  # the settings are wrong, not the crystal
            raise
        except Exception as error:  # Qhull and matchers raise whatever a strange crystal makes them
            why = f"{type(error).__name__}: {one_line(error)}"
            verdict = Verdict(math.nan, math.nan, "not_assessable", False, False, why)
        verdicts.append(verdict)
    return verdicts
