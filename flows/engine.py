"""Who runs the steps of `flows/pipeline.py`: this process alone, or Prefect (`flows/tasks.py`)."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from flows import progress
from flows.errors import ConfigError
from flows.settings import CampaignConfig, one_line

RETRY_DELAYS = 5, 30, 120
"""Seconds before a step is tried again that failed for want of its database."""
_QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_TO_API_ENABLED": "false",
    "PREFECT_CLI_COLORS": "false",
}


class Engine:
    """Runs the steps in this process, one after the other."""

    @property
    def run_id(self) -> str:
        """Tells this run from others; the same when Prefect runs it again."""
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

    def part[C, R](self, pipeline: Callable[[C, Engine], R], config: C) -> R:
        """Run a pipeline, which may be a part of another."""
        return pipeline(config, self)

    def relax(self, config: CampaignConfig, campaign: int) -> None:
        """Relax and store what is not relaxed yet."""
        from flows.stage_relax import relax_pending

        self.step(relax_pending, config, campaign)

    def publish(self, config: CampaignConfig, campaign: int) -> None:
        """Show a campaign where its run is looked at; here is no such place."""

    def warn(self, text: str) -> None:
        """Tell what went wrong without ending anything."""
        progress.current().say(text)


def is_transient(error: BaseException) -> bool:
    """Tell whether a failed step may do better: a lost or locked database, never bad input."""
    from sqlalchemy.exc import DBAPIError

    return isinstance(error, DBAPIError | OSError) or isinstance(error.__cause__, DBAPIError)


def chosen(*, on_cluster: bool = False) -> Engine:
    """Return Prefect where the user names a server of it, or this process.

    Args:
        on_cluster: Whether Dask is to share the work, which only Prefect can have done; without a
            server's name it starts one for itself.

    Raises:
        ConfigError: The server does not answer.
    """
    if not _is_named() and not on_cluster:
        return Engine()
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL

    from flows.tasks import PrefectEngine

    if address := PREFECT_API_URL.value():
        with get_client(sync_client=True) as client:
            error = client.api_healthcheck()
        if error is not None:
            raise ConfigError(
                f"Prefect's server at {address} does not answer ({one_line(error)}); start it with "
                "`prefect server start`, or unset PREFECT_API_URL to run without it"
            )
    return PrefectEngine()


def _is_named() -> bool:
    """Whether the environment or a Prefect profile names a server."""
    if os.environ.get("PREFECT_API_URL"):
        return True
    home = Path(os.environ.get("PREFECT_HOME", "~/.prefect")).expanduser()
    if not (home / "profiles.toml").exists():
        return False
    from prefect.settings import PREFECT_API_URL

    return bool(PREFECT_API_URL.value())
