"""Coverage: how much of a reference a set of crystals reaches, and how much of it lies there.

Measured as CDVAE does (Xie et al., ICLR 2022): two crystals are near each other's kind when their
CrystalNN fingerprints, averaged over the atoms, are at most 0.4 apart and their Magpie composition
fingerprints at most 10, in units of the reference's spread. Needs matminer, the extra `coverage`.
"""

import logging
import multiprocessing
import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pymatgen.core import Structure

from symmbfn.errors import SymmBFNError
from symmbfn.metrics import symmetry_of
from symmbfn.wyckoff import FloatArray

BoolArray = NDArray[np.bool_]

if TYPE_CHECKING:
    from matminer.featurizers.composition.composite import ElementProperty
    from matminer.featurizers.site.fingerprint import CrystalNNFingerprint

STRUCTURE_CUTOFF, COMPOSITION_CUTOFF = 0.4, 10.0  # CDVAE's for MP-20
SAME_SITE = 0.01  # Å; atoms that a symmetry operation carries so near to each other are alike
_CHUNK = 16
_LENGTHS = (61, 132)


@dataclass(frozen=True)
class Fingerprints:
    """Of n crystals; a row of NaN stands for one that has none.

    Attributes:
        structure: (n, 61), CrystalNN's, mean over the atoms.
        composition: (n, 132), Magpie's.
    """

    structure: FloatArray
    composition: FloatArray


@dataclass(frozen=True)
class Coverage:
    """Fractions.

    Attributes:
        recall: Of the reference, that is near one of the crystals in structure, and near one
            (maybe another) in composition.
        precision: Of the crystals, that is near the reference in the same sense.
    """

    recall: float
    precision: float


def coverage(crystals: Fingerprints, reference: Fingerprints) -> Coverage:
    """Coverage of the reference by the crystals.

    Composition fingerprints are scaled by the reference's mean and standard deviation; CDVAE's own
    constants are those of the MP-20 training set.
    """
    mean, spread = (function(reference.composition, axis=0) for function in (np.nanmean, np.nanstd))
    spread = np.where(spread > 0, spread, 1.0)

    def scaled(one: Fingerprints) -> FloatArray:
        missing = np.isnan(one.structure).any(1, keepdims=True)  # of the crystal, not one number
        return np.where(missing, np.nan, np.nan_to_num((one.composition - mean) / spread))

    in_structure = _near(crystals.structure, reference.structure, STRUCTURE_CUTOFF)
    in_composition = _near(scaled(crystals), scaled(reference), COMPOSITION_CUTOFF)
    has_one = np.isfinite(reference.structure).all(1)
    return Coverage(
        recall=float((in_structure[1] & in_composition[1])[has_one].mean()),
        precision=float((in_structure[0] & in_composition[0]).mean()),
    )


def fingerprints(
    structures: Sequence[Structure | None],
    *,
    workers: int | None = None,
    on_crystal: Callable[[], None] | None = None,
) -> Fingerprints:
    """Fingerprints of crystals; some 0.1 s each.

    Args:
        structures: n crystals, None for one that could not be made.
        workers: Processes; all cores unless given.
        on_crystal: Called after each crystal.

    Raises:
        SymmBFNError: matminer is not installed.
    """
    check_installed()
    chunks = [structures[start : start + _CHUNK] for start in range(0, len(structures), _CHUNK)]
    rows: list[tuple[FloatArray, FloatArray]] = []
    workers = min(workers or len(os.sched_getaffinity(0)), len(chunks))
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        for done in pool.map(_of_chunk, chunks):
            for row in done:
                rows.append(row)
                if on_crystal is not None:
                    on_crystal()
    return Fingerprints(np.array([s for s, _ in rows]), np.array([c for _, c in rows]))


def check_installed() -> None:
    """Make sure that fingerprints can be made.

    Raises:
        SymmBFNError: matminer is not installed.
    """
    _featurizers()


def _of_chunk(structures: Sequence[Structure | None]) -> list[tuple[FloatArray, FloatArray]]:
    return [_of_crystal(structure) for structure in structures]


def _of_crystal(structure: Structure | None) -> tuple[FloatArray, FloatArray]:
    """One atom of each orbit stands for all: they have the same surroundings."""
    nothing = np.full(_LENGTHS[0], np.nan), np.full(_LENGTHS[1], np.nan)
    symmetry = None if structure is None else symmetry_of(structure, SAME_SITE)
    if structure is None or symmetry is None:
        return nothing
    of_site, of_composition = _featurizers()
    sites, counts = np.unique(symmetry.orbits, return_counts=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # CrystalNN's of guessed radii and lone atoms
        try:
            rows = np.array([of_site.featurize(structure, int(site)) for site in sites], float)
            composition = np.array(of_composition.featurize(structure.composition), float)
        except Exception:  # Voronoi cells fail in ways of their own; CDVAE counts it as not near
            return nothing
    return np.average(rows, axis=0, weights=counts), composition


@cache
def _featurizers() -> "tuple[CrystalNNFingerprint, ElementProperty]":
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from matminer.featurizers.composition.composite import ElementProperty
            from matminer.featurizers.site.fingerprint import CrystalNNFingerprint
    except ImportError as error:
        raise SymmBFNError(
            "coverage needs matminer, which is not installed: uv sync --extra coverage, or "
            "pip install 'matminer>=0.10'"
        ) from error
    logging.getLogger("matminer").setLevel(logging.ERROR)
    return CrystalNNFingerprint.from_preset("ops"), ElementProperty.from_preset("magpie")


def _near(ours: FloatArray, theirs: FloatArray, cutoff: float) -> tuple[BoolArray, BoolArray]:
    """Which of ours are within the cutoff of any of theirs, and which of theirs of any of ours."""
    from scipy.spatial import KDTree

    def within(points: FloatArray, others: FloatArray) -> BoolArray:
        known, there = np.isfinite(points).all(1), np.isfinite(others).all(1)
        flags = np.zeros(len(points), bool)
        if known.any() and there.any():
            tree = KDTree(others[there])
            nearest, _ = tree.query(points[known], distance_upper_bound=np.nextafter(cutoff, 99))
            flags[known] = np.isfinite(nearest)
        return flags

    return within(ours, theirs), within(theirs, ours)
