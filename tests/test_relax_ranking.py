"""The order of relaxation: signals of crystals as drawn, what is learned from falls, the lots."""

from __future__ import annotations

import math

import numpy as np
import pytest
from pymatgen.core.lattice import Lattice
from pymatgen.core.structure import Structure

from relax.errors import RelaxError
from relax.optimize import RelaxConfig, relax
from relax.potentials import load
from relax.ranking import FEWEST, Choice, Fall, Signals, look, order


def rocksalt(a: float) -> Structure:
    return Structure.from_spacegroup(
        225, Lattice.cubic(a), ["Mg", "O"], [[0, 0, 0], [0.5, 0.5, 0.5]]
    )


def test_signals_are_those_of_the_crystal_as_drawn() -> None:
    squeezed, overlapping, pushed = rocksalt(3.9), rocksalt(4.2), rocksalt(4.2)
    overlapping.append("O", [0.01, 0, 0])
    pushed.translate_sites([0], [0.05, 0, 0])
    given = [squeezed.copy(), overlapping, pushed]
    potential = load("chgnet")
    seen = dict(look(given, potential, RelaxConfig(fmax=10.0)))
    assert given[0] == squeezed and seen.keys() == {0, 1, 2}
    assert seen[1] is None
    one, other = seen[0], seen[2]
    assert one is not None and other is not None
    assert one.energy_per_atom == pytest.approx(potential.energies_per_atom([squeezed])[0])
    assert one.nsites == 8 and one.volume_per_atom == pytest.approx(3.9**3 / 8)
    assert one.max_force < 1e-3 < 0.1 < other.max_force  # symmetry allows none
    calculator = potential.calculator()
    atoms = squeezed.to_ase_atoms(msonable=False)
    stress = calculator.get_stress(atoms)
    assert one.virial == pytest.approx(math.sqrt((stress**2).sum()) * 3.9**3 / 8, rel=1e-3)
    (result,) = relax([squeezed], potential, RelaxConfig(workers=0))
    assert result.initial_energy_per_atom == pytest.approx(one.energy_per_atom)


def crystals(count: int, seed: int) -> tuple[list[Signals], np.ndarray]:
    """Signals of crystals that fall by a quadratic law of forces and virial, within a factor."""
    random = np.random.default_rng(seed)
    force, virial = np.exp(random.normal(size=(2, count)))
    falls = (force**2 + 2 * virial**2) / 60 * np.exp(random.normal(scale=0.3, size=count))
    signals = [
        Signals(-4.0, f, v, 15.0, n)
        for f, v, n in zip(force, virial, random.integers(2, 20, count), strict=True)
    ]
    return signals, falls


def test_falls_are_learned_so_that_nine_of_ten_are_further() -> None:
    fall = Fall.learn(*crystals(200, seed=0))
    assert fall is not None and fall.rows == 200
    assert fall.spread == pytest.approx(0.3, abs=0.1)
    signals, falls = crystals(1000, seed=1)  # others
    sure = fall.sure(signals)
    assert 0.85 < np.mean(falls > sure) < 0.95
    assert np.corrcoef(np.log(sure), np.log(falls))[0, 1] > 0.95


def test_nothing_is_learned_from_a_few_and_no_number_that_is_none() -> None:
    signals, falls = crystals(FEWEST, seed=0)
    assert Fall.learn(signals[1:], falls[1:]) is None
    assert Fall.learn(signals, falls) is not None
    falls[3] = math.nan
    with pytest.raises(RelaxError, match="not finite; leave that relaxation out"):
        Fall.learn(signals, falls)


def test_the_best_come_first_and_the_unknown_last() -> None:
    assert order([0.3, math.nan, -0.1, 0.2], 0.0, seed=0) == [
        Choice(index, "ranked") for index in (2, 3, 0, 1)
    ]
    assert order([], 0.5, seed=0) == []


@pytest.mark.parametrize("share", [0.1, 0.15, 0.5, 1.0])
def test_wherever_it_stops_the_share_drawn_by_lot_is_right(share: float) -> None:
    scores = np.random.default_rng(0).normal(size=200)
    choices = order(scores, share, seed=1)
    assert sorted(choice.index for choice in choices) == list(range(200))
    by_lot = np.array([choice.by == "random" for choice in choices])
    assert np.all(np.abs(np.cumsum(by_lot) - share * np.arange(1, 201)) <= 1)
    ranked = [scores[choice.index] for choice in choices if choice.by == "ranked"]
    assert ranked == sorted(ranked)
    assert choices == order(scores, share, seed=1)
    assert share == 0 or choices != order(scores, share, seed=2)


def test_lots_do_not_favour_good_scores() -> None:
    scores = np.arange(1000.0)
    lots = [choice.index for choice in order(scores, 0.1, seed=3)[:500] if choice.by == "random"]
    assert len(lots) == 50 and 350 < np.mean(lots) < 650
