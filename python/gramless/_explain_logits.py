"""What a call for predictions will run and what that costs, without running it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import _checks, _dispatch, _factors, _logit_checks, _logit_costs
from ._checks import Array
from ._costs import Columns, Cost, readable
from ._logit_checks import Choice, Head
from ._logit_costs import LEAST_KEPT_ROWS, Model, Pass
from ._logits import LogitPairState
from ._row_values import check_state
from .logit_comparison import _check_alone, compare_logits, rows_at_a_time, without_ignored
from .logit_distance import METHODS, _check_pair, logit_distance, plan
from .ops import logit_pairs, logsumexp
from .unembedding import UnembeddingPair

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
    heads = [_logit_checks.head(function, asked["h"], asked["w"], asked["b"], asked["softcap"])]
    chosen = _logit_checks.choice(function, heads, asked["labels"], asked["mask"], asked["targets"])
    kernel = _dispatch.resolve(function, asked["backend"])
    of = _pass(heads, chosen, kernel.backend)
    path = f"{function} <- {function} {_shapes(heads)}{_counting(heads, chosen, of.labels)}"
    cost = _arguments(heads, chosen).then(of.cost(chosen.n))
    return Work(path, kernel.backend, kernel.why + _units(heads, of), cost)


def _of_logit_pairs(asked: Asked) -> Work:
    function = "logit_pairs"
    _check_pass(function, asked)
    heads = _heads(function, asked, asked["softcap1"], asked["softcap2"])
    chosen = _logit_checks.choice(function, heads, asked["labels"], asked["mask"], asked["targets"])
    kernel = _dispatch.resolve(function, asked["backend"])
    of = _with_divergences(_pass(heads, chosen, kernel.backend), asked)
    path = f"{function} <- {function} {_shapes(heads)}{_counting(heads, chosen, of.labels)}"
    why = kernel.why + _units(heads, of) + _second_pass(of, chosen.n)
    return Work(path, kernel.backend, why, _arguments(heads, chosen).then(of.cost(chosen.n)))


def _of_compare_logits(asked: Asked) -> Work:
    function = "compare_logits"
    if asked["h2"] is None:
        raise TypeError(f"{function}: expected h1, w1, h2 and w2, or a LogitPairState, got no h2")
    _dispatch.check_backend(function, asked["backend"], "logit_pairs")
    if asked["batch_rows"] is not None:
        _checks.positive(function, "batch_rows", asked["batch_rows"])
    heads = _heads(function, asked, asked["softcap1"], asked["softcap2"])
    n = int(heads[0].h.shape[0])
    mask = without_ignored(function, asked["mask"], asked["targets"], asked["ignore_index"], n)
    chosen = _logit_checks.choice(function, heads, asked["labels"], mask, asked["targets"])
    if not chosen.n:
        raise ValueError(f"{function}: expected at least one row that counts, got none")
    _check_pass(function, asked)
    kernel = _dispatch.resolve("logit_pairs", asked["backend"])
    of = _with_divergences(_pass(heads, chosen, kernel.backend), asked)
    size = asked["batch_rows"] or rows_at_a_time(heads[0].labels, of.width, sum(one.h.row_bytes for one in of.models))
    counts = _batches(n, size, chosen.mask)
    cut = f"of batches of {size} rows of " if n > size else ""
    path = f"{function} <- logit_pairs {cut}{_shapes(heads)}{_counting(heads, chosen, of.labels)}"
    why = kernel.why + _units(heads, of) + _second_pass(of, max(counts))
    cost = _logit_costs.comparison(counts, of, keep=bool(asked["rows"]))
    return Work(path, kernel.backend, why, _arguments(heads, chosen).then(cost))


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
        _logit_costs.of_state(state.n, keep=bool(asked["rows"])),
    )


def _of_logit_distance(asked: Asked) -> Work:
    function, method = "logit_distance", asked["method"]
    _checks.choice(function, "method", method, METHODS)
    _dispatch.check_backend(function, asked["backend"])
    _checks.above_zero(function, "temperature", asked["temperature"])
    if asked["pair"] is not None:
        return _of_pair(asked)
    given = asked["w1"] is None or asked["w2"] is None
    if method == "factor" and given:
        raise ValueError(f"{function}: method='factor' needs w1 and w2, or a pair")
    heads = _heads(function, asked, None, None)
    chosen = _logit_checks.choice(function, heads, asked["labels"], asked["mask"])
    path, told = "vocabulary", "logits are given"
    if not given:
        count = heads[0].labels if chosen.labels is None else len(chosen.labels)
        planned = plan(chosen.n, count, sum(int(of.h.shape[1]) for of in heads))
        path, told = (planned.path, planned.why) if method == "auto" else (method, f"asked for ({planned.why})")
    return (_by_factor if path == "factor" else _by_vocabulary)(asked, heads, chosen, told)


def _by_factor(asked: Asked, heads: Sequence[Head], chosen: Choice, told: str) -> Work:
    function, masked = "logit_distance", chosen.mask is not None
    w1, w2, b1, b2, labels = (asked[name] for name in ("w1", "w2", "b1", "b2", "labels"))
    columns = _factors.Columns.checked(function, w1, w2, b1, b2, labels)
    _check_any(chosen.n)
    few = columns.count <= columns.width
    kernel = None if few else _dispatch.resolve("moments", asked["backend"])
    weights, biased = [Columns.of(columns.w1), Columns.of(columns.w2)], columns.biases is not None
    cost = _logit_costs.factor(
        columns.count,
        weights,
        "" if kernel is None else kernel.backend,
        biased=biased,
        gathered=columns.index is not None,
    ).then(
        _logit_costs.by_factor(
            chosen.n,
            [Columns.of(of.h) for of in heads],
            _logit_costs.panels(columns.count, columns.width),
            biased=biased,
            exact=few,
            gathered=masked,
        )
    )
    path = f"{function} <- factor by {'rows' if few else 'moments'} {_shapes(heads)}"
    path += _counting(heads, chosen, columns.count)
    # biases of both models, also of the labels that count, and these labels
    extra = 40 if biased else 8 if columns.given is not None else 0
    cost = _arguments(heads, chosen, extra).then(cost)
    if kernel is None:
        return Work(path, "numpy", f"no more labels than columns, no kernel runs; factor: {told}", cost)
    twice = "three times its flops and two reads of w1 and w2 if second moments would lose too many digits"
    return Work(path, kernel.backend, f"{kernel.why}; factor: {told}; {twice}", cost)


def _by_vocabulary(asked: Asked, heads: Sequence[Head], chosen: Choice, told: str) -> Work:
    function = "logit_distance"
    if any(of.b is not None for of in heads):
        b1, b2 = (np.zeros(of.labels) if of.b is None else of.b for of in heads)
        _factors.unmasked(function, b1, b2, chosen.labels)
    _check_any(chosen.n)
    kernel = _dispatch.resolve("logit_pairs", asked["backend"])
    of = _pass(heads, chosen, kernel.backend)
    path = f"{function} <- vocabulary by logit_pairs in float64 {_shapes(heads)}{_counting(heads, chosen, of.labels)}"
    # biases of both models, and of the labels that count
    extra = 24 if any(of.b is not None for of in heads) else 0
    cost = _arguments(heads, chosen, extra).then(_logit_costs.by_vocabulary(chosen.n, of))
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
        columns = _factors.Columns.checked(function, w1, w2, b1, b2, pair._given)
        if (columns.sizes, columns.count, columns.width) != ((pair.d1, pair.d2), pair.labels, pair.width):
            # so much is known without a look at their values
            pair._check(function, w1, w2, b1, b2)
        row_bytes = Columns.of(columns.w1).row_bytes + Columns.of(columns.w2).row_bytes
        cost = Cost(0, columns.count * row_bytes, 0, 0)
    arrays = _states(function, asked, pair)
    chosen = _logit_checks.choice(function, [Head(arrays["h1"], None, None, None, "")], None, asked["mask"])
    _check_any(chosen.n)
    used = [pair.factor[panel].shape for panel in pair._panels]
    cost = cost.then(
        _logit_costs.by_factor(
            chosen.n,
            [Columns.of(h) for h in arrays.values()],
            used,
            biased=pair._biased,
            exact=pair.method != "gram",
            gathered=chosen.mask is not None,
        )
    )
    told = plan(chosen.n, pair.labels, pair.d1 + pair.d2, factored=True).why
    shapes = ", ".join(_array(name, h) for name, h in arrays.items())
    counting = "" if chosen.mask is None else f", of which {chosen.n} rows count"
    path = f"{function} <- factor of {pair!r} {shapes}{counting}"
    return Work(path, "numpy", f"no kernel runs; factor: {told}", cost)


def _states(function: str, asked: Asked, pair: UnembeddingPair) -> dict[str, Array]:
    """Return hidden states of the sizes of a pair."""
    arrays = {name: _checks.rows(function, name, asked[name], allow_empty=True) for name in ("h1", "h2")}
    _checks.same_rows(function, arrays)
    for (name, h), size in zip(arrays.items(), (pair.d1, pair.d2), strict=True):
        if int(h.shape[1]) != size:
            width = f"the hidden size {size} of its unembedding"
            raise ValueError(f"{function}: expected {name} with {width}, got shape {tuple(h.shape)}")
    return arrays


def _check_pass(function: str, asked: Asked) -> None:
    """Check what a pass checks before its arrays."""
    _checks.choice(function, "nonfinite", asked["nonfinite"], ("raise", "propagate"))
    _checks.above_zero(function, "temperature", asked["temperature"])
    if asked.get("workspace") is not None:
        _checks.positive(function, "workspace", asked["workspace"])


def _check_any(n: int) -> None:
    if not n:
        raise ValueError("logit_distance: expected at least one row that counts, got none")


def _heads(function: str, asked: Asked, *softcaps: Any) -> list[Head]:
    heads = [
        _logit_checks.head(function, asked[f"h{k}"], asked[f"w{k}"], asked[f"b{k}"], softcap, k)
        for k, softcap in zip("12", softcaps, strict=True)
    ]
    _logit_checks.pair(function, *heads)
    return heads


def _pass(heads: Sequence[Head], chosen: Choice, backend: str) -> Pass:
    """Return the pass over these models, of the labels that count; what all models mask does not."""
    possible = np.logical_or.reduce([of.possible for of in heads])
    labels = int((possible if chosen.labels is None else possible[chosen.labels]).sum())
    models = [Model(Columns.of(of.h), None if of.w is None else Columns.of(of.w)) for of in heads]
    of = Pass(tuple(models), labels, backend)
    if backend == "reference":
        marked = [one._replace(widened=_is_widened(head)) for one, head in zip(models, heads, strict=True)]
        return replace(of, models=tuple(marked))
    if of.in_float64 or _unit() == "none":
        return of
    marked = [one._replace(on_unit=_takes(head)) for one, head in zip(models, heads, strict=True)]
    return replace(of, models=tuple(marked))


def _with_divergences(of: Pass, asked: Asked) -> Pass:
    return replace(of, divergences=bool(asked["divergences"]), workspace=asked["workspace"])


def _unit() -> str:
    return str(_dispatch.core_or_raise("explain").bf16_unit())


def _is_widened(head: Head) -> bool:
    """Return whether NumPy has no dtype for the arrays of a model."""
    return _checks.is_torch(head.h) and Columns.of(head.h).dtype == "bfloat16"


def _takes(head: Head) -> bool:
    """Return whether a unit for bfloat16 can read a model: both arrays, rows without gaps."""
    arrays = [head.h, head.w]
    return all(a is not None and Columns.of(a).dtype == "bfloat16" and _without_gaps(a) for a in arrays)


def _without_gaps(x: Array) -> bool:
    if x.shape[1] == 1:
        return True
    return bool(x.stride(1) == 1 if _checks.is_torch(x) else x.strides[1] == x.itemsize)


def _units(heads: Sequence[Head], of: Pass) -> str:
    """Tell how models in bfloat16 are multiplied."""
    if of.backend == "reference":
        return ""
    told, wide = "", "float64" if of.in_float64 else "float32"
    for head, one in zip(heads, of.models, strict=True):
        if one.w is not None and one.h.dtype == one.w.dtype == "bfloat16":
            how = f"multiplied by {_unit()}" if one.on_unit else f"widened to {wide}"
            told += f"; bfloat16 of h{head.number} and w{head.number} is {how}"
    return told


def _second_pass(of: Pass, n: int) -> str:
    """Tell where divergences take their logits from."""
    if not (n and of.divergences) or of.backend == "reference":
        return ""
    if of.kept(n):
        return f"; logits of {of.kept(n)} rows at a time are kept for js and tv"
    holds = f"{readable(of.limit)} holds those of {of.held(n)} rows, fewer than {min(n, LEAST_KEPT_ROWS)}"
    return f"; logits are computed twice, for js and tv: a workspace of {holds}"


def _batches(n: int, size: int, mask: NDArray[np.bool_] | None) -> Mapping[int, int]:
    """Return how many batches there are of how many rows that count; those of none are left out."""
    if mask is None:
        return _logit_costs.batches(n, size)
    counts = np.add.reduceat(mask.astype(np.int64), np.arange(0, n, size)).tolist()
    return Counter(count for count in counts if count)


def _arguments(heads: Sequence[Head], chosen: Choice, label_bytes: int = 0) -> Cost:
    """Return what biases and choices of rows and labels take, of which copies are held, and so much for each label."""
    held = sum(of.b.nbytes for of in heads if of.b is not None) + label_bytes * heads[0].labels
    held += 0 if chosen.labels is None else 2 * chosen.labels.nbytes
    held += 0 if chosen.mask is None else 8 * chosen.n
    held += 0 if chosen.targets is None else chosen.targets.nbytes + 16 * chosen.n
    return Cost(0, 0, held, 0)


def _shapes(heads: Sequence[Head]) -> str:
    arrays = {f"{letter}{of.number}": a for of in heads for letter, a in (("h", of.h), ("w", of.w))}
    logits = {f"h{of.number}" for of in heads if of.w is None}
    return ", ".join(_array(f"logits {k}" if k in logits else k, a) for k, a in arrays.items() if a is not None)


def _array(name: str, a: Array) -> str:
    return f"{name} {tuple(a.shape)} {Columns.of(a).dtype}"


def _counting(heads: Sequence[Head], chosen: Choice, labels: int) -> str:
    """Tell how many rows and labels count, where not all do."""
    rows = [] if chosen.mask is None else [f"{chosen.n} rows"]
    rows += [] if labels == heads[0].labels else [f"{labels} labels"]
    return f", of which {' and '.join(rows)} count" if rows else ""
