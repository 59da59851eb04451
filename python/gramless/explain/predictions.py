"""What a call for predictions will run and what that costs, without running it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._base import arguments
from .._base.arrays import Array
from .._base.gpu_arrays import is_asked_for
from ..ops import backends, logit_arguments
from ..ops.logit_arguments import Choice, OutputHead
from ..ops.logit_pairs import logit_pairs
from ..ops.logsumexp import logsumexp
from ..predictions import stacked_weights
from ..predictions.batching import rows_at_a_time, rows_on_gpu
from ..predictions.compare import _check_alone, compare_logits, without_ignored
from ..predictions.logit_distance import METHODS, _check_pair, logit_distance, plan
from ..predictions.row_statistics import check_state
from ..states.logits import LogitPairState
from . import gpu_logit_costs, logit_costs
from .costs import Columns, Cost
from .gpu_logit_costs import FactorRows, GpuPass
from .logit_costs import Model, Pass

PREDICTIONS: dict[str, Callable[..., Any]] = {
    "logsumexp": logsumexp,
    "logit_pairs": logit_pairs,
    "compare_logits": compare_logits,
    "logit_distance": logit_distance,
}

Asked = Mapping[str, Any]


class Work(NamedTuple):
    """What a call runs."""

    path: str
    backend: str
    why: str
    cost: Cost


def explain_predictions(function: str, asked: Asked) -> Work:
    """Return what a call of one of these functions runs, given all of its arguments."""
    if function == "logsumexp":
        return _of_logsumexp(asked)
    if function == "logit_pairs":
        return _of_logit_pairs(asked)
    if function == "logit_distance":
        return _of_logit_distance(asked)
    return _of_state(asked) if isinstance(asked["h1"], LogitPairState) else _of_compare_logits(asked)


def _of_logsumexp(asked: Asked) -> Work:
    function = "logsumexp"
    _check_pass(function, asked)
    heads = [logit_arguments.head(function, asked["h"], asked["w"], asked["b"], asked["softcap"])]
    chosen = logit_arguments.choice(function, heads, asked["labels"], asked["mask"], asked["targets"])
    kernel = _kernel(function, asked, heads)
    of = _pass(heads, chosen, kernel.backend, asked["precision"])
    path = f"{function} <- {function} {_shapes(heads)}{_counting(heads, chosen, of.labels)}"
    return Work(path, kernel.backend, kernel.why + of.told(_numbers(heads)), _whole(heads, chosen, of))


def _of_logit_pairs(asked: Asked) -> Work:
    function = "logit_pairs"
    _check_pass(function, asked)
    heads = _heads(function, asked, asked["softcap1"], asked["softcap2"])
    chosen = logit_arguments.choice(function, heads, asked["labels"], asked["mask"], asked["targets"])
    kernel = _kernel(function, asked, heads)
    of = _with_divergences(_pass(heads, chosen, kernel.backend, asked["precision"]), asked)
    path = f"{function} <- {function} {_shapes(heads)}{_counting(heads, chosen, of.labels)}"
    why = kernel.why + of.told(_numbers(heads)) + of.second_pass(chosen.n)
    return Work(path, kernel.backend, why, _whole(heads, chosen, of))


def _of_compare_logits(asked: Asked) -> Work:
    function = "compare_logits"
    if asked["h2"] is None:
        raise TypeError(f"{function}: expected h1, w1, h2 and w2, or a LogitPairState, got no h2")
    backends.check_backend(function, asked["backend"], "logit_pairs")
    arguments.choice(function, "precision", asked["precision"], backends.PRECISIONS)
    if asked["batch_rows"] is not None:
        arguments.positive(function, "batch_rows", asked["batch_rows"])
    heads = _heads(function, asked, asked["softcap1"], asked["softcap2"])
    n = int(heads[0].h.shape[0])
    mask = without_ignored(function, asked["mask"], asked["targets"], asked["ignore_index"], n)
    chosen = logit_arguments.choice(function, heads, asked["labels"], mask, asked["targets"])
    if not chosen.n:
        raise ValueError(f"{function}: expected at least one row that counts, got none")
    _check_pass(function, asked)
    arguments.same_device(function, _arrays(heads))
    kernel = _kernel("logit_pairs", asked, heads)
    of = _with_divergences(_pass(heads, chosen, kernel.backend, asked["precision"]), asked)
    on_gpu, row_bytes = isinstance(of, GpuPass), sum(one.h.row_bytes for one in of.models)
    size = asked["batch_rows"]
    size = size or (rows_on_gpu(row_bytes) if on_gpu else rows_at_a_time(heads[0].labels, of.width, row_bytes))
    counts = _batches(n, size, chosen.mask)
    cut = f"of batches of {size} rows of " if n > size else ""
    path = f"{function} <- logit_pairs {cut}{_shapes(heads)}{_counting(heads, chosen, of.labels)}"
    why = kernel.why + of.told(_numbers(heads)) + of.second_pass(max(counts))
    if isinstance(of, GpuPass):
        gathered, targets = chosen.mask is not None and not chosen.mask.all(), chosen.targets is not None
        cost = gpu_logit_costs.comparison(counts, of, gathered=gathered, targets=targets)
    else:
        cost = _arguments(heads, chosen).then(logit_costs.comparison(counts, of, keep=bool(asked["keep_rows"])))
    return Work(path, kernel.backend, why, cost)


def _of_state(asked: Asked) -> Work:
    """Explain compare_logits of a state."""
    function, state = "compare_logits", asked["h1"]
    _check_alone(function, dict(asked))
    check_state(function, state)
    if not state.n:
        raise ValueError(f"{function}: expected at least one row, got a state of none")
    return Work(
        f"{function} <- {state!r}",
        "numpy",
        "the pass is behind it, no kernel runs",
        logit_costs.of_state(state.n, keep=bool(asked["keep_rows"])),
    )


def _of_logit_distance(asked: Asked) -> Work:
    function, method = "logit_distance", asked["method"]
    arguments.choice(function, "method", method, METHODS)
    arguments.choice(function, "precision", asked["precision"], backends.PRECISIONS)
    backends.check_backend(function, asked["backend"])
    arguments.above_zero(function, "temperature", asked["temperature"])
    if asked["pair"] is not None:
        return _of_pair(asked)
    given = asked["w1"] is None or asked["w2"] is None
    if method == "factor" and given:
        raise ValueError(f"{function}: method='factor' needs w1 and w2, or a pair")
    heads = _heads(function, asked, None, None)
    chosen = logit_arguments.choice(function, heads, asked["labels"], asked["mask"])
    path, told = "vocabulary", "logits are given"
    if not given:
        count = heads[0].labels if chosen.labels is None else len(chosen.labels)
        planned = plan(chosen.n, count, sum(int(of.h.shape[1]) for of in heads))
        path, told = (planned.path, planned.why) if method == "auto" else (method, f"asked for ({planned.why})")
    arguments.same_device(function, _arrays(heads))
    return (_by_factor if path == "factor" else _by_vocabulary)(asked, heads, chosen, told)


def _by_factor(asked: Asked, heads: Sequence[OutputHead], chosen: Choice, told: str) -> Work:
    function, masked = "logit_distance", chosen.mask is not None
    w1, w2, b1, b2, labels = (asked[name] for name in ("w1", "w2", "b1", "b2", "labels"))
    columns = stacked_weights.Columns.checked(function, w1, w2, b1, b2, labels)
    _check_any(chosen.n)
    few = columns.count <= columns.width
    weights, biased = [Columns.of(columns.w1), Columns.of(columns.w2)], columns.biases is not None
    states, panels = [Columns.of(of.h) for of in heads], logit_costs.panels(columns.count, columns.width)
    path = f"{function} <- factor by {'rows' if few else 'moments'} {_shapes(heads)}"
    path += _counting(heads, chosen, columns.count)
    if is_asked_for(_arrays(heads), asked["backend"]):
        why = _on_gpu(function, asked, _arrays(heads), "factor.factorization")
        precision = "exact" if any(one.dtype == "float64" for one in weights) else asked["precision"]
        rows = FactorRows(states, panels, biased, masked, precision, arguments.gpu_of(columns.w1))
        found = gpu_logit_costs.factor(columns.count, weights, biased=biased, indexed=columns.index is not None)
        again = "" if few else f"; {gpu_logit_costs.by_reflections(columns.width)}"
        why = f"{why}; {rows.told()}; factor: {told}{again}"
        return Work(path, "cuda", why, found.then(rows.cost(int(heads[0].h.shape[0]))))
    kernel = None if few else backends.resolve("moments", asked["backend"])
    cost = logit_costs.factor(
        columns.count,
        weights,
        "" if kernel is None else kernel.backend,
        biased=biased,
        gathered=columns.index is not None,
    ).then(
        logit_costs.by_factor(
            chosen.n,
            states,
            panels,
            biased=biased,
            exact=few,
            gathered=masked,
        )
    )
    # biases of both models, also of the labels that count, and these labels
    extra = 40 if biased else 8 if columns.given is not None else 0
    cost = _arguments(heads, chosen, extra).then(cost)
    if kernel is None:
        return Work(path, "numpy", f"no more labels than columns, no kernel runs; factor: {told}", cost)
    twice = "three times its flops and two reads of w1 and w2 if second moments would lose too many digits"
    return Work(path, kernel.backend, f"{kernel.why}; factor: {told}; {twice}", cost)


def _by_vocabulary(asked: Asked, heads: Sequence[OutputHead], chosen: Choice, told: str) -> Work:
    function = "logit_distance"
    if any(of.b is not None for of in heads):
        b1, b2 = (np.zeros(of.labels) if of.b is None else of.b for of in heads)
        stacked_weights.unmasked(function, b1, b2, chosen.labels)
    _check_any(chosen.n)
    kernel = _kernel("logit_pairs", asked, heads, "exact")
    of = _pass(heads, chosen, kernel.backend, "exact")
    path = f"{function} <- vocabulary by logit_pairs in float64 {_shapes(heads)}{_counting(heads, chosen, of.labels)}"
    if isinstance(of, GpuPass):
        return Work(path, kernel.backend, f"{kernel.why}; vocabulary: {told}", _whole(heads, chosen, of).released())
    # biases of both models, and of the labels that count
    extra = 24 if any(of.b is not None for of in heads) else 0
    cost = _arguments(heads, chosen, extra).then(logit_costs.by_vocabulary(chosen.n, of))
    return Work(path, kernel.backend, f"{kernel.why}; vocabulary: {told}", cost)


def _of_pair(asked: Asked) -> Work:
    """Explain logit_distance with a factor that is there; weights beside it are only compared with its own."""
    function, pair = "logit_distance", asked["pair"]
    w1, w2, b1, b2 = weights = tuple(asked[name] for name in ("w1", "w2", "b1", "b2"))
    compared, cost = w1 is not None and w2 is not None, Cost(0, 0, 0, 0)
    w1, w2, b1, b2 = (None, None, None, None) if compared else weights
    _check_pair(function, pair, w1, w2, b1, b2, asked["labels"], asked["method"])
    if compared:
        w1, w2, b1, b2 = weights
        columns = stacked_weights.Columns.checked(function, w1, w2, b1, b2, pair._given)
        if (columns.sizes, columns.count, columns.width) != ((pair.d1, pair.d2), pair.labels, pair.width):
            # so much is known without a look at their values
            pair._check(function, w1, w2, b1, b2)
        row_bytes = Columns.of(columns.w1).row_bytes + Columns.of(columns.w2).row_bytes
        cost = Cost(0, columns.count * row_bytes, 0, 0)
    arrays = pair._states(function, asked["h1"], asked["h2"])
    chosen = logit_arguments.choice(function, [OutputHead(arrays["h1"], None, None, None, "")], None, asked["mask"])
    _check_any(chosen.n)
    states, masked = [Columns.of(h) for h in arrays.values()], chosen.mask is not None
    told = plan(chosen.n, pair.labels, pair.d1 + pair.d2, factored=True).why
    shapes = ", ".join(_array(name, h) for name, h in arrays.items())
    counting = f", of which {chosen.n} rows count" if masked else ""
    path = f"{function} <- factor of {pair!r} {shapes}{counting}"
    if is_asked_for(arrays, asked["backend"]):
        why = _on_gpu(function, asked, arrays, "factor.rows")
        where = arguments.gpu_of(arrays["h1"])
        # a factor may be there alone
        panels = logit_costs.panels(pair.labels, pair.width)
        rows = FactorRows(states, panels, pair._biased, masked, asked["precision"], where)
        cost = cost.then(rows.cost(int(arrays["h1"].shape[0]), pair._held.precisions(where or "cpu")))
        return Work(path, "cuda", f"{why}; {rows.told()}; factor: {told}", cost)
    panels = [(len(pair.factor[panel]), used.start, used.stop) for panel, used in pair._panels]
    exact = pair.method != "gram"
    cost = cost.then(logit_costs.by_factor(chosen.n, states, panels, biased=pair._biased, exact=exact, gathered=masked))
    return Work(path, "numpy", f"no kernel runs; factor: {told}", cost)


def _on_gpu(function: str, asked: Asked, arrays: Mapping[str, Array], stem: str) -> str:
    """Return why kernels of a factor run on a GPU."""
    where = arguments.same_device(function, arrays)
    backends.gpu_module(function, asked["backend"], where, stem)
    why = "asked for" if asked["backend"] == "cuda" else f"tensors on {where}"
    return f"{why}, precision {asked['precision']!r}"


def _check_pass(function: str, asked: Asked) -> None:
    """Check what a pass checks before its arrays."""
    arguments.choice(function, "nonfinite", asked["nonfinite"], ("raise", "propagate"))
    arguments.choice(function, "precision", asked["precision"], backends.PRECISIONS)
    arguments.above_zero(function, "temperature", asked["temperature"])
    if asked.get("workspace") is not None:
        arguments.positive(function, "workspace", asked["workspace"])


def _check_any(n: int) -> None:
    if not n:
        raise ValueError("logit_distance: expected at least one row that counts, got none")


def _heads(function: str, asked: Asked, *softcaps: Any) -> list[OutputHead]:
    heads = [
        logit_arguments.head(function, asked[f"h{k}"], asked[f"w{k}"], asked[f"b{k}"], softcap, k)
        for k, softcap in zip("12", softcaps, strict=True)
    ]
    logit_arguments.pair(function, *heads)
    return heads


def _kernel(stem: str, asked: Asked, heads: Sequence[OutputHead], precision: str | None = None) -> backends.Choice:
    precision = asked["precision"] if precision is None else precision
    return backends.resolve(stem, asked["backend"], arrays=_arrays(heads), precision=precision)


def _pass(heads: Sequence[OutputHead], chosen: Choice, backend: str, precision: str) -> Pass:
    """Return the pass over these models, of the labels that count; what all models mask does not."""
    possible = np.logical_or.reduce([of.possible for of in heads])
    labels = int((possible if chosen.labels is None else possible[chosen.labels]).sum())
    models = [Model(Columns.of(of.h), None if of.w is None else Columns.of(of.w)) for of in heads]
    if backend == "cuda":
        indexed = chosen.labels is not None or labels < heads[0].labels
        biased, where = tuple(of.b is not None for of in heads), arguments.gpu_of(heads[0].h)
        return GpuPass(tuple(models), labels, backend, False, None, precision, where, biased, indexed)
    of = Pass(tuple(models), labels, backend)
    if backend == "reference":
        marked = [one._replace(widened=_is_widened(head)) for one, head in zip(models, heads, strict=True)]
        return replace(of, models=tuple(marked))
    if of.in_float64 or backends.core_or_raise("explain").bf16_unit() == "none":
        return of
    marked = [one._replace(on_unit=_takes(head)) for one, head in zip(models, heads, strict=True)]
    return replace(of, models=tuple(marked))


def _with_divergences(of: Pass, asked: Asked) -> Pass:
    return replace(of, divergences=bool(asked["divergences"]), workspace=asked["workspace"])


def _whole(heads: Sequence[OutputHead], chosen: Choice, of: Pass) -> Cost:
    """Return the cost of a pass over all rows that count."""
    if not isinstance(of, GpuPass):
        return _arguments(heads, chosen).then(of.cost(chosen.n))
    rows = 0 if chosen.mask is None else chosen.n
    return of.cost(chosen.n, rows + (0 if chosen.targets is None else len(chosen.targets)))


def _is_widened(head: OutputHead) -> bool:
    """Return whether NumPy has no dtype for the arrays of a model."""
    return arguments.is_torch(head.h) and Columns.of(head.h).dtype == "bfloat16"


def _takes(head: OutputHead) -> bool:
    """Return whether a unit for bfloat16 can read a model: both arrays, rows without gaps."""
    arrays = [head.h, head.w]
    return all(a is not None and Columns.of(a).dtype == "bfloat16" and _without_gaps(a) for a in arrays)


def _without_gaps(x: Array) -> bool:
    if x.shape[1] == 1:
        return True
    return bool(x.stride(1) == 1 if arguments.is_torch(x) else x.strides[1] == x.itemsize)


def _batches(n: int, size: int, mask: NDArray[np.bool_] | None) -> Mapping[int, int]:
    """Return how many batches there are of how many rows that count; those of none are left out."""
    if mask is None:
        return logit_costs.batches(n, size)
    counts = np.add.reduceat(mask.astype(np.int64), np.arange(0, n, size)).tolist()
    return Counter(count for count in counts if count)


def _arguments(heads: Sequence[OutputHead], chosen: Choice, label_bytes: int = 0) -> Cost:
    """Return what biases and choices of rows and labels take, of which copies are held, and so much for each label."""
    held = sum(of.b.nbytes for of in heads if of.b is not None) + label_bytes * heads[0].labels
    held += 0 if chosen.labels is None else 2 * chosen.labels.nbytes
    held += 0 if chosen.mask is None else 8 * chosen.n
    held += 0 if chosen.targets is None else chosen.targets.nbytes + 16 * chosen.n
    return Cost(0, 0, held, 0)


def _arrays(heads: Sequence[OutputHead]) -> dict[str, Array]:
    return {f"{k}{of.number}": a for of in heads for k, a in (("h", of.h), ("w", of.w)) if a is not None}


def _numbers(heads: Sequence[OutputHead]) -> list[str]:
    return [of.number for of in heads]


def _shapes(heads: Sequence[OutputHead]) -> str:
    logits = {f"h{of.number}" for of in heads if of.w is None}
    return ", ".join(_array(f"logits {k}" if k in logits else k, a) for k, a in _arrays(heads).items())


def _array(name: str, a: Array) -> str:
    return f"{name} {tuple(a.shape)} {Columns.of(a).dtype}"


def _counting(heads: Sequence[OutputHead], chosen: Choice, labels: int) -> str:
    """Tell how many rows and labels count, where not all do."""
    rows = [] if chosen.mask is None else [f"{chosen.n} rows"]
    rows += [] if labels == heads[0].labels else [f"{labels} labels"]
    return f", of which {' and '.join(rows)} count" if rows else ""
