"""What the tests of the flows share: a tiny generator trained on the spot, and running commands."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from pymatgen.core.lattice import Lattice
from pymatgen.core.structure import Structure

from flows.settings import CampaignConfig

KNOWN = "known.extxyz"
"""Beside the checkpoint: its training crystals, the reference for novelty in these tests."""
PROPERTIES = ("formation_energy_per_atom", "band_gap")


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


def tiny_checkpoint(folder: Path) -> Path:
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
    data, _ = preprocess(structures, dict.fromkeys(PROPERTIES, values))
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
    """The environment of a command that writes nothing outside of `home`."""
    names = ("PATH", "LANG", "PYTHONPATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH")
    kept = {name: os.environ[name] for name in names if name in os.environ}
    return {
        **kept,
        "HOME": str(home),
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
    from flows.stage_generate import generate_batch, open_campaign
    from flows.stage_rank import rank_pending
    from flows.stage_relax import relax_pending
    from flows.stage_screen import screen_pending

    campaign = open_campaign(config)
    for number in range(config.number_of_batches):
        generate_batch(config, campaign, number)
    rank_pending(config, campaign)
    relax_pending(config, campaign)
    screen_pending(config, campaign)
    return campaign


if __name__ == "__main__":
    run_stages(CampaignConfig.model_validate_json(sys.argv[1]))
