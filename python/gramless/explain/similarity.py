"""What a call will run and what that costs, without running it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from .. import ops
from .._base import arguments
from .._base.arrays import Array
from .._base.memory import available_bytes
from ..layers import cka_matrix
from ..layers.minibatch import WEIGHTS
from ..layers.names import named_layers, sides
from ..layers.plan import batch_bounds, check_estimator, plan_grid, tile_flops
from ..layers.tiles import BlockPlan, GridKernel, plan_blocks
from ..ops import backends
from ..similarity import hsic_test, one_shot, permutation_null
from ..similarity.bandwidth_rules import EXACT_ROWS
from ..similarity.pair_request import KernelPass
from ..similarity.pair_sampling import plan_batches
from . import costs as explain_costs
from .costs import Columns, Cost, readable
from .predictions import PREDICTIONS, explain_predictions

_MEASURES: dict[str, Callable[..., Any]] = {
    "hsic": one_shot.hsic,
    "cka": one_shot.cka,
    "cka_distance": one_shot.cka_distance,
    "cka_matrix": cka_matrix.cka_matrix,
    "hsic_test": hsic_test.hsic_test,
}
_STEMS: dict[str, Callable[..., Any]] = {"moments": ops.moments, "gram_sums": ops.gram_sums}
_FUNCTIONS = _MEASURES | _STEMS | PREDICTIONS
# what explain calls the layers of a grid, too
_LAYERS = {"x": "xs", "y": "ys"}
# what takes a part of a pass, of which nothing is said here
_PARTS = ("block_rows", "pairs", "self_terms")


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
            f"  read       {readable(self.bytes_read)}\n"
            f"  peak extra {readable(self.peak_extra_bytes)}"
        )


def explain(measure: str, *arrays: Any, **keywords: Any) -> Explanation:
    """Say which code a call would run and what it costs, without running it.

    Parameters
    ----------
    measure : str
        Name of the public function: "hsic", "cka", "cka_distance", "cka_matrix", "hsic_test", "moments", "gram_sums",
        "logsumexp", "logit_pairs", "compare_logits" or "logit_distance".
    *arrays, **keywords
        The arguments of a call of that function, with its defaults. A bandwidth that is a number saves the pass that a
        rule takes. "gram_sums" needs none here, and what takes a part of a pass is refused; both x and y are wanted for
        "hsic", "cka", "cka_distance" and "hsic_test". "cka_matrix" also takes its layers as x and y.

    Returns
    -------
    Explanation
        With fields path, backend, why, flops, bytes_read and peak_extra_bytes (the result of the pass included).

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As the function itself would, but for what only a look at the values of its arrays shows.

    Notes
    -----
    For the linear kernel, Gram tiles are chosen where they take less than half the flops of moments: 2 n <= p + q.

    A look-up in a kernel matrix that is held counts as two flops. What is free on the machine, too, decides how
    "cka_matrix" goes.

    Of logits, the products count, 2 N V d for each model and pass. Unembeddings are read once for each block of rows
    that are packed together. Whether the factor of a logit distance has to be found twice is not known before.

    On a GPU the bytes are those of its memory, and products of bfloat16 planes count one by one: three for one of
    float32 in "high".

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
    >>> gl.explain("cka", x, x, kernel="rbf", bandwidth=1.0, backend="reference").path
    'cka <- gram_sums rbf (1000, 64) float32, (1000, 64) float32'
    >>> rows = np.zeros((100_000, 64), np.float32)
    >>> for way in ({}, {"fraction": 0.1}, {"method": "rff"}):
    ...     print(f"{gl.explain('cka', rows, rows, kernel='rbf', bandwidth=1.0, **way).flops:.1e}")
    1.3e+12
    1.3e+11
    4.3e+11
    >>> w = np.zeros((5000, 64), np.float32)
    >>> print(gl.explain("logit_pairs", x, w, x, w, divergences=True, workspace=1000, backend="cpu").why)
    asked for; logits are computed twice, for js and tv: a workspace of 1000.0 B holds those of 0 rows, fewer than 64
    >>> gl.explain("logit_distance", x, w, x, w, backend="cpu").why.split("; ")[1]
    'factor: factor 9.83e+07 flops, vocabulary 1.28e+09'
    """
    arguments.choice("explain", "measure", measure, tuple(_FUNCTIONS))
    asked = _arguments(measure, arrays, keywords)
    if measure in PREDICTIONS:
        path, backend, why, cost = explain_predictions(measure, asked)
        return Explanation(path, backend, why, cost.flops, cost.bytes_read, cost.peak)
    if measure == "cka_matrix":
        return _explain_grid(asked["xs"], asked["ys"], asked)
    x, y = asked["x"], asked["y"]
    if measure in _STEMS:
        return _explain_stem(measure, x, y, asked)
    if y is None:
        raise TypeError(f"{measure}: expected y")
    return _explain_measure(measure, x, y, asked)


def _arguments(measure: str, arrays: Sequence[Any], keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Return all arguments of a call of a function, which refuses itself what it does not take."""
    function = _FUNCTIONS[measure]
    if measure == "cka_matrix" and not keywords.keys() & _LAYERS.values():
        keywords = {_LAYERS.get(name, name): value for name, value in keywords.items()}
    try:
        bound = inspect.signature(function).bind(*arrays, **keywords)
    except TypeError:
        # with arguments that do not fit, a call does no more than say so
        function(*arrays, **keywords)
        raise
    bound.apply_defaults()
    return bound.arguments


