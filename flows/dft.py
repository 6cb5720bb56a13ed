"""The density-functional handoff as Prefect flows, for the clock and for loops."""

from __future__ import annotations

from collections import Counter

from prefect import flow, get_run_logger

from flows import dft_collect, dft_submit, progress
from flows.dft_settings import CollectConfig, SubmitConfig


@flow(name="dft-submit", persist_result=False)
def submit(config: SubmitConfig) -> int:
    """Hand crystals to density-functional calculations; none is handed over twice.

    One that cannot be is told and stops neither the others nor a loop.

    Args:
        config: Which crystals, what is computed of them, and where.

    Returns:
        How many were handed over.
    """
    handed = dft_submit.submit_as_set(config)
    failed = Counter(one.error for one in handed if one.error is not None)
    _tell("dft submit", failed)
    return len(handed) - failed.total()


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
    _tell("dft collect", Counter(why for _, why in [*found.failures, *found.notes]))
    return dict(found.counts)


def _tell(what: str, reasons: Counter[str]) -> None:
    for why, count in reasons.items():
        progress.current().say(f"{what}: {count} × {why}")
        get_run_logger().warning("%d × %s", count, why)
