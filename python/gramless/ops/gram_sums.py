"""Sums over kernel matrices: check the arguments, choose a backend, call it, return a state."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._base import arguments, gpu_arrays
from .._base.arrays import Array
from ..states.gram import GramSide, GramState
from . import backends
from .array_calls import GRAM_OVERFLOW, run_on_gpu, run_on_host


def gram_sums(
    x: Array,
    y: Array | None = None,
    *,
    kernel: str = "linear",
    bandwidth_x: Any = None,
    bandwidth_y: Any = None,
    degree: int = 3,
    coef0: float = 1.0,
    block_rows: int | None = None,
    pairs: Any = None,
    sample_x: Array | None = None,
    sample_y: Array | None = None,
    nonfinite: str = "raise",
    precision: str = "high",
    backend: str = "auto",
) -> GramState:
    """Sum kernel matrices of x and y over all pairs of rows, tile by tile: no n x n matrix is held.

    Parameters
    ----------
    x : array of shape (n, p), float16, bfloat16, float32 or float64
        NumPy, torch on the CPU or a GPU, or anything with DLPack. Never copied, never changed.
    y : array of shape (n, q), optional
        The other representation of the same rows; its dtype may differ. Without it, the sums of x alone.
    kernel : {"linear", "rbf", "laplacian", "polynomial", "cosine", "distance"}
        k(u, v): linear u.v; rbf exp(-|u - v|^2 / (2 s^2)); laplacian exp(-|u - v| / s); polynomial
        (u.v / p + coef0)^degree; cosine u.v / (|u| |v|); distance |u - v|.
    bandwidth_x, bandwidth_y : number or array of shape (s,), optional
        Bandwidths s of x and of y, which rbf and laplacian need: the k-th of x goes with the k-th of y.
    degree : int
        Degree of the polynomial kernel, from 1 to 64.
    coef0 : float
        Constant of the polynomial kernel.
    block_rows : int, optional
        Rows of a block. Default: chosen from p and q.
    pairs : int array of shape (m, 2), optional
        Pairs (I, J), I <= J, of blocks of rows to count; states of different pairs merge. Default: all.
    sample_x, sample_y : array of shape (k, p) and (k, q), of the dtype of x and of y, optional
        Rows that say where x and y lie, which decides what is taken off k. Default: up to 7 rows, evenly spaced. Where
        x is a part of an array, those of the whole, so that the states of its parts add up.
    nonfinite : {"raise", "propagate"}
        What NaN and infinity do.
    precision : {"fast", "high", "exact"}
        Of products on a GPU: one bfloat16 for each value, two (16 bits), or float64. float64 input is always "exact";
        so is the host, but for products in float32.
    backend : {"auto", "reference", "cpu", "cuda"}
        A named backend never falls back to another.

    Returns
    -------
    GramState
        All arrays are float64. Linear, cosine and polynomial k are less what they are at a sampled centre, rbf and
        laplacian with wide bandwidths less 1, which keeps their digits: no HSIC depends on either.

    Raises
    ------
    TypeError
        If an argument is no array, or its dtype is none of the four.
    ValueError
        If shapes, kernel, bandwidths or pairs do not fit, values are not finite or overflow, or a row is zero for
        the cosine kernel.
    RuntimeError
        If x and y are not on one device, the named backend does not read that, or it is missing.

    Notes
    -----
    n^2 (p + q) flops, since only pairs i <= j are computed; x and y are read n / (2 block_rows) times. 32 n s bytes of
    result, and two blocks of rows of each array. Kernel values are in float32, for float64 input and up to 1024 rows in
    float64, and summed in float64. The result does not depend on the number of threads.

    Examples
    --------
    >>> import numpy as np
    >>> import gramless as gl
    >>> x = np.random.default_rng(0).standard_normal((100, 8))
    >>> state = gl.gram_sums(x, 2 * x, kernel="rbf", bandwidth_x=3.0, bandwidth_y=6.0)
    >>> state
    GramState(n=100, kernel='rbf', bandwidths=1)
    >>> round(gl.cka(state), 6)
    1.0
    """
    function = "gram_sums"
    arguments.choice(function, "nonfinite", nonfinite, ("raise", "propagate"))
    arguments.choice(function, "precision", precision, backends.PRECISIONS)
    arguments.gram_kernel(function, kernel, "unbiased", None, degree, coef0)
    arrays = {"x": arguments.rows(function, "x", x, on_gpu=True)}
    if y is not None:
        arrays["y"] = arguments.rows(function, "y", y, on_gpu=True)
    n = arguments.same_rows(function, arrays)
    if y is None and bandwidth_y is not None:
        raise ValueError("gram_sums: bandwidth_y given without y")
    width_x = arguments.bandwidths(function, "bandwidth_x", bandwidth_x, kernel)
    width_y = None if y is None else arguments.bandwidths(function, "bandwidth_y", bandwidth_y, kernel)
    if width_x is not None and width_y is not None and width_x.size != width_y.size:
        raise ValueError(
            f"gram_sums: expected as many bandwidths of x as of y, got {width_x.size} of x and {width_y.size} of y"
        )
    chosen = backends.resolve(function, backend, arrays=arrays, precision=precision)
    if block_rows is None:
        p, q = (int(arrays[name].shape[1]) if name in arrays else 0 for name in ("x", "y"))
        block_rows = backends.gram_block_rows(chosen.backend, p, q, precision)
    arguments.positive(function, "block_rows", block_rows)
    blocks = None if pairs is None else arguments.block_pairs(function, pairs, -(-n // block_rows))
    samples = {
        f"sample_{name}": arguments.sample(function, f"sample_{name}", sample, arrays.get(name))
        for name, sample in (("x", sample_x), ("y", sample_y))
    }
    dtypes = [str(a.dtype) for a in arrays.values()]
    in_float64 = backends.gram_in_float64(chosen.backend, n, dtypes, kernel, precision)
    keywords = {
        "kernel": kernel,
        "bandwidth_x": width_x,
        "bandwidth_y": width_y,
        "degree": degree,
        "coef0": float(coef0),
        "block_rows": block_rows,
        "pairs": blocks,
        "nonfinite": nonfinite,
        **samples,
    }
    if chosen.backend == "cuda":
        flat = gpu_arrays.on_host(run_on_gpu(function, chosen, arrays, **keywords))
    else:
        flat = run_on_host(chosen, arrays, **keywords)
        if nonfinite == "raise" and not all(np.isfinite(flat[key]).all() for key in flat if key.startswith("sum_")):
            raise ValueError(GRAM_OVERFLOW)
    return GramState(
        n=n,
        kernel=kernel,
        degree=degree,
        coef0=float(coef0),
        pairs=_counted(n, block_rows, blocks),
        # on a GPU it is rows that are rounded further, once for all their kernel values
        eps=float(np.finfo(np.float64 if in_float64 else np.float32).eps),
        x=_gram_side(flat, "x", width_x),
        y=None if y is None else _gram_side(flat, "y", width_y),
        product=flat.get("sum_xy"),
        error=max(float(flat.get(f"error_{name}", 0.0)) for name in arrays),
    )


def _counted(n: int, block_rows: int, pairs: NDArray[np.int64] | None) -> int:
    """Return the number of pairs i < j of rows in pairs of blocks."""
    if pairs is None:
        return n * (n - 1) // 2
    first, second = (np.minimum(n - block * block_rows, block_rows) for block in pairs.T)
    return int(np.where(pairs[:, 0] == pairs[:, 1], first * (first - 1) // 2, first * second).sum())


def _gram_side(flat: dict[str, Any], name: str, widths: NDArray[np.float64] | None) -> GramSide:
    return GramSide(
        bandwidth=np.zeros(1) if widths is None else widths,
        offset=flat[f"offset_{name}"],
        square=flat[f"sum_{name}{name}"],
        rows=flat[f"rows_{name}"],
        diagonal=flat[f"diagonal_{name}"],
    )
