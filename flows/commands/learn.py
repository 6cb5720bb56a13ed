"""`symmbfn train`, `evaluate` and `data`: make a generator and measure one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from flows.commands import common
from flows.errors import ConfigError

if TYPE_CHECKING:
    from flows.evaluation import Named
    from flows.progress import TerminalProgress
    from flows.settings import CampaignConfig
    from symmbfn.checkpoint import Card
    from symmbfn.metrics import Metrics
    from symmbfn.train import Progress as TrainingProgress

app = typer.Typer()
data = typer.Typer(help="Training data: import and look at them.", no_args_is_help=True)
app.add_typer(data, name="data")

_FRACTIONS = (
    "structural_validity",
    "composition_validity",
    "uniqueness",
    "novelty",
    "stable",
    "metastable",
    "sun",
    "msun",
)


@app.command(epilog="Example: symmbfn train train.safetensors --out my-generator --minutes 120")
def train(
    training: Annotated[
        Path, typer.Argument(metavar="DATA", help="File that `symmbfn data import` wrote.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder of the checkpoint.")],
    validation: Annotated[Path | None, typer.Option(help="Held-out file of the same kind.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="TOML file of settings; the options below go before it.")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0.01, help="Wall-clock budget. (default 60)")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Crystals in a step. (default 128)")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(min=0.0, help="Peak learning rate. (default 0.001)")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of everything. (default 0)")] = None,
    start_from: Annotated[
        str | None, typer.Option(help="Checkpoint whose weights to start from.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "auto",
    as_json: common.JsonOption = False,
) -> None:
    """Train a generator until the budget is spent; run again, a stopped training goes on."""
    import torch

    from symmbfn.checkpoint import load_card
    from symmbfn.data import CrystalData
    from symmbfn.estimator import add_estimator, enough
    from symmbfn.train import train as run
    from symmbfn.train_config import train_config

    crystals = CrystalData.load(training)
    held_out = None if validation is None else CrystalData.load(validation)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    given = {
        "minutes": minutes,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "seed": seed,
        "start_from": start_from,
        "device": device,
    }
    settings = train_config(crystals, out, config, given)
    console = common.console(error=True)

    def report(progress: TrainingProgress) -> None:
        held = progress.validation.get("loss")
        console.print(
            f"step {progress.step}  epoch {progress.epoch:.1f}  "
            f"loss {progress.training['loss']:.4f}  "
            f"validation {common.cell(held)}  {progress.crystals_per_second:.0f} crystals/s  "
            f"{progress.minutes_left:.1f} min left",
            highlight=False,
        )

    folder = run(settings, crystals, held_out, report, {"data": training.name})
    card = load_card(folder)
    if not card.model.estimator and enough(crystals, card.properties):  # or it was done before
        card = load_card(add_estimator(card, crystals, seed=settings.seed))
        console.print(_estimator_figures(card), highlight=False)
    if as_json:
        common.print_json({"checkpoint": str(folder)})
    else:
        print(f"wrote {folder}; try: symmbfn discover -n 16 --checkpoint {folder}")


def _estimator_figures(card: Card) -> str:
    """Say how well a new checkpoint tells each property from sites."""
    figures = cast("dict[str, dict[str, float]]", card.training["estimator"])
    told = (
        f"{name} {one['mean_absolute_error']:.3g} (skill {one['skill']:.2f})"
        for name, one in figures.items()
    )
    return f"estimator, errors on chemical systems held out: {', '.join(told)}"


@app.command(epilog="Example: symmbfn evaluate crystals.extxyz --report report.html")
def evaluate(
    what: Annotated[
        str, typer.Argument(metavar="FILE|CHECKPOINT", help="Crystals, or a generator to ask.")
    ],
    n: Annotated[
        int | None,
        typer.Option("-n", min=1, help="Crystals to ask a generator for. (default 1000)"),
    ] = None,
    seed: common.SeedOption = None,
    steps: common.StepsOption = None,
    proposals: common.ProposalsOption = None,
    reference: Annotated[
        Path | None,
        typer.Option(help="Crystals to compare with. (default MP-20 test; novelty: mp)"),
    ] = None,
    coverage: Annotated[
        bool,
        typer.Option(
            "--coverage",
            help="Recall and precision by CDVAE's fingerprints too; 0.1 s a crystal, needs "
            "--reference and the extra `coverage`.",
        ),
    ] = False,
    potential: Annotated[
        str | None, typer.Option(help="Relax with it and count stable crystals too.")
    ] = None,
    hull: Annotated[
        str | None, typer.Option(help="A hull's name or file. (default chgnet)")
    ] = None,
    max_relax_steps: Annotated[
        int | None, typer.Option(help="Relaxation steps before giving up. (default 500)")
    ] = None,
    workers: common.WorkersOption = None,
    report: Annotated[
        Path | None, typer.Option(help="Page to write: figures, pictures, every crystal (.html).")
    ] = None,
    force: common.ForceOption = False,
    as_json: common.JsonOption = False,
) -> None:
    """Measure crystals: validity, distances to a reference, uniqueness and novelty.

    With --potential they are relaxed, and the fractions that are stable, unique and novel
    are told too. All fractions are of all crystals.
    """
    if report is not None:
        common.check_output(report, force=force, endings=(".html",), option="--report")
    if potential is None:
        unused = {"--hull": hull, "--max-relax-steps": max_relax_steps}
        _refuse(unused, "needs --potential; add it, or drop the option")
    if coverage and reference is None:
        raise ConfigError(
            "--coverage compares structures, and of MP-20 test only statistics are shipped: "
            "give --reference a file of crystals"
        )
    if coverage:
        from symmbfn.coverage import check_installed

        check_installed()
    drawn = _is_generator(Path(what))
    if not drawn:
        asked = {"-n": n, "--seed": seed, "--steps": steps, "--proposals": proposals}
        _refuse(asked, f"is for generators, and {what} is a file or folder of crystals; drop it")
    config = common.campaign_config(
        None,
        {
            "n": n or 1000,
            "seed": seed,
            "steps": steps,
            "proposals": proposals,
            "checkpoint": what,
            "potential": potential,
            "hulls": None if hull is None else [hull],
            "relaxation": {"max_steps": max_relax_steps},
            "workers": workers,
        },
    )
    stability = potential is not None
    metrics, recipe, unreadable = _evaluate(
        config,
        Path(what),
        reference,
        report,
        drawn=drawn,
        stability=stability,
        with_coverage=coverage,
    )
    found: dict[str, object] = {**metrics.to_dict()}
    left_out = [] if stability else ["stable", "metastable", "sun", "msun"]
    left_out += [] if coverage else ["coverage_recall", "coverage_precision"]
    for name in left_out:
        del found[name]
    from flows.report_intervals import Share

    shares = {
        name: Share.of(round(value * metrics.n), metrics.n)
        for name in _FRACTIONS
        if isinstance(value := found.get(name), float)
    }
    if report is not None:
        found["report"] = str(report)
    if as_json:
        told = {name: asdict(share) for name, share in shares.items()}
        common.print_json({**found, "shares": told, "recipe": recipe, "unreadable": unreadable})
        return
    common.print_facts({**found, **shares, **recipe})
    for name, why in unreadable.items():
        print(f"  {name}: {why}")


def _refuse(options: Mapping[str, object], why: str) -> None:
    """Refuse the first option that was given: it would be ignored."""
    for option, value in options.items():
        if value is not None:
            raise ConfigError(f"{option} {value} {why}")


def _is_generator(what: Path) -> bool:
    """Tell a checkpoint, by its folder or shipped name, from a file or folder of crystals."""
    if what.exists():
        return (what / "config.json").is_file()
    from symmbfn.checkpoint import SHIPPED

    shipped = sorted(config.parent.name for config in SHIPPED.glob("*/config.json"))
    if str(what) not in shipped:
        raise ConfigError(
            f"no such file or checkpoint {str(what)!r}; give a file of crystals, a folder that "
            f"'symmbfn train' wrote, or a shipped checkpoint ({', '.join(shipped) or 'none'})"
        )
    return True


def _evaluate(
    config: CampaignConfig,
    what: Path,
    reference: Path | None,
    report: Path | None,
    *,
    drawn: bool,
    stability: bool,
    with_coverage: bool,
) -> tuple[Metrics, dict[str, str], dict[str, str]]:
    from flows import inputs
    from flows.evaluation import cover, judge, measure
    from flows.report_recipe import recipe

    with common.terminal_progress() as progress:
        progress.stage("start", None)
        if stability:
            inputs.check_stability(config)
        known = None if reference is None else common.readable(reference).structures
        crystals = _draw(config, progress) if drawn else _read(what)
        unreadable = {one.name: one.error for one in crystals if one.error is not None}
        judged = judge(config, crystals, known, stability=stability)

        from symmbfn.metrics import mp20_test, summarise

        summary = mp20_test() if known is None else summarise(known)
        covered = cover(judged, known) if with_coverage and known is not None else None
        metrics = measure(judged, summary, stability=stability, coverage=covered)
        rests_on = recipe(config, what, reference, drawn=drawn, stability=stability)
        if report is not None:
            progress.stage("report", None)
            from flows.report import Report, render

            page = Report(
                title=what.name,
                crystals=judged,
                metrics=metrics,
                reference=summary,
                reference_name="MP-20 test" if reference is None else reference.name,
                thresholds=config.thresholds,
                recipe=rests_on,
            )
            common.write_text(report, render(page))
        return metrics, rests_on, unreadable


def _draw(config: CampaignConfig, progress: TerminalProgress) -> list[Named]:
    from flows import inputs
    from flows.evaluation import Named
    from symmbfn.sample import sample

    inputs.check_generator(config)
    progress.stage("generate", config.n)
    crystals = sample(
        config.checkpoint,
        config.n,
        seed=config.seed or 0,
        steps=config.steps,
        proposals=config.proposals,
        on_batch=progress.reach,
    )
    return [Named(str(number), one.to_structure()) for number, one in enumerate(crystals, 1)]


def _read(file: Path) -> list[Named]:
    from flows.evaluation import Named
    from symmbfn.files import read_structures

    found = [Named(one.name, one.structure, one.error) for one in read_structures(file)]
    if all(one.structure is None for one in found):
        raise common.nothing_readable(file, [(one.name, one.error) for one in found])
    return found


@data.command(
    "import",
    epilog="Example: symmbfn data import train.parquet more-cifs/ --out train.safetensors",
)
def import_data(
    files: Annotated[
        list[Path],
        typer.Argument(help="CDVAE csv, parquet, extxyz, JSON lines, CIF, or folders of them."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write, .safetensors.")],
    properties: Annotated[
        list[str] | None,
        typer.Option(
            "--property",
            help="One more column to take as a property, or composition_valid, which is "
            "computed; may be repeated.",
        ),
    ] = None,
    symprec: Annotated[float, typer.Option(min=1e-5, max=1.0, help="Symmetry tolerance, A.")] = 0.1,
    force: common.ForceOption = False,
    as_json: common.JsonOption = False,
) -> None:
    """Turn crystals and their properties into training data."""
    common.check_output(out, force=force, endings=(".safetensors",))
    with common.terminal_progress() as progress:
        progress.stage("read", None)
        from symmbfn.data import preprocess
        from symmbfn.importers import import_crystals

        found = import_crystals(files, extra_properties=properties or ())
        progress.stage("import", len(found.structures))
        columns = {name: column.tolist() for name, column in found.properties.items()}
        made, dropped = preprocess(
            found.structures, columns, symprec=symprec, on_crystal=progress.advance
        )
        made.save(out)
    left_out = found.dropped + [(found.names[index], why) for index, why in dropped]
    if as_json:
        common.print_json(
            {
                "file": str(out),
                "crystals": len(made),
                "properties": list(made.names),
                "dropped": [{"name": name, "reason": why} for name, why in left_out],
            }
        )
        return
    print(f"wrote {len(made)} crystals with {', '.join(made.names) or 'no properties'} to {out}")
    if left_out:
        print(f"left out {len(left_out)}, such as {left_out[0][0]}: {left_out[0][1]}")


@data.command("info", epilog="Example: symmbfn data info train.safetensors")
def data_info(
    file: Annotated[Path, typer.Argument(help="File that `symmbfn data import` wrote.")],
    as_json: common.JsonOption = False,
) -> None:
    """Tell what a file of training data holds."""
    from symmbfn.data import CrystalData

    crystals = CrystalData.load(file)
    known = (~crystals.properties.isnan()).sum(0).tolist()
    facts = {
        "crystals": len(crystals),
        "space_groups": len(crystals.group.unique()),
        "orbits_mean": float(crystals.orbits.float().mean()),
        "orbits_max": int(crystals.orbits.max()),
        **{f"with {name}": count for name, count in zip(crystals.names, known, strict=True)},
    }
    if as_json:
        common.print_json(facts)
    else:
        common.print_facts(facts)
