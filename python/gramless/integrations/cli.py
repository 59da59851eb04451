"""The command line: ``gramless compare``, ``gramless logits``, ``gramless demo`` and ``gramless info``.

Results go to standard output; errors, warnings and the progress bar to standard error. Exit codes: 0, 2 for an error
(one line that starts with ``gramless: error: ``) or a reader that went away, 130 for an interruption.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn, TextIO

from gramless._version import __version__
from gramless.integrations.logit_options import add_logits

ERROR, INTERRUPTED = 2, 130
MAX_THREADS = 1024
INPUTS = """\
what A and B may be:
  a .npy file            one layer, named after the file
  a .npz or .safetensors file
                         one layer per entry; compressed is fine
  a folder of files, all of one of these formats
                         row shards of the same layers, put together in natural
                         order (shard-2 before shard-10), each with the same
                         entries, widths and dtypes; .npy shards are one layer,
                         named after the folder
  a folder of such folders, one array per file
                         one layer per folder, named after it

Layers are matrices (n, p) of float16, bfloat16, float32 or float64, and row i of A
and of B must be the same sample. What is named "ids" (1-d integers or strings: an
entry, ids.npy beside .npy shards, a folder of shards beside those of the layers), or
a file given with --ids-a and --ids-b, proves it: ids must agree row by row.

Files are read once, in chunks of about 64 MB. The rbf kernel without --batch-size,
and --null, hold all rows in memory, and have no checkpoint.
"""


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


class _Parser(argparse.ArgumentParser):
    """Errors are one line, the same for all commands."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (see {self.prog} --help)")

    def _print_message(self, message: str, file: Any = None) -> None:
        # argparse's own keeps quiet about what cannot be written
        with output_named():
            (file or sys.stdout).write(message)


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
    >>> from gramless.integrations.cli import main
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
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.command is None:
        parser.print_help()
        return
    # loaded here, so that an interruption while it loads is one, too
    from gramless.integrations import commands

    getattr(commands, arguments.command)(arguments)


def _flush() -> None:
    with output_named():
        sys.stdout.flush()


@contextmanager
def output_named() -> Iterator[None]:
    """Say of an error that it is standard output that cannot be written, unless its reader went away."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(f"standard output: cannot be written: {error.strerror or error}") from None


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="gramless", description="How similar are two models? Exact CKA by streaming.")
    parser.add_argument("--version", action="version", version=f"gramless {__version__}")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="{compare,logits,demo,info}")

    compare = commands.add_parser(
        "compare",
        help="CKA between all layers of two models, from activations on disk",
        description="CKA between all layers of two models (or of one), from activations on disk.",
        epilog=INPUTS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    compare.add_argument("a", metavar="A", help="activations of one model: a file or a folder, see below")
    compare.add_argument("b", metavar="B", nargs="?", help="of the other model; without it, A against itself")
    compare.add_argument("--measure", choices=("cka",), default="cka", help="what is compared (default: cka)")
    compare.add_argument(
        "--estimator",
        choices=("unbiased", "biased", "feature_corrected"),
        default="unbiased",
        help="of HSIC (default: unbiased, which can be slightly negative)",
    )
    compare.add_argument(
        "--kernel", choices=("linear", "rbf"), default="linear", help="of all layers (default: linear)"
    )
    compare.add_argument(
        "--bandwidth",
        metavar="RULE",
        type=_number_or_rule,
        help='of the rbf kernel: a number, or "median" (default) or "kornblith" of each layer, in each batch if any',
    )
    compare.add_argument(
        "--bandwidth-scale", metavar="X", type=float, default=1.0, help="factor of the bandwidth (default: 1)"
    )
    compare.add_argument(
        "--batch-size",
        metavar="N",
        type=int,
        help="average over batches of N rows, with standard errors, for rows in no order (default: all rows at once)",
    )
    compare.add_argument(
        "--weights", choices=("rows", "equal"), default="rows", help="how batches count in the average (default: rows)"
    )
    compare.add_argument(
        "--null",
        choices=("permutation",),
        help="show each value beside its mean and 95 %% quantile over random permutations of the rows",
    )
    compare.add_argument("--permutations", metavar="N", type=int, default=200, help="of --null (default: %(default)s)")
    compare.add_argument("--seed", metavar="N", type=int, default=0, help="of --null (default: %(default)s)")
    for side in "ab":
        compare.add_argument(f"--layers-{side}", metavar="GLOB", help=f"only the layers of {side.upper()} that match")
    for side in "ab":
        compare.add_argument(f"--ids-{side}", metavar="FILE", help=f"ids of the rows of {side.upper()} (.npy)")
    for form, what in (
        ("json", "the matrix and its inputs"),
        ("csv", "the matrix"),
        ("plot", "a heat map (.png, ...)"),
    ):
        compare.add_argument(f"--{form}", metavar="FILE", help=f"write {what}")
    compare.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="save the sums now and then, go on from them if the file exists; it is removed on success",
    )
    compare.add_argument(
        "--threads", metavar="N", type=int, help=f"threads of the CPU kernels, up to {MAX_THREADS} (default: all cores)"
    )
    compare.add_argument("--no-progress", action="store_true", help="no progress bar (a pipe never gets one)")

    add_logits(commands, MAX_THREADS)

    demo = commands.add_parser(
        "demo",
        help="train three small networks on handwritten digits and compare their layers",
        description="Train three small networks on handwritten digits, and compare their layers. It needs no network.",
    )
    demo.add_argument(
        "--out", metavar="DIR", default="gramless-demo", help="folder for the results (default: %(default)s)"
    )

    commands.add_parser("info", help="version, CPU kernels, backends and installed libraries")
    return parser


def _number_or_rule(word: str) -> float | str:
    try:
        return float(word)
    except ValueError:
        return word


def _in_words(message: Warning | BaseException | str) -> str:
    """Say a message in one line that is safe for a terminal, and in the words of the command line."""
    from gramless.integrations.formats import printable

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