def _explain_stem(stem: str, x: Any, y: Any, asked: Mapping[str, Any]) -> Explanation:
    """Explain one pass."""
    for name in _PARTS:
        if asked.get(name) is not None and asked[name] is not True:
            raise ValueError(f"explain: {stem} is explained for a whole pass, give no {name}")
    kernel = asked.get("kernel", "linear")
    arguments.gram_kernel(stem, kernel, "unbiased", None, asked.get("degree", 1), asked.get("coef0", 1.0))
    precision = asked["precision"]
    arguments.choice(stem, "precision", precision, backends.PRECISIONS)
    named = {name: arguments.rows(stem, name, a, on_gpu=True) for name, a in (("x", x), ("y", y)) if a is not None}
    arrays = list(named.values())
    n, columns = arguments.same_rows(stem, named), [Columns.of(a) for a in arrays]
    chosen = backends.resolve(stem, asked["backend"], arrays=named, precision=precision)
    if stem == "moments":
        cost = explain_costs.moments(n, columns, chosen.backend, precision=precision)
        return _explanation(f"{stem} <- moments {_shapes(arrays)}", chosen, cost)
    given = asked["bandwidth_x"]
    widths = None if given is None else arguments.bandwidths(stem, "bandwidth_x", given, kernel)
    count = 1 if widths is None else widths.size
    cost = explain_costs.tiles(n, columns, chosen.backend, kernel, bandwidths=count, precision=precision)
    return _explanation(f"{stem} <- gram_sums {kernel} {_shapes(arrays)}", chosen, cost)


class _Work(NamedTuple):
    """What a measure of two arrays runs."""

    chosen: backends.Choice
    what: str
    cost: Cost
    why: str = ""


def _explain_measure(measure: str, x: Any, y: Any, asked: Mapping[str, Any]) -> Explanation:
    """Explain a measure of two arrays, whichever way it is taken."""
    request, arrays = _checked(measure, x, y, asked)
    if asked.get("method") == "rff":
        work = _features(request, arrays, asked["n_features"])
    elif asked.get("fraction") is not None:
        work = _batches(request, arrays, float(asked["fraction"]))
    else:
        work = _whole(request, arrays, asked.get("null"), asked.get("n_permutations", 0))
    cost = work.cost
    if request.by_rule:
        cost = explain_costs.rule(int(arrays[0].shape[0]), [Columns.of(a) for a in arrays], work.chosen.backend).then(
            cost
        )
    return _explanation(f"{measure} <- {work.what}", work.chosen, cost, work.why)


