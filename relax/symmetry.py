"""Symmetry and reduced cells of crystals, through moyopy."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import moyopy
    from pymatgen.core import Structure

SYMPREC = 0.1  # Å, as the Materials Project uses for its space groups and MP-20 does


def dataset(structure: Structure, symprec: float = SYMPREC) -> moyopy.MoyoDataset | None:
    """Find the symmetry of an ordered structure with finite coordinates.

    Returns:
        What moyopy found, or None where it finds no consistent symmetry.
    """
    import moyopy

    cell = moyopy.Cell(
        basis=structure.lattice.matrix.tolist(),
        positions=structure.frac_coords.tolist(),
        numbers=[site.specie.Z for site in structure],
    )
    return dataset_of_cell(cell, symprec)


def dataset_of_cell(cell: moyopy.Cell, symprec: float = SYMPREC) -> moyopy.MoyoDataset | None:
    """Find the symmetry of a cell; see `dataset`."""
    import moyopy

    with _quiet():
        try:
            return moyopy.MoyoDataset(cell, symprec=symprec)
        except Exception:  # it raises no class of its own
            return None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep moyopy from warning of every supercell."""
    logger = logging.getLogger("moyo")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
