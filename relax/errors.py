"""The error that every part of `relax` raises for bad input."""


class RelaxError(Exception):
    """One line for the user: what is wrong, where, and the remedy."""
