"""Laying crystals over each other: whether all atoms come near one of their kind.

Many pairs of crystals are worked on at once, in flat arrays that hold one pair after the other. A
trial is one way to lay a pair: in a basis, turned to its opposite or not, with the first atom of
the other crystal, which is of the rarest element, over one of its kind.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import linear_sum_assignment

from relax.cells import Cell

if TYPE_CHECKING:
    from numpy.typing import NDArray

SITE_TOLERANCE = 0.3
"""StructureMatcher's stol: of the cube root of the volume per atom."""
_CHUNK = 400_000  # pairs of atoms compared at once; bounds the memory
_FIRST = 3  # atoms that are laid before the others: most trials fail with them
_FAR = 1e9  # Å², of atoms that cannot be paired
_IMAGES = np.array(np.meshgrid(*[[0, 1]] * 3)).T.reshape(-1, 3)


@dataclass(frozen=True, eq=False)
class Bases:
    """Bases of one lattice that resemble the other's, and the averages of both.

    Attributes:
        inverses: Fractional coordinates times these are those in the bases, shape (n, 3, 3).
        averages: Lattice vectors as rows, shape (n, 3, 3).
        scales: Inverse cube roots of their volumes per atom, shape (n,).
        tolerances: How far apart atoms may be in fractional coordinates, shape (n, 3).
    """

    inverses: NDArray[np.float64]
    averages: NDArray[np.float64]
    scales: NDArray[np.float64]
    tolerances: NDArray[np.float64]

    @classmethod
    def joined(cls, several: Sequence[Bases]) -> Bases:
        """Put one after the other."""
        if not several:
            return cls(*(np.zeros((0, *shape)) for shape in ((3, 3), (3, 3), (), (3,))))
        parts = (np.concatenate([getattr(one, f.name) for one in several]) for f in fields(cls))
        return cls(*parts)


@dataclass(frozen=True, eq=False)
class _Trials:
    """Trials, shape (n,) each: of which pair, in which basis, and where the atoms are placed.

    Attributes:
        pairs: Which pair each is of.
        bases: Which of the bases it uses.
        begins: Where the placed atoms of its basis begin.
        shifts: What the other crystal is moved by, fractional, shape (n, 3).
    """

    pairs: NDArray[np.int64]
    bases: NDArray[np.int64]
    begins: NDArray[np.int64]
    shifts: NDArray[np.float64]

    def __getitem__(self, some: NDArray[np.int64]) -> _Trials:
        return _Trials(self.pairs[some], self.bases[some], self.begins[some], self.shifts[some])


