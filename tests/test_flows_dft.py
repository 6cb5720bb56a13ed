"""The handoff without atomate2: checks of what comes back, collecting, refusals of the command."""

from __future__ import annotations

import io
import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pymatgen.core.structure import Structure
from rich.console import Console
from sqlalchemy import update

from db import dft, queries
from db.models import DftCalculation, utc_now
from db.session import Database
from flows import dft_collect, dft_submit, pipeline
from flows.cli import run
from flows.dft_makers import Cp2kSettings, VaspSettings, document
from flows.dft_results import UnusableError, check_same, read
from flows.dft_runners import LocalRunner, Outcome, Runner
from flows.dft_settings import CollectConfig, SubmitConfig
from flows.engine import Engine
from flows.errors import ConfigError
from flows.progress import TerminalProgress
from relax.errors import RelaxError
from tests.db_support import filled, rocksalt


def task(crystal: Structure, energy: float = -8.0, **changes: Any) -> dict[str, Any]:
    """What is read of a task document; `changes` are of its output."""
    output = {
        "structure": crystal.as_dict(),
        "energy": energy,
        "forces": [[0.0, 0.0, 0.02]] * len(crystal),
        "bandgap": 2.0,
    }
    last = {"run_type": "PBE", "input": {"hubbards": {}}, "vasp_version": "6.4.2"}
    return {"state": "successful", "output": output | changes, "calcs_reversed": [last]}


def test_a_task_document_is_read() -> None:
    crystal = rocksalt("Mg", "O")
    found = read("vasp", task(crystal), crystal)
    assert found.energy_per_atom == pytest.approx((-8.0 - 0.687) / 2)  # MP2020: O in an oxide
    assert (found.energy_scheme, found.band_gap, found.code_version) == ("mp2020", 2.0, "6.4.2")
    assert found.max_force == pytest.approx(0.02) and found.reason is None


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"energy": float("nan")}, "not finite"),
        ({"energy": None}, "cannot be read"),
        ({"forces": None}, "no forces"),
        ({"forces": [[0.0, 0.0, 0.0]]}, "one for each site"),
        ({"forces": [[0.0, 0.0, float("inf")]] * 2}, "not finite"),
        ({"structure": rocksalt("Ca", "O").as_dict()}, "another crystal came back: Ca1 O1"),
        ({"structure": rocksalt("Mg", "O", 6.0).as_dict()}, "another cell came back"),
    ],
)
def test_what_must_not_become_a_label_is_refused(changes: dict[str, Any], says: str) -> None:
    crystal = rocksalt("Mg", "O")
    with pytest.raises(UnusableError, match=says):
        read("vasp", task(crystal, **changes), crystal)


def test_an_unconverged_run_or_an_empty_document_is_refused() -> None:
    crystal = rocksalt("Mg", "O")
    with pytest.raises(UnusableError, match="did not converge"):
        read("vasp", task(crystal) | {"state": "failed"}, crystal)
    with pytest.raises(UnusableError, match="KeyError"):
        read("vasp", {}, crystal)


def test_turned_axes_and_moved_atoms_are_the_same_crystal() -> None:
    sent = rocksalt("Mg", "O")
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    turned = Structure(1.1 * sent.lattice.matrix @ turn, ["O", "Mg"], [[0.4] * 3, [0.9] * 3])
    check_same(sent, turned)
    sheared = sent.lattice.matrix @ np.array([[1, 0.8, 0], [0, 1, 0], [0, 0, 1]])
    with pytest.raises(UnusableError, match="another cell"):
        check_same(sent, Structure(sheared, sent.species, sent.frac_coords))
    flat = sent.lattice.matrix.copy()
    flat[2] = np.nan
    with pytest.raises(UnusableError):
        check_same(sent, Structure(flat, sent.species, sent.frac_coords))


def test_cp2k_energies_have_their_own_scheme_and_no_verdict() -> None:
    crystal = rocksalt("Li", "H")
    found = read("cp2k", task(crystal), crystal)
    assert found.energy_per_atom == -4.0 and found.correction_per_atom is None
    assert found.energy_scheme == "cp2k-pbe-gth" and "no verdict" in (found.reason or "")


class Scripted(Runner):
    """Tells what a test says became of each job."""

    name = "local"
    location = None

    def __init__(self, outcomes: dict[str, Outcome | Exception]) -> None:
        self.outcomes = outcomes

    def submit(self, flow: Any) -> None:
        """Not asked for here."""
        raise NotImplementedError

    def outcome(self, job_id: str) -> Outcome:
        """Tell it, or fail like a lost connection."""
        found = self.outcomes.get(job_id, Outcome("unknown"))
        if isinstance(found, Exception):
            raise found
        return found


