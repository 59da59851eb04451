"""What two models predict for the same rows over the same labels: all that their divergences follow from.

Sources: Nielsen et al. (2026), arXiv:2602.15438 (logit distance, L1 distance of logits); Nielsen, Marconato, Dittadi,
Gresele (2025), arXiv:2506.03784 (KL between models); Kullback, Leibler (1951), Ann. Math. Stat. 22 (KL and its
symmetric sum, that of Jeffreys); Lin (1991), IEEE Trans. Inf. Theory 37 (the Jensen-Shannon divergence); Aitchison
(1986), The statistical analysis of compositional data (the logit distance as that of log ratios).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .logsumexp import counted_labels, counted_rows, expected, logits, softmax, target_logits

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]


@np.errstate(over="ignore", invalid="ignore", divide="ignore")
def logit_pairs(
    h1: NDArray[Any],  # (N, d1), or (N, V)
    w1: NDArray[Any] | None,  # (V, d1)
    h2: NDArray[Any],  # (N, d2), or (N, V)
    w2: NDArray[Any] | None,  # (V, d2)
    *,
    b1: Float64 | None = None,  # (V,)
    b2: Float64 | None = None,  # (V,)
    labels: Int64 | None = None,  # (V',)
    mask: NDArray[np.bool_] | None = None,  # (N,)
    targets: Int64 | None = None,  # (N,)
    temperature: float = 1.0,
    softcap1: float | None = None,
    softcap2: float | None = None,
    divergences: bool = False,
    workspace: int | None = None,
    nonfinite: str = "raise",
) -> dict[str, Any]:
    """Return what `logsumexp` does of model 1, p, and of model 2, q, and the sums of delta = z1 - z2, for each row.

    delta_p = E_p delta and delta_q = E_q delta, so that KL(p||q) = delta_p - lse_p + lse_q; delta_mean over labels,
    delta_square = sum (delta - delta_mean)^2, delta_abs = sum |delta|, delta_max = max |delta|. With divergences also
    JS and TV. A label that both models mask is left out; where only one does, delta is infinite, and so are these sums.

    The workspace is what a kernel may hold of logits, so this one has no use for it.

    Peak extra bytes: 58 N V, with divergences 106 N V; or 16 (N + V) d + 16 N V of the wider model, if that is more.
    """
    rows, kept, z1, z2 = _two_models(
        "logit_pairs", h1, w1, h2, w2, b1, b2, labels, mask, temperature, softcap1, softcap2, nonfinite
    )
    (lse_p, p), (lse_q, q) = softmax(z1), softmax(z2)
    # a label that a row can have in neither model is none of its labels
    counts = (z1 != -np.inf) | (z2 != -np.inf)
    delta = np.where(counts, z1 - z2, 0.0)
    endless = np.isinf(delta).any(axis=1)
    counted = counts.sum(axis=1).astype(np.float64)
    mean = delta.sum(axis=1) / counted
    sums = {
        "delta_mean": mean,
        "delta_square": np.sum(np.where(counts, delta - mean[:, None], 0.0) ** 2, axis=1),
        "delta_abs": np.sum(np.abs(delta), axis=1),
        "delta_max": np.max(np.abs(delta), axis=1),
    }
    if nonfinite == "raise" and not (np.isfinite(sums["delta_square"]) | endless).all():
        raise ValueError("logit_pairs: logits overflow although the input is finite; scale it down")
    nothing = np.full(len(rows), np.nan)
    js, tv = _divergences(z1, z2, lse_p, lse_q) if divergences else (nothing, nothing.copy())
    return {
        "lse_p": lse_p,
        "lse_q": lse_q,
        "mean_p": expected(p, z1),
        "mean_q": expected(q, z2),
        "delta_p": _expected_delta(p, z1, z2),
        "delta_q": -_expected_delta(q, z2, z1),
        **{key: np.where(endless & ~np.isnan(lse_p + lse_q), np.inf, value) for key, value in sums.items()},
        "top_p": kept[np.argmax(z1, axis=1)],
        "top_q": kept[np.argmax(z2, axis=1)],
        "top_logit_p": z1.max(axis=1),
        "top_logit_q": z2.max(axis=1),
        "target_p": target_logits(z1, kept, rows, targets),
        "target_q": target_logits(z2, kept, rows, targets),
        "counted": counted,
        "js": js,
        "tv": tv,
        "labels": len(kept),
    }


@np.errstate(over="ignore", invalid="ignore", divide="ignore")
def logit_divergences(
    h1: NDArray[Any],  # (N, d1), or (N, V)
    w1: NDArray[Any] | None,  # (V, d1)
    h2: NDArray[Any],  # (N, d2), or (N, V)
    w2: NDArray[Any] | None,  # (V, d2)
    lse_p: Float64,  # (N',)
    lse_q: Float64,  # (N',)
    *,
    b1: Float64 | None = None,  # (V,)
    b2: Float64 | None = None,  # (V,)
    labels: Int64 | None = None,  # (V',)
    mask: NDArray[np.bool_] | None = None,  # (N,)
    temperature: float = 1.0,
    softcap1: float | None = None,
    softcap2: float | None = None,
    nonfinite: str = "raise",
) -> dict[str, Any]:
    """Return the shares of these labels in JS and TV, given the log normalisers of all labels.

    Peak extra bytes: 81 N V; or 16 (N + V) d + 16 N V of the wider model, if that is more.
    """
    _, _, z1, z2 = _two_models(
        "logit_divergences", h1, w1, h2, w2, b1, b2, labels, mask, temperature, softcap1, softcap2, nonfinite
    )
    js, tv = _divergences(z1, z2, lse_p, lse_q)
    return {"js": js, "tv": tv}


def _two_models(
    function: str,
    h1: NDArray[Any],
    w1: NDArray[Any] | None,
    h2: NDArray[Any],
    w2: NDArray[Any] | None,
    b1: Float64 | None,
    b2: Float64 | None,
    labels: Int64 | None,
    mask: NDArray[np.bool_] | None,
    temperature: float,
    softcap1: float | None,
    softcap2: float | None,
    nonfinite: str,
) -> tuple[Int64, Int64, Float64, Float64]:
    """Return the rows and labels that count, and the logits (N', V') of both models."""
    count = h1.shape[1] if w1 is None else w1.shape[0]
    rows, kept = counted_rows(len(h1), mask), counted_labels(count, labels, b1, b2)
    z1 = logits(function, "1", h1, w1, b1, rows, kept, temperature, softcap1, nonfinite)
    z2 = logits(function, "2", h2, w2, b2, rows, kept, temperature, softcap2, nonfinite)
    return rows, kept, z1, z2


def _expected_delta(p: Float64, z1: Float64, z2: Float64) -> Float64:
    """Return E_p (z1 - z2): infinite where p is above 0 and q is 0, however little p is."""
    beyond = ((z1 > -np.inf) & (z2 == -np.inf)).any(axis=1)
    terms = np.where((z1 == -np.inf) | (z2 == -np.inf), 0.0, p * (z1 - z2))
    value = terms.sum(axis=1)
    return np.where(beyond & ~np.isnan(value), np.inf, value)


def _divergences(z1: Float64, z2: Float64, lse_p: Float64, lse_q: Float64) -> tuple[Float64, Float64]:
    """Return the sums over labels of (p + q) / 4 [(1 - x) ln(1 - x) + (1 + x) ln(1 + x)] and of |p - q| / 2.

    x = (p - q) / (p + q). The first is p ln(p / m) / 2 + q ln(q / m) / 2 with m = (p + q) / 2, less what cancels.
    """
    p, q = np.exp(z1 - lse_p[:, None]), np.exp(z2 - lse_q[:, None])
    both = p + q
    x = np.where(both == 0, 0.0, (p - q) / np.where(both == 0, 1.0, both))
    bracket = sum(np.where(1 + side == 0, 0.0, (1 + side) * np.log1p(side)) for side in (x, -x))
    return np.sum(both / 4 * bracket, axis=1), np.sum(np.abs(p - q), axis=1) / 2
