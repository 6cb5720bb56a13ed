"""The second stage of a campaign, without Prefect: relax what still wants it."""

from __future__ import annotations

import math
import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from db import queries
from db.errors import StaleLeaseError
from db.leases import Claim
from db.session import Database, open_database
from flows import inputs, progress
from flows.assess import place
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
    from sqlalchemy.orm import Session

    from relax.hull import Hull
    from relax.optimize import RelaxConfig, RelaxResult
    from relax.potentials import PotentialInfo

_POLL_SECONDS = 2.0
_CLAIMED_AT_ONCE = 256  # starting the worker processes costs seconds
_CLAIMED_IN_TIME = 32  # as far as a budget of time may be overdrawn


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

    def left(self, session: Session) -> int:
        """Count the crystals that still want relaxing; those of dead processes are freed."""
        free_dead(session)
        return queries.unfinished(
            session, self.campaign_id, self.potential_id, self.settings, self.budget
        )


def relax_pending(config: CampaignConfig, campaign_id: int) -> None:
    """Relax the campaign's crystals that still want it, storing each as soon as it is done.

    With a relaxation budget those first that come first in the ranking, until it is spent.
    Other processes may do the same at the same time: each crystal is lent to one of them.
    """
    work = _work(config, campaign_id)
    worker = worker_name()
    timed = work.budget is not None and work.budget.seconds is not None
    claimed_at_once = _CLAIMED_IN_TIME if timed else _CLAIMED_AT_ONCE
    with work.database.session() as session:
        left = work.left(session)
    bar = progress.current()
    bar.stage("relax", left)
    best = Best(inputs.load_hull(config.hulls[0]), inputs.potential_info(config.potential))
    while left:
        with work.database.session() as session:
            claims = queries.claim(
                session,
                worker,
                campaign_id=campaign_id,
                potential_id=work.potential_id,
                settings=work.settings,
                lease_seconds=work.lease_seconds,
                limit=claimed_at_once,
                budget=work.budget,
            )
        with closing(_relax_claims(work, claims)) as results:
            for result in results:
                bar.advance(note=best.after(result))
        if not claims:  # all that is left is lent to other processes
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
        settings=relax_settings(relaxation),
        lease_seconds=config.lease_seconds,
        budget=relax_budget(config),
    )


def _relax_claims(work: _Work, claims: list[Claim]) -> Generator[RelaxResult]:
    """Relax what was claimed and store each result at once.

    Close it: that ends the worker processes and gives back what was not reached.
    """
    from relax.optimize import relax_iter

    if not claims:
        return
    held = dict(enumerate(claims))
    structures = [claim.structure for claim in claims]
    with heartbeat(work.database, held, work.lease_seconds):
        try:
            with closing(relax_iter(structures, work.potential, work.config)) as results:
                for index, result in results:
                    claim = held.pop(index)
                    _record(work, claim, result)
                    yield result
        finally:
            with work.database.session() as session:
                queries.release(session, list(held.values()))


def _record(work: _Work, claim: Claim, result: RelaxResult) -> None:
    row = relaxation_row(claim.candidate_id, work.potential_id, work.settings, result)
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
