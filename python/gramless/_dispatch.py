"""Which code runs: the table of backends, the rule of "auto", and what a call will cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from . import _checks
from ._checks import Array

# backends of each kernel, in rising order of preference
BACKENDS = {"moments": ("reference", "cpu")}
MEASURES = ("hsic", "cka", "cka_distance", "cka_matrix")

_ITEM_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


@dataclass(frozen=True)
class Choice:
    """A kernel, and why it is this one."""

    backend: str
    why: str
    kernel: Callable[..., dict[str, Any]]


@dataclass(frozen=True)
class Explanation:
    """What a call will run and what that costs; str() is for reading."""

    path: str
    backend: str
    why: str
    flops: int
    bytes_read: int
    peak_extra_bytes: int

    def __str__(self) -> str:
        return (
            f"{self.path}\n"
            f"  backend    {self.backend}: {self.why}\n"
            f"  flops      {self.flops:.3g}\n"
            f"  read       {_readable(self.bytes_read)}\n"
            f"  peak extra {_readable(self.peak_extra_bytes)}"
        )


@dataclass(frozen=True)
class _Cost:
    flops: int
    bytes_read: int
    result: int  # bytes that the caller keeps
    scratch: int  # bytes that are gone when the kernel returns


def check_backend(function: str, backend: str) -> None:
    """Refuse a backend that no kernel has."""
    _checks.choice(function, "backend", backend, ("auto", *BACKENDS["moments"]))


def resolve(stem: str, backend: str) -> Choice:
    """Choose the kernel for host arrays. A backend that is named is the one that runs, or an error.

    Raises
    ------
    ValueError
        If the backend is not one of this kernel's.
    RuntimeError
        If it is named and its compiled module cannot be loaded; the message says why.
    """
    check_backend(stem, backend)
    core, failure = _load_core()
    if backend == "reference" or (backend == "auto" and core is None):
        from .reference import moments as definition

        why = "asked for" if backend == "reference" else f"the compiled module cannot be loaded ({failure})"
        return Choice("reference", why, getattr(definition, stem))
    if core is None:
        raise RuntimeError(f"{stem}: backend 'cpu' is not available, the compiled module cannot be loaded: {failure}")
    why = "asked for" if backend == "cpu" else f"host arrays and the compiled module, {core.isa_level()}"
    return Choice("cpu", why, getattr(core, stem))


def explain(
    measure: str, x: Any, y: Any = None, *, backend: str = "auto", estimator: str = "unbiased", kernel: str = "linear"
) -> Explanation:
    """Say which code a call would run and what it costs, without running it.

    Parameters
    ----------
    measure : {"hsic", "cka", "cka_distance", "cka_matrix", "moments"}
        Name of the public function.
    x, y : array of shape (n, p) and (n, q), or dicts or lists of layers for "cka_matrix"
        The arguments of that function; y may be absent for "cka_matrix" and "moments".
    backend, estimator, kernel : str
        As in that function.

    Returns
    -------
    Explanation
        With fields path, backend, why, flops, bytes_read and peak_extra_bytes (the result of the pass included).

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As the function itself would.

    Examples
    --------
    >>> import numpy as np
    >>> import gramless as gl
    >>> x = np.zeros((1000, 64), np.float32)
    >>> gl.explain("cka", x, x, backend="reference").flops
    16512000
    >>> print(gl.explain("cka", x, x, backend="reference"))
    cka <- moments (1000, 64) float32, (1000, 64) float32
      backend    reference: asked for
      flops      1.65e+07
      read       500.0 KiB
      peak extra 3.0 MiB
    """
    _checks.choice("explain", "measure", measure, (*MEASURES, *BACKENDS))
    _checks.choice(measure, "estimator", estimator, _checks.ESTIMATORS)
    _checks.kernel(measure, kernel, None)
    check_backend(measure, backend)
    chosen = resolve("moments", backend)
    if measure == "cka_matrix":
        xs = _checks.layers(measure, "xs", x)
        ys = None if y is None else _checks.layers(measure, "ys", y)
        named = {f"xs[{k!r}]": v for k, v in xs.items()} | {f"ys[{k!r}]": v for k, v in (ys or {}).items()}
        n = _checks.same_rows(measure, named)
        cost, pairs = _grid_cost(n, list(xs.values()), None if ys is None else list(ys.values()), chosen.backend)
        path = f"{measure} <- moments of {len(named)} layers and {pairs} pairs, {n} rows"
    else:
        if y is None and measure != "moments":
            raise TypeError(f"{measure}: expected y")
        arrays = [_checks.rows(measure, name, a) for name, a in (("x", x), ("y", y)) if a is not None]
        n = _checks.same_rows(measure, dict(zip("xy", arrays, strict=False)))
        cost = _cost(n, arrays, chosen.backend)
        path = f"{measure} <- moments " + ", ".join(f"{tuple(a.shape)} {_dtype(a)}" for a in arrays)
    return Explanation(path, chosen.backend, chosen.why, cost.flops, cost.bytes_read, cost.result + cost.scratch)


def grid_bytes(widths_x: list[int], widths_y: list[int] | None) -> int:
    """Return the most bytes that an exact grid holds: its sums, and the next ones while an update is under way."""
    widths = widths_x + (widths_y or [])
    pairs = _pairs(len(widths_x), None if widths_y is None else len(widths_y))
    crosses = [8 * (widths[a] * widths[b] + widths[a] + widths[b] + 1) for a, b in pairs]
    return 2 * (sum(8 * (p * p + 5 * p + 1) for p in widths) + sum(crosses))


def _pairs(count_x: int, count_y: int | None) -> list[tuple[int, int]]:
    """Return indices into the layers of x followed by those of y."""
    if count_y is None:
        return [(a, b) for a in range(count_x) for b in range(a + 1, count_x)]
    return [(a, count_x + b) for a in range(count_x) for b in range(count_y)]


def _grid_cost(n: int, xs: list[Array], ys: list[Array] | None, backend: str) -> tuple[_Cost, int]:
    arrays = xs + (ys or [])
    pairs = _pairs(len(xs), None if ys is None else len(ys))
    costs = [_cost(n, [a], backend) for a in arrays]
    costs += [_cost(n, [arrays[a], arrays[b]], backend, self_terms=False) for a, b in pairs]
    held = grid_bytes([a.shape[1] for a in xs], None if ys is None else [a.shape[1] for a in ys])
    total = _Cost(
        sum(c.flops for c in costs), sum(c.bytes_read for c in costs), held, max(c.scratch + c.result for c in costs)
    )
    return total, len(pairs)


def _cost(n: int, arrays: list[Array], backend: str, *, self_terms: bool = True) -> _Cost:
    """Return the cost of one pass over one or two arrays; symmetric products count half."""
    widths = [int(a.shape[1]) for a in arrays]
    flops, result = 0, 0
    if self_terms:
        flops += sum(n * p * (p + 1) for p in widths)
        result += sum(8 * (p * p + 5 * p + 1) for p in widths)
    if len(widths) == 2:
        p, q = widths
        flops += 2 * n * p * q
        result += 8 * (p * q + p + q + 1)
    read = sum(n * p * _ITEM_BYTES[_dtype(a)] for p, a in zip(widths, arrays, strict=True))
    if backend == "reference":
        scratch = 24 * n * sum(widths)
    else:
        float64 = any(_dtype(a) == "float64" for a in arrays)
        p, q = (*widths, 0)[:2]
        scratch = _core_or_raise("explain").moments_scratch_bytes(n, p, q, float64=float64, self_terms=self_terms)
    return _Cost(flops, read, result, scratch)


def _dtype(x: Array) -> str:
    return str(x.dtype).removeprefix("torch.")


def _readable(count: int) -> str:
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def _load_core() -> tuple[ModuleType | None, str]:
    """Return the compiled module, or the reason that it is not there."""
    try:
        from . import _core
    except ImportError as error:
        return None, str(error)
    return _core, ""


def _core_or_raise(function: str) -> Any:
    core, failure = _load_core()
    if core is None:
        raise RuntimeError(f"{function}: the compiled module cannot be loaded: {failure}")
    return core


def get_num_threads() -> int:
    """Return how many threads the CPU kernels use.

    Returns
    -------
    int
        At least 1. The default is the number of cores that this process may use.

    Raises
    ------
    RuntimeError
        If the compiled module cannot be loaded.

    Examples
    --------
    >>> import gramless as gl
    >>> gl.get_num_threads() >= 1
    True
    """
    return int(_core_or_raise("get_num_threads").get_num_threads())


def set_num_threads(count: int) -> None:
    """Set how many threads the CPU kernels use. No result depends on it.

    Parameters
    ----------
    count : int
        At least 1.

    Raises
    ------
    TypeError, ValueError
        If count is not a whole number, or is less than 1.
    RuntimeError
        If the compiled module cannot be loaded.

    Examples
    --------
    >>> import gramless as gl
    >>> before = gl.get_num_threads()
    >>> gl.set_num_threads(1)
    >>> gl.get_num_threads()
    1
    >>> gl.set_num_threads(before)
    """
    _checks.positive("set_num_threads", "count", count)
    _core_or_raise("set_num_threads").set_num_threads(count)
