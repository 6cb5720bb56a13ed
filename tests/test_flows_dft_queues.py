"""FireWorks and jobflow-remote for real: they run what we submit, on a MongoDB in memory."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pymatgen.core.structure import Structure

pytest.importorskip("atomate2")

import jobflow
from jobflow import Flow, JobStore, Response, job
from maggma.stores import MemoryStore
from mongomock_ng import MongoClient
from mongomock_ng.store import ServerStore

from db.session import Database
from flows.cli import run
from flows.dft_makers import Cp2kSettings, VaspSettings
from flows.dft_runners import open_runner
from flows.dft_settings import SubmitConfig
from flows.dft_submit import submit
from flows.errors import ConfigError
from tests.db_support import filled, rocksalt
from tests.vasp_support import write_job

pytestmark = [
    pytest.mark.parametrize("database_url", ["sqlite"], indirect=True),
    # jobflow-remote 1.0 with monty of 2026
    pytest.mark.filterwarnings(
        "ignore:.* is deprecated, and will be removed on 2028:FutureWarning"
    ),
]
ATOMATE2 = pytest.mark.filterwarnings("ignore")  # of atomate2, maggma, pymatgen and custodian

Work = Callable[[], object]
RESULTS = {"type": "MongoStore", "database": "results"}
STORE = {
    "docs_store": RESULTS | {"collection_name": "outputs"},
    "additional_stores": {"data": RESULTS | {"collection_name": "bulky"}},
}
ENERGY, CORRECTED = -12.0, (-12.0 - 0.687) / 2  # eV of MgO; eV/atom, by MP2020 for O in an oxide


@job
def relax(crystal: Structure) -> Any:
    """Give the crystal back; sodium crashes, lithium ends the flow."""
    if "Na" in crystal.symbol_set:
        raise RuntimeError("VASP crashed")
    return Response(crystal, stop_jobflow="Li" in crystal.symbol_set)


@job(data="dos")
def static(crystal: Structure) -> dict[str, Any]:
    """Give a task document, whose bulky part goes to the additional store."""
    output = {"structure": crystal, "energy": ENERGY, "forces": [[0.0] * 3] * 2, "bandgap": 2.0}
    last = {"run_type": "PBE", "input": {"hubbards": {}}, "vasp_version": "6.4.2"}
    return {"state": "successful", "output": output, "calcs_reversed": [last], "dos": [1.0] * 99}


def two_jobs(_: VaspSettings, crystal: Structure) -> Flow:
    first = relax(crystal)
    last = static(first.output)
    return Flow([first, last], output=last.output)


def fireworks(folder: Path, patch: pytest.MonkeyPatch, mongo: Any) -> Work:
    """Set up a launch pad and a job store; return what runs the next job, in this process."""
    launchpad = pytest.importorskip("fireworks.core.launchpad")
    from fireworks.core.rocket_launcher import rapidfire

    (folder / "my_launchpad.yaml").write_text("host: nowhere\nname: queue\n")
    patch.setattr(launchpad, "LAUNCHPAD_LOC", str(folder / "my_launchpad.yaml"))
    patch.setattr(launchpad, "MongoClient", mongo)
    patch.setattr(launchpad, "GRIDFS_FALLBACK_COLLECTION", None)
    patch.setattr("fireworks.utilities.fw_utilities.PREVIOUS_STREAM_LOGGERS", [])
    for logger in ("launchpad", "rocket.launcher"):  # new handlers, of this test's own streams
        patch.setattr(logging.getLogger(logger), "handlers", [])
    patch.setattr(jobflow, "initialize_logger", lambda: None)
    patch.setattr(jobflow.SETTINGS, "JOB_STORE", JobStore.from_dict_spec(STORE))
    pad = launchpad.LaunchPad("nowhere", name="queue", strm_lvl="CRITICAL")
    pad.reset("", require_password=False)
    return lambda: rapidfire(pad, nlaunches=1)


def jobflow_remote(folder: Path, patch: pytest.MonkeyPatch, mongo: Any) -> Work:
    """Set up a project; return what runs the next job, in a process of its own."""
    remote = pytest.importorskip("jobflow_remote")
    from jobflow_remote.jobs import runner

    paths = f"PATH={Path(sys.executable).parent}:$PATH PYTHONPATH={Path(__file__).parents[1]}"
    here = {"type": "local", "scheduler_type": "shell", "work_dir": str(folder / "work")}
    project = {
        "name": "ours",
        "workers": {"here": here | {"pre_run": f"export {paths}"}},
        "queue": {"store": RESULTS | {"database": "queue", "collection_name": "jobs"}},
        "jobstore": STORE,
        "runner": {"delay_advance_status": 0.1, "delay_check_run_status": 0.1},
    }
    (folder / "ours.json").write_text(json.dumps(project))
    patch.setattr(remote.SETTINGS, "projects_folder", str(folder))
    patch.setattr("maggma.stores.mongolike.MongoClient", mongo)
    patch.setattr(runner, "initialize_runner_logger", lambda **_: None)  # mutes all other loggers
    remote.JobController.from_project_name("ours").reset()
    daemon = runner.Runner("ours")
    return lambda: daemon.run_one_job(max_seconds=120)


SET_UP = {"fireworks": fireworks, "jobflow-remote": jobflow_remote}


@pytest.fixture(params=SET_UP)
def name(request: pytest.FixtureRequest) -> str:
    """Name of a runner."""
    return str(request.param)


@pytest.fixture
def work(name: str, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Work:
    """What lets the queue run one job; the database has NaCl, MgO and Li2O2 to submit."""
    with database.session() as session:
        filled(session)
    mongo = partial(MongoClient, _store=ServerStore())  # all clients are of one server
    monkeypatch.setattr(MongoClient, "close", lambda _: None)  # it would delete what is kept
    monkeypatch.setattr("maggma.stores.mongolike.MongoClient", mongo)
    monkeypatch.chdir(tmp_path)
    return SET_UP[name](tmp_path, monkeypatch, mongo)


@pytest.fixture
def command(database_url: str, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """`symmbfn dft`, of which standard output is JSON and nothing else."""

    def told(*arguments: str) -> Any:
        capsys.readouterr()
        assert run(["dft", *arguments, "--json", "--db", database_url]) == 0
        return json.loads(capsys.readouterr().out)

    return told


def test_a_queue_runs_what_is_submitted_and_its_result_is_collected(
    name: str, work: Work, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(VaspSettings, "flow", two_jobs)
    (handed,) = command("submit", 'elements HAS "Mg"', "--runner", name)
    assert handed["error"] is None
    for _ in range(2):
        assert open_runner(name, None).outcome(handed["job_id"]).state == "running"
        assert command("collect")["running"] == 1
        work()
    found = command("collect")
    assert (found["completed"], found["failures"], found["notes"]) == (1, [], [])
    (row,) = command("list")
    assert row["energy_per_atom"] == pytest.approx(CORRECTED)
    assert (row["runner"], row["energy_scheme"], row["band_gap"]) == (name, "mp2020", 2.0)


@pytest.mark.parametrize(
    ("element", "states"), [("Na", ("FIZZLED", "FAILED")), ("Li", ("DEFUSED", "STOPPED"))]
)
def test_a_job_that_crashes_or_stops_its_flow_is_failed(
    name: str,
    work: Work,
    command: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    element: str,
    states: tuple[str, str],
) -> None:
    monkeypatch.setattr(VaspSettings, "flow", two_jobs)
    (handed,) = command("submit", f'elements HAS "{element}"', "--runner", name)
    work()
    found = command("collect")
    assert (found["failed"], found["running"]) == (1, 0)
    says = {
        "fireworks": f"{states[0]} in FireWorks: `lpad get_fws -i ",
        "jobflow-remote": f"{states[1]} in jobflow-remote: `jf -p ours flow info -j "
        + handed["job_id"],
    }
    assert found["failures"][0]["reason"].startswith(says[name])


def test_a_job_that_is_not_in_the_queue_is_unknown(name: str, work: Work) -> None:
    assert open_runner(name, None).outcome("no such job").state == "unknown"


def test_what_is_not_set_up_is_refused(
    name: str, work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobflow.SETTINGS, "JOB_STORE", JobStore(MemoryStore()))
    (tmp_path / "ours.json").unlink(missing_ok=True)
    with pytest.raises(ConfigError, match=r"see docs/dft.md"):
        open_runner(name, None)


@pytest.mark.parametrize("name", ["jobflow-remote"], indirect=True)
def test_a_job_is_looked_for_in_the_project_that_was_the_default_when_it_was_submitted(
    work: Work, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(VaspSettings, "flow", two_jobs)
    command("submit", 'elements HAS "Mg"', "--runner", "jobflow-remote")
    monkeypatch.setattr("jobflow_remote.SETTINGS.project", "another")
    found = command("collect")
    assert (found["running"], found["notes"]) == (1, [])


@ATOMATE2
@pytest.mark.parametrize("settings", [VaspSettings(), Cp2kSettings()])
def test_a_queue_takes_the_jobs_of_atomate2(
    name: str, work: Work, database_url: str, settings: VaspSettings | Cp2kSettings
) -> None:
    runner = open_runner(name, None)
    config = SubmitConfig(database=database_url, limit=1, code=settings.code)
    (handed,) = submit(config, runner)
    assert handed.error is None and handed.job_id is not None
    assert runner.outcome(handed.job_id).state == "running"


@ATOMATE2
@pytest.mark.parametrize("name", ["fireworks"], indirect=True)
def test_fireworks_runs_the_jobs_of_atomate2(
    work: Work, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from atomate2.utils.testing.vasp import monkeypatch_vasp

    mgo, still, u = rocksalt("Mg", "O"), [[0.0] * 3] * 2, (0.0, 0.0)
    jobs = {f"MP GGA {step}": 99 for step in ("relax 1", "relax 2")} | {"MP GGA static": 0}
    for one, steps in jobs.items():
        place, potcars = tmp_path / "references" / one, ["Mg_pv", "O"]
        write_job(place, "ENCUT = 520", potcars, mgo, mgo, ENERGY, still, gap=2.0, u=u, steps=steps)
    replayed = monkeypatch_vasp(monkeypatch, tmp_path / "references")
    next(replayed)({one: one for one in jobs}, {one: {"incar_settings": ["ENCUT"]} for one in jobs})
    command("submit", 'elements HAS "Mg"', "--runner", "fireworks")
    for _ in jobs:
        work()
    assert command("collect")["completed"] == 1
    (row,) = command("list")
    assert row["energy_per_atom"] == pytest.approx(CORRECTED)
    replayed.close()
