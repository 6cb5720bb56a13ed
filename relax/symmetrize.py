"""Makes a crystal exactly symmetric, and projects gradients so that it stays so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from relax.symmetry import dataset

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pymatgen.core import Structure

_EXACT = 1e-4  # Å, tolerance under which a crystal made symmetric must still be so
_ROUNDS = 5


@dataclass(frozen=True)
class Symmetry:
    """The space-group operations of one crystal, G of them, in its own cell.

    Attributes:
        rotations: Cartesian, acting on column vectors, orthogonal, shape (G, 3, 3).
        images: The atom that each atom is moved onto, shape (G, N).
    """

    rotations: NDArray[np.float64]
    images: NDArray[np.int64]

    def of_vectors(self, vectors: NDArray[np.float64]) -> NDArray[np.float64]:
        """Project vectors on atoms, such as forces, on the invariant ones, shape (N, 3)."""
        moved = np.zeros_like(vectors)
        for rotation, image in zip(self.rotations, self.images, strict=True):
            moved[image] += vectors @ rotation.T
        return moved / len(self.images)

    def of_tensor(self, tensor: NDArray[np.float64]) -> NDArray[np.float64]:
        """Project a tensor, such as a strain, on the invariant ones, shape (3, 3)."""
        moved: NDArray[np.float64] = self.rotations @ tensor @ self.rotations.transpose(0, 2, 1)
        return moved.mean(axis=0)


def symmetrized(structure: Structure, symprec: float) -> tuple[Structure, Symmetry]:
    """Move atoms and cell to where the symmetry that they nearly have is exact.

    Args:
        structure: Ordered, with finite coordinates; not changed.
        symprec: Tolerance of the symmetry that is looked for, Å.

    Returns:
        The structure, with the same sites in the same order, and its symmetry; a structure
        without one that can be made exact gets the identity alone.
    """
    made, tolerance = structure, symprec
    for _ in range(_ROUNDS):  # translations found with a loose tolerance are not exact at once
        found = dataset(made, tolerance)
        if found is None:
            break
        rotations = np.array(found.operations.rotations, dtype=float)
        translations = np.array(found.operations.translations, dtype=float)
        images, made, moved = _snapped(made, rotations, translations)
        if moved < _EXACT:
            to_cartesian = made.lattice.matrix.T
            cartesian = to_cartesian @ rotations @ np.linalg.inv(to_cartesian)
            return made, Symmetry(cartesian, images)
    identity = np.arange(len(structure))[None]
    return structure.copy(), Symmetry(np.eye(3)[None], identity)


def _snapped(
    structure: Structure, rotations: NDArray[np.float64], translations: NDArray[np.float64]
) -> tuple[NDArray[np.int64], Structure, float]:
    """Average a crystal over operations; return images, the crystal, and the largest move in Å."""
    from pymatgen.core import Lattice, Structure

    old, coords = structure.lattice.matrix, structure.frac_coords
    numbers = np.array([site.specie.Z for site in structure])
    other = numbers[:, None] != numbers
    images = np.empty((len(rotations), len(coords)), dtype=np.int64)
    shift = np.zeros_like(coords)
    for index, (rotation, translation) in enumerate(zip(rotations, translations, strict=True)):
        moved = coords @ rotation.T + translation
        apart = moved[:, None] - coords
        apart -= np.rint(apart)
        distance = np.linalg.norm(apart @ old, axis=-1)
        images[index] = np.where(other, np.inf, distance).argmin(axis=1)
        shift[images[index]] += apart[np.arange(len(coords)), images[index]]
    shift /= len(rotations)
    metric = (rotations.transpose(0, 2, 1) @ (old @ old.T) @ rotations).mean(axis=0)
    half = np.linalg.cholesky(metric)
    left, _, right = np.linalg.svd(half.T @ old)  # the turn that brings it nearest to the old cell
    new = half @ left @ right
    made = Structure(
        Lattice(new),
        structure.species,
        coords + shift,
        site_properties=structure.site_properties or None,
    )
    largest = max(
        np.linalg.norm(shift @ old, axis=1).max(), np.linalg.norm(new - old, axis=1).max()
    )
    return images, made, float(largest)
