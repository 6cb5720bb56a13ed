"""The site network: which element sits on which Wyckoff position, orbit by orbit.

It sees a crystal in which some of the positions and elements are still hidden, and gives the
probabilities of the hidden ones. Geometry does not exist yet.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from symmbfn.elements import NUM_ELEMENTS
from symmbfn.group_tables import GroupTables
from symmbfn.layers import (
    ConditionEmbedding,
    ElementEmbedding,
    NetworkConfig,
    PositionEmbedding,
    Template,
    Transformer,
    one_hot_or_zero,
)
from symmbfn.wyckoff import MAX_LETTERS

HIDDEN_LETTER, HIDDEN_ELEMENT = MAX_LETTERS, NUM_ELEMENTS


@dataclass
class Sites:
    """Discrete variables of B crystals of at most N orbits.

    Attributes:
        letters: (B, N) Wyckoff positions, 0 = a, `HIDDEN_LETTER` where not known yet.
        species: (B, N) atomic number - 1, `HIDDEN_ELEMENT` where not known yet.
    """

    letters: Tensor
    species: Tensor

    def take(self, index: Tensor) -> "Sites":
        """Some of the crystals, (K,) indices, in that order."""
        return Sites(self.letters[index], self.species[index])

    def codes(self, group: Tensor, mask: Tensor) -> Tensor:
        """(B,) int64 hashes of the group and, in no order, of which element is on which position.

        Args:
            group: (B,) space group - 1.
            mask: (B, N), True for real orbits.
        """
        orbits = _scrambled(self.letters * NUM_ELEMENTS + self.species + 1) * mask
        return _scrambled(orbits.sum(1) + group)


class SiteNetwork(nn.Module):
    """Transformer over orbits."""

    def __init__(self, config: NetworkConfig, tables: GroupTables, properties: int) -> None:
        super().__init__()
        width = config.width
        self.tables = tables
        self.conditions = ConditionEmbedding(width, properties)
        self.positions = PositionEmbedding(tables, width, own=True)
        self.elements = ElementEmbedding(width)
        self.elements_out = ElementEmbedding(width)
        self.hidden = nn.Parameter(torch.zeros(2, width))
        self.transformer = Transformer(config)
        self.letter_out = nn.Linear(width, width)
        self.element_out = nn.Linear(width, width)
        self.element_bias = nn.Parameter(torch.zeros(NUM_ELEMENTS))

    def forward(self, sites: Sites, template: Template) -> tuple[Tensor, Tensor]:
        """Log-probabilities of positions (B, N, 27), legal ones only, and elements (B, N, 100)."""
        positions = self.positions(template.group)
        h = self._features(sites, template, positions)
        scale = 1 / math.sqrt(h.shape[-1])
        letter_logits = (self.letter_out(h) @ positions.transpose(1, 2)).float() * scale
        element_logits = (self.element_out(h) @ self.elements_out().T).float() * scale
        legal = self.tables.legal[template.group][:, None]
        return (
            letter_logits.masked_fill(~legal, -torch.inf).log_softmax(-1),
            (element_logits + self.element_bias).log_softmax(-1),
        )

    def features(self, sites: Sites, template: Template) -> Tensor:
        """(B, N, width) what the network makes of each orbit."""
        return self._features(sites, template, self.positions(template.group))

    def _features(self, sites: Sites, template: Template, positions: Tensor) -> Tensor:
        letters = one_hot_or_zero(sites.letters, MAX_LETTERS).to(positions.dtype)
        species = one_hot_or_zero(sites.species, NUM_ELEMENTS).to(positions.dtype)
        h = (
            letters @ positions
            + species @ self.elements()
            + (sites.letters == HIDDEN_LETTER)[..., None] * self.hidden[0]
            + (sites.species == HIDDEN_ELEMENT)[..., None] * self.hidden[1]
        )
        features: Tensor = self.transformer(h, None, template.mask, self.conditions(template))
        return features


def _scrambled(x: Tensor) -> Tensor:
    """Spread integers over 64 bits (the finaliser of SplitMix64)."""
    x = x * -0x61C8864680B583EB
    x = (x ^ (x >> 30 & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47
    x = (x ^ (x >> 27 & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15
    return x ^ (x >> 31 & 0x1FFFFFFFF)
