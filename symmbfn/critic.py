"""The critic: how far above the hull a crystal will come to rest, told from its sites alone.

A coordinate-free estimate, as by Goodall et al., Sci. Adv. 8, eabn4117 (2022), on the features that
the site network forms of finished sites, so that it costs one pass of that network. The sampler
proposes several arrangements of sites for each crystal and keeps the one that the critic likes best
(`sample.sample`), before any geometry is drawn.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from symmbfn.errors import SymmBFNError
from symmbfn.layers import Template

if TYPE_CHECKING:
    from symmbfn.checkpoint import Card
    from symmbfn.data import Batch, CrystalData
    from symmbfn.model import SymmBFN

WIDTH = 256
TARGET = "energy_above_hull"
SUMMARIES = 3  # of the atoms' features: mean, spread, largest
SHARE_JUDGED = 0.1  # of the chemical systems, held out to tell how good the critic is
FEWEST = 200  # crystals to learn from
EPOCHS, LEAST_STEPS = 12, 400
BATCH_SIZE = 256
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.05
DROPOUT = 0.3
LOWEST, HIGHEST = -0.2, 0.6  # eV/atom; what lies further out is as good or bad as these
UNIT = 0.15  # eV/atom, where errors stop to count squared


class Critic(nn.Module):
    """A network on standardised summaries of a crystal's sites.

    Buffers: mean, spread (3 * features,) of the summaries.
    """

    def __init__(self, features: int, width: int) -> None:
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
            nn.Linear(width, 1),
        )

    def forward(self, summaries: Tensor) -> Tensor:
        """(B,) energies above the hull, eV/atom, of `summarise`d features (B, 3 * features)."""
        energies: Tensor = self.layers((summaries - self.mean) / self.spread)[:, 0] * UNIT
        return energies


def summarise(features: Tensor, atoms: Tensor) -> Tensor:
    """(B, 3 * F) mean, spread and largest of features (B, N, F), of `atoms` (B, N) atoms each."""
    shares = (atoms / atoms.sum(1, keepdim=True))[..., None]
    mean = (features * shares).sum(1)
    spread = ((features - mean[:, None]).square() * shares).sum(1).sqrt()
    largest = features.masked_fill(atoms[..., None] == 0, -torch.inf).amax(1)
    return torch.cat([mean, spread, largest], 1)


def add_critic(
    card: "Card",
    data: "CrystalData",
    out: str | Path,
    *,
    replay: "CrystalData | None" = None,
    teacher: "Card | None" = None,
    seed: int = 0,
) -> Path:
    """Write a checkpoint whose critic has learned from crystals; its networks stay as they are.

    Args:
        card: The checkpoint to start from.
        data: Crystals as drawn, with `energy_above_hull` (eV/atom), also of unstable ones.
        out: Folder, which may be that of `card`; what was measured of that one is left out.
        replay: Other crystals. What the critic of the teacher says of them is learned again, so
            that little is forgotten; where it has none, their own `energy_above_hull`, if known.
        teacher: `card` unless given, or the checkpoint that its networks were fine-tuned from.
        seed: Of the training.

    Returns:
        The folder.

    Raises:
        SymmBFNError: fewer than `FEWEST` of the crystals have an energy above the hull.
    """
    from symmbfn.checkpoint import load_model, save_checkpoint
    from symmbfn.model import SymmBFN

    parent = load_model(card)
    model = SymmBFN(replace(parent.config, critic=WIDTH), len(parent.templates)).eval()
    model.known_sites = torch.zeros_like(parent.known_sites)
    weights = {n: v for n, v in parent.state_dict().items() if not n.startswith("critic.")}
    model.load_state_dict(weights, strict=False)
    found = _with_energies(data)
    if len(found) < FEWEST:
        raise SymmBFNError(
            f"{len(found)} crystals with {TARGET}: the critic needs {FEWEST} to learn from"
        )
    replayed = _replayed(parent if teacher is None else load_model(teacher), replay)
    figures = _fit(model, found, replayed, seed)
    return save_checkpoint(out, model, model.state_dict(), {**card.training, "critic": figures})


def _with_energies(data: "CrystalData") -> "CrystalData":
    """The crystals whose energy above the hull is known."""
    from symmbfn.mixture import take

    if TARGET not in data.names:
        return take(data, [])
    return take(data, (~_energies(data).isnan()).nonzero()[:, 0])


def _energies(data: "CrystalData") -> Tensor:
    return data.properties[:, data.names.index(TARGET)].clamp(LOWEST, HIGHEST)


def _replayed(teacher: "SymmBFN", data: "CrystalData | None") -> "CrystalData | None":
    """The crystals with what the teacher's critic says of them, or else what is known."""
    if data is None or teacher.critic is None:
        return None if data is None else _with_energies(data)
    with torch.no_grad():
        energies = teacher.critic(_summaries(teacher, data))
    return replace(data, properties=energies[:, None], names=(TARGET,))


