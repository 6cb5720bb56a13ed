"""Which crystals are the same: unique among themselves, novel against known ones."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from relax import known_cells, reference_index
from relax.cells import Cell, Formula
from relax.errors import RelaxError
from relax.invariants import Invariants, fingerprint
from relax.matcher import Matcher, match_pairs

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pymatgen.core import Structure

__all__ = ["Reference", "fingerprint", "matches", "unique"]

_SHIPPED = Path(__file__).parent / "data"
INDEXES = {"mp": False, "mp20-train": True}
"""The shipped indexes, and whether only those of MP-20's training split count."""


def matches(one: Structure, other: Structure) -> bool:
    """Tell whether two crystals are the same.

    The criterion is that of pymatgen's StructureMatcher at its default tolerances, among crystals
    with finite numbers and volumes per atom within its tolerance for lengths (it would match any
    volumes); see `relax.matcher`, and benchmarks/matching.py for how often the two agree.
    """
    first, second = Cell.of(one), Cell.of(other)
    if first is None or second is None or first.formula != second.formula:
        return False
    return bool(match_pairs([Matcher.of(first)], [Matcher.of(second)])[0])


def unique(structures: Sequence[Structure]) -> NDArray[np.int64]:
    """Find duplicates.

    Args:
        structures: In order of preference: the first of each class stands for it.

    Returns:
        For each structure the index of the one that stands for it, its own if it is the first of
        its class or cannot be compared (numbers not finite, or the matcher fails on it); shape
        (len(structures),).
    """
    representatives = np.arange(len(structures))
    pending: dict[Formula, list[tuple[int, Matcher]]] = {}
    for index, structure in enumerate(structures):
        try:
            if (cell := Cell.of(structure)) is not None:
                pending.setdefault(cell.formula, []).append((index, Matcher.of(cell)))
        except Exception:  # a strange cell may have no reduced one
            continue
    firsts: dict[Formula, list[tuple[int, Matcher]]] = {formula: [] for formula in pending}
    for rank in range(max(map(len, pending.values()), default=0)):
        # One crystal of each formula at a time, compared with the first of each class so far.
        turn = [
            (formula, bucket[rank]) for formula, bucket in pending.items() if rank < len(bucket)
        ]
        pairs = [
            (number, first, index, own)
            for formula, (index, own) in turn
            for number, first in firsts[formula]
        ]
        same = match_pairs([pair[1] for pair in pairs], [pair[3] for pair in pairs])
        for (number, _, index, _), is_same in zip(reversed(pairs), reversed(same), strict=True):
            if is_same:  # the first of all classes that match comes last
                representatives[index] = number
        for formula, (index, own) in turn:
            if representatives[index] == index:
                firsts[formula].append((index, own))
    return representatives


class Reference(ABC):
    """Known crystals.

    Attributes:
        name: What it was asked for by.
        sha256: Of its content.
        attribution: Of the crystals.
    """

    name: str
    sha256: str
    attribution: str = ""

    def novel(self, structures: Sequence[Structure]) -> NDArray[np.bool_]:
        """Tell which structures match no known one.

        Those that cannot be compared (numbers not finite, or the matcher fails on them) do not
        count as novel.

        Returns:
            Shape (len(structures),).
        """
        return np.array([known is False for known in self.knows(structures)], dtype=bool)

    def knows(self, structures: Sequence[Structure]) -> list[bool | None]:
        """Tell which structures match a known one; None where one cannot be compared."""
        found: list[bool | None] = []
        for structure in structures:
            try:
                cell = Cell.of(structure)
                found.append(None if cell is None else self._knows(structure, cell))
            except Exception:  # as in `unique`
                found.append(None)
        return found

    @abstractmethod
    def __len__(self) -> int:
        """Return how many crystals it knows."""

    @abstractmethod
    def _knows(self, structure: Structure, cell: Cell) -> bool:
        """Tell whether a structure, its cell given, matches a known one."""

    @staticmethod
    def load(name_or_path: str | Path) -> Reference:
        """Load known crystals.

        Args:
            name_or_path: `mp` for the shipped index of Materials Project crystals (all that were
                used, MP-20 included), `mp20-train` for those of MP-20's training split only, or
                an index file (.npz) that `write_index` or `KnownCells.write` wrote.

        Raises:
            RelaxError: There is no such index, or it cannot be read.
        """
        if (training := INDEXES.get(str(name_or_path))) is not None:
            return _read(_SHIPPED / "reference-mp.npz", str(name_or_path), training_only=training)
        path = Path(name_or_path).expanduser()
        if not path.is_file():
            raise RelaxError(
                f"no known structures {str(name_or_path)!r}; there are {', '.join(INDEXES)}, or "
                "give a file of structures"
            )
        return _read(path, path.stem, training_only=False)

    @staticmethod
    def from_structures(structures: Iterable[Structure], name: str = "structures") -> Reference:
        """Make a reference of structures, compared by `matches`; they are not kept themselves."""
        return CellReference.of(structures, name)


