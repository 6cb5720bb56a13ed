"""Campaigns whose crystals were chosen by hand, for tests of the stages after generation."""

from __future__ import annotations

from pymatgen.core.structure import Structure
from sqlalchemy.orm import Session

from db import queries
from db.models import Batch, Candidate, Checkpoint, Relaxation
from db.session import open_database
from flows.inputs import check_stability
from flows.rows import verdict_basis
from flows.settings import CampaignConfig
from flows.stage_generate import Compared, examine, store


def drawn_campaign(
    config: CampaignConfig, crystals: list[Structure], relaxed: bool, energy: float = -5.0
) -> int:
    """A campaign whose crystals were drawn, perhaps relaxed, each to itself, but not judged.

    Args:
        config: Its settings.
        crystals: The crystals.
        relaxed: Whether they are.
        energy: Of those that are, eV/atom.
    """
    potential, hull, known = check_stability(config)
    database = open_database(config.database)
    with database.session() as session:
        basis = verdict_basis(session, config, potential, hull, known)
        campaign = queries.get_or_create_campaign(
            session,
            "by-hand",
            name="by-hand",
            config=config.identity(),
            seed=0,
            code_version="",
            inputs={},
            basis=basis,
        )
        batch = batch_row(session, campaign.id, 0)
        drawn = [examine(crystal, 225) for crystal in crystals]
        nothing = Compared({}, {}, newest=queries.newest_candidate(session))
        numbers = store(session, batch, drawn, nothing)
        for number in numbers if relaxed else ():
            row = Relaxation(
                candidate_id=number,
                potential_id=basis.potential_id,
                settings=basis.relax_settings,
                status="converged",
                structure=session.get_one(Candidate, number).structure,
                energy_per_atom=energy,
            )
            queries.record_relaxation(session, row, fence=0)
        return campaign.id


def relaxed_campaign(config: CampaignConfig, crystals: list[Structure]) -> int:
    """See `drawn_campaign`."""
    return drawn_campaign(config, crystals, relaxed=True)


def batch_row(session: Session, campaign: int, number: int) -> int:
    """Add an empty batch."""
    checkpoint = queries.register_checkpoint(session, Checkpoint(sha256="c" * 64, name="any"))
    batch = Batch(
        campaign_id=campaign,
        number=number,
        checkpoint_id=checkpoint.id,
        conditions={},
        seed=number,
        size=3,
    )
    return queries.add_batch(session, batch).id
