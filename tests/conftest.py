"""What holds for every test: one thread a process, no window, no telemetry, no home folder."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.db_kinds import KINDS

if TYPE_CHECKING:
    from db.session import Database

# Before anything imports numpy, matplotlib or prefect; whoever runs the tests may choose otherwise.
for _name, _value in {
    "OMP_NUM_THREADS": "1",
    "MPLBACKEND": "Agg",
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}.items():
    os.environ.setdefault(_name, _value)
if "PREFECT_HOME" not in os.environ:
    _HOME = tempfile.TemporaryDirectory(prefix="symmbfn-tests-", ignore_cleanup_errors=True)
    os.environ["PREFECT_HOME"] = _HOME.name


@pytest.fixture(params=KINDS)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a new, empty database of each kind that can be had here."""
    from tests.db_support import url_of

    with url_of(request.param, tmp_path) as url:
        yield url


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A new database with our tables."""
    from db.session import open_database

    opened = open_database(database_url)
    yield opened
    opened.close()
