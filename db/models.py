"""The tables, as typed SQLAlchemy classes; names follow the Materials Project.

Every unique constraint below is there to make one insert idempotent. A candidate's ``state``
sums up what the latest work on it concluded; what remains to be done is read from the rows
themselves (a candidate without a relaxation by this potential still needs one), so a stage
can always be started again. Energies are eV/atom, lengths Å, forces eV/Å, stress eV/Å³.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    MetaData,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    MappedAsDataclass,
    mapped_column,
    relationship,
)

from db.documents import Document, content_hash

STATES = (
    "generated",
    "invalid",
    "known",
    "passed_over",
    "relaxed",
    "failed",
    "screened",
    "quarantined",
)
"""What the latest work on a candidate concluded.

generated: drawn, not yet relaxed · invalid: not worth relaxing (``reason``) · known: matches a
known structure as drawn, so not relaxed · passed_over: a campaign's relaxation budget was spent on
others; another campaign may relax it · relaxed: converged,
no verdict yet · failed: did not converge · screened: has a verdict · quarantined: so far below the
hull that the potential is suspected. Being worked on is not a state but a lease (``lease_owner``,
``lease_until``), so that a dead worker leaves nothing to repair.
"""

CHOICES = ("ranked", "random", "known")
VERDICTS = ("stable", "metastable", "unstable", "not_assessable", "quarantined")
DFT_STATES = ("submitted", "completed", "failed")


def _one_of(column: str, values: tuple[str, ...]) -> CheckConstraint:
    listed = ", ".join(f"'{value}'" for value in values)
    return CheckConstraint(f"{column} IN ({listed})", name=column)


def utc_now() -> datetime:
    """The time now, in UTC."""
    return datetime.now(UTC)


class Timestamp(TypeDecorator[datetime]):
    """A moment in UTC; SQLite forgets the time zone, so it is put back on reading."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Convert to UTC before writing."""
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Name the time zone after reading."""
        if value is None or value.tzinfo is not None:
            return value
        return value.replace(tzinfo=UTC)


class Number(TypeDecorator[float]):
    """A finite float; NaN and infinity are stored as NULL, which sorts and compares honestly."""

    impl = Float(53)
    cache_ok = True

    def process_bind_param(self, value: float | None, dialect: Dialect) -> float | None:
        """Drop what is not a finite number; numpy scalars become plain floats."""
        return None if value is None or not math.isfinite(value) else float(value)


class Base(MappedAsDataclass, DeclarativeBase, kw_only=True):
    """Base of all tables; rows are made with keyword arguments."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy reads a plain class attribute
        datetime: Timestamp,
        float: Number,
        dict[str, Any]: JSON(none_as_null=True),
        list[Any]: JSON(none_as_null=True),
    }


class TrainingSet(Base):
    """A frozen set of crystals that a checkpoint was trained on."""

    __tablename__ = "training_set"

    id: Mapped[int] = mapped_column(primary_key=True, init=False)
    sha256: Mapped[str] = mapped_column(unique=True)
    """Of its members and recipe, so that freezing the same set twice gives one row."""
    recipe: Mapped[Document]
    """The filter that chose the members, the parent, and the base data replayed beside them."""
    key: Mapped[str | None] = mapped_column(index=True, unique=True, default=None)
    """One key, one set: a retraining that was killed goes on with it, whatever came since."""
    created_at: Mapped[datetime] = mapped_column(default_factory=utc_now)


class TrainingMember(Base):
    """One relaxed crystal in a training set."""

    __tablename__ = "training_member"

    training_set_id: Mapped[int] = mapped_column(ForeignKey("training_set.id"), primary_key=True)
    relaxation_id: Mapped[int] = mapped_column(
        ForeignKey("relaxation.id"), primary_key=True, index=True
    )
    properties: Mapped[Document] = mapped_column(default_factory=dict)
    """What the generator is told of it, by name, as it was known then."""


class Checkpoint(Base):
    """A trained generator. The current one is that with the latest ``promoted_at``."""

    __tablename__ = "checkpoint"

    id: Mapped[int] = mapped_column(primary_key=True, init=False)
    sha256: Mapped[str] = mapped_column(unique=True)
    """Of the weights file (safetensors)."""
    name: Mapped[str]
    """A shipped name or the folder that it was loaded from."""
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("checkpoint.id"), default=None)
    training_set_id: Mapped[int | None] = mapped_column(ForeignKey("training_set.id"), default=None)
    metrics: Mapped[Document] = mapped_column(default_factory=dict)
    promoted_at: Mapped[datetime | None] = mapped_column(default=None)
    rejected_reason: Mapped[str | None] = mapped_column(default=None)
    created_at: Mapped[datetime] = mapped_column(default_factory=utc_now)


