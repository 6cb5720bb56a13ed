"""A crystal as its asymmetric unit, and the way to and from a pymatgen Structure.

A crystal is a space group, six lattice parameters and one row per orbit: element, Wyckoff position
and the fractional coordinates of one representative atom in the conventional cell.

Lattice. With the conventional lattice vectors as rows of L, the polar form L = exp(S) Q leaves the
symmetric S = ½ log(L Lᵀ), written S = Σ kᵢ Bᵢ with the matrices of `LATTICE_BASIS`. Each crystal
family fixes some of the k (Ruple et al. 2026, after DiffCSP++); the others are free real numbers.

Representative. Of the orbit's atoms that lie on the tabulated first representative of the Wyckoff
position, the one nearest (½, ½, ½), so that a crystal in one setting gets one description.
"""

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import moyopy
import numpy as np
from pymatgen.core import Composition, Lattice, Structure
from pymatgen.core.periodic_table import Element

from symmbfn.errors import SymmBFNError
from symmbfn.wyckoff import (
    LATTICE_BASIS,
    LATTICE_FIXED,
    LATTICE_FREE,
    FloatArray,
    IntArray,
    SpaceGroup,
    space_group,
)

_FALLBACK_SYMPRECS = (0.03, 0.01, 1e-3)
_CELLS: FloatArray = np.array(list(product((-1.0, 0.0, 1.0), repeat=3)))
_HERE = 13  # row of the zero vector in _CELLS
_ON_POSITION = 1e-3  # fractional; positions are refined by moyopy first
_TIE = 1e-6


@dataclass(frozen=True, eq=False)
class Crystal:
    """An asymmetric unit of N orbits.

    Attributes:
        space_group: International number, 1-230.
        lattice: (6,) k-parameters of the conventional cell (lengths in Å).
        species: (N,) atomic numbers.
        letters: (N,) Wyckoff positions, 0 = a.
        frac_coords: (N, 3) representatives, fractions of the conventional cell.
    """

    space_group: int
    lattice: FloatArray
    species: IntArray
    letters: IntArray
    frac_coords: FloatArray

    @property
    def num_atoms(self) -> int:
        """Atoms in the primitive cell."""
        group = space_group(self.space_group)
        return int(group.primitive_multiplicities[self.letters].sum())

    @property
    def composition(self) -> Composition:
        """Contents of the primitive cell."""
        counts: dict[str, float] = {}
        multiplicities = space_group(self.space_group).primitive_multiplicities[self.letters]
        for number, count in zip(self.species, multiplicities, strict=True):
            symbol = Element.from_Z(int(number)).symbol
            counts[symbol] = counts.get(symbol, 0) + int(count)
        return Composition(counts)

    @property
    def formula(self) -> str:
        """Reduced formula, such as Fe2O3."""
        return self.composition.reduced_formula

    @classmethod
    def from_structure(cls, structure: Structure, symprec: float = 0.1) -> "Crystal":
        """Symmetrise a structure and keep its asymmetric unit.

        A structure whose symmetry cannot be made exact at `symprec` (Å) is tried again with
        tighter tolerances.

        Raises:
            SymmBFNError: no symmetry is found, or a site is not one whole element.
        """
        if not structure.is_ordered:
            raise SymmBFNError(
                f"{structure.formula} has partly occupied sites: give an ordered structure"
            )
        numbers = list(structure.atomic_numbers)
        cell = moyopy.Cell(
            structure.lattice.matrix.tolist(), structure.frac_coords.tolist(), numbers
        )
        reason: Exception | None = None
        for tolerance in (symprec, *(t for t in _FALLBACK_SYMPRECS if t < symprec)):
            try:
                return cls._from_dataset(symmetry_dataset(cell, tolerance), numbers)
            except ValueError as error:  # moyopy raises it as well
                reason = error
        raise SymmBFNError(f"no symmetry found for {structure.formula}: {reason}")

    @classmethod
    def _from_dataset(cls, dataset: Any, numbers: Sequence[int]) -> "Crystal":
        group = space_group(dataset.number)
        primitive = dataset.prim_std_cell
        to_conventional = np.asarray(primitive.basis) @ np.linalg.inv(dataset.std_cell.basis)
        positions = np.asarray(primitive.positions) @ to_conventional

        first_atoms = {orbit: atom for atom, orbit in reversed(list(enumerate(dataset.orbits)))}
        letters, coords, species = [], [], []
        for atom in sorted(first_atoms.values()):
            letter = _letter_index(dataset.wyckoffs[atom])
            point = positions[dataset.mapping_std_prim[atom]]
            letters.append(letter)
            coords.append(canonical_representative(group, letter, point))
            species.append(numbers[atom])
        crystal = cls(
            space_group=group.number,
            lattice=lattice_to_k(np.asarray(dataset.std_cell.basis), group.family),
            species=np.array(species),
            letters=np.array(letters),
            frac_coords=np.array(coords),
        )
        if crystal.num_atoms != len(positions):
            raise ValueError(
                f"orbits of {crystal.num_atoms} atoms for a primitive cell of {len(positions)}"
            )
        return crystal.with_centred_origin()

    def with_centred_origin(self) -> "Crystal":
        """Along polar axes the origin is free: put the representatives' circular mean at ½.

        Which atoms represent their orbits may depend on the origin that was there before, so that
        a crystal with a screw axis or glide along such an axis has a few descriptions, not one.
        """
        group = space_group(self.space_group)
        if not group.polar.any():
            return self
        angles = 2 * np.pi * self.frac_coords
        weights = group.multiplicities[self.letters, None]
        mean = np.angle((weights * np.exp(1j * angles)).sum(0)) / (2 * np.pi)
        shift = np.where(group.polar, 0.5 - mean, 0.0)
        return self._moved(group, np.eye(3), shift, np.arange(group.num_positions))

    def equivalents(self) -> list["Crystal"]:
        """Every description of this crystal in the standard setting, itself first.

        One for each coset of the Euclidean normalizer: the same crystal, or its mirror image.
        """
        group = space_group(self.space_group)
        moved = [
            self._moved(group, rotation, shift, letter_map)
            for rotation, shift, letter_map in zip(
                group.normalizer, group.normalizer_shifts, group.letter_maps, strict=True
            )
        ]
        return [self, *(crystal.with_centred_origin() for crystal in moved[1:])]

    def _moved(
        self, group: SpaceGroup, rotation: FloatArray, shift: FloatArray, letter_map: IntArray
    ) -> "Crystal":
        letters = letter_map[self.letters]
        points = self.frac_coords @ rotation.T + shift
        coords = [
            canonical_representative(group, int(letter), point)
            for letter, point in zip(letters, points, strict=True)
        ]
        return Crystal(self.space_group, self.lattice, self.species, letters, np.array(coords))

    def primitive_cell(self) -> tuple[FloatArray, FloatArray, IntArray]:
        """Lattice vectors (3, 3; rows, Å), fractions (M, 3) and atomic numbers (M,)."""
        group = space_group(self.space_group)
        operations = np.concatenate([group.expansions[letter] for letter in self.letters])
        counts = group.primitive_multiplicities[self.letters]
        points = np.repeat(self.frac_coords, counts, axis=0)
        atoms = np.einsum("nij,nj->ni", group.rotations[operations], points)
        atoms = (atoms + group.translations[operations]) @ np.linalg.inv(group.primitive)
        lattice = group.primitive @ k_to_lattice(self.lattice)
        return lattice, atoms % 1, np.repeat(self.species, counts)

    def shortest_distance(self) -> float:
        """Shortest distance between two atoms, Å, periodic images included; NaN without a cell."""
        lattice, atoms, _ = self.primitive_cell()
        try:
            reduced = np.array(moyopy.minkowski_reduce(lattice.tolist())[0])
        except ValueError:  # a cell without volume, or with numbers that are not finite
            return math.nan
        atoms, lattice = atoms @ lattice @ np.linalg.inv(reduced), reduced
        # In a reduced cell the nearest image is never further than in the next cell.
        vectors = atoms[:, None] - atoms
        vectors = (vectors - vectors.round())[:, :, None] + _CELLS
        distances = np.linalg.norm(vectors @ lattice, axis=-1)
        distances[np.arange(len(atoms)), np.arange(len(atoms)), _HERE] = np.inf
        return float(distances.min())

    def to_structure(self) -> Structure:
        """The primitive cell, sites grouped by orbit."""
        return to_structures([self])[0]


