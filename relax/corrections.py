"""MP2020 corrections: raw PBE(+U) energies made comparable with the Materials Project's.

Oxides and fluorides of eight transition metals are computed with a Hubbard U and all else without;
anions, and the metals of those oxides and fluorides, then get a correction each that was fitted to
experiments (Wang et al., Sci. Rep. 11, 15496, 2021). Potentials that learned the uncorrected
energies (`pbe-u-raw`, such as MACE-MP) need it; CHGNet learned corrected ones (`mp2020`).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from relax.errors import RelaxError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray
    from pymatgen.core import Composition, Structure
    from pymatgen.entries.compatibility import MaterialsProject2020Compatibility

RAW, CORRECTED = "pbe-u-raw", "mp2020"


@dataclass(frozen=True)
class Correction:
    """What MP2020 adds to the raw energy of a structure.

    Attributes:
        per_atom: eV/atom; NaN where it cannot be told.
        reason: Why it cannot; else empty.
    """

    per_atom: float
    reason: str = ""


@dataclass(frozen=True)
class CorrectedEnergies:
    """Energies of scheme `mp2020`.

    Attributes:
        per_atom: eV/atom, shape (N,); NaN where there is no energy or no correction.
        reasons: Why there is no correction, or empty; N of them.
        energy_scheme: Theirs, so that they are never corrected again.
    """

    per_atom: NDArray[np.float64]
    reasons: tuple[str, ...]
    energy_scheme: str = CORRECTED


def correct(
    structures: Sequence[Structure], energies_per_atom: ArrayLike, energy_scheme: str
) -> CorrectedEnergies:
    """Bring total energies to the scheme `mp2020`; those that are of it already stay as they are.

    Args:
        structures: Shape (N,).
        energies_per_atom: Of these structures, eV/atom, shape (N,).
        energy_scheme: Of these energies: `pbe-u-raw` or `mp2020`.

    Raises:
        RelaxError: They are of another scheme.
    """
    energies = np.array(energies_per_atom, dtype=float)
    if energy_scheme == CORRECTED:
        return CorrectedEnergies(energies, ("",) * len(energies))
    if energy_scheme != RAW:
        raise RelaxError(
            f"energies of scheme {energy_scheme} have no MP2020 corrections, only those of {RAW} "
            "have; choose a hull of their own scheme"
        )
    corrections = [correction(structure) for structure in structures]
    return CorrectedEnergies(
        energies + np.array([one.per_atom for one in corrections], dtype=float),
        tuple(one.reason for one in corrections),
    )


def correction(structure: Structure) -> Correction:
    """Return what MP2020 adds to the raw energy of a structure.

    The Hubbard U are those that the Materials Project's settings give it, oxidation states are
    guessed from the composition; peroxides and polysulfides are told by their distances.
    """
    from pymatgen.entries.computed_entries import ComputedStructureEntry

    try:
        with warnings.catch_warnings():  # of guesses that failed, and of noble gases
            warnings.simplefilter("ignore")
            u = hubbard_u(structure.composition)
            entry = ComputedStructureEntry(
                structure.copy().remove_oxidation_states(),
                0.0,
                parameters={"run_type": "GGA+U" if u else "GGA", "hubbards": u},
            )
            adjustments = _scheme().get_adjustments(entry)
            total = sum(float(one.value) for one in adjustments)
    except Exception as error:  # whatever pymatgen cannot correct costs one structure only
        why = str(error).partition("\n")[0]
        return Correction(
            float("nan"), f"no MP2020 correction ({type(error).__name__}: {why:.120})"
        )
    return Correction(total / structure.composition.num_atoms)


def hubbard_u(composition: Composition) -> dict[str, float]:
    """Return the U of each element, eV, that the Materials Project computes a compound with."""
    elements = composition.element_composition.elements
    anion = max(elements, key=lambda element: element.X).symbol  # of an oxide or a fluoride
    u = _scheme().u_settings.get(anion, {})
    return {one.symbol: float(u[one.symbol]) for one in elements if u.get(one.symbol)}


@cache
def _scheme() -> MaterialsProject2020Compatibility:
    from pymatgen.entries.compatibility import MaterialsProject2020Compatibility

    return MaterialsProject2020Compatibility(check_potcar=False)