class Potential(Base):
    """An interatomic potential: one set of weights at one precision."""

    __tablename__ = "potential"
    __table_args__ = (UniqueConstraint("name", "weights_sha256", "dtype"),)

    id: Mapped[int] = mapped_column(primary_key=True, init=False)
    name: Mapped[str]
    weights_sha256: Mapped[str]
    """Empty for a potential that has no weights file."""
    dtype: Mapped[str]
    energy_scheme: Mapped[str]


class Reference(Base):
    """A file that candidates are compared with: a convex hull, or known structures."""

    __tablename__ = "reference"
    __table_args__ = (_one_of("kind", ("hull", "structures")),)

    id: Mapped[int] = mapped_column(primary_key=True, init=False)
    sha256: Mapped[str] = mapped_column(unique=True)
    kind: Mapped[str]
    name: Mapped[str]
    energy_scheme: Mapped[str | None] = mapped_column(default=None)
    """Of a hull; structures have none."""
    source: Mapped[str] = mapped_column(default="")


class Campaign(Base):
    """One request for candidates; the same idempotency key is the same campaign.

    What is NULL here was not known to the release that started the campaign.
    """

    __tablename__ = "campaign"

    id: Mapped[int] = mapped_column(primary_key=True, init=False)
    idempotency_key: Mapped[str] = mapped_column(unique=True)
    name: Mapped[str] = mapped_column(index=True)
    config: Mapped[Document]
    seed: Mapped[int] = mapped_column(BigInteger)
    code_version: Mapped[str]
    inputs: Mapped[Document | None] = mapped_column(default=None)
    """What the configuration names, and the SHA-256 of what was found there."""
    potential_id: Mapped[int | None] = mapped_column(ForeignKey("potential.id"), default=None)
    """With the four below: what the campaign's own verdicts rest on (``records.Basis``)."""
    relax_settings_hash: Mapped[str | None] = mapped_column(default=None)
    hull_id: Mapped[int | None] = mapped_column(ForeignKey("reference.id"), default=None)
    known_id: Mapped[int | None] = mapped_column(ForeignKey("reference.id"), default=None)
    screen_settings_hash: Mapped[str | None] = mapped_column(default=None)
    created_at: Mapped[datetime] = mapped_column(default_factory=utc_now)
    finished_at: Mapped[datetime | None] = mapped_column(default=None)
    """When nothing was left to do; NULL for a campaign that works, or was killed."""


class Batch(Base):
    """One call of the sampler. Written in one transaction with its candidates: there or not."""

    __tablename__ = "batch"
    __table_args__ = (UniqueConstraint("campaign_id", "number"),)

    id: Mapped[int] = mapped_column(primary_key=True, init=False)
    campaign_id: Mapped[int] = mapped_column(ForeignKey("campaign.id"))
    number: Mapped[int]
    checkpoint_id: Mapped[int] = mapped_column(ForeignKey("checkpoint.id"))
    conditions: Mapped[Document]
    seed: Mapped[int] = mapped_column(BigInteger)
    size: Mapped[int]
    """Crystals asked for: what fractions such as S.U.N. are fractions of."""
    steps: Mapped[int | None] = mapped_column(default=None)
    code_version: Mapped[str] = mapped_column(default="")
    seconds: Mapped[float | None] = mapped_column(default=None)
    tally: Mapped[Document | None] = mapped_column(default=None)
    """How many draws were made, and how many were refused for each reason."""
    created_at: Mapped[datetime] = mapped_column(default_factory=utc_now)

    campaign: Mapped[Campaign] = relationship(init=False, repr=False)
    checkpoint: Mapped[Checkpoint] = relationship(init=False, repr=False)


