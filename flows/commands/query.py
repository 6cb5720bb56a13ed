"""`symmbfn candidates`, `show` and `export`: what the database holds."""

from __future__ import annotations

import enum
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.commands import common
from flows.errors import ConfigError

if TYPE_CHECKING:
    from db.queries import Stored

app = typer.Typer()

TABLE_COLUMNS = (
    "material_id",
    "formula_pretty",
    "space_group",
    "nsites",
    "energy_above_hull",
    "energy_above_hull_spread",
    "formation_energy_per_atom",
    "verdict",
    "is_unique",
    "is_novel",
    "state",
)
FILTER_HELP = 'OPTIMADE filter, such as: elements HAS ALL "Li","O" AND energy_above_hull < 0.1'


class TableFormat(enum.StrEnum):
    """How `candidates` prints."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"


class ExportFormat(enum.StrEnum):
    """What `export` writes, one file per candidate."""

    CIF = "cif"
    POSCAR = "poscar"
    EXTXYZ = "extxyz"
    JSON = "json"


@app.command(epilog="Example: symmbfn candidates 'is_stable = TRUE' --sort energy_above_hull")
def candidates(
    filter: Annotated[str | None, typer.Argument(help=FILTER_HELP)] = None,
    sort: Annotated[
        str | None, typer.Option(help="Field to sort by; -FIELD from the top down.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, max=common.MOST, help="At most so many rows.")
    ] = None,
    campaign: Annotated[
        str | None, typer.Option(help="Only what this campaign drew, with its own verdicts.")
    ] = None,
    format: Annotated[TableFormat, typer.Option(help="Form of the output.")] = TableFormat.TABLE,
    as_json: common.JsonOption = False,
    database: common.DatabaseOption = None,
) -> None:
    """List candidates, those that match FILTER if one is given.

    Without --campaign a candidate is unique if it was the first of its kind in the database, and
    the newest verdict on it is shown.
    """
    if as_json and format is TableFormat.CSV:
        raise ConfigError("--json and --format csv: the output has one form; drop one of them")
    from db import queries

    with common.existing_database(database).session(write=False) as session:
        frame = queries.candidates(
            session,
            filter=filter,
            sort=sort,
            limit=limit,
            campaign_id=None if campaign is None else queries.campaign_id(session, campaign),
        )
    if frame.empty:
        raise ConfigError(_nothing(filter))
    if as_json or format is TableFormat.JSON:
        common.print_json(frame.to_dict(orient="records"))
        return
    if format is TableFormat.CSV:
        print(frame.map(guarded).to_csv(index=False), end="")
        return
    judged = frame["energy_above_hull_spread"].notna().any()
    columns = [name for name in TABLE_COLUMNS if judged or name != "energy_above_hull_spread"]
    common.print_table(columns, frame[columns].astype(object).values.tolist())
    states = frame["state"].value_counts()
    left = [
        f"{states[state]} {state.replace('_', ' ')}"
        for state in ("passed_over", "known")
        if state in states
    ]
    print(f"{len(frame)} candidates" + (f", not relaxed: {', '.join(left)}" if left else ""))


@app.command(epilog="Example: symmbfn show sbfn-42")
def show(
    identifier: Annotated[str, typer.Argument(metavar="ID", help="Such as sbfn-42.")],
    as_json: common.JsonOption = False,
    database: common.DatabaseOption = None,
) -> None:
    """Show everything known of one candidate, back to checkpoint, seed and settings."""
    from db import queries

    with common.existing_database(database).session(write=False) as session:
        record = queries.candidate(session, identifier)
    for relaxation in record["relaxations"]:
        for verdict in relaxation["stabilities"]:
            del verdict["matches_known"]  # a column that nothing fills
    if as_json:
        common.print_json(record)
    else:
        for line in _lines(record):
            print(line)


@app.command(
    epilog="Example: symmbfn export 'energy_above_hull < 0.1' --to metastable --format cif"
)
def export(
    filter: Annotated[str, typer.Argument(help=FILTER_HELP)],
    to: Annotated[Path, typer.Option("--to", help="Folder for the files; made if missing.")],
    format: Annotated[ExportFormat, typer.Option(help="Kind of file.")] = ExportFormat.CIF,
    limit: Annotated[
        int | None, typer.Option(min=1, max=common.MOST, help="At most so many files.")
    ] = None,
    force: common.ForceOption = False,
    as_json: common.JsonOption = False,
    database: common.DatabaseOption = None,
) -> None:
    """Write the crystals that match FILTER, relaxed where they were, one file each."""
    from db import queries

    if to.exists() and not to.is_dir():
        raise ConfigError(f"--to {to}: is a file; name a folder")
    with common.existing_database(database).session(write=False) as session:
        found = list(queries.structures(session, filter=filter, limit=limit))
    if not found:
        raise ConfigError(_nothing(filter))
    files = [to / file_name(one.material_id, one.row["formula_pretty"], format) for one in found]
    there = next((file for file in files if file.exists() or file.is_symlink()), None)
    if there is not None and not force:
        raise ConfigError(f"{there}: is there already; name another folder or add --force")
    to.mkdir(parents=True, exist_ok=True)
    for one, file in zip(found, files, strict=True):
        _write(one, file, format)
    if as_json:
        common.print_json([str(file) for file in files])
    else:
        print(f"wrote {len(files)} files to {to}")


def file_name(material_id: str, formula: str, format: ExportFormat) -> str:
    """Return a file name of nothing but letters, digits, '-', '_' and the ending."""
    ending = "vasp" if format is ExportFormat.POSCAR else format.value
    stem = re.sub(r"[^A-Za-z0-9-]", "", material_id) + "_" + re.sub(r"[^A-Za-z0-9]", "", formula)
    return f"{stem}.{ending}"


def guarded(value: Any) -> Any:
    """Return a cell that no spreadsheet takes for a formula; numbers stay numbers."""
    if isinstance(value, str) and value[:1] in {"=", "+", "-", "@", "\t", "\r"}:
        return f"'{value}"
    return value


def _write(one: Stored, file: Path, format: ExportFormat) -> None:
    if format is ExportFormat.JSON:
        import json

        document = {**one.row, "structure": one.structure.as_dict()}
        common.write_text(file, json.dumps(common.plain(document), indent=1))
    elif format is ExportFormat.POSCAR:
        from pymatgen.io.vasp.inputs import Poscar

        poscar = Poscar(one.structure, comment=file.stem)
        common.write_text(file, poscar.get_str(significant_figures=12))
    else:
        from symmbfn.files import write_structures

        write_structures(file, [one.structure], [common.plain(one.row)])


def _nothing(filter: str | None) -> str:
    if filter is None:
        return "no candidates in this database yet; run `symmbfn discover`"
    return f"no candidate matches {filter!r}; `symmbfn candidates` without a filter lists all"


def _lines(value: Any, indent: int = 0) -> list[str]:
    """Lay a record out as indented lines; crystals as their lattice and sites."""
    lines: list[str] = []
    space = "  " * indent
    for name, item in value.items():
        if isinstance(item, dict) and "lattice" in item and "sites" in item:
            lines.append(f"{space}{name}:")
            lines.extend(f"{space}  {line}" for line in _crystal(item))
        elif isinstance(item, dict):
            lines.append(f"{space}{name}:" + ("" if item else " –"))
            lines.extend(_lines(item, indent + 1))
        elif isinstance(item, list) and item and all(isinstance(one, dict) for one in item):
            for number, one in enumerate(item, 1):
                lines.append(f"{space}{name} {number}:")
                lines.extend(_lines(one, indent + 1))
        else:
            lines.append(f"{space}{name}: {_text(item)}")
    return lines


def _text(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_text(item) for item in value) + "]"
    return f"{value:.6g}" if isinstance(value, float) else common.cell(value)


def _crystal(document: dict[str, Any]) -> list[str]:
    from pymatgen.core.structure import Structure

    return str(Structure.from_dict(document)).splitlines()
