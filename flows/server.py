"""A temporary Prefect server for commands that run where none is up: early up, never left over.

Prefect can start one itself, but only at the first flow run, and a killed command leaves it
running for ever. Here it starts while the command still imports torch, and ends with its parent.
Its database is its own, so that commands at the same time do not disturb each other, and a copy of
an empty one in the user's cache: making the tables takes twice as long as all else. It ends with
the command, so it keeps no record of tasks and events. Where the user names a database of
Prefect's, that one is used, and all is recorded.
Run as `python -m flows.server FD PARENT_PID FOLDER [DATABASE]` it is that server.
"""

from __future__ import annotations

import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from flows.errors import ConfigError

_ENVIRONMENT = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_TO_API_ENABLED": "false",
    "PREFECT_CLI_COLORS": "false",
}
_DATABASE, _OLD_NAME = (
    "PREFECT_SERVER_DATABASE_CONNECTION_URL",
    "PREFECT_API_DATABASE_CONNECTION_URL",
)
_UNRECORDED = {
    "PREFECT_API_BLOCKS_REGISTER_ON_START": "false",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_ENABLED": "false",
    # Where the database is SQLite, it and the requests lock each other out: a request then waits
    # for two seconds before it is sent again.
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "false",
}
_TIMEOUT_SECONDS = 300.0


def set_environment() -> None:
    """Keep Prefect quiet and offline; call it before prefect is imported. The user's values win."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


class TemporaryServer:
    """A Prefect server on a free loopback port, in a process that dies with this one."""

    def __init__(self) -> None:
        """Start the process; it answers some seconds later."""
        self._log = tempfile.TemporaryFile(mode="w+", encoding="utf-8")
        self.folder = tempfile.TemporaryDirectory(prefix="symmbfn-", ignore_cleanup_errors=True)
        theirs = os.environ.get(_DATABASE) or os.environ.get(_OLD_NAME)
        own = None if theirs else f"{self.folder.name}/prefect.db"
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen(128)
            self.url = f"http://127.0.0.1:{listener.getsockname()[1]}/api"
            descriptor = listener.fileno()
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "flows.server"),
                    *(str(descriptor), str(os.getpid()), self.folder.name),
                    *([own] if own else []),
                ],
                pass_fds=[descriptor],
                env={
                    **(_UNRECORDED if own else {}),
                    **os.environ,
                    **({_DATABASE: f"sqlite+aiosqlite:///{own}"} if own else {}),
                    "PREFECT_HOME": self.folder.name,  # the user's is shared by other commands
                    "PREFECT_UI_ENABLED": "false",
                },
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the command; the server must see its end
            )

    def wait(self) -> None:
        """Return when the server answers.

        Raises:
            ConfigError: When it ended or stayed silent for five minutes.
        """
        import httpx

        deadline = time.monotonic() + _TIMEOUT_SECONDS
        with httpx.Client(timeout=_TIMEOUT_SECONDS, trust_env=False) as client:
            while time.monotonic() < deadline and self._process.poll() is None:
                try:
                    if client.get(f"{self.url}/health").is_success:
                        return
                except httpx.TransportError:
                    pass
                time.sleep(0.1)
        self._log.seek(0)
        said = self._log.read().strip()
        raise ConfigError(
            "Prefect's temporary server did not start: "
            f"{said.splitlines()[-1] if said else 'no answer in five minutes'}; "
            "start one with `prefect server start` and set PREFECT_API_URL"
        )

    def stop(self) -> None:
        """Ask the server to end, and wait for it."""
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=10)
        self._log.close()
        self.folder.cleanup()


def start_if_needed() -> TemporaryServer | None:
    """Start a server unless the environment or a Prefect profile names one."""
    if os.environ.get("PREFECT_API_URL"):
        return None
    home = Path(os.environ.get("PREFECT_HOME", "~/.prefect")).expanduser()
    if (home / "profiles.toml").exists():
        from prefect.settings import PREFECT_API_URL

        if PREFECT_API_URL.value():
            return None
    return TemporaryServer()


@contextmanager
def starting() -> Iterator[TemporaryServer | None]:
    """Start a server if one is needed, without waiting for it; end it after the block."""
    server = start_if_needed()
    try:
        yield server
    finally:
        if server is not None:
            server.stop()


@contextmanager
def ready(server: TemporaryServer | None) -> Iterator[None]:
    """Wait for the server and point Prefect at it within the block.

    Raises:
        ConfigError: When the server did not start.
    """
    if server is None:
        yield
        return
    from prefect.settings import PREFECT_API_URL, temporary_settings

    server.wait()
    with temporary_settings(updates={PREFECT_API_URL: server.url}):
        yield


def _serve(descriptor: int, parent: int, folder: str, own: str | None = None) -> None:
    """Serve on an inherited socket until told to stop or left by the parent; remove `folder`.

    Args:
        descriptor: Of the socket.
        parent: Process number.
        folder: Prefect's home.
        own: File of the database, to be made; None where it is the user's.
    """
    import uvicorn
    from prefect.server.api.server import create_app

    if own is not None:
        _make_database(Path(own))
    app = create_app(ephemeral=True)
    server = uvicorn.Server(uvicorn.Config(app, fd=descriptor, log_level="error", lifespan="on"))

    def leave_with_parent() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        server.should_exit = True
        time.sleep(_TIMEOUT_SECONDS)
        os._exit(1)

    threading.Thread(target=leave_with_parent, daemon=True).start()
    try:
        server.run()
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # a killed parent cannot


def _make_database(database: Path) -> None:
    """Copy the database that was kept with this release's tables, or make one and keep a copy."""
    import asyncio

    import prefect
    from prefect.server.database import provide_database_interface

    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "symmbfn"
    kept = cache / f"prefect-{prefect.__version__}.db"
    if _copied(kept, database):
        return

    async def make() -> None:
        interface = provide_database_interface()
        await interface.create_db()
        await (await interface.engine()).dispose()

    asyncio.run(make())
    with suppress(OSError):  # a home that is full or read-only; there will be another start
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".") as folder:
            shutil.copyfile(database, Path(folder) / "whole")
            os.replace(Path(folder) / "whole", kept)


def _copied(kept: Path, database: Path) -> bool:
    """Whether there was a good database to copy; no part of another is left."""
    try:
        shutil.copyfile(kept, database)
        with closing(sqlite3.connect(database)) as connection:
            ((version,),) = connection.execute("SELECT version_num FROM alembic_version")
        return bool(version)
    except (OSError, ValueError, sqlite3.Error):
        database.unlink(missing_ok=True)
        return False


if __name__ == "__main__":
    _serve(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
