"""The loop as a Prefect flow: rounds of discover → DFT → retrain."""

from __future__ import annotations

from prefect import flow

from flows import pipeline
from flows.retrain_settings import LoopConfig
from flows.tasks import PrefectEngine


@flow(name="loop", persist_result=False)
def loop(config: LoopConfig) -> int:
    """Discover crystals and learn from them, round by round.

    Args:
        config: All the settings of the loop.

    Returns:
        How many rounds were done.
    """
    return pipeline.loop(config, PrefectEngine())
