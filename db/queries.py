"""What is asked of the database: free functions that take a session.

Call them inside ``with database.session() as session:``, which commits at its end or rolls
everything back. This is the one page to import from; writing and leases live in their own files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import batched
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, Select, case, exists, func, inspect, select
from sqlalchemy.orm import Session, joinedload, selectinload

from db import filters
from db.documents import content_hash, structure_from_dict
from db.errors import DatabaseError, FilterError
from db.fields import (
    FIELDS,
    LIST_FIELDS,
    Field,
    candidate_rows,
    drawn_first_in,
    drawn_in,
    fields_of,
)
from db.ids import candidate_id, material_id
from db.judgements import Judge, Unjudged, judged_counts, record_judgement, unjudged
from db.leases import Claim, claim, record_relaxation, release, renew, unfinished
from db.models import (
    Base,
    Batch,
    Campaign,
    Candidate,
    DftCalculation,
    Judgement,
    Provenance,
    Ranking,
    Relaxation,
    Stability,
)
from db.rankings import (
    Budget,
    Fallen,
    Unranked,
    add_ranking,
    fallen,
    pass_over,
    places_taken,
    unplaced,
    unranked,
)
from db.records import (
    Basis,
    Like,
    add_batch,
    add_candidate,
    batch_numbers,
    candidates_like,
    finish_campaign,
    get_or_create_campaign,
    lock_verdicts,
    mark_duplicate,
    newest_candidate,
    record_stability,
    register_checkpoint,
    register_potential,
    register_reference,
    relaxed_like,
    unfinished_seeds,
    unique_like,
)

if TYPE_CHECKING:
    import pandas as pd
    from pymatgen.core.structure import Structure

__all__ = [
    "Basis",
    "Budget",
    "Claim",
    "Fallen",
    "Judge",
    "Like",
    "Relaxed",
    "Stored",
    "Unjudged",
    "Unranked",
    "add_batch",
    "add_candidate",
    "add_ranking",
    "batch_numbers",
    "campaign_counts",
    "campaign_id",
    "campaign_tally",
    "candidate",
    "candidate_id",
    "candidates",
    "candidates_like",
    "claim",
    "fallen",
    "finish_campaign",
    "get_or_create_campaign",
    "judged_counts",
    "lock_verdicts",
    "mark_duplicate",
    "material_id",
    "newest_candidate",
    "pass_over",
    "places_taken",
    "record_judgement",
    "record_relaxation",
    "record_stability",
    "register_checkpoint",
    "register_potential",
    "register_reference",
    "relaxed_like",
    "release",
    "renew",
    "structures",
    "table_counts",
    "unfinished",
    "unfinished_seeds",
    "unique_like",
    "unjudged",
    "unplaced",
    "unranked",
    "unscreened",
]


HULL_BAND = 0.025
"""On either side of the hull, eV/atom: as near as energies tell stable from unstable."""


@dataclass(frozen=True)
class Relaxed:
    """A converged relaxation that still wants a verdict; energy in eV/atom."""

    relaxation_id: int
    candidate_id: int
    drawn: Structure
    structure: Structure
    energy_per_atom: float


@dataclass(frozen=True)
class Stored:
    """A candidate for export: its relaxed structure where there is one, and its table row."""

    material_id: str
    structure: Structure
    row: dict[str, Any]


def unscreened(session: Session, campaign_id: int, basis: Basis) -> list[Relaxed]:
    """Converged relaxations of a campaign that lack the verdict of this basis, oldest first."""
    judged = exists().where(
        Stability.relaxation_id == Relaxation.id,
        Stability.hull_id == basis.hull_id,
        Stability.known_id == basis.known_id,
        Stability.settings_hash == content_hash(basis.screen_settings),
    )
    rows = session.execute(
        select(
            Relaxation.id,
            Candidate.id,
            Candidate.structure,
            Relaxation.structure,
            Relaxation.energy_per_atom,
        )
        .join(Candidate, Candidate.id == Relaxation.candidate_id)
        .where(
            drawn_in(campaign_id),
            Relaxation.potential_id == basis.potential_id,
            Relaxation.settings_hash == content_hash(basis.relax_settings),
            Relaxation.status == "converged",
            Relaxation.structure.is_not(None),
            Relaxation.energy_per_atom.is_not(None),
            ~judged,
        )
        .order_by(Candidate.id)
    )
    return [
        Relaxed(
            relaxation,
            candidate,
            structure_from_dict(drawn),
            structure_from_dict(structure or {}),
            energy or 0.0,
        )
        for relaxation, candidate, drawn, structure, energy in rows
    ]


def campaign_id(session: Session, name: str) -> int:
    """Return the row of the newest campaign of this name.

    Raises:
        DatabaseError: when there is none; it names the newest ones there are.
    """
    found = session.scalar(
        select(Campaign.id).where(Campaign.name == name).order_by(Campaign.id.desc()).limit(1)
    )
    if found is None:
        names = session.scalars(select(Campaign.name).order_by(Campaign.id.desc()).limit(5)).all()
        there = f"the newest are {', '.join(names)}" if names else "there is none yet"
        raise DatabaseError(f"no campaign {name!r} in this database; {there}")
    return found


def candidates(
    session: Session,
    filter: str | None = None,
    sort: str | None = None,
    limit: int | None = None,
    campaign_id: int | None = None,
) -> pd.DataFrame:
    """One row per candidate with its newest verdict; columns are the filter's fields.

    ``is_unique`` means unique in the database: the crystal drawn first stands for its class.

    Args:
        session: an open session.
        filter: text in the OPTIMADE language (``filters.parse``); None for all.
        sort: a field, ``-field`` for descending; by default ``energy_above_hull``. Unknown
            values come last, equal ones in the order of their ids.
        limit: at most so many rows.
        campaign_id: only what this campaign drew, with its own verdicts; a crystal that another
            one had drawn before is not unique here.

    Returns:
        Energies in eV/atom, float64, NaN where unknown; all other columns hold plain Python
        values, None where unknown. ``campaign`` names all campaigns that drew the crystal.

    Raises:
        FilterError: when the filter or the sort field is not understood.
    """
    import pandas as pd  # slow to import

    campaign = None if campaign_id is None else session.get_one(Campaign, campaign_id)
    fields = fields_of(campaign)
    columns = {name: field.column for name, field in fields.items()}
    columns["campaign"] = LIST_FIELDS["campaign"].joined()
    labelled = [column.label(name) for name, column in columns.items()]
    query = candidate_rows(*labelled, campaign=campaign)
    rows = session.execute(_ordered(query, fields, filter, sort, limit)).all()
    frame = pd.DataFrame(rows, columns=list(columns), dtype=object)
    return frame.astype({n: "float64" for n, field in FIELDS.items() if field.kind == "number"})


def _ordered(
    rows: Select[Any],
    fields: Mapping[str, Field],
    filter: str | None,
    sort: str | None,
    limit: int | None,
) -> Select[Any]:
    if limit is not None and limit < 0:
        raise FilterError(f"limit {limit} is negative: give a number of rows")
    if filter is not None:
        rows = rows.where(filters.parse(filter, fields))
    order = filters.sort_field(sort or "energy_above_hull", fields)
    return rows.order_by(order, Candidate.id).limit(limit)


def structures(
    session: Session,
    filter: str | None = None,
    sort: str | None = None,
    limit: int | None = None,
) -> Iterator[Stored]:
    """Yield the crystals of ``candidates`` with the same arguments, relaxed where relaxed."""
    table = candidates(session, filter, sort, limit).to_dict(orient="records")
    for chunk in batched(table, 500):  # so that a large database need not fit into memory
        ids = [candidate_id(row["material_id"]) for row in chunk]
        query = candidate_rows(Candidate.id, Relaxation.structure, Candidate.structure)
        found = {
            number: relaxed or drawn
            for number, relaxed, drawn in session.execute(query.where(Candidate.id.in_(ids)))
        }
        for number, row in zip(ids, chunk, strict=True):
            yield Stored(row["material_id"], structure_from_dict(found[number]), row)


def candidate(session: Session, material_id: str) -> dict[str, Any]:
    """Everything known of one candidate, back to checkpoint, seed, conditions and settings.

    Returns:
        Plain JSON values: the columns of the candidate, ``provenance`` (each with ``batch``,
        ``campaign`` and ``checkpoint``), ``rankings``, and ``relaxations`` (each with
        ``potential``, ``dft_calculations``, which have ``hull``, ``judgements``, which have
        ``potential`` and ``hull``, and ``stabilities``, which have ``hull`` and ``known``).

    Raises:
        DatabaseError: when there is no such candidate.
    """
    drawn = selectinload(Candidate.provenance).joinedload(Provenance.batch)
    relaxed = selectinload(Candidate.relaxations)
    judged = relaxed.selectinload(Relaxation.stabilities)
    ranked = selectinload(Candidate.rankings)
    row = session.get(
        Candidate,
        candidate_id(material_id),
        options=[
            drawn.joinedload(Batch.campaign),
            drawn.joinedload(Batch.checkpoint),
            ranked,
            relaxed.joinedload(Relaxation.potential),
            relaxed.selectinload(Relaxation.dft_calculations).joinedload(DftCalculation.hull),
            relaxed.selectinload(Relaxation.judgements).options(
                joinedload(Judgement.potential), joinedload(Judgement.hull)
            ),
            judged.joinedload(Stability.hull),
            judged.joinedload(Stability.known),
        ],
    )
    if row is None:
        raise DatabaseError(
            f"no candidate {material_id} in this database: list them with `symmbfn candidates`"
        )
    document = {"material_id": material_id, **_document(row)}
    if row.state == "failed" and row.relaxations:  # why, where one looks first
        document["reason"] = row.relaxations[-1].reason
    return document


def _document(row: Base) -> dict[str, Any]:
    """Turn a row, and the rows loaded with it, into plain JSON values."""
    state = inspect(row)
    document: dict[str, Any] = {}
    for key, value in state.dict.items():
        if isinstance(value, Base):
            document[key] = _document(value)
        elif key in state.mapper.relationships and isinstance(value, list):
            document[key] = [_document(one) for one in value]
        elif key in state.mapper.column_attrs:
            document[key] = value.isoformat() if isinstance(value, datetime) else value
    return document


def campaign_counts(session: Session, campaign_id: int) -> dict[str, int]:
    """The funnel of a campaign by its own verdicts, in this order of keys.

    ``generated`` (asked of the sampler), ``valid``, ``distinct`` (candidates), ``known_before``
    (drawn by another campaign before, so not unique here), ``known_as_drawn`` (matches a known
    structure, so not relaxed; only with a relaxation budget), ``passed_over`` (the budget was spent
    on others), ``relaxed`` (converged), ``failed``,
    ``not_assessable``, ``quarantined``, ``stable``, ``near_hull`` (within 0.025 eV/atom of the
    hull, on either side), ``metastable``, ``unique``, ``novel``, ``sun`` (stable, unique and
    novel), ``msun`` (metastable, unique and novel). From ``distinct`` on each candidate counts
    once, however often it was drawn.
    """
    campaign = session.get_one(Campaign, campaign_id)
    of_campaign = Batch.campaign_id == campaign_id
    generated = session.scalar(select(func.sum(Batch.size)).where(of_campaign))
    valid = session.scalar(
        select(func.count())
        .select_from(Provenance)
        .join(Batch)
        .join(Candidate)
        .where(of_campaign, Candidate.state != "invalid")
    )
    unique = fields_of(campaign)["is_unique"].column
    new = unique & Stability.is_novel
    left = exists().where(
        Ranking.candidate_id == Candidate.id,
        Ranking.campaign_id == campaign_id,
        Ranking.passed_over.is_not(None),
    )
    conditions: dict[str, ColumnElement[Any]] = {
        "known_before": ~drawn_first_in(campaign_id),
        "known_as_drawn": left.where(Ranking.choice == "known") & Relaxation.id.is_(None),
        "passed_over": left.where(Ranking.choice != "known") & Relaxation.id.is_(None),
        "relaxed": Relaxation.status == "converged",
        "failed": Relaxation.status != "converged",
        "not_assessable": Stability.verdict == "not_assessable",
        "quarantined": Stability.verdict == "quarantined",
        "stable": Stability.is_stable.expression,
        "near_hull": func.abs(Stability.energy_above_hull) <= HULL_BAND,
        "metastable": Stability.is_metastable.expression,
        "unique": unique,
        "novel": Stability.is_novel.expression,
        "sun": Stability.is_stable & new,
        "msun": Stability.is_metastable & new,
    }
    counts = [func.count(case((condition, 1))) for condition in conditions.values()]
    row = session.execute(candidate_rows(func.count(), *counts, campaign=campaign)).one()
    funnel = {"generated": generated or 0, "valid": valid or 0}
    return funnel | dict(zip(["distinct", *conditions], row, strict=True))


def campaign_tally(session: Session, campaign_id: int) -> dict[str, int]:
    """The tallies of a campaign's batches (``Batch.tally``), added up; empty if none has one."""
    tally: Counter[str] = Counter()
    for one in session.scalars(select(Batch.tally).where(Batch.campaign_id == campaign_id)):
        tally.update(one or {})
    return dict(tally)


def table_counts(session: Session) -> dict[str, int]:
    """Number of rows of every table, by its name."""
    return {
        table.name: session.execute(select(func.count()).select_from(table)).scalar_one()
        for table in Base.metadata.sorted_tables
    }
