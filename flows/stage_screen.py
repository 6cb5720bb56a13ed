"""The last stage of a campaign, without Prefect: stable, unique and novel or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from db import models, queries
from db.documents import structure_from_dict
from db.queries import Relaxed
from db.session import Database, open_database
from flows import assess, inputs, progress
from flows.rows import hull_row, known_row, potential_row, relax_config, relax_settings
from flows.settings import CampaignConfig, ThresholdSettings

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from relax.hull import Hull
    from relax.matching import Reference


def screen_pending(config: CampaignConfig, campaign_id: int) -> None:
    """Give a verdict on every relaxed crystal of the campaign that has none yet."""
    database = open_database(config.database)
    # The newest verdict is the one that is shown, so the first hull comes last.
    for name in reversed(config.hulls):
        _screen_against(config, campaign_id, database, inputs.load_hull(name))


@dataclass(frozen=True)
class _Rows:
    """Row numbers of what a verdict rests on, and its settings."""

    potential_id: int
    hull_id: int
    known_id: int
    settings: dict[str, Any]


def _screen_against(
    config: CampaignConfig, campaign_id: int, database: Database, hull: Hull
) -> None:
    potential = inputs.potential_info(config.potential)
    known = inputs.load_reference(config.reference)
    with database.session() as session:
        rows = _Rows(
            potential_id=potential_row(session, potential).id,
            hull_id=hull_row(session, hull).id,
            known_id=known_row(session, known).id,
            settings=config.thresholds.model_dump(),
        )
        pending = queries.unscreened(
            session,
            campaign_id=campaign_id,
            potential_id=rows.potential_id,
            relax_settings=relax_settings(relax_config(config)),
            hull_id=rows.hull_id,
            known_id=rows.known_id,
            settings=rows.settings,
        )
    bar = progress.current()
    bar.stage("screen", len(pending))
    for begin in range(0, len(pending), config.batch_size):
        chunk = pending[begin : begin + config.batch_size]
        compositions = [one.structure.composition for one in chunk]
        formation = hull.formation_energy_per_atom(
            compositions, [one.energy_per_atom for one in chunk], potential
        )
        above = hull.energy_above_hull(compositions, formation)
        novel = _novel(database, chunk, known)
        for one, energy, distance, is_novel in zip(chunk, formation, above, novel, strict=True):
            with database.session() as session:
                row = _stability(
                    session, one, hull, rows, config.thresholds, float(energy), float(distance)
                )
                row.is_novel = is_novel
                queries.record_stability(session, row)
            bar.advance()


def _novel(database: Database, chunk: Sequence[Relaxed], known: Reference) -> list[bool]:
    """Tell which crystals match nothing known, neither as generated nor as relaxed."""
    with database.session(write=False) as session:
        drawn = [
            structure_from_dict(session.get_one(models.Candidate, one.candidate_id).structure)
            for one in chunk
        ]
    before = known.novel(drawn)
    after = known.novel([one.structure for one in chunk])
    return [bool(a and b) for a, b in zip(before, after, strict=True)]


def _stability(
    session: Session,
    one: Relaxed,
    hull: Hull,
    rows: _Rows,
    thresholds: ThresholdSettings,
    formation_energy: float,
    energy_above_hull: float,
) -> models.Stability:
    """Make the row of one verdict; energies in eV/atom."""
    tier = assess.tier(energy_above_hull, thresholds)
    twin = _older_twin(session, one, rows.potential_id)
    return models.Stability(
        relaxation_id=one.relaxation_id,
        hull_id=rows.hull_id,
        known_id=rows.known_id,
        settings=rows.settings,
        verdict=tier,
        formation_energy_per_atom=formation_energy,
        energy_above_hull=energy_above_hull,
        is_stable=tier == "stable",
        is_metastable=tier in ("stable", "metastable"),
        is_unique=twin is None,
        duplicate_of_id=twin,
        hull_coverage=asdict(hull.coverage(one.structure.composition)),
    )


def _older_twin(session: Session, one: Relaxed, potential_id: int) -> int | None:
    """Return an older candidate that relaxed to the same crystal, if there is one."""
    from relax.matching import matches

    older = queries.relaxed_like(
        session, one.structure, potential_id=potential_id, before=one.candidate_id
    )
    twins = (like.candidate_id for like in older if matches(like.structure, one.structure))
    return next(twins, None)
