"""What the database tests share: small crystals, a filled database, a PostgreSQL where given."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pymatgen.core.lattice import Lattice
from pymatgen.core.structure import Structure
from sqlalchemy import create_engine, make_url, select, text
from sqlalchemy.orm import Session

from db import queries
from db.documents import structure_to_dict
from db.models import (
    Batch,
    Campaign,
    Candidate,
    Checkpoint,
    Judgement,
    Potential,
    Reference,
    Relaxation,
    Stability,
)
from tests.db_kinds import postgresql

RELAX = {"fmax": 0.05, "max_steps": 500}
SCREEN = {"metastable": 0.1, "stable": 0.0}


INPUTS = {"checkpoint mp20": "c" * 64, "hull chgnet": "h" * 64}


def rocksalt(cation: str, anion: str, a: float = 4.2) -> Structure:
    """The primitive cell of a rock salt; a is the cubic cell's edge in Å."""
    half = a / 2
    lattice = Lattice([[0, half, half], [half, 0, half], [half, half, 0]])
    return Structure(lattice, [cation, anion], [[0.0] * 3, [0.5] * 3])


@contextmanager
def url_of(kind: str, folder: Path) -> Iterator[str]:
    """Yield the URL of a new, empty database of one kind, and remove it afterwards."""
    if kind == "sqlite":
        yield f"sqlite:///{folder / 'test.db'}"
        return
    place = make_url(postgresql())
    schema = f"test_{uuid.uuid4().hex}"
    server = create_engine(place.set(drivername="postgresql+psycopg"))
    with server.begin() as connection:
        connection.execute(text(f"CREATE SCHEMA {schema}"))
    url = place.update_query_dict({"options": f"-csearch_path={schema}"})
    yield url.render_as_string(hide_password=False)
    with server.begin() as connection:
        connection.execute(text(f"DROP SCHEMA {schema} CASCADE"))
    server.dispose()


@dataclass(frozen=True)
class Rows:
    """The rows that every candidate hangs on."""

    campaign: Campaign
    batch: Batch
    potential: Potential
    hull: Reference
    known: Reference


def basis(potential_id: int, hull_id: int, known_id: int) -> queries.Basis:
    """What the verdicts of these tests rest on."""
    return queries.Basis(potential_id, RELAX, hull_id, known_id, SCREEN)


def base_rows(session: Session, name: str = "first", number: int = 0) -> Rows:
    """Register one of each thing that a candidate needs; again for the same names is the same."""
    checkpoint = queries.register_checkpoint(session, Checkpoint(sha256="c" * 64, name="mp20"))
    potential = queries.register_potential(
        session,
        Potential(
            name="chgnet",
            weights_sha256="p" * 64,
            dtype="float32",
            energy_scheme="self-consistent:chgnet",
        ),
    )
    hull = queries.register_reference(
        session,
        Reference(
            sha256="h" * 64, kind="hull", name="chgnet", energy_scheme="self-consistent:chgnet"
        ),
    )
    known = queries.register_reference(
        session, Reference(sha256="k" * 64, kind="structures", name="mp")
    )
    campaign = queries.get_or_create_campaign(
        session,
        f"key-{name}",
        name=name,
        config={"n": 4},
        seed=7,
        code_version="abc",
        inputs=INPUTS,
        basis=basis(potential.id, hull.id, known.id),
    )
    batch = queries.add_batch(
        session,
        Batch(
            campaign_id=campaign.id,
            number=number,
            checkpoint_id=checkpoint.id,
            conditions={"elements": ["Li", "O"]},
            seed=1234,
            size=4,
            steps=20,
        ),
    )
    return Rows(campaign, batch, potential, hull, known)


def add(session: Session, rows: Rows, index: int, structure: Structure) -> int:
    """Add a candidate that is like no other."""
    return queries.add_candidate(
        session,
        structure,
        batch_id=rows.batch.id,
        batch_index=index,
        space_group=225,
        fingerprint=f"print-{structure.formula}",
        space_group_drawn=216,
    )


def relaxation(
    rows: Rows, candidate: int, structure: Structure | None, **values: object
) -> Relaxation:
    """A converged relaxation, or what ``values`` make of it."""
    given: dict[str, object] = {
        "status": "converged",
        "energy_per_atom": -4.5,
        "space_group_before": 225,
        "space_group_after": 225,
    }
    return Relaxation(
        candidate_id=candidate,
        potential_id=rows.potential.id,
        settings=RELAX,
        structure=None if structure is None else structure_to_dict(structure),
        **(given | values),  # type: ignore[arg-type]
    )


def stability(
    rows: Rows, relaxation_id: int, energy_above_hull: float, **values: object
) -> Stability:
    """A verdict that follows from the energy above the hull, in eV/atom."""
    stable, metastable = energy_above_hull <= 0, energy_above_hull <= 0.1
    given: dict[str, object] = {
        "verdict": "stable" if stable else "metastable" if metastable else "unstable",
        "is_stable": stable,
        "is_metastable": metastable,
        "is_unique": True,
        "is_novel": True,
        "formation_energy_per_atom": -1.5,
    }
    return Stability(
        relaxation_id=relaxation_id,
        hull_id=rows.hull.id,
        known_id=rows.known.id,
        settings=SCREEN,
        energy_above_hull=energy_above_hull,
        **(given | values),  # type: ignore[arg-type]
    )


def judged(session: Session, energies_above_hull: dict[str, float]) -> None:
    """Let a second potential give these energies, eV/atom, to the crystals of these formulas."""
    potential = queries.register_potential(
        session,
        Potential(name="other", weights_sha256="", dtype="float64", energy_scheme="mp2020"),
    )
    rows = select(
        Candidate.formula_pretty, Relaxation.id, Stability.hull_id, Stability.energy_above_hull
    ).join(Relaxation, Relaxation.candidate_id == Candidate.id)
    for formula, number, hull, first in session.execute(rows.join(Stability)).all():
        if formula in energies_above_hull:
            above = energies_above_hull[formula]
            verdict = "stable" if above <= 0 else "metastable" if above <= 0.1 else "unstable"
            row = Judgement(
                relaxation_id=number,
                potential_id=potential.id,
                hull_id=hull,
                settings={},
                status="converged",
                verdict=verdict,
                energy_above_hull=above,
                spread=abs(above - first),
            )
            queries.record_judgement(session, row)


CRYSTALS = [("Li", "O", -0.02), ("Na", "Cl", 0.05), ("Mg", "O", 0.4), ("K", "Br", None)]


def filled(session: Session) -> tuple[Rows, list[int]]:
    """Four candidates: stable, metastable, unstable, and one whose relaxation failed."""
    rows = base_rows(session)
    ids = []
    for index, (cation, anion, energy) in enumerate(CRYSTALS):
        crystal = rocksalt(cation, anion)
        ids.append(add(session, rows, index, crystal))
        (claim,) = queries.claim(
            session,
            "worker",
            campaign_id=rows.campaign.id,
            potential_id=rows.potential.id,
            settings=RELAX,
            lease_seconds=60,
            limit=1,
        )
        done = relaxation(rows, claim.candidate_id, crystal)
        if energy is None:
            done = relaxation(
                rows, claim.candidate_id, None, status="exploded", reason="volume ratio 9"
            )
        done = queries.record_relaxation(session, done, fence=claim.fence)
        if energy is not None:
            queries.record_stability(session, stability(rows, done.id, energy))
    return rows, ids