class CellReference(Reference):
    """Known crystals by their cells; decides as `matches` does."""

    def __init__(self, name: str, sha256: str, cells: known_cells.KnownCells) -> None:
        """Wrap cells; `of` takes structures."""
        self.name = name
        self.sha256 = sha256
        self.attribution = cells.attribution
        self._cells = cells

    @classmethod
    def of(cls, structures: Iterable[Structure], name: str) -> CellReference:
        """Take over structures; those that cannot be compared are left out."""
        digest, cells = hashlib.sha256(), known_cells.KnownCells()
        for structure in structures:
            digest.update(json.dumps(structure.as_dict(), sort_keys=True, default=str).encode())
            if (cell := Cell.of(structure)) is not None:
                cells.add(cell)
        return cls(name, digest.hexdigest(), cells)

    def __len__(self) -> int:
        """Return how many crystals it knows."""
        return len(self._cells)

    def _knows(self, structure: Structure, cell: Cell) -> bool:
        bucket = self._cells.of_formula(cell.formula)
        if not bucket:
            return False
        own = [Matcher.of(cell)] * len(bucket)
        # Few answers depend on the order; this is MatterGen's.
        return bool(match_pairs(own, [Matcher(known) for known in bucket]).any())


class IndexReference(Reference):
    """An index of invariants: a few bytes for each known structure, which it does not hold.

    How often it agrees with `matches` is measured in benchmarks/novelty.py.
    """

    def __init__(self, name: str, sha256: str, columns: reference_index.Columns) -> None:
        """Wrap the columns of an index."""
        self.name = name
        self.sha256 = sha256
        self.attribution = columns.attribution
        self._columns = columns

    def __len__(self) -> int:
        """Return how many crystals it knows."""
        return int(self._columns.used.sum())

    def _knows(self, structure: Structure, cell: Cell) -> bool:
        from relax.formulas import reduced_formula

        bucket = self._columns.of_formula(reduced_formula(structure.composition))
        if not bucket:
            return False
        own = Invariants.of(structure)
        return any(own.alike(known) for known in bucket)


def _read(path: Path, name: str, *, training_only: bool) -> Reference:
    """Read a file of cells or of invariants.

    Raises:
        RelaxError: It is neither.
    """
    try:
        data = path.read_bytes()
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        sha256 = hashlib.sha256(data + bytes([training_only])).hexdigest()
        if "coords" in arrays:
            cells = known_cells.KnownCells.unpack(arrays, training_only=training_only)
            return CellReference(name, sha256, cells)
        columns = reference_index.Columns.of(arrays, training_only)
        return IndexReference(name, sha256, columns)
    except (OSError, ValueError, KeyError, IndexError, EOFError, zipfile.BadZipFile) as error:
        raise RelaxError(
            f"{path}: no index of structures ({type(error).__name__}); give one, or a file of "
            "structures"
        ) from error
