"""How sure the figures of an evaluation are: 95 % intervals, and the noise of the sample's size."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from symmbfn.metrics import Summary, Traits

Z = 1.96  # standard errors, for 95 %
RESAMPLES = 100


@dataclass(frozen=True)
class Distance:
    """A distance to the reference, in its own unit.

    Attributes:
        value: Of the crystals.
        low: Lower end of the 95 % interval.
        high: Upper end.
        floor: What as many crystals of the reference itself score on average, by chance alone.
    """

    value: float
    low: float
    high: float
    floor: float


def fraction_interval(count: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of `count` in `n`; a bootstrap would have no width at 0 and n."""
    share, spread = count / n, Z**2 / n
    center = (share + spread / 2) / (1 + spread)
    half = Z * math.sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    return max(0.0, center - half), min(1.0, center + half)


@dataclass(frozen=True)
class Share:
    """How many of n have something, their share, and its 95 % interval."""

    count: int
    n: int
    share: float
    low: float
    high: float

    @classmethod
    def of(cls, count: int, n: int) -> Share:
        """Count `count` of `n`, at least one."""
        return cls(count, n, count / n, *fraction_interval(count, n))

    def __str__(self) -> str:
        """Write it for people."""
        return f"{self.count} of {self.n}, {self.share:.1%} ({self.low:.1%} to {self.high:.1%})"


def difference_interval(before: tuple[int, int], after: tuple[int, int]) -> tuple[float, float]:
    """Newcombe's 95 % interval of how much a share has risen; each is a count, and of how many."""
    (old, old_low, old_high), (new, new_low, new_high) = (
        (count / n, *fraction_interval(count, n)) for count, n in (before, after)
    )
    rise = new - old
    return (
        rise - math.hypot(new - new_low, old_high - old),
        rise + math.hypot(new_high - new, old - old_low),
    )


def distance_intervals(
    crystals: Sequence[Traits], reference: Summary, seed: int = 0
) -> dict[str, Distance]:
    """Bootstrap the distances of `symmbfn.metrics`, by name; none without crystals.

    The interval is the value and 1.96 standard errors of the resampled values to each side:
    a resample is coarser than the sample, so that its distances lie too high as they are.
    """
    from symmbfn.metrics import distances

    found = distances(crystals, reference)
    chance, n = random.Random(seed), len(crystals)
    if not n:
        return {}
    resampled = [distances(chance.choices(crystals, k=n), reference) for _ in range(RESAMPLES)]
    drawn = [distances(_draw(reference, n, chance), reference) for _ in range(RESAMPLES)]
    return {
        name: _distance(value, _known(resampled, name), _known(drawn, name))
        for name, value in found.items()
        if value is not None
    }


def _known(rows: Sequence[Mapping[str, float | None]], name: str) -> list[float]:
    return [value for row in rows if (value := row[name]) is not None]


def _distance(value: float, resampled: Sequence[float], drawn: Sequence[float]) -> Distance:
    mean = sum(resampled) / len(resampled)
    error = math.sqrt(sum((one - mean) ** 2 for one in resampled) / (len(resampled) - 1))
    floor = sum(drawn) / len(drawn)
    return Distance(value, max(0.0, value - Z * error), value + Z * error, floor)


def _draw(reference: Summary, n: int, chance: random.Random) -> list[Traits]:
    """Draw n crystals whose group, elements and density are each spread as the reference's."""
    from symmbfn.metrics import Traits

    def draw(counts: Mapping[int, int]) -> list[int]:
        return chance.choices([*counts], [*counts.values()], k=n)

    return [
        Traits(group, None, tuple(map(str, range(kinds))), density, math.nan)
        for group, kinds, density in zip(
            draw(reference.space_groups),
            draw(reference.n_elements),
            chance.choices(reference.densities, k=n),
            strict=True,
        )
    ]
