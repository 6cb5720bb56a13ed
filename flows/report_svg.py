"""Charts of the report as SVG text; their colours stand in `report_page.html`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flows.assess import tier
from flows.settings import ThresholdSettings

BINS = 30
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 12, 20, 42  # margins, user units
_CELL = 56  # of the periodic table, user units


@dataclass(frozen=True)
class _Frame:
    """A plot's size, and its ranges in data units; y starts at zero."""

    width: int
    height: int
    low: float
    high: float
    top: float

    def x(self, value: float) -> float:
        """Horizontal place of a value."""
        part = (value - self.low) / (self.high - self.low)
        return round(_LEFT + part * (self.width - _LEFT - _RIGHT), 2)

    def y(self, value: float) -> float:
        """Vertical place of a value."""
        base = self.height - _BOTTOM
        return round(base - value / self.top * (base - _TOP), 2)

    def rect(self, kind: str, left: float, right: float, value: float, hint: str = "") -> str:
        """A bar from zero to a value, with a text that shows under the pointer."""
        x, y, base = self.x(left), self.y(value), self.y(0)
        return (
            f'<rect class="{kind}" x="{x}" y="{y}" width="{self.x(right) - x:.2f}" '
            f'height="{base - y:.2f}"><title>{escape(hint)}</title></rect>'
        )

    def page(self, parts: Iterable[str], x_title: str, y_title: str, percent: bool) -> str:
        """The whole picture: grid and numbers of the y axis, what is plotted, titles."""
        middle = (_LEFT + self.width - _RIGHT) / 2
        grid = []
        for tick in ticks(0, self.top, 4):
            y, label = self.y(tick), f"{_number(100 * tick)} %" if percent else _number(tick)
            ends = f'x1="{_LEFT}" x2="{self.width - _RIGHT}"'
            grid.append(f'<line class="grid" {ends} y1="{y}" y2="{y}"/>')
            grid.append(_text(_LEFT - 6, y + 4, label, "end"))
        return _svg(
            self.width,
            self.height,
            [*grid, *parts, _text(middle, self.height - 6, x_title, "middle", "title")],
            f"{y_title} by {x_title}",
        )


def bars(
    labels: Sequence[str], ours: Sequence[float], reference: Sequence[float], x_title: str
) -> str:
    """Shares of categories: wide bars for the reference, narrow ones for ours before them."""
    frame = _Frame(480, 230, -0.5, len(labels) - 0.5, _top([*ours, *reference]))
    parts = []
    skip = math.ceil(len(labels) / 16)
    for place, (label, our, ref) in enumerate(zip(labels, ours, reference, strict=True)):
        hint = f"{label}: {our:.1%}, reference {ref:.1%}"
        parts.append(frame.rect("reference", place - 0.4, place + 0.4, ref, hint))
        parts.append(frame.rect("ours", place - 0.22, place + 0.22, our, hint))
        if place % skip == 0:
            parts.append(_text(frame.x(place), frame.height - _BOTTOM + 16, label, "middle"))
    return frame.page(parts, x_title, "share", percent=True)


def histogram(ours: ArrayLike, reference: ArrayLike, x_title: str) -> str:
    """Shares of numbers; the outermost bars hold what lies beyond them, too."""
    values = [np.asarray(ours, dtype=float), np.asarray(reference, dtype=float)]
    low, high = np.quantile(np.concatenate(values), [0.002, 0.995])
    edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
    shares = [_shares(one, edges) for one in values]
    frame = _Frame(480, 230, edges[0], edges[-1], _top(np.concatenate(shares)))
    parts = []
    for left, right, our, ref in zip(edges[:-1], edges[1:], *shares, strict=True):
        hint = f"{_number(left)} to {_number(right)}: {our:.1%}, reference {ref:.1%}"
        parts.append(frame.rect("reference", left, right, ref, hint))
        parts.append(frame.rect("ours translucent", left, right, our, hint))
    parts.append(_steps(frame, edges, shares[0]))
    return frame.page([*parts, *_x_numbers(frame)], x_title, "share", percent=True)


def hull_histogram(energies: ArrayLike, thresholds: ThresholdSettings) -> str:
    """Crystals by energy above the hull, eV/atom; tiers coloured, shaded and named."""
    values = np.asarray(energies, dtype=float)
    stable, metastable, suspect = thresholds.stable, thresholds.metastable, thresholds.suspect
    low = min(stable - 0.05, max(suspect - 0.05, float(values.min())))
    high = max(metastable + 0.15, min(float(np.quantile(values, 0.97)), metastable + 1))
    width = (high - low) / 50
    first, last = math.floor((low - stable) / width), math.ceil((high - stable) / width)
    edges = stable + width * np.arange(first, last + 1)  # the threshold divides no bar
    counts = np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0]
    frame = _Frame(980, 270, float(edges[0]), float(edges[-1]), _top(counts))
    parts = []
    for name, begin, end in (("stable", suspect, stable), ("metastable", stable, metastable)):
        left, right = frame.x(max(begin, frame.low)), frame.x(end)
        parts.append(
            f'<rect class="zone {name}" x="{left}" y="0" width="{right - left:.2f}" '
            f'height="{frame.y(0)}"/>'
        )
        parts.append(_text((left + right) / 2, 14, name, "middle", f"name {name}"))
    for left, right, count in zip(edges[:-1], edges[1:], counts, strict=True):
        kind = tier(float(left + right) / 2, thresholds)
        hint = f"{left:.3f} to {right:.3f} eV/atom: {count} crystals"
        parts.append(frame.rect(kind, left, right, float(count), hint))
    parts += _x_numbers(frame)
    return frame.page(parts, "energy above the hull, eV/atom", "crystals", percent=False)