def _features(request: KernelPass, arrays: Sequence[Array], frequencies: int) -> _Work:
    chosen = backends.resolve("moments", request.backend)
    columns = [Columns.of(a) for a in arrays]
    cost = explain_costs.features(int(arrays[0].shape[0]), columns, frequencies, chosen.backend)
    return _Work(chosen, f"moments of {frequencies} random features of {_shapes(arrays)}", cost)


def _batches(request: KernelPass, arrays: Sequence[Array], fraction: float) -> _Work:
    chosen = request.resolve("gram_sums", arrays)
    plan = plan_batches(int(arrays[0].shape[0]), fraction)
    count = plan.orders * len(plan.sizes)
    parts = f"{count} batches of {plan.sizes[0]} rows, {plan.fraction:.3g} of all pairs,"
    columns, how = [Columns.of(a) for a in arrays], (chosen.backend, request.kernel, request.precision)
    cost = explain_costs.batches(plan.sizes, plan.orders, columns, *how)
    return _Work(
        chosen, f"gram_sums {request.kernel} of {parts if count > 1 else 'all rows'} of {_shapes(arrays)}", cost
    )


def _whole(request: KernelPass, arrays: tuple[Array, Array], null: str | None, n_permutations: int) -> _Work:
    """Return the pass over all pairs of rows, and what its null takes."""
    n, kernel, columns = int(arrays[0].shape[0]), request.kernel, [Columns.of(a) for a in arrays]
    stem, shapes = request.stem(*arrays), _shapes(arrays)
    chosen = request.resolve(stem, arrays)
    backend, precision = chosen.backend, request.precision
    if stem == "moments":
        one_pass = explain_costs.moments(n, columns, backend, precision=precision)
        what, cost = f"moments {shapes}", one_pass.then(explain_costs.centred(columns).released())
    else:
        what, cost = f"gram_sums {kernel} {shapes}", explain_costs.strips(n, columns, backend, kernel, precision)
    if null != "permutation":
        return _Work(chosen, what if null is None else f"{what}, {null} null", cost)
    way = permutation_null.permuted_by(stem, n)
    cost = cost.then(explain_costs.permutations(way, n_permutations, n, columns, backend, kernel))
    why = "" if way == "moments" else f"; kernel matrices are held up to {permutation_null.HELD_ROWS} rows"
    return _Work(chosen, f"{what}, {n_permutations} permutations by {way}", cost, why)


def _checked(measure: str, x: Any, y: Any, asked: Mapping[str, Any]) -> tuple[KernelPass, tuple[Array, Array]]:
    """Return the arguments of a measure of two arrays, checked as it checks them."""

    def values(*names: str) -> dict[str, Any]:
        return {name: asked[name] for name in names}

    shared = values("kernel", "bandwidth", "bandwidth_scale", "degree", "coef0", "backend")
    if "precision" in asked:
        shared |= values("precision")
    if measure == "hsic_test":
        permutation_null.checked_null(measure, **values("null", "n_permutations", "seed"))
        request = KernelPass(measure, estimator="biased", **shared)
        return request, permutation_null.checked_rows(request, x, y)
    request = KernelPass(measure, estimator=asked["estimator"], **shared)
    if measure != "cka_distance":
        way = values("method", "n_features", "fraction", "null", "n_permutations", "seed")
        one_shot.ComputeOptions(**way).check(request, x)
        return request, request.arrays(x, y, on_gpu=asked["null"] is None and asked["method"] != "rff")
    return request, request.arrays(x, y)


