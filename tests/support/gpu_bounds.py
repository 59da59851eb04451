"""What rounding rows to bfloat16, once, may change in kernel values and in their sums; and rows held in such planes."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from support import bounds, grams

# an estimate from 65536 of the pairs of rows, against the error of all of them
SAMPLED_FACTOR = 1.25
# one kernel value in float32: its distance, the factor, the exponential, and what is taken off
VALUE_ULPS = 8.0


def rounding(precision: str, p: int) -> float:
    """What a dot product may lose of the sum of its absolute terms, with the norms beside it."""
    return bounds.rounded_once(precision, 2, p)


def planes(d: np.ndarray, precision: str) -> list[np.ndarray]:
    """The bfloat16 parts of float32 values, in float64."""
    rest, found = np.asarray(d, np.float32), []
    for _ in range({"fast": 1, "high": 2}[precision]):
        part = rest.astype(ml_dtypes.bfloat16).astype(np.float32)
        found.append(part.astype(np.float64))
        rest = rest - part
    return found


def products(d: np.ndarray, precision: str) -> tuple[np.ndarray, np.ndarray]:
    """Dot products of all rows as held, less those of two lower halves, and squared norms likewise."""
    parts = planes(d, precision)
    held = sum(parts)
    dots = held @ held.T
    if precision == "high":
        dots = dots - parts[1] @ parts[1].T
    return dots, np.diagonal(dots)


def held_matrix(x: np.ndarray, kernel: str, precision: str, width: float, offset: float) -> np.ndarray:
    """k of all pairs of rows of x as the planes hold them, in float64."""
    u = np.asarray(x).astype(np.float64)
    about = grams.centre(x)
    if kernel == "cosine":
        u, about = grams.directed(u), grams.landmark(x, about)
    d = u.astype(np.float32) - about.astype(np.float32)
    dots, norms = products(d, precision)
    if kernel in ("linear", "cosine"):
        return dots
    squares = np.maximum(norms[:, None] + norms[None, :] - 2 * dots, 0)
    if kernel == "distance":
        return np.sqrt(squares)
    t = squares / (2 * width**2) if kernel == "rbf" else np.sqrt(squares) / width
    return np.expm1(-t) if offset else np.exp(-t)


def assert_rounded_sums(got: dict, want: list[grams.Expected], share: float) -> None:
    """Every sum is off by no more than a rounding by this share of each value of the data, in all of its terms."""
    for s, one in enumerate(want):
        for key, value in one.offsets.items():
            assert got[key][s] == value, key
        for key, value in one.truth.items():
            what = f"{key}[{s}]"
            bounds.assert_rounded_once(got[key][s], value, one.scale[key], share, what)


def assert_relative_values(got: np.ndarray, truth: np.ndarray, exponents: np.ndarray, what: str) -> None:
    """Each value has the digits of float32, but for those of its exponent, and values below the range of float32."""
    eps, tiny = float(np.finfo(np.float32).eps), float(np.finfo(np.float32).tiny)
    lost = np.abs(truth) + exponents * np.exp(-exponents)
    error = np.abs(got - truth) / np.maximum(lost, tiny / eps)
    assert error.max() <= VALUE_ULPS * eps, f"{what}: error {error.max() / eps:.3g} ulps, allowed {VALUE_ULPS:g}"


def assert_estimate(estimate: float, truth: float, what: str) -> None:
    """An estimate of an error, from a sample."""
    bound = SAMPLED_FACTOR
    assert truth / bound <= estimate <= truth * bound, f"{what}: estimated {estimate:.3g}, the error is {truth:.3g}"


def assert_sums_of_values(rows: np.ndarray, values: np.ndarray, x: np.ndarray, kernel: str, width: float) -> None:
    """Row sums of values that are float32 but for what the planes hold: norms, exponents, values and their sums."""
    share = bounds.rounded_once("exact", 2, x.shape[1])
    pairs = grams.Pairs.of(x, x, kernel, np.float32, grams.centre(x))
    _, loss = grams.matrix(pairs, kernel, width, grams.offset(x, kernel, width), share)
    bounds.assert_rounded_once(rows, values.sum(axis=1), loss.sum(axis=1), share, f"{kernel} {width}")


def relative_error(values: np.ndarray, truth: np.ndarray) -> float:
    """Root mean square over i != j, against the truth less its means over rows and columns."""
    apart = ~np.eye(len(truth), dtype=bool)
    centred = truth - truth.mean(axis=0) - truth.mean(axis=1, keepdims=True) + truth.mean()
    return float(np.sqrt(np.mean((values - truth)[apart] ** 2) / np.mean(centred[apart] ** 2)))


def tile_sums(values: np.ndarray, size: int, symmetric: bool) -> tuple[np.ndarray, np.ndarray]:
    """Sums of each tile over its columns, (tile across, row), and over its rows, (tile down, column), padded."""
    n, m = (-(-length // size) * size for length in values.shape)
    padded = np.zeros((n, m))
    padded[: values.shape[0], : values.shape[1]] = values
    across = padded.reshape(n, m // size, size).sum(axis=2).T
    down = padded.reshape(n // size, size, m).sum(axis=1)
    assert not symmetric or np.array_equal(across, down)
    return across, down


# a value of a factor or of hidden states as planes hold it, once for each of the two, and products that are left out:
# each is off by half a unit of the last of 8 or 16 bits at the most
FACTOR_ROUNDING = {"fast": 2 * 2.0**-9, "high": 3 * 2.0**-18}
# of rows that cancel so far that they are done again in float64
FACTOR_AGAIN = bounds.LOGIT_DISTANCE


def cancelled(matrix: np.ndarray, h1: np.ndarray, h2: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """Root of the sum of (u_j c_j)^2 for the lengths c_j of the columns of a factor, over the distance of a row."""
    h1, h2 = (np.asarray(h).astype(np.float64) for h in (h1, h2))
    u = np.hstack([h1 - h2 if h1.shape == h2.shape else h1, h2, np.ones((len(h1), 1))])[:, : matrix.shape[1]]
    lengths = np.linalg.norm(matrix, axis=0)
    return np.linalg.norm(u * lengths, axis=1) / np.sqrt(squares.astype(np.float64))


def assert_factor_rows(
    got: np.ndarray, truth: np.ndarray, precision: str, matrix: np.ndarray, h1: np.ndarray, h2: np.ndarray
) -> None:
    """Squared distances: twice what their root may be off by, where all values of a row are off the same way."""
    error = np.abs(got - truth) / truth
    if precision == "exact":
        assert error.max() <= bounds.SAME_FP64, f"exact: error {error.max():.3g}"
        return
    bound = 2 * FACTOR_ROUNDING[precision] * np.maximum(cancelled(matrix, h1, h2, truth), 1.0)
    assert (error <= bound).all(), f"{precision}: {(error / bound).max():.3g} of what is allowed, {error.max():.3g}"
