"""Filters: what they find, and what they refuse."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select

from db import filters, queries
from db.errors import FilterError
from db.fields import FIELDS, LIST_FIELDS, candidate_rows
from db.models import Candidate
from db.session import Database, open_database
from tests.db_kinds import KINDS
from tests.db_support import filled, url_of


@pytest.fixture(params=KINDS, scope="module")
def database(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Database]:
    folder: Path = tmp_path_factory.mktemp("filters")
    with url_of(request.param, folder) as url:
        opened = open_database(url)
        with opened.session() as session:
            filled(session)
        yield opened
        opened.close()


def found(database: Database, text: str) -> list[int]:
    """Rows of LiO (pretty: Li2O2) -0.02, NaCl 0.05, MgO 0.4 eV/atom, and KBr, which failed."""
    with database.session(write=False) as session:
        query = candidate_rows(Candidate.id).where(filters.parse(text)).order_by(Candidate.id)
        return list(session.scalars(query))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [1, 2, 3, 4]),
        ("  ", [1, 2, 3, 4]),
        ("energy_above_hull < 0.1", [1, 2]),
        ("0.1 > energy_above_hull", [1, 2]),
        ("energy_above_hull<=-2e-2", [1]),
        ("NOT energy_above_hull < 0.1", [3]),
        ("energy_above_hull IS UNKNOWN", [4]),
        ("energy_above_hull IS KNOWN AND nsites = 2", [1, 2, 3]),
        ("formation_energy_per_atom = -1.5", [1, 2, 3]),
        ("band_gap IS UNKNOWN", [1, 2, 3, 4]),
        ("is_stable = TRUE", [1]),
        ("is_stable=FALSE", [2, 3]),
        ("is_stable != TRUE", [2, 3]),
        ("is_novel = TRUE AND is_unique = TRUE AND is_metastable = TRUE", [1, 2]),
        ('elements HAS "O"', [1, 3]),
        ('NOT elements HAS "O"', [2, 4]),
        ('elements HAS ALL "Li", "O"', [1]),
        ('elements HAS ANY "Li","K","Na"', [1, 2, 4]),
        ('elements HAS ONLY "O","Mg","Li"', [1, 3]),
        ('elements HAS ONLY "O"', []),
        ("elements LENGTH 2", [1, 2, 3, 4]),
        ("elements LENGTH > 2", []),
        ("nelements >= 3", []),
        ('chemsys = "O-Li"', [1]),
        ('chemsys = "Li-O" OR chemsys = "Mg-O"', [1, 3]),
        ('chemical_formula_reduced = "ClNa"', [2]),
        ('formula_pretty = "NaCl"', [2]),
        ('formula_pretty STARTS WITH "Na"', [2]),
        ('formula_pretty STARTS "na"', []),
        ('formula_pretty ENDS WITH "O"', [3]),
        ('formula_pretty ENDS WITH "MgOMgO"', []),
        ('formula_pretty CONTAINS "i2O"', [1]),
        ('formula_pretty CONTAINS "%"', []),
        ('formula_pretty CONTAINS ""', [1, 2, 3, 4]),
        ("space_group = 225", [1, 2, 3, 4]),
        ('state = "failed"', [4]),
        ('verdict = "metastable"', [2]),
        ('campaign = "first"', [1, 2, 3, 4]),
        ('campaign != "first"', []),
        ('campaign HAS ANY "x","first"', [1, 2, 3, 4]),
        ('campaign STARTS WITH "fi" AND nsites < 3', [1, 2, 3, 4]),
        ("campaign IS UNKNOWN", []),
        ('material_id = "sbfn-3"', [3]),
        ('potential = "chgnet" AND hull = "chgnet"', [1, 2, 3]),
        ('potential = "chgnet" AND precision = "float32"', [1, 2, 3, 4]),
        ('precision = "float64"', []),
        ('NOT (elements HAS "O" OR elements HAS "Na")', [4]),
        ('elements HAS "O" AND is_stable = TRUE OR state = "failed"', [1, 4]),
        ('elements HAS "O" AND (is_stable = TRUE OR energy_above_hull > 0.3)', [1, 3]),
    ],
)
def test_finds(database: Database, text: str, expected: list[int]) -> None:
    assert found(database, text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("energy < 0.1", f"no field 'energy' to filter by.*{', '.join(FIELDS)}"),
        ("structure.lattice = 1", "no field 'structure.lattice'"),
        ("nsites <", "cannot be read at its end"),
        ("nsites << 3", "at position 9"),
        ("Nsites = 3", "at position 1, near 'Nsites = 3'"),
        ("nsites = 3 nelements = 2", "side by side"),
        ('nsites = "3"', "nsites is a number, not '3'"),
        ("nsites = TRUE", "nsites is a number"),
        ("nsites = 99999999999999999999", "nsites is a number"),
        ("energy_above_hull < 1e999", "energy_above_hull is a number, not 'inf'"),
        ("is_stable = 1", "is_stable is TRUE or FALSE"),
        ("formula_pretty = 3", "3 stands where text should"),
        ("formula_pretty = nacl", "nacl stands where a value should: put text in double"),
        ("elements HAS 3", "put it in double quotes"),
        ('elements HAS "Xx"', "'Xx' is not the symbol of an element"),
        ('elements HAS ANY < "Li", "O"', "comparison signs inside lists"),
        ('elements HAS < "Li"', "comparison signs inside lists"),
        ('nsites HAS "Li"', "nsites is one value"),
        ("campaign LENGTH 2", "LENGTH is known only for elements"),
        ('elements:nsites HAS "Li":3', "joined by ':' are not supported"),
        ('nsites STARTS WITH "1"', "nsites is a integer"),
        ('state = "screend"', "state is never 'screend': it is one of generated"),
        ('1 = "nsites"', "cannot be read|compares no field"),
        ("nsites = 1" + " " * 2000, "2010 characters long: at most 2000"),
        ("(" * 21 + "nsites = 1" + ")" * 21, "brackets deeper than 20"),
        ("(" * 900 + "nsites = 1" + ")" * 900, "brackets deeper than 20"),
        ('formula_pretty = "' + "\0" + '"', "NUL"),
    ],
)
def test_refuses_in_one_line(text: str, message: str) -> None:
    with pytest.raises(FilterError, match=message) as caught:
        filters.parse(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    "text",
    [
        "x'; DROP TABLE candidate; --",
        '\\" OR \\"1\\"=\\"1',
        "' OR 1=1 --",
        "%",
        "\U0001f600",
        "sbfn-1' UNION SELECT * FROM campaign --",
    ],
)
def test_sql_in_a_value_is_only_text(database: Database, text: str) -> None:
    for condition in (
        f'formula_pretty = "{text}"',
        f'material_id CONTAINS "{text}"',
        f'campaign HAS "{text}"',
    ):
        assert found(database, condition) == []
        written = str(select(Candidate.id).where(filters.parse(condition)))
        assert "DROP" not in written and "UNION" not in written and "1=1" not in written
    with database.session(write=False) as session:
        assert queries.table_counts(session)["candidate"] == 4


def test_escaped_quotes_are_read() -> None:
    compiled = filters.parse(r'formula_pretty = "a\"b\\c"').compile()
    assert 'a"b\\c' in compiled.params.values()


@pytest.mark.parametrize(
    "text",
    [
        " OR ".join(["nsites=2"] * 166),
        " AND ".join(['elements HAS "O"'] * 90),
        "elements HAS ANY " + ",".join(['"Li"'] * 390),
        "campaign HAS ALL " + ",".join(f'"{number}"' for number in range(320)),
        "(" * 20 + "nsites=2" + ")" * 20,
        'formula_pretty = "' + "(" * 1900 + '"',
        'formula_pretty CONTAINS "' + '\\"' * 900 + '"',
    ],
)
def test_the_longest_filters_are_answered_soon(database: Database, text: str) -> None:
    assert len(text) <= filters.MAX_LENGTH
    start = time.perf_counter()
    found(database, text)
    assert time.perf_counter() - start < 30


def test_every_field_can_be_asked_for(database: Database) -> None:
    for name in [*FIELDS, *LIST_FIELDS]:
        known, unknown = found(database, f"{name} IS KNOWN"), found(database, f"{name} IS UNKNOWN")
        assert sorted(known + unknown) == [1, 2, 3, 4]
