"""Numbers of atoms, against trying every choice of positions."""

from itertools import combinations_with_replacement, product

import pytest

from symmbfn.occupation import (
    exactly,
    fixed_positions,
    orbits_for,
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


@pytest.mark.parametrize("number", [2, 62, 166, 216, 225])
@pytest.mark.parametrize("amounts", [(1,), (1, 1), (4, 4), (1, 2, 2), (2, 2, 6), (3, 5)])
def test_orbits_for_amounts_are_those_of_every_choice(
    number: int, amounts: tuple[int, ...]
) -> None:
    atoms = space_group(number).primitive_multiplicities
    most = 4
    expected = 0
    for orbits in range(1, most + 1):
        for chosen, elements in product(
            choices(number, orbits), product(range(len(amounts)), repeat=orbits)
        ):
            held = [0] * len(amounts)
            for letter, element in zip(chosen, elements, strict=True):
                held[element] += int(atoms[letter])
            if tuple(held) == amounts:
                expected |= exactly(orbits)
                break
    assert orbits_for(number, amounts) & up_to(most) == expected
