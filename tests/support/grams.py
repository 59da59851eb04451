"""Kernel matrices from their definition, and how the sums of gram_sums and the values of gram_values are judged.

Distances are of differences of rows, never of dot products, in a wider number than the kernel uses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import permutations

import numpy as np

from support import bounds, cases, oracle

KERNELS = ("linear", "rbf", "laplacian", "polynomial", "cosine", "distance")
WITH_WIDTH = ("rbf", "laplacian")
DEGREE, COEF0 = 3, 0.5
# of which the centre and the offset are taken
SAMPLED_ROWS = 7
# so few rows are computed in float64 whatever they are of
ROWS_IN_DOUBLE = 1024
ROWS = (1, 2, 3, 5, 47, 48, 49, 193, 257)
FEATURES = (1, 16, 17, 256, 257)
RAGGED = tuple(
    cases.Case(f"gram_n{n}", "tail rows of a tile, of a panel, of a flush", n, p, q)
    for n, p, q in zip(ROWS, (17, 1, 3, 300, 33, 17, 16, 3, 9), (3, 2, 1, 4, 8, 1, 31, 16, 7), strict=True)
) + tuple(
    cases.Case(f"gram_p{p}", "tail features of a chunk, of a panel", 51, p, q)
    for p, q in zip(FEATURES, FEATURES[::-1], strict=True)
)
SMALL = cases.Case("gram_small", "the plain case", 60, 12, 9)


def compute_dtype(x: np.ndarray, y: np.ndarray | None, kernel: str) -> type:
    """The dtype of kernel values: few rows, and polynomials, are computed in float64."""
    return np.float64 if len(x) <= ROWS_IN_DOUBLE or kernel == "polynomial" else oracle.compute_dtype(x, y)


def typical_distance(x: np.ndarray) -> float:
    """Between sampled rows."""
    rows = sample(x)
    return float(np.sqrt(2 * np.median(np.sum((rows - np.median(rows, axis=0)) ** 2, axis=1))))


def widths(x: np.ndarray, kernel: str) -> np.ndarray | None:
    """Bandwidths on both sides of the change of offset, and none near it."""
    return (typical_distance(x) or 1.0) * np.array([0.4, 1.5, 30.0]) if kernel in WITH_WIDTH else None


def offset(x: np.ndarray, kernel: str, width: float) -> float:
    """1 where the typical kernel exponent of the sampled rows is above -1."""
    ratio = typical_distance(x) / width
    return float((ratio**2 / 2 if kernel == "rbf" else ratio) < 1) if kernel in WITH_WIDTH else 0.0


def sample(x: np.ndarray) -> np.ndarray:
    return np.asarray(x[:: max(1, len(x) // SAMPLED_ROWS)][:SAMPLED_ROWS], np.float64)


def centre(x: np.ndarray) -> np.ndarray:
    """The medians of the sampled rows, as the kernel rounds them."""
    medians = np.median(sample(x), axis=0)
    return medians if x.dtype == np.float64 else medians.astype(np.float32).astype(np.float64)


def directed(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1."""
    return rows / np.sqrt(np.sum(rows * rows, axis=1))[:, None]


def landmark(x: np.ndarray, about: np.ndarray) -> np.ndarray:
    """The centre at length 1, as the kernel rounds it."""
    made = about / np.sqrt(about @ about) if about.any() else about
    return made if x.dtype == np.float64 else made.astype(np.float32).astype(np.float64)


def powered(dots: np.ndarray, about: np.ndarray) -> np.ndarray:
    """The polynomial kernel of dot products."""
    return (dots / dots.dtype.type(len(about)) + dots.dtype.type(COEF0)) ** DEGREE


