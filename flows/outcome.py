"""What a campaign found, by its own verdicts: its funnel and its best candidates."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from db import queries
from db.models import Campaign
from db.session import Database

BEST = 10


@dataclass(frozen=True)
class Outcome:
    """The end of a campaign, or where it stands.

    Attributes:
        campaign_id: Its row.
        campaign: Its name, for filters: campaign = "name".
        database: URL without password.
        counts: From generated to stable, unique and novel; see `queries.campaign_counts`.
        tally: Of all draws: how many were made, accepted, and refused for each reason.
        judged: How many there is a second opinion of, and with how many it agrees; see
            `queries.judged_counts`.
        best: The candidates lowest above the hull, eV/atom; columns of `symmbfn candidates`.
    """

    campaign_id: int
    campaign: str
    database: str
    counts: dict[str, int]
    tally: dict[str, int]
    judged: dict[str, int]
    best: list[dict[str, Any]]

    def as_dict(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        return asdict(self)


def outcome(database: Database, campaign_id: int) -> Outcome:
    """Read what a campaign found."""
    with database.session(write=False) as session:
        name = session.get_one(Campaign, campaign_id).name
        counts = queries.campaign_counts(session, campaign_id)
        tally = queries.campaign_tally(session, campaign_id)
        judged = queries.judged_counts(session, campaign_id)
        best = queries.candidates(
            session,
            filter='verdict IS KNOWN AND verdict != "quarantined"',
            sort="energy_above_hull",
            limit=BEST,
            campaign_id=campaign_id,
        )
    return Outcome(
        campaign_id=campaign_id,
        campaign=name,
        database=database.url,
        counts=counts,
        tally=tally,
        judged=judged,
        best=best.to_dict(orient="records"),
    )
