"""Convex hulls: formation energies and energies above the hull, in eV/atom."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from relax.corrections import CORRECTED, RAW, correct
from relax.errors import RelaxError
from relax.phase_index import PhaseIndex
from relax.potentials import PotentialInfo
from relax.reference import elemental_energies, hull_files, locate
from relax.reference_file import (
    TOTAL,
    ReferenceEnergies,
    read_reference,
    sha256_of_reference,
)

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray
    from pymatgen.core import Composition, Structure


@dataclass(frozen=True)
class Coverage:
    """How well a hull knows a chemical system; missing competitors make things look stable.

    Attributes:
        terminals: Whether all elements are known, with their energies.
        missing: Those that are not.
        phases: Compositions in the system and all its subsystems, the elements not counted.
    """

    terminals: bool
    missing: tuple[str, ...]
    phases: int


class Hull:
    """Reference energies of one scheme, and the convex hull of any chemical system of them."""

    def __init__(self, name: str, sha256: str, reference: ReferenceEnergies) -> None:
        """Index the reference; `load` reads one from a file.

        Args:
            name: What it is asked for by.
            sha256: Of its content.
            reference: Its energies.
        """
        self.name = name
        self.sha256 = sha256
        self.reference = reference
        self.energy_scheme = reference.energy_scheme
        energies = reference.energies
        if reference.elemental_energies is not None and reference.quantity == TOTAL:
            energies = energies - _of_elements(reference.amounts, reference.elemental_energies)
        self.formation_energies = energies  # of the reference's rows, eV/atom
        self._phases = PhaseIndex(reference.amounts, energies)
        self.elements = frozenset(self._phases.elements)
        elemental = reference.elemental_energies
        self.without_energy = frozenset() if elemental is None else self.elements - elemental.keys()

    @classmethod
    def load(
        cls,
        name_or_path: str | Path,
        energy_scheme: str | None = None,
        elements_from: str | Path | None = None,
    ) -> Hull:
        """Load a hull.

        Args:
            name_or_path: A shipped or imported hull's name, or a file; see
                `relax.reference_file`.
            energy_scheme: For a file whose header has none.
            elements_from: For a file of formation energies without elemental energies; see
                `relax.reference.elemental_energies`.

        Raises:
            RelaxError: There is none, or a row, element or scheme is wrong or missing.
        """
        name, path = locate(name_or_path)
        elements = None if elements_from is None else elemental_energies(elements_from)
        reference = read_reference(path, energy_scheme, elements)
        return cls(name, sha256_of_reference(path), reference)

    def scheme_for(self, potential: PotentialInfo, *, with_structures: bool = False) -> str:
        """Return the scheme under which energies of a potential may be placed on this hull.

        Args:
            potential: Whose energies they are.
            with_structures: Whether they come with their structures, so that raw PBE(+U) energies
                can be corrected for a hull of MP2020 energies.

        Raises:
            RelaxError: There is none.
        """
        own = f"self-consistent:{potential.name}"
        weights = self.reference.header.get("weights_sha256")
        if self.energy_scheme == own:
            if weights and potential.weights_sha256 and weights != potential.weights_sha256:
                raise RelaxError(
                    f"hull {self.name!r} was made with other weights of {potential.name} "
                    f"({weights[:12]}…); build it again with `symmbfn hull build`"
                )
            return own
        if self.energy_scheme == potential.energy_scheme:
            return potential.energy_scheme
        if with_structures and self._corrects(potential.energy_scheme):
            return potential.energy_scheme
        raise RelaxError(
            f"hull {self.name!r} has energies of scheme {self.energy_scheme}, potential "
            f"{potential.name!r} gives {potential.energy_scheme}; choose another hull, or build "
            "one with `symmbfn hull build`"
        )

    def formation_energy_per_atom(
        self,
        compositions: Sequence[Composition],
        energies_per_atom: ArrayLike,
        energy_scheme: str | PotentialInfo,
        structures: Sequence[Structure] | None = None,
    ) -> NDArray[np.float64]:
        """Turn total energies into formation energies with this hull's elements.

        Args:
            compositions: Of the structures, shape (N,).
            energies_per_atom: Total energies, eV/atom, shape (N,).
            energy_scheme: Of these energies, or the potential that they are of.
            structures: Theirs, shape (N,); with them raw PBE(+U) energies are corrected where the
                hull is of MP2020 energies, see `relax.corrections`.

        Returns:
            Formation energies, eV/atom, shape (N,); NaN where an element is not known here or an
            energy cannot be corrected.

        Raises:
            RelaxError: The energies are of another scheme than the hull, or the hull has formation
                energies only and does not say with which elemental energies they were made.
        """
        if isinstance(energy_scheme, PotentialInfo):
            energy_scheme = self.scheme_for(energy_scheme, with_structures=structures is not None)
        if structures is not None and self._corrects(energy_scheme):
            corrected = correct(structures, energies_per_atom, energy_scheme)
            energies_per_atom, energy_scheme = corrected.per_atom, corrected.energy_scheme
        if energy_scheme != self.energy_scheme:
            raise RelaxError(
                f"hull {self.name!r} has energies of scheme {self.energy_scheme}, not "
                f"{energy_scheme}; energies of different schemes cannot be compared"
            )
        elemental = self.reference.elemental_energies
        if elemental is None:
            raise RelaxError(
                f"hull {self.name!r} has formation energies and no energies of the elements; "
                "import it again with those (--elements-from)"
            )
        amounts = [composition.get_el_amt_dict() for composition in compositions]
        return np.asarray(energies_per_atom, dtype=float) - _of_elements(amounts, elemental)

    def energy_above_hull(
        self, compositions: Sequence[Composition], formation_energies_per_atom: ArrayLike
    ) -> NDArray[np.float64]:
        """Place structures against the hull, which they do not change.

        Args:
            compositions: Shape (N,).
            formation_energies_per_atom: Of this hull's scheme and elements, eV/atom, shape (N,).

        Returns:
            Energies above the hull, eV/atom, shape (N,); negative below it. NaN where an element is
            not known here, where no compound at all is known of several elements (against the
            elements alone nearly everything looks stable), or where the formation energy is NaN.
        """
        formation = np.asarray(formation_energies_per_atom, dtype=float)
        amounts = [composition.get_el_amt_dict() for composition in compositions]
        placed = [
            index
            for index, parts in enumerate(amounts)
            if np.isfinite(formation[index]) and self._assessable(parts)
        ]
        above = np.full(len(amounts), np.nan)
        above[placed] = formation[placed] - self._phases.energies([amounts[i] for i in placed])
        return above

    def decomposition(self, composition: Composition) -> dict[str, float]:
        """Tell what a composition falls apart into on the hull.

        Returns:
            The share of the atoms in each phase by its formula, the largest first; only itself
            where the composition lies on the hull. Empty where the hull cannot assess it.
        """
        parts = composition.get_el_amt_dict()
        if not self._assessable(parts):
            return {}
        return {
            row if isinstance(row, str) else self.reference.formulas[row]: share
            for row, share in self._phases.mixture(parts).items()
        }

    def coverage(self, composition: Composition) -> Coverage:
        """Tell how well the hull knows the chemical system of a composition."""
        symbols = composition.get_el_amt_dict().keys()
        missing = tuple(sorted(symbols - (self.elements - self.without_energy)))
        return Coverage(not missing, missing, len(self._phases.compounds(symbols)))

    def _corrects(self, energy_scheme: str) -> bool:
        return (energy_scheme, self.energy_scheme) == (RAW, CORRECTED)

    def _assessable(self, parts: Mapping[str, float]) -> bool:
        known = 0 < len(parts) and parts.keys() <= self.elements
        return known and (len(parts) == 1 or bool(self._phases.compounds(parts)))


@dataclass(frozen=True)
class HullInfo:
    """What a hull holds, for listings.

    Total energies of crystals with the elements `without_energy` cannot be placed on it.
    """

    name: str
    path: Path
    energy_scheme: str
    quantity: str
    compositions: int
    elements: int
    without_energy: tuple[str, ...]
    sha256: str
    header: dict[str, str]


def list_hulls() -> list[HullInfo]:
    """Describe the hulls that can be had by name, shipped and imported."""
    return [describe(name) for name in hull_files()]


def describe(name_or_path: str | Path) -> HullInfo:
    """Describe one hull.

    Raises:
        RelaxError: It is not there or not readable.
    """
    _, path = locate(name_or_path)
    hull = Hull.load(name_or_path)
    return HullInfo(
        name=hull.name,
        path=path,
        energy_scheme=hull.energy_scheme,
        quantity=hull.reference.quantity,
        compositions=len(hull.reference.formulas),
        elements=len(hull.elements),
        without_energy=tuple(sorted(hull.without_energy)),
        sha256=hull.sha256,
        header=dict(hull.reference.header),
    )


def _of_elements(
    amounts: Sequence[Mapping[str, float]], elemental: Mapping[str, float]
) -> NDArray[np.float64]:
    """Return the energies of the elements in each composition, eV/atom; NaN of unknown ones."""
    return np.array(
        [
            sum(n * elemental.get(symbol, math.nan) for symbol, n in parts.items())
            / (sum(parts.values()) or math.nan)
            for parts in amounts
        ]
    )
