"""What ``gramless logits`` does, prints and writes."""

from __future__ import annotations

import argparse
import csv
import json
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from .._base.text import printable
from .._version import __version__
from ..files.compare_logits import compare_logit_models
from ..files.logit_models import open_logit_model, open_targets
from ..files.row_ids import check_order
from ..predictions.compare import LogitComparison
from .outputs import check_outputs
from .text_tables import print_lines

ROW_SUFFIXES = (".npz", ".csv", ".safetensors")
OPTIONS = (
    "vocab_size",
    "temperature",
    "softcap_a",
    "softcap_b",
    "targets",
    "ignore_index",
    "batch_rows",
)


def run_logits(arguments: argparse.Namespace, console: Console) -> None:
    """Compare files, print the table, write the outputs."""
    outputs = {form: Path(path) for form in ("json", "rows") if (path := getattr(arguments, form)) is not None}
    if "rows" in outputs and outputs["rows"].suffix.lower() not in ROW_SUFFIXES:
        raise ValueError(f"--rows {printable(outputs['rows'])}: expected a name that ends in {', '.join(ROW_SUFFIXES)}")
    with ExitStack() as stack:
        a, b = (
            stack.enter_context(
                open_logit_model(
                    side.upper(),
                    getattr(arguments, side),
                    getattr(arguments, f"unembedding_{side}"),
                    getattr(arguments, f"bias_{side}"),
                    logits=arguments.logits,
                )
            )
            for side in "ab"
        )
        others = [Path(path) for path in (arguments.ids_a, arguments.ids_b) if path is not None]
        if arguments.targets is not None:
            others.append(open_targets(arguments.targets, a.source).shards[0].path)
        check_outputs(outputs, [*a.files, *b.files, *others])
        start = time.perf_counter()
        ordered = check_order(a.source, b.source, arguments.ids_a, arguments.ids_b)
        options = {name: getattr(arguments, name) for name in OPTIONS}
        options |= {"divergences": not arguments.no_divergences, "keep_rows": "rows" in outputs}
        comparison, numbers = compare_logit_models(a, b, progress=not arguments.no_progress, **options)
        seconds = time.perf_counter() - start

    trust = "same rows by their ids" if ordered else "same rows taken on trust (no ids)"
    counts = f"{comparison.n:,} rows, {comparison.labels:,} labels, {trust}, {seconds:.1f} s"
    legend = ["p is A, q is B; natural logarithms", "+- standard error of the mean, for rows that are independent"]
    facts = {"version": __version__, "inputs": [arguments.a, arguments.b]}
    try:
        print_lines(console, f"A  {a}", f"B  {b}", "", *comparison.lines(), "", *legend, counts)
    finally:
        # whatever becomes of the table: files are written
        problems = [_problem_of_writing(form, path, comparison, numbers, facts) for form, path in outputs.items()]
        if any(problems):
            raise OSError("; ".join(filter(None, problems)))
    print_lines(console, *(f"wrote {printable(path)}" for path in outputs.values()))


def _problem_of_writing(form: str, path: Path, comparison: LogitComparison, numbers: Any, facts: dict[str, Any]) -> str:
    """Write one output; say what failed, nothing if nothing did."""
    try:
        if form == "json":
            text = json.dumps(comparison.to_dict() | facts, indent=1, allow_nan=False)
            path.write_text(text + "\n", encoding="utf-8")
        else:
            _write_rows(path, {"row": numbers} | (comparison.rows or {}))
    except (OSError, ValueError, RuntimeError, MemoryError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        return f"--{form} {printable(path)}: cannot be written: {reason}"
    return ""


def _write_rows(path: Path, columns: dict[str, Any]) -> None:
    """Write a column for each value, and one of the numbers of the rows."""
    suffix = path.suffix.lower()
    if suffix == ".npz":
        # numpy gives a path without .npz another name
        with path.open("wb") as file:
            np.savez(file, **columns)
    elif suffix == ".safetensors":
        from safetensors.numpy import save

        path.write_bytes(save(columns))
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(columns)
            writer.writerows(zip(*(column.tolist() for column in columns.values()), strict=True))
