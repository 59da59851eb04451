"""Text for people: names that are safe for a terminal, and numbers."""

from __future__ import annotations


def printable(name: object) -> str:
    r"""Text from a file made safe for a terminal: one line, no control characters.

    Examples
    --------
    >>> from gramless._base.text import printable
    >>> printable("relu1\x1b[31m")
    'relu1?[31m'
    """
    return "".join(letter if letter.isprintable() else "?" for letter in str(name))


def decimal(value: float, digits: int = 3) -> str:
    """Return a number as a text, never -0.000.

    Examples
    --------
    >>> from gramless._base.text import decimal
    >>> decimal(0.25), decimal(-0.0001)
    ('0.250', '0.000')
    """
    return f"{round(float(value), digits) + 0.0:.{digits}f}"
