"""Retraining: freeze the training set → fine-tune → draw fresh samples → promote or reject."""

from __future__ import annotations

from prefect import flow

from flows import tasks
from flows.campaign import discover
from flows.retrain_settings import RetrainConfig


@flow(name="retrain", persist_result=False)
def retrain(config: RetrainConfig) -> int:
    """Train the next checkpoint on what was found, and promote it if it is no worse.

    What was done before, by this run or by one that was killed, is in the database or beside the
    checkpoint and is not done again.

    Args:
        config: All the settings of the retraining.

    Returns:
        The checkpoint's row number in the database.
    """
    checkpoint = tasks.fine_tune(config, tasks.freeze(config))
    for sample in tasks.fresh_samples(config, checkpoint):
        discover(sample)
    tasks.decide(config, checkpoint)
    return checkpoint
