"""Prefect servers, workers and deployments for tests, and campaigns in processes to be killed."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.flows_support import environment

ROOT = Path(__file__).parents[1]
PREFECT_YAML = yaml.safe_load((ROOT / "prefect.yaml").read_text(encoding="utf-8"))


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
    """Run a server within the block; it must not tell of errors but the one of docs/schedule.md."""
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
    records = re.split(r"^(?=\d\d:\d\d:\d\d)", server.log.read_text(encoding="utf-8"), flags=re.M)
    assert [one for one in records if "Error" in one and "task_run_recorder" not in one] == []


def working(server: Server) -> AbstractContextManager[subprocess.Popen[bytes]]:
    """Run a worker within the block."""
    log = server.log.with_name("worker.log")
    return running("worker", "start", "--pool", "symmbfn", env=server.env, log=log)
