"""Opening a database: its URL, its schema version, its transactions."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, make_url, text
from sqlalchemy import exc as sql
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from db.errors import DatabaseError, SchemaError

DEFAULT_URL = "sqlite:///symmbfn.db"
MIGRATIONS = Path(__file__).parent / "migrations"
BUSY_SECONDS = 300
"""How long a SQLite transaction waits for another process, which may be comparing crystals."""
MIGRATION_LOCK = 5_266_240
"""PostgreSQL advisory lock held while the tables are made or upgraded."""


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

        On SQLite a writing transaction takes the write lock at its start and waits for it; taken
        later, after reading, it could not be waited for ("database is locked").

        Args:
            write: False for a transaction that only reads; it waits for nobody, and is rolled
                back at its end. Rows stay usable after the session, but load nothing more.

        Raises:
            DatabaseError: when the database is lost, full, or locked for minutes.
        """
        with (
            _translated(self.url),
            Session(_view(self.engine, write), expire_on_commit=False) as session,
        ):
            with session.begin() as transaction:
                yield session
                if not write:
                    transaction.rollback()

    @contextmanager
    def kept_open(self) -> Iterator[None]:
        """Keep one idle connection within the block, for work of many small transactions.

        Whoever closes the last connection to a SQLite file folds the log of transactions into it;
        without another one that would be at the end of every transaction (36 ms instead of 2).
        """
        if self.engine.dialect.name != "sqlite":
            yield
            return
        with _translated(self.url):
            connection = self.engine.raw_connection()
        try:
            connection.cursor().execute("SELECT 1 FROM alembic_version")  # opens the file
            yield
        finally:
            connection.close()

    def revision(self) -> str:
        """The schema revision that the tables have."""
        with self.session(write=False) as session:
            return _revision(session.connection()) or ""

    def close(self) -> None:
        """Close the connections that wait for reuse."""
        self.engine.dispose()


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
    place = _parse_url(url or os.environ.get("SYMMBFN_DB") or DEFAULT_URL)
    if place.get_backend_name() == "sqlite":
        _check_file(_sqlite_file(place), create)
    engine = _create_engine(place)
    database = Database(engine)
    with _translated(database.url):
        _migrate(engine, database.url)
    return database


def _parse_url(text: str) -> URL:
    try:
        url = make_url(text)
    except (sql.ArgumentError, ValueError) as error:
        raise DatabaseError(
            f"{_without_password(text)!r} is not the URL of a database: "
            "write sqlite:///file.db or postgresql://user@host/name"
        ) from error
    kind = url.get_backend_name()
    if kind in ("postgres", "postgresql"):
        return url.set(drivername="postgresql+psycopg")
    if kind != "sqlite":
        raise DatabaseError(
            f"{kind!r} is not a kind of database that is supported: "
            "write sqlite:///file.db or postgresql://user@host/name"
        )
    return url.set(drivername="sqlite")


def _without_password(text: str) -> str:
    scheme, separator, rest = text.partition("://")
    return scheme + separator + rest.rpartition("@")[2] if separator else text


def _sqlite_file(url: URL) -> Path:
    if not url.database or ":memory:" in url.database:
        raise DatabaseError(
            f"{url} is a database in memory, which ends with the command: write sqlite:///file.db"
        )
    return Path(url.database)


def _check_file(file: Path, create: bool) -> None:
    """Refuse, without writing, a SQLite file that we cannot use."""
    if file.is_dir():
        raise DatabaseError(f"{file} is a folder, not a database: name a file in it")
    if not file.exists():
        if not create:
            raise DatabaseError(
                f"no database at {file}: run `symmbfn discover` to make one, or name another "
                "with --db"
            )
        if not file.absolute().parent.is_dir():
            raise DatabaseError(f"the folder of {file} does not exist: make it first")
        return
    try:
        with file.open("rb") as stream:
            header = stream.read(16)
    except OSError as error:
        raise DatabaseError(
            f"{file} cannot be read ({error.strerror}): check its access"
        ) from error
    if not header and not create:
        raise DatabaseError(f"{file} is empty, no database: name another with --db")
    if header and header != b"SQLite format 3\0":
        raise SchemaError(f"{file} is not a SQLite database: name another file with --db")
    if header:
        # Even a reader would leave two files beside a quiet database, unless it is "immutable".
        quiet = not file.with_name(f"{file.name}-wal").exists()
        uri = f"file:{quote(str(file.absolute()))}?{'immutable=1' if quiet else 'mode=ro'}"
        reader = create_engine(
            "sqlite://", creator=lambda: sqlite3.connect(uri, uri=True), poolclass=NullPool
        )
        with _translated(str(file)), reader.connect() as connection:
            _check_revision(_revision(connection), str(file))


