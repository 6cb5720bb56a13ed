"""The error that every part of `symmbfn` raises for bad input."""


class SymmBFNError(Exception):
    """One line for the user: what is wrong, where, and the remedy."""