@pytest.fixture
def awaited(database: Database, monkeypatch: pytest.MonkeyPatch) -> dict[str, Outcome | Exception]:
    """Jobs 0 (LiO), 1 (NaCl) and 2 (MgO) are awaited; what is put in here became of them."""
    with database.session() as session:
        filled(session)
        settings = document(VaspSettings())
        for number, one in enumerate(dft.wanted(session, "vasp", settings, limit=9)):
            dft.submit(
                session,
                one.relaxation_id,
                "vasp",
                settings,
                runner="local",
                location=None,
                job_id=f"job-{number}",
            )
    outcomes: dict[str, Outcome | Exception] = {}
    monkeypatch.setattr(dft_collect, "open_runner", lambda name, location: Scripted(outcomes))
    monkeypatch.setattr("flows.dft_makers.require_atomate2", lambda: None)
    return outcomes


def states(database: Database) -> dict[str, tuple[str, str | None]]:
    with database.session(write=False) as session:
        rows = dft.calculations(session)
    return {row["formula_pretty"]: (row["state"], row["reason"]) for row in rows}


def test_one_that_fails_or_is_swapped_never_stops_the_others(
    database: Database, database_url: str, awaited: dict[str, Outcome | Exception]
) -> None:
    awaited["job-0"] = Outcome("failed", reason="VASP crashed")
    awaited["job-1"] = Outcome("done", task(rocksalt("Mg", "O")))  # it is the next one's
    awaited["job-2"] = Outcome("done", task(rocksalt("Mg", "O")))
    found = dft_collect.collect(CollectConfig(database=database_url))
    assert found.counts == {"failed": 2, "completed": 1}
    became = states(database)
    assert became["Li2O2"] == ("failed", "VASP crashed")
    assert became["NaCl"][0] == "failed" and "another crystal" in (became["NaCl"][1] or "")
    assert became["MgO"] == ("completed", None)


def test_a_job_that_its_runner_does_not_know_is_lost_after_a_while(
    database: Database, database_url: str, awaited: dict[str, Outcome | Exception]
) -> None:
    awaited["job-1"] = ConnectionError("no route to host")
    awaited["job-2"] = Outcome("running")
    found = dft_collect.collect(CollectConfig(database=database_url))
    assert found.counts == {"running": 3} and "no route to host" in found.notes[0][1]
    with database.session() as session:
        session.execute(
            update(DftCalculation).values(submitted_at=utc_now() - timedelta(minutes=11))
        )
    found = dft_collect.collect(CollectConfig(database=database_url))
    assert found.counts == {"running": 2, "failed": 1}
    assert states(database)["Li2O2"] == ("failed", "lost: local has no such job")


