"""Every error of this package; each carries one line: what, where, the remedy."""


class DatabaseError(Exception):
    """The database could not do what was asked."""


class SchemaError(DatabaseError):
    """The database is not one that this version of the program can use."""


class FilterError(DatabaseError):
    """The text of a filter or a sort field is not one we understand."""


class StaleLeaseError(DatabaseError):
    """A late write: the candidate's lease went to another worker meanwhile."""
