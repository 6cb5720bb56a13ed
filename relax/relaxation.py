"""One structure from input to RelaxResult, in this process."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from relax.cell_filter import CellAndAtoms
from relax.optimize import RelaxConfig, RelaxResult, Status
from relax.potentials import Potential, PotentialInfo
from relax.symmetrize import Symmetry, symmetrized
from relax.symmetry import dataset

if TYPE_CHECKING:
    from ase import Atoms
    from numpy.typing import NDArray
    from pymatgen.core import Structure

MAX_STEP = 0.2  # Å, of the optimiser
STIFFNESS = 30.0  # eV/Å², its first guess
RATTLE, RATTLE_STRAIN, RATTLE_SEED = 0.05, 0.01, 0  # Å and strain (standard deviations)
TIGHTER = 0.2  # of fmax, so that a weak slope down from a saddle is not taken for its floor
FALLS_ON = 10, 50.0  # steps, in which a structure must fall by a fiftieth of what it lacks
SADDLE_DEPTH = 1e-3  # eV/atom; a shallower fall is what convergence leaves


@dataclass(frozen=True)
class _Ended(Exception):
    """The relaxation is over before it converged."""

    status: Status
    reason: str


def relax_one(
    structure: Structure, potential: Potential, config: RelaxConfig, limit: float = np.inf
) -> RelaxResult:
    """Relax one structure.

    Args:
        structure: Not changed.
        potential: Loaded.
        config: Settings; `workers` and `timeout` have no meaning here.
        limit: Energy above which the structure is not looked for, eV/atom.
    """
    started = time.perf_counter()
    try:
        result = _relax(structure, potential, config, limit)
    except Exception as error:  # one bad structure never stops the others
        result = never_started(potential.info, Status.FAILED, _in_one_line(error))
    return replace(result, seconds=time.perf_counter() - started)


def _relax(
    structure: Structure, potential: Potential, config: RelaxConfig, limit: float
) -> RelaxResult:
    flawed = flaw_of(structure, potential.info, config)
    if flawed is not None:
        return flawed
    if config.keep_symmetry:
        return _relax_symmetric(structure, potential, config, limit)
    run = _Run(structure, potential, config, limit)
    return run.result(structure, *run.outcome())


def _relax_symmetric(
    structure: Structure, potential: Potential, config: RelaxConfig, limit: float
) -> RelaxResult:
    """Relax with the symmetry kept, then let go from near the end to see whether it falls."""
    config = replace(config, fmax=TIGHTER * config.fmax)
    exact, symmetry = symmetrized(structure, config.symprec)
    run = _Run(exact, potential, config, limit, symmetry)
    result = run.result(structure, *run.outcome())
    if result.status is not Status.CONVERGED or result.structure is None:
        return result
    free = _Run(_rattled(result.structure), potential, config)
    status, reason = free.outcome()
    after = free.result(structure, status, reason)
    result = replace(result, steps=result.steps + after.steps)
    depth = None
    if after.energy_per_atom is not None and result.energy_per_atom is not None:
        depth = result.energy_per_atom - after.energy_per_atom
    if depth is not None and depth > SADDLE_DEPTH:  # however the fall ended
        reason = (
            f"falls by {depth:.3g} eV/atom once its symmetry is let go, from space group "
            f"{result.space_group_after} to {after.space_group_after}; relax it freely"
        )
        return replace(result, status=Status.SADDLE, reason=reason, saddle_depth=depth)
    if status is not Status.CONVERGED:
        return replace(result, status=status, reason=f"once its symmetry was let go: {reason}")
    return replace(result, saddle_depth=depth)


def _rattled(structure: Structure) -> Structure:
    """Return a structure with small random displacements and strain, always the same ones."""
    from pymatgen.core import Lattice, Structure

    random = np.random.default_rng(RATTLE_SEED)
    strain = random.normal(scale=RATTLE_STRAIN, size=(3, 3))
    cell = structure.lattice.matrix @ (np.eye(3) + (strain + strain.T) / 2)
    shift = random.normal(scale=RATTLE, size=(len(structure), 3)) @ np.linalg.inv(cell)
    return Structure(Lattice(cell), structure.species, structure.frac_coords + shift)


def flaw_of(
    structure: Structure, potential: PotentialInfo, config: RelaxConfig
) -> RelaxResult | None:
    """Find what makes a structure not worth calculating, or None; takes well under 1 ms."""
    ended = _flaw(structure, potential.elements, config)
    if ended is None:
        return None
    return never_started(potential, ended.status, ended.reason)


def never_started(potential: PotentialInfo, status: Status, reason: str) -> RelaxResult:
    """Return the result of a structure of which nothing was computed."""
    return RelaxResult(
        status=status,
        reason=reason,
        structure=None,
        initial_energy_per_atom=None,
        energy_per_atom=None,
        max_force=None,
        stress=None,
        steps=0,
        seconds=0.0,
        space_group_before=None,
        space_group_after=None,
        rmsd=None,
        potential=potential,
    )


def _flaw(structure: Structure, elements: frozenset[str], config: RelaxConfig) -> _Ended | None:
    if len(structure) == 0:
        return _Ended(Status.FAILED, "the structure has no atoms")
    if not structure.is_ordered:
        return _Ended(Status.FAILED, "sites are partly occupied; order the structure first")
    matrix = structure.lattice.matrix
    if not (np.isfinite(matrix).all() and np.isfinite(structure.frac_coords).all()):
        return _Ended(Status.NON_FINITE, "NaN or infinity in cell or coordinates")
    volume = abs(np.linalg.det(matrix))
    if volume / len(structure) < 0.5:  # a tenth of the densest element
        return _Ended(Status.OVERLAP, f"{volume / len(structure):.3g} Å³ per atom")
    foreign = sorted({site.specie.symbol for site in structure} - elements)
    if foreign:
        return _Ended(Status.UNSUPPORTED_ELEMENT, f"not trained on {', '.join(foreign)}")
    distance = _nearest(structure, config.min_distance)
    if distance < config.min_distance:
        return _Ended(Status.OVERLAP, f"two atoms {distance:.2f} Å apart")
    return None


def _nearest(structure: Structure, reach: float) -> float:
    """Return the shortest distance between two atoms or images, Å; infinity if beyond reach."""
    from pymatgen.optimization.neighbors import find_points_in_spheres

    coords = np.ascontiguousarray(structure.cart_coords)
    center, neighbor, image, distance = find_points_in_spheres(
        coords,
        coords,
        r=reach,
        pbc=np.ones(3, dtype=np.int64),
        lattice=np.ascontiguousarray(structure.lattice.matrix),
        tol=1e-8,
    )
    itself = (center == neighbor) & ~image.any(axis=1)
    return float(distance[~itself].min(initial=np.inf))


def to_atoms(structure: Structure) -> Atoms:
    """Convert to ASE, with a right-handed cell and the same atoms at the same places."""
    from ase import Atoms

    hand = np.sign(np.linalg.det(structure.lattice.matrix))
    return Atoms(
        numbers=[site.specie.Z for site in structure],
        cell=hand * structure.lattice.matrix,
        scaled_positions=hand * structure.frac_coords,
        pbc=True,
    )


class _Run:
    """A relaxation under way: the optimiser, and the last state with finite numbers."""

    def __init__(
        self,
        structure: Structure,
        potential: Potential,
        config: RelaxConfig,
        limit: float = np.inf,
        symmetry: Symmetry | None = None,
    ) -> None:
        self.potential = potential
        self.config = config
        self.limit = limit
        self.lowest: list[float] = []  # energy up to each step, eV/atom; steps may overshoot
        self.atoms = to_atoms(structure)
        self.atoms.calc = potential.calculator()
        self.variables = CellAndAtoms(self.atoms, symmetry)
        self.volume = self.atoms.get_volume()
        self.steps = 0
        self.initial_energy: float | None = None
        self.energy: float | None = None
        self.forces: NDArray[np.float64] | None = None
        self.stress: NDArray[np.float64] | None = None
        self.cell = self.atoms.cell.array.copy()
        self.scaled = self.atoms.get_scaled_positions(wrap=False)

    def outcome(self) -> tuple[Status, str]:
        """Relax, and tell how it ended and why; a model's own trouble is an outcome, too."""
        try:
            self._go()
        except _Ended as end:
            return end.status, end.reason
        except Exception as error:
            return Status.FAILED, _in_one_line(error)
        return Status.CONVERGED, ""

    def _go(self) -> None:
        """Relax until converged.

        Raises:
            _Ended: It did not get there.
        """
        from ase.optimize import BFGS

        optimizer = BFGS(
            self.variables,  # type: ignore[arg-type]  # its annotation knows no filters
            logfile=None,
            maxstep=MAX_STEP,
            alpha=STIFFNESS,
        )
        # the first turn is the input itself, before any step; the end is decided here
        for turn, _ in enumerate(optimizer.irun(fmax=0.0, steps=self.config.max_steps)):
            self.steps = turn
            self._note()
            if self._converged():
                return
            self._give_up()
        raise _Ended(
            Status.STEP_LIMIT,
            f"not converged after {self.steps} steps; allow more",
        )

    def _converged(self) -> bool:
        """Whether the forces and the virial per atom (eV) are small enough."""
        assert self.forces is not None and self.stress is not None
        virial = self.stress * self.atoms.get_volume() / len(self.atoms)
        largest = np.linalg.norm(np.vstack([self.forces, virial]), axis=1).max()
        return bool(largest < self.config.fmax)

    def _give_up(self) -> None:
        """End the relaxation of what is too high above its limit, and hardly falls any more."""
        steps, part = FALLS_ON
        if self.config.hopeless is None or self.steps < steps:
            return
        lacks = self.lowest[-1] - self.limit
        fell = self.lowest[-1 - steps] - self.lowest[-1]
        if lacks > self.config.hopeless and fell < lacks / part:
            raise _Ended(
                Status.HOPELESS,
                f"{lacks:.2f} eV/atom too high after {self.steps} steps, of which the last {steps} "
                f"brought {fell:.4f}",
            )

    def _note(self) -> None:
        """Keep the state if it is sane."""
        cell, energy = self.atoms.cell.array, self.atoms.get_potential_energy()
        forces, stress = self.atoms.get_forces(), self.atoms.get_stress(voigt=False)
        numbers = (cell, energy, forces, stress, self.atoms.positions)
        if not all(np.isfinite(number).all() for number in numbers):
            raise _Ended(Status.NON_FINITE, f"NaN or infinity after {self.steps} steps")
        ratio = abs(np.linalg.det(cell)) / self.volume
        limit = self.config.max_volume_ratio
        if not 1 / limit <= ratio <= limit:
            raise _Ended(
                Status.EXPLODED, f"volume at {ratio:.2g} times the input's after {self.steps} steps"
            )
        stretch = self.variables.stretches
        if (
            not 1 / self.config.max_stretch
            <= stretch.min()
            <= stretch.max()
            <= (self.config.max_stretch)
        ):
            raise _Ended(
                Status.EXPLODED,
                f"cell stretched {stretch.min():.2g} to {stretch.max():.2g} times along its "
                f"principal axes after {self.steps} steps",
            )
        if self.initial_energy is None:
            self.initial_energy = energy
        self.lowest.append(min([energy / len(self.atoms), *self.lowest[-1:]]))
        self.energy, self.forces, self.stress = energy, forces.copy(), stress.copy()
        self.cell, self.scaled = cell.copy(), self.atoms.get_scaled_positions(wrap=False)

    def result(self, given: Structure, status: Status, reason: str) -> RelaxResult:
        """Put together what became of the structure."""
        start = replace(
            never_started(self.potential.info, status, reason),
            steps=self.steps,
            space_group_before=_space_group(given, self.config.symprec),
        )
        if self.energy is None or self.initial_energy is None or self.forces is None:
            return start
        relaxed = _with_geometry(given, self.cell, self.scaled)
        return replace(
            start,
            structure=relaxed,
            initial_energy_per_atom=self.initial_energy / len(given),
            energy_per_atom=self.energy / len(given),
            max_force=float(np.linalg.norm(self.forces, axis=1).max()),
            stress=self.stress,
            space_group_after=_space_group(relaxed, self.config.symprec),
            rmsd=_rmsd(given, relaxed),
        )


def _with_geometry(
    given: Structure, cell: NDArray[np.float64], scaled: NDArray[np.float64]
) -> Structure:
    """Return a structure with the same sites, elsewhere."""
    from pymatgen.core import Lattice, Structure

    hand = np.sign(np.linalg.det(given.lattice.matrix))
    return Structure(
        Lattice(hand * cell),
        given.species,
        hand * scaled,
        site_properties=given.site_properties or None,
        to_unit_cell=True,
    )


def _rmsd(given: Structure, relaxed: Structure) -> float:
    shift = relaxed.frac_coords - given.frac_coords
    shift -= np.rint(shift)
    shift -= shift.mean(axis=0)
    distances = np.linalg.norm(shift @ relaxed.lattice.matrix, axis=1)
    return float(np.sqrt(np.mean(distances**2)))


def _space_group(structure: Structure, symprec: float) -> int | None:
    found = dataset(structure, symprec)
    return None if found is None else int(found.number)


def _in_one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300]
