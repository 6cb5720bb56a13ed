"""Leases: which worker relaxes which candidate, and whose result counts.

A claim carries a fence, a number that grows with every claim of that candidate. A worker that was
too slow holds an old number, and its late write is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from sqlalchemy import ColumnElement, func, or_, select, update
from sqlalchemy.orm import Session

from db.documents import Document, structure_from_dict
from db.errors import StaleLeaseError
from db.ids import material_id
from db.models import Candidate, Relaxation, utc_now
from db.rankings import Budget, place_in, seconds_spent, unrelaxed, within
from db.records import get_or_insert

if TYPE_CHECKING:
    from pymatgen.core.structure import Structure


@dataclass(frozen=True)
class Claim:
    """A candidate lent to one worker; ``fence`` proves it at the time of writing."""

    candidate_id: int
    fence: int
    structure: Structure


def _now(session: Session) -> datetime:
    """The time by the server's clock, which all workers share; SQLite is on this machine."""
    if session.get_bind().dialect.name == "postgresql":
        now: datetime = session.execute(select(func.clock_timestamp())).scalar_one()
        return now
    return utc_now()


def _wanted(
    session: Session,
    campaign_id: int,
    potential_id: int,
    settings: Document,
    budget: Budget | None,
) -> ColumnElement[bool]:
    """Candidates of a campaign that are still to be relaxed, and within its budget."""
    wanted = unrelaxed(campaign_id, potential_id, settings)
    if budget is None:
        return wanted
    wanted &= within(budget, campaign_id)
    if budget.seconds is not None:
        spent = seconds_spent(session, campaign_id, potential_id, settings)
        if spent >= budget.seconds:  # what is lent is finished
            wanted &= Candidate.lease_until > _now(session)
    return wanted


def claim(
    session: Session,
    worker: str,
    *,
    campaign_id: int,
    potential_id: int,
    settings: Document,
    lease_seconds: float,
    limit: int,
    budget: Budget | None = None,
) -> list[Claim]:
    """Lend up to ``limit`` candidates that want relaxing to a worker, largest first.

    So the last ones of a campaign are short, and no worker waits long for another. With a budget
    only those that it allows, in the order of their places.

    A candidate is lent when nobody holds it or its lease has run out. Commit before starting
    the work. An empty list means that nothing is free, not that all is done (``unfinished``).
    """
    now = _now(session)
    free = or_(Candidate.lease_until.is_(None), Candidate.lease_until <= now)
    wanted = _wanted(session, campaign_id, potential_id, settings, budget) & free
    first = Candidate.nsites.desc() if budget is None else place_in(campaign_id)
    rows = session.scalars(
        select(Candidate.id)
        .where(wanted)
        .order_by(first, Candidate.id)
        .limit(limit)
        .with_for_update(skip_locked=True, of=Candidate)  # SQLite: the whole file is ours
    ).all()
    # Asked again now that the rows are locked: one may have been finished in between.
    lent = session.execute(
        update(Candidate)
        .where(Candidate.id.in_(rows), wanted)
        .values(
            lease_owner=worker,
            lease_until=now + timedelta(seconds=lease_seconds),
            fence=Candidate.fence + 1,
        )
        .returning(Candidate.id, Candidate.fence, Candidate.structure)
        .execution_options(synchronize_session=False)
    )
    return [
        Claim(row.id, row.fence, structure_from_dict(row.structure))
        for row in sorted(lent, key=lambda row: rows.index(row.id))
    ]


def renew(session: Session, claims: Sequence[Claim], lease_seconds: float) -> list[Claim]:
    """Lengthen leases; returns the claims that are still ours, so drop the others."""
    until = _now(session) + timedelta(seconds=lease_seconds)
    return [one for one in claims if _touch(session, one.candidate_id, one.fence, until)]


def release(session: Session, claims: Sequence[Claim]) -> None:
    """Give candidates back unfinished; those that went to another worker are left alone."""
    for one in claims:
        _touch(session, one.candidate_id, one.fence, None)


def _touch(session: Session, candidate_id: int, fence: int, until: datetime | None) -> bool:
    values: dict[str, object] = {"lease_until": until}
    if until is None:
        values["lease_owner"] = None
    changed = session.execute(
        update(Candidate)
        .where(
            Candidate.id == candidate_id,
            Candidate.fence == fence,
            Candidate.lease_owner.is_not(None),
        )
        .values(values)
        .returning(Candidate.id)
        .execution_options(synchronize_session=False)
    )
    return changed.scalar() is not None


def unfinished(
    session: Session,
    campaign_id: int,
    potential_id: int,
    settings: Document,
    budget: Budget | None = None,
) -> int:
    """How many candidates of a campaign are still to be relaxed, lent ones included."""
    wanted = _wanted(session, campaign_id, potential_id, settings, budget)
    return session.execute(select(func.count()).select_from(Candidate).where(wanted)).scalar_one()


def record_relaxation(session: Session, relaxation: Relaxation, *, fence: int) -> Relaxation:
    """Store the outcome of a claimed relaxation and end the lease; twice is the same as once.

    The candidate becomes ``relaxed`` when the status is ``converged``, otherwise ``failed``.

    Raises:
        StaleLeaseError: when the candidate was claimed again since; nothing is written.
    """
    state = "relaxed" if relaxation.status == "converged" else "failed"
    ours = session.execute(
        update(Candidate)
        .where(Candidate.id == relaxation.candidate_id, Candidate.fence == fence)
        .values(state=state, reason=None, lease_owner=None, lease_until=None)
        .returning(Candidate.id)
        .execution_options(synchronize_session=False)
    )
    if ours.scalar() is None:
        raise StaleLeaseError(
            f"{material_id(relaxation.candidate_id)} went to another worker before this one was "
            "done: the late result is dropped; use a longer lease if this happens often"
        )
    return get_or_insert(session, relaxation, "candidate_id", "potential_id", "settings_hash")
