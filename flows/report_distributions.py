"""Sections of a report that compare distributions with the reference's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

from flows import report_svg as svg
from flows.report_html import percent, section, space_group

if TYPE_CHECKING:
    from symmbfn.metrics import Summary, Traits

_GROUPS = 14  # the most frequent ones that are shown


def distributions(valid: Sequence[Traits], reference: Summary, reference_name: str) -> str:
    """Density, volume per atom, and numbers of elements and atoms."""
    kinds = Counter(len(one.elements) for one in valid)
    atoms = Counter(one.n_atoms for one in valid if one.n_atoms is not None)
    charts = [
        svg.histogram([one.density for one in valid], reference.densities, "density, g/cm³"),
        svg.histogram(
            [one.volume_per_atom for one in valid],
            reference.volumes_per_atom,
            "volume per atom, Å³",
        ),
        _count_bars(kinds, reference.n_elements, "number of elements"),
        _count_bars(atoms, reference.n_atoms, "atoms in the primitive cell"),
    ]
    note = (
        f"{_legend(reference, reference_name)} Shares of the {len(valid):,} valid structures; "
        "the outermost bars hold what lies beyond them, too."
    )
    return section("Distributions", note, f'<div class="charts">{"".join(charts)}</div>')


def symmetry(valid: Sequence[Traits], reference: Summary, reference_name: str) -> str:
    """Crystal systems, and the most frequent space groups."""
    from symmbfn.conditions import CRYSTAL_SYSTEMS

    ours = _shares(Counter(one.space_group for one in valid if one.space_group is not None))
    known = _shares(reference.space_groups)
    top = sorted({*ours, *known}, key=lambda group: (-_of(ours, group) - _of(known, group), group))
    groups = [(space_group(group), _of(ours, group), _of(known, group)) for group in top[:_GROUPS]]
    systems = [
        (name, _of(ours, *members), _of(known, *members))
        for name, members in CRYSTAL_SYSTEMS.items()
    ]
    note = (
        f"{_legend(reference, reference_name)} Space groups found in the finished crystals at "
        f"0.1 Å; {len(ours)} different ones here, {len(known)} in the reference, the most frequent "
        "shown."
    )
    charts = f'<div class="charts">{_lanes(groups)}{_lanes(systems)}</div>'
    return section("Symmetry", note, charts)


def elements(valid: Sequence[Traits], reference: Summary, reference_name: str) -> str:
    """The periodic table, coloured by how much more or less often an element is used."""
    ours = Counter(symbol for one in valid for symbol in one.elements)
    note = (
        "Below each symbol: per cent of these crystals that contain the element, and of "
        f"{escape(reference_name)}. Orange is used more often than there, blue less; "
        "grey occurs in neither."
    )
    picture = svg.periodic_table(ours, len(valid), reference.elements, reference.n)
    return section("Elements", note, f'<div class="wide">{picture}</div>')


def _legend(reference: Summary, reference_name: str) -> str:
    return (
        '<span class="key ours"></span>these crystals <span class="key reference"></span>'
        f"{escape(reference_name)} ({reference.n:,} crystals)."
    )


def _shares(counts: Mapping[int, int]) -> dict[int, float]:
    total = sum(counts.values())
    return {value: count / total for value, count in counts.items()}


def _of(shares: Mapping[int, float], *values: int) -> float:
    """What the values have together."""
    return sum(shares.get(value, 0.0) for value in values)


def _lanes(rows: Sequence[tuple[str, float, float]]) -> str:
    """Lying bars, a row each: name (HTML), our share, the reference's."""
    longest = max((max(ours, known) for _, ours, known in rows), default=0.0) or 1.0
    lanes = [
        f'<div class="row"><span>{name}</span><div class="lane">'
        f'<div class="reference" style="width:{known / longest:.2%}"></div>'
        f'<div class="ours" style="width:{ours / longest:.2%}"></div></div>'
        f"<span>{percent(ours)}</span><span>{percent(known)}</span></div>"
        for name, ours, known in rows
    ]
    return f'<div class="lanes">{"".join(lanes)}</div>'


def _count_bars(ours: Mapping[int, int], known: Mapping[int, int], title: str) -> str:
    """Bars of whole numbers; the few beyond nearly all of both are put together."""
    last = max(_percentile(ours, 0.99), _percentile(known, 0.999))
    labels = [str(value) for value in range(1, last + 1)]
    if max([*ours, *known], default=0) > last:
        labels.append("more")
    size = len(labels)
    return svg.bars(labels, _heights(ours, last, size), _heights(known, last, size), title)


def _heights(counts: Mapping[int, int], last: int, size: int) -> list[float]:
    """Shares of 1 to `last`, and of more where the size leaves a place for them."""
    shares = _shares(counts)
    beyond = sum(share for value, share in shares.items() if value > last)
    return [*(_of(shares, value) for value in range(1, last + 1)), beyond][:size]


def _percentile(counts: Mapping[int, int], part: float) -> int:
    """The smallest number at or below which this part of the counts lies; 1 without counts."""
    left = part * sum(counts.values())
    for value, count in sorted(counts.items()):
        left -= count
        if left <= 0:
            return value
    return 1
