"""Metrics against values worked out by hand, and against known crystals."""

import math
from pathlib import Path

import numpy as np
import pytest
from pymatgen.core import Composition, Lattice, Structure

from symmbfn.errors import SymmBFNError
from symmbfn.metrics import (
    Summary,
    composition_valid,
    evaluate,
    mp20_test,
    space_group,
    structural_flaw,
    summarise,
    traits_of,
)


def rock_salt(a: float = 5.64) -> Structure:
    return Structure.from_spacegroup("Fm-3m", Lattice.cubic(a), ["Na", "Cl"], [[0] * 3, [0.5] * 3])


def bcc_iron(a: float = 2.87) -> Structure:
    return Structure(Lattice.cubic(a), ["Fe", "Fe"], [[0, 0, 0], [0.5, 0.5, 0.5]])


def pair(distance: float, a: float = 6.0) -> Structure:
    """Two atoms whose nearest images are `distance` apart, across the cell's face."""
    return Structure(Lattice.cubic(a), ["Na", "Cl"], [[0.01, 0, 0], [0.01 - distance / a, 0, 0]])


@pytest.mark.parametrize(("distance", "valid"), [(0.51, True), (0.49, False), (0.0, False)])
def test_atoms_must_keep_apart_through_the_cell_faces(distance: float, valid: bool) -> None:
    flaw = structural_flaw(pair(distance))
    assert (flaw is None) == valid
    assert valid or f"{distance:.2f} Å apart" in str(flaw)


def test_skewed_cells_hide_no_overlap() -> None:
    # a2 = 3 a1 + (0.2, 0.3, 0): the atom's nearest image is outside the 27 cells around it
    lattice = Lattice([[4, 0, 0], [12.2, 0.3, 0], [0, 0, 50]])
    assert "0.36 Å apart" in str(structural_flaw(Structure(lattice, ["H"], [[0, 0, 0]])))


def test_cells_without_volume_and_numbers_that_are_none() -> None:
    flat = Structure(Lattice([[3, 0, 0], [0, 3, 0], [0, 0, 0.01]]), ["H"], [[0, 0, 0]])
    assert "volume" in str(structural_flaw(flat))
    lost = Structure(Lattice.cubic(4), ["H"], [[0, np.nan, 0]])
    assert "finite" in str(structural_flaw(lost))
    assert structural_flaw(rock_salt()) is None


@pytest.mark.parametrize(
    ("formula", "valid"),
    [
        ("NaCl", True),
        ("Fe2O3", True),
        ("Na2Cl2", True),
        ("CaTiO3", True),
        ("NaCl4", False),  # no neutral choice of one state for each element fits
        ("LiO3", False),
        ("Fe", True),  # elements are valid
        ("O", True),
        ("TiAl3", True),  # alloys are valid
        ("He2O", False),  # helium has no states
        ("HHeNeArKrXeFClO", False),  # too many elements to search
        ("LiNaKMgCaTiFeNiCuZn", True),  # but not for an alloy
    ],
)
def test_composition_validity(formula: str, valid: bool) -> None:
    assert composition_valid(Composition(formula)) is valid


def test_space_groups_are_detected() -> None:
    assert space_group(rock_salt()) == 225
    assert space_group(bcc_iron()) == 229
    assert space_group(pair(0.0)) is None  # two atoms on one place


def test_the_traits_of_a_crystal_do_not_depend_on_its_cell() -> None:
    salt = traits_of(rock_salt())
    assert (salt.space_group, salt.n_atoms, salt.elements) == (225, 2, ("Na", "Cl"))
    assert salt.volume_per_atom == pytest.approx(5.64**3 / 8)
    assert salt.density == pytest.approx(4 * 58.44277 / 5.64**3 * 1.66053907, rel=1e-4)
    primitive = traits_of(rock_salt().get_primitive_structure())
    assert (primitive.space_group, primitive.n_atoms) == (225, 2)
    assert primitive.volume_per_atom == pytest.approx(salt.volume_per_atom)
    assert traits_of(pair(0.0)).n_atoms is None  # no symmetry found


