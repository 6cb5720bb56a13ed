"""One round of a loop: what it does, and what came of it, both read from the database."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from db import queries, training
from db.session import Database, open_database
from db.training import Made
from flows import checkpoints
from flows.dft_settings import CollectConfig, SubmitConfig
from flows.report_intervals import fraction_interval
from flows.retrain_settings import LoopConfig, RetrainConfig
from flows.sample_figures import measure
from flows.settings import CampaignConfig, derived_seed


@dataclass(frozen=True)
class Round:
    """What a round does.

    Attributes:
        campaign: What is drawn, and from which checkpoint.
        submission: What is handed to density-functional calculations; None where nothing is.
        collection: Where their results go, and how they are judged.
        retraining: What is learnt from it all; None in a loop without retraining.
    """

    campaign: CampaignConfig
    submission: SubmitConfig | None
    collection: CollectConfig
    retraining: RetrainConfig | None


def plan(config: LoopConfig, number: int) -> Round:
    """Say what round `number`, from 1, does: always the same once it has begun.

    It draws from the checkpoint of the round before, or from what that one's retraining promoted.
    """
    key = key_of(config, number)
    checkpoint = _checkpoint(config, number, open_database(config.campaign.database))
    campaign = config.campaign.model_copy(
        update={
            "checkpoint": checkpoint,
            "key": key,
            "seed": derived_seed(f"{config.campaign.seed}:round {number}") % 2**31,
        }
    )
    submission = config.dft and config.dft.model_copy(
        update={"database": campaign.database, "campaign": key}
    )
    collection = CollectConfig(
        database=campaign.database, hull=config.dft_hull, thresholds=campaign.thresholds
    )
    if not config.retraining:
        return Round(campaign, submission, collection, None)
    own = ("n", "seed", "checkpoint")  # the gate's
    defaults = {name: CampaignConfig.model_fields[name].default for name in own}
    judge = config.campaign.model_copy(update=defaults)
    start = {"checkpoint": checkpoint, "key": key, "campaign": judge}
    return Round(campaign, submission, collection, config.retrain.model_copy(update=start))


def _checkpoint(config: LoopConfig, number: int, database: Database) -> str:
    """Find what a round draws from; one that has begun keeps its own."""
    with database.session(write=False) as session:
        begun = training.campaign_of_key(session, key_of(config, number))
        frozen = training.frozen(session, key_of(config, number - 1))
        child = None if frozen is None else training.trained(session, frozen.id)
    if begun is not None:
        return str(begun.config["checkpoint"])
    if number == 1:
        return checkpoints.resolved(config.campaign).checkpoint
    if child is not None and child.promoted_at is not None:
        return child.name
    return _checkpoint(config, number - 1, database)


def key_of(config: LoopConfig, number: int) -> str:
    """Name the campaign and the training set of a round."""
    return f"{config.name}-round-{number}"


@dataclass(frozen=True)
class Result:
    """What came of a round.

    Attributes:
        number: Of the round, from 1.
        checkpoint: Name or folder of what the crystals were drawn from.
        generated: Crystals asked for.
        sun, msun: Stable, or metastable, unique and novel ones. Unique means new to the
            database, so that what earlier rounds found, and were trained on, does not count.
        sun_interval, msun_interval: 95 % intervals of their shares.
        formulas, chemical_systems, space_groups: Different ones, for every 100 crystals.
        hhi: Herfindahl index of the elements.
        relaxing: Seconds of one process, all relaxations of the campaign together.
        drawing: Seconds.
        training: Minutes; None without retraining.
        gate: "promoted", why it was rejected, or empty.
    """

    number: int
    checkpoint: str
    generated: int
    sun: int
    msun: int
    sun_interval: tuple[float, float]
    msun_interval: tuple[float, float]
    formulas: float
    chemical_systems: float
    space_groups: float
    hhi: float
    relaxing: float
    drawing: float
    training: float | None
    gate: str

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


def results(config: LoopConfig) -> list[Result]:
    """Read what came of the rounds that have begun."""
    database = open_database(config.campaign.database)
    found = (_result(config, number, database) for number in range(1, config.rounds + 1))
    return [one for one in found if one is not None]


def _result(config: LoopConfig, number: int, database: Database) -> Result | None:
    key = key_of(config, number)
    with database.session(write=False) as session:
        campaign = training.campaign_of_key(session, key)
        if campaign is None:
            return None
        counts = queries.campaign_counts(session, campaign.id)
        seconds = training.campaign_seconds(session, campaign.id)
        frozen = training.frozen(session, key)
        child = None if frozen is None else training.trained(session, frozen.id)
    n = counts["generated"]
    if not n:
        return None
    like = measure(database, campaign.id)
    return Result(
        number=number,
        checkpoint=str(campaign.config["checkpoint"]),
        generated=n,
        sun=counts["sun"],
        msun=counts["msun"],
        sun_interval=fraction_interval(counts["sun"], n),
        msun_interval=fraction_interval(counts["msun"], n),
        formulas=100 * like.formulas / n,
        chemical_systems=100 * like.chemical_systems / n,
        space_groups=100 * like.space_groups / n,
        hhi=like.hhi,
        relaxing=seconds.relaxing,
        drawing=seconds.drawing,
        training=None if child is None else child.metrics["training"]["minutes_spent"],
        gate=_outcome(child),
    )


def _outcome(child: Made | None) -> str:
    if child is None:
        return ""
    if child.rejected_reason is not None:
        return f"rejected: {child.rejected_reason}"
    return "" if child.promoted_at is None else "promoted"


def is_narrow(config: LoopConfig, number: int) -> bool:
    """Tell whether a round has too few chemical systems, beside the first one's."""
    found = {one.number: one.chemical_systems for one in results(config)}
    return found[number] < config.min_diversity * found[1]
