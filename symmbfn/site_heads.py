"""Heads on the site network: small networks that tell numbers of a crystal from its sites alone.

Coordinate-free estimates, as by Goodall et al., Sci. Adv. 8, eabn4117 (2022), on the features that
the site network forms of finished sites, so that they cost one pass of that network. The sampler
asks them about several arrangements of sites before any geometry is drawn (`sample.sample`): the
critic (`symmbfn.critic`) for the energy above the hull, the estimator (`symmbfn.estimator`) for the
properties that are asked for.
"""

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from symmbfn.layers import Template

if TYPE_CHECKING:
    from symmbfn.data import Batch, CrystalData
    from symmbfn.model import SymmBFN

WIDTH = 256
SUMMARIES = 3  # of the atoms' features: mean, spread, largest
FEWEST = 200  # crystals to learn from
SHARE_JUDGED = 0.1  # of the chemical systems, held out to tell how good a head is
EPOCHS, LEAST_STEPS = 12, 400
BATCH_SIZE = 256
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.05
DROPOUT = 0.3


class Head(nn.Module):
    """A network on standardised summaries of a crystal's sites.

    Buffers: mean, spread (3 * features,) of the summaries.
    """

    def __init__(self, features: int, width: int, outputs: int = 1) -> None:
        super().__init__()
        self.mean: Tensor
        self.spread: Tensor
        self.register_buffer("mean", torch.zeros(SUMMARIES * features))
        self.register_buffer("spread", torch.ones(SUMMARIES * features))
        self.layers = nn.Sequential(
            nn.Dropout(DROPOUT),
            nn.Linear(SUMMARIES * features, width),
            nn.SiLU(),
            nn.Dropout(DROPOUT),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, outputs),
        )

    def forward(self, summaries: Tensor) -> Tensor:
        """(B, outputs) of `summarise`d features (B, 3 * features), in units of about one."""
        numbers: Tensor = self.layers((summaries - self.mean) / self.spread)
        return numbers

    def learn(self, summaries: Tensor, labels: Tensor, seed: int) -> None:
        """Train with the Huber loss, the learning rate falling to 0 as a cosine.

        Args:
            summaries: (n, 3 * features).
            labels: (n, outputs) in units of about one, NaN where unknown.
            seed: Of the training.
        """
        self.mean.copy_(summaries.mean(0))
        self.spread.copy_(summaries.std(0, correction=0).clamp_min(1e-3))
        batches = math.ceil(len(labels) / BATCH_SIZE)
        epochs = max(EPOCHS, math.ceil(LEAST_STEPS / batches))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for layer in self.layers:
                if isinstance(layer, nn.Linear):
                    layer.reset_parameters()
            optimizer = torch.optim.AdamW(
                self.layers.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY
            )
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * batches)
            self.train()
            for _ in range(epochs):
                for rows in torch.randperm(len(labels)).split(BATCH_SIZE):
                    known = ~labels[rows].isnan()
                    error = (self(summaries[rows]) - labels[rows])[known]
                    loss = nn.functional.huber_loss(error, torch.zeros_like(error))
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    schedule.step()
        self.eval()


def with_head(parent: "SymmBFN", name: Literal["critic", "estimator"]) -> "SymmBFN":
    """A copy of a model with a new, untrained head of that name."""
    from symmbfn.model import SymmBFN

    config = parent.config
    new = replace(config, critic=WIDTH) if name == "critic" else replace(config, estimator=WIDTH)
    model = SymmBFN(new, len(parent.templates)).eval()
    model.known_sites = torch.zeros_like(parent.known_sites)
    kept = {n: v for n, v in parent.state_dict().items() if not n.startswith(name)}
    model.load_state_dict(kept, strict=False)
    return model


def summarise(features: Tensor, atoms: Tensor) -> Tensor:
    """(B, 3 * F) mean, spread and largest of features (B, N, F), of `atoms` (B, N) atoms each."""
    shares = (atoms / atoms.sum(1, keepdim=True))[..., None]
    mean = (features * shares).sum(1)
    spread = ((features - mean[:, None]).square() * shares).sum(1).sqrt()
    largest = features.masked_fill(atoms[..., None] == 0, -torch.inf).amax(1)
    return torch.cat([mean, spread, largest], 1)


@torch.no_grad()
def summaries_of(model: "SymmBFN", data: "CrystalData", size: int = 512) -> Tensor:
    """(n, 3 * F) what heads are told of crystals."""
    order = data.orbits.argsort(stable=True)
    parts = [_summaries(model, data.batch(rows)) for rows in order.split(size)]
    return torch.cat(parts)[order.argsort()]


def _summaries(model: "SymmBFN", batch: "Batch") -> Tensor:
    from symmbfn.data import count_kinds
    from symmbfn.site_network import Sites

    template = Template(
        group=batch.group,
        mask=batch.mask,
        kinds=count_kinds(batch.species, batch.mask),
        properties=batch.properties.new_zeros(len(batch.group), len(model.config.properties)),
    )
    return model.site_summaries(Sites(batch.letters, batch.species), template)


def apart(data: "CrystalData") -> Tensor:
    """(n,) True for crystals to judge a head by.

    Those of chemical systems held out, or every tenth where they would be too few or too many.
    """
    from symmbfn.mixture import held_out

    systems = held_out(data, SHARE_JUDGED)
    if 0.5 * SHARE_JUDGED < systems.float().mean() < 3 * SHARE_JUDGED:
        return systems
    return torch.arange(len(data)) % round(1 / SHARE_JUDGED) == 0
