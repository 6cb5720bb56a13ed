"""Speed and quality of a generator.

    python benchmarks/generation.py [CHECKPOINT] [-n N] [--steps S …]

For each number of steps: crystals a second end to end to pymatgen structures (loading left out),
draws refused and why, how often the detected space group is the drawn one, and `symmbfn.metrics`
against MP-20 test. Run it alone on the machine: it uses all cores.
"""

import argparse
import time

from symmbfn.checkpoint import DEFAULT_CHECKPOINT
from symmbfn.crystal import to_structures
from symmbfn.metrics import evaluate, space_group
from symmbfn.sample import DEFAULT_STEPS, Tally, sample


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", nargs="?", default=DEFAULT_CHECKPOINT)
    parser.add_argument("-n", type=int, default=1000)
    parser.add_argument("--steps", type=int, nargs="+", default=[DEFAULT_STEPS])
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    sample(arguments.checkpoint, 2, seed=0, steps=1)  # imports and first allocations
    for steps in arguments.steps:
        tally = Tally()
        began = time.perf_counter()
        crystals = sample(
            arguments.checkpoint, arguments.n, seed=arguments.seed, steps=steps, tally=tally
        )
        structures = to_structures(crystals)
        rate = arguments.n / (time.perf_counter() - began)
        kept = sum(
            space_group(structure) == crystal.space_group
            for crystal, structure in zip(crystals, structures, strict=True)
        )
        print(f"steps {steps}: {rate:.1f} crystals/s; {tally}")
        print(f"  drawn space group found again: {kept / arguments.n:.3f}")
        for name, value in evaluate(structures).to_dict().items():
            if value is not None:
                print(f"  {name} {value:.4g}")


if __name__ == "__main__":
    main()
