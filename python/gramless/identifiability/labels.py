"""What a model says of its labels that no choice of coordinates can change, and what one can: cosines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from .._base import arguments
from .._base import arrays as base_arrays
from .._base.arrays import Array, Float64
from ..measures import identifiability as _measures
from . import model_pair
from .square_roots import (
    BLOCK_ROWS,
    float64_blocks,
    float64_rows,
    mapped_rows,
    power_of_two,
    powers_of_columns,
    root_of_rows,
    scaled,
    scaled_columns,
)

# most labels whose V x V matrix is made without being asked for
MOST_LABELS = 8192
_BLOCK_BYTES = 1 << 25
# of two, of logits whose squares are normal numbers
_LEAST_POWER = -510
# a part of a vector that is smaller than this may be rounding
_ON_A_LINE = 1e-6


def center_unembedding(w: Array) -> Array:
    """Return the unembedding less its mean over labels, which no probability depends on.

    Parameters
    ----------
    w : array of shape (V, d), float16, bfloat16, float32 or float64
        NumPy, torch on the CPU, or anything with DLPack.

    Returns
    -------
    array of shape (V, d)
        A NumPy array or torch tensor as w is, float32 if w has 16 bits, otherwise of its dtype. Its logits are those of
        w less their mean over labels.

    Raises
    ------
    TypeError
        If w is no array, or its dtype is none of the four.
    ValueError
        If w is not 2-d, empty, or not finite.

    Notes
    -----
    Cosines of the result no longer depend on a vector added to all rows. They still depend on the coordinates: under
    (A, A^-T) on embeddings and unembeddings they change and no probability does. See `label_similarity`.

    Examples
    --------
    >>> import numpy as np
    >>> import gramless as gl
    >>> gl.center_unembedding(np.array([[1.0, 5.0], [3.0, 5.0]]))
    array([[-1.,  0.],
           [ 1.,  0.]])
    """
    function = "center_unembedding"
    rows = arguments.rows(function, "w", w)
    mean = _mean(function, rows)
    xp = array_namespace(rows)
    wide = xp.float64 if "float64" in str(rows.dtype) else xp.float32
    made = xp.empty(rows.shape, dtype=wide)
    for start in range(0, int(rows.shape[0]), BLOCK_ROWS):
        block = slice(start, start + BLOCK_ROWS)
        with np.errstate(over="ignore"):
            made[block] = xp.asarray(xp.asarray(rows[block], dtype=xp.float64) - xp.asarray(mean), dtype=wide)
        if not bool(xp.all(xp.isfinite(made[block]))):
            raise ValueError(f"{function}: w less its mean overflows; scale the data down")
    return made


def label_covariance(h: Array, w: Array, labels: Any = None) -> Float64:
    """Return the covariance over inputs of the centred logits of labels a and b: w_a^T Cov(h) w_b, w centred.

    Unlike the cosine or the dot product of unembeddings it does not depend on coordinates: neither a vector added to
    all rows of w or of h nor (A, A^-T) on h and w changes it. It is a function of the predicted probabilities alone.

    Parameters
    ----------
    h : array of shape (N, d), float16, bfloat16, float32 or float64
        Embeddings, at least 2.
    w : array of shape (V, d)
        Unembeddings. Their mean is that of all V labels.
    labels : sequence of m ints, optional
        Labels to compare. Default: all, up to 8192.

    Returns
    -------
    array of shape (m, m)
        float64, symmetric and positive semidefinite up to rounding; by N - 1.

    Raises
    ------
    TypeError
        If an argument is no array, or its dtype is none of the four.
    ValueError
        If shapes do not fit, values are not finite, N < 2, V > 8192 without labels, or covariances overflow or
        underflow.

    Notes
    -----
    About 3 N d^2 + 2 m d^2 + 2 m^2 d flops; one read of h and w, 8 (m^2 + m d + 3 d^2) bytes.

    Examples
    --------
    >>> import numpy as np
    >>> import gramless as gl
    >>> h = np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 4.0], [2.0, 4.0]])
    >>> w = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    >>> gl.label_covariance(h, w + 7).round(6) + 0
    array([[ 1.333333,  0.      , -1.333333],
           [ 0.      ,  5.333333, -5.333333],
           [-1.333333, -5.333333,  6.666667]])
    """
    function = "label_covariance"
    root, centred = _logits(function, h, w, labels)
    powers = power_of_two(root) + powers_of_columns(centred)
    root, centred = scaled(root), scaled_columns(centred)
    columns = root @ centred
    if (columns.any(axis=0) & (powers + powers_of_columns(columns) < _LEAST_POWER)).any():
        raise ValueError(f"{function}: covariances underflow; scale the data up")
    with np.errstate(over="ignore", invalid="ignore"):
        columns = np.ldexp(columns, powers)
        found = np.asarray(columns.T @ columns)
    if not np.isfinite(found).all():
        raise ValueError(f"{function}: covariances overflow; scale the data down")
    return found


def label_similarity(h: Array, w: Array, labels: Any = None) -> Float64:
    """Return the correlation over inputs of the centred logits of labels: the cosine in the metric of Cov(h).

    It is what a cosine of label representations should be: 1 where two labels become likely for the same inputs, -1
    where one becomes likely as the other becomes unlikely, whatever the coordinates of h and w.

    Parameters
    ----------
    h, w, labels
        As in `label_covariance`.

    Returns
    -------
    array of shape (m, m)
        float64, in [-1, 1] and 1 on the diagonal up to rounding.

    Raises
    ------
    TypeError, ValueError
        As in `label_covariance`; also ValueError if the centred logit of a label does not vary.

    Notes
    -----
    Cost as of `label_covariance`.

    Examples
    --------
    >>> import numpy as np
    >>> import gramless as gl
    >>> h = np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 4.0], [2.0, 4.0]])
    >>> w = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    >>> float(gl.label_similarity(h, w, [1, 2])[0, 1].round(6))
    -0.894427
    """
    function = "label_similarity"
    # correlations do not depend on scale
    root, centred = _logits(function, h, w, labels)
    root, centred = scaled(root), scaled_columns(centred)
    columns = root @ centred
    constant = _measures.vanishing(columns, root, centred)
    if constant.any():
        chosen = np.arange(len(constant)) if labels is None else np.asarray(labels)
        raise ValueError(
            f"{function}: the centred logits of labels {model_pair.several(chosen[constant])} do not vary with h"
        )
    columns = scaled_columns(columns)
    columns = columns / np.linalg.norm(columns, axis=0)
    return np.asarray(columns.T @ columns)


def _logits(function: str, h: Any, w: Any, labels: Any) -> tuple[Float64, Float64]:
    """Return the root (k, d) of the covariance of h, and w of labels, centred, as columns (d, m)."""
    arrays = model_pair.model(function, h, w)
    count = int(arrays["w"].shape[0])
    if labels is None and count > MOST_LABELS:
        raise ValueError(f"{function}: expected labels, since V = {count} is above {MOST_LABELS}: V x V would not fit")
    chosen = np.arange(count) if labels is None else model_pair.indices(function, "labels", labels, count)
    if arrays["h"].shape[0] < 2:
        raise ValueError(f"{function}: expected at least 2 rows of h, got 1")
    root = root_of_rows(function, {"h": arrays["h"]}).covariance
    centred = (float64_rows(function, "w", arrays["w"], chosen) - _mean(function, arrays["w"])).T
    return root, centred


def _mean(function: str, w: Array) -> Float64:
    """Return the mean row."""
    total = np.zeros(int(w.shape[1]))
    with np.errstate(over="ignore", invalid="ignore"):
        for _, blocks in float64_blocks(function, {"w": w}):
            total += blocks["w"].sum(axis=0)
    if not np.isfinite(total).all():
        raise ValueError(f"{function}: sums over rows of w overflow; scale the data down")
    return total / int(w.shape[0])


@dataclass(frozen=True)
class CosineAmbiguity:
    """What `gramless.cosine_ambiguity` returns.

    Parameters
    ----------
    cosine : float
        Cosine of the two unembeddings as they are.
    cosines : array of shape (k,)
        Their cosine after each translation.
    translations : array of shape (k, d)
        Vectors to be added to all rows of w.
    probability_change : float or None
        Largest change of a probability, over translations, inputs and labels; None without h.

    Examples
    --------
    >>> import numpy as np
    >>> import gramless as gl
    >>> w = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    >>> found = gl.cosine_ambiguity(w, 0, 1, cosines=[-1, 0.5, 1])
    >>> moved = w + found.translations[1]
    >>> float(round(moved[0] @ moved[1] / np.linalg.norm(moved[0]) / np.linalg.norm(moved[1]), 6))
    0.5
    """

    cosine: float
    cosines: Float64
    translations: Float64
    probability_change: float | None


def cosine_ambiguity(
    w: Array, a: int, b: int, *, cosines: Sequence[float] = (-1.0, 1.0), h: Array | None = None, bias: Any = None
) -> CosineAmbiguity:
    """Show that the cosine of two unembeddings can be any number at all while every probability stays as it is.

    A vector added to all rows of w adds the same number to all logits of an input, which softmax cancels. For each
    cosine asked for there is one that gives it to labels a and b (Nielsen 2026, arXiv:2603.29488, for -1 and 1).

    Parameters
    ----------
    w : array of shape (V, d), float16, bfloat16, float32 or float64
        Unembeddings.
    a, b : int
        Two labels with different unembeddings.
    cosines : sequence of k numbers in [-1, 1]
        What their cosine shall become. Between -1 and 1 it needs d >= 2.
    h : array of shape (N, d), optional
        Embeddings for which probabilities are computed before and after.
    bias : array of shape (V,), optional
        Bias of the logits, for these probabilities.

    Returns
    -------
    CosineAmbiguity
        The translations, the cosines that they give and the largest change of a probability, which is rounding.

    Raises
    ------
    TypeError
        If an argument is no array, or its dtype is none of the four.
    ValueError
        If shapes do not fit, values are not finite, the two unembeddings are equal or one is zero, or d = 1 and a
        cosine is between -1 and 1.

    Notes
    -----
    So a cosine of label representations says nothing of the model unless something fixes the translation, and nothing
    in training by cross-entropy does. Centring (`center_unembedding`) fixes it, but not the coordinates, nor does it
    make angles informative, since lengths decide as well which label wins. What two labels have in common, as the model
    uses them, is `label_similarity`.

    With m the middle of both and s half their distance, v = r u - m with a unit vector u across their difference puts
    them at distance s to both sides of r u, which has cosine (r^2 - s^2) / (r^2 + s^2); for 1, v = -a - (a - b) / 2
    puts both on one ray from the origin. The change of probabilities takes 4 k N V d
    flops in float64 and 16 V d bytes.

    Examples
    --------
    >>> import numpy as np
    >>> import gramless as gl
    >>> w = np.array([[1, 0.5], [0.5, 1], [-1, 0.4], [-0.8, -0.8], [0.9, -1.2]])
    >>> h = np.random.default_rng(0).standard_normal((1000, 2))
    >>> found = gl.cosine_ambiguity(w, 0, 1, h=h)
    >>> round(found.cosine, 6), found.cosines.round(6).tolist()
    (0.8, [-1.0, 1.0])
    >>> found.probability_change < 1e-14
    True
    """
    function = "cosine_ambiguity"
    arrays = {"w": arguments.rows(function, "w", w)} if h is None else model_pair.model(function, h, w)
    count, d = (int(length) for length in arrays["w"].shape)
    labels = [model_pair.index(function, name, value, count) for name, value in (("a", a), ("b", b))]
    read = base_arrays.try_as_numpy(cosines)
    targets = arguments.vector(function, "cosines", cosines, read.size if read is not None and read.size else 1)
    if (abs(targets) > 1).any():
        raise ValueError(f"{function}: expected cosines in [-1, 1], got {targets.tolist()}")
    first, second = float64_rows(function, "w", arrays["w"], np.array(labels))
    if not (first != second).any():
        raise ValueError(f"{function}: labels {a} and {b} have equal unembeddings, whose cosine is 1 whatever is added")
    if not (first.any() and second.any()):
        raise ValueError(f"{function}: the unembedding of label {b if first.any() else a} is zero and has no cosine")
    own = _cosine(first, second)
    # cosines do not depend on scale; a power of two is exact
    size = power_of_two(np.stack([first, second]))
    first, second = np.ldexp(first, -size), np.ldexp(second, -size)
    half = (first - second) / 2
    if d == 1 and (abs(targets) < 1).any():
        raise ValueError(f"{function}: with d = 1 cosines are -1 or 1, got {targets.tolist()}")
    across = _across(half, (first + second) / 2)
    scaled_moves = np.array([_move(first, half, across, cosine) for cosine in targets])
    found = np.array([_cosine(first + move, second + move) for move in scaled_moves])
    with np.errstate(over="ignore"):
        moves = np.ldexp(scaled_moves, size)
    if not np.isfinite(moves).all():
        raise ValueError(f"{function}: translations overflow; scale the data down")
    change = None
    if h is not None:
        shift = np.zeros(count) if bias is None else arguments.vector(function, "bias", bias, count)
        change = max(_largest_change(function, arrays, shift, move) for move in moves)
    return CosineAmbiguity(own, found, moves, change)


def _cosine(a: Float64, b: Float64) -> float:
    a, b = scaled(a), scaled(b)
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def _across(half: Float64, middle: Float64) -> Float64:
    """Return a unit vector across the difference of two points, towards their middle if that is not along it."""
    along = half / np.linalg.norm(half)
    rest = middle - (middle @ along) * along
    if np.linalg.norm(rest) <= _ON_A_LINE * np.linalg.norm(middle):
        # the axis that is farthest from their line
        axis = np.eye(len(half))[abs(along).argmin()]
        rest = axis - (axis @ along) * along
    size = np.linalg.norm(rest)
    # in one dimension nothing is across, and nothing is asked for
    return np.asarray(rest / size if size > 0 else rest)


def _move(first: Float64, half: Float64, across: Float64, cosine: float) -> Float64:
    """Return the translation that gives two points, first and first - 2 half, this cosine."""
    if cosine == 1:
        return -first - half
    return float(np.sqrt((1 + cosine) / (1 - cosine)) * np.linalg.norm(half)) * across - (first - half)


def _largest_change(function: str, arrays: dict[str, Array], bias: Float64, move: Float64) -> float:
    """Return the largest change of a probability if the move is added to all rows of w."""
    w = mapped_rows(function, "w", arrays["w"], lambda rows: rows, len(move))
    largest = 0.0
    for _, blocks in float64_blocks(function, {"h": arrays["h"]}, max(1, _BLOCK_BYTES // (8 * len(w)))):
        with np.errstate(over="ignore", invalid="ignore"):
            logits = [blocks["h"] @ v.T + bias for v in (w, w + move)]
        if not all(np.isfinite(z).all() for z in logits):
            raise ValueError(f"{function}: logits overflow; scale the data down")
        before, after = map(_softmax, logits)
        largest = max(largest, float(abs(before - after).max()))
    return largest


def _softmax(z: Float64) -> Float64:
    z = np.exp(z - z.max(axis=1, keepdims=True))
    z /= z.sum(axis=1, keepdims=True)
    return z
