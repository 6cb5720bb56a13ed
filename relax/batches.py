"""Batches of a model; a structure that it cannot take costs nothing but itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pymatgen.core import Structure


def halved[Item, Result](
    items: Sequence[Item],
    compute: Callable[[Sequence[Item]], Sequence[Result]],
    failed: Callable[[Exception], Result],
    on_failure: Callable[[Exception, int], None] = lambda error, size: None,
) -> list[Result]:
    """Compute items in one batch; one that fails, for want of memory or otherwise, is halved.

    Args:
        items: At least one.
        compute: Of a batch, in its order.
        failed: Makes the result of an item that fails alone.
        on_failure: Told of each batch of several that failed, and its size.

    Returns:
        Results, in the order of the items.
    """
    try:
        return list(compute(items))
    except Exception as caught:  # whatever a model or its library dislikes
        error = caught.with_traceback(None)  # which would keep the batch in memory
        error.__cause__ = error.__context__ = None
    if len(items) == 1:
        return [failed(error)]
    on_failure(error, len(items))
    half = len(items) // 2
    return [
        result
        for part in (items[:half], items[half:])
        for result in halved(part, compute, failed, on_failure)
    ]


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
        energies_of: Of graphs in one batch, eV/atom, shape (len(graphs),).
        batch_atoms: In a batch, unless one structure has more.

    Returns:
        Energies in eV/atom, shape (len(structures),); NaN where there is none to be had.
    """
    energies = np.full(len(structures), np.nan)
    batch: list[int] = []
    graphs: list[Graph] = []

    def compute() -> None:
        energies[batch] = halved(
            graphs, lambda some: list(energies_of(some)), lambda error: np.float64(np.nan)
        )

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
        if batch and sum(len(structures[i]) for i in batch) + len(structure) > batch_atoms:
            compute()
            batch, graphs = [], []
        batch.append(index)
        graphs.append(graph)
    if batch:
        compute()
    return energies
