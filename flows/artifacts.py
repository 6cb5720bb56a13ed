"""What a campaign shows on Prefect's page: its best candidates, its funnel, and a histogram.

All of it is read from the database, so it is the same for a campaign that went on after a kill.
"""

from __future__ import annotations

import base64
from typing import Any

from prefect.artifacts import create_markdown_artifact, create_table_artifact

from db import queries
from db.session import open_database
from flows.outcome import Outcome, outcome
from flows.report_svg import hull_histogram
from flows.settings import CampaignConfig

_COLUMNS = {
    "material_id": "id",
    "formula_pretty": "formula",
    "space_group": "group",
    "energy_above_hull": "E above hull",
    "formation_energy_per_atom": "E formation",
    "verdict": "verdict",
    "is_unique": "unique",
    "is_novel": "novel",
}
_FUNNEL = (
    "generated",
    "valid",
    "distinct",
    "known_as_drawn",
    "passed_over",
    "relaxed",
    "failed",
    "stable",
    "metastable",
    "unique",
    "novel",
)
_LEFT_OUT = ("known_as_drawn", "passed_over", "failed")
"""Crystals that the steps after these are not about; shown where there are any."""
_NEW = {"sun": "stable, unique and novel", "msun": "metastable, unique and novel"}
_STYLE = """
svg { background: #fff; font-family: sans-serif; }
text { font-size: 11.5px; fill: #66727c; } .title { font-size: 12.5px; fill: #1f2930; }
.grid { stroke: #e3e7ea; } .zone { fill-opacity: .09; } .name { font-weight: 600; }
.stable { fill: #2e8b57; } .metastable { fill: #d99a1c; }
.unstable { fill: #8b969f; } .quarantined { fill: #b8bfc5; }
"""


def publish(config: CampaignConfig, campaign_id: int) -> None:
    """Put the tables and the picture of a campaign on the page of the run that calls this."""
    database = open_database(config.database)
    found = outcome(database, campaign_id)
    with database.session(write=False) as session:
        table = queries.candidates(
            session, filter="energy_above_hull IS KNOWN", campaign_id=campaign_id
        )
    create_markdown_artifact(funnel(found), key="funnel", description=f"Funnel of {found.campaign}")
    create_table_artifact(
        best(found), key="best-candidates", description=f"Lowest above the hull in {found.campaign}"
    )
    if len(table):
        picture = hull_histogram(table["energy_above_hull"].to_numpy(), config.thresholds)
        create_markdown_artifact(  # an image artifact would show its long address, too
            f"![crystals by energy above the hull]({as_url(picture)})",
            key="energy-above-hull",
            description=f"Energies above the hull, eV/atom, in {found.campaign}",
        )


def funnel(found: Outcome) -> str:
    """Return how many crystals are left after each step, and why not all, as Markdown's table."""
    counts = found.counts
    lines = ["| | crystals | share |", "| --- | ---: | :--- |"]
    for name in (*_FUNNEL, *_NEW):
        if name in _LEFT_OUT and not counts.get(name):
            continue
        share = counts[name] / max(counts["generated"], 1)
        bar = "█" * round(20 * share)
        label = _NEW.get(name, name.replace("_", " "))
        lines.append(f"| {label} | {counts[name]} | {bar} {share:.0%} |")
    return "\n".join([f"Campaign `{found.campaign}` in `{found.database}`", "", *lines])


def best(found: Outcome) -> list[dict[str, Any]]:
    """Return the rows of the best candidates; energies in eV/atom."""
    return [
        {
            title: round(row[name], 3) if isinstance(row[name], float) else row[name]
            for name, title in _COLUMNS.items()
        }
        for row in found.best
    ]


def as_url(svg: str) -> str:
    """Return a picture as an address that holds all of it."""
    alone = svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" width="980" ', 1)
    alone = alone.replace(">", f"><style>{_STYLE}</style>", 1)
    return f"data:image/svg+xml;base64,{base64.b64encode(alone.encode()).decode()}"
