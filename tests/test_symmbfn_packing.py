"""Filling a formula, against trying everything."""

from itertools import product

import pytest

from symmbfn.packing import fillable, possible_elements


@pytest.mark.parametrize("orbits", [(1,), (2, 1, 1), (3, 2, 2, 1), (4, 4, 2, 1, 1), (6, 3, 3)])
@pytest.mark.parametrize("atoms", [(1,), (2, 2), (4, 3, 1), (5, 3), (6, 6), (8, 3, 1), (12,)])
def test_fillable_is_what_trying_everything_says(
    orbits: tuple[int, ...], atoms: tuple[int, ...]
) -> None:
    def shares(choice: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(
            sum(n for n, owner in zip(orbits, choice, strict=True) if owner == element)
            for element in range(len(atoms))
        )

    expected = any(
        shares(choice) == atoms for choice in product(range(len(atoms)), repeat=len(orbits))
    )
    assert fillable(orbits, atoms) == expected


def test_possible_elements_leave_a_way_to_the_end() -> None:
    """Six O and two Ti are missing; an orbit of 4 must be O, for 2 remain for each."""
    assert possible_elements(4, [2, 2], {7: 6, 21: 2}) == [7]
    assert possible_elements(2, [4, 2], {7: 6, 21: 2}) == [7, 21]
    assert possible_elements(8, [], {7: 6, 21: 2}) == []
