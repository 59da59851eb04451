"""Peak extra bytes of one call, measured in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

_TESTS = Path(__file__).resolve().parent.parent

# the call is made once small (pools, lazy imports), then the high-water mark is cleared and the real call is measured
_PROGRAM = """
import json, re, sys
import numpy as np
import gramless as gl

def status(field):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))

{prepare}

def call():
    return {call}

def small():
    return {warm}

gl.set_num_threads({threads})
kept = small()
del kept
with open("/proc/self/clear_refs", "w") as marks:
    marks.write("5")
before = status("VmRSS")
result = call()
print(json.dumps(status("VmHWM") - before))
"""


def peak_extra_bytes(prepare: str, call: str, warm: str, threads: int = 1) -> int:
    """Growth of the resident set at its highest while `call` runs. Memory returned to the caller is part of it."""
    program = _PROGRAM.format(prepare=prepare, call=call, warm=warm, threads=threads)
    done = run(program)
    return int(json.loads(done.splitlines()[-1]))


def environment() -> dict[str, str]:
    """The environment of a child that can import the package as this process does, and tests/support."""
    paths = [str(_TESTS), *(p for p in sys.path if p)]
    # glibc moves this threshold as blocks are freed, and a peak would depend on what was freed before
    fixed = {"MALLOC_MMAP_THRESHOLD_": str(1 << 17)}
    return os.environ | fixed | {"PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}


def run(program: str, timeout: float = 120.0, **variables: str) -> str:
    """Run a Python program in a fresh process and give back what it printed; its traceback is the failure message."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment() | variables,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout
