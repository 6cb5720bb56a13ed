"""What several commands share: options, the terminal, tables and JSON."""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.errors import ConfigError

if TYPE_CHECKING:
    from pymatgen.core.structure import Structure
    from rich.console import Console

    from db.session import Database
    from flows.engine import Engine
    from flows.progress import TerminalProgress
    from flows.settings import CampaignConfig, DaskSettings, FileSettings

MOST = 10**9
"""Of rows, files or crystals that may be asked for."""

DatabaseOption = Annotated[
    str | None,
    typer.Option("--db", metavar="URL", help="Database: SQLAlchemy URL. (default $SYMMBFN_DB)"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
OutOption = Annotated[
    Path, typer.Option("--out", "-o", help="File to write: .cif, .extxyz or .jsonl.")
]
ForceOption = Annotated[bool, typer.Option("--force", help="Overwrite files that are there.")]
PotentialOption = Annotated[
    str | None, typer.Option("--potential", help="A potential's name or path. (default chgnet)")
]
KeepSymmetryOption = Annotated[
    bool,
    typer.Option(
        "--keep-symmetry", help="Relax in the space group given, then see if it is a saddle."
    ),
]
WorkersOption = Annotated[
    int | None, typer.Option("--workers", min=1, help="Processes. (default one per core)")
]
DeviceOption = Annotated[
    str | None,
    typer.Option(help="That relaxes: cpu, or cuda, many crystals at once. (default cpu)"),
]
CheckpointOption = Annotated[
    str | None, typer.Option("--checkpoint", help="A generator's name or folder. (default mp20)")
]
SeedOption = Annotated[int | None, typer.Option("--seed", help="(default 0)")]
StepsOption = Annotated[int | None, typer.Option("--steps", help="Sampling steps.")]
ProposalsOption = Annotated[
    int | None,
    typer.Option(
        "--proposals",
        min=1,
        help="Site arrangements for each crystal, of which critic and estimator choose one; not "
        "with --formula. (default 4; 1 without them)",
    ),
]
PropertyOption = Annotated[
    list[str] | None,
    typer.Option(
        "--property",
        metavar="NAME=VALUE",
        help="Target value; may be repeated. mp20 knows formation_energy_per_atom, band_gap, "
        "energy_above_hull and composition_valid.",
    ),
]
GuidanceOption = Annotated[
    list[str] | None,
    typer.Option(
        "--guidance",
        metavar="NAME=STRENGTH",
        help="How strongly a target steers (default 1); may be repeated.",
    ),
]
ElementsOption = Annotated[
    str | None, typer.Option("--elements", metavar="Li,Fe,O", help="Only these elements.")
]
RequireOption = Annotated[
    str | None, typer.Option("--require", metavar="Li,O", help="All of these elements.")
]
ExcludeOption = Annotated[
    str | None, typer.Option("--exclude", metavar="Pb,Cd", help="None of these elements.")
]
SpaceGroupOption = Annotated[
    str | None,
    typer.Option("--space-group", metavar="225,Fd-3m", help="Only these space groups."),
]
CrystalSystemOption = Annotated[
    str | None,
    typer.Option("--crystal-system", metavar="cubic,hexagonal", help="Only these systems."),
]
MaxAtomsOption = Annotated[
    int | None, typer.Option("--max-atoms", help="Most atoms in the primitive cell.")
]
NumAtomsOption = Annotated[
    int | None, typer.Option("--num-atoms", help="Atoms in the primitive cell, exactly.")
]
FormulaOption = Annotated[
    str | None, typer.Option("--formula", metavar="LiFePO4", help="Composition, exactly.")
]


def campaign_config(config: Path | None, overrides: Mapping[str, Any]) -> CampaignConfig:
    """Read the campaign file, if any, under the options that were given."""
    from flows.settings import CampaignConfig

    return read_settings(CampaignConfig, config, overrides)


def read_settings[S: FileSettings](
    kind: type[S], config: Path | None, overrides: Mapping[str, Any]
) -> S:
    """Read a file of settings, if any, under the options that were given."""
    given = _given(overrides)
    if config is not None:
        return kind.from_toml(config, given)
    return kind.build(given, where="command line")


def conditions_table(
    *,
    properties: Sequence[str] | None,
    guidance: Sequence[str] | None,
    elements: str | None,
    require: str | None,
    exclude: str | None,
    space_group: str | None,
    crystal_system: str | None,
    max_atoms: int | None,
    num_atoms: int | None,
    formula: str | None,
) -> dict[str, Any]:
    """Turn the options that condition the generator into the table `conditions`."""
    return {
        "properties": _numbers(properties, "--property", "band_gap=1.5"),
        "guidance": _numbers(guidance, "--guidance", "band_gap=2"),
        "elements": _split(elements),
        "require": _split(require),
        "exclude": _split(exclude),
        "space_groups": _space_groups(space_group),
        "crystal_systems": _split(crystal_system),
        "max_atoms": max_atoms,
        "num_atoms": num_atoms,
        "formula": formula,
    }


def _numbers(texts: Sequence[str] | None, option: str, example: str) -> dict[str, float] | None:
    from flows.settings import parse_number

    if not texts:
        return None
    pairs = [parse_number(text, option, example) for text in texts]
    for name, count in Counter(name for name, _ in pairs).items():
        if count > 1:
            raise ConfigError(f"{option} {name} is given {count} times; give it once")
    return dict(pairs)


def _split(text: str | None) -> list[str] | None:
    return None if text is None else [part for part in text.replace(",", " ").split() if part]


def _space_groups(text: str | None) -> list[int] | None:
    """Numbers of space groups given by number or by symbol.

    Raises:
        ConfigError: There is no such symbol.
    """
    if text is None:
        return None
    from pymatgen.symmetry.groups import SpaceGroup

    numbers = []
    for part in _split(text) or ():
        try:
            numbers.append(int(part) if part.isdigit() else SpaceGroup(part).int_number)
        except ValueError as error:
            raise ConfigError(
                f"--space-group {part!r}: write numbers such as 225, or symbols such as Fm-3m"
            ) from error
    return numbers


def judge_table(judge: str | None, hull: str | None) -> dict[str, str | None]:
    """Turn --judge and --judge-hull into the table `judge`.

    Raises:
        ConfigError: There is a hull, but no judge.
    """
    if hull is not None and judge is None:
        raise ConfigError(f"--judge-hull {hull}: nobody judges; give --judge too, or drop it")
    return {"potential": judge, "hull": hull}


def drawn_again(tally: Mapping[str, int]) -> str:
    """Say, in a sentence or not at all, how many draws were refused and why (`sample.Tally`)."""
    refused = {name: n for name, n in tally.items() if n and name not in ("drawn", "accepted")}
    told = ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in refused.items())
    return f"Not kept: {told}, of {tally['drawn']} draws." if told else ""


def _given(table: Mapping[str, Any]) -> dict[str, Any]:
    """Drop what was not given, also in nested tables."""
    result: dict[str, Any] = {}
    for name, value in table.items():
        kept = _given(value) if isinstance(value, Mapping) else value
        if kept is not None and kept != {}:
            result[name] = kept
    return result


@dataclass(frozen=True)
class Readable:
    """The good entries of a file of structures, and name and error of each bad one."""

    names: list[str]
    structures: list[Structure]
    errors: list[tuple[str, str]]


def readable(file: Path) -> Readable:
    """Read structures; bad entries never stop the others.

    Raises:
        ConfigError: When not one entry can be read.
        SymmBFNError: When the file cannot be.
    """
    from symmbfn.files import read_structures

    found = Readable([], [], [])
    for entry in read_structures(file):
        if entry.structure is None:
            found.errors.append((entry.name, entry.error or "unreadable"))
        else:
            found.names.append(entry.name)
            found.structures.append(entry.structure)
    if not found.structures:
        raise nothing_readable(file, found.errors)
    return found


def nothing_readable(file: Path, errors: Sequence[tuple[str, str | None]]) -> ConfigError:
    """Make the error that no structure in a file can be read, with the first reason."""
    why = f"; {errors[0][0]}: {errors[0][1]}" if errors else ""
    return ConfigError(f"{file}: no structure in it can be read{why}")


def existing_database(url: str | None) -> Database:
    """Open a database that must be there: a query must not create an empty one.

    Raises:
        ConfigError: When the SQLite file does not exist.
    """
    from db.session import open_database

    return open_database(url, create=False)


def check_output(
    path: Path, *, force: bool = False, endings: Sequence[str] = (), option: str = "--out"
) -> None:
    """Refuse a bad output file, named by `option`, before any work is done for it.

    Raises:
        ConfigError: When it has another ending, is there already or a folder, or cannot be written.
    """
    if endings and path.suffix.lower() not in endings:
        raise ConfigError(f"{option} {path}: the file must end in {', '.join(endings)}")
    if path.is_dir():
        raise ConfigError(f"{option} {path}: is a folder; name a file")
    if path.exists() and not force:
        raise ConfigError(f"{option} {path}: is there already; name another file or add --force")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"{option} {path}: no folder {path.absolute().parent}; make it first")
    try:
        with tempfile.NamedTemporaryFile(dir=path.absolute().parent, prefix="."):
            pass
    except OSError as error:
        folder = path.absolute().parent
        raise ConfigError(
            f"{option} {path}: nothing can be written in {folder} ({error.strerror}); check its "
            "permissions, or name another"
        ) from error


