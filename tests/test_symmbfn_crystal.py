"""Structure → orbits → Structure, for every crystal family."""

import moyopy
import numpy as np
import pytest
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure

from symmbfn.crystal import Crystal, k_to_lattice, lattice_to_k, to_structures
from symmbfn.errors import SymmBFNError
from symmbfn.wyckoff import lattice_family
from tests.crystals import NAMES, disguise, make

EXACT = StructureMatcher(ltol=1e-3, stol=1e-3, angle_tol=0.05, scale=False)


def detected_group(structure: Structure) -> int:
    cell = moyopy.Cell(
        structure.lattice.matrix.tolist(),
        structure.frac_coords.tolist(),
        list(structure.atomic_numbers),
    )
    return moyopy.MoyoDataset(cell, symprec=1e-3).number


@pytest.mark.parametrize("name", NAMES)
def test_round_trip_is_exact(name: str) -> None:
    structure = make(name)
    crystal = Crystal.from_structure(structure)
    back = crystal.to_structure()
    assert EXACT.get_rms_dist(structure, back)[0] < 1e-4
    assert len(back) == len(structure.get_primitive_structure()) == crystal.num_atoms
    assert detected_group(back) == crystal.space_group


@pytest.mark.parametrize("name", NAMES)
def test_another_cell_of_the_same_crystal_gives_an_equivalent_description(name: str) -> None:
    structure = make(name)
    crystal = Crystal.from_structure(structure)
    other = Crystal.from_structure(disguise(structure))
    assert other.space_group == crystal.space_group
    assert other.formula == crystal.formula
    assert EXACT.fit(other.to_structure(), structure)


@pytest.mark.parametrize("name", NAMES)
def test_equivalent_descriptions_are_one_crystal_or_its_mirror_image(name: str) -> None:
    crystal = Crystal.from_structure(make(name))
    structure = crystal.to_structure()
    mirrored = Structure(
        Lattice(-structure.lattice.matrix), structure.species, structure.frac_coords
    )
    for other in crystal.equivalents():
        candidate = other.to_structure()
        assert EXACT.fit(candidate, structure) or EXACT.fit(candidate, mirrored)


def test_equivalent_descriptions_of_rock_salt_swap_the_positions() -> None:
    crystals = Crystal.from_structure(make("cubic rock salt")).equivalents()
    assert sorted(crystal.letters.tolist() for crystal in crystals) == [[0, 1], [1, 0]]


def test_polar_lattice_of_the_method_note_is_exact() -> None:
    lattice = Lattice.monoclinic(3.0, 4.0, 5.0, 105.0)
    back = Lattice(k_to_lattice(lattice_to_k(lattice.matrix, lattice_family(5))))
    np.testing.assert_allclose(back.parameters, lattice.parameters, atol=1e-9)


def test_batch_and_shortest_distance() -> None:
    crystals = [Crystal.from_structure(make(name)) for name in NAMES]
    for crystal, structure in zip(crystals, to_structures(crystals), strict=True):
        distances = [
            neighbour.nn_distance for site in structure.get_all_neighbors(6.0) for neighbour in site
        ]
        assert crystal.shortest_distance() == pytest.approx(min(distances), abs=1e-6)


@pytest.mark.parametrize(
    "matrix",
    [
        [[3, 0, 0], [20.3, 3, 0], [11, 47, 4]],
        [[4, 0, 0], [3.9, 0.8, 0], [-3.7, 0.5, 9]],
        [[30, 1, 1], [1, 30, 29.5], [1, 29.5, 30]],
    ],
)
def test_the_nearest_image_is_found_in_very_skewed_cells(matrix: list[list[float]]) -> None:
    crystal = Crystal(
        space_group=1,
        lattice=lattice_to_k(np.array(matrix, dtype=float), lattice_family(1)),
        species=np.array([11, 17]),
        letters=np.array([0, 0]),
        frac_coords=np.array([[0.1, 0.2, 0.3], [0.62, 0.55, 0.86]]),
    )
    structure = crystal.to_structure()
    near = [one.nn_distance for site in structure.get_all_neighbors(8.0) for one in site]
    assert crystal.shortest_distance() == pytest.approx(min(near), abs=1e-6)


def test_a_cell_without_volume_has_no_shortest_distance() -> None:
    crystal = Crystal.from_structure(make("cubic rock salt"))
    k = lattice_to_k(np.eye(3) * 1e-130, lattice_family(1))
    flat = Crystal(1, k, crystal.species, np.array([0, 0]), crystal.frac_coords)
    assert np.isnan(flat.shortest_distance())


def test_no_line_of_the_symmetry_finder_is_shown(capfd: pytest.CaptureFixture[str]) -> None:
    Crystal.from_structure(make("cubic rock salt") * (2, 1, 1))
    assert capfd.readouterr().err == ""


def test_disordered_and_degenerate_structures_are_refused() -> None:
    alloy = Structure(Lattice.cubic(3), [{"Fe": 0.5, "Ni": 0.5}], [[0, 0, 0]])
    with pytest.raises(SymmBFNError, match="partly occupied"):
        Crystal.from_structure(alloy)
    stacked = Structure(Lattice.cubic(3), ["Fe", "Fe"], [[0, 0, 0], [0, 0, 1e-5]])
    with pytest.raises(SymmBFNError, match="no symmetry"):
        Crystal.from_structure(stacked)
