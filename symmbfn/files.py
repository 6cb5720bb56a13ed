"""Structures in and out of files: CIF, extended XYZ, JSON, JSON lines, POSCAR, parquet, csv.

Reading: one bad entry is a result with its error and never stops the rest. Sites must be whole
elements; oxidation states and site properties are left behind. A left-handed cell is turned into a
right-handed one of the same crystal; NaN, infinite numbers and cells without volume are errors.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO
from uuid import uuid4

import numpy as np
from pymatgen.core import Structure

from symmbfn import file_formats
from symmbfn.errors import SymmBFNError

if TYPE_CHECKING:
    from ase import Atoms

READERS: dict[str, Callable[[Path], Iterator[file_formats.Entry]]] = {
    ".cif": file_formats.read_cif,
    ".extxyz": file_formats.read_extxyz,
    ".xyz": file_formats.read_extxyz,
    ".jsonl": file_formats.read_jsonl,
    ".json": file_formats.read_json,
    ".vasp": file_formats.read_poscar,
    ".poscar": file_formats.read_poscar,
    ".csv": file_formats.read_csv,
    ".parquet": file_formats.read_parquet,
}


@dataclass(frozen=True)
class ReadResult:
    """One entry of a structure file.

    Attributes:
        index: Position among all entries read, from 0.
        name: material_id, name or id if the file gives one; else file name and position.
        structure: The crystal, None if it cannot be had.
        error: Why not, in one line.
        extra: What else the entry holds, such as properties.
    """

    index: int
    name: str
    structure: Structure | None
    error: str | None = None
    extra: dict[str, object] = field(default_factory=dict)


def read_structures(path: str | Path) -> list[ReadResult]:
    """Read every entry of a file, or of all structure files in a folder.

    Raises:
        SymmBFNError: The file is not there, of no known kind, or not readable at all.
    """
    return list(iter_structures(path))


def iter_structures(path: str | Path) -> Iterator[ReadResult]:
    """Read entries one after the other, for files larger than memory.

    Raises:
        SymmBFNError: The file is not there, of no known kind, or not readable at all.
    """
    path = Path(path)
    numbers = count()
    if not path.is_dir():
        for entry in _entries(path):
            yield _result(next(numbers), entry)
        return
    files = sorted(file for file in path.iterdir() if file.is_file() and _reader(file))
    if not files:
        raise SymmBFNError(f"{path}: no structure file in this folder; known: {_known()}")
    for file in files:
        try:
            for entry in _entries(file):
                yield _result(next(numbers), entry)
        except SymmBFNError as error:
            yield ReadResult(next(numbers), file.name, None, str(error))


def _entries(path: Path) -> Iterator[file_formats.Entry]:
    import pandas as pd
    import pyarrow as pa

    if not path.exists():
        raise SymmBFNError(f"{path}: no such file or folder")
    reader = _reader(path)
    if reader is None:
        raise SymmBFNError(f"{path}: unknown kind of structure file; known: {_known()}")
    empty = True
    try:
        for entry in reader(path):
            empty = False
            yield entry
    except (
        OSError,
        UnicodeDecodeError,
        pa.ArrowException,
        pd.errors.ParserError,
        pd.errors.EmptyDataError,
    ) as error:
        kind = path.suffix.lstrip(".") or "POSCAR"
        raise SymmBFNError(f"{path}: not readable as {kind} ({_one_line(error)})") from error
    if empty:
        raise SymmBFNError(f"{path}: no structure in it")


def _reader(path: Path) -> Callable[[Path], Iterator[file_formats.Entry]] | None:
    if re.match(r"(POSCAR|CONTCAR)", path.name):
        return file_formats.read_poscar
    return READERS.get(path.suffix.lower())


def _known() -> str:
    return ", ".join([*READERS, "POSCAR", "CONTCAR"])


def _result(index: int, entry: file_formats.Entry) -> ReadResult:
    try:
        return ReadResult(index, entry.name, entry.build(), None, dict(entry.extra))
    except Exception as error:  # parsers fail in every way; one entry must not stop the rest
        reason = _one_line(error) or type(error).__name__
        return ReadResult(index, entry.name, None, reason, dict(entry.extra))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def write_structures(
    path: str | Path,
    structures: Sequence[Structure],
    extra: Sequence[Mapping[str, object]] | None = None,
) -> None:
    """Write structures to .cif (a block each), .extxyz or .jsonl; the file appears only when whole.

    Args:
        path: The ending chooses the format; an old file is replaced.
        structures: Ordered structures.
        extra: What to keep beside each: numbers and text; in .jsonl anything that JSON holds.

    Raises:
        SymmBFNError: Another ending, a number that is not finite, or a place not to be written to.
    """
    path = Path(path)
    writer = _WRITERS.get(path.suffix.lower())
    if writer is None:
        raise SymmBFNError(f"{path}: cannot write this ending; known: {', '.join(_WRITERS)}")
    for index, structure in enumerate(structures):
        if not (
            np.isfinite(structure.lattice.matrix).all() and np.isfinite(structure.frac_coords).all()
        ):
            raise SymmBFNError(f"structure {index} for {path} has coordinates that are not finite")
    rows = extra if extra is not None else [{}] * len(structures)
    temporary = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        with temporary.open("x", encoding="utf-8") as file:
            for index, (structure, row) in enumerate(zip(structures, rows, strict=True)):
                writer(file, index, structure, row)
        temporary.replace(path)
    except OSError as error:
        raise SymmBFNError(f"{path} cannot be written: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _write_cif(file: TextIO, index: int, structure: Structure, row: Mapping[str, object]) -> None:
    from pymatgen.io.cif import CifWriter

    text = str(CifWriter(structure, significant_figures=10))
    name = re.sub(r"\W+", "_", f"{row.get('material_id') or row.get('name') or index}")
    head, body = text.split(f"data_{structure.composition.reduced_formula}\n", 1)
    lines = [f"_symmbfn_{key}   {_cif_value(value)}" for key, value in _scalars(row)]
    file.write(f"{head}data_{name}\n" + "".join(f"{line}\n" for line in lines) + body + "\n")


def _cif_value(value: str | float) -> str:
    if isinstance(value, str):
        return "'" + " ".join(value.replace("'", '"').split())[:1000] + "'"
    return repr(value)


def _write_extxyz(file: TextIO, _: int, structure: Structure, row: Mapping[str, object]) -> None:
    from ase.io.extxyz import write_extxyz

    write_extxyz(file, [_to_atoms(structure, dict(_scalars(row)))])


def _to_atoms(structure: Structure, info: dict[str, Any]) -> "Atoms":
    from ase import Atoms

    return Atoms(
        numbers=structure.atomic_numbers,
        cell=structure.lattice.matrix,
        scaled_positions=structure.frac_coords,
        pbc=True,
        info=info,
    )


def _write_jsonl(file: TextIO, _: int, structure: Structure, row: Mapping[str, object]) -> None:
    record = {"structure": structure.as_dict(), **row}
    file.write(json.dumps(_plain(record), allow_nan=False) + "\n")


_WRITERS = {".cif": _write_cif, ".extxyz": _write_extxyz, ".jsonl": _write_jsonl}


def _scalars(row: Mapping[str, object]) -> Iterator[tuple[str, str | float]]:
    """Fields that CIF and extended XYZ can hold, with safe names."""
    for key, value in row.items():
        plain = _plain(value)
        if isinstance(plain, str | int | float):
            yield re.sub(r"\W+", "_", key), plain


def _plain(value: Any) -> Any:
    """Only what JSON holds: numpy numbers become Python's, NaN becomes None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | None) else str(value)
