"""What the kernels for a GPU compile to: `compiled`, as a suite of the report on a GPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .compiled import COLUMNS as COLUMNS
from .compiled import TARGETS, Compiled, compile_all
from .gpu_device import Device
from .gpu_rows import Target

TITLE = "what the kernels compile to: registers of a thread, bytes of them in memory, shared memory, instructions"
PEERS: dict[str, tuple[str, ...]] = {}
# a GPU and a scenario, where nothing is measured
TINY = ("sm_90", "moments fast, narrow")
PROCESSES = 4


def rows(device: Device, *, quick: bool, rounds: int) -> Iterator[Compiled]:
    """For all GPUs that are known; quickly, for the one that is here alone."""
    known = list(TARGETS)
    if device.interpreting:
        yield from compile_all([TINY[0]], [TINY[1]], 1)
        return
    if quick:
        here = device.architecture()
        known = [name for name in known if name == here] or known
    yield from compile_all(known, processes=PROCESSES)


def targets(measured: Sequence[Compiled], device: Device, *, quick: bool) -> Iterator[Target]:
    complaints = [one for row in measured for one in row.complaints]
    for one in complaints:
        print(one)
    what = "kernels spill nothing, fit into shared memory, use the matrix instruction and read 16 bytes at a time"
    yield Target(what, float(len(complaints)), not complaints)
