"""Which crystals to relax first: told from one calculation of each, before any step is taken."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from relax.errors import RelaxError
from relax.optimize import RelaxConfig, RelaxResult, relax_iter
from relax.potentials import Potential

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray
    from pymatgen.core import Structure

FEWEST = 60
"""Relaxations that a `Fall` is learned from: of 30 it ranked far worse than nothing learned, of 60
as well as of 400."""
_SURE = 1.28  # standard deviations below the mean: nine of ten fall further
_FLOOR = 0.01  # eV/Å and eV, below which a force or virial says nothing more
_LEAST_FALL = 1e-4  # eV/atom, as near as a relaxation ends
_PENALTY = 1.0  # of the squares of the weights


@dataclass(frozen=True)
class Signals:
    """What one calculation tells of a crystal as it was drawn.

    Attributes:
        energy_per_atom: eV/atom.
        max_force: Largest force on an atom, eV/Å.
        virial: Frobenius norm of stress times volume, eV/atom.
        volume_per_atom: Å³.
        nsites: Atoms in the cell.
    """

    energy_per_atom: float
    max_force: float
    virial: float
    volume_per_atom: float
    nsites: int


def look(
    structures: Sequence[Structure],
    potential: str | Potential = "chgnet",
    config: RelaxConfig | None = None,
) -> Generator[tuple[int, Signals | None]]:
    """Calculate each structure once, as it is; a relaxation of no steps.

    Args:
        structures: Not changed.
        potential: As for `relax.optimize.relax_iter`.
        config: Settings of the relaxations to come.

    Yields:
        Index into `structures`, and its signals, None where there is nothing to be had; in the
        order in which they finish.

    Raises:
        RelaxError: See `relax.optimize.relax_iter`.
    """
    as_drawn = replace(config or RelaxConfig(), max_steps=0)
    for index, result in relax_iter(structures, potential, as_drawn):
        yield index, _signals(structures[index], result)


def _signals(structure: Structure, result: RelaxResult) -> Signals | None:
    if result.energy_per_atom is None or result.max_force is None or result.stress is None:
        return None
    volume = structure.volume / len(structure)
    return Signals(
        energy_per_atom=result.energy_per_atom,
        max_force=result.max_force,
        virial=float(np.linalg.norm(result.stress)) * volume,
        volume_per_atom=volume,
        nsites=len(structure),
    )


@dataclass(frozen=True)
class Fall:
    """How far energies fall when relaxed, learned from earlier relaxations by the same potential.

    Near a minimum the fall is a quadratic form of forces and virial; further out it is not, so
    its logarithm is a polynomial of theirs, fitted by ridge regression.

    Attributes:
        rows: Relaxations that it was learned from.
        mean: Of the logarithms of their falls (eV/atom).
        center: Of each feature, shape (features,).
        scale: Likewise, its standard deviation.
        weights: Of the scaled features.
        spread: Standard deviation of the logarithms about the fit.
    """

    rows: int
    mean: float
    center: NDArray[np.float64]
    scale: NDArray[np.float64]
    weights: NDArray[np.float64]
    spread: float

    @classmethod
    def learn(cls, signals: Sequence[Signals], falls: ArrayLike) -> Fall | None:
        """Learn from relaxations; None where they are too few to be of use.

        Args:
            signals: Of the crystals as they were drawn.
            falls: Energies as drawn less energies relaxed, eV/atom, shape (len(signals),).

        Raises:
            RelaxError: A signal or fall is not a finite number.
        """
        if len(signals) < FEWEST:
            return None
        logarithms = np.log(np.maximum(np.asarray(falls, dtype=float), _LEAST_FALL))
        features = _features(signals)
        if not (np.isfinite(features).all() and np.isfinite(logarithms).all()):
            raise RelaxError("ranking: a signal or fall is not finite; leave that relaxation out")
        center, scale = features.mean(axis=0), features.std(axis=0) + 1e-9
        scaled, mean = (features - center) / scale, float(logarithms.mean())
        normal = scaled.T @ scaled + _PENALTY * np.eye(scaled.shape[1])
        weights = np.linalg.solve(normal, scaled.T @ (logarithms - mean))
        residuals = logarithms - mean - scaled @ weights
        freedom = len(signals) - scaled.shape[1] - 1
        spread = float(np.sqrt((residuals**2).sum() / freedom))
        return cls(len(signals), mean, center, scale, weights, spread)

    def sure(self, signals: Sequence[Signals]) -> NDArray[np.float64]:
        """Return the falls that nine of ten such crystals exceed, eV/atom, shape (len(signals),).

        The expected fall would put those first that fall furthest: they rarely come to rest near
        the hull, and take longest.
        """
        scaled = (_features(signals) - self.center) / self.scale
        falls: NDArray[np.float64] = np.exp(self.mean + scaled @ self.weights - _SURE * self.spread)
        return falls


def _features(signals: Sequence[Signals]) -> NDArray[np.float64]:
    """Return the features of each crystal, shape (len(signals), 7)."""
    force, virial, volume, sites = np.log(
        [
            (_FLOOR + one.max_force, _FLOOR + one.virial, one.volume_per_atom, one.nsites)
            for one in signals
        ]
    ).T
    columns = [force, virial, force * virial, force**2, virial**2, volume, sites]
    return np.column_stack(columns)


@dataclass(frozen=True)
class Choice:
    """A crystal in the order of relaxation: its index, and whether rank or chance put it there."""

    index: int
    by: Literal["ranked", "random"]


def order(scores: ArrayLike, random_share: float, seed: int) -> list[Choice]:
    """Put crystals into the order in which they are to be relaxed.

    Args:
        scores: Energies above the hull, eV/atom or any number that is better when lower; NaN comes
            last. Shape (N,).
        random_share: Of the places, 0 to 1, that go to a crystal drawn by lot from those left.
            They are spread evenly, so that wherever the work stops the share is right.
        seed: Of the lots.

    Returns:
        All crystals, each once, the first to be relaxed first.
    """
    numbers = np.asarray(scores, dtype=float)
    best = iter(np.argsort(numbers, kind="stable").tolist())  # NaN last
    lots = iter(np.random.default_rng(seed).permutation(len(numbers)).tolist())
    placed: dict[int, Choice] = {}
    for place in range(len(numbers)):
        by_lot = int((place + 1) * random_share) > int(place * random_share)
        index = next(one for one in (lots if by_lot else best) if one not in placed)
        placed[index] = Choice(index, "random" if by_lot else "ranked")
    return list(placed.values())