def print_json(value: object) -> None:
    """Write one JSON document; what is not a finite number becomes null."""
    print(json.dumps(plain(value), indent=2, ensure_ascii=False))


def plain(value: Any) -> Any:
    """Turn numpy, dates and dataclass leftovers into what JSON knows."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | bool | None) else str(value)


@contextmanager
def terminal_progress() -> Iterator[TerminalProgress]:
    """Show bars on the standard error stream within the block."""
    from flows.progress import TerminalProgress

    with TerminalProgress(console(error=True)).running() as progress:
        yield progress


def run_pipeline[C](
    config: C,
    check: Callable[[C], None],
    load: Callable[[], Callable[[C, Engine], int]],
    dask: DaskSettings | None,
) -> int:
    """Run a pipeline of `flows/pipeline.py`: by Prefect where a server of it is named, or here.

    Args:
        config: What it is given.
        check: Raises if something that the settings name is not right.
        load: Imports it.
        dask: The cluster that is to share the relaxations.
    """
    with terminal_progress() as progress:
        progress.stage("start", None)
        from flows.engine import choose_engine

        check(config)
        return choose_engine(dask).run(load(), config)


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all, through a neighbour that takes its name."""
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=path.parent, prefix=".", suffix=".tmp", delete=False
    ) as file:
        file.write(text)
    try:
        os.chmod(file.name, 0o644)
        os.replace(file.name, path)
    except OSError:
        os.unlink(file.name)
        raise


def console(*, error: bool = False) -> Console:
    """Return a console; where the output is no terminal, wide enough to cut nothing."""
    from rich.console import Console

    stream = sys.stderr if error else sys.stdout
    return Console(stderr=error, width=None if stream.isatty() else 200, soft_wrap=False)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], title: str = "") -> None:
    """Print a table on the standard output; numbers to the right."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD)
    for index, name in enumerate(columns):
        right = all(isinstance(row[index], int | float | None) for row in rows)
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell(value)) for value in row))
    console().print(table)


def print_facts(facts: Mapping[str, object]) -> None:
    """Print names and values, a line each."""
    width = max(map(len, facts), default=0)
    for name, value in facts.items():
        print(f"{name:<{width}}  {cell(value)}")


def cell(value: object) -> str:
    """Write one value for people: yes and no, three decimals, a dash for nothing, no controls."""
    if value is None or value != value:
        return "–"
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:z.3f}"  # z: no -0.000
    return "".join(character if character.isprintable() else "?" for character in str(value))
