"""How often indexes of known crystals call one known or novel as StructureMatcher does.

    python benchmarks/novelty.py --known mp20/train.parquet --new mp20/val.parquet

Both are files of structures; also counts how often fingerprints survive a change of cell, origin
and order with 0.01 Å of noise, and times everything.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from pymatgen.core import Structure
from pymatgen.core.structure_matcher import StructureMatcher

from relax.cells import Cell
from relax.formulas import reduced_formula
from relax.invariants import Invariants, fingerprint
from relax.known_cells import KnownCells
from relax.matcher import VOLUME_TOLERANCE
from relax.matching import Reference
from relax.reference_index import write_index
from symmbfn.files import read_structures


def main() -> None:
    """Read, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--known", type=Path, required=True)
    parser.add_argument("--new", type=Path, required=True)
    parser.add_argument("--guises", type=int, default=500, help="crystals to disguise")
    arguments = parser.parse_args()
    known, new = _read(arguments.known), _read(arguments.new)
    formulas = {reduced_formula(structure.composition) for structure in new}
    known = [one for one in known if reduced_formula(one.composition) in formulas]

    cells = KnownCells()
    for structure in known:
        if (cell := Cell.of(structure)) is not None:
            cells.add(cell)
    with tempfile.TemporaryDirectory() as folder:
        write_index(
            Path(folder) / "invariants.npz",
            [reduced_formula(structure.composition) for structure in known],
            [Invariants.of(structure) for structure in known],
            [True] * len(known),
            "",
        )
        cells.write(Path(folder) / "cells.npz")
        files = sorted(Path(folder).iterdir())
        sizes = {path.stem: path.stat().st_size / len(known) for path in files}
        indexes = {path.stem: Reference.load(path) for path in files}
    by_matcher, seconds = _timed(lambda: _by_structure_matcher(known, new))
    of_known = {reduced_formula(structure.composition) for structure in known}
    shared = np.array([reduced_formula(structure.composition) in of_known for structure in new])
    print(f"{len(new)} new crystals, {shared.sum()} of a known formula, ", end="")
    print(f"{(~by_matcher).sum()} match a known one")
    print(f"StructureMatcher {seconds / len(new) * 1e3:.2f} ms a crystal")
    indexes["structures"] = Reference.from_structures(known)
    for name, index in indexes.items():
        found, seconds = _timed(partial(index.novel, new))
        agree = found == by_matcher
        print(f"{name}: {seconds / len(new) * 1e3:.2f} ms, ", end="")
        print(
            f"{sizes.get(name, np.nan):.0f} bytes a crystal; agreement {agree.mean():.4f} of all, "
        )
        print(f"  {agree[shared].mean():.4f} of a known formula; ", end="")
        print(
            f"false novel {(found & ~by_matcher).sum()}, false known {(~found & by_matcher).sum()}"
        )
    _disguise(new[: arguments.guises])


def _disguise(structures: list[Structure]) -> None:
    """Count the crystals whose fingerprint and invariants survive a disguise."""
    generator = np.random.default_rng(0)
    same = alike = 0
    for structure in structures:
        other = structure * (2, 1, 1) if len(structure) <= 20 else structure.copy()
        sites = generator.permutation(len(other))
        noise = generator.normal(scale=0.01 / np.sqrt(3), size=(len(other), 3))
        other = Structure(
            other.lattice,
            [other[site].specie for site in sites],
            other.cart_coords[sites] + noise + generator.random(3),
            coords_are_cartesian=True,
        )
        same += fingerprint(structure) == fingerprint(other)
        alike += Invariants.of(structure).alike(Invariants.of(other))
    print(
        f"of {len(structures)} crystals as supercell, shifted, permuted, rattled by 0.01 Å: ",
        end="",
    )
    print(f"{same} with the same fingerprint, {alike} with like invariants")


def _by_structure_matcher(known: list[Structure], new: list[Structure]) -> np.ndarray:
    """Tell which are novel, by brute force among those of one formula and alike in volume."""
    matcher, buckets = StructureMatcher(), defaultdict(list)
    for structure in known:
        buckets[reduced_formula(structure.composition)].append(structure)
    return np.array(
        [
            not any(
                matcher.fit(structure, one)
                for one in buckets[reduced_formula(structure.composition)]
                if 1 / VOLUME_TOLERANCE
                <= one.volume / len(one) / (structure.volume / len(structure))
                <= VOLUME_TOLERANCE
            )
            for structure in new
        ]
    )


def _read(path: Path) -> list[Structure]:
    return [one.structure for one in read_structures(path) if one.structure is not None]


def _timed[Result](call: Callable[[], Result]) -> tuple[Result, float]:
    started = time.process_time()
    result = call()
    return result, time.process_time() - started


if __name__ == "__main__":
    main()
