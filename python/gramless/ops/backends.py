"""The table of backends, and the rule that chooses one."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from .._base import arguments
from .._base.arrays import Array

# backends of each kernel, in rising order of preference
BACKENDS = {
    "moments": ("reference", "cpu", "cuda"),
    "gram_sums": ("reference", "cpu", "cuda"),
    "logsumexp": ("reference", "cpu", "cuda"),
    "logit_pairs": ("reference", "cpu", "cuda"),
}
# of products on a GPU, in rising order of cost; the host has one
PRECISIONS = ("fast", "high", "exact")


@dataclass(frozen=True)
class Choice:
    """A kernel, and why it is this one."""

    backend: str
    why: str
    kernel: Callable[..., dict[str, Any]]


def check_backend(function: str, backend: str, stem: str = "moments") -> None:
    """Refuse a backend that a kernel does not have."""
    arguments.choice(function, "backend", backend, ("auto", *BACKENDS[stem]))


def resolve(
    stem: str, backend: str, entry: str | None = None, *, arrays: Mapping[str, Array] | None = None, precision: str = ""
) -> Choice:
    """Choose the kernel for arrays, of the host if none are given. A backend that is named runs, or is an error.

    A stem has one function of its own name; entry is another one beside it. Precision is for kernels of a GPU.

    Raises
    ------
    ValueError
        If the backend is not one of this kernel's.
    RuntimeError
        If the arrays are not where it reads, or its module cannot be loaded; the message says why.
    """
    name = entry or stem
    check_backend(name, backend, stem)
    where = arguments.same_device(name, arrays) if arrays else ""
    if where or backend == "cuda":
        return _resolve_gpu(stem, name, backend, where, precision)
    core, failure = _load_core()
    if backend == "reference" or (backend == "auto" and core is None):
        definition = importlib.import_module(f"gramless.reference.{stem}")
        why = "asked for" if backend == "reference" else f"the compiled module cannot be loaded ({failure})"
        return Choice("reference", why, getattr(definition, name))
    if core is None:
        raise RuntimeError(f"{name}: backend 'cpu' is not available, the compiled module cannot be loaded: {failure}")
    why = "asked for" if backend == "cpu" else f"host arrays and the compiled module, {core.isa_level()}"
    return Choice("cpu", why, getattr(core, name))


def _resolve_gpu(stem: str, name: str, backend: str, where: str, precision: str) -> Choice:
    """Choose the kernel for arrays on a GPU."""
    kernel = getattr(gpu_module(name, backend, where, stem), name, None)
    if kernel is None:
        raise RuntimeError(f"{name}: this has no kernel on a GPU; move the arrays to host memory")
    why = "asked for" if backend == "cuda" else f"tensors on {where}"
    return Choice("cuda", f"{why}, precision {precision!r}", functools.partial(kernel, precision=precision))


def resolve_grid(function: str, backend: str, where: str) -> ModuleType:
    """Return the kernels of a grid of layers on a GPU, which keep their moments there."""
    return gpu_module(function, backend, where, "layer_grid.grid")


def gpu_module(function: str, backend: str, where: str, name: str) -> ModuleType:
    """Return a module of kernels for arrays on a GPU; arrays of the host are for Triton's interpreter."""
    if backend not in ("auto", "cuda"):
        raise RuntimeError(
            f"{function}: backend={backend!r} reads host memory, and the arrays are on {where}; move them"
        )
    try:
        launch = importlib.import_module("gramless._triton.tiles.launch")
    except ImportError as error:
        raise RuntimeError(
            f"{function}: kernels on a GPU need torch and Triton ({error}): install gramless[gpu]"
        ) from None
    if not where and not launch.interpreting():
        raise RuntimeError(
            f"{function}: backend='cuda' needs tensors on a GPU, got arrays in host memory; "
            "TRITON_INTERPRET=1, set before kernels are first used, runs them on these, slowly"
        )
    return importlib.import_module(f"gramless._triton.{name}")


def resolve_gram_values(backend: str) -> Choice:
    """Choose the kernel of Gram tiles of many layers, as `resolve` does for those that stand by themselves."""
    return resolve("gram_sums", backend, "gram_values")


def gram_block_rows(backend: str, p: int, q: int, precision: str = "high") -> int:
    """Return how many rows a block of the kernel gram_sums has by default."""
    if backend == "cuda":
        from .._triton import gram_sums as on_gpu

        return int(on_gpu.default_block_rows(p, q, precision))
    if backend == "reference":
        from ..reference import gram_sums as definition

        return definition.BLOCK_ROWS
    return int(core_or_raise("gram_sums").gram_block_rows(p, q))


def gram_in_float64(backend: str, n: int, dtypes: list[str], kernel: str, precision: str = "high") -> bool:
    """Return whether the kernel gram_sums is sure to compute kernel values in float64."""
    if backend == "cuda":
        from .._triton import gram_sums as on_gpu

        wide = kernel == "polynomial" or any("float64" in dtype for dtype in dtypes)
        return wide or precision == "exact" or n <= on_gpu.ROWS_IN_FLOAT64
    if backend == "reference" or kernel == "polynomial" or any("float64" in dtype for dtype in dtypes):
        return True
    return n <= int(core_or_raise("gram_sums").GRAM_ROWS_IN_FLOAT64)


def gpu_scratch_bytes(stem: str, *shape: Any) -> int:
    """Return the most bytes that a kernel on a GPU takes beside its result."""
    return int(importlib.import_module(f"gramless._triton.{stem}").scratch_bytes(*shape))


def gpu_plans(what: str) -> ModuleType:
    """Return what tells how "logits" or "factor" kernels on a GPU go, from shapes and dtypes alone."""
    return importlib.import_module(f"gramless._triton.{what}.plan")


def linear_stem(n: int, p: int, q: int) -> str:
    """Choose how HSIC of linear kernels is computed: moments, or Gram tiles where these take less than half the flops.

    Tiles take n^2 (p + q) flops, moments n (p + q)^2 and 8 (p^2 + q^2 + p q) bytes.
    """
    return "gram_sums" if 2 * n <= p + q else "moments"


def _load_core() -> tuple[ModuleType | None, str]:
    """Return the compiled module, or the reason that it is not there."""
    try:
        from .. import _core
    except ImportError as error:
        return None, str(error)
    return _core, ""


def core_or_raise(function: str) -> Any:
    """Return the compiled module."""
    core, failure = _load_core()
    if core is None:
        raise RuntimeError(f"{function}: the compiled module cannot be loaded: {failure}")
    return core
