"""What is asked of the database: free functions that take a session.

Call them inside ``with database.session() as session:``, which commits at its end or rolls
everything back. This is the one page to import from; writing and leases live in their own files.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, Select, and_, case, exists, func, select
from sqlalchemy.orm import Session, selectinload

from db import filters
from db.documents import Document, content_hash, structure_from_dict
from db.errors import DatabaseError
from db.ids import candidate_id, material_id
from db.leases import Claim, claim, record_relaxation, release, renew, unfinished
from db.models import Base, Batch, Candidate, Provenance, Relaxation, Stability
from db.records import (
    Like,
    add_batch,
    add_candidate,
    batch_numbers,
    candidates_like,
    get_or_create_campaign,
    record_stability,
    register_checkpoint,
    register_potential,
    register_reference,
    relaxed_like,
)

if TYPE_CHECKING:
    import pandas as pd
    from pymatgen.core import Structure

__all__ = [
    "Claim",
    "Like",
    "Relaxed",
    "Stored",
    "add_batch",
    "add_candidate",
    "batch_numbers",
    "campaign_counts",
    "candidate",
    "candidate_id",
    "candidates",
    "candidates_like",
    "claim",
    "get_or_create_campaign",
    "material_id",
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
    "unscreened",
]


@dataclass(frozen=True)
class Relaxed:
    """A converged relaxation that still wants a verdict; energy in eV/atom."""

    relaxation_id: int
    candidate_id: int
    structure: Structure
    energy_per_atom: float


@dataclass(frozen=True)
class Stored:
    """A candidate for export: its relaxed structure where there is one, and its table row."""

    material_id: str
    structure: Structure
    row: dict[str, Any]


def unscreened(
    session: Session,
    *,
    campaign_id: int,
    potential_id: int,
    relax_settings: Document,
    hull_id: int,
    known_id: int,
    settings: Document,
) -> list[Relaxed]:
    """Converged relaxations of a campaign that lack this verdict, oldest first.

    Args:
        session: an open session.
        campaign_id: only candidates that this campaign drew.
        potential_id: only relaxations by this potential …
        relax_settings: … with these settings.
        hull_id: the hull of the verdict.
        known_id: the known structures of the verdict.
        settings: the settings of the verdict (``Stability.settings``).
    """


def candidates(
    session: Session,
    filter: str | None = None,
    sort: str | None = None,
    limit: int | None = None,
) -> pd.DataFrame:
    """One row per candidate with its newest verdict; columns are the filter's fields.

    Args:
        session: an open session.
        filter: text in the OPTIMADE language (``filters.parse``); None for all.
        sort: a field; ``-field`` for descending. Unknown values come last.
        limit: at most so many rows.

    Raises:
        FilterError: when the filter or the sort field is not understood.
    """


def candidate(session: Session, material_id: str) -> dict[str, Any]:
    """Everything known of one candidate, back to checkpoint, seed, conditions and settings.

    Raises:
        DatabaseError: when there is no such candidate.
    """


def structures(
    session: Session,
    filter: str | None = None,
    sort: str | None = None,
    limit: int | None = None,
) -> Iterator[Stored]:
    """The crystals of ``candidates`` with the same arguments, one by one, relaxed where relaxed."""


def campaign_counts(session: Session, campaign_id: int) -> dict[str, int]:
    """The funnel of a campaign, in this order of keys.

    ``generated`` (asked of the sampler), ``valid``, ``distinct`` (candidates), ``relaxed``
    (converged), ``failed``, ``not_assessable``, ``quarantined``, ``stable``, ``metastable``,
    ``unique``, ``novel``, ``sun`` (stable, unique and novel), ``msun`` (metastable instead of stable).
    Each candidate counts once, however often it was drawn.
    """


def table_counts(session: Session) -> dict[str, int]:
    """Number of rows of every table, by its name."""
