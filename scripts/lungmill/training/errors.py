"""The exception of the training side."""

from lungmill.errors import LungmillError


class ArrayError(LungmillError, ValueError):
    """Arrays, files or arguments that do not fit together; a ValueError too, as NumPy raises there."""
