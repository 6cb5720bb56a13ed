"""A small MACE, trained on the spot by mace's own command on crystals that CHGNet labelled."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from ase.io import write
from pymatgen.core import Lattice, Structure

from relax.potential_mace import _mace_imported
from relax.potentials import Potential
from relax.relaxation import to_atoms


def rock_salt(a: float = 5.69) -> Structure:
    """NaCl, in its primitive cell."""
    return Structure.from_spacegroup(
        225, Lattice.cubic(a), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]
    ).get_primitive_structure()


def train_small_mace(teacher: Potential, folder: Path, *options: str) -> Path:
    """Train it to energies, forces and stresses of strained, rattled NaCl.

    Args:
        teacher: Labels the crystals.
        folder: For the files of the training.
        options: Of mace's command, which win over those here.

    Returns:
        The file of weights, as foundation models come.
    """
    random = np.random.default_rng(0)
    labelled = []
    for a in np.linspace(5.1, 6.6, 24):
        structure = rock_salt(a)
        atoms = to_atoms(structure * (2, 1, 1))
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + random.normal(scale=0.02, size=(3, 3))),
                       scale_atoms=True)  # fmt: skip
        atoms.positions += random.normal(scale=0.1, size=(len(atoms), 3))
        atoms.calc = teacher.calculator()
        atoms.info["REF_energy"] = atoms.get_potential_energy()
        atoms.info["REF_stress"] = atoms.get_stress(voigt=False)
        atoms.arrays["REF_forces"] = atoms.get_forces()
        atoms.calc = None
        labelled.append(atoms)
    write(folder / "train.xyz", labelled)
    subprocess.run(
        [
            *(sys.executable, "-W", "ignore", "-m", "mace.cli.run_train"),
            *("--name", "tiny", "--work_dir", str(folder), "--seed", "0", "--device", "cpu"),
            *("--train_file", str(folder / "train.xyz"), "--valid_fraction", "0.2"),
            *("--E0s", "average", "--model", "MACE", "--loss", "universal", "--lr", "0.02"),
            *("--r_max", "4.0", "--num_channels", "8", "--max_L", "0", "--max_ell", "2"),
            *("--correlation", "2", "--num_radial_basis", "4", "--MLP_irreps", "8x0e"),
            *("--batch_size", "4", "--max_num_epochs", "40", "--eval_interval", "40"),
            *("--default_dtype", "float64", "--energy_key", "REF_energy"),
            *("--forces_key", "REF_forces", "--stress_key", "REF_stress"),
            *options,
        ],
        check=True,
        cwd=folder,
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return folder / "tiny.model"


def mace_of_two_heads(folder: Path) -> Path:
    """Write a tiny MACE of the heads `pbe` and `r2scan`, never trained."""
    with _mace_imported():
        import torch
        from e3nn.o3 import Irreps
        from mace.modules import ScaleShiftMACE, interaction_classes

        torch.manual_seed(0)
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        block = interaction_classes["RealAgnosticResidualInteractionBlock"]
        model = ScaleShiftMACE(
            r_max=4.0, num_bessel=4, num_polynomial_cutoff=5, max_ell=1, num_interactions=2,
            interaction_cls=block, interaction_cls_first=block, num_elements=2,
            hidden_irreps=Irreps("8x0e"), MLP_irreps=Irreps("8x0e"), gate=torch.nn.functional.silu,
            atomic_energies=np.array([[-1.0, -2.0], [-3.0, -4.0]]), avg_num_neighbors=8.0,
            atomic_numbers=[11, 17], correlation=1, heads=["pbe", "r2scan"],
            atomic_inter_scale=[1.0, 1.5], atomic_inter_shift=[0.0, 0.1],
        )  # fmt: skip
        torch.set_default_dtype(before)
        torch.save(model, folder / "two.model")
    return folder / "two.model"
