"""The discovery campaign: generate → rank → relax → screen, each stage stored as it goes."""

from __future__ import annotations

from prefect import flow
from prefect.runtime import flow_run

from flows import progress, tasks
from flows.settings import CampaignConfig


@flow(name="discover", persist_result=False)
def discover(config: CampaignConfig) -> int:
    """Discover crystals: generate them, relax them, and find the stable, unique and novel ones.

    With a relaxation budget they are ranked first, and the most promising are relaxed.
    What was done before, by this run or by one that was killed, is in the database and is not
    done again. Without a seed, as on a schedule, campaigns of the same settings that runs before
    left unfinished are finished first.

    Args:
        config: All the settings of the campaign.

    Returns:
        The campaign's row number in the database.
    """
    left = [] if config.seed is not None else tasks.unfinished(config)
    own = config.with_run_seed(flow_run.get_id() or "")
    for seed in left:
        if seed != own.seed:
            _campaign(config.model_copy(update={"seed": seed}))
    return _campaign(own)


def _campaign(config: CampaignConfig) -> int:
    campaign = tasks.start(config)
    progress.current().stage("generate", config.n)
    for number in range(config.number_of_batches):
        tasks.generate(config, campaign, number)
    tasks.rank(config, campaign)
    tasks.relax(config, campaign)
    tasks.screen(config, campaign)
    return campaign
