"""The stage before relaxation, without Prefect: who comes first where there is a budget."""

from __future__ import annotations

import math
import random
from collections.abc import Generator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np

from db import models, queries
from db.queries import Unranked
from db.session import open_database
from flows import inputs, progress
from flows.assess import placed
from flows.leases import worker_name
from flows.rows import potential_row, relax_config, relax_settings
from flows.settings import CampaignConfig, derived_seed

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from relax.ranking import Fall, Signals

_LOOKED_AT_ONCE = 1024  # starting the worker processes costs seconds


def rank_pending(config: CampaignConfig, campaign_id: int) -> None:
    """Look once at what the campaign drew, and settle the order in which it is relaxed.

    Known crystals are left out: one that matches a known one as drawn never counts as novel.
    Without a budget there is nothing to settle. Other processes may do the same at the same time;
    what they saw first counts.
    """
    if config.funnel.relax_budget is None:
        return
    database = open_database(config.database)
    settings = relax_settings(config)
    with database.session() as session:
        potential_id = potential_row(session, inputs.potential_info(config.potential)).id
        left = queries.unranked(session, campaign_id, potential_id, settings)
    bar = progress.current()
    bar.stage("rank", len(left))
    while left:
        # each process in an order of its own, so that two seldom look at the same crystals
        random.Random(worker_name()).shuffle(left)
        with (
            database.kept_open(),
            closing(_looks(config, campaign_id, left[:_LOOKED_AT_ONCE])) as rows,
        ):
            for row in rows:
                with database.session() as session:
                    queries.add_ranking(session, row)
                bar.advance()
        with database.session(write=False) as session:
            left = queries.unranked(session, campaign_id, potential_id, settings)
    with database.session() as session:
        _settle(session, config, campaign_id, potential_id, settings)


def _looks(
    config: CampaignConfig, campaign_id: int, candidates: Sequence[Unranked]
) -> Generator[models.Ranking]:
    """Look at candidates and yield the row of each as soon as it is there."""
    from relax.ranking import look

    known = inputs.load_reference(config.reference)
    new: list[Unranked] = []
    structures = [one.structure for one in candidates]
    for one, is_new in zip(candidates, known.novel(structures), strict=True):
        if is_new:
            new.append(one)
        else:
            yield models.Ranking(
                campaign_id=campaign_id,
                candidate_id=one.candidate_id,
                choice="known",
                passed_over=f"as drawn it is not novel against {known.name}",
            )
    hull, potential = inputs.load_hull(config.hulls[0]), inputs.potential_info(config.potential)
    structures = [one.structure for one in new]
    with closing(look(structures, config.potential, relax_config(config))) as looks:
        for index, signals in looks:
            row = models.Ranking(campaign_id=campaign_id, candidate_id=new[index].candidate_id)
            if signals is not None:
                energy = signals.energy_per_atom
                row.energy_per_atom, row.max_force = energy, signals.max_force
                row.virial, row.volume_per_atom = signals.virial, signals.volume_per_atom
                _, row.energy_above_hull, _ = placed(hull, potential, structures[index], energy)
            yield row


def _settle(
    session: Session,
    config: CampaignConfig,
    campaign_id: int,
    potential_id: int,
    settings: dict[str, Any],
) -> None:
    """Give the crystals that were looked at their places, in one transaction."""
    from relax.ranking import order

    rows = queries.unplaced(session, campaign_id)
    scores = np.array([row.energy_above_hull for row, _ in rows], dtype=float)
    scores[scores < config.thresholds.suspect] = math.nan  # they would be quarantined
    seen = np.isfinite(scores)
    rule = "energy above hull as drawn"
    fall = _learned(session, potential_id, settings)
    if fall is not None and seen.any():
        signals = [_signals(row, nsites) for row, nsites in rows]
        scores[seen] -= fall.sure([one for one, ok in zip(signals, seen, strict=True) if ok])
        rule += f", less the fall that nine of ten exceed, learned from {fall.rows} relaxations"
    choices = order(scores, config.funnel.random_share, derived_seed(f"{config.seed}:rank"))
    for number, choice in enumerate(choices, queries.places_taken(session, campaign_id) + 1):
        row = rows[choice.index][0]
        row.place, row.choice, row.rule = number, choice.by, rule
        row.score = float(scores[choice.index])


def _learned(session: Session, potential_id: int, settings: dict[str, Any]) -> Fall | None:
    """Learn from what earlier campaigns relaxed; None where that is too little."""
    from relax.ranking import Fall

    earlier = queries.fallen(session, potential_id, settings)
    signals = [_signals(one.ranking, one.nsites) for one in earlier]
    return Fall.learn(signals, [one.fall for one in earlier])


def _signals(row: models.Ranking, nsites: int) -> Signals:
    """Return what a row tells of a crystal as drawn; NaN where it tells nothing."""
    from relax.ranking import Signals

    numbers = (row.energy_per_atom, row.max_force, row.virial, row.volume_per_atom)
    energy, force, virial, volume = (math.nan if one is None else one for one in numbers)
    return Signals(energy, force, virial, volume, nsites)
