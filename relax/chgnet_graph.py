"""CHGNet's crystal graph built from arrays: as its own converter makes it, but faster."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from chgnet.graph import CrystalGraph
    from numpy.typing import NDArray

ATOM_CUTOFF = 6.0  # angstrom, reach of the atom graph of CHGNet 0.3.0
BOND_CUTOFF = 3.0  # angstrom, reach of its bond graph (angles)


class IsolatedAtomError(ValueError):
    """An atom has no neighbour within reach, so its energy would be meaningless."""


def crystal_graph(
    numbers: NDArray[np.int64],
    lattice: NDArray[np.float64],
    frac_coords: NDArray[np.float64],
    dtype: str = "float32",
) -> CrystalGraph:
    """Build the graph of one crystal.

    Args:
        numbers: Atomic numbers, shape (N,).
        lattice: Cell vectors as rows, angstrom, shape (3, 3).
        frac_coords: Fractional coordinates, shape (N, 3); any image of an atom will do.
        dtype: Of the graph's real numbers, a name in torch.

    Returns:
        The graph, its tensors of this dtype and int32 on the CPU.

    Raises:
        IsolatedAtomError: An atom has no neighbour within 6 angstrom.
    """
    import torch
    from chgnet.graph import CrystalGraph
    from pymatgen.optimization.neighbors import find_points_in_spheres

    cart_coords = np.ascontiguousarray(frac_coords @ lattice)
    center, neighbor, image, distance = find_points_in_spheres(
        cart_coords,
        cart_coords,
        r=ATOM_CUTOFF,
        pbc=np.ones(3, dtype=np.int64),
        lattice=np.ascontiguousarray(lattice, dtype=float),
        tol=1e-8,
    )
    apart = (center != neighbor) | (distance > 1e-8)  # every atom finds itself, too
    center, neighbor, distance = center[apart], neighbor[apart], distance[apart]
    image = np.rint(image[apart]).astype(np.int64)
    lonely = np.setdiff1d(np.arange(len(numbers)), center)
    if len(lonely):
        raise IsolatedAtomError(f"atom {lonely[0]} has no neighbour within {ATOM_CUTOFF:g} Å")
    forward, undirected = _pair(center, neighbor, image)
    real = getattr(torch, dtype)
    return CrystalGraph(
        atomic_number=torch.as_tensor(numbers, dtype=torch.int32),
        atom_frac_coord=torch.tensor(frac_coords, dtype=real, requires_grad=True),
        atom_graph=torch.as_tensor(np.stack([center, neighbor], axis=1), dtype=torch.int32),
        atom_graph_cutoff=ATOM_CUTOFF,
        neighbor_image=torch.as_tensor(image, dtype=real),
        directed2undirected=torch.as_tensor(undirected, dtype=torch.int32),
        undirected2directed=torch.as_tensor(forward, dtype=torch.int32),
        bond_graph=torch.as_tensor(_angles(center, distance, undirected), dtype=torch.int32),
        bond_graph_cutoff=BOND_CUTOFF,
        lattice=torch.tensor(lattice, dtype=real, requires_grad=True),
    )


def _pair(
    center: NDArray[np.int64], neighbor: NDArray[np.int64], image: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Find the two directions of each bond.

    Returns:
        For each undirected bond one directed edge, shape (B,); for each directed edge its
        undirected bond, shape (2 B,).
    """
    there = np.column_stack([center, neighbor, image])
    back = np.column_stack([neighbor, center, -image])
    reach = int(np.abs(image).max(initial=0))
    sizes = np.array([there[:, :2].max(initial=0) + 1] * 2 + [2 * reach + 1] * 3)
    shift = np.array([0, 0, reach, reach, reach])
    code = np.ravel_multi_index(tuple((there + shift).T), tuple(sizes))
    code_back = np.ravel_multi_index(tuple((back + shift).T), tuple(sizes))
    _, forward, undirected = np.unique(
        np.minimum(code, code_back), return_index=True, return_inverse=True
    )
    return forward, undirected


def _angles(
    center: NDArray[np.int64], distance: NDArray[np.float64], undirected: NDArray[np.int64]
) -> NDArray[np.int64]:
    """List all ordered pairs of short bonds that leave the same atom.

    Returns:
        Rows (atom, undirected bond 1, directed 1, undirected 2, directed 2), shape (A, 5).
    """
    short = np.flatnonzero(distance < BOND_CUTOFF)
    short = short[np.argsort(center[short], kind="stable")]
    _, start, count = np.unique(center[short], return_index=True, return_counts=True)
    # each edge is paired with all `count` edges of its own atom
    per_edge = np.repeat(count, count)
    first = np.repeat(np.arange(len(short)), per_edge)
    within = np.arange(len(first)) - np.repeat(np.cumsum(per_edge) - per_edge, per_edge)
    second = np.repeat(np.repeat(start, count), per_edge) + within
    apart = first != second
    one, two = short[first[apart]], short[second[apart]]
    return np.column_stack([center[one], undirected[one], one, undirected[two], two])
