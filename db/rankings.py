"""The rankings of a campaign with a relaxation budget: who comes first, and who is passed over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import ColumnElement, exists, func, select, update
from sqlalchemy.orm import Session

from db.documents import Document, content_hash, structure_from_dict
from db.fields import drawn_in
from db.models import Campaign, Candidate, Ranking, Relaxation
from db.records import get_or_insert

if TYPE_CHECKING:
    from pymatgen.core.structure import Structure


@dataclass(frozen=True)
class Budget:
    """What all processes of a campaign together may spend on relaxations.

    Attributes:
        relaxations: how many; None for any number.
        seconds: the sum of their times; what is under way when it is spent is finished. None for
            any time.
    """

    relaxations: int | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Unranked:
    """A candidate, as drawn, that a campaign has not looked at."""

    candidate_id: int
    structure: Structure


@dataclass(frozen=True)
class Fallen:
    """A crystal that was looked at and later relaxed; ``fall`` is the energy lost, eV/atom."""

    ranking: Ranking
    nsites: int
    fall: float


def unrelaxed(campaign_id: int, potential_id: int, settings: Document) -> ColumnElement[bool]:
    """Say that a campaign drew the candidate and its potential has yet to relax it so."""
    return (
        drawn_in(campaign_id) & ~_relaxed(potential_id, settings) & (Candidate.state != "invalid")
    )


def within(budget: Budget, campaign_id: int) -> ColumnElement[bool]:
    """Say that the candidate's place in a campaign is one that the number of relaxations allows."""
    placed = (
        (Ranking.candidate_id == Candidate.id)
        & (Ranking.campaign_id == campaign_id)
        & Ranking.place.is_not(None)
    )
    if budget.relaxations is not None:
        placed &= Ranking.place <= budget.relaxations
    return exists().where(placed)


def place_in(campaign_id: int) -> ColumnElement[int]:
    """The candidate's place in a campaign."""
    place = select(Ranking.place).where(
        Ranking.candidate_id == Candidate.id, Ranking.campaign_id == campaign_id
    )
    return place.correlate(Candidate).scalar_subquery()


def seconds_spent(
    session: Session, campaign_id: int, potential_id: int, settings: Document
) -> float:
    """The time that the relaxations of a campaign's ranked candidates took, all together."""
    spent = session.scalar(
        select(func.sum(Relaxation.seconds))
        .join(Ranking, Ranking.candidate_id == Relaxation.candidate_id)
        .where(
            Ranking.campaign_id == campaign_id,
            Ranking.place.is_not(None),
            Relaxation.potential_id == potential_id,
            Relaxation.settings_hash == content_hash(settings),
        )
    )
    return spent or 0.0


def unranked(
    session: Session, campaign_id: int, potential_id: int, settings: Document
) -> list[Unranked]:
    """Candidates that a campaign would relax and has not looked at, oldest first."""
    seen = exists().where(Ranking.candidate_id == Candidate.id, Ranking.campaign_id == campaign_id)
    rows = session.execute(
        select(Candidate.id, Candidate.structure)
        .where(unrelaxed(campaign_id, potential_id, settings), ~seen)
        .order_by(Candidate.id)
    )
    return [Unranked(row.id, structure_from_dict(row.structure)) for row in rows]


def add_ranking(session: Session, ranking: Ranking) -> Ranking:
    """Store what was seen of a candidate; whoever stored it first is believed.

    One that is ``known`` gets that state, with ``passed_over`` as its reason.
    """
    stored = get_or_insert(session, ranking, "campaign_id", "candidate_id")
    if stored.choice == "known":
        _leave(session, Candidate.id == stored.candidate_id, "known", stored.passed_over)
    return stored


def unplaced(session: Session, campaign_id: int) -> list[tuple[Ranking, int]]:
    """Candidates whose place is not settled, oldest first, each with its number of atoms.

    Nobody else can settle it until the end of this transaction.
    """
    session.execute(select(Campaign.id).where(Campaign.id == campaign_id).with_for_update())
    rows = session.execute(
        select(Ranking, Candidate.nsites)
        .join(Candidate, Candidate.id == Ranking.candidate_id)
        .where(
            Ranking.campaign_id == campaign_id, Ranking.place.is_(None), Ranking.choice.is_(None)
        )
        .order_by(Ranking.candidate_id)
    )
    return [(row.Ranking, row.nsites) for row in rows]


def places_taken(session: Session, campaign_id: int) -> int:
    """How many places a campaign has settled."""
    last = select(func.max(Ranking.place)).where(Ranking.campaign_id == campaign_id)
    return session.scalar(last) or 0


def fallen(session: Session, potential_id: int, settings: Document) -> list[Fallen]:
    """Crystals of all campaigns that were looked at and then relaxed to the end, oldest first."""
    rows = session.execute(
        select(Ranking, Candidate.nsites, Ranking.energy_per_atom - Relaxation.energy_per_atom)
        .join(Candidate, Candidate.id == Ranking.candidate_id)
        .join(Relaxation, Relaxation.candidate_id == Candidate.id)
        .join(Campaign, Campaign.id == Ranking.campaign_id)
        .where(
            Campaign.potential_id == potential_id,
            Relaxation.potential_id == potential_id,
            Relaxation.settings_hash == content_hash(settings),
            Relaxation.status == "converged",
            Relaxation.energy_per_atom.is_not(None),
            Ranking.energy_per_atom.is_not(None),
        )
        .order_by(Relaxation.id, Ranking.campaign_id)
    )
    return [Fallen(ranking, nsites, fall) for ranking, nsites, fall in rows]


def pass_over(
    session: Session, campaign_id: int, potential_id: int, settings: Document, reason: str
) -> None:
    """Note why the placed candidates that are not relaxed are left; the first reason stays.

    Their state becomes ``passed_over``, unless a campaign has concluded something before; one that
    is being relaxed now gets its outcome later.
    """
    left = unrelaxed(campaign_id, potential_id, settings) & within(Budget(), campaign_id)
    session.execute(
        update(Ranking)
        .where(
            Ranking.campaign_id == campaign_id,
            Ranking.passed_over.is_(None),
            Ranking.candidate_id.in_(select(Candidate.id).where(left)),
        )
        .values(passed_over=reason)
        .execution_options(synchronize_session=False)
    )
    _leave(session, left, "passed_over", reason)


def _leave(session: Session, which: ColumnElement[bool], state: str, reason: str | None) -> None:
    """Give candidates a state and its reason, unless something was concluded of them before."""
    session.execute(
        update(Candidate)
        .where(which, Candidate.state == "generated")
        .values(state=state, reason=reason)
        .execution_options(synchronize_session=False)
    )


def _relaxed(potential_id: int, settings: Document) -> ColumnElement[bool]:
    return exists().where(
        Relaxation.candidate_id == Candidate.id,
        Relaxation.potential_id == potential_id,
        Relaxation.settings_hash == content_hash(settings),
    )
