"""Filters in the OPTIMADE language, turned into SQL conditions.

The grammar is the one that the optimade package ships. Every value travels as a bound
parameter. As in SQL, a comparison with an unknown value is neither true nor false, so such
candidates are found only by ``IS UNKNOWN``. Examples::

    elements HAS ALL "Li","O" AND energy_above_hull < 0.05
    chemsys = "Li-O" AND NOT is_novel = FALSE
    elements HAS ONLY "Li","Fe","O" AND nsites <= 20 AND campaign = "first"
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

from lark import Lark, Token, Tree
from lark.exceptions import LarkError, UnexpectedCharacters, UnexpectedInput
from sqlalchemy import ColumnElement, and_, func, literal, not_, or_, true

from db.errors import FilterError
from db.fields import FIELDS, LIST_FIELDS, Field, ListField

MAX_LENGTH = 2000
MAX_DEPTH = 20

type Condition = ColumnElement[bool]
type Value = str | float | int | bool

OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
MIRRORED = {"=": "=", "!=": "!=", "<": ">", "<=": ">=", ">": "<", ">=": "<="}


def parse(text: str, fields: Mapping[str, Field] = FIELDS) -> Condition:
    """Turn a filter into a condition on the rows of ``fields.candidate_rows``.

    Args:
        text: the filter; blank means every candidate.
        fields: what its names mean on these rows (``fields.fields_of``).

    Raises:
        FilterError: when it is too long, too deep, misspelt, or asks for what we do not have.
    """
    _check_size(text)
    try:
        tree = _grammar().parse(text)
    except UnexpectedInput as error:
        where = "at its end"
        if isinstance(error, UnexpectedCharacters):
            at = error.pos_in_stream or 0
            where = f"at position {at + 1}, near {text[at : at + 20]!r}"
        raise FilterError(
            f"the filter cannot be read {where}: "
            'write for example elements HAS "Li" AND energy_above_hull < 0.1'
        ) from error
    except LarkError as error:
        raise FilterError(f"the filter cannot be read ({error}): simplify it") from error
    expressions = _branches(tree)
    if not expressions:
        return true()
    if len(expressions) > 1:
        raise FilterError("the filter holds two conditions side by side: join them by AND or OR")
    return _Translator(text, fields).expression(expressions[0])


def sort_field(text: str, fields: Mapping[str, Field] = FIELDS) -> ColumnElement[Any]:
    """Turn ``field`` or ``-field`` (descending) into an order, unknown values last.

    Raises:
        FilterError: when there is no such field.
    """
    name = text.removeprefix("-")
    if name not in FIELDS:
        raise FilterError(f"cannot sort by {_short(name)}: choose one of {', '.join(FIELDS)}")
    column = fields[name].column
    return (column.desc() if text.startswith("-") else column.asc()).nulls_last()


def _check_size(text: str) -> None:
    if len(text) > MAX_LENGTH:
        raise FilterError(
            f"the filter is {len(text)} characters long: at most {MAX_LENGTH} are read"
        )
    depth, quoted, escaped = 0, False, False
    for character in text:
        if quoted:
            quoted = escaped or character != '"'
            escaped = character == "\\" and not escaped
        elif character == '"':
            quoted = True
        else:
            depth += (character == "(") - (character == ")")
            if depth > MAX_DEPTH:
                raise FilterError(
                    f"the filter nests brackets deeper than {MAX_DEPTH}: write it flatter"
                )


@functools.cache
def _grammar() -> Lark:
    """Build optimade's grammar, with positions: its ``bool`` keeps no other trace of its value."""
    from optimade.filterparser.lark_parser import AVAILABLE_PARSERS

    version = max(number for number, variants in AVAILABLE_PARSERS.items() if "default" in variants)
    grammar = AVAILABLE_PARSERS[version]["default"].read_text(encoding="utf-8")
    return Lark(grammar, maybe_placeholders=False, propagate_positions=True)


def _branches(tree: Tree[Token]) -> list[Tree[Token]]:
    return [child for child in tree.children if isinstance(child, Tree)]


def _tokens(tree: Tree[Token]) -> list[Token]:
    return [child for child in tree.children if isinstance(child, Token)]


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "…")


