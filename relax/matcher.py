"""Whether two crystals match: the criterion of pymatgen's StructureMatcher, on arrays.

All cells are taken at one volume per atom. The lattices match if lattice vectors of the one have
the lengths of the other's basis within 20 % and its angles within 5 degrees; the crystals, if for
one of these bases and one shift each atom lies within 0.3 of the cube root of the volume per atom
of an atom of its kind, on the average of the two lattices. A mirror image matches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import batched
from typing import TYPE_CHECKING

import numpy as np

from relax.cells import Cell
from relax.overlays import SITE_TOLERANCE, Bases, Batch

if TYPE_CHECKING:
    from numpy.typing import NDArray

LENGTH_TOLERANCE, ANGLE_TOLERANCE = 0.2, 5.0
"""StructureMatcher's ltol, and angle_tol in degrees."""
VOLUME_TOLERANCE = (1 + LENGTH_TOLERANCE) ** 3
"""Factor between volumes per atom; StructureMatcher would match any."""
_BATCH = 256  # pairs compared at once


class Matcher:
    """A reduced cell that is compared with others, and what of it can be computed once."""

    def __init__(self, reduced: Cell) -> None:
        """Wrap a reduced primitive cell."""
        self.cell = reduced
        self._matrix = reduced.matrix / np.cbrt(reduced.volume_per_atom)
        self._vectors: _Vectors | None = None

    @classmethod
    def of(cls, cell: Cell) -> Matcher:
        """Reduce a cell."""
        return cls(cell.reduced())

    @cached_property
    def metric(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Lengths of the lattice vectors at volume one per atom, and the angles between, rad."""
        return _metric(self._matrix @ self._matrix.T)

    def vectors(self, longest: float) -> _Vectors:
        """Return the lattice vectors up to a length; those of the last call are kept."""
        if self._vectors is None or self._vectors.longest < longest:
            self._vectors = _Vectors.of(self._matrix, max(longest, 1.3 * self.metric[0].max()))
        return self._vectors


def match_pairs(ones: Sequence[Matcher], others: Sequence[Matcher]) -> NDArray[np.bool_]:
    """Compare crystals pair by pair; many pairs at once cost less each.

    As with StructureMatcher, few answers depend on which of the two is `one`.

    Args:
        ones: Of any length.
        others: As many, each of the same formula as its partner.

    Returns:
        Whether each pair matches.
    """
    found = np.zeros(len(ones), dtype=bool)
    open_pairs = [row for row in range(len(ones)) if _may_match(ones[row].cell, others[row].cell)]
    for some in batched(open_pairs, _BATCH):
        batch = Batch([ones[row].cell for row in some], [others[row].cell for row in some])
        # Twins mostly have the same reduced cell, so that is tried before any other basis.
        batch.lay(*_own_bases([ones[row] for row in some], [others[row] for row in some]))
        for rest in batched(np.flatnonzero(~batch.fitted).tolist(), _BATCH // 8):
            bases = [(i, _bases(ones[some[i]], others[some[i]])) for i in rest]
            batch.lay(*_joined(bases))
        found[list(some)] = batch.fitted
    return found


def _may_match(one: Cell, other: Cell) -> bool:
    ratio = one.volume_per_atom / other.volume_per_atom
    return (
        len(one.numbers) == len(other.numbers) and 1 / VOLUME_TOLERANCE <= ratio <= VOLUME_TOLERANCE
    )


def _joined(found: Sequence[tuple[int, Bases | None]]) -> tuple[NDArray[np.int64], Bases]:
    """Join the bases of several pairs, with the pair of each."""
    some = [(pair, bases) for pair, bases in found if bases is not None]
    pairs = np.repeat([pair for pair, _ in some], [len(bases.scales) for _, bases in some])
    return pairs.astype(int), Bases.joined([bases for _, bases in some])


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
        grid = np.indices((2 * reach + 1).tolist()).reshape(3, -1).T - reach
        cart = grid @ matrix
        lengths = np.sqrt((cart**2).sum(axis=1))
        kept = (lengths <= longest) & (lengths > 0)
        lengths = lengths[kept]
        return cls(longest, grid[kept].astype(float), lengths, cart[kept] / lengths[:, None])


def _own_bases(
    ones: Sequence[Matcher], others: Sequence[Matcher]
) -> tuple[NDArray[np.int64], Bases]:
    """Take the reduced bases as they are where they resemble each other.

    Returns:
        Which pairs those are, and for each its basis.
    """
    own_lengths, own_angles = (
        np.array(part) for part in zip(*(m.metric for m in ones), strict=True)
    )
    lengths, angles = (np.array(part) for part in zip(*(m.metric for m in others), strict=True))
    off = np.abs(np.log(own_lengths / lengths)) / np.log(1 + LENGTH_TOLERANCE)
    off = np.maximum(off, np.abs(own_angles - angles) / np.radians(ANGLE_TOLERANCE))
    pairs = np.flatnonzero((off < 1).all(axis=1))
    atoms = np.array([len(one.cell.numbers) for one in ones])[pairs]
    inverses = np.broadcast_to(np.eye(3), (len(pairs), 3, 3))
    found_lengths, found_angles = own_lengths[pairs], own_angles[pairs]
    return pairs, _averaged(
        atoms, inverses, found_lengths, found_angles, lengths[pairs], angles[pairs]
    )


def _bases(one: Matcher, other: Matcher) -> Bases | None:
    """Find all bases of the one that resemble the other's."""
    lengths, angles = other.metric
    factor = 1 + LENGTH_TOLERANCE
    vectors = one.vectors(lengths.max() * factor)
    ratios = vectors.lengths / lengths[:, None]
    a, b, c = (np.flatnonzero(row) for row in (ratios < factor) & (ratios > 1 / factor))
    if not (len(a) and len(b) and len(c)):
        return None
    a = a[a >= len(vectors.lengths) // 2]  # opposite bases are tried together
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
    atoms = np.array(len(one.cell.numbers))
    return _averaged(atoms, inverses, found_lengths[best], found_angles[best], lengths, angles)


def _averaged(
    atoms: NDArray[np.int64],
    inverses: NDArray[np.float64],
    found_lengths: NDArray[np.float64],
    found_angles: NDArray[np.float64],
    lengths: NDArray[np.float64],
    angles: NDArray[np.float64],
) -> Bases:
    """Average the bases found, of so many atoms, with those that they resemble."""
    averages = _basis((found_lengths + lengths) / 2, (found_angles + angles) / 2)
    scales = np.cbrt(atoms / averages[:, [0, 1, 2], [0, 1, 2]].prod(axis=1))
    reciprocal = np.sqrt((np.linalg.inv(averages) ** 2).sum(axis=1))
    return Bases(inverses, averages, scales, 2 * SITE_TOLERANCE * reciprocal / scales[:, None])


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
