"""What the commands of the command line do, and how they print."""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console

from gramless._dispatch import set_num_threads
from gramless._version import __version__
from gramless.integrations.arrays import check_order, compare_sources, open_layers
from gramless.integrations.cli import MAX_THREADS, output_named
from gramless.integrations.formats import printable
from gramless.integrations.info import describe
from gramless.integrations.outputs import SUFFIXES, check_outputs, write_outputs
from gramless.integrations.plots import spelled
from gramless.integrations.tables import legend, matrix_lines, print_lines

OPTIONS = ("estimator", "kernel", "bandwidth", "bandwidth_scale", "batch_size", "weights", "null", "seed", "checkpoint")


class _Console(Console):
    """Leaves it to the command line what happens when standard output cannot be written."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Print, and name standard output in an error."""
        with output_named():
            super().print(*objects, **options)

    def on_broken_pipe(self) -> NoReturn:
        raise BrokenPipeError


def compare(arguments: argparse.Namespace) -> None:
    """Compare files, print the table, write the outputs."""
    if arguments.b is None and (arguments.layers_b or arguments.ids_a or arguments.ids_b):
        raise ValueError("--layers-b, --ids-a and --ids-b need B")
    _set_threads(arguments.threads)
    places = {form: Path(path) for form in (*SUFFIXES, "checkpoint") if (path := getattr(arguments, form)) is not None}
    outputs = {form: path for form, path in places.items() if form in SUFFIXES}
    with ExitStack() as stack:
        a = stack.enter_context(open_layers(arguments.a, arguments.layers_a))
        b = None if arguments.b is None else stack.enter_context(open_layers(arguments.b, arguments.layers_b))
        sources = [a] if b is None else [a, b]
        ids = [Path(path) for path in (arguments.ids_a, arguments.ids_b) if path is not None]
        check_outputs(places, [*(file for source in sources for file in source.files), *ids])
        start = time.perf_counter()
        ordered = b is not None and check_order(a, b, arguments.ids_a, arguments.ids_b)
        options = {name: getattr(arguments, name) for name in OPTIONS}
        options |= {"n_permutations": arguments.permutations, "progress": not arguments.no_progress}
        matrix = compare_sources(a, b, **options)
        seconds = time.perf_counter() - start

    order = "" if b is None else f", same rows {'by their ids' if ordered else 'taken on trust (no ids)'}"
    batches = "" if arguments.batch_size is None else f", batches of {arguments.batch_size}"
    kind = f"{matrix.estimator} {spelled(matrix.measure)}, n = {matrix.n:,}"
    console = make_console()
    heads = [f"{side}  {source}" for side, source in zip("AB", sources, strict=False)]
    table = matrix_lines(matrix, console.width)
    facts = {"version": __version__, "inputs": [name for name in (arguments.a, arguments.b) if name is not None]}
    try:
        print_lines(console, *heads, "", *table, "", *legend(matrix), f"{kind}{batches}{order}, {seconds:.1f} s")
    finally:
        # whatever becomes of the table: files are written, and the sums are kept until they are
        if problems := write_outputs(outputs, matrix, facts):
            raise OSError("; ".join(problems))
        if arguments.checkpoint is not None:
            Path(arguments.checkpoint).unlink(missing_ok=True)
    print_lines(console, *(f"wrote {printable(path)}" for path in outputs.values()))


def logits(arguments: argparse.Namespace) -> None:
    """Compare predictions, print the table, write the outputs."""
    from gramless.integrations.logit_command import run_logits

    _set_threads(arguments.threads)
    run_logits(arguments, make_console())


def demo(arguments: argparse.Namespace) -> None:
    """Run the demonstration."""
    from gramless.integrations.demo import run_demo

    run_demo(arguments.out, make_console())


def info(arguments: argparse.Namespace) -> None:
    """Print what this installation can do."""
    print_lines(make_console(), *describe())


def _set_threads(count: int | None) -> None:
    if count is not None:
        if not 1 <= count <= MAX_THREADS:
            raise ValueError(f"--threads: expected 1 to {MAX_THREADS}, got {count}")
        set_num_threads(count)


def make_console() -> Console:
    """Give a console for standard output: colours on a terminal only, whatever the environment asks for."""
    terminal = sys.stdout.isatty()
    return _Console(force_terminal=terminal, color_system="auto" if terminal else None, highlight=False)
