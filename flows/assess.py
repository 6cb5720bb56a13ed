"""Verdicts on crystals in memory: stable, unique, novel; for the commands without a database."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from flows import inputs
from flows.settings import CampaignConfig, ThresholdSettings

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from pymatgen.core.structure import Structure


@dataclass(frozen=True)
class Verdict:
    """The verdict on one crystal; energies in eV/atom, NaN where not assessable."""

    energy_above_hull: float
    formation_energy_per_atom: float
    verdict: str
    is_unique: bool
    is_novel: bool

    @property
    def is_stable(self) -> bool:
        """At or below the stable threshold, and not suspiciously far below."""
        return self.verdict == "stable"

    @property
    def is_metastable(self) -> bool:
        """Stable, or at or below the metastable threshold."""
        return self.verdict in ("stable", "metastable")

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


def tier(energy_above_hull: float, thresholds: ThresholdSettings) -> str:
    """Name the tier of an energy above the hull in eV/atom; NaN: not assessable."""
    if math.isnan(energy_above_hull):
        return "not_assessable"
    if energy_above_hull < thresholds.suspect:
        return "quarantined"
    if energy_above_hull <= thresholds.stable:
        return "stable"
    return "metastable" if energy_above_hull <= thresholds.metastable else "unstable"


def assess(
    config: CampaignConfig, structures: Sequence[Structure], energies: ArrayLike
) -> list[Verdict]:
    """Judge crystals against the first hull and the known structures of the settings.

    Args:
        config: Its potential, first hull, reference and thresholds count.
        structures: As relaxed.
        energies: Of the potential, eV/atom.
    """
    from relax.matching import unique

    hull = inputs.load_hull(config.hulls[0])
    compositions = [structure.composition for structure in structures]
    formation = hull.formation_energy_per_atom(
        compositions, energies, inputs.potential_info(config.potential)
    )
    above = hull.energy_above_hull(compositions, formation)
    novel = inputs.load_reference(config.reference).novel(structures)
    representatives = unique(structures)
    return [
        Verdict(
            energy_above_hull=float(distance),
            formation_energy_per_atom=float(energy),
            verdict=tier(float(distance), config.thresholds),
            is_unique=int(representatives[index]) == index,
            is_novel=bool(novel[index]),
        )
        for index, (energy, distance) in enumerate(zip(formation, above, strict=True))
    ]
