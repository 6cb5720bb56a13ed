"""Measures a set of crystals: the metrics, with uniqueness, novelty and stability where asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from flows import inputs, progress
from flows.assess import assess
from flows.rows import relax_config
from flows.settings import CampaignConfig

if TYPE_CHECKING:
    from pymatgen.core.structure import Structure

    from symmbfn.metrics import Metrics


def evaluate(
    config: CampaignConfig,
    structures: Sequence[Structure | None],
    reference: Sequence[Structure] | None = None,
    stability: bool = False,
) -> Metrics:
    """Measure crystals.

    Args:
        config: Its potential, first hull, reference, relaxation and thresholds count.
        structures: None for what could not be read, a failure everywhere.
        reference: Crystals to compare with; None: MP-20 test, and for novelty the settings'.
        stability: Whether to relax and place against the hull. Unique and novel then means
            both as given and as relaxed.
    """
    from relax.matching import Reference, unique
    from symmbfn import metrics

    known = (
        inputs.load_reference(config.reference)
        if reference is None
        else Reference.from_structures(reference)
    )
    summary = None if reference is None else metrics.summarise(reference)
    good = [
        index
        for index, one in enumerate(structures)
        if one is not None and metrics.structural_flaw(one) is None
    ]
    crystals = [one for index in good if (one := structures[index]) is not None]
    firsts = unique(crystals)
    flags = {name: [False] * len(structures) for name in ("unique", "novel")}
    for place, (index, is_novel) in enumerate(zip(good, known.novel(crystals), strict=True)):
        flags["unique"][index] = int(firsts[place]) == place
        flags["novel"][index] = bool(is_novel)
    if stability:
        _add_stability(config, good, crystals, flags)
    return metrics.evaluate(structures, reference=summary, **flags)


def _add_stability(
    config: CampaignConfig,
    good: Sequence[int],
    crystals: Sequence[Structure],
    flags: dict[str, list[bool]],
) -> None:
    """Relax the good crystals and add what that tells to the flags."""
    from relax.optimize import relax_iter

    bar = progress.current()
    bar.stage("relax", len(crystals))
    relaxed: dict[int, tuple[Structure, float]] = {}
    for place, result in relax_iter(crystals, config.potential, relax_config(config)):
        if result.status == "converged":
            assert result.structure is not None and result.energy_per_atom is not None
            relaxed[good[place]] = (result.structure, result.energy_per_atom)
        bar.advance()
    order = sorted(relaxed)
    verdicts = assess(
        config, [relaxed[index][0] for index in order], [relaxed[index][1] for index in order]
    )
    size = len(flags["unique"])
    flags["stable"], flags["metastable"] = [False] * size, [False] * size
    for index, verdict in zip(order, verdicts, strict=True):
        flags["stable"][index] = verdict.is_stable
        flags["metastable"][index] = verdict.is_metastable
        flags["unique"][index] &= verdict.is_unique
        flags["novel"][index] &= verdict.is_novel
