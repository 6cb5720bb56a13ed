"""Training sets, the checkpoints made of them, and which of those is the current one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from db import filters
from db.documents import Document, content_hash, structure_from_dict
from db.errors import DatabaseError
from db.fields import FIELDS, candidate_rows
from db.models import (
    Batch,
    Campaign,
    Candidate,
    Checkpoint,
    Ranking,
    Relaxation,
    Stability,
    TrainingMember,
    TrainingSet,
    utc_now,
)
from db.records import Basis, get_or_insert

if TYPE_CHECKING:
    from pymatgen.core.structure import Structure


@dataclass(frozen=True)
class Relaxed:
    """A relaxed crystal and its row in the table of candidates (``fields.FIELDS``)."""

    relaxation_id: int
    structure: Structure
    row: dict[str, Any]


@dataclass(frozen=True)
class Member:
    """A crystal of a training set, relaxed, with its properties by name."""

    relaxation_id: int
    structure: Structure
    properties: dict[str, float]


@dataclass(frozen=True)
class LookedAt:
    """A crystal as drawn, and its energy above a hull, eV/atom."""

    structure: Structure
    energy_above_hull: float


@dataclass(frozen=True)
class Sampled:
    """One distinct crystal that a campaign drew, and its verdict there.

    Attributes:
        drawn: As generated.
        relaxed: None unless the relaxation converged.
        is_valid: Whether it was worth relaxing.
        is_stable, is_metastable, is_novel: The campaign's own verdict; False without one.
    """

    drawn: Structure
    relaxed: Structure | None
    is_valid: bool
    is_stable: bool
    is_metastable: bool
    is_novel: bool


@dataclass(frozen=True)
class Frozen:
    """A stored training set (``models.TrainingSet``)."""

    id: int
    key: str
    recipe: Document


@dataclass(frozen=True)
class Made:
    """A stored checkpoint (``models.Checkpoint``)."""

    id: int
    sha256: str
    name: str
    parent_id: int | None
    training_set_id: int | None
    metrics: Document
    promoted_at: datetime | None
    rejected_reason: str | None

    @property
    def is_decided(self) -> bool:
        """Whether it was promoted or rejected."""
        return self.promoted_at is not None or self.rejected_reason is not None


@dataclass(frozen=True)
class Begun:
    """A campaign that was started, with its settings."""

    id: int
    config: Document


@dataclass(frozen=True)
class Seconds:
    """Of drawing crystals, and of relaxing them, all processes together."""

    drawing: float
    relaxing: float


def relaxed(session: Session, filter: str) -> list[Relaxed]:
    """Crystals that match the filter and whose relaxation converged, lowest above the hull first.

    Raises:
        FilterError: when the filter is not understood.
    """
    columns = [field.column.label(name) for name, field in FIELDS.items()]
    query = (
        candidate_rows(Relaxation.id, Relaxation.structure, *columns)
        .where(filters.parse(filter, FIELDS))
        .where(Relaxation.status == "converged", Relaxation.structure.is_not(None))
        .order_by(filters.sort_field("energy_above_hull", FIELDS), Candidate.id)
    )
    return [
        Relaxed(number, structure_from_dict(structure), dict(zip(FIELDS, values, strict=True)))
        for number, structure, *values in session.execute(query)
    ]


def looked_at(session: Session, basis: Basis, newest: int) -> list[LookedAt]:
    """Crystals whose energy above a hull is known, oldest first: stable ones and others.

    Where one was relaxed it is the energy at rest, and otherwise that of the crystal as drawn.

    Args:
        session: an open session.
        basis: potential, relaxation settings and hull that the energies must be of.
        newest: the last candidate that is told.
    """
    as_drawn = (
        select(func.min(Ranking.energy_above_hull))
        .join(Campaign, Campaign.id == Ranking.campaign_id)
        .where(
            Ranking.candidate_id == Candidate.id,
            Campaign.potential_id == basis.potential_id,
            Campaign.hull_id == basis.hull_id,
        )
        .correlate(Candidate)
        .scalar_subquery()
    )
    at_rest = (
        select(func.min(Stability.energy_above_hull))
        .join(Relaxation, Relaxation.id == Stability.relaxation_id)
        .where(
            Relaxation.candidate_id == Candidate.id,
            Relaxation.potential_id == basis.potential_id,
            Relaxation.settings_hash == content_hash(basis.relax_settings),
            Stability.hull_id == basis.hull_id,
        )
        .correlate(Candidate)
        .scalar_subquery()
    )
    energy = func.coalesce(at_rest, as_drawn)
    rows = session.execute(
        select(Candidate.structure, energy.label("energy"))
        .where(
            Candidate.id <= newest,
            Candidate.state.not_in(("invalid", "quarantined")),
            energy.is_not(None),
        )
        .order_by(Candidate.id)
    )
    return [LookedAt(structure_from_dict(row.structure), row.energy) for row in rows]


def freeze(
    session: Session, recipe: Document, members: Sequence[Member], key: str | None = None
) -> Frozen:
    """Store a training set, or find the one of this key.

    Args:
        session: an open session.
        recipe: all that decides what is trained, beside the members.
        members: the relaxed crystals.
        key: one key, one set; by default made of recipe and members.

    Raises:
        DatabaseError: when the key belongs to a set of another recipe.
    """
    listed = [[one.relaxation_id, one.properties] for one in members]
    sha256 = content_hash({"recipe": recipe, "members": listed, "key": key})
    wanted = TrainingSet(sha256=sha256, key=key or f"retrain-{sha256[:16]}", recipe=recipe)
    stored = get_or_insert(session, wanted, "key")
    if stored.recipe != recipe:
        raise DatabaseError(
            f"key {stored.key!r} belongs to a training set of another recipe: choose another "
            "key, or give the settings that it had"
        )
    if stored is wanted:
        session.flush()
        session.add_all(
            TrainingMember(
                training_set_id=stored.id,
                relaxation_id=one.relaxation_id,
                properties=one.properties,
            )
            for one in members
        )
    return _frozen(stored)


def frozen(session: Session, key: str) -> Frozen | None:
    """The training set of a key, if it was frozen before."""
    row = session.scalar(select(TrainingSet).where(TrainingSet.key == key))
    return None if row is None else _frozen(row)


def training_set(session: Session, training_set_id: int) -> Frozen:
    """The training set of a row."""
    return _frozen(session.get_one(TrainingSet, training_set_id))


def _frozen(row: TrainingSet) -> Frozen:
    return Frozen(row.id, row.key or "", row.recipe)


def members(session: Session, training_set_ids: Sequence[int]) -> Iterator[Member]:
    """The crystals of training sets, each once, oldest first."""
    rows = session.execute(
        select(Relaxation.id, Relaxation.structure, TrainingMember.properties)
        .join(TrainingMember, TrainingMember.relaxation_id == Relaxation.id)
        .where(TrainingMember.training_set_id.in_(training_set_ids))
        .order_by(Relaxation.id, TrainingMember.training_set_id)
    )
    last = None
    for number, structure, properties in rows:
        if number != last:
            yield Member(number, structure_from_dict(structure or {}), properties)
        last = number


def trained(session: Session, training_set_id: int) -> Made | None:
    """The checkpoint that was made of a training set, if there is one."""
    wanted = select(Checkpoint).where(Checkpoint.training_set_id == training_set_id)
    row = session.scalar(wanted)
    return None if row is None else _made(row)


def add_checkpoint(
    session: Session,
    *,
    sha256: str,
    name: str,
    parent: tuple[str, str],
    training_set_id: int,
    metrics: Document,
) -> Made:
    """Store a checkpoint under its parent, neither promoted nor rejected yet.

    Args:
        session: an open session.
        sha256: of its weights file.
        name: its folder.
        parent: sha256 and name of the checkpoint that its training started from.
        training_set_id: what it was trained on.
        metrics: figures of its training.
    """
    above = get_or_insert(session, Checkpoint(sha256=parent[0], name=parent[1]), "sha256")
    session.flush()
    child = Checkpoint(
        sha256=sha256,
        name=name,
        parent_id=above.id,
        training_set_id=training_set_id,
        metrics=metrics,
    )
    stored = get_or_insert(session, child, "sha256")
    session.flush()
    return _made(stored)


def _made(row: Checkpoint) -> Made:
    return Made(
        id=row.id,
        sha256=row.sha256,
        name=row.name,
        parent_id=row.parent_id,
        training_set_id=row.training_set_id,
        metrics=row.metrics,
        promoted_at=row.promoted_at,
        rejected_reason=row.rejected_reason,
    )


def ancestry(session: Session, checkpoint_id: int) -> list[Made]:
    """A checkpoint, its parent, and so on back to one that has none here."""
    line = [_made(session.get_one(Checkpoint, checkpoint_id))]
    while (parent := line[-1].parent_id) is not None:
        line.append(_made(session.get_one(Checkpoint, parent)))
    return line


def trained_on(session: Session, checkpoint_id: int) -> list[Structure]:
    """The generated crystals that a checkpoint or one of its ancestors was trained on."""
    line = ancestry(session, checkpoint_id)
    sets = [one.training_set_id for one in line if one.training_set_id is not None]
    return [one.structure for one in members(session, sets)]


def checkpoints(session: Session) -> list[Made]:
    """All of them, oldest first."""
    return [_made(row) for row in session.scalars(select(Checkpoint).order_by(Checkpoint.id))]


def current_checkpoint(session: Session) -> Made | None:
    """The one promoted last, if any was."""
    row = session.scalar(
        select(Checkpoint)
        .where(Checkpoint.promoted_at.is_not(None))
        .order_by(Checkpoint.promoted_at.desc(), Checkpoint.id.desc())
        .limit(1)
    )
    return None if row is None else _made(row)


def promote(session: Session, checkpoint_id: int, *, force: bool = False) -> Made:
    """Make a checkpoint the current one.

    Raises:
        DatabaseError: when there is none of this number, or it was rejected and not forced.
    """
    row = session.get(Checkpoint, checkpoint_id)
    if row is None:
        raise DatabaseError(
            f"no checkpoint {checkpoint_id} in this database: list them with `symmbfn checkpoints`"
        )
    if row.rejected_reason is not None and not force:
        raise DatabaseError(
            f"checkpoint {checkpoint_id} was rejected ({row.rejected_reason}): choose another, "
            "or add --force"
        )
    row.promoted_at = utc_now()
    return _made(row)


def judge(
    session: Session, checkpoint_id: int, figures: Document, rejected_reason: str | None
) -> None:
    """Store what the gate measured, and promote the checkpoint unless there is a reason not to."""
    row = session.get_one(Checkpoint, checkpoint_id)
    row.metrics = {**row.metrics, "gate": figures}
    row.rejected_reason = rejected_reason
    if rejected_reason is None:
        promote(session, checkpoint_id)


def campaign_of_key(session: Session, key: str) -> Begun | None:
    """The campaign of an idempotency key, if it was started before."""
    row = session.scalar(select(Campaign).where(Campaign.idempotency_key == key))
    return None if row is None else Begun(row.id, row.config)


def sampled(session: Session, campaign_id: int) -> list[Sampled]:
    """The distinct crystals that a campaign drew, in the order of their rows."""
    campaign = session.get_one(Campaign, campaign_id)
    query = candidate_rows(
        Candidate.structure,
        Candidate.state,
        Relaxation.status,
        Relaxation.structure,
        Stability.is_stable,
        Stability.is_metastable,
        Stability.is_novel,
        campaign=campaign,
    ).order_by(Candidate.id)
    return [
        Sampled(
            drawn=structure_from_dict(drawn),
            relaxed=structure_from_dict(ended) if status == "converged" and ended else None,
            is_valid=state != "invalid",
            is_stable=bool(stable),
            is_metastable=bool(metastable),
            is_novel=bool(novel),
        )
        for drawn, state, status, ended, stable, metastable, novel in session.execute(query)
    ]


def campaign_seconds(session: Session, campaign_id: int) -> Seconds:
    """Time spent on a campaign's crystals, as far as it was noted."""
    campaign = session.get_one(Campaign, campaign_id)
    drawing = select(func.sum(Batch.seconds)).where(Batch.campaign_id == campaign_id)
    relaxing = candidate_rows(func.sum(Relaxation.seconds), campaign=campaign)
    return Seconds(session.scalar(drawing) or 0.0, session.scalar(relaxing) or 0.0)
