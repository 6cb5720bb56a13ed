"""Campaigns side by side: helpers that relax for others, and who is unique among them."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from ase import Atoms
from pymatgen.core.structure import Structure
from rich.console import Console
from sqlalchemy import select

from db import queries
from db.errors import DatabaseError
from db.models import Campaign, Candidate, Potential, Relaxation, Stability
from db.session import Database, open_database
from flows import cluster, inputs
from flows.errors import ConfigError
from flows.progress import TerminalProgress
from flows.settings import CampaignConfig, DaskSettings
from flows.stage_generate import generate_batch, open_campaign
from flows.stage_relax import relax_pending
from flows.stage_screen import _record, screen_pending
from flows.work import Here, campaign_config, work
from relax.calculator import Gradients
from relax.errors import RelaxError
from relax.potential_chgnet import ChgnetPotential
from tests.flows_support import (
    relaxations,
    rocksalt,
    run_stages,
    symmbfn,
    table,
    tiny_checkpoint,
    tiny_config,
)
from tests.prefect_support import serving


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"))


def drawn(checkpoint: Path, url: str, seed: int = 0) -> tuple[CampaignConfig, int]:
    """A campaign that has drawn its crystals and done nothing else."""
    config = tiny_config(checkpoint, url, seed=seed, n=2)
    campaign = open_campaign(config)
    generate_batch(config, campaign, 0)
    return config, campaign


def relaxed_to(database: Database, campaign: int, structure: Structure) -> int:
    """Store that the campaign's first sound candidate relaxed to this; return its relaxation."""
    with database.session() as session:
        row = session.get_one(Campaign, campaign)
        settings = campaign_settings(session.get_one(Campaign, campaign))
        assert row.potential_id is not None
        (claim,) = queries.claim(
            session,
            "by hand",
            campaign_id=campaign,
            potential_id=row.potential_id,
            settings=settings,
            lease_seconds=60,
            limit=1,
        )
        candidate = session.get_one(Candidate, claim.candidate_id)
        candidate.chemical_formula_reduced = "ClNa"
        relaxation = Relaxation(
            candidate_id=candidate.id,
            potential_id=row.potential_id,
            settings=settings,
            status="converged",
            structure=structure.as_dict(),
            energy_per_atom=-3.6,
        )
        return queries.record_relaxation(session, relaxation, fence=claim.fence).id


def campaign_settings(row: Campaign) -> dict[str, object]:
    """The relaxation settings of a stored campaign."""
    from flows.rows import relax_settings

    return relax_settings(CampaignConfig.build(row.config, where="test"))


def unique(database: Database) -> dict[int, tuple[bool | None, int | None]]:
    """Whether each judged candidate is unique, and of which one it is a duplicate."""
    with database.session(write=False) as session:
        rows = session.execute(
            select(Relaxation.candidate_id, Stability.is_unique, Stability.duplicate_of_id)
            .join(Stability, Stability.relaxation_id == Relaxation.id)
            .order_by(Relaxation.candidate_id)
        )
        return {number: (is_unique, first) for number, is_unique, first in rows}


def known_to(database: Database) -> list[str | None]:
    """Who knew the judged candidates, in the order of their rows."""
    with database.session(write=False) as session:
        rows = select(Stability.known_to).join(Relaxation, Stability.relaxation_id == Relaxation.id)
        return list(session.scalars(rows.order_by(Relaxation.candidate_id)))


def test_of_two_campaigns_at_once_only_the_crystal_drawn_first_is_unique(
    checkpoint: Path, database_url: str
) -> None:
    early, first = drawn(checkpoint, database_url)
    late, second = drawn(checkpoint, database_url, seed=1)
    database = open_database(database_url)
    salt = rocksalt("Na", "Cl", 5.6)
    relaxed_to(database, second, salt)
    screen_pending(late, second)
    ((younger, judged),) = unique(database).items()
    assert judged == (True, None)
    relaxed_to(database, first, salt.get_primitive_structure())
    screen_pending(early, first)  # the older one was still at work: now it takes its place
    (older, now), (_, then) = unique(database).items()
    assert older < younger and now == (True, None) and then == (False, older)
    assert known_to(database) == ["", "candidates"]
    database.close()


def test_what_is_relaxed_while_a_verdict_is_made_counts(
    checkpoint: Path, database_url: str
) -> None:
    _, first = drawn(checkpoint, database_url)
    _, second = drawn(checkpoint, database_url, seed=1)
    database = open_database(database_url)
    salt = rocksalt("Na", "Cl", 5.6)
    number = relaxed_to(database, second, salt)
    relaxed_to(database, first, salt)  # after the other campaign has compared with older ones
    with database.session() as session:
        row = session.get_one(Relaxation, number)
        basis = session.get_one(Campaign, second)
        assert basis.hull_id and basis.known_id
        one = queries.Relaxed(number, row.candidate_id, salt, salt, -3.6)
        verdict = Stability(
            relaxation_id=number,
            hull_id=basis.hull_id,
            known_id=basis.known_id,
            settings={},
            verdict="stable",
            is_unique=True,
        )
        _record(session, one, verdict, [], row.potential_id)
    (_, (is_unique, duplicate_of)), *_ = unique(database).items()
    assert not is_unique and duplicate_of is not None and duplicate_of < one.candidate_id
    database.close()


def test_a_device_that_this_machine_has_not_is_told_at_once(
    checkpoint: Path, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'mine.db'}"
    drawn(checkpoint, url)
    with pytest.raises(RelaxError, match="no device 'gpu'; there are cpu, cuda"):
        work(url, here=Here(device="gpu"), wait=True)


