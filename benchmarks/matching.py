"""Whether crystals match: as StructureMatcher says, how much faster, and against many known ones.

    python -m benchmarks.matching agree mp20/val.parquet -n 1000
    python -m benchmarks.matching novel mp_structures.parquet mp20/test.parquet -n 10000

`agree` plants twins among crystals (supercells, sites in another order, moved origins, 0.05 Å of
noise, 2 % longer) and looks for duplicates inside formula buckets, in one run with this package and
with pymatgen's StructureMatcher at its defaults, volumes checked; then compares the verdict of each
pair that StructureMatcher was asked for, and of every crystal. `novel` compares crystals with known
ones. Times are CPU seconds of one thread, memory is that of the whole process.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from pymatgen.core import Lattice, Structure
from pymatgen.core.structure_matcher import StructureMatcher

from relax.cells import Cell
from relax.formulas import reduced_formula
from relax.matcher import VOLUME_TOLERANCE
from relax.matching import Reference, matches, unique

GUISES = ("supercell", "permuted", "shifted", "rattled", "rescaled")


def agree(arguments: argparse.Namespace) -> None:
    """Plant twins and look for them."""
    random = np.random.default_rng(arguments.seed)
    found = list(_structures(arguments.file))
    chosen = [found[row] for row in random.permutation(len(found))[: arguments.n]]
    crystals = [*chosen, *(_guise(one, guise, random) for one in chosen for guise in GUISES)]
    crystals = [crystals[row] for row in random.permutation(len(crystals))]
    unique(crystals[:10])  # imports what it needs
    begin = time.process_time()
    ours = unique(crystals)
    our_seconds = time.process_time() - begin
    begin = time.process_time()
    theirs, asked = _by_structure_matcher(crystals)
    their_seconds = time.process_time() - begin
    print(f"{len(crystals)} crystals, {(theirs != np.arange(len(theirs))).sum()} of them twins")
    is_twin = (ours != np.arange(len(ours))) == (theirs != np.arange(len(theirs)))
    print(
        f"same verdict on {is_twin.mean():.2%}, same representative {(ours == theirs).mean():.2%}"
    )
    print(f"{our_seconds:.2f} s, StructureMatcher {their_seconds:.1f} s: ", end="")
    print(f"{their_seconds / our_seconds:.0f} times faster")
    differ = [
        (one, other, said)
        for one, other, said in asked
        if matches(crystals[one], crystals[other]) != said
    ]
    print(f"{len(asked)} pairs, same verdict on {1 - len(differ) / len(asked):.3%}")
    for one, other, said in differ:
        turned = StructureMatcher().fit(crystals[other], crystals[one])
        print(f"  {reduced_formula(crystals[one].composition)}: StructureMatcher {said}, ", end="")
        print(f"the other way round {turned}")


def novel(arguments: argparse.Namespace) -> None:
    """Compare with known crystals."""
    begin = time.process_time()
    known = Reference.from_structures(_structures(arguments.known))
    seconds = time.process_time() - begin
    print(f"{len(known)} known crystals read in {seconds:.0f} s; {_megabytes():.0f} MB")
    new = [one for one, _ in zip(_structures(arguments.new), range(arguments.n), strict=False)]
    begin = time.process_time()
    found = known.novel(new)
    print(
        f"{len(new)} crystals, {found.sum()} novel, in {time.process_time() - begin:.1f} s; ",
        end="",
    )
    print(f"{_megabytes():.0f} MB at the peak")


def _by_structure_matcher(
    crystals: list[Structure],
) -> tuple[np.ndarray, list[tuple[int, int, bool]]]:
    """Find duplicates by brute force; also every pair that was compared, and what came of it."""
    matcher = StructureMatcher()
    buckets = defaultdict(list)
    representatives = np.arange(len(crystals))
    asked = []
    for index, crystal in enumerate(crystals):
        if Cell.of(crystal) is None:
            continue
        bucket = buckets[reduced_formula(crystal.composition)]
        for first in bucket:
            one, per_atom = crystals[first], crystal.volume / len(crystal)
            ratio = one.volume / len(one) / per_atom
            if not 1 / VOLUME_TOLERANCE <= ratio <= VOLUME_TOLERANCE:
                continue
            said = bool(matcher.fit(one, crystal))
            asked.append((first, index, said))
            if said:
                representatives[index] = first
                break
        else:
            bucket.append(index)
    return representatives, asked


def _guise(structure: Structure, guise: str, random: np.random.Generator) -> Structure:
    """The same crystal otherwise written down, or slightly changed."""
    if guise == "supercell":
        return structure * tuple(int(n) for n in random.permutation([2, 1, 1]))
    other = structure.copy()
    if guise == "permuted":
        return Structure.from_sites([other[int(site)] for site in random.permutation(len(other))])
    if guise == "shifted":
        other.translate_sites(range(len(other)), random.random(3))
    elif guise == "rattled":
        noise = random.normal(size=(len(other), 3))
        noise *= 0.05 / np.linalg.norm(noise, axis=1, keepdims=True)
        coords = other.cart_coords + noise
        return Structure(other.lattice, other.species, coords, coords_are_cartesian=True)
    else:
        other.scale_lattice(other.volume * 1.02**3)
    return other


def _structures(path: Path) -> Iterator[Structure]:
    for row in pd.read_parquet(path).itertuples():
        if hasattr(row, "cell_abc_angles"):
            lattice = Lattice.from_parameters(*row.cell_abc_angles)
        else:
            lattice = Lattice(np.array(row.lattice).reshape(3, 3))
        yield Structure(lattice, list(row.species), np.array(row.frac_coords).reshape(-1, 3))


def _megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("agree")
    one.add_argument("file", type=Path, help="parquet")
    one.add_argument("-n", type=int, default=1000, help="crystals; each gets five twins")
    one.add_argument("--seed", type=int, default=0)
    one.set_defaults(run=agree)
    two = commands.add_parser("novel")
    two.add_argument("known", type=Path, help="parquet")
    two.add_argument("new", type=Path, help="parquet")
    two.add_argument("-n", type=int, default=10_000, help="crystals")
    two.set_defaults(run=novel)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
