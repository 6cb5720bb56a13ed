"""Distances to the hull: as pymatgen's, how much faster, and as good as the reference is.

    python benchmarks/hull.py speed --hull mp2020
    python benchmarks/hull.py judge --hull mp2020 mp20/test.parquet mpts_52/test.parquet
    python benchmarks/hull.py corrections mp_hull_reference_mp2020.csv.gz mp_structures.parquet

`speed` places random compositions above and below the hull, in one run with this package, with
PhaseDiagram (one for each chemical system, kept; its entries made beforehand) and with
PatchedPhaseDiagram (of some elements). `judge` reads tables with formation energies and energies
above the hull as the Materials Project has them, and tells how far this hull's are from those.
`corrections` compares MP2020 corrections of structures with those that a csv has for their
formulas; structures of one formula may differ (peroxides and oxides). Times are CPU seconds of one
thread.
"""

from __future__ import annotations

import argparse
import re
import resource
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pymatgen.analysis.phase_diagram import PatchedPhaseDiagram, PDEntry, PhaseDiagram
from pymatgen.core import Composition, Lattice, Structure

from relax.corrections import correction
from relax.formulas import reduced_formula
from relax.hull import Hull


def main() -> None:
    """Load the hull; time or judge it."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("speed", "judge"):
        command = commands.add_parser(name)
        command.add_argument("--hull", default="chgnet", help="name or file")
        command.add_argument("--energy-scheme", help="for a file that does not say")
    commands.choices["speed"].add_argument("-n", type=int, default=6000, help="compositions")
    commands.choices["speed"].add_argument("--seed", type=int, default=0)
    commands.choices["speed"].add_argument(
        "--patched", default="Li,Na,Mg,Al,Si,P,S,Mn,Fe,O,F", help="elements"
    )
    commands.choices["judge"].add_argument("tables", type=Path, nargs="+", help="parquet")
    command = commands.add_parser("corrections")
    command.add_argument("table", type=Path, help="csv: formula, correction_per_atom, source")
    command.add_argument("structures", type=Path, help="parquet")
    command.add_argument("-n", type=int, default=3000, help="structures")
    arguments = parser.parse_args()
    if arguments.command == "corrections":
        judge_corrections(arguments.table, arguments.structures, arguments.n)
        return
    before = _megabytes()
    hull, seconds = _timed(lambda: Hull.load(arguments.hull, arguments.energy_scheme))
    size = f"{len(hull.reference.formulas)} compositions, {len(hull.elements)} elements"
    print(f"{hull.name}: {size}; loaded in {seconds:.2f} s, {_megabytes() - before:.0f} MB")
    if arguments.command == "speed":
        speed(hull, arguments.n, arguments.seed, set(arguments.patched.split(",")))
    else:
        judge(hull, arguments.tables)


def speed(hull: Hull, n: int, seed: int, patched: set[str]) -> None:
    """Compare numbers and times."""
    random = np.random.default_rng(seed)
    compositions = _random_compositions(hull, n, random)
    formation = random.uniform(-4.0, 1.0, n)
    systems = [frozenset(composition.get_el_amt_dict()) for composition in compositions]
    sizes = Counter(len(system) for system in systems)
    print(f"{n} compositions of {len(set(systems))} chemical systems; of ", end="")
    print(", ".join(f"{size} elements {sizes[size]}" for size in sorted(sizes)))
    ours, our_seconds = _timed(lambda: hull.energy_above_hull(compositions, formation))
    print(f"{_megabytes():.0f} MB at the peak, the imports of this benchmark included")
    entries = _entries(hull)
    theirs, their_seconds = _timed(lambda: _by_pymatgen(entries, compositions, formation))
    kept = np.isfinite(ours)
    print(f"{kept.sum()} assessable, {(ours < 0).sum()} below the hull")
    print(f"here {our_seconds / n * 1e6:.1f} µs each, PhaseDiagram ", end="")
    print(f"{their_seconds / n * 1e6:.0f} µs each: {their_seconds / our_seconds:.0f} times")
    print(f"largest difference {np.abs(ours - theirs)[kept].max():.1e} eV/atom")
    some = [index for index, system in enumerate(systems) if system <= patched and kept[index]]
    inside = [entry for system, rows in entries.items() if system <= patched for entry in rows]
    diagram, seconds = _timed(lambda: PatchedPhaseDiagram(inside))
    differences = [
        _above(diagram, compositions[index], formation[index]) - ours[index] for index in some
    ]
    print(f"PatchedPhaseDiagram of {len(inside)} entries, made in {seconds:.1f} s: ", end="")
    print(f"{len(some)} compositions, largest difference {np.abs(differences).max():.1e} eV/atom")


def judge(hull: Hull, tables: list[Path]) -> None:
    """Compare with the Materials Project's energies above the hull."""
    limits = (0.0005, 0.025, 0.08, 0.1)
    print("| rows | n | not assessable | MAE | median | bias | ", end="")
    print(" | ".join(f"same side of {limit:g}" for limit in limits), "|")
    for path in tables:
        table = pd.read_parquet(path)
        known = table.get("e_above_hull", table.get("energy_above_hull")).to_numpy()
        table, known = table[np.isfinite(known)], known[np.isfinite(known)]
        compositions = [Composition(formula) for formula in _formulas(table)]
        ours = hull.energy_above_hull(compositions, table["formation_energy_per_atom"])
        placed = np.isfinite(ours)
        error = (ours - known)[placed] * 1e3
        print(f"| {path.parent.name} {path.stem} | {len(known)} | {(~placed).sum()} | ", end="")
        print(f"{np.abs(error).mean():.1f} | {np.median(np.abs(error)):.1f} | ", end="")
        print(f"{error.mean():+.1f} | ", end="")
        same = [((ours <= x) == (known <= x))[placed].mean() for x in limits]
        print(" | ".join(f"{share:.1%}" for share in same), "|")


