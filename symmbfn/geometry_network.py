"""The geometry network: coordinates and lattice of a crystal whose sites are known.

Tokens are the orbits and the lattice; attention is biased by where all atoms of the primitive cell
and their periodic images lie as seen from each orbit's representative.
"""

import math
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn

from symmbfn.group_tables import Atoms, GroupTables
from symmbfn.layers import (
    ConditionEmbedding,
    ElementEmbedding,
    NetworkConfig,
    PositionEmbedding,
    Template,
    Transformer,
    waves,
)
from symmbfn.site_network import Sites

SHELLS = torch.arange(12) * 0.5 + 0.75  # Å, where neighbours are counted
SHELL_WIDTH = 0.5
DIRECTIONS = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.5])  # Å, where their directions are summed
DIRECTION_WIDTH = 1.0
CUTOFF = 6.75  # Å
PAIR_FEATURES_SUMMED = len(SHELLS) + 3 * len(DIRECTIONS)
PAIR_FEATURES = PAIR_FEATURES_SUMMED + 3 * len(DIRECTIONS) + 1
HERE = 13  # of the 27 cells around, the one at the centre


@dataclass
class GeometryInput:
    """Beliefs at time t about B crystals of at most N orbits.

    Attributes:
        t: (B,) time in [0, 1].
        coordinates: (B, N, 3) estimate of the representatives, on their Wyckoff positions,
            fractions of the conventional cell.
        lattice: (B, 6) standardised estimate, and
        cell: (B, 3, 3) the conventional lattice vectors it stands for, Å, rows.
    """

    t: Tensor
    coordinates: Tensor
    lattice: Tensor
    cell: Tensor


@torch.no_grad()
def pair_features(
    coordinates: Tensor, cell: Tensor, atoms: Atoms, primitive: Tensor, to_primitive: Tensor
) -> Tensor:
    """Where the atoms of orbit j lie as seen from the representative of orbit i.

    Args:
        coordinates: (B, N, 3) fractions of the conventional cell.
        cell: (B, 3, 3) conventional lattice vectors, rows, Å.
        atoms: Those of the primitive cell.
        primitive: (B, 3, 3) primitive vectors in the conventional basis, rows, and
        to_primitive: their inverses.

    Returns:
        (B, N, N, `PAIR_FEATURES`): neighbours in 12 distance shells (log), their summed directions
        in 5 wider ones (Cartesian and fractional), and the distance to the nearest / 4 Å. Images
        within `CUTOFF`, up to one primitive cell around the nearest one, count.
    """
    size, orbits = coordinates.shape[:2]
    points = coordinates.gather(1, atoms.orbit[..., None].expand(-1, -1, 3))
    images = torch.einsum("baij,baj->bai", atoms.operation[..., :3], points)
    images = images + atoms.operation[..., 3]
    vectors = (images[:, None] - coordinates[:, :, None]) @ to_primitive[:, None]
    box = primitive @ cell
    around = torch.tensor(list(product((-1.0, 0.0, 1.0), repeat=3)), device=cell.device) @ box
    vectors = ((vectors - vectors.round()) @ box[:, None])[..., None, :] + around[:, None, None]
    distances = vectors.square().sum(-1).sqrt()  # (B, N, A, 27)

    near = (distances < CUTOFF) & atoms.real[:, None, :, None]
    representative = torch.arange(orbits, device=cell.device)[:, None] == atoms.orbit[:, None]
    near[..., HERE] &= ~(representative & atoms.first[:, None])  # not itself
    edges = near.nonzero(as_tuple=True)
    crystal, seen_from, atom, _ = edges
    pair = (crystal * orbits + seen_from) * orbits + atoms.orbit[crystal, atom]
    distance, vector = distances[edges], vectors[edges]
    counts = _gaussians(distance, SHELLS.to(cell.device), SHELL_WIDTH)
    weights = _gaussians(distance, DIRECTIONS.to(cell.device), DIRECTION_WIDTH)
    directions = weights[..., None] * (vector / distance.clamp_min(1e-4)[:, None])[:, None]
    sums = torch.zeros(size * orbits * orbits, PAIR_FEATURES_SUMMED, device=cell.device)
    sums = sums.index_add_(0, pair, torch.cat([counts, directions.flatten(1)], 1))
    nearest = torch.full((len(sums),), CUTOFF, device=cell.device)
    nearest = nearest.scatter_reduce(0, pair, distance, "amin").view(size, orbits, orbits, 1)
    counts, directions = sums.view(size, orbits, orbits, -1).split(
        [len(SHELLS), 3 * len(DIRECTIONS)], -1
    )
    inverse = torch.linalg.inv(cell)[:, None, None]
    fractional = (directions.unflatten(-1, (-1, 3)) @ inverse).flatten(3)
    return torch.cat([counts.log1p(), directions, 4 * fractional, nearest / 4], -1)