class _Translator:
    """Walks one parsed filter; methods are named after the grammar's rules."""

    def __init__(self, text: str, fields: Mapping[str, Field]) -> None:
        self.text = text
        self.fields = fields

    def expression(self, tree: Tree[Token]) -> Condition:
        return or_(*(self.clause(clause) for clause in _branches(tree)))

    def clause(self, tree: Tree[Token]) -> Condition:
        return and_(*(self.phrase(phrase) for phrase in _branches(tree)))

    def phrase(self, tree: Tree[Token]) -> Condition:
        inner = _branches(tree)[0]
        condition = (
            self.expression(inner)
            if inner.data == "expression"
            else self.comparison(_branches(inner)[0])
        )
        return not_(condition) if _tokens(tree) else condition

    def comparison(self, tree: Tree[Token]) -> Condition:
        first, second = _branches(tree)
        if tree.data == "constant_first_comparison":
            (sign,) = _tokens(tree)
            if second.data != "non_string_value":
                raise FilterError(f"{self.source(tree)} compares no field: name one of {_NAMES}")
            return self.compare(self.field(_branches(second)[0]), MIRRORED[sign], self.value(first))
        field = self.field(first)
        match second.data:
            case "value_op_rhs":
                (sign,) = _tokens(second)
                return self.compare(field, sign, self.value(_branches(second)[0]))
            case "known_op_rhs":
                known = any(token.type == "KNOWN" for token in _tokens(second))
                return self.known(field, known)
            case "fuzzy_string_op_rhs":
                return self.fuzzy(field, _tokens(second)[0].type, _branches(second)[0])
            case "set_op_rhs":
                return self.has(field, second)
            case "length_op_rhs":
                return self.length(field, second)
            case _:
                raise FilterError(f"{self.source(tree)}: lists joined by ':' are not supported")

    def compare(self, field: Field | ListField, sign: str, value: Value) -> Condition:
        if isinstance(field, Field):
            result: Condition = OPERATORS[sign](field.column, self.bound(field, value))
            return result
        text = self.text_value(value)
        if sign == "!=":
            return not_(field.any(field.value == text))
        return field.any(OPERATORS[sign](field.value, text))

    def known(self, field: Field | ListField, known: bool) -> Condition:
        if isinstance(field, ListField):
            return field.any(true()) if known else not_(field.any(true()))
        return field.column.is_not(None) if known else field.column.is_(None)

    def fuzzy(self, field: Field | ListField, word: str, tree: Tree[Token]) -> Condition:
        if isinstance(field, Field) and field.kind != "text":
            raise FilterError(f"{word} compares text, but {self.name(field)} is a {field.kind}")
        value = self.text_value(self.value(tree))
        column = field.column if isinstance(field, Field) else field.value
        # Not LIKE: SQLite's ignores the case of letters and PostgreSQL's does not.
        found: Condition
        if not value:
            found = column.is_not(None)
        elif word == "CONTAINS":
            found = func.replace(column, value, "") != column
        elif word == "STARTS":
            found = func.substr(column, 1, len(value)) == value
        else:
            found = func.substr(column, func.length(column) - (len(value) - 1), len(value)) == value
        return found if isinstance(field, Field) else field.any(found)

    def has(self, field: Field | ListField, tree: Tree[Token]) -> Condition:
        if isinstance(field, Field):
            raise FilterError(
                f"HAS looks into a list, but {self.name(field)} is one value: "
                f"use = or choose one of {', '.join(LIST_FIELDS)}"
            )
        words = [token.type for token in _tokens(tree)]
        branches = _branches(tree)
        listed = branches[0].data == "value_list"
        if "OPERATOR" in words or (listed and _tokens(branches[0])):
            raise FilterError(
                f"{self.source(tree)}: comparison signs inside lists are not supported"
            )
        trees = _branches(branches[0]) if listed else branches
        values = list(dict.fromkeys(self.text_value(self.value(one)) for one in trees))
        if field is LIST_FIELDS["elements"]:
            _check_elements(values)
        if "ONLY" in words:
            return not_(field.any(field.value.not_in(values)))
        if "ALL" in words:
            return field.count(field.value.in_(values)) == len(values)
        return field.any(field.value.in_(values))

    def length(self, field: Field | ListField, tree: Tree[Token]) -> Condition:
        if field is not LIST_FIELDS["elements"]:
            raise FilterError(f"{self.source(tree)}: LENGTH is known only for elements")
        signs = [token for token in _tokens(tree) if token.type == "OPERATOR"]
        count = int(_tokens(_branches(tree)[0])[0])
        return self.compare(self.fields["nelements"], signs[0] if signs else "=", count)

    def field(self, tree: Tree[Token]) -> Field | ListField:
        name = ".".join(_tokens(tree)) if tree.data == "property" else self.source(tree)
        found = self.fields.get(name) or LIST_FIELDS.get(name)
        if found is None:
            raise FilterError(f"no field {_short(name)} to filter by: choose one of {_NAMES}")
        return found

    def value(self, tree: Tree[Token]) -> Value:
        """Read a ``value`` or ``constant``."""
        (inner,) = _branches(tree)
        if inner.data == "bool":
            return self.source(inner) == "TRUE"
        if inner.data == "property":
            raise FilterError(
                f"{self.source(inner)} stands where a value should: put text in double quotes"
            )
        (token,) = _tokens(inner)
        if inner.data == "string":
            return str(token[1:-1]).replace('\\"', '"').replace("\\\\", "\\")
        return int(token) if token.type == "SIGNED_INT" else float(token)

    def text_value(self, value: Value) -> str:
        if not isinstance(value, str):
            raise FilterError(f"{value} stands where text should: put it in double quotes")
        if "\0" in value:
            raise FilterError("the filter holds a NUL character: take it out")
        return value

    def bound(self, field: Field, value: Value) -> ColumnElement[Any]:
        """Check that a value suits its field and make it a bound parameter."""
        name = self.name(field)
        if field.kind == "text":
            text = self.text_value(value)
            if name == "chemsys":
                text = "-".join(sorted(text.split("-")))
            if field.choices and text not in field.choices:
                raise FilterError(
                    f"{name} is never {_short(text)}: it is one of {', '.join(field.choices)}"
                )
            return literal(text)
        if field.kind == "boolean":
            if not isinstance(value, bool):
                raise FilterError(f"{name} is TRUE or FALSE, not {_short(str(value))}")
            return literal(value)
        if isinstance(value, (bool, str)) or not math.isfinite(value) or abs(value) >= 2**31:
            raise FilterError(f"{name} is a number, not {_short(str(value))}")
        return literal(value)

    def name(self, field: Field) -> str:
        return next(name for name, known in self.fields.items() if known is field)

    def source(self, tree: Tree[Token]) -> str:
        """The part of the filter that a branch was read from."""
        return self.text[tree.meta.start_pos : tree.meta.end_pos]


_NAMES = ", ".join([*FIELDS, *LIST_FIELDS])


def _check_elements(symbols: list[str]) -> None:
    from pymatgen.core.periodic_table import Element  # slow to import

    unknown = [symbol for symbol in symbols if not Element.is_valid_symbol(symbol)]
    if unknown:
        raise FilterError(f"{_short(unknown[0])} is not the symbol of an element: write it like Li")
