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
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from ase.calculators.calculator import Calculator, all_changes
from ase.data import chemical_symbols
from ase.stress import full_3x3_to_voigt_6_stress

from relax.chgnet_graph import crystal_graph
from relax.errors import RelaxError
from relax.potentials import Potential, PotentialInfo, Source, sha256_of

if TYPE_CHECKING:
    import torch
    from ase import Atoms
    from chgnet.graph import CrystalGraph
    from chgnet.model import CHGNet
    from chgnet.model.model import BatchedGraph
    from numpy.typing import NDArray
    from pymatgen.core import Structure

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
        return _ChgnetCalculator(self._model, self.info.dtype)

    def energies_per_atom(self, structures: Sequence[Structure]) -> NDArray[np.float64]:
        """Return energies, computed in batches of crystals of like size; see the base class."""
        energies = np.full(len(structures), np.nan)
        batch: list[int] = []
        graphs: list[CrystalGraph] = []
        atoms = 0
        for index in sorted(range(len(structures)), key=lambda i: len(structures[i])):
            if not {one.symbol for one in structures[index].composition} <= _ELEMENTS:
                continue
            try:
                graph = self._graph_of(structures[index])
            except Exception:  # whatever the neighbour search dislikes costs one structure only
                continue
            if batch and atoms + len(structures[index]) > _BATCH_ATOMS:
                energies[batch] = self._energies(graphs)
                batch, graphs, atoms = [], [], 0
            batch.append(index)
            graphs.append(graph)
            atoms += len(structures[index])
        if batch:
            energies[batch] = self._energies(graphs)
        return energies

    def _graph_of(self, structure: Structure) -> CrystalGraph:
        numbers = np.array([site.specie.Z for site in structure])
        return crystal_graph(
            numbers, structure.lattice.matrix, structure.frac_coords, self.info.dtype
        )

    def _energies(self, graphs: list[CrystalGraph]) -> NDArray[np.float64]:
        """Return eV/atom; a batch that fails, for want of memory or otherwise, is halved."""
        import torch

        try:
            with torch.no_grad():
                per_atom, _ = _energy_per_atom(self._model, graphs)
            return _array(per_atom)
        except (RuntimeError, MemoryError):  # torch's OutOfMemoryError is a RuntimeError
            if len(graphs) == 1:
                return np.array([np.nan])
        half = len(graphs) // 2
        return np.concatenate([self._energies(graphs[:half]), self._energies(graphs[half:])])


class _ChgnetCalculator(Calculator):
    """Energy, forces and stress from one backward pass.

    CHGNet's own calculator makes two passes that keep their graphs for training, computes magnetic
    moments, and rebuilds the crystal graph in Python: three times as slow for the same numbers.
    """

    # ase declares it for the instance, and its Calculator has no types
    implemented_properties: ClassVar[list[str]] = [  # type: ignore[misc]
        "energy",
        "free_energy",
        "forces",
        "stress",
    ]

    def __init__(self, model: CHGNet, dtype: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._model = model
        self._dtype = dtype

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        """Fill `results`: eV, eV/Å (N, 3), eV/Å³ (6, Voigt order)."""
        super().calculate(atoms, properties, system_changes)  # type: ignore[no-untyped-call]
        assert self.atoms is not None
        lattice = self.atoms.cell.array
        graph = crystal_graph(
            self.atoms.numbers, lattice, self.atoms.get_scaled_positions(wrap=False), self._dtype
        )
        energy, forces, strain_gradient = _energy_and_gradients(self._model, graph)
        stress = strain_gradient / abs(np.linalg.det(lattice))
        self.results = {
            "energy": energy,
            "free_energy": energy,
            "forces": forces,
            "stress": full_3x3_to_voigt_6_stress(stress),
        }


def _energy_and_gradients(
    model: CHGNet, graph: CrystalGraph
) -> tuple[float, NDArray[np.float64], NDArray[np.float64]]:
    """Compute energy (eV), forces (eV/Å, (N, 3)) and dE/dstrain (eV, (3, 3)) of one crystal."""
    import torch

    per_atom, batch = _energy_per_atom(model, [graph])
    energy = per_atom.sum() * len(graph.atomic_number)
    minus_forces, strain_gradient = torch.autograd.grad(
        energy, (batch.atom_positions[0], batch.strains[0])
    )
    return float(energy.detach()), -_array(minus_forces), _array(strain_gradient)


def _energy_per_atom(
    model: CHGNet, graphs: list[CrystalGraph]
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
        dtype="float32",
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
