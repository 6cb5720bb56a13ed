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
verdicts are ours, and of every crystal where one is not, why, with the numbers that decide:

    quarantined      too far below the hull to be trusted here
    not_assessable   no compound of its elements is known, so it has no place on the hull here
    order            StructureMatcher matches the pair in one order only
    supercell        the matcher of alloys also tries a supercell of the smaller primitive cell
    alike            the matcher of alloys lets similar elements share their sites
    unexplained      none of these

Run all three in the repository's root, as modules: this file, run as a script, hides MatterGen.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pymatgen.analysis.structure_matcher import OrderDisorderElementComparator, StructureMatcher
from pymatgen.core import Composition, Structure

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from relax.hull import Hull

Columns = dict[str, list[Any]]
"""Verdicts by their names, one of each for every crystal."""

LIMITS = {"stable": 0.0, "metastable": 0.1}  # eV/atom
SUN = {"stable": "S.U.N.", "metastable": "metastable S.U.N."}

PLAIN = StructureMatcher()
ALLOYS = StructureMatcher(  # as MatterGen sets it up
    attempt_supercell=True, allow_subset=True, comparator=OrderDisorderElementComparator()
)
SUPERCELLS = StructureMatcher(attempt_supercell=True)
TOLERANCES = {  # of StructureMatcher, from its defaults on
    "ltol": np.arange(0.2, 0.5, 0.01).tolist(),
    "stol": np.arange(0.3, 0.6, 0.01).tolist(),
    "angle_tol": np.arange(5, 15, 0.1).tolist(),
}


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
        columns["alike"] = alike
    arguments.out.write_text(json.dumps(found))


def compare(arguments: argparse.Namespace) -> None:
    """Print how often the verdicts agree, and every crystal on which they do not, and why."""
    data = json.loads(arguments.file.read_text())
    theirs: dict[str, Columns] = json.loads(arguments.verdicts.read_text())
    structures = [Structure.from_dict(one["relaxed"]) for one in data["crystals"]]
    known = [(name, Structure.from_dict(one)) for name, one in data["known"]]
    formulas = {structure.reduced_formula for _, structure in known}
    shared = sum(structure.reduced_formula in formulas for structure in structures)
    print(f"{len(structures)} crystals, {shared} of a known formula")
    ours = _ours(data, structures, [structure for _, structure in known])
    named = [
        (f"crystal {one['index']}", structure)
        for one, structure in zip(data["crystals"], structures, strict=True)
    ]
    for matcher, columns in theirs.items():
        off = np.abs(np.subtract(ours["above"], columns["above"]))
        print(f"{matcher}; energies above the hull differ by up to {np.nanmax(off):.0e} eV/atom")
        differ: dict[int, list[str]] = {}
        for name in (*LIMITS, "unique", "novel", *SUN.values()):
            rows = np.flatnonzero(np.not_equal(ours[name], columns[name])).tolist()
            print(f"  {name:17} agree on {len(structures) - len(rows)}; ", end="")
            print(f"ours {sum(ours[name])}, MatterGen's {sum(columns[name])}")
            for row in rows:
                differ.setdefault(row, []).append(name)
        tally: Counter[str] = Counter()
        for row, names in sorted(differ.items()):
            whose = [f"{name} only {'ours' if ours[name][row] else 'theirs'}" for name in names]
            print(f"  {named[row][0]}, {structures[row].reduced_formula}: {', '.join(whose)}")
            alike = [group for group in columns["alike"][row] if group]
            if matcher == "OrderedStructureMatcher":
                alike = []
            causes = []  # of S.U.N. too, which follows from the others
            if not LIMITS.keys().isdisjoint(names):
                causes.append(_of_energy(ours, row, columns["above"][row]))
            for name, others in (("unique", named[:row]), ("novel", known)):
                if name in names:
                    pairs = [_of_pair(name, structures[row], alike, *other) for other in others]
                    causes += [cause for cause in pairs if cause] or [("unexplained", name)]
            tally.update({cause for cause, _ in causes})
            for cause, numbers in causes:
                print(f"    {cause}: {numbers}")
        print(f"  crystals by cause: {dict(tally.most_common())}")


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
    compounds = [hull.coverage(structure.composition).phases for structure in structures]
    return {
        "above": above,
        "tier": tiers,
        "compounds": compounds,
        **{key: one.tolist() for key, one in passed.items()},
    }


def _of_energy(ours: Columns, row: int, above: float) -> tuple[str, str]:
    """Tell why a crystal is stable here and not there, or the reverse."""
    tier = ours["tier"][row]
    cause = tier if tier in ("quarantined", "not_assessable") else "unexplained"
    known = f"compounds of its elements known: {ours['compounds'][row]}"
    return cause, f"{above:.3f} eV/atom above the hull there, {known}"


def _of_pair(
    verdict: str, new: Structure, alike: list[str], name: str, other: Structure
) -> tuple[str, str] | None:
    """Tell why a pair is one crystal here and two there, or the reverse; None where it is neither.

    Args:
        verdict: `novel`, for which the new one comes first here, too, or `unique`, for which last.
        new: Asked about.
        alike: Elements that may share sites there, as `Ir-Si`.
        name: Of the other.
        other: Known, or an earlier one.
    """
    from relax.matching import matches

    if new.reduced_formula != other.reduced_formula:
        return None
    here = matches(new, other) if verdict == "novel" else matches(other, new)
    plain, turned = PLAIN.fit(new, other), PLAIN.fit(other, new)
    mixed = _mixed(new, alike)
    if here == (plain or (bool(alike) and ALLOYS.fit(mixed, other))):
        return None
    if here == turned != plain:
        orders = [("crystal, other", new, other), ("other, crystal", other, new)]
        fit, unfit = orders if plain else reversed(orders)
        far = _farthest(PLAIN, *fit[1:])
        return "order", f"{name}: ({fit[0]}) match, {far}, ({unfit[0]}) {_needed(*unfit[1:])}"
    if not (here or turned):
        if SUPERCELLS.fit(new, other):
            return "supercell", f"{name}: {_farthest(SUPERCELLS, new, other)}"
        if not ALLOYS.fit(new, other):
            return "alike", f"{name}: {', '.join(alike)} mixed, {_farthest(ALLOYS, mixed, other)}"
    return "unexplained", f"{name}: here {here}, StructureMatcher {plain}, turned {turned}"


def _mixed(structure: Structure, alike: list[str]) -> Structure:
    """Let alike elements share all their sites, as MatterGen's matcher of alloys does."""
    amounts = structure.composition
    mixtures: dict[Any, Any] = {}
    for group in alike:
        symbols = group.split("-")
        total = sum(amounts[symbol] for symbol in symbols)
        for symbol in symbols:
            mixtures[symbol] = {one: amounts[one] / total for one in symbols}
    return structure.copy().replace_species(mixtures)


def _farthest(matcher: StructureMatcher, one: Structure, other: Structure) -> str:
    """Tell how far apart atoms are in the best match, in cube roots of the volume per atom."""
    _, farthest = matcher.get_rms_dist(one, other)  # type: ignore[no-untyped-call]
    return f"atoms within {farthest:.3f}"


def _needed(one: Structure, other: Structure) -> str:
    """Tell which of the tolerances, and how much of it, would let two crystals match."""
    least = []
    for name, tried in TOLERANCES.items():
        for tolerance in tried:
            matcher = StructureMatcher()
            setattr(matcher, name, tolerance)
            if matcher.fit(one, other):
                least.append(f"{name} {tolerance:.4g}, is {tried[0]:.4g}")
                break
    return f"would with {'; '.join(least)}" if least else "would with no tolerance alone"


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
