"""The network only: a transformer over orbits that sees the symmetry-expanded distances.

Tokens are the N orbits of a crystal and one more for its lattice. Each attention layer has a bias
from pair features of orbit i and all symmetry images of orbit j (`pair_features`), and adds the
attended pair features to the values. Time, space group, N and the conditions enter through
adaptive layer norms.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from symmbfn.wyckoff import MAX_LETTERS, MAX_OPERATIONS, SITE_SYMBOLS, space_group

NUM_ELEMENTS = 100  # classes: atomic numbers 1-100
MAX_ORBITS = 20
MAX_KINDS = 10  # distinct elements in a crystal
NUM_SHELLS = 16
SHELL_WIDTH = 0.5  # Å, first shell at 0
PAIR_FEATURES = NUM_SHELLS + 7


@dataclass(frozen=True)
class NetworkConfig:
    """Size of the network."""

    width: int = 256
    layers: int = 6
    heads: int = 8
    pair_width: int = 32
    dropout: float = 0.1
    properties: int = 0


class GroupTables(nn.Module):
    """The tables of `symmbfn.wyckoff` for all groups as padded tensors, indexed by group - 1.

    Buffers: operations (230, 192, 3, 4) as [R | t]; num_operations (230,); legal (230, 27);
    projectors (230, 27, 3, 4) as [A | b]; multiplicities (230, 27), of the primitive cell;
    freedom (230, 27); position (230, 27), row of `features` (0 where illegal); features (P, F).
    """

    operations: Tensor
    num_operations: Tensor
    legal: Tensor
    projectors: Tensor
    multiplicities: Tensor
    freedom: Tensor
    position: Tensor
    features: Tensor

    def __init__(self) -> None:
        super().__init__()
        operations = torch.zeros(230, MAX_OPERATIONS, 3, 4)
        projectors = torch.zeros(230, MAX_LETTERS, 3, 4)
        counts = torch.zeros(230, dtype=torch.long)
        multiplicities = torch.zeros(230, MAX_LETTERS)
        freedom = torch.zeros(230, MAX_LETTERS, dtype=torch.long)
        position = torch.zeros(230, MAX_LETTERS, dtype=torch.long)
        features = [torch.zeros(1, 15 * len(SITE_SYMBOLS) + 12 + 6)]
        rows = 1
        for g in range(230):
            group = space_group(g + 1)
            m, p = len(group.rotations), group.num_positions
            counts[g] = m
            operations[g, :m, :, :3] = torch.from_numpy(group.rotations)
            operations[g, :m, :, 3] = torch.from_numpy(group.translations)
            projectors[g, :p, :, :3] = torch.from_numpy(group.projectors)
            projectors[g, :p, :, 3] = torch.from_numpy(group.offsets)
            multiplicities[g, :p] = torch.from_numpy(group.primitive_multiplicities).float()
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
            "num_operations": counts,
            "legal": position > 0,
            "projectors": projectors,
            "multiplicities": multiplicities,
            "freedom": freedom,
            "position": position,
            "features": torch.cat(features),
        }.items():
            self.register_buffer(name, value, persistent=False)


@dataclass
class NetworkInput:
    """Beliefs at time t about B crystals of at most N orbits.

    Attributes:
        t: (B,) time in [0, 1].
        group: (B,) space group - 1.
        mask: (B, N), True for real orbits.
        kinds: (B,) number of distinct elements, 0 where unknown.
        properties: (B, P) standardised targets, NaN where unknown.
        coordinates: (B, N, 3) estimate of the fractional coordinates, and
        projected: (B, N, 3) the same on the expected Wyckoff positions.
        lattice: (B, 6) standardised estimate, and
        cell: (B, 3, 3) the lattice vectors it stands for, Å, rows.
        elements: (B, N, 100) probabilities.
        letters: (B, N, 27) probabilities over the legal Wyckoff positions.
    """

    t: Tensor
    group: Tensor
    mask: Tensor
    kinds: Tensor
    properties: Tensor
    coordinates: Tensor
    projected: Tensor
    lattice: Tensor
    cell: Tensor
    elements: Tensor
    letters: Tensor


@dataclass
class NetworkOutput:
    """Raw outputs: coordinates (B, N, 3), lattice (B, 6), logits (B, N, 100) and (B, N, 27)."""

    coordinates: Tensor
    lattice: Tensor
    elements: Tensor
    letters: Tensor


@torch.no_grad()
def pair_features(
    coordinates: Tensor, cell: Tensor, operations: Tensor, num_operations: Tensor, weight: Tensor
) -> Tensor:
    """Where the images of orbit j lie as seen from the representative of orbit i.

    Args:
        coordinates: (B, N, 3) fractions.
        cell: (B, 3, 3) lattice vectors, rows, Å.
        operations: (B, M, 3, 4) of each crystal's group, zero padded.
        num_operations: (B,) how many of the M are real.
        weight: (B, N) atoms of each orbit in the conventional cell.

    Returns:
        (B, N, N, `PAIR_FEATURES`): atoms in 16 distance shells (log), and the distance, Cartesian
        and fractional vector to the nearest image that is not i itself. One lattice image (the
        nearest in fractional coordinates) is counted for each operation.
    """
    images = torch.einsum("bmij,bnj->bmni", operations[..., :3], coordinates)
    images = images + operations[:, :, None, :, 3]
    vectors = images[:, :, None] - coordinates[:, None, :, None]  # (B, M, i, j, 3)
    vectors = vectors - vectors.round()
    cartesian = torch.einsum("bmijx,bxy->bmijy", vectors, cell)
    distances = cartesian.square().sum(-1).clamp_min(1e-8).sqrt()

    real = torch.arange(operations.shape[1], device=cell.device) < num_operations[:, None]
    share = real / num_operations[:, None]
    density = torch.stack(
        [
            torch.einsum("bm,bmij->bij", share, _gaussian(distances, shell * SHELL_WIDTH))
            for shell in range(NUM_SHELLS)
        ],
        dim=-1,
    )
    density = density * weight[:, None, :, None]

    same = torch.eye(coordinates.shape[1], dtype=torch.bool, device=cell.device)
    hidden = ~real[:, :, None, None] | (same & (distances < 0.5))
    reach = distances.masked_fill(hidden, 20.0)
    nearest, which = reach.min(1)
    index = which[:, None, ..., None].expand(-1, 1, -1, -1, 3)
    direction = cartesian.gather(1, index)[:, 0] / nearest[..., None]
    fraction = vectors.gather(1, index)[:, 0]
    near = torch.cat([nearest[..., None] / 4, direction, fraction], dim=-1)
    return torch.cat([density.log1p(), near], dim=-1)


def _gaussian(distances: Tensor, centre: float) -> Tensor:
    return ((distances - centre) / SHELL_WIDTH).square_().neg_().exp_()


class Layer(nn.Module):
    """Attention with pair bias and pair values, then an MLP; both gated by the conditions."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        width, self.heads = config.width, config.heads
        self.modulation = nn.Linear(width, 6 * width)
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.qkv = nn.Linear(width, 3 * width)
        self.pair_bias = nn.Linear(config.pair_width, config.heads)
        self.out = nn.Linear(width + config.heads * config.pair_width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width),
            nn.GELU(approximate="tanh"),
            nn.Linear(4 * width, width),
        )
        self.dropout = nn.Dropout(config.dropout)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, h: Tensor, pairs: Tensor, blocked: Tensor, condition: Tensor) -> Tensor:
        """One layer.

        Args:
            h: (B, T, width) tokens.
            pairs: (B, T, T, pair_width).
            blocked: (B, 1, 1, T), 0 for real tokens and -inf-like for padding.
            condition: (B, width).
        """
        batch, tokens, width = h.shape
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition)[:, None].chunk(
            6, dim=-1
        )
        x = self.norm(h) * (1 + scale1) + shift1
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-1, -2) / math.sqrt(width // self.heads)
        scores = scores + self.pair_bias(pairs).permute(0, 3, 1, 2) + blocked
        attention = scores.softmax(-1)
        values = (attention @ v).transpose(1, 2).flatten(2)
        attended = (attention.permute(0, 2, 1, 3) @ pairs).flatten(2)
        h = h + gate1 * self.dropout(self.out(torch.cat([values, attended], -1)))
        x = self.norm(h) * (1 + scale2) + shift2
        h = h + gate2 * self.dropout(self.mlp(x))
        return h


class Network(nn.Module):
    """Maps beliefs to estimates; see the module's first lines."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.bf16 = False
        width = config.width
        self.tables = GroupTables()
        self.element_in = nn.Linear(NUM_ELEMENTS, width)
        self.letter_features = nn.Linear(self.tables.features.shape[1], width)
        self.letter_embedding = nn.Embedding(len(self.tables.features), width, padding_idx=0)
        self.coordinate_in = nn.Linear(6 + 18, width)
        self.lattice_in = nn.Linear(6, width)
        self.lattice_token = nn.Parameter(torch.zeros(width))
        self.pair_in = nn.Sequential(
            nn.Linear(PAIR_FEATURES, 64), nn.SiLU(), nn.Linear(64, config.pair_width)
        )
        self.lattice_pair = nn.Parameter(torch.zeros(2, config.pair_width))

        self.time_in = nn.Linear(32, width)
        self.group_in = nn.Embedding(230, width)
        self.orbits_in = nn.Embedding(MAX_ORBITS + 1, width)
        self.kinds_in = nn.Embedding(MAX_KINDS + 1, width)  # 0 is the null embedding
        self.condition = nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.property_in = nn.ModuleList(
            nn.Sequential(nn.Linear(16, width), nn.SiLU(), nn.Linear(width, width))
            for _ in range(config.properties)
        )
        self.property_null = nn.Parameter(torch.zeros(config.properties, width))

        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)
        self.coordinate_out = nn.Linear(width, 3)
        self.lattice_out = nn.Linear(width, 6)
        self.element_out = nn.Linear(width, NUM_ELEMENTS)
        self.letter_out = nn.Linear(width, width)
        nn.init.zeros_(self.letter_embedding.weight)
        for head in (self.coordinate_out, self.lattice_out, self.element_out, self.letter_out):
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)

    def forward(self, x: NetworkInput) -> NetworkOutput:
        """Estimates from beliefs; padding rows of the output mean nothing.

        With `bf16` set, matrix products run in bfloat16, but never those of the geometry.
        """
        features = self._pair_features(x)
        with torch.autocast(x.t.device.type, torch.bfloat16, enabled=self.bf16):
            return self._transform(x, features)

    def use_bf16(self) -> None:
        """Run in bfloat16 from now on, with the weights themselves cast once; not for training."""
        self.bf16 = True
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                layer.bfloat16()

    def _transform(self, x: NetworkInput, features: Tensor) -> NetworkOutput:
        tables = self.tables
        position = self.letter_features(tables.features) + self.letter_embedding.weight
        letters = position[tables.position[x.group]]  # (B, 27, width)

        angles = 2 * math.pi * x.projected[..., None] * x.projected.new_tensor([1, 2, 4])
        waves = torch.cat([angles.sin(), angles.cos()], -1).flatten(2)
        points = torch.cat([2 * x.coordinates - 1, 2 * x.projected - 1, waves], -1)
        orbits = self.element_in(x.elements) + x.letters @ letters + self.coordinate_in(points)
        lattice = self.lattice_token + self.lattice_in(x.lattice)
        h = torch.cat([orbits, lattice[:, None]], 1)

        condition = self._condition(x, lattice)
        pairs = self._pairs(features)
        blocked = F.pad((~x.mask).to(h.dtype) * -1e4, (0, 1))[:, None, None]
        for layer in self.layers:
            h = layer(h, pairs, blocked, condition)
        h = self.norm(h)
        orbits = h[:, :-1]
        return NetworkOutput(
            coordinates=self.coordinate_out(orbits).float(),
            lattice=self.lattice_out(h[:, -1]).float(),
            elements=self.element_out(orbits).float(),
            letters=(self.letter_out(orbits) @ letters.transpose(1, 2)).float()
            / math.sqrt(self.config.width),
        )

    def _condition(self, x: NetworkInput, lattice: Tensor) -> Tensor:
        condition = (
            self.time_in(_waves(x.t, 32))
            + self.group_in(x.group)
            + self.orbits_in(x.mask.sum(1))
            + self.kinds_in(x.kinds)
            + lattice
        )
        for index, embed in enumerate(self.property_in):
            value = x.properties[:, index]
            known = embed(_waves(value.nan_to_num(), 16))
            condition = condition + torch.where(
                value.isnan()[:, None], self.property_null[index], known
            )
        embedded: Tensor = self.condition(condition)
        return embedded

    def _pair_features(self, x: NetworkInput) -> Tensor:
        tables = self.tables
        counts = tables.num_operations[x.group]
        operations = tables.operations[x.group, : int(counts.max())]
        lattice_points = counts / tables.multiplicities[x.group].max(1).values
        atoms = torch.einsum("bnl,bl->bn", x.letters, tables.multiplicities[x.group])
        return pair_features(
            x.projected, x.cell, operations, counts, atoms * lattice_points[:, None]
        )

    def _pairs(self, features: Tensor) -> Tensor:
        """(B, N + 1, N + 1, pair_width); the lattice token's pairs are learned constants."""
        inner: Tensor = self.pair_in(features)
        size = inner.shape[1] + 1
        pairs = inner.new_zeros(len(inner), size, size, inner.shape[-1])
        pairs[:, :-1, :-1] = inner
        pairs[:, :-1, -1] = self.lattice_pair[0].to(inner.dtype)
        pairs[:, -1] = self.lattice_pair[1].to(inner.dtype)
        return pairs


def _waves(value: Tensor, size: int) -> Tensor:
    """(B, size) value itself and sines and cosines of it at rising frequencies."""
    frequencies = torch.arange(1, size // 2, device=value.device) * (math.pi / 4)
    angles = value[:, None] * frequencies
    return torch.cat([value[:, None], value[:, None] ** 2, angles.sin(), angles.cos()], 1)
