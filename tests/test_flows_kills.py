"""Campaigns whose processes are killed, or share the work, on SQLite and on PostgreSQL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from db.models import Candidate, Judgement, Ranking
from db.session import Database, open_database
from tests.db_kinds import KINDS
from tests.db_support import url_of
from tests.flows_support import (
    relaxations,
    run_stages,
    table,
    tiny_checkpoint,
    tiny_config,
)
from tests.kill_support import begin, each_once, ended


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def undisturbed(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What is found when nothing disturbs."""
    url = f"sqlite:///{tmp_path_factory.mktemp('undisturbed') / 'mine.db'}"
    run_stages(tiny_config(checkpoint, url))
    return table(open_database(url))


def test_killed_again_and_again_a_campaign_ends_as_if_undisturbed(
    checkpoint: Path, database_url: str, undisturbed: list[Any]
) -> None:
    config = tiny_config(checkpoint, database_url)
    database = open_database(database_url)
    finished: dict[int, Any] = {}
    last, kills = 2, 0
    while not ended(begin(config, last)):
        assert finished.items() <= relaxations(database).items()
        finished = relaxations(database)
        last, kills = last + 2, kills + 1
    assert kills >= 4
    assert finished.items() <= relaxations(database).items()
    assert table(database) == undisturbed
    each_once(database)
    database.close()


def test_two_processes_run_one_campaign(
    checkpoint: Path, database_url: str, undisturbed: list[Any]
) -> None:
    config = tiny_config(checkpoint, database_url)
    assert [ended(one) for one in [begin(config), begin(config)]] == [True, True]
    database = open_database(database_url)
    assert table(database) == undisturbed
    each_once(database)
    with database.session(write=False) as session:
        assert set(session.scalars(select(Candidate.fence))) <= {0, 1}, "one was lent twice"
    database.close()


@pytest.mark.slow
def test_killed_after_any_commit_with_a_ranking_and_a_judge(
    checkpoint: Path, tmp_path: Path
) -> None:
    more: dict[str, Any] = {
        "funnel": {"relax_budget": 3},
        "judge": {"potential": "chgnet@float64"},
        "thresholds": {"metastable": 100},  # so that there is something to judge
    }

    def found(database: Database) -> tuple[Any, ...]:
        with database.session(write=False) as session:
            ranked = session.execute(select(Ranking.candidate_id, Ranking.place, Ranking.score))
            judged = session.execute(select(Judgement.relaxation_id, Judgement.verdict))
            return table(database), sorted(map(tuple, ranked)), sorted(map(tuple, judged))

    undisturbed = open_database(f"sqlite:///{tmp_path / 'undisturbed.db'}")
    run_stages(tiny_config(checkpoint, str(undisturbed.engine.url), **more))
    expected, kills, done = found(undisturbed), 0, False
    assert expected[1] and expected[2]
    while not done:
        config = tiny_config(checkpoint, f"sqlite:///{tmp_path / str(kills)}.db", **more)
        done = ended(begin(config, kills + 1))
        database = open_database(config.database)
        finished = relaxations(database)
        assert ended(begin(config)) and found(database) == expected, kills
        assert finished.items() <= relaxations(database).items()
        database.close()
        kills += not done
    assert kills >= 30


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_killed_after_any_commit_a_campaign_ends_as_if_undisturbed(
    checkpoint: Path, tmp_path: Path, undisturbed: list[Any], kind: str
) -> None:
    kills, done = 0, False
    while not done:
        folder = tmp_path / str(kills)
        folder.mkdir()
        with url_of(kind, folder) as url:
            config = tiny_config(checkpoint, url)
            done = ended(begin(config, kills + 1))
            database = open_database(url)
            finished = relaxations(database)
            assert ended(begin(config)) and table(database) == undisturbed, kills
            assert finished.items() <= relaxations(database).items()
            each_once(database)
            database.close()
        kills += not done
    assert kills >= 20
