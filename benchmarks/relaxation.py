"""How long relaxations take and how they end.

    python benchmarks/relaxation.py crystals.extxyz --workers 2 --max-steps 500

Prints seconds per crystal, milliseconds per step and atom, the statuses, and how many steps the
converged ones took, from which `RelaxConfig.max_steps` was chosen.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from pathlib import Path

import numpy as np

from relax.optimize import RelaxConfig, relax_iter
from symmbfn.files import read_structures


def main() -> None:
    """Read, relax, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--potential", default="chgnet")
    parser.add_argument("--limit", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--max-steps", type=int, default=500)
    arguments = parser.parse_args()
    read = [one.structure for one in read_structures(arguments.file) if one.structure is not None]
    structures = read[: arguments.limit]
    config = RelaxConfig(workers=arguments.workers, max_steps=arguments.max_steps)
    started = time.perf_counter()
    results = []
    for index, result in relax_iter(structures, arguments.potential, config):
        results.append(result)
        print(
            f"{structures[index].composition.reduced_formula:16} {len(structures[index]):3} atoms "
            f"{result.status:12} {result.steps:4} steps {result.seconds:6.1f} s {result.reason}"
        )
    seconds = time.perf_counter() - started
    steps = sum(result.steps for result in results)
    busy = sum(result.seconds for result in results)
    print(
        f"{len(results)} crystals in {seconds:.0f} s: {seconds / len(results):.1f} s each with ",
        end="",
    )
    print(f"{arguments.workers} workers; {busy / max(steps, 1) * 1e3:.0f} ms a step")
    print(dict(Counter(str(result.status) for result in results)))
    taken = [result.steps for result in results if result.status == "converged"]
    if taken:
        quantiles = np.quantile(taken, [0.5, 0.75, 0.9, 1.0]).astype(int)
        print("steps of the converged, median, 75 %, 90 %, most:", *quantiles)


if __name__ == "__main__":
    main()
