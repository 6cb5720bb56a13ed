"""Numbers that are the same for the same crystal: the basis of fingerprints and of the index.

The invariants of a crystal are those that decide whether pymatgen's StructureMatcher can match it
(primitive cell, reduced lattice, volume) and, for each ordered pair of its elements A and B, the
mean distance from an A to its 1st, 2nd, 4th and 8th nearest B: a species-resolved, coarse form of
the average minimum distances of Widdowson et al., MATCH 87, 529 (2022).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from relax.formulas import reduced_formula
from relax.matcher import ANGLE_TOLERANCE, LENGTH_TOLERANCE, VOLUME_TOLERANCE
from relax.symmetry import dataset, dataset_of_cell

if TYPE_CHECKING:
    import moyopy
    from numpy.typing import NDArray
    from pymatgen.core import Lattice, Structure

_NEIGHBOURS = (1, 2, 4, 8)
_ENANTIOMORPHS = {  # a crystal and its mirror image are one crystal here, as for StructureMatcher
    78: 76, 95: 91, 96: 92, 145: 144, 153: 151, 154: 152, 170: 169, 172: 171, 179: 178, 181: 180,
    213: 212,
}  # fmt: skip
# Invariants are kept as whole numbers of these steps in one byte each, 255 at most.
_DISTANCE_STEP = 0.0125  # of the cube root of the volume per atom
_LENGTH_STEP = 0.012  # of the natural logarithm of a length over the cube root of the volume
_LENGTH_ZERO = -2.0
_ANGLE_STEP = 0.5  # degrees
_ANGLE_ZERO = 45.0
_VOLUME_STEP = 0.02  # of the natural logarithm of the volume per atom over 1 Å³
# Fitted on MP-20: where most structures of the validation split are called as StructureMatcher does
# against those of the training split (benchmarks/novelty.py).
_DISTANCE_TOLERANCE = 0.14


@dataclass(frozen=True)
class Invariants:
    """The invariants of one crystal, in steps.

    Attributes:
        sites: Atoms in the primitive cell.
        cell: Volume per atom, lengths and angles of the Niggli cell, uint8, shape (7,).
        distances: Of all ordered pairs of elements in the order of their symbols, uint8,
            shape (elements² x 4,).
    """

    sites: int
    cell: NDArray[np.uint8]
    distances: NDArray[np.uint8]

    @classmethod
    def of(cls, structure: Structure) -> Invariants:
        """Compute them; about 2 ms for 10 atoms.

        Args:
            structure: Ordered, with finite coordinates.
        """
        import moyopy

        primitive = _primitive(structure)
        niggli = np.array(moyopy.niggli_reduce(primitive.basis)[0])
        volume = abs(np.linalg.det(niggli))
        lengths = np.linalg.norm(niggli, axis=1)
        cosines = [
            niggli[i] @ niggli[j] / (lengths[i] * lengths[j]) for i, j in ((1, 2), (0, 2), (0, 1))
        ]
        cell = [
            np.log(volume / len(primitive.numbers)) / _VOLUME_STEP,
            *((np.log(lengths / np.cbrt(volume)) - _LENGTH_ZERO) / _LENGTH_STEP),
            *((np.degrees(np.arccos(cosines)) - _ANGLE_ZERO) / _ANGLE_STEP),
        ]
        return cls(len(primitive.numbers), _bytes(cell), _bytes(_distances(primitive)))

    def alike(self, other: Invariants) -> bool:
        """Tell whether StructureMatcher would most likely match the two crystals.

        Args:
            other: Of a crystal of the same reduced formula.
        """
        if self.sites != other.sites:
            return False
        apart = np.abs(self.distances.astype(int) - other.distances) * _DISTANCE_STEP
        factor = np.exp(abs(int(self.cell[0]) - int(other.cell[0])) * _VOLUME_STEP)
        if apart.max(initial=0) >= _DISTANCE_TOLERANCE or factor > VOLUME_TOLERANCE:
            return False
        mappings = self._lattice().find_all_mappings(
            other._lattice(), ltol=LENGTH_TOLERANCE, atol=ANGLE_TOLERANCE
        )
        return next(iter(mappings), None) is not None

    def _lattice(self) -> Lattice:
        """Return the Niggli cell, of volume one."""
        from pymatgen.core import Lattice

        lengths = np.exp(self.cell[1:4] * _LENGTH_STEP + _LENGTH_ZERO)
        angles = self.cell[4:7] * _ANGLE_STEP + _ANGLE_ZERO
        return Lattice.from_parameters(*lengths, *angles).scale(1.0)


def fingerprint(structure: Structure) -> str:
    """Name a crystal in short, stable text.

    The text is reduced formula, space group (of a mirror pair the lower number) and the orbits in
    the primitive cell, without what depends on the choice of cell, origin and axes, for example
    `NaCl:225:Cl1(-3mm).Na1(-3mm)`.
    """
    formula = reduced_formula(structure.composition)
    primitive = _primitive(structure)
    found = dataset_of_cell(primitive)
    if found is None:
        return f"{formula}:?"
    orbits: dict[int, list[int]] = {}
    for site, orbit in enumerate(found.orbits):
        orbits.setdefault(orbit, []).append(site)
    from ase.data import chemical_symbols

    names = sorted(
        f"{chemical_symbols[primitive.numbers[orbit]]}{len(sites)}"
        f"({_bare(found.site_symmetry_symbols[orbit])})"
        for orbit, sites in orbits.items()
    )
    group = _ENANTIOMORPHS.get(found.number, found.number)
    return f"{formula}:{group}:{'.'.join(names)}"


def _bare(site_symmetry: str) -> str:
    """Drop from a site-symmetry symbol what depends on the choice of axes."""
    return "".join(sorted(site_symmetry.replace(".", "")))


def _primitive(structure: Structure) -> moyopy.Cell:
    import moyopy

    found = dataset(structure)
    if found is not None:
        return found.prim_std_cell
    return moyopy.Cell(
        basis=structure.lattice.matrix.tolist(),
        positions=structure.frac_coords.tolist(),
        numbers=[site.specie.Z for site in structure],
    )


def _bytes(values: object) -> NDArray[np.uint8]:
    return np.clip(np.rint(np.asarray(values, dtype=float)), 0, 255).astype(np.uint8)


def _distances(cell: moyopy.Cell) -> NDArray[np.float64]:
    """Return mean distances to near neighbours in steps, shape (elements² x 4,)."""
    from ase.data import chemical_symbols

    numbers = np.array(cell.numbers)
    lattice = np.ascontiguousarray(cell.basis, dtype=float)
    coords = np.array(cell.positions) @ lattice
    scale = np.cbrt(abs(np.linalg.det(lattice)) / len(numbers))
    elements = sorted(set(cell.numbers), key=lambda number: chemical_symbols[number])
    rows = {}
    for target in elements:
        near = _nearest(coords, coords[numbers == target], lattice)
        for source in elements:
            rows[source, target] = near[numbers == source].mean(axis=0)
    ordered = [rows[source, target] for source in elements for target in elements]
    steps: NDArray[np.float64] = np.concatenate(ordered) / scale / _DISTANCE_STEP
    return steps


def _nearest(
    sources: NDArray[np.float64], targets: NDArray[np.float64], lattice: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the distances of each source to its nearest targets, Å, shape (sources, 4)."""
    from pymatgen.optimization.neighbors import find_points_in_spheres

    most = _NEIGHBOURS[-1]
    density = len(targets) / abs(np.linalg.det(lattice))
    reach = 1.25 * ((most + 1) * 3 / (4 * np.pi * density)) ** (1 / 3)
    while True:
        source, _, _, distance = find_points_in_spheres(
            np.ascontiguousarray(targets),
            np.ascontiguousarray(sources),
            r=reach,
            pbc=np.ones(3, dtype=np.int64),
            lattice=lattice,
            tol=1e-8,
        )
        other = distance > 1e-6  # an atom is not its own neighbour
        source, distance = source[other], distance[other]
        counts = np.bincount(source, minlength=len(sources))
        if counts.min() >= most:
            break
        reach *= 1.3
    order = np.lexsort((distance, source))
    first = np.cumsum(counts) - counts
    columns = np.array(_NEIGHBOURS) - 1
    nearest: NDArray[np.float64] = distance[order][first[:, None] + columns]
    return nearest
