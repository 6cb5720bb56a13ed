"""Sections of a report about single crystals: energies, the best ones in 3D, and all of them."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from itertools import count
from typing import TYPE_CHECKING, Any

from flows import report_svg as svg
from flows.evaluation import JudgedCrystal
from flows.report_html import energy, formula, section, space_group, table, yes_no
from flows.report_scene import MAX_SITES, scene
from flows.settings import ThresholdSettings

if TYPE_CHECKING:
    from pymatgen.core.structure import Structure

    from symmbfn.metrics import Traits

MAX_ROWS = 1000
EXAMPLES = 8


def stability(crystals: Sequence[JudgedCrystal], thresholds: ThresholdSettings) -> str:
    """How the relaxations ended, and the energies above the hull; empty without a relaxation."""
    endings = Counter(one.relaxation for one in crystals if one.relaxation)
    if not endings:
        return ""
    told = ", ".join(f"{ending.replace('_', ' ')} {n:,}" for ending, n in endings.most_common())
    note = f"{endings.total():,} crystals were relaxed: {escape(told)}."
    energies = [e for one in crystals if not math.isnan(e := one.energy_above_hull)]
    if not energies:
        return section("Stability", f"{note} For none of them is the energy above the hull known.")
    note += (
        f" The energy above the hull is known for {len(energies):,}; the outermost bars hold what "
        "lies beyond."
    )
    if apart := sum(one.verdict == "quarantined" for one in crystals):
        note += (
            f" More than {-thresholds.suspect:g} eV/atom below the hull: {apart:,}, set apart, "
            "because a hole of the potential is likelier than a discovery."
        )
    picture = svg.hull_histogram(energies, thresholds)
    return section("Stability", note, f'<div class="wide">{picture}</div>')


def examples(crystals: Sequence[JudgedCrystal]) -> str:
    """The best crystals: pictures to turn, and their cells in a table; empty if none is valid."""
    chosen = best(crystals)[:EXAMPLES]
    if not chosen:
        return ""
    ranked = any(not math.isnan(one.energy_above_hull) for one in chosen)
    title = "The best crystals" if ranked else "Examples"
    order = (
        "by energy above the hull, those set apart left out"
        if ranked
        else "otherwise in their order"
    )
    note = (
        f"Unique and novel ones first, {order}. Conventional cells; drag or use the arrow keys to "
        'turn, double-click to go back. Axes: <b class="a">a</b> <b class="b">b</b> '
        '<b class="c">c</b>.'
    )
    scenes = [scene(_shown(one)) for one in chosen]
    cards = map(_card, count(1), chosen, scenes)
    columns = ["", "name", "formula", "space group", "a, b, c / Å", "α, β, γ / °", "Å³/atom"]
    rows = [*map(_cell_row, count(1), chosen, scenes)]
    if ranked:
        columns.append("above hull, eV/atom")
        rows = [
            [*row, energy(one.energy_above_hull)] for row, one in zip(rows, chosen, strict=True)
        ]
    return section(
        title, note, f'<div class="cards">{"".join(cards)}</div>', table("cells", columns, rows)
    )


def best(crystals: Sequence[JudgedCrystal]) -> list[JudgedCrystal]:
    """Order those that can be shown.

    Unique and novel ones come first, then valid compositions, then the lowest energies above the
    hull; equals stay in their order.
    """
    shown = [
        one
        for one in crystals
        if one.verdict != "quarantined"
        and (structure := one.best_structure) is not None
        and len(structure) <= MAX_SITES
    ]
    return sorted(shown, key=_rank)


def _rank(crystal: JudgedCrystal) -> tuple[bool, bool, float]:
    above = crystal.energy_above_hull
    new = crystal.is_unique and crystal.is_novel
    return not new, not crystal.composition_valid, math.inf if math.isnan(above) else above


def _shown(crystal: JudgedCrystal) -> Structure:
    assert crystal.best_structure is not None  # `best` leaves the others out
    return crystal.best_structure


def _group(structure: Structure) -> str:
    from symmbfn.metrics import space_group as detect

    return space_group(detect(structure))


def _card(number: int, crystal: JudgedCrystal, drawn: Mapping[str, Any]) -> str:
    """A picture to turn, with its legend."""
    structure = _shown(crystal)
    # as JSON in a script element, "<" alone could end it
    data = json.dumps(drawn, separators=(",", ":")).replace("<", "\\u003c")
    legend = "".join(
        f'<span><i style="background:{colour}"></i>{escape(symbol)}</span>'
        for symbol, colour, _ in drawn["elements"]
    )
    name = structure.composition.reduced_formula
    above = energy(crystal.energy_above_hull)
    facts = [_group(structure), f"{above}&nbsp;eV/atom" if above else ""]
    return (
        f'<figure><canvas class="crystal" data-scene="scene-{number}" tabindex="0" role="img" '
        f'aria-label="{escape(name)}"></canvas><script type="application/json" '
        f'id="scene-{number}">{data}</script><figcaption><b>{number}. {formula(name)}</b> '
        f'{" · ".join(filter(None, facts))}<div class="legend">{legend}</div></figcaption></figure>'
    )


def _cell_row(number: int, crystal: JudgedCrystal, drawn: Mapping[str, Any]) -> list[str]:
    from pymatgen.core.lattice import Lattice

    structure, lattice = _shown(crystal), Lattice(drawn["cell"])
    return [
        str(number),
        escape(crystal.name),
        formula(structure.composition.reduced_formula),
        _group(structure),
        ", ".join(f"{length:.3f}" for length in lattice.abc),
        ", ".join(f"{angle:.1f}" for angle in lattice.angles),
        f"{structure.volume / len(structure):.2f}",
    ]


def all_crystals(crystals: Sequence[JudgedCrystal], traits: Sequence[Traits | None]) -> str:
    """A row for each crystal, as given; `traits` are None where there is no valid structure."""
    relaxed = any(one.relaxation for one in crystals)
    columns = ["", "name", "formula", "space group", "atoms", "valid", "composition valid"]
    columns += ["unique", "novel", *(["relaxation", "above hull, eV/atom"] if relaxed else [])]
    rows = []
    for number, (one, known) in enumerate(zip(crystals[:MAX_ROWS], traits, strict=False), 1):
        structure = one.structure
        row = [
            str(number),
            escape(one.name),
            formula(structure.composition.reduced_formula) if structure else "–",
            space_group(known.space_group if known else None),
            str(len(structure)) if structure else "–",
            yes_no(True) if one.flaw is None else f'<span class="flaw">{escape(one.flaw)}</span>',
            *map(yes_no, (one.composition_valid, one.is_unique, one.is_novel)),
        ]
        if relaxed:
            row += [escape(one.relaxation.replace("_", " ")), energy(one.energy_above_hull)]
        rows.append(row)
    note = (
        f'<p class="note">The first {MAX_ROWS:,} of {len(crystals):,} are listed.</p>'
        if len(crystals) > MAX_ROWS
        else ""
    )
    summary = f"<summary>Show {len(rows):,} rows</summary>"
    content = f"<details>{summary}{note}{table('crystals', columns, rows)}</details>"
    return section("Every crystal", "", content)
