"""Which crystals are the same: unique among themselves, novel against known ones."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from abc import ABC, abstractmethod
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from relax.errors import RelaxError
from relax.formulas import reduced_formula
from relax.invariants import VOLUME_TOLERANCE, Invariants, fingerprint

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pymatgen.core import Structure
    from pymatgen.core.structure_matcher import StructureMatcher

__all__ = ["IndexReference", "Reference", "StructureReference", "fingerprint", "matches", "unique"]

_SHIPPED = Path(__file__).parent / "data"
INDEXES = {"mp": False, "mp20-train": True}
"""The shipped indexes, and whether only those of MP-20's training split count."""
_TRAINING = 1  # flag of the index: in the training split of MP-20


def matches(one: Structure, other: Structure) -> bool:
    """Tell whether two crystals are the same.

    pymatgen's StructureMatcher at its default tolerances decides, among crystals with finite
    numbers and volumes per atom within its tolerance for lengths (it would match any volumes).
    """
    if not (_comparable(one) and _comparable(other)):
        return False
    if _formula(one) != _formula(other):
        return False
    ratio = (one.volume / len(one)) / (other.volume / len(other))
    if not 1 / VOLUME_TOLERANCE <= ratio <= VOLUME_TOLERANCE:
        return False
    return bool(_matcher().fit(one, other))


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
    buckets: dict[str, list[int]] = {}
    for index, structure in enumerate(structures):
        if not _comparable(structure):
            continue
        bucket = buckets.setdefault(_formula(structure), [])
        twins = (first for first in bucket if matches(structures[first], structure))
        try:
            twin = next(twins, None)
        except Exception:  # the matcher raises whatever a strange cell leads it to
            continue
        if twin is None:
            bucket.append(index)
        else:
            representatives[index] = twin
    return representatives


class Reference(ABC):
    """Known crystals.

    Attributes:
        name: What it was asked for by.
        sha256: Of its content.
    """

    name: str
    sha256: str

    def novel(self, structures: Sequence[Structure]) -> NDArray[np.bool_]:
        """Tell which structures match no known one.

        Those that cannot be compared (numbers not finite, or the matcher fails on them) do not
        count as novel.

        Returns:
            Shape (len(structures),).
        """
        found = np.zeros(len(structures), dtype=bool)
        for index, structure in enumerate(structures):
            try:
                found[index] = _comparable(structure) and not self._knows(structure)
            except Exception:  # as in `unique`
                continue
        return found

    @abstractmethod
    def _knows(self, structure: Structure) -> bool:
        """Tell whether a structure that can be compared matches a known one."""

    @staticmethod
    def load(name_or_path: str | Path) -> Reference:
        """Load known crystals.

        Args:
            name_or_path: `mp` for the shipped index of Materials Project crystals (all that were
                used, MP-20 included), `mp20-train` for those of MP-20's training split only, or
                an index file (.npz) that `write_index` wrote.

        Raises:
            RelaxError: There is no such index, or it cannot be read.
        """
        if (training := INDEXES.get(str(name_or_path))) is not None:
            path = _SHIPPED / "reference-mp.npz"
            return IndexReference.read(path, name=str(name_or_path), training_only=training)
        path = Path(name_or_path).expanduser()
        if not path.is_file():
            raise RelaxError(
                f"no known structures {str(name_or_path)!r}; there are {', '.join(INDEXES)}, or "
                "give a file of structures"
            )
        return IndexReference.read(path, name=path.stem)

    @staticmethod
    def from_structures(structures: Sequence[Structure], name: str = "structures") -> Reference:
        """Make a reference of structures in memory, compared by `matches`."""
        return StructureReference(name, structures)


class StructureReference(Reference):
    """Known structures themselves; `matches` decides."""

    def __init__(self, name: str, structures: Sequence[Structure]) -> None:
        """Sort the structures by formula; those that cannot be compared are left out."""
        self.name = name
        digest = hashlib.sha256()
        self._buckets: dict[str, list[Structure]] = {}
        for structure in structures:
            digest.update(json.dumps(structure.as_dict(), sort_keys=True, default=str).encode())
            if _comparable(structure):
                self._buckets.setdefault(_formula(structure), []).append(structure)
        self.sha256 = digest.hexdigest()

    def _knows(self, structure: Structure) -> bool:
        bucket = self._buckets.get(_formula(structure), ())
        return any(matches(known, structure) for known in bucket)


