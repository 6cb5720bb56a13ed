"""Who runs the steps of `flows/pipeline.py`: this process alone, or Prefect (`flows/tasks.py`)."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from flows import progress
from flows.errors import ConfigError
from flows.settings import CampaignConfig, DaskSettings, one_line

RETRY_DELAYS = 5, 30, 120
"""Seconds before a step is tried again that failed for want of a database, disk or network."""
_QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",  # the log of a run is on its page
}
_HOPELESS = (
    FileNotFoundError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
    BrokenPipeError,  # whoever read the output has gone
)


class Engine:
    """Runs the steps in this process, one after the other."""

    def new_run_id(self) -> str:
        """Return what tells this run from others."""
        return uuid.uuid4().hex

    def step[**P, R](self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a step; again after a while where that may help.

        Each step goes on from what the database holds, so that none repeats finished work.
        """
        for delay in RETRY_DELAYS:
            try:
                return function(*args, **kwargs)
            except Exception as error:
                if not is_transient(error):
                    raise
                self.warn(f"{one_line(error)}: tried again in {delay} s")
                time.sleep(delay)
        return function(*args, **kwargs)

    def run[C, R](self, pipeline: Callable[[C, Engine], R], config: C) -> R:
        """Run a pipeline, which may be a part of another."""
        return pipeline(config, self)

    def relax(self, config: CampaignConfig, campaign: int) -> None:
        """Relax and store what is not relaxed yet.

        Raises:
            ConfigError: On a cluster, which is Prefect's to ask.
        """
        from flows.stage_relax import relax_pending

        if config.dask is not None:
            raise ConfigError("dask: only Prefect shares work on a cluster; leave the table out")
        self.step(relax_pending, config, campaign)

    def publish(self, config: CampaignConfig, campaign: int) -> None:
        """Show a campaign where its run is looked at; here is no such place."""

    def warn(self, text: str) -> None:
        """Tell what went wrong without ending anything."""
        progress.current().say(text)


def is_transient(error: BaseException) -> bool:
    """Tell whether a failed step may do better: a lost or locked database, a disk or network."""
    from sqlalchemy.exc import InterfaceError, OperationalError

    if isinstance(error, OSError):
        return not isinstance(error, _HOPELESS)
    lost = OperationalError, InterfaceError
    return isinstance(error, lost) or isinstance(error.__cause__, lost)


def choose_engine(dask: DaskSettings | None = None) -> Engine:
    """Return Prefect where the user names a server of it, or this process.

    Args:
        dask: The cluster that is to share the relaxations, which only Prefect can have done.

    Raises:
        ConfigError: The server does not answer; the cluster needs one, or cannot be had.
    """
    if not _names_a_server():
        if dask is not None:
            raise ConfigError(
                "dask: the nodes need a Prefect server that they reach; start one and set "
                "PREFECT_API_URL, see docs/schedule.md"
            )
        return Engine()
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL

    from flows import cluster
    from flows.tasks import PrefectEngine

    with get_client(sync_client=True) as client:
        error = client.api_healthcheck()
    if error is not None:
        raise ConfigError(
            f"Prefect's server at {PREFECT_API_URL.value()} does not answer ({one_line(error)}); "
            "start it with `prefect server start`, or run without it: `unset PREFECT_API_URL`, or "
            "in a profile `prefect config unset PREFECT_API_URL`"
        )
    if dask is not None:
        cluster.task_runner(dask)
    return PrefectEngine()


def _names_a_server() -> bool:
    """Whether the environment or a Prefect profile names a server."""
    home = Path(os.environ.get("PREFECT_HOME", "~/.prefect")).expanduser()
    if not os.environ.get("PREFECT_API_URL") and not (home / "profiles.toml").exists():
        return False
    for name, value in _QUIET.items():  # before Prefect is imported
        os.environ.setdefault(name, value)
    from prefect.settings import PREFECT_API_URL

    return bool(PREFECT_API_URL.value())
