"""Pieces of HTML that the sections of a report share; texts that come in are escaped here."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape


def section(title: str, note: str, *content: str) -> str:
    """A headed section; note and content are HTML already."""
    note = f'<p class="note">{note}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>{note}{''.join(content)}</section>"


def table(kind: str, columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table; its cells are HTML already."""
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def formula(text: str) -> str:
    """Write a formula with its numbers below the line."""
    return re.sub(r"(\d+(?:\.\d+)?)", r"<sub>\1</sub>", escape(text))


def space_group(number: int | None) -> str:
    """Write a space group's symbol with bars and subscripts, and its number; a dash for None."""
    import moyopy

    if number is None:
        return "–"
    symbol = escape(moyopy.SpaceGroupType(number).hm_short.replace(" ", ""))
    symbol = re.sub(r"_(\d)", r"<sub>\1</sub>", symbol)
    symbol = re.sub(r"-(\d)", r'<span class="bar">\1</span>', symbol)
    return f'<span class="group"><i>{symbol}</i> <small>{number}</small></span>'


def percent(share: float) -> str:
    """A share with one decimal."""
    return f"{100 * share:.1f} %"


def yes_no(flag: bool) -> str:
    """A tick, or a pale dash."""
    return '<span class="yes">✓</span>' if flag else '<span class="no">–</span>'


def energy(value: float) -> str:
    """An energy in eV/atom; empty where there is none."""
    rounded = round(value, 3) + 0.0  # no minus before zero
    return "" if value != value else f"{rounded:.3f}".replace("-", "−")
