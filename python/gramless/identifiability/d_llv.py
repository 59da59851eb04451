"""d_LLV: how far the log-likelihoods of two models are from each other where their scale does not count."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import ops
from .._base import arguments
from .._base.arrays import Array, Float64
from ..measures import identifiability as _measures
from . import model_pair
from .model_pair import Indices
from .pivot_search import Labels, search
from .square_roots import float64_blocks, float64_rows, power_of_two, root_of_rows

# sets of inputs to choose from, if there are inputs enough
INPUT_SETS = 100
# of two, of logits whose fourth powers neither overflow nor underflow
_MOST_POWER = 250


@dataclass(frozen=True)
class LogLikelihoodDistance:
    """What `gramless.d_llv` returns.

    Parameters
    ----------
    value : float
        The distance.
    terms : tuple of 4 floats
        Over inputs, over labels, and the differences of scale over inputs and over labels, not yet weighted.
    pivot, leave_out : int
        Label that the others are compared with, and label that does not count.
    inputs : tuple of ints
        Inputs of the second and fourth term, the pivot first.
    n_inputs : int
        Sets of inputs that these were chosen from; 0 if they were given.
    reduction, combine, weight, seed
        As asked for.

    Examples
    --------
    >>> import numpy as np
    >>> import gramless as gl
    >>> h, w = np.random.default_rng(0).standard_normal((2, 30, 2))
    >>> found = gl.d_llv(h, w, 2 * h, w)
    >>> found.value == max(found.terms[0], found.terms[1], 1e-5 * found.terms[2], 1e-5 * found.terms[3])
    True
    >>> len(found.inputs), found.n_inputs
    (3, 10)
    """

    value: float
    terms: tuple[float, float, float, float]
    pivot: int
    leave_out: int
    inputs: tuple[int, ...]
    n_inputs: int
    reduction: str
    combine: str
    weight: float
    seed: int

    def __str__(self) -> str:
        first, second, third, fourth = self.terms
        shown = ", ".join(map(str, self.inputs[:6])) + (", ..." if len(self.inputs) > 6 else "")
        sets = f"the best of {self.n_inputs} sets" if self.n_inputs else "given"
        return "\n".join(
            (
                f"d_LLV {self.value:.6g} ({self.combine} of four terms)",
                f"  variance over inputs {first:.6g}, over labels {second:.6g}",
                f"  scale over inputs {third:.6g}, over labels {fourth:.6g}, each times {self.weight:g}",
                f"  pivot label {self.pivot}, label left out {self.leave_out}",
                f"  inputs {shown} ({sets})",
            )
        )


def d_llv(
    h1: Array,
    w1: Array,
    h2: Array,
    w2: Array,
    *,
    b1: Any = None,
    b2: Any = None,
    pivot: int | None = None,
    leave_out: int | None = None,
    inputs: Any = None,
    n_inputs: int | None = None,
    reduction: str = "max",
    combine: str = "max",
    weight: float = 1e-5,
    seed: int = 0,
) -> LogLikelihoodDistance:
    """Return d_LLV, the log-likelihood variance distance of two models p(y|x) = softmax(h w^T + b).

    Where it is small, representations are related by nearly a linear map: `gramless.d_svd`, 1 - mSVD at its worst, is
    at most 2 e^2 with e the larger of its first two terms. The KL divergence says no such thing: it can tend to 0 while
    d_LLV stays where it is (Nielsen et al. 2025, arXiv:2506.03784).

    With psi_k(y) = SD_x[ln p_k(y|x) - ln p_k(y0|x)] for a pivot label y0, and phi_k(j) = SD_y[ln p_k(y|x_j) -
    ln p_k(y|x_0)] for a pivot input x_0, SD by n - 1, the terms are

    1. the largest SD_x[ln p_1(u|x) / psi_1(y) - ln p_2(u|x) / psi_2(y)] over labels y and u in {y, y0},
    2. the largest SD_y[ln p_1(y|u) / phi_1(j) - ln p_2(y|u) / phi_2(j)] over inputs x_j and u in {x_j, x_0},
    3. the largest |psi_1(y) - psi_2(y)|, and 4. the largest |phi_1(j) - phi_2(j)|.

    Labels y are all but y0 and one that is left out. Both of these are chosen to make the first term smallest, by going
    through all V (V - 1) of them; d inputs x_j and x_0 are the best for the second term of some random sets.

    Parameters
    ----------
    h1, h2 : array of shape (N, d1) and (N, d2), float16, bfloat16, float32 or float64
        Embeddings of the same inputs.
    w1, w2 : array of shape (V, d1) and (V, d2)
        Unembeddings of the same labels, at least 3.
    b1, b2 : array of shape (V,), optional
        Biases of the logits, finite.
    pivot, leave_out : int, optional
        Labels y0, and that left out. Either is searched for if it is not given.
    inputs : sequence of ints, optional
        Inputs, x_0 first. Default: the best of random sets of max(d1, d2) + 1.
    n_inputs : int, optional
        Number of these sets, which share no input. Default: 100, or as many as N suffices for.
    reduction : {"max", "mean"}
        "mean" takes the mean in place of the largest in terms 1, 3 and 4, and in the search.
    combine : {"max", "sum"}
        What makes one number of the four terms, of which the last two are multiplied by weight first.
    weight : float
        At least 0.
    seed : int
        Of the sets of inputs.

    Returns
    -------
    LogLikelihoodDistance
        .value of at least 0, without upper bound, and its parts. 0 up to rounding for models with equal probabilities.
        Symmetric in the two models, and the same under (A, A^-T) on h and w and for any vector added to all rows of w.

    Raises
    ------
    TypeError
        If an argument is no array, or its dtype is none of the four.
    ValueError
        If shapes do not fit, values are not finite, N < 2, V < 3, there are fewer inputs than the sets need, or a psi
        or phi is 0 whatever is chosen: labels have the same logits up to a constant, as rows of padding have, or
        inputs have. Leave such rows of w out.

    Notes
    -----
    The published code (d_prob) draws sets of inputs from NumPy's global generator and takes the first whose second term
    is less than 1, or else the first of all, even if others are better: its running minimum starts at 1. Here the best
    set is returned. With the same pivot, leave_out and inputs, all terms are the published ones; that code is in
    float32.

    The N x V log-likelihoods are never held. Their normalisers take 2 N V d flops for each model; all else follows from
    second moments of h, of the normalisers and of w: about 3 (N + V) (d1 + d2)^2 flops, and V^2 (d1 + d2) for the
    search, which is left out if pivot and leave_out are given. 8 V (d1 + d2) bytes for the search, and
    24 (d1 + d2)^2 and a few blocks of rows. Where V is large, compare the labels that matter: w1[ids], w2[ids].

    Examples
    --------
    >>> import numpy as np
    >>> import gramless as gl
    >>> rng = np.random.default_rng(0)
    >>> h, w, a = (rng.standard_normal(shape) for shape in ((300, 2), (6, 2), (2, 2)))
    >>> gl.d_llv(h, w, h @ a.T, w @ np.linalg.inv(a) + 3).value < 1e-12
    True
    >>> far = gl.d_llv(h, w, h, w[::-1])
    >>> round(far.value, 4), far.pivot, far.leave_out
    (1.4242, 0, 4)
    """
    function = "d_llv"
    arguments.choice(function, "reduction", reduction, ("max", "mean"))
    arguments.choice(function, "combine", combine, ("max", "sum"))
    if arguments.finite(function, "weight", weight) < 0:
        raise ValueError(f"{function}: expected weight of at least 0, got {weight!r}")
    arrays = model_pair.pair(function, h1, w1, h2, w2)
    n, labels = (int(arrays[name].shape[0]) for name in ("h1", "w1"))
    if n < 2 or labels < 3:
        raise ValueError(f"{function}: expected at least 2 inputs and 3 labels, got N = {n} and V = {labels}")
    if pivot is not None:
        pivot = model_pair.index(function, "pivot", pivot, labels)
    if leave_out is not None:
        leave_out = model_pair.index(function, "leave_out", leave_out, labels)
    if pivot is not None and pivot == leave_out:
        raise ValueError(f"{function}: expected leave_out other than pivot, got {pivot} for both")
    biases = {
        f"b{i}": np.zeros(labels) if b is None else arguments.vector(function, f"b{i}", b, labels)
        for i, b in (("1", b1), ("2", b2))
    }
    seed = arguments.seed(function, seed)
    sets = _input_sets(function, inputs, n_inputs, n, max(int(arrays[name].shape[1]) for name in ("h1", "h2")), seed)
    pivot, leave_out, first, third = _over_inputs(function, arrays, biases, reduction, pivot, leave_out)
    chosen, second, fourth = _over_labels(function, arrays, biases, reduction, sets)
    terms = first, second, third, fourth
    weighted = first, second, weight * third, weight * fourth
    return LogLikelihoodDistance(
        value=max(weighted) if combine == "max" else sum(weighted),
        terms=terms,
        pivot=pivot,
        leave_out=leave_out,
        inputs=tuple(chosen.tolist()),
        n_inputs=0 if inputs is not None else len(sets),
        reduction=reduction,
        combine=combine,
        weight=float(weight),
        seed=seed,
    )


def _input_sets(function: str, inputs: Any, n_inputs: Any, n: int, d: int, seed: int) -> Indices:
    """Return the sets of inputs to choose from, one in each row."""
    if inputs is not None:
        if n_inputs is not None:
            raise ValueError(f"{function}: expected inputs or n_inputs, got both")
        return model_pair.indices(function, "inputs", inputs, n, 2)[None]
    if n_inputs is not None:
        arguments.positive(function, "n_inputs", n_inputs)
    count = max(1, min(INPUT_SETS, n // (d + 1))) if n_inputs is None else n_inputs
    if n < count * (d + 1):
        raise ValueError(
            f"{function}: expected at least {count * (d + 1)} inputs for n_inputs={count} sets of d + 1 = {d + 1}, "
            f"got N = {n}; name some with inputs="
        )
    return np.random.default_rng(seed).choice(n, (count, d + 1), replace=False)


def _over_inputs(
    function: str,
    arrays: dict[str, Array],
    biases: dict[str, Float64],
    reduction: str,
    pivot: int | None,
    leave_out: int | None,
) -> tuple[int, int, float, float]:
    """Return the pivot, the label left out, and the first and third term, over all inputs."""
    sizes = [int(arrays[name].shape[1]) for name in ("h1", "h2")]
    normalisers = {f"h{i}": _log_normalisers(function, arrays, biases[f"b{i}"], i) for i in "12"}
    root = root_of_rows(function, {name: arrays[name] for name in ("h1", "h2")}, normalisers).covariance
    sides = root[:, : sizes[0] + 1], root[:, sizes[0] + 1 :]
    for i, side in zip("12", sides, strict=True):
        _check_size(function, arrays, i, side[:, :-1])
    known = Labels(
        (arrays["w1"], arrays["w2"]),
        (sides[0][:, :-1], sides[1][:, :-1]),
        _log_variances(function, arrays, sides),
    )
    if pivot is None or leave_out is None:
        pivot, leave_out, smallest = search(known, reduction, pivot, leave_out)
        if not np.isfinite(smallest):
            raise ValueError(
                f"{function}: each pivot that may be taken has labels with its own logits up to a constant, such as "
                "rows of padding; leave them out of w1 and w2"
            )
    others = np.setdiff1d(np.arange(len(known)), [pivot, leave_out])
    *parts, third = known.terms(others, pivot)
    first = np.sqrt(np.concatenate(parts))
    undefined = others[np.isinf(first).reshape(2, -1).any(axis=0)]
    if len(undefined):
        raise ValueError(
            f"{function}: labels {model_pair.several(undefined)} have the logits of the pivot {pivot} up to a constant,"
            " such as rows of padding; leave them out of w1 and w2"
        )
    reduce = np.max if reduction == "max" else np.mean
    return pivot, leave_out, float(reduce(first)), float(reduce(third))


def _check_size(function: str, arrays: dict[str, Array], suffix: str, root: Float64) -> None:
    """Refuse logits whose squares overflow or underflow, before they would seem not to vary."""
    powers = []
    for _, blocks in float64_blocks(function, {f"w{suffix}": arrays[f"w{suffix}"]}):
        powers += [power_of_two(w) for w in blocks.values() if w.any()]
    if powers and root.any() and abs(size := max(powers) + power_of_two(root)) > _MOST_POWER:
        what, way = ("overflow", "down") if size > 0 else ("underflow", "up")
        raise ValueError(f"{function}: squares of the logits of h{suffix} and w{suffix} {what}; scale the data {way}")


def _log_variances(function: str, arrays: dict[str, Array], sides: tuple[Float64, Float64]) -> _measures.LogVariances:
    """Return how ln p of each label varies over inputs: as h.w less its normaliser does."""
    parts = []
    for _, blocks in float64_blocks(function, {name: arrays[name] for name in ("w1", "w2")}):
        seen = (w @ side[:, :-1].T - side[:, -1] for w, side in zip(blocks.values(), sides, strict=True))
        parts.append(_measures.LogVariances.of(*seen))
    return _measures.LogVariances.joined(parts)


def _over_labels(
    function: str, arrays: dict[str, Array], biases: dict[str, Float64], reduction: str, sets: Indices
) -> tuple[Indices, float, float]:
    """Return the set of inputs with the smallest second term, and the second and fourth term, over all labels."""
    names = {f"w{i}": arrays[f"w{i}"] for i in "12"}
    root = root_of_rows(function, names, {f"w{i}": biases[f"b{i}"] for i in "12"}).covariance
    width = int(arrays["w1"].shape[1]) + 1
    sides = root[:, :width], root[:, width:]
    best: tuple[Indices, float, float] = sets[0], np.inf, np.inf
    for chosen in sets:
        logits, phi = [], []
        for i, side in zip("12", sides, strict=True):
            h = float64_rows(function, f"h{i}", arrays[f"h{i}"], chosen)
            differences = (h[1:] - h[0]).T
            seen = side[:, :-1] @ differences
            zero = _measures.vanishing(seen, side[:, :-1], differences)
            phi.append(np.where(zero, 0.0, np.linalg.norm(seen, axis=0)))
            logits.append(h @ side[:, :-1].T + side[:, -1])
        if (np.minimum(*phi) == 0).any():
            continue
        second = float(_measures.second_terms(*logits, *phi).max())
        if second < best[1]:
            gaps = abs(phi[0] - phi[1])
            best = chosen, second, float(gaps.max() if reduction == "max" else gaps.mean())
    if not np.isfinite(best[1]):
        raise ValueError(
            f"{function}: inputs with the logits of another up to a constant are in "
            + (f"each of the {len(sets)} sets of inputs" if len(sets) > 1 else f"inputs {model_pair.several(sets[0])}")
        )
    return best


def _log_normalisers(function: str, arrays: dict[str, Array], bias: Float64, suffix: str) -> Float64:
    """Return ln sum exp of the logits of each input, over all labels."""
    try:
        return ops.logsumexp(arrays[f"h{suffix}"], arrays[f"w{suffix}"], b=bias).lse
    except ValueError as error:
        text = re.sub(r"^logsumexp: ([hw]) ", rf"{function}: \g<1>{suffix} ", str(error))
        raise ValueError(re.sub(r"^logsumexp:", f"{function}:", text)) from None
