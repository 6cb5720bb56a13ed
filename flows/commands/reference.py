"""`symmbfn potentials`, `hull` and `db`: what verdicts rest on, and where they are kept."""

from __future__ import annotations


import typer

from flows.commands import common

app = typer.Typer()
hull = typer.Typer(help="Convex hulls: make, import and look at them.", no_args_is_help=True)
db = typer.Typer(help="The database: make or upgrade it, look at it.", no_args_is_help=True)
app.add_typer(hull, name="hull")
app.add_typer(db, name="db")


@app.command(epilog="Example: symmbfn potentials --json")
def potentials(as_json: common.JsonOption = False) -> None:
    """List the potentials: weights here or not, energy scheme, how to get them."""
    from relax.potentials import list_potentials

    rows = [
        {
            "name": one.name,
            "available": one.available,
            "energy_scheme": one.energy_scheme,
            "dtype": one.dtype,
            "elements": len(one.elements),
            "weights_sha256": one.weights_sha256,
            "how_to_get": one.how_to_get,
        }
        for one in list_potentials()
    ]
    if as_json:
        common.print_json(rows)
        return
    columns = ["name", "available", "energy_scheme", "dtype", "elements", "how_to_get"]
    common.print_table(columns, [[row[name] for name in columns] for row in rows])


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
    common.print_table(["table", "rows"], list(counts.items()))
