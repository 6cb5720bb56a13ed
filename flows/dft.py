"""The density-functional handoff as a Prefect flow, for collecting by the clock."""

from __future__ import annotations

from collections import Counter

from prefect import flow, get_run_logger

from flows import dft_collect, progress
from flows.dft_settings import CollectConfig


@flow(name="dft-collect", persist_result=False)
def collect(config: CollectConfig) -> dict[str, int]:
    """Collect the results of density-functional calculations, and judge them.

    What is collected is not collected again, so that it may run as often as one likes. What went
    wrong is told and ends nothing, neither the schedule nor a loop.

    Args:
        config: Which database and hull.

    Returns:
        How many were `completed`, `failed`, `running` and `judged`.
    """
    found = dft_collect.collect(config)
    reasons = Counter(why for _, why in [*found.failures, *found.notes])
    for why, count in reasons.items():
        progress.current().say(f"dft collect: {count} × {why}")
        get_run_logger().warning("%d × %s", count, why)
    return dict(found.counts)
