"""Campaigns end to end with real parts: a generator, CHGNet, the shipped hull and reference."""

from __future__ import annotations

import json
import math
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy
from pymatgen.core.composition import Composition
from pymatgen.core.structure import Structure
from sqlalchemy import select

from db import queries
from db.errors import DatabaseError
from db.models import Campaign, Candidate, Provenance, Relaxation, Stability
from db.session import Database, open_database
from flows import progress
from flows.assess import assess, limit_of, place
from flows.cli import run
from flows.commands.discover import _show
from flows.engine import Engine, choose_engine, is_transient
from flows.errors import ConfigError
from flows.inputs import check, load_hull, load_reference
from flows.leases import free_dead, worker_name
from flows.outcome import outcome
from flows.settings import CampaignConfig, RelaxationSettings
from flows.stage_generate import (
    close_campaign,
    compare,
    examine,
    open_campaign,
    store,
    unfinished_seeds,
)
from flows.stage_relax import Best, relax_pending
from flows.stage_screen import screen_pending
from relax import matching
from relax.hull import Hull
from relax.optimize import RelaxResult, Status
from relax.potentials import find
from relax.relaxation import never_started
from symmbfn.errors import SymmBFNError
from symmbfn.files import write_structures
from tests.campaign_support import batch_row, drawn_campaign, relaxed_campaign
from tests.flows_support import (
    KNOWN,
    environment,
    relaxations,
    rocksalt,
    run_stages,
    symmbfn,
    table,
    tiny_checkpoint,
    tiny_config,
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"))


def url(folder: Path, name: str = "mine") -> str:
    return f"sqlite:///{folder / name}.db"


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
    assert found.tally["accepted"] == 4 <= found.tally["drawn"]
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
    assert drawn["tally"].keys() == found.tally.keys() and drawn["tally"]["accepted"] == 2
    assert drawn["seed"] and drawn["checkpoint"]["sha256"] and drawn["campaign"]["config"]


def test_the_same_settings_are_the_same_campaign(undisturbed: Database, checkpoint: Path) -> None:
    before = table(undisturbed), relaxations(undisturbed)
    file = undisturbed.engine.url.database
    again = run_stages(tiny_config(checkpoint, f"sqlite:///{file}"))
    assert again == 1
    assert (table(undisturbed), relaxations(undisturbed)) == before


def test_one_key_with_another_input_is_an_error_that_names_it(
    checkpoint: Path, tmp_path: Path
) -> None:
    known = tmp_path / "known.jsonl"
    write_structures(known, [rocksalt("Na", "Cl", 5.6)])
    config = tiny_config(checkpoint, url(tmp_path), reference=str(known), key="mine")
    assert open_campaign(config) == open_campaign(config) == 1
    write_structures(known, [rocksalt("Ca", "O", 4.81)])  # the same name, another content
    load_reference.cache_clear()
    with pytest.raises(DatabaseError, match=r"key 'mine' .* had reference \w+…, not \w+…: choose"):
        open_campaign(config)
    with pytest.raises(DatabaseError, match=r"had n 4, not 3; "):
        open_campaign(config.model_copy(update={"n": 3}))
    with pytest.raises(DatabaseError, match=r"had relaxation.fmax 0.3, not 0.05; "):
        open_campaign(config.model_copy(update={"relaxation": RelaxationSettings(max_steps=30)}))


def test_a_campaign_does_not_go_on_by_another_protocol(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(checkpoint, url(tmp_path), n=1, key="mine")
    run_stages(config)
    monkeypatch.setattr("relax.optimize.PROTOCOL", "another")
    with pytest.raises(DatabaseError, match=r"had relaxation\.protocol \S+, not another: choose"):
        open_campaign(config)


def test_a_run_without_a_seed_finishes_what_a_killed_one_left(
    checkpoint: Path, tmp_path: Path
) -> None:
    config = tiny_config(checkpoint, url(tmp_path), n=1, seed=None)
    killed = config.model_copy(update={"seed": 5})
    other = config.model_copy(update={"seed": 6, "n": 2})
    named = config.model_copy(update={"seed": 7, "key": "mine"})  # it may be at work elsewhere
    assert [open_campaign(one) for one in (killed, other, named)] == [1, 2, 3]
    assert unfinished_seeds(config) == [5]
    assert run_stages(config) == 4
    assert unfinished_seeds(config) == [] and run_stages(config) == 5
    with open_database(config.database).session(write=False) as session:
        campaigns = session.scalars(select(Campaign).order_by(Campaign.id)).all()
        finished = [one.finished_at is not None for one in campaigns]
        assert finished == [True, False, False, True, True]
        assert queries.batch_numbers(session, 1) == {0}


COUNTING = """
import sys
from flows.cli import run
from relax import workers
start = workers._start
workers._start = lambda *to: print("a worker", to[0], flush=True) or start(*to)
sys.exit(run(sys.argv[1:]))
"""


def test_the_same_processes_rank_and_relax_and_none_starts_for_what_is_done(
    checkpoint: Path, tmp_path: Path
) -> None:
    file = tmp_path / "tiny.toml"
    file.write_text(
        f'n = 4\nbatch_size = 2\nsteps = 3\nseed = 1\ncheckpoint = "{checkpoint}"\n'
        f'reference = "{checkpoint / KNOWN}"\nworkers = 1\nrelaxation = {{ max_steps = 2 }}\n'
        "funnel = { relax_budget = 2 }\n"
    )

    def started() -> int:
        command = [sys.executable, "-c", COUNTING, "discover", str(file), "--db", url(tmp_path)]
        done = subprocess.run(
            command, env=environment(tmp_path), check=True, capture_output=True, text=True
        )
        return done.stdout.count("a worker chgnet")

    assert started() == 1
    with open_database(url(tmp_path)).session(write=False) as session:
        assert len(session.scalars(select(Relaxation)).all()) == 2
    assert started() == 0


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


def test_told_to_end_a_command_gives_back_what_it_held(checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "tiny.toml"
    file.write_text(
        f'n = 4\nsteps = 3\ncheckpoint = "{checkpoint}"\nreference = "{checkpoint / KNOWN}"\n'
        "workers = 1\nrelaxation = { fmax = 1e-6, max_steps = 100000 }\n"
    )
    command = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "discover", str(file), "--db", url(tmp_path)],
        env=environment(tmp_path),
    )
    database = open_database(url(tmp_path))

    def held() -> list[str]:
        with database.session(write=False) as session:
            owners = session.scalars(select(Candidate.lease_owner))
            return [one for one in owners if one is not None]

    try:
        deadline = time.monotonic() + 120
        while not held():
            assert command.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        command.terminate()
        assert command.wait(60) == 143 and held() == []
    finally:
        command.kill()


def test_after_a_kill_in_the_relaxation_the_rest_is_done_and_nothing_twice(
    checkpoint: Path, tmp_path: Path, undisturbed: Database
) -> None:
    config = tiny_config(checkpoint, url(tmp_path))

    def busy_with_another(database: Database) -> bool:
        with database.session(write=False) as session:
            held = session.scalars(select(Candidate.lease_owner)).all()
        return any(held) and len(relaxations(database)) >= 1

    killed_when(config, busy_with_another)  # the dead process still holds a lease
    database = open_database(config.database)
    finished = relaxations(database)

    began = time.monotonic()
    run_stages(config)
    assert time.monotonic() - began < config.lease_seconds  # they were not waited for
    assert finished.items() <= relaxations(database).items()
    assert table(database) == table(undisturbed)


def test_a_crystal_drawn_twice_is_one_candidate(checkpoint: Path, tmp_path: Path) -> None:
    config = tiny_config(checkpoint, url(tmp_path))
    campaign = relaxed_campaign(config, [rocksalt("Na", "Cl", 5.6)])
    database = open_database(config.database)
    cell = rocksalt("Ca", "O", 4.81)
    twin = cell.get_primitive_structure()
    twin.translate_sites(range(len(twin)), [0.13, 0.2, 0.4])
    twin.make_supercell([2, 1, 1])
    overlapping = cell.copy()
    overlapping.append("O", [0.01, 0, 0])
    first = [examine(one, 225) for one in (overlapping, cell, twin)]
    second = [examine(one, 225) for one in (twin, rocksalt("Sr", "O", 5.16))]
    compared = compare(database, first)
    too_early = compare(database, second)  # another process stores the first meanwhile
    with database.session() as session:
        one = store(session, batch_row(session, campaign, 1), first, compared)
    with database.session() as session:
        two = store(session, batch_row(session, campaign, 2), second, too_early)
    third = compare(database, second[1:])
    with database.session() as session:
        three = store(session, batch_row(session, campaign, 3), second[1:], third)
    assert one[1] == one[2] == two[0] and three == [two[1]]
    assert len({*one, *two}) == 3
    with database.session(write=False) as session:
        drawn = session.scalars(select(Provenance).where(Provenance.candidate_id == two[0])).all()
        invalid = session.get_one(Candidate, one[0])
        assert invalid.state == "invalid" and invalid.reason
    assert len(drawn) == 3


def test_who_knew_a_crystal_is_told(checkpoint: Path, tmp_path: Path) -> None:
    """Known to the reference, to the training set, and drawn before; by these names."""
    salt, unheard_of = rocksalt("Na", "Cl", 5.69), rocksalt("Na", "Cl", 6.9)
    (tmp_path / "trained.cif").write_text(rocksalt("Na", "Cl", 6.7).to(fmt="cif"))
    config = tiny_config(
        checkpoint, url(tmp_path), reference="mp", trained_on=str(tmp_path / "trained.cif")
    )
    tetragonal = unheard_of.copy()
    tetragonal.apply_strain([0.0, 0.0, 0.9])
    campaign = relaxed_campaign(config, [salt, tetragonal])
    screen_pending(config, campaign)
    with open_database(config.database).session(write=False) as session:
        table = queries.candidates(session, sort="material_id")
        found = queries.candidates(session, 'known_to CONTAINS "mp"')
    assert table["known_to"].tolist() == ["training, mp", ""]
    assert table["is_novel"].tolist() == [False, True]
    assert found["material_id"].tolist() == ["sbfn-1"]


@pytest.mark.parametrize("energy", [-4.5, 8 * -3.4])  # a hole; a cell's energy taken for an atom's
def test_what_lies_far_below_the_hull_is_set_apart(
    checkpoint: Path, tmp_path: Path, energy: float
) -> None:
    config = tiny_config(checkpoint, url(tmp_path))
    campaign = drawn_campaign(config, [rocksalt("Na", "Cl", 5.6)], True, energy)
    screen_pending(config, campaign)
    database = open_database(config.database)
    with database.session(write=False) as session:
        (verdict,) = session.scalars(select(Stability))
        (state,) = session.scalars(select(Candidate.state))
        assert verdict.energy_above_hull < -0.3 and verdict.verdict == "quarantined" == state
        assert not (verdict.is_stable or verdict.is_metastable)
        assert verdict.hull_coverage["decomposition"] == {"NaCl": 1}
    counts = outcome(database, campaign).counts
    assert (counts["stable"], counts["sun"], counts["msun"]) == (0, 0, 0)


def test_a_database_that_stays_locked_is_told(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(checkpoint, url(tmp_path))
    relaxed_campaign(config, [rocksalt("Na", "Cl", 5.6)])
    monkeypatch.setattr("db.session.BUSY_SECONDS", 1)
    database = open_database(config.database)
    with closing(sqlite3.connect(tmp_path / "mine.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(DatabaseError, match="locked") as told, database.session() as session:
            batch_row(session, 1, 1)
        with database.session(write=False) as session:
            assert len(session.scalars(select(Relaxation)).all()) == 1
    assert is_transient(told.value)


def test_what_will_not_do_better_is_not_tried_again() -> None:
    lost = sqlalchemy.exc.OperationalError("SELECT 1", {}, Exception("connection refused"))
    twice = sqlalchemy.exc.IntegrityError("INSERT", {}, Exception("UNIQUE constraint failed"))
    assert is_transient(lost) and is_transient(ConnectionError()) and is_transient(OSError("full"))
    assert not any(map(is_transient, [twice, ConfigError("bad"), PermissionError()]))


def test_a_cluster_without_prefect_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    config = tiny_config(checkpoint, url(tmp_path), dask={"jobs": 2})
    with pytest.raises(ConfigError, match="set PREFECT_API_URL, see docs"):
        choose_engine(config.dask)
    with pytest.raises(ConfigError, match="only Prefect shares work on a cluster"):
        run_stages(config)


def test_a_step_is_tried_again_where_that_may_help(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr("flows.engine.time.sleep", waited.append)
    ends: list[Exception | None] = [OSError("gone"), ConnectionError("still gone"), None]

    def step(name: str) -> str:
        end = ends.pop(0)
        if end is not None:
            raise end
        return name

    assert Engine().step(step, "done") == "done" and waited == [5, 30]
    ends[:] = [ConfigError("bad"), None]
    with pytest.raises(ConfigError):
        Engine().step(step, "done")
    ends[:] = [OSError("gone")] * 4
    with pytest.raises(OSError, match="gone"):
        Engine().step(step, "done")
    assert waited == [5, 30, 5, 30, 120]


def test_others_may_write_while_crystals_are_compared(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("db.session.BUSY_SECONDS", 1)
    salts = [rocksalt("Na", "Cl", 5.6), rocksalt("Na", "Cl", 6.6)]
    config = tiny_config(checkpoint, url(tmp_path))
    campaign = relaxed_campaign(config, salts)
    database = open_database(config.database)
    compare_really = matching.matches
    seen: list[int] = []

    def compare_while_another_writes(one: Structure, other: Structure) -> bool:
        with open_database(config.database).session() as session:
            seen.append(batch_row(session, campaign, 100 + len(seen)))
        return compare_really(one, other)

    monkeypatch.setattr(matching, "matches", compare_while_another_writes)
    screen_pending(config, campaign)
    judged = len(seen)
    drawn = [examine(salts[0], 225)]
    compared = compare(database, drawn)
    assert len(seen) > judged > 0
    with database.session() as session:
        assert store(session, batch_row(session, campaign, 1), drawn, compared) == [1]


def test_a_crystal_that_cannot_be_examined_is_stored_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(structure: Structure) -> str:
        raise ValueError("no\nsymmetry")

    monkeypatch.setattr(matching, "fingerprint", broken)
    found = examine(rocksalt("Na", "Cl", 5.6), 225)
    assert found.flaw == "cannot be examined: ValueError: no symmetry"
    assert (found.fingerprint, found.space_group) == ("", None)


def test_the_progress_bar_never_stops_a_relaxation(monkeypatch: pytest.MonkeyPatch) -> None:
    info, salt = find("chgnet"), rocksalt("Na", "Cl", 5.6)
    done = replace(never_started(info, Status.CONVERGED, ""), structure=salt, energy_per_atom=-3.0)
    best = Best(Hull.load("chgnet"), info)
    text = best.after(done)
    assert text.startswith("best NaCl +")

    def broken(*arguments: object) -> Any:
        raise ValueError("flat simplex")

    monkeypatch.setattr(Hull, "energy_above_hull", broken)
    assert best.after(done) == text


@pytest.mark.parametrize("at_fault", ["hull", "matcher"])
def test_a_crystal_that_cannot_be_judged_does_not_stop_the_others(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_fault: str
) -> None:
    crystals = [rocksalt("Sr", "O", 5.16), rocksalt("Na", "Br", 5.9), rocksalt("Na", "Br", 6.9)]
    config = tiny_config(checkpoint, url(tmp_path))
    campaign = relaxed_campaign(config, crystals)

    def broken(*arguments: object) -> Any:
        raise ValueError("QH6154 initial simplex is flat\n\nWhile executing: | qhull")

    if at_fault == "matcher":
        monkeypatch.setattr(matching, "matches", broken)  # only the last has an older one
    else:
        really = Hull.energy_above_hull

        def sometimes(hull: Hull, compositions: list[Composition], energies: Any) -> Any:
            if energies[0] < -4.9:
                broken()
            return really(hull, compositions, energies)

        with open_database(config.database).session() as session:
            session.get_one(Relaxation, 3).energy_per_atom = -500.0
        monkeypatch.setattr(Hull, "energy_above_hull", sometimes)
    screen_pending(config, campaign)
    close_campaign(config, campaign)
    with open_database(config.database).session(write=False) as session:
        first, second, third = session.scalars(select(Stability).order_by(Stability.id)).all()
        counts = queries.campaign_counts(session, campaign)
        finished = session.get_one(Campaign, campaign).finished_at
        assert first.energy_above_hull is not None and second.is_unique
        assert third.verdict == "not_assessable" and third.is_unique is None
        assert third.reason == "ValueError: QH6154 initial simplex is flat While executing: | qhull"
    assert (counts["relaxed"], counts["not_assessable"]) == (3, 1) and finished is not None


def test_an_interrupted_relaxation_ends_its_workers_and_gives_crystals_back(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(checkpoint, url(tmp_path))
    crystals = [rocksalt("Na", "Cl", 5.6), rocksalt("Ca", "O", 4.81)]
    campaign = drawn_campaign(config, crystals, relaxed=False)
    ended: list[bool] = []

    def relax_iter(
        structures: Iterable[Structure], *_: object
    ) -> Iterator[tuple[int, RelaxResult]]:
        try:
            for index, _structure in enumerate(list(structures)):  # both are claimed
                yield index, never_started(find("chgnet"), Status.FAILED, "a test")
        finally:
            ended.append(True)

    class Interrupting(progress.Progress):
        def advance(self, count: int = 1, note: str = "") -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr("relax.optimize.relax_iter", relax_iter)
    monkeypatch.setattr(progress, "current", Interrupting)
    with pytest.raises(KeyboardInterrupt):
        try:
            relax_pending(config, campaign)
        except KeyboardInterrupt:  # here its traceback still holds every frame
            assert ended == [True]
            raise
    with open_database(config.database).session(write=False) as session:
        assert session.scalars(select(Candidate.lease_owner)).all() == [None, None]
        assert len(session.scalars(select(Relaxation.id)).all()) == 1


def test_the_limit_of_a_crystal_is_where_it_becomes_metastable(tmp_path: Path) -> None:
    low = "# energy_scheme: mp2020\nformula,energy_per_atom\nNa,-1.3\nCl,-1.8\nNaCl,-9\n"
    (tmp_path / "mp2020.csv").write_text(low)
    hulls = ["chgnet", str(tmp_path / "mp2020.csv")]
    given = {"relaxation": {"hopeless": 0.3}, "hulls": hulls}
    config = CampaignConfig.build(given, where="test")
    limit = limit_of(config)
    assert limit is not None
    salt = rocksalt("Na", "Cl", 5.6)
    hull, potential = load_hull("chgnet"), find("chgnet")
    _, above = place(hull, potential, salt, limit(salt))  # the other hull lies lower
    assert above == pytest.approx(config.thresholds.metastable)
    assert limit(rocksalt("Na", "He", 5.6)) == math.inf  # of which no compound is known
    assert limit_of(CampaignConfig()) is None


def test_known_structures_are_read_from_any_structure_file(tmp_path: Path) -> None:
    salt, oxide = rocksalt("Na", "Cl", 5.6), rocksalt("Ca", "O", 4.81)
    write_structures(tmp_path / "salt.cif", [salt])
    write_structures(tmp_path / "both.jsonl", [salt, oxide])
    given = [oxide.get_primitive_structure(), salt * (1, 2, 1)]
    one = load_reference(str(tmp_path / "salt.cif"))
    both = load_reference(str(tmp_path / "both.jsonl"))
    assert one.novel(given).tolist() == [True, False] and both.novel(given).tolist() == [False] * 2
    assert (both.name, one.name) == ("both", "salt") and both.sha256 != one.sha256
    with (tmp_path / "both.jsonl").open("a") as file:
        file.write('{"structure": {}}\n')
    load_reference.cache_clear()
    with pytest.raises(ConfigError, match=r"both.jsonl: .*take it out"):
        load_reference(str(tmp_path / "both.jsonl"))
    with pytest.raises(SymmBFNError, match=r"poem.txt: unknown kind"):
        (tmp_path / "poem.txt").write_text("Shall I compare thee")
        load_reference(str(tmp_path / "poem.txt"))


def test_one_crystal_in_memory_that_cannot_be_judged_does_not_stop_the_others(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sometimes(hull: Hull, compositions: list[Composition], energies: Any) -> Any:
        if "Sr" in compositions[0]:
            raise ValueError("flat simplex")
        return np.array([0.05])

    monkeypatch.setattr(Hull, "energy_above_hull", sometimes)
    config = tiny_config(checkpoint, url(tmp_path))
    crystals = [rocksalt("Sr", "O", 5.16), rocksalt("Na", "Br", 5.9)]
    strange, good = assess(config, crystals, [-5.0, -5.0])
    assert (strange.verdict, strange.reason) == ("not_assessable", "ValueError: flat simplex")
    assert not strange.is_unique and math.isnan(strange.energy_above_hull)
    assert (good.verdict, good.reason, good.is_novel) == ("metastable", None, True)


def test_leases_of_the_living_stay(checkpoint: Path, tmp_path: Path) -> None:
    config = tiny_config(checkpoint, url(tmp_path))
    relaxed_campaign(config, [rocksalt("Na", "Cl", 5.6), rocksalt("Ca", "O", 4.81)])
    database = open_database(config.database)
    machine, boot, process, started = worker_name().rsplit("/", 3)
    elsewhere = f"another-host/1/{boot}/{process}/1"
    gone = f"{machine}/{boot}/{process}/1"  # another process that once had our number
    before_the_reboot = f"{machine}/another-boot/{process}/{started}"

    def freed(first_owner: str) -> int:
        with database.session() as session:
            first, second = session.scalars(select(Candidate).order_by(Candidate.id)).all()
            first.lease_owner, second.lease_owner = first_owner, elsewhere
        with database.session() as session:
            return free_dead(session)

    assert [freed(name) for name in (worker_name(), gone, before_the_reboot)] == [0, 1, 1]


def test_elements_that_the_potential_does_not_know_are_refused(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only = replace(find("chgnet"), elements=("Mg", "O"))
    monkeypatch.setattr("flows.inputs.potential_info", lambda name: only)
    for condition in ({"elements": ["Ca", "O"]}, {"require": ["Ca"]}, {"formula": "CaO"}):
        config = tiny_config(checkpoint, url(tmp_path), conditions=condition)
        with pytest.raises(ConfigError, match="'chgnet' knows no element Ca; drop it"):
            check(config)


def test_what_a_campaign_shows_names_its_basis_and_explains_the_funnel(
    undisturbed: Database, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = outcome(undisturbed, 1)
    found.counts["metastable"] = 1
    _show(found, tiny_config(checkpoint, undisturbed.url))
    out = capsys.readouterr().out
    assert "Judged by potential chgnet against hull chgnet." in out
    for word in ("distinct: ", "known_before: ", "near_hull: ", "sun: ", "msun: "):
        assert word in out
    condition = f'is_metastable = TRUE AND campaign = "{found.campaign}"'
    assert f"symmbfn export '{condition}' --to metastable" in out
    with undisturbed.session(write=False) as session:
        queries.candidates(session, filter=condition)  # a filter that is understood


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
