"""Density-functional calculations: which crystals want one, and what became of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, and_, exists, func, select, true, update
from sqlalchemy.orm import Session

from db import filters
from db.documents import Document, content_hash, structure_from_dict
from db.errors import FilterError
from db.fields import FIELDS, candidate_rows, drawn_in, fields_of
from db.ids import material_id
from db.models import (
    Campaign,
    Candidate,
    DftCalculation,
    Reference,
    Relaxation,
    Stability,
    utc_now,
)
from db.records import get_or_insert

if TYPE_CHECKING:
    from pymatgen.core.structure import Structure


@dataclass(frozen=True)
class Wanted:
    """A relaxed crystal to compute."""

    relaxation_id: int
    material_id: str
    formula: str
    structure: Structure


@dataclass(frozen=True)
class Submitted:
    """A calculation whose result is awaited; ``sent`` is the crystal that it was given."""

    material_id: str
    code: str
    settings: Document
    runner: str
    location: str | None
    job_id: str
    submitted_at: datetime
    sent: Structure


@dataclass(frozen=True)
class Result:
    """What a calculation gave; the columns of the same names say what they are."""

    structure: Document
    energy_per_atom: float
    energy_scheme: str
    correction_per_atom: float | None
    band_gap: float | None
    max_force: float
    forces: list[list[float]]
    code_version: str | None
    reason: str | None = None


@dataclass(frozen=True)
class Computed:
    """A completed calculation that may be placed against a hull; energy in eV/atom."""

    id: int
    material_id: str
    structure: Structure
    energy_per_atom: float


def wanted(
    session: Session,
    code: str,
    settings: Document,
    *,
    limit: int,
    filter: str | None = None,
    policy: str | None = None,
    stable: float = 0.0,
    resubmit: bool = False,
    campaign_id: int | None = None,
) -> list[Wanted]:
    """Choose crystals that were not yet computed by this code with these settings.

    Only converged relaxations; of each candidate the one that its newest verdict judges. With a
    policy, only crystals that are the first of their kind in the database.

    Args:
        session: an open session.
        code: of the calculations.
        settings: of the calculations.
        limit: at most so many.
        filter: text in the OPTIMADE language; None for all.
        policy: which crystals first. ``stable``: the lowest above their hull, suspects left out;
            ``uncertain``: those of which two potentials think most differently, and after them the
            nearest to the stable threshold, on either side, suspects left out;
            ``quarantined``: the suspects, the lowest first; None: the lowest first, of all.
        stable: threshold that ``uncertain`` means, eV/atom above the hull.
        resubmit: take those whose calculation failed, instead of those that have none.
        campaign_id: only what this campaign drew, by its own verdicts; what of it was submitted
            before then counts towards the limit, unless it is to be submitted again.

    Raises:
        FilterError: when the filter is not understood.
    """
    if limit < 0:
        raise FilterError(f"limit {limit} is negative: give a number of crystals")
    computed = exists().where(DftCalculation.relaxation_id == Relaxation.id, _key(code, settings))
    failed = computed.where(DftCalculation.state == "failed")
    campaign = None
    if campaign_id is not None:
        campaign = session.get_one(Campaign, campaign_id)
        if not resubmit:
            limit = max(limit - _submitted_of(session, campaign_id, code, settings), 0)
    rows = candidate_rows(
        Relaxation.id,
        Candidate.id,
        Candidate.formula_pretty,
        Relaxation.structure,
        campaign=campaign,
    ).where(
        Relaxation.status == "converged",
        Relaxation.structure.is_not(None),
        failed if resubmit else ~computed,
    )
    if filter is not None:
        rows = rows.where(filters.parse(filter, fields_of(campaign)))
    above: ColumnElement[Any] = Stability.energy_above_hull.expression
    order = [above.is_(None), above]
    if policy is not None:
        suspect = Stability.verdict == "quarantined"
        rows = rows.where(
            Stability.energy_above_hull.is_not(None),
            Stability.is_unique.is_(True),
            suspect if policy == "quarantined" else ~suspect,
        )
    if policy == "uncertain":
        spread = FIELDS["energy_above_hull_spread"].column
        order = [spread.is_(None), spread.desc(), func.abs(above - stable)]
    rows = rows.order_by(*order, Candidate.id).limit(limit)
    return [
        Wanted(relaxation, material_id(candidate), formula, structure_from_dict(structure))
        for relaxation, candidate, formula, structure in session.execute(rows)
    ]


def _submitted_of(session: Session, campaign_id: int, code: str, settings: Document) -> int:
    """How many crystals of a campaign were submitted so far."""
    rows = select(func.count(DftCalculation.relaxation_id.distinct())).where(
        _key(code, settings),
        DftCalculation.relaxation_id == Relaxation.id,
        Relaxation.candidate_id == Candidate.id,
        drawn_in(campaign_id),
    )
    return session.scalar(rows) or 0


def submit(
    session: Session,
    relaxation_id: int,
    code: str,
    settings: Document,
    *,
    runner: str,
    location: str | None,
    job_id: str,
) -> bool:
    """Note that a job is about to be submitted; commit this before submitting it.

    Returns:
        Whether this job is the one to submit: False where another process was faster, or the
        calculation is awaited or completed already.
    """
    again = session.execute(
        update(DftCalculation)
        .where(
            DftCalculation.relaxation_id == relaxation_id,
            _key(code, settings),
            DftCalculation.state == "failed",
        )
        .values(
            state="submitted",
            runner=runner,
            location=location,
            job_id=job_id,
            submissions=DftCalculation.submissions + 1,
            submitted_at=utc_now(),
            finished_at=None,
            reason=None,
        )
        .returning(DftCalculation.id)
        .execution_options(synchronize_session=False)
    )
    if again.scalar() is not None:
        return True
    row = DftCalculation(
        relaxation_id=relaxation_id,
        code=code,
        settings=settings,
        runner=runner,
        location=location,
        job_id=job_id,
        submitted_at=utc_now(),
    )
    stored = get_or_insert(session, row, "relaxation_id", "code", "settings_hash")
    return stored.job_id == job_id


def submitted(session: Session) -> list[Submitted]:
    """The calculations that are awaited, oldest first."""
    rows = session.execute(
        select(DftCalculation, Relaxation.candidate_id, Relaxation.structure)
        .join(Relaxation, Relaxation.id == DftCalculation.relaxation_id)
        .where(DftCalculation.state == "submitted")
        .order_by(DftCalculation.id)
    )
    return [
        Submitted(
            material_id=material_id(candidate),
            code=row.code,
            settings=row.settings,
            runner=row.runner or "",
            location=row.location,
            job_id=row.job_id or "",
            submitted_at=row.submitted_at or row.created_at,
            sent=structure_from_dict(structure or {}),
        )
        for row, candidate, structure in rows
    ]


def complete(session: Session, job_id: str, result: Result) -> bool:
    """Store a job's result, unless it was settled, or its calculation submitted again, since."""
    return _settle(session, job_id, {"state": "completed", **asdict(result)})


