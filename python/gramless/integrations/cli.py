"""The command line: ``gramless compare``, ``gramless demo`` and ``gramless info``.

Results go to standard output; errors, warnings and the progress bar to standard error. Exit codes: 0, 2 for an error
(one line that starts with ``gramless: error: ``), 130 for an interruption.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import sys
import time
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn, TextIO

from rich.console import Console
from rich.text import Text

from gramless._dispatch import set_num_threads
from gramless._version import __version__
from gramless.integrations.arrays import check_order, compare_sources, open_layers
from gramless.integrations.formats import printable
from gramless.integrations.info import describe
from gramless.integrations.sources import LayerSource
from gramless.integrations.tables import matrix_lines
from gramless.layers import SimilarityMatrix

ERROR, INTERRUPTED = 2, 130
PLOT_SUFFIXES = (".png", ".pdf", ".svg")
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
and of B must be the same sample. An entry named "ids" (1-d integers or strings), or
a file given with --ids-a and --ids-b, proves it: ids must agree row by row.
Files are read once, in chunks of about 64 MB.
"""


class _Parser(argparse.ArgumentParser):
    """Errors are one line, the same for all commands."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (see {self.prog} --help)")


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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for category in (UserWarning, RuntimeWarning):
            warnings.simplefilter("always", category)
        warnings.showwarning = _show_warning
        if isinstance(sys.stdout, io.TextIOWrapper):
            # a name that the terminal cannot show must not cost the result
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            arguments = _parser().parse_args(argv)
            code = int(arguments.run(arguments))
            sys.stdout.flush()
        except BrokenPipeError:
            # the reader of the pipe has gone; what is still buffered must not fail again at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return ERROR
        except KeyboardInterrupt as interruption:
            print(f"gramless: interrupted{f': {interruption}' if str(interruption) else ''}", file=sys.stderr)
            return INTERRUPTED
        except (ValueError, OSError, RuntimeError, MemoryError, ImportError) as error:
            print(f"gramless: error: {_one_line(error)}", file=sys.stderr)
            return ERROR
        return code


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="gramless", description="How similar are two models? Exact CKA by streaming.")
    parser.add_argument("--version", action="version", version=f"gramless {__version__}")
    parser.set_defaults(run=lambda arguments: _help(parser))
    commands = parser.add_subparsers(title="commands", metavar="{compare,demo,info}")

    compare = commands.add_parser(
        "compare",
        help="CKA between all layers of two models, from activations on disk",
        description="CKA between all layers of two models (or of one), from activations on disk.",
        epilog=INPUTS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    compare.set_defaults(run=_compare)
    compare.add_argument("a", metavar="A", help="activations of one model: a file or a folder, see below")
    compare.add_argument("b", metavar="B", nargs="?", help="of the other model; without it, A against itself")
    compare.add_argument("--measure", choices=("cka",), default="cka", help="what is compared (default: cka)")
    compare.add_argument(
        "--estimator",
        choices=("unbiased", "biased", "feature_corrected"),
        default="unbiased",
        help="of HSIC (default: unbiased, which can be slightly negative)",
    )
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
        "--checkpoint", metavar="FILE", help="save the sums now and then, go on from them if the file exists"
    )
    compare.add_argument("--threads", metavar="N", type=int, help="threads of the CPU kernels (default: all cores)")
    compare.add_argument("--no-progress", action="store_true", help="no progress bar (a pipe never gets one)")

    demo = commands.add_parser(
        "demo",
        help="train three small networks on handwritten digits and compare their layers",
        description="Train three small networks on handwritten digits, and compare their layers. It needs no network.",
    )
    demo.set_defaults(run=_demo)
    demo.add_argument(
        "--out", metavar="DIR", default="gramless-demo", help="folder for the results (default: %(default)s)"
    )

    info = commands.add_parser("info", help="version, CPU kernels, backends and installed libraries")
    info.set_defaults(run=_info)
    return parser


def _help(parser: argparse.ArgumentParser) -> int:
    parser.print_help()
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    if arguments.b is None and (arguments.layers_b or arguments.ids_a or arguments.ids_b):
        raise ValueError("--layers-b, --ids-a and --ids-b need B")
    outputs = {form: Path(path) for form in ("json", "csv", "plot") if (path := getattr(arguments, form))}
    if arguments.threads is not None:
        set_num_threads(arguments.threads)
    with ExitStack() as stack:
        a = stack.enter_context(open_layers(arguments.a, arguments.layers_a))
        b = None if arguments.b is None else stack.enter_context(open_layers(arguments.b, arguments.layers_b))
        _check_outputs(outputs, arguments.checkpoint, [source for source in (a, b) if source is not None])
        start = time.perf_counter()
        ordered = b is not None and check_order(a, b, arguments.ids_a, arguments.ids_b)
        matrix = compare_sources(
            a,
            b,
            estimator=arguments.estimator,
            checkpoint=arguments.checkpoint,
            progress=not arguments.no_progress,
        )
        seconds = time.perf_counter() - start
    _write_outputs(outputs, matrix, arguments)

    console = make_console()
    print_line(console, f"A  {a}")
    if b is not None:
        print_line(console, f"B  {b}")
    print_line(console, "")
    print_matrix(console, matrix)
    order = "" if b is None else f", same rows {'by their ids' if ordered else 'taken on trust (no ids)'}"
    print_line(console, "")
    print_line(console, "* best match of the row")
    print_line(console, f"{matrix.estimator} CKA, n = {matrix.n:,}{order}, {seconds:.1f} s")
    for path in outputs.values():
        print_line(console, f"wrote {printable(path)}")
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    from gramless.integrations.demo import run_demo

    run_demo(arguments.out, make_console())
    return 0


def _info(arguments: argparse.Namespace) -> int:
    console = make_console()
    for line in describe():
        print_line(console, line)
    return 0


def make_console() -> Console:
    """Give a console for standard output: colours on a terminal only, whatever the environment asks for."""
    terminal = sys.stdout.isatty()
    return Console(force_terminal=terminal, color_system="auto" if terminal else None, highlight=False)


def print_line(console: Console, line: str | Text) -> None:
    """Print a line as it is: not wrapped, no markup."""
    console.print(Text(line) if isinstance(line, str) else line, soft_wrap=True)


def print_matrix(console: Console, matrix: SimilarityMatrix) -> None:
    """Print a matrix in the width of the console."""
    for line in matrix_lines(matrix, console.width):
        print_line(console, line)


def _check_outputs(outputs: dict[str, Path], checkpoint: str | None, sources: Sequence[LayerSource]) -> None:
    """Fail before the work, not after it."""
    if "plot" in outputs:
        if outputs["plot"].suffix.lower() not in PLOT_SUFFIXES:
            raise ValueError(f"--plot {printable(outputs['plot'])}: expected {', '.join(PLOT_SUFFIXES)}")
        import importlib.util

        if importlib.util.find_spec("matplotlib") is None:
            raise ValueError('--plot needs matplotlib: pip install "gramless[plot]"')
    taken = {file.resolve(): "an input" for source in sources for file in source.files}
    named = outputs | ({} if checkpoint is None else {"checkpoint": Path(checkpoint)})
    for form, path in named.items():
        if not path.parent.is_dir():
            raise ValueError(f"--{form} {printable(path)}: the folder {printable(path.parent)} does not exist")
        if path.is_dir():
            raise ValueError(f"--{form} {printable(path)}: expected a file, got a folder")
        if path.resolve() in taken:
            raise ValueError(f"--{form} {printable(path)}: would overwrite {taken[path.resolve()]}")
        taken[path.resolve()] = f"--{form}"
        existed = path.exists()
        # only an attempt tells: rights, read-only and full disks, names that are too long
        path.open("ab").close()
        if not existed:
            path.unlink()


def _write_outputs(outputs: dict[str, Path], matrix: SimilarityMatrix, arguments: argparse.Namespace) -> None:
    if "json" in outputs:
        found: dict[str, Any] = matrix.to_dict()
        found |= {"version": __version__, "inputs": [name for name in (arguments.a, arguments.b) if name is not None]}
        outputs["json"].write_text(json.dumps(found, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    if "csv" in outputs:
        with outputs["csv"].open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["layer", *matrix.layers_y])
            for name, row in zip(matrix.layers_x, matrix.values.tolist(), strict=True):
                writer.writerow([name, *row])
    if "plot" in outputs:
        from gramless.integrations.plots import heatmap

        names = [Path(name).name for name in (arguments.a, arguments.b or arguments.a)]
        heatmap(matrix, outputs["plot"], name_x=names[0], name_y=names[1])


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{printable(error.filename)}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    print(f"gramless: warning: {' '.join(str(message).split())}", file=sys.stderr)
