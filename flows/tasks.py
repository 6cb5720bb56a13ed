"""Prefect tasks around the stages: retries and limits, no science; only numbers travel."""

from __future__ import annotations

from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from flows import (
    artifacts,
    checkpoints,
    gate,
    loop_round,
    stage_generate,
    stage_judge,
    stage_rank,
    stage_relax,
    stage_retrain,
    stage_screen,
    training_set,
)
from flows.retrain_settings import LoopConfig, RetrainConfig
from flows.settings import CampaignConfig, one_line


def is_transient(task: Any, task_run: Any, state: Any) -> bool:
    """Tell whether a failed task may do better: a lost or locked database, never bad input."""
    from sqlalchemy.exc import DBAPIError

    error = state.result(raise_on_failure=False)
    return isinstance(error, DBAPIError | OSError) or isinstance(error.__cause__, DBAPIError)


# Each stage goes on from what the database holds, so that a retry never repeats finished work;
# a limit on the tag, `prefect concurrency-limit create symmbfn-relax 1`, is shared by all runs.
_RETRYING: dict[str, Any] = {
    "retries": 3,
    "retry_delay_seconds": [5, 30, 120],
    "retry_condition_fn": is_transient,
    "cache_policy": NO_CACHE,
}


@task(**_RETRYING)
def unfinished(config: CampaignConfig) -> list[int]:
    """Find campaigns of these settings that were left unfinished; return their seeds."""
    return stage_generate.unfinished_seeds(config)


@task(**_RETRYING)
def start(config: CampaignConfig) -> int:
    """Find or start the campaign; return its row number."""
    return stage_generate.open_campaign(config)


@task(tags=["symmbfn-generate"], task_run_name="generate-{number}", **_RETRYING)
def generate(config: CampaignConfig, campaign: int, number: int) -> None:
    """Draw and store one batch of crystals."""
    stage_generate.generate_batch(config, campaign, number)


@task(tags=["symmbfn-relax"], **_RETRYING)
def rank(config: CampaignConfig, campaign: int) -> None:
    """Settle which crystals are relaxed first, where there is a budget for it."""
    stage_rank.rank_pending(config, campaign)


@task(tags=["symmbfn-relax"], **_RETRYING)
def relax(config: CampaignConfig, campaign: int) -> None:
    """Relax and store what is not relaxed yet."""
    stage_relax.relax_pending(config, campaign)


@task(tags=["symmbfn-screen"], **_RETRYING)
def screen(config: CampaignConfig, campaign: int) -> None:
    """Judge and store what has no verdict yet."""
    stage_screen.screen_pending(config, campaign)


@task(tags=["symmbfn-relax"], **_RETRYING)
def judge(config: CampaignConfig, campaign: int) -> None:
    """Ask a second potential, where the settings name one."""
    stage_judge.judge_pending(config, campaign)


@task(**_RETRYING)
def finish(config: CampaignConfig, campaign: int) -> None:
    """Note that the campaign is done."""
    stage_generate.close_campaign(config, campaign)


@task(cache_policy=NO_CACHE)
def publish(config: CampaignConfig, campaign: int) -> None:
    """Show the campaign on Prefect's page; it is none the worse where that fails."""
    try:
        artifacts.publish(config, campaign)
    except Exception as error:
        get_run_logger().warning("nothing to see on this page: %s", one_line(error))


@task(**_RETRYING)
def with_checkpoint(config: CampaignConfig) -> CampaignConfig:
    """Say which checkpoint is meant where the settings say "promoted"."""
    return checkpoints.resolved(config)


@task(**_RETRYING)
def freeze(config: RetrainConfig) -> int:
    """Choose and store what is trained on; return the training set's row number."""
    return training_set.freeze(config)


@task(tags=["symmbfn-train"], **_RETRYING)
def fine_tune(config: RetrainConfig, frozen: int) -> int:
    """Train the next checkpoint on a frozen set; return its row number."""
    return stage_retrain.train(config, frozen)


@task(**_RETRYING)
def fresh_samples(config: RetrainConfig, checkpoint: int) -> list[CampaignConfig]:
    """Return the campaigns that the gate compares; none once it has decided."""
    return gate.fresh_samples(config, checkpoint)


@task(**_RETRYING)
def decide(config: RetrainConfig, checkpoint: int) -> None:
    """Promote the checkpoint, or reject it and say why."""
    gate.decide(config, checkpoint)


@task(**_RETRYING)
def plan(config: LoopConfig, number: int) -> loop_round.Round:
    """Say what a round of a loop does."""
    return loop_round.plan(config, number)


@task(**_RETRYING)
def is_narrow(config: LoopConfig, number: int) -> bool:
    """Tell whether a round's crystals are so much alike that the loop must end."""
    return loop_round.is_narrow(config, number)
