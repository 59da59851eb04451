"""One command for a machine with a GPU: are the answers of gramless right there, and how fast does it come to them?

Run `python benchmarks/gpu_report.py` in the root of the repository, with gramless installed (`pip install ".[gpu]"`).
It prints a table for each suite and writes everything to `benchmarks/results/gpu-<kind of GPU>.json`. The exit status
is 1 if a suite fails or an answer of gramless is wrong, and 2 without a GPU or without gramless.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
SUITES = ("moments", "gram_sums", "grid", "logit_pairs", "logsumexp", "logit_distance", "compiler")
MODULES = {
    "moments": "gpu_moments",
    "gram_sums": "gpu_gram",
    "grid": "gpu_grid",
    "logit_pairs": "gpu_logits",
    "logsumexp": "gpu_logsumexp",
    "logit_distance": "gpu_logit_distance",
    "compiler": "gpu_compiler",
}
NOTHING_TO_RUN = 2


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suite", nargs="+", choices=SUITES, default=list(SUITES), help="default: all")
    parser.add_argument("--quick", action="store_true", help="smaller sizes and fewer rounds: a minute or two")
    parser.add_argument("--rounds", type=int, help="default: 5, or 3 if quick")
    parser.add_argument("--json", type=Path, metavar="F", help="default: benchmarks/results/gpu-<kind of GPU>.json")
    parser.add_argument("--interpret", action="store_true", help="tiny sizes in Triton's interpreter, untimed; no GPU")
    # one suite in a process of its own, which writes what it finds to this file
    parser.add_argument("--part", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    options.rounds = options.rounds or (3 if options.quick else 5)
    return options


def refused(reason: object) -> int:
    print(f"gpu_report: {reason}", file=sys.stderr)
    return NOTHING_TO_RUN


def main(argv: list[str] | None = None) -> int:
    options = arguments(argv)
    if options.interpret:
        # read when the kernels are imported
        os.environ["TRITON_INTERPRET"] = "1"
    try:
        from benchmarks import gpu_device, machine
    except ImportError as error:
        return refused(f"gramless cannot be imported ({error}); run `pip install .` in the root of the repository")
    try:
        device = gpu_device.find(interpreting=options.interpret)
    except RuntimeError as error:
        return refused(error)
    if options.part:
        options.part.write_text(json.dumps(run_suite(options.suite[0], device, options)))
        return 0
    gpu = gpu_device.about(device)
    report = {"machine": machine.machine(), "gpu": gpu, "quick": options.quick, "rounds": options.rounds}
    for about in (report["machine"], gpu):
        print(", ".join(f"{name} {value}" for name, value in about.items()), flush=True)
    report |= {"targets": [], "errors": {}}
    path = options.json
    if path is None and not options.interpret:
        path = RESULTS / f"gpu-{gpu_device.kind(gpu['name'])}{'-quick' if options.quick else ''}.json"
    for suite in options.suite:
        part = run_suite(suite, device, options) if device.interpreting else in_a_process(suite, options)
        report[suite] = part["rows"]
        report["targets"] += part["targets"]
        if part["error"] is not None:
            report["errors"][suite] = part["error"]
        # the suites of a run that is interrupted are kept, too
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
    return told(report, options.suite, path)


def told(report: dict[str, Any], suites: list[str], path: Path | None) -> int:
    """Print targets and failures; the status is 1 if a suite failed, or an answer of gramless is wrong or missing."""
    from benchmarks.gpu_rows import Target
    from benchmarks.gpu_tables import target_line

    print("\ntargets")
    for target in report["targets"]:
        print(target_line(Target(**target)))
    for suite, error in report["errors"].items():
        print(f"{suite} failed: {error}")
    if path:
        print(f"everything is in {path}")
    wrong = [row for suite in suites for row in report[suite] if row.get("ours") and not row["agrees"]]
    return 1 if report["errors"] or wrong else 0


def run_suite(suite: str, device: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Its rows and targets, and what stopped it."""
    from benchmarks.gpu_rows import failure
    from benchmarks.gpu_tables import as_dict, printed
    from benchmarks.report import plain

    part: dict[str, Any] = {"rows": [], "targets": [], "error": None}
    rows: list[Any] = []

    def measure(module: Any) -> None:
        for row in printed(module, device, quick=options.quick, rounds=options.rounds):
            rows.append(row)
            part["rows"].append(plain(as_dict(row)))

    def judge(module: Any) -> None:
        for target in module.targets(rows, device, quick=options.quick):
            part["targets"].append(plain(as_dict(target)))

    def attempt(step: Callable[[Any], None]) -> str | None:
        try:
            step(importlib.import_module(f"benchmarks.{MODULES[suite]}"))
        # the other suites go on
        except Exception as error:
            traceback.print_exc()
            return failure(error)
        return None

    # what was measured before a failure is judged as well
    errors = [attempt(step) for step in (measure, judge)]
    part["error"] = errors[0] or errors[1]
    return part


def in_a_process(suite: str, options: argparse.Namespace) -> dict[str, Any]:
    """The same in a process of its own: a kernel that fails may leave no GPU to those that follow."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "part.json"
        chosen = ["--suite", suite, "--rounds", str(options.rounds), "--part", str(path)]
        flags = [f"--{name}" for name in ("quick", "interpret") if getattr(options, name)]
        status = subprocess.run([sys.executable, __file__, *chosen, *flags]).returncode
        if path.exists():
            return dict(json.loads(path.read_text()))
    return {"rows": [], "targets": [], "error": f"its process ended with status {status}"}


if __name__ == "__main__":
    sys.exit(main())
