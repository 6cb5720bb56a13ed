"""What `symmbfn show` tells of a candidate."""

import json
from pathlib import Path

import pytest

from db import queries
from db.session import open_database
from flows.cli import run
from tests.db_support import add, base_rows, relaxation, rocksalt, stability


def test_show_tells_the_verdict_without_the_column_that_nothing_fills(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"sqlite:///{tmp_path / 'test.db'}"
    with open_database(url).session() as session:
        rows = base_rows(session)
        salt = rocksalt("Na", "Cl")
        done = relaxation(rows, add(session, rows, 0, salt), salt)
        session.add(done)
        session.flush()
        queries.record_stability(session, stability(rows, done.id, 0.03))
    assert run(["show", "sbfn-1", "--db", url]) == 0
    shown = capsys.readouterr().out
    assert "energy_above_hull: 0.03" in shown and "matches_known" not in shown
    assert run(["show", "sbfn-1", "--json", "--db", url]) == 0
    (relaxed,) = json.loads(capsys.readouterr().out)["relaxations"]
    (verdict,) = relaxed["stabilities"]
    assert verdict["energy_above_hull"] == 0.03 and "matches_known" not in verdict
