"""Readers of structure files: each yields entries whose structure is built only when asked for.

Every structure goes through `make_structure`, so all formats keep the same promises.
"""

import io
import json
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from pymatgen.core import Element, Lattice, Structure

from symmbfn.errors import SymmBFNError

MAX_ATOMS = 2_000
MAX_TEXT = 4_000_000  # characters of one CIF block, JSON line or POSCAR
MAX_WHOLE_FILE = 256_000_000  # bytes of a CIF or JSON file, which are read at once
_MAX_CIF_IMAGES = 4_000  # sites x symmetry operations of a CIF; pymatgen compares all pairs
_MAX_CIF_LINE = 2_048  # characters, as in CIF 1.1; pymatgen's patterns are quadratic in it
_MAX_OPERATIONS = 192  # of any space group in any cell that a CIF uses
_MIN_VOLUME = 1e-3  # Å^3

_NAME_KEYS = ("material_id", "name", "id")
_LAYOUTS = (
    ("structure",),
    ("cif",),
    ("lattice", "sites"),
    ("lattice", "species", "frac_coords"),
    ("cell_abc_angles", "species", "frac_coords"),
)
_RECORD_NOISE = ("@module", "@class", "@version", "charge", "properties", "Unnamed: 0")
_OPERATION_KEYS = (
    "_symmetry_equiv_pos_as_xyz",
    "_symmetry_equiv_pos_as_xyz_",
    "_space_group_symop_operation_xyz",
    "_space_group_symop_operation_xyz_",
)


@dataclass(frozen=True)
class Entry:
    """One crystal of a file.

    Attributes:
        name: What the file calls it, or file name and position.
        build: Makes the structure; may raise anything.
        extra: What else the file says of it.
    """

    name: str
    build: Callable[[], Structure]
    extra: Mapping[str, object]


def make_structure(matrix: Any, symbols: Sequence[str], frac_coords: Any) -> Structure:
    """An ordered structure of plain elements in a right-handed cell.

    A left-handed cell is described again, as the same crystal, with its first two vectors swapped.

    Args:
        matrix: (3, 3) or (9,) lattice vectors as rows, Å.
        symbols: N element symbols; D and T become H.
        frac_coords: (N, 3) or (3 N,) fractional coordinates.

    Raises:
        ValueError: No atoms or too many, a number that is not finite, no volume, no element.
    """
    lattice = np.asarray(matrix, dtype=float).reshape(3, 3)
    coords = np.asarray(frac_coords, dtype=float).reshape(-1, 3)
    if len(symbols) != len(coords):
        raise ValueError(f"{len(symbols)} species for {len(coords)} positions")
    if not 0 < len(symbols) <= MAX_ATOMS:
        raise ValueError(f"{len(symbols)} atoms; between 1 and {MAX_ATOMS} can be read")
    if not (np.isfinite(lattice).all() and np.isfinite(coords).all()):
        raise ValueError("a lattice vector or coordinate is not a finite number")
    volume = np.linalg.det(lattice)
    if abs(volume) < _MIN_VOLUME:
        raise ValueError("the cell has no volume")
    if volume < 0:
        lattice, coords = lattice[[1, 0, 2]], coords[:, [1, 0, 2]]
    return Structure(Lattice(lattice), [_element(symbol) for symbol in symbols], coords)


@lru_cache(maxsize=512)
def _element(symbol: str) -> Element:
    if not Element.is_valid_symbol(symbol):
        raise ValueError(f"{str(symbol)[:20]!r} is not an element")
    return Element.from_Z(Element(symbol).Z)


