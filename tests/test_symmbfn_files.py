"""Structure files: round trips, every layout, and entries that must not stop the others."""

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pymatgen.core import Lattice, Structure

from symmbfn.errors import SymmBFNError
from symmbfn.file_formats import MAX_ATOMS, MAX_TEXT, from_cif, make_structure
from symmbfn.files import iter_structures, read_structures, write_structures

ENDINGS = [".cif", ".extxyz", ".jsonl"]


def rock_salt(a: float = 5.64) -> Structure:
    return Structure.from_spacegroup("Fm-3m", Lattice.cubic(a), ["Na", "Cl"], [[0] * 3, [0.5] * 3])


def low_symmetry() -> Structure:
    lattice = Lattice.from_parameters(3.1, 4.7, 6.3, 81.0, 97.0, 103.0)
    coords = [[0.11, 0.23, 0.37], [0.61, 0.71, 0.87], [0.31, 0.93, 0.13]]
    return Structure(lattice, ["Fe", "O", "S"], coords)


def same(a: Structure, b: Structure) -> bool:
    difference = a.frac_coords - b.frac_coords
    return (
        a.species == b.species
        and np.allclose(a.lattice.parameters, b.lattice.parameters, atol=1e-6)
        and bool(np.abs(difference - difference.round()).max() < 1e-6)
    )


@pytest.mark.parametrize("ending", ENDINGS)
def test_what_is_written_is_read_again(tmp_path: Path, ending: str) -> None:
    structures = [rock_salt(), low_symmetry()]
    extra = [
        {"material_id": "mp-1", "band_gap": 5.0, "num": np.int64(8), "note": "it's a 'salt'"},
        {"material_id": "mp-2", "band_gap": float("nan"), "ok": True},
    ]
    file = tmp_path / f"crystals{ending}"
    write_structures(file, structures, extra)
    first, second = read_structures(file)
    assert (first.index, first.name, second.index, second.name) == (0, "mp-1", 1, "mp-2")
    assert first.structure and same(first.structure, structures[0])
    assert second.structure and same(second.structure, structures[1])
    assert first.extra["band_gap"] == 5.0
    assert first.extra["num"] == 8
    assert str(first.extra["note"]).startswith("it")
    assert second.extra.get("band_gap") is None
    assert second.extra["ok"] is True
    assert os.listdir(tmp_path) == [file.name]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "crystals.jsonl"
    write_structures(file, [rock_salt()])
    before = file.read_text()
    broken = rock_salt()
    broken.lattice = Lattice(np.full((3, 3), np.nan))
    with pytest.raises(SymmBFNError, match=r"structure 1 .* not finite"):
        write_structures(file, [rock_salt(), broken])
    with pytest.raises(ValueError, match="zip"):
        write_structures(file, [rock_salt()], [])
    assert file.read_text() == before
    assert os.listdir(tmp_path) == [file.name]


def test_places_and_endings_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(SymmBFNError, match=r"\.cif, \.extxyz, \.jsonl"):
        write_structures(tmp_path / "crystals.pdb", [rock_salt()])
    with pytest.raises(SymmBFNError, match="cannot be written"):
        write_structures(tmp_path / "missing" / "crystals.cif", [rock_salt()])


def test_cif_with_symmetry_is_expanded() -> None:
    text = """data_NaCl
_cell_length_a 5.64(1)
_cell_length_b 5.64(1)
_cell_length_c 5.64(1)
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
_symmetry_space_group_name_H-M 'F m -3 m'
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
Na1 Na+ 0 0 0
Cl1 Cl- 0.5 0.5 0.5
"""
    structure = from_cif(text)
    assert structure.composition.as_dict() == {"Na": 4, "Cl": 4}
    assert structure.lattice.a == pytest.approx(5.64)


def test_the_quick_way_through_a_plain_cif_agrees_with_pymatgen() -> None:
    structure = low_symmetry()
    text = structure.to(fmt="cif")
    assert same(from_cif(text), structure)
    slow = Structure.from_str(text, fmt="cif").get_sorted_structure()
    assert same(from_cif(text).get_sorted_structure(), slow)


def test_bad_cif_blocks_leave_the_good_ones(tmp_path: Path) -> None:
    good = rock_salt().to(fmt="cif")
    disordered = good.replace("  1\n  Na", "  0.5\n  Na", 1)
    assert disordered != good
    blocks = [
        "data_global\n_journal_name 'no crystal here'\n",
        good,
        good.replace("5.64000000", "nan"),
        disordered,
        "data_cut\n_cell_length_a 3\nloop_\n_atom_site_fract_x\n",
        good + "#" * MAX_TEXT,
        low_symmetry().to(fmt="cif"),
    ]
    file = tmp_path / "many.cif"
    file.write_text("\n".join(blocks))
    results = read_structures(file)
    assert [r.structure is not None for r in results] == [True, False, False, False, False, True]
    assert "finite" in str(results[1].error)
    assert "partly occupied" in str(results[2].error)
    assert "reflection data" in str(results[4].error)
    assert all("\n" not in str(r.error) for r in results)
    assert results[5].index == 5