@dataclass(frozen=True)
class Columns:
    """The columns of an index, sorted by formula.

    Attributes:
        formulas: Reduced formulas, one for each structure.
        sites: Atoms in the primitive cells.
        cells: See `Invariants.cell`, shape (structures, 7).
        distances: See `Invariants.distances`, one after the other.
        ends: Where those of each structure end.
        used: Which structures count.
        attribution: Of the structures.
    """

    formulas: list[str]
    sites: NDArray[np.uint16]
    cells: NDArray[np.uint8]
    distances: NDArray[np.uint8]
    ends: NDArray[np.int64]
    used: NDArray[np.bool_]
    attribution: str

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[Any]], training_only: bool) -> Columns:
        """Check and take over the arrays of a file.

        Raises:
            KeyError: One is missing.
            ValueError: They do not fit together.
        """
        columns = cls(
            formulas=arrays["formulas"].tobytes().decode().split("\n"),
            sites=arrays["sites"],
            cells=np.ascontiguousarray(arrays["cells"].T),
            distances=arrays["distances"],
            ends=np.cumsum(arrays["sizes"].astype(int)),
            used=(arrays["flags"] & _TRAINING).astype(bool) | (not training_only),
            attribution=str(arrays["attribution"]),
        )
        rows = len(columns.formulas)
        lengths = {len(columns.sites), len(columns.cells), len(columns.ends), len(columns.used)}
        if lengths != {rows} or columns.ends[-1] != len(columns.distances):
            raise ValueError("columns of different lengths")
        return columns

    def of_formula(self, formula: str) -> list[Invariants]:
        """Return the invariants of the structures of a formula."""
        rows = range(bisect_left(self.formulas, formula), bisect_right(self.formulas, formula))
        return [
            Invariants(
                int(self.sites[row]),
                self.cells[row],
                self.distances[self.ends[row - 1] if row else 0 : self.ends[row]],
            )
            for row in rows
            if self.used[row]
        ]


class IndexReference(Reference):
    """An index of invariants: a few bytes for each known structure, which it does not hold.

    How often it agrees with `matches` is measured in benchmarks/novelty.py.
    """

    def __init__(self, name: str, sha256: str, columns: Columns) -> None:
        """Wrap the columns of an index; `read` reads a file.

        Args:
            name: What it was asked for by.
            sha256: Of its content.
            columns: One row for each known structure, sorted by formula.
        """
        self.name = name
        self.sha256 = sha256
        self.attribution = columns.attribution
        self._columns = columns

    def __len__(self) -> int:
        """Return how many crystals it knows."""
        return int(self._columns.used.sum())

    def _knows(self, structure: Structure) -> bool:
        bucket = self._columns.of_formula(_formula(structure))
        if not bucket:
            return False
        own = Invariants.of(structure)
        return any(own.alike(known) for known in bucket)

    @classmethod
    def read(cls, path: Path, name: str, *, training_only: bool = False) -> IndexReference:
        """Read an index that `write_index` wrote.

        Raises:
            RelaxError: It is no such file.
        """
        try:
            data = path.read_bytes()
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                columns = Columns.of({key: arrays[key] for key in arrays.files}, training_only)
        except (OSError, ValueError, KeyError, IndexError, EOFError, zipfile.BadZipFile) as error:
            raise RelaxError(
                f"{path}: no index of structures ({type(error).__name__}); give one, or a file of "
                "structures"
            ) from error
        sha256 = hashlib.sha256(data + bytes([training_only])).hexdigest()
        return cls(name, sha256, columns)


def write_index(
    path: Path,
    formulas: Sequence[str],
    invariants: Sequence[Invariants],
    training: Sequence[bool],
    attribution: str,
) -> None:
    """Write an index, sorted by formula.

    Args:
        path: Ending in .npz.
        formulas: Reduced formulas, one for each structure.
        invariants: Likewise.
        training: Whether each is in the training split of MP-20.
        attribution: Of the structures.
    """
    order = sorted(range(len(formulas)), key=lambda row: formulas[row])
    np.savez_compressed(
        path,
        formulas=np.frombuffer("\n".join(formulas[row] for row in order).encode(), dtype=np.uint8),
        sites=np.array([invariants[row].sites for row in order], dtype=np.uint16),
        cells=np.stack([invariants[row].cell for row in order], axis=1),
        sizes=np.array([len(invariants[row].distances) for row in order], dtype=np.uint16),
        distances=np.concatenate([invariants[row].distances for row in order]),
        flags=np.array([_TRAINING * training[row] for row in order], dtype=np.uint8),
        attribution=np.array(attribution),
    )


def _comparable(structure: Structure) -> bool:
    return bool(
        len(structure)
        and structure.is_ordered
        and np.isfinite(structure.lattice.matrix).all()
        and np.isfinite(structure.frac_coords).all()
        and structure.volume > 0.1 * len(structure)
    )


def _formula(structure: Structure) -> str:
    return reduced_formula(structure.composition)


@lru_cache(maxsize=1)
def _matcher() -> StructureMatcher:
    from pymatgen.core.structure_matcher import StructureMatcher

    return StructureMatcher()
