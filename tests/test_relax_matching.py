"""The same crystal in another guise is the same; other crystals are other."""

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from relax import matching
from relax.errors import RelaxError
from relax.invariants import Invariants, fingerprint
from relax.matching import IndexReference, Reference, matches, unique, write_index
from tests.crystals import make

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

    def fit(one, other):
        if strange in (one, other):
            raise ValueError("no reduced cell")
        return True

    monkeypatch.setattr(matching._matcher(), "fit", fit)
    assert unique([rutile, strange, anatase()]).tolist() == [0, 1, 0]
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
    training = IndexReference.read(path, "training", training_only=True)
    assert len(training) == 1 and training.sha256 != index.sha256
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