def _explain_grid(xs: Any, ys: Any, asked: Mapping[str, Any]) -> Explanation:
    """Explain cka_matrix, with the cost of both ways where there are two."""
    measure, estimator, backend, batch_size = "cka_matrix", asked["estimator"], asked["backend"], asked["batch_size"]
    kernel = GridKernel.checked(measure, asked["kernel"], asked["bandwidth"], asked["bandwidth_scale"])
    check_estimator(measure, estimator, kernel, of_batches=batch_size is not None)
    arguments.choice(measure, "weights", asked["weights"], WEIGHTS)
    if batch_size is None and asked["weights"] != "rows":
        raise ValueError(f"{measure}: weights={asked['weights']!r} needs batch_size")
    backends.check_backend(measure, backend)
    max_bytes = asked["max_bytes"]
    if max_bytes is not None:
        arguments.positive(measure, "max_bytes", max_bytes)
    limit = available_bytes() if max_bytes is None else max_bytes
    arrays = named_layers(measure, xs, ys)
    n, rows = arguments.same_rows(measure, arrays), list(arrays.values())
    arguments.enough_rows(measure, estimator, n)
    if batch_size is not None:
        sizes = [stop - start for start, stop in batch_bounds(measure, n, batch_size)]
        blocks = plan_blocks(max(sizes), rows, kernel, backend, limit)
        costs = [_grid_tiles(size, rows, blocks, kernel) for size in sizes]
        chosen = backends.resolve_gram_values(backend)
        path = (
            f"{measure} <- gram_values {kernel.name} of {len(arrays)} layers, {len(sizes)} batches of {sizes[0]} rows"
        )
        return _explanation(path, chosen, functools.reduce(Cost.then, costs))
    plan = plan_grid(arrays, estimator=estimator, kernel=kernel, backend=backend, limit=limit)
    tiles = _grid_tiles(n, rows, plan.blocks, kernel)
    told = f"tiles {tiles.flops:.3g} flops, {readable(tiles.peak)} with blocks of {plan.blocks.block} rows"
    if kernel.name == "linear":
        told = f"moments {plan.moment_flops:.3g} flops, {readable(plan.moment_bytes)}; {told}"
    if plan.path == "gram":
        chosen, cost = backends.resolve_gram_values(backend), tiles
        path = f"{measure} <- gram_values {kernel.name} of {len(arrays)} layers, {n} rows"
    else:
        chosen = backends.resolve("moments", backend)
        cost, pairs = _grid_moments(n, arrays, chosen.backend)
        path = f"{measure} <- moments of {len(arrays)} layers and {pairs} pairs, {n} rows"
    return _explanation(path, chosen, cost, f"; {plan.path}: {plan.why} ({told})")


def _grid_tiles(n: int, arrays: Sequence[Array], blocks: BlockPlan, kernel: GridKernel) -> Cost:
    """Return the cost of all pairs of blocks of n rows, each of which is read anew, and of the rule before them."""
    columns, parts = [Columns.of(a) for a in arrays], -(-n // blocks.block)
    widths, row_bytes = [one.width for one in columns], sum(one.row_bytes for one in columns)
    sampled = min(n, EXACT_ROWS) if kernel.by_rule else 0
    flops = tile_flops(n, widths) + sampled * sampled * sum(widths)
    return Cost(flops, (n * parts + sampled) * row_bytes, 0, blocks.needed)


def _grid_moments(n: int, named: Mapping[str, Array], backend: str) -> tuple[Cost, int]:
    """Return the cost of the moments of all layers and of all pairs of them, and the number of these."""
    columns, (x, y) = [Columns.of(a) for a in named.values()], sides(list(named))
    pairs = len(x) * (len(x) - 1) // 2 if x == y else len(x) * len(y)
    return explain_costs.layer_moments(n, columns, len(x), backend), pairs


def _explanation(path: str, chosen: backends.Choice, cost: Cost, why: str = "") -> Explanation:
    return Explanation(path, chosen.backend, chosen.why + why, cost.flops, cost.bytes_read, cost.peak)


def _shapes(arrays: Sequence[Array]) -> str:
    return ", ".join(f"{tuple(a.shape)} {Columns.of(a).dtype}" for a in arrays)