def from_record(record: Mapping[str, Any]) -> Structure:
    """The structure of a table row or JSON object, in the first of the layouts that it has.

    Layouts: structure (a pymatgen dict, or JSON text of one) · cif (text) · lattice and sites (a
    pymatgen dict itself) · lattice (9 numbers, rows are vectors, Å) or cell_abc_angles (6: Å and
    degrees) with species and frac_coords (3 N numbers).

    Raises:
        ValueError: None of them, or a value that makes no structure.
    """
    layout = next((keys for keys in _LAYOUTS if all(record.get(key) for key in keys)), None)
    if layout is None:
        raise ValueError("no structure: expected " + ", or ".join(" + ".join(k) for k in _LAYOUTS))
    if layout == ("structure",):
        inner = record["structure"]
        inner = json.loads(inner) if isinstance(inner, str) else inner
        if not isinstance(inner, dict) or "sites" not in inner:
            raise ValueError("'structure' holds no pymatgen dict")
        return from_record({"lattice": inner.get("lattice"), "sites": inner["sites"]})
    if layout == ("cif",):
        return from_cif(record["cif"])
    if "sites" in layout:
        return _from_pymatgen(record)
    if "lattice" in layout:
        return make_structure(record["lattice"], record["species"], record["frac_coords"])
    matrix = Lattice.from_parameters(*record["cell_abc_angles"]).matrix
    return make_structure(matrix, record["species"], record["frac_coords"])


def _from_pymatgen(document: Mapping[str, Any]) -> Structure:
    # Not Structure.from_dict: site properties may name classes, which it would import and call.
    symbols, coords = [], []
    for site in document["sites"]:
        first, *others = site["species"]
        if others or first["occu"] != 1:
            raise ValueError("partly occupied sites; give an ordered structure")
        symbols.append(first["element"])
        coords.append(site["abc"])
    return make_structure(document["lattice"]["matrix"], symbols, coords)


def from_cif(text: str) -> Structure:
    """The structure of one CIF block, all its atoms in the cell as given.

    Raises:
        ValueError: No structure, a disordered one, or one too large to expand.
    """
    from pymatgen.io.cif import CifBlock, CifParser

    if len(text) > MAX_TEXT:
        raise ValueError(f"a CIF block of {len(text)} characters; leave out reflection data")
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    if (longest := max(map(len, lines), default=0)) > _MAX_CIF_LINE:
        raise ValueError(f"a line of {longest} characters; CIF allows {_MAX_CIF_LINE}")
    text = "\n".join(lines)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about roundings and missing headers
        block = CifBlock.from_str(text)
        listed = next(
            (_column(block.data, key) for key in _OPERATION_KEYS if key in block.data), []
        )
        if _is_plain(block.data, listed):
            return _from_plain_cif(block.data)
        sites = len(_column(block.data, "_atom_site_fract_x"))
        if len(listed) > _MAX_OPERATIONS or sites > MAX_ATOMS:
            raise ValueError(f"{sites} sites under {len(listed)} operations; too many")
        parser = CifParser.from_str(text)
        images = sites * len(parser.get_symops(block))
        if images > _MAX_CIF_IMAGES:
            raise ValueError(f"{images} images of {sites} sites; at most {_MAX_CIF_IMAGES}")
        structures = parser.parse_structures(primitive=False)
    if not structures[0].is_ordered:
        raise ValueError("partly occupied sites; give an ordered structure")
    structure = structures[0]
    symbols = [site.specie.symbol for site in structure]
    return make_structure(structure.lattice.matrix, symbols, structure.frac_coords)


def _is_plain(data: Mapping[str, Any], operations: Sequence[str]) -> bool:
    """True for a CIF with every atom written out: no symmetry to expand, nothing disordered."""
    identity = [op.replace(" ", "").lower() for op in operations] == ["x,y,z"]
    whole = all(_number(value) == 1 for value in _column(data, "_atom_site_occupancy"))
    return identity and whole and "_atom_site_type_symbol" in data


