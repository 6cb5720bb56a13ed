"""A picture of a loop: what each round found, how diverse it was, and what it cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flows.loop_round import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def write(rounds: Sequence[Result], path: Path) -> None:
    """Draw the rounds into a .png or .svg file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.4), layout="constrained")
    finds, diversity, cost = figure.subplots(1, 3)
    numbers = [one.number for one in rounds]
    _finds(finds, rounds, "msun", "metastable S.U.N.")
    _finds(finds, rounds, "sun", "S.U.N.")
    finds.set(title="finds, % of generated (95 %)")
    for name, label in (
        ("formulas", "formulas"),
        ("chemical_systems", "chemical systems"),
        ("space_groups", "space groups"),
    ):
        diversity.plot(numbers, [getattr(one, name) for one in rounds], "o-", label=label)
    diversity.set(title="different ones of 100 generated")
    below = [0.0] * len(rounds)
    for label, minutes in (
        ("drawing", [one.drawing / 60 for one in rounds]),
        ("relaxing", [one.relaxing / 60 for one in rounds]),
        ("training", [one.training or 0.0 for one in rounds]),
    ):
        cost.bar(numbers, minutes, 0.6, bottom=below, label=label)
        below = [low + high for low, high in zip(below, minutes, strict=True)]
    cost.set(title="cost, minutes of one core")
    for axes in (finds, diversity, cost):
        axes.set(xlabel="round", xticks=numbers, ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)


def _finds(axes: Axes, rounds: Sequence[Result], name: str, label: str) -> None:
    shares = [100 * getattr(one, name) / one.generated for one in rounds]
    ends = [getattr(one, f"{name}_interval") for one in rounds]
    errors = [
        [share - 100 * low for share, (low, _) in zip(shares, ends, strict=True)],
        [100 * high - share for share, (_, high) in zip(shares, ends, strict=True)],
    ]
    axes.errorbar([one.number for one in rounds], shares, errors, fmt="o-", capsize=3, label=label)
