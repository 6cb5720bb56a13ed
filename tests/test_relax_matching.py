"""The same crystal in another guise is the same; other crystals are other."""

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure
from pymatgen.core.structure_matcher import StructureMatcher

from relax.cells import Cell
from relax.errors import RelaxError
from relax.invariants import Invariants, fingerprint
from relax.known_cells import KnownCells
from relax.matching import CellReference, IndexReference, Reference, matches, unique
from relax.reference_index import write_index
from tests.crystals import NAMES as FAMILIES
from tests.crystals import disguise, make

NAMES = [
    "triclinic P-1", "monoclinic C2/m", "orthorhombic Pnma", "tetragonal rutile", "trigonal Bi2Te3",
]  # fmt: skip


def anatase():
    return Structure.from_spacegroup(
        141, Lattice.tetragonal(3.78, 9.51), ["Ti", "O"], [[0, 0, 0], [0, 0, 0.208]]
    )


def guises(structure):
    """The same crystal: supercell, other order, other origin, small noise, mirror image."""
    yield "supercell", structure * (2, 1, 1)
    yield "permuted", Structure.from_sites(list(reversed(structure.sites)))
    shifted = structure.copy()
    shifted.translate_sites(range(len(shifted)), [0.137, 0.411, 0.773])
    yield "shifted", shifted
    noise = np.random.default_rng(0).normal(scale=0.01 / np.sqrt(3), size=(len(structure), 3))
    yield (
        "rattled",
        Structure(
            structure.lattice,
            structure.species,
            structure.cart_coords + noise,
            coords_are_cartesian=True,
        ),
    )
    matrix = structure.lattice.matrix @ np.diag([-1, 1, 1])
    yield "mirrored", Structure(matrix, structure.species, structure.frac_coords)
    yield "primitive", structure.get_primitive_structure()


@pytest.mark.parametrize("name", NAMES)
def test_the_same_crystal_in_another_guise(name):
    structure = make(name)
    invariants = Invariants.of(structure)
    for guise, other in guises(structure):
        assert matches(structure, other), guise
        assert fingerprint(other) == fingerprint(structure), guise
        assert invariants.alike(Invariants.of(other)), guise


def test_other_crystals_of_the_same_formula_are_other():
    rutile = make("tetragonal rutile")
    assert not matches(rutile, anatase())
    assert fingerprint(rutile) != fingerprint(anatase())
    assert not Invariants.of(rutile).alike(Invariants.of(anatase()))


def test_species_matter_even_where_the_places_are_the_same():
    def layers(species):
        spots = [
            [x, (x + 0.5 * (layer % 2)) % 1, layer / 4] for layer in range(4) for x in (0, 0.5)
        ]
        return Structure(
            Lattice.tetragonal(4, 8), [symbol for symbol in species for _ in (0, 1)], spots
        )

    single, double = layers(["Cu", "Au", "Cu", "Au"]), layers(["Cu", "Cu", "Au", "Au"])
    assert not matches(single, double)
    assert fingerprint(single) != fingerprint(double)
    assert not Invariants.of(single).alike(Invariants.of(double))


def test_a_cell_of_eight_times_the_volume_is_another_crystal():
    rutile = make("tetragonal rutile")
    swollen = rutile.copy()
    swollen.scale_lattice(8 * rutile.volume)
    assert not matches(rutile, swollen)
    assert not Invariants.of(rutile).alike(Invariants.of(swollen))
    assert Reference.from_structures([rutile]).novel([swollen, rutile]).tolist() == [True, False]


def test_what_cannot_be_compared_matches_nothing_and_is_not_novel():
    broken = Structure(Lattice.cubic(4), ["Ti", "O", "O"], [[0, 0, 0], [np.nan] * 3, [0.5] * 3])
    rutile = make("tetragonal rutile")
    assert not matches(broken, broken)
    assert unique([broken, rutile, broken]).tolist() == [0, 1, 2]
    assert not Reference.from_structures([rutile]).novel([broken])[0]
    assert not Reference.load("mp").novel([broken])[0]


