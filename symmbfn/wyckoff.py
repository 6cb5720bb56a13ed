"""Space-group tables: operations, Wyckoff positions, site symmetries, normalizers.

The tables of all 230 groups, in the standard setting of the International Tables (unique axis b,
origin choice 2, hexagonal axes), are shipped as `tables/wyckoff.npz` and read on first use.
`symmbfn.wyckoff_build` makes them from pyxtal.

Coordinates are columns of the conventional cell: an operation maps x to R x + t (mod 1).
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

TABLES = Path(__file__).parent / "tables" / "wyckoff.npz"
TICKS = 24  # every tabulated translation is a multiple of 1/24
MAX_LETTERS = 27  # Pmmm: a..z and A
MAX_OPERATIONS = 192

SITE_SYMBOLS = "1 -1 2 m 3 4 -4 2/m -3 6 -6 4/m 6/m".split()

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

# S = Σ kᵢ Bᵢ, with exp(S) the conventional lattice vectors as rows (see `symmbfn.crystal`)
LATTICE_BASIS: FloatArray = np.array(
    [
        [[0, 1, 0], [1, 0, 0], [0, 0, 0]],
        [[0, 0, 1], [0, 0, 0], [1, 0, 0]],
        [[0, 0, 0], [0, 0, 1], [0, 1, 0]],
        [[1, 0, 0], [0, -1, 0], [0, 0, 0]],
        [[1, 0, 0], [0, 1, 0], [0, 0, -2]],
        [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    ],
    dtype=float,
)
# (6 families, 6): which k are free, and the value of those that are not
LATTICE_FREE: NDArray[np.bool_] = np.array(
    [
        [1, 1, 1, 1, 1, 1],
        [0, 1, 0, 1, 1, 1],
        [0, 0, 0, 1, 1, 1],
        [0, 0, 0, 0, 1, 1],
        [0, 0, 0, 0, 1, 1],
        [0, 0, 0, 0, 0, 1],
    ],
    dtype=bool,
)
LATTICE_FIXED: FloatArray = np.zeros((6, 6))
LATTICE_FIXED[4, 0] = -np.log(3) / 4  # γ = 120°


@dataclass(frozen=True, eq=False)
class SpaceGroup:
    """One space group in its standard setting; m operations, p Wyckoff positions (a first).

    Attributes:
        number: International number, 1-230.
        rotations: (m, 3, 3), acting on fractional columns; lattice centring included.
        translations: (m, 3), fractions.
        primitive: (3, 3), rows are primitive lattice vectors in the conventional basis.
        multiplicities: (p,), atoms of an orbit in the conventional cell.
        degrees_of_freedom: (p,), free coordinates, 0-3.
        projectors: (p, 3, 3) and
        offsets: (p, 3): the nearest point of the tabulated representative position is A x + b.
        site_symmetries: (p, 15), index into `SITE_SYMBOLS` for each of the axes 100, 010, 001, 111,
            1-1-1, -11-1, -1-11, 1-10, 110, 01-1, 011, -101, 101, 1-20, 2-10.
        expansions: p arrays of operation indices; they make an orbit's atoms in one primitive cell.
        normalizer: (q, 3, 3) and
        normalizer_shifts: (q, 3): coset representatives of the Euclidean normalizer; the maps
            between equivalent descriptions of one crystal (polar shifts left out).
        letter_maps: (q, p), where each normalizer operation sends each Wyckoff position.
        polar: (3,), axes along which the origin is free.
    """

    number: int
    rotations: FloatArray
    translations: FloatArray
    primitive: FloatArray
    multiplicities: IntArray
    degrees_of_freedom: IntArray
    projectors: FloatArray
    offsets: FloatArray
    site_symmetries: IntArray
    expansions: tuple[IntArray, ...]
    normalizer: FloatArray
    normalizer_shifts: FloatArray
    letter_maps: IntArray
    polar: NDArray[np.bool_]

    @property
    def num_positions(self) -> int:
        """Number of Wyckoff positions."""
        return len(self.multiplicities)

    @property
    def num_lattice_points(self) -> int:
        """Primitive cells in the conventional cell: 1, 2, 3 or 4."""
        return round(1 / abs(float(np.linalg.det(self.primitive))))

    @property
    def primitive_multiplicities(self) -> IntArray:
        """(p,), atoms of an orbit in the primitive cell."""
        return self.multiplicities // self.num_lattice_points

    @property
    def family(self) -> int:
        """Its lattice family, as `lattice_family` numbers them."""
        return lattice_family(self.number)


def lattice_family(number: int) -> int:
    """Lattice family of space group `number` (1-230).

    Returns:
        0 triclinic, 1 monoclinic, 2 orthorhombic, 3 tetragonal, 4 hexagonal (trigonal, too),
        5 cubic.
    """
    return int(np.searchsorted([2, 15, 74, 142, 194, 230], number))


@cache
def _arrays() -> dict[str, NDArray[np.generic]]:
    with np.load(TABLES, allow_pickle=False) as file:
        return dict(file)


@cache
def space_group(number: int) -> SpaceGroup:
    """Tables of space group `number`.

    Raises:
        ValueError: `number` is not in 1-230.
    """
    if not 1 <= number <= 230:
        raise ValueError(f"space group {number} does not exist: choose 1-230")
    arrays = _arrays()

    def rows(name: str, offsets: str) -> NDArray[np.generic]:
        start, stop = arrays[offsets][number - 1 : number + 1].astype(int)
        return arrays[name][start:stop]

    expansion_stops = rows("expansion_sizes", "position_offsets").astype(int).cumsum()
    num_positions = len(expansion_stops)
    return SpaceGroup(
        number=number,
        rotations=rows("rotations", "operation_offsets").astype(float),
        translations=rows("translations", "operation_offsets").astype(float) / TICKS,
        primitive=arrays["primitive"][number - 1].astype(float) / 6,
        multiplicities=rows("multiplicities", "position_offsets").astype(int),
        degrees_of_freedom=rows("degrees_of_freedom", "position_offsets").astype(int),
        projectors=rows("projectors", "position_offsets").astype(float),
        offsets=rows("offsets", "position_offsets").astype(float),
        site_symmetries=rows("site_symmetries", "position_offsets").astype(int),
        expansions=tuple(
            np.split(rows("expansions", "expansion_offsets").astype(int), expansion_stops[:-1])
        ),
        normalizer=rows("normalizer", "normalizer_offsets").astype(float),
        normalizer_shifts=rows("normalizer_shifts", "normalizer_offsets").astype(float) / TICKS,
        letter_maps=rows("letter_maps", "normalizer_offsets").astype(int)[:, :num_positions],
        polar=arrays["polar"][number - 1].astype(bool),
    )
