"""Parts that both networks share: attention layers, embeddings of conditions and of positions."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from symmbfn.elements import NUM_ELEMENTS, element_features
from symmbfn.errors import SymmBFNError
from symmbfn.group_tables import GroupTables

MAX_ORBITS = 20
MAX_KINDS = 10  # distinct elements in a crystal


@dataclass(frozen=True)
class NetworkConfig:
    """Size of a network.

    Attributes:
        width: Of a token.
        layers: Attention layers.
        heads: Of each.
        pair_width: Of what is known about a pair of orbits; 0 where nothing is.
        dropout: Of every layer's output.
    """

    width: int = 256
    layers: int = 5
    heads: int = 8
    pair_width: int = 0
    dropout: float = 0.1

    def __post_init__(self) -> None:
        """Refuse what is no network.

        Raises:
            SymmBFNError: A size or share is out of range.
        """
        if self.heads < 1 or self.width < 1 or self.width % self.heads:
            raise SymmBFNError(f"width {self.width} is no multiple of {self.heads} heads")
        if self.layers < 1 or self.pair_width < 0 or not 0 <= self.dropout < 1:
            raise SymmBFNError("a network needs layers >= 1, pair_width >= 0, 0 <= dropout < 1")


@dataclass
class Template:
    """What is drawn before the flows start.

    Attributes:
        group: (B,) space group - 1.
        mask: (B, N), True for real orbits.
        kinds: (B,) number of distinct elements, 0 where left open.
        properties: (B, P) targets, standardised, NaN where left open.
    """

    group: Tensor
    mask: Tensor
    kinds: Tensor
    properties: Tensor

    def take(self, index: Tensor) -> "Template":
        """Some of the crystals, (K,) indices, in that order."""
        return Template(**{name: value[index] for name, value in vars(self).items()})


class Dropout(nn.Module):
    """Drops the same features of all tokens of a crystal; random numbers cost time on a CPU."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, width) with features dropped, in training."""
        if not self.training or self.p == 0:
            return x
        kept = torch.rand(len(x), 1, x.shape[2], device=x.device) >= self.p
        return x * (kept.to(x.dtype) / (1 - self.p))


class Layer(nn.Module):
    """Attention with pair bias and pair values, then an MLP; both modulated by the conditions."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        width, self.heads, pairs = config.width, config.heads, config.pair_width
        self.modulation = nn.Parameter(torch.zeros(6, width))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.qkv = nn.Linear(width, 3 * width)
        self.pair_bias = nn.Linear(pairs, config.heads) if pairs else None
        self.out = nn.Linear(width + config.heads * pairs, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width),
            nn.GELU(approximate="tanh"),
            nn.Linear(4 * width, width),
        )
        self.dropout = Dropout(config.dropout)

    def forward(
        self, h: Tensor, pairs: Tensor | None, blocked: Tensor, modulation: Tensor
    ) -> Tensor:
        """One layer.

        Args:
            h: (B, T, width) tokens.
            pairs: (B, T, T, pair_width).
            blocked: (B, 1, 1, T), 0 for real tokens and -inf-like for padding.
            modulation: (B, 6, width) shifts, scales and gates, the same for all layers.
        """
        batch, tokens, width = h.shape
        shift1, scale1, gate1, shift2, scale2, gate2 = (modulation + self.modulation)[
            :, None
        ].unbind(2)
        x = self.norm(h) * (1 + scale1) + shift1
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-1, -2) / math.sqrt(width // self.heads) + blocked
        if pairs is not None and self.pair_bias is not None:
            scores = scores + self.pair_bias(pairs).permute(0, 3, 1, 2)
        attention = scores.softmax(-1)
        values = (attention @ v).transpose(1, 2).flatten(2)
        if pairs is not None:
            seen = (attention.permute(0, 2, 1, 3) @ pairs).flatten(2)
            values = torch.cat([values, seen], -1)
        h = h + gate1 * self.dropout(self.out(values))
        x = self.norm(h) * (1 + scale2) + shift2
        h = h + gate2 * self.dropout(self.mlp(x))
        return h


class Transformer(nn.Module):
    """Layers over the orbits of a crystal, all modulated by one vector of conditions."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.modulation = nn.Sequential(
            nn.SiLU(),
            nn.Linear(config.width, config.width),
            nn.SiLU(),
            nn.Linear(config.width, 6 * config.width),
        )
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        last = self.modulation[-1]
        assert isinstance(last, nn.Linear)
        nn.init.normal_(last.weight, std=0.01)
        nn.init.zeros_(last.bias)

    def forward(self, h: Tensor, pairs: Tensor | None, mask: Tensor, condition: Tensor) -> Tensor:
        """(B, T, width) tokens, their pairs, (B, T) mask and (B, width) conditions → tokens."""
        modulation = self.modulation(condition).unflatten(1, (6, -1))
        blocked = (~mask).to(h.dtype)[:, None, None] * -1e4
        for layer in self.layers:
            h = layer(h, pairs, blocked, modulation)
        normed: Tensor = self.norm(h)
        return normed


