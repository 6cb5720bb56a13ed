"""A second potential's opinion, with real parts: CHGNet in double precision judges CHGNet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
from pymatgen.core.structure import Structure
from sqlalchemy import select

from db import queries
from db.models import Judgement, Potential
from db.session import open_database
from flows import assess
from flows.errors import ConfigError
from flows.inputs import check
from flows.settings import CampaignConfig, JudgeSettings
from flows.stage_judge import judge_pending
from flows.stage_relax import relax_pending
from flows.stage_screen import screen_pending
from relax.errors import RelaxError
from symmbfn.files import write_structures
from tests.campaign_support import drawn_campaign
from tests.flows_support import rocksalt, symmbfn, tiny_checkpoint, tiny_config


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"))


def test_a_judge_is_asked_once_about_what_may_be_stable(checkpoint: Path, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'mine.db'}"
    config = tiny_config(checkpoint, url, relaxation={"fmax": 0.05})
    salts = [rocksalt("Na", "Cl", 5.7), rocksalt("Na", "Mg", 5.0)]
    campaign = drawn_campaign(config, salts, relaxed=False)
    relax_pending(config, campaign)
    screen_pending(config, campaign)
    judge_pending(config, campaign)  # nobody is named
    asked = config.model_copy(update={"judge": JudgeSettings(potential="chgnet@float64")})
    assert asked.idempotency_key() == config.idempotency_key()  # a judge may come later
    for _ in range(2):
        judge_pending(asked, campaign)
    with open_database(url).session(write=False) as session:
        (opinion,) = session.scalars(select(Judgement)).all()
        judge = session.get_one(Potential, opinion.potential_id)
        assert (judge.name, judge.dtype) == ("chgnet", "float64")
        assert (opinion.status, opinion.reason) == ("converged", None) and opinion.structure
        (salt,) = queries.candidates(session, "judge IS KNOWN").to_dict(orient="records")
        counts = queries.judged_counts(session, campaign)
    assert salt["formula_pretty"] == "NaCl" and salt["verdict"] == salt["judge_verdict"]
    assert 0 <= salt["energy_above_hull_spread"] < 1e-3
    assert salt["potential"] == "chgnet" and salt["precision"] == "float32"  # still the first one
    assert counts["judged"] == 1


def test_a_judge_that_cannot_judge_is_told_before_the_start(checkpoint: Path) -> None:
    def judged_by(**judge: str) -> CampaignConfig:
        return tiny_config(checkpoint, "sqlite://", judge=judge)

    with pytest.raises(ConfigError, match="chgnet has given the first verdict"):
        check(judged_by(potential="chgnet"))
    with pytest.raises(RelaxError, match="scheme"):
        check(judged_by(potential="chgnet-r2scan"))
    with pytest.raises(RelaxError, match="no potential 'nobody'"):
        check(judged_by(potential="nobody"))


def test_screen_takes_a_second_opinion(tmp_path: Path) -> None:
    (tmp_path / "salt.cif").write_text(rocksalt("Na", "Cl", 5.6).to(fmt="cif"))
    judge = ("--judge", "chgnet@float64", "--reference", "salt.cif")
    done = symmbfn("screen", "salt.cif", *judge, "--json", home=tmp_path)
    told = json.loads(done.stdout)
    (row,) = told["crystals"]
    assert row["hull_coverage"]["terminals"] and row["hull_coverage"]["decomposition"]
    assert told["shares"]["novel"] == {"count": 0, "n": 1, "share": 0, "low": 0, "high": ANY}
    assert told["shares"]["unique"]["count"] == 1
    assert {"potential", "hull", "thresholds", "novelty against", "same crystal"} <= set(
        told["recipe"]
    )
    assert "float64" in told["recipe"]["judge"]
    assert row["judge_energy_above_hull"] <= row["energy_above_hull"]  # it relaxes first
    assert row["judge_verdict"] == row["verdict"] and row["judge_reason"] is None


def test_what_cannot_be_placed_says_why(tmp_path: Path) -> None:
    crystals = [rocksalt("Na", "Cl", 5.6), rocksalt("Po", "O", 5.6), rocksalt("Na", "He", 5.6)]
    write_structures(tmp_path / "strange.jsonl", crystals)
    done = symmbfn("screen", "strange.jsonl", "--json", home=tmp_path)
    reasons = [row["reason"] for row in json.loads(done.stdout)["crystals"]]
    no_compound = "the hull has no compound of these elements"
    assert reasons == [None, "the hull has no Po", no_compound]


def test_the_spread_is_of_energies_on_one_hull(tmp_path: Path) -> None:
    """The judge's; another hull of the first potential changes nothing."""
    hull = tmp_path / "low.csv"
    hull.write_text(
        "formula,formation_energy_per_atom\nNa,0\nCl,0\nNaCl,-2.5\n",
    )
    build = ("hull", "import", "low.csv", "--energy-scheme", "self-consistent:chgnet")
    made = symmbfn(*build, "--name", "low", "--elements-from", "chgnet", home=tmp_path)
    assert made.returncode == 0, made.stderr
    (tmp_path / "salt.cif").write_text(rocksalt("Na", "Cl", 5.69).to(fmt="cif"))
    given = ("screen", "salt.cif", "--judge", "chgnet@float64", "--reference", "salt.cif", "--json")
    (one,) = json.loads(symmbfn(*given, home=tmp_path).stdout)["crystals"]
    lower = symmbfn(*given, "--judge-hull", "low", home=tmp_path)
    (other,) = json.loads(lower.stdout)["crystals"]
    assert abs(one["judge_energy_above_hull"] - other["judge_energy_above_hull"]) > 0.3
    assert one["energy_above_hull_spread"] == pytest.approx(
        other["energy_above_hull_spread"], abs=1e-6
    )
    assert one["energy_above_hull_spread"] < 0.01


def test_a_crystal_that_cannot_be_placed_does_not_stop_the_judge(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path / 'mine.db'}"
    config = tiny_config(checkpoint, url, judge={"potential": "chgnet@float64"})
    salts = [rocksalt("Na", "Cl", 5.7), rocksalt("K", "Cl", 6.3)]
    campaign = drawn_campaign(config, salts, relaxed=False)
    relax_pending(config, campaign)
    screen_pending(config, campaign)
    really = assess.place

    def broken(hull: Any, potential: Any, structure: Structure, energy: float) -> Any:
        if structure.composition.reduced_formula == "NaCl":
            raise ValueError("a facet\nof no volume")
        return really(hull, potential, structure, energy)

    monkeypatch.setattr(assess, "place", broken)
    judge_pending(config, campaign)
    with open_database(url).session(write=False) as session:
        found = queries.candidates(session, "judge IS KNOWN", sort="formula_pretty")
        reasons = session.scalars(select(Judgement.reason)).all()
    assert found["formula_pretty"].tolist() == ["KCl", "NaCl"]
    assert found["judge_verdict"].tolist()[1] == "not_assessable"
    assert found["energy_above_hull_spread"].notna().tolist() == [True, False]
    assert sorted(reasons, key=str) == [None, "ValueError: a facet of no volume"]