def _fit(
    model: "SymmBFN", data: "CrystalData", replayed: "CrystalData | None", seed: int
) -> dict[str, float | None]:
    """Fit the critic of a model; return how well it does on held-out crystals of the data.

    Those are of chemical systems held out, or every tenth where they would be too few or too many.
    """
    from symmbfn.mixture import held_out

    assert model.critic is not None
    summaries, energies = _summaries(model, data), _energies(data)
    apart = held_out(data, SHARE_JUDGED)
    if not 0.5 * SHARE_JUDGED < apart.float().mean() < 3 * SHARE_JUDGED:
        apart = torch.arange(len(data)) % round(1 / SHARE_JUDGED) == 0
    shown = [summaries[~apart]], [energies[~apart]]
    if replayed is not None and len(replayed):
        shown[0].append(_summaries(model, replayed))
        shown[1].append(_energies(replayed))
    _learn(model.critic, torch.cat(shown[0]), torch.cat(shown[1]), seed)
    with torch.no_grad():
        told = model.critic(summaries[apart])
    correlation = _rank_correlation(told, energies[apart])
    return {
        "crystals": int((~apart).sum()),
        "replayed": 0 if replayed is None else len(replayed),
        "held_out": int(apart.sum()),
        "mean_absolute_error": round(float((told - energies[apart]).abs().mean()), 4),
        "rank_correlation": round(correlation, 3) if math.isfinite(correlation) else None,
    }


@torch.no_grad()
def _summaries(model: "SymmBFN", data: "CrystalData", size: int = 512) -> Tensor:
    order = data.orbits.argsort(stable=True)
    parts = [_summary(model, data.batch(rows)) for rows in order.split(size)]
    return torch.cat(parts)[order.argsort()]


def _summary(model: "SymmBFN", batch: "Batch") -> Tensor:
    from symmbfn.data import count_kinds
    from symmbfn.site_network import Sites

    template = Template(
        group=batch.group,
        mask=batch.mask,
        kinds=count_kinds(batch.species, batch.mask),
        properties=batch.properties.new_full(
            (len(batch.group), len(model.config.properties)), torch.nan
        ),
    )
    return model.site_summaries(Sites(batch.letters, batch.species), template)


def _learn(critic: Critic, summaries: Tensor, energies: Tensor, seed: int) -> None:
    """Train it with the Huber loss, the learning rate falling to 0 as a cosine."""
    critic.mean.copy_(summaries.mean(0))
    critic.spread.copy_(summaries.std(0, correction=0).clamp_min(1e-3))
    batches = math.ceil(len(energies) / BATCH_SIZE)
    epochs = max(EPOCHS, math.ceil(LEAST_STEPS / batches))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for layer in critic.layers:
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()
        optimizer = torch.optim.AdamW(
            critic.layers.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY
        )
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * batches)
        critic.train()
        for _ in range(epochs):
            for rows in torch.randperm(len(energies)).split(BATCH_SIZE):
                error = critic(summaries[rows]) - energies[rows]
                loss = nn.functional.huber_loss(error / UNIT, torch.zeros_like(error))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    critic.eval()


def _rank_correlation(one: Tensor, other: Tensor) -> float:
    """Spearman's, ties in the order in which they stand."""
    ranks = torch.stack([x.argsort(stable=True).argsort() for x in (one, other)]).double()
    return float(torch.corrcoef(ranks)[0, 1]) if ranks.shape[1] > 1 else math.nan
