"""CHGNet as a potential, for PBE(+U) and for r2SCAN; the weights ship with its package.

Deng et al., Nature Machine Intelligence 5, 1031 (2023): the targets of CHGNet 0.3.0 hold the
Materials Project's 2020 corrections, so its energies are of scheme `mp2020` as they come. Its
r2SCAN weights (Huang et al., npj Computational Materials, 2025) were trained further on the
uncorrected energies of MP-r2SCAN.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ase.data import chemical_symbols

from relax.batches import batched_energies
from relax.calculator import GradientCalculator
from relax.chgnet_graph import crystal_graph
from relax.errors import RelaxError
from relax.potentials import Potential, PotentialInfo, Source, sha256_of

if TYPE_CHECKING:
    import torch
    from ase import Atoms
    from ase.calculators.calculator import Calculator
    from chgnet.graph import CrystalGraph
    from chgnet.model import CHGNet
    from chgnet.model.model import BatchedGraph
    from numpy.typing import NDArray
    from pymatgen.core import Structure

    from relax.calculator import Gradients

_ELEMENTS = frozenset(chemical_symbols[1:95]) - {"Po", "At", "Rn", "Fr", "Ra"}
_BATCH_ATOMS = 160  # larger batches are no faster on a CPU (measured), and take more memory


@dataclass(frozen=True)
class _Release:
    """Weights in the package chgnet 0.4.2: its version of them, and the file's SHA-256."""

    version: str
    file: str
    sha256: str
    energy_scheme: str


_RELEASES = {
    "chgnet": _Release(
        "0.3.0",
        "pretrained/0.3.0/chgnet_0.3.0_e29f68s314m37.pth.tar",
        "d14ab7c0f093efe64b60a7bcd540bca10e74fb7f46c86108a079af60524659d1",
        "mp2020",
    ),
    "chgnet-r2scan": _Release(
        "r2scan",
        "pretrained/r2scan/chgnet_r2scan_transfer_learning_e15f36s161m23.pth.tar",
        "8eba3db0f35a2788bb3ae22885ad340591e27996f213c6643af522a633b50dad",
        "mp-r2scan",
    ),
}


class ChgnetPotential(Potential):
    """CHGNet, loaded."""

    def __init__(self, model: CHGNet, info: PotentialInfo) -> None:
        """Wrap a model that is on its device and of the dtype that `info` says."""
        self.info = info
        self._model = model

    def calculator(self) -> Calculator:
        """Return an ASE calculator; see the base class."""
        return GradientCalculator(lambda atoms: self.gradients([atoms])[0])

    def gradients(self, atoms: Sequence[Atoms]) -> list[Gradients]:
        """Return energies, forces and strain gradients of a batch; see the base class."""
        import torch

        graphs = [
            crystal_graph(
                one.numbers, one.cell.array, one.get_scaled_positions(wrap=False), self.info.dtype
            )
            for one in atoms
        ]
        per_atom, batch = _energy_per_atom(self._model, graphs)
        energies = per_atom * torch.tensor([len(one) for one in atoms], device=per_atom.device)
        slopes = torch.autograd.grad(energies.sum(), (*batch.atom_positions, *batch.strains))
        arrays = [_array(slope) for slope in slopes]
        minus_forces, strain_gradients = arrays[: len(atoms)], arrays[len(atoms) :]
        return [
            (float(energy), -minus, strain)
            for energy, minus, strain in zip(
                energies.detach(), minus_forces, strain_gradients, strict=True
            )
        ]

    def energies_per_atom(self, structures: Sequence[Structure]) -> NDArray[np.float64]:
        """Return energies, computed in batches of crystals of like size; see the base class."""
        return batched_energies(structures, _ELEMENTS, self._graph_of, self._energies, _BATCH_ATOMS)

    def _graph_of(self, structure: Structure) -> CrystalGraph:
        numbers = np.array([site.specie.Z for site in structure])
        return crystal_graph(
            numbers, structure.lattice.matrix, structure.frac_coords, self.info.dtype
        )

    def _energies(self, graphs: Sequence[CrystalGraph]) -> NDArray[np.float64]:
        """Return eV/atom, of one batch."""
        import torch

        with torch.no_grad():
            per_atom, _ = _energy_per_atom(self._model, graphs)
        return _array(per_atom)


def _energy_per_atom(
    model: CHGNet, graphs: Sequence[CrystalGraph]
) -> tuple[torch.Tensor, BatchedGraph]:
    """Compute energies in eV/atom, shape (len(graphs),), and what they can be differentiated by."""
    import torch
    from chgnet.model.model import BatchedGraph

    device = next(model.parameters()).device
    with warnings.catch_warnings():  # it copies the strained volume, which we do not use
        warnings.filterwarnings("ignore", message="Converting a tensor with requires_grad")
        batch = BatchedGraph.from_graphs(
            [graph.to(str(device)) for graph in graphs],
            bond_basis_expansion=model.bond_basis_expansion,
            angle_basis_expansion=model.angle_basis_expansion,
            compute_stress=True,
        )
    per_element: torch.Tensor = model.composition_model.get_parameter("fc.weight")[0]  # eV/atom
    # the composition model's own forward is float32 only
    composition = torch.stack([per_element[g.atomic_number.long() - 1].mean() for g in graphs])
    return model._compute(batch)["e"] + composition, batch


def _array(tensor: torch.Tensor) -> NDArray[np.float64]:
    array: NDArray[np.float64] = tensor.detach().cpu().numpy().astype(float)
    return array


@cache
def _weights(release: _Release) -> Path | None:
    spec = find_spec("chgnet")  # finds the package without importing it
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(spec.submodule_search_locations[0]) / release.file
    return path if path.is_file() else None


def _info(name: str) -> PotentialInfo:
    release = _RELEASES[name]
    here = _weights(release) is not None
    return PotentialInfo(
        name=name,
        energy_scheme=release.energy_scheme,
        dtype="float32",  # to 0.01 meV/atom, in two thirds of the time: docs/potentials.md
        dtypes=("float32", "float64"),
        weights_sha256=release.sha256,
        available=here,
        how_to_get="" if here else "pip install chgnet==0.4.2 (the weights are in the package)",
        elements=_ELEMENTS,
    )


def _load(name: str, device: str, dtype: str) -> ChgnetPotential:
    release, info = _RELEASES[name], _info(name)
    path = _weights(release)
    if path is None:
        raise RelaxError(f"the weights of {name} are missing; {info.how_to_get}")
    if (found := sha256_of(path)) != release.sha256:
        raise RelaxError(
            f"{path} has sha256 {found[:12]}…, CHGNet {release.version} has "
            f"{release.sha256[:12]}…; reinstall chgnet==0.4.2"
        )
    model = _read_model(path, release.version, device, dtype)
    return ChgnetPotential(model, replace(info, dtype=dtype))


def _read_model(path: Path, version: str, device: str, dtype: str) -> CHGNet:
    import torch

    with contextlib.redirect_stdout(io.StringIO()):  # it announces itself
        from chgnet.model import CHGNet

        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)["model"]
        model = CHGNet.from_dict(state, version=version, mlp_out_bias=False)
    for parameter in model.parameters():
        parameter.requires_grad_(False)  # only positions and strain are differentiated
    return model.to(device, getattr(torch, dtype)).eval()


SOURCES = {name: Source(info=partial(_info, name), load=partial(_load, name)) for name in _RELEASES}
