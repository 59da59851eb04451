"""The command line as a process of its own, and its errors."""

from __future__ import annotations

import subprocess
import sys

from gramless.cli import main
from support import memory

GRAMLESS = [sys.executable, "-m", "gramless"]


def run(*words, **options):
    return subprocess.run(
        [*GRAMLESS, *map(str, words)], capture_output=True, text=True, env=memory.environment(), check=False, **options
    )


def failed(capsys, *words):
    """The one line of an error."""
    assert main.main([str(word) for word in words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("gramless: error: ")
    assert err.count("\n") == 1
    return err.removeprefix("gramless: error: ").removesuffix("\n")


def shell(command, *words, **options):
    """A line of bash in which "$@" is the command line with these words."""
    line = ["bash", "-c", command, "bash", *GRAMLESS, *map(str, words)]
    return subprocess.run(line, capture_output=True, text=True, env=memory.environment(), check=False, **options)
