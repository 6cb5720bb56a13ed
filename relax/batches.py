"""Energies of many structures in batches of a model; one that fails costs nothing but itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pymatgen.core import Structure


def batched_energies[Graph](
    structures: Sequence[Structure],
    elements: frozenset[str],
    graph_of: Callable[[Structure], Graph],
    energies_of: Callable[[Sequence[Graph]], NDArray[np.float64]],
    batch_atoms: int,
) -> NDArray[np.float64]:
    """Compute energies in batches of structures of like size.

    Args:
        structures: Of any size.
        elements: Symbols that the model knows; structures with others are passed by.
        graph_of: Makes what the model takes; whatever it raises costs that structure only.
        energies_of: Of graphs in one batch, eV/atom, shape (len(graphs),). A batch that fails, for
            want of memory or otherwise, is halved.
        batch_atoms: In a batch, unless one structure has more.

    Returns:
        Energies in eV/atom, shape (len(structures),); NaN where there is none to be had.
    """
    energies = np.full(len(structures), np.nan)
    batch: list[int] = []
    graphs: list[Graph] = []
    atoms = 0
    for index in sorted(range(len(structures)), key=lambda i: len(structures[i])):
        structure = structures[index]
        if not {one.symbol for one in structure.composition} <= elements:
            continue
        if not np.isfinite([*structure.lattice.matrix, *structure.frac_coords]).all():
            continue  # some neighbour searches find an energy for what is left
        try:
            graph = graph_of(structure)
        except Exception:  # whatever the neighbour search dislikes costs one structure only
            continue
        if batch and atoms + len(structure) > batch_atoms:
            energies[batch] = _halved(graphs, energies_of)
            batch, graphs, atoms = [], [], 0
        batch.append(index)
        graphs.append(graph)
        atoms += len(structure)
    if batch:
        energies[batch] = _halved(graphs, energies_of)
    return energies


def _halved[Graph](
    graphs: Sequence[Graph], energies_of: Callable[[Sequence[Graph]], NDArray[np.float64]]
) -> NDArray[np.float64]:
    """Return eV/atom; NaN of a structure that fails alone."""
    try:
        return energies_of(graphs)
    except (RuntimeError, MemoryError):  # torch's OutOfMemoryError is a RuntimeError
        if len(graphs) == 1:
            return np.array([np.nan])
    half = len(graphs) // 2
    return np.concatenate(
        [_halved(graphs[:half], energies_of), _halved(graphs[half:], energies_of)]
    )
