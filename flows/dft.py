"""The density-functional handoff as a Prefect flow, for collecting by the clock."""

from __future__ import annotations

from prefect import flow

from flows import dft_collect
from flows.dft_settings import CollectConfig


@flow(name="dft-collect", persist_result=False)
def collect(config: CollectConfig) -> dict[str, int]:
    """Collect the results of density-functional calculations, and judge them.

    What is collected is not collected again, so that it may run as often as one likes.

    Args:
        config: Which database and hull.

    Returns:
        How many were `completed`, `failed`, `running` and `judged`.
    """
    return dict(dft_collect.collect(config).counts)