class Batch:
    """Pairs of crystals of like formula and size.

    Attributes:
        fitted: Which pairs have been found to match.
    """

    def __init__(self, ones: Sequence[Cell], others: Sequence[Cell]) -> None:
        """Line up the atoms of all pairs."""
        self.fitted = np.zeros(len(ones), dtype=bool)
        self._one = np.concatenate([cell.coords for cell in ones])
        self._other = np.concatenate([cell.coords for cell in others])
        self._atoms = np.array([len(cell.numbers) for cell in ones])
        self._begins = np.cumsum(self._atoms) - self._atoms
        self._anchors = np.array([cell.groups[0].stop for cell in ones])
        # Of each atom: how many are of its kind, and the first of those in its crystal.
        kinds = [(g.stop - g.start, g.start) for cell in ones for g in cell.groups]
        sizes = [size for size, _ in kinds]
        self._alike = np.repeat(sizes, sizes)
        self._first_alike = np.repeat([first for _, first in kinds], sizes)

    def lay(self, pairs: NDArray[np.int64], bases: Bases) -> None:
        """Try all bases on their pairs, and note which pairs fit.

        Args:
            pairs: Of each of the bases.
            bases: The likelier first.
        """
        pairs = np.concatenate([pairs, pairs])
        inverses = np.concatenate([bases.inverses, -bases.inverses])
        owners, atoms = _ragged(self._atoms[pairs])
        placed = (self._one[self._begins[pairs][owners] + atoms][:, None] @ inverses[owners])[:, 0]
        begins = np.cumsum(self._atoms[pairs]) - self._atoms[pairs]
        owners, anchors = _ragged(self._anchors[pairs])
        trials = _Trials(
            pairs[owners],
            owners % max(1, len(bases.scales)),
            begins[owners],
            placed[begins[owners] + anchors] - self._other[self._begins[pairs[owners]]],
        )
        for some in _chunks(self._atoms[trials.pairs] * _FIRST):
            part = trials[some[~self.fitted[trials.pairs[some]]]]
            for lower, upper in ((0, _FIRST), (_FIRST, None)):
                part = part[self._near(part, placed, bases, lower, upper)]
            _, firsts = np.unique(part.pairs, return_index=True)
            self._fit(part[firsts], placed, bases)  # nearly always the first fits if any does
            part = part[np.flatnonzero(~self.fitted[part.pairs])]
            for rest in _chunks(self._atoms[part.pairs] ** 2):
                self._fit(part[rest], placed, bases)

    def _near(
        self,
        trials: _Trials,
        placed: NDArray[np.float64],
        bases: Bases,
        lower: int,
        upper: int | None,
    ) -> NDArray[np.int64]:
        """Return the trials in which each of some atoms of the other has one near it."""
        atoms = self._atoms[trials.pairs]
        counts = np.clip(atoms if upper is None else np.minimum(atoms, upper), lower, None) - lower
        owners, rows = _ragged(counts)
        if not len(owners):
            return np.arange(len(atoms))
        which, _, begins, apart = self._apart(trials, placed, owners, rows + lower)
        near = (np.abs(apart) <= bases.tolerances[trials.bases[which]]).all(axis=1)
        lonely = owners[~np.logical_or.reduceat(near, begins)]
        kept = np.ones(len(atoms), dtype=bool)
        kept[lonely] = False
        return np.flatnonzero(kept)

    def _fit(self, trials: _Trials, placed: NDArray[np.float64], bases: Bases) -> None:
        """Note the pairs of trials that assign all atoms to others within the tolerance."""
        if not len(trials.pairs):
            return
        atoms = self._atoms[trials.pairs]
        owners, rows = _ragged(atoms)
        which, columns, begins, apart = self._apart(trials, placed, owners, rows)
        of_basis = trials.bases[which]
        near = np.flatnonzero((np.abs(apart) <= bases.tolerances[of_basis]).all(axis=1))
        vectors = np.zeros_like(apart)
        vectors[near] = _shortest(apart[near], bases.averages[of_basis[near]])
        costs = np.full(len(apart), _FAR)
        costs[near] = (vectors[near] ** 2).sum(axis=1)
        segments = np.cumsum(np.bincount(begins, minlength=len(apart))) - 1
        hits = np.flatnonzero(costs == np.minimum.reduceat(costs, begins)[segments])
        chosen = hits[np.searchsorted(segments[hits], np.arange(len(begins)))]
        widest = int(atoms.max())
        keys = np.bincount(owners * widest + columns[chosen], minlength=len(atoms) * widest)
        bounds = np.cumsum(atoms) - atoms
        sound = np.ones(len(atoms), dtype=bool)
        for trial in np.flatnonzero((keys.reshape(-1, widest) > 1).any(axis=1)):
            # Some atoms share their nearest, so pair them off at the least sum of squares.
            own = slice(bounds[trial], bounds[trial] + atoms[trial])
            entries = np.flatnonzero(which == trial)
            matrix = np.full((atoms[trial], atoms[trial]), _FAR)
            place = np.zeros(matrix.shape, dtype=int)
            index = rows[segments[entries]], columns[entries]
            matrix[index], place[index] = costs[entries], entries
            partners = linear_sum_assignment(matrix)
            sound[trial] = matrix[partners].max() < _FAR
            chosen[own] = place[partners]
        moves = vectors[chosen]
        moves -= (np.add.reduceat(moves, bounds) / atoms[:, None])[owners]
        farthest = np.sqrt(np.maximum.reduceat((moves**2).sum(axis=1), bounds))
        within = sound & (farthest * bases.scales[trials.bases] < SITE_TOLERANCE)
        self.fitted[trials.pairs[within]] = True

    def _apart(
        self,
        trials: _Trials,
        placed: NDArray[np.float64],
        owners: NDArray[np.int64],
        rows: NDArray[np.int64],
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        """Take each atom of the other crystal with all of its kind of the one.

        Args:
            trials: Any.
            placed: Fractional coordinates of the one crystal in all bases.
            owners: The trial of each atom.
            rows: Which atom of its crystal each is.

        Returns:
            Of each combination the trial and the atom of the one crystal; where the combinations of
            each atom begin; how far they are apart, fractional, shape (combinations, 3).
        """
        at = self._begins[trials.pairs[owners]] + rows
        sizes = self._alike[at]
        atoms, columns = _ragged(sizes)
        which = owners[atoms]
        columns += self._first_alike[at][atoms]
        apart = placed[trials.begins[which] + columns]
        apart -= (self._other[at] + trials.shifts[owners])[atoms]
        apart -= np.rint(apart)
        return which, columns, np.cumsum(sizes) - sizes, apart


def _ragged(counts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Count up to each number in turn: [2, 3] gives owners 0 0 1 1 1 and places 0 1 0 1 2."""
    owners = np.repeat(np.arange(len(counts)), counts)
    return owners, np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts)


def _chunks(sizes: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Split rows so that the sizes of each part add up to about `_CHUNK`."""
    part = np.cumsum(sizes) // _CHUNK
    for begin, end in zip(
        np.flatnonzero(np.diff(part, prepend=-1)),
        [*np.flatnonzero(np.diff(part)) + 1, len(part)],
        strict=False,
    ):
        yield np.arange(begin, end)


def _shortest(apart: NDArray[np.float64], matrices: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the shortest of all equivalent vectors.

    Args:
        apart: Fractional, from -0.5 to 0.5, shape (n, 3).
        matrices: Nearly reduced lattice vectors as rows, shape (n, 3, 3).

    Returns:
        Cartesian, shape (n, 3).
    """
    images = apart[:, None] - np.where(apart < 0, -1.0, 1.0)[:, None] * _IMAGES
    vectors = images @ matrices
    best = (vectors**2).sum(axis=2).argmin(axis=1)
    shortest: NDArray[np.float64] = vectors[np.arange(len(vectors)), best]
    return shortest
