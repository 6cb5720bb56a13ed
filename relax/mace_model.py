"""A MACE model without its calculator: graphs, energies of batches, gradients of one crystal.

mace's own calculator (0.3.16) spends about half of the time of a small model on what relaxation
does not read: it fills some thirty fields, collates, copies and converts them, at every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch
    from ase import Atoms
    from numpy.typing import ArrayLike, NDArray

    from relax.calculator import Gradients

Graph = dict[str, "NDArray[Any]"]
"""Fields of the model's input, of one crystal."""


class MaceModel:
    """A model of energies, on its device and in its precision."""

    def __init__(self, model: Any, dtype: str, device: str, head: str = "") -> None:
        """Take a model as mace-torch saves it, of whose head `unfit` finds nothing wrong."""
        import torch

        self._dtype: torch.dtype = getattr(torch, dtype)
        self._device = device
        self._model = model.to(device=device, dtype=self._dtype).eval()
        for parameter in self._model.parameters():
            parameter.requires_grad_(False)  # only positions and strain are differentiated
        self._kinds = {int(number): kind for kind, number in enumerate(model.atomic_numbers)}
        self._cutoff = float(model.r_max)
        self._head = _head(model, head)

    def graph(self, numbers: Sequence[int], cell: ArrayLike, positions: ArrayLike) -> Graph:
        """Find the neighbours of each atom.

        Args:
            numbers: Atomic numbers, shape (N,).
            cell: Rows are vectors, Å, shape (3, 3).
            positions: Å, shape (N, 3).
        """
        from mace.data.neighborhood import get_neighborhood

        edges, shifts, images, cell = get_neighborhood(
            np.ascontiguousarray(positions, dtype=float),
            self._cutoff,
            pbc=(True, True, True),
            cell=np.array(cell, dtype=float),
        )
        kinds = [self._kinds[int(number)] for number in numbers]
        return {
            "positions": np.asarray(positions, dtype=float),
            "cell": cell,
            "node_attrs": np.eye(len(self._kinds))[kinds],
            "edge_index": edges,
            "shifts": shifts,
            "unit_shifts": images,
        }

    def energies_per_atom(self, graphs: Sequence[Graph]) -> NDArray[np.float64]:
        """Compute energies in one batch, eV/atom, shape (len(graphs),)."""
        import torch

        with torch.no_grad():
            energies = self._forward(graphs, compute_force=False)["energy"]
        per_atom: NDArray[np.float64] = _array(energies) / [len(g["positions"]) for g in graphs]
        return per_atom

    def gradients(self, atoms: Sequence[Atoms]) -> list[Gradients]:
        """Compute energies, forces and strain gradients in one batch."""
        out = self._forward(
            [self.graph(one.numbers, one.cell.array, one.positions) for one in atoms],
            compute_stress=True,
        )
        energies, stresses = _array(out["energy"]), _array(out["stress"])
        forces = np.split(_array(out["forces"]), np.cumsum([len(one) for one in atoms])[:-1])
        return [
            (float(energy), force, stress * one.get_volume())
            for one, energy, force, stress in zip(atoms, energies, forces, stresses, strict=True)
        ]

    def _forward(self, graphs: Sequence[Graph], **what: bool) -> dict[str, torch.Tensor]:
        import torch

        sizes = [len(graph["positions"]) for graph in graphs]
        first = np.concatenate([[0], np.cumsum(sizes)])
        fields: dict[str, NDArray[Any]] = {
            name: np.concatenate([graph[name] for graph in graphs])
            for name in ("positions", "cell", "node_attrs", "shifts", "unit_shifts")
        }
        whole: dict[str, NDArray[Any]] = {
            "edge_index": np.concatenate(
                [graph["edge_index"] + at for graph, at in zip(graphs, first, strict=False)], axis=1
            ),
            "batch": np.repeat(np.arange(len(graphs)), sizes),
            "ptr": first,
            "head": np.full(len(graphs), self._head),
        }
        data = {
            **{key: torch.as_tensor(one, dtype=self._dtype) for key, one in fields.items()},
            **{key: torch.as_tensor(one, dtype=torch.long) for key, one in whole.items()},
        }
        data = {name: tensor.to(self._device) for name, tensor in data.items()}
        out: dict[str, torch.Tensor] = self._model(data, **what)
        return out


def unfit(model: Any, head: str = "") -> str:
    """Tell why a model, or this head of it, gives no energies of crystals; empty where it does."""
    if type(model).__name__ not in ("MACE", "ScaleShiftMACE"):
        return f"a {type(model).__name__}, no MACE of energies of crystals"
    if hasattr(model, "joint_embedding"):
        return "a MACE that asks for charges, spins or fields, not of crystals alone"
    if _head(model, head) is None:
        return f"of its heads {', '.join(_heads(model))} name one as FILE.model#HEAD"
    return ""


def _heads(model: Any) -> list[str]:
    return list(getattr(model, "heads", ["default"]))


def _head(model: Any, wanted: str) -> int | None:
    """Return which head gives the energies; unasked, by the rule of mace's calculator."""
    heads = _heads(model)
    if wanted:
        return heads.index(wanted) if wanted in heads else None
    if len(heads) == 1:
        return 0
    return next((index for index, head in enumerate(heads) if head.lower() == "default"), None)


def _array(tensor: torch.Tensor) -> NDArray[np.float64]:
    array: NDArray[np.float64] = tensor.detach().cpu().numpy().astype(float)
    return array
