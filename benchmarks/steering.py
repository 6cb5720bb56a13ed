"""Does a target steer? Formation energies asked for, and those of the relaxed crystals.

    python -m benchmarks.steering mp20 -n 60 --targets=-3.5,-2.6,-1.1,-0.1 --out docs/steering.png

For each target n crystals are drawn and relaxed with CHGNet; printed are the median of |achieved -
target| over all that converged, and the quartiles of what was achieved, eV/atom.
"""

from __future__ import annotations

import argparse

import numpy as np
from matplotlib.figure import Figure

from relax.hull import Hull
from relax.optimize import RelaxConfig, relax
from relax.potentials import find
from symmbfn.conditions import Conditions
from symmbfn.crystal import to_structures
from symmbfn.sample import sample

NAME = "formation_energy_per_atom"


def main() -> None:
    """Draw, relax, print, plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("-n", type=int, default=60)
    parser.add_argument("--targets", required=True)
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--proposals", type=int)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--out")
    arguments = parser.parse_args()
    hull, potential = Hull.load("chgnet"), find("chgnet")
    targets = [float(text) for text in arguments.targets.split(",")]
    achieved = []
    for seed, target in enumerate(targets):
        conditions = Conditions({NAME: target}, {NAME: arguments.guidance})
        crystals = sample(
            arguments.checkpoint,
            arguments.n,
            seed=seed,
            proposals=arguments.proposals,
            conditions=conditions,
        )
        drawn = to_structures(crystals)
        results = [
            one
            for one in relax(drawn, "chgnet", RelaxConfig(workers=arguments.workers))
            if one.status == "converged" and one.structure is not None
        ]
        compositions = [one.structure.composition for one in results if one.structure]
        energies = [one.energy_per_atom or np.nan for one in results]
        formation = hull.formation_energy_per_atom(compositions, energies, potential)
        achieved.append(formation[np.isfinite(formation)])
        quartiles = np.round(np.quantile(achieved[-1], [0.25, 0.5, 0.75]), 2)
        error = np.median(np.abs(achieved[-1] - target))
        print(
            f"target {target:+.2f}: median error {error:.2f}, quartiles {quartiles.tolist()}, "
            f"{len(results)} of {arguments.n} converged",
            flush=True,
        )
    if arguments.out:
        _plot(arguments.out, targets, achieved)


def _plot(path: str, targets: list[float], achieved: list[np.ndarray]) -> None:
    figure = Figure(figsize=(5.5, 4.5), layout="constrained")
    axes = figure.add_subplot()
    low, high = min(targets) - 0.6, max(targets) + 0.6
    axes.plot([low, high], [low, high], color="0.6", lw=1, label="as asked")
    random = np.random.default_rng(0)
    for target, values in zip(targets, achieved, strict=True):
        axes.scatter(
            target + random.uniform(-0.06, 0.06, len(values)),
            values,
            s=9,
            color="#2a6f97",
            alpha=0.5,
            lw=0,
        )
        axes.plot([target - 0.12, target + 0.12], [np.median(values)] * 2, color="#bc4b51", lw=2)
    axes.plot([], [], color="#bc4b51", lw=2, label="median")
    axes.set(
        xlabel="formation energy asked for, eV/atom",
        ylabel="CHGNet formation energy of the relaxed crystal, eV/atom",
        xlim=(low, high),
    )
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
