"""JSON documents stored in columns: structures, settings, and their content hashes."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from db.errors import DatabaseError

if TYPE_CHECKING:
    from pymatgen.core.structure import Structure

Document = dict[str, Any]


def dumps(value: object) -> str:
    """Write canonical JSON: sorted keys, no spaces, no NaN or infinity.

    Raises:
        DatabaseError: when the value holds something that JSON cannot.
    """
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DatabaseError(
            f"a document for the database is not plain JSON ({error}): "
            "pass finite numbers, text, lists and dictionaries only"
        ) from error


def content_hash(value: object) -> str:
    """SHA-256 (hex) of the canonical JSON of ``value``: equal content, equal text."""
    return hashlib.sha256(dumps(value).encode()).hexdigest()


def structure_to_dict(structure: Structure) -> Document:
    """Turn a structure into its short pymatgen dictionary.

    Args:
        structure: any ordered or disordered crystal; lattice in Å, fractional coordinates.

    Raises:
        DatabaseError: when a coordinate or lattice entry is NaN or infinite.
    """
    numbers = [*structure.lattice.matrix.ravel(), *structure.frac_coords.ravel()]
    if not all(math.isfinite(number) for number in numbers):
        raise DatabaseError(
            f"structure {structure.composition.reduced_formula} has NaN or infinite coordinates "
            "and cannot be stored: drop it or record it as failed"
        )
    document: Document = structure.as_dict(verbosity=0)
    return document


def structure_from_dict(document: Mapping[str, Any]) -> Structure:
    """Rebuild the pymatgen structure that ``structure_to_dict`` wrote."""
    from pymatgen.core.structure import Structure  # slow to import

    return Structure.from_dict(dict(document))
