"""Public ids: ``sbfn-42`` is the candidate of row 42."""

from db.errors import DatabaseError

PREFIX = "sbfn-"


def material_id(candidate_id: int) -> str:
    """Write the public id of a candidate's row number."""
    return f"{PREFIX}{candidate_id}"


def candidate_id(material_id: str) -> int:
    """Read the row number in a public id.

    Raises:
        DatabaseError: when the text is not such an id.
    """
    number = material_id.removeprefix(PREFIX)
    if number == material_id or not (number.isascii() and number.isdigit()) or len(number) > 18:
        raise DatabaseError(f"{material_id!r} is not the id of a candidate: write it like sbfn-42")
    return int(number)
