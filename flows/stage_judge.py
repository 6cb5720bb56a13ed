"""The second opinion of a campaign, without Prefect: another potential, on what may be stable."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from db import models, queries
from db.session import open_database
from flows import inputs, progress
from flows.assess import Opinion, opinions
from flows.rows import judge_row, storable
from flows.settings import CampaignConfig

if TYPE_CHECKING:
    from relax.optimize import RelaxResult


def judge_pending(config: CampaignConfig, campaign_id: int) -> None:
    """Relax once more, with the judge's potential, what is unique and (meta)stable or suspect.

    From the crystal as the first potential left it, so that few steps are needed. Each opinion is
    stored as soon as it is there; what was asked before is not asked again.
    """
    if config.judge is None:
        return
    potential, hull = inputs.judge(config, config.judge)
    database = open_database(config.database)
    with database.session() as session:
        judge = judge_row(session, config, potential, hull)
        pending = queries.unjudged(session, campaign_id, judge)
    bar = progress.current()
    bar.stage("judge", len(pending))
    structures = [one.structure for one in pending]
    energies = [one.energy_per_atom for one in pending]
    judging = opinions(config, config.judge, structures, energies)
    with database.kept_open(), closing(judging) as told:
        for index, result, opinion in told:
            row = _judgement(pending[index].relaxation_id, judge, result, opinion)
            with database.session() as session:
                queries.record_judgement(session, row)
            bar.advance()


def _judgement(
    relaxation_id: int, judge: queries.Judge, result: RelaxResult, opinion: Opinion
) -> models.Judgement:
    return models.Judgement(
        relaxation_id=relaxation_id,
        potential_id=judge.potential_id,
        hull_id=judge.hull_id,
        settings=judge.settings,
        status=str(result.status),
        verdict=opinion.verdict,
        reason=opinion.reason,
        structure=storable(result.structure),
        energy_per_atom=result.energy_per_atom,
        formation_energy_per_atom=opinion.formation_energy_per_atom,
        energy_above_hull=opinion.energy_above_hull,
        spread=opinion.spread,
        steps=result.steps,
        seconds=result.seconds,
    )
