"""Many cells of known crystals, by formula; in memory, and in a file of few bytes a crystal.

In a file each crystal is its reduced primitive cell: lengths to 0.001 Å, angles to 0.01 degrees,
fractional coordinates to 1/240, which is exact for halves, thirds, quarters, fifths and eighths.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from relax.cells import Cell, Formula

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LENGTH, _ANGLE, _COORD = 1e-3, 1e-2, 1 / 240  # steps of Å, of degrees, and of lattice vectors
_TERM = re.compile(r"([A-Z][a-z]?)(\d*)")


class KnownCells:
    """Cells by formula; each is reduced when its formula is first asked for."""

    def __init__(self, attribution: str = "") -> None:
        """Begin without any.

        Args:
            attribution: Of the crystals.
        """
        self.attribution = attribution
        self._buckets: dict[Formula, list[Cell]] = {}
        self._training: dict[Formula, list[bool]] = {}
        self._reduced: set[Formula] = set()

    def __len__(self) -> int:
        """Return how many there are."""
        return sum(map(len, self._buckets.values()))

    def add(self, cell: Cell, *, training: bool = False) -> None:
        """Add one, reduced or not, and whether it is in the training split of MP-20."""
        formula = cell.formula
        self._reduced.discard(formula)
        self._training.setdefault(formula, []).append(training)
        self._buckets.setdefault(formula, []).append(cell)

    def of_formula(self, formula: Formula) -> list[Cell]:
        """Return the reduced primitive cells of a formula."""
        bucket = self._buckets.get(formula)
        if bucket is None:
            return []
        if formula not in self._reduced:
            bucket[:] = [cell.reduced() for cell in bucket]
            self._reduced.add(formula)
        return bucket

    def write(self, path: Path) -> None:
        """Write them all, reduced, to a file ending in .npz."""
        from ase.data import chemical_symbols

        formulas = sorted(self._buckets)
        cells = [(formula, cell) for formula in formulas for cell in self.of_formula(formula)]
        text = "\n".join(
            "".join(f"{chemical_symbols[number]}{n if n > 1 else ''}" for number, n in formula)
            for formula, _ in cells
        )
        np.savez_compressed(
            path,
            formulas=np.frombuffer(text.encode(), dtype=np.uint8),
            sites=np.array([len(cell.numbers) for _, cell in cells], dtype=np.uint16),
            lattices=np.stack([_parameters(cell.matrix) for _, cell in cells], axis=1),
            coords=np.concatenate([_steps(cell.coords) for _, cell in cells]).T,
            training=np.array([flag for formula in formulas for flag in self._training[formula]]),
            attribution=np.array(self.attribution),
        )

    @classmethod
    def unpack(cls, arrays: Mapping[str, NDArray[Any]], *, training_only: bool) -> KnownCells:
        """Take over the arrays of a file.

        Raises:
            KeyError: One is missing.
            ValueError: They do not fit together.
        """
        formulas = arrays["formulas"].tobytes().decode().split("\n")
        sites, lattices = arrays["sites"].astype(int), arrays["lattices"].T
        ends, used = np.cumsum(sites), arrays["training"] | (not training_only)
        coords = np.ascontiguousarray(arrays["coords"].T)
        if {len(formulas), len(lattices), len(used)} != {len(sites)} or ends[-1] != len(coords):
            raise ValueError("columns of different lengths")
        found = cls(str(arrays["attribution"]))
        matrices = _matrices(lattices)
        parsed = {formula: _parse(formula) for formula in set(formulas)}
        for row in np.flatnonzero(used):
            formula = parsed[formulas[row]]
            units = sites[row] // sum(n for _, n in formula)
            numbers = np.repeat(
                np.array([number for number, _ in formula], dtype=np.uint8),
                [n * units for _, n in formula],
            )
            some = coords[ends[row] - sites[row] : ends[row]]
            cell = Cell(matrices[row], some * _COORD, numbers)
            found._buckets.setdefault(formula, []).append(cell)
            found._training.setdefault(formula, []).append(bool(arrays["training"][row]))
        found._reduced.update(found._buckets)
        return found


def _parameters(matrix: NDArray[np.float64]) -> NDArray[np.uint16]:
    lengths = np.linalg.norm(matrix, axis=1)
    ends = ((1, 2), (0, 2), (0, 1))
    cosines = [matrix[i] @ matrix[j] / (lengths[i] * lengths[j]) for i, j in ends]
    steps = [*(lengths / _LENGTH), *(np.degrees(np.arccos(cosines)) / _ANGLE)]
    return np.clip(np.rint(steps), 0, 65535).astype(np.uint16)


def _matrices(parameters: NDArray[np.uint16]) -> NDArray[np.float64]:
    """Return lattice vectors as rows of each row of parameters, shape (n, 3, 3)."""
    lengths = parameters[:, :3] * _LENGTH
    cosines = np.cos(np.radians(parameters[:, 3:] * _ANGLE))
    gram = np.ones((len(lengths), 3, 3))
    for k, (i, j) in enumerate(((1, 2), (0, 2), (0, 1))):
        gram[:, i, j] = gram[:, j, i] = cosines[:, k]
    return np.linalg.cholesky(gram * lengths[:, :, None] * lengths[:, None])


def _steps(coords: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Move the first atom to the origin, where many others then have simple coordinates."""
    steps = np.rint((coords - coords[0]) / _COORD).astype(int) % round(1 / _COORD)
    return np.asarray(steps, dtype=np.uint8)


def _parse(formula: str) -> Formula:
    from ase.data import atomic_numbers

    return tuple((atomic_numbers[symbol], int(n or 1)) for symbol, n in _TERM.findall(formula))
