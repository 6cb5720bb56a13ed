"""The shipped kind of index of known crystals: their invariants, from which none can be rebuilt."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from relax.invariants import Invariants

if TYPE_CHECKING:
    from numpy.typing import NDArray
_TRAINING = 1  # flag of the index: in the training split of MP-20


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
