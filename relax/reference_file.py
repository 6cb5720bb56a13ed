"""The file format of reference energies: read with every row checked, and written.

A file is CSV, gzipped or not. Lines of `# key: value` come first, of which `energy_scheme` counts;
then columns `formula` and either `energy_per_atom` (total energies, elements included) or
`formation_energy_per_atom` (elements are zero by definition), in eV/atom; other columns may follow.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from relax.errors import RelaxError
from relax.potentials import list_potentials

if TYPE_CHECKING:
    from numpy.typing import NDArray

TOTAL, FORMATION = "energy_per_atom", "formation_energy_per_atom"
_FLAT = re.compile(r"(?:[A-Z][a-z]?[0-9.]*)+")
_BRACKETS = re.compile(r"[(\[]([^()\[\]]+)[)\]]([0-9.]*)")  # innermost
_TERM = re.compile(r"([A-Z][a-z]?)([0-9.]*)")


@dataclass(frozen=True)
class ReferenceEnergies:
    """The lowest known energy of each composition.

    Attributes:
        formulas: As in the file.
        amounts: Of each element in each formula.
        energies: eV/atom, shape (len(formulas),), all finite.
        quantity: `energy_per_atom` or `formation_energy_per_atom`.
        energy_scheme: See `relax.potentials.PotentialInfo`.
        elemental_energies: Energy of each element, eV/atom, to make formation energies with; a
            file of formation energies may lack that of some elements, or all of them (None).
        header: All the `# key: value` lines.
        counts: How many structures each composition stands for; None where the file does not say.
    """

    formulas: tuple[str, ...]
    amounts: tuple[Mapping[str, float], ...] = field(repr=False)
    energies: NDArray[np.float64]
    quantity: str
    energy_scheme: str
    elemental_energies: Mapping[str, float] | None
    header: Mapping[str, str] = field(default_factory=dict)
    counts: tuple[int, ...] | None = None


def read_reference(
    path: Path,
    energy_scheme: str | None = None,
    elemental_energies: Mapping[str, float] | None = None,
) -> ReferenceEnergies:
    """Read a file of reference energies and check all of it.

    Args:
        path: CSV, gzipped or not.
        energy_scheme: For a file whose header has none; must agree with it where it has.
        elemental_energies: For a file of formation energies that does not hold them, eV/atom.

    Raises:
        RelaxError: Naming the file, the row and the remedy.
    """
    header, rows = _parse(path)
    quantity = next((name for name in (FORMATION, TOTAL) if name in (rows.fieldnames or ())), None)
    if quantity is None or "formula" not in (rows.fieldnames or ()):
        raise RelaxError(
            f"{path}: columns {', '.join(rows.fieldnames or ['(none)'])}; it needs formula and "
            f"{TOTAL} or {FORMATION}"
        )
    return reference_of_rows(str(path), rows, quantity, header, energy_scheme, elemental_energies)


def reference_of_rows(
    path: str,
    rows: Iterable[Mapping[str, Any]],
    quantity: str,
    header: Mapping[str, str],
    energy_scheme: str | None = None,
    elemental_energies: Mapping[str, float] | None = None,
) -> ReferenceEnergies:
    """Check rows of a table.

    Args:
        path: What errors call it.
        rows: With `formula`, the quantity, and perhaps `count` and `chemsys`.
        quantity: `energy_per_atom` or `formation_energy_per_atom`.
        header: See `ReferenceEnergies`.
        energy_scheme: See `read_reference`.
        elemental_energies: Likewise.

    Raises:
        RelaxError: Naming the row and the remedy.
    """
    scheme = _scheme(path, header.get("energy_scheme"), energy_scheme)
    formulas, amounts, energies, counts = _columns(path, rows, quantity)
    elemental: Mapping[str, float] | None
    if quantity == TOTAL:
        if elemental_energies is not None:
            raise RelaxError(f"{path} has total energies, which hold the elements; leave them out")
        elemental = _terminals(path, formulas, amounts, energies)
    else:
        elemental = elemental_energies or _stated_elements(path, header)
    return ReferenceEnergies(
        formulas, amounts, energies, quantity, scheme, elemental, header, counts
    )


def write_reference(path: Path, reference: ReferenceEnergies) -> None:
    """Write a file that `read_reference` reads, gzipped if its name ends in .gz; all or nothing."""
    header = {**reference.header, "energy_scheme": reference.energy_scheme}
    if reference.quantity == FORMATION and reference.elemental_energies:
        header["elemental_energies"] = json.dumps(
            dict(sorted(reference.elemental_energies.items()))
        )
    text = io.StringIO()
    for key, value in header.items():
        text.write(f"# {key}: {value}\n")
    writer = csv.writer(text, lineterminator="\n")
    counts = reference.counts
    writer.writerow(["formula", reference.quantity, *(["count"] if counts else [])])
    for row, (parts, energy) in enumerate(zip(reference.amounts, reference.energies, strict=True)):
        formula = "".join(f"{symbol}{x:g}" if x != 1 else symbol for symbol, x in parts.items())
        writer.writerow([formula, f"{energy:.6f}", *([counts[row]] if counts else [])])
    data = text.getvalue().encode()
    if path.suffix == ".gz":
        data = gzip.compress(data, mtime=0)  # the same content gives the same file
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(data)
    temporary.replace(path)


def sha256_of_reference(path: Path) -> str:
    """Return the SHA-256 of a file of reference energies, unpacked if it is gzipped."""
    data = path.read_bytes()
    return hashlib.sha256(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).hexdigest()


def parse_formula(formula: str) -> dict[str, float]:
    """Return the amount of each element in a formula.

    Raises:
        ValueError: It is no formula.
    """
    flat = "".join(formula.split())
    while brackets := _BRACKETS.search(flat):
        inside = _terms(brackets[1], float(brackets[2] or 1))
        written = "".join(f"{symbol}{amount!r}" for symbol, amount in inside.items())
        flat = flat[: brackets.start()] + written + flat[brackets.end() :]
    parts = _terms(flat)
    if not parts or not parts.keys() <= _symbols() or not all(x > 0 for x in parts.values()):
        raise ValueError(formula)
    return parts


def _terms(flat: str, times: float = 1.0) -> dict[str, float]:
    """Return the amounts of a formula without brackets, taken so many times."""
    if not _FLAT.fullmatch(flat):
        raise ValueError(flat)
    amounts: dict[str, float] = {}
    for symbol, amount in _TERM.findall(flat):
        amounts[symbol] = amounts.get(symbol, 0.0) + float(amount or 1) * times
    return amounts


@cache
def _symbols() -> frozenset[str]:
    from ase.data import chemical_symbols

    return frozenset(chemical_symbols[1:])


def _parse(path: Path) -> tuple[dict[str, str], csv.DictReader[str]]:
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise RelaxError(f"{path}: cannot be read ({error}); give a csv file") from error
    lines = text.splitlines()
    first = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    pairs = (line.lstrip("# ").partition(":") for line in lines[:first])
    header = {key.strip(): value.strip() for key, colon, value in pairs if colon}
    return header, csv.DictReader(lines[first:])


def _scheme(path: str, stated: str | None, given: str | None) -> str:
    if stated and given and stated != given:
        raise RelaxError(f"{path} says energy_scheme {stated}, not {given}; leave the scheme out")
    scheme = stated or given
    known = sorted({info.energy_scheme for info in list_potentials()})
    if not scheme:
        raise RelaxError(
            f"{path}: no line `# energy_scheme: …` at its top; state the scheme, one of "
            f"{', '.join(known)} or self-consistent:POTENTIAL"
        )
    if scheme not in known and not re.fullmatch(r"self-consistent:\S+", scheme):
        raise RelaxError(
            f"{path}: unknown energy scheme {scheme!r}; one of {', '.join(known)} or "
            "self-consistent:POTENTIAL"
        )
    return scheme


def _columns(
    path: str, rows: Iterable[Mapping[str, Any]], quantity: str
) -> tuple[
    tuple[str, ...], tuple[dict[str, float], ...], NDArray[np.float64], tuple[int, ...] | None
]:
    """Read formulas, their amounts, energies and counts."""
    formulas, amounts, energies, counts = [], [], [], []
    counted = False
    for number, row in enumerate(rows, start=1):
        formula, counted = row["formula"] or "", "count" in row
        if not formula and row.get("chemsys") == "N-Na":
            formula = "NaN"  # sodium nitride, which pandas takes for a missing value
        try:
            energy = float("nan" if row[quantity] in (None, "") else row[quantity])
            amounts.append(parse_formula(formula))
            if counted:
                counts.append(int(row["count"]))
        except (ValueError, TypeError) as error:
            raise RelaxError(
                f"{path}: row {number} (formula {formula!r}, {quantity} {row[quantity]!r}) cannot "
                "be read; mend or remove it"
            ) from error
        if not math.isfinite(energy):
            raise RelaxError(
                f"{path}: row {number} ({formula}) has no finite {quantity}; remove the row"
            )
        formulas.append(formula)
        energies.append(energy)
    if not formulas:
        raise RelaxError(f"{path}: no rows; give a file with energies")
    return tuple(formulas), tuple(amounts), np.array(energies), tuple(counts) if counted else None


def _terminals(
    path: str,
    formulas: Sequence[str],
    amounts: Sequence[Mapping[str, float]],
    energies: NDArray[np.float64],
) -> dict[str, float]:
    """Return the lowest energy of each element; every element of the file must have one."""
    terminals: dict[str, float] = {}
    for parts, energy in zip(amounts, energies, strict=True):
        if len(parts) == 1:
            (symbol,) = parts
            terminals[symbol] = min(terminals.get(symbol, math.inf), float(energy))
    for number, (formula, parts) in enumerate(zip(formulas, amounts, strict=True), start=1):
        missing = sorted(parts.keys() - terminals.keys())
        if missing:
            raise RelaxError(
                f"{path}: row {number} ({formula}) has no row for its element {missing[0]}; add "
                "one or remove the row"
            )
    return terminals


def _stated_elements(path: str, header: Mapping[str, str]) -> dict[str, float] | None:
    if "elemental_energies" not in header:
        return None
    try:
        return {symbol: float(e) for symbol, e in json.loads(header["elemental_energies"]).items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise RelaxError(
            f"{path}: its elemental_energies are no JSON mapping; mend them"
        ) from error
