"""Retraining as a Prefect flow: freeze the training set → fine-tune → fresh samples → the gate."""

from __future__ import annotations

from prefect import flow

from flows import pipeline
from flows.retrain_settings import RetrainConfig
from flows.tasks import PrefectEngine


@flow(name="retrain", persist_result=False)
def retrain(config: RetrainConfig) -> int:
    """Train the next checkpoint on what was found, and promote it if it is no worse.

    Args:
        config: All the settings of the retraining.

    Returns:
        The checkpoint's row number in the database.
    """
    return pipeline.retrain(config, PrefectEngine())