class Candidate(Base):
    """One distinct crystal, as generated; known to the world as ``sbfn-<id>``."""

    __tablename__ = "candidate"
    __table_args__ = (_one_of("state", STATES),)

    id: Mapped[int] = mapped_column(primary_key=True, init=False)
    structure: Mapped[Document]
    formula_pretty: Mapped[str] = mapped_column(index=True)
    chemical_formula_reduced: Mapped[str] = mapped_column(index=True)
    """Elements in alphabetical order, as OPTIMADE wants it: O2Si."""
    chemsys: Mapped[str] = mapped_column(index=True)
    nelements: Mapped[int]
    nsites: Mapped[int]
    space_group: Mapped[int | None]
    fingerprint: Mapped[str] = mapped_column(index=True)
    state: Mapped[str] = mapped_column(default="generated", index=True)
    reason: Mapped[str | None] = mapped_column(default=None)
    """Why it is invalid, known or passed over."""
    lease_owner: Mapped[str | None] = mapped_column(default=None)
    lease_until: Mapped[datetime | None] = mapped_column(default=None)
    fence: Mapped[int] = mapped_column(default=0)
    """Grows by one with every claim; a write that carries an older value is refused."""
    created_at: Mapped[datetime] = mapped_column(default_factory=utc_now)

    provenance: Mapped[list[Provenance]] = relationship(init=False, repr=False)
    rankings: Mapped[list[Ranking]] = relationship(
        init=False, repr=False, order_by="Ranking.campaign_id"
    )
    relaxations: Mapped[list[Relaxation]] = relationship(
        init=False, repr=False, order_by="Relaxation.id"
    )


class CandidateElement(Base):
    """One element of a candidate, for filters such as ``elements HAS "Li"``."""

    __tablename__ = "candidate_element"

    candidate_id: Mapped[int] = mapped_column(ForeignKey("candidate.id"), primary_key=True)
    element: Mapped[str] = mapped_column(primary_key=True, index=True)


class Provenance(Base):
    """Where a candidate came from; the same crystal drawn twice has two of these rows."""

    __tablename__ = "provenance"

    batch_id: Mapped[int] = mapped_column(ForeignKey("batch.id"), primary_key=True)
    batch_index: Mapped[int] = mapped_column(primary_key=True)
    candidate_id: Mapped[int] = mapped_column(ForeignKey("candidate.id"), index=True)
    structure_sha256: Mapped[str]
    """Of the structure as it was drawn in this batch (``documents.content_hash``)."""
    space_group_drawn: Mapped[int | None] = mapped_column(default=None)
    """The group that the generator drew; that of the crystal may be a supergroup."""

    batch: Mapped[Batch] = relationship(init=False, repr=False)


class Ranking(Base):
    """Why a campaign with a relaxation budget relaxes a candidate early, late or not at all.

    The signals are those of one calculation of the crystal as drawn, by the campaign's potential.
    """

    __tablename__ = "ranking"
    __table_args__ = (_one_of("choice", CHOICES),)

    campaign_id: Mapped[int] = mapped_column(ForeignKey("campaign.id"), primary_key=True)
    candidate_id: Mapped[int] = mapped_column(
        ForeignKey("candidate.id"), primary_key=True, index=True
    )
    energy_per_atom: Mapped[float | None] = mapped_column(default=None)
    energy_above_hull: Mapped[float | None] = mapped_column(default=None)
    """As drawn, against the campaign's first hull."""
    max_force: Mapped[float | None] = mapped_column(default=None)
    virial: Mapped[float | None] = mapped_column(default=None)
    """Frobenius norm of stress times volume, eV/atom."""
    volume_per_atom: Mapped[float | None] = mapped_column(default=None)
    score: Mapped[float | None] = mapped_column(default=None)
    """Lower comes first, eV/atom; NULL comes last."""
    rule: Mapped[str | None] = mapped_column(default=None)
    """What the score is."""
    place: Mapped[int | None] = mapped_column(default=None)
    """In the order of relaxation, from 1; NULL until that is settled, and for the known."""
    choice: Mapped[str | None] = mapped_column(default=None)
    """What put it in its place, or that it is known."""
    passed_over: Mapped[str | None] = mapped_column(default=None)
    """Why this campaign did not relax it."""
    created_at: Mapped[datetime] = mapped_column(default_factory=utc_now)


