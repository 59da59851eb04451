"""Test of independence by HSIC, with a permutation or gamma null."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from .._base.arrays import Array
from .pair_request import KernelPass
from .permutation_null import (
    _Centred,
    _centred,
    _hsic,
    _pvalue,
    _self_hsics,
    _width,
    checked_null,
    checked_rows,
    permuted_hsics,
)


@dataclass(frozen=True)
class HSICTest:
    """Result of a test of independence.

    Parameters
    ----------
    statistic : float
        The biased HSIC, tr(K H L H) / (n - 1)^2.
    pvalue : float
        Probability of a statistic at least as large if x and y are independent.
    null : str
        "permutation" or "gamma".
    null_mean, null_std : float
        Mean and standard deviation of the statistic over all n! permutations of the rows of y, in closed form.
    n : int
        Number of rows.
    kernel : str
        Kernel of both arrays.
    bandwidth_x, bandwidth_y : float or None
        Their bandwidths, in units of x and of y; None for a kernel without.
    n_permutations : int
        Permutations drawn, 0 for the gamma null.
    seed : int or None
        Seed of the permutations, None for the gamma null.

    Examples
    --------
    >>> import numpy as np
    >>> import gramless as gl
    >>> x = np.random.default_rng(0).standard_normal((200, 2))
    >>> found = gl.hsic_test(x, x[:, :1] ** 2, n_permutations=199)
    >>> found.pvalue
    0.005
    >>> found.statistic == gl.hsic(x, x[:, :1] ** 2, kernel="rbf", estimator="biased")
    True
    """

    statistic: float
    pvalue: float
    null: str
    null_mean: float
    null_std: float
    n: int
    kernel: str
    bandwidth_x: float | None
    bandwidth_y: float | None
    n_permutations: int
    seed: int | None


def hsic_test(
    x: Array,
    y: Array,
    *,
    null: str = "permutation",
    kernel: str = "rbf",
    bandwidth: str | float | None = None,
    bandwidth_scale: float = 1.0,
    degree: int = 3,
    coef0: float = 1.0,
    n_permutations: int = 999,
    seed: int = 0,
    progress: bool = False,
    backend: str = "auto",
) -> HSICTest:
    """Test whether the rows of x and y are independent.

    Parameters
    ----------
    x : array of shape (n, p), float16, bfloat16, float32 or float64
        NumPy, torch on the CPU, or anything with DLPack. Rows are independent draws; n is at least 4.
    y : array of shape (n, q)
        The other representation of the same rows.
    null : {"permutation", "gamma"}
        "permutation" compares with random permutations of the rows of y: p-values are never too small, whatever n.
        "gamma" compares with the gamma distribution that has the mean and variance of all permutations: one pass, and
        good where p-values are not small.
    kernel, bandwidth, bandwidth_scale, degree, coef0
        As in `gramless.cka`. With rbf and laplacian kernels any dependence is found, given rows enough.
    n_permutations : int
        The least p-value is 1 / (1 + n_permutations).
    seed : int
        Same seed, same permutations.
    progress : bool
        Show a progress bar over the permutations.
    backend : {"auto", "reference", "cpu"}
        A named backend never falls back to another.

    Returns
    -------
    HSICTest
        With statistic and pvalue in (0, 1]; by permutation pvalue is (1 + permutations whose statistic is at least
        this one) / (1 + n_permutations).

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As `gramless.hsic`; ValueError if n < 4, n_permutations < 1 or seed < 0, and for the gamma null if
        n_permutations is given, or where the mean over permutations is not above 0, as a polynomial kernel may have it.

    Notes
    -----
    One pass as `gramless.hsic`. Then for each permutation: linear kernel, 2 n p q flops and a copy of y; other kernels,
    and linear if 2 n <= p + q, n^2 / 2 look-ups up to 4096 rows, with 12 n^2 bytes held (192 MiB at most), and beyond
    that n^2 (p + q) flops, O(n) bytes and a copy of y. It can be interrupted between permutations.

    Statistic and gamma null: Gretton et al. (2008), NIPS 20, with exact moments for any n of Kazi-Aoual et al. (1995).

    Examples
    --------
    >>> import numpy as np
    >>> import gramless as gl
    >>> rng = np.random.default_rng(0)
    >>> x = rng.standard_normal((100, 1))
    >>> y = np.cos(3 * x) + rng.standard_normal((100, 1)) / 2
    >>> gl.hsic_test(x, y, bandwidth_scale=0.5, n_permutations=199).pvalue
    0.005
    >>> gl.hsic_test(x, y, bandwidth_scale=0.5, null="gamma").pvalue < 0.01
    True
    >>> gl.hsic_test(x, rng.permutation(y)).pvalue > 0.05
    True
    """
    function = "hsic_test"
    seed = checked_null(function, null, n_permutations, seed)
    request = KernelPass(function, kernel, "biased", bandwidth, bandwidth_scale, degree, coef0, backend)
    x, y = checked_rows(request, x, y)
    n = int(x.shape[0])
    state = request.state(x, y)
    selves = _self_hsics(request, state)
    statistic = _hsic(request, state)
    mean, variance = _permutation_moments(_centred(state, "x", selves["x"]), _centred(state, "y", selves["y"]), n)
    widths = {f"bandwidth_{name}": _width(state, name) for name in ("x", "y")}
    facts: dict[str, Any] = {"null_mean": mean, "null_std": math.sqrt(variance), "n": n, "kernel": kernel, **widths}
    if null == "gamma":
        pvalue = _gamma_tail(function, statistic, mean, variance)
        return HSICTest(statistic, pvalue, null, n_permutations=0, seed=None, **facts)
    observed, values = permuted_hsics(request, state, x, y, n_permutations, seed, progress=progress)
    return HSICTest(statistic, _pvalue(observed, values), null, n_permutations=n_permutations, seed=seed, **facts)


def _permutation_moments(a: _Centred, b: _Centred, n: int) -> tuple[float, float]:
    """Return mean and variance of sum A_ij B_pi(i)pi(j) over all permutations pi."""

    def apart(c: _Centred) -> float:
        return (n - 1) * c.square - c.trace**2

    def along(c: _Centred) -> float:
        return n * (n + 1) * c.diagonal - (n - 1) * (c.trace**2 + 2 * c.square)

    variance = 2 * apart(a) * apart(b) / ((n - 1) ** 2 * (n + 1) * (n - 2))
    variance += along(a) * along(b) / ((n + 1) * n * (n - 1) * (n - 2) * (n - 3))
    return a.trace * b.trace / (n - 1), max(variance, 0.0)


def _gamma_tail(function: str, statistic: float, mean: float, variance: float) -> float:
    """Return how much of the gamma distribution with this mean and variance is at or above a statistic."""
    from scipy.special import gammaincc

    if not (mean > 0 and variance > 0):
        raise ValueError(
            f"{function}: null='gamma' needs a mean and a variance over permutations above 0, got {mean:.3g} and "
            f"{variance:.3g}; use null='permutation'"
        )
    return float(gammaincc(mean**2 / variance, max(statistic, 0.0) * mean / variance))
