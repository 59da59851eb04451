"""What the numbers of a report belong to."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import gramless as gl
from gramless import _core

PACKAGES = ("numpy", "torch", "pytorch-cka", "torch-cka")


def cpu() -> str:
    """The name of the processor, and its family and model: virtual machines hide the first."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().split("\n\n")[0].splitlines() if cpuinfo.exists() else []
    known = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    if "model name" not in known:
        return platform.processor() or platform.machine()
    numbers = [f"{key} {known[key]}" for key in ("cpu family", "model") if key in known]
    return ", ".join([known["model name"], *numbers])


def versions() -> dict[str, str | None]:
    """None for what is not installed."""
    found = {package: next(metadata.distributions(name=package), None) for package in PACKAGES}
    return {package: distribution and distribution.version for package, distribution in found.items()}


def machine() -> dict[str, Any]:
    return {
        "cpu": cpu(),
        "instructions": _core.isa_level(),
        "bf16 unit": _core.bf16_unit(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load before": round(os.getloadavg()[0], 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "gramless": gl.__version__,
        **versions(),
    }
