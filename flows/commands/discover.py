"""`symmbfn discover`: a whole campaign, with its bars, its table and where it all is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.commands import common

if TYPE_CHECKING:
    from flows.engine import Engine
    from flows.outcome import Outcome
    from flows.settings import CampaignConfig

app = typer.Typer()

COLUMNS = {
    "material_id": "id",
    "formula_pretty": "formula",
    "space_group": "space group",
    "energy_above_hull": "E above hull",
    "formation_energy_per_atom": "E formation",
    "is_novel": "novel",
    "is_unique": "unique",
    "verdict": "verdict",
}


@app.command(
    epilog="Example: symmbfn discover -n 16 --elements Li,Fe,O --property band_gap=2 --seed 7"
)
def discover(
    config: Annotated[
        Path | None,
        typer.Argument(metavar="CONFIG.toml", help="Campaign file; the options win over it."),
    ] = None,
    n: Annotated[int | None, typer.Option("-n", help="Crystals to generate. (default 64)")] = None,
    properties: common.PropertyOption = None,
    guidance: common.GuidanceOption = None,
    elements: common.ElementsOption = None,
    require: common.RequireOption = None,
    exclude: common.ExcludeOption = None,
    space_group: common.SpaceGroupOption = None,
    crystal_system: common.CrystalSystemOption = None,
    max_atoms: common.MaxAtomsOption = None,
    num_atoms: common.NumAtomsOption = None,
    formula: common.FormulaOption = None,
    potential: common.PotentialOption = None,
    hull: Annotated[
        list[str] | None,
        typer.Option(help="A hull's name or file; may be repeated, the first gives the verdict."),
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="Known structures, for novelty. (default mp)")
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            metavar="POTENTIAL",
            help="A second potential's opinion of what is (meta)stable; also of a campaign that "
            "is done.",
        ),
    ] = None,
    judge_hull: Annotated[
        str | None, typer.Option(help="The hull for --judge. (default the first --hull)")
    ] = None,
    max_relax_steps: Annotated[
        int | None, typer.Option(help="Relaxation steps before giving up. (default 500)")
    ] = None,
    relax_budget: Annotated[
        str | None,
        typer.Option(
            metavar="N|TIME",
            help="Relax the N most promising crystals, or for so long (30min, 2h; the sum over "
            "processes). (default all)",
        ),
    ] = None,
    keep_symmetry: common.KeepSymmetryOption = False,
    seed: common.SeedOption = None,
    checkpoint: common.CheckpointOption = None,
    steps: common.StepsOption = None,
    proposals: common.ProposalsOption = None,
    key: Annotated[
        str | None, typer.Option(help="The campaign's name. (default from the settings)")
    ] = None,
    workers: common.WorkersOption = None,
    device: common.DeviceOption = None,
    database: common.DatabaseOption = None,
    as_json: common.JsonOption = False,
) -> None:
    """Run a campaign: generate, relax, screen and store crystals.

    The same settings are the same campaign: if it was stopped, the same command goes on.
    """
    conditions = common.conditions_table(
        properties=properties,
        guidance=guidance,
        elements=elements,
        require=require,
        exclude=exclude,
        space_group=space_group,
        crystal_system=crystal_system,
        max_atoms=max_atoms,
        num_atoms=num_atoms,
        formula=formula,
    )
    settings = common.campaign_config(
        config,
        {
            "n": n,
            "conditions": conditions,
            "potential": potential,
            "hulls": hull or None,
            "reference": reference,
            "judge": common.judge_table(judge, judge_hull),
            "relaxation": {"max_steps": max_relax_steps, "keep_symmetry": keep_symmetry or None},
            "funnel": {"relax_budget": relax_budget},
            "seed": seed,
            "checkpoint": checkpoint,
            "steps": steps,
            "proposals": proposals,
            "key": key,
            "workers": workers,
            "device": device,
            "database": database,
        },
    )
    campaign = common.run_pipeline(settings, _check, _pipeline, settings.dask)
    from db.session import open_database
    from flows.outcome import outcome

    found = outcome(open_database(settings.database), campaign)
    if as_json:
        common.print_json(found.as_dict())
    else:
        _show(found, settings)


def _check(settings: CampaignConfig) -> None:
    """Find all that the settings name, the database too: a bad one is told before the start."""
    from db.session import open_database
    from flows import inputs
    from flows.checkpoints import resolved
    from relax.optimize import check_device

    if settings.dask is None:  # else it is for others to have
        check_device(settings.device)
    inputs.check(resolved(settings))
    open_database(settings.database)


def _pipeline() -> Callable[[CampaignConfig, Engine], int]:
    from flows.pipeline import discover

    return discover


def _show(found: Outcome, settings: CampaignConfig) -> None:
    """Print the best candidates, the funnel and where to go from here."""
    from db.queries import HULL_BAND

    if found.best:
        common.print_table(
            list(COLUMNS.values()),
            [[row[name] for name in COLUMNS] for row in found.best],
            title=f"Best candidates of {found.campaign} (energies in eV/atom)",
        )
    print(f"Judged by potential {settings.potential} against hull {settings.hulls[0]}.")
    print("  ".join(f"{name} {count}" for name, count in found.counts.items()))
    print("distinct: each crystal once; known_before: those that an earlier campaign drew;")
    if settings.funnel.relax_budget is not None:
        print(
            "known_as_drawn: not relaxed, as no crystal is novel that matched a known one; "
            f"passed_over: the budget of {settings.funnel.relax_budget} went to others, so that "
            "the numbers after it are lower bounds;"
        )
    print(
        f"near_hull: within {HULL_BAND} eV/atom of the hull; sun: stable, unique and novel; "
        "msun: metastable, unique and novel."
    )
    if settings.judge is not None:
        told = found.judged
        print(
            f"Second opinion, by {settings.judge.potential}, on {told['judged']} crystals: of "
            f"{told['sun']} sun {told['sun_too']} are stable to it, of {told['msun']} msun "
            f"{told['msun_too']} metastable."
        )
    if again := common.drawn_again(found.tally):
        print(again)
    print(f"Stored in {found.database} as campaign {found.campaign}. More:")
    option = f" --db '{found.database}'" if settings.database is not None else ""
    print(f"  symmbfn candidates --campaign {found.campaign} --limit 20{option}")
    if found.best:
        print(f"  symmbfn show {found.best[0]['material_id']}{option}")
    if found.counts["metastable"]:
        wanted = f"'is_metastable = TRUE AND campaign = \"{found.campaign}\"'"
        print(f"  symmbfn export {wanted} --to metastable --format cif{option}")
