"""Prefect's part: commands by a named server, deployments, and what a run shows on the page."""

from __future__ import annotations

import base64
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from xml.etree import ElementTree

import pytest

from db import queries, training
from db.session import open_database
from flows import artifacts
from flows.campaign import discover
from flows.errors import ConfigError
from flows.loop_round import plan
from flows.outcome import Outcome
from flows.report_svg import hull_histogram
from flows.settings import CampaignConfig, ThresholdSettings
from tests.flows_support import (
    KNOWN,
    discover_until_commit,
    environment,
    run_stages,
    table,
    tiny_checkpoint,
    tiny_config,
    tiny_loop,
)
from tests.kill_support import FORKS, NEVER, each_once, ended
from tests.prefect_support import PREFECT_YAML, ROOT, Server, serving, until, working


def test_a_campaign_file_and_the_parameters_of_a_deployment_are_one_model() -> None:
    config = CampaignConfig.from_toml(ROOT / "examples" / "campaign.toml")
    table = config.model_dump(mode="json")
    assert discover.validate_parameters({"config": table}) == {"config": config}
    wrong = {"config": {**table, "relaxation": {"fmaks": 0.1}}}
    with pytest.raises(Exception, match=r"relaxation.fmaks"):
        discover.validate_parameters(wrong)
    for deployment in PREFECT_YAML["deployments"]:
        file, _, name = deployment["entrypoint"].partition(":")
        deployed = getattr(import_module(file.removesuffix(".py").replace("/", ".")), name)
        given = deployed.validate_parameters(deployment["parameters"])["config"]
        assert deployed is not discover or given.seed is None


