"""The Dask cluster on which a campaign's relaxations are shared, made from its settings."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from flows.errors import ConfigError
from flows.settings import DaskSettings

if TYPE_CHECKING:
    from prefect_dask import DaskTaskRunner


def task_runner(settings: DaskSettings) -> DaskTaskRunner:
    """Return what runs Prefect tasks on the cluster; it starts when the flow does.

    Raises:
        ConfigError: Dask, or the class of the cluster, is not there.
    """
    try:
        from prefect_dask import DaskTaskRunner
    except ImportError as error:
        raise ConfigError(
            f"dask: {error}; install it with `uv sync --extra dask`, or leave the table out"
        ) from error
    if settings.address is not None:
        return DaskTaskRunner(address=settings.address)
    module, _, name = settings.cluster.rpartition(".")
    try:
        kind = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"dask.cluster: no class {settings.cluster!r} ({error}); write such as "
            "distributed.LocalCluster or dask_jobqueue.SLURMCluster"
        ) from error
    return DaskTaskRunner(
        cluster_class=kind, cluster_kwargs={"n_workers": settings.jobs, **settings.options}
    )