class ConditionEmbedding(nn.Module):
    """What is known of the crystal as a whole: group, numbers of orbits and elements, targets."""

    def __init__(self, width: int, properties: int) -> None:
        super().__init__()
        self.group = nn.Embedding(230, width)
        self.orbits = nn.Embedding(MAX_ORBITS + 1, width)
        self.kinds = nn.Embedding(MAX_KINDS + 1, width)  # 0 is the null embedding
        self.properties = nn.ModuleList(
            nn.Sequential(nn.Linear(16, width), nn.SiLU(), nn.Linear(width, width))
            for _ in range(properties)
        )
        self.null = nn.Parameter(torch.zeros(properties, width))

    def forward(self, template: Template) -> Tensor:
        """(B, width)."""
        condition = (
            self.group(template.group)
            + self.orbits(template.mask.sum(1))
            + self.kinds(template.kinds)
        )
        for index, embed in enumerate(self.properties):
            value = template.properties[:, index]
            known = embed(waves(value.nan_to_num(), 16))
            condition = condition + torch.where(value.isnan()[:, None], self.null[index], known)
        embedded: Tensor = condition
        return embedded


class PositionEmbedding(nn.Module):
    """Wyckoff positions: by site symmetry and shape, so that groups share strength.

    With `own` each position has a vector of its own as well.
    """

    def __init__(self, tables: GroupTables, width: int, *, own: bool) -> None:
        super().__init__()
        self.tables = tables
        self.features = nn.Linear(tables.features.shape[1], width)
        self.own = nn.Parameter(torch.zeros(len(tables.features), width)) if own else None

    def forward(self, group: Tensor) -> Tensor:
        """(B, 27, width) vectors of all positions of the groups (B,)."""
        vectors: Tensor = self.features(self.tables.features)
        if self.own is not None:
            vectors = vectors + self.own
        return vectors[self.tables.position[group]]


class ElementEmbedding(nn.Module):
    """Elements: by their place in the periodic table, plus what is their own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        table = torch.from_numpy(element_features()).float()
        self.table: Tensor
        self.register_buffer("table", table, persistent=False)
        self.features = nn.Linear(table.shape[1], width)
        self.own = nn.Parameter(torch.zeros(NUM_ELEMENTS, width))

    def forward(self) -> Tensor:
        """(100, width)."""
        vectors: Tensor = self.features(self.table) + self.own
        return vectors


def waves(value: Tensor, size: int) -> Tensor:
    """(B, size) value itself and sines and cosines of it at rising frequencies."""
    frequencies = torch.arange(1, size // 2, device=value.device) * (math.pi / 4)
    angles = value[:, None] * frequencies
    return torch.cat([value[:, None], value[:, None] ** 2, angles.sin(), angles.cos()], 1)


def one_hot_or_zero(classes: Tensor, size: int) -> Tensor:
    """(..., size) one-hot of classes; the class `size` itself, hidden, becomes zeros."""
    return F.one_hot(classes, size + 1)[..., :size].float()
