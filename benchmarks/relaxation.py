"""How long relaxations take and how they end, side by side with another way to do them.

    symmbfn generate -n 100 --seed 5 --out crystals.extxyz
    python -m benchmarks.relaxation crystals.extxyz --workers 2
    python -m benchmarks.relaxation crystals.extxyz --here aside
    python -m benchmarks.relaxation crystals.extxyz --against chgnet@float64
    python -m benchmarks.relaxation crystals.extxyz --hopeless 0.3 --hull mp2020
    python -m benchmarks.relaxation --scaling docs/relaxation.png --against my.model

The first compares with ASE's FIRE and FrechetCellFilter, one crystal after the other in this
process, with the same calculator, fmax and end; the second, ASE's FIRE from a thousandth of an Å
aside with itself (or `lbfgs`: ASE's own with its FIRE), which tells how much agreement there can
be; the third, two precisions or potentials relaxed in the same way; the fourth, with and without
giving up crystals far above a hull, and tells whether one of these would have come within
0.1 eV/atom of it. The two take turns, a few crystals each, so
that a busy machine slows both alike. It prints seconds, steps, statuses, and how often the final
energies are the same within 2 meV/atom. The last plots time and memory against the atoms
of one crystal and of a batch of cells.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from pymatgen.core import Lattice, Structure

from flows.assess import limit_of
from flows.settings import CampaignConfig
from relax.optimize import RelaxConfig, relax_iter
from relax.potentials import Potential, load
from relax.relaxation import to_atoms
from symmbfn.files import read_structures

_SAME = 2e-3  # eV/atom
_ASIDE = 1e-3  # Å, standard deviation of each coordinate
_SIZES = (1, 2, 3, 4, 5, 6)  # NaCl supercells of 8 n³ atoms
_BATCHES = (1, 4, 16, 64)  # cells of 8 atoms


@dataclass(frozen=True)
class Outcome:
    """How one relaxation ended; energy in eV/atom."""

    status: str
    steps: int
    energy: float


Method = Callable[[Sequence[Structure]], list[Outcome]]


def ours(
    potential: str, config: RelaxConfig, limit_of: Callable[[Structure], float] | None = None
) -> Method:
    """Relax as campaigns do."""

    def run(structures: Sequence[Structure]) -> list[Outcome]:
        results = dict(relax_iter(structures, potential, config, limit_of))
        return [
            Outcome(str(one.status), one.steps, one.energy_per_atom or np.nan)
            for one in (results[index] for index in range(len(structures)))
        ]

    return run


def with_ase(potential: Potential, config: RelaxConfig, way: str = "fire") -> Method:
    """Relax with ASE, one after the other: by `fire`, by `lbfgs`, or by FIRE from `aside`."""

    def run(structures: Sequence[Structure]) -> list[Outcome]:
        return [_with_ase(structure, potential, config, way) for structure in structures]

    return run


def _with_ase(structure: Structure, potential: Potential, config: RelaxConfig, way: str) -> Outcome:
    from ase.filters import FrechetCellFilter
    from ase.optimize import FIRE, LBFGS

    atoms = to_atoms(structure)
    atoms.calc = potential.calculator()
    if way == "aside":
        atoms.rattle(_ASIDE, seed=0)  # type: ignore[no-untyped-call]
    optimizer = (LBFGS if way == "lbfgs" else FIRE)(FrechetCellFilter(atoms), logfile=None)
    try:
        converged = optimizer.run(fmax=config.fmax, steps=config.max_steps)
        energy = atoms.get_potential_energy() / len(atoms)
    except Exception as error:
        return Outcome(type(error).__name__, optimizer.nsteps, np.nan)
    return Outcome("converged" if converged else "step_limit", optimizer.nsteps, energy)


def given_up(
    structures: list[Structure],
    outcomes: dict[str, list[Outcome]],
    limit_of: Callable[[Structure], float],
) -> None:
    """Print how many were given up, and how many of them would have come below their limit."""
    early, whole = outcomes.values()
    limits = [limit_of(one) for one in structures]
    ends = [
        end.energy - limit
        for end, stopped, limit in zip(whole, early, limits, strict=True)
        if stopped.status == "hopeless"
    ]
    steps = [sum(one.steps for one in ended) for ended in (early, whole)]
    print(
        f"given up {len(ends)} of {len(structures)}, which saves {1 - steps[0] / steps[1]:.1%} of "
        f"the steps; {sum(end <= 0 for end in ends)} of them would have come below the limit, the "
        f"nearest would have ended {min(ends, default=np.nan):+.3f} eV/atom from it"
    )


def compare(
    structures: list[Structure], methods: dict[str, Method], at_once: int
) -> dict[str, list[Outcome]]:
    """Run the methods in turns and print what they took and whether their ends agree."""
    seconds = dict.fromkeys(methods, 0.0)
    outcomes: dict[str, list[Outcome]] = {name: [] for name in methods}
    for start in range(0, len(structures), at_once):
        for name, method in methods.items():
            started = time.perf_counter()
            outcomes[name] += method(structures[start : start + at_once])
            seconds[name] += time.perf_counter() - started
        print(f"{len(outcomes[name])} crystals", file=sys.stderr, flush=True)
    for name, ended in outcomes.items():
        steps = [one.steps for one in ended]
        print(
            f"{name:24} {seconds[name]:7.1f} s {np.mean(steps):6.1f} steps (median "
            f"{np.median(steps):.0f}, most {max(steps)}) "
            f"{dict(Counter(one.status for one in ended))}"
        )
    (here, mine), (there, theirs) = outcomes.items()
    print(f"{there} takes {seconds[there] / seconds[here]:.2f} times as long as {here}")
    lower = np.array([a.energy - b.energy for a, b in zip(mine, theirs, strict=True)])
    lower = lower[np.isfinite(lower)]
    print(
        f"{here} within 2 meV/atom of {there}: {np.mean(abs(lower) <= _SAME):.1%}, within 1: "
        f"{np.mean(abs(lower) <= 1e-3):.1%}; lower {np.mean(lower < -_SAME):.1%}, higher "
        f"{np.mean(lower > _SAME):.1%}; median {1e3 * np.median(lower):+.2f}, mean "
        f"{1e3 * np.mean(lower):+.2f} meV/atom; {len(lower)} crystals"
    )
    return outcomes


def scaling(potentials: list[str], out: Path) -> None:
    """Plot seconds of a step and peak memory of a process against atoms, of one or many cells."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for color, potential in zip(("#1b6ca8", "#c8553d"), potentials, strict=False):
        for line, label, cells in (
            ("o-", "one crystal", [(size, 1) for size in _SIZES]),
            ("s--", "cells of 8 atoms, one batch", [(1, count) for count in _BATCHES]),
        ):
            rows = np.array([_measured(potential, size, count) for size, count in cells])
            atoms, seconds, memory = rows.T
            name = Path(potential).name
            left.loglog(atoms, seconds, line, color=color, label=f"{name}, {label}")
            right.plot(atoms, memory / 1024, line, color=color)
    left.set(xlabel="atoms in all", ylabel="seconds a step")
    right.set(xlabel="atoms in all", ylabel="peak memory, GiB", xscale="log")
    right.set_ylim(bottom=0)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    left.legend(fontsize=8)
    figure.savefig(out, dpi=150)


