r"""Quality against the number of steps, and against training time.

    python -m benchmarks.curves measure mp20 --steps 5 10 20 50 100 200 --out runs/steps.jsonl
    python -m benchmarks.curves measure runs/10min runs/20min mp20 --out runs/training.jsonl
    python -m benchmarks.curves plot runs/steps.jsonl runs/training.jsonl docs/quality.png

For each checkpoint and number of steps, a line of the file: `n` crystals drawn and measured, and
the first `relaxed` of them relaxed with CHGNet and placed on the packaged hull and on MP2020's, if
that was imported (see `benchmarks.sun`). What stands in the file already is not measured again.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from benchmarks.sun import read_lines
from flows.report_intervals import fraction_interval
from relax.hull import Hull
from relax.optimize import RelaxConfig, relax
from relax.potentials import find
from symmbfn.checkpoint import load_card
from symmbfn.crystal import to_structures
from symmbfn.metrics import evaluate
from symmbfn.sample import DEFAULT_STEPS, Tally, sample

NEAR = 0.1  # eV/atom above the hull


def measure(arguments: argparse.Namespace) -> None:
    """Measure what is not in the file yet."""
    out = Path(arguments.out)
    done = {(line["sha256"], line["steps"]) for line in read_lines(out)} if out.exists() else set()
    for checkpoint in arguments.checkpoints:
        card = load_card(checkpoint)
        for steps in arguments.steps:
            if (card.sha256, steps) in done:
                continue
            line = {
                "checkpoint": card.name,
                "sha256": card.sha256,
                "minutes": card.training.get("minutes_spent"),
                "steps": steps,
                **_measured(checkpoint, steps, arguments),
            }
            with out.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(line, flush=True)


def _measured(checkpoint: str, steps: int, arguments: argparse.Namespace) -> dict[str, Any]:
    tally = Tally()
    sample(checkpoint, 2, seed=0, steps=1)  # imports and first allocations
    began = time.perf_counter()
    structures = to_structures(sample(checkpoint, arguments.n, seed=0, steps=steps, tally=tally))
    seconds = time.perf_counter() - began
    metrics = evaluate(structures)
    results = relax(
        structures[: arguments.relaxed], "chgnet", RelaxConfig(workers=arguments.workers)
    )
    good = [one for one in results if one.status == "converged" and one.structure is not None]
    compositions = [one.structure.composition for one in good if one.structure is not None]
    energies = np.array([one.energy_per_atom for one in good], float)
    before = np.array([one.initial_energy_per_atom for one in good], float)
    near = {}
    for name in arguments.hull:
        hull = Hull.load(name)
        formation = hull.formation_energy_per_atom(compositions, energies, find("chgnet"))
        above = hull.energy_above_hull(compositions, formation)
        near[name] = int(((above <= NEAR) & (above > -0.3)).sum())
    return {
        "n": arguments.n,
        "crystals_per_second": arguments.n / seconds,
        "draws": tally.drawn,
        "overlapping": tally.overlapping,
        "composition_validity": metrics.composition_validity,
        "density_wasserstein": metrics.density_wasserstein,
        "relaxed": len(results),
        "converged": len(good),
        "energy_fall": float(np.median(before - energies)),
        "relaxation_steps": float(np.mean([one.steps for one in good])),
        "near": near,
    }


def plot(arguments: argparse.Namespace) -> None:
    """Draw both rows of panels: against steps, against training time."""
    by_steps, by_minutes = (
        read_lines(Path(file)) for file in (arguments.steps, arguments.training)
    )
    figure = Figure(figsize=(10, 5.6), layout="constrained")
    rows = figure.subplots(2, 4)
    for axes, lines, key in (
        (rows[0], sorted(by_steps, key=lambda line: line["steps"]), "steps"),
        (rows[1], sorted(by_minutes, key=lambda line: line["minutes"]), "minutes"),
    ):
        x = [line[key] for line in lines]
        _shares(axes[0], x, lines)
        axes[1].plot(x, [line["energy_fall"] for line in lines], "o-", color="#bc4b51", ms=4)
        axes[1].set_title("energy lost in relaxation,\nmedian, eV/atom", fontsize=9)
        axes[2].plot(
            x, [line["density_wasserstein"] for line in lines], "o-", color="#6a4c93", ms=4
        )
        axes[2].set_title("W(density), g/cm³", fontsize=9)
        for one in axes[1:3]:
            one.set_ylim(bottom=0)
        if key == "steps":
            axes[3].plot(
                x, [line["crystals_per_second"] for line in lines], "o-", color="0.3", ms=4
            )
            axes[3].set_title("crystals a second", fontsize=9)
            axes[3].set_yscale("log")
            axes[3].set_yticks([10, 20, 50, 100], ["10", "20", "50", "100"])
            axes[3].yaxis.set_minor_formatter(NullFormatter())
        else:
            valid = [100 * line["composition_validity"] for line in lines]
            axes[3].plot(x, valid, "o-", color="#5b8e7d", ms=4)
            axes[3].set_title("composition valid, %", fontsize=9)
            axes[3].set_ylim(80, 100)  # nearer, its noise of a point would look like a trend
        for one in axes:
            one.set_xlabel("steps of the sampler" if key == "steps" else "minutes of training")
            one.grid(alpha=0.3)
            if key == "steps":
                one.set_xscale("log")
                one.set_xticks(x, [str(value) for value in x], minor=False)
                one.minorticks_off()
    figure.savefig(arguments.out, dpi=130)


def _shares(axes: Axes, x: list[float], lines: list[dict[str, Any]]) -> None:
    for (name, _), color in zip(lines[0]["near"].items(), ("#2a6f97", "#89c2d9"), strict=False):
        shares = [line["near"][name] / line["relaxed"] for line in lines]
        bars = [fraction_interval(line["near"][name], line["relaxed"]) for line in lines]
        below, above = (
            [100 * abs(share - end[i]) for share, end in zip(shares, bars, strict=True)]
            for i in (0, 1)
        )
        values = [100 * share for share in shares]
        label = {"chgnet": "packaged hull", "mp2020": "MP2020 hull"}.get(name, name)
        axes.errorbar(
            x, values, [below, above], fmt="o-", ms=4, color=color, capsize=2, label=label
        )
    axes.set_title("relaxed within 0.1 eV/atom, %", fontsize=9)
    axes.legend(frameon=False, fontsize=8)
    axes.set_ylim(0, 100)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("measure")
    one.add_argument("checkpoints", nargs="+")
    one.add_argument("--steps", type=int, nargs="+", default=[DEFAULT_STEPS])
    one.add_argument("-n", type=int, default=1000)
    one.add_argument("--relaxed", type=int, default=200)
    one.add_argument("--hull", action="append", default=[])
    one.add_argument("--workers", type=int)
    one.add_argument("--out", required=True)
    one.set_defaults(run=measure)
    two = commands.add_parser("plot")
    two.add_argument("steps")
    two.add_argument("training")
    two.add_argument("out")
    two.set_defaults(run=plot)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
