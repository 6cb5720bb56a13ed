"""How well a potential tells stable crystals from unstable ones that the Materials Project knows.

    python -m benchmarks.stability energies mpts_52/test.parquet --out energies.jsonl
    python -m benchmarks.stability score energies.jsonl --hull chgnet --hull mp2020

`energies` picks crystals of up to 20 atoms at random, computes them as they are, and relaxes some;
each is a line of the file, and a run that was stopped goes on. `score` places them against hulls
and compares with the Materials Project's energies above the hull. A crystal is called stable up to
a limit of 0 (0.5 meV/atom, the rounding of the hulls) or 0.1 eV/atom.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pymatgen.core import Composition, Structure

from benchmarks.sun import read_lines
from relax.hull import Hull
from relax.optimize import RelaxConfig, relax_iter
from relax.potentials import find, load

LIMITS = {"0": 0.0005, "0.1": 0.1}  # eV/atom
Lines = list[dict[str, Any]]


def energies(arguments: argparse.Namespace) -> None:
    """Compute what is not in the file yet."""
    table = pd.concat([pd.read_parquet(path) for path in arguments.tables], ignore_index=True)
    table = table[table["num_atoms"] <= arguments.max_atoms]
    table = table[np.isfinite(table["energy_above_hull"])].sample(frac=1, random_state=0)
    out = Path(arguments.out)
    done = {(line["id"], line["relaxed"]) for line in read_lines(out)} if out.exists() else set()
    with out.open("a") as file:
        chosen = table.head(arguments.n).itertuples()
        rows = [row for row in chosen if (row.material_id, False) not in done]
        potential = load(arguments.potential)
        for begin in range(0, len(rows), 64):
            batch = rows[begin : begin + 64]
            structures = [_structure(row) for row in batch]
            per_atom = potential.energies_per_atom(structures)
            for row, structure, energy in zip(batch, structures, per_atom, strict=True):
                _write(file, row, structure, float(energy), arguments.potential)
        rows = [
            row
            for row in table.head(arguments.relax).itertuples()
            if (row.material_id, True) not in done
        ]
        structures = [_structure(row) for row in rows]
        config = RelaxConfig(workers=arguments.workers)
        for index, result in relax_iter(structures, arguments.potential, config):
            line = {"relaxed": True, "status": str(result.status), "steps": result.steps}
            energy = result.energy_per_atom if result.status == "converged" else None
            _write(file, rows[index], structures[index], energy, arguments.potential, **line)


def score(arguments: argparse.Namespace) -> None:
    """Print a table."""
    lines = read_lines(Path(arguments.file))
    relaxed = [line for line in lines if line["relaxed"]]
    chosen = {line["id"] for line in relaxed}
    single = [line for line in lines if not line["relaxed"]]
    kinds = {
        "as it is": single,
        "as it is, the relaxed ones": [line for line in single if line["id"] in chosen],
        "relaxed": relaxed,
    }
    print("| hull | crystals | n | not placed | MAE | median | bias | ", end="")
    kept = [f"{name} at {limit}" for limit in LIMITS for name in ("precision", "recall", "F1")]
    print(" | ".join(kept), "|")
    for name in arguments.hull:
        for kind, some in kinds.items():
            if some:
                print(f"| {name} | {kind} |", " | ".join(_figures(Hull.load(name), some)), "|")


def _figures(hull: Hull, lines: Lines) -> list[str]:
    """Return the cells of one row; energies in meV/atom, fractions in per cent."""
    above = _above(hull, lines)
    known = np.array([line["energy_above_hull"] for line in lines])
    placed = np.isfinite(above)
    above, known = above[placed], known[placed]
    error = (above - known) * 1e3
    cells = [f"{len(lines)}", f"{(~placed).sum()}", f"{np.abs(error).mean():.1f}"]
    cells += [f"{np.median(np.abs(error)):.1f}", f"{error.mean():+.1f}"]
    for limit in LIMITS.values():
        said, true = above <= limit, known <= limit
        both = (said & true).sum()
        precision, recall = both / said.sum(), both / true.sum()
        f1 = 2 * precision * recall / (precision + recall)
        cells += [f"{100 * value:.1f}" for value in (precision, recall, f1)]
    return cells


def _above(hull: Hull, lines: Lines) -> NDArray[np.float64]:
    compositions = [Composition(line["formula"]) for line in lines]
    per_atom = [np.nan if (e := line["energy_per_atom"]) is None else e for line in lines]
    formation = hull.formation_energy_per_atom(compositions, per_atom, find(lines[0]["potential"]))
    return hull.energy_above_hull(compositions, formation)


def _structure(row: Any) -> Structure:
    return Structure.from_str(row.cif, fmt="cif")


def _write(
    file: Any, row: Any, structure: Structure, energy: float | None, potential: str, **more: Any
) -> None:
    line = {
        "id": row.material_id,
        "formula": structure.composition.formula.replace(" ", ""),
        "energy_above_hull": row.energy_above_hull,
        "potential": potential,
        "energy_per_atom": energy,
        "relaxed": False,
    }
    file.write(json.dumps({**line, **more}) + "\n")
    file.flush()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("energies")
    one.add_argument("tables", type=Path, nargs="+", help="parquet: cif, energy_above_hull")
    one.add_argument("--out", required=True)
    one.add_argument("--potential", default="chgnet")
    one.add_argument("--max-atoms", type=int, default=20)
    one.add_argument("-n", type=int, default=4096, help="crystals")
    one.add_argument("--relax", type=int, default=400, help="of them")
    one.add_argument("--workers", type=int)
    one.set_defaults(run=energies)
    two = commands.add_parser("score")
    two.add_argument("file")
    two.add_argument("--hull", action="append", required=True)
    two.set_defaults(run=score)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
