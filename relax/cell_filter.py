"""Cell and atoms as the variables of one minimisation, for the optimisers of ASE."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from ase.filters import Filter

if TYPE_CHECKING:
    from ase import Atoms
    from numpy.typing import NDArray

    from relax.symmetrize import Symmetry


class CellAndAtoms(Filter):
    """Positions in the undeformed cell, and the logarithm of the cell's stretch.

    The cell is A = A₀ exp(L) with L symmetric, and an atom at y in the undeformed cell A₀ is at
    x = y exp(L) (rows). ASE's FrechetCellFilter is the same but for an L of nine free components:
    three of them turn the crystal, which changes no energy, but a crystal turned far enough has
    another logarithm than the one that was set. Here the cell is stretched and sheared only, so
    the logarithm is unique, and both it and its derivative come from one eigendecomposition.

    The variables are N rows y (Å) and three rows √N L, which makes cell and atoms about equally
    stiff and halves the steps that a quasi-Newton optimiser takes (against N L, as ASE has it).

    With a symmetry, the forces are projected on what keeps it. As they are taken in the undeformed
    cell, where the operations stay the same, each step keeps it exactly, however long it is.
    """

    def __init__(self, atoms: Atoms, symmetry: Symmetry | None = None) -> None:
        """Start from the cell and positions that `atoms` has; it is changed by the optimiser.

        Args:
            atoms: With a calculator.
            symmetry: To keep; `atoms` has it exactly.
        """
        super().__init__(atoms, indices=range(len(atoms)))  # type: ignore[no-untyped-call]
        self._symmetry = symmetry
        self._undeformed = atoms.cell.array.copy()
        self._log_stretch = np.zeros((3, 3))
        self._scale = len(atoms) ** 0.5

    @property
    def stretches(self) -> NDArray[np.float64]:
        """The three factors by which the cell is longer than it was along its principal axes."""
        factors: NDArray[np.float64] = np.exp(np.linalg.eigvalsh(self._log_stretch))
        return factors

    def get_positions(self) -> NDArray[np.float64]:
        """Return the variables, shape (N + 3, 3)."""
        y = self.atoms.positions @ _exp(-self._log_stretch)
        return np.vstack([y, self._scale * self._log_stretch])

    def set_positions(self, positions: NDArray[np.float64], **_: object) -> None:
        """Move cell and atoms to where the variables are `positions`, shape (N + 3, 3)."""
        log_stretch = positions[-3:] / self._scale
        self._log_stretch = (log_stretch + log_stretch.T) / 2
        stretch = _exp(self._log_stretch)
        self.atoms.set_cell(self._undeformed @ stretch, scale_atoms=False)
        self.atoms.set_positions(positions[:-3] @ stretch)

    def get_forces(self, **_: object) -> NDArray[np.float64]:
        """Return minus the derivatives of the energy by the variables, shape (N + 3, 3)."""
        stretch = _exp(self._log_stretch)
        virial = -self.atoms.get_volume() * self.atoms.get_stress(voigt=False)
        by_stretch = virial @ np.linalg.inv(stretch)
        by_log = _exp_derivative(self._log_stretch, (by_stretch + by_stretch.T) / 2)
        by_y = self.atoms.get_forces() @ stretch
        if self._symmetry is not None:
            by_y, by_log = self._symmetry.of_vectors(by_y), self._symmetry.of_tensor(by_log)
        return np.vstack([by_y, by_log / self._scale])

    def __len__(self) -> int:
        """Count the rows of variables."""
        return len(self.atoms) + 3


def _exp(symmetric: NDArray[np.float64]) -> NDArray[np.float64]:
    values, axes = np.linalg.eigh(symmetric)
    result: NDArray[np.float64] = (axes * np.exp(values)) @ axes.T
    return result


def _exp_derivative(
    symmetric: NDArray[np.float64], direction: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the derivative of exp at a symmetric matrix in a symmetric direction.

    In the eigenbasis it multiplies each component by (exp λᵢ − exp λⱼ) / (λᵢ − λⱼ) (Daleckii and
    Krein), which is its own adjoint.
    """
    values, axes = np.linalg.eigh(symmetric)
    half = (values[:, None] - values) / 2
    mean = np.exp((values[:, None] + values) / 2)
    sinhc = np.divide(np.sinh(half), half, out=np.ones_like(half), where=np.abs(half) > 1e-12)
    result: NDArray[np.float64] = axes @ ((axes.T @ direction @ axes) * mean * sinhc) @ axes.T
    return result
