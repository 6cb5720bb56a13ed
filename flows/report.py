"""The report of `symmbfn evaluate`: one HTML page that needs no network and no other file.

Every text that comes from outside is escaped, and the page's own policy lets it load nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING

from flows.evaluation import JudgedCrystal
from flows.report_distributions import distributions, elements, symmetry
from flows.report_html import percent, section, table
from flows.report_intervals import RESAMPLES, distance_intervals, fraction_interval
from flows.report_structures import all_crystals, examples, stability
from flows.settings import ThresholdSettings

if TYPE_CHECKING:
    from symmbfn.metrics import Metrics, Summary, Traits

_FRACTIONS = {
    "structural_validity": ("valid structure", "atoms at least 0.5 Å apart, cell above 0.1 Å³"),
    "composition_validity": ("valid composition", "charges can balance (SMACT, as in CDVAE)"),
    "uniqueness": ("unique", "valid, and the first of its kind among these"),
    "novelty": ("novel", "valid, and matches no known crystal"),
    "coverage_recall": ("recall", "of the reference, near these crystals (CDVAE's fingerprints)"),
    "coverage_precision": ("precision", "near the reference (CDVAE's fingerprints)"),
    "metastable": ("metastable", "relaxed, at most {metastable:g} eV/atom above the hull"),
    "stable": ("stable", "relaxed, at most {stable:g} eV/atom above the hull"),
    "msun": ("metastable S.U.N.", "metastable, unique and novel"),
    "sun": ("S.U.N.", "stable, unique and novel"),
}
_DISTANCES = {
    "space_group_jsd": ("space groups", "Jensen–Shannon distance (base e)"),
    "density_wasserstein": ("density", "Wasserstein distance, g/cm³"),
    "n_elements_wasserstein": ("number of elements", "Wasserstein distance"),
}


@dataclass(frozen=True)
class Report:
    """What a report shows.

    Attributes:
        title: What was evaluated, in a few words.
        crystals: All of them, in their order.
        metrics: Counted over them.
        reference: Distributions to compare with.
        reference_name: What to call it.
        thresholds: Of the energy above the hull, eV/atom.
        recipe: Names and values, in the order to show.
    """

    title: str
    crystals: Sequence[JudgedCrystal]
    metrics: Metrics
    reference: Summary
    reference_name: str
    thresholds: ThresholdSettings
    recipe: Mapping[str, str]


def render(report: Report) -> str:
    """Write the page."""
    from symmbfn.metrics import traits_of

    traits = [
        traits_of(one.structure) if one.structure is not None and one.flaw is None else None
        for one in report.crystals
    ]
    valid = [one for one in traits if one is not None]
    compared = (valid, report.reference, report.reference_name)
    sections = [
        _header(report),
        _headline(report, valid),
        stability(report.crystals, report.thresholds),
        examples(report.crystals),
        *((distributions(*compared), symmetry(*compared), elements(*compared)) if valid else ()),
        all_crystals(report.crystals, traits),
        _recipe(report.recipe),
    ]
    here = files("flows")
    return Template(here.joinpath("report_page.html").read_text(encoding="utf-8")).substitute(
        title=escape(report.title),
        body="\n".join(filter(None, sections)),
        viewer=here.joinpath("report_viewer.js").read_text(encoding="utf-8"),
    )


def _header(report: Report) -> str:
    return (
        f"<header><h1>{escape(report.title)}</h1><p>{len(report.crystals):,} crystals, compared "
        f"with {escape(report.reference_name)}</p></header>"
    )


def _headline(report: Report, valid: Sequence[Traits]) -> str:
    """The metrics with their intervals."""
    metrics = report.metrics.to_dict()
    rows = [
        _fraction_row(report, name, label, meaning, share)
        for name, (label, meaning) in _FRACTIONS.items()
        if (share := metrics[name]) is not None
    ]
    fractions = table(
        "fractions", ["of all crystals", "share", "95 % interval", "count", "", ""], rows
    )
    found = distance_intervals(valid, report.reference)
    if not found:
        return section("At a glance", "", fractions)
    distances = [
        [
            f"<b>{label}</b>",
            f"<b>{one.value:.3f}</b>",
            f"{one.low:.3f} – {one.high:.3f}",
            f"{one.floor:.3f}",
            meaning,
        ]
        for name, (label, meaning) in _DISTANCES.items()
        if (one := found.get(name)) is not None
    ]
    columns = ["distance to the reference", "value", "95 % interval", "by chance", ""]
    note = (
        f'<p class="note">Distances are of the {len(valid):,} valid structures; smaller is better. '
        f"By chance: what {len(valid):,} crystals drawn from the reference itself score on "
        "average. Intervals: Wilson's for shares; for distances 1.96 bootstrap standard errors to "
        f"each side ({RESAMPLES} resamples, seed 0).</p>"
    )
    return section("At a glance", "", fractions, table("distances", columns, distances), note)


def _fraction_row(report: Report, name: str, label: str, meaning: str, share: float) -> list[str]:
    n = report.reference.n if name == "coverage_recall" else report.metrics.n
    count = round(share * n)
    low, high = fraction_interval(count, n)
    bar = (
        f'<div class="track"><div class="fill" style="width:{share:.2%}"></div>'
        f'<div class="whisker" style="left:{low:.2%};width:{high - low:.2%}"></div></div>'
    )
    return [
        f"<b>{label}</b>",
        f"<b>{percent(share)}</b>",
        f"{100 * low:.1f} – {100 * high:.1f} %",
        f"{count:,} of {n:,}",
        bar,
        meaning.format_map(report.thresholds.model_dump()),
    ]


def _recipe(facts: Mapping[str, str]) -> str:
    rows = [(escape(name), escape(value)) for name, value in facts.items()]
    return section("How this was made", "", table("recipe", ["", ""], rows))
