"""Reduced formulas, and what is kept of each."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from pymatgen.core import Composition


def reduced_formula(composition: Composition) -> str:
    """Return the reduced formula without oxidation states, as pymatgen orders it."""
    with warnings.catch_warnings():  # that helium, neon and argon have no electronegativity
        warnings.filterwarnings("ignore", message="No Pauling electronegativity")
        return str(composition.element_composition.reduced_formula)


def lowest_energies(
    formulas: Sequence[str], energies: ArrayLike, counts: Sequence[int] | None = None
) -> dict[str, tuple[float, int]]:
    """Find the lowest energy of each formula, and how many structures it was chosen from.

    Args:
        formulas: N of them.
        energies: eV/atom, shape (N,); those that are not finite do not count.
        counts: How many structures each row stands for; None: one.
    """
    if counts is None:
        counts = [1] * len(formulas)
    lowest: dict[str, tuple[float, int]] = {}
    for formula, energy, count in zip(formulas, np.asarray(energies), counts, strict=True):
        if math.isfinite(energy):
            before, so_far = lowest.get(formula, (math.inf, 0))
            lowest[formula] = min(before, float(energy)), so_far + count
    return lowest
