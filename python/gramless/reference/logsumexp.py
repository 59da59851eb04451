"""Log-sum-exp of the logits of one model, with the moments of its predictions that come in the same pass.

Sources: Milakov, Gimelshein (2018), arXiv:1805.02867 (log-sum-exp about the largest logit, in one pass); Nielsen,
Marconato, Dittadi, Gresele (2025), arXiv:2506.03784 (log-likelihoods as what models are compared by); the paper on
prediction hubs, arXiv:2502.10201 (distance of predictions to uniform, which follows from lse(2 z)).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK_ROWS = 256

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]


@np.errstate(over="ignore", invalid="ignore", divide="ignore")
def logsumexp(
    h: NDArray[Any],  # (N, d), or (N, V)
    w: NDArray[Any] | None,  # (V, d)
    *,
    b: Float64 | None = None,  # (V,)
    labels: Int64 | None = None,  # (V',)
    mask: NDArray[np.bool_] | None = None,  # (N,)
    targets: Int64 | None = None,  # (N,)
    temperature: float = 1.0,
    softcap: float | None = None,
    nonfinite: str = "raise",
) -> dict[str, Any]:
    """Return lse z, E_p z, lse 2 z, the largest logit and its label, and the logit of the target, for rows that count.

    z = softcap(h w^T + b) / temperature with softcap(z) = c tanh(z / c), and p = exp(z - lse z). A label with b = -inf
    cannot be: it is left out, whatever its weights are.

    Peak extra bytes: 32 N V; or 16 (N + V) d + 8 N V, if that is more.
    """
    count = h.shape[1] if w is None else w.shape[0]
    rows, kept = counted_rows(len(h), mask), counted_labels(count, labels, b)
    z = logits("logsumexp", "", h, w, b, rows, kept, temperature, softcap, nonfinite)
    lse, p = softmax(z)
    largest = z.max(axis=1)
    return {
        "lse": lse,
        "mean": expected(p, z),
        "lse2": 2 * largest + np.log(np.sum(np.exp(z - largest[:, None]) ** 2, axis=1)),
        "top": kept[np.argmax(z, axis=1)],
        "top_logit": largest,
        "target": target_logits(z, kept, rows, targets),
        "counted": np.sum(z != -np.inf, axis=1).astype(np.float64),
        "labels": len(kept),
    }


def counted_rows(n: int, mask: NDArray[np.bool_] | None) -> Int64:
    """Return the rows that count."""
    return np.arange(n) if mask is None else np.flatnonzero(mask)


def counted_labels(count: int, labels: Int64 | None, *biases: Float64 | None) -> Int64:
    """Return the labels that count, in order: those chosen, less what every model masks."""
    kept = np.arange(count) if labels is None else np.sort(labels)
    gone = np.ones(count, dtype=bool)
    for b in biases:
        gone &= False if b is None else b == -np.inf
    return kept[~gone[kept]]


def logits(
    function: str,
    number: str,
    h: NDArray[Any],
    w: NDArray[Any] | None,
    b: Float64 | None,
    rows: Int64,
    kept: Int64,
    temperature: float,
    softcap: float | None,
    nonfinite: str,
) -> Float64:
    """Return all logits (N', V') of one model, -inf where a label cannot be; number is that of its arguments.

    Rows with values that are not finite are NaN, or refused. Logits that are given may be -inf.
    """
    raw = h[rows].astype(np.float64)
    if w is None:
        z = raw[:, kept]
        bad = ~(z < np.inf).all(axis=1)
    else:
        weights = w[kept].astype(np.float64)
        bad = ~np.isfinite(raw).all(axis=1)
        if nonfinite == "raise":
            _refuse(function, f"w{number}", kept[~np.isfinite(weights).all(axis=1)], len(w))
        z = raw @ weights.T
    if nonfinite == "raise":
        _refuse(function, f"h{number}", rows[bad], len(h))
    masked = np.zeros(z.shape, dtype=bool) if w is not None else z == -np.inf
    if b is not None:
        z = z + b[kept]
        masked |= b[kept] == -np.inf
    if nonfinite == "raise":
        _refuse_overflow(function, z, masked)
    impossible = masked.all(axis=1)
    if nonfinite == "raise" and impossible.any():
        row = rows[int(np.argmax(impossible))]
        raise ValueError(f"{function}: row {row} of h{number} has no label that can be: all its logits are -inf")
    if softcap is not None:
        z = softcap * np.tanh(z / softcap)
    z = np.where(masked, -np.inf, z / temperature)
    if nonfinite == "raise":
        _refuse_overflow(function, z, masked)
    # also the infinities of h and w, of which tanh leaves nothing
    lost = bad | impossible | ~(np.isfinite(z) | masked).all(axis=1)
    if w is not None and not np.isfinite(weights).all():
        lost[:] = True
    return np.where(lost[:, None], np.nan, z)


def softmax(z: Float64) -> tuple[Float64, Float64]:
    """Return the log-sum-exp and the probabilities of each row."""
    largest = z.max(axis=1)
    e = np.exp(z - largest[:, None])
    total = e.sum(axis=1)
    return largest + np.log(total), e / total[:, None]


def expected(p: Float64, values: Float64) -> Float64:
    """Return the expected value of each row; a label that cannot be adds nothing, whatever its value."""
    value: Float64 = np.sum(p * np.where(values == -np.inf, 0.0, values), axis=1)
    return value


def target_logits(z: Float64, kept: Int64, rows: Int64, targets: Int64 | None) -> Float64:
    """Return the logit of the target of each row that counts, NaN if it is not among the labels."""
    found = np.full(len(rows), np.nan)
    if targets is None:
        return found
    for k, row in enumerate(rows):
        (place,) = np.nonzero(kept == targets[row])
        if len(place):
            found[k] = z[k, place[0]]
    return found


def _refuse_overflow(function: str, z: Float64, masked: NDArray[np.bool_]) -> None:
    if not np.isfinite(z[~masked]).all():
        raise ValueError(f"{function}: logits overflow although the input is finite; scale it down")


def _refuse(function: str, name: str, bad: Int64, n: int) -> None:
    """Name the first block of rows with a bad one."""
    if len(bad):
        first = int(bad[0]) // BLOCK_ROWS * BLOCK_ROWS
        last = min(first + BLOCK_ROWS, n) - 1
        raise ValueError(f"{function}: {name} has non-finite values in rows {first}..{last}")
