"""mSVD and d_SVD: mean singular values of how one model's representations follow from the other's."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._base import arguments
from .._base.arrays import Array, Float64
from ..measures import identifiability as _measures
from . import model_pair
from .d_llv import LogLikelihoodDistance
from .model_pair import Indices
from .square_roots import float64_rows, root_of_rows, scaled, scaled_columns


def msvd(h1: Array, w1: Array, h2: Array, w2: Array, *, rows: Any) -> float:
    """Return mSVD, how nearly a rotation relates what two models say of some labels, each scaled to variance 1.

    With L_k the rows w_k[rows[1:]] - w_k[rows[0]], it is the nuclear norm of the matrix of correlations between L_1 h1
    and L_2 h2 over inputs, divided by its size M (Nielsen et al. 2025, arXiv:2506.03784). For unembeddings exchange the
    roles: `msvd(w1, h1, w2, h2, rows=inputs)`.

    Parameters
    ----------
    h1, h2 : array of shape (n, d1) and (n, d2), float16, bfloat16, float32 or float64
        What varies: embeddings of n inputs.
    w1, w2 : array of shape (m, d1) and (m, d2)
        What it is seen through: unembeddings of m labels.
    rows : sequence of M + 1 ints
        Rows of w1 and w2, the pivot first.

    Returns
    -------
    float
        In [0, 1] up to rounding. It does not change if one vector is added to all rows of h or of w, or under
        (A, A^-T) on h and w.

    Raises
    ------
    TypeError
        If an argument is no array, or its dtype is none of the four.
    ValueError
        If shapes do not fit, values are not finite, or a row of L h does not vary, as where two labels are equal.

    Notes
    -----
    About 3 n (d1 + d2)^2 flops, one read of h1 and h2.

    Examples
    --------
    >>> import numpy as np
    >>> import gramless as gl
    >>> rng = np.random.default_rng(0)
    >>> h, w = rng.standard_normal((100, 2)), rng.standard_normal((6, 2))
    >>> a = rng.standard_normal((2, 2))
    >>> round(gl.msvd(h, w, h @ a.T, w @ np.linalg.inv(a) + 1, rows=[5, 0, 3]), 6)
    1.0
    >>> round(gl.msvd(w, h, w[::-1], h, rows=[50, 1, 2]), 6)
    0.796051
    """
    function = "msvd"
    arrays = model_pair.pair(function, h1, w1, h2, w2)
    chosen = model_pair.indices(function, "rows", rows, int(arrays["w1"].shape[0]), 2)
    sides = _sides(function, arrays, "h")
    columns, undefined = _coordinates(function, arrays, "w", sides, chosen)
    if undefined.any():
        raise ValueError(
            f"{function}: the differences of rows {model_pair.several(chosen[1:][undefined])} of w1 or w2 from row "
            f"{chosen[0]} do not vary with h"
        )
    return _measures.mean_singular_value(*columns)


@dataclass(frozen=True)
class SVDDissimilarity:
    """What `gramless.d_svd` returns.

    Parameters
    ----------
    value : float
        The larger of embeddings and unembeddings.
    embeddings : float
        The largest 1 - mSVD over label sets.
    unembeddings : float
        1 - mSVD of the unembeddings for the inputs.
    labels : tuple of ints
        The label set with the largest 1 - mSVD, without the pivot.
    n_sets : int
        Label sets whose mSVD was computed.
    singular : int
        Label sets without mSVD, since a label has the logits of the pivot; not among n_sets.
    exhaustive : bool
        Whether these are all label sets.

    Examples
    --------
    >>> import numpy as np
    >>> import gramless as gl
    >>> h, w = np.random.default_rng(0).standard_normal((2, 20, 2))
    >>> gl.d_svd(h, w, h, w, pivot=0, leave_out=1, inputs=[0, 1, 2]).n_sets
    153
    """

    value: float
    embeddings: float
    unembeddings: float
    labels: tuple[int, ...]
    n_sets: int
    singular: int
    exhaustive: bool


def d_svd(
    h1: Array,
    w1: Array,
    h2: Array,
    w2: Array,
    distance: LogLikelihoodDistance | None = None,
    *,
    pivot: int | None = None,
    leave_out: int | None = None,
    inputs: Any = None,
    n_sets: int = 1000,
    seed: int = 0,
) -> SVDDissimilarity:
    """Return d_SVD, the dissimilarity of representations that `gramless.d_llv` bounds: 1 - mSVD at its worst.

    Over sets of d labels other than the pivot and the label left out, and over unembeddings seen through one set of
    inputs (d_{f,g} of Nielsen et al. 2025, arXiv:2506.03784). It is at most 2 e^2, with e the larger of the first two
    terms of d_llv for the same pivot, label and inputs: `gramless.bounds.d_svd_from_d_llv`.

    Parameters
    ----------
    h1, h2 : array of shape (N, d), float16, bfloat16, float32 or float64
        Embeddings of the same inputs.
    w1, w2 : array of shape (V, d)
        Unembeddings of the same labels.
    distance : LogLikelihoodDistance, optional
        Result of `gramless.d_llv` for the same models. It gives pivot, leave_out and inputs.
    pivot, leave_out : int, optional
        Labels. Give them, with inputs, in place of a distance.
    inputs : sequence of ints, optional
        Inputs, the pivot first.
    n_sets : int
        If there are more label sets than this, as many random ones are taken, which can only miss the worst.
    seed : int
        Of these.

    Returns
    -------
    SVDDissimilarity
        .value in [0, 1] up to rounding, and its parts.

    Raises
    ------
    TypeError
        If an argument is no array, or its dtype is none of the four.
    ValueError
        If shapes do not fit, values are not finite, hidden sizes differ, V < d + 2, or no label set has an mSVD.

    Notes
    -----
    About 12 N d^2 + 12 V d^2 + 30 n_sets d^3 flops.

    Examples
    --------
    >>> import numpy as np
    >>> import gramless as gl
    >>> rng = np.random.default_rng(0)
    >>> h, w = rng.standard_normal((100, 2)), rng.standard_normal((6, 2))
    >>> far = gl.d_llv(h, w, h + 0.1, w[::-1])
    >>> worst = gl.d_svd(h, w, h + 0.1, w[::-1], far)
    >>> round(worst.value, 6), worst.exhaustive
    (0.575993, True)
    """
    function = "d_svd"
    if distance is not None:
        if not isinstance(distance, LogLikelihoodDistance):
            raise TypeError(f"{function}: expected the result of d_llv, got {type(distance).__name__}")
        if (pivot, leave_out, inputs) != (None, None, None):
            raise ValueError(f"{function}: the result of d_llv gives pivot, leave_out and inputs, give none of them")
        pivot, leave_out, inputs = distance.pivot, distance.leave_out, distance.inputs
    missing = [
        name for name, value in (("pivot", pivot), ("leave_out", leave_out), ("inputs", inputs)) if value is None
    ]
    if missing:
        raise TypeError(f"{function}: expected the result of d_llv, or {', '.join(missing)} as well")
    arrays = model_pair.pair(function, h1, w1, h2, w2)
    d = model_pair.same_size(function, arrays, "label sets of size d need one d")
    labels = int(arrays["w1"].shape[0])
    pivot, leave_out = (
        model_pair.index(function, n, i, labels) for n, i in (("pivot", pivot), ("leave_out", leave_out))
    )
    chosen = model_pair.indices(function, "inputs", inputs, int(arrays["h1"].shape[0]), 2)
    arguments.positive(function, "n_sets", n_sets)
    others = np.setdiff1d(np.arange(labels), [pivot, leave_out])
    if len(others) < d:
        raise ValueError(f"{function}: expected at least d + 2 = {d + 2} labels, got V = {labels}")
    columns, undefined = _coordinates(
        function, arrays, "w", _sides(function, arrays, "h"), np.concatenate([[pivot], others])
    )
    exhaustive = math.comb(len(others), d) <= n_sets
    worst, found, computed, singular = -math.inf, (), 0, 0
    for label_set in _label_sets(len(others), d, None if exhaustive else n_sets, arguments.seed(function, seed)):
        if undefined[label_set].any():
            singular += 1
            continue
        computed += 1
        value = 1 - _measures.mean_singular_value(*(a[:, label_set] for a in columns))
        if value > worst:
            worst, found = value, tuple(others[label_set].tolist())
    if not computed:
        raise ValueError(f"{function}: each of {singular} label sets has a label with the logits of the pivot {pivot}")
    unembeddings, undefined = _coordinates(function, arrays, "h", _sides(function, arrays, "w"), chosen)
    if undefined.any():
        raise ValueError(
            f"{function}: inputs {model_pair.several(chosen[1:][undefined])} have the logits of input {chosen[0]}"
        )
    other = 1 - _measures.mean_singular_value(*unembeddings)
    return SVDDissimilarity(max(worst, other), worst, other, found, computed, singular, exhaustive)


def _label_sets(count: int, size: int, draws: int | None, seed: int) -> Iterator[Indices]:
    """Yield all sets of this size, or random ones."""
    if draws is None:
        yield from (np.array(chosen) for chosen in combinations(range(count), size))
        return
    rng = np.random.default_rng(seed)
    for _ in range(draws):
        yield rng.choice(count, size, replace=False)


def _sides(function: str, arrays: dict[str, Array], name: str) -> tuple[Float64, Float64]:
    """Return the roots of the covariance of both models' h (or w), in one basis."""
    two = {f"{name}{i}": arrays[f"{name}{i}"] for i in (1, 2)}
    if next(iter(two.values())).shape[0] < 2:
        raise ValueError(f"{function}: expected at least 2 rows of {' and '.join(two)}, got 1")
    root = root_of_rows(function, two)
    width = int(two[f"{name}1"].shape[1])
    # correlations do not depend on scale
    return scaled(root.covariance[:, :width]), scaled(root.covariance[:, width:])


def _coordinates(
    function: str, arrays: dict[str, Array], name: str, sides: tuple[Float64, Float64], rows: Indices
) -> tuple[list[Float64], NDArray[np.bool_]]:
    """Return for both models the differences of rows from the first, seen in their roots (k, M), and which vanish."""
    made, undefined = [], np.zeros(len(rows) - 1, bool)
    for side, suffix in zip(sides, "12", strict=True):
        chosen = scaled(float64_rows(function, f"{name}{suffix}", arrays[f"{name}{suffix}"], rows))
        differences = scaled_columns((chosen[1:] - chosen[0]).T)
        made.append(side @ differences)
        undefined |= _measures.vanishing(made[-1], side, differences)
    return made, undefined
