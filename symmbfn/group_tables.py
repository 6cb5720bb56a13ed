"""The tables of `symmbfn.wyckoff` for all space groups as padded tensors, for the networks."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from symmbfn.wyckoff import MAX_LETTERS, MAX_OPERATIONS, SITE_SYMBOLS, space_group

MAX_EXPANSION = 48  # atoms of an orbit in the primitive cell


class GroupTables(nn.Module):
    """Tables indexed by group - 1, on the device of the model and never saved with it.

    Buffers: operations (230, 192, 3, 4) as [R | t]; expansions (230, 27, 48), the operations that
    make an orbit's atoms in the primitive cell, the first one the identity; legal (230, 27);
    projectors (230, 27, 3, 4) as [A | b]; multiplicities (230, 27), of the primitive cell;
    freedom (230, 27); primitive (230, 3, 3), rows are primitive vectors in the conventional basis,
    and to_primitive, their inverses; position (230, 27), row of `features` (0 where illegal);
    features (P, F).
    """

    operations: Tensor
    expansions: Tensor
    legal: Tensor
    projectors: Tensor
    multiplicities: Tensor
    freedom: Tensor
    primitive: Tensor
    to_primitive: Tensor
    position: Tensor
    features: Tensor

    def __init__(self) -> None:
        super().__init__()
        operations = torch.zeros(230, MAX_OPERATIONS, 3, 4)
        expansions = torch.zeros(230, MAX_LETTERS, MAX_EXPANSION, dtype=torch.long)
        projectors = torch.zeros(230, MAX_LETTERS, 3, 4)
        primitive = torch.zeros(230, 3, 3)
        multiplicities = torch.zeros(230, MAX_LETTERS, dtype=torch.long)
        freedom = torch.zeros(230, MAX_LETTERS, dtype=torch.long)
        position = torch.zeros(230, MAX_LETTERS, dtype=torch.long)
        features = [torch.zeros(1, 15 * len(SITE_SYMBOLS) + 12 + 6)]
        rows = 1
        for g in range(230):
            group = space_group(g + 1)
            m, p = len(group.rotations), group.num_positions
            operations[g, :m, :, :3] = torch.from_numpy(group.rotations)
            operations[g, :m, :, 3] = torch.from_numpy(group.translations)
            for letter, indices in enumerate(group.expansions):
                expansions[g, letter, : len(indices)] = torch.from_numpy(indices)
            projectors[g, :p, :, :3] = torch.from_numpy(group.projectors)
            projectors[g, :p, :, 3] = torch.from_numpy(group.offsets)
            primitive[g] = torch.from_numpy(group.primitive)
            multiplicities[g, :p] = torch.from_numpy(group.primitive_multiplicities)
            freedom[g, :p] = torch.from_numpy(group.degrees_of_freedom)
            position[g, :p] = torch.arange(rows, rows + p)
            rows += p
            sites = F.one_hot(torch.from_numpy(group.site_symmetries), len(SITE_SYMBOLS))
            features.append(
                torch.cat(
                    [
                        sites.flatten(1).float(),
                        projectors[g, :p].flatten(1),
                        F.one_hot(freedom[g, :p], 4).float(),
                        multiplicities[g, :p, None].log(),
                        torch.from_numpy(group.multiplicities).float()[:, None].log(),
                    ],
                    dim=1,
                )
            )
        for name, value in {
            "operations": operations,
            "expansions": expansions,
            "legal": position > 0,
            "projectors": projectors,
            "multiplicities": multiplicities,
            "freedom": freedom,
            "primitive": primitive,
            "to_primitive": torch.linalg.inv(primitive),
            "position": position,
            "features": torch.cat(features),
        }.items():
            self.register_buffer(name, value, persistent=False)

    def atoms_of(self, group: Tensor, letters: Tensor, mask: Tensor) -> Tensor:
        """(B, N) atoms in the primitive cell of orbits on the positions `letters` (B, N)."""
        atoms: Tensor = self.multiplicities[group[:, None], letters] * mask
        return atoms


@dataclass
class Atoms:
    """All atoms of the primitive cells of B crystals, as images of their orbits' representatives.

    Attributes:
        orbit: (B, A), which orbit an atom belongs to.
        operation: (B, A, 3, 4), [R | t] that maps the representative to the atom.
        first: (B, A), True for the representatives themselves.
        real: (B, A), False for padding.
    """

    orbit: Tensor
    operation: Tensor
    first: Tensor
    real: Tensor


def expand(tables: GroupTables, group: Tensor, letters: Tensor, mask: Tensor) -> Atoms:
    """The atoms of orbits on the positions `letters` (B, N) of the groups (B,)."""
    counts = tables.atoms_of(group, letters, mask)
    stops = counts.cumsum(1)
    slots = torch.arange(int(stops[:, -1].max()), device=group.device).expand(len(group), -1)
    orbit = torch.searchsorted(stops, slots.contiguous(), right=True)
    real = orbit < mask.shape[1]
    orbit = orbit.clamp_max(mask.shape[1] - 1)
    rank = slots - (stops - counts).gather(1, orbit)
    rank = rank.masked_fill(~real, 0)
    index = tables.expansions[group[:, None], letters.gather(1, orbit), rank]
    return Atoms(
        orbit=orbit,
        operation=tables.operations[group[:, None], index],
        first=(rank == 0) & real,
        real=real,
    )
