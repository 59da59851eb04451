"""A console for standard output."""

from __future__ import annotations

import sys
from typing import Any, NoReturn

from rich.console import Console

from .standard_output import output_named


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
