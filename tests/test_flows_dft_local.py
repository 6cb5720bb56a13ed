"""Jobs run here by jobflow itself, killed workers included; and CP2K for real."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("atomate2")

from jobflow import Flow, job
from pymatgen.core import Structure

from db import dft as dft_rows
from db import queries
from db.session import open_database
from flows.dft_runners import LocalRunner
from flows.errors import ConfigError
from tests import db_support
from tests.flows_support import environment, tiny_loop

pytestmark = pytest.mark.filterwarnings("ignore")  # of jobflow, maggma and mongomock


@job
def document(number: int) -> dict[str, int]:
    """Give a document, as atomate2's jobs do."""
    if number < 0:
        raise ValueError("negative\nnumber")
    return {"number": number}


@job
def sleeper(file: str) -> dict[str, int]:
    """Tell that it works, and go on for ever."""
    Path(file).touch()
    time.sleep(600)
    return {}


def two_jobs(first: int) -> Flow:
    """The second job takes what the first one gives."""
    one = document(first)
    two = document(one.output["number"])
    return Flow([one, two], output=two.output)


def test_a_job_is_run_and_its_output_read_by_another_process_later(tmp_path: Path) -> None:
    flow = two_jobs(7)
    runner = LocalRunner(tmp_path)
    runner.prepare(flow.output.uuid)
    assert runner.outcome(flow.output.uuid).state == "unknown"
    runner.submit(flow)
    found = LocalRunner(tmp_path).outcome(flow.output.uuid)
    assert (found.state, found.output) == ("done", {"number": 7})


def test_a_job_that_raises_is_failed_with_its_reason(tmp_path: Path) -> None:
    flow = two_jobs(-1)
    LocalRunner(tmp_path).submit(flow)
    found = LocalRunner(tmp_path).outcome(flow.output.uuid)
    place = tmp_path / flow.output.uuid
    assert (found.state, found.output) == ("failed", None)
    assert found.reason == f"ValueError: negative number; see {place}"
    assert "Traceback" in (place / "failed.txt").read_text()


def test_a_killed_worker_leaves_a_lost_job(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from jobflow import Flow;"
        "from tests.test_flows_dft_local import sleeper;"
        "from flows.dft_runners import LocalRunner;"
        "one = sleeper(sys.argv[1]); print(one.uuid, flush=True);"
        "LocalRunner(Path(sys.argv[2])).submit(Flow([one], output=one.output))"
    )
    working = tmp_path / "working"
    worker = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", program, str(working), str(tmp_path / "jobs")],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert worker.stdout is not None
    job_id = worker.stdout.readline().strip()
    runner = LocalRunner(tmp_path / "jobs")
    try:
        for _ in range(600):
            if working.exists():
                break
            time.sleep(0.1)
        assert runner.outcome(job_id).state == "running"
    finally:
        os.kill(worker.pid, signal.SIGKILL)
        worker.communicate()
    found = runner.outcome(job_id)
    assert found.state == "failed" and found.reason.startswith("lost: ")


def test_a_job_of_another_machine_cannot_be_asked_for(tmp_path: Path) -> None:
    for runner in (LocalRunner(tmp_path), LocalRunner(tmp_path / "not here")):
        with pytest.raises(ConfigError, match=r"no .*job-1 on this machine; collect on the one"):
            runner.outcome("job-1")


def test_a_half_written_store_is_a_lost_job(tmp_path: Path) -> None:
    flow = two_jobs(7)
    runner = LocalRunner(tmp_path)
    runner.submit(flow)
    outputs = tmp_path / flow.output.uuid / "outputs.json"
    outputs.write_text(outputs.read_text()[:-20])
    assert runner.outcome(flow.output.uuid).reason.startswith("lost: ")


