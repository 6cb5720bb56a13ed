"""Convex hulls: formation energies and energies above the hull, in eV/atom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from relax.errors import RelaxError
from relax.potentials import PotentialInfo
from relax.reference import elemental_energies, hull_files, locate
from relax.reference_file import (
    FORMATION,
    ReferenceEnergies,
    read_reference,
    sha256_of_reference,
)

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray
    from pymatgen.analysis.phase_diagram import PhaseDiagram
    from pymatgen.core import Composition


@dataclass(frozen=True)
class Coverage:
    """How well a hull knows a chemical system; missing competitors make things look stable.

    Attributes:
        terminals: Whether all elements are known.
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
        self._rows: dict[frozenset[str], list[int]] = {}
        for row, parts in enumerate(reference.amounts):
            self._rows.setdefault(frozenset(parts), []).append(row)
        self.elements = frozenset().union(*self._rows)
        self._diagram = lru_cache(maxsize=512)(self._make_diagram)

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

    def scheme_for(self, potential: PotentialInfo) -> str:
        """Return the scheme under which energies of a potential may be placed on this hull.

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
    ) -> NDArray[np.float64]:
        """Turn total energies into formation energies with this hull's elements.

        Args:
            compositions: Of the structures, shape (N,).
            energies_per_atom: Total energies, eV/atom, shape (N,).
            energy_scheme: Of these energies, or the potential that they are of.

        Returns:
            Formation energies, eV/atom, shape (N,); NaN where an element is not known here.

        Raises:
            RelaxError: The energies are of another scheme than the hull, or the hull has formation
                energies only and does not say with which elemental energies they were made.
        """
        if isinstance(energy_scheme, PotentialInfo):
            energy_scheme = self.scheme_for(energy_scheme)
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
        energies = np.asarray(energies_per_atom, dtype=float)
        formation = np.full(len(compositions), np.nan)
        for index, composition in enumerate(compositions):
            amounts = composition.get_el_amt_dict()
            if amounts.keys() <= elemental.keys():
                total = sum(amounts.values())
                elements = sum(n * elemental[symbol] for symbol, n in amounts.items())
                formation[index] = energies[index] - elements / total
        return formation

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
        above = np.full(len(compositions), np.nan)
        for index, composition in enumerate(compositions):
            system = frozenset(composition.get_el_amt_dict())
            covered = len(system) == 1 or self.coverage(composition).phases > 0
            if system <= self.elements and covered and np.isfinite(formation[index]):
                diagram = self._diagram(system)
                above[index] = formation[index] - diagram.get_hull_energy_per_atom(
                    composition.element_composition
                )
        return above

    def coverage(self, composition: Composition) -> Coverage:
        """Tell how well the hull knows the chemical system of a composition."""
        system = frozenset(composition.get_el_amt_dict())
        missing = tuple(sorted(system - self.elements))
        known = (
            len(self._rows.get(subsystem, ()))
            for subsystem in _subsystems(system)
            if len(subsystem) > 1
        )
        return Coverage(terminals=not missing, missing=missing, phases=sum(known))

    def _make_diagram(self, system: frozenset[str]) -> PhaseDiagram:
        from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
        from pymatgen.core import Composition

        compositions = [Composition({symbol: 1.0}) for symbol in sorted(system)]
        energies = [0.0] * len(compositions)  # the elements, by definition
        for subsystem in _subsystems(system):
            rows = self._rows.get(subsystem, []) if len(subsystem) > 1 else []
            found = [Composition(self.reference.amounts[row]) for row in rows]
            compositions += found
            energies += self._formation(found, rows).tolist()
        entries = [
            PDEntry(composition, energy * composition.num_atoms)
            for composition, energy in zip(compositions, energies, strict=True)
        ]
        return PhaseDiagram(entries)

    def _formation(self, compositions: list[Composition], rows: list[int]) -> NDArray[np.float64]:
        energies = self.reference.energies[rows]
        if self.reference.quantity == FORMATION:
            return energies
        return self.formation_energy_per_atom(compositions, energies, self.energy_scheme)


@dataclass(frozen=True)
class HullInfo:
    """What a hull holds, for listings."""

    name: str
    path: Path
    energy_scheme: str
    quantity: str
    compositions: int
    elements: int
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
        sha256=hull.sha256,
        header=dict(hull.reference.header),
    )


def _subsystems(system: frozenset[str]) -> list[frozenset[str]]:
    """Return all non-empty subsets of a chemical system."""
    ordered = sorted(system)
    return [
        frozenset(subset)
        for size in range(1, len(ordered) + 1)
        for subset in combinations(ordered, size)
    ]
