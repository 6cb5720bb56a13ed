"""Opening a database: its URL, its schema version, its transactions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import Engine
from sqlalchemy.orm import Session

DEFAULT_URL = "sqlite:///symmbfn.db"


@dataclass(frozen=True)
class Database:
    """An open database with the current schema."""

    engine: Engine

    @property
    def url(self) -> str:
        """Where it is, without the password, for people to read."""
        return self.engine.url.render_as_string(hide_password=True)

    @contextmanager
    def session(self, *, write: bool = True) -> Iterator[Session]:
        """One transaction: committed at the end, rolled back on an error.

        Args:
            write: False for a transaction that only reads; it never waits for a writer.

        Raises:
            DatabaseError: when the database is lost, full, or locked for longer than a minute.
        """
        yield Session()


def open_database(url: str | None = None, *, create: bool = True) -> Database:
    """Open a database, making or upgrading its tables where needed.

    Args:
        url: SQLAlchemy URL (``sqlite:///file.db``, ``postgresql://user@host/name``); by default
            the environment's ``SYMMBFN_DB``, else ``symmbfn.db`` in the working directory.
        create: False for commands that only read: a file that is not there is an error.

    Raises:
        DatabaseError: bad URL, missing file or server, a file that is no database of ours, or
            one of a newer schema, which is left untouched.
    """
    raise NotImplementedError
