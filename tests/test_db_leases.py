"""Claims, fences, and several processes writing at once."""

from __future__ import annotations

import multiprocessing
import os

import pytest
from sqlalchemy import select

from db import queries
from db.errors import StaleLeaseError
from db.models import Candidate, Relaxation
from db.session import Database, open_database
from tests.db_support import RELAX, Rows, add, base_rows, relaxation, rocksalt

SPAWN = multiprocessing.get_context("spawn")
CATIONS = ["Li", "Na", "K", "Rb", "Cs", "Ag"]
ANIONS = ["F", "Cl", "Br", "I"]


def fill(database: Database, count: int) -> Rows:
    with database.session() as session:
        rows = base_rows(session)
        pairs = [(cation, anion) for cation in CATIONS for anion in ANIONS]
        for index, (cation, anion) in enumerate(pairs[:count]):
            add(session, rows, index, rocksalt(cation, anion))
    return rows


def claim(
    database: Database, rows: Rows, worker: str, limit: int = 1, seconds: float = 60
) -> list[queries.Claim]:
    with database.session() as session:
        return queries.claim(
            session,
            worker,
            campaign_id=rows.campaign.id,
            potential_id=rows.potential.id,
            settings=RELAX,
            lease_seconds=seconds,
            limit=limit,
        )


def record(database: Database, rows: Rows, one: queries.Claim, energy: float = -4.5) -> Relaxation:
    with database.session() as session:
        done = relaxation(rows, one.candidate_id, one.structure, energy_per_atom=energy)
        return queries.record_relaxation(session, done, fence=one.fence)


def unfinished(database: Database, rows: Rows) -> int:
    with database.session(write=False) as session:
        return queries.unfinished(session, rows.campaign.id, rows.potential.id, RELAX)


def test_a_candidate_is_lent_to_one_worker(database: Database) -> None:
    rows = fill(database, 1)
    (first,) = claim(database, rows, "one")
    assert first.structure.composition.reduced_formula == "LiF"
    assert claim(database, rows, "two") == []
    assert unfinished(database, rows) == 1


def test_a_released_candidate_is_free_and_a_finished_one_is_not(database: Database) -> None:
    rows = fill(database, 1)
    with database.session() as session:
        queries.release(session, claim_in(session, rows))
    (again,) = claim(database, rows, "two")
    record(database, rows, again)
    assert claim(database, rows, "one") == []
    assert unfinished(database, rows) == 0


def claim_in(session: object, rows: Rows) -> list[queries.Claim]:
    return queries.claim(
        session,  # type: ignore[arg-type]
        "one",
        campaign_id=rows.campaign.id,
        potential_id=rows.potential.id,
        settings=RELAX,
        lease_seconds=60,
        limit=1,
    )


def test_late_write_of_a_slow_worker_is_refused(database: Database) -> None:
    rows = fill(database, 1)
    (slow,) = claim(database, rows, "slow", seconds=0)
    (fast,) = claim(database, rows, "fast")
    assert fast.fence == slow.fence + 1
    with pytest.raises(StaleLeaseError, match="sbfn-1 went to another worker"):
        record(database, rows, slow, energy=-1.0)
    record(database, rows, fast, energy=-2.0)
    with pytest.raises(StaleLeaseError):
        record(database, rows, slow, energy=-1.0)
    with database.session(write=False) as session:
        assert session.scalars(select(Relaxation.energy_per_atom)).all() == [-2.0]


def test_lease_that_ran_out_but_was_not_taken_still_counts(database: Database) -> None:
    rows = fill(database, 1)
    (slow,) = claim(database, rows, "slow", seconds=0)
    record(database, rows, slow)
    assert unfinished(database, rows) == 0