@dataclass(frozen=True)
class Pairs:
    """All pairs of rows of x and z about a centre, in a wider number than `compute`: what every kernel is made of."""

    dots: np.ndarray
    sizes: np.ndarray  # the absolute values of the terms of the dots
    squares: np.ndarray  # distances, of differences of rows
    norms: tuple[np.ndarray, np.ndarray]
    at_about: tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]  # dots with the centre, and sizes
    about: np.ndarray
    compute: type

    @classmethod
    def of(cls, x: np.ndarray, z: np.ndarray, kernel: str, compute: type, about: np.ndarray) -> Pairs:
        number = oracle.WIDE if compute is np.float64 else np.float64
        u, v = (np.asarray(a).astype(number) for a in (x, z))
        if kernel == "cosine":
            u, v = directed(u), directed(v)
            about = landmark(x, about)
        reach_u, reach_v = (np.abs(a) + np.abs(about) if kernel == "cosine" else np.abs(a - about) for a in (u, v))
        if kernel != "polynomial":
            u, v = u - about.astype(number), v - about.astype(number)
        sizes = np.abs(u) @ np.abs(v).T
        if kernel == "cosine":
            # rows of length 1, and the landmark, are rounded before they are subtracted
            both = reach_u @ reach_v.T * float(np.finfo(compute).eps)
            sizes = reach_u @ np.abs(v).T + np.abs(u) @ reach_v.T + both
        apart = kernel in ("rbf", "laplacian", "distance")
        squares = np.stack([np.sum((row - v) ** 2, axis=1) for row in u]) if apart else np.zeros(0)
        norms = np.sum(u * u, axis=1), np.sum(v * v, axis=1)
        at_about = (u @ about, np.abs(u) @ np.abs(about)), (v @ about, np.abs(v) @ np.abs(about))
        return cls(u @ v.T, sizes, squares, norms, at_about, about, compute)