def test_a_cif_that_would_expand_without_end_is_refused() -> None:
    operations = "\n".join(f"'x+{i}/1000,y,z'" for i in range(1000))
    atoms = "\n".join(f"H{i} H {i / 100} 0 0" for i in range(100))
    text = f"""data_bomb
_cell_length_a 9
_cell_length_b 9
_cell_length_c 9
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
loop_
_symmetry_equiv_pos_as_xyz
{operations}
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
{atoms}
"""
    with pytest.raises(ValueError, match="100 sites under 1000 operations"):
        from_cif(text)


@pytest.mark.parametrize("filler", ["\n" * 500_000, "'" * 500_000 + "x", " " * 500_000 + "_x 1"])
def test_hostile_cif_text_takes_no_time(filler: str) -> None:
    text = low_symmetry().to(fmt="cif") + filler
    if filler.isspace():
        assert same(from_cif(text), low_symmetry())
    else:
        with pytest.raises(ValueError, match="CIF allows 2048"):
            from_cif(text)


def test_bad_frames_leave_the_good_ones(tmp_path: Path) -> None:
    good_file = tmp_path / "good.extxyz"
    write_structures(good_file, [low_symmetry()])
    good = good_file.read_text()
    file = tmp_path / "many.extxyz"
    no_cell = "1\nno cell\nH 0 0 0\n"
    not_finite = '1\nLattice="3 0 0 0 3 0 0 0 3" Properties=species:S:1:pos:R:3\nH nan 0 0\n'
    huge = f"{MAX_ATOMS + 1}\ncomment\n" + "H 0 0 0\n" * (MAX_ATOMS + 1)
    frames = [good, no_cell, not_finite, huge, "stray\nstray\n", good, "3\ncut"]
    file.write_text("".join(frames))
    results = read_structures(file)
    good_ones = [True, False, False, False, False, True, False]
    assert [r.structure is not None for r in results] == good_ones
    for result, reason in zip(results[1:5], ["no cell", "finite", "atoms", "count"], strict=True):
        assert reason in str(result.error)
    assert results[5].name == "many.extxyz:6"


def test_bad_json_lines_leave_the_good_ones(tmp_path: Path) -> None:
    inner = rock_salt().as_dict()
    partial = json.loads(json.dumps(inner))
    partial["sites"][0]["species"][0]["occu"] = 0.5
    lines = [
        json.dumps({"structure": inner, "material_id": "a", "band_gap": 1.5}),
        "{broken",
        "[" * 100_000,
        json.dumps({"band_gap": 1.0}),
        json.dumps({"structure": partial}),
        json.dumps([1, 2]),
        "x" * (MAX_TEXT + 10),
        json.dumps(inner),
    ]
    file = tmp_path / "many.jsonl"
    file.write_text("\n".join(lines) + "\n")
    results = read_structures(file)
    assert [r.structure is not None for r in results] == [True] + [False] * 6 + [True]
    assert results[0].extra == {"material_id": "a", "band_gap": 1.5}
    assert results[7].extra == {}


def test_json_does_not_build_the_classes_that_it_names(tmp_path: Path) -> None:
    document = rock_salt().as_dict()
    bait = {"@module": "tests.test_symmbfn_files", "@class": "Bait", "path": str(tmp_path)}
    for site in document["sites"]:
        site["properties"] = {"bait": bait}
    file = tmp_path / "one.json"
    file.write_text(json.dumps({"structure": document}))
    (result,) = read_structures(file)
    assert result.structure is not None
    assert not result.structure.site_properties


class Bait:
    """Fails the test if it is ever built from a file."""

    @classmethod
    def from_dict(cls, _: object) -> None:
        """What monty calls for a dict with @module and @class."""
        raise AssertionError("a file built one of our classes")


