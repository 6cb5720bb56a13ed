"""The kinds of database that the tests run on: SQLite, and a private PostgreSQL where it can be."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import warnings
from functools import cache
from importlib.util import find_spec

_GIVEN = os.environ.get("SYMMBFN_TEST_POSTGRESQL")
"""URL of a PostgreSQL database in which these tests may make and drop schemas."""

_CAN = find_spec("psycopg") is not None and (_GIVEN or find_spec("pgserver") is not None)
KINDS = ["sqlite", "postgresql"] if _CAN else ["sqlite"]


@cache
def postgresql() -> str:
    """Return the URL of the given PostgreSQL, or start one that ends with the tests."""
    if _GIVEN:
        return _GIVEN
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "XDG_RUNTIME_DIR is not set")
        import pgserver

    folder = tempfile.mkdtemp(prefix="symmbfn-postgresql-")
    server = pgserver.get_server(folder, cleanup_mode="stop")

    def end() -> None:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)

    atexit.register(end)
    return str(server.get_uri())
