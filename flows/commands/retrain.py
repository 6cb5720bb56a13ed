"""`symmbfn retrain`, `checkpoints` and `loop`: learn from what was found, under a gate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.commands import common
from flows.commands.query import FILTER_HELP
from flows.errors import ConfigError

if TYPE_CHECKING:
    from db.training import Made
    from flows.engine import Engine
    from flows.loop_round import Result
    from flows.retrain_settings import LoopConfig, RetrainConfig
    from flows.settings import CampaignConfig

app = typer.Typer()
lineage = typer.Typer(
    help="Checkpoints of a database: list them, choose the current one.",
    epilog="Example: symmbfn checkpoints --json",
)
app.add_typer(lineage, name="checkpoints")

ROUND_COLUMNS = {
    "number": "round",
    "generated": "generated",
    "sun": "S.U.N.",
    "msun": "metastable S.U.N.",
    "formulas": "formulas /100",
    "chemical_systems": "systems /100",
    "space_groups": "groups /100",
    "hhi": "HHI",
    "relaxing": "relaxing, s",
    "training": "training, min",
    "gate": "gate",
}


@app.command(epilog="Example: symmbfn retrain --base train.safetensors --minutes 20")
def retrain(
    config: Annotated[
        Path | None,
        typer.Argument(metavar="CONFIG.toml", help="Settings; the options win over them."),
    ] = None,
    filter: Annotated[
        str | None,
        typer.Option(help=FILTER_HELP + " (default: metastable and unique)"),
    ] = None,
    learn: Annotated[
        str | None,
        typer.Option(
            metavar="WHAT",
            help="generator, critic, or both: the networks learn from the crystals of the filter, "
            "the critic from all whose energy is known. (default both)",
        ),
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(help="What to start from. (default promoted: the one promoted last)"),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(help="Data to replay beside. (default the checkpoint's own samples)"),
    ] = None,
    held_out: Annotated[
        str | None, typer.Option(help="Data to judge by. (default a share is set aside)")
    ] = None,
    folder: Annotated[
        str | None, typer.Option(help="Where checkpoints are written. (default retrained)")
    ] = None,
    minutes: Annotated[float | None, typer.Option(help="Of training. (default 10)")] = None,
    share: Annotated[
        float | None, typer.Option(help="Of generated crystals in the training. (default 0.25)")
    ] = None,
    n: Annotated[
        int | None, typer.Option("-n", help="Crystals of the gate's fresh samples. (default 128)")
    ] = None,
    potential: common.PotentialOption = None,
    seed: common.SeedOption = None,
    key: Annotated[
        str | None, typer.Option(help="Name of the training set. (default from its content)")
    ] = None,
    workers: common.WorkersOption = None,
    database: common.DatabaseOption = None,
    as_json: common.JsonOption = False,
) -> None:
    """Fine-tune a checkpoint on what was found; promote it if it is no worse than before.

    The same settings on the same database are the same retraining: if it was stopped, the same
    command goes on. With --key it does so even if more was found meanwhile.
    """
    from flows.retrain_settings import RetrainConfig

    given = {
        "filter": filter,
        "learn": learn,
        "checkpoint": checkpoint,
        "base": base,
        "held_out": held_out,
        "folder": folder,
        "minutes": minutes,
        "share": share,
        "gate": {"n": n},
        "seed": seed,
        "key": key,
        "campaign": {"potential": potential, "workers": workers, "database": database},
    }
    settings = common.read_settings(RetrainConfig, config, given)
    identifier = common.run_pipeline(settings, _check_retraining, _retrain, settings.campaign.dask)
    from db.session import open_database

    with open_database(settings.campaign.database).session(write=False) as session:
        from db import training

        line = training.ancestry(session, identifier)[:2]
        current = training.current_checkpoint(session)
    rows = [_row(one, current) for one in line[::-1]]
    if as_json:
        common.print_json(_document(line[0], current))
        return
    common.print_table(list(rows[0]), [list(row.values()) for row in rows])
    made = line[0]
    if made.rejected_reason is None:
        print(f"promoted; try: symmbfn discover -n 16 --checkpoint {made.name}")
    else:
        print(f"rejected, kept in {made.name}: {made.rejected_reason}")


def _check_retraining(settings: RetrainConfig) -> None:
    from db.session import open_database
    from flows import training_set
    from symmbfn.data import CrystalData

    database = open_database(settings.campaign.database, create=False)
    card = training_set.parent(settings, database)
    _check_campaign(settings.campaign, str(card.path))
    for file in (settings.base, settings.held_out):
        if file is not None:
            CrystalData.load(file)


@lineage.callback(invoke_without_command=True)
def checkpoints(
    context: typer.Context,
    as_json: common.JsonOption = False,
    database: common.DatabaseOption = None,
) -> None:
    """List the checkpoints of a database: parents, figures, which is the current one and why."""
    if context.invoked_subcommand is not None:
        if as_json or database is not None:
            raise ConfigError(f"write the options after {context.invoked_subcommand!r}")
        return
    from db import training

    with common.existing_database(database).session(write=False) as session:
        rows = training.checkpoints(session)
        current = training.current_checkpoint(session)
    if as_json:
        common.print_json([_document(one, current) for one in rows])
        return
    if not rows:
        print("none yet; `symmbfn discover` notes those that it draws from")
        return
    table = [_row(one, current) for one in rows]
    common.print_table(list(table[0]), [list(row.values()) for row in table])


@lineage.command(epilog="Example: symmbfn checkpoints promote 1")
def promote(
    identifier: Annotated[
        int, typer.Argument(metavar="ID", max=common.MOST, help="As `checkpoints` lists it.")
    ],
    force: Annotated[bool, typer.Option("--force", help="Also one that was rejected.")] = False,
    database: common.DatabaseOption = None,
) -> None:
    """Make a checkpoint the current one, for instance to go back to an earlier one."""
    from db import training
    from flows.checkpoints import card_of

    opened = common.existing_database(database)
    with opened.session() as session:
        promoted = training.promote(session, identifier, force=force)
        card_of(promoted)
    print(f"checkpoint {identifier} ({promoted.name}) is the current one")


def _state(one: Made, current: Made | None) -> str:
    if current is not None and one.id == current.id:
        return "current"
    if one.promoted_at is not None:
        return "promoted before"
    return "" if one.rejected_reason is None else f"rejected: {one.rejected_reason}"


def _row(one: Made, current: Made | None) -> dict[str, object]:
    gate = one.metrics.get("gate", {})
    sample, losses = gate.get("sample", {}), gate.get("held_out", {})
    n = sample.get("n")

    def share(name: str) -> str | None:
        return f"{sample[name]}/{n}" if n else None

    return {
        "id": one.id,
        "checkpoint": one.name,
        "parent": one.parent_id,
        "trained on": one.metrics.get("training", {}).get("generated"),
        "held-out loss": losses.get("child"),
        "parent's": losses.get("parent"),
        "S.U.N.": share("sun"),
        "metastable": share("msun"),
        "systems": share("chemical_systems"),
        "state": _state(one, current),
    }


def _document(one: Made, current: Made | None) -> dict[str, Any]:
    return {
        "id": one.id,
        "checkpoint": one.name,
        "sha256": one.sha256,
        "parent_id": one.parent_id,
        "training_set_id": one.training_set_id,
        "is_current": current is not None and one.id == current.id,
        "promoted_at": None if one.promoted_at is None else one.promoted_at.isoformat(),
        "rejected_reason": one.rejected_reason,
        "metrics": one.metrics,
    }


@app.command(epilog="Example: symmbfn loop examples/loop.toml --plot loop.png")
def loop(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.toml", help="Settings of the loop.")],
    rounds: Annotated[int | None, typer.Option(help="How many.")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Picture of the rounds to write (.png or .svg).")
    ] = None,
    force: common.ForceOption = False,
    workers: common.WorkersOption = None,
    database: common.DatabaseOption = None,
    as_json: common.JsonOption = False,
) -> None:
    """Discover and retrain, round by round; a stopped loop goes on with the same command."""
    if plot is not None:
        common.check_output(plot, force=force, endings=(".png", ".svg"), option="--plot")
    from flows.retrain_settings import LoopConfig

    given = {"rounds": rounds, "campaign": {"workers": workers, "database": database}}
    settings = common.read_settings(LoopConfig, config, given)
    common.run_pipeline(settings, _check_loop, _loop, settings.campaign.dask)
    from flows.loop_round import results

    found = results(settings)
    if plot is not None:
        from flows.loop_plot import write

        write(found, plot)
    if as_json:
        common.print_json([one.as_dict() for one in found])
        return
    _show_rounds(found)
    if plot is not None:
        print(f"wrote {plot}")


def _show_rounds(found: list[Result]) -> None:
    rows = [[getattr(one, name) for name in ROUND_COLUMNS] for one in found]
    common.print_table(list(ROUND_COLUMNS.values()), rows)


def _check_loop(settings: LoopConfig) -> None:
    from db import filters
    from db.session import open_database
    from flows.checkpoints import resolved
    from flows.dft_collect import judging_hull
    from symmbfn.data import CrystalData

    filters.parse(settings.retrain.filter)
    if settings.dft is not None:
        settings.dft.open_runner()
        filters.parse(settings.dft.filter or "")
    if settings.dft_hull is not None:
        judging_hull(settings.dft_hull)
    open_database(settings.campaign.database)
    _check_campaign(settings.campaign, resolved(settings.campaign).checkpoint)
    for file in (settings.retrain.base, settings.retrain.held_out):
        if file is not None:
            CrystalData.load(file)


def _check_campaign(campaign: CampaignConfig, checkpoint: str) -> None:
    """Find what the campaigns name, and the checkpoint that the first one draws from."""
    from flows import inputs

    inputs.check(campaign.model_copy(update={"checkpoint": checkpoint}))


def _retrain() -> Callable[[RetrainConfig, Engine], int]:
    from flows.pipeline import retrain

    return retrain


def _loop() -> Callable[[LoopConfig, Engine], int]:
    from flows.pipeline import loop

    return loop
