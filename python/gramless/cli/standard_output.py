"""Errors that name standard output; no library is loaded for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def output_named() -> Iterator[None]:
    """Say of an error that it is standard output that cannot be written, unless its reader went away."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(f"standard output: cannot be written: {error.strerror or error}") from None
