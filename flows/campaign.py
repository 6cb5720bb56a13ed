"""The discovery campaign: generate → rank → relax → screen → judge, each stored as it goes."""

from __future__ import annotations

from prefect import flow
from prefect.runtime import flow_run

from flows import cluster, progress, stage_relax, tasks
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
    config = tasks.with_checkpoint(config)
    left = [] if config.seed is not None else tasks.unfinished(config)
    own = config.with_run_seed(flow_run.get_id() or "")
    for seed in left:
        if seed != own.seed:
            _campaign(config.model_copy(update={"seed": seed}))
    return _campaign(own)


def _campaign(config: CampaignConfig) -> int:
    campaign = tasks.start(config)
    progress.current().stage("generate", config.n)
    with stage_relax.standing_by(config, campaign):
        for number in range(config.number_of_batches):
            tasks.generate(config, campaign, number)
        tasks.rank(config, campaign)
        _relax(config, campaign)
    tasks.screen(config, campaign)
    if config.judge is not None:
        tasks.judge(config, campaign)
    tasks.finish(config, campaign)
    tasks.publish(config, campaign)
    return campaign


def _relax(config: CampaignConfig, campaign: int) -> None:
    if config.dask is None:
        tasks.relax(config, campaign)
    else:
        shared = relax_on_cluster.with_options(task_runner=cluster.task_runner(config.dask))
        shared(config, campaign, config.dask.jobs)


@flow(name="relax-on-cluster", persist_result=False)
def relax_on_cluster(config: CampaignConfig, campaign: int, jobs: int) -> None:
    """Let several workers relax one campaign; each crystal is lent to one of them."""
    for job in [tasks.relax.submit(config, campaign) for _ in range(jobs)]:
        job.result()
