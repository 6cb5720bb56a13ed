"""MP2020 corrections: known values, never twice, and no structure lost."""

import numpy as np
import pytest
from pymatgen.core import DummySpecies, Lattice, Structure

from relax.corrections import correct, correction, hubbard_u
from relax.errors import RelaxError
from relax.hull import Hull
from relax.potentials import PotentialInfo

LI2O = Structure.from_spacegroup(
    "Fm-3m", Lattice.cubic(4.62), ["Li", "O"], [[0.25, 0.25, 0.25], [0, 0, 0]]
)
FE2O3 = Structure.from_spacegroup(
    "R-3c", Lattice.hexagonal(5.04, 13.75), ["Fe", "O"], [[0, 0, 0.355], [0.306, 0, 0.25]]
)
FE = Structure.from_spacegroup("Im-3m", Lattice.cubic(2.84), ["Fe"], [[0, 0, 0]])
FES2 = Structure.from_spacegroup(
    "Pa-3", Lattice.cubic(5.4), ["Fe", "S"], [[0, 0, 0], [0.385, 0.385, 0.385]]
)
MNF2 = Structure.from_spacegroup(
    "P4_2/mnm", Lattice.tetragonal(4.87, 3.31), ["Mn", "F"], [[0, 0, 0], [0.305, 0.305, 0]]
)
BIOCL = Structure.from_spacegroup(
    "P4/nmm",
    Lattice.tetragonal(3.89, 7.37),
    ["Bi", "O", "Cl"],
    [[0, 0.5, 0.171], [0, 0, 0], [0, 0.5, 0.645]],
)
BAO2 = Structure.from_spacegroup(
    "I4/mmm", Lattice.tetragonal(3.82, 6.85), ["Ba", "O"], [[0, 0, 0], [0, 0, 0.393]]
)


@pytest.mark.parametrize(
    ("structure", "expected"),  # eV/atom, as in the Materials Project
    [
        (LI2O, -0.229),
        (FE2O3, -1.3146),  # three oxide ions and two iron with U
        (FE, 0.0),
        (FES2, -0.335333),  # no U in sulfides
        (MNF2, -0.864),
        (BIOCL, -0.433667),  # chloride, which the oxidation states tell
        (BAO2, -0.31),  # a peroxide, which the distance tells
    ],
)
def test_corrections_are_those_of_the_materials_project(structure, expected):
    assert correction(structure).per_atom == pytest.approx(expected, abs=2e-4)
    charged = structure.copy().add_oxidation_state_by_element(
        {element.symbol: 1 for element in structure.composition}
    )
    before = charged.copy()
    assert correction(charged).per_atom == pytest.approx(expected, abs=2e-4)
    assert charged == before


def test_only_oxides_and_fluorides_have_a_hubbard_u():
    assert hubbard_u(FE2O3.composition) == {"Fe": 5.3}
    assert hubbard_u(MNF2.composition) == {"Mn": 3.9}
    assert hubbard_u(FES2.composition) == hubbard_u(FE.composition) == {}
    assert hubbard_u(LI2O.composition) == {}


def test_energies_are_corrected_exactly_once():
    raw = [-4.8, -6.9]
    once = correct([LI2O, FE2O3], raw, "pbe-u-raw")
    assert once.per_atom - raw == pytest.approx([-0.229, -1.3146], abs=2e-4)
    assert raw == [-4.8, -6.9]
    twice = correct([LI2O, FE2O3], once.per_atom, once.energy_scheme)
    assert twice.per_atom.tolist() == once.per_atom.tolist()
    with pytest.raises(RelaxError, match="matpes-pbe have no MP2020 corrections"):
        correct([LI2O], [-4.8], "matpes-pbe")


def test_what_cannot_be_corrected_is_kept_with_the_reason():
    odd = Structure(Lattice.cubic(4.0), [DummySpecies("X"), "O"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    found = correct([LI2O, odd, FE2O3], [-4.8, -5.0, np.nan], "pbe-u-raw")
    assert np.isnan(found.per_atom).tolist() == [False, True, True]
    assert found.reasons[0] == found.reasons[2] == ""
    assert found.reasons[1].startswith("no MP2020 correction (")


def test_a_hull_of_mp2020_energies_takes_raw_ones_with_their_structures(tmp_path):
    path = tmp_path / "lifeo.csv"
    totals = {"Li": -1.9, "Fe": -8.4, "O": -4.9, "Li2O": -4.8, "Fe2O3": -6.9}
    rows = "".join(f"{formula},{energy}\n" for formula, energy in totals.items())
    path.write_text(f"# energy_scheme: mp2020\nformula,energy_per_atom\n{rows}")
    hull = Hull.load(path)
    mace = PotentialInfo("mace-mp", "pbe-u-raw", "float64", None, True, "", frozenset())
    structures = [LI2O, FE2O3]
    compositions = [one.composition for one in structures]
    raw = [totals["Li2O"] + 0.229, totals["Fe2O3"] + 1.3146]
    with pytest.raises(RelaxError, match="of scheme mp2020, potential 'mace-mp' gives pbe-u-raw"):
        hull.formation_energy_per_atom(compositions, raw, mace)
    assert hull.scheme_for(mace, with_structures=True) == "pbe-u-raw"
    formation = hull.formation_energy_per_atom(compositions, raw, mace, structures)
    assert hull.energy_above_hull(compositions, formation) == pytest.approx([0, 0], abs=2e-4)
    corrected = [totals["Li2O"], totals["Fe2O3"]]
    same = hull.formation_energy_per_atom(compositions, corrected, "mp2020", structures)
    assert formation == pytest.approx(same, abs=2e-4)
