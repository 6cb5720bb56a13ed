"""What every potential must satisfy, as checks that can be run on any of them, also on your own.

    from relax.contract import CHECKS
    from relax.potentials import load

    @pytest.mark.parametrize("check", CHECKS)
    def test_my_potential(check):
        check(load("my-potential"), structures)

A check takes a loaded potential and a few crystals of its elements, best not relaxed and without
symmetry, so that no force is zero. It raises a ContractError that says what differs by how much.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from relax.errors import RelaxError
from relax.potentials import Potential
from relax.relaxation import to_atoms

if TYPE_CHECKING:
    from ase import Atoms
    from numpy.typing import ArrayLike, NDArray
    from pymatgen.core import Structure

_STEP = 0.01  # Å and, over 4, strain, of the finite differences; right for float32, too
_SEED = 0


class ContractError(RelaxError):
    """A potential does not do what it must."""


def inputs_stay_as_they_are(potential: Potential, structures: Sequence[Structure]) -> None:
    """Neither structures nor atoms are changed by computing them."""
    given = [structure.copy() for structure in structures]
    potential.energies_per_atom(given)
    if given != list(structures):
        raise ContractError("energies_per_atom changes the structures that it is given")
    for structure in structures:
        before = to_atoms(structure)
        after = _computed(potential, before.copy())
        if not (
            np.array_equal(before.positions, after.positions)
            and np.array_equal(before.cell.array, after.cell.array)
            and np.array_equal(before.numbers, after.numbers)
        ):
            raise ContractError("the calculator changes the atoms that it is given")


def shapes_and_units(potential: Potential, structures: Sequence[Structure]) -> None:
    """The calculator gives total energies, energies_per_atom the same over the atoms."""
    energies = potential.energies_per_atom(structures)
    if energies.shape != (len(structures),) or not np.isfinite(energies).all():
        raise ContractError(f"energies_per_atom: {energies}, not {len(structures)} finite numbers")
    for structure, per_atom in zip(structures, energies, strict=True):
        atoms = _computed(potential, to_atoms(structure))
        count = len(structure)
        for name, numbers, shape in (
            ("energy", atoms.get_potential_energy(), ()),
            ("forces", atoms.get_forces(), (count, 3)),
            ("stress", atoms.get_stress(), (6,)),
        ):
            if np.shape(numbers) != shape or not np.isfinite(numbers).all():
                raise ContractError(f"{name}: shape {np.shape(numbers)}, not finite of {shape}")
        _same("energy over atoms", atoms.get_potential_energy() / count, per_atom, 1e-4)
        doubled = potential.energies_per_atom([structure * (2, 1, 1)])[0]
        _same("energy per atom of a cell twice as large", doubled, per_atom, 1e-4)


def batch_equals_single(potential: Potential, structures: Sequence[Structure]) -> None:
    """No energy depends on what else is computed with it, nor on the order."""
    alone = [potential.energies_per_atom([structure])[0] for structure in structures]
    together = potential.energies_per_atom(structures)
    backwards = potential.energies_per_atom(structures[::-1])[::-1]
    _same("energies in a batch", together, alone, 1e-5)
    _same("energies in a batch backwards", backwards, alone, 1e-5)


def gradients_are_those_of_the_calculator(
    potential: Potential, structures: Sequence[Structure]
) -> None:
    """Energies, forces and strain gradients of a batch are those of each crystal alone."""
    given = [to_atoms(structure) for structure in [*structures, *structures]]
    together = potential.gradients([atoms.copy() for atoms in given])
    if len(together) != len(given):
        raise ContractError(f"gradients: {len(together)} of {len(given)} crystals")
    for (energy, forces, strain_gradient), atoms in zip(together, given, strict=True):
        alone = _computed(potential, atoms)
        stress = strain_gradient / atoms.get_volume()
        _same("energy in a batch", energy / len(atoms), _per_atom(alone), 1e-5)
        _same("forces in a batch", forces, alone.get_forces(), 1e-3)
        _same("stress in a batch", stress, alone.get_stress(voigt=False), 1e-4)


def bad_structures_cost_only_themselves(
    potential: Potential, structures: Sequence[Structure]
) -> None:
    """A structure with no numbers has no energy, and those beside it keep theirs."""
    broken = structures[0].copy()
    broken.translate_sites([0], [np.nan, 0, 0], to_unit_cell=False)
    good = potential.energies_per_atom(structures)
    energies = potential.energies_per_atom([broken, *structures])
    if np.isfinite(energies[0]):
        raise ContractError(f"a structure with NaN coordinates has an energy, {energies[0]}")
    _same("energies beside a broken structure", energies[1:], good, 1e-5)


def origin_order_and_image_do_not_matter(
    potential: Potential, structures: Sequence[Structure]
) -> None:
    """Shifted, reordered, and with atoms in other cells, it is the same crystal."""
    random = np.random.default_rng(_SEED)
    for structure in structures:
        atoms = _computed(potential, to_atoms(structure))
        order = random.permutation(len(atoms))
        moved = to_atoms(structure)[order]
        moved.positions += random.normal(size=3)
        moved.positions += random.integers(-1, 2, size=(len(atoms), 3)) @ atoms.cell.array
        _computed(potential, moved)
        _same_energy("a shifted crystal", moved, atoms)
        _same("forces of a shifted crystal", moved.get_forces(), atoms.get_forces()[order], 1e-3)
        _same("stress of a shifted crystal", moved.get_stress(), atoms.get_stress(), 1e-4)


def forces_and_stress_turn_with_the_crystal(
    potential: Potential, structures: Sequence[Structure]
) -> None:
    """Turned, it has the same energy; forces and stress turn with it."""
    from scipy.spatial.transform import Rotation

    turn = Rotation.random(rng=np.random.default_rng(_SEED)).as_matrix()
    for structure in structures:
        atoms = _computed(potential, to_atoms(structure))
        turned = to_atoms(structure)
        turned.set_cell(turned.cell.array @ turn.T, scale_atoms=True)
        _computed(potential, turned)
        stress = turn @ atoms.get_stress(voigt=False) @ turn.T
        _same_energy("a turned crystal", turned, atoms)
        _same("forces of a turned crystal", turned.get_forces(), atoms.get_forces() @ turn.T, 1e-3)
        _same("stress of a turned crystal", turned.get_stress(voigt=False), stress, 1e-4)


def forces_are_the_slope_of_the_energy(
    potential: Potential, structures: Sequence[Structure]
) -> None:
    """Along random displacements, the energy (eV) falls by force (eV/Å) times way (Å)."""
    random = np.random.default_rng(_SEED)
    for structure in structures:
        forces = _computed(potential, to_atoms(structure)).get_forces()
        for _ in range(3):
            way = random.normal(size=forces.shape)
            way /= np.linalg.norm(way)
            slope = _slope(potential, structure, displacement=way)
            _same("minus the force along a displacement", slope, -(forces * way).sum(), 0.01)


def stress_is_the_slope_of_the_energy(
    potential: Potential, structures: Sequence[Structure]
) -> None:
    """Under small strains, the energy (eV) rises by stress (eV/Å³) times strain times volume."""
    random = np.random.default_rng(_SEED)
    for structure in structures:
        atoms = _computed(potential, to_atoms(structure))
        stress, volume = atoms.get_stress(voigt=False), atoms.get_volume()
        for _ in range(3):
            strain = random.normal(size=(3, 3))
            strain += strain.T
            strain /= 4 * np.linalg.norm(strain)
            slope = _slope(potential, structure, strain=strain) / volume
            _same("stress under a strain", slope, (stress * strain).sum(), 3e-4)


CHECKS = (
    inputs_stay_as_they_are,
    shapes_and_units,
    batch_equals_single,
    gradients_are_those_of_the_calculator,
    bad_structures_cost_only_themselves,
    origin_order_and_image_do_not_matter,
    forces_and_stress_turn_with_the_crystal,
    forces_are_the_slope_of_the_energy,
    stress_is_the_slope_of_the_energy,
)


def _per_atom(atoms: Atoms) -> float:
    return float(atoms.get_potential_energy()) / len(atoms)


def _computed(potential: Potential, atoms: Atoms) -> Atoms:
    """Give atoms the potential and have it compute them."""
    atoms.calc = potential.calculator()
    atoms.get_potential_energy()
    atoms.get_forces()
    atoms.get_stress()
    return atoms


def _slope(
    potential: Potential,
    structure: Structure,
    displacement: NDArray[np.float64] | float = 0.0,
    strain: NDArray[np.float64] | float = 0.0,
) -> float:
    """Return the derivative of the energy along a displacement and strain, by differences."""
    energies = []
    for sign in (1, -1):
        atoms = to_atoms(structure)
        atoms.set_cell(
            atoms.cell.array @ (np.eye(3) + sign * _STEP * np.asarray(strain)), scale_atoms=True
        )
        atoms.positions += sign * _STEP * np.asarray(displacement)
        energies.append(_computed(potential, atoms).get_potential_energy())
    return float((energies[0] - energies[1]) / (2 * _STEP))


def _same_energy(what: str, one: Atoms, other: Atoms) -> None:
    here, there = one.get_potential_energy(), other.get_potential_energy()
    _same(f"energy per atom of {what}", here / len(one), there / len(other), 1e-4)


def _same(what: str, found: ArrayLike, expected: ArrayLike, tolerance: float) -> None:
    """Compare with a tolerance: absolute below 1, above it a share of the largest."""
    found, expected = np.asarray(found, dtype=float), np.asarray(expected, dtype=float)
    apart = np.abs(found - expected).max()
    allowed = tolerance * max(1.0, float(np.abs(expected).max()))
    if not apart <= allowed:
        raise ContractError(
            f"{what} differs by {apart:.3g}, more than {allowed:.3g}: {found}, not {expected}"
        )
