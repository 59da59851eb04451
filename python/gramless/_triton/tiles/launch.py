"""How kernels are launched: tile shapes of each architecture, on the device of the data."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import triton

# the first whose compiler takes tuples, recursion and products in float64 as the kernels have them
_OLDEST = (3, 5)
if tuple(int(part) for part in triton.__version__.split(".")[:2]) < _OLDEST:
    raise ImportError(f"expected Triton {'.'.join(map(str, _OLDEST))} or newer, got {triton.__version__}")

# bytes of packed rows that a kernel holds at a time, unless one block of rows needs more
WORKSPACE_BYTES = 512 * 2**20


@dataclass(frozen=True)
class Config:
    """A tile of BLOCK_I x BLOCK_J results, taken in steps of BLOCK_K, and how many warps and stages work on it."""

    block_i: int
    block_j: int
    block_k: int
    num_warps: int
    num_stages: int

    @property
    def constants(self) -> dict[str, int]:
        """The keywords of a kernel on tiles."""
        return {"BLOCK_I": self.block_i, "BLOCK_J": self.block_j, "BLOCK_K": self.block_k}

    @property
    def options(self) -> dict[str, int]:
        """The keywords of the compiler."""
        return {"num_warps": self.num_warps, "num_stages": self.num_stages}


# candidates by architecture; the first one is taken
Configs = Mapping[str, tuple[Config, ...]]


@triton.jit
def _probe_kernel() -> None:
    pass


def interpreting() -> bool:
    """Return whether kernels run in Triton's interpreter, on tensors in host memory."""
    return not isinstance(_probe_kernel, triton.JITFunction)


def architecture(device: torch.device) -> str:
    """Return the name of the GPU's architecture, "interpret" where there is none."""
    if interpreting():
        return "interpret"
    if torch.version.hip is not None:
        return str(torch.cuda.get_device_properties(device).gcnArchName).partition(":")[0]
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def processors(device: torch.device) -> int:
    """Return how many programs a device runs at a time, at the least."""
    return int(torch.cuda.get_device_properties(device).multi_processor_count) if device.type == "cuda" else 1


def candidates(configs: Configs, name: str) -> tuple[Config, ...]:
    """Return the candidates of an architecture: its own, or those of the nearest older one of the same maker."""
    if name in configs:
        return configs[name]
    maker, number = _parts(name)
    older = [known for known in configs if _parts(known)[0] == maker and _parts(known)[1] <= number]
    if older:
        return configs[max(older, key=_parts)]
    # the smallest tiles run everywhere
    return min(configs.values(), key=lambda found: found[0].block_i * found[0].block_j * found[0].num_stages)


def _parts(name: str) -> tuple[str, int]:
    digits = name.lstrip("abcdefghijklmnopqrstuvwxyz_")
    return name[: len(name) - len(digits)], int(digits, 16) if digits else 0


def config(configs: Configs, device: torch.device) -> Config:
    """Return the tile shape for a launch on a device."""
    return candidates(configs, architecture(device))[0]


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **keywords: Any) -> None:
    """Run a kernel on the device of its first tensor, on the current stream."""
    if 0 in grid:
        return
    with _around(next(a for a in arguments if isinstance(a, torch.Tensor)).device):
        kernel[grid](*arguments, **keywords)


def _around(device: torch.device) -> contextlib.AbstractContextManager[object]:
    if device.type == "cuda":
        return torch.cuda.device(device)
    # the interpreter computes in NumPy; a GPU does not warn of infinities
    return np.errstate(all="ignore")


def cdiv(a: int, b: int) -> int:
    """Return a / b, rounded up."""
    return -(-a // b)