def test_a_summary_counts_atoms_and_elements() -> None:
    summary = summarise([rock_salt(), rock_salt(5.7), bcc_iron()])
    assert summary.n_atoms == {1: 1, 2: 2}
    assert summary.elements == {"Cl": 2, "Fe": 1, "Na": 2}
    assert summary.volumes_per_atom[0] == pytest.approx(2.87**3 / 2, abs=1e-4)
    assert summary.volumes_per_atom[-1] == pytest.approx(5.7**3 / 8, abs=1e-4)


def test_a_set_against_itself_is_at_no_distance() -> None:
    structures = [rock_salt(), rock_salt(5.7), bcc_iron()]
    metrics = evaluate(structures, reference=summarise(structures))
    assert metrics.space_group_jsd == pytest.approx(0, abs=1e-7)
    assert metrics.n_elements_wasserstein == pytest.approx(0, abs=1e-12)
    assert metrics.density_wasserstein == pytest.approx(0, abs=0.02)
    assert (metrics.n, metrics.structural_validity, metrics.composition_validity) == (3, 1, 1)


def test_distances_worked_out_by_hand() -> None:
    reference = summarise([bcc_iron()])
    metrics = evaluate([rock_salt()], reference=reference)
    assert metrics.space_group_jsd == pytest.approx(math.sqrt(math.log(2)))  # nothing in common
    assert metrics.n_elements_wasserstein == pytest.approx(1)
    salt, iron = 4 * 58.44277 / 5.64**3, 2 * 55.845 / 2.87**3
    expected = (iron - salt) * 1.66053907
    assert metrics.density_wasserstein == pytest.approx(expected, abs=1e-3)
    half = evaluate([rock_salt(), bcc_iron()], reference=reference)
    divergence = 0.5 * (0.5 * math.log(2) + 0.5 * math.log(0.5 / 0.75)) + 0.5 * math.log(1 / 0.75)
    assert half.space_group_jsd == pytest.approx(math.sqrt(divergence))


def test_fractions_are_of_all_generated() -> None:
    structures = [rock_salt(), None, pair(0.1), bcc_iron()]
    metrics = evaluate(
        structures,
        unique=[True, False, True, True],
        novel=[True, False, True, False],
        stable=[True, False, False, True],
        metastable=[True, False, True, True],
    )
    assert metrics.structural_validity == 0.5
    assert metrics.composition_validity == 0.75
    assert (
        metrics.to_dict()
        | {
            "uniqueness": 0.75,
            "novelty": 0.5,
            "stable": 0.5,
            "metastable": 0.75,
            "sun": 0.25,
            "msun": 0.5,
        }
        == metrics.to_dict()
    )


def test_what_is_not_given_is_not_computed() -> None:
    metrics = evaluate([None, None], unique=[True, True])
    assert metrics.uniqueness == 1
    assert (metrics.novelty, metrics.sun, metrics.msun, metrics.stable) == (None,) * 4
    assert metrics.space_group_jsd is None
    assert metrics.structural_validity == 0


def test_bad_input_is_refused() -> None:
    with pytest.raises(SymmBFNError, match="no crystals"):
        evaluate([])
    with pytest.raises(SymmBFNError, match="no crystals"):
        summarise([])
    with pytest.raises(SymmBFNError, match="3 flags for 1 crystals"):
        evaluate([rock_salt()], novel=[True] * 3)


def test_summaries_are_saved_and_loaded(tmp_path: Path) -> None:
    summary = summarise([rock_salt(), bcc_iron()])
    summary.save(tmp_path / "summary.json")
    assert Summary.load(tmp_path / "summary.json") == summary
    (tmp_path / "summary.json").write_text("[]")
    with pytest.raises(SymmBFNError, match=r"summary\.json holds no summary"):
        Summary.load(tmp_path / "summary.json")


def test_the_shipped_summary_is_that_of_mp20() -> None:
    summary = mp20_test()
    assert summary.n == 9046 == sum(summary.n_elements.values())
    assert sum(summary.space_groups.values()) == 9046
    assert all(1 <= number <= 230 for number in summary.space_groups)
    assert list(summary.densities) == sorted(summary.densities)
    assert 5 < np.median(summary.densities) < 8
    assert sum(summary.n_atoms.values()) == 9046
    assert max(summary.n_atoms) == 20
    assert max(summary.elements, key=summary.elements.__getitem__) == "O"
    assert 15 < np.median(summary.volumes_per_atom) < 20