def _from_plain_cif(data: Mapping[str, Any]) -> Structure:
    """The structure of a plain CIF; twenty times as fast as pymatgen's parser."""
    lengths = [_number(data[f"_cell_length_{axis}"]) for axis in "abc"]
    angles = [_number(data[f"_cell_angle_{name}"]) for name in ("alpha", "beta", "gamma")]
    coords = [[_number(v) for v in _column(data, f"_atom_site_fract_{axis}")] for axis in "xyz"]
    symbols = [re.sub(r"[^A-Za-z].*", "", s) for s in _column(data, "_atom_site_type_symbol")]
    matrix = Lattice.from_parameters(*lengths, *angles).matrix
    return make_structure(matrix, symbols, np.array(coords).T)


def _column(data: Mapping[str, Any], key: str) -> list[str]:
    value = data.get(key, [])
    return value if isinstance(value, list) else [value]


def _number(text: str) -> float:
    return float(text.split("(")[0])  # 1.234(5) has its uncertainty in brackets


def read_cif(path: Path) -> Iterator[Entry]:
    """Blocks of a CIF that describe crystals; what we wrote as `_symmbfn_...` comes back."""
    text = _whole_text(path)
    starts = [match.start() for match in re.finditer(r"(?im)^[ \t]*data_", text)]
    for start, stop in pairwise([*starts, len(text)]):
        block = text[start:stop]
        if "_cell_length_a" in block or "_atom_site_" in block:
            name = block.split(maxsplit=1)[0][len("data_") :] or path.name
            extra = {
                key: _plain_value(value)
                for key, value in re.findall(r"(?m)^_symmbfn_(\w+) +(\S.*)$", block[:20_000])
            }
            yield Entry(_record_name(extra, name), partial(from_cif, block), extra)


def _plain_value(text: str) -> object:
    text = text.strip()
    if text[:1] in {"'", '"'}:
        return text[1:-1]
    if text in {"True", "False"}:
        return text == "True"
    try:
        number = float(text)
    except ValueError:
        return text
    return int(text) if re.fullmatch(r"[+-]?\d+", text) else number


def read_poscar(path: Path) -> Iterator[Entry]:
    """The one structure of a VASP file."""
    yield Entry(path.name, partial(_from_poscar, path), {})


def _from_poscar(path: Path) -> Structure:
    from pymatgen.io.vasp.inputs import BadPoscarWarning, Poscar

    text = _whole_text(path)
    if len(text) > MAX_TEXT:
        raise ValueError(f"a POSCAR of {len(text)} characters; at most {MAX_TEXT} can be read")
    with warnings.catch_warnings():
        # Without element symbols pymatgen would make some up.
        warnings.simplefilter("error", BadPoscarWarning)
        structure = Poscar.from_str(text, read_velocities=False).structure
    symbols = [site.specie.symbol for site in structure]
    return make_structure(structure.lattice.matrix, symbols, structure.frac_coords)


def read_extxyz(path: Path) -> Iterator[Entry]:
    """Frames of an extended XYZ file, one at a time."""
    with path.open(encoding="utf-8", errors="replace") as file:
        position, bad = 0, False
        for line in file:
            if not line.strip():
                continue
            if not re.fullmatch(r"\d{1,12}", line.strip()):
                if not bad:  # say it once, then look for the next frame
                    position += 1
                    yield _failed(f"{path.name}:{position}", f"no atom count in {line[:40]!r}")
                bad = True
                continue
            bad = False
            position += 1
            count = int(line)
            lines = islice(file, count + 1)
            if count > MAX_ATOMS:
                for _ in lines:
                    pass
                yield _failed(f"{path.name}:{position}", f"{count} atoms; at most {MAX_ATOMS}")
            else:
                yield _frame(line + "".join(lines), f"{path.name}:{position}")


