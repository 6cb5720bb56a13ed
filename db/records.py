"""Writing rows: campaigns, batches, candidates, verdicts; each write twice is the same as once."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, case, exists, func, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from db.documents import Document, content_hash, structure_from_dict, structure_to_dict
from db.errors import DatabaseError
from db.models import (
    Base,
    Batch,
    Campaign,
    Candidate,
    CandidateElement,
    Checkpoint,
    Potential,
    Provenance,
    Reference,
    Relaxation,
    Stability,
    utc_now,
)

if TYPE_CHECKING:
    from pymatgen.core.structure import Structure

ADD_LOCK = 5_266_239
"""PostgreSQL advisory lock held while a batch and its candidates are added."""
VERDICT_LOCK = 5_266_241
"""PostgreSQL advisory lock held while a verdict is stored, and with it who is unique."""

KNOWN_CANDIDATES = "candidates"
"""In ``Stability.known_to``, before the others: an older candidate is the same crystal."""


@dataclass(frozen=True)
class Like:
    """A stored crystal that may be the same as another one; as relaxed, its relaxation."""

    candidate_id: int
    fingerprint: str
    structure: Structure
    relaxation_id: int | None = None


@dataclass(frozen=True)
class Basis:
    """What a verdict rests on.

    Attributes:
        potential_id: of the relaxation.
        relax_settings: of the relaxation.
        hull_id: the hull that it is placed against.
        known_id: the structures that novelty is judged against.
        screen_settings: thresholds and every other setting of the verdict.
    """

    potential_id: int
    relax_settings: Document
    hull_id: int
    known_id: int
    screen_settings: Document

    def columns(self) -> dict[str, Any]:
        """The columns of a campaign that note it."""
        return {
            "potential_id": self.potential_id,
            "relax_settings_hash": content_hash(self.relax_settings),
            "hull_id": self.hull_id,
            "known_id": self.known_id,
            "screen_settings_hash": content_hash(self.screen_settings),
        }


def get_or_insert[Row: Base](session: Session, row: Row, *key: str) -> Row:
    """Return the stored row with the same unique key, or store this one."""
    kind = type(row)
    same = select(kind).where(*(getattr(kind, name) == getattr(row, name) for name in key))
    stored = session.scalar(same)
    if stored is not None:
        return stored
    try:
        with session.begin_nested():
            session.add(row)
    except IntegrityError:  # another process stored it a moment ago (PostgreSQL)
        stored = session.scalar(same)
        if stored is None:
            raise
        return stored
    return row


def get_or_create_campaign(
    session: Session,
    idempotency_key: str,
    *,
    name: str,
    config: Document,
    seed: int,
    code_version: str,
    inputs: dict[str, str],
    basis: Basis,
) -> Campaign:
    """Find the campaign of this key, or start it.

    Args:
        session: an open session.
        idempotency_key: one key, one campaign.
        name: to call it by.
        config: its settings.
        seed: of all its crystals.
        code_version: of the program.
        inputs: what the settings name, each with the SHA-256 of what was found there.
        basis: of its own verdicts.

    Raises:
        DatabaseError: when the key belongs to a campaign with another configuration, seed,
            inputs or basis, and which they are.
    """
    wanted = Campaign(
        idempotency_key=idempotency_key,
        name=name,
        config=config,
        seed=seed,
        code_version=code_version,
        inputs=dict(inputs),
        **basis.columns(),
    )
    campaign = get_or_insert(session, wanted, "idempotency_key")
    differences = [
        *_differences({**campaign.config, "seed": campaign.seed}, {**config, "seed": seed}),
        *_differences(inputs if campaign.inputs is None else campaign.inputs, inputs),
    ]
    if differences:
        raise DatabaseError(
            f"idempotency key {idempotency_key!r} belongs to campaign {campaign.name!r}, which "
            f"had {'; '.join(differences)}: choose another key, or give it what it had"
        )
    if campaign.inputs is None:  # an older release started it
        for column, value in {"inputs": dict(inputs), **basis.columns()}.items():
            setattr(campaign, column, value)
    differences = list(_basis_differences(session, campaign, basis))
    if differences:
        raise DatabaseError(
            f"idempotency key {idempotency_key!r} belongs to campaign {campaign.name!r}, which "
            f"had {'; '.join(differences)}: choose another key, or go on with what it began with, "
            f"symmbfn {campaign.code_version}"
        )
    return campaign


def _basis_differences(session: Session, campaign: Campaign, basis: Basis) -> Iterator[str]:
    """Say in what new verdicts of a campaign would rest on something else than its own do."""
    for column, now in basis.columns().items():
        was = getattr(campaign, column)
        if was in (None, now):
            continue
        if column == "potential_id":
            old, new = (
                {"name": row.name, "dtype": row.dtype, "weights": row.weights_sha256}
                for row in (session.get_one(Potential, number) for number in (was, now))
            )
            yield from _differences(old, new, "potential.")
        elif column == "relax_settings_hash" and (stored := _relax_settings(session, was)):
            yield from _differences(stored, basis.relax_settings, "relaxation.")
        else:
            yield f"{column} {_short(was)}, not {_short(now)}"


def _relax_settings(session: Session, settings_hash: str) -> Document | None:
    """The settings of this hash, if anything was relaxed with them."""
    same = Relaxation.settings_hash == settings_hash
    return session.scalar(select(Relaxation.settings).where(same).limit(1))


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], within: str = "") -> Iterator[str]:
    """Say what is not equal, such as ``relaxation.fmax 0.05, not 0.02``; long values are cut."""
    for name in [*old, *(name for name in new if name not in old)]:
        was, now = old.get(name), new.get(name)
        if isinstance(was, Mapping) and isinstance(now, Mapping):
            yield from _differences(was, now, f"{within}{name}.")
        elif was != now:
            yield f"{within}{name} {_short(was)}, not {_short(now)}"


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:12]}…"


def finish_campaign(session: Session, campaign_id: int) -> None:
    """Note that nothing is left to do, unless that was noted before."""
    campaign = session.get_one(Campaign, campaign_id)
    campaign.finished_at = campaign.finished_at or utc_now()


def unfinished_seeds(session: Session, basis: Basis, key_of: Callable[[int], str]) -> list[int]:
    """Seeds of the campaigns, oldest first, that differ from this one at most in their seed.

    Only those with work left, because a process works on them now or was killed. One that was
    given a key of its own is another's, though all its settings be the same.

    Args:
        session: an open session.
        basis: of the verdicts.
        key_of: the idempotency key that this campaign has with another seed.
    """
    same = [getattr(Campaign, column) == value for column, value in basis.columns().items()]
    rows = session.scalars(
        select(Campaign).where(Campaign.finished_at.is_(None), *same).order_by(Campaign.id)
    )
    return [row.seed for row in rows if row.idempotency_key == key_of(row.seed)]


def register_checkpoint(session: Session, checkpoint: Checkpoint) -> Checkpoint:
    """Store a checkpoint, known by its sha256."""
    return get_or_insert(session, checkpoint, "sha256")


def register_potential(session: Session, potential: Potential) -> Potential:
    """Store a potential, known by name, sha256 of its weights, and dtype."""
    return get_or_insert(session, potential, "name", "weights_sha256", "dtype")


def register_reference(session: Session, reference: Reference) -> Reference:
    """Store a hull or a set of known structures, known by its sha256."""
    return get_or_insert(session, reference, "sha256")


def add_batch(session: Session, batch: Batch) -> Batch:
    """Store a batch, known by campaign and number; add its candidates in the same transaction.

    Until the end of that transaction nobody else can add a batch or candidates, so that their
    row numbers tell which crystal was drawn first.
    """
    if session.get_bind().dialect.name == "postgresql":  # SQLite has one writer anyway
        session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": ADD_LOCK})
    return get_or_insert(session, batch, "campaign_id", "number")


def batch_numbers(session: Session, campaign_id: int) -> set[int]:
    """Numbers of the batches that a campaign already has, each of them complete."""
    return set(session.scalars(select(Batch.number).where(Batch.campaign_id == campaign_id)))


def newest_candidate(session: Session) -> int:
    """Row number of the newest candidate, 0 if there is none."""
    return session.scalar(select(func.max(Candidate.id))) or 0


def candidates_like(
    session: Session, structure: Structure, fingerprint: str, *, after: int = 0
) -> list[Like]:
    """Stored candidates of the same reduced formula, equal fingerprints first.

    They are as generated. The caller judges which, if any, is the same crystal. That takes long,
    so do it before the transaction of ``add_batch``; in it, only those added since are left.

    Args:
        session: an open session.
        structure: as generated.
        fingerprint: of the structure.
        after: only candidates of later rows than this one.
    """
    rows = session.execute(
        select(Candidate.id, Candidate.fingerprint, Candidate.structure)
        .where(
            Candidate.chemical_formula_reduced == _reduced_formula(structure),
            Candidate.id > after,
        )
        .order_by(Candidate.fingerprint != fingerprint, Candidate.id)
    )
    return [Like(row.id, row.fingerprint, structure_from_dict(row.structure)) for row in rows]


def relaxed_like(
    session: Session, structure: Structure, *, potential_id: int, before: int
) -> list[Like]:
    """Relaxed crystals, by the same potential, of candidates older than row ``before``.

    Only the same reduced formula; the caller judges. A candidate is unique when none of these
    matches. Older ones may still be at work, in another campaign: when one of them is judged, it
    takes the younger ones with it (``unique_like``).
    """
    return _relaxed_of_formula(session, structure, potential_id, Candidate.id < before)


def unique_like(
    session: Session, structure: Structure, *, potential_id: int, after: int
) -> list[Like]:
    """Like ``relaxed_like``, but candidates younger than row ``after`` that were called unique."""
    unique = exists().where(Stability.relaxation_id == Relaxation.id, Stability.is_unique.is_(True))
    return _relaxed_of_formula(session, structure, potential_id, (Candidate.id > after) & unique)


def _relaxed_of_formula(
    session: Session, structure: Structure, potential_id: int, condition: ColumnElement[bool]
) -> list[Like]:
    rows = session.execute(
        select(Candidate.id, Candidate.fingerprint, Relaxation.structure, Relaxation.id)
        .join(Relaxation, Relaxation.candidate_id == Candidate.id)
        .where(
            Candidate.chemical_formula_reduced == _reduced_formula(structure),
            Relaxation.potential_id == potential_id,
            Relaxation.status == "converged",
            condition,
        )
        .order_by(Candidate.id, Relaxation.id)
    )
    return [
        Like(candidate, fingerprint, structure_from_dict(relaxed or {}), relaxation)
        for candidate, fingerprint, relaxed, relaxation in rows
    ]


def lock_verdicts(session: Session) -> None:
    """Let nobody else store verdicts until the end of this transaction.

    What is looked up after this, no verdict stored meanwhile can have missed.
    """
    if session.get_bind().dialect.name == "postgresql":  # SQLite has one writer anyway
        session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": VERDICT_LOCK})


def mark_duplicate(session: Session, like: Like, *, of_candidate: int) -> None:
    """Take back that a relaxed crystal is unique: an older candidate is the same, and knew it."""
    others = func.coalesce(Stability.known_to, "")
    knowing = case((others == "", KNOWN_CANDIDATES), else_=f"{KNOWN_CANDIDATES}, " + others)
    session.execute(
        update(Stability)
        .where(Stability.relaxation_id == like.relaxation_id, Stability.is_unique.is_(True))
        .values(is_unique=False, duplicate_of_id=of_candidate, known_to=knowing)
        .execution_options(synchronize_session=False)
    )


def add_candidate(
    session: Session,
    structure: Structure,
    *,
    batch_id: int,
    batch_index: int,
    space_group: int | None,
    fingerprint: str,
    space_group_drawn: int | None = None,
    same_as: int | None = None,
    invalid_reason: str | None = None,
) -> int:
    """Store one generated crystal with its provenance; the same batch and index only once.

    Args:
        session: an open session.
        structure: as generated.
        batch_id: row of its batch.
        batch_index: its place in the batch, from 0.
        space_group: number found in the finished crystal.
        fingerprint: text that is nearly always equal for equal crystals.
        space_group_drawn: number that the generator drew.
        same_as: row of the candidate that it was judged to be the same crystal as.
        invalid_reason: why it is not worth relaxing, if it is not.

    Returns:
        The candidate's row number.

    Raises:
        DatabaseError: when a coordinate is not finite.
    """
    stored = session.get(Provenance, (batch_id, batch_index))
    if stored is not None:
        return stored.candidate_id
    document = structure_to_dict(structure)
    if same_as is None:
        composition = structure.composition
        elements = sorted({element.symbol for element in composition.elements})
        candidate = Candidate(
            structure=document,
            formula_pretty=composition.reduced_formula,
            chemical_formula_reduced=_reduced_formula(structure),
            chemsys="-".join(elements),
            nelements=len(elements),
            nsites=len(structure),
            space_group=space_group,
            fingerprint=fingerprint,
            state="generated" if invalid_reason is None else "invalid",
            reason=invalid_reason,
        )
        session.add(candidate)
        session.flush()
        same_as = candidate.id
        session.add_all(CandidateElement(candidate_id=same_as, element=e) for e in elements)
    session.add(
        Provenance(
            batch_id=batch_id,
            batch_index=batch_index,
            candidate_id=same_as,
            structure_sha256=content_hash(document),
            space_group_drawn=space_group_drawn,
        )
    )
    session.flush()
    return same_as


def record_stability(session: Session, stability: Stability) -> Stability:
    """Store a verdict; the candidate becomes ``screened``, or ``quarantined`` if that is it.

    The newest verdict on a candidate is the one that tables and filters show, except those of a
    campaign, which show its own.
    """
    state = "quarantined" if stability.verdict == "quarantined" else "screened"
    session.execute(
        update(Candidate)
        .where(
            Candidate.id == Relaxation.candidate_id,
            Relaxation.id == stability.relaxation_id,
            Candidate.state != "invalid",
        )
        .values(state=state)
        .execution_options(synchronize_session=False)
    )
    return get_or_insert(
        session, stability, "relaxation_id", "hull_id", "known_id", "settings_hash"
    )


def _reduced_formula(structure: Structure) -> str:
    """Write the elements in alphabetical order and the smallest whole numbers (OPTIMADE): O2Si.

    Unlike pymatgen's reduced formula, which keeps Li2O2 and Cl2 whole.
    """
    amounts = structure.composition.element_composition.get_el_amt_dict()
    whole = [int(amount) for amount in amounts.values() if amount == int(amount)]
    divisor = math.gcd(*whole) if len(whole) == len(amounts) else 1
    return "".join(
        f"{symbol}{'' if amount == divisor else format(amount / divisor, 'g')}"
        for symbol, amount in sorted(amounts.items())
    )
