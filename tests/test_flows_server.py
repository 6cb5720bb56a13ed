"""Prefect's part: the temporary server, the deployments, and what a run shows on the page."""

from __future__ import annotations

import base64
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import httpx
import pytest
import yaml

from db import queries, training
from db.session import open_database
from flows import artifacts
from flows.campaign import discover
from flows.loop_round import plan
from flows.outcome import Outcome
from flows.report_svg import hull_histogram
from flows.settings import CampaignConfig, ThresholdSettings
from tests.flows_support import environment, tiny_checkpoint, tiny_config, tiny_loop

ROOT = Path(__file__).parents[1]
PREFECT_YAML = yaml.safe_load((ROOT / "prefect.yaml").read_text(encoding="utf-8"))

PROGRAM = """
import time
from flows import server
server.set_environment()
one = server.TemporaryServer()
one.wait()
print(one._process.pid, one.folder.name, flush=True)
time.sleep(600)
"""


def test_the_server_ends_with_a_killed_command(tmp_path: Path) -> None:
    command = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert command.stdout is not None
        number, folder = command.stdout.readline().split()  # it answered
        server = int(number)
        assert Path(f"/proc/{server}").exists()
        assert (Path(folder) / "prefect.db").exists()
        assert not (tmp_path / "prefect").exists()  # Prefect's home, which other commands share
    finally:
        command.send_signal(signal.SIGKILL)
        command.communicate()
    deadline = time.monotonic() + 60
    while Path(f"/proc/{server}").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    gone = not Path(f"/proc/{server}").exists()
    if not gone:
        os.kill(server, signal.SIGKILL)
    assert gone and not Path(folder).exists()


def test_a_campaign_file_and_the_parameters_of_a_deployment_are_one_model() -> None:
    config = CampaignConfig.from_toml(ROOT / "examples" / "campaign.toml")
    table = config.model_dump(mode="json")
    assert discover.validate_parameters({"config": table}) == {"config": config}
    wrong = {"config": {**table, "relaxation": {"fmaks": 0.1}}}
    with pytest.raises(Exception, match=r"relaxation.fmaks"):
        discover.validate_parameters(wrong)
    for deployment in PREFECT_YAML["deployments"]:
        file, _, name = deployment["entrypoint"].partition(":")
        deployed = getattr(import_module(file.removesuffix(".py").replace("/", ".")), name)
        given = deployed.validate_parameters(deployment["parameters"])["config"]
        assert deployed is not discover or given.seed is None


def test_the_page_shows_the_funnel_the_best_and_a_picture_that_needs_no_other_file() -> None:
    names = ["generated", "valid", "distinct", "relaxed", "stable", "metastable"]
    counts = dict(zip(names, (16, 15, 14, 12, 2, 8), strict=True))
    counts |= {"unique": 10, "novel": 9, "sun": 1, "msun": 4}
    row = dict.fromkeys(artifacts._COLUMNS) | {"material_id": "sbfn-2", "energy_above_hull": -1 / 3}
    found = Outcome(1, "mine", "sqlite:///mine.db", counts, tally={}, judged={}, best=[row])
    lines = artifacts.funnel(found).splitlines()
    assert "| metastable | 8 | ██████████ 50% |" in lines
    assert "| stable, unique and novel | 1 | █ 6% |" in lines
    (best,) = artifacts.best(found)
    assert (best["id"], best["E above hull"], best["novel"]) == ("sbfn-2", -0.333, None)
    picture = hull_histogram([-0.02, 0.04, 0.3], ThresholdSettings())
    kind, _, data = artifacts.as_url(picture).partition(",")
    assert kind == "data:image/svg+xml;base64"
    drawn = ElementTree.fromstring(base64.b64decode(data))
    assert drawn.tag == "{http://www.w3.org/2000/svg}svg"
    assert ".metastable { fill" in (drawn[0].text or "")


TABLES = """
import sqlite3
from flows import server
server.set_environment()
one = server.TemporaryServer()
one.wait()
rows = sqlite3.connect(one.folder.name + "/prefect.db").execute("SELECT name FROM flow").fetchall()
print(*(name for name, in rows))
one.stop()
"""


