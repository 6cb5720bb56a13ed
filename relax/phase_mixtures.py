r"""The lowest energy of a mixture of phases: many small linear programs at once.

The convex hull's energy at a composition x is that of the best mixture of phases with fractions
c_j and energies e_j,

    min Σ_j λ_j e_j   with   Σ_j λ_j c_j = x,   λ_j ≥ 0.

The revised simplex method solves it: it starts from the elements, λ = x, and in each step lets in
the phase that lies lowest below the chemical potentials μ of the present mixture, until none does.
All programs of a batch take their steps together. Each answer is checked against its dual, which
proves it; what is left over goes to HiGHS.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BELOW = 1e-10  # eV/atom below the potentials that a phase must be, to be let in
_PROVEN = 1e-9  # how well an answer must meet the conditions of primal and dual
_PIVOT = 1e-9  # smallest one
_STEPS = 100  # a program of five elements takes about ten


@dataclass(frozen=True)
class Mixtures:
    """The best mixtures of a batch of N compositions of M elements.

    Attributes:
        energies: eV/atom, shape (N,).
        phases: Which phases each is made of, shape (N, M).
        amounts: Of their atoms, summing to one, shape (N, M); of some phases zero.
    """

    energies: NDArray[np.float64]
    phases: NDArray[np.int64]
    amounts: NDArray[np.float64]


def best_mixtures(
    compositions: NDArray[np.float64],
    phases: NDArray[np.float64],
    energies: NDArray[np.float64],
) -> Mixtures:
    """Find the lowest mixture of phases at each composition.

    Args:
        compositions: Fractions of the elements, all above zero, shape (N, M).
        phases: Fractions of the elements in each phase, shape (N, P, M); the first M phases are
            the elements themselves, in order.
        energies: Of the phases, eV/atom, shape (N, P); infinite for rows that only fill the array.
    """
    basis, inverse = _simplex(compositions, phases, energies)
    chosen = np.take_along_axis(energies, basis, axis=1)
    amounts = (inverse @ compositions[:, :, None])[:, :, 0]
    potentials = (chosen[:, None, :] @ inverse)[:, 0]
    made = (amounts[:, None, :] @ np.take_along_axis(phases, basis[:, :, None], axis=1))[:, 0]
    slack = energies - (phases @ potentials[:, :, None])[:, :, 0]
    proven = (
        (np.abs(made - compositions).max(axis=1) < _PROVEN)
        & (amounts.min(axis=1) > -_PROVEN)
        & (slack.min(axis=1) > -_PROVEN)
    )
    amounts = amounts.clip(min=0.0)
    found = (amounts * chosen).sum(axis=1)
    for one in np.flatnonzero(~proven):
        basis[one], amounts[one] = _highs(compositions[one], phases[one], energies[one])
        found[one] = amounts[one] @ energies[one, basis[one]]
    return Mixtures(found, basis, amounts)


def _simplex(
    x: NDArray[np.float64], c: NDArray[np.float64], e: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the phases of each best mixture, (N, M), and the inverse of their fractions."""
    count, elements = x.shape
    basis = np.tile(np.arange(elements), (count, 1))
    inverse = np.tile(np.eye(elements), (count, 1, 1))
    left = np.arange(count)  # the programs not yet solved; x, c and e are theirs
    for _ in range(_STEPS):
        b, w = basis[left], inverse[left]
        potentials = np.take_along_axis(e, b, axis=1)[:, None, :] @ w
        slack = e - (c @ potentials.transpose(0, 2, 1))[:, :, 0]
        incoming = slack.argmin(axis=1)
        better = np.take_along_axis(slack, incoming[:, None], axis=1)[:, 0] < -_BELOW
        if not better.any():
            break
        if not better.all():
            left, incoming, b, w = left[better], incoming[better], b[better], w[better]
            x, c, e = x[better], c[better], e[better]
        row = np.arange(len(left))
        amounts = (w @ x[:, :, None])[:, :, 0].clip(min=0.0)
        direction = (w @ c[row, incoming][:, :, None])[:, :, 0]
        ratio = np.full(direction.shape, np.inf)
        np.divide(amounts, direction, out=ratio, where=direction > _PIVOT)
        outgoing = ratio.argmin(axis=1)
        pivot = w[row, outgoing] / direction[row, outgoing][:, None]
        w -= direction[:, :, None] * pivot[:, None, :]
        w[row, outgoing] = pivot
        b[row, outgoing] = incoming
        inverse[left], basis[left] = w, b
    return basis, inverse


def _highs(
    x: NDArray[np.float64], c: NDArray[np.float64], e: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return phases and amounts of one best mixture, shapes (M,); NaN if none can be found."""
    from scipy.optimize import linprog

    real = np.isfinite(e)
    found = linprog(e[real], A_eq=c[real].T, b_eq=x, method="highs")
    if found.x is None:
        return np.arange(len(x)), np.full(len(x), np.nan)
    largest = np.argsort(found.x)[::-1][: len(x)]
    return np.flatnonzero(real)[largest], found.x[largest]