def to_structures(crystals: Iterable[Crystal]) -> list[Structure]:
    """Primitive cells of many crystals; sites are grouped by orbit."""
    structures = []
    for crystal in crystals:
        lattice, frac_coords, species = crystal.primitive_cell()
        elements = [_element(int(number)) for number in species]
        structures.append(Structure(Lattice(lattice), elements, frac_coords))
    return structures


def lattice_to_k(matrix: FloatArray, family: int) -> FloatArray:
    """(6,) parameters of a (3, 3) lattice (rows, Å); those its family fixes are set exactly."""
    values, vectors = np.linalg.eigh(matrix @ matrix.T)
    s = (vectors * (0.5 * np.log(values))) @ vectors.T
    norms = (LATTICE_BASIS**2).sum((1, 2))
    k = (LATTICE_BASIS * s).sum((1, 2)) / norms
    return np.where(LATTICE_FREE[family], k, LATTICE_FIXED[family])


def k_to_lattice(k: FloatArray) -> FloatArray:
    """(3, 3) conventional lattice (rows, Å) exp(S) of (6,) parameters."""
    values, vectors = np.linalg.eigh(np.tensordot(k, LATTICE_BASIS, 1))
    return (vectors * np.exp(values)) @ vectors.T


def canonical_representative(group: SpaceGroup, letter: int, point: FloatArray) -> FloatArray:
    """(3,) atom of the orbit of `point` on the tabulated position `letter`, nearest the centre.

    Raises:
        ValueError: no atom of the orbit lies on that position.
    """
    projector, offset = group.projectors[letter], group.offsets[letter]
    images = ((group.rotations @ point + group.translations) % 1)[:, None] + _CELLS
    images = images.reshape(-1, 3)
    projected = images @ projector.T + offset
    on_position = np.abs(projected - images).max(1) < _ON_POSITION
    if not on_position.any():
        raise ValueError(f"no atom of {point.round(4).tolist()} on position {letter}")
    candidates = projected[on_position]
    distances = ((candidates - 0.5) ** 2).sum(1)
    nearest = candidates[distances < distances.min() + _TIE]
    rounded = (nearest / _TIE).round()
    chosen: FloatArray = nearest[np.lexsort(rounded.T[::-1])[0]]
    return chosen


def symmetry_dataset(cell: moyopy.Cell, symprec: float) -> moyopy.MoyoDataset:
    """Symmetry of a cell in the standard setting.

    Raises:
        ValueError: moyopy finds none.
    """
    logger = logging.getLogger("moyo")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns of every supercell
    try:
        return moyopy.MoyoDataset(cell, symprec=symprec, setting=moyopy.Setting.standard())
    finally:
        logger.setLevel(level)


def _letter_index(letter: str) -> int:
    return 26 if letter == "A" else ord(letter) - ord("a")


@cache
def _element(number: int) -> Element:
    return Element.from_Z(number)
