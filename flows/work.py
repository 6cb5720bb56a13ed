"""Relaxing for campaigns that others have started: what `symmbfn work` does, without Prefect.

Any machine that reaches the database may help. Each crystal is lent to one process at a time, so
helpers need to know nothing of each other, may come and go, and may be killed.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass

from sqlalchemy import select

from db import queries
from db.documents import content_hash
from db.models import Campaign
from db.session import Database, open_database
from flows import inputs, progress
from flows.errors import ConfigError
from flows.rows import potential_row, relax_settings
from flows.settings import CampaignConfig
from flows.stage_relax import relax_pending
from relax.errors import RelaxError
from relax.optimize import check_device

_POLL_SECONDS = 5.0


@dataclass(frozen=True)
class Here:
    """With what this machine relaxes; see the settings of these names."""

    workers: int | None = None
    device: str = "cpu"


def work(
    url: str | None, name: str | None = None, here: Here | None = None, *, wait: bool = False
) -> None:
    """Relax what unfinished campaigns have left, oldest campaign first.

    Without a name, a campaign that this machine cannot help is left to others, and that is said.

    Args:
        url: Of the database.
        name: Only for the newest campaign of this name.
        here: With what this machine relaxes; None for the defaults.
        wait: Stay, for crystals still to be drawn and campaigns still to begin; with a name, until
            that campaign is finished.

    Raises:
        DatabaseError: No such database or campaign.
        ConfigError, RelaxError: This machine has not what the named campaign relaxes with.
    """
    here = here or Here()
    check_device(here.device)
    database = open_database(url, create=False)
    refused: set[int] = set()
    while True:
        unfinished = _unfinished(database, name)
        for campaign, title in unfinished.items():
            if campaign in refused:
                continue
            try:
                relax_pending(campaign_config(database, campaign, url, here), campaign)
            except (ConfigError, RelaxError) as error:
                if name is not None:
                    raise
                refused.add(campaign)
                progress.current().say(f"campaign {title} is left to others; {error}")
        if not wait or (name is not None and not unfinished):
            return
        time.sleep(_POLL_SECONDS)


def campaign_config(
    database: Database, campaign_id: int, url: str | None, here: Here
) -> CampaignConfig:
    """Return the settings of a stored campaign, to be run on this machine.

    Raises:
        ConfigError: The potential has other weights here, or this release relaxes otherwise.
    """
    with database.session() as session:
        campaign = session.get_one(Campaign, campaign_id)
        stored = {**campaign.config, "seed": campaign.seed}
        config = CampaignConfig.build(
            {**stored, "database": url, **asdict(here)}, where=f"campaign {campaign.name}"
        )
        potential = potential_row(session, inputs.potential_info(config.potential))
        if campaign.potential_id not in (None, potential.id):
            raise ConfigError(
                f"campaign {campaign.name}: its potential {config.potential!r} has other weights "
                "or another precision on this machine; install what the campaign began with"
            )
        settings = content_hash(relax_settings(config))
        if campaign.relax_settings_hash not in (None, settings):
            raise ConfigError(
                f"campaign {campaign.name}: this release relaxes in another way than the one that "
                f"began it ({campaign.code_version}); install that one here, too"
            )
    return config


def _unfinished(database: Database, name: str | None) -> dict[int, str]:
    """Find campaigns to help: their row numbers, oldest first, and names."""
    with database.session(write=False) as session:
        rows = (
            select(Campaign.id, Campaign.name)
            .where(Campaign.finished_at.is_(None))
            .order_by(Campaign.id)
        )
        if name is not None:
            rows = rows.where(Campaign.id == queries.campaign_id(session, name))
        return {number: title for number, title in session.execute(rows)}
