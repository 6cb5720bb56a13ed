"""Reduced formulas."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pymatgen.core import Composition


def reduced_formula(composition: Composition) -> str:
    """Return the reduced formula without oxidation states, as pymatgen orders it."""
    with warnings.catch_warnings():  # that helium, neon and argon have no electronegativity
        warnings.filterwarnings("ignore", message="No Pauling electronegativity")
        return str(composition.element_composition.reduced_formula)
