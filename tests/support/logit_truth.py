"""The truth of kernels over logits, the textbook in more precision than they compute in, and the naive, in the same."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from support import bounds
from support.logits import Case, Inputs

NUMBERED = ("1", "2")


def truth(inputs: Inputs) -> dict[str, np.ndarray]:
    """All results of logit_pairs and what follows from them, with the scales of their errors under "scale"."""
    rows, kept = _counted(inputs)
    logits = [_logits(inputs, number, rows, kept, _finer(inputs)) for number in NUMBERED]
    found = _evaluate(inputs, *logits, rows, kept)
    return found | {"scale": _scales(inputs, found, *logits, rows, kept)}


def naive(inputs: Inputs) -> dict[str, np.ndarray]:
    rows, kept = _counted(inputs)
    logits = [_logits(inputs, number, rows, kept, inputs.compute) for number in NUMBERED]
    return _evaluate(inputs, *logits, rows, kept)


def _finer(inputs: Inputs) -> type:
    return np.float64 if inputs.compute == np.float32 else np.longdouble


def _counted(inputs: Inputs) -> tuple[np.ndarray, np.ndarray]:
    options, v = inputs.options, (inputs.h1.shape[1] if inputs.w1 is None else len(inputs.w1))
    mask = options.get("mask")
    rows = np.arange(len(inputs.h1)) if mask is None else np.flatnonzero(mask)
    kept = np.arange(v) if options.get("labels") is None else np.sort(options["labels"])
    biases = [options.get("b1"), options.get("b2")]
    if all(b is not None for b in biases):
        kept = kept[~np.all([b[kept] == -np.inf for b in biases], axis=0)]
    return rows, kept


def _logits(inputs: Inputs, number: str, rows: np.ndarray, kept: np.ndarray, dtype: Any) -> np.ndarray:
    h, w, b = (getattr(inputs, f"h{number}"), getattr(inputs, f"w{number}"), inputs.options.get(f"b{number}"))
    if w is None:
        z = h[rows][:, kept].astype(dtype)
    else:
        z = h[rows].astype(dtype) @ w[kept].astype(dtype).T
    masked = z == -np.inf
    if b is not None:
        z, masked = z + b[kept].astype(dtype), masked | (b[kept] == -np.inf)
    cap = inputs.options.get(f"softcap{number}")
    if cap is not None:
        z = cap * np.tanh(z / cap)
    z = z / inputs.options.get("temperature", 1.0)
    return np.where(masked, np.array(-np.inf, dtype), z)


@np.errstate(all="ignore")
def _evaluate(inputs: Inputs, z1: np.ndarray, z2: np.ndarray, rows: np.ndarray, kept: np.ndarray) -> dict[str, Any]:
    # labels that a row can have in neither model are none of its labels
    counts = (z1 > -np.inf) | (z2 > -np.inf)
    delta = np.where(counts, z1 - z2, z1.dtype.type(0))
    mean = delta.sum(axis=1) / counts.sum(axis=1)
    found: dict[str, Any] = {}
    logs, shares = [], []
    for z, side in ((z1, "p"), (z2, "q")):
        largest = z.max(axis=1)
        lse = largest + np.log(np.exp(z - largest[:, None]).sum(axis=1))
        log = z - lse[:, None]
        p = np.exp(log)
        twice = 2 * largest + np.log(np.exp(2 * (z - largest[:, None])).sum(axis=1))
        found |= {
            f"lse_{side}": lse,
            f"lse2_{side}": twice,
            f"mean_{side}": _times(p, z).sum(axis=1),
            f"delta_{side}": _expected_delta(p, z, delta).sum(axis=1),
            f"top_{side}": kept[z.argmax(axis=1)],
            f"top_logit_{side}": largest,
            f"target_{side}": _targets(inputs, z, rows, kept),
        }
        logs.append(log)
        shares.append(p)
    endless = np.isinf(delta).any(axis=1)
    sums = {
        "delta_mean": mean,
        "delta_square": np.sum(np.where(counts, delta - mean[:, None], 0) ** 2, axis=1),
        "delta_abs": np.abs(delta).sum(axis=1),
        "delta_max": np.abs(delta).max(axis=1),
    }
    found |= {key: np.where(endless, np.inf, value) for key, value in sums.items()}
    (p, q), (log_p, log_q) = shares, logs
    middle = np.logaddexp(log_p, log_q) - np.log(log_p.dtype.type(2))
    return found | {
        "js": (_times(p, log_p - middle) + _times(q, log_q - middle)).sum(axis=1) / 2,
        "tv": np.abs(p - q).sum(axis=1) / 2,
        "kl_pq": _expected_delta(p, z1, log_p - log_q).sum(axis=1),
        "kl_qp": _expected_delta(q, z2, log_q - log_p).sum(axis=1),
        "labels": len(kept),
    }


def _times(p: np.ndarray, values: np.ndarray) -> np.ndarray:
    return np.where(p == 0, p.dtype.type(0), p * values)


def _expected_delta(p: np.ndarray, z: np.ndarray, delta: np.ndarray) -> np.ndarray:
    """Infinite delta counts wherever this model can predict the label at all."""
    return np.where(z == -np.inf, p.dtype.type(0), np.where(np.isinf(delta), delta, p * delta))


def _targets(inputs: Inputs, z: np.ndarray, rows: np.ndarray, kept: np.ndarray) -> np.ndarray:
    targets = inputs.options.get("targets")
    found = np.full(len(rows), np.nan, z.dtype)
    for k, row in enumerate(rows if targets is not None else []):
        if targets[row] >= 0:
            found[k] = z[k, list(kept).index(targets[row])]
    return found


@np.errstate(all="ignore")
def _scales(
    inputs: Inputs, found: dict[str, Any], z1: np.ndarray, z2: np.ndarray, rows: np.ndarray, kept: np.ndarray
) -> dict[str, np.ndarray]:
    """What a relative error of the terms of each logit makes of each result, at most."""
    size_p, size_q = (_size(inputs, number, rows, kept) for number in NUMBERED)
    both, eps = size_p + size_q, np.finfo(inputs.compute).eps
    delta = np.abs(
        np.where((z1 == -np.inf) & (z2 == -np.inf), z1.dtype.type(0), z1 - z2) - found["delta_mean"][:, None]
    )
    # squares of small errors, and what float64 leaves of a difference of log normalisers
    second = eps * both**2 + np.finfo(np.float64).eps / eps * both
    scales = dict.fromkeys(("delta_p", "delta_q", "delta_mean", "delta_max", "tv"), both)
    for side, size in (("p", size_p), ("q", size_q)):
        scales |= {f"{key}_{side}": size for key in ("lse", "mean", "top_logit", "target")}
        scales[f"lse2_{side}"] = 2 * size
    scales["delta_abs"] = both * found["labels"]
    scales["delta_square"] = both * delta.sum(axis=1) + found["labels"] * second
    for key in ("kl_pq", "kl_qp", "js"):
        value = np.abs(found[key])
        scales[key] = both * (np.sqrt(value) + value) + second
    return scales


def _size(inputs: Inputs, number: str, rows: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """The largest sum of absolute terms of a logit, for each row."""
    h, w, b = (getattr(inputs, f"h{number}"), getattr(inputs, f"w{number}"), inputs.options.get(f"b{number}"))
    large = np.abs(h[rows].astype(np.float64))
    large = large[:, kept] if w is None else large @ np.abs(w[kept].astype(np.float64)).T
    large = large + (0 if b is None else np.abs(b[kept]))
    large = np.where(np.isinf(large), 0, large) / inputs.options.get("temperature", 1.0)
    return 1 + np.log(len(kept)) + large.max(axis=1)


FIELDS = ("lse", "mean", "delta", "top_logit", "target")
PAIR_FIELDS = tuple(f"{key}_{side}" for key in FIELDS for side in "pq") + tuple(
    f"delta_{key}" for key in ("mean", "square", "abs", "max")
)
SINGLE_FIELDS = ("lse", "mean", "lse2", "top_logit", "target")


@lru_cache(maxsize=256)
def known(case: Case, dtype1: str, dtype2: str | None = None, *, alone: bool = False) -> tuple[dict, dict]:
    """Truth and naive of a case, for many backends; of its first model alone under the names of p."""
    inputs = case.inputs(dtype1, dtype2)
    inputs = inputs.alone if alone else inputs
    return truth(inputs), naive(inputs)


def assert_pairs(got: Any, inputs: Inputs, want: tuple[dict, dict] | None = None, *, divergences: bool = False) -> None:
    """A state, against the truth."""
    from gramless.measures import logits as values

    exact, rough = want or (truth(inputs), naive(inputs))
    assert got.labels == exact["labels"]
    terms = max(exact["labels"], inputs.h1.shape[1], inputs.h2.shape[1])
    found = {key: getattr(got, key) for key in PAIR_FIELDS}
    found |= {"kl_pq": values.kl_pq(got), "kl_qp": values.kl_qp(got)}
    if divergences:
        found |= {"js": got.js, "tv": got.tv}
    for key, value in found.items():
        _assert_field(value, exact, rough, key, inputs.compute, terms)
    for side, number in zip("pq", NUMBERED, strict=True):
        _assert_top(getattr(got, f"top_{side}"), inputs, number, exact, rough, side, terms)


def assert_single(got: Any, inputs: Inputs, want: tuple[dict, dict] | None = None) -> None:
    """A state of the first model."""
    inputs = inputs.alone
    exact, rough = want or (truth(inputs), naive(inputs))
    terms = max(exact["labels"], inputs.h1.shape[1])
    renamed = [{key: result[f"{key}_p"] for key in SINGLE_FIELDS} for result in (exact, rough)]
    renamed[0]["scale"] = {key: exact["scale"][f"{key}_p"] for key in SINGLE_FIELDS}
    assert got.labels == exact["labels"]
    for key in SINGLE_FIELDS:
        _assert_field(getattr(got, key), *renamed, key, inputs.compute, terms)
    _assert_top(got.top, inputs, "1", exact, rough, "p", terms)


def _assert_field(got: np.ndarray, exact: dict, rough: dict, key: str, compute: Any, terms: int) -> None:
    assert type(got) is np.ndarray, key
    assert got.dtype == np.float64, key
    want, scale = np.asarray(exact[key]), exact["scale"][key]
    assert got.shape == want.shape, f"{key}: {got.shape} against {want.shape}"
    finite = np.isfinite(want)
    np.testing.assert_array_equal(got[~finite], want[~finite].astype(np.float64), err_msg=key)
    if finite.any():
        bounds.assert_no_worse_than_naive(
            got[finite], want[finite], rough[key][finite], compute=compute, scale=scale[finite], terms=terms, what=key
        )


def _assert_top(top: np.ndarray, inputs: Inputs, number: str, exact: dict, rough: dict, side: str, terms: int) -> None:
    """The label of the largest logit, or of one that rounding cannot tell from it."""
    rows, kept = _counted(inputs)
    assert top.dtype == np.int64
    assert top.shape == rows.shape
    assert np.isin(top, kept).all(), "a top that is not among the labels"
    if not len(rows):
        return
    z = _logits(inputs, number, rows, kept, _finer(inputs))
    reached = z[np.arange(len(rows)), np.searchsorted(kept, top)]
    key = f"top_logit_{side}"
    bounds.assert_no_worse_than_naive(
        reached, exact[key], rough[key], compute=inputs.compute, scale=exact["scale"][key], terms=terms, what="top"
    )
