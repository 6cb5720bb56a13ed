"""The loop: what each round draws from, that nothing is repeated, and where it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from db import queries, training
from db.errors import FilterError
from db.session import open_database
from flows import loop_plot, loop_round, pipeline, stage_retrain, training_set
from flows.commands.retrain import _check_loop
from flows.dft_settings import SubmitConfig
from flows.engine import Engine
from flows.errors import ConfigError
from flows.loop_round import plan, results
from flows.retrain_settings import LoopConfig
from relax.errors import RelaxError
from tests.flows_support import environment, run_stages, symmbfn, tiny_loop


@pytest.fixture
def config(tmp_path: Path) -> LoopConfig:
    return tiny_loop(tmp_path)


def _run(config: LoopConfig) -> None:
    pipeline.loop(config, Engine())


def test_each_round_draws_from_what_the_one_before_promoted(
    config: LoopConfig, tmp_path: Path
) -> None:
    _run(config)
    first, second = results(config)
    assert first.checkpoint == str(tmp_path / "ck") and first.gate == "promoted"
    assert second.checkpoint == str(tmp_path / "retrained" / "tiny-round-1")
    assert (first.generated, second.generated) == (3, 3)
    assert first.relaxing > 0 and first.training is not None
    assert 0 < first.chemical_systems <= 100
    with open_database(config.campaign.database).session(write=False) as session:
        before = queries.table_counts(session)
        sets = [training.frozen(session, f"tiny-round-{number}") for number in (1, 2)]
        sizes = [len(list(training.members(session, [one.id]))) for one in sets if one]
    assert sizes[0] < sizes[1]
    _run(config)
    with open_database(config.campaign.database).session(write=False) as session:
        assert queries.table_counts(session) == before
    loop_plot.write([first, second], tmp_path / "loop.png")
    assert (tmp_path / "loop.png").read_bytes().startswith(b"\x89PNG")


def test_a_rejected_checkpoint_is_not_drawn_from(config: LoopConfig) -> None:
    this = plan(config, 1)
    assert this.retraining is not None
    run_stages(this.campaign)
    checkpoint = stage_retrain.train(this.retraining, training_set.freeze(this.retraining))
    with open_database(config.campaign.database).session() as session:
        training.judge(session, checkpoint, {}, "worse in everything")
    assert plan(config, 2).campaign.checkpoint == this.campaign.checkpoint
    assert plan(config, 2).campaign.seed != this.campaign.seed
    assert results(config)[0].gate == "rejected: worse in everything"


def test_the_control_learns_nothing(config: LoopConfig) -> None:
    control = config.model_copy(update={"retraining": False})
    assert [plan(control, number).retraining for number in (1, 2, 3)] == [None] * 3
    assert {plan(control, n).campaign.checkpoint for n in (1, 3)} == {config.campaign.checkpoint}


def test_the_loop_ends_where_crystals_become_alike(
    config: LoopConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = loop_round.Result(
        number=1,
        checkpoint="ck",
        generated=100,
        sun=10,
        msun=40,
        sun_interval=(0.05, 0.17),
        msun_interval=(0.3, 0.5),
        formulas=95.0,
        chemical_systems=90.0,
        space_groups=40.0,
        hhi=0.04,
        relaxing=70.0,
        drawing=1.0,
        training=None,
        gate="",
    )
    rounds = [first, replace(first, number=2, chemical_systems=80.0)]
    monkeypatch.setattr(loop_round, "results", lambda _: rounds)
    assert not loop_round.is_narrow(config.model_copy(update={"min_diversity": 0.7}), 2)
    assert loop_round.is_narrow(config.model_copy(update={"min_diversity": 0.95}), 2)
    assert not loop_round.is_narrow(config, 1)


def test_settings_that_belong_to_the_loop_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"retrain\.campaign and retrain\.key"):
        LoopConfig.build({"name": "a", "retrain": {"key": "b"}}, where="test")
    with pytest.raises(ConfigError, match=r"dft\.database, campaign and resubmit are the loop's"):
        LoopConfig.build({"name": "a", "dft": {"campaign": "b"}}, where="test")
    with pytest.raises(ConfigError, match=r"campaign\.key is the loop's own"):
        LoopConfig.build({"name": "a", "campaign": {"key": "b"}}, where="test")
    (tmp_path / "bad.toml").write_text('name = "a"\nronds = 3\n')
    refused = symmbfn("loop", "bad.toml", home=tmp_path)
    assert refused.returncode == 2 and "did you mean 'rounds'" in refused.stderr


def test_a_hull_or_filter_that_cannot_serve_is_refused_before_round_one(
    config: LoopConfig, tmp_path: Path
) -> None:
    with pytest.raises(RelaxError, match="scheme self-consistent:chgnet"):
        _check_loop(config.model_copy(update={"dft_hull": "chgnet"}))
    with pytest.raises(ConfigError, match="VASP runs here need PMG_VASP_PSP_DIR"):
        _check_loop(config.model_copy(update={"dft": SubmitConfig()}))
    retrain = config.retrain.model_copy(update={"filter": "enrgy < 0"})
    with pytest.raises(FilterError, match="no field 'enrgy'"):
        _check_loop(config.model_copy(update={"retrain": retrain}))
    assert not (tmp_path / "loop.db").exists()


@pytest.mark.slow
def test_a_killed_loop_goes_on_and_repeats_nothing(config: LoopConfig, tmp_path: Path) -> None:
    command = ["loop", "loop.toml", "--db", str(config.campaign.database)]
    killed = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", *command], cwd=tmp_path, env=environment(tmp_path)
    )
    work = tmp_path / "retrained" / "tiny-round-1"
    deadline = time.monotonic() + 600
    while not work.exists() and killed.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert work.exists()
    with open_database(config.campaign.database).session(write=False) as session:
        before = queries.table_counts(session)["relaxation"]
    done = symmbfn(*command, "--json", home=tmp_path, timeout=900)
    assert done.returncode == 0, done.stderr
    undisturbed = results(config)
    assert [one.number for one in undisturbed] == [1, 2]
    with open_database(config.campaign.database).session(write=False) as session:
        assert queries.table_counts(session)["relaxation"] > before
        assert queries.table_counts(session)["training_set"] == 2
