"""The compounds of a reference, found by chemical system, and the best mixtures of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from relax.phase_mixtures import Mixtures, best_mixtures

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BATCH = 1 << 18  # numbers in the largest array of a batch: 2 MiB


class PhaseIndex:
    """Compounds with their formation energies; the elements have none."""

    def __init__(
        self, amounts: Sequence[Mapping[str, float]], energies: NDArray[np.float64]
    ) -> None:
        """Index the compounds.

        Args:
            amounts: Of each element in each row; rows of one element count as that element only.
            energies: Formation energies, eV/atom, shape (len(amounts),).
        """
        self.elements = tuple(sorted({symbol for parts in amounts for symbol in parts}))
        self._column = {symbol: column for column, symbol in enumerate(self.elements)}
        self._rows: dict[int, list[int]] = {}  # of each chemical system, one bit an element
        for row, parts in enumerate(amounts):
            if len(parts) > 1:
                self._rows.setdefault(self._system(parts), []).append(row)
        # after the rows come the elements, and one that fills up arrays
        self._first_element = len(amounts)
        self._fractions = np.vstack(
            [
                self._fractions_of(amounts),
                np.eye(len(self.elements)),
                np.zeros((1, len(self.elements))),
            ]
        )
        self._energies = np.concatenate([energies, np.zeros(len(self.elements)), [np.inf]])

    def compounds(self, symbols: Iterable[str]) -> list[int]:
        """Return the rows of all compounds of these elements, or of some of them."""
        system = self._system(symbol for symbol in symbols if symbol in self._column)
        if 1 << system.bit_count() > len(self._rows):
            return [row for one, rows in self._rows.items() if not one & ~system for row in rows]
        found: list[int] = []
        subsystem = system
        while subsystem:  # all subsets of its bits
            found += self._rows.get(subsystem, ())
            subsystem = (subsystem - 1) & system
        return found

    def energies(self, compositions: Sequence[Mapping[str, float]]) -> NDArray[np.float64]:
        """Return the hull's energy at each composition.

        Args:
            compositions: Amounts above zero of known elements, shape (N,).

        Returns:
            eV/atom, shape (N,).
        """
        energies = np.empty(len(compositions))
        for members, _, mixtures in self._solve(compositions):
            energies[members] = mixtures.energies
        return energies

    def mixture(self, composition: Mapping[str, float]) -> dict[int | str, float]:
        """Return the share of the atoms in each row of the best mixture, the largest first.

        An element itself has its symbol for a row.
        """
        ((_, rows, mixtures),) = self._solve([composition])
        shares = zip(
            rows[0, mixtures.phases[0]].tolist(), mixtures.amounts[0].tolist(), strict=True
        )
        return {
            self._name(row): share
            for row, share in sorted(shares, key=lambda pair: -pair[1])
            if share > 1e-8
        }

    def _solve(
        self, compositions: Sequence[Mapping[str, float]]
    ) -> Iterator[tuple[list[int], NDArray[np.int64], Mixtures]]:
        """Solve batches of equal numbers of elements and similar numbers of compounds.

        Yields:
            Which compositions they are, the rows of their phases (N, P), and their mixtures.
        """
        systems = [self._system(parts) for parts in compositions]
        compounds = {
            system: self.compounds(parts)
            for system, parts in dict(zip(systems, compositions, strict=True)).items()
        }
        sizes = [
            (len(parts), len(compounds[system]))
            for system, parts in zip(systems, compositions, strict=True)
        ]
        for members in _batches(sizes):
            columns = np.array(
                [[self._column[symbol] for symbol in compositions[one]] for one in members]
            )
            count, elements = columns.shape
            rows = np.full((count, elements + sizes[members[-1]][1]), len(self._energies) - 1)
            rows[:, :elements] = self._first_element + columns
            for one, index in enumerate(members):
                found = compounds[systems[index]]
                rows[one, elements : elements + len(found)] = found
            amounts = np.array([list(compositions[one].values()) for one in members])
            yield (
                members,
                rows,
                best_mixtures(
                    amounts / amounts.sum(axis=1, keepdims=True),
                    self._fractions[rows[:, :, None], columns[:, None, :]],
                    self._energies[rows],
                ),
            )

    def _system(self, symbols: Iterable[str]) -> int:
        return sum(1 << self._column[symbol] for symbol in symbols)

    def _fractions_of(self, amounts: Sequence[Mapping[str, float]]) -> NDArray[np.float64]:
        fractions = np.zeros((len(amounts), len(self.elements)))
        rows = np.repeat(np.arange(len(amounts)), [len(parts) for parts in amounts])
        columns = [self._column[symbol] for parts in amounts for symbol in parts]
        fractions[rows, columns] = [amount for parts in amounts for amount in parts.values()]
        return fractions / fractions.sum(axis=1, keepdims=True)

    def _name(self, row: int) -> int | str:
        return row if row < self._first_element else self.elements[row - self._first_element]


def _batches(sizes: Sequence[tuple[int, int]]) -> Iterator[list[int]]:
    """Gather compositions by their numbers of elements and compounds, the fewest first."""
    batch: list[int] = []
    for index in sorted(range(len(sizes)), key=sizes.__getitem__):
        elements, compounds = sizes[index]
        if batch and (
            sizes[batch[0]][0] != elements
            or (len(batch) + 1) * (elements + compounds) * elements > _BATCH
        ):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
