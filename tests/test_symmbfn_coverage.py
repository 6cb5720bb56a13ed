"""Coverage: distances between fingerprints, and the fingerprints themselves where matminer is."""

from dataclasses import replace

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from symmbfn.coverage import Fingerprints, coverage, fingerprints
from symmbfn.errors import SymmBFNError


def made(structure: list[float], composition: list[float]) -> Fingerprints:
    """Fingerprints of two numbers, the second always 0."""
    pairs = [np.stack([np.array(one), np.zeros(len(one))], 1) for one in (structure, composition)]
    return Fingerprints(*pairs)


def test_near_means_near_in_structure_and_in_composition() -> None:
    reference = made([0.0, 1.0, 2.0, 9.0], [0.0, 0.0, 0.0, 100.0])  # mean 25, spread 43
    crystals = made([0.3, 1.5, 5.0], [0.0, 30.0, 0.0])
    found = coverage(crystals, reference)
    # 0.0 is reached by 0.3; 1.0 and 2.0 by nothing within 0.4; 9.0 by nothing
    assert found.recall == pytest.approx(1 / 4)
    assert found.precision == pytest.approx(1 / 3)
    assert coverage(reference, reference).recall == coverage(reference, reference).precision == 1


def test_composition_counts_in_units_of_the_references_spread() -> None:
    reference = made([0.0, 0.0], [-1.0, 1.0])
    assert coverage(made([0.0], [10.5]), reference).precision == 1
    assert coverage(made([0.0], [10.5]), reference).recall == 0.5  # -1 is 11.5 away
    assert coverage(made([0.0], [11.5]), reference).precision == 0


def test_a_crystal_without_fingerprints_is_near_nothing() -> None:
    reference = made([0.0, 1.0], [0.0, 1.0])
    crystals = replace(reference, structure=np.array([[np.nan, np.nan], [1.0, 0.0]]))
    found = coverage(crystals, reference)
    assert (found.recall, found.precision) == (0.5, 0.5)
    found = coverage(reference, crystals)
    assert (found.recall, found.precision) == (1.0, 0.5)  # of what the reference has


def test_without_matminer_one_line_says_how_to_get_it() -> None:
    try:
        import matminer  # noqa: F401
    except ImportError:
        with pytest.raises(SymmBFNError, match="uv sync --extra coverage"):
            fingerprints([Structure(Lattice.cubic(3), ["Cu"], [[0, 0, 0]])])
    else:
        pytest.skip("matminer is installed")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_fingerprints_tell_kinds_of_crystals_apart() -> None:
    pytest.importorskip("matminer")
    salt = Structure.from_spacegroup(
        "Fm-3m", Lattice.cubic(5.6), ["Na", "Cl"], [[0, 0, 0], [0.5, 0, 0]]
    )
    caesium = Structure(Lattice.cubic(4.1), ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    counted: list[None] = []
    found = fingerprints(
        [salt, salt.get_primitive_structure(), None, caesium],
        workers=1,
        on_crystal=lambda: counted.append(None),
    )
    assert found.structure.shape == (4, 61) and found.composition.shape == (4, 132)
    assert len(counted) == 4
    np.testing.assert_allclose(found.structure[0], found.structure[1], atol=1e-6)
    assert np.isnan(found.structure[2]).all()
    assert np.linalg.norm(found.structure[0] - found.structure[3]) > 0.4
