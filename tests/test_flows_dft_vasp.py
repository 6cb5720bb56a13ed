"""The handoff to VASP without VASP: inputs checked, outputs replayed, numbers collected."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pymatgen.core.structure import Structure

pytest.importorskip("atomate2")

from atomate2.utils.testing.vasp import monkeypatch_vasp

from db import dft, queries
from db.session import Database
from flows.dft_collect import collect
from flows.dft_runners import LocalRunner
from flows.dft_settings import CollectConfig, SubmitConfig
from flows.dft_submit import submit
from tests import db_support
from tests.vasp_support import VERSION, write_job

pytestmark = pytest.mark.filterwarnings("ignore")  # of atomate2, maggma, pymatgen and custodian

JOBS = ("MP GGA relax 1", "MP GGA relax 2", "MP GGA static")
RAW_ENERGY = -12.0
"""Of the cell FeO, eV."""
MP2020 = -0.687 - 2.256
"""What the MP2020 scheme adds for O of an oxide and for Fe in one (Wang et al. 2021), eV."""
INCAR = """ALGO = Fast
ENCUT = 520
LDAU = True
LDAUL = 2 0
LDAUU = 5.3 0
ISPIN = 2
PREC = Accurate
"""


def feo(a: float = 4.3) -> Structure:
    return db_support.rocksalt("Fe", "O", a)


def replay(folder: Path, returned: Structure, u: tuple[float, float] = (5.3, 0.0)) -> None:
    """Write the reference outputs of the three jobs; the first relaxation gives the structure."""
    for name in JOBS:
        write_job(
            folder / name,
            INCAR,
            ["Fe_pv", "O"],
            feo() if name == JOBS[0] else returned,
            returned,
            RAW_ENERGY,
            [[0.01, 0.0, 0.0], [-0.01, 0.0, 0.0]],
            gap=1.25,
            u=u,
            steps=0 if name == JOBS[2] else 99,
        )


@pytest.fixture
def candidate(database: Database) -> int:
    """A relaxed FeO that its potential holds for stable."""
    with database.session() as session:
        rows = db_support.base_rows(session)
        number = db_support.add(session, rows, 0, feo())
        relaxation = db_support.relaxation(rows, number, feo())
        session.add(relaxation)
        session.flush()
        queries.record_stability(session, db_support.stability(rows, relaxation.id, -0.02))
    return number


def run(url: str, folder: Path, monkeypatch: pytest.MonkeyPatch, references: Path) -> None:
    """Submit all stable crystals to VASP, whose place is taken by the reference outputs."""
    replayed = monkeypatch_vasp(monkeypatch, references)
    expected = {
        "incar_settings": [line.split()[0] for line in INCAR.splitlines()],
        "check_inputs": ["incar", "poscar", "potcar"],
    }
    next(replayed)({name: name for name in JOBS}, {name: expected for name in JOBS})
    handed = submit(SubmitConfig(database=url, limit=5, policy="stable"), LocalRunner(folder))
    assert [(one.formula, one.error) for one in handed] == [("FeO", None)]
    replayed.close()


def mp2020_hull(folder: Path) -> str:
    file = folder / "hull.csv"
    file.write_text("# energy_scheme: mp2020\nformula,energy_per_atom\nFe,-8.4\nO,-4.9\nFeO,-7.5\n")
    return str(file)


def test_a_replayed_calculation_is_corrected_and_judged(
    database: Database,
    database_url: str,
    candidate: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    replay(tmp_path / "references", feo(4.35))
    run(database_url, tmp_path / "jobs", monkeypatch, tmp_path / "references")
    config = CollectConfig(database=database_url, hull=mp2020_hull(tmp_path))
    found = collect(config)
    assert (found.failures, found.notes) == ([], [])
    assert found.counts == {"completed": 1, "judged": 1}
    assert collect(config).counts == {}  # nothing is left to do

    with database.session(write=False) as session:
        shown = queries.candidate(session, f"sbfn-{candidate}")
        listed = queries.candidates(session, "dft_energy_above_hull > 0.02 AND band_gap > 1")
    (calculation,) = shown["relaxations"][0]["dft_calculations"]
    assert calculation["state"] == "completed" and calculation["code_version"] == VERSION
    assert calculation["energy_scheme"] == "mp2020"
    assert calculation["correction_per_atom"] == pytest.approx(MP2020 / 2, abs=1e-6)
    assert calculation["energy_per_atom"] == pytest.approx((RAW_ENERGY + MP2020) / 2, abs=1e-6)
    assert calculation["band_gap"] == pytest.approx(1.25)
    assert calculation["forces"] == [[0.01, 0.0, 0.0], [-0.01, 0.0, 0.0]]
    assert calculation["max_force"] == pytest.approx(0.01)
    assert calculation["energy_above_hull"] == pytest.approx(-7.4715 + 7.5, abs=1e-6)
    assert calculation["verdict"] == "metastable" and calculation["hull"]["name"] == "hull"
    returned = Structure.from_dict(calculation["structure"])
    assert returned.lattice.abc == pytest.approx((4.35 / 2**0.5,) * 3)
    assert listed["dft_verdict"].tolist() == ["metastable"]


def test_another_u_than_the_materials_project_s_gives_no_verdict(
    database: Database,
    database_url: str,
    candidate: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    replay(tmp_path / "references", feo(), u=(4.0, 0.0))
    run(database_url, tmp_path / "jobs", monkeypatch, tmp_path / "references")
    found = collect(CollectConfig(database=database_url, hull=mp2020_hull(tmp_path)))
    assert found.counts == {"completed": 1}
    ((name, why),) = found.notes
    assert name == f"sbfn-{candidate}" and "+U with U {'Fe': 4.0}" in why
    with database.session(write=False) as session:
        (row,) = dft.calculations(session)
    assert (row["verdict"], row["energy_scheme"]) == (None, "vasp-other")
    assert row["energy_per_atom"] == pytest.approx(RAW_ENERGY / 2)


def test_a_failing_calculation_is_no_label_and_can_be_submitted_again(
    database: Database,
    database_url: str,
    candidate: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    replay(tmp_path / "references", feo())
    (tmp_path / "references" / JOBS[1] / "outputs" / "vasprun.xml").write_text("<modeling>")
    before = os.getcwd()
    run(database_url, tmp_path / "jobs", monkeypatch, tmp_path / "references")
    assert os.getcwd() == before
    found = collect(CollectConfig(database=database_url))
    assert found.counts == {"failed": 1} and found.failures[0][0] == f"sbfn-{candidate}"
    with database.session(write=False) as session:
        (row,) = dft.calculations(session, "failed")
        assert queries.candidates(session)["band_gap"].isna().all()
        nothing = dft.wanted(session, "vasp", row["settings"], limit=5)
        again = dft.wanted(session, "vasp", row["settings"], limit=5, resubmit=True)
    assert row["energy_per_atom"] is None and row["reason"]
    assert nothing == [] and [one.formula for one in again] == ["FeO"]
