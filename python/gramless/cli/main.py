"""The command line: ``gramless compare``, ``gramless logits``, ``gramless demo`` and ``gramless info``.

Results go to standard output; errors, warnings and the progress bar to standard error. Exit codes: 0, 2 for an error
(one line that starts with ``gramless: error: ``) or a reader that went away, 130 for an interruption.
"""

from __future__ import annotations

import io
import os
import re
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import TextIO

from .parser import make_parser
from .standard_output import output_named

ERROR, INTERRUPTED = 2, 130


# what the functions of the library say, and what it is called on the command line
FUNCTION = re.compile(r"(?:LayerGrid(?:\.\w+)?|cka_matrix|cka|compare_files|compare_logit_files): ")
WORDS = (
    (re.compile(r"\b(layers?|and) x/"), r"\1 A/"),
    (re.compile(r"\b(layers?|and) y/"), r"\1 B/"),
    (re.compile(r"\bmode='minibatch'|\bbatch_size\b"), "--batch-size"),
    (re.compile(r"\bn_permutations\b"), "--permutations"),
    (re.compile(r"\bbandwidth_scale\b"), "--bandwidth-scale"),
    (re.compile(r"\bvocab_size\b"), "--vocab-size"),
    (re.compile(r"\bbatch_rows\b"), "--batch-rows"),
    (re.compile(r"\bignore_index=(-?\d+) needs targets"), r"--ignore-index \1 needs --targets"),
    (re.compile(r"\b(estimator|kernel|bandwidth|weights|null)='?([\w.+-]+)'?"), r"--\1 \2"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments. Default: those of the process.

    Returns
    -------
    int
        Exit code.

    Examples
    --------
    >>> from gramless.cli.main import main
    >>> main(["compare", "missing.npy"])
    2
    """
    for name in ("stdout", "stderr"):
        # what was closed is like what nobody reads
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for category in (UserWarning, RuntimeWarning):
            warnings.simplefilter("always", category)
        warnings.showwarning = _show_warning
        if isinstance(sys.stdout, io.TextIOWrapper):
            # a name that the terminal cannot show must not cost the result
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            try:
                _run(argv)
            except SystemExit:
                # help and version leave this way
                _flush()
                raise
            _flush()
        except BrokenPipeError:
            return ERROR
        except KeyboardInterrupt as interruption:
            _complain("interrupted" + (f": {interruption}" if str(interruption) else ""))
            return INTERRUPTED
        except (ValueError, OSError, RuntimeError, MemoryError, ImportError) as error:
            _complain(f"error: {_in_words(error)}")
            return ERROR
        finally:
            _settle()
        return 0


def _run(argv: Sequence[str] | None) -> None:
    parser = make_parser()
    arguments = parser.parse_args(argv)
    if arguments.command is None:
        parser.print_help()
        return
    # loaded here, so that an interruption while it loads is one, too
    from .commands import run

    run(arguments)


def _flush() -> None:
    with output_named():
        sys.stdout.flush()


def _in_words(message: Warning | BaseException | str) -> str:
    """Say a message in one line that is safe for a terminal, and in the words of the command line."""
    from .._base.text import printable

    if isinstance(message, OSError) and message.strerror and message.filename is not None:
        return f"{printable(message.filename)}: {message.strerror}"
    text = printable(" ".join(str(message).split())) or type(message).__name__
    if found := FUNCTION.match(text):
        text = text[found.end() :]
        for pattern, word in WORDS:
            text = pattern.sub(word, text)
    return text


def _complain(text: str) -> None:
    with suppress(OSError):
        print(f"gramless: {text}", file=sys.stderr, flush=True)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    _complain(f"warning: {_in_words(message)}")


def _settle() -> None:
    """Write what is still buffered, or drop it, so that it does not fail again at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
