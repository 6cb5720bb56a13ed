"""Speed and quality of a generator.

    python -m benchmarks.generation [CHECKPOINT] [-n N] [--steps S …] [--property NAME=VALUE …]

For each number of steps: crystals a second end to end to pymatgen structures (loading left out),
draws refused and why, how often the detected space group is the drawn one, and `symmbfn.metrics`
against MP-20 test, each with its 95 % interval. Run it alone on the machine: it uses all cores.
"""

import argparse
import time

from flows.report_intervals import distance_intervals, fraction_interval
from symmbfn.checkpoint import DEFAULT_CHECKPOINT
from symmbfn.conditions import Conditions
from symmbfn.crystal import to_structures
from symmbfn.metrics import evaluate, mp20_test, space_group, structural_flaw, traits_of
from symmbfn.sample import DEFAULT_STEPS, Tally, sample


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", nargs="?", default=DEFAULT_CHECKPOINT)
    parser.add_argument("-n", type=int, default=1000)
    parser.add_argument("--steps", type=int, nargs="+", default=[DEFAULT_STEPS])
    parser.add_argument("--proposals", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--property", action="append", default=[], metavar="NAME=VALUE")
    arguments = parser.parse_args()
    targets = dict(text.split("=") for text in arguments.property)
    conditions = Conditions({name: float(value) for name, value in targets.items()})
    sample(arguments.checkpoint, 2, seed=0, steps=1)  # imports and first allocations
    for steps in arguments.steps:
        tally = Tally()
        began = time.perf_counter()
        crystals = sample(
            arguments.checkpoint,
            arguments.n,
            seed=arguments.seed,
            steps=steps,
            proposals=arguments.proposals,
            conditions=conditions,
            tally=tally,
        )
        structures = to_structures(crystals)
        n = len(crystals)
        rate = n / (time.perf_counter() - began)
        kept = sum(
            space_group(structure) == crystal.space_group
            for crystal, structure in zip(crystals, structures, strict=True)
        )
        print(f"steps {steps}: {rate:.1f} crystals/s; {tally}")
        print(f"  drawn space group found again: {kept / n:.3f}")
        traits = [traits_of(one) for one in structures if structural_flaw(one) is None]
        intervals = distance_intervals(traits, mp20_test())
        for name, value in evaluate(structures).to_dict().items():
            if value is None or name == "n":
                continue
            if (distance := intervals.get(name)) is not None:
                low, high = distance.low, distance.high
            else:
                low, high = fraction_interval(round(value * n), n)
            print(f"  {name} {value:.4g} ({low:.4g} to {high:.4g})", flush=True)


if __name__ == "__main__":
    main()
