"""Verdicts on crystals in memory: stable, unique, novel; for the commands without a database."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from flows import inputs
from flows.settings import CampaignConfig, JudgeSettings, ThresholdSettings, one_line

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
    """Why it could not be judged, or has no place on the hull."""
    hull_coverage: Mapping[str, Any] | None = None
    """See `coverage`."""

    @property
    def is_sun(self) -> bool:
        """Stable, unique and novel."""
        return self.is_stable and self.is_unique and self.is_novel

    @property
    def is_msun(self) -> bool:
        """Metastable, unique and novel."""
        return self.is_metastable and self.is_unique and self.is_novel

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Opinion(Tiered):
    """What a judge says of one crystal; energies in eV/atom, NaN where not assessable."""

    energy_above_hull: float
    formation_energy_per_atom: float
    verdict: str
    spread: float
    """By how much judge and first potential differ, both placed against the judge's hull; NaN where
    one of them cannot be."""
    reason: str | None


def opinions(
    config: CampaignConfig,
    judge: JudgeSettings,
    structures: Sequence[Structure],
    energies: Sequence[float],
) -> Generator[tuple[int, RelaxResult, Opinion]]:
    """Let a judge relax crystals once more, from what the first potential left.

    Args:
        config: Its potential is the first one; its relaxation and thresholds hold for the judge.
        judge: Who judges.
        structures: As the first potential left them.
        energies: Of the first potential, eV/atom.

    Yields:
        Index into `structures`, the judge's relaxation and what it says, as soon as it is there.
    """
    from flows.rows import relax_config
    from relax.errors import RelaxError
    from relax.optimize import relax_iter

    _, hull = inputs.judge(config, judge)
    first = inputs.potential_info(config.potential)
    try:
        hull.scheme_for(first, with_structures=True)
        comparable = True
    except RelaxError:  # the first potential's energies have no place on the judge's hull
        comparable = False
    to_the_end = replace(relax_config(config), hopeless=None)
    relaxing = relax_iter(structures, judge.potential, to_the_end)
    with closing(relaxing) as results:
        for index, result in results:
            formation, above, reason = math.nan, math.nan, result.reason or None
            if result.status == "converged" and result.structure is not None:
                assert result.energy_per_atom is not None  # as every converged result has
                formation, above, reason = placed(
                    hull, result.potential, result.structure, result.energy_per_atom
                )
            there = math.nan
            if comparable:
                _, there, _ = placed(hull, first, structures[index], energies[index])
            verdict = tier(above, config.thresholds)
            yield index, result, Opinion(above, formation, verdict, abs(above - there), reason)


def tier(energy_above_hull: float, thresholds: ThresholdSettings) -> str:
    """Name the tier of an energy above the hull in eV/atom; NaN: not assessable."""
    if math.isnan(energy_above_hull):
        return "not_assessable"
    if energy_above_hull < thresholds.suspect:
        return "quarantined"
    if energy_above_hull <= thresholds.stable:
        return "stable"
    return "metastable" if energy_above_hull <= thresholds.metastable else "unstable"


def coverage(hull: Hull, structure: Structure) -> dict[str, Any]:
    """Tell how well a hull knows a crystal's elements, and what the crystal falls apart into."""
    shares = hull.decomposition(structure.composition)
    return {
        **asdict(hull.coverage(structure.composition)),
        "decomposition": {formula: round(share, 6) for formula, share in shares.items()},
    }


def gap(coverage: Mapping[str, Any]) -> str | None:
    """Say why a crystal has no place on a hull, from `coverage`; None where it has one."""
    if coverage["missing"]:
        return f"the hull has no {', '.join(coverage['missing'])}"
    return None if coverage["decomposition"] else "the hull has no compound of these elements"


def place(
    hull: Hull, potential: PotentialInfo | str, structure: Structure, energy: float
) -> tuple[float, float]:
    """Place one crystal, with its energy of the potential or scheme in eV/atom, against a hull.

    Returns:
        Its formation energy and its energy above the hull, eV/atom; NaN where not assessable.
    """
    composition = [structure.composition]
    formation = hull.formation_energy_per_atom(composition, [energy], potential, [structure])
    return float(formation[0]), float(hull.energy_above_hull(composition, formation)[0])


def placed(
    hull: Hull, potential: PotentialInfo | str, structure: Structure, energy: float
) -> tuple[float, float, str | None]:
    """`place` one crystal of many; one that cannot be placed never stops the others.

    Returns:
        Its formation energy and its energy above the hull, eV/atom, NaN where not assessable; and
        why, where that is not for want of known phases.

    Raises:
        RelaxError: The settings are wrong, not the crystal.
    """
    from relax.errors import RelaxError

    try:
        return *place(hull, potential, structure, energy), None
    except RelaxError:
        raise
    except Exception as error:  # Qhull raises whatever a strange crystal makes it
        return math.nan, math.nan, f"{type(error).__name__}: {one_line(error)}"


def limit_of(config: CampaignConfig) -> Callable[[Structure], float] | None:
    """Return what tells the energy, eV/atom, above which a crystal is metastable on no hull.

    None where no crystal is to be given up; infinity of one that no hull can place.
    """
    if config.relaxation.hopeless is None:
        return None
    potential = inputs.potential_info(config.potential)
    hulls = [inputs.load_hull(name) for name in config.hulls]

    def limit(structure: Structure) -> float:
        zero = [placed(hull, potential, structure, 0.0)[1] for hull in hulls]
        above = min((one for one in zero if math.isfinite(one)), default=-math.inf)
        return config.thresholds.metastable - above

    return limit


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
            covered = coverage(hull, structure)
            verdict = Verdict(
                energy_above_hull=above,
                formation_energy_per_atom=formation,
                verdict=tier(above, config.thresholds),
                is_unique=int(firsts[index]) == index,
                is_novel=bool(known.novel([structure])[0]),
                reason=gap(covered),
                hull_coverage=covered,
            )
        except RelaxError:  # the settings are wrong, not the crystal
            raise
        except Exception as error:  # Qhull and matchers raise whatever a strange crystal makes them
            why = f"{type(error).__name__}: {one_line(error)}"
            verdict = Verdict(math.nan, math.nan, "not_assessable", False, False, why)
        verdicts.append(verdict)
    return verdicts
