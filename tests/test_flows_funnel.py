"""Campaigns with a relaxation budget, end to end with a generator, CHGNet and the shipped hull."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from db import queries
from db.models import Candidate, Ranking, Relaxation
from db.session import Database, open_database
from flows import artifacts
from flows.cli import run
from flows.commands.discover import _show
from flows.errors import ConfigError
from flows.outcome import outcome
from flows.settings import CampaignConfig, FunnelSettings
from flows.stage_generate import generate_batch, open_campaign
from flows.stage_rank import rank_pending
from flows.stage_relax import relax_pending
from flows.stage_screen import screen_pending
from symmbfn.files import read_structures, write_structures
from tests.flows_support import run_stages, tiny_checkpoint, tiny_config


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"))


def budgeted(checkpoint: Path, folder: Path, budget: int | str, **more: Any) -> CampaignConfig:
    funnel = {"relax_budget": budget, "random_share": 0.5}
    table = {"n": 8, "batch_size": 8, "funnel": funnel, **more}
    return tiny_config(checkpoint, f"sqlite:///{folder / 'mine.db'}", **table)


def drawn(config: CampaignConfig) -> int:
    """A campaign whose crystals are drawn."""
    campaign = open_campaign(config)
    for number in range(config.number_of_batches):
        generate_batch(config, campaign, number)
    return campaign


def rankings(database: Database) -> list[Ranking]:
    """All that were ranked, in the order of their places, the known first."""
    with database.session(write=False) as session:
        rows = session.scalars(select(Ranking).order_by(Ranking.place, Ranking.candidate_id)).all()
        session.expunge_all()
        return list(rows)


def relaxed(database: Database) -> set[int]:
    with database.session(write=False) as session:
        return set(session.scalars(select(Relaxation.candidate_id)))


def test_a_budget_relaxes_the_first_and_passes_over_the_rest(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = budgeted(checkpoint, tmp_path, 3)
    campaign = run_stages(config)
    database = open_database(config.database)
    rows = [row for row in rankings(database) if row.choice != "known"]
    assert [row.place for row in rows] == list(range(1, len(rows) + 1)) and len(rows) > 4
    assert {row.choice for row in rows} == {"ranked", "random"}
    assert {row.rule for row in rows} == {"energy above hull as drawn"}
    ranked = [row.score for row in rows if row.choice == "ranked" and row.score is not None]
    assert ranked == sorted(ranked) and len(ranked) > 1
    assert all(row.score == row.energy_above_hull for row in rows if row.score is not None)
    assert relaxed(database) == {row.candidate_id for row in rows[:3]}
    assert [row.passed_over is None for row in rows] == [True] * 3 + [False] * (len(rows) - 3)
    found = outcome(database, campaign)
    assert found.counts["generated"] == 8
    assert found.counts["relaxed"] + found.counts["failed"] == 3
    assert found.counts["passed_over"] == len(rows) - 3
    with database.session(write=False) as session:
        wanted = Candidate.state == "passed_over"
        left = {row.id: row.reason for row in session.scalars(select(Candidate).where(wanted))}
    reason = "the relaxation budget of 3 went to others"
    assert left == {row.candidate_id: reason for row in rows[3:]}
    page = artifacts.funnel(found)
    assert f"| passed over | {len(rows) - 3} |" in page
    assert ("| failed |" in page) == (found.counts["failed"] > 0)
    assert ("| known as drawn |" in page) == (found.counts["known_as_drawn"] > 0)
    _show(found, config)
    shown = capsys.readouterr().out
    assert f"passed_over {len(rows) - 3}" in shown
    assert "passed_over: the budget of 3 went to others, so that" in shown
    run(["candidates", "--db", config.database or ""])
    assert f", not relaxed: {len(rows) - 3} passed over" in capsys.readouterr().out


def test_a_campaign_that_was_stopped_goes_on_with_the_same_order_and_budget(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = budgeted(checkpoint, tmp_path, 3)
    campaign = drawn(config)
    database = open_database(config.database)
    add = queries.add_ranking
    looked: list[int] = []

    def add_two(session: Any, row: Ranking) -> Ranking:
        looked.append(row.candidate_id)
        if len(looked) > 2:
            raise KeyboardInterrupt
        return add(session, row)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(queries, "add_ranking", add_two)
        rank_pending(config, campaign)
    before = {row.candidate_id: row.created_at for row in rankings(database)}
    assert len(before) == 2
    rank_pending(config, campaign)
    order = [(row.place, row.candidate_id) for row in rankings(database)]
    assert (
        before.items() <= {row.candidate_id: row.created_at for row in rankings(database)}.items()
    )
    for _ in range(2):
        rank_pending(config, campaign)
        relax_pending(config, campaign)
        assert len(relaxed(database)) == 3
    assert order == [(row.place, row.candidate_id) for row in rankings(database)]


def test_known_crystals_are_left_out_and_a_budget_of_time_ends(
    checkpoint: Path, tmp_path: Path
) -> None:
    everything = tiny_config(checkpoint, f"sqlite:///{tmp_path / 'all.db'}", n=8, batch_size=8)
    drawn(everything)
    with open_database(everything.database).session(write=False) as session:
        crystals = [one.structure for one in queries.structures(session)]
    known = tmp_path / "known.extxyz"
    write_structures(known, crystals[:1])
    assert len(list(read_structures(known))) == 1
    config = budgeted(checkpoint, tmp_path, "0.001s", reference=str(known))
    campaign = drawn(config)
    rank_pending(config, campaign)
    database = open_database(config.database)
    first, *others = rankings(database)
    assert (first.choice, first.place) == ("known", None)
    assert first.passed_over == "as drawn it is not novel against known"
    assert all(row.choice != "known" for row in others)
    relax_pending(config, campaign)
    screen_pending(config, campaign)
    counts = outcome(database, campaign).counts
    assert counts["known_as_drawn"] == 1 and counts["relaxed"] + counts["failed"] > 0
    with database.session(write=False) as session:
        assert session.get_one(Candidate, first.candidate_id).state == "known"


def test_falls_of_earlier_campaigns_correct_the_scores(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relax.ranking.FEWEST", 10)
    relaxation = {"max_steps": 200, "fmax": 0.3}
    first = budgeted(checkpoint, tmp_path, 14, n=14, batch_size=14, relaxation=relaxation)
    run_stages(first)
    database = open_database(first.database)
    with database.session(write=False) as session:
        converged = session.scalars(
            select(Relaxation.id).where(Relaxation.status == "converged")
        ).all()
    assert len(converged) > 10
    second = budgeted(checkpoint, tmp_path, 1, seed=1, relaxation=relaxation)
    campaign = drawn(second)
    rank_pending(second, campaign)
    rows = [row for row in rankings(database) if row.campaign_id == campaign and row.place]
    assert {row.rule for row in rows} == {
        "energy above hull as drawn, less the fall that nine of ten exceed, learned from "
        f"{len(converged)} relaxations"
    }
    scored = [row for row in rows if row.score is not None]
    assert scored and all((row.energy_above_hull or 0) > (row.score or 0) for row in scored)


def test_settings_of_a_budget_are_numbers_or_times() -> None:
    for text, number, seconds in (
        ("300", 300, None),
        (300, 300, None),
        ("90s", None, 90.0),
        ("30min", None, 1800.0),
        ("1.5 h", None, 5400.0),
    ):
        funnel = FunnelSettings.model_validate({"relax_budget": text})
        assert (funnel.relaxations, funnel.seconds) == (number, seconds)
    for wrong, says in (
        ("soon", "'soon'; write a number such as 300, or a time such as 30min"),
        ("0min", "'0min'; write a number"),
        ("0", "0 relaxations; allow at least 1, or leave it out for all"),
    ):
        with pytest.raises(ConfigError, match=says):
            CampaignConfig.build({"funnel": {"relax_budget": wrong}}, where="test")


def test_a_budget_is_part_of_the_campaign_and_none_leaves_older_keys_as_they_were() -> None:
    plain = CampaignConfig.build({}, where="test")
    few, more = (
        CampaignConfig.build({"funnel": {"relax_budget": budget}}, where="test")
        for budget in (10, 20)
    )
    assert "funnel" not in plain.identity()
    assert len({one.idempotency_key() for one in (plain, few, more)}) == 3