def _create_engine(url: URL) -> Engine:
    # A connection for each transaction: nothing is shared between threads or forked processes,
    # and nothing is left open by whoever forgets a database.
    if url.get_backend_name() == "postgresql":
        try:
            return create_engine(url, poolclass=NullPool)
        except ImportError as error:
            raise DatabaseError(
                "PostgreSQL needs the psycopg package: install it with `uv sync --extra postgresql`"
            ) from error
    engine = create_engine(url, connect_args={"timeout": BUSY_SECONDS}, poolclass=NullPool)
    event.listen(engine, "connect", _set_up_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _set_up_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # we begin transactions ourselves
    connection.execute("PRAGMA foreign_keys = ON")
    # With a write-ahead log the file stays sound; a loss of power, not of the process, may undo the
    # last moments, whose work is then done again.
    connection.execute("PRAGMA synchronous = NORMAL")


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("symmbfn_write", True)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _view(engine: Engine, write: bool) -> Engine:
    if engine.dialect.name == "postgresql":
        return engine.execution_options(postgresql_readonly=not write)
    return engine.execution_options(symmbfn_write=write)


def _revision(connection: Connection) -> str | None:
    """The revision of the tables; None when there are none, "" when they are not ours."""
    tables = inspect(connection).get_table_names()
    if "alembic_version" not in tables:
        return "" if tables else None
    revision: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
    return revision


def _known_revisions() -> list[str]:
    """All revisions, oldest first; each is a file ``NNNN_what.py`` and named by its number."""
    return sorted(file.name[:4] for file in (MIGRATIONS / "versions").glob("[0-9]*_*.py"))


def _check_revision(revision: str | None, where: str) -> None:
    if revision == "":
        raise SchemaError(f"{where} holds tables of another program: name an empty database")
    if revision is not None and revision not in _known_revisions():
        raise SchemaError(
            f"{where} has schema {revision}, newer than the {_known_revisions()[-1]} of this "
            "version: update symmbfn, or name another database; nothing was changed"
        )


def _use_write_ahead_log(engine: Engine) -> None:
    """Let readers and a writer work at once; the file remembers it."""
    connection = engine.raw_connection()
    try:
        cursor = connection.cursor()
        for attempt in range(BUSY_SECONDS * 10):  # SQLite itself does not wait for this lock
            try:
                cursor.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or attempt == BUSY_SECONDS * 10 - 1:
                    raise DatabaseError(
                        f"{engine.url.database} cannot be set up ({error}): check that its folder "
                        "is writable and on a local disk"
                    ) from error
                time.sleep(0.1)
    finally:
        connection.close()


def _migrate(engine: Engine, where: str) -> None:
    newest = _known_revisions()[-1]
    with _view(engine, write=False).connect() as connection:
        revision = _revision(connection)
    if revision == newest:
        return
    if engine.dialect.name == "sqlite":
        _use_write_ahead_log(engine)
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
        revision = _revision(connection)  # again: another process may have been faster
        _check_revision(revision, where)
        if revision == newest:
            return
        from alembic import command  # slow to import
        from alembic.config import Config

        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
        config.attributes["connection"] = connection
        command.upgrade(config, newest)


@contextmanager
def _translated(where: str) -> Iterator[None]:
    """Turn what goes wrong in the database itself into one line; bugs of ours stay as they are."""
    try:
        yield
    except sql.DBAPIError as error:
        if not isinstance(error, sql.OperationalError | sql.InterfaceError) and (
            type(error) is not sql.DatabaseError
        ):
            raise
        reason = str(error.orig).strip().splitlines()[0]
        raise DatabaseError(
            f"the database {where} failed ({reason}): check that it is reachable, writable and "
            "has space, then run the same command again; nothing half-done was kept"
        ) from error
