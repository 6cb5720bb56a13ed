"""Trains the next checkpoint on a frozen training set, without Prefect; stopped, it goes on."""

from __future__ import annotations

import math
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from db import training
from db.session import Database, open_database
from db.training import Member
from flows import inputs, progress, training_set
from flows.errors import ConfigError
from flows.retrain_settings import RetrainConfig
from flows.rows import verdict_basis

if TYPE_CHECKING:
    from torch import Tensor

    from symmbfn.checkpoint import Card
    from symmbfn.data import CrystalData

HELD_OUT = "held-out.safetensors"
"""Beside a checkpoint: what it is judged by."""
REPLAY = "replay.safetensors"
WARMUP = 0.1
"""Share of the steps, at most, in which the learning rate rises."""


@dataclass(frozen=True)
class Sets:
    """What a retraining learns from and is judged by.

    Attributes:
        base: Replayed crystals.
        new: Generated ones.
        held_out: Crystals of neither, and like none of them.
    """

    base: CrystalData
    new: CrystalData
    held_out: CrystalData


def train(config: RetrainConfig, training_set_id: int) -> int:
    """Fine-tune the parent on a training set, unless that was done; return the checkpoint's row.

    Args:
        config: The settings.
        training_set_id: Row of the frozen set.

    Raises:
        ConfigError: Nothing is left to train on, or to judge by.
        SymmBFNError: The parent or a file is gone or damaged.
    """
    from symmbfn.checkpoint import load_card
    from symmbfn.estimator import add_estimator, enough
    from symmbfn.replay import Origin, finish

    database = open_database(config.campaign.database, create=False)
    with database.session(write=False) as session:
        row = training.training_set(session, training_set_id)
        done = training.trained(session, training_set_id)
        if done is not None:
            return done.id
        members = list(training.members(session, [training_set_id]))
    parent = load_card(row.recipe["parent"]["name"])
    folder = Path(config.folder).absolute() / row.key
    work = folder / "training"
    work.mkdir(parents=True, exist_ok=True)
    judged = _judged(config, row.recipe.get("judged", {}).get("newest", 0), database)
    sets = _sets(config, parent, members, work)
    trained = parent if config.learn == "critic" else _fit(config, parent, sets, work)
    sets.held_out.save(folder / HELD_OUT)
    base = None if config.base is None else sets.base
    origin = Origin(parent, base, sets.new, config.template_share)
    made = load_card(finish(trained, origin, folder))
    began = time.monotonic()
    if judged is not None:
        made = _add_critic(config, made, parent, sets, judged)
    if config.learn != "critic" and base is not None and enough(base, made.properties):
        made = load_card(add_estimator(made, base, seed=config.seed))
    networks = {} if config.learn == "critic" else trained.training
    minutes = float(str(networks.get("minutes_spent", 0))) + (time.monotonic() - began) / 60
    with database.session() as session:
        stored = training.add_checkpoint(
            session,
            sha256=made.sha256,
            name=made.name,
            parent=(parent.sha256, parent.name),
            training_set_id=training_set_id,
            metrics={
                "training": {
                    **networks,
                    "minutes_spent": round(minutes, 2),
                    "members": len(members),
                    "critic": made.training.get("critic"),
                }
            },
        )
    shutil.rmtree(work)
    return stored.id


def _fit(config: RetrainConfig, parent: Card, sets: Sets, work: Path) -> Card:
    """Train on replayed and generated crystals; a training that was stopped goes on in `work`."""
    import torch

    from symmbfn.checkpoint import load_card
    from symmbfn.mixture import join, repeated, take
    from symmbfn.train import train as run
    from symmbfn.train_config import TrainConfig

    copies = repeated(len(sets.new), len(sets.base), config.share, config.seed)
    mixed = join([sets.base, take(sets.new, copies)], parent.properties)
    share = len(copies) / len(mixed)
    steps = _steps(config, len(mixed), share, len(sets.new))
    bar = progress.current()
    bar.stage("train", steps * config.batch_size)
    settings = TrainConfig(
        out=work,
        minutes=config.minutes,
        max_steps=steps,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        warmup=max(1, min(200, round(WARMUP * steps))),
        seed=config.seed,
        report_every=5.0,
        save_every=30.0,
        device="cuda" if torch.cuda.is_available() else "cpu",
        model=parent.model,
        start_from=parent.path,
    )
    notes = {
        "data": config.base or "the parent's own samples",
        "replayed": len(sets.base),
        "generated": len(sets.new),
        "generated_share": round(share, 4),
    }
    folder = run(
        settings, mixed, None, lambda told: bar.reach(told.step * config.batch_size), notes
    )
    return load_card(folder)


