"""The loop: rounds of discover → DFT → retrain, each from the checkpoint promoted last."""

from __future__ import annotations

from prefect import flow

from flows import tasks
from flows.campaign import discover
from flows.dft import collect, submit
from flows.retrain import retrain
from flows.retrain_settings import LoopConfig


@flow(name="loop", persist_result=False)
def loop(config: LoopConfig) -> int:
    """Discover crystals and learn from them, round by round.

    Rounds and parts of them that were done before are found in the database and not done again.
    The loop ends early where the crystals of a round have become too much alike.

    Args:
        config: All the settings of the loop.

    Returns:
        How many rounds were done.
    """
    for number in range(1, config.rounds + 1):
        this = tasks.plan(config, number)
        discover(this.campaign)
        if this.submission is not None:
            submit(this.submission)
        collect(this.collection)
        if tasks.is_narrow(config, number):
            return number
        if this.retraining is not None:
            retrain(this.retraining)
    return config.rounds
