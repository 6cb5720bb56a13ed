"""Crystal structure prediction: how often a crystal is found again from its formula.

    python -m benchmarks.csp mp20 test.parquet -n 1000 --samples 20

For each of n random crystals, formula and number of atoms of the primitive cell are given, and
nothing else. Printed are the match rate and the mean RMSE of the first sample, and of the best of
all, by pymatgen's StructureMatcher with the field's tolerances (stol 0.5, ltol 0.3, angle_tol 10).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Structure

from symmbfn.conditions import Conditions
from symmbfn.errors import SymmBFNError
from symmbfn.importers import import_crystals
from symmbfn.sample import sample

MATCHER = StructureMatcher(stol=0.5, ltol=0.3, angle_tol=10)


def main() -> None:
    """Predict and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("file", type=Path)
    parser.add_argument("-n", type=int, default=1000)
    parser.add_argument("--skip", type=int, default=0, help="crystals that another run does")
    parser.add_argument("--samples", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    crystals = import_crystals([arguments.file]).structures
    order = np.random.default_rng(arguments.seed).permutation(len(crystals))
    chosen = order[arguments.skip : arguments.skip + arguments.n]
    first, best, failed = [], [], 0
    began = time.perf_counter()
    for count, index in enumerate(chosen, 1):
        truth = crystals[index].get_primitive_structure()
        try:
            errors = _errors(arguments, truth, int(index))
        except SymmBFNError:
            errors, failed = [np.inf], failed + 1
        first.append(errors[0])
        best.append(min(errors))
        if count % 50 == 0 or count == len(chosen):
            _print(count, "first", first)
            _print(count, f"best of {arguments.samples}", best)
            rate = (time.perf_counter() - began) / count
            print(f"  {failed} formulas without a sample; {rate:.2f} s a formula", flush=True)


def _errors(arguments: argparse.Namespace, truth: Structure, seed: int) -> list[float]:
    """RMSE of each sample, normalised as StructureMatcher does; inf where there is no match."""
    conditions = Conditions(formula=truth.composition.reduced_formula, num_atoms=len(truth))
    found = sample(arguments.checkpoint, arguments.samples, seed=seed, conditions=conditions)
    distances = [MATCHER.get_rms_dist(truth, crystal.to_structure()) for crystal in found]
    return [np.inf if distance is None else distance[0] for distance in distances]


def _print(count: int, name: str, errors: list[float]) -> None:
    matched = np.isfinite(errors)
    error = np.mean(np.array(errors)[matched]) if matched.any() else np.nan
    half = 1.96 * np.sqrt(matched.mean() * (1 - matched.mean()) / count)
    print(f"{count} {name}: match rate {matched.mean():.1%} ± {half:.1%}, RMSE {error:.4f}")


if __name__ == "__main__":
    main()