def test_renewal_keeps_what_is_ours_and_tells_what_is_not(database: Database) -> None:
    rows = fill(database, 2)
    lost, kept = claim(database, rows, "slow", limit=2, seconds=0)
    with database.session() as session:
        assert queries.renew(session, [kept], 60) == [kept]
    (taken,) = claim(database, rows, "fast", limit=2)
    assert taken.candidate_id == lost.candidate_id
    with database.session() as session:
        assert queries.renew(session, [lost, kept], 60) == [kept]
        queries.release(session, [lost])
    assert claim(database, rows, "third", limit=2) == []


def test_recording_twice_is_recording_once(database: Database) -> None:
    rows = fill(database, 1)
    (one,) = claim(database, rows, "one")
    first = record(database, rows, one, energy=-2.0)
    assert record(database, rows, one, energy=-3.0).id == first.id
    with database.session(write=False) as session:
        assert session.scalars(select(Relaxation.energy_per_atom)).all() == [-2.0]
        assert session.scalars(select(Candidate.state)).all() == ["relaxed"]


def test_another_potential_relaxes_the_same_candidate_again(database: Database) -> None:
    rows = fill(database, 1)
    (one,) = claim(database, rows, "one")
    record(database, rows, one)
    with database.session() as session:
        again = queries.claim(
            session,
            "one",
            campaign_id=rows.campaign.id,
            potential_id=rows.potential.id,
            settings=RELAX | {"fmax": 0.02},
            lease_seconds=60,
            limit=5,
        )
    assert [claimed.candidate_id for claimed in again] == [one.candidate_id]


def _work(url: str, worker: str) -> None:
    """Relax until nothing is left, as a worker process does; each step is its own commit."""
    database = open_database(url)
    with database.session() as session:
        rows = base_rows(session)
    while claims := claim(database, rows, worker, limit=3):
        for one in claims:
            record(database, rows, one)
    database.close()


def _run(jobs: list[tuple[object, tuple[object, ...]]]) -> list[int | None]:
    processes = [SPAWN.Process(target=target, args=args) for target, args in jobs]  # type: ignore[arg-type]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    return [process.exitcode for process in processes]


def test_two_processes_share_the_work_and_repeat_nothing(
    database_url: str, database: Database
) -> None:
    rows = fill(database, 24)
    assert _run([(_work, (database_url, "one")), (_work, (database_url, "two"))]) == [0, 0]
    with database.session(write=False) as session:
        assert queries.table_counts(session)["relaxation"] == 24
        assert set(session.scalars(select(Candidate.state))) == {"relaxed"}
        assert set(session.scalars(select(Candidate.fence))) == {1}, "a candidate was lent twice"
    assert unfinished(database, rows) == 0


def _write(url: str, number: int, count: int) -> None:
    """Open (and perhaps make) the database and write rows, one commit each."""
    database = open_database(url)
    crystal = rocksalt(CATIONS[number], "Cl")
    for index in range(count):
        with database.session() as session:
            rows = base_rows(session, name=f"campaign-{number}")
            add(session, rows, index, crystal)
    database.close()


def test_processes_writing_at_once_never_meet_a_lock(database_url: str) -> None:
    """They also race to make the tables."""
    assert _run([(_write, (database_url, number, 150)) for number in range(2)]) == [0, 0]
    database = open_database(database_url)
    with database.session(write=False) as session:
        counts = queries.table_counts(session)
    database.close()
    assert (counts["campaign"], counts["provenance"], counts["candidate"]) == (2, 300, 300)


def _die(url: str) -> None:
    database = open_database(url)
    with database.session() as session:
        rows = base_rows(session)
        add(session, rows, 0, rocksalt("Li", "F"))
        os.kill(os.getpid(), 9)


def test_a_process_killed_in_a_transaction_leaves_nothing_of_it(database_url: str) -> None:
    assert _run([(_die, (database_url,))]) == [-9]
    database = open_database(database_url)
    with database.session() as session:
        assert set(queries.table_counts(session).values()) == {0}
        base_rows(session)
    database.close()
