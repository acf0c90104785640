"""The exception for a case that cannot run here."""


class Skip(Exception):
    """Says why, and how to enable the case."""
