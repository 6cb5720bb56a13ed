"""The temporary Prefect server: it answers, is nobody else's, and ends with a killed command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.flows_support import environment

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
        assert not list((tmp_path / "prefect").glob("*.db"))  # which other commands would share
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
