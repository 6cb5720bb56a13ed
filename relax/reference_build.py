"""Making a reference of a potential's own energies, which cancels its systematic error.

Candidates are relaxed, so that a reference of structures as they came, at rest for another method,
lies too high for them. Relaxing all would take days; only those on the hull or near it matter.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pymatgen.core import Composition

from relax.errors import RelaxError
from relax.formulas import reduced_formula
from relax.hull import Hull
from relax.optimize import RelaxConfig, Status, relax_iter
from relax.potentials import PotentialInfo, find, load
from relax.reference_file import TOTAL, ReferenceEnergies, parse_formula

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pymatgen.core import Structure

AS_IT_IS, RELAXED = "as_it_is", "relaxed"
_BATCH = 512
_SAME = 1e-3  # eV/atom; a formula's cells whose energies differ by less are taken for one crystal
_HOLE = 0.3  # eV/atom; a known crystal that falls so far, or lies so low, is in a hole


class Journal:
    """Energies computed so far, in a file, so that a build that is stopped goes on."""

    def __init__(self, file: Path, potential: PotentialInfo) -> None:
        """Read the file if it is there.

        Raises:
            RelaxError: It is of another potential, or no journal.
        """
        self._file = file
        self._known: dict[tuple[str, str], float] = {}
        own = f"{potential.name} {potential.dtype} {potential.weights_sha256}"
        if not file.exists():
            file.write_text(own + "\n")
            return
        first, *lines = file.read_text().splitlines() or [""]
        if first != own:
            raise RelaxError(f"{file} holds energies of {first or 'nothing'}; delete it to go on")
        for line in lines:
            words = line.split()
            if len(words) == 3:  # the last line may have been cut short
                self._known[words[0], words[1]] = float(words[2])

    def energy(self, structure: Structure, kind: str) -> float | None:
        """Return eV/atom; NaN where there is none to be had, None where it was not computed yet."""
        return self._known.get((_key(structure), kind))

    def add(self, structures: Sequence[Structure], kind: str, energies: Sequence[float]) -> None:
        """Keep energies, eV/atom."""
        keys = [_key(one) for one in structures]
        self._known |= {(key, kind): energy for key, energy in zip(keys, energies, strict=True)}
        with self._file.open("a") as file:
            for key, energy in zip(keys, energies, strict=True):
                file.write(f"{key} {kind} {float(energy)!r}\n")


def energies_as_they_are(
    structures: Sequence[Structure],
    potential: str,
    journal: Journal,
    on_progress: Callable[[int], None] = lambda count: None,
) -> NDArray[np.float64]:
    """Compute the energies of structures without moving an atom.

    Args:
        structures: Not changed.
        potential: As for `relax.potentials.load`.
        journal: Asked first, and told.
        on_progress: Told how many structures each further batch had.

    Returns:
        eV/atom, shape (N,); NaN where there is none to be had.
    """
    loaded = load(potential)
    energies = np.full(len(structures), np.nan)
    for begin in range(0, len(structures), _BATCH):
        batch = structures[begin : begin + _BATCH]
        known = [journal.energy(one, AS_IT_IS) for one in batch]
        new = [one for one, energy in zip(batch, known, strict=True) if energy is None]
        if new:
            journal.add(new, AS_IT_IS, [float(e) for e in loaded.energies_per_atom(new)])
        energies[begin : begin + len(batch)] = [journal.energy(one, AS_IT_IS) for one in batch]
        on_progress(len(batch))
    return energies


def near_hull(
    structures: Sequence[Structure], energies: NDArray[np.float64], within: float
) -> list[int]:
    """Choose what is on the hull of these energies or near it, each crystal once.

    Args:
        structures: N of them.
        energies: eV/atom, shape (N,); those that are NaN are passed by.
        within: eV/atom above the hull.

    Returns:
        Indices, the nearest to the hull first.

    Raises:
        RelaxError: No compound has all of its elements among the structures.
    """
    scheme = "self-consistent:these"
    hull = Hull("these", "", reference_of(structures, energies, scheme, {}))
    compositions = [one.composition for one in structures]
    formation = hull.formation_energy_per_atom(compositions, energies, scheme)
    above = hull.energy_above_hull(compositions, formation)
    chosen: list[int] = []
    seen: set[tuple[str, int]] = set()
    for index in np.argsort(above, kind="stable"):
        if not above[index] <= within:  # NaN sorts last
            break
        kind = reduced_formula(compositions[index]), round(energies[index] / _SAME)
        if kind not in seen:
            seen.add(kind)
            chosen.append(int(index))
    return chosen


def relaxed_energies(
    structures: Sequence[Structure],
    energies: NDArray[np.float64],
    chosen: Sequence[int],
    potential: str,
    journal: Journal,
    config: RelaxConfig | None = None,
    on_progress: Callable[[int], None] = lambda count: None,
) -> NDArray[np.float64]:
    """Relax some structures as candidates are relaxed.

    One that does not converge keeps the energy that it had, and so does one that falls by more
    than 0.3 eV/atom: a known crystal does not, where the potential has no hole.

    Args:
        structures: N of them; not changed.
        energies: As they are, eV/atom, shape (N,).
        chosen: Indices of those to relax, in this order.
        potential: As for `relax.potentials.load`.
        journal: Asked first, and told.
        config: Settings; None for the defaults.
        on_progress: Told 1 for each that is done.

    Returns:
        Energies, eV/atom, shape (N,), none higher than before.
    """
    left = [index for index in chosen if journal.energy(structures[index], RELAXED) is None]
    on_progress(len(chosen) - len(left))
    queue = (structures[index] for index in left)  # drawn in order, not the largest first
    for place, result in relax_iter(queue, potential, config):
        energy = result.energy_per_atom if result.status is Status.CONVERGED else None
        journal.add([structures[left[place]]], RELAXED, [math.nan if energy is None else energy])
        on_progress(1)
    lowered = energies.copy()
    for index in chosen:
        energy = journal.energy(structures[index], RELAXED)
        if energy is not None and 0 < energies[index] - energy < _HOLE:
            lowered[index] = energy
    return lowered


def without_holes(
    structures: Sequence[Structure],
    energies: NDArray[np.float64],
    potential: PotentialInfo,
    trusted: Hull,
) -> NDArray[np.float64]:
    """Take away energies that no known crystal can have: holes of the potential.

    Args:
        structures: N of them.
        energies: Of the potential, eV/atom, shape (N,).
        potential: Whose they are.
        trusted: A hull of a scheme in which they can be placed.

    Returns:
        Energies, eV/atom, shape (N,); NaN of those 0.3 eV/atom or more below the trusted hull, or
        below the trusted energy of the same composition.

    Raises:
        RelaxError: Energies of the potential cannot be placed on that hull.
    """
    compositions = [one.composition for one in structures]
    formation = trusted.formation_energy_per_atom(compositions, energies, potential, structures)
    above = trusted.energy_above_hull(compositions, formation)
    lowest: dict[str, float] = {}
    for parts, energy in zip(trusted.reference.amounts, trusted.formation_energies, strict=True):
        formula = reduced_formula(Composition(parts))
        lowest[formula] = min(float(energy), lowest.get(formula, math.inf))
    same = np.array([lowest.get(reduced_formula(one), math.nan) for one in compositions])
    return np.where((above <= -_HOLE) | (formation - same <= -_HOLE), np.nan, energies)


def reference_of(
    structures: Sequence[Structure],
    energies: NDArray[np.float64],
    energy_scheme: str,
    header: Mapping[str, str],
) -> ReferenceEnergies:
    """Keep the lowest energy of each composition, without compounds of elements that have none.

    Args:
        structures: N of them.
        energies: Total, eV/atom, shape (N,); those that are NaN do not count.
        energy_scheme: Of the energies.
        header: What else is known.

    Raises:
        RelaxError: Nothing is left.
    """
    best: dict[str, tuple[float, int]] = {}
    for structure, energy in zip(structures, energies, strict=True):
        if math.isfinite(energy):
            formula = reduced_formula(structure.composition)
            lowest, count = best.get(formula, (math.inf, 0))
            best[formula] = (min(lowest, float(energy)), count + 1)
    parsed = {formula: parse_formula(formula) for formula in best}
    terminals = {next(iter(parts)): best[f][0] for f, parts in parsed.items() if len(parts) == 1}
    kept = sorted(formula for formula, parts in parsed.items() if parts.keys() <= terminals.keys())
    if not kept:
        raise RelaxError("no compound has all of its elements among the structures; add those")
    counts = {
        "structures": sum(count for _, count in best.values()),
        "without_energy": int(np.isnan(energies).sum()),
        "compositions_dropped_for_want_of_an_element": len(best) - len(kept),
    }
    return ReferenceEnergies(
        formulas=tuple(kept),
        amounts=tuple(parsed[formula] for formula in kept),
        energies=np.array([best[formula][0] for formula in kept]),
        quantity=TOTAL,
        energy_scheme=energy_scheme,
        elemental_energies=terminals,
        header={**header, **{key: str(count) for key, count in counts.items()}},
        counts=tuple(best[formula][1] for formula in kept),
    )


def build_reference(
    structures: Sequence[Structure],
    potential: str,
    journal: Journal,
    *,
    relax_within: float | None = None,
    trusted: Hull | None = None,
    config: RelaxConfig | None = None,
    source: str = "",
    on_stage: Callable[[str, int], None] = lambda name, total: None,
    on_progress: Callable[[int], None] = lambda count: None,
) -> ReferenceEnergies:
    """Compute the energies of structures, relax those near the hull, and keep the lowest.

    Args:
        structures: The known crystals; not changed.
        potential: As for `relax.potentials.load`.
        journal: Asked first, and told.
        relax_within: eV/atom above the hull of the structures as they are, up to which they are
            relaxed; None relaxes nothing.
        trusted: See `without_holes`; None leaves nothing out.
        config: Settings of the relaxation; None for the defaults.
        source: Of the structures, for the header.
        on_stage: Told the name and the number of structures of what begins.
        on_progress: Told how many of them are done besides.

    Raises:
        RelaxError: There is no such potential; its energies cannot be placed on the trusted hull;
            no structure has an energy, or no element of its own.
    """
    info = find(potential)
    on_stage("energies", len(structures))
    energies = energies_as_they_are(structures, potential, journal, on_progress)
    header = {
        "potential": info.name,
        "dtype": info.dtype,
        "weights_sha256": info.weights_sha256 or "",
        "source": source,
    }
    if trusted is not None:
        given = energies
        energies = without_holes(structures, given, info, trusted)
        left_out = int((np.isnan(energies) & np.isfinite(given)).sum())
        header["left_out"] = f"{left_out} {_HOLE:g} eV/atom or more below hull {trusted.name}"
    if relax_within is not None:
        chosen = near_hull(structures, energies, relax_within)
        on_stage("relax", len(chosen))
        before = energies
        energies = relaxed_energies(
            structures, before, chosen, potential, journal, config, on_progress
        )
        header["relaxed_up_to_above_hull"] = f"{relax_within:g} eV/atom"
        header["relaxed"] = str(int((energies < before).sum()))
    return reference_of(structures, energies, f"self-consistent:{info.name}", header)


def _key(structure: Structure) -> str:
    """Return a hash of the cell, to 1e-6 Å and 1e-6 of a lattice vector."""
    numbers = np.concatenate([structure.lattice.matrix.ravel(), structure.frac_coords.ravel()])
    symbols = " ".join(site.specie.symbol for site in structure)
    content = symbols.encode() + (np.rint(numbers * 1e6) + 0.0).tobytes()  # no negative zero
    return hashlib.blake2b(content, digest_size=12).hexdigest()
