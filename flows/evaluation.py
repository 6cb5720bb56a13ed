"""Judges crystals one by one for `symmbfn evaluate`; its metrics count what stands here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from flows import inputs, progress
from flows.assess import Tiered, assess
from flows.rows import relax_config
from flows.settings import CampaignConfig

if TYPE_CHECKING:
    from pymatgen.core.structure import Structure

    from relax.matching import Reference
    from symmbfn.coverage import Coverage
    from symmbfn.metrics import Metrics, Summary


@dataclass(frozen=True)
class JudgedCrystal(Tiered):
    """One crystal and all that was found out about it.

    Attributes:
        name: In its file, or its number among those drawn.
        structure: As given; None if it could not be read.
        flaw: Why it is no crystal, or could not be read; None if nothing is wrong.
        composition_valid: Whether charges can balance.
        is_unique: The first of its kind, as given and, where relaxed, as relaxed.
        is_novel: Known to no reference, as given and, where relaxed, as relaxed.
        relaxation: How the relaxation ended; empty if there was none.
        relaxed: The relaxed structure; None unless it converged.
        energy_above_hull: eV/atom; NaN where not known.
        verdict: Tier of that energy, see `flows.assess.tier`; empty if there is none.
    """

    name: str
    structure: Structure | None
    flaw: str | None
    composition_valid: bool
    is_unique: bool = False
    is_novel: bool = False
    relaxation: str = ""
    relaxed: Structure | None = None
    energy_above_hull: float = math.nan
    verdict: str = ""

    @property
    def best_structure(self) -> Structure | None:
        """As relaxed; else as given, None where that is no crystal."""
        return self.relaxed or (None if self.flaw else self.structure)


@dataclass(frozen=True)
class Named:
    """A crystal to judge; without a structure, `error` says why."""

    name: str
    structure: Structure | None
    error: str | None = None


def judge(
    config: CampaignConfig,
    crystals: Sequence[Named],
    reference: Sequence[Structure] | None = None,
    *,
    stability: bool = False,
) -> list[JudgedCrystal]:
    """Judge crystals, in their order.

    Args:
        config: Its potential, first hull, reference, relaxation and thresholds count.
        crystals: Of any source.
        reference: What novelty is measured against; None: the settings' reference.
        stability: Whether to relax and place against the hull. Unique and novel then means
            both as given and as relaxed.
    """
    from relax.matching import Reference, unique

    judged = [_at_sight(crystal) for crystal in crystals]
    known = (
        inputs.load_reference(config.reference)
        if reference is None
        else Reference.from_structures(reference)
    )
    good = [index for index, one in enumerate(judged) if one.flaw is None]
    structures = [one for index in good if (one := judged[index].structure) is not None]
    firsts, novel = unique(structures), known.novel(structures)
    for place, index in enumerate(good):
        judged[index] = replace(
            judged[index], is_unique=int(firsts[place]) == place, is_novel=bool(novel[place])
        )
    if stability:
        _add_stability(config, judged, good, structures, known)
    return judged


def measure(
    judged: Sequence[JudgedCrystal],
    reference: Summary,
    *,
    stability: bool = False,
    coverage: Coverage | None = None,
) -> Metrics:
    """Count over all crystals; what concerns the hull only where `stability` was judged."""
    from symmbfn import metrics

    flags = {
        "unique": [one.is_unique for one in judged],
        "novel": [one.is_novel for one in judged],
    }
    if stability:
        flags["stable"] = [one.is_stable for one in judged]
        flags["metastable"] = [one.is_metastable for one in judged]
    counted = metrics.evaluate([one.structure for one in judged], reference=reference, **flags)
    if coverage is None:
        return counted
    return replace(counted, coverage_recall=coverage.recall, coverage_precision=coverage.precision)


def cover(judged: Sequence[JudgedCrystal], reference: Sequence[Structure]) -> Coverage:
    """Compare crystals with a reference by CDVAE's fingerprints; those with a flaw reach nothing.

    Raises:
        SymmBFNError: the extra `coverage` is not installed.
    """
    from symmbfn.coverage import coverage, fingerprints

    crystals = [None if one.flaw else one.structure for one in judged]
    bar = progress.current()
    bar.stage("fingerprints", len(crystals) + len(reference))
    ours, theirs = (fingerprints(some, on_crystal=bar.advance) for some in (crystals, reference))
    return coverage(ours, theirs)


def _at_sight(crystal: Named) -> JudgedCrystal:
    from symmbfn.metrics import composition_valid, structural_flaw

    structure = crystal.structure
    if structure is None:
        return JudgedCrystal(crystal.name, None, crystal.error or "unreadable", False)
    flaw, charged = structural_flaw(structure), composition_valid(structure.composition)
    return JudgedCrystal(crystal.name, structure, flaw, charged)


def _add_stability(
    config: CampaignConfig,
    judged: list[JudgedCrystal],
    good: Sequence[int],
    structures: Sequence[Structure],
    known: Reference,
) -> None:
    """Relax the good crystals and add what that tells."""
    from relax.optimize import relax_iter

    bar = progress.current()
    bar.stage("relax", len(structures))
    relaxed: dict[int, tuple[Structure, float]] = {}
    for place, result in relax_iter(structures, config.potential, relax_config(config)):
        index = good[place]
        judged[index] = replace(judged[index], relaxation=str(result.status))
        if result.status == "converged":
            assert result.structure is not None and result.energy_per_atom is not None
            relaxed[index] = (result.structure, result.energy_per_atom)
        bar.advance()
    order = sorted(relaxed)
    ended = [relaxed[index][0] for index in order]
    verdicts = assess(config, ended, [relaxed[index][1] for index in order])
    for index, verdict, is_novel in zip(order, verdicts, known.novel(ended), strict=True):
        judged[index] = replace(
            judged[index],
            relaxed=relaxed[index][0],
            energy_above_hull=verdict.energy_above_hull,
            verdict=verdict.verdict,
            is_unique=judged[index].is_unique and verdict.is_unique,
            is_novel=judged[index].is_novel and bool(is_novel),
        )
