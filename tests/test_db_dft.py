"""Calculations in the database: what is chosen, submitted once, settled once, and shown."""

from __future__ import annotations

from threading import Barrier, Thread
from typing import Any

import pytest
from sqlalchemy import update
from sqlalchemy.orm import Session

from db import dft, queries
from db.documents import structure_to_dict
from db.errors import FilterError
from db.models import DftCalculation, Stability
from db.session import Database
from tests.db_support import add, base_rows, filled, judged, relaxation, rocksalt, stability

SETTINGS: dict[str, Any] = {"workflow": "relax"}


def names(wanted: list[dft.Wanted]) -> list[str]:
    return [one.formula for one in wanted]


def choose(session: Session, **more: Any) -> list[str]:
    return names(dft.wanted(session, "vasp", SETTINGS, **{"limit": 9, **more}))


def submit(session: Session, one: dft.Wanted, job_id: str) -> bool:
    return dft.submit(
        session,
        one.relaxation_id,
        "vasp",
        SETTINGS,
        runner="local",
        location="/jobs",
        job_id=job_id,
    )


def result(energy: float = -4.0) -> dft.Result:
    return dft.Result(
        structure=structure_to_dict(rocksalt("Li", "O")),
        energy_per_atom=energy,
        energy_scheme="mp2020",
        correction_per_atom=-0.3,
        band_gap=1.5,
        max_force=0.01,
        forces=[[0.01, 0, 0], [-0.01, 0, 0]],
        code_version="6.4",
    )


def with_a_suspect_and_a_twin(session: Session) -> None:
    """The four crystals of `filled`, one far below its hull, and one that is not the first."""
    rows, _ = filled(session)
    for index, (cation, anion, above, more) in enumerate(
        [("Ca", "O", -0.5, {"verdict": "quarantined"}), ("Sr", "O", -0.01, {"is_unique": False})]
    ):
        crystal = rocksalt(cation, anion)
        done = relaxation(rows, add(session, rows, 10 + index, crystal), crystal)
        session.add(done)
        session.flush()
        queries.record_stability(session, stability(rows, done.id, above, **more))


def test_what_a_campaign_submitted_before_counts_towards_its_limit(database: Database) -> None:
    with database.session() as session:
        filled(session)
        own = queries.campaign_id(session, "first")
        first, *_ = dft.wanted(session, "vasp", SETTINGS, limit=2, campaign_id=own)
        assert submit(session, first, "job-0")
        assert choose(session, limit=2, campaign_id=own) == ["NaCl"]
        assert choose(session, limit=2) == ["NaCl", "MgO"]
        assert choose(session, limit=1, campaign_id=own) == []
        assert names(dft.wanted(session, "cp2k", SETTINGS, limit=1, campaign_id=own)) == ["Li2O2"]
        dft.fail(session, "job-0", "crashed")
        assert choose(session, limit=1, campaign_id=own) == []
        assert choose(session, limit=1, campaign_id=own, resubmit=True) == ["Li2O2"]


def test_policies_choose_and_order(database: Database) -> None:
    with database.session() as session:
        with_a_suspect_and_a_twin(session)
    with database.session(write=False) as session:
        assert choose(session) == ["CaO", "Li2O2", "SrO", "NaCl", "MgO"]
        assert choose(session, policy="stable") == ["Li2O2", "NaCl", "MgO"]
        assert choose(session, policy="quarantined") == ["CaO"]
        assert choose(session, policy="uncertain") == ["Li2O2", "NaCl", "MgO"]
        assert choose(session, policy="uncertain", stable=0.1) == ["NaCl", "Li2O2", "MgO"]
        assert choose(session, policy="stable", limit=1) == ["Li2O2"]
    with database.session() as session:
        judged(session, {"NaCl": 0.06, "MgO": 0.1})  # spreads of 0.01 and 0.3 eV/atom
    with database.session(write=False) as session:
        assert choose(session, policy="uncertain") == ["MgO", "NaCl", "Li2O2"]
        assert choose(session, filter='elements HAS "Na"') == ["NaCl"]
        assert choose(session, filter='elements HAS "K"') == []  # its relaxation failed
        with pytest.raises(FilterError, match="negative"):
            choose(session, limit=-1)