class Relaxation(Base):
    """The outcome of one relaxation, whatever it was."""

    __tablename__ = "relaxation"
    __table_args__ = (UniqueConstraint("candidate_id", "potential_id", "settings_hash"),)

    id: Mapped[int] = mapped_column(primary_key=True, init=False)
    candidate_id: Mapped[int] = mapped_column(ForeignKey("candidate.id"))
    potential_id: Mapped[int] = mapped_column(ForeignKey("potential.id"))
    settings: Mapped[Document]
    settings_hash: Mapped[str] = mapped_column(init=False)
    status: Mapped[str]
    """The word of the relaxation itself; only ``converged`` can be stable."""
    reason: Mapped[str | None] = mapped_column(default=None)
    structure: Mapped[Document | None] = mapped_column(default=None)
    energy_per_atom: Mapped[float | None] = mapped_column(default=None)
    initial_energy_per_atom: Mapped[float | None] = mapped_column(default=None)
    max_force: Mapped[float | None] = mapped_column(default=None)
    stress: Mapped[list[Any] | None] = mapped_column(default=None)
    """(3, 3) nested list, eV/Å³."""
    steps: Mapped[int | None] = mapped_column(default=None)
    seconds: Mapped[float | None] = mapped_column(default=None)
    space_group_before: Mapped[int | None] = mapped_column(default=None)
    space_group_after: Mapped[int | None] = mapped_column(default=None)
    rmsd: Mapped[float | None] = mapped_column(default=None)
    device: Mapped[str] = mapped_column(default="cpu")
    created_at: Mapped[datetime] = mapped_column(default_factory=utc_now)

    potential: Mapped[Potential] = relationship(init=False, repr=False)
    stabilities: Mapped[list[Stability]] = relationship(
        init=False, repr=False, order_by="Stability.id"
    )
    judgements: Mapped[list[Judgement]] = relationship(
        init=False, repr=False, order_by="Judgement.id"
    )
    dft_calculations: Mapped[list[DftCalculation]] = relationship(
        init=False, repr=False, order_by="DftCalculation.id"
    )

    def __post_init__(self) -> None:
        """Hash the settings, which are part of the unique key."""
        self.settings_hash = content_hash(self.settings)


class Stability(Base):
    """The verdict on a relaxed crystal against one hull and one set of known structures."""

    __tablename__ = "stability"
    __table_args__ = (
        UniqueConstraint("relaxation_id", "hull_id", "known_id", "settings_hash"),
        _one_of("verdict", VERDICTS),
    )

    id: Mapped[int] = mapped_column(primary_key=True, init=False)
    relaxation_id: Mapped[int] = mapped_column(ForeignKey("relaxation.id"))
    hull_id: Mapped[int] = mapped_column(ForeignKey("reference.id"))
    known_id: Mapped[int] = mapped_column(ForeignKey("reference.id"))
    """The structures that novelty was judged against."""
    settings: Mapped[Document]
    """The thresholds and every other setting of the verdict."""
    settings_hash: Mapped[str] = mapped_column(init=False)
    verdict: Mapped[str]
    reason: Mapped[str | None] = mapped_column(default=None)
    """Why it could not be judged, where that is not for want of known phases."""
    formation_energy_per_atom: Mapped[float | None] = mapped_column(default=None)
    energy_above_hull: Mapped[float | None] = mapped_column(default=None)
    """Negative below the hull; NULL where it cannot be assessed."""
    is_stable: Mapped[bool] = mapped_column(default=False)
    is_metastable: Mapped[bool] = mapped_column(default=False)
    """At or below the metastable threshold, so every stable crystal is also metastable."""
    is_unique: Mapped[bool | None] = mapped_column(default=None)
    """No older candidate of the whole database relaxed to the same crystal."""
    is_novel: Mapped[bool | None] = mapped_column(default=None)
    duplicate_of_id: Mapped[int | None] = mapped_column(ForeignKey("candidate.id"), default=None)
    matches_known: Mapped[str | None] = mapped_column(default=None)
    """Name of the known structure that it matches, where the reference tells it."""
    known_to: Mapped[str | None] = mapped_column(default=None)
    """Who knew the crystal, as drawn or as relaxed: ``candidates`` (an older one of this database),
    ``training`` (the generator's training set), and the name of the reference; empty: nobody."""
    hull_coverage: Mapped[Document | None] = mapped_column(default=None)
    """What the hull knows of the chemical system: terminal elements, number of phases."""
    created_at: Mapped[datetime] = mapped_column(default_factory=utc_now)

    hull: Mapped[Reference] = relationship(init=False, repr=False, foreign_keys=[hull_id])
    known: Mapped[Reference] = relationship(init=False, repr=False, foreign_keys=[known_id])

    def __post_init__(self) -> None:
        """Hash the settings, which are part of the unique key."""
        self.settings_hash = content_hash(self.settings)


