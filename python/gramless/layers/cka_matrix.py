"""`cka_matrix`: CKA of all pairs of layers from whole arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .._base import arguments
from .._base.arrays import Array
from .._base.gpu_arrays import is_asked_for
from .._base.memory import available_bytes
from .._base.progress import progress_bar
from ..ops import backends
from .batch_moments import BatchTable
from .exact import ExactGrid
from .minibatch import WEIGHTS, MinibatchGrid
from .names import matrix_of, named_layers
from .plan import batch_bounds, check_estimator, plan_grid
from .similarity_matrix import SimilarityMatrix
from .tiles import GridKernel, grid_sums

if TYPE_CHECKING:
    pass


def cka_matrix(
    xs: Any,
    ys: Any = None,
    *,
    estimator: str = "unbiased",
    batch_size: int | None = None,
    kernel: str = "linear",
    bandwidth: float | str | None = None,
    bandwidth_scale: float = 1.0,
    weights: str = "rows",
    max_bytes: int | None = None,
    precision: str = "high",
    backend: str = "auto",
    progress: bool = False,
) -> SimilarityMatrix:
    """CKA between all pairs of layers of two models, or of one.

    Parameters
    ----------
    xs : dict or list of arrays of shape (n, p), float16, bfloat16, float32 or float64
        The layers of one model. A list gets the names "0", "1", ...; p may differ between layers.
    ys : dict or list of arrays of shape (n, q), optional
        The layers of the other model. Without it, xs against itself, where the diagonal is exactly 1.
    estimator : {"unbiased", "biased", "feature_corrected"}
        As in `gramless.cka`. Batches have the first alone, the rbf kernel the first two.
    batch_size : int, optional
        Average over batches of so many rows in the order given, with standard errors: see `LayerGrid`. A remainder of
        fewer than 4 rows joins the last batch. Default: all pairs of rows, and no standard errors.
    kernel, bandwidth, bandwidth_scale, weights
        As in `LayerGrid`. A rule for the bandwidth is that of each batch, or of all rows.
    max_bytes : int, optional
        The most memory to take, for sums and kernel values. Default: what the machine and its control groups have free.
    precision : {"fast", "high", "exact"}
        As in `gramless.moments`.
    backend : {"auto", "reference", "cpu", "cuda"}
        A named backend never falls back to another.
    progress : bool
        Show a progress bar over pairs of blocks of rows, or batches; moments of all layers are one step.

    Returns
    -------
    SimilarityMatrix
        Float64 values of shape (layers of xs, layers of ys), in the order given. A layer without CKA, such as a
        constant one, has NaN in its row, and one warning names all of these.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As `gramless.cka`.
    MemoryError
        If the sums do not fit; the message says what they need.

    Notes
    -----
    Over all rows there are two ways to the same values. Moments, for the linear kernel, cost as in `LayerGrid`. Tiles
    of the kernel matrices of l layers take n^2 sum p + n^2 l^2 / 2 flops, 32 n l bytes and up to 64 MiB of kernel
    values of blocks of rows. Tiles are taken where moments do not fit into memory or cost more than twice the flops;
    `gramless.explain` shows both costs and the rows of a block.

    Examples
    --------
    >>> import numpy as np
    >>> import gramless as gl
    >>> x = np.random.default_rng(0).standard_normal((100, 6))
    >>> matrix = gl.cka_matrix({"first": x, "second": x[:, :3]})
    >>> matrix.values.round(3)
    array([[1.   , 0.679],
           [0.679, 1.   ]])
    >>> matrix.layers_x
    ('first', 'second')
    """
    function = "cka_matrix"
    chosen = GridKernel.checked(function, kernel, bandwidth, bandwidth_scale)
    check_estimator(function, estimator, chosen, of_batches=batch_size is not None)
    arguments.choice(function, "weights", weights, WEIGHTS)
    arguments.choice(function, "precision", precision, backends.PRECISIONS)
    if batch_size is None and weights != "rows":
        raise ValueError(f"{function}: weights={weights!r} needs batch_size")
    backends.check_backend(function, backend)
    if max_bytes is not None:
        arguments.positive(function, "max_bytes", max_bytes)
    arrays = named_layers(function, xs, ys)
    n = arguments.same_rows(function, arrays)
    arguments.enough_rows(function, estimator, n)
    if batch_size is not None:
        grid = MinibatchGrid(chosen, weights, max_bytes, precision, backend)
        for start, stop in progress_bar(batch_bounds(function, n, batch_size), "batches", shown=progress):
            grid.add(function, {name: rows[start:stop] for name, rows in arrays.items()})
        return grid.result(function, estimator)
    if is_asked_for(arrays, backend):
        if chosen.name != "linear":
            raise RuntimeError(
                f"{function}: kernel={chosen.name!r} over all rows has no kernel on a GPU; give batch_size, or move "
                "the layers to host memory"
            )
        return _by_moments(function, arrays, ExactGrid(max_bytes, precision, backend, progress=progress), estimator)
    limit, source = (available_bytes(), "available") if max_bytes is None else (max_bytes, "max_bytes")
    plan = plan_grid(arrays, estimator=estimator, kernel=chosen, backend=backend, limit=limit)
    if plan.path == "moments":
        return _by_moments(function, arrays, ExactGrid(max_bytes, precision, backend, progress=progress), estimator)
    plan.blocks.refuse_beyond(function, limit, source)
    return _by_tiles(function, arrays, chosen, plan.blocks.block, estimator, backend, progress=progress)


def _by_moments(function: str, arrays: dict[str, Array], grid: ExactGrid, estimator: str) -> SimilarityMatrix:
    """Return CKA of all pairs of layers over all their rows, by moments."""
    grid.add(function, arrays)
    return grid.result(function, estimator)


def _by_tiles(
    function: str,
    arrays: Mapping[str, Array],
    kernel: GridKernel,
    block: int,
    estimator: str,
    backend: str,
    *,
    progress: bool,
) -> SimilarityMatrix:
    """Return CKA of all pairs of layers over all their rows, by tiles of kernel matrices."""
    names, layers, biased = list(arrays), list(arrays.values()), estimator == "biased"
    try:
        sums = grid_sums(layers, kernel, names=names, block=block, backend=backend, diagonals=biased, progress=progress)
    except ValueError as error:
        raise ValueError(f"{function}: {error}") from None
    table = BatchTable.of(names, sums, biased=biased)
    values, _ = table.cka()
    problems = table.problems(kernel, estimator)
    return matrix_of(function, names, values, None, problems, n=sums.n, measure=kernel.measure, estimator=estimator)
