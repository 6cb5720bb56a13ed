"""The second opinion: what another potential says of crystals that have their verdict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import ColumnElement, case, exists, func
from sqlalchemy.orm import Session

from db.documents import Document, content_hash, structure_from_dict
from db.fields import candidate_rows, fields_of
from db.models import Campaign, Judgement, Relaxation, Stability
from db.records import get_or_insert

if TYPE_CHECKING:
    from pymatgen.core.structure import Structure

WORTH_JUDGING = ("stable", "metastable", "quarantined")
"""Verdicts that a second opinion could change for the better or the worse."""


@dataclass(frozen=True)
class Unjudged:
    """A relaxed crystal that wants a second opinion; energy of the first potential in eV/atom."""

    relaxation_id: int
    structure: Structure
    energy_per_atom: float


@dataclass(frozen=True)
class Judge:
    """Whose opinion is asked for; rows of the database.

    Attributes:
        potential_id: that relaxes once more.
        hull_id: that the energies are placed against.
        settings: of the second relaxation, and the thresholds of the verdict.
    """

    potential_id: int
    hull_id: int
    settings: Document


def unjudged(session: Session, campaign_id: int, judge: Judge) -> list[Unjudged]:
    """Crystals of a campaign, with a verdict in ``WORTH_JUDGING``, that the judge has not seen.

    Only those that are unique in the database; the lowest above the hull come first.
    """
    campaign = session.get_one(Campaign, campaign_id)
    rows = candidate_rows(
        Relaxation.id, Relaxation.structure, Relaxation.energy_per_atom, campaign=campaign
    ).where(
        Stability.verdict.in_(WORTH_JUDGING),
        Stability.is_unique.is_(True),
        ~exists().where(Judgement.relaxation_id == Relaxation.id, _by(judge)),
    )
    return [
        Unjudged(relaxation, structure_from_dict(structure), energy)
        for relaxation, structure, energy in session.execute(
            rows.order_by(Stability.energy_above_hull)
        )
    ]


def record_judgement(session: Session, judgement: Judgement) -> Judgement:
    """Store what a judge says of a crystal; what it said before stays."""
    return get_or_insert(
        session, judgement, "relaxation_id", "potential_id", "hull_id", "settings_hash"
    )


def judged_counts(session: Session, campaign_id: int) -> dict[str, int]:
    """How many crystals of a campaign have a second opinion, and with how many it agrees.

    ``judged``; of these ``sun`` and ``msun``, which the campaign's own verdict calls stable, or
    metastable, unique and novel; and of those ``sun_too`` and ``msun_too``, which the judge finds
    stable, or metastable, as well.
    """
    campaign = session.get_one(Campaign, campaign_id)
    fields = fields_of(campaign)
    opinion = fields["judge_verdict"].column
    new = fields["is_unique"].column & Stability.is_novel & opinion.is_not(None)
    counted = {
        "judged": opinion.is_not(None),
        "sun": new & Stability.is_stable,
        "sun_too": new & Stability.is_stable & (opinion == "stable"),
        "msun": new & Stability.is_metastable,
        "msun_too": new & Stability.is_metastable & opinion.in_(("stable", "metastable")),
    }
    counts = [func.count(case((condition, 1))) for condition in counted.values()]
    row = session.execute(candidate_rows(*counts, campaign=campaign)).one()
    return dict(zip(counted, row, strict=True))


def _by(judge: Judge) -> ColumnElement[bool]:
    return (
        (Judgement.potential_id == judge.potential_id)
        & (Judgement.hull_id == judge.hull_id)
        & (Judgement.settings_hash == content_hash(judge.settings))
    )
