"""What the tests of the flows share: a tiny generator trained on the spot, and running commands."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from pymatgen.core.lattice import Lattice
from pymatgen.core.structure import Structure

from flows.settings import CampaignConfig

PROPERTIES = ("formation_energy_per_atom", "band_gap")


def rocksalt(cation: str, anion: str, a: float) -> Structure:
    """The conventional cell of a rock salt; a in Å."""
    return Structure.from_spacegroup(
        225, Lattice.cubic(a), [cation, anion], [[0, 0, 0], [0.5, 0.5, 0.5]]
    )


def caesium_chloride(cation: str, anion: str, a: float) -> Structure:
    """The cell of a caesium chloride; a in Å."""
    return Structure.from_spacegroup(
        221, Lattice.cubic(a), [cation, anion], [[0, 0, 0], [0.5, 0.5, 0.5]]
    )


def fluorite(cation: str, anion: str, a: float) -> Structure:
    """The conventional cell of a fluorite; a in Å."""
    return Structure.from_spacegroup(
        225, Lattice.cubic(a), [cation, anion], [[0, 0, 0], [0.25, 0.25, 0.25]]
    )


def crystals() -> list[Structure]:
    """Simple ionic crystals that a potential relaxes in a few steps."""
    return [
        rocksalt("Mg", "O", 4.21),
        rocksalt("Ca", "O", 4.81),
        rocksalt("Na", "Cl", 5.64),
        rocksalt("Li", "F", 4.03),
        rocksalt("K", "Br", 6.60),
        caesium_chloride("Cs", "Cl", 4.12),
        caesium_chloride("Cs", "Br", 4.29),
        fluorite("Ca", "F", 5.46),
        fluorite("Sr", "F", 5.80),
    ]


def tiny_checkpoint(folder: Path) -> Path:
    """Write a very small generator, never trained: it draws the space groups of `crystals`."""
    import torch

    from symmbfn.checkpoint import save_checkpoint
    from symmbfn.data import preprocess
    from symmbfn.model import ModelConfig, SymmBFN
    from symmbfn.network import NetworkConfig
    from symmbfn.train import model_config

    structures = crystals()
    values = [float(index) for index in range(len(structures))]
    data, _ = preprocess(structures, dict.fromkeys(PROPERTIES, values))
    network = NetworkConfig(width=32, layers=1, heads=2, pair_width=8)
    torch.manual_seed(0)
    model = SymmBFN.for_data(model_config(data, ModelConfig(network=network)), data)
    return save_checkpoint(folder, model, model.state_dict(), {"data": "simple ionic crystals"})


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
        "database": database,
        "relaxation": {"max_steps": 25},
        "workers": 1,
        **more,
    }
    return CampaignConfig.build(table, where="test")


def run_stages(config: CampaignConfig) -> int:
    """Run a campaign without Prefect; return its row number."""
    from flows.stage_generate import generate_batch, open_campaign
    from flows.stage_relax import relax_pending
    from flows.stage_screen import screen_pending

    campaign = open_campaign(config)
    for number in range(config.number_of_batches):
        generate_batch(config, campaign, number)
    relax_pending(config, campaign)
    screen_pending(config, campaign)
    return campaign


if __name__ == "__main__":
    run_stages(CampaignConfig.model_validate_json(sys.argv[1]))