def test_its_tables_are_made_once_and_kept(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    env = environment(tmp_path) | {"XDG_CACHE_HOME": str(cache)}

    def flows_there() -> str:
        return subprocess.run(
            [sys.executable, "-c", TABLES], env=env, check=True, capture_output=True, text=True
        ).stdout.strip()

    assert flows_there() == ""
    (kept,) = (cache / "symmbfn").iterdir()
    with closing(sqlite3.connect(kept)) as database, database:
        database.execute("INSERT INTO flow (name) VALUES ('seen')")
    assert flows_there() == "seen"
    kept.write_bytes(b"no database")
    assert flows_there() == ""
    assert kept.read_bytes()[:6] == b"SQLite"
    shutil.rmtree(cache)
    cache.touch()  # no folder can be made there
    assert flows_there() == ""


@contextmanager
def running(*arguments: str, env: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run `prefect` with these arguments in the background within the block."""
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", *arguments],
            cwd=ROOT,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def until(condition: Any, seconds: float) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(1)


@dataclass(frozen=True)
class Server:
    """A Prefect server on this machine, and its commands."""

    env: dict[str, str]
    log: Path

    def prefect(self, *arguments: str) -> None:
        """Run one and let it succeed."""
        command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
        done = subprocess.run(command, cwd=ROOT, env=self.env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    def deploy(self, deployments: list[dict[str, Any]]) -> None:
        """Deploy as `prefect.yaml` does, with other parameters or schedules."""
        file = self.log.with_name("prefect.yaml")
        file.write_text(yaml.safe_dump({**PREFECT_YAML, "deployments": deployments}))
        self.prefect("work-pool", "create", "symmbfn", "--type", "process")
        self.prefect("deploy", "--all", "--prefect-file", str(file))

    def ask(self, what: str) -> list[dict[str, Any]]:
        """Return all flow runs, or artifacts."""
        address = f"{self.env['PREFECT_API_URL']}/{what}/filter"
        found: list[dict[str, Any]] = httpx.post(
            address, json={}, trust_env=False, timeout=60
        ).json()
        return found

    def states(self) -> list[str]:
        """Return the states of all flow runs."""
        return [run["state_name"] for run in self.ask("flow_runs")]

    def answers(self) -> bool:
        """Whether it is up."""
        try:
            address = f"{self.env['PREFECT_API_URL']}/health"
            return httpx.get(address, trust_env=False).is_success
        except httpx.TransportError:
            return False


@contextmanager
def serving(folder: Path, database: str) -> Iterator[Server]:
    """Run a server within the block; it must not tell of errors."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    env = {
        **environment(folder),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "SYMMBFN_DB": database,
    }
    server = Server(env, folder / "server.log")
    with running("server", "start", "--port", str(port), env=env, log=server.log):
        until(server.answers, 300)
        yield server
    assert "Error" not in server.log.read_text(encoding="utf-8")


def working(server: Server) -> AbstractContextManager[subprocess.Popen[bytes]]:
    """Run a worker within the block."""
    log = server.log.with_name("worker.log")
    return running("worker", "start", "--pool", "symmbfn", env=server.env, log=log)


@pytest.mark.slow
def test_a_deployed_campaign_runs_by_the_clock_and_late_runs_do_not_pile_up(
    tmp_path: Path,
) -> None:
    database = f"sqlite:///{tmp_path / 'campaigns.db'}"
    config = tiny_config(tiny_checkpoint(tmp_path / "checkpoint"), database, seed=None)
    parameters = {"config": config.model_dump(mode="json", exclude={"database"})}
    often = {"parameters": parameters, "schedules": [{"cron": "* * * * *"}]}
    deployments = [
        {**one, **(often if one["name"] == "discover" else {"schedules": []})}
        for one in PREFECT_YAML["deployments"]
    ]
    with serving(tmp_path, database) as server:
        server.deploy(deployments)
        until(lambda: server.states().count("Late") >= 2, 900)  # nobody works: they are late
        with working(server):
            until(lambda: "Completed" in server.states() and "Late" not in server.states(), 900)
        states = server.states()
        assert "Cancelled" in states and not {"Failed", "Crashed"} & set(states)
        (run, *_) = [one for one in server.ask("flow_runs") if one["state_name"] == "Completed"]
        assert run["auto_scheduled"] and run["deployment_id"]
        assert {"funnel", "best-candidates"} <= {one["key"] for one in server.ask("artifacts")}
    with open_database(database).session(write=False) as session:
        counts = queries.table_counts(session)
        assert counts["campaign"] >= 1 and queries.batch_numbers(session, 1) == {0, 1}
        assert counts["relaxation"] and counts["stability"]


@pytest.mark.slow
def test_the_loop_retraining_and_collecting_run_where_they_are_deployed(tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path / 'loop.db'}"
    loop = tiny_loop(tmp_path).model_copy(update={"rounds": 1})
    learning = plan(loop, 1).retraining
    assert learning is not None
    alone = learning.model_copy(update={"key": "alone"})
    given = {"loop": loop, "retrain": alone}
    deployments = [
        {**one, "schedules": []}
        | ({"parameters": {"config": given[name].model_dump(mode="json")}} if name in given else {})
        for one in PREFECT_YAML["deployments"]
        for name in [one["name"]]
    ]
    with serving(tmp_path, database) as server:
        server.deploy(deployments)
        with working(server):
            for name in ("loop", "retrain", "dft-collect"):
                server.prefect("deployment", "run", f"{name}/{name}", "--watch")
        by_name = {run["name"]: run["state_name"] for run in server.ask("flow_runs")}
        assert set(by_name.values()) == {"Completed"}, by_name
    with open_database(database).session(write=False) as session:
        names = {Path(one.name).name for one in training.checkpoints(session)}
    assert {"tiny-round-1", "alone"} <= names
