"""The second stage of a campaign, without Prefect: relax what still wants it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

from db import queries
from db.errors import StaleLeaseError
from db.leases import Claim
from db.session import Database, open_database
from flows import inputs, progress
from flows.assess import limit_of, place
from flows.leases import free_dead, heartbeat, worker_name
from flows.rows import (
    potential_row,
    relax_budget,
    relax_config,
    relax_settings,
    relaxation_row,
)
from flows.settings import CampaignConfig

if TYPE_CHECKING:
    from pymatgen.core.structure import Structure
    from sqlalchemy.orm import Session

    from relax.hull import Hull
    from relax.optimize import RelaxConfig, RelaxResult
    from relax.potentials import PotentialInfo

_POLL_SECONDS = 2.0


@dataclass(frozen=True)
class _Work:
    """What is to be relaxed and how."""

    database: Database
    campaign_id: int
    potential: str
    potential_id: int
    config: RelaxConfig
    settings: dict[str, Any]
    lease_seconds: int
    budget: queries.Budget | None
    limit_of: Callable[[Structure], float] | None

    def left(self, session: Session) -> int:
        """Count the crystals that still want relaxing; those of dead processes are freed."""
        free_dead(session)
        return queries.unfinished(
            session, self.campaign_id, self.potential_id, self.settings, self.budget
        )


def standing_by(config: CampaignConfig, campaign_id: int) -> AbstractContextManager[None]:
    """Start the processes that rank and relax, while crystals are still drawn within the block.

    It starts none where nothing is left to do, or where they are on other machines.
    """
    from relax import optimize

    if config.dask is not None:
        return nullcontext()
    work = _work(config, campaign_id)
    with work.database.session() as session:
        drawn = len(queries.batch_numbers(session, campaign_id)) == config.number_of_batches
        if drawn and not work.left(session):
            return nullcontext()
    return optimize.standing_by(config.potential, work.config)


def relax_pending(config: CampaignConfig, campaign_id: int) -> None:
    """Relax the campaign's crystals that still want it, storing each as soon as it is done.

    With a relaxation budget those first that come first in the ranking, until it is spent.
    Other processes may do the same at the same time: each crystal is lent to one of them.
    """
    work = _work(config, campaign_id)
    with work.database.session() as session:
        left = work.left(session)
    bar = progress.current()
    bar.stage("relax", left)
    best = Best(inputs.load_hull(config.hulls[0]), inputs.potential_info(config.potential))
    while left:
        done = 0
        with work.database.kept_open(), closing(_relax_claimed(work)) as results:
            for result in results:
                done += 1
                bar.advance(note=best.after(result))
        if not done:  # all that is left is lent to other processes
            time.sleep(_POLL_SECONDS)
        with work.database.session() as session:
            left = work.left(session)
    if work.budget is not None:
        reason = f"the relaxation budget of {config.funnel.relax_budget} went to others"
        with work.database.session() as session:
            queries.pass_over(session, campaign_id, work.potential_id, work.settings, reason)


def _work(config: CampaignConfig, campaign_id: int) -> _Work:
    database = open_database(config.database)
    relaxation = relax_config(config)
    with database.session() as session:
        potential_id = potential_row(session, inputs.potential_info(config.potential)).id
    return _Work(
        database=database,
        campaign_id=campaign_id,
        potential=config.potential,
        potential_id=potential_id,
        config=relaxation,
        settings=relax_settings(config),
        lease_seconds=config.lease_seconds,
        budget=relax_budget(config),
        limit_of=limit_of(config),
    )


def _relax_claimed(work: _Work) -> Generator[RelaxResult]:
    """Relax what nobody else has claimed and store each result at once.

    Close it: that ends the worker processes and gives back what was not done.
    """
    from relax.optimize import relax_iter

    held: dict[int, Claim] = {}
    with heartbeat(work.database, held, work.lease_seconds):
        try:
            structures = _claimed_one_by_one(work, held)
            relaxing = relax_iter(structures, work.potential, work.config, work.limit_of)
            with closing(relaxing) as results:
                for index, result in results:
                    _record(work, held.pop(index), result)
                    yield result
        finally:
            with work.database.session() as session:
                queries.release(session, list(held.values()))


def _claimed_one_by_one(work: _Work, held: dict[int, Claim]) -> Generator[Structure]:
    """Claim a crystal whenever one is asked for, so that others find work as long as there is any.

    Args:
        work: What is to be relaxed.
        held: Takes up each claim under the number of its crystal, from 0.
    """
    worker = worker_name()
    for index in count():
        with work.database.session() as session:
            claims = queries.claim(
                session,
                worker,
                campaign_id=work.campaign_id,
                potential_id=work.potential_id,
                settings=work.settings,
                lease_seconds=work.lease_seconds,
                limit=1,
                budget=work.budget,
            )
        if not claims:
            return
        (held[index],) = claims
        yield held[index].structure


def _record(work: _Work, claim: Claim, result: RelaxResult) -> None:
    row = relaxation_row(
        claim.candidate_id, work.potential_id, work.settings, work.config.device, result
    )
    try:
        with work.database.session() as session:
            queries.record_relaxation(session, row, fence=claim.fence)
    except StaleLeaseError as error:
        progress.current().say(str(error))


class Best:
    """Keeps the lowest energy above the hull, for the progress bar."""

    def __init__(self, hull: Hull, potential: PotentialInfo) -> None:
        """Measure against `hull`, with energies of `potential`."""
        self._hull = hull
        self._potential = potential
        self._lowest = math.inf
        self._text = ""

    def after(self, result: RelaxResult) -> str:
        """Return the best so far, this result included unless it cannot be placed."""
        if result.status != "converged" or result.structure is None:
            return self._text
        assert result.energy_per_atom is not None  # as every converged result has
        try:
            _, above = place(self._hull, self._potential, result.structure, result.energy_per_atom)
        except Exception:  # the screening will tell why
            return self._text
        if above < self._lowest:  # never for NaN
            self._lowest = above
            self._text = f"best {result.structure.composition.reduced_formula} {above:+.3f} eV/atom"
        return self._text