def test_json_holds_one_or_many(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text(json.dumps(rock_salt().as_dict()))
    assert len(read_structures(file)) == 1
    file.write_text(json.dumps([rock_salt().as_dict(), {"structure": low_symmetry().as_dict()}]))
    assert [r.structure is not None for r in read_structures(file)] == [True, True]
    file.write_text("{")
    with pytest.raises(SymmBFNError, match="not JSON"):
        read_structures(file)


def test_poscar(tmp_path: Path) -> None:
    file = tmp_path / "POSCAR"
    file.write_text(low_symmetry().to(fmt="poscar"))
    (result,) = read_structures(file)
    assert result.structure and same(result.structure, low_symmetry())
    lines = file.read_text().splitlines()
    lines[0] = "without symbols"
    without = [line.rstrip("FeOS ") for line in lines[:5] + lines[6:]]
    (tmp_path / "old.vasp").write_text("\n".join(without))
    (result,) = read_structures(tmp_path / "old.vasp")
    assert result.structure is None
    assert result.error


@pytest.mark.parametrize("layout", ["lattice", "cell", "cif", "structure"])
def test_parquet_layouts(tmp_path: Path, layout: str) -> None:
    structure = low_symmetry()
    arrays = {
        "species": [list(map(str, structure.species))] * 2,
        "frac_coords": [structure.frac_coords.ravel().tolist()] * 2,
    }
    columns: dict[str, dict[str, object]] = {
        "lattice": {**arrays, "lattice": [structure.lattice.matrix.ravel().tolist(), None]},
        "cell": {**arrays, "cell_abc_angles": [list(structure.lattice.parameters), [1.0] * 5]},
        "cif": {"cif": [structure.to(fmt="cif"), "nothing"]},
        "structure": {"structure": [json.dumps(structure.as_dict()), "{}"]},
    }
    file = tmp_path / "table.parquet"
    pd.DataFrame(
        {"material_id": ["mp-1", "mp-2"], "band_gap": [1.0, None], **columns[layout]}
    ).to_parquet(file)
    good, bad = read_structures(file)
    assert good.structure and same(good.structure, structure)
    assert good.name == "mp-1"
    assert good.extra["band_gap"] == 1.0
    assert bad.structure is None
    assert bad.error


def test_csv_as_in_cdvae(tmp_path: Path) -> None:
    file = tmp_path / "train.csv"
    frame = pd.DataFrame(
        {
            "material_id": ["mp-7", "mp-8"],
            "formation_energy_per_atom": [-1.25, np.nan],
            "cif": [low_symmetry().to(fmt="cif"), ""],
        }
    )
    frame.to_csv(file)
    good, bad = read_structures(file)
    assert good.structure and same(good.structure, low_symmetry())
    assert good.extra == {"material_id": "mp-7", "formation_energy_per_atom": -1.25}
    assert (bad.name, bad.structure) == ("mp-8", None)


def test_a_folder_is_read_file_by_file(tmp_path: Path) -> None:
    write_structures(tmp_path / "a.cif", [rock_salt(), low_symmetry()])
    (tmp_path / "b.json").write_text("{")
    (tmp_path / "notes.txt").write_text("not a structure")
    write_structures(tmp_path / "c.extxyz", [rock_salt()])
    results = read_structures(tmp_path)
    assert [r.index for r in results] == [0, 1, 2, 3]
    assert [r.structure is not None for r in results] == [True, True, False, True]
    assert "b.json" in str(results[2].error)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.cif", None, "no such file"),
        ("movie.pdb", b"ATOM", "unknown kind"),
        ("empty.cif", b"", "no structure in it"),
        ("noise.cif", bytes(range(256)), "no structure in it"),
        ("empty.jsonl", b"\n\n", "no structure in it"),
        ("cut.parquet", b"PAR1....PAR1", "not readable as parquet"),
        ("empty.csv", b"", "not readable as csv"),
        ("other.csv", b"a,b\n1,2\n", "no structures in columns a, b"),
    ],
)
def test_files_with_nothing_to_read(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SymmBFNError, match=message) as caught:
        read_structures(file)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SymmBFNError, match="no structure file in this folder"):
        read_structures(tmp_path)


def test_reading_is_lazy(tmp_path: Path) -> None:
    write_structures(tmp_path / "x.jsonl", [rock_salt(a) for a in (5.0, 6.0)])
    results = iter_structures(tmp_path / "x.jsonl")
    first = next(results).structure
    assert first is not None
    assert first.lattice.a == pytest.approx(5.0)


def test_a_left_handed_cell_becomes_a_right_handed_one_of_the_same_crystal() -> None:
    crystal = low_symmetry()
    mirrored = crystal.lattice.matrix * [1, 1, -1]
    structure = make_structure(mirrored, ["Fe", "O", "S"], crystal.frac_coords)
    assert np.linalg.det(structure.lattice.matrix) > 0
    np.testing.assert_allclose(structure.cart_coords, crystal.frac_coords @ mirrored, atol=1e-9)


@pytest.mark.parametrize(
    ("matrix", "symbols", "coords", "message"),
    [
        (np.eye(3), ["H"], [0, 0, np.inf], "finite"),
        (np.diag([1, 1, np.nan]), ["H"], [0, 0, 0], "finite"),
        (np.ones((3, 3)), ["H"], [0, 0, 0], "volume"),
        (np.eye(3), [], [], "0 atoms"),
        (np.eye(3), ["H", "H"], [0, 0, 0], "2 species for 1"),
        (np.eye(3), ["Xx"], [0, 0, 0], "not an element"),
    ],
)
def test_numbers_that_make_no_crystal(
    matrix: object, symbols: list[str], coords: list[float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_structure(matrix, symbols, coords)


def test_isotopes_are_elements() -> None:
    assert make_structure(4 * np.eye(3), ["D"], [0, 0, 0]).composition.as_dict() == {"H": 1}
