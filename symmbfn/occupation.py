"""Counting atoms: which Wyckoff positions can be occupied so that their number comes out right.

A set of numbers of atoms is an int whose bit n stands for n atoms.
"""

from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray

from symmbfn.wyckoff import space_group


def up_to(atoms: int) -> int:
    """The numbers 1 to `atoms`."""
    return (1 << (atoms + 1)) - 2


def exactly(atoms: int) -> int:
    """One number."""
    return 1 << atoms


@lru_cache(maxsize=1 << 16)
def totals(number: int, orbits: int, taken: frozenset[int] = frozenset()) -> int:
    """Numbers of atoms in the primitive cell that so many more orbits can make.

    Args:
        number: Of the space group.
        orbits: How many; a position without free coordinates holds one at most.
        taken: Positions without free coordinates that are occupied already.
    """
    fixed, free = _multiplicities(number)
    reached = [1, *[0] * orbits]  # by 0, 1, … orbits
    for letter, atoms in fixed.items():
        if letter not in taken:
            for k in range(orbits, 0, -1):
                reached[k] |= reached[k - 1] << atoms
    for atoms in set(free.values()):
        for k in range(1, orbits + 1):
            reached[k] |= reached[k - 1] << atoms
    return reached[orbits]


@lru_cache(maxsize=1 << 16)
def possible_positions(
    number: int, taken: frozenset[int], atoms: int, to_come: int, wanted: int
) -> NDArray[np.bool_]:
    """(p,) positions that the next orbit may take.

    Args:
        number: Of the space group.
        taken: Positions without free coordinates that are occupied already.
        atoms: Of the orbits placed so far.
        to_come: Orbits after this one.
        wanted: Numbers of atoms that the finished crystal may have.
    """
    fixed, free = _multiplicities(number)
    possible = np.zeros(len(fixed) + len(free), dtype=bool)
    for letter, own in free.items():
        possible[letter] = (totals(number, to_come, taken) << (atoms + own)) & wanted
    for letter, own in fixed.items():
        if letter not in taken:
            rest = totals(number, to_come, taken | {letter})
            possible[letter] = (rest << (atoms + own)) & wanted
    return possible


def orbits_for(number: int, amounts: tuple[int, ...]) -> int:
    """Numbers of orbits that can hold so many atoms of each element; 0 where none can.

    Args:
        number: Of the space group.
        amounts: Atoms of each element in the primitive cell, in any order.

    Returns:
        A set of numbers of orbits, as those of atoms are.
    """
    fixed, free = _multiplicities(number)
    return _orbits_for(amounts, tuple(sorted(fixed.values())), frozenset(free.values()))


@lru_cache(maxsize=1 << 16)
def _orbits_for(amounts: tuple[int, ...], fixed: tuple[int, ...], free: frozenset[int]) -> int:
    """See `orbits_for`: `fixed` are the multiplicities of positions that one orbit fills."""
    if not amounts:
        return 1
    first, *others = amounts
    if not first:
        return _orbits_for(tuple(others), fixed, free)
    found = 0
    for atoms in {*fixed, *free}:
        if atoms <= first:
            left = list(fixed)
            if atoms not in free:
                left.remove(atoms)
            found |= _orbits_for((first - atoms, *others), tuple(left), free) << 1
    return found


@cache
def fixed_positions(number: int) -> frozenset[int]:
    """Positions without free coordinates, of which an orbit fills the whole."""
    return frozenset(_multiplicities(number)[0])


@cache
def _multiplicities(number: int) -> tuple[dict[int, int], dict[int, int]]:
    """Atoms in the primitive cell by position: those without free coordinates, and the others."""
    group = space_group(number)
    fixed: dict[int, int] = {}
    free: dict[int, int] = {}
    rows = zip(group.primitive_multiplicities, group.degrees_of_freedom, strict=True)
    for letter, (atoms, freedom) in enumerate(rows):
        (free if freedom else fixed)[letter] = int(atoms)
    return fixed, free