def test_a_calculation_is_submitted_once_and_settled_once(database: Database) -> None:
    with database.session() as session:
        filled(session)
        (one,) = dft.wanted(session, "vasp", SETTINGS, limit=1)
        assert submit(session, one, "job-1")
        assert not submit(session, one, "job-2")
        assert "Li2O2" not in choose(session)
        other = {"workflow": "static"}
        assert names(dft.wanted(session, "vasp", other, limit=1)) == ["Li2O2"]
        (awaited,) = dft.submitted(session)
        assert (awaited.job_id, awaited.material_id) == ("job-1", "sbfn-1")
        assert awaited.sent.formula == "Li1 O1"
    with database.session() as session:
        assert dft.complete(session, "job-1", result())
        assert not dft.complete(session, "job-1", result(-9.0))
        assert not dft.fail(session, "job-1", "late")
        assert not submit(session, one, "job-3")
        assert choose(session, resubmit=True) == []
    with database.session(write=False) as session:
        (row,) = dft.calculations(session)
        assert (row["state"], row["energy_per_atom"], row["submissions"]) == ("completed", -4.0, 1)


def test_a_failed_one_is_submitted_again_and_its_late_result_ignored(database: Database) -> None:
    with database.session() as session:
        filled(session)
        (one,) = dft.wanted(session, "vasp", SETTINGS, limit=1)
        submit(session, one, "job-1")
        assert dft.fail(session, "job-1", "lost")
        assert "Li2O2" not in choose(session)
        assert queries.candidates(session, 'dft_state = "failed"')["band_gap"].isna().all()
        assert choose(session, resubmit=True) == ["Li2O2"]
        assert submit(session, one, "job-2")
        assert not dft.complete(session, "job-1", result())
        assert dft.complete(session, "job-2", result())
        (row,) = dft.calculations(session)
    assert (row["state"], row["submissions"], row["reason"]) == ("completed", 2, None)


@pytest.mark.parametrize("failed_before", [False, True])
def test_of_two_processes_that_submit_at_once_one_does(
    database: Database, failed_before: bool
) -> None:
    with database.session() as session:
        filled(session)
        (one,) = dft.wanted(session, "vasp", SETTINGS, limit=1)
        if failed_before:
            submit(session, one, "job-0")
            dft.fail(session, "job-0", "lost")
    start, ours = Barrier(4), []

    def run(number: int) -> None:
        start.wait()
        with database.session() as session:
            won = submit(session, one, f"job-{number}")
        ours.append(won)

    threads = [Thread(target=run, args=(number,)) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ours) == [False, False, False, True]


def test_verdicts_are_kept_with_their_hull_and_shown(database: Database) -> None:
    thresholds = {"stable": 0.0, "metastable": 0.1, "suspect": -0.3}
    with database.session() as session:
        rows, _ = filled(session)
        hull_id = rows.hull.id
        for number, one in enumerate(dft.wanted(session, "vasp", SETTINGS, limit=2)):
            submit(session, one, f"job-{number}")
            dft.complete(session, f"job-{number}", result())
        session.execute(
            update(DftCalculation)
            .where(DftCalculation.job_id == "job-1")
            .values(energy_scheme="cp2k-pbe-gth")
        )
        (pending,) = dft.unjudged(session, hull_id, "mp2020", thresholds)
        assert (pending.material_id, pending.energy_per_atom) == ("sbfn-1", -4.0)
        dft.judge(
            session,
            pending.id,
            hull_id=hull_id,
            thresholds=thresholds,
            verdict="unstable",
            formation_energy_per_atom=-1.0,
            energy_above_hull=0.25,
        )
    with database.session(write=False) as session:
        assert dft.unjudged(session, hull_id, "mp2020", thresholds) == []
        assert len(dft.unjudged(session, hull_id, "mp2020", {**thresholds, "stable": 0.01})) == 1
        found = queries.candidates(session, "dft_energy_above_hull < 0.3")
        assert found["material_id"].tolist() == ["sbfn-1"]
        assert found["dft_verdict"].tolist() == ["unstable"] and found["verdict"][0] == "stable"
        shown = queries.candidate(session, "sbfn-1")
        assert shown["relaxations"][0]["dft_calculations"][0]["hull"]["name"] == "chgnet"
        assert (
            "hull"
            not in queries.candidate(session, "sbfn-2")["relaxations"][0]["dft_calculations"][0]
        )  # not judged


def test_of_several_verdicts_the_newest_says_which_relaxation_is_computed(
    database: Database,
) -> None:
    with database.session() as session:
        rows = base_rows(session)
        crystal = rocksalt("Li", "O")
        first = relaxation(rows, add(session, rows, 0, crystal), crystal)
        session.add(first)
        session.flush()
        second = relaxation(rows, first.candidate_id, rocksalt("Li", "O", 4.3))
        second.settings = {"fmax": 0.01}
        second.__post_init__()
        session.add(second)
        session.flush()
        queries.record_stability(session, stability(rows, second.id, 0.0))
        newest = queries.record_stability(session, stability(rows, first.id, 0.0))
        assert isinstance(newest, Stability)
        (one,) = dft.wanted(session, "vasp", SETTINGS, limit=5)
        assert one.relaxation_id == first.id