def _judged(config: RetrainConfig, newest: int, database: Database) -> CrystalData | None:
    """Load what the critic learns from: crystals as drawn, with their energies above the hull.

    Args:
        config: The settings.
        newest: The last candidate that counts.
        database: Where they are.

    Returns:
        None where the critic is left as it is, because it is not to learn or there is too little
        and the networks learn anyway.
    """
    from symmbfn.critic import TARGET
    from symmbfn.data import preprocess
    from symmbfn.site_heads import FEWEST

    if config.learn == "generator":
        return None
    campaign = config.campaign
    potential, hull, known = inputs.check_stability(campaign)
    with database.session() as session:
        basis = verdict_basis(session, campaign, potential, hull, known)
    with database.session(write=False) as session:
        found = [
            one
            for one in training.looked_at(session, basis, newest)
            if one.energy_above_hull >= campaign.thresholds.suspect
            and training_set.allowed(one.structure, config)
        ]
    bar = progress.current()
    bar.stage("energies", len(found))
    data = None
    if found:
        energies = {TARGET: [one.energy_above_hull for one in found]}
        structures = [one.structure for one in found]
        data, _ = preprocess(structures, energies, views=1, on_crystal=bar.advance)
    if data is not None and len(data) >= FEWEST:
        return data
    if config.learn == "critic":
        raise ConfigError(
            f"the database knows the energy of {0 if data is None else len(data)} crystals above "
            f"hull {hull.name}, by potential {potential.name}, and a critic needs {FEWEST}; run "
            f"`symmbfn discover -n {FEWEST}`"
        )
    return None


def _add_critic(
    config: RetrainConfig, made: Card, parent: Card, sets: Sets, judged: CrystalData
) -> Card:
    """Fit the critic of a new checkpoint; what the parent's knew is replayed with the base."""
    from symmbfn.checkpoint import load_card
    from symmbfn.critic import add_critic
    from symmbfn.data import CrystalData

    replay: CrystalData | None = sets.base
    if not parent.model.critic:  # the base's own energies, which `sets.base` may lack
        replay = None if config.base is None else CrystalData.load(config.base)
    folder = add_critic(made, judged, made.path, replay=replay, teacher=parent, seed=config.seed)
    return load_card(folder)


def _steps(config: RetrainConfig, mixed: int, share: float, new: int) -> int:
    """Count the steps that show every new crystal `max_passes` times."""
    return max(1, math.ceil(config.max_passes * new / (min(config.batch_size, mixed) * share)))


def _sets(config: RetrainConfig, card: Card, members: list[Member], work: Path) -> Sets:
    """Make the three sets; what is drawn for them is kept for a run that goes on."""
    from symmbfn.data import CrystalData, preprocess
    from symmbfn.mixture import held_out, identities, join, take

    columns = {n: [one.properties.get(n, math.nan) for one in members] for n in card.properties}
    new, _ = preprocess([one.structure for one in members], columns, seed=config.seed)
    base = _base(config, card, len(new), work)
    judge: CrystalData
    if config.held_out is not None:
        judge = join([CrystalData.load(config.held_out)], card.properties)
        known = set(identities(judge))
        base, new = (
            take(data, [i for i, one in enumerate(identities(data)) if one not in known])
            for data in (base, new)
        )
    else:
        (new, new_apart), (base, base_apart) = (
            _split(data, held_out(data, config.held_out_share)) for data in (new, base)
        )
        judge = join([new_apart, base_apart], card.properties)
    for name, data in (("generated", new), ("replayed", base), ("held-out", judge)):
        if not len(data):
            raise ConfigError(
                f"no {name} crystal is left once what is held out is set apart; give --held-out "
                "with other crystals, or more to train on"
            )
    return Sets(base, new, judge)


def _split(data: CrystalData, apart: Tensor) -> tuple[CrystalData, CrystalData]:
    from symmbfn.mixture import take

    return take(data, (~apart).nonzero()[:, 0]), take(data, apart.nonzero()[:, 0])


def _base(config: RetrainConfig, card: Card, new: int, work: Path) -> CrystalData:
    """Load the base data, or draw the parent's samples that stand for them."""
    from symmbfn.data import CrystalData
    from symmbfn.mixture import join
    from symmbfn.replay import self_replay

    if config.base is not None:
        return join([CrystalData.load(config.base)], card.properties)
    file = work / REPLAY
    if not file.exists():
        n = max(config.replay, math.ceil(new * (1 - config.share) / config.share))
        progress.current().stage("replay", n)
        self_replay(card, n, config.seed, progress.current().advance).save(file)
    return CrystalData.load(file)
