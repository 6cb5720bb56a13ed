"""The campaign as a Prefect flow: generate → rank → relax → screen → judge, stored as it goes."""

from __future__ import annotations

from prefect import flow

from flows import pipeline
from flows.settings import CampaignConfig
from flows.tasks import PrefectEngine


@flow(name="discover", persist_result=False)
def discover(config: CampaignConfig) -> int:
    """Discover crystals: generate them, relax them, and find the stable, unique and novel ones.

    Args:
        config: All the settings of the campaign.

    Returns:
        The campaign's row number in the database.
    """
    return pipeline.discover(config, PrefectEngine())
