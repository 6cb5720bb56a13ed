"""What is shipped with the generator: the table of elements, and a checkpoint that draws."""

import warnings

import numpy as np

from symmbfn.checkpoint import DEFAULT_CHECKPOINT, WEIGHTS, load_card
from symmbfn.conditions import Conditions
from symmbfn.crystal import to_structures
from symmbfn.elements import build, element_features
from symmbfn.metrics import SYMPREC, evaluate, symmetry_of
from symmbfn.sample import Tally, sample


def test_the_table_of_elements_is_what_pymatgen_says() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of elements without electronegativity or radius
        built = build()
    np.testing.assert_allclose(element_features(), built, atol=1e-6)


def test_a_number_of_atoms_is_that_of_the_smallest_cell() -> None:
    """Two atoms of one element on c of group 191 would be one atom in half the cell."""
    conditions = Conditions(formula="Cu", num_atoms=2, space_groups=(191,))
    for crystal in sample(n=12, seed=0, steps=3, conditions=conditions):
        found = symmetry_of(crystal.to_structure(), SYMPREC)
        assert found is not None and len(found.prim_std_cell.numbers) == 2


def test_guidance_far_too_strong_costs_no_batch() -> None:
    conditions = Conditions({"band_gap": 20.0}, {"band_gap": 100.0})
    tally = Tally()
    crystals = sample(n=8, seed=0, steps=5, conditions=conditions, tally=tally)
    assert crystals and tally.accepted == len(crystals)


def test_the_shipped_checkpoint_draws_sensible_crystals() -> None:
    """Bounds far below what is measured (model card), far above what a broken one would reach."""
    card = load_card()
    assert card.name == DEFAULT_CHECKPOINT
    assert (card.path / WEIGHTS).stat().st_size <= 25_000_000
    assert set(card.properties) >= {"formation_energy_per_atom", "band_gap", "energy_above_hull"}
    tally = Tally()
    structures = to_structures(sample(n=48, seed=0, tally=tally))
    assert tally.overlapping <= 6 and tally.impossible_sites == 0
    metrics = evaluate(structures)
    assert metrics.structural_validity == 1
    assert metrics.composition_validity >= 0.7
    assert len({one.composition.reduced_formula for one in structures}) >= 44
