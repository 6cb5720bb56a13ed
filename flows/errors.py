"""The error of the flows and of the command line."""


class ConfigError(Exception):
    """A wrong setting; the message is one line: what, where, the remedy."""
