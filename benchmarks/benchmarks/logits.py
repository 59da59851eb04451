"""Two models that predict over one vocabulary: arrays, operations, and answers in float64 by code of its own."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from gramless import _core
from gramless.measures import logits

from .base import BLOCK_ROWS, TOLERANCE, numpy_dtype, product_dtype, relative_error, sized

# deviation of a logit over the labels
SPREAD = 2.0
# how far two models differ, relative to hidden states and unembeddings; KL is near 1, 1e-4 and 1e-8 to 1e-7
DIFFERENCES = {"apart": 0.5, "near": 5e-3, "nearer": 1e-4}
# of what is near zero float32 keeps fewer digits: what is promised, and over few labels some rows are much nearer
NEAR_TOLERANCE = sized(1e-3, 1e-2)
# rows that are checked: float64 takes too long for all
SAMPLED_ROWS = 32
CHECKED_PAIRS = f"KL both ways and logit distance, the worst of {SAMPLED_ROWS} rows"
CHECKED_ONE = f"log normaliser, entropy and Renyi entropy, the worst of {SAMPLED_ROWS} rows"
CHECKED_DIVERGENCES = f"JS and TV, the worst of {SAMPLED_ROWS} rows"


class Models(NamedTuple):
    """What `gl.logit_pairs` takes."""

    h1: Any  # (n, width)
    w1: Any  # (labels, width)
    h2: Any
    w2: Any


def two_models(n: int, labels: int, width: int, dtype: str, *, difference: float, seed: int = 0) -> Models:
    rng = np.random.default_rng(seed)
    hidden = pair_of_arrays(rng, n, width, dtype, 1.0, difference)
    unembeddings = pair_of_arrays(rng, labels, width, dtype, SPREAD / width**0.5, difference)
    return Models(hidden[0], unembeddings[0], hidden[1], unembeddings[1])


def pair_of_arrays(
    rng: np.random.Generator, rows: int, columns: int, dtype: str, scale: float, difference: float
) -> tuple[Any, Any]:
    """Normal numbers, and the same with others added that are smaller by the difference; both drawn by blocks."""
    target, drawn = numpy_dtype(dtype), product_dtype(dtype)
    first, second = np.empty((rows, columns), target), np.empty((rows, columns), target)
    for start in range(0, rows, BLOCK_ROWS):
        part = slice(start, min(start + BLOCK_ROWS, rows))
        size = (part.stop - part.start, columns)
        x, y = rng.standard_normal(size, dtype=drawn), rng.standard_normal(size, dtype=drawn)
        x *= scale
        y *= scale * difference
        y += x
        first[part], second[part] = x, y
    return first, second


def pair_flops(n: int, labels: int, width: int) -> int:
    """Operations of the logits of two models; those of one are half."""
    return 4 * n * labels * width


def factor_flops(labels: int, width: int) -> int:
    """Operations of the second moments of two unembeddings, the symmetric ones at half."""
    return labels * (2 * width) ** 2


def factor_row_flops(n: int, width: int) -> int:
    """Operations of the product of rows of two models with a triangular factor, its zeros left out."""
    return n * (2 * width) ** 2


def sampled(n: int) -> np.ndarray:
    return np.linspace(0, n - 1, min(n, SAMPLED_ROWS), dtype=np.int64)


def sampled_logits(h: Any, w: Any) -> np.ndarray:
    """Logits of some rows in float64, by blocks of labels."""
    few = h[sampled(len(h))].astype(np.float64)
    blocks = [few @ w[start : start + BLOCK_ROWS].astype(np.float64).T for start in range(0, len(w), BLOCK_ROWS)]
    return np.concatenate(blocks, axis=1)


def log_normalised(z: np.ndarray) -> np.ndarray:
    z = z - z.max(1, keepdims=True)
    return z - np.log(np.exp(z).sum(1, keepdims=True))


def true_pairs(models: Models) -> dict[str, np.ndarray]:
    """Of some rows, in float64; written apart from the package that it judges."""
    z1, z2 = sampled_logits(models.h1, models.w1), sampled_logits(models.h2, models.w2)
    log_p, log_q, delta = log_normalised(z1), log_normalised(z2), z1 - z2
    p, q = np.exp(log_p), np.exp(log_q)
    log_m = np.log((p + q) / 2)
    delta -= delta.mean(1, keepdims=True)
    return {
        "kl_pq": (p * (log_p - log_q)).sum(1),
        "kl_qp": (q * (log_q - log_p)).sum(1),
        "logit_distance": np.sqrt(np.square(delta).sum(1)),
        "js": ((p * (log_p - log_m)).sum(1) + (q * (log_q - log_m)).sum(1)) / 2,
        "tv": np.abs(p - q).sum(1) / 2,
    }


def true_one(h: Any, w: Any) -> dict[str, np.ndarray]:
    """The same of one model."""
    z = sampled_logits(h, w)
    log_p = log_normalised(z)
    p = np.exp(log_p)
    return {
        "lse": z[:, 0] - log_p[:, 0],
        "entropy": -(p * log_p).sum(1),
        "renyi2": -np.log(np.square(p).sum(1)),
    }


def worst(found: dict[str, np.ndarray], truth: dict[str, np.ndarray]) -> float:
    """The largest relative error of all values of the sampled rows."""
    return max(relative_error(values[sampled(len(values))], truth[name]) for name, values in found.items())


def pairs_error(state: Any, truth: dict[str, np.ndarray]) -> float:
    names = ("kl_pq", "kl_qp", "logit_distance")
    return worst({name: getattr(logits, name)(state) for name in names}, truth)


def divergences_error(state: Any, truth: dict[str, np.ndarray]) -> float:
    return worst({"js": state.js, "tv": state.tv}, truth)


def one_error(state: Any, truth: dict[str, np.ndarray]) -> float:
    found = {"lse": state.lse, "entropy": logits.entropy(state), "renyi2": logits.renyi2(state)}
    return worst(found, truth)


def tolerance(data: str) -> float:
    """Of float32, for models so far from each other."""
    return TOLERANCE["float32"] if data == "apart" else NEAR_TOLERANCE


def by_bf16_unit(dtype: str) -> bool:
    """Whether products of this dtype are taken by a unit of its own, whose rate has nothing to do with float32."""
    return dtype == "bfloat16" and _core.bf16_unit() != "none"
