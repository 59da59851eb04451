"""What the GPU's kernels compile to, once for all tests that ask: `benchmarks.compiled` without its tables."""

from __future__ import annotations

import importlib
import sys
from functools import cache
from pathlib import Path

_BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
# ignored by git; what has not changed since is not compiled again
_CACHE = _BENCHMARKS.parent / "build" / "aot"
TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")


def module(name: str) -> object:
    """A module of the benchmarks."""
    sys.path.insert(0, str(_BENCHMARKS))
    try:
        return importlib.import_module(f"benchmarks.{name}")
    finally:
        sys.path.remove(str(_BENCHMARKS))


def by_default(scenario: str, target: str) -> bool:
    """Whether a launch is compiled by default, and not only at night."""
    return scenario in module("launches").HEAVIEST.get(target, ())


def compiled(scenario: str, target: str) -> list:
    """The kernels of a launch. All that are compiled by default, or at night, are so at once, two targets at a time."""
    rows = _by_default(target) if by_default(scenario, target) else _at_night()
    return [row for row in rows if (row.scenario, row.target) == (scenario, target)]


@cache
def _by_default(target: str) -> list:
    return module("compiled").compile_all([target], module("launches").HEAVIEST[target], cache=_CACHE)


@cache
def _at_night() -> list:
    return module("compiled").compile_all(list(TARGETS), cache=_CACHE)
