"""Kernels for a GPU as the tests call them: on a GPU where there is one, else in Triton's interpreter on the host."""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

# loads of 16 bytes, which an odd offset of a slice must not make faults of
_ALIGNMENT = 16


def has_triton() -> bool:
    """Whether the kernels can run on this kind of machine, installed or not: so that their tests fail, not vanish."""
    return sys.platform == "linux" and platform.machine() == "x86_64"


def label() -> str:
    return "interpret" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"


def interpret_without_gpu() -> None:
    """Choose the interpreter where torch sees no GPU; of effect before kernels are imported."""
    if not has_triton():
        return
    import torch

    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"
    # what cuBLAS asks for, to be told apart from kernels that are not deterministic
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def has_kernel(stem: str) -> bool:
    """Whether a stem has a kernel for the GPU in the package under test."""
    package = importlib.util.find_spec("gramless")
    return (Path(package.origin).parent / "_triton" / f"{stem}.py").is_file()


@contextmanager
def poisoned_tensors() -> Iterator[None]:
    """Every empty tensor is full of NaN, or of the largest integer; operations without a fixed order are refused."""
    import torch

    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.utils.deterministic.fill_uninitialized_memory = before[1]


def tensor(x: np.ndarray) -> Any:
    """The same values, strides and offset where the kernels run; NaN lies between them.

    Strides that torch does not have, negative ones and of parts of a value, become those of a copy.
    """
    import torch

    native = x.astype(x.dtype.newbyteorder("="), copy=False)
    size = native.itemsize
    if any(stride < 0 or stride % size for stride in native.strides) or native.ctypes.data % size:
        native = np.ascontiguousarray(native)
    strides = [stride // size for stride in native.strides]
    offset = native.ctypes.data % _ALIGNMENT // size
    span = offset + 1 + sum((length - 1) * stride for length, stride in zip(native.shape, strides, strict=True))
    # torch does not write to places that several indices share
    once = native[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in strides)]
    values = torch.from_numpy(np.array(once, dtype=np.float64))
    kind = getattr(torch, native.dtype.name)
    place = torch.device("cuda" if label() == "cuda" else "cpu")
    buffer = torch.full((span,), float("nan") if kind.is_floating_point else 0, dtype=kind, device=place)
    buffer.as_strided(values.shape, strides, offset).copy_(values.to(kind))
    return buffer.as_strided(native.shape, strides, offset)


def call(function: Callable[..., dict], *arguments: object, **keywords: Any) -> dict:
    """Run a kernel on arrays of NumPy, judge what it says of them as the public functions do, and bring results back.

    Arrays given by name are handed over as they are, as pivots are.
    """
    from gramless._base import gpu_arrays

    on_device = [_on_device(argument) for argument in arguments]
    flat = function(*on_device, **{"precision": "exact"} | keywords)
    if keywords.get("nonfinite", "raise") == "raise":
        finite = gpu_arrays.judge(function.__name__, flat, _row_count(on_device))
        refuse_overflow(function.__name__, finite)
    return {key: to_host(value) for key, value in flat.items() if not key.startswith(("bad_", "zero_"))}


def refuse_overflow(name: str, finite: dict[str, bool]) -> None:
    for key, value in finite.items():
        if not value and not key.startswith(("cubes", "fourths")):
            raise ValueError(f"{name}: {key} overflows although the input is finite; scale the input")


def to_host(value: object) -> object:
    """A tensor as an array, one without dimensions as a float."""
    import torch

    if not isinstance(value, torch.Tensor):
        return value
    return value.cpu().numpy() if value.ndim else value.item()


# methods of a tensor that wait for its values
_LOOKS = ("item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__float__", "__int__", "__index__")


def say_that_tensors_are_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let all tensors be said to be on a GPU, and all arrays of NumPy on the host, as they are where there is one."""
    if label() == "cuda":
        return
    import torch

    from gramless._base import arguments as base_arguments
    from gramless._base import gpu_arrays

    for module in (base_arguments, gpu_arrays):
        monkeypatch.setattr(module, "gpu_of", lambda a: "cuda:0" if isinstance(a, torch.Tensor) else "")


def forbid_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse every look at a tensor, as what would wait for the device; kernels leave what they find."""
    import torch

    from gramless._triton.tiles import launch

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("something has waited for the device")

    monkeypatch.setattr(launch, "launch", lambda *_, **__: None)
    for name in _LOOKS:
        monkeypatch.setattr(torch.Tensor, name, refuse)


def _on_device(argument: object) -> object:
    if isinstance(argument, np.ndarray):
        return tensor(argument)
    if isinstance(argument, (list, tuple)):
        return [_on_device(part) for part in argument]
    return argument


def _row_count(arguments: Sequence[object]) -> int:
    first = arguments[0]
    return len(first[0] if isinstance(first, list) else first)