def matrix(
    pairs: Pairs, kernel: str, width: float, off: float, rounding: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """k of all pairs of rows, and what one rounding of each step may change in it, in units of that rounding."""
    eps, tiny = float(np.finfo(pairs.compute).eps), float(np.finfo(pairs.compute).tiny)
    if rounding is not None:
        eps, tiny = rounding, float(np.finfo(np.float32).tiny)
    dots, sizes, squares, (a, b) = pairs.dots, pairs.sizes, pairs.squares, pairs.norms
    if kernel in ("linear", "cosine"):
        return dots, sizes
    if kernel == "polynomial":
        (u, size_u), (v, size_v) = pairs.at_about
        own = pairs.about @ pairs.about
        k = powered(dots, pairs.about) - powered(u, pairs.about)[:, None] - powered(v, pairs.about)[None, :]
        scale = (powered(part, pairs.about) for part in (sizes, size_u[:, None], size_v[None, :], own))
        return k + powered(own, pairs.about), DEGREE * sum(scale)
    terms = a[:, None] + b[None, :] + 2 * sizes
    root = np.sqrt(squares)
    loss = np.minimum(terms / (2 * np.maximum(root, np.sqrt(terms) * eps + tiny / eps)), np.sqrt(terms / eps))
    if kernel == "distance":
        return root, root + loss
    if kernel == "rbf":
        t, lost = squares / (2 * width**2), terms / (2 * width**2)
    else:
        t, lost = root / width, (root + loss) / width
    k = np.expm1(-t) if off else np.exp(-t)
    return k, np.abs(k) + np.exp(-t) * lost + tiny / eps


def naive_matrix(
    x: np.ndarray, z: np.ndarray, kernel: str, width: float, off: float, compute: type, about: np.ndarray
) -> np.ndarray:
    """The plain NumPy expression in the compute dtype, on centred data."""
    u, v, c = (np.asarray(a).astype(compute) for a in (x, z, about))
    if kernel == "polynomial":
        return powered(u @ v.T, c) - powered(u @ c, c)[:, None] - powered(v @ c, c)[None, :] + powered(c @ c, c)
    if kernel == "cosine":
        u, v, c = directed(u), directed(v), landmark(x, about).astype(compute)
    u, v = u - c, v - c
    a, b, dots = np.sum(u * u, axis=1), np.sum(v * v, axis=1), u @ v.T
    if kernel in ("linear", "cosine"):
        return dots
    squares = np.maximum(a[:, None] + b[None, :] - 2 * dots, compute(0))
    if kernel == "distance":
        return np.sqrt(squares)
    t = squares / compute(2 * width**2) if kernel == "rbf" else np.sqrt(squares) / compute(width)
    return np.expm1(-t) if off else np.exp(-t)


def _sums(matrices: list[np.ndarray], counted: np.ndarray) -> dict[str, np.ndarray]:
    found = {}
    apart = [np.where(counted & ~np.eye(len(counted), dtype=bool), k, k.dtype.type(0)) for k in matrices]
    for side, k, full in zip("xy", apart, matrices, strict=False):
        found[f"rows_{side}"] = k.sum(axis=1)
        found[f"sum_{side}{side}"] = (k * k).sum()
        found[f"diagonal_{side}"] = np.where(np.diagonal(counted), np.diagonal(full), 0)
    if len(apart) == 2:
        found["sum_xy"] = (apart[0] * apart[1]).sum()
    return found


def _scales(matrices: list[np.ndarray], losses: list[np.ndarray], counted: np.ndarray) -> dict[str, np.ndarray]:
    found = {}
    apart = counted & ~np.eye(len(counted), dtype=bool)
    sizes = [np.where(apart, np.abs(k), 0) for k in matrices]
    for side, size, loss in zip("xy", sizes, losses, strict=False):
        found[f"rows_{side}"] = np.where(apart, loss, 0).sum(axis=1)
        found[f"sum_{side}{side}"] = 2 * (size * loss).sum()
        found[f"diagonal_{side}"] = np.where(np.diagonal(counted), np.diagonal(loss), 0)
    if len(sizes) == 2:
        found["sum_xy"] = (sizes[0] * losses[1] + sizes[1] * losses[0]).sum()
    return found


def counted_pairs(n: int, block_rows: int, pairs: np.ndarray) -> np.ndarray:
    """Which pairs of rows lie in pairs of blocks."""
    block = np.arange(n) // block_rows
    found = np.zeros((n, n), dtype=bool)
    for i, j in pairs:
        found |= (block[:, None] == i) & (block[None, :] == j) | (block[:, None] == j) & (block[None, :] == i)
    return found


@dataclass(frozen=True)
class Expected:
    """What the sums of one bandwidth should be, how much they may differ, and how much the naive ones do."""

    offsets: dict[str, float]
    truth: dict[str, np.ndarray]
    scale: dict[str, np.ndarray]
    naive: dict[str, np.ndarray]


def expected(
    x: np.ndarray,
    y: np.ndarray | None,
    kernel: str,
    widths_x: object = None,
    widths_y: object = None,
    counted: np.ndarray | None = None,
    rounding: float | None = None,
) -> list[Expected]:
    """The sums over the counted pairs of rows for each bandwidth; rounding is that of the data, if not of a number."""
    counted = np.ones((len(x), len(x)), dtype=bool) if counted is None else counted
    seen = np.flatnonzero(counted.any(axis=1))
    arrays = {"x": x} if y is None else {"x": x, "y": y}
    compute, sides = compute_dtype(x, y, kernel), {}
    for side, a in arrays.items():
        rows, about = a[seen], centre(a)
        sides[side] = rows, about, Pairs.of(rows, rows, kernel, compute, about)
    inside = counted[np.ix_(seen, seen)]
    found = []
    for s in range(1 if widths_x is None else len(widths_x)):
        matrices, losses, naive, offsets = [], [], [], {}
        for side, given in zip(sides, (widths_x, widths_y), strict=False):
            rows, about, pairs = sides[side]
            width = 1.0 if given is None else float(given[s])
            off = offsets[f"offset_{side}"] = offset(arrays[side], kernel, width)
            k, loss = matrix(pairs, kernel, width, off, rounding)
            plain = naive_matrix(rows, rows, kernel, width, off, compute, about)
            if kernel in ("rbf", "laplacian", "distance"):
                np.fill_diagonal(plain, 0 if kernel == "distance" else 1 - off)
            matrices.append(k)
            losses.append(loss)
            naive.append(plain)
        sums = (_sums(matrices, inside), _scales(matrices, losses, inside), _sums(naive, inside))
        found.append(Expected(offsets, *(_spread(part, seen, len(x)) for part in sums)))
    return found


def _spread(sums: dict[str, np.ndarray], seen: np.ndarray, n: int) -> dict[str, np.ndarray]:
    """The same over all n rows, zero for those that were not seen."""
    found = {}
    for key, value in sums.items():
        found[key] = np.zeros(n, value.dtype) if np.ndim(value) else value
        if np.ndim(value):
            found[key][seen] = value
    return found


@cache
def expected_of_case(case: cases.Case, dtype: str, kernel: str) -> list[Expected]:
    """The sums of a whole case, which every backend and instruction set is judged by."""
    x, y = case.arrays(dtype)
    return expected(x, y, kernel, widths(x, kernel), widths(y, kernel))


def arguments(x: np.ndarray, y: np.ndarray | None, kernel: str) -> dict:
    """The keywords of gram_sums that `expected` stands for."""
    keywords = {"kernel": kernel, "degree": DEGREE, "coef0": COEF0, "bandwidth_x": widths(x, kernel)}
    return keywords if y is None else keywords | {"bandwidth_y": widths(y, kernel)}


def assert_case(kernel_sums: Callable[..., dict], case: cases.Case, dtype: str, kernel: str) -> None:
    """A whole case by one implementation of gram_sums."""
    x, y = case.arrays(dtype)
    assert_sums(
        kernel_sums(x, y, **arguments(x, y, kernel)), expected_of_case(case, dtype, kernel), compute_dtype(x, y, kernel)
    )


def assert_blocks(kernel_sums: Callable[..., dict], case: cases.Case, dtype: str, kernel: str) -> None:
    """A case as the first of the blocks of so many rows that these are computed in float32, and the last block."""
    x, y, pairs, want = _expected_of_blocks(case, dtype, kernel)
    got = kernel_sums(x, y, **arguments(x, y, kernel), block_rows=case.n, pairs=pairs)
    assert_sums(got, want, compute_dtype(x, y, kernel))


@cache
def _expected_of_blocks(case: cases.Case, dtype: str, kernel: str) -> tuple:
    n = ROWS_IN_DOUBLE + 6
    x, y = (a[np.arange(n) % case.n] for a in case.arrays(dtype))
    last = -(-n // case.n) - 1
    pairs = np.array([[0, 0], [0, last], [last, last]])
    counted = counted_pairs(n, case.n, pairs)
    return x, y, pairs, expected(x, y, kernel, widths(x, kernel), widths(y, kernel), counted)


def assert_arrays(
    got: dict, x: np.ndarray, y: np.ndarray | None, kernel: str, counted: np.ndarray | None = None
) -> None:
    """The sums of arrays with the arguments of `arguments`."""
    given = arguments(x, y, kernel)
    want = expected(x, y, kernel, given["bandwidth_x"], given.get("bandwidth_y"), counted)
    assert_sums(got, want, compute_dtype(x, y, kernel))


def without_errors(found: dict) -> dict:
    """The sums, without the estimated errors that a GPU tells as well."""
    return {key: value for key, value in found.items() if not key.startswith("error_")}


def assert_sums(got: dict, want: list[Expected], compute: type) -> None:
    """Every entry no worse than the naive expression, for each bandwidth."""
    assert set(got) == {"n", *want[0].offsets, *want[0].truth}
    n = len(want[0].truth["rows_x"])
    assert got["n"] == n
    for s, one in enumerate(want):
        for key, value in one.offsets.items():
            assert got[key][s] == value, key
        for key, value in one.truth.items():
            assert got[key].dtype == np.float64
            assert got[key].shape == ((len(want), n) if np.ndim(value) else (len(want),)), key
            bounds.assert_no_worse_than_naive(
                got[key][s],
                value,
                one.naive[key],
                compute=compute,
                scale=one.scale[key],
                terms=n if np.ndim(value) else n * n,
                what=f"{key}[{s}]",
            )


def assert_values(got: dict, x: np.ndarray, z: np.ndarray | None, kernel: str, width: float, index: int) -> None:
    """The values of one layer, above the diagonal or with other rows, and their sums."""
    compute = np.float64 if kernel == "polynomial" else oracle.compute_dtype(x, z)
    off = offset(x, kernel, width)
    assert got["offsets"][index] == off
    assert got["values"].dtype == compute
    other = x if z is None else z
    k, loss = matrix(Pairs.of(x, other, kernel, compute, centre(x)), kernel, width, off)
    plain = naive_matrix(x, other, kernel, width, off, compute, centre(x))
    if z is None:
        for a in (k, loss, plain):
            np.fill_diagonal(a, 0)
    flat = (lambda a: a[np.triu_indices(len(a), 1)]) if z is None else np.ravel
    checked = {"values": (flat(k), flat(plain), flat(loss))}
    checked["rows"] = (k.sum(axis=1), plain.sum(axis=1), loss.sum(axis=1))
    checked["squares"] = (
        (k * k).sum(),
        (plain * plain).sum(),
        (2 * np.abs(k) * loss + float(np.finfo(compute).eps) * loss * loss).sum(),
    )
    if z is not None:
        checked["columns"] = (k.sum(axis=0), plain.sum(axis=0), loss.sum(axis=0))
    assert set(got) == {*checked, "offsets"}
    for key, (want, rough, scale) in checked.items():
        if np.size(want):
            bounds.assert_no_worse_than_naive(
                got[key][index], want, rough, compute=compute, scale=scale, terms=k.size, what=key
            )


def dense_matrix(x: np.ndarray, kernel: str, width: float = 1.0) -> np.ndarray:
    """k of all pairs of rows in extended precision, without any offset."""
    about = np.asarray(x[0], np.float64)
    return matrix(Pairs.of(x, x, kernel, np.float64, about), kernel, width, 0.0)[0]


def dense_hsic(k: np.ndarray, m: np.ndarray, estimator: str) -> float:
    """HSIC of two dense matrices: by U-centring, or as tr(K H L H) / (n - 1)^2 with H written out."""
    if estimator == "unbiased":
        return float(oracle.gram_hsic(k, m))
    n = len(k)
    h = np.eye(n, dtype=k.dtype) - k.dtype.type(1) / k.dtype.type(n)
    return float(np.trace(k @ h @ m @ h) / (n - 1) ** 2)


def dense_cka(k: np.ndarray, m: np.ndarray, estimator: str) -> float:
    terms = [dense_hsic(a, b, estimator) for a, b in ((k, m), (k, k), (m, m))]
    return terms[0] / np.sqrt(terms[1]) / np.sqrt(terms[2])


def u_statistic(k: np.ndarray, m: np.ndarray) -> float:
    """The mean over ordered quadruples of distinct rows of k_ij (m_ij + m_qr - 2 m_iq)."""
    terms = [k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q]) for i, j, q, r in permutations(range(len(k)), 4)]
    return float(np.sum(np.array(terms, oracle.WIDE)) / len(terms))


@cache
def shared(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Float64 x (n, 6) and y (n, 4) that share a part."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, 6))
    y = x[:, :4] + rng.standard_normal((n, 4))
    for a in (x, y):
        a.setflags(write=False)
    return x, y
