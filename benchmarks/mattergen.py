"""Stable, unique and novel, crystal by crystal: by MatterGen's own evaluation module, and here.

    uv venv --python 3.12 mg-env        # of its own; MatterGen's module needs neither torch nor GPU
    uv pip install --python mg-env/bin/python --no-deps mattergen==1.0.3
    uv pip install --python mg-env/bin/python 'pymatgen>=2024.6.4,<2025.6' 'numpy<2' \
        monty==2024.7.30 cachetools lmdb SMACT pandas tqdm typing_extensions
    python -m benchmarks.mattergen export runs/sun.jsonl --known mp20/train.parquet --out mg.json
    mg-env/bin/python -m benchmarks.mattergen score mg.json --out verdicts.json
    python -m benchmarks.mattergen compare mg.json verdicts.json

`export` writes the relaxed crystals of `benchmarks.sun relax` with their energies, our hull's
lowest energy of every composition in their chemical systems, and the known crystals that share a
formula with one of them. `score` gives these to MatterGen, the hull and the known crystals each to
the part that wants them, once with each of its structure matchers. `compare` tells how often its
verdicts are ours, and for each other one what StructureMatcher says of the pairs in question.
Run all three in the repository's root, as modules: this file, run as a script, hides MatterGen.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pymatgen.core import Composition, Structure

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from relax.hull import Hull

Columns = dict[str, list[Any]]
"""Verdicts by their names, one of each for every crystal."""

LIMITS = {"stable": 0.0, "metastable": 0.1}  # eV/atom
SUN = {"stable": "S.U.N.", "metastable": "metastable S.U.N."}


def export(arguments: argparse.Namespace) -> None:
    """Write down what MatterGen is given."""
    from benchmarks.sun import read_lines
    from relax.hull import Hull

    hull = Hull.load(arguments.hull)
    lines = sorted(read_lines(arguments.file), key=lambda line: int(line["index"]))
    good, compositions = [], []
    for line in lines:
        if line["status"] == "converged":
            composition = Structure.from_dict(line["relaxed"]).composition
            # MatterGen places none if the hull lacks an element of one
            if hull.coverage(composition).terminals:
                good.append(line)
                compositions.append(composition)
    data = {
        "potential": good[0]["potential"],
        "hull": arguments.hull,
        "crystals": [
            {key: line[key] for key in ("index", "relaxed", "energy_per_atom")} for line in good
        ],
        "phases": list(_phases(hull, compositions)),
        "known": list(_known(arguments.known, compositions)),
    }
    arguments.out.write_text(json.dumps(data))
    print(f"{len(good)} of {len(lines)} crystals can be placed, ", end="")
    print(f"{len(data['phases'])} phases, {len(data['known'])} known crystals of their formulas")


def _phases(hull: Hull, compositions: Sequence[Composition]) -> Iterator[tuple[str, float]]:
    """Yield the hull's formulas in the crystals' chemical systems, with total energies, eV/atom."""
    from relax.reference_file import FORMATION

    systems = {
        frozenset(subset)
        for composition in compositions
        for size in range(1, len(composition) + 1)
        for subset in combinations(composition.get_el_amt_dict(), size)
    }
    reference = hull.reference
    elements: dict[str, float] = {}
    if reference.quantity == FORMATION:
        elements = dict(reference.elemental_energies or {})
        yield from ((symbol, elements[symbol]) for symbol in elements if {symbol} in systems)
    rows = zip(reference.formulas, reference.amounts, reference.energies.tolist(), strict=True)
    for formula, parts, energy in rows:
        if frozenset(parts) in systems:
            base = sum(n * elements.get(symbol, 0.0) for symbol, n in parts.items())
            yield formula, energy + base / sum(parts.values())


def _known(path: Path, compositions: Sequence[Composition]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield names and structures of the crystals in a file that share a formula with ours."""
    from relax.formulas import reduced_formula
    from symmbfn.files import iter_structures
    from symmbfn.importers import SUSPECT

    formulas = {reduced_formula(composition) for composition in compositions}
    for one in iter_structures(path):
        if one.structure is None or one.extra.get(SUSPECT):
            continue
        if reduced_formula(one.structure.composition) in formulas:
            yield one.name, one.structure.as_dict()