def _measured(potential: str, size: int, count: int) -> list[float]:
    """Return atoms in all, seconds and MiB, measured in a process of its own."""
    command = [sys.executable, "-m", __spec__.name, "--one", str(size), str(count)]
    text = subprocess.run(
        [*command, "--potential", potential], check=True, capture_output=True, text=True
    ).stdout
    row = [float(word) for word in text.splitlines()[-1].split()]
    print("{}: {:.0f} atoms, {:.4f} s, {:.0f} MiB".format(potential, *row), flush=True)
    return row


def one_size(name: str, size: int, count: int) -> None:
    """Print atoms, seconds for energies, forces and stresses, and peak memory in MiB."""
    salt = Structure.from_spacegroup(
        225, Lattice.cubic(5.7), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]
    )
    atoms = [to_atoms(salt * (size, size, size)) for _ in range(count)]
    potential = load(name)
    seconds = []
    for seed in range(3):
        for one in atoms:
            one.rattle(0.01, seed=seed)  # type: ignore[no-untyped-call]
        started = time.perf_counter()
        potential.gradients(atoms)
        seconds.append(time.perf_counter() - started)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(sum(map(len, atoms)), min(seconds), memory)


def main() -> None:
    """Read, relax, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, nargs="?")
    parser.add_argument("--potential", default="chgnet")
    parser.add_argument("--against", default="fire", help="fire, or another potential")
    parser.add_argument("--here", default="ours", choices=["ours", "lbfgs", "aside"])
    parser.add_argument("--hopeless", type=float, help="eV/atom; compare with giving up.")
    parser.add_argument("--hull", default="chgnet", help="that --hopeless counts from")
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--at-once", type=int, default=50, help="Crystals in each turn.")
    parser.add_argument("--in-step", type=int, help="Relax so many in step, in this process.")
    parser.add_argument("--fmax", type=float, default=0.05, help="eV/Å")
    parser.add_argument("--max-steps", type=int, default=500)
    parser.add_argument("--scaling", type=Path, help="Figure to write, instead.")
    parser.add_argument("--one", type=int, nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        one_size(given.potential, *given.one)
        return
    if given.scaling:
        others = [] if given.against == "fire" else [given.against]
        scaling([given.potential, *others], given.scaling)
        return
    if given.file is None:
        parser.error("give a file of crystals, or --scaling")
    read = [one.structure for one in read_structures(given.file) if one.structure is not None]
    config = RelaxConfig(given.fmax, given.max_steps, given.workers, at_once=given.in_step)
    if given.hopeless:
        settings = {
            "potential": given.potential,
            "hulls": [given.hull],
            "relaxation": {"hopeless": given.hopeless},
        }
        limit = limit_of(CampaignConfig.build(settings, where="the command line"))
        assert limit is not None
        early = replace(config, hopeless=given.hopeless)
        methods = {
            "hopeless given up": ours(given.potential, early, limit),
            "to the end": ours(given.potential, config),
        }
        some = read[: given.limit]
        given_up(some, compare(some, methods, given.at_once), limit)
        return
    other = (
        with_ase(load(given.potential), config)
        if given.against == "fire"
        else ours(given.against, config)
    )
    here = (
        ours(given.potential, config)
        if given.here == "ours"
        else with_ase(load(given.potential), config, given.here)
    )
    methods = {f"{given.potential}, {given.here}": here, given.against: other}
    compare(read[: given.limit], methods, given.at_once)


if __name__ == "__main__":
    main()
