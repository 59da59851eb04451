"""The factor of two unembeddings on a GPU: found there, read once, with the fingerprint that the host finds."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._base import arguments, gpu_arrays
from ..ops import backends
from . import factorization, stacked_weights
from .factorization import EPS, Factor
from .stacked_weights import Columns, pieces


def are_on_gpu(columns: Columns, backend: str) -> bool:
    """Return whether the weights are for a GPU."""
    return gpu_arrays.is_asked_for({"w1": columns.w1, "w2": columns.w2}, backend)


def factor_on_gpu(columns: Columns, backend: str) -> Factor:
    """Return the factor as `_factors.factor` does, on the GPU.

    Cost: V D^2 flops in float64, 2.7 V D^2 more where Cholesky is not safe. Peak extra bytes on the GPU: 16 D^2 and
    1.5 GiB; where Cholesky is not safe 56 D^2.
    """
    import torch

    module, weights = _brought(columns, backend)
    # queued before anything waits
    marks = _marks(columns, weights)
    pivot = weights.pivot(gpu_arrays.to_device(columns.sampled(), weights.w1.device))
    if columns.count <= columns.width:
        matrix, method = module.by_rows(weights, pivot), "rows"
        finite = bool(torch.isfinite(matrix).all())
    else:
        root = module.by_moments(weights, pivot)
        told = torch.stack([root.failed.double(), root.inverse, root.size])
        failed, inverse, size = told.tolist()
        matrix, method, finite = root.matrix, "gram", bool(np.isfinite(size))
        # an estimate that is NaN is of no use
        safe = not failed and EPS * np.sqrt(columns.width) * inverse <= factorization.GRAM_ERROR
        if finite and not safe:
            del root, matrix
            matrix, method = module.by_reflections(weights, pivot), "qr"
            finite = bool(torch.isfinite(matrix).all())
    if not finite:
        _refuse(columns)
    kept = (matrix != 0).any(dim=1)
    if not bool(kept.all()):
        matrix = matrix[kept]
    return Factor(matrix, method, _digest(columns, marks))


def fingerprint_on_gpu(columns: Columns, backend: str) -> str:
    """Return what `Columns.fingerprint` does."""
    _, weights = _brought(columns, backend)
    return _digest(columns, _marks(columns, weights))


def _brought(columns: Columns, backend: str) -> tuple[Any, Any]:
    """Return the kernels, and the weights as they take them."""
    where = arguments.gpu_of(columns.w1)
    module = backends.gpu_module(columns.function, backend, where, "factor.factorization")
    w1, w2 = gpu_arrays.tensor(columns.w1), gpu_arrays.tensor(columns.w2)
    index = None if columns.index is None else gpu_arrays.to_device(columns.index, w1.device)
    bias = None
    if columns.biases is not None:
        with np.errstate(over="ignore"):
            bias = gpu_arrays.to_device(columns.biases[0] - columns.biases[1], w1.device)
    return module, module.Weights(w1, w2, index, bias)


def _marks(columns: Columns, weights: Any) -> Any:
    """Return the marks of all rows, on the device."""
    keys = (stacked_weights.keys(w).view(np.int64) for w in (columns.w1, columns.w2))
    return weights.marks(*(gpu_arrays.to_device(one, weights.w1.device) for one in keys))


def _digest(columns: Columns, marks: Any) -> str:
    made = columns.marked()
    made.update(np.ascontiguousarray(marks.cpu().numpy()))
    return str(made.hexdigest())


def _refuse(columns: Columns) -> None:
    """Name the first row that is not finite, as the host does; without one, squares overflow."""
    for piece in pieces(0, columns.count, stacked_weights.BLOCK_ROWS):
        found = columns.nonfinite_row(*piece)
        if found is not None:
            raise found
    raise columns.overflow()
