"""The GPU that a report measures: what it is, its clock and its memory; for tests, Triton's interpreter instead.

In the interpreter everything runs, once and on the host, and nothing is timed. As elsewhere here, no module loads torch
when it is imported.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from .base import SHORTEST

# of the square product that rates are compared with
GEMM_SIZE = 8192
# copied on the device, for the rate of its memory
COPIED_BYTES = 1 << 30
# named everywhere, so that nothing falls back to another
BACKEND = "cuda"


class Device(NamedTuple):
    """Where tensors lie, and whether Triton interprets."""

    name: str  # of torch
    interpreting: bool

    def sized(self, full: Any, quick: Any, tiny: Any, *, is_quick: bool) -> Any:
        """One of three sizes: of a report, of one that takes a minute, of one that only shows that it works."""
        return tiny if self.interpreting else quick if is_quick else full

    def architecture(self) -> str:
        """As the kernels know it."""
        import torch

        from gramless._triton.tiles import launch

        return launch.architecture(torch.device(self.name))

    def seconds(self, call: Callable[[], object]) -> float | None:
        """Mean of as many calls as fit into a fifth of a second, or the one that does not fit; None if interpreting."""
        if self.interpreting:
            return None
        once = _elapsed(call, 1)
        repeats = int(SHORTEST / once) if once else 1
        # the first call wakes the clocks, so one that is repeated does not count
        return once if repeats <= 1 else _elapsed(call, repeats)

    def first_call(self, call: Callable[[], Any]) -> tuple[Any, int | None, float | None]:
        """Result, most bytes held beyond those held before, and seconds with all that a first call does besides."""
        if self.interpreting:
            return call(), None, None
        import torch

        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        kept: list[Any] = []
        taken = _elapsed(lambda: kept.append(call()), 1)
        return kept[0], torch.cuda.max_memory_allocated() - before, taken

    def free_bytes(self) -> int | None:
        """Bytes that may still be taken; None if interpreting."""
        if self.interpreting:
            return None
        import torch

        self.release()
        return int(torch.cuda.mem_get_info()[0])

    def release(self) -> None:
        """Hand back what the allocator keeps."""
        if not self.interpreting:
            import torch

            torch.cuda.empty_cache()

    def never_waits(self, call: Callable[[], object]) -> bool | None:
        """Whether a call runs where torch makes every wait for the device an error; None if interpreting."""
        if self.interpreting:
            return None
        import torch

        # what is compiled or chosen at first may wait
        call()
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            call()
        # torch has no kind of its own for this
        except RuntimeError:
            return False
        finally:
            torch.cuda.set_sync_debug_mode(before)
        return True

    def captured(self, call: Callable[[], object], warm_ups: int) -> Callable[[], object]:
        """A call as a CUDA graph, after some calls that are none; what replays it. The call itself if interpreting."""
        if self.interpreting:
            for _ in range(warm_ups):
                call()
            return call
        import torch

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(warm_ups):
                call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        return graph.replay


def _elapsed(call: Callable[[], object], repeats: int) -> float:
    """Seconds of a call between two events on the stream, of which the host takes part if it is slower."""
    import torch

    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(repeats):
        call()
    stop.record()
    stop.synchronize()
    return float(start.elapsed_time(stop)) / 1e3 / repeats


def find(*, interpreting: bool) -> Device:
    """The current GPU, or the interpreter if that is asked for.

    Raises
    ------
    RuntimeError
        If there is no GPU, or no torch, or no Triton.
    """
    if interpreting:
        # read when kernels are compiled, which is when they are imported
        os.environ["TRITON_INTERPRET"] = "1"
    try:
        import torch
        import triton  # noqa: F401
    except ImportError as error:
        raise RuntimeError(f"a report on a GPU needs torch and Triton ({error}): pip install '.[gpu]'") from None
    if interpreting:
        # what is tiny waits for threads longer than it computes
        torch.set_num_threads(1)
        return Device("cpu", True)
    if not torch.cuda.is_available():
        raise RuntimeError("no GPU that torch can use was found; --interpret runs everything without one, untimed")
    return Device("cuda", False)


def kind(name: str) -> str:
    """The name of a GPU as part of the name of a file."""
    return re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")


def about(device: Device) -> dict[str, Any]:
    """What the numbers of a report belong to, beside the machine."""
    import torch
    import triton

    versions = {"torch": torch.__version__, "triton": triton.__version__}
    if device.interpreting:
        return {"name": "Triton's interpreter", **versions}
    found = torch.cuda.get_device_properties(device.name)
    return {
        "name": torch.cuda.get_device_name(),
        "architecture": device.architecture(),
        "multiprocessors": found.multi_processor_count,
        "memory bytes": found.total_memory,
        "cuda": torch.version.cuda or torch.version.hip,
        **versions,
    }


def gemm_call(device: Device, dtype: str = "bfloat16") -> tuple[Callable[[], object], int]:
    """The product of two square matrices by cuBLAS, and its operations."""
    import torch

    size = 64 if device.interpreting else GEMM_SIZE
    a, b = (torch.randn(size, size, device=device.name).to(getattr(torch, dtype)) for _ in range(2))
    out = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=out), 2 * size**3


def copy_call(device: Device) -> tuple[Callable[[], object], int]:
    """A copy from memory of the device to memory of the device, and the bytes read and written."""
    import torch

    size = 1024 if device.interpreting else COPIED_BYTES // 2
    # zeros may be quicker than what data are like
    source = torch.randint(256, (size,), dtype=torch.uint8, device=device.name)
    target = torch.empty_like(source)
    return lambda: target.copy_(source), 2 * size
