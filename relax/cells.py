"""Crystals in the form that they are compared in: the reduced primitive cell, as plain arrays.

As StructureMatcher prepares them: the Niggli cell, and of that the smallest cell whose translations
carry every atom onto one of its kind within 0.25 Å along each axis, with the positions averaged.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pymatgen.core import Structure

_CHUNK = 400_000  # pairs of atoms compared at once; bounds the memory
_LEAST_VOLUME = 0.1  # Å³ per atom
_PRIMITIVE_TOLERANCE = 0.25  # Å along each axis, pymatgen's default
Formula = tuple[tuple[int, int], ...]
"""Atomic numbers with their amounts, without a common divisor."""


@dataclass(frozen=True, eq=False)
class Cell:
    """Atoms in a cell, grouped by element: the rarest first, of equally rare the lighter.

    Attributes:
        matrix: Lattice vectors as rows, Å, shape (3, 3).
        coords: Fractional, shape (N, 3).
        numbers: Atomic numbers, shape (N,).
    """

    matrix: NDArray[np.float64]
    coords: NDArray[np.float64]
    numbers: NDArray[np.uint8]

    @classmethod
    def of(cls, structure: Structure) -> Cell | None:
        """Take over a structure as it is; None where it cannot be compared.

        That is where it is disordered, a number is not finite, or the volume makes no sense.
        """
        matrix, coords = structure.lattice.matrix, structure.frac_coords
        if not (
            len(structure)
            and np.isfinite(matrix).all()
            and np.isfinite(coords).all()
            and structure.volume > _LEAST_VOLUME * len(structure)
        ):
            return None
        try:
            numbers = np.array([site.specie.Z for site in structure], dtype=np.uint8)
        except AttributeError:  # a site of several species, or partly occupied
            return None
        amounts = np.bincount(numbers)
        order = np.lexsort((numbers, amounts[numbers]))
        return cls(matrix, coords[order], numbers[order])

    @cached_property
    def groups(self) -> list[slice]:
        """Where the atoms of each element are."""
        ends = (np.flatnonzero(self.numbers[1:] != self.numbers[:-1]) + 1).tolist()
        ends.append(len(self.numbers))
        return [slice(begin, end) for begin, end in zip([0, *ends], ends, strict=False)]

    @cached_property
    def pairs(self) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
        """Pairs of atoms of one element: rows, columns, and where those of each row begin."""
        rows, columns = np.nonzero(self.numbers[:, None] == self.numbers)
        return rows, columns, np.searchsorted(rows, np.arange(len(self.numbers)))

    @cached_property
    def volume_per_atom(self) -> float:
        """Å³."""
        return abs(float(np.linalg.det(self.matrix))) / len(self.numbers)

    @cached_property
    def formula(self) -> Formula:
        """The same for every cell of a composition."""
        amounts = [group.stop - group.start for group in self.groups]
        divisor = math.gcd(*amounts)
        symbols = [int(self.numbers[group.start]) for group in self.groups]
        return tuple(zip(symbols, (n // divisor for n in amounts), strict=True))

    def reduced(self) -> Cell:
        """Return the reduced primitive cell.

        Raises:
            Exception: Whatever a strange cell leads the reduction to.
        """
        cell = self._niggli()
        if (smaller := cell._smaller()) is None:
            return cell
        while (smallest := smaller._smaller()) is not None:
            smaller = smallest
        return smaller._niggli()

    def _niggli(self) -> Cell:
        import moyopy

        matrix, transformation = moyopy.niggli_reduce(self.matrix.tolist())
        inverse = np.rint(np.linalg.inv(np.array(transformation, dtype=float).T))
        return Cell(np.array(matrix), self.coords @ inverse % 1.0, self.numbers)

    def _smaller(self) -> Cell | None:
        """Find the smallest multiple by which the cell can be divided; None where there is none."""
        units = math.gcd(*(group.stop - group.start for group in self.groups))
        if units == 1:
            return None
        parts = [self.coords[group] for group in self.groups]
        tolerance = _PRIMITIVE_TOLERANCE / np.linalg.norm(self.matrix, axis=1)
        shifts = parts[0] - parts[0][0]  # the rarest element has the fewest
        for part in parts:  # each shift must carry all atoms onto their likes
            step = max(1, _CHUNK // len(part) ** 2)
            carried = [
                _near(some[:, None, None] + part[None, :, None], part, 2 * tolerance)
                for some in np.split(shifts, range(step, len(shifts), step))
            ]
            shifts = shifts[np.concatenate([near.any(axis=2).all(axis=1) for near in carried])]
            if len(shifts) == 1:
                return None
        for size in (n for n in range(2, len(shifts) + 1) if units % n == 0):
            inverses, multiples = _multiples(size)
            near = _near(inverses[:, :, None], shifts[None, None], tolerance)
            for row in np.flatnonzero(near.any(axis=2).all(axis=1)):
                divided = self._divided(inverses[row], multiples[row], size, tolerance)
                if divided is not None:
                    return divided
        return None

    def _divided(
        self,
        inverse: NDArray[np.float64],
        multiple: NDArray[np.float64],
        size: int,
        tolerance: NDArray[np.float64],
    ) -> Cell | None:
        """Divide the cell, which is this multiple of the smaller one, if all atoms agree."""
        matrix = inverse @ self.matrix
        near = _PRIMITIVE_TOLERANCE / np.linalg.norm(matrix, axis=1)
        coords = []
        for group in self.groups:
            apart = ~_near(self.coords[group][None], self.coords[group][:, None], 2 * tolerance)
            np.fill_diagonal(apart, val=True)  # atoms apart in this cell may be one in the smaller
            inside = self.coords[group] @ multiple
            same = _near(inside[None], inside[:, None], near) & apart
            if (same.sum(axis=0) != size).any() or not (same[same.argmax(axis=0)] == same).all():
                return None
            firsts = np.unique(same.argmax(axis=0))
            for members in same[firsts]:
                offsets = inside[members] - inside[members][0]
                offsets -= np.rint(offsets)
                coords.append(inside[members][0] + offsets.mean(axis=0))
        return Cell(matrix, np.array(coords) % 1.0, self.numbers[::size])


def _near(
    one: NDArray[np.float64], other: NDArray[np.float64], tolerance: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Compare fractional coordinates axis by axis, shape (..., 3) → (...)."""
    apart = one - other
    apart -= np.rint(apart)
    near: NDArray[np.bool_] = (np.abs(apart) < tolerance).all(axis=-1)
    return near


@lru_cache(maxsize=64)
def _multiples(size: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return all lattices of so many times the volume: inverses, and Hermite normal forms.

    Both of shape (multiples, 3, 3).
    """
    forms = [
        [[a, b, c], [0, e, f], [0, 0, size // a // e]]
        for a in range(1, size + 1)
        if size % a == 0
        for e in range(1, size // a + 1)
        if size // a % e == 0
        for b, c, f in itertools.product(range(a), range(a), range(e))
    ]
    return np.linalg.inv(np.array(forms, dtype=float)), np.array(forms, dtype=float)
