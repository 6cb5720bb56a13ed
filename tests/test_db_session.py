"""Opening databases: migrations, refusals, transactions."""

from __future__ import annotations

import hashlib
import sqlite3
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import CheckConstraint, inspect, text
from sqlalchemy.exc import IntegrityError

from db import queries
from db.errors import DatabaseError, SchemaError
from db.models import Base, Campaign, Candidate
from db.session import Database, open_database
from tests.db_kinds import KINDS
from tests.db_support import base_rows


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_migrations_make_exactly_the_tables_of_the_models(database: Database) -> None:
    with database.session(write=False) as session:
        context = MigrationContext.configure(session.connection(), opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
        tables = inspect(session.connection())
        stored = {
            constraint["name"]
            for table in Base.metadata.tables
            for constraint in tables.get_check_constraints(table)
        }
        keys = {
            key["name"] for table in Base.metadata.tables for key in tables.get_foreign_keys(table)
        }
    named = {
        constraint.name
        for table in Base.metadata.tables.values()
        for constraint in table.constraints
        if isinstance(constraint, CheckConstraint)
    }
    assert stored == named and len(named) == 6  # alembic does not compare these
    assert keys - {None} <= {  # SQLite does not tell the names of those added later
        key.name for table in Base.metadata.tables.values() for key in table.foreign_key_constraints
    }
    assert database.revision() == "0007"


def test_tables_of_the_first_revision_are_upgraded_with_their_rows(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("db.session._known_revisions", lambda: ["0001"])
        old = open_database(database_url)
        assert old.revision() == "0001"
    with old.session() as session:
        session.execute(
            text(
                "INSERT INTO campaign"
                " (id, idempotency_key, name, config, seed, code_version, created_at)"
                " VALUES (1, 'key', 'old', '{}', 7, 'abc', '2026-11-01 00:00:00+00:00')"
            )
        )
        session.execute(
            text(
                "INSERT INTO candidate (id, structure, formula_pretty, chemical_formula_reduced,"
                " chemsys, nelements, nsites, fingerprint, state, fence, created_at)"
                " VALUES (1, '{}', 'LiF', 'FLi', 'F-Li', 2, 2, '', 'relaxed', 3,"
                " '2026-11-01 00:00:00+00:00')"
            )
        )
    old.close()
    upgraded = open_database(database_url)
    with upgraded.session() as session:
        candidate = session.get_one(Candidate, 1)
        assert (candidate.state, candidate.fence) == ("relaxed", 3)
        candidate.state = "passed_over"  # a state that there was not
    with pytest.raises(IntegrityError), upgraded.session() as session:
        session.get_one(Candidate, 1).state = "lost"
    with upgraded.session(write=False) as session:
        campaign = session.get_one(Campaign, 1)
        assert (campaign.name, campaign.inputs, campaign.finished_at) == ("old", None, None)
    with pytest.raises(IntegrityError), upgraded.session() as session:
        session.get_one(Campaign, 1).hull_id = 99  # the new columns have their foreign keys
    upgraded.close()


def test_opening_twice_keeps_the_rows(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'a.db'}"
    with open_database(url).session() as session:
        base_rows(session)
        assert session.scalar(text("PRAGMA journal_mode")) == "wal"
    with open_database(url).session(write=False) as session:
        assert queries.table_counts(session)["batch"] == 1


def test_default_is_the_environment_then_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SYMMBFN_DB", "sqlite:///named.db")
    open_database()
    monkeypatch.delenv("SYMMBFN_DB")
    open_database()
    assert {"named.db", "symmbfn.db"} <= {file.name for file in tmp_path.iterdir()}


def test_reading_makes_no_file(tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match="no database at"):
        open_database(f"sqlite:///{tmp_path / 'none.db'}", create=False)
    assert list(tmp_path.iterdir()) == []


def test_newer_schema_is_refused_and_the_file_untouched(tmp_path: Path) -> None:
    file = tmp_path / "new.db"
    url = f"sqlite:///{file}"
    database = open_database(url)
    with database.session() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    before = sha256(file), sorted(tmp_path.iterdir())
    with pytest.raises(SchemaError, match=r"schema 9999, newer than .*update") as caught:
        open_database(url)
    assert "\n" not in str(caught.value)
    assert (sha256(file), sorted(tmp_path.iterdir())) == before


def test_tables_of_another_program_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "other.db"
    connection = sqlite3.connect(file)
    connection.execute("CREATE TABLE notes (line TEXT)")
    connection.close()
    before = sha256(file)
    with pytest.raises(SchemaError, match="another program"):
        open_database(f"sqlite:///{file}")
    assert sha256(file) == before


def test_what_is_not_a_database_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "poem.db"
    file.write_text("Shall I compare thee to a summer's day?")
    with pytest.raises(SchemaError, match="not a SQLite database"):
        open_database(f"sqlite:///{file}")
    assert file.read_text().startswith("Shall")
    file.write_bytes(b"SQLite format 3\0" + b"\xff" * 5000)
    before = sha256(file)
    with pytest.raises(DatabaseError):
        open_database(f"sqlite:///{file}")
    assert sha256(file) == before
    with pytest.raises(DatabaseError, match="is a folder"):
        open_database(f"sqlite:///{tmp_path}")
    with pytest.raises(DatabaseError, match=r"folder of .* does not exist"):
        open_database(f"sqlite:///{tmp_path / 'no' / 'where.db'}")


@pytest.mark.parametrize(
    "url", ["candidates.db", "mysql://user:secret@host/x", "sqlite//x", "x://user:secret@h:port/d"]
)
def test_bad_url_is_one_line_without_the_password(url: str) -> None:
    with pytest.raises(DatabaseError, match=r"write sqlite:///file.db or postgresql:") as caught:
        open_database(url)
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)


def test_unreachable_server_is_one_line_without_the_password() -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(DatabaseError, match="failed") as caught:
        open_database("postgresql://user:secret@127.0.0.1:1/x")
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)


