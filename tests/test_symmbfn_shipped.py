"""What is shipped with the generator: the table of elements, and a checkpoint that draws."""

import warnings

import numpy as np

from symmbfn.checkpoint import DEFAULT_CHECKPOINT, WEIGHTS, load_card
from symmbfn.crystal import to_structures
from symmbfn.elements import build, element_features
from symmbfn.metrics import evaluate
from symmbfn.sample import Tally, sample


def test_the_table_of_elements_is_what_pymatgen_says() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of elements without electronegativity or radius
        built = build()
    np.testing.assert_allclose(element_features(), built, atol=1e-6)


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
