"""Prefect's part: the temporary server, the deployments, and what a run shows on the page."""

from __future__ import annotations

import base64
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import httpx
import pytest
import yaml

from db import queries
from db.session import open_database
from flows import artifacts
from flows.campaign import discover
from flows.outcome import Outcome
from flows.report_svg import hull_histogram
from flows.settings import CampaignConfig, ThresholdSettings
from tests.flows_support import environment, tiny_checkpoint, tiny_config

ROOT = Path(__file__).parents[1]
PREFECT_YAML = yaml.safe_load((ROOT / "prefect.yaml").read_text(encoding="utf-8"))

PROGRAM = """
import sys, time
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


@pytest.mark.slow
def test_a_deployed_campaign_runs_by_the_clock_and_late_runs_do_not_pile_up(
    tmp_path: Path,
) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    api = f"http://127.0.0.1:{port}/api"
    database = f"sqlite:///{tmp_path / 'campaigns.db'}"
    env = {
        **environment(tmp_path),
        "PREFECT_API_URL": api,
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "SYMMBFN_DB": database,
    }
    config = tiny_config(tiny_checkpoint(tmp_path / "checkpoint"), database, seed=None)
    for one in PREFECT_YAML["deployments"]:
        if one["name"] == "discover":
            one["parameters"]["config"] = config.model_dump(mode="json", exclude={"database"})
            one["schedules"] = [{"cron": "* * * * *"}]
        else:
            one.pop("schedules", None)
    (tmp_path / "prefect.yaml").write_text(yaml.safe_dump(PREFECT_YAML), encoding="utf-8")

    def prefect(*arguments: str) -> None:
        command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    def answers() -> bool:
        try:
            return httpx.get(f"{api}/health", trust_env=False).is_success
        except httpx.TransportError:
            return False

    def ask(what: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = httpx.post(
            f"{api}/{what}/filter", json={}, trust_env=False, timeout=60
        ).json()
        return found

    def states() -> list[str]:
        return [run["state_name"] for run in ask("flow_runs")]

    server_log, worker_log = tmp_path / "server.log", tmp_path / "worker.log"
    with running("server", "start", "--port", str(port), env=env, log=server_log):
        until(answers, 300)
        prefect("work-pool", "create", "symmbfn", "--type", "process")
        prefect("deploy", "--all", "--prefect-file", str(tmp_path / "prefect.yaml"))
        until(lambda: states().count("Late") >= 2, 900)  # nobody works: they are late
        with running("worker", "start", "--pool", "symmbfn", env=env, log=worker_log):
            until(lambda: "Completed" in states() and "Late" not in states(), 900)
        assert "Cancelled" in states() and not {"Failed", "Crashed"} & set(states())
        (run, *_) = [run for run in ask("flow_runs") if run["state_name"] == "Completed"]
        assert run["auto_scheduled"] and run["deployment_id"]
        shown = {one["key"] for one in ask("artifacts")}
        assert {"funnel", "best-candidates"} <= shown
    assert "Error" not in server_log.read_text(encoding="utf-8")
    with open_database(database).session(write=False) as session:
        counts = queries.table_counts(session)
        assert counts["campaign"] >= 1 and queries.batch_numbers(session, 1) == {0, 1}
        assert counts["relaxation"] and counts["stability"]
