"""How often the index of invariants calls a crystal known or novel as StructureMatcher does.

    python benchmarks/novelty.py --known mp20/train.parquet --new mp20/val.parquet

Both are files of structures; also counts how often fingerprints survive a change of cell, origin
and order with 0.01 Å of noise, and times everything.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from pymatgen.core import Structure

from relax.formulas import reduced_formula
from relax.invariants import Invariants, fingerprint
from relax.matching import Reference, write_index
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

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "known.npz"
        write_index(
            path,
            [reduced_formula(structure.composition) for structure in known],
            [Invariants.of(structure) for structure in known],
            [True] * len(known),
            "",
        )
        index = Reference.load(path)
    by_index, index_seconds = _timed(lambda: index.novel(new))
    exact = Reference.from_structures(known)
    by_matcher, matcher_seconds = _timed(lambda: exact.novel(new))

    of_known = {reduced_formula(structure.composition) for structure in known}
    shared = np.array([reduced_formula(structure.composition) in of_known for structure in new])
    agree = by_index == by_matcher
    print(f"{len(new)} new crystals, {shared.sum()} of a known formula, ", end="")
    print(f"{(~by_matcher).sum()} match a known one")
    print(f"agreement {agree.mean():.4f} of all, {agree[shared].mean():.4f} of a known formula")
    print(f"false novel {(by_index & ~by_matcher).sum()}, false known ", end="")
    print(f"{(~by_index & by_matcher).sum()}")
    print(f"index {index_seconds / len(new) * 1e3:.2f} ms a crystal, ", end="")
    print(f"StructureMatcher {matcher_seconds / len(new) * 1e3:.2f} ms")
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


def _read(path: Path) -> list[Structure]:
    return [one.structure for one in read_structures(path) if one.structure is not None]


def _timed[Result](call: Callable[[], Result]) -> tuple[Result, float]:
    started = time.process_time()
    result = call()
    return result, time.process_time() - started


if __name__ == "__main__":
    main()
