"""The density-functional handoff as Prefect flows, for the clock and for loops."""

from __future__ import annotations

from prefect import flow

from flows import pipeline
from flows.dft_settings import CollectConfig, SubmitConfig
from flows.tasks import PrefectEngine


@flow(name="dft-submit", persist_result=False)
def submit(config: SubmitConfig) -> int:
    """Hand crystals to density-functional calculations; none is handed over twice.

    Args:
        config: Which crystals, what is computed of them, and where.

    Returns:
        How many were handed over.
    """
    return pipeline.submit(config, PrefectEngine())


@flow(name="dft-collect", persist_result=False)
def collect(config: CollectConfig) -> dict[str, int]:
    """Collect the results of density-functional calculations, and judge them.

    Args:
        config: Which database and hull.

    Returns:
        How many were `completed`, `failed`, `running` and `judged`.
    """
    return pipeline.collect(config, PrefectEngine())
