"""The command ``compare``: compare files, print the table, write the outputs."""

from __future__ import annotations

import argparse
import time
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from .._base.text import printable
from .._version import __version__
from ..files.compare_layers import check_order, compare_sources, open_layers
from ..layers.heatmap import spelled
from .outputs import SUFFIXES, check_outputs, write_outputs
from .text_tables import legend, matrix_lines, print_lines

OPTIONS = ("estimator", "kernel", "bandwidth", "bandwidth_scale", "batch_size", "weights", "null", "seed", "checkpoint")


def run_compare(arguments: argparse.Namespace, console: Console) -> None:
    """Compare files, print the table, write the outputs."""
    if arguments.b is None and (arguments.layers_b or arguments.ids_a or arguments.ids_b):
        raise ValueError("--layers-b, --ids-a and --ids-b need B")
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
