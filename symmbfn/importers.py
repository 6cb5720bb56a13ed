"""From structure files to training data: which crystals are used, and their property columns.

`import_crystals` gathers; `symmbfn.data.preprocess(imported.structures, imported.properties)` makes
the tensors.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pymatgen.core import Structure

from symmbfn.errors import SymmBFNError
from symmbfn.files import ReadResult, iter_structures
from symmbfn.metrics import composition_valid

PROPERTIES: dict[str, tuple[str, ...]] = {
    "formation_energy_per_atom": ("formation_energy_per_atom",),
    "band_gap": ("band_gap",),
    "energy_above_hull": ("energy_above_hull", "e_above_hull", "e_above_hull_est"),
}
"""Properties known by themselves, and the columns that may hold them, the best first."""

DERIVED: dict[str, Callable[[Structure], float]] = {
    "composition_valid": lambda structure: float(composition_valid(structure.composition)),
}
"""Properties that follow from the crystal itself, where the files have no such column."""

SUSPECT = "recon_suspect"
"""A row with this column true has coordinates that are not to be trusted."""


@dataclass(frozen=True)
class Imported:
    """Crystals for training.

    Attributes:
        structures: n structures.
        properties: (n,) values for each property that the files hold, NaN where unknown.
        names: What the files call each structure.
        dropped: Name and reason of each entry left out.
    """

    structures: list[Structure]
    properties: dict[str, NDArray[np.float64]]
    names: list[str]
    dropped: list[tuple[str, str]]


def import_crystals(
    paths: str | Path | Iterable[str | Path],
    *,
    extra_properties: Sequence[str] = (),
    on_entry: Callable[[int], None] | None = None,
) -> Imported:
    """Read training crystals and their properties from files or folders.

    Args:
        paths: Anything that `symmbfn.files` reads.
        extra_properties: More columns to take as properties, under their own names; or those of
            `DERIVED`, 1 or 0 of `composition_valid`.
        on_entry: Called with 1 after each entry, for a progress bar.

    Raises:
        SymmBFNError: A file is not readable, no entry is usable, or no entry holds a number under
            one of `extra_properties` that is not derived.
    """
    columns = PROPERTIES | {name: (name,) for name in extra_properties if name not in PROPERTIES}
    found = Imported([], {}, [], [])
    values: dict[str, list[float]] = {name: [] for name in columns}
    seen: set[str] = set()
    for path in [paths] if isinstance(paths, str | Path) else paths:
        for entry in iter_structures(path):
            seen.update(entry.extra)
            _take(entry, found, columns, values)
            if on_entry is not None:
                on_entry(1)
    if not found.structures:
        name, reason = found.dropped[0] if found.dropped else ("the list of files", "it is empty")
        raise SymmBFNError(f"no usable crystal to import; {name}: {reason}")
    for name in extra_properties:
        if name in DERIVED and name not in seen:
            values[name] = [DERIVED[name](structure) for structure in found.structures]
        if not np.isfinite(values[name]).any():
            known = ", ".join(sorted(seen)) or "no columns"
            raise SymmBFNError(f"no numbers for property {name!r}; the files hold {known}")
    for name, column in values.items():
        if np.isfinite(column).any():
            found.properties[name] = np.array(column)
    return found


def _take(
    entry: ReadResult,
    found: Imported,
    columns: dict[str, tuple[str, ...]],
    values: dict[str, list[float]],
) -> None:
    if entry.structure is None:
        found.dropped.append((entry.name, entry.error or "unreadable"))
    elif entry.extra.get(SUSPECT) in (True, "True", "true", 1):
        found.dropped.append((entry.name, f"marked {SUSPECT}"))
    else:
        found.structures.append(entry.structure)
        found.names.append(entry.name)
        for name, sources in columns.items():
            numbers = (_finite(entry.extra.get(source)) for source in sources)
            values[name].append(next((x for x in numbers if x is not None), math.nan))


def _finite(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        return None
    return float(value) if math.isfinite(value) else None