def test_an_error_rolls_the_whole_transaction_back(database: Database) -> None:
    with pytest.raises(ZeroDivisionError), database.session() as session:
        base_rows(session)
        raise ZeroDivisionError
    with database.session(write=False) as session:
        assert set(queries.table_counts(session).values()) == {0}


def test_a_reading_session_keeps_nothing(tmp_path: Path) -> None:
    database = open_database(f"sqlite:///{tmp_path / 'a.db'}")
    with database.session(write=False) as session:
        base_rows(session)
    with database.session(write=False) as session:
        assert set(queries.table_counts(session).values()) == {0}


def test_full_disk_is_one_line_and_leaves_the_rows_of_before(tmp_path: Path) -> None:
    database = open_database(f"sqlite:///{tmp_path / 'small.db'}")
    with database.session() as session:
        rows = base_rows(session)
    with pytest.raises(DatabaseError, match=r"full.*nothing half-done") as caught:
        with database.session() as session:
            session.execute(text("PRAGMA max_page_count = 60"))  # the disk is full here
            rows.campaign.config = {}
            for number in range(1000):
                base_rows(session, name=f"{number}" * 100)
    assert "\n" not in str(caught.value)
    with database.session(write=False) as session:
        assert queries.table_counts(session)["campaign"] == 1


@pytest.mark.parametrize(
    "database_url", [kind for kind in KINDS if kind != "sqlite"], indirect=True
)
def test_a_lost_connection_is_one_line_and_the_next_session_works(database: Database) -> None:
    with pytest.raises(DatabaseError, match="run the same command again") as caught:
        with database.session() as session:
            base_rows(session)
            session.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
    assert "\n" not in str(caught.value)
    with database.session(write=False) as session:
        assert set(queries.table_counts(session).values()) == {0}


def test_a_row_of_nowhere_is_refused(database: Database) -> None:
    with pytest.raises(IntegrityError), database.session() as session:
        session.execute(
            text("INSERT INTO candidate_element (candidate_id, element) VALUES (99, 'Li')")
        )


def test_kept_open_the_log_of_transactions_stays_until_the_end(database: Database) -> None:
    log = Path(f"{database.engine.url.database}-wal")
    is_file = database.engine.dialect.name == "sqlite"
    for number in (1, 2):
        with database.kept_open():
            with database.session() as session:
                name = f"c{number}"
                row = {"idempotency_key": name, "name": name, "config": {}, "seed": 0}
                session.add(Campaign(**row, code_version="test"))
            assert log.exists() == is_file
            with database.session(write=False) as session:  # others see it at once
                assert queries.table_counts(session)["campaign"] == number
        assert not log.exists()