def fail(session: Session, job_id: str, reason: str) -> bool:
    """Note a job's failure, unless it was settled, or its calculation submitted again, since."""
    return _settle(session, job_id, {"state": "failed", "reason": reason})


def unjudged(
    session: Session, hull_id: int, energy_scheme: str | None, thresholds: Document
) -> list[Computed]:
    """Completed calculations of the hull's scheme without a verdict against it, oldest first."""
    rows = session.execute(
        select(DftCalculation, Relaxation.candidate_id)
        .join(Relaxation, Relaxation.id == DftCalculation.relaxation_id)
        .where(
            DftCalculation.state == "completed",
            DftCalculation.energy_scheme == energy_scheme,
        )
        .order_by(DftCalculation.id)
    )
    return [
        Computed(
            row.id,
            material_id(candidate),
            structure_from_dict(row.structure or {}),
            row.energy_per_atom or 0.0,
        )
        for row, candidate in rows
        if (row.hull_id, row.thresholds) != (hull_id, thresholds)
    ]


def judge(
    session: Session,
    calculation_id: int,
    *,
    hull_id: int,
    thresholds: Document,
    verdict: str,
    formation_energy_per_atom: float,
    energy_above_hull: float,
    reason: str | None = None,
) -> None:
    """Store the verdict by a calculation's energy; energies in eV/atom."""
    row = session.get_one(DftCalculation, calculation_id)
    row.hull_id, row.thresholds, row.verdict, row.reason = hull_id, thresholds, verdict, reason
    row.formation_energy_per_atom = formation_energy_per_atom
    row.energy_above_hull = energy_above_hull


def calculations(session: Session, state: str | None = None) -> list[dict[str, Any]]:
    """One plain row for each calculation, the newest submission first."""
    rows = session.execute(
        select(DftCalculation, Candidate.id, Candidate.formula_pretty, Reference.name)
        .join(Relaxation, Relaxation.id == DftCalculation.relaxation_id)
        .join(Candidate, Candidate.id == Relaxation.candidate_id)
        .outerjoin(Reference, Reference.id == DftCalculation.hull_id)
        .where(true() if state is None else DftCalculation.state == state)
        .order_by(DftCalculation.submitted_at.desc(), DftCalculation.id.desc())
    )
    return [
        {
            "material_id": material_id(candidate),
            "formula_pretty": formula,
            **{name: getattr(row, name) for name in _LISTED},
            "hull": hull,
        }
        for row, candidate, formula, hull in rows
    ]


_LISTED = (
    "code",
    "settings",
    "state",
    "runner",
    "location",
    "job_id",
    "submissions",
    "submitted_at",
    "finished_at",
    "energy_per_atom",
    "energy_scheme",
    "band_gap",
    "max_force",
    "energy_above_hull",
    "verdict",
    "reason",
)


def _key(code: str, settings: Document) -> ColumnElement[bool]:
    return and_(DftCalculation.code == code, DftCalculation.settings_hash == content_hash(settings))


def _settle(session: Session, job_id: str, values: Mapping[str, Any]) -> bool:
    changed = session.execute(
        update(DftCalculation)
        .where(DftCalculation.job_id == job_id, DftCalculation.state == "submitted")
        .values(**values, finished_at=utc_now())
        .returning(DftCalculation.id)
        .execution_options(synchronize_session=False)
    )
    return changed.scalar() is not None
