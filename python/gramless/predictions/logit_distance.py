"""Logit distance: how far apart the predictions of two models are, whatever the size of the vocabulary.

d^2 is the mean over rows of sum_y (z1_y - z2_y - mean)^2, the squared distance of label-centred logits: a metric
between the models (Nielsen et al. 2026, arXiv:2602.15438). Neither a common shift of the logits of a row nor one of all
rows of an unembedding changes it.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from .. import ops
from .._base import arguments
from .._base.arrays import Array, Float64
from .._base.gpu_arrays import is_asked_for
from ..ops import logit_arguments
from ..ops.backends import PRECISIONS, check_backend
from ..ops.logit_arguments import Choice, OutputHead
from .stacked_weights import unmasked
from .unembedding_pair import UnembeddingPair

METHODS = ("auto", "factor", "vocabulary")
# bytes of hidden states that are held in float64, and the fewest rows of them
_BLOCK_BYTES = 1 << 24
_LEAST_ROWS = 16


class Plan(NamedTuple):
    """Which way a logit distance is computed, and its flops."""

    path: str
    flops: int
    why: str


def plan(n: int, labels: int, width: int, *, factored: bool = False) -> Plan:
    """Choose between a factor of the unembeddings and the logits themselves, both in float64, by their flops.

    A factor takes (N + V) D^2, the logits 2 N V D, for N rows, V labels and D = d1 + d2 columns: the factor wins if
    N V / (N + V) > D / 2.

    Parameters
    ----------
    n, labels, width : int
        N, V and D.
    factored : bool
        Whether there is a factor already.

    Examples
    --------
    >>> from gramless.predictions.logit_distance import plan
    >>> plan(50_000, 128_256, 8192).path, plan(1000, 128_256, 8192).path
    ('factor', 'vocabulary')
    """
    once = 0 if factored else labels * width**2
    factor, direct = once + n * width**2, 2 * n * labels * width
    told = f"factor {factor:.3g} flops, vocabulary {direct:.3g}"
    if factored:
        return Plan("factor", factor, f"the factor is there; {told}")
    return Plan("factor", factor, told) if factor < direct else Plan("vocabulary", direct, told)


@overload
def logit_distance(
    h1: Array,
    w1: Array | None,
    h2: Array,
    w2: Array | None,
    *,
    b1: Array | None = None,
    b2: Array | None = None,
    labels: Any = None,
    mask: Any = None,
    temperature: float = 1.0,
    pair: UnembeddingPair | None = None,
    rows: Literal[False] = False,
    method: str = "auto",
    precision: str = "high",
    backend: str = "auto",
) -> float: ...
@overload
def logit_distance(
    h1: Array,
    w1: Array | None,
    h2: Array,
    w2: Array | None,
    *,
    b1: Array | None = None,
    b2: Array | None = None,
    labels: Any = None,
    mask: Any = None,
    temperature: float = 1.0,
    pair: UnembeddingPair | None = None,
    rows: Literal[True],
    method: str = "auto",
    precision: str = "high",
    backend: str = "auto",
) -> Float64: ...
def logit_distance(
    h1: Array,
    w1: Array | None,
    h2: Array,
    w2: Array | None,
    *,
    b1: Array | None = None,
    b2: Array | None = None,
    labels: Any = None,
    mask: Any = None,
    temperature: float = 1.0,
    pair: UnembeddingPair | None = None,
    rows: bool = False,
    method: str = "auto",
    precision: str = "high",
    backend: str = "auto",
) -> float | Float64:
    """Distance between the logits of two models, centred over the labels: the root of its mean square over rows.

    Parameters
    ----------
    h1, h2 : array of shape (N, d1) and (N, d2), float16, bfloat16, float32 or float64
        Hidden states of the same rows. Without w1 and w2, and without a pair, the logits (N, V).
    w1, w2 : array of shape (V, d1) and (V, d2), or None
        Unembeddings of the same labels. With a pair they may be None; if given, they must be its own.
    b1, b2 : array of shape (V,), optional
        Biases. Labels masked in both models (-inf) are left out.
    labels : int array of shape (labels,), optional
        The labels to compare. Default: all, or those of the pair.
    mask : bool array of shape (N,), optional
        Rows that count. Default: all.
    temperature : float
        Divides all logits, above 0.
    pair : UnembeddingPair, optional
        The factor of the unembeddings, computed before.
    rows : bool
        Return the distance of each row that counts.
    method : {"auto", "factor", "vocabulary"}
        With a factor of the unembeddings, V D^2 flops once and N D^2 flops, D = d1 + d2; or with logits, 2 N V D flops.
        "auto" takes the factor with a pair, or if N V / (N + V) > D / 2.
    precision : {"fast", "high", "exact"}
        Of products with a factor on a GPU, as in `UnembeddingPair.squared_distances`; data in float64 are always
        "exact". Logits themselves are always in float64, as differences of logits have fewer digits than these.
    backend : {"auto", "reference", "cpu", "cuda"}
        Of the kernels. A named backend never falls back to another.

    Returns
    -------
    float or float64 array of shape (N',)
        At least 0, in units of logits; it grows as the root of the number of labels.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        If shapes or dtypes do not fit, values are not finite, a label is masked in one model only, no row counts, or
        the pair is of other weights.

    Warns
    -----
    RuntimeWarning
        As `UnembeddingPair.squared_distances`.

    Notes
    -----
    All arithmetic is in float64, whatever the dtypes, but for products of rows with a factor on a GPU. Peak extra
    bytes: those of `UnembeddingPair`, and of its rows; from the logits themselves those of `logit_pairs`.

    Examples
    --------
    >>> import numpy as np
    >>> import gramless as gl
    >>> rng = np.random.default_rng(0)
    >>> h1, h2 = rng.standard_normal((100, 8)), rng.standard_normal((100, 6))
    >>> w1, w2 = rng.standard_normal((500, 8)), rng.standard_normal((500, 6))
    >>> round(gl.logit_distance(h1, w1, h2, w2), 2)
    83.23
    >>> gl.logit_distance(h1, w1, h1, w1)
    0.0
    """
    function = "logit_distance"
    arguments.choice(function, "method", method, METHODS)
    arguments.choice(function, "precision", precision, PRECISIONS)
    check_backend(function, backend)
    heat = arguments.above_zero(function, "temperature", temperature)
    if pair is not None:
        _check_pair(function, pair, w1, w2, b1, b2, labels, method)
        squares = pair._distances(function, h1, h2, mask, precision, backend)
    else:
        if method == "factor" and (w1 is None or w2 is None):
            raise ValueError(f"{function}: method='factor' needs w1 and w2, or a pair")
        first, second = (
            logit_arguments.head(function, h, w, b, None, number)
            for h, w, b, number in ((h1, w1, b1, "1"), (h2, w2, b2, "2"))
        )
        logit_arguments.pair(function, first, second)
        chosen = logit_arguments.choice(function, [first, second], labels, mask)
        if w1 is None or w2 is None:
            path = "vocabulary"
        else:
            count = first.labels if chosen.labels is None else len(chosen.labels)
            path = plan(chosen.n, count, int(w1.shape[1]) + int(w2.shape[1])).path if method == "auto" else method
        arrays = logit_arguments.arrays_by_name(first, second)
        arguments.same_device(function, arrays)
        if path == "factor":
            made = UnembeddingPair._of(function, w1, w2, b1, b2, labels, backend)
            in_float64 = any("float64" in str(array.dtype) for array in arrays.values())
            squares = made._distances(function, h1, h2, mask, "exact" if in_float64 else precision, backend)
        elif is_asked_for(arrays, backend):
            squares = _by_vocabulary_on_gpu(function, first, second, chosen, backend)
        else:
            squares = _by_vocabulary(function, first, second, chosen, backend)
    if not len(squares):
        raise ValueError(f"{function}: expected at least one row that counts, got none")
    with np.errstate(over="ignore"):
        found = np.sqrt(squares) / heat
    if not np.isfinite(found).all():
        raise ValueError(f"{function}: logits overflow although the input is finite; scale it down")
    return found if rows else math.sqrt(float(squares.mean())) / heat


def _check_pair(function: str, pair: Any, w1: Any, w2: Any, b1: Any, b2: Any, labels: Any, method: str) -> None:
    if not isinstance(pair, UnembeddingPair):
        raise TypeError(f"{function}: expected pair to be an UnembeddingPair, got {type(pair).__name__}")
    if method == "vocabulary":
        raise ValueError(f"{function}: method='vocabulary' takes no pair")
    if labels is not None:
        raise ValueError(f"{function}: labels are those of the pair; make an UnembeddingPair with labels=")
    if (w1 is None) != (w2 is None) or (w1 is None and (b1 is not None or b2 is not None)):
        raise ValueError(f"{function}: with a pair, give w1 and w2 with their biases, or none of them")
    if w1 is not None:
        pair._check(function, w1, w2, b1, b2)


def _by_vocabulary_on_gpu(
    function: str, first: OutputHead, second: OutputHead, chosen: Choice, backend: str
) -> Float64:
    """Return the squared distances from the logits themselves, which the kernel takes in float64 as they are given."""
    _refuse_masked_in_one(function, first, second, chosen)
    try:
        state = ops.logit_pairs(
            first.h,
            first.w,
            second.h,
            second.w,
            b1=first.b,
            b2=second.b,
            labels=chosen.labels,
            mask=chosen.mask,
            precision="exact",
            backend=backend,
        )
    except ValueError as error:
        raise ValueError(str(error).replace("logit_pairs", function, 1)) from None
    kept = np.arange(int(first.h.shape[0])) if chosen.mask is None else np.flatnonzero(chosen.mask)
    return _finite(function, state.delta_square, kept)


def _refuse_masked_in_one(function: str, first: OutputHead, second: OutputHead, chosen: Choice) -> None:
    if first.b is not None or second.b is not None:
        b1, b2 = (np.zeros(of.labels) if of.b is None else of.b for of in (first, second))
        unmasked(function, b1, b2, chosen.labels)


def _finite(function: str, squares: Float64, rows: NDArray[np.int64]) -> Float64:
    """Return squared distances of numbered rows, all of which are finite."""
    if not np.isfinite(squares).all():
        row = int(rows[np.argmin(np.isfinite(squares))])
        raise ValueError(
            f"{function}: the distance of row {row} is infinite: a label is masked (-inf) in one model only, or logits "
            "overflow"
        )
    return squares


def _by_vocabulary(function: str, first: OutputHead, second: OutputHead, chosen: Choice, backend: str) -> Float64:
    """Return the squared distances from the logits themselves, tile by tile, in float64."""
    _refuse_masked_in_one(function, first, second, chosen)
    n = int(first.h.shape[0])
    kept = np.arange(n) if chosen.mask is None else np.flatnonzero(chosen.mask)
    squares = np.empty(len(kept))
    size = max(_LEAST_ROWS, _BLOCK_BYTES // (8 * int(first.h.shape[1])))
    for start in range(0, len(kept), size):
        rows = kept[start : start + size]
        h1, h2 = first.h[rows], second.h[rows]
        try:
            state = ops.logit_pairs(
                # one array in float64 takes all arithmetic there
                arguments.to_numpy(h1).astype(np.float64),
                first.w,
                h2,
                second.w,
                b1=first.b,
                b2=second.b,
                labels=chosen.labels,
                backend=backend,
            )
        except ValueError as error:
            text = str(error).replace("logit_pairs", function, 1)
            # logits may be -inf
            states = {of.number: h for of, h in ((first, h1), (second, h2)) if of.w is not None}
            named = arguments.nonfinite_row(function, {f"h{number}": h for number, h in states.items()}, rows)
            raise named or ValueError(text) from None
        squares[start : start + size] = state.delta_square
    return _finite(function, squares, kept)