def test_a_campaign_goes_on_in_step_and_is_still_the_same(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, campaign = drawn(checkpoint, f"sqlite:///{tmp_path / 'mine.db'}")
    sizes = []
    right = ChgnetPotential.gradients

    def gradients(self: ChgnetPotential, atoms: Sequence[Atoms]) -> list[Gradients]:
        sizes.append(len(atoms))
        return right(self, atoms)

    monkeypatch.setattr(ChgnetPotential, "gradients", gradients)
    relax_pending(config.model_copy(update={"relax_at_once": 2}), campaign)
    assert max(sizes) == 2
    in_step = relaxations(database := open_database(config.database))
    assert len(in_step) == 2
    with database.session(write=False) as session:
        assert set(session.scalars(select(Relaxation.device))) == {"cpu"}
    assert run_stages(config) == campaign and relaxations(database) == in_step


def test_a_helper_relaxes_for_a_campaign_of_another_process(
    checkpoint: Path, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    config, campaign = drawn(checkpoint, url)
    done = symmbfn("work", "--db", url, home=tmp_path)
    assert done.returncode == 0, done.stderr
    database = open_database(url)
    by_helper = relaxations(database)
    assert by_helper
    run_stages(config)
    assert relaxations(database) == by_helper  # nothing was left to do, nothing done twice
    alone = tiny_config(checkpoint, f"sqlite:///{tmp_path / 'alone.db'}", n=2)
    run_stages(alone)
    assert table(database) == table(open_database(alone.database))
    work(url, wait=True, name=_name(database, campaign))  # it is finished: this returns


def _name(database: Database, campaign: int) -> str:
    with database.session(write=False) as session:
        return session.get_one(Campaign, campaign).name


def test_a_helper_with_another_potential_or_protocol_is_refused(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    _, campaign = drawn(checkpoint, url)
    database = open_database(url)
    with pytest.raises(DatabaseError, match=r"no campaign 'mine' in this database; the newest are"):
        work(url, "mine")
    with monkeypatch.context() as patch:
        patch.setattr("relax.optimize.PROTOCOL", "another")
        with pytest.raises(ConfigError, match=r"relaxes in another way .* install that one here"):
            campaign_config(database, campaign, url, Here(workers=0))
    with database.session() as session:
        row = session.get_one(Campaign, campaign)
        other = queries.register_potential(
            session,
            Potential(name="chgnet", weights_sha256="x", dtype="float32", energy_scheme="any"),
        )
        row.potential_id = other.id
    with pytest.raises(ConfigError, match=r"'chgnet' has other weights .* on this machine"):
        campaign_config(database, campaign, url, Here(workers=0))


def test_a_campaign_that_cannot_be_helped_is_told_once_and_the_others_are_helped(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    _, bad = drawn(checkpoint, url)
    _, good = drawn(checkpoint, url, seed=1)
    database = open_database(url)
    with database.session() as session:
        row = session.get_one(Campaign, bad)
        row.config = {**row.config, "potential": "none-such"}
    helped: list[int] = []
    monkeypatch.setattr("flows.work.relax_pending", lambda _, campaign: helped.append(campaign))

    def sleep(_: float) -> None:
        if len(helped) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("flows.work.time.sleep", sleep)
    screen = io.StringIO()
    with (
        TerminalProgress(Console(file=screen, width=1000)).running(),
        pytest.raises(KeyboardInterrupt),
    ):
        work(url, wait=True)
    assert helped == [good, good]
    (told,) = screen.getvalue().splitlines()
    name = _name(database, bad)
    assert told.startswith(f"campaign {name} is left to others; ") and "none-such" in told
    with pytest.raises(RelaxError, match="none-such"):
        work(url, name)


def test_a_cluster_that_cannot_be_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "prefect_dask.task_runners", None)
        with pytest.raises(ConfigError, match=r"dask: .*uv sync --extra dask"):
            cluster.task_runner(DaskSettings())
    pytest.importorskip("prefect_dask")
    with pytest.raises(ConfigError, match=r"no class 'distributed.Cloud'"):
        cluster.task_runner(DaskSettings(cluster="distributed.Cloud"))


@pytest.mark.slow
def test_a_dask_cluster_relaxes_what_one_process_does(checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("prefect_dask")
    urls = [f"sqlite:///{tmp_path / name}.db" for name in ("alone", "shared")]
    config = tiny_config(checkpoint, urls[0])
    run_stages(config)
    file = tmp_path / "campaign.toml"
    file.write_text(
        f'n = 4\nbatch_size = 2\nsteps = 3\nworkers = 0\ncheckpoint = "{checkpoint}"\n'
        f'reference = "{config.reference}"\ndatabase = "{urls[1]}"\n'
        "relaxation = { max_steps = 30, fmax = 0.3 }\n"
        "[dask]\njobs = 2\noptions = { threads_per_worker = 1, dashboard_address = '' }\n",
        encoding="utf-8",
    )
    with serving(tmp_path, urls[1]) as server:
        done = subprocess.run(
            [sys.executable, "-m", "flows.cli", "discover", str(file)],
            cwd=tmp_path,
            env=server.env,
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr
    databases = [open_database(url) for url in urls]
    assert table(databases[0]) == table(databases[1])
    with databases[1].session(write=False) as session:
        assert set(session.scalars(select(Candidate.fence))) <= {0, 1}
    assert inputs.potential_info("chgnet").name == "chgnet"