def judge_corrections(table: Path, structures: Path, n: int) -> None:
    """Compare corrections with those of the Materials Project."""
    rows = pd.read_csv(table, keep_default_na=False)
    rows = rows[(rows["source"] == "mp2022") & (rows["formula"] != "")]
    known = {
        reduced_formula(Composition(formula)): float(correction)
        for formula, correction in zip(rows["formula"], rows["correction_per_atom"], strict=True)
    }
    found, wrong, seconds = 0, [], 0.0
    for row in pd.read_parquet(structures).sample(frac=1, random_state=0).itertuples():
        formula = reduced_formula(Composition(Counter(row.species)))
        if formula not in known or found == n:
            continue
        lattice = Lattice.from_parameters(*row.cell_abc_angles)
        coords = np.array(list(row.frac_coords)).reshape(-1, 3)
        structure = Structure(lattice, row.species, coords)
        ours, spent = _timed(partial(correction, structure))
        found, seconds = found + 1, seconds + spent
        if not abs(ours.per_atom - known[formula]) < 1e-3:
            wrong.append((formula, known[formula], ours))
    print(f"{found} structures, {seconds / found * 1e3:.1f} ms each; ", end="")
    print(f"{1 - len(wrong) / found:.2%} agree with the Materials Project to 1 meV/atom")
    for formula, expected, ours in wrong:
        print(f"  {formula}: {expected:+.4f}, here {ours.per_atom:+.4f} {ours.reason}")


def _entries(hull: Hull) -> dict[frozenset[str], list[PDEntry]]:
    """Return the reference as pymatgen's entries of formation energies, by chemical system."""
    compounds = [Composition(parts) for parts in hull.reference.amounts]
    energies = hull.reference.energies
    if hull.reference.quantity == "energy_per_atom":
        energies = hull.formation_energy_per_atom(compounds, energies, hull.energy_scheme)
    entries = defaultdict(list)
    for symbol in hull.elements:
        entries[frozenset([symbol])].append(PDEntry(Composition(symbol), 0.0))
    for composition, energy in zip(compounds, energies, strict=True):
        if len(composition) > 1:
            system = frozenset(composition.get_el_amt_dict())
            entries[system].append(PDEntry(composition, energy * composition.num_atoms))
    return entries


def _random_compositions(hull: Hull, n: int, random: np.random.Generator) -> list[Composition]:
    """Draw known chemical systems of two to six elements: half with known compositions."""
    several = [parts for parts in hull.reference.amounts if 2 <= len(parts) <= 6]
    chosen = [several[row] for row in random.integers(len(several), size=n)]
    return [
        Composition(parts)
        if random.random() < 0.5
        else Composition(dict(zip(parts, random.integers(1, 9, len(parts)).tolist(), strict=True)))
        for parts in chosen
    ]


def _by_pymatgen(
    entries: dict[frozenset[str], list[PDEntry]],
    compositions: list[Composition],
    formation: NDArray[np.float64],
) -> NDArray[np.float64]:
    diagrams: dict[frozenset[str], PhaseDiagram] = {}
    above = np.empty(len(compositions))
    for index, composition in enumerate(compositions):
        system = frozenset(composition.get_el_amt_dict())
        if system not in diagrams:
            inside = [one for subsystem in _subsets(system) for one in entries.get(subsystem, ())]
            diagrams[system] = PhaseDiagram(inside)
        above[index] = _above(diagrams[system], composition, formation[index])
    return above


def _above(diagram: PhaseDiagram, composition: Composition, formation: float) -> float:
    entry = PDEntry(composition, formation * composition.num_atoms)
    return float(diagram.get_e_above_hull(entry, allow_negative=True))


def _subsets(system: frozenset[str]) -> list[frozenset[str]]:
    subsets = [frozenset[str]()]
    for symbol in system:
        subsets += [subset | {symbol} for subset in subsets]
    return subsets


def _formulas(table: pd.DataFrame) -> list[str]:
    if "pretty_formula" in table:
        return list(table["pretty_formula"])
    pattern = re.compile(r"_chemical_formula_sum\s+'?([^'\n]+)")
    return [pattern.search(cif)[1].replace(" ", "") for cif in table["cif"]]


def _timed[T](work: Callable[[], T]) -> tuple[T, float]:
    begin = time.process_time()
    return work(), time.process_time() - begin


def _megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message="No Pauling electronegativity")
    main()