def score(arguments: argparse.Namespace) -> None:
    """Let MatterGen judge; the only part that runs in its environment."""
    from mattergen.evaluation.metrics.energy import (  # type: ignore[import-not-found]
        EnergyMetricsCapability,
        FracNovelUniqueStableStructures,
    )
    from mattergen.evaluation.metrics.evaluator import (  # type: ignore[import-not-found]
        MetricsEvaluator,
    )
    from mattergen.evaluation.metrics.structure import (  # type: ignore[import-not-found]
        StructureMetricsCapability,
    )
    from mattergen.evaluation.reference.reference_dataset import (  # type: ignore[import-not-found]
        ReferenceDataset,
    )
    from mattergen.evaluation.utils.metrics_structure_summary import (  # type: ignore[import-not-found]
        get_metrics_structure_summaries,
    )
    from mattergen.evaluation.utils.structure_matcher import (  # type: ignore[import-not-found]
        DefaultDisorderedStructureMatcher,
        DefaultOrderedStructureMatcher,
        check_is_disordered,
    )
    from mattergen.evaluation.utils.vasprunlike import (  # type: ignore[import-not-found]
        IdentityCorrectionScheme,
    )
    from pymatgen.entries.computed_entries import ComputedEntry, ComputedStructureEntry

    data = json.loads(arguments.file.read_text())
    structures = [Structure.from_dict(one["relaxed"]) for one in data["crystals"]]
    summaries = get_metrics_structure_summaries(
        structures,
        [
            one["energy_per_atom"] * len(structure)
            for one, structure in zip(data["crystals"], structures, strict=True)
        ],
        energy_correction_scheme=IdentityCorrectionScheme(),  # the energies are as the hull's
    )
    phases = ReferenceDataset.from_entries(
        data["hull"],
        [
            ComputedEntry(formula, energy * Composition(formula).num_atoms)
            for formula, energy in data["phases"]
        ],
    )
    known = ReferenceDataset.from_entries(
        "known",
        [
            ComputedStructureEntry(Structure.from_dict(one), math.nan, data={"material_id": name})
            for name, one in data["known"]
        ],
    )
    # the elements that its matcher of alloys takes for one another
    alike = [["-".join(map(str, group)) for group in check_is_disordered(one)[1]]
             for one in structures]  # fmt: skip
    found: dict[str, Columns] = {}
    for matcher in (DefaultOrderedStructureMatcher(), DefaultDisorderedStructureMatcher()):
        likeness = StructureMetricsCapability(summaries, known, matcher)
        columns = found[matcher.name] = {}
        for name, limit in LIMITS.items():
            energy = EnergyMetricsCapability(summaries, phases, stability_threshold=limit)
            evaluator = MetricsEvaluator([likeness, energy])
            frame = evaluator.as_dataframe([FracNovelUniqueStableStructures])
            columns[name] = evaluator.is_stable.tolist()
            columns[SUN[name]] = frame["novel_unique_stable"].tolist()
        columns["unique"] = frame["is_unique"].tolist()
        columns["novel"] = frame["is_novel"].tolist()
        columns["above"] = frame["energy_above_hull"].tolist()
        matched = evaluator.matches_in_reference
        columns["known as"] = [matched.get(row, []) for row in range(len(structures))]
        columns["alike"] = alike
    arguments.out.write_text(json.dumps(found))