def test_each_class_has_its_first_as_representative():
    rutile, salt = make("tetragonal rutile"), make("monoclinic C2/m")
    given = [rutile, anatase(), salt, rutile * (1, 1, 2), anatase().get_primitive_structure(), salt]
    assert unique(given).tolist() == [0, 1, 2, 0, 1, 2]
    assert unique([]).tolist() == []


def test_a_crystal_that_breaks_the_matcher_stands_for_itself(monkeypatch):
    rutile = make("tetragonal rutile")
    strange = rutile * (1, 1, 2)
    reduced = Cell.reduced

    def fail_on_strange(cell):
        if len(cell.numbers) == len(strange):
            raise ValueError("no reduced cell")
        return reduced(cell)

    monkeypatch.setattr(Cell, "reduced", fail_on_strange)
    assert unique([rutile, strange, anatase(), rutile]).tolist() == [0, 1, 2, 0]
    salt = make("monoclinic C2/m")
    assert Reference.from_structures([rutile]).novel([strange, salt]).tolist() == [False, True]


def test_a_crystal_that_breaks_the_invariants_is_not_novel_and_stops_no_other(monkeypatch):
    def of(structure):
        raise ValueError("no Niggli cell")

    monkeypatch.setattr(Invariants, "of", of)
    unheard_of = Structure(Lattice.cubic(4), ["Og", "Ts"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    assert Reference.load("mp").novel([anatase(), unheard_of]).tolist() == [False, True]


def test_references_differ_by_content_and_unknown_names_are_told():
    given = [make("tetragonal rutile"), anatase()]
    both, one = Reference.from_structures(given, "both"), Reference.from_structures(given[:1])
    assert both.name == "both" and both.sha256 != one.sha256
    assert both.novel(given).tolist() == [False, False]
    assert one.novel(given).tolist() == [False, True]
    with pytest.raises(RelaxError, match="there are mp, mp20-train"):
        Reference.load("unknown")


def test_an_index_is_written_and_read(tmp_path):
    known = [make(name) for name in NAMES]
    path = tmp_path / "index.npz"
    write_index(
        path,
        [structure.composition.reduced_formula for structure in known],
        [Invariants.of(structure) for structure in known],
        [name == "tetragonal rutile" for name in NAMES],
        "made for a test",
    )
    index = Reference.load(path)
    assert isinstance(index, IndexReference) and len(index) == len(known)
    assert index.attribution == "made for a test"
    assert not index.novel([structure * (1, 2, 1) for structure in known]).any()
    assert index.novel([anatase()]).all()
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(RelaxError, match="no index of structures"):
        Reference.load(path)


def test_the_shipped_index_knows_common_crystals():
    index, training = Reference.load("mp"), Reference.load("mp20-train")
    assert len(index) > 110_000 and 25_000 < len(training) < 27_000
    salt = Structure.from_spacegroup(
        225, Lattice.cubic(5.7), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]
    )
    other = Structure.from_spacegroup(
        225, Lattice.cubic(5.7), ["Na", "Cl"], [[0, 0, 0], [0.25, 0.25, 0.25]]
    )
    assert index.novel([salt, make("tetragonal rutile"), other]).tolist() == [False, False, True]
    assert "CC BY 4.0" in index.attribution


def distorted(structure, amount, random):
    """Cell and atoms moved at random; with enough of it another crystal."""
    strain = np.eye(3) + random.normal(scale=amount / 3, size=(3, 3))
    edge = np.cbrt(structure.volume / len(structure))
    moves = random.normal(scale=amount / 2 * edge, size=(len(structure), 3))
    coords = structure.frac_coords + moves @ structure.lattice.inv_matrix
    return Structure(structure.lattice.matrix @ strain, structure.species, coords)


@pytest.mark.parametrize("name", FAMILIES)
def test_verdicts_are_those_of_structure_matcher(name):
    """Of pairs from hardly to much distorted, many near the limits of the tolerances."""
    random = np.random.default_rng(0)
    matcher, seen = StructureMatcher(), set()
    one = make(name).get_primitive_structure()
    for amount in np.linspace(0.02, 0.4, 8):
        other = distorted(one, amount, random)
        ratio = (one.volume / len(one)) / (other.volume / len(other))
        expected = 1 / 1.2**3 <= ratio <= 1.2**3 and matcher.fit(one, other)
        assert matches(one, other) == expected, amount
        seen.add(bool(expected))
    assert True in seen


def test_where_the_order_decides_the_new_crystal_is_asked_about_the_known_one():
    one, other = (
        Structure(Lattice.from_parameters(*cell), ["Cu"], [[0, 0, 0]])
        for cell in [(4.3, 3.0, 3.4, 85.2, 82.7, 67.1), (4.1, 2.7, 3.5, 82.8, 77.0, 72.4)]
    )
    matcher = StructureMatcher()
    assert not matcher.fit(one, other) and matcher.fit(other, one)
    assert Reference.from_structures([one]).novel([other]).tolist() == [False]
    assert Reference.from_structures([other]).novel([one]).tolist() == [True]


def test_pairs_compared_at_once_are_as_pairs_compared_one_by_one():
    random = np.random.default_rng(1)
    cells = [make(name).get_primitive_structure() for name in FAMILIES]
    given = [distorted(cell, x, random) for cell in cells for x in (0, 0.02, 0.2, 0.4)]
    given = [given[row] for row in random.permutation(len(given))]
    firsts, expected = [], []
    for index, structure in enumerate(given):
        twin = next((first for first in firsts if matches(given[first], structure)), index)
        firsts += [index] if twin == index else []
        expected.append(twin)
    assert unique(given).tolist() == expected
    assert len(FAMILIES) < len(firsts) < len(given)


def test_a_supercell_of_many_cells_and_one_element():
    """Many atoms of one kind: more trials than are worked on at once."""
    copper = Structure.from_spacegroup(225, Lattice.cubic(3.6), ["Cu"], [[0, 0, 0]])
    grain = copper * (3, 2, 2)
    grain.perturb(0.4, seed=0)
    assert not matches(copper, grain)
    assert matches(grain, disguise(grain))
    hexagonal = Structure.from_spacegroup(
        194, Lattice.hexagonal(2.5, 4.1), ["Cu"], [[1 / 3, 2 / 3, 0.25]]
    )
    assert not matches(copper, hexagonal)


def test_cells_are_written_and_read(tmp_path):
    random = np.random.default_rng(2)
    known, cells = [make(name) for name in FAMILIES], KnownCells("made for a test")
    for name, structure in zip(FAMILIES, known, strict=True):
        cells.add(Cell.of(structure), training=name == "tetragonal rutile")
    cells.write(tmp_path / "cells.npz")
    index = Reference.load(tmp_path / "cells.npz")
    assert isinstance(index, CellReference) and len(index) == len(known)
    assert index.attribution == "made for a test"
    twins = [distorted(one.get_primitive_structure(), 0.03, random) for one in known]
    assert not index.novel(twins).any()
    assert index.novel([anatase()]).all()
    with np.load(tmp_path / "cells.npz") as file:
        training = KnownCells.unpack(dict(file), training_only=True)
    assert len(training) == 1 and training.of_formula(Cell.of(make("tetragonal rutile")).formula)


def test_what_is_disordered_is_not_compared():
    alloy = Structure(Lattice.cubic(3.6), [{"Cu": 0.5, "Au": 0.5}], [[0, 0, 0]])
    vacant = Structure(Lattice.cubic(3.6), [{"Cu": 0.5}], [[0, 0, 0]])
    assert unique([alloy, alloy, vacant, vacant]).tolist() == [0, 1, 2, 3]
    assert not Reference.from_structures([alloy]).novel([alloy, vacant]).any()


def test_a_left_handed_cell_of_500_atoms_is_the_crystal_of_two():
    salt = make("cubic rock salt").get_primitive_structure()
    large = salt * (5, 5, 10)
    left = Structure(
        large.lattice.matrix[[1, 0, 2]], large.species, large.frac_coords[:, [1, 0, 2]]
    )
    assert len(left) == 500 and np.linalg.det(left.lattice.matrix) < 0
    assert len(Cell.of(left).reduced().numbers) == 2
    assert unique([salt, left]).tolist() == [0, 0]
