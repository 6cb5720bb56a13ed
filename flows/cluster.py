"""The Dask cluster on which a campaign's relaxations are shared, made from its settings."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from prefect import flow
from prefect.task_runners import TaskRunner

from flows.errors import ConfigError
from flows.settings import CampaignConfig, DaskSettings


def relax(config: CampaignConfig, settings: DaskSettings, campaign: int, task: Any) -> None:
    """Let several workers of a cluster relax one campaign; each crystal is lent to one of them."""

    @flow(name="relax-on-cluster", persist_result=False, task_runner=task_runner(settings))
    def shared(config: CampaignConfig, campaign: int, jobs: int) -> None:
        for job in [task.submit(config, campaign) for _ in range(jobs)]:
            job.result()

    shared(config, campaign, settings.jobs)


def task_runner(settings: DaskSettings) -> TaskRunner[Any]:
    """Return what runs Prefect tasks on the cluster; it starts when the flow does.

    Raises:
        ConfigError: Dask, or the class of the cluster, is not there.
    """
    try:
        from prefect_dask.task_runners import DaskTaskRunner
    except ImportError as error:
        raise ConfigError(
            f"dask: {error}; install it with `uv sync --extra dask`, or leave the table out"
        ) from error
    runner: TaskRunner[Any] = DaskTaskRunner(**_arguments(settings))
    return runner


def _arguments(settings: DaskSettings) -> dict[str, Any]:
    if settings.address is not None:
        return {"address": settings.address}
    module, _, name = settings.cluster.rpartition(".")
    try:
        kind = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"dask.cluster: no class {settings.cluster!r} ({error}); write such as "
            "distributed.LocalCluster or dask_jobqueue.SLURMCluster"
        ) from error
    return {
        "cluster_class": kind,
        "cluster_kwargs": {"n_workers": settings.jobs, **settings.options},
    }
