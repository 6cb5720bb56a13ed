"""Imports of training data: property columns, what is dropped, and what is refused."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pymatgen.core import Lattice, Structure

from symmbfn.errors import SymmBFNError
from symmbfn.files import write_structures
from symmbfn.importers import import_crystals


def caesium_chloride(a: float) -> Structure:
    return Structure(Lattice.cubic(a), ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Five rows: whole, with gaps, suspect, unreadable, whole."""
    rows = len(lengths := [4.0, 4.1, 4.2, 4.3, 4.4])
    species: list[list[str]] = [["Cs", "Cl"]] * rows
    species[3] = ["Cs", "Qq"]
    frame = pd.DataFrame(
        {
            "material_id": [f"mp-{i}" for i in range(rows)],
            "formation_energy_per_atom": [-2.0, np.nan, -1.8, -1.7, np.inf],
            "e_above_hull": [0.01, np.nan, 0.03, 0.04, np.nan],
            "e_above_hull_est": [0.011, 0.021, 0.031, 0.041, np.nan],
            "bulk_modulus": [20, 21, 22, 23, 24],
            "source": ["a"] * rows,
            "recon_suspect": [False, False, True, False, False],
            "lattice": [(np.eye(3) * a).ravel().tolist() for a in lengths],
            "species": species,
            "frac_coords": [[0, 0, 0, 0.5, 0.5, 0.5]] * rows,
        }
    )
    frame.to_parquet(tmp_path / "table.parquet")
    return tmp_path / "table.parquet"


def test_known_columns_become_properties(table: Path) -> None:
    found = import_crystals(table)
    assert found.names == ["mp-0", "mp-1", "mp-4"]
    assert [s.lattice.a for s in found.structures] == pytest.approx([4.0, 4.1, 4.4])
    assert set(found.properties) == {"formation_energy_per_atom", "energy_above_hull"}
    np.testing.assert_equal(found.properties["formation_energy_per_atom"], [-2.0, np.nan, np.nan])
    # the estimate stands in where the value is missing, and only there
    np.testing.assert_equal(found.properties["energy_above_hull"], [0.01, 0.021, np.nan])


def test_what_is_left_out_is_named(table: Path) -> None:
    dropped = dict(import_crystals(table).dropped)
    assert dropped["mp-2"] == "marked recon_suspect"
    assert "Qq" in dropped["mp-3"]
    assert len(dropped) == 2


def test_other_columns_are_taken_when_named(table: Path) -> None:
    found = import_crystals(table, extra_properties=["bulk_modulus"])
    np.testing.assert_equal(found.properties["bulk_modulus"], [20.0, 21.0, 24.0])


def test_composition_validity_is_computed_where_asked_for(table: Path, tmp_path: Path) -> None:
    odd = Structure(Lattice.cubic(3), ["Cs", "Cl", "Cl"], [[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5]])
    write_structures(tmp_path / "odd.extxyz", [odd])
    found = import_crystals(
        [table, tmp_path / "odd.extxyz"], extra_properties=["composition_valid"]
    )
    np.testing.assert_equal(found.properties["composition_valid"], [1.0, 1.0, 1.0, 0.0])
    assert "composition_valid" not in import_crystals(table).properties


@pytest.mark.parametrize("name", ["hardness", "source"])
def test_a_property_without_numbers_is_refused(table: Path, name: str) -> None:
    with pytest.raises(SymmBFNError, match=rf"property '{name}'.*bulk_modulus"):
        import_crystals(table, extra_properties=[name])


def test_files_of_several_kinds_make_one_set(table: Path, tmp_path: Path) -> None:
    more = tmp_path / "more.extxyz"
    write_structures(more, [caesium_chloride(5.0)], [{"name": "mine", "band_gap": 3.0}])
    counted: list[int] = []
    found = import_crystals([table, more], on_entry=counted.append)
    assert found.names[-1] == "mine"
    np.testing.assert_equal(found.properties["band_gap"], [np.nan] * 3 + [3.0])
    assert sum(counted) == 6


def test_nothing_usable_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text("{}\n")
    with pytest.raises(SymmBFNError, match="no usable crystal"):
        import_crystals(tmp_path / "x.jsonl")
    with pytest.raises(SymmBFNError, match="no usable crystal"):
        import_crystals([])
