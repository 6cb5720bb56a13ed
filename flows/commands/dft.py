"""`symmbfn dft`: hand crystals to density-functional theory, and take the results in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from flows.commands import common
from flows.commands.query import FILTER_HELP
from flows.dft_makers import Code, Policy, RunnerName, Workflow
from flows.errors import ConfigError

State = Literal["submitted", "completed", "failed"]

if TYPE_CHECKING:
    from flows.dft_settings import SubmitConfig

app = typer.Typer()
dft = typer.Typer(
    help="Density-functional calculations: submit, collect, list.", no_args_is_help=True
)
app.add_typer(dft, name="dft")

LISTED = (
    "material_id",
    "formula_pretty",
    "code",
    "state",
    "runner",
    "energy_per_atom",
    "energy_scheme",
    "band_gap",
    "energy_above_hull",
    "verdict",
    "reason",
)


@dft.command(
    epilog="Example: symmbfn dft submit 'is_novel = TRUE' --policy stable --limit 5 --code cp2k"
)
def submit(
    filter: Annotated[str | None, typer.Argument(help=FILTER_HELP)] = None,
    code: Annotated[Code, typer.Option(help="What computes.")] = "vasp",
    runner: Annotated[
        RunnerName, typer.Option(help="What runs the jobs; local: here and now.")
    ] = "local",
    policy: Annotated[
        Policy | None,
        typer.Option(
            help="Most stable first, those first that two potentials differ most about (else those "
            "nearest to the threshold), or suspects far below the hull; only the first of each "
            "kind of crystal."
        ),
    ] = None,
    limit: Annotated[
        int, typer.Option(min=1, max=common.MOST, help="Budget: at most so many crystals.")
    ] = 10,
    workflow: Annotated[
        Workflow, typer.Option(help="Relax and then compute, or only compute.")
    ] = "relax",
    resubmit: Annotated[
        bool, typer.Option("--resubmit", help="Those that failed or were lost, once more.")
    ] = False,
    basis: Annotated[
        str | None, typer.Option(help="Basis set of CP2K. (default DZVP-MOLOPT-SR-GTH)")
    ] = None,
    kpoint_density: Annotated[
        float | None,
        typer.Option(min=0.01, help="K-points of CP2K, per reciprocal volume. (default 64)"),
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Where local jobs are kept. (default dft-jobs)")
    ] = None,
    campaign: Annotated[
        str | None,
        typer.Option(
            help="Only what this campaign drew; what of it was submitted before counts towards "
            "the limit, but not with --resubmit."
        ),
    ] = None,
    project: Annotated[
        str | None, typer.Option(help="Project of jobflow-remote. (default its own)")
    ] = None,
    as_json: common.JsonOption = False,
    database: common.DatabaseOption = None,
) -> None:
    """Compute relaxed crystals that match FILTER and were not computed with these settings yet.

    Without --policy those lowest above their hull come first. Submitting again submits nothing
    twice; results come in with `symmbfn dft collect`.
    """
    if filter is None and policy is None and campaign is None and not resubmit:
        raise ConfigError("which crystals? give a FILTER, --policy, --campaign, or several of them")
    from flows.dft_settings import SubmitConfig

    settings = SubmitConfig.build(
        {
            "code": code,
            "workflow": workflow,
            "policy": policy,
            "filter": filter,
            "limit": limit,
            "resubmit": resubmit,
            "campaign": campaign,
            "runner": runner,
            "folder": None if folder is None else str(folder),
            "project": project,
            "basis": basis,
            "kpoint_density": kpoint_density,
            "database": database,
        },
        where="command line",
    )

    from flows.dft_submit import submit as run

    with common.terminal_progress():
        handed = run(settings)
    if as_json:
        common.print_json([vars(one) for one in handed])
        return
    if handed:
        common.print_table(
            ["material_id", "formula", "job", "error"],
            [[one.material_id, one.formula, one.job_id, one.error] for one in handed],
        )
    done = sum(one.error is None for one in handed)
    print(f"{done} submitted" + ("; next: symmbfn dft collect" if done else _nothing(settings)))


def _nothing(settings: SubmitConfig) -> str:
    if settings.resubmit:
        return ": no failed calculation with these settings matches"
    spent = f", or its {settings.limit} were submitted before" if settings.campaign else ""
    return f": no relaxed crystal matches, or all that do were submitted before{spent}"


@dft.command(epilog="Example: symmbfn dft collect --hull mp2020")
def collect(
    hull: Annotated[
        str | None,
        typer.Option(help="Judge VASP's energies against this hull, of scheme mp2020."),
    ] = None,
    as_json: common.JsonOption = False,
    database: common.DatabaseOption = None,
) -> None:
    """Take in what is finished: checked, corrected to the hull's scheme, with a new verdict.

    What failed, was lost or came back as another crystal is noted with its reason, and can be
    submitted again with `symmbfn dft submit --resubmit`.
    """
    from flows.dft_collect import collect as run
    from flows.dft_settings import CollectConfig

    found = run(CollectConfig(database=database, hull=hull))
    counts = {name: found.counts[name] for name in ("completed", "failed", "running", "judged")}
    if as_json:
        common.print_json(
            {
                **counts,
                "failures": [{"material_id": name, "reason": why} for name, why in found.failures],
                "notes": [{"material_id": name, "note": why} for name, why in found.notes],
            }
        )
        return
    print(", ".join(f"{count} {name}" for name, count in counts.items()))
    for name, why in [*found.failures, *found.notes]:
        print(f"  {name}: {why}")


@dft.command("list", epilog="Example: symmbfn dft list --state failed")
def list_calculations(
    state: Annotated[State | None, typer.Option(help="Only these.")] = None,
    as_json: common.JsonOption = False,
    database: common.DatabaseOption = None,
) -> None:
    """List the calculations, the newest submission first."""
    from db.dft import calculations

    with common.existing_database(database).session(write=False) as session:
        found = calculations(session, state)
    if as_json:
        common.print_json(found)
    elif found:
        common.print_table(LISTED, [[row[name] for name in LISTED] for row in found])
    else:
        print("no calculations" + ("" if state is None else f" are {state}"))