def compare(arguments: argparse.Namespace) -> None:
    """Print how often the verdicts agree, and every crystal on which they do not."""
    data = json.loads(arguments.file.read_text())
    theirs: dict[str, Columns] = json.loads(arguments.verdicts.read_text())
    structures = [Structure.from_dict(one["relaxed"]) for one in data["crystals"]]
    labels = [f"crystal {one['index']}" for one in data["crystals"]]
    known = [(name, Structure.from_dict(one)) for name, one in data["known"]]
    formulas = {structure.reduced_formula for _, structure in known}
    shared = sum(structure.reduced_formula in formulas for structure in structures)
    print(f"{len(structures)} crystals, {shared} of a known formula")
    ours = _ours(data, structures, [structure for _, structure in known])
    for matcher, columns in theirs.items():
        off = np.abs(np.subtract(ours["above"], columns["above"]))
        print(f"{matcher}; energies above the hull differ by up to {np.nanmax(off):.0e} eV/atom")
        differ: dict[int, list[str]] = {}
        for name in (*LIMITS, "unique", "novel", *SUN.values()):
            rows = np.flatnonzero(np.not_equal(ours[name], columns[name])).tolist()
            print(f"  {name:17} agree on {len(structures) - len(rows)}; ", end="")
            print(f"ours {sum(ours[name])}, MatterGen's {sum(columns[name])}")
            for row in rows:
                only = "ours" if ours[name][row] else "MatterGen's"
                differ.setdefault(row, []).append(f"{name} only {only}")
        for row, verdicts in sorted(differ.items()):
            structure = structures[row]
            print(f"  {labels[row]}, {structure.reduced_formula}: {', '.join(verdicts)}")
            print(f"    here {ours['tier'][row]}; ", end="")
            print(f"there {columns['above'][row]:.3f} eV/atom above the hull, ", end="")
            print(f"elements alike: {', '.join(columns['alike'][row]) or 'none'}, ", end="")
            print(f"matches: {', '.join(columns['known as'][row]) or 'none'}")
            earlier = zip(labels[:row], structures[:row], strict=True)
            _print_pairs(structure, [*earlier, *known])


def _ours(data: dict[str, Any], structures: list[Structure], known: list[Structure]) -> Columns:
    """Our verdicts, as `screen` gives them, against the same known crystals."""
    from flows.assess import place, tier
    from flows.settings import ThresholdSettings
    from relax.hull import Hull
    from relax.matching import Reference, unique
    from relax.potentials import find

    hull, potential = Hull.load(data["hull"]), find(data["potential"])
    above = [
        place(hull, potential, structure, one["energy_per_atom"])[1]
        for one, structure in zip(data["crystals"], structures, strict=True)
    ]
    tiers = [tier(energy, ThresholdSettings()) for energy in above]
    is_unique = unique(structures) == np.arange(len(structures))
    is_novel = Reference.from_structures(known).novel(structures)
    passed: dict[str, NDArray[np.bool_]] = {
        "stable": np.array([one == "stable" for one in tiers]),
        "metastable": np.array([one in ("stable", "metastable") for one in tiers]),
        "unique": is_unique,
        "novel": is_novel,
    }
    for name in LIMITS:
        passed[SUN[name]] = passed[name] & is_unique & is_novel
    return {"above": above, "tier": tiers, **{key: one.tolist() for key, one in passed.items()}}


def _print_pairs(structure: Structure, others: Sequence[tuple[str, Structure]]) -> None:
    """Print what is said of the crystal and each other one of its formula."""
    from pymatgen.core.structure_matcher import StructureMatcher

    from relax.matching import matches

    matcher = StructureMatcher()
    for name, other in others:
        if other.reduced_formula == structure.reduced_formula:
            ratio = structure.volume / len(structure) / (other.volume / len(other))
            print(f"    {name}: volume ratio {ratio:.3f}, ", end="")
            print(f"here {matches(structure, other)}, StructureMatcher ", end="")
            print(f"{matcher.fit(structure, other)}; turned {matches(other, structure)}, ", end="")
            print(matcher.fit(other, structure))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("export")
    one.add_argument("file", type=Path, help="of benchmarks.sun relax")
    one.add_argument("--known", type=Path, required=True, help="structures that are not novel")
    one.add_argument("--hull", default="chgnet")
    one.add_argument("--out", type=Path, required=True)
    one.set_defaults(run=export)
    two = commands.add_parser("score")
    two.add_argument("file", type=Path, help="of export")
    two.add_argument("--out", type=Path, required=True)
    two.set_defaults(run=score)
    three = commands.add_parser("compare")
    three.add_argument("file", type=Path, help="of export")
    three.add_argument("verdicts", type=Path, help="of score")
    three.set_defaults(run=compare)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
