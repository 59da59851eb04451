"""What models predict, row by row, from sums over the labels: divergences, distances, entropies.

p is the prediction of model 1 and q that of model 2, delta = z1 - z2 the difference of their logits. Every function
returns a float64 array of one value for each row, in natural logarithms.

Sources: Kullback, Leibler (1951), Ann. Math. Stat. 22 (KL, and Jeffreys' sum of both directions); Nielsen et al.
(2026), arXiv:2602.15438 (logit distance, L1 distance of logits); the paper on prediction hubs, arXiv:2502.10201
(distance to uniform). With delta in place of ln p - ln q, KL keeps the digits that near-equal models leave it.
"""

from __future__ import annotations

import numpy as np

from .._base.arrays import Float64
from ..states.logits import LogitPairState, LogitState


def kl_pq(state: LogitPairState) -> Float64:
    """KL(p||q) = E_p delta - lse_p + lse_q, at least 0 up to rounding; inf where q cannot be what p can."""
    return state.delta_p - state.lse_p + state.lse_q


def kl_qp(state: LogitPairState) -> Float64:
    """KL(q||p) = lse_p - lse_q - E_q delta, at least 0 up to rounding; inf where p cannot be what q can."""
    return state.lse_p - state.lse_q - state.delta_q


def jeffreys(state: LogitPairState) -> Float64:
    """KL(p||q) + KL(q||p) = E_p delta - E_q delta, in which the log normalisers cancel."""
    return state.delta_p - state.delta_q


def js(state: LogitPairState) -> Float64:
    """Jensen-Shannon divergence, from 0 to ln 2; ValueError if the state has none."""
    _check_any("js", state.js, state.lse_p + state.lse_q, _NO_DIVERGENCES)
    return state.js


def tv(state: LogitPairState) -> Float64:
    """Total variation sum |p - q| / 2, from 0 to 1; ValueError if the state has none."""
    _check_any("tv", state.tv, state.lse_p + state.lse_q, _NO_DIVERGENCES)
    return state.tv


def logit_distance(state: LogitPairState) -> Float64:
    """Euclidean distance of label-centred logits, a metric; not changed by a constant added to all logits of a row."""
    return np.sqrt(state.delta_square)


def logit_l1(state: LogitPairState) -> Float64:
    """Mean over labels of |z1 - z2|, of logits as they are."""
    return state.delta_abs / state.counted


def top1_agreement(state: LogitPairState) -> Float64:
    """1 where both models predict the same label first, else 0; NaN where there is no prediction."""
    same = (state.top_p == state.top_q).astype(np.float64)
    return np.where(np.isnan(state.lse_p + state.lse_q), np.nan, same)


def entropy_p(state: LogitPairState) -> Float64:
    """Entropy of p, from 0 to ln V'."""
    return state.lse_p - state.mean_p


def entropy_q(state: LogitPairState) -> Float64:
    """Entropy of q, from 0 to ln V'."""
    return state.lse_q - state.mean_q


def cross_entropy_pq(state: LogitPairState) -> Float64:
    """E_p[-ln q], the entropy of p and KL(p||q)."""
    return state.lse_q - state.mean_p + state.delta_p


def cross_entropy_qp(state: LogitPairState) -> Float64:
    """E_q[-ln p], the entropy of q and KL(q||p)."""
    return state.lse_p - state.mean_q - state.delta_q


def nll_p(state: LogitPairState) -> Float64:
    """-ln p of the target, NaN where a row has none; ValueError if no row has one."""
    _check_any("nll_p", state.target_p, state.lse_p, _NO_TARGETS)
    return state.lse_p - state.target_p


def nll_q(state: LogitPairState) -> Float64:
    """-ln q of the target, NaN where a row has none; ValueError if no row has one."""
    _check_any("nll_q", state.target_q, state.lse_q, _NO_TARGETS)
    return state.lse_q - state.target_q


def entropy(state: LogitState) -> Float64:
    """Entropy of p, from 0 to ln V'."""
    return state.lse - state.mean


def perplexity(state: LogitState) -> Float64:
    """Exponential of the entropy, from 1 to V'."""
    return np.exp(entropy(state))


def renyi2(state: LogitState) -> Float64:
    """Renyi entropy of order 2, -ln sum p^2, from 0 to ln V'."""
    return 2 * state.lse - state.lse2


def effective_candidates(state: LogitState) -> Float64:
    """1 / sum p^2, from 1 to V'."""
    return np.exp(renyi2(state))


def uniform_distance(state: LogitState) -> Float64:
    """Squared Euclidean distance of p to the uniform prediction, sum p^2 - 1 / V', at least 0 up to rounding."""
    return np.exp(-renyi2(state)) - 1 / state.counted


def target_log_probability(state: LogitState) -> Float64:
    """Ln p of the target, NaN where a row has none; ValueError if no row has one."""
    _check_any("target_log_probability", state.target, state.lse, _NO_TARGETS)
    return state.target - state.lse


_NO_DIVERGENCES = "divergences; pass divergences=True, or set those of logit_divergences after a merge"
_NO_TARGETS = "targets; pass targets="


def _check_any(function: str, values: Float64, predicted: Float64, what: str) -> None:
    """Refuse a state without these values, unless it is non-finite input that has made them NaN."""
    if len(values) and np.isnan(values).all() and not np.isnan(predicted).all():
        raise ValueError(f"{function}: the state has no {what}")
