"""The gate: a new checkpoint is promoted only where it is no worse than its parent.

Both are asked for a fresh sample, relaxed and judged alike in campaigns of their own, and both
are measured on held-out crystals. What a checkpoint, or one of its ancestors, was trained on does
not count as novel for it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from db import training
from db.session import Database, open_database
from db.training import Made
from flows import inputs
from flows.checkpoints import card_of
from flows.report_intervals import Z, difference_interval
from flows.retrain_settings import GateSettings, RetrainConfig
from flows.rows import relax_settings
from flows.sample_figures import Figures, Mean, mean_correction, measure
from flows.settings import CampaignConfig, FunnelSettings, derived_seed
from flows.stage_retrain import HELD_OUT


def fresh_samples(config: RetrainConfig, checkpoint_id: int) -> list[CampaignConfig]:
    """Return the campaigns that draw the samples of parent and child; none once it is decided."""
    database = open_database(config.campaign.database, create=False)
    with database.session(write=False) as session:
        line = training.ancestry(session, checkpoint_id)[:2]
    child = line[0]
    if child.is_decided:
        return []
    return [_sample(config, checkpoint) for checkpoint in line[::-1]]


def _sample(config: RetrainConfig, checkpoint: Made) -> CampaignConfig:
    """Return the campaign of a checkpoint's fresh sample: the same for the same settings and basis.

    A sample is relaxed whole, whatever the budget of other campaigns, so that none of its figures
    is a lower bound.
    """
    whole = config.campaign.model_copy(update={"n": config.gate.n, "funnel": FunnelSettings()})
    judged_by = [inputs.judged_by(whole), relax_settings(whole)]
    settings = json.dumps([whole.identity(), *judged_by], sort_keys=True)
    key = f"gate-{checkpoint.sha256[:12]}-{hashlib.sha256(settings.encode()).hexdigest()[:8]}"
    chosen = {"checkpoint": card_of(checkpoint).name, "seed": derived_seed(key), "key": key}
    return whole.model_copy(update=chosen)


def decide(config: RetrainConfig, checkpoint_id: int) -> None:
    """Promote a checkpoint, or reject it with the reasons; its figures are kept either way."""
    samples = fresh_samples(config, checkpoint_id)
    if not samples:
        return
    database = open_database(config.campaign.database, create=False)
    with database.session(write=False) as session:
        child, parent = training.ancestry(session, checkpoint_id)[:2]
        members = training.trained_on(session, checkpoint_id)
    before, after = (
        _measure(database, sample, checkpoint)
        for sample, checkpoint in zip(samples, (parent, child), strict=True)
    )
    losses = _losses(parent, child)
    reasons = worse(before, after, losses, config.gate)
    gate = {
        "held_out": losses,
        "sample": plain(after),
        "parent_sample": plain(before),
        "training_correction": plain(mean_correction(members)),
        "settings": config.gate.model_dump(mode="json"),
    }
    with database.session() as session:
        training.judge(session, checkpoint_id, gate, "; ".join(reasons) or None)


def plain(value: Figures | Mean) -> dict[str, Any]:
    """Return figures as JSON takes them, None for what is not known."""

    def known(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        return {
            name: None if isinstance(one, float) and math.isnan(one) else one for name, one in pairs
        }

    return asdict(value, dict_factory=known)


def _measure(database: Database, sample: CampaignConfig, checkpoint: Made) -> Figures:
    with database.session(write=False) as session:
        campaign = training.campaign_of_key(session, str(sample.key))
    assert campaign is not None, "the samples are drawn before they are measured"
    return measure(database, campaign.id, checkpoint.id)


def _losses(parent: Made, child: Made) -> dict[str, float]:
    """Loss of both on crystals that no retraining under these settings was shown."""
    from symmbfn.data import CrystalData
    from symmbfn.replay import loss_on

    data = CrystalData.load(Path(child.name) / HELD_OUT)
    return {
        "crystals": len(data),
        "parent": loss_on(card_of(parent), data)["loss"],
        "child": loss_on(card_of(child), data)["loss"],
    }


def worse(
    parent: Figures, child: Figures, losses: Mapping[str, float], gate: GateSettings
) -> list[str]:
    """Say in what the child is worse than its parent by more than the gate allows; else nothing.

    Shares and numbers of different kinds count as worse where they differ by more than their
    margin and more than chance (95 %).
    """
    return [
        *_more_lossy(losses, gate),
        *_less_valid(parent, child, gate),
        *_less_diverse(parent, child, gate),
        *_fewer_finds(parent, child),
        *_more_corrected(parent, child, gate),
    ]


def _more_lossy(losses: Mapping[str, float], gate: GateSettings) -> Iterator[str]:
    before, after = losses["parent"], losses["child"]
    if not after <= before + gate.loss_margin:  # NaN is worse
        yield f"held-out loss {after:.3f}, parent {before:.3f}, margin {gate.loss_margin:g}"


def _less_valid(parent: Figures, child: Figures, gate: GateSettings) -> Iterator[str]:
    for name, total, words in (
        ("valid_draws", "draws", "valid draws"),
        ("composition_valid", "crystals", "valid compositions"),
    ):
        before, after = (
            (getattr(one, name), max(1, getattr(one, total))) for one in (parent, child)
        )
        if _rise(after, before) > gate.validity_margin:
            yield f"{words} {_share(after):.1%}, parent {_share(before):.1%}"


def _less_diverse(parent: Figures, child: Figures, gate: GateSettings) -> Iterator[str]:
    for name in ("formulas", "chemical_systems", "space_groups"):
        before, after = getattr(parent, name), getattr(child, name)
        # Chance as if each were a share of crystals: samples of 100 have 44 space groups ± 3.
        shares = (after, max(1, child.crystals)), (before, max(1, parent.crystals))
        if after < gate.diversity * before and _rise(*shares) > 0:
            yield f"{after} {name.replace('_', ' ')}, parent {before}"
    if child.hhi > gate.concentration * parent.hhi:
        yield f"elements concentrated, HHI {child.hhi:.3f}, parent {parent.hhi:.3f}"
    for symbol, count in child.elements.items():
        before = parent.elements.get(symbol, 0), max(1, parent.crystals)
        after = count, max(1, child.crystals)
        if _rise(before, after) > gate.element_rise:
            yield f"{symbol} in {_share(after):.0%} of crystals, parent {_share(before):.0%}"


def _fewer_finds(parent: Figures, child: Figures) -> Iterator[str]:
    for name, words in (("sun", "S.U.N."), ("msun", "metastable S.U.N.")):
        before, after = (getattr(parent, name), parent.n), (getattr(child, name), child.n)
        if _rise(after, before) > 0:
            yield f"{words} {_share(after):.1%}, parent {_share(before):.1%}"


def _more_corrected(parent: Figures, child: Figures, gate: GateSettings) -> Iterator[str]:
    before, after = parent.correction, child.correction
    fall = before.value - after.value
    if fall > gate.correction_shift and fall > Z * math.hypot(before.error, after.error):
        yield f"mean correction {after.value:.3f} eV/atom, parent {before.value:.3f}"


def _share(part: tuple[int, int]) -> float:
    return part[0] / part[1]


def _rise(before: tuple[int, int], after: tuple[int, int]) -> float:
    """By how much a share has risen, each a count and of how many; 0 if chance may have done it."""
    low, _ = difference_interval(before, after)
    return _share(after) - _share(before) if low > 0 else 0.0
