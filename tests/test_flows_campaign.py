"""Campaigns end to end with real parts: a generator, CHGNet, the shipped hull and reference."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from db import queries
from db.models import Candidate, Provenance, Relaxation, Stability
from db.session import Database, open_database
from flows.cli import run
from flows.leases import free_dead, worker_name
from flows.outcome import outcome
from flows.stage_generate import examine, generate_batch, open_campaign, store
from tests.flows_support import (
    KNOWN,
    rocksalt,
    run_stages,
    symmbfn,
    tiny_checkpoint,
    tiny_config,
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"))


def url(folder: Path, name: str = "mine") -> str:
    return f"sqlite:///{folder / name}.db"


def table(database: Database) -> list[tuple[Any, ...]]:
    """All that a campaign found, in a form that two runs can be compared by."""
    with database.session(write=False) as session:
        frame = queries.candidates(session, sort="material_id")
    columns = ["formula_pretty", "nsites", "state", "verdict", "is_unique", "is_novel"]
    energies = frame["energy_per_atom"].round(4).fillna(0.0).tolist()
    rows = frame[columns].astype(object).where(frame[columns].notna(), None).values.tolist()
    return sorted((*row, energy) for row, energy in zip(rows, energies, strict=True))


def relaxations(database: Database) -> dict[int, Any]:
    """Every stored relaxation with the time when it was stored."""
    with database.session(write=False) as session:
        rows = session.execute(select(Relaxation.candidate_id, Relaxation.created_at))
        return {row.candidate_id: row.created_at for row in rows}


@pytest.fixture(scope="module")
def undisturbed(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Database:
    """The database of a campaign that nothing disturbed."""
    config = tiny_config(checkpoint, url(tmp_path_factory.mktemp("undisturbed")))
    run_stages(config)
    return open_database(config.database)


def test_a_campaign_leaves_every_candidate_with_an_outcome(undisturbed: Database) -> None:
    found = outcome(undisturbed, 1)
    assert found.counts["generated"] == 4
    assert found.counts["valid"] <= 4
    assert found.counts["relaxed"] + found.counts["failed"] <= found.counts["distinct"]
    with undisturbed.session(write=False) as session:
        states = set(session.scalars(select(Candidate.state)))
        judged = session.scalars(select(Stability)).all()
        converged = session.scalars(
            select(Relaxation).where(Relaxation.status == "converged")
        ).all()
        record = queries.candidate(session, "sbfn-1")
    assert states <= {"invalid", "failed", "screened", "quarantined"}
    assert len(judged) == len(converged)
    drawn = record["provenance"][0]["batch"]
    assert drawn["seed"] and drawn["checkpoint"]["sha256"] and drawn["campaign"]["config"]


def test_the_same_settings_are_the_same_campaign(undisturbed: Database, checkpoint: Path) -> None:
    before = table(undisturbed), relaxations(undisturbed)
    file = undisturbed.engine.url.database
    again = run_stages(tiny_config(checkpoint, f"sqlite:///{file}"))
    assert again == 1
    assert (table(undisturbed), relaxations(undisturbed)) == before


def killed_when(config: Any, ready: Callable[[Database], bool]) -> None:
    """Run the stages in a process of its own and kill it, without warning, when `ready`."""
    database = open_database(config.database)
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "tests.flows_support", config.model_dump_json()],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 240
        while not ready(database):
            assert process.poll() is None, "the campaign ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def test_after_a_kill_in_the_relaxation_the_rest_is_done_and_nothing_twice(
    checkpoint: Path, tmp_path: Path, undisturbed: Database
) -> None:
    config = tiny_config(checkpoint, url(tmp_path))
    killed_when(config, lambda database: len(relaxations(database)) >= 1)
    database = open_database(config.database)
    finished = relaxations(database)
    with database.session(write=False) as session:
        held = session.scalars(select(Candidate.lease_owner)).all()
    assert any(held)  # the dead process still holds leases

    began = time.monotonic()
    run_stages(config)
    assert time.monotonic() - began < config.lease_seconds  # they were not waited for
    assert finished.items() <= relaxations(database).items()
    assert table(database) == table(undisturbed)


@pytest.mark.slow
def test_after_kills_in_every_stage_the_table_is_the_same(
    checkpoint: Path, tmp_path: Path, undisturbed: Database
) -> None:
    def batches(database: Database) -> int:
        with database.session(write=False) as session:
            return len(queries.batch_numbers(session, 1))

    config = tiny_config(checkpoint, url(tmp_path))
    killed_when(config, lambda database: batches(database) >= 1)
    killed_when(config, lambda database: batches(database) >= 2)
    for count in (1, 2):
        killed_when(config, lambda database, count=count: len(relaxations(database)) >= count)
    run_stages(config)
    assert table(open_database(config.database)) == table(undisturbed)


def test_a_crystal_drawn_twice_is_one_candidate(checkpoint: Path, tmp_path: Path) -> None:
    config = tiny_config(checkpoint, url(tmp_path))
    campaign = open_campaign(config)
    for number in range(2):
        generate_batch(config, campaign, number)
    database = open_database(config.database)
    cell = rocksalt("Ca", "O", 4.81)
    twin = cell.get_primitive_structure()
    twin.translate_sites(range(len(twin)), [0.13, 0.2, 0.4])
    twin.make_supercell([2, 1, 1])
    overlapping = cell.copy()
    overlapping.append("O", [0.01, 0, 0])
    with database.session() as session:
        first = store(session, 1, 100, examine(cell, 225))
        second = store(session, 2, 100, examine(twin, 225))
        third = store(session, 2, 101, examine(overlapping, 1))
    assert first == second != third
    with database.session(write=False) as session:
        drawn = session.scalars(select(Provenance).where(Provenance.candidate_id == first)).all()
        invalid = session.get_one(Candidate, third)
        assert invalid.state == "invalid" and invalid.reason
    assert len(drawn) == 2


def test_leases_of_the_living_stay(checkpoint: Path, tmp_path: Path) -> None:
    config = tiny_config(checkpoint, url(tmp_path), n=2)
    generate_batch(config, open_campaign(config), 0)
    database = open_database(config.database)
    machine, process, _ = worker_name().rsplit("/", 2)
    dead = f"{machine}/{process}/1"  # another process that once had our number
    elsewhere = f"another-host/{process}/1"
    with database.session() as session:
        first, second = session.scalars(select(Candidate).order_by(Candidate.id)).all()
        first.lease_owner, second.lease_owner = worker_name(), elsewhere
    with database.session() as session:
        assert free_dead(session) == 0
        session.get_one(Candidate, first.id).lease_owner = dead
    with database.session() as session:
        assert free_dead(session) == 1


def test_the_command_runs_a_campaign_and_shows_it(
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["discover", "-n", "2", "--steps", "3", "--max-relax-steps", "10", "--json"]
    arguments += ["--workers", "1", "--checkpoint", str(checkpoint)]
    arguments += ["--reference", str(checkpoint / KNOWN)]
    done = symmbfn(*arguments, home=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["counts"]["generated"] == 2
    assert found["database"] == "sqlite:///symmbfn.db"
    again = symmbfn(*arguments, home=tmp_path)
    assert "going on with it" in again.stderr
    assert json.loads(again.stdout) == found

    def shown(*arguments: str) -> str:
        assert run(arguments) == 0
        return capsys.readouterr().out

    monkeypatch.chdir(tmp_path)
    rows = json.loads(shown("candidates", "--json"))
    assert len(rows) == found["counts"]["distinct"]
    assert "sha256" in shown("show", rows[0]["material_id"])
    for format in ("cif", "poscar", "extxyz", "json"):
        shown("export", "nsites > 0", "--to", "out", "--format", format)
    assert len(list((tmp_path / "out").iterdir())) == 4 * len(rows)
    for refused, says in [
        (["export", "nsites > 0", "--to", "out"], "--force"),
        (["export", "nsites > 1000", "--to", "none"], "no candidate matches"),
        (["candidates", "nsites > 1000"], "no candidate matches"),
        (["candidates", "nsites >"], "filter"),
        (["show", "sbfn-99"], "sbfn-99"),
    ]:
        assert run(refused) == 2
        captured = capsys.readouterr()
        assert captured.out == "" and captured.err.count("\n") == 1
        assert says in captured.err
    assert not (tmp_path / "none").exists()
