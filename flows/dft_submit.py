"""Submitting calculations: noted in the database first, so that none is ever submitted twice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from db import dft, queries
from db.dft import Wanted
from db.session import Database, open_database
from flows import dft_makers, progress
from flows.dft_makers import DftSettings
from flows.dft_runners import Runner
from flows.dft_settings import SubmitConfig
from flows.errors import ConfigError
from flows.settings import ThresholdSettings, one_line


@dataclass(frozen=True)
class Handed:
    """A crystal that was handed to a runner, or why it could not be."""

    material_id: str
    formula: str
    job_id: str | None
    error: str | None = None


def submit(config: SubmitConfig, runner: Runner | None = None) -> list[Handed]:
    """Hand crystals to a runner; one that cannot be never stops the others.

    Args:
        config: Which crystals, and what is computed of them.
        runner: None: the one that the settings name, which must be set up.

    Raises:
        ConfigError: atomate2, the code or the runner's package is not installed or set up.
        DatabaseError: There is no such database or campaign.
        FilterError: The filter is not understood.
    """
    calculation = config.calculation
    database = open_database(config.database, create=False)
    with database.session(write=False) as session:
        campaign = config.campaign
        wanted = dft.wanted(
            session,
            calculation.code,
            dft_makers.document(calculation),
            limit=config.limit,
            filter=config.filter,
            policy=config.policy,
            stable=ThresholdSettings().stable,
            resubmit=config.resubmit,
            campaign_id=None if campaign is None else queries.campaign_id(session, campaign),
        )
    runner = runner or config.open_runner()
    return list(_hand_over(database, calculation, runner, wanted))


def _hand_over(
    database: Database, settings: DftSettings, runner: Runner, wanted: list[Wanted]
) -> Iterator[Handed]:
    bar = progress.current()
    bar.stage("dft", len(wanted))
    for one in wanted:
        try:
            job_id = _hand(database, settings, runner, one)
            if job_id is not None:
                yield Handed(one.material_id, one.formula, job_id)
        except ConfigError:
            raise
        except Exception as error:  # makers and the connections to queues fail in their own ways
            yield Handed(one.material_id, one.formula, None, _told(error))
        bar.advance()


def _hand(database: Database, settings: DftSettings, runner: Runner, one: Wanted) -> str | None:
    """Submit one job and return its id; None where another process submits it at this moment."""
    flow = settings.flow(one.structure)
    job_id: str = flow.output.uuid
    runner.prepare(job_id)
    with database.session() as session:
        ours = dft.submit(
            session,
            one.relaxation_id,
            settings.code,
            dft_makers.document(settings),
            runner=runner.name,
            location=runner.location,
            job_id=job_id,
        )
    if not ours:
        return None
    try:
        runner.submit(flow)
    except Exception as error:  # should the queue have the job after all, its result is ignored
        with database.session() as session:
            dft.fail(session, job_id, f"could not be submitted: {_told(error)}")
        raise
    return job_id


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error):.300}"