def _gaussians(distance: Tensor, centres: Tensor, width: float) -> Tensor:
    """(E, K) of (E,) distances at K centres."""
    return ((distance[:, None] - centres) / width).square_().neg_().exp_()


class GeometryNetwork(nn.Module):
    """Transformer over orbits and the lattice."""

    def __init__(self, config: NetworkConfig, tables: GroupTables, properties: int) -> None:
        super().__init__()
        width = config.width
        self.tables = tables
        self.conditions = ConditionEmbedding(width, properties)
        self.positions = PositionEmbedding(tables, width, own=False)
        self.elements = ElementEmbedding(width)
        self.coordinates_in = nn.Linear(3 + 18, width)
        self.lattice_in = nn.Linear(6, width)
        self.time_in = nn.Linear(32, width)
        self.pairs_in = nn.Sequential(
            nn.Linear(PAIR_FEATURES, 64), nn.SiLU(), nn.Linear(64, config.pair_width)
        )
        self.lattice_pairs = nn.Parameter(torch.zeros(2, config.pair_width))
        self.transformer = Transformer(config)
        self.coordinates_out = nn.Linear(width, 6)
        self.lattice_out = nn.Linear(width, 6)
        for head in (self.coordinates_out, self.lattice_out):
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)

    def forward(
        self,
        x: GeometryInput,
        features: Tensor,
        sites: Sites,
        template: Template,
    ) -> tuple[Tensor, Tensor]:
        """Corrections in units of what is not known at time t.

        Args:
            x: Beliefs.
            features: (B, N, N, `PAIR_FEATURES`) of them.
            sites: All known.
            template: As the flows have it.

        Returns:
            (B, N, 3) of the coordinates, in fractions of half a cell, and (B, 6) of the lattice;
            padding rows mean nothing.
        """
        positions = self.positions(template.group)
        letters = sites.letters[..., None].expand(-1, -1, positions.shape[-1])
        angles = 2 * math.pi * x.coordinates[..., None] * x.coordinates.new_tensor([1, 2, 4])
        periodic = torch.cat([angles.sin(), angles.cos()], -1).flatten(2)
        orbits = (
            positions.gather(1, letters)
            + self.elements()[sites.species]
            + self.coordinates_in(torch.cat([2 * x.coordinates - 1, periodic], -1))
        )
        lattice = self.lattice_in(x.lattice)
        condition = self.conditions(template) + lattice + self.time_in(waves(x.t, 32))
        h = self.transformer(
            torch.cat([orbits, lattice[:, None]], 1),
            self._pairs(features),
            nn.functional.pad(template.mask, (0, 1), value=True),
            condition,
        )
        fractional, cartesian = self.coordinates_out(h[:, :-1]).float().chunk(2, -1)
        fractional = fractional + 4 * cartesian @ torch.linalg.inv(x.cell)
        return fractional, self.lattice_out(h[:, -1]).float()

    def _pairs(self, features: Tensor) -> Tensor:
        """(B, N + 1, N + 1, pair_width); the lattice token's pairs are learned constants."""
        inner: Tensor = self.pairs_in(features)
        size = inner.shape[1] + 1
        pairs = inner.new_zeros(len(inner), size, size, inner.shape[-1])
        pairs[:, :-1, :-1] = inner
        pairs[:, :-1, -1] = self.lattice_pairs[0].to(inner.dtype)
        pairs[:, -1] = self.lattice_pairs[1].to(inner.dtype)
        return pairs
