"""Maps what the other packages return to rows of the database."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from sqlalchemy.orm import Session

from db import models, queries
from db.documents import structure_to_dict
from db.errors import DatabaseError
from flows import inputs
from flows.settings import CampaignConfig

if TYPE_CHECKING:
    from pymatgen.core.structure import Structure

    from relax.hull import Hull
    from relax.matching import Reference
    from relax.optimize import RelaxConfig, RelaxResult
    from relax.potentials import PotentialInfo
    from symmbfn.checkpoint import Card


def checkpoint_row(session: Session, card: Card) -> models.Checkpoint:
    """Find or store the row of a checkpoint."""
    return queries.register_checkpoint(
        session,
        models.Checkpoint(sha256=card.sha256, name=card.name, metrics=dict(card.metrics)),
    )


def potential_row(session: Session, info: PotentialInfo) -> models.Potential:
    """Find or store the row of a potential."""
    return queries.register_potential(
        session,
        models.Potential(
            name=info.name,
            weights_sha256=info.weights_sha256 or "",
            dtype=info.dtype,
            energy_scheme=info.energy_scheme,
        ),
    )


def hull_row(session: Session, hull: Hull) -> models.Reference:
    """Find or store the row of a hull."""
    return queries.register_reference(
        session,
        models.Reference(
            sha256=hull.sha256, kind="hull", name=hull.name, energy_scheme=hull.energy_scheme
        ),
    )


def known_row(session: Session, known: Reference) -> models.Reference:
    """Find or store the row of a set of known structures."""
    return queries.register_reference(
        session, models.Reference(sha256=known.sha256, kind="structures", name=known.name)
    )


def relax_config(config: CampaignConfig) -> RelaxConfig:
    """Return the relaxation's own settings."""
    from relax.optimize import RelaxConfig

    return RelaxConfig(
        **config.relaxation.model_dump(),
        workers=config.workers,
        device=config.device,
        at_once=config.relax_at_once,
    )


def relax_settings(config: CampaignConfig) -> dict[str, Any]:
    """Return the settings that decide how a relaxation ends, without where it runs."""
    from relax.optimize import PROTOCOL

    where = {"workers", "device", "at_once"}
    kept = {k: value for k, value in asdict(relax_config(config)).items() if k not in where}
    if config.relaxation.hopeless is None:
        del kept["hopeless"]  # as before there was this setting
    else:
        hulls = [inputs.load_hull(name).sha256 for name in config.hulls]
        kept["hopeless_above"] = {"metastable": config.thresholds.metastable, "hulls": hulls}
    return {**kept, "protocol": PROTOCOL}


def relax_budget(config: CampaignConfig) -> queries.Budget | None:
    """Return what may be spent on relaxations; None for a campaign that relaxes everything."""
    if config.funnel.relax_budget is None:
        return None
    return queries.Budget(config.funnel.relaxations, config.funnel.seconds)


def verdict_basis(
    session: Session, config: CampaignConfig, potential: PotentialInfo, hull: Hull, known: Reference
) -> queries.Basis:
    """Find or store what the verdicts of a campaign against one of its hulls rest on."""
    return queries.Basis(
        potential_id=potential_row(session, potential).id,
        relax_settings=relax_settings(config),
        hull_id=hull_row(session, hull).id,
        known_id=known_row(session, known).id,
        screen_settings=config.thresholds.model_dump(),
    )


def judge_row(
    session: Session, config: CampaignConfig, potential: PotentialInfo, hull: Hull
) -> queries.Judge:
    """Find or store what second opinions of a campaign rest on."""
    settings = relax_settings(config)
    for name in ("hopeless", "hopeless_above"):  # a judge gives nothing up
        settings.pop(name, None)
    return queries.Judge(
        potential_id=potential_row(session, potential).id,
        hull_id=hull_row(session, hull).id,
        settings={"relaxation": settings, "thresholds": config.thresholds.model_dump()},
    )


def relaxation_row(
    candidate_id: int,
    potential_id: int,
    settings: dict[str, Any],
    device: str,
    result: RelaxResult,
) -> models.Relaxation:
    """Return the row of a finished relaxation."""
    return models.Relaxation(
        candidate_id=candidate_id,
        potential_id=potential_id,
        settings=settings,
        device=device,
        status=str(result.status),
        reason=result.reason or None,
        structure=storable(result.structure),
        energy_per_atom=result.energy_per_atom,
        initial_energy_per_atom=result.initial_energy_per_atom,
        max_force=result.max_force,
        stress=None if result.stress is None else result.stress.tolist(),
        steps=result.steps,
        seconds=result.seconds,
        space_group_before=result.space_group_before,
        space_group_after=result.space_group_after,
        rmsd=result.rmsd,
    )


def storable(structure: Structure | None) -> dict[str, Any] | None:
    """Return a structure as a document, or None where a failed relaxation left no numbers."""
    if structure is None:
        return None
    try:
        return structure_to_dict(structure)
    except DatabaseError:
        return None
