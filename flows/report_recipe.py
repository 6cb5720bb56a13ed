"""The recipe beside the figures of an evaluation: all that they rest on."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from flows import inputs
from flows.settings import CampaignConfig
from flows.version import code_version

if TYPE_CHECKING:
    from relax.hull import Hull
    from relax.potentials import PotentialInfo


def recipe(
    config: CampaignConfig, what: Path, reference: Path | None, *, drawn: bool, stability: bool
) -> dict[str, str]:
    """Name everything, with hashes.

    Args:
        config: The settings of the evaluation.
        what: The file, or the checkpoint.
        reference: A file of crystals that the distributions and novelty refer to; None: MP-20
            test, and the settings' reference.
        drawn: Whether the crystals were drawn from the checkpoint.
        stability: Whether they were relaxed.
    """
    facts = _drawn(config) if drawn else {"file": _file(what)}
    if reference is None:
        from symmbfn.metrics import mp20_test

        known, n = inputs.load_reference(config.reference), mp20_test().n
        facts["distributions against"] = f"MP-20 test, {n:,} crystals (summary statistics)"
        facts["novelty against"] = f"{known.name}, sha256 {known.sha256}"
    else:
        facts["distributions and novelty against"] = _file(reference)
    if stability:
        facts |= {**_stability(config), "relaxation": _relaxation(config)}
    return {**facts, "symmetry tolerance": "0.1 Å", **_program()}


def screening_recipe(config: CampaignConfig, file: Path) -> dict[str, str]:
    """Name what verdicts on the crystals of a file, as they are, rest on."""
    known = inputs.load_reference(config.reference)
    novelty = {"novelty against": f"{known.name}, sha256 {known.sha256}"}
    given = {"file": _file(file), "relaxation": "none: energies of the crystals as given"}
    return {**given, **_stability(config), **novelty, **_judge(config), **_program()}


def _judge(config: CampaignConfig) -> dict[str, str]:
    if config.judge is None:
        return {}
    potential, hull = inputs.judge(config, config.judge)
    told = {"judge": _potential(potential), "judge's hull": _hull(hull)}
    return {**told, "judge's relaxation": _relaxation(config)}


def _program() -> dict[str, str]:
    return {
        "same crystal": "as pymatgen's StructureMatcher at its default tolerances "
        f"(relax.matching), pymatgen {version('pymatgen')}",
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "symmbfn": code_version(),
    }


def _relaxation(config: CampaignConfig) -> str:
    relaxation = config.relaxation
    return f"forces below {relaxation.fmax} eV/Å, at most {relaxation.max_steps} steps"


def _drawn(config: CampaignConfig) -> dict[str, str]:
    from symmbfn.checkpoint import load_card
    from symmbfn.sample import DEFAULT_STEPS, proposals_of

    card = load_card(config.checkpoint)
    return {
        "checkpoint": f"{card.name}, sha256 {card.sha256}",
        "trained on": str(card.training.get("data", "not recorded")),
        "drawn": f"{config.n} crystals, seed {config.seed or 0}, "
        f"{config.steps or DEFAULT_STEPS} steps, "
        f"{proposals_of(card, config.proposals)} proposals for each",
    }


def _stability(config: CampaignConfig) -> dict[str, str]:
    potential, hull, _ = inputs.check_stability(config)
    thresholds = config.thresholds
    return {
        "potential": _potential(potential),
        "hull": _hull(hull),
        "thresholds": f"stable at or below {thresholds.stable} eV/atom above the hull, metastable "
        f"at or below {thresholds.metastable}; below {thresholds.suspect} set apart",
    }


def _potential(info: PotentialInfo) -> str:
    weights = f", weights sha256 {info.weights_sha256}" if info.weights_sha256 else ""
    return f"{info.name}, energy scheme {info.energy_scheme}, {info.dtype}{weights}"


def _hull(hull: Hull) -> str:
    return f"{hull.name}, energy scheme {hull.energy_scheme}, sha256 {hull.sha256}"


def _file(path: Path) -> str:
    if not path.is_file():
        return str(path)
    with path.open("rb") as file:
        return f"{path}, sha256 {hashlib.file_digest(file, 'sha256').hexdigest()}"
