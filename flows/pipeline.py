"""What campaigns, retrainings and loops do, step by step, whoever runs the steps."""

from __future__ import annotations

from collections import Counter

from flows import (
    checkpoints,
    dft_collect,
    dft_submit,
    gate,
    loop_round,
    progress,
    stage_generate,
    stage_judge,
    stage_rank,
    stage_relax,
    stage_retrain,
    stage_screen,
    training_set,
)
from flows.dft_settings import CollectConfig, SubmitConfig
from flows.engine import Engine
from flows.retrain_settings import LoopConfig, RetrainConfig
from flows.settings import CampaignConfig


def discover(config: CampaignConfig, engine: Engine) -> int:
    """Discover crystals: generate them, relax them, and find the stable, unique and novel ones.

    With a relaxation budget they are ranked first, and the most promising are relaxed.
    What was done before, by this run or by one that was killed, is in the database and is not
    done again. Without a seed, as on a schedule, campaigns of the same settings that runs before
    left unfinished are finished first.

    Args:
        config: All the settings of the campaign.
        engine: Runs the steps.

    Returns:
        The campaign's row number in the database.
    """
    config = engine.step(checkpoints.resolved, config)
    left = [] if config.seed is not None else engine.step(stage_generate.unfinished_seeds, config)
    own = config.with_run_seed(engine.new_run_id())
    for seed in left:
        if seed != own.seed:
            _campaign(config.model_copy(update={"seed": seed}), engine)
    return _campaign(own, engine)


def _campaign(config: CampaignConfig, engine: Engine) -> int:
    campaign = engine.step(stage_generate.open_campaign, config)
    progress.current().stage("generate", config.n)
    with stage_relax.standing_by(config, campaign):
        for number in range(config.number_of_batches):
            engine.step(stage_generate.generate_batch, config, campaign, number)
        engine.step(stage_rank.rank_pending, config, campaign)
        engine.relax(config, campaign)
    engine.step(stage_screen.screen_pending, config, campaign)
    if config.judge is not None:
        engine.step(stage_judge.judge_pending, config, campaign)
    engine.step(stage_generate.close_campaign, config, campaign)
    engine.publish(config, campaign)
    return campaign


def retrain(config: RetrainConfig, engine: Engine) -> int:
    """Train the next checkpoint on what was found, and promote it if it is no worse.

    What was done before, by this run or by one that was killed, is in the database or beside the
    checkpoint and is not done again.

    Args:
        config: All the settings of the retraining.
        engine: Runs the steps.

    Returns:
        The checkpoint's row number in the database.
    """
    frozen = engine.step(training_set.freeze, config)
    checkpoint = engine.step(stage_retrain.train, config, frozen)
    for sample in engine.step(gate.fresh_samples, config, checkpoint):
        engine.run(discover, sample)
    engine.step(gate.decide, config, checkpoint)
    return checkpoint


def loop(config: LoopConfig, engine: Engine) -> int:
    """Discover crystals and learn from them, round by round.

    Rounds and parts of them that were done before are found in the database and not done again.
    The loop ends early where the crystals of a round have become too much alike.

    Args:
        config: All the settings of the loop.
        engine: Runs the steps.

    Returns:
        How many rounds were done.
    """
    for number in range(1, config.rounds + 1):
        this = engine.step(loop_round.plan, config, number)
        engine.run(discover, this.campaign)
        if this.submission is not None:
            engine.run(submit, this.submission)
        engine.run(collect, this.collection)
        if engine.step(loop_round.is_narrow, config, number):
            return number
        if this.retraining is not None:
            engine.run(retrain, this.retraining)
    return config.rounds


def submit(config: SubmitConfig, engine: Engine) -> int:
    """Hand crystals to density-functional calculations; none is handed over twice.

    One that cannot be is told and stops neither the others nor a loop.

    Args:
        config: Which crystals, what is computed of them, and where.
        engine: Told what went wrong.

    Returns:
        How many were handed over.
    """
    handed = engine.step(dft_submit.submit, config)
    failed = Counter(one.error for one in handed if one.error is not None)
    for why, count in failed.items():
        engine.warn(f"dft submit: {count} × {why}")
    return len(handed) - failed.total()


def collect(config: CollectConfig, engine: Engine) -> dict[str, int]:
    """Collect the results of density-functional calculations, and judge them.

    What is collected is not collected again, so that it may run as often as one likes. A
    calculation or queue that went wrong is told and ends nothing, neither the schedule nor a loop.

    Args:
        config: Which database and hull.
        engine: Told what went wrong.

    Returns:
        How many were `completed`, `failed`, `running` and `judged`.
    """
    found = engine.step(dft_collect.collect, config)
    reasons = Counter(why for _, why in [*found.failures, *found.notes])
    for why, count in reasons.items():
        engine.warn(f"dft collect: {count} × {why}")
    return dict(found.counts)
