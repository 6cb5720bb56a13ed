r"""A small MACE and cells to relax with it, for `benchmarks.relaxation`.

    python -m benchmarks.small_mace runs/mace
    python -m benchmarks.relaxation runs/mace/cells.extxyz --potential runs/mace/tiny.model \
        --fmax 0.01 --in-step 32                      # or --workers 2, without --in-step

Trained on CHGNet-labelled NaCl by mace's own command, for minutes; the cells are 100 of NaCl, of
2 to 16 atoms, strained and rattled.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from pymatgen.core import Structure

from relax.potentials import load
from symmbfn.files import write_structures
from tests.mace_support import rock_salt, train_small_mace

_LONGER = (
    *("--max_num_epochs", "400", "--eval_interval", "100"),
    *("--energy_weight", "1", "--forces_weight", "100", "--stress_weight", "100"),
)


def cells(count: int) -> list[Structure]:
    """Make cells of 2, 4, 8 and 16 atoms in turn."""
    random = np.random.default_rng(1)
    made = []
    for number in range(count):
        size = [(1, 1, 1), (2, 1, 1), (2, 2, 1), (2, 2, 2)][number % 4]
        structure = rock_salt(random.uniform(5.3, 6.3)) * size
        structure.perturb(random.uniform(0.02, 0.2), seed=number)
        structure.apply_strain(random.normal(scale=0.03, size=3))
        made.append(structure)
    return made


def main() -> None:
    """Write model and cells."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    write_structures(folder / "cells.extxyz", cells(100))
    print(folder / "cells.extxyz")
    print(train_small_mace(load("chgnet"), folder, *_LONGER))


if __name__ == "__main__":
    main()
