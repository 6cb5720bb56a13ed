"""Relaxes crystals, cell and positions together; how each ends is data, not an exception."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np

from relax.errors import RelaxError
from relax.potentials import Potential, PotentialInfo, find, load, python_of

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pymatgen.core import Structure


_DEVICES = ("cpu", "cuda", "mps", "xpu")
_IN_STEP = 64  # structures in a batch on a GPU; not measured, none could be had
PROTOCOL = "bfgs-2"  # a new name when optimiser or convergence criterion change


class Status(StrEnum):
    """How a relaxation ended; only `converged` can be stable."""

    CONVERGED = "converged"
    STEP_LIMIT = "step_limit"  # forces or stress still too large after max_steps
    EXPLODED = "exploded"  # the cell grew, shrank or was stretched beyond all bounds
    HOPELESS = "hopeless"  # too high to become what is looked for, and hardly falling any more
    SADDLE = "saddle"  # symmetry kept it at a point from which it falls when let go
    OVERLAP = "overlap"  # two atoms too close, found before any calculation
    NON_FINITE = "non_finite"  # NaN or infinity in the input, or in what the potential returned
    UNSUPPORTED_ELEMENT = "unsupported_element"  # the potential was not trained on it
    FAILED = "failed"  # anything else; the reason says what


@dataclass(frozen=True)
class RelaxConfig:
    """Settings of a relaxation.

    Attributes:
        fmax: Largest force left on an atom, eV/Å; the rows of the virial per atom (eV), which is
            stress times volume over atoms, must be below it, too.
        max_steps: Steps before it is given up. Of 500 generated crystals all converged, half of
            them within 8 steps (benchmarks/sun.py).
        workers: Processes, each with one thread; None is one per core (never more than a sequence
            has structures), and one where they share a GPU; 0 relaxes in the calling process (where
            the potential can be loaded there).
        timeout: Seconds for one structure, None for no limit; needs workers, or `at_once`.
        min_distance: Atoms nearer than this overlap, Å.
        max_volume_ratio: Growth or shrinkage of the cell beyond this factor is an explosion.
        max_stretch: So is a stretch along any direction, or its inverse, beyond this factor.
        symprec: Tolerance for the space groups reported and, if symmetry is kept, for finding it;
            Å.
        keep_symmetry: Relax with the space group of the input, which is made exact first; then let
            go from a small random displacement, to see whether the end is a saddle.
        hopeless: Gives up a structure so far (eV/atom) above its limit once it hardly falls any
            more (`relax.relaxation.FALLS_ON`); None never does. Limits are told to `relax_iter`.
        device: Of torch.
        at_once: Structures relaxed in step in the calling process, as one batch of the model
            (`relax.lockstep`); None is one by one in `workers` processes on the CPU, and 64 in
            step elsewhere. A potential of another environment always relaxes one by one.
    """

    fmax: float = 0.05
    max_steps: int = 500
    workers: int | None = None
    timeout: float | None = None
    min_distance: float = 0.5
    max_volume_ratio: float = 4.0
    max_stretch: float = 4.0
    symprec: float = 0.1
    keep_symmetry: bool = False
    hopeless: float | None = None
    device: str = "cpu"
    at_once: int | None = None

    @property
    def on_cpu(self) -> bool:
        """Whether `device` is the CPU."""
        return self.device.partition(":")[0] == "cpu"

    def __post_init__(self) -> None:
        """Refuse settings that cannot be meant."""
        for name in ("fmax", "min_distance", "symprec"):
            if not 0 < getattr(self, name) < np.inf:
                raise RelaxError(f"relaxation: {name} = {getattr(self, name)} must be positive")
        if self.at_once is not None and self.at_once < 1:
            raise RelaxError(f"relaxation: at_once = {self.at_once} must be at least 1, or None")
        if self.hopeless is not None and not self.hopeless > 0:
            raise RelaxError(f"relaxation: hopeless = {self.hopeless} must be positive, or None")
        if self.max_steps < 0 or (self.workers is not None and self.workers < 0):
            raise RelaxError("relaxation: max_steps and workers must not be negative")
        if self.timeout is not None and not self.timeout > 0:
            raise RelaxError(f"relaxation: timeout = {self.timeout} must be positive, or None")
        for name in ("max_volume_ratio", "max_stretch"):
            if not getattr(self, name) > 1:
                raise RelaxError(f"relaxation: {name} = {getattr(self, name)} must be above 1")


@dataclass(frozen=True)
class Job:
    """A structure to relax.

    Attributes:
        index: Its place among those given.
        structure: As given.
        limit: Energy above which it is not looked for, eV/atom; see `RelaxConfig.hopeless`.
    """

    index: int
    structure: Structure
    limit: float = np.inf


@dataclass(frozen=True)
class RelaxResult:
    """What became of one structure.

    Attributes:
        status: How it ended.
        reason: Why, for anything but `converged`; else empty.
        structure: As it was left; None where nothing finite is left, or it never started.
        initial_energy_per_atom: Of the input, eV/atom; None if it was never computed.
        energy_per_atom: Of `structure`, eV/atom.
        max_force: Largest force on an atom of `structure`, eV/Å.
        stress: Of `structure`, eV/Å³, symmetric (3, 3), positive under tension as in ASE.
        steps: Optimiser steps taken.
        seconds: Wall-clock time; in step, its own and its share of the batches.
        space_group_before: Number, 1 to 230, of the input; None if it has none to be found.
        space_group_after: Likewise of `structure`.
        rmsd: Root mean square displacement of the atoms without a common shift, Å, with fractional
            displacements measured in the relaxed cell.
        potential: What relaxed it.
        saddle_depth: By how much the crystal falls once its symmetry is let go, eV/atom, about 0
            in a minimum; None where symmetry was not kept, or where that is not known.
    """

    status: Status
    reason: str
    structure: Structure | None
    initial_energy_per_atom: float | None
    energy_per_atom: float | None
    max_force: float | None
    stress: NDArray[np.float64] | None
    steps: int
    seconds: float
    space_group_before: int | None
    space_group_after: int | None
    rmsd: float | None
    potential: PotentialInfo
    saddle_depth: float | None = None


def relax(
    structures: Sequence[Structure],
    potential: str | Potential = "chgnet",
    config: RelaxConfig | None = None,
) -> list[RelaxResult]:
    """Relax structures; see `relax_iter`.

    Returns:
        One result per structure, in their order.
    """
    results = dict(relax_iter(structures, potential, config))
    return [results[index] for index in range(len(structures))]


def relax_iter(
    structures: Iterable[Structure],
    potential: str | Potential = "chgnet",
    config: RelaxConfig | None = None,
    limit_of: Callable[[Structure], float] | None = None,
) -> Generator[tuple[int, RelaxResult]]:
    """Relax structures and yield each result as soon as it is there.

    A structure that fails costs nothing but itself; in worker processes not even one that takes its
    process with it.

    Args:
        structures: Not changed. A sequence is begun with its largest structures, so that none of
            them keeps one process busy at the end; from anything else the next one is drawn when
            a process is free for it.
        potential: A name or path as for `relax.potentials.load`, or a loaded potential, which
            relaxes in the calling process.
        config: Settings; None for the defaults.
        limit_of: Tells the total energy, eV/atom, above which a structure is not looked for, so
            that `config.hopeless` may give it up; infinity where there is no telling.

    Yields:
        Index into `structures`, and its result; in the order in which they finish.

    Raises:
        RelaxError: There is no such potential, its weights cannot be had, or the worker processes
            cannot start.
    """
    from relax.lockstep import relax_in_step
    from relax.relaxation import relax_one
    from relax.workers import number_of_workers, run_in_workers

    config = config or RelaxConfig()
    jobs: Iterator[Job] = (
        Job(index, structure, limit_of(structure) if limit_of else np.inf)
        for index, structure in enumerate(structures)
    )
    if isinstance(potential, Potential) or not _in_processes(potential, config):
        at_once = _at_once(config)
        if at_once is not None:
            check_device(config.device)
        loaded = _loaded(potential, config)
        if at_once is not None:
            yield from relax_in_step(jobs, loaded, config, at_once)
            return
        for job in jobs:
            yield job.index, relax_one(job.structure, loaded, config, job.limit)
        return
    find(potential)  # a name that is wrong is told before any process starts
    if isinstance(structures, Sequence):
        jobs = iter(sorted(jobs, key=lambda job: -len(job.structure)))
        most = max(len(structures), 1)
        config = replace(config, workers=min(number_of_workers(config), most))
    yield from run_in_workers(jobs, potential, config)


def standing_by(potential: str, config: RelaxConfig) -> AbstractContextManager[None]:
    """Start now the processes that `relax_iter` will want, and keep them within the block.

    They load the potential, which takes seconds, while this process does something else; nothing
    is started where relaxations do not need processes.

    Args:
        potential: As for `relax_iter`.
        config: Settings; those of the relaxations within the block may differ in all but `device`.
    """
    from relax.workers import crew

    return crew(potential, config) if _in_processes(potential, config) else nullcontext()


def _in_processes(potential: str, config: RelaxConfig) -> bool:
    """Whether processes of their own relax one structure after the other."""
    if python_of(potential) is not None:
        return True
    return _at_once(config) is None and config.workers != 0


def _at_once(config: RelaxConfig) -> int | None:
    """How many structures are relaxed in step; None: one by one."""
    return config.at_once or (None if config.on_cpu else _IN_STEP)


def check_device(device: str) -> None:
    """Make sure that torch can compute there.

    Raises:
        RelaxError: It cannot.
    """
    if device.partition(":")[0] not in _DEVICES:
        raise RelaxError(f"no device {device!r}; there are {', '.join(_DEVICES)}")
    import torch

    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:  # the second where torch is built without it
        reason = " ".join(str(error).split())[:200]
        raise RelaxError(f"device {device!r} is not to be had here ({reason}); use cpu") from error


def _loaded(potential: str | Potential, config: RelaxConfig) -> Potential:
    if isinstance(potential, Potential):
        return potential
    return load(potential, device=config.device)
