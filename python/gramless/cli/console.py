"""Standard output: a console, and errors that name it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from rich.console import Console


@contextmanager
def output_named() -> Iterator[None]:
    """Say of an error that it is standard output that cannot be written, unless its reader went away."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(f"standard output: cannot be written: {error.strerror or error}") from None


class _Console(Console):
    """Leaves it to the command line what happens when standard output cannot be written."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Print, and name standard output in an error."""
        with output_named():
            super().print(*objects, **options)

    def on_broken_pipe(self) -> NoReturn:
        raise BrokenPipeError


def make_console() -> Console:
    """Give a console for standard output: colours on a terminal only, whatever the environment asks for."""
    terminal = sys.stdout.isatty()
    return _Console(force_terminal=terminal, color_system="auto" if terminal else None, highlight=False)
