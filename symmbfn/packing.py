"""Filling a formula: which element an orbit can be so that the atoms of each come out right."""

from functools import lru_cache


@lru_cache(maxsize=1 << 18)
def fillable(orbits: tuple[int, ...], atoms: tuple[int, ...]) -> bool:
    """Whether orbits can be shared out among elements so that each gets its number of atoms.

    Args:
        orbits: Atoms of each orbit, descending.
        atoms: Wanted of each element, descending.
    """
    if sum(orbits) != sum(atoms):
        return False
    if not orbits:
        return True
    first, rest = orbits[0], orbits[1:]
    tried = set()
    for index, wanted in enumerate(atoms):
        if first <= wanted and wanted not in tried:
            tried.add(wanted)
            left = (*atoms[:index], wanted - first, *atoms[index + 1 :])
            if fillable(rest, tuple(sorted(left, reverse=True))):
                return True
    return False


def possible_elements(orbit: int, others: list[int], missing: dict[int, int]) -> list[int]:
    """Elements that an orbit can be.

    Args:
        orbit: Its atoms.
        others: Atoms of the orbits that follow.
        missing: Atoms still wanted of each element.
    """
    rest = tuple(sorted(others, reverse=True))
    possible = []
    for element, atoms in missing.items():
        if atoms >= orbit:
            left = [n for other, n in missing.items() if other != element]
            if fillable(rest, tuple(sorted([*left, atoms - orbit], reverse=True))):
                possible.append(element)
    return possible
