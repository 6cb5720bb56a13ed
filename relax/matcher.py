"""Whether two crystals match: the criterion of pymatgen's StructureMatcher, on arrays.

All cells are taken at one volume per atom. The lattices match if lattice vectors of the one have
the lengths of the other's basis within 20 % and its angles within 5 degrees; the crystals, if for
one of these bases and one shift each atom lies within 0.3 of the cube root of the volume per atom
of an atom of its kind, on the average of the two lattices. A mirror image matches.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import linear_sum_assignment

from relax.cells import Cell

if TYPE_CHECKING:
    from numpy.typing import NDArray

LENGTH_TOLERANCE, ANGLE_TOLERANCE, SITE_TOLERANCE = 0.2, 5.0, 0.3
"""StructureMatcher's ltol, angle_tol (degrees) and stol."""
VOLUME_TOLERANCE = (1 + LENGTH_TOLERANCE) ** 3
"""Factor between volumes per atom; StructureMatcher would match any."""
_CHUNK = 400_000  # pairs of atoms compared at once; bounds the memory
_FAR = 1e9  # Å², of atoms that cannot be paired
_IMAGES = np.array(np.meshgrid(*[[0, 1]] * 3)).T.reshape(-1, 3)


class Matcher:
    """A crystal that others are compared with, and what of it can be computed once."""

    def __init__(self, reduced: Cell) -> None:
        """Wrap a reduced primitive cell."""
        self.cell = reduced
        self._matrix = reduced.matrix / np.cbrt(reduced.volume_per_atom)

    @classmethod
    def of(cls, cell: Cell) -> Matcher:
        """Reduce a cell."""
        return cls(cell.reduced())

    def matches(self, other: Matcher) -> bool:
        """Tell whether a crystal of the same formula matches this one.

        As with StructureMatcher, few answers depend on which of the two is asked.
        """
        one, two = self.cell, other.cell
        ratio = one.volume_per_atom / two.volume_per_atom
        if len(one.numbers) != len(two.numbers) or not (
            1 / VOLUME_TOLERANCE <= ratio <= VOLUME_TOLERANCE
        ):
            return False
        return any(
            _fits(one, overlays)
            for search in (_own_basis, _bases)  # twins mostly have the same reduced cell
            if (found := search(self, other)) is not None
            for overlays in _overlays(one, two, found)
        )

    @cached_property
    def metric(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Lengths of the lattice vectors at volume one per atom, and the angles between, rad."""
        return _metric(self._matrix @ self._matrix.T)

    def vectors(self, longest: float) -> _Vectors:
        """Return the lattice vectors up to a length; those of the last call are kept."""
        if not hasattr(self, "_vectors") or self._vectors.longest < longest:
            self._vectors = _Vectors.of(self._matrix, max(longest, 1.3 * self.metric[0].max()))
        return self._vectors


@dataclass(frozen=True, eq=False)
class _Vectors:
    """Lattice vectors but for zero; row k is the opposite of the k-th last.

    Attributes:
        longest: Length up to which they are complete.
        multiples: Of the basis, shape (n, 3).
        lengths: Shape (n,).
        directions: Of length one, shape (n, 3).
    """

    longest: float
    multiples: NDArray[np.float64]
    lengths: NDArray[np.float64]
    directions: NDArray[np.float64]

    @classmethod
    def of(cls, matrix: NDArray[np.float64], longest: float) -> _Vectors:
        reach = np.floor(longest * np.linalg.norm(np.linalg.inv(matrix), axis=0)).astype(int)
        grid = np.indices(2 * reach + 1).reshape(3, -1).T - reach
        cart = grid @ matrix
        lengths = np.sqrt((cart**2).sum(axis=1))
        kept = (lengths <= longest) & (lengths > 0)
        lengths = lengths[kept]
        return cls(longest, grid[kept].astype(float), lengths, cart[kept] / lengths[:, None])


@dataclass(frozen=True, eq=False)
class _Bases:
    """Bases of one lattice that resemble the other's, best first, and the averages of both.

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


def _own_basis(one: Matcher, other: Matcher) -> _Bases | None:
    """Take the one's basis as it is, if it resembles the other's."""
    (own_lengths, own_angles), (lengths, angles) = one.metric, other.metric
    if (np.abs(own_angles - angles) > np.radians(ANGLE_TOLERANCE)).any() or (
        np.abs(np.log(own_lengths / lengths)) >= np.log(1 + LENGTH_TOLERANCE)
    ).any():
        return None
    return _averaged(one, other, np.eye(3)[None], own_lengths[None], own_angles[None])


def _bases(one: Matcher, other: Matcher) -> _Bases | None:
    """Find all bases of the one that resemble the other's."""
    lengths, angles = other.metric
    factor = 1 + LENGTH_TOLERANCE
    vectors = one.vectors(lengths.max() * factor)
    ratios = vectors.lengths / lengths[:, None]
    a, b, c = (np.flatnonzero(row) for row in (ratios < factor) & (ratios > 1 / factor))
    if not (len(a) and len(b) and len(c)):
        return None
    a = a[a >= len(vectors.lengths) // 2]  # the opposite bases are added below
    limit = np.radians(ANGLE_TOLERANCE)
    low, high = np.cos(np.minimum(angles + limit, np.pi)), np.cos(np.maximum(angles - limit, 0))
    from_a, from_b, from_c = (vectors.directions[row] for row in (a, b, c))
    i, j = np.nonzero(_between(from_a @ from_b.T, low[2], high[2]))
    alike = _between(from_b @ from_c.T, low[0], high[0])[j]
    alike &= _between(from_a @ from_c.T, low[1], high[1])[i]
    pairs, k = np.nonzero(alike)
    chosen = np.stack([a[i[pairs]], b[j[pairs]], c[k]], axis=1)
    bases = vectors.multiples[chosen]
    whole = np.abs(np.abs(np.linalg.det(bases)) - 1) < 0.5
    if not whole.any():
        return None
    chosen, bases = chosen[whole], bases[whole]
    found_lengths = vectors.lengths[chosen]
    directions = vectors.directions[chosen]
    cosines = (directions[:, [1, 0, 0]] * directions[:, [2, 2, 1]]).sum(axis=2)
    found_angles = np.arccos(np.clip(cosines, -1, 1))
    off = ((found_lengths / lengths - 1) ** 2 + (found_angles - angles) ** 2).sum(axis=1)
    best = np.argsort(off)
    inverses = np.rint(np.linalg.inv(bases[best]))
    return _averaged(one, other, inverses, found_lengths[best], found_angles[best])


def _averaged(
    one: Matcher,
    other: Matcher,
    inverses: NDArray[np.float64],
    found_lengths: NDArray[np.float64],
    found_angles: NDArray[np.float64],
) -> _Bases:
    """Average bases with the other's; each counts twice, as it is and turned to its opposite."""
    lengths, angles = other.metric
    averages = _basis((found_lengths + lengths) / 2, (found_angles + angles) / 2)
    inverse_averages = np.linalg.inv(averages)
    atoms = len(one.cell.numbers)
    scales = np.cbrt(atoms / averages[:, [0, 1, 2], [0, 1, 2]].prod(axis=1))
    reciprocal = np.sqrt((inverse_averages**2).sum(axis=1))
    tolerances = 2 * SITE_TOLERANCE * reciprocal / scales[:, None]
    return _Bases(
        np.stack([inverses, -inverses], axis=1).reshape(-1, 3, 3),
        averages.repeat(2, axis=0),
        scales.repeat(2),
        tolerances.repeat(2, axis=0),
    )


@dataclass(frozen=True, eq=False)
class _Overlays:
    """Ways to lay one crystal over the other that bring all atoms near one of their kind.

    Attributes:
        placed: Fractional coordinates of the one crystal, shape (n, N, 3).
        shifted: Those of the other.
        averages: As in `_Bases`, one for each way; likewise the rest.
    """

    placed: NDArray[np.float64]
    shifted: NDArray[np.float64]
    averages: NDArray[np.float64]
    scales: NDArray[np.float64]
    tolerances: NDArray[np.float64]


def _overlays(one: Cell, other: Cell, found: _Bases) -> Iterator[_Overlays]:
    """Lay an atom of the rarest element over each of its kind, in all bases."""
    first = one.groups[0]
    rows, columns, starts = one.pairs
    ends = [*starts[1:], len(rows)]
    step = max(1, _CHUNK // (first.stop * len(rows)))
    begin, end = 0, min(2, step)  # the best bases first: most twins are found with them
    while begin < len(found.inverses):
        placed = one.coords @ found.inverses[begin:end]
        shifts = (placed[:, first] - other.coords[0]).reshape(-1, 3)
        which = np.arange(len(placed)).repeat(first.stop)
        for lower, upper in _stages(len(starts)):
            some = slice(starts[lower], ends[upper - 1])
            apart = placed[which][:, columns[some]]
            apart -= other.coords[rows[some]]
            apart -= shifts[:, None]
            apart -= np.rint(apart)
            near = (np.abs(apart) <= found.tolerances[begin + which, None]).all(axis=2)
            kept = np.logical_or.reduceat(near, starts[lower:upper] - starts[lower], axis=1)
            kept = np.flatnonzero(kept.all(axis=1))
            which, shifts = which[kept], shifts[kept]
            if not len(which):
                break
        for chosen in (slice(1), slice(1, None)):  # nearly always the first fits if any does
            if len(which[chosen]):
                bases = begin + which[chosen]
                yield _Overlays(
                    placed[which[chosen]],
                    other.coords + shifts[chosen, None],
                    found.averages[bases],
                    found.scales[bases],
                    found.tolerances[bases],
                )
        begin, end = end, end + step


def _stages(atoms: int) -> list[tuple[int, int]]:
    """Split the atoms of a crystal: most overlays fail with the first of them."""
    bounds = sorted({0, min(3, atoms), atoms})
    return list(itertools.pairwise(bounds))


def _fits(one: Cell, overlays: _Overlays) -> bool:
    """Tell whether some overlay assigns all atoms to others within the tolerance."""
    rows, columns, _ = one.pairs
    atoms = np.arange(len(one.numbers))
    step = max(1, _CHUNK // len(rows))
    for begin in range(0, len(overlays.scales), step):
        some = slice(begin, begin + step)
        apart = overlays.placed[some][:, columns]
        apart -= overlays.shifted[some][:, rows]
        apart -= np.rint(apart)
        near = (np.abs(apart) <= overlays.tolerances[some, None]).all(axis=2)
        ways, pairs = np.nonzero(near)
        vectors = _shortest(apart[ways, pairs], overlays.averages[some][ways])
        which = np.zeros((len(near), len(atoms), len(atoms)), dtype=int)
        which[ways, rows[pairs], columns[pairs]] = np.arange(len(ways))
        costs = np.full(which.shape, _FAR)
        costs[ways, rows[pairs], columns[pairs]] = (vectors**2).sum(axis=1)
        partners = costs.argmin(axis=2)
        paired = (np.sort(partners, axis=1) == atoms).all(axis=1)
        for way in np.flatnonzero(~paired):
            partners[way] = linear_sum_assignment(costs[way])[1]
            paired[way] = costs[way, atoms, partners[way]].max() < _FAR
        moves = vectors[np.take_along_axis(which, partners[..., None], axis=2)[paired, :, 0]]
        moves -= moves.mean(axis=1, keepdims=True)
        farthest = (moves**2).sum(axis=2).max(axis=1)
        if (farthest < (SITE_TOLERANCE / overlays.scales[some][paired]) ** 2).any():
            return True
    return False


def _shortest(
    apart: NDArray[np.float64], matrices: NDArray[np.float64]
) -> NDArray[np.float64]:
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
    return vectors[np.arange(len(vectors)), best]


def _between(values: NDArray[np.float64], low: float, high: float) -> NDArray[np.bool_]:
    return (low <= values) & (values <= high)


def _metric(grams: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return lengths and angles (radians) of bases by their scalar products, (..., 3) each."""
    lengths = np.sqrt(np.diagonal(grams, axis1=-2, axis2=-1))
    products = np.stack([grams[..., 1, 2], grams[..., 0, 2], grams[..., 0, 1]], axis=-1)
    sides = lengths[..., [1, 0, 0]] * lengths[..., [2, 2, 1]]
    return lengths, np.arccos(np.clip(products / sides, -1, 1))


def _basis(lengths: NDArray[np.float64], angles: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return lattice vectors as rows of lengths and angles, shape (n, 3, 3)."""
    cosines = np.ones((len(lengths), 3, 3))
    for k, (i, j) in enumerate(((1, 2), (0, 2), (0, 1))):
        cosines[:, i, j] = cosines[:, j, i] = np.cos(angles[:, k])
    return np.linalg.cholesky(cosines * lengths[:, :, None] * lengths[:, None])