def test_local_jobs_of_another_machine_are_awaited_and_never_lost(
    database: Database,
    database_url: str,
    awaited: dict[str, Outcome | Exception],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    with database.session() as session:
        long_ago = utc_now() - timedelta(days=3)
        session.execute(update(DftCalculation).values(submitted_at=long_ago))
    (tmp_path / "job-2").mkdir()  # this one is ours; its process died before it began
    monkeypatch.setattr(dft_collect, "open_runner", lambda name, location: LocalRunner(tmp_path))
    found = dft_collect.collect(CollectConfig(database=database_url))
    assert found.counts == {"running": 2, "failed": 1}
    assert all("could not be asked (ConfigError: there is no" in why for _, why in found.notes)
    assert states(database)["MgO"] == ("failed", "lost: local has no such job")


def test_a_job_leaves_its_trace_before_it_is_noted(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with database.session() as session:
        filled(session)
    runner = LocalRunner(tmp_path)
    seen: list[bool] = []

    def note(session: Any, relaxation_id: int, *_: Any, job_id: str, **__: Any) -> bool:
        seen.append((tmp_path / job_id).is_dir())
        return False

    monkeypatch.setattr("flows.dft_makers.require_atomate2", lambda: None)
    flow = SimpleNamespace(output=SimpleNamespace(uuid="job-0"))
    monkeypatch.setattr(VaspSettings, "flow", lambda *_: flow)
    monkeypatch.setattr(dft, "submit", note)
    dft_submit.submit(SubmitConfig(database=database_url, limit=1), runner)
    assert seen == [True]


def test_a_runner_that_cannot_be_opened_is_a_note_and_the_others_are_collected(
    database: Database,
    database_url: str,
    awaited: dict[str, Outcome | Exception],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    awaited["job-2"] = Outcome("done", task(rocksalt("Mg", "O")))
    with database.session() as session:
        first = DftCalculation.job_id == "job-0"
        session.execute(update(DftCalculation).where(first).values(runner="jobflow-remote"))

    def opened(name: str, location: str | None) -> Runner:
        if name == "jobflow-remote":
            raise ConfigError("it is not installed")
        return Scripted(awaited)

    monkeypatch.setattr(dft_collect, "open_runner", opened)
    found = dft_collect.collect(CollectConfig(database=database_url))
    assert found.counts == {"running": 2, "completed": 1}
    ((_, why),) = found.notes
    assert why == "jobflow-remote could not be asked (ConfigError: it is not installed)"


def test_verdicts_may_come_later_and_only_from_a_hull_of_the_scheme(
    database: Database,
    database_url: str,
    awaited: dict[str, Outcome | Exception],
    tmp_path: Path,
) -> None:
    awaited["job-2"] = Outcome("done", task(rocksalt("Mg", "O"), energy=-12.0))
    hull = tmp_path / "hull.csv"
    hull.write_text("# energy_scheme: mp2020\nformula,energy_per_atom\nMg,-1.6\nO,-4.9\nMgO,-6.3\n")
    dft_collect.collect(CollectConfig(database=database_url))
    with database.session(write=False) as session:
        assert dft.calculations(session, "completed")[0]["verdict"] is None
    with pytest.raises(RelaxError, match="scheme self-consistent:chgnet"):
        dft_collect.collect(CollectConfig(database=database_url, hull="chgnet"))
    found = dft_collect.collect(CollectConfig(database=database_url, hull=str(hull)))
    assert found.counts["judged"] == 1
    with database.session(write=False) as session:
        frame = queries.candidates(session, "dft_energy_above_hull IS KNOWN")
    assert frame["dft_energy_above_hull"].tolist() == pytest.approx([-6.3435 + 6.3])
    assert frame["dft_verdict"].tolist() == ["stable"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["submit"], "give a FILTER, --policy, --campaign"),
        (["submit", "--policy", "best"], "'best'"),
        (["submit", "--policy", "stable", "--limit", "0"], "--limit"),
        (["submit", "--policy", "stable", "--basis", "SZV"], "basis SZV is for code cp2k"),
        (["submit", "--policy", "stable", "--project", "x"], "is for runner jobflow-remote"),
        (
            ["submit", "--policy", "stable", "--runner", "fireworks", "--folder", "x"],
            "folder x is for runner local",
        ),
        (["submit", "--policy", "stable"], "nothing.db"),
        (["collect"], "nothing.db"),
        (["list", "--state", "lost"], "'lost'"),
    ],
)
def test_the_command_refuses_in_one_line(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'nothing.db'}"
    assert run(["dft", *arguments, "--db", url]) == 2
    captured = capsys.readouterr()
    assert says in captured.err and captured.err.count("\n") == 1 and captured.out == ""
    assert list(tmp_path.iterdir()) == []


def test_without_atomate2_one_line_says_how_to_get_it(
    database: Database,
    database_url: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with database.session() as session:
        filled(session)
    monkeypatch.setitem(sys.modules, "atomate2", None)
    monkeypatch.setattr("flows.dft_makers.find_spec", lambda name: None)
    assert run(["dft", "submit", "--policy", "stable", "--db", database_url]) == 2
    error = capsys.readouterr().err
    assert "uv sync --extra dft" in error and "pip install" in error and error.count("\n") == 1


def test_the_list_shows_calculations(
    database_url: str,
    awaited: dict[str, Outcome | Exception],
    capsys: pytest.CaptureFixture[str],
) -> None:
    awaited["job-0"] = Outcome("failed", reason="VASP crashed")
    assert run(["dft", "collect", "--db", database_url]) == 0
    assert "0 completed, 1 failed, 2 running, 0 judged" in capsys.readouterr().out
    assert run(["dft", "list", "--state", "failed", "--db", database_url]) == 0
    shown = capsys.readouterr().out
    assert "VASP crashed" in shown and "NaCl" not in shown
    assert run(["dft", "list", "--state", "completed", "--db", database_url]) == 0
    assert "no calculations are completed" in capsys.readouterr().out


def test_the_pipeline_of_schedules_collects(
    database_url: str, awaited: dict[str, Outcome | Exception]
) -> None:
    awaited["job-0"] = Outcome("failed", reason="VASP crashed")
    assert pipeline.collect(CollectConfig(database=database_url), Engine()) == {
        "failed": 1,
        "running": 2,
    }


def test_the_pipeline_of_schedules_and_loops_goes_on_without_atomate2_and_tells_it_once(
    database_url: str,
    awaited: dict[str, Outcome | Exception],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing() -> None:
        raise ConfigError("needs atomate2")

    monkeypatch.setattr("flows.dft_makers.require_atomate2", missing)
    screen = io.StringIO()
    with TerminalProgress(Console(file=screen, width=200)).running():
        assert pipeline.collect(CollectConfig(database=database_url), Engine()) == {"running": 3}
    told = "dft collect: 3 × local could not be asked (ConfigError: needs atomate2)"
    assert screen.getvalue().splitlines() == [told]


def test_settings_are_part_of_what_makes_two_calculations_one() -> None:
    assert document(Cp2kSettings()) == document(Cp2kSettings())
    assert document(Cp2kSettings(basis="SZV-MOLOPT-SR-GTH")) != document(Cp2kSettings())
    assert document(VaspSettings("static")) != document(VaspSettings())