class Judgement(Base):
    """What a second potential says of a relaxed crystal, which it relaxes once more."""

    __tablename__ = "judgement"
    __table_args__ = (
        UniqueConstraint("relaxation_id", "potential_id", "hull_id", "settings_hash"),
        _one_of("verdict", VERDICTS),
    )

    id: Mapped[int] = mapped_column(primary_key=True, init=False)
    relaxation_id: Mapped[int] = mapped_column(ForeignKey("relaxation.id"))
    potential_id: Mapped[int] = mapped_column(ForeignKey("potential.id"))
    hull_id: Mapped[int] = mapped_column(ForeignKey("reference.id"))
    settings: Mapped[Document]
    """Of the second relaxation, and the thresholds of the verdict."""
    settings_hash: Mapped[str] = mapped_column(init=False)
    status: Mapped[str]
    """The word of the second relaxation; only ``converged`` has a verdict by energy."""
    verdict: Mapped[str] = mapped_column(default="not_assessable")
    reason: Mapped[str | None] = mapped_column(default=None)
    """Why there is no energy above hull."""
    structure: Mapped[Document | None] = mapped_column(default=None)
    energy_per_atom: Mapped[float | None] = mapped_column(default=None)
    formation_energy_per_atom: Mapped[float | None] = mapped_column(default=None)
    energy_above_hull: Mapped[float | None] = mapped_column(default=None)
    spread: Mapped[float | None] = mapped_column(default=None)
    """By how much the two potentials differ, both placed against this hull, eV/atom."""
    steps: Mapped[int | None] = mapped_column(default=None)
    seconds: Mapped[float | None] = mapped_column(default=None)
    created_at: Mapped[datetime] = mapped_column(default_factory=utc_now)

    potential: Mapped[Potential] = relationship(init=False, repr=False)
    hull: Mapped[Reference] = relationship(init=False, repr=False)

    def __post_init__(self) -> None:
        """Hash the settings, which are part of the unique key."""
        self.settings_hash = content_hash(self.settings)


class DftCalculation(Base):
    """One density-functional calculation of a relaxed crystal; only ``completed`` has results."""

    __tablename__ = "dft_calculation"
    __table_args__ = (
        UniqueConstraint("relaxation_id", "code", "settings_hash"),
        _one_of("state", DFT_STATES),
    )

    id: Mapped[int] = mapped_column(primary_key=True, init=False)
    relaxation_id: Mapped[int] = mapped_column(ForeignKey("relaxation.id"))
    code: Mapped[str]
    settings: Mapped[Document]
    settings_hash: Mapped[str] = mapped_column(init=False)
    state: Mapped[str] = mapped_column(default="submitted")
    runner: Mapped[str | None] = mapped_column(default=None)
    location: Mapped[str | None] = mapped_column(default=None)
    """Where the runner keeps its jobs: a folder, or the name of a project."""
    job_id: Mapped[str | None] = mapped_column(default=None)
    """Of the last job; another one with each submission, so that a late result is told apart."""
    submissions: Mapped[int] = mapped_column(default=1)
    submitted_at: Mapped[datetime | None] = mapped_column(default=None)
    finished_at: Mapped[datetime | None] = mapped_column(default=None)
    reason: Mapped[str | None] = mapped_column(default=None)
    """Why it failed, or why it has no verdict."""
    structure: Mapped[Document | None] = mapped_column(default=None)
    energy_per_atom: Mapped[float | None] = mapped_column(default=None)
    """Of ``energy_scheme``; ``correction_per_atom`` of it was added to what was computed."""
    correction_per_atom: Mapped[float | None] = mapped_column(default=None)
    energy_scheme: Mapped[str | None] = mapped_column(default=None)
    band_gap: Mapped[float | None] = mapped_column(default=None)
    max_force: Mapped[float | None] = mapped_column(default=None)
    forces: Mapped[list[Any] | None] = mapped_column(default=None)
    """(nsites, 3) nested list, eV/Å, in the order of the sites of ``structure``."""
    code_version: Mapped[str | None] = mapped_column(default=None)
    """Of the density-functional code."""
    hull_id: Mapped[int | None] = mapped_column(ForeignKey("reference.id"), default=None)
    """With the four below: the verdict by this energy, against the hull asked for last."""
    thresholds: Mapped[Document | None] = mapped_column(default=None)
    formation_energy_per_atom: Mapped[float | None] = mapped_column(default=None)
    energy_above_hull: Mapped[float | None] = mapped_column(default=None)
    verdict: Mapped[str | None] = mapped_column(default=None)
    created_at: Mapped[datetime] = mapped_column(default_factory=utc_now)

    hull: Mapped[Reference | None] = relationship(init=False, repr=False)

    def __post_init__(self) -> None:
        """Hash the settings, which are part of the unique key."""
        self.settings_hash = content_hash(self.settings)
