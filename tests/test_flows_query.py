"""What `symmbfn show` tells of a candidate, and what `symmbfn export` keeps of it."""

import json
from pathlib import Path

import pytest

from db import queries
from db.session import open_database
from flows.cli import run
from symmbfn.files import read_structures
from symmbfn.importers import import_crystals
from tests.db_support import add, base_rows, relaxation, rocksalt, stability


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A database with one crystal, 0.03 eV/atom above the hull."""
    url = f"sqlite:///{tmp_path / 'test.db'}"
    with open_database(url).session() as session:
        rows = base_rows(session)
        salt = rocksalt("Na", "Cl")
        done = relaxation(rows, add(session, rows, 0, salt), salt)
        session.add(done)
        session.flush()
        queries.record_stability(session, stability(rows, done.id, 0.03))
    return url


def test_show_tells_the_verdict_without_the_column_that_nothing_fills(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["show", "sbfn-1", "--db", url]) == 0
    shown = capsys.readouterr().out
    assert "energy_above_hull: 0.03" in shown and "matches_known" not in shown
    assert run(["show", "sbfn-1", "--json", "--db", url]) == 0
    (relaxed,) = json.loads(capsys.readouterr().out)["relaxations"]
    (verdict,) = relaxed["stabilities"]
    assert verdict["energy_above_hull"] == 0.03 and "matches_known" not in verdict


@pytest.mark.parametrize("form", ["cif", "extxyz"])
def test_what_is_exported_is_training_data_with_its_properties(
    url: str, form: str, tmp_path: Path
) -> None:
    folder = tmp_path / "found"
    assert (
        run(["export", "is_metastable = TRUE", "--to", str(folder), "--format", form, "--db", url])
        == 0
    )
    (row,) = [one.extra for one in read_structures(folder)]
    assert row["material_id"] == "sbfn-1" and row["verdict"] == "metastable"
    imported = import_crystals(folder)
    assert imported.properties["energy_above_hull"].tolist() == [0.03]
    assert imported.properties["formation_energy_per_atom"].tolist() == [-1.5]