def test_the_page_shows_the_funnel_the_best_and_a_picture_that_needs_no_other_file() -> None:
    names = ["generated", "valid", "distinct", "relaxed", "stable", "metastable"]
    counts = dict(zip(names, (16, 15, 14, 12, 2, 8), strict=True))
    counts |= {"unique": 10, "novel": 9, "sun": 1, "msun": 4}
    row = dict.fromkeys(artifacts._COLUMNS) | {"material_id": "sbfn-2", "energy_above_hull": -1 / 3}
    found = Outcome(1, "mine", "sqlite:///mine.db", counts, tally={}, judged={}, best=[row])
    lines = artifacts.funnel(found).splitlines()
    assert "| metastable | 8 | ██████████ 50% |" in lines
    assert "| stable, unique and novel | 1 | █ 6% |" in lines
    (best,) = artifacts.best(found)
    assert (best["id"], best["E above hull"], best["novel"]) == ("sbfn-2", -0.333, None)
    picture = hull_histogram([-0.02, 0.04, 0.3], ThresholdSettings())
    kind, _, data = artifacts.as_url(picture).partition(",")
    assert kind == "data:image/svg+xml;base64"
    drawn = ElementTree.fromstring(base64.b64decode(data))
    assert drawn.tag == "{http://www.w3.org/2000/svg}svg"
    assert ".metastable { fill" in (drawn[0].text or "")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that several tests use."""
    folder = tmp_path_factory.mktemp("server")
    with serving(folder, f"sqlite:///{folder / 'unused.db'}") as server:
        yield server


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.mark.parametrize("by", ["environment", "profile"])
def test_a_command_runs_by_the_server_that_is_named(
    server: Server, checkpoint: Path, tmp_path: Path, by: str
) -> None:
    env = environment(tmp_path) | {"PREFECT_API_URL": server.env["PREFECT_API_URL"]}
    if by == "profile":
        profile = (
            f'active = "ours"\n[profiles.ours]\nPREFECT_API_URL = "{env.pop("PREFECT_API_URL")}"'
        )
        (tmp_path / "prefect").mkdir()
        (tmp_path / "prefect" / "profiles.toml").write_text(profile)
    file = tmp_path / "tiny.toml"
    file.write_text(
        f'n = 2\nsteps = 3\ncheckpoint = "{checkpoint}"\nreference = "{checkpoint / KNOWN}"\n'
        "workers = 0\nrelaxation = { max_steps = 5, fmax = 0.3 }\n"
    )
    before = {run["id"] for run in server.ask("flow_runs")}
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", "discover", str(file), "--db", "sqlite:///mine.db"],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "|" not in done.stderr  # of Prefect's log
    (run,) = [one for one in server.ask("flow_runs") if one["id"] not in before]
    assert run["state_name"] == "Completed"
    artifacts = [one for one in server.ask("artifacts") if one["flow_run_id"] == run["id"]]
    assert {"funnel", "best-candidates"} <= {one["key"] for one in artifacts}

    def tasks() -> dict[str, list[str]]:
        found = [one for one in server.ask("task_runs") if one["flow_run_id"] == run["id"]]
        return {one["name"]: one["tags"] for one in found}

    until(lambda: "generate-0" in tasks(), 60)  # Prefect writes them down later
    assert tasks()["generate-0"] == ["symmbfn-generate"]


def test_a_named_server_that_does_not_answer_is_one_line(checkpoint: Path, tmp_path: Path) -> None:
    env = environment(tmp_path) | {"PREFECT_API_URL": "http://127.0.0.1:9/api"}
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", "discover", "--checkpoint", str(checkpoint), "-n", "1"],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "http://127.0.0.1:9/api does not answer" in done.stderr
    assert "unset PREFECT_API_URL" in done.stderr


def test_prefect_tries_a_step_again_and_a_run_keeps_its_id(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect import flow
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows import tasks

    monkeypatch.setattr(tasks, "RETRY_DELAYS", (0, 0, 0))
    ends: list[Exception | None] = [OSError("gone"), None, ConfigError("bad")]
    ids = []

    def step() -> str:
        end = ends.pop(0)
        if end is not None:
            raise end
        return "done"

    @flow(retries=1)
    def steps() -> str:
        engine = tasks.PrefectEngine()
        ids.append(engine.new_run_id())
        if len(ids) == 1:
            assert engine.step(step) == "done" and len(ends) == 1
        return engine.step(step) if ends else "done"

    with temporary_settings(updates={PREFECT_API_URL: server.env["PREFECT_API_URL"]}):
        assert steps() == "done"
    assert not ends and ids == [ids[0]] * 2


@pytest.mark.parametrize(
    ("moment", "last"), [("before_commit", 9), ("after_commit", 9), ("after_commit", 14)]
)
def test_killed_it_does_not_matter_what_prefect_knows(
    server: Server, checkpoint: Path, tmp_path: Path, moment: str, last: int
) -> None:
    alone = tiny_config(checkpoint, f"sqlite:///{tmp_path / 'alone.db'}")
    run_stages(alone)
    config = tiny_config(checkpoint, f"sqlite:///{tmp_path / 'mine.db'}")
    settings = config.model_dump_json()
    ends = []
    for end in (last, NEVER):
        arguments = settings, moment, end, server.env["PREFECT_API_URL"]
        process = FORKS.Process(target=discover_until_commit, args=arguments)
        process.start()
        ends.append(ended(process))
    assert ends == [False, True]
    database = open_database(config.database)
    assert table(database) == table(open_database(alone.database))
    each_once(database)
    database.close()


@pytest.mark.slow
def test_a_deployed_campaign_runs_by_the_clock_and_late_runs_do_not_pile_up(
    tmp_path: Path,
) -> None:
    database = f"sqlite:///{tmp_path / 'campaigns.db'}"
    config = tiny_config(tiny_checkpoint(tmp_path / "checkpoint"), database, seed=None)
    parameters = {"config": config.model_dump(mode="json", exclude={"database"})}
    often = {"parameters": parameters, "schedules": [{"cron": "* * * * *"}]}
    deployments = [
        {**one, **(often if one["name"] == "discover" else {"schedules": []})}
        for one in PREFECT_YAML["deployments"]
    ]
    with serving(tmp_path, database) as server:
        server.deploy(deployments)
        until(lambda: server.states().count("Late") >= 2, 900)  # nobody works: they are late
        with working(server):
            until(lambda: "Completed" in server.states() and "Late" not in server.states(), 900)
        states = server.states()
        assert "Cancelled" in states and not {"Failed", "Crashed"} & set(states)
        (run, *_) = [one for one in server.ask("flow_runs") if one["state_name"] == "Completed"]
        assert run["auto_scheduled"] and run["deployment_id"]
        assert {"funnel", "best-candidates"} <= {one["key"] for one in server.ask("artifacts")}
    with open_database(database).session(write=False) as session:
        counts = queries.table_counts(session)
        assert counts["campaign"] >= 1 and queries.batch_numbers(session, 1) == {0, 1}
        assert counts["relaxation"] and counts["stability"]


@pytest.mark.slow
def test_the_loop_retraining_and_collecting_run_where_they_are_deployed(tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path / 'loop.db'}"
    loop = tiny_loop(tmp_path).model_copy(update={"rounds": 1})
    learning = plan(loop, 1).retraining
    assert learning is not None
    alone = learning.model_copy(update={"key": "alone"})
    given = {"loop": loop, "retrain": alone}
    deployments = [
        {**one, "schedules": []}
        | ({"parameters": {"config": given[name].model_dump(mode="json")}} if name in given else {})
        for one in PREFECT_YAML["deployments"]
        for name in [one["name"]]
    ]
    with serving(tmp_path, database) as server:
        server.deploy(deployments)
        with working(server):
            for name in ("loop", "retrain", "dft-collect"):
                server.prefect("deployment", "run", f"{name}/{name}", "--watch")
        by_name = {run["name"]: run["state_name"] for run in server.ask("flow_runs")}
        assert set(by_name.values()) == {"Completed"}, by_name
    with open_database(database).session(write=False) as session:
        names = {Path(one.name).name for one in training.checkpoints(session)}
    assert {"tiny-round-1", "alone"} <= names
