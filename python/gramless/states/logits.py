"""What a pass over logits leaves behind: a few numbers for each row, from which what models predict is compared.

States of disjoint slices of the vocabulary merge: log normalisers by log-add-exp, means by their probabilities, the
mean and the square of delta as Chan, Golub and LeVeque (1983), Am. Stat. 37, merge means and variances.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from .._base.arrays import Float64

# so that numbers of labels do not overflow
_MOST_LABELS = 2**62

# fields that tell what logits were made with
OPTIONS = ("temperature", "softcap", "softcap1", "softcap2")

Int64 = NDArray[np.int64]


@dataclass(frozen=True, eq=False, repr=False)
class LogitState:
    """What one model predicts: sums over the labels, for each of N' rows.

    Parameters
    ----------
    lse : float64 array of shape (N',)
        Log normaliser ln sum exp z.
    mean : float64 array of shape (N',)
        Expected logit E_p z.
    lse2 : float64 array of shape (N',)
        ln sum exp 2 z.
    top : int64 array of shape (N',)
        Label of the largest logit, the lowest one among equals; of rows that are NaN any label.
    top_logit : float64 array of shape (N',)
        The largest logit.
    target : float64 array of shape (N',)
        Logit of the target, NaN where there is none.
    counted : float64 array of shape (N',)
        How many of the labels a row can have: those whose logit is above -inf.
    labels : int
        Number V' of labels.
    temperature, softcap : float, float or None
        What the logits were made with.

    Notes
    -----
    It holds 56 N' bytes, whatever the number of labels. Arrays are never changed in place.

    Examples
    --------
    >>> import numpy as np
    >>> import gramless as gl
    >>> rng = np.random.default_rng(0)
    >>> h, w = rng.standard_normal((5, 8)), rng.standard_normal((100, 8))
    >>> low, high = gl.logsumexp(h, w[:60]), gl.logsumexp(h, w[60:]).numbered_from(60)
    >>> low.merge(high)
    LogitState(n=5, labels=100)
    >>> bool(np.allclose(low.merge(high).lse, gl.logsumexp(h, w).lse))
    True
    """

    lse: Float64  # (N',)
    mean: Float64  # (N',)
    lse2: Float64  # (N',)
    top: Int64  # (N',)
    top_logit: Float64  # (N',)
    target: Float64  # (N',)
    counted: Float64  # (N',)
    labels: int
    temperature: float = 1.0
    softcap: float | None = None

    def __repr__(self) -> str:
        return _text(self)

    @property
    def n(self) -> int:
        """Number of rows N'."""
        return len(self.lse)

    @property
    def nbytes(self) -> int:
        """Bytes held by the arrays."""
        return _nbytes(self)

    def numbered_from(self, first: int) -> LogitState:
        """Return the same labels with numbers that start at first, for a state of a slice of w."""
        _check_first(first)
        return replace(self, top=self.top + first)

    def merge(self, other: LogitState) -> LogitState:
        """Return the labels of both states, which are of the same rows and have no label in common.

        It is taken on trust that they are of the same rows, of which only the number is known.

        Raises
        ------
        TypeError
            If other is not a LogitState.
        ValueError
            If the states differ in the number of rows, in temperature or softcap, or have a top or a target in common.
        """
        _check_slices(self, other)
        lse = _merge_sums(self.lse, other.lse)
        top, top_logit = _merge_top(self.top, self.top_logit, other.top, other.top_logit)
        return LogitState(
            lse=lse,
            mean=_merge_means(lse, (self.lse, self.mean), (other.lse, other.mean)),
            lse2=_merge_sums(self.lse2, other.lse2),
            top=top,
            top_logit=top_logit,
            target=_merge_targets(self.target, other.target),
            counted=self.counted + other.counted,
            labels=self.labels + other.labels,
            temperature=self.temperature,
            softcap=self.softcap,
        )


@dataclass(frozen=True, eq=False, repr=False)
class LogitPairState:
    """What two models predict over the same labels, p of model 1 and q of model 2: sums for each of N' rows.

    Parameters
    ----------
    lse_p, lse_q : float64 array of shape (N',)
        Log normalisers ln sum exp z1 and ln sum exp z2.
    mean_p, mean_q : float64 array of shape (N',)
        E_p z1 and E_q z2.
    delta_p, delta_q : float64 array of shape (N',)
        E_p delta and E_q delta, with delta = z1 - z2.
    delta_mean : float64 array of shape (N',)
        Mean of delta over labels.
    delta_square : float64 array of shape (N',)
        Sum over labels of (delta - delta_mean)^2.
    delta_abs, delta_max : float64 array of shape (N',)
        Sum and maximum over labels of abs(delta).
    top_p, top_q : int64 array of shape (N',)
        Labels of the largest logits, the lowest ones among equals; of rows that are NaN any label.
    top_logit_p, top_logit_q : float64 array of shape (N',)
        The largest logits.
    target_p, target_q : float64 array of shape (N',)
        Logits of the target, NaN where there is none.
    counted : float64 array of shape (N',)
        How many of the labels a row can have in either model; those that it can have in neither are in no sum.
    js, tv : float64 array of shape (N',)
        Jensen-Shannon divergence and total variation, NaN where they were not asked for, and after a merge.
    labels : int
        Number V' of labels.
    temperature, softcap1, softcap2 : float, float or None, float or None
        What the logits were made with.

    Notes
    -----
    It holds 152 N' bytes, whatever the number of labels. A label that only one model can predict makes delta_mean,
    delta_square, delta_abs and delta_max infinite. Arrays are never changed in place.

    Examples
    --------
    >>> import numpy as np
    >>> import gramless as gl
    >>> rng = np.random.default_rng(0)
    >>> h1, w1 = rng.standard_normal((5, 8)), rng.standard_normal((100, 8))
    >>> h2, w2 = rng.standard_normal((5, 6)), rng.standard_normal((100, 6))
    >>> low = gl.logit_pairs(h1, w1[:60], h2, w2[:60])
    >>> high = gl.logit_pairs(h1, w1[60:], h2, w2[60:]).numbered_from(60)
    >>> low.merge(high)
    LogitPairState(n=5, labels=100)
    >>> whole = gl.logit_pairs(h1, w1, h2, w2)
    >>> bool(np.allclose(low.merge(high).delta_square, whole.delta_square))
    True
    """

    lse_p: Float64  # (N',)
    lse_q: Float64  # (N',)
    mean_p: Float64  # (N',)
    mean_q: Float64  # (N',)
    delta_p: Float64  # (N',)
    delta_q: Float64  # (N',)
    delta_mean: Float64  # (N',)
    delta_square: Float64  # (N',)
    delta_abs: Float64  # (N',)
    delta_max: Float64  # (N',)
    top_p: Int64  # (N',)
    top_q: Int64  # (N',)
    top_logit_p: Float64  # (N',)
    top_logit_q: Float64  # (N',)
    target_p: Float64  # (N',)
    target_q: Float64  # (N',)
    counted: Float64  # (N',)
    js: Float64  # (N',)
    tv: Float64  # (N',)
    labels: int
    temperature: float = 1.0
    softcap1: float | None = None
    softcap2: float | None = None

    def __repr__(self) -> str:
        return _text(self)

    @property
    def n(self) -> int:
        """Number of rows N'."""
        return len(self.lse_p)

    @property
    def nbytes(self) -> int:
        """Bytes held by the arrays."""
        return _nbytes(self)

    def numbered_from(self, first: int) -> LogitPairState:
        """Return the same labels with numbers that start at first, for a state of slices of w1 and w2."""
        _check_first(first)
        return replace(self, top_p=self.top_p + first, top_q=self.top_q + first)

    def merge(self, other: LogitPairState) -> LogitPairState:
        """Return the labels of both states, which are of the same rows and have no label in common.

        It is taken on trust that they are of the same rows, of which only the number is known.

        JS and TV need the log normalisers of all labels, and are NaN: `gramless.logit_divergences` of each slice gives
        its share in them, once these are known.

        Raises
        ------
        TypeError
            If other is not a LogitPairState.
        ValueError
            If the states differ in the number of rows, in temperature or softcaps, or have a top or a target in common.
        """
        _check_slices(self, other)
        lse_p, lse_q = _merge_sums(self.lse_p, other.lse_p), _merge_sums(self.lse_q, other.lse_q)
        top_p, top_logit_p = _merge_top(self.top_p, self.top_logit_p, other.top_p, other.top_logit_p)
        top_q, top_logit_q = _merge_top(self.top_q, self.top_logit_q, other.top_q, other.top_logit_q)
        delta_mean, delta_square = _merge_squares(self, other)
        missing = np.full(self.n, np.nan)
        return LogitPairState(
            lse_p=lse_p,
            lse_q=lse_q,
            mean_p=_merge_means(lse_p, (self.lse_p, self.mean_p), (other.lse_p, other.mean_p)),
            mean_q=_merge_means(lse_q, (self.lse_q, self.mean_q), (other.lse_q, other.mean_q)),
            delta_p=_merge_means(lse_p, (self.lse_p, self.delta_p), (other.lse_p, other.delta_p)),
            delta_q=_merge_means(lse_q, (self.lse_q, self.delta_q), (other.lse_q, other.delta_q)),
            delta_mean=delta_mean,
            delta_square=delta_square,
            delta_abs=self.delta_abs + other.delta_abs,
            delta_max=np.maximum(self.delta_max, other.delta_max),
            top_p=top_p,
            top_q=top_q,
            top_logit_p=top_logit_p,
            top_logit_q=top_logit_q,
            target_p=_merge_targets(self.target_p, other.target_p),
            target_q=_merge_targets(self.target_q, other.target_q),
            counted=self.counted + other.counted,
            js=missing,
            tv=missing.copy(),
            labels=self.labels + other.labels,
            temperature=self.temperature,
            softcap1=self.softcap1,
            softcap2=self.softcap2,
        )


StateT = TypeVar("StateT", LogitState, LogitPairState)


def _check_first(first: int) -> None:
    if isinstance(first, bool) or not isinstance(first, int | np.integer):
        raise TypeError(f"numbered_from: expected first to be an int, got {type(first).__name__}")
    if not 0 <= first < _MOST_LABELS:
        raise ValueError(f"numbered_from: expected first from 0 to below 2^62, got {first}")


def _text(state: LogitState | LogitPairState) -> str:
    return f"{type(state).__name__}(n={state.n}, labels={state.labels})"


def _nbytes(state: LogitState | LogitPairState) -> int:
    values = (getattr(state, field.name) for field in fields(state))
    return sum(value.nbytes for value in values if isinstance(value, np.ndarray))


def _check_slices(mine: StateT, theirs: StateT) -> None:
    """Refuse states of other rows or options, and what shows that slices of the vocabulary overlap."""
    if type(theirs) is not type(mine):
        raise TypeError(f"merge: expected a {type(mine).__name__}, got {type(theirs).__name__}")
    if mine.n != theirs.n:
        raise ValueError(f"merge: expected states of the same rows, got n = {mine.n} and n = {theirs.n}")
    for field in fields(mine):
        ours, others = getattr(mine, field.name), getattr(theirs, field.name)
        if field.name in ("top", "top_p", "top_q"):
            logit = field.name.replace("top", "top_logit")
            both = (ours == others) & ~np.isnan(getattr(mine, logit)) & ~np.isnan(getattr(theirs, logit))
            if both.any():
                label = ours[np.argmax(both)]
                raise ValueError(
                    f"merge: expected states without common labels, got label {label} in both; labels of a slice "
                    "w[first:] are numbered by numbered_from(first)"
                )
        elif field.name in OPTIONS and ours != others:
            raise ValueError(
                f"merge: expected states made with the same {field.name}, got {field.name}={ours} and "
                f"{field.name}={others}"
            )
        elif field.name.startswith("target") and (both := ~np.isnan(ours) & ~np.isnan(others)).any():
            raise ValueError(
                f"merge: expected states without common labels, got a target of row {np.argmax(both)} in both"
            )


def _merge_sums(lse: Float64, other: Float64) -> Float64:
    # rows that non-finite input has made NaN stay so
    with np.errstate(invalid="ignore"):
        return np.logaddexp(lse, other)


def _merge_means(lse: Float64, *parts: tuple[Float64, Float64]) -> Float64:
    """Return means weighted by the probabilities of the parts; what is infinite stays so, however little its weight."""
    with np.errstate(invalid="ignore"):
        terms = [np.where(np.isinf(mean), mean, np.exp(part - lse) * mean) for part, mean in parts]
        return np.asarray(terms[0] + terms[1])


def _merge_top(top: Int64, logit: Float64, others: Int64, other_logit: Float64) -> tuple[Int64, Float64]:
    theirs = (other_logit > logit) | ((other_logit == logit) & (others < top))
    return np.where(theirs, others, top), np.maximum(logit, other_logit)


def _merge_targets(target: Float64, other: Float64) -> Float64:
    return np.where(np.isnan(target), other, target)


def _merge_squares(a: LogitPairState, b: LogitPairState) -> tuple[Float64, Float64]:
    """Return mean and square about it, of all labels; infinite ones are always +inf."""
    labels = a.counted + b.counted
    share = np.divide(b.counted, labels, out=np.zeros_like(labels), where=labels > 0)
    endless = np.isinf(a.delta_mean) | np.isinf(b.delta_mean)
    with np.errstate(invalid="ignore"):
        step = np.where(endless, 0.0, b.delta_mean - a.delta_mean)
        mean = np.where(endless, a.delta_mean + b.delta_mean, a.delta_mean + step * share)
        return mean, a.delta_square + b.delta_square + step**2 * (a.counted * share)
