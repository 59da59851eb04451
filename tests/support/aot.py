"""What the GPU's kernels compile to, once for all tests that ask: `benchmarks.compiled` without its tables."""

from __future__ import annotations

import importlib
import sys
from functools import cache
from pathlib import Path

_BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")


def module(name: str) -> object:
    """A module of the benchmarks."""
    sys.path.insert(0, str(_BENCHMARKS))
    try:
        return importlib.import_module(f"benchmarks.{name}")
    finally:
        sys.path.remove(str(_BENCHMARKS))


@cache
def compiled() -> tuple:
    """All scenarios for all targets, of which two compile at a time."""
    return tuple(module("compiled").compile_all(list(TARGETS)))
