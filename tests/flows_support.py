"""What the tests of the flows share: a tiny generator trained on the spot, and running commands."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from itertools import count
from pathlib import Path
from typing import Any

from pymatgen.core.lattice import Lattice
from pymatgen.core.structure import Structure
from sqlalchemy import event, select
from sqlalchemy.orm import Session

from db import queries
from db.models import Relaxation
from db.session import Database
from flows.retrain_settings import LoopConfig
from flows.settings import CampaignConfig

KNOWN = "known.extxyz"
"""Beside the checkpoint: its training crystals, the reference for novelty in these tests."""
PROPERTIES = ("formation_energy_per_atom", "band_gap")
LOOP = """
name = "tiny"
rounds = 2
min_diversity = 0
[campaign]
n = 3
checkpoint = "ck"
steps = 3
reference = "ck/known.extxyz"
relaxation = { max_steps = 20, fmax = 0.5 }
thresholds = { stable = -0.29, metastable = -0.29 }  # nothing is, so that no finds are lost
workers = 0
[retrain]
filter = "energy_per_atom IS KNOWN"
replay = 24
minutes = 1
max_passes = 2
batch_size = 8
held_out_share = 0.4
element_factor = 50
[retrain.gate]  # passes whatever two crystals happen to be
n = 2
loss_margin = 9
validity_margin = 1
diversity = 0
concentration = 9
element_rise = 1
"""


def rocksalt(cation: str, anion: str, a: float) -> Structure:
    """The conventional cell of a rock salt; a in Å."""
    return Structure.from_spacegroup(
        225, Lattice.cubic(a), [cation, anion], [[0, 0, 0], [0.5, 0.5, 0.5]]
    )


def crystals() -> list[Structure]:
    """Two atoms each in cells without any symmetry, which a generator can hardly get wrong."""
    skew = Lattice([[3.9, 0.3, 0.2], [0.4, 3.3, 0.5], [0.1, 0.6, 3.6]])
    pairs = [("Mg", "O"), ("Ca", "O"), ("Na", "Cl"), ("Li", "F"), ("K", "Br"), ("Ca", "F")]
    return [
        Structure(skew.scale(40 + index), pair, [[0, 0, 0], [0.42, 0.53, 0.46]])
        for index, pair in enumerate(pairs)
    ]


def tiny_checkpoint(folder: Path, properties: tuple[str, ...] = PROPERTIES) -> Path:
    """Write a very small generator, never trained: it draws cells like those of `crystals`."""
    import torch

    from symmbfn.checkpoint import save_checkpoint
    from symmbfn.data import preprocess
    from symmbfn.files import write_structures
    from symmbfn.layers import NetworkConfig
    from symmbfn.model import ModelConfig, SymmBFN
    from symmbfn.train_config import model_config

    structures = crystals()
    values = [float(index) for index in range(len(structures))]
    data, _ = preprocess(structures, dict.fromkeys(properties, values))
    config = ModelConfig(
        sites=NetworkConfig(width=32, layers=1, heads=2),
        geometry=NetworkConfig(width=32, layers=1, heads=2, pair_width=8),
    )
    torch.manual_seed(0)
    model = SymmBFN.for_data(model_config(data, config), data)
    model.lattice_std.fill_(0.03)  # all cells near the mean of sensible ones
    save_checkpoint(folder, model, model.state_dict(), {"data": "simple ionic crystals"})
    write_structures(folder / KNOWN, structures)
    return folder


def environment(home: Path) -> dict[str, str]:
    """The environment of a command that writes nothing outside of `home` but its cache."""
    names = ("PATH", "LANG", "PYTHONPATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH")
    # OPENBLAS_*: relaxations from wild starts amplify the last bit, so the kernels must be the same
    kept = {k: v for k, v in os.environ.items() if k in names or k.startswith("OPENBLAS_")}
    return {
        **kept,
        "HOME": str(home),
        "XDG_CACHE_HOME": str(home.parent / "cache"),  # matplotlib lists the fonts once, not often
        "PREFECT_HOME": str(home / "prefect"),
        "OMP_NUM_THREADS": "1",
    }


def symmbfn(*arguments: str, home: Path, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run the command in `home` as a user would."""
    return subprocess.run(
        [sys.executable, "-m", "flows.cli", *arguments],
        cwd=home,
        env=environment(home),
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def tiny_config(checkpoint: Path, database: str, **more: object) -> CampaignConfig:
    """Settings of a campaign that ends within seconds."""
    table = {
        "n": 4,
        "batch_size": 2,
        "steps": 3,
        "checkpoint": str(checkpoint),
        "reference": str(checkpoint / KNOWN),
        "database": database,
        "relaxation": {"max_steps": 30, "fmax": 0.3},
        "workers": 0,
        **more,
    }
    return CampaignConfig.build(table, where="test")


def run_stages(config: CampaignConfig) -> int:
    """Run a campaign without Prefect; return its row number."""
    from flows.engine import Engine
    from flows.pipeline import discover

    return discover(config, Engine())


def tiny_loop(folder: Path) -> LoopConfig:
    """A loop of seconds in a folder of its own."""
    tiny_checkpoint(folder / "ck")
    (folder / "loop.toml").write_text(LOOP)
    place = {
        "database": f"sqlite:///{folder / 'loop.db'}",
        "checkpoint": str(folder / "ck"),
        "reference": str(folder / "ck" / KNOWN),
    }
    given = {"campaign": place, "retrain": {"folder": str(folder / "retrained")}}
    return LoopConfig.from_toml(folder / "loop.toml", given)


def table(database: Database) -> list[tuple[Any, ...]]:
    """All that a campaign found, in a form that two runs can be compared by."""
    with database.session(write=False) as session:
        frame = queries.candidates(session, sort="material_id")
    columns = ["formula_pretty", "nsites", "state", "verdict", "is_unique", "is_novel"]
    energies = frame["energy_per_atom"].round(4).fillna(0.0).tolist()
    rows = frame[columns].astype(object).where(frame[columns].notna(), None).values.tolist()
    return sorted((*row, energy) for row, energy in zip(rows, energies, strict=True))


def relaxations(database: Database) -> dict[int, Any]:
    """Every stored relaxation with the time when it was stored."""
    with database.session(write=False) as session:
        rows = session.execute(select(Relaxation.candidate_id, Relaxation.created_at))
        return {row.candidate_id: row.created_at for row in rows}


def run_until_commit(settings: str, last: int) -> None:
    """Run a campaign, and be killed without warning right after its `last`-th commit.

    Savepoints count, so that some of these kills come in the middle of a transaction.
    """
    _killed_at("after_commit", last)
    run_stages(CampaignConfig.model_validate_json(settings))


def discover_until_commit(settings: str, moment: str, last: int, server: str) -> None:
    """Run a campaign by Prefect, and be killed at the `last`-th commit.

    Args:
        settings: Of the campaign, JSON.
        moment: `after_commit`, so that Prefect does not know what is stored, or `before_commit`,
            so that it knows more than that.
        last: Of our commits.
        server: Address of a Prefect server.
    """
    os.environ["PREFECT_API_URL"] = server
    from flows import pipeline
    from flows.engine import choose_engine

    _killed_at(moment, last)
    choose_engine().run(pipeline.discover, CampaignConfig.model_validate_json(settings))


def _killed_at(moment: str, last: int) -> None:
    commits = count(1)

    def at_commit(_: Session) -> None:
        if next(commits) == last:
            os.kill(os.getpid(), signal.SIGKILL)

    event.listen(Session, moment, at_commit)


if __name__ == "__main__":
    run_stages(CampaignConfig.model_validate_json(sys.argv[1]))
