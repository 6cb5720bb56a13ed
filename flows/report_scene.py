"""What `report_viewer.js` draws of one crystal: atoms, the lines between them, the cell."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pymatgen.core.structure import Structure

MAX_SITES = 200  # more are a cloud, and slow to turn
BOND_FACTOR = 1.2  # of the sum of covalent radii
_SYMPREC = 0.1  # Å
_NEAR_FACE = 0.02  # fractional


def scene(structure: Structure) -> dict[str, Any]:
    """Describe the conventional cell of a crystal (the cell as it is, where none is found).

    Atoms on faces, edges and corners are drawn on all of them. Lengths in Å, the cell's centre
    at the origin.

    Returns:
        elements: [symbol, colour, radius drawn] each; atoms: [element's index, x, y, z] each;
        bonds: pairs of atoms; cell: the three lattice vectors, rows.
    """
    from ase.data import covalent_radii
    from ase.data.colors import jmol_colors
    from pymatgen.core import Element

    matrix, coords, numbers = _conventional(structure)
    coords, numbers = _with_images(coords, numbers)
    points = (coords - 0.5) @ matrix
    kinds, which = np.unique(numbers, return_inverse=True)
    elements = [Element.from_Z(int(number)) for number in kinds]
    return {
        "elements": [
            [
                element.symbol,
                "#" + "".join(f"{round(255 * part):02x}" for part in jmol_colors[element.Z]),
                round(0.22 + 0.3 * float(covalent_radii[element.Z]), 3),
            ]
            for element in elements
        ],
        "atoms": [
            [int(kind), *map(float, point)]
            for kind, point in zip(which, points.round(3), strict=True)
        ],
        "bonds": _bonds(
            points,
            covalent_radii[numbers],
            np.array([element.is_metal for element in elements])[which],
        ),
        "cell": matrix.round(4).tolist(),
    }


def _conventional(
    structure: Structure,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Lattice vectors (3, 3) in Å, fractional coordinates (n, 3) and atomic numbers (n,)."""
    import moyopy

    matrix, coords = structure.lattice.matrix, structure.frac_coords
    numbers = list(structure.atomic_numbers)
    try:
        cell = moyopy.MoyoDataset(
            moyopy.Cell(matrix.tolist(), coords.tolist(), numbers), symprec=_SYMPREC
        ).std_cell
    except ValueError:
        return matrix, coords, np.array(numbers)
    if len(cell.numbers) > MAX_SITES:
        return matrix, coords, np.array(numbers)
    return np.array(cell.basis), np.array(cell.positions), np.array(cell.numbers)


def _with_images(
    coords: NDArray[np.float64], numbers: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Wrap into the cell, and repeat what lies on its faces on the opposite ones."""
    wrapped = coords % 1.0
    wrapped[wrapped > 1 - _NEAR_FACE] -= 1.0
    points, kinds = [], []
    for shift in product((0, 1), repeat=3):
        moved = wrapped + shift
        inside = (moved <= 1 + _NEAR_FACE).all(axis=1)
        points.append(moved[inside])
        kinds.append(numbers[inside])
    return np.concatenate(points), np.concatenate(kinds)


def _bonds(
    points: NDArray[np.float64], radii: NDArray[np.float64], metal: NDArray[np.bool_]
) -> list[list[int]]:
    """Pairs of atoms close enough to be bonded, at least one of them no metal."""
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
    near = distances < BOND_FACTOR * (radii[:, None] + radii[None])
    bonded = np.triu(near & ~(metal[:, None] & metal[None]), 1)
    return [[int(a), int(b)] for a, b in np.argwhere(bonded)]