def test_a_loop_hands_over_within_its_limit_and_goes_on_where_that_fails(tmp_path: Path) -> None:
    """There are no pseudopotentials, so that atomate2 cannot write VASP's inputs."""
    config = tiny_loop(tmp_path)
    text = (tmp_path / "loop.toml").read_text()
    dft = '[dft]\nworkflow = "static"\nlimit = 1\n'
    (tmp_path / "loop.toml").write_text(f"retraining = false\n{text}\n{dft}")
    (tmp_path / "potcars").mkdir()
    variables = environment(tmp_path) | {
        "PMG_VASP_PSP_DIR": str(tmp_path / "potcars"),
        "ATOMATE2_VASP_CMD": "true",
    }
    command = ["loop", "loop.toml", "--rounds", "1", "--db", str(config.campaign.database)]
    for _ in range(2):  # the second time all is done
        ran = subprocess.run(
            [sys.executable, "-m", "flows.cli", *command],
            cwd=tmp_path,
            env=variables,
            capture_output=True,
            text=True,
        )
        assert ran.returncode == 0, ran.stderr
        with open_database(config.campaign.database).session(write=False) as session:
            (row,) = dft_rows.calculations(session)
        assert row["state"] == "failed" and "POTCAR" in row["reason"]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cp2k.psmp") is None, reason="CP2K is not installed")
@pytest.mark.parametrize(("workflow", "formula"), [("static", "LiH"), ("relax", "C")])
def test_cp2k_computes_a_crystal_for_real(tmp_path: Path, workflow: str, formula: str) -> None:
    """A database with a relaxed crystal; submit, run, collect and show from the command line."""
    database = open_database(url := f"sqlite:///{tmp_path / 'test.db'}")
    crystal = db_support.rocksalt("Li", "H", 4.08)
    if formula == "C":  # with this basis LiH flies apart
        diamond = db_support.rocksalt("C", "C", 3.65).lattice
        crystal = Structure(diamond, ["C", "C"], [[0.0] * 3, [0.25] * 3])
    with database.session() as session:
        rows = db_support.base_rows(session)
        done = db_support.relaxation(rows, db_support.add(session, rows, 0, crystal), crystal)
        session.add(done)
        session.flush()
        queries.record_stability(session, db_support.stability(rows, done.id, -0.4))
    database.close()

    given = tmp_path / "given"
    given.mkdir()
    for name in ("BASIS_MOLOPT", "GTH_POTENTIALS"):
        shutil.copy(Path("/usr/share/cp2k") / name, given)
    variables = environment(tmp_path) | {
        "PMG_CP2K_DATA_DIR": str(tmp_path / "data"),
        "ATOMATE2_CP2K_CMD": "cp2k.psmp",
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    }

    def command(*arguments: str) -> str:
        ran = subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env=variables,
            capture_output=True,
            text=True,
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    command("-W", "ignore", "-m", "pymatgen.cli.pmg", "config", "--cp2k", str(given), "data")
    submit = ["dft", "submit", "--policy", "stable", "--code", "cp2k", "--json", "--db", url]
    cheap = ["--workflow", workflow, "--basis", "SZV-MOLOPT-SR-GTH", "--kpoint-density", "1"]
    (handed,) = json.loads(command("-m", "flows.cli", *submit, *cheap))
    assert (handed["formula"], handed["error"]) == (formula, None)
    assert json.loads(command("-m", "flows.cli", *submit, *cheap)) == []
    found = json.loads(command("-m", "flows.cli", "dft", "collect", "--json", "--db", url))
    assert (found["completed"], found["failures"]) == (1, [])
    assert "no verdict" in found["notes"][0]["note"]
    (row,) = json.loads(command("-m", "flows.cli", "dft", "list", "--json", "--db", url))
    assert (row["state"], row["energy_scheme"], row["verdict"]) == (
        "completed",
        "cp2k-pbe-gth",
        None,
    )
    about = {"LiH": -215, "C": -308}[formula]  # eV: -7.4 Ha of Li, -0.5 of H; -5.7 of C
    assert abs(row["energy_per_atom"] * 2 - about) < 20
    # by symmetry; or what the relaxation leaves, 0.0279 eV/Å when it was tried
    assert row["max_force"] < (0.01 if workflow == "static" else 0.05)
    shown = command("-m", "flows.cli", "show", handed["material_id"], "--db", url)
    assert "cp2k-pbe-gth" in shown and "forces" in shown
