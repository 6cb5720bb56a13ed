r"""Stable, unique and novel crystals of a generator, or the ceiling: of a file of known crystals.

    python -m benchmarks.sun relax mp20 -n 500 --seed 0 --out runs/sun.jsonl
    python -m benchmarks.sun relax test.parquet -n 500 --out runs/ceiling.jsonl
    python -m benchmarks.sun score runs/sun.jsonl --hull chgnet --hull mp2020 --novel mp20-train
    python -m benchmarks.sun relax runs/sun.jsonl --potential examples/sevennet.toml --out j.jsonl

`relax` draws (or picks at random) crystals and relaxes them with CHGNet; every result is a line of
the file, and a run stopped goes on. From such a file another potential, as a judge, relaxes once
more what the first one left. `score` tells the fractions of all crystals drawn, with 95 %
bootstrap intervals, for each hull. `mp2020` is made of the Materials Project's energies:

    symmbfn hull import mp_hull_reference_mp2020.csv.gz --energy-scheme mp2020 --name mp2020 \
        --elements-from 'elemental_reference_energies.json#MP-PBE'
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from pymatgen.core import Structure

from relax.hull import Hull
from relax.matching import Reference, unique
from relax.optimize import RelaxConfig, relax_iter
from relax.potentials import find

BANDS = {"<= 0": 0.0, "<= 0.025": 0.025, "<= 0.1": 0.1}  # eV/atom


def crystals(source: str, n: int, seed: int, arguments: argparse.Namespace) -> list[Structure]:
    """Draw n crystals, or pick them from a file, or take what an earlier run left."""
    if source.endswith(".jsonl"):
        lines = sorted(read_lines(Path(source)), key=lambda line: int(line["index"]))[:n]
        return [Structure.from_dict(line["relaxed"] or line["drawn"]) for line in lines]
    if not Path(source).is_file():
        from symmbfn.conditions import Conditions
        from symmbfn.crystal import to_structures
        from symmbfn.known_sites import known_sites
        from symmbfn.sample import sample

        targets = dict(text.split("=") for text in arguments.property)
        guidance = dict(text.split("=") for text in arguments.guidance)
        conditions = Conditions(
            {name: float(value) for name, value in targets.items()},
            {name: float(value) for name, value in guidance.items()},
        )
        began = time.perf_counter()
        avoid = None if arguments.avoid is None else known_sites(arguments.avoid)
        drawn = sample(source, n, seed=seed, steps=arguments.steps, proposals=arguments.proposals,
                       conditions=conditions, avoid=avoid)  # fmt: skip
        print(f"{n / (time.perf_counter() - began):.1f} crystals/s, loading included")
        return to_structures(drawn)
    from symmbfn.importers import import_crystals

    found = import_crystals([Path(source)]).structures
    chosen = np.random.default_rng(seed).choice(len(found), n, replace=False)
    return [found[index] for index in chosen]


def relax(arguments: argparse.Namespace) -> None:
    """Relax what is not in the file yet."""
    structures = crystals(arguments.source, arguments.n, arguments.seed, arguments)
    out = Path(arguments.out)
    done = {line["index"] for line in read_lines(out)} if out.exists() else set()
    pending = [index for index in range(len(structures)) if index not in done]
    config = RelaxConfig(workers=arguments.workers)
    results = relax_iter([structures[i] for i in pending], arguments.potential, config)
    with out.open("a") as file:
        for place, result in results:
            line = {
                "index": pending[place],
                "drawn": structures[pending[place]].as_dict(),
                "status": str(result.status),
                "relaxed": None if result.structure is None else result.structure.as_dict(),
                "initial_energy_per_atom": result.initial_energy_per_atom,
                "energy_per_atom": result.energy_per_atom,
                "steps": result.steps,
                "seconds": result.seconds,
                "potential": arguments.potential,
            }
            file.write(json.dumps(line) + "\n")
            file.flush()


def score(arguments: argparse.Namespace) -> None:
    """Print the fractions."""
    lines = sorted(read_lines(Path(arguments.file)), key=lambda line: int(line["index"]))
    drawn = [Structure.from_dict(line["drawn"]) for line in lines]
    good = [i for i, line in enumerate(lines) if line["status"] == "converged"]
    relaxed = [Structure.from_dict(lines[i]["relaxed"]) for i in good]
    steps = [lines[i]["steps"] for i in good]
    seconds = sum(line["seconds"] for line in lines)
    print(
        f"{len(lines)} crystals, {len(good)} converged in {np.median(steps):.0f} steps (median); "
        f"{seconds / len(lines):.1f} s of one core each"
    )
    print("initial energy above final, eV/atom, quartiles:", np.round(np.quantile(
        [lines[i]["initial_energy_per_atom"] - lines[i]["energy_per_atom"] for i in good],
        [0.25, 0.5, 0.75]), 3))  # fmt: skip
    known = Reference.load(arguments.novel)
    is_new = np.zeros(len(lines), bool)
    first = unique(relaxed)
    is_new[good] = (
        known.novel([drawn[i] for i in good])
        & known.novel(relaxed)
        & (first == np.arange(len(good)))
        & (unique([drawn[i] for i in good]) == np.arange(len(good)))
    )
    print(f"unique and novel against {arguments.novel}: {_interval(is_new)}")
    info = find(str(lines[0]["potential"]))
    for name in arguments.hull:
        hull = Hull.load(name)
        compositions = [one.composition for one in relaxed]
        energies = [float(lines[i]["energy_per_atom"]) for i in good]
        formation = hull.formation_energy_per_atom(compositions, energies, info, relaxed)
        above = np.full(len(lines), np.nan)
        above[good] = hull.energy_above_hull(compositions, formation)
        above[above < -0.3] = np.nan  # quarantined
        print(f"hull {name}: median {np.nanmedian(above):.3f} eV/atom above it")
        for label, limit in BANDS.items():
            low = np.nan_to_num(above, nan=np.inf) <= limit
            print(f"  {label:9} {_interval(low)}   and unique and novel {_interval(low & is_new)}")


def _interval(flags: np.ndarray[Any, Any]) -> str:
    """A fraction in per cent, with its 95 % bootstrap interval."""
    random = np.random.default_rng(0)
    means = [random.choice(flags, len(flags)).mean() for _ in range(1000)]
    low, high = np.quantile(means, [0.025, 0.975])
    return f"{flags.mean():6.1%} ({low:.1%} to {high:.1%})"


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The results in a file, one a line."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("relax")
    one.add_argument("source", help="a checkpoint, or a file of crystals")
    one.add_argument("-n", type=int, default=500)
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--steps", type=int)
    one.add_argument("--proposals", type=int)
    one.add_argument("--property", action="append", default=[], metavar="NAME=VALUE")
    one.add_argument("--guidance", action="append", default=[], metavar="NAME=STRENGTH")
    one.add_argument("--avoid", help="a reference whose sites are passed by, as campaigns do")
    one.add_argument("--potential", default="chgnet")
    one.add_argument("--workers", type=int)
    one.add_argument("--out", required=True)
    one.set_defaults(run=relax)
    two = commands.add_parser("score")
    two.add_argument("file")
    two.add_argument("--hull", action="append", required=True)
    two.add_argument("--novel", default="mp20-train")
    two.set_defaults(run=score)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
