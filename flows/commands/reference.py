"""`symmbfn potentials`, `hull` and `db`: what verdicts rest on, and where they are kept."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.commands import common

app = typer.Typer()
hull = typer.Typer(help="Convex hulls: make, import and look at them.", no_args_is_help=True)
db = typer.Typer(help="The database: make or upgrade it, look at it.", no_args_is_help=True)
app.add_typer(hull, name="hull")
app.add_typer(db, name="db")


@app.command(epilog="Example: symmbfn potentials --json")
def potentials(as_json: common.JsonOption = False) -> None:
    """List the potentials: energy scheme, weights here or how to get them, elements covered.

    A file of MACE weights, or a TOML file that names an ASE calculator, is a potential, too: give
    its path; FILE.model#HEAD of weights with several heads. NAME@float64 is another precision.
    """
    from relax.potentials import list_potentials

    rows: list[dict[str, Any]] = [
        {
            "name": one.name,
            "available": one.available,
            "energy_scheme": one.energy_scheme,
            "dtype": one.dtype,
            "dtypes": list(one.dtypes or (one.dtype,)),
            "elements": sorted(one.elements),
            "weights_sha256": one.weights_sha256,
            "how_to_get": one.how_to_get,
        }
        for one in list_potentials()
    ]
    if as_json:
        common.print_json(rows)
        return
    columns = ["name", "available", "energy_scheme", "dtype", "elements", "how_to_get"]
    for row in rows:
        row["elements"] = len(row["elements"])
    common.print_table(columns, [[row[name] for name in columns] for row in rows])


@hull.command(
    "build",
    epilog="Example: symmbfn hull build --structures known.parquet --potential chgnet "
    "--relax-within 0.03 --trusted mp2020 --out mine.csv.gz",
)
def build(
    structures: Annotated[
        list[Path], typer.Option(help="Known structures, elements too; may be repeated.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write, .csv or .csv.gz.")],
    potential: common.PotentialOption = None,
    relax_within: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=10.0,
            help="Relax those up to so far above the hull, eV/atom, as candidates are. "
            "(default none)",
        ),
    ] = None,
    trusted: Annotated[
        str | None,
        typer.Option(
            metavar="HULL",
            help="Leave out holes of the potential: what lies 0.3 eV/atom or more below this hull, "
            "or below its energy of the same composition.",
        ),
    ] = None,
    workers: common.WorkersOption = None,
    device: common.DeviceOption = None,
    force: common.ForceOption = False,
    as_json: common.JsonOption = False,
) -> None:
    """Make a hull of a potential's own energies, which cancels its systematic error.

    A build that is stopped goes on with the same command, from .NAME.energies beside the output.
    """
    common.check_output(out, force=force, endings=(".csv", ".gz"))
    with common.terminal_progress() as progress:
        progress.stage("start", None)
        from relax.hull import Hull
        from relax.optimize import RelaxConfig, check_device
        from relax.potentials import find

        name = potential or "chgnet"
        config = RelaxConfig(workers=workers, device=device or "cpu")
        check_device(config.device)
        info, against = find(name), None if trusted is None else Hull.load(trusted)
        if against is not None:
            against.scheme_for(info, with_structures=True)
        read = [common.readable(file) for file in structures]
        from relax.reference_build import Journal, build_reference
        from relax.reference_file import write_reference

        journal = out.with_name(f".{out.name}.energies")
        made = build_reference(
            [one for file in read for one in file.structures],
            name,
            Journal(journal, info, config),
            config,
            relax_within=relax_within,
            trusted=against,
            source=", ".join(file.name for file in structures),
            on_stage=progress.stage,
            on_progress=progress.advance,
        )
        write_reference(out, made)
        journal.unlink(missing_ok=True)
    unreadable = [error for file in read for error in file.errors]
    facts = {
        "file": str(out),
        "compositions": len(made.formulas),
        "energy_scheme": made.energy_scheme,
        **made.header,
        "unreadable": len(unreadable),
    }
    if as_json:
        common.print_json(facts)
        return
    print(f"wrote {len(made.formulas)} compositions of scheme {made.energy_scheme} to {out}")
    told = (
        "without_energy compositions_dropped_for_want_of_an_element holes_left_out relaxed "
        "not_converged relaxed_into_holes"
    )
    for key in told.split():
        if made.header.get(key, "0") != "0":
            print(f"  {key.replace('_', ' ')}: {made.header[key]}")
    for entry, why in unreadable:
        print(f"  unreadable: {entry}: {why}")


@hull.command(
    "import", epilog="Example: symmbfn hull import mp.csv --name mp --energy-scheme mp2020"
)
def import_hull(
    source: Annotated[
        str,
        typer.Argument(
            help="csv (formula, and energy_per_atom or formation_energy_per_atom); JSON of "
            "Materials Project entries or of OPTIMADE structures; 'mp' or an OPTIMADE URL to ask."
        ),
    ],
    name: Annotated[str | None, typer.Option(help="To use it by. (default the file's)")] = None,
    energy_scheme: Annotated[
        str | None, typer.Option(help="Such as mp2020, where the file does not say.")
    ] = None,
    elements_from: Annotated[
        str | None,
        typer.Option(help="Elemental energies for formation energies: JSON file, FILE#KEY, hull."),
    ] = None,
    elements: Annotated[
        str | None, typer.Option(help="To ask for, such as Li,Fe,O; MP_API_KEY holds mp's key.")
    ] = None,
    energy_field: Annotated[
        str | None,
        typer.Option(help="Of OPTIMADE, such as formation_energy_per_atom=_oqmd_delta_e."),
    ] = None,
    as_json: common.JsonOption = False,
) -> None:
    """Check reference energies and keep them to be used by name."""
    from relax.hull import describe
    from relax.reference import import_hull as keep

    kept = keep(
        source,
        name=name,
        energy_scheme=energy_scheme,
        elements_from=elements_from,
        elements=[symbol.strip() for symbol in (elements or "").split(",") if symbol.strip()],
        energy_field=energy_field,
    )
    used = kept.name.removesuffix(".csv.gz")
    without = describe(used).without_energy
    if as_json:
        common.print_json({"name": used, "file": str(kept), "without_energy": without})
        return
    print(f"kept as {kept}; use it with --hull {used}")
    if without:
        print(f"no energy of {', '.join(without)}: crystals with it will not be assessable")


@hull.command("info", epilog="Example: symmbfn hull info chgnet")
def hull_info(
    which: Annotated[
        str | None, typer.Argument(metavar="NAME|FILE", help="One hull; without it, all.")
    ] = None,
    as_json: common.JsonOption = False,
) -> None:
    """Describe a hull, or list those that can be used by name."""
    from relax.hull import describe, list_hulls

    rows = [asdict(one) for one in (list_hulls() if which is None else [describe(which)])]
    if as_json:
        common.print_json(rows if which is None else rows[0])
    elif which is None:
        columns = ["name", "energy_scheme", "quantity", "compositions", "elements"]
        common.print_table(columns, [[row[name] for name in columns] for row in rows])
    else:
        header = rows[0].pop("header")
        without = ", ".join(rows[0].pop("without_energy")) or "none"
        common.print_facts({**rows[0], "without_energy": without, **header})


@db.command("upgrade", epilog="Example: symmbfn db upgrade --db sqlite:///campaigns.db")
def upgrade(database: common.DatabaseOption = None, as_json: common.JsonOption = False) -> None:
    """Make the tables, or bring those of an older release up to date."""
    from db.session import open_database

    opened = open_database(database)
    if as_json:
        common.print_json({"url": opened.url})
    else:
        print(f"{opened.url} is up to date")


@db.command("info", epilog="Example: symmbfn db info")
def database_info(
    database: common.DatabaseOption = None, as_json: common.JsonOption = False
) -> None:
    """Tell where the database is and how many rows its tables have."""
    from db import queries

    opened = common.existing_database(database)
    with opened.session(write=False) as session:
        counts = queries.table_counts(session)
    if as_json:
        common.print_json({"url": opened.url, "rows": counts})
        return
    print(opened.url)
    common.print_facts(counts)
