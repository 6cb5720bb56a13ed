"""Reference energies for hulls: where they are kept, and importing a user's."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from relax.errors import RelaxError
from relax.formulas import lowest_energies, reduced_formula
from relax.reference_file import (
    TOTAL,
    ReferenceEnergies,
    parse_formula,
    read_reference,
    reference_of_rows,
    write_reference,
)
from relax.reference_sources import is_elsewhere, read_elsewhere

_SHIPPED = Path(__file__).parent / "data"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


def user_folder() -> Path:
    """Return where imported hulls are kept: `$SYMMBFN_HOME`, or the user's data folder."""
    home = os.environ.get("SYMMBFN_HOME")
    if home:
        return Path(home) / "hulls"
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data) / "symmbfn" / "hulls"


def hull_files() -> dict[str, Path]:
    """Return the hulls that can be had by name; an imported one hides a shipped one's name."""
    imported = {path.name[:-7]: path for path in sorted(user_folder().glob("*.csv.gz"))}
    return _shipped() | imported


def _shipped() -> dict[str, Path]:
    return {path.name[5:-7]: path for path in sorted(_SHIPPED.glob("hull-*.csv.gz"))}


def locate(name_or_path: str | Path) -> tuple[str, Path]:
    """Find a hull's file.

    Returns:
        Its name and its path.

    Raises:
        RelaxError: There is none.
    """
    files = hull_files()
    if (path := files.get(str(name_or_path))) is not None:
        return str(name_or_path), path
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return path.name.removesuffix(".gz").removesuffix(".csv"), path
    raise RelaxError(
        f"no hull {str(name_or_path)!r}; there are {', '.join(files) or 'none'}, or give a csv file"
    )


def import_hull(
    source: str | Path,
    *,
    name: str | None = None,
    energy_scheme: str | None = None,
    elements_from: str | Path | None = None,
    elements: Sequence[str] = (),
    energy_field: str | None = None,
) -> Path:
    """Check reference energies and keep a copy in the user's folder, to be had by name.

    Args:
        source: A csv, see `read_reference`; or what `read_elsewhere` reads.
        name: The file's name without its ending by default.
        energy_scheme: For a source that does not say.
        elements_from: For formation energies, see `elemental_energies`.
        elements: See `read_elsewhere`.
        energy_field: Likewise.

    Returns:
        Where the copy is.

    Raises:
        RelaxError: Naming the file, the row and the remedy; then nothing is written.
    """
    if name is None:
        last = str(source).rstrip("/").rpartition("/")[2]
        name = last.removesuffix(".gz").removesuffix(".csv").removesuffix(".json")
    if not _NAME.fullmatch(name):
        raise RelaxError(
            f"hull name {name!r}: only letters, digits, '.', '_' and '-'; give another"
        )
    if name in _shipped():
        raise RelaxError(f"hull name {name!r} is that of a shipped hull; give another with --name")
    copy = user_folder() / f"{name}.csv.gz"
    if copy.exists():
        raise RelaxError(f"there is a hull {name!r} at {copy}; give another name or delete it")
    elemental = None if elements_from is None else elemental_energies(elements_from)
    if is_elsewhere(str(source)):
        table = read_elsewhere(str(source), elements=elements, energy_field=energy_field)
        header = {"source": table.where}
        if table.energy_scheme:
            header["energy_scheme"] = table.energy_scheme
        reference = reference_of_rows(
            table.where, table.rows, table.quantity, header, energy_scheme, elemental
        )
    elif elements or energy_field:
        raise RelaxError(f"{source}: a csv is taken whole; leave out what is asked of it")
    else:
        reference = read_reference(Path(source), energy_scheme, elemental)
    write_reference(copy, _lowest(reference))
    return copy


def elemental_energies(source: str | Path) -> dict[str, float]:
    """Read the energies of the elements, eV/atom.

    Args:
        source: A JSON file {"Li": -1.9, …}; or FILE#KEY where that is one of several in the file;
            or a hull of total energies, by name or path.

    Raises:
        RelaxError: Naming the file and the remedy.
    """
    path, _, key = str(source).partition("#")
    if not Path(path).name.endswith(".json"):
        found = read_reference(locate(source)[1])
        if found.quantity != TOTAL or found.elemental_energies is None:
            raise RelaxError(f"{source} has no total energies of the elements; give another")
        return dict(found.elemental_energies)
    try:
        data = json.loads(Path(path).expanduser().read_text())
        energies = {
            symbol: float(energy) for symbol, energy in (data[key] if key else data).items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RelaxError(
            f"{source}: no elemental energies ({type(error).__name__}); it must be JSON such as "
            '{"Li": -1.9, …}, or FILE#KEY for one of several in it'
        ) from error
    if not energies or not all(map(math.isfinite, energies.values())):
        raise RelaxError(f"{source}: an elemental energy is missing or not finite")
    return energies


def _lowest(reference: ReferenceEnergies) -> ReferenceEnergies:
    """Keep the lowest energy of each composition, under its reduced formula."""
    from pymatgen.core import Composition

    reduced = [reduced_formula(Composition(formula)) for formula in reference.formulas]
    best = lowest_energies(reduced, reference.energies, reference.counts)
    return ReferenceEnergies(
        formulas=tuple(sorted(best)),
        amounts=tuple(parse_formula(formula) for formula in sorted(best)),
        energies=np.array([best[formula][0] for formula in sorted(best)]),
        quantity=reference.quantity,
        energy_scheme=reference.energy_scheme,
        elemental_energies=reference.elemental_energies,
        header=reference.header,
        counts=tuple(best[formula][1] for formula in sorted(best)),
    )