def _frame(text: str, name: str) -> Entry:
    from ase.io import read

    try:
        atoms: Any = read(io.StringIO(text), format="extxyz")
    except Exception as error:  # ase raises its own, ValueError, IndexError, KeyError ...
        return _failed(name, f"not a frame of extended XYZ ({error})")
    results = atoms.calc.results if atoms.calc is not None else {}
    extra = {key: _python_value(value) for key, value in {**atoms.info, **results}.items()}
    matrix, symbols = atoms.cell.array, atoms.get_chemical_symbols()

    def build() -> Structure:
        if abs(np.linalg.det(matrix)) < _MIN_VOLUME:
            raise ValueError('the frame has no cell with a volume (Lattice="…")')
        return make_structure(matrix, symbols, atoms.positions @ np.linalg.inv(matrix))

    return Entry(_record_name(extra, name), build, extra)


def _python_value(value: object) -> object:
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else value


def read_jsonl(path: Path) -> Iterator[Entry]:
    """JSON lines, each a record as in `from_record`."""
    with path.open(encoding="utf-8", errors="replace") as file:
        number = 0
        while line := file.readline(MAX_TEXT + 1):
            number += 1
            name = f"{path.name}:{number}"
            if len(line) > MAX_TEXT:
                while line and not line.endswith("\n"):
                    line = file.readline(MAX_TEXT)
                yield _failed(name, f"a line of more than {MAX_TEXT} characters")
            elif line.strip():
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError) as error:
                    yield _failed(name, f"not JSON ({error})")
                else:
                    yield _record_entry(record, name)


def read_json(path: Path) -> Iterator[Entry]:
    """One record as in `from_record`, or a list of them."""
    try:
        document = json.loads(_whole_text(path))
    except (ValueError, RecursionError) as error:
        raise SymmBFNError(f"{path}: not JSON ({error}); one record a line is .jsonl") from error
    records = document if isinstance(document, list) else [document]
    for number, record in enumerate(records, 1):
        yield _record_entry(record, f"{path.name}:{number}")


def read_csv(path: Path) -> Iterator[Entry]:
    """Rows of a table with CIF text, as in CDVAE's data sets."""
    import pandas as pd

    number = 0
    with pd.read_csv(path, chunksize=1000, dtype={"material_id": str}) as chunks:
        for chunk in chunks:
            _check_columns(path, list(chunk.columns))
            for row in chunk.to_dict("records"):
                number += 1
                yield _record_entry({str(k): v for k, v in row.items()}, f"{path.name}:{number}")


def read_parquet(path: Path) -> Iterator[Entry]:
    """Rows of a parquet table in one of the layouts of `from_record`."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        _check_columns(path, file.schema_arrow.names)
        number = 0
        for batch in file.iter_batches(batch_size=1024):
            for record in batch.to_pylist():
                number += 1
                yield _record_entry(record, f"{path.name}:{number}")


def _check_columns(path: Path, columns: Sequence[str]) -> None:
    if not any(set(layout) <= set(columns) for layout in _LAYOUTS):
        raise SymmBFNError(
            f"{path}: no structures in columns {', '.join(columns[:12])}; "
            f"expected {', or '.join(' + '.join(layout) for layout in _LAYOUTS)}"
        )


def _record_entry(record: object, name: str) -> Entry:
    if not isinstance(record, dict):
        return _failed(name, "not a JSON object")
    used = {key for layout in _LAYOUTS for key in layout}.union(_RECORD_NOISE)
    extra = {key: value for key, value in record.items() if key not in used}
    return Entry(_record_name(extra, name), partial(from_record, record), extra)


def _record_name(extra: Mapping[str, object], name: str) -> str:
    return next((str(extra[key]) for key in _NAME_KEYS if extra.get(key) is not None), name)


def _failed(name: str, reason: str) -> Entry:
    def build() -> Structure:
        raise ValueError(reason)

    return Entry(name, build, {})


def _whole_text(path: Path) -> str:
    size = path.stat().st_size
    if size > MAX_WHOLE_FILE:
        raise SymmBFNError(f"{path}: {size} bytes, more than {MAX_WHOLE_FILE}; split it")
    return path.read_text(encoding="utf-8", errors="replace")