def periodic_table(ours: Mapping[str, int], n: int, reference: Mapping[str, int], m: int) -> str:
    """Each element: share of our n crystals that contain it, above that of m reference ones.

    The colour is the base-2 logarithm of their ratio, one crystal added to both sides so that
    rare elements stay pale.
    """
    from pymatgen.core import Element

    parts = []
    for number in range(1, 104):
        element = Element.from_Z(number)
        row, column = float(element.row), element.group
        if 57 <= number <= 71 or 89 <= number <= 103:  # below the table, La and Ac under group 3
            row, column = (8.4, number - 54) if number < 80 else (9.4, number - 86)
        symbol = element.symbol
        share, known = ours.get(symbol, 0) / n, reference.get(symbol, 0) / m
        ratio = math.log2((share * n + 1) / (known * n + 1))
        parts.append(_element_cell(column - 1, row - 1, symbol, share, known, ratio))
    labels = {-2.0: "¼", -1.0: "½", 0.0: "1", 1.0: "2", 2.0: "4"}
    legend = [
        f'<rect x="{190 + 24 * place}" y="30" width="24" height="12" fill="{_diverging(ratio)}"/>'
        + _text(202 + 24 * place, 58, labels.get(ratio, ""), "middle")
        for place, ratio in enumerate(np.arange(-2, 2.5, 0.5).tolist())
    ]
    legend.append(_text(190, 22, "share, as a multiple of the reference's", "start", "title"))
    return _svg(18 * _CELL, 9.4 * _CELL, [*legend, *parts], "periodic table of element shares")


def _element_cell(
    column: float, row: float, symbol: str, share: float, known: float, ratio: float
) -> str:
    x, y, size = column * _CELL, row * _CELL, _CELL - 3
    middle = x + size / 2
    absent = not share and not known
    lines = [_text(middle, y + 19, symbol, "middle", "symbol")]
    if not absent:
        lines.append(_text(middle, y + 33, f"{100 * share:.1f}", "middle", "share"))
        lines.append(_text(middle, y + 46, f"{100 * known:.1f}", "middle", "known"))
    return (
        f'<g class="element{" absent" if absent else ""}"><title>{symbol}: in {share:.1%} of the '
        f'crystals, in {known:.1%} of the reference</title><rect x="{x:.1f}" y="{y:.1f}" '
        f'width="{size}" height="{size}" rx="4" fill="{_diverging(ratio)}"/>{"".join(lines)}</g>'
    )


def _diverging(ratio: float) -> str:
    """Blue below 0, white at 0, orange above; full at ±2."""
    part = min(abs(ratio) / 2, 1.0)
    end = (240, 155, 80) if ratio > 0 else (108, 160, 212)
    return "#" + "".join(f"{round(248 + (to - 248) * part):02x}" for to in end)


def _shares(values: NDArray[np.float64], edges: NDArray[np.float64]) -> NDArray[np.float64]:
    counts = np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0]
    return counts / max(len(values), 1)


def _steps(frame: _Frame, edges: NDArray[np.float64], shares: NDArray[np.float64]) -> str:
    """The outline of a histogram."""
    points = [(edges[0], 0.0)]
    for left, right, share in zip(edges[:-1], edges[1:], shares, strict=True):
        points += [(left, share), (right, share)]
    points.append((edges[-1], 0.0))
    path = " ".join(f"{frame.x(x)},{frame.y(y)}" for x, y in points)
    return f'<polyline class="outline" points="{path}"/>'


def _x_numbers(frame: _Frame) -> list[str]:
    places = ticks(frame.low, frame.high, frame.width // 70)
    y = frame.height - _BOTTOM + 16
    return [_text(frame.x(value), y, _number(value), "middle") for value in places]


def ticks(low: float, high: float, most: int) -> list[float]:
    """At most `most` + 1 round numbers from low to high, 1, 2 or 5 times a power of ten apart."""
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 10) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _top(values: Sequence[float] | NDArray[np.generic]) -> float:
    """A little above the highest value."""
    return max(float(np.max(np.asarray(values))), 1e-9) * 1.08


def _number(value: float) -> str:
    return f"{value:.3g}".replace("-", "−")


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> str:
    attribute = f' class="{kind}"' if kind else ""
    return f'<text{attribute} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(width: float, height: float, parts: Iterable[str], label: str) -> str:
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{escape(label)}">'
        f"{''.join(parts)}</svg>"
    )
