"""Numbers of atoms, against trying every choice of positions."""

from itertools import combinations_with_replacement

import pytest

from symmbfn.occupation import (
    exactly,
    fixed_positions,
    possible_positions,
    totals,
    up_to,
)
from symmbfn.wyckoff import space_group


def choices(number: int, orbits: int, taken: frozenset[int] = frozenset()) -> set[tuple[int, ...]]:
    fixed = fixed_positions(number)
    letters = range(space_group(number).num_positions)
    return {
        chosen
        for chosen in combinations_with_replacement(letters, orbits)
        if all(chosen.count(one) == 1 and one not in taken for one in chosen if one in fixed)
    }


@pytest.mark.parametrize("number", [1, 2, 14, 62, 166, 194, 216, 225])
@pytest.mark.parametrize("orbits", [0, 1, 3])
def test_totals_are_those_of_every_choice(number: int, orbits: int) -> None:
    atoms = space_group(number).primitive_multiplicities
    expected = {int(sum(atoms[one] for one in chosen)) for chosen in choices(number, orbits)}
    assert totals(number, orbits) == sum(exactly(total) for total in expected)


@pytest.mark.parametrize("number", [2, 166, 225])
@pytest.mark.parametrize("wanted", [up_to(8), exactly(7), exactly(6)])
def test_possible_positions_leave_a_way_to_the_end(number: int, wanted: int) -> None:
    atoms = space_group(number).primitive_multiplicities
    taken = frozenset({0})
    possible = possible_positions(number, taken, int(atoms[0]), 2, wanted)
    for letter in range(len(atoms)):
        ends = [
            chosen
            for chosen in choices(number, 3, taken)
            if letter in chosen and exactly(int(atoms[0] + sum(atoms[list(chosen)]))) & wanted
        ]
        assert possible[letter] == bool(ends), letter
