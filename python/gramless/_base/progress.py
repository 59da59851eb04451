"""The progress bar, which loads its library when it is asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

Item = TypeVar("Item")


def progress_bar(items: Sequence[Item], what: str, *, shown: bool) -> Iterable[Item]:
    """Return the items, with a progress bar of this name on the standard error if it is to be shown."""
    if not shown:
        return items
    from rich.console import Console
    from rich.progress import track

    return track(items, description=what, console=Console(stderr=True))
