"""Making a reference of a potential's own energies, which cancels its systematic error.

Candidates are relaxed, so that a reference of structures as they came, at rest for another method,
lies too high for them. Relaxing all would take days; only those on the hull or near it matter.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pymatgen.core import Composition

from relax.errors import RelaxError
from relax.formulas import lowest_energies, reduced_formula
from relax.hull import Hull
from relax.optimize import PROTOCOL, RelaxConfig, Status, relax_iter
from relax.potentials import PotentialInfo, find, load
from relax.reference_file import TOTAL, ReferenceEnergies, parse_formula
from relax.workers import number_of_workers

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pymatgen.core import Structure

AS_IT_IS, RELAXED = "as_it_is", "relaxed"
_BATCH = 512
_SAME = 1e-3  # eV/atom; a formula's cells whose energies are the same to it are relaxed once
_HOLE = 0.3  # eV/atom; a known crystal that lies so low is in a hole


class Journal:
    """Energies computed so far, in a file, so that a build that is stopped goes on."""

    def __init__(self, file: Path, potential: PotentialInfo, config: RelaxConfig) -> None:
        """Read the file if it is there; a line that was cut short by a kill is taken off.

        Raises:
            RelaxError: It is of another potential or other settings, or no journal.
        """
        self._file = file
        self._known: dict[tuple[str, str], float] = {}
        self._first = (
            f"{potential.name} {potential.dtype} {potential.weights_sha256} {PROTOCOL} "
            f"fmax {config.fmax:g} steps {config.max_steps}"
        )
        if not file.exists():
            return
        try:
            whole, end, cut = file.read_bytes().rpartition(b"\n")
            first, *lines = (whole if end else cut).decode().splitlines() or [""]
            if first != self._first and (end or not self._first.startswith(first)):
                raise ValueError(f"made with {first}")
            for line in lines:
                key, kind, energy = line.split()
                self._known[key, kind] = float(energy)
            os.truncate(file, len(whole + end))
        except OSError as error:
            raise RelaxError(f"{file}: cannot be read or written ({error.strerror})") from error
        except ValueError as error:
            raise RelaxError(
                f"{file}: no energies of an earlier build with these settings ({error}); delete it"
            ) from error

    def energies(self, structures: Sequence[Structure], kind: str) -> NDArray[np.float64]:
        """Return eV/atom, shape (N,); NaN where there is none yet."""
        return np.array([self._known.get((_key(one), kind), np.nan) for one in structures])

    def add(self, structures: Sequence[Structure], kind: str, energies: Sequence[float]) -> None:
        """Keep energies, eV/atom."""
        keys = [_key(one) for one in structures]
        self._known |= {(key, kind): energy for key, energy in zip(keys, energies, strict=True)}
        with self._file.open("a") as file:
            if file.tell() == 0:
                file.write(self._first + "\n")
            for key, energy in zip(keys, energies, strict=True):
                file.write(f"{key} {kind} {float(energy)!r}\n")


def energies_as_they_are(
    structures: Sequence[Structure],
    potential: str,
    journal: Journal,
    config: RelaxConfig,
    on_progress: Callable[[int], None] = lambda count: None,
) -> NDArray[np.float64]:
    """Compute the energies of structures without moving an atom.

    Args:
        structures: Not changed.
        potential: As for `relax.potentials.load`.
        journal: Asked first, and told.
        config: Its device counts.
        on_progress: Told how many structures each further batch had.

    Returns:
        eV/atom, shape (N,); NaN where there is none to be had.
    """
    loaded = load(potential, device=config.device)
    energies = np.full(len(structures), np.nan)
    for begin in range(0, len(structures), _BATCH):
        batch = structures[begin : begin + _BATCH]
        known = journal.energies(batch, AS_IT_IS)
        new = np.flatnonzero(np.isnan(known)).tolist()
        if new:
            known[new] = loaded.energies_per_atom([batch[i] for i in new])
            finite = [i for i in new if np.isfinite(known[i])]  # others are tried again next time
            journal.add([batch[i] for i in finite], AS_IT_IS, known[finite].tolist())
        energies[begin : begin + len(batch)] = known
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
    potential: str,
    journal: Journal,
    config: RelaxConfig,
    on_progress: Callable[[int], None] = lambda count: None,
) -> NDArray[np.float64]:
    """Relax structures as candidates are relaxed, in their order.

    Args:
        structures: N of them; not changed.
        potential: As for `relax.potentials.load`.
        journal: Asked first, and told of those that converge; others are tried again next time.
        config: Settings.
        on_progress: Told 1 for each that is done.

    Returns:
        Energies, eV/atom, shape (N,); NaN of those that did not converge.
    """
    relaxed = journal.energies(structures, RELAXED)
    left = np.flatnonzero(np.isnan(relaxed)).tolist()
    on_progress(len(structures) - len(left))
    queue = (structures[index] for index in left)  # drawn in order, not the largest first
    if config.workers is None:
        config = replace(config, workers=min(number_of_workers(config), max(len(left), 1)))
    for place, result in relax_iter(queue, potential, config):
        if result.status is Status.CONVERGED and result.energy_per_atom is not None:
            relaxed[left[place]] = result.energy_per_atom
            journal.add([structures[left[place]]], RELAXED, [result.energy_per_atom])
        on_progress(1)
    return relaxed


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
    known = [reduced_formula(Composition(parts)) for parts in trusted.reference.amounts]
    lowest = lowest_energies(known, trusted.formation_energies)
    same = np.array([lowest.get(reduced_formula(one), (math.nan, 0))[0] for one in compositions])
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
    best = lowest_energies([reduced_formula(one.composition) for one in structures], energies)
    parsed = {formula: parse_formula(formula) for formula in best}
    terminals = {next(iter(parts)): best[f][0] for f, parts in parsed.items() if len(parts) == 1}
    kept = sorted(formula for formula, parts in parsed.items() if parts.keys() <= terminals.keys())
    if not kept:
        raise RelaxError("no compound has all of its elements among the structures; add those")
    counts = {
        "structures": sum(count for _, count in best.values()),
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
    config: RelaxConfig,
    *,
    relax_within: float | None = None,
    trusted: Hull | None = None,
    source: str = "",
    on_stage: Callable[[str, int], None] = lambda name, total: None,
    on_progress: Callable[[int], None] = lambda count: None,
) -> ReferenceEnergies:
    """Compute the energies of structures, relax those near the hull, and keep the lowest.

    One that does not converge, or that falls into a hole (by more than 0.3 eV/atom, where no
    trusted hull tells), keeps the energy that it had.

    Args:
        structures: The known crystals; not changed.
        potential: As for `relax.potentials.load`.
        journal: Asked first, and told.
        config: Settings of the relaxation.
        relax_within: eV/atom above the hull of the structures as they are, up to which they are
            relaxed; None relaxes nothing.
        trusted: See `without_holes`; None leaves nothing out.
        source: Of the structures, for the header.
        on_stage: Told the name and the number of structures of what begins.
        on_progress: Told how many of them are done besides.

    Raises:
        RelaxError: There is no such potential; its energies cannot be placed on the trusted hull;
            no structure has an energy, or no element of its own.
    """
    info = find(potential)

    on_stage("energies", len(structures))
    computed = energies_as_they_are(structures, potential, journal, config, on_progress)
    energies = computed
    header = {
        "potential": info.name,
        "dtype": info.dtype,
        "weights_sha256": info.weights_sha256 or "",
        "source": source,
        "without_energy": str(int(np.isnan(computed).sum())),
    }
    if trusted is not None:
        energies = without_holes(structures, computed, info, trusted)
        holes = int((np.isnan(energies) & np.isfinite(computed)).sum())
        header["trusted"] = f"{trusted.name} {trusted.sha256}"
        header["holes_left_out"] = str(holes)
    if relax_within is not None:
        chosen = near_hull(structures, energies, relax_within)
        on_stage("relax", len(chosen))
        near, before = [structures[index] for index in chosen], energies[chosen]
        converged = relaxed_energies(near, potential, journal, config, on_progress)
        if trusted is None:  # a known crystal does not fall so far
            relaxed = np.where(before - converged > _HOLE, np.nan, converged)
        else:
            relaxed = without_holes(near, converged, info, trusted)
        energies = energies.copy()
        energies[chosen] = np.fmin(before, relaxed)  # the one that is a number
        header["relaxed_up_to_above_hull"] = f"{relax_within:g} eV/atom"
        header["relaxed"] = str(int(np.isfinite(relaxed).sum()))
        header["not_converged"] = str(len(chosen) - int(np.isfinite(converged).sum()))
        header["relaxed_into_holes"] = str(int((np.isnan(relaxed) & np.isfinite(converged)).sum()))
    return reference_of(structures, energies, f"self-consistent:{info.name}", header)


def _key(structure: Structure) -> str:
    """Return a hash of the cell, to 1e-6 Å and 1e-6 of a lattice vector."""
    numbers = np.concatenate([structure.lattice.matrix.ravel(), structure.frac_coords.ravel()])
    symbols = " ".join(site.specie.symbol for site in structure)
    content = symbols.encode() + (np.rint(numbers * 1e6) + 0.0).tobytes()  # no negative zero
    return hashlib.blake2b(content, digest_size=12).hexdigest()
