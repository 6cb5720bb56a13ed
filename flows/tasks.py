"""Prefect as the engine: steps are its tasks, pipelines its flows; no structures travel."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run

from flows import (
    artifacts,
    cluster,
    stage_generate,
    stage_judge,
    stage_rank,
    stage_relax,
    stage_retrain,
    stage_screen,
)
from flows.engine import RETRY_DELAYS, Engine, is_transient
from flows.settings import CampaignConfig, one_line

# A limit on a tag, `prefect concurrency-limit create symmbfn-relax 1`, is shared by all runs.
_OPTIONS: dict[Callable[..., Any], dict[str, Any]] = {
    stage_generate.generate_batch: {
        "tags": ["symmbfn-generate"],
        "task_run_name": "generate-{number}",
    },
    stage_rank.rank_pending: {"tags": ["symmbfn-relax"]},
    stage_relax.relax_pending: {"tags": ["symmbfn-relax"]},
    stage_screen.screen_pending: {"tags": ["symmbfn-screen"]},
    stage_judge.judge_pending: {"tags": ["symmbfn-relax"]},
    stage_retrain.train: {"tags": ["symmbfn-train"]},
}
# The flow of each pipeline; flow files import this one, and Prefect may load them twice.
_FLOWS = {
    "discover": "flows.campaign",
    "retrain": "flows.retrain",
    "loop": "flows.loop",
    "submit": "flows.dft",
    "collect": "flows.dft",
}


class PrefectEngine(Engine):
    """Runs each step as a task and each pipeline as a flow."""

    def new_run_id(self) -> str:
        """Return that of the flow run; its retries keep it."""
        run = flow_run.get_id()
        assert run is not None, "outside of a flow run"
        return run

    def step[**P, R](self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a step as a task."""
        result: R = as_task(function)(*args, **kwargs)
        return result

    def run[C, R](self, pipeline: Callable[[C, Engine], R], config: C) -> R:
        """Run a pipeline as its flow."""
        name = pipeline.__name__
        result: R = getattr(import_module(_FLOWS[name]), name)(config)
        return result

    def relax(self, config: CampaignConfig, campaign: int) -> None:
        """Relax here, or on the Dask cluster that the settings name."""
        if config.dask is None:
            super().relax(config, campaign)
        else:
            cluster.relax(config, config.dask, campaign, as_task(stage_relax.relax_pending))

    def publish(self, config: CampaignConfig, campaign: int) -> None:
        """Show the campaign on Prefect's page; it is none the worse where that fails."""
        try:
            artifacts.publish(config, campaign)
        except Exception as error:
            self.warn(f"nothing to see on the page of this run: {one_line(error)}")

    def warn(self, text: str) -> None:
        """Tell it to whoever watches, and in the log of the run."""
        super().warn(text)
        get_run_logger().warning(text)


@cache
def as_task(function: Callable[..., Any]) -> Any:
    """Return the task that runs a step."""
    return task(
        retries=len(RETRY_DELAYS),
        retry_delay_seconds=list(RETRY_DELAYS),
        retry_condition_fn=_retry_condition,
        cache_policy=NO_CACHE,
        **_OPTIONS.get(function, {}),
    )(function)


def _retry_condition(task: Any, task_run: Any, state: Any) -> bool:
    return is_transient(state.result(raise_on_failure=False))
