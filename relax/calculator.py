"""An ASE calculator of any function that gives energy, forces and strain gradient at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from ase.calculators.calculator import Calculator, all_changes
from ase.stress import full_3x3_to_voigt_6_stress

if TYPE_CHECKING:
    from ase import Atoms
    from numpy.typing import NDArray

Gradients = tuple[float, "NDArray[np.float64]", "NDArray[np.float64]"]
"""Energy (eV), forces (eV/Å, (N, 3)) and dE/dstrain (eV, (3, 3))."""


class GradientCalculator(Calculator):
    """Energy, forces and stress from one backward pass.

    The models' own calculators take two or three times as long for the same numbers: they make
    passes that keep their graphs for training, and build and copy much that no relaxation reads.
    """

    # ase declares it for the instance, and its Calculator has no types
    implemented_properties: ClassVar[list[str]] = [  # type: ignore[misc]
        "energy",
        "free_energy",
        "forces",
        "stress",
    ]

    def __init__(self, compute: Callable[[Atoms], Gradients]) -> None:
        """Take the function; it must not change the atoms."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._compute = compute

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        """Fill `results`: eV, eV/Å (N, 3), eV/Å³ (6, Voigt order)."""
        super().calculate(atoms, properties, system_changes)  # type: ignore[no-untyped-call]
        assert self.atoms is not None
        energy, forces, strain_gradient = self._compute(self.atoms)
        stress = strain_gradient / abs(np.linalg.det(self.atoms.cell.array))
        self.results = {
            "energy": energy,
            "free_energy": energy,
            "forces": forces,
            "stress": full_3x3_to_voigt_6_stress(stress),
        }


def gradients_by(calculator: Calculator, atoms: Atoms) -> Gradients:
    """Ask any ASE calculator; the atoms and their calculator stay as they are."""
    copy = atoms.copy()
    copy.calc = calculator
    stress = copy.get_stress(voigt=False)
    return copy.get_potential_energy(), copy.get_forces(), stress * copy.get_volume()
