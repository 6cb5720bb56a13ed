"""Collecting results: each is checked before it is stored, and judged by its own energy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING

from db import dft
from db.dft import Submitted
from db.models import utc_now
from db.session import Database, open_database
from flows import assess, dft_makers, inputs, rows
from flows.dft_results import UnusableError, read
from flows.dft_runners import Outcome, Runner, open_runner
from flows.dft_settings import CollectConfig
from flows.settings import one_line

if TYPE_CHECKING:
    from relax.hull import Hull

UNKNOWN_FOR = timedelta(minutes=10)
"""A job that its runner still does not know after this time is lost."""


@dataclass(frozen=True)
class Collected:
    """What a round of collecting found: numbers of calculations, and what went wrong.

    Attributes:
        counts: `completed`, `failed`, `running`, `judged`.
        failures: Id of the crystal and reason, for each that failed now.
        notes: Id of the crystal and reason, for each completed without a verdict now.
    """

    counts: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[str, str]] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)


def collect(config: CollectConfig) -> Collected:
    """Fetch what is finished, then judge what has no verdict against the hull asked for.

    A runner that cannot be asked, for instance as its package is not installed here, is noted for
    each of its calculations, which are awaited further.

    Raises:
        RelaxError: There is no such hull, or it is of another scheme than corrected energies.
    """
    database = open_database(config.database, create=False)
    hull = None if config.hull is None else judging_hull(config.hull)
    collected = Collected()
    with database.session(write=False) as session:
        awaited = dft.submitted(session)
    runner = lru_cache(_runner)
    for one in awaited:
        _settle(database, one, runner, collected)
    if hull is not None:
        _judge(database, config, hull, collected)
    return collected


def judging_hull(name: str) -> Hull:
    """Load the hull that calculations are judged against.

    Raises:
        RelaxError: There is no such hull, or it is of another scheme than corrected energies.
    """
    from relax.corrections import CORRECTED
    from relax.errors import RelaxError

    hull = inputs.load_hull(name)
    if hull.energy_scheme != CORRECTED:
        raise RelaxError(
            f"hull {name!r} has energies of scheme {hull.energy_scheme}, those of VASP are brought "
            f"to {CORRECTED}; import a hull of that scheme with `symmbfn hull import`"
        )
    return hull


def _runner(name: str, location: str | None) -> Runner:
    dft_makers.require_atomate2()  # reads what the runner gives
    return open_runner(name, location)


def _settle(
    database: Database,
    one: Submitted,
    runner: Callable[[str, str | None], Runner],
    collected: Collected,
) -> None:
    """Store what became of one calculation, if it is known."""
    try:
        outcome = runner(one.runner, one.location).outcome(one.job_id)
    except Exception as error:  # a queue's connection fails in its own ways; ask again later
        collected.counts["running"] += 1
        why = f"{one.runner} could not be asked ({type(error).__name__}: {one_line(error):.300})"
        collected.notes.append((one.material_id, why))
        return
    if outcome.state == "unknown" and utc_now() - one.submitted_at > UNKNOWN_FOR:
        outcome = Outcome("failed", reason=f"lost: {one.runner} has no such job")
    if outcome.state in ("running", "unknown"):
        collected.counts["running"] += 1
        return
    try:
        if outcome.output is None:
            raise UnusableError(outcome.reason)
        result = read(one.code, outcome.output, one.sent)
    except UnusableError as error:
        with database.session() as session:
            if dft.fail(session, one.job_id, str(error)):
                collected.counts["failed"] += 1
                collected.failures.append((one.material_id, str(error)))
        return
    with database.session() as session:
        if dft.complete(session, one.job_id, result):
            collected.counts["completed"] += 1
            if result.reason:
                collected.notes.append((one.material_id, result.reason))


def _judge(database: Database, config: CollectConfig, hull: Hull, collected: Collected) -> None:
    thresholds = config.thresholds.model_dump()
    with database.session() as session:
        hull_id = rows.hull_row(session, hull).id
        pending = dft.unjudged(session, hull_id, hull.energy_scheme, thresholds)
    for one in pending:
        formation, above, reason = assess.placed(
            hull, hull.energy_scheme, one.structure, one.energy_per_atom
        )
        with database.session() as session:
            dft.judge(
                session,
                one.id,
                hull_id=hull_id,
                thresholds=thresholds,
                verdict=assess.tier(above, config.thresholds),
                formation_energy_per_atom=formation,
                energy_above_hull=above,
                reason=reason,
            )
        collected.counts["judged"] += 1
