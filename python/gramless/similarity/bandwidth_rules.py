"""Rules that choose the bandwidth of a kernel from the data."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .._base import arguments, gpu_arrays
from .._base.arrays import Array
from ..ops import backends
from . import bandwidth_rules

if TYPE_CHECKING:
    import torch

RULES = ("median", "kornblith")
# most rows whose distances are all taken; of more rows, as many are sampled
EXACT_ROWS = 4096
# parts of a sample whose own results show how far it may be off
_GROUPS = 32
# how the backends name the array that they refuse
_REFUSED = re.compile(r"^gram_\w+: (?:layer )?0 ")


@dataclass(frozen=True)
class Bandwidth:
    """The bandwidth of a kernel, and where it is from.

    Parameters
    ----------
    value : float
        The bandwidth s of exp(-d^2 / (2 s^2)) or exp(-d / s), in the units of x.
    rule : str
        "median", "kornblith" or "given".
    n : int
        Number of rows whose distances were taken, 0 if given.
    exact : bool
        False if these rows are a sample.
    stderr : float
        Standard error of the value; 0 if exact.

    Examples
    --------
    >>> import numpy as np
    >>> import gramless as gl
    >>> gl.bandwidth(np.array([[0.0], [1.0], [3.0]]))
    Bandwidth(value=2.0, rule='median', n=3, exact=True, stderr=0.0)
    """

    value: float
    rule: str
    n: int
    exact: bool
    stderr: float


def bandwidth(
    x: Array, rule: str | float = "median", *, scale: float = 1.0, seed: int = 0, backend: str = "auto"
) -> Bandwidth:
    """Return the bandwidth that a rule chooses for the rows of x.

    Parameters
    ----------
    x : array of shape (n, p), float16, bfloat16, float32 or float64
        NumPy, torch on the CPU or a GPU, or anything with DLPack.
    rule : {"median", "kornblith"} or number
        "median" is the median of the distances over i < j. "kornblith" is the root of the median of all n^2 squared
        distances, those on the diagonal included, as in the notebook of Kornblith et al. (2019): its `threshold` is
        scale. Medians are the mean of the two middle values where these are two.
    scale : float
        What the bandwidth is multiplied by.
    seed : int
        Of the sample, if n is above 4096.
    backend : {"auto", "reference", "cpu", "cuda"}
        A named backend never falls back to another.

    Returns
    -------
    Bandwidth
        Exact up to 4096 rows; beyond, of as many rows drawn without replacement, with its standard error.

    Raises
    ------
    TypeError
        If x is no array of the four dtypes, or the rule is neither a text nor a number.
    ValueError
        If the rule is unknown, a number is not above 0 and finite, the seed is no whole number, or x has one row,
        non-finite values, or rows that are equal in most pairs.
    RuntimeError
        If the named backend does not read where x lies, or is missing.

    Notes
    -----
    For m rows m^2 p flops and 2 m^2 + 4 m p bytes, 4 m^2 + 8 m p for float64; m is at most 4096. The standard error is
    that of 32 random parts of the sample.

    Examples
    --------
    >>> import numpy as np
    >>> import gramless as gl
    >>> x = np.random.default_rng(0).standard_normal((1000, 8))
    >>> round(gl.bandwidth(x).value, 4)
    3.8523
    >>> gl.bandwidth(x, "kornblith", scale=0.5).rule
    'kornblith'
    """
    function = "bandwidth"
    check(function, "rule", rule, scale)
    seed = arguments.seed(function, seed)
    return chosen(function, "x", arguments.rows(function, "x", x, on_gpu=True), rule, scale, seed, backend)


def check(function: str, name: str, rule: Any, scale: Any, scale_name: str = "scale") -> None:
    """Refuse what is neither a rule nor a bandwidth, before any distance is taken."""
    if isinstance(rule, str):
        if rule not in RULES:
            known = " or ".join(map(repr, RULES))
            raise ValueError(f"{function}: expected {name} to be {known} or a number above 0, got {rule!r}")
    else:
        width = arguments.above_zero(function, name, rule) * arguments.above_zero(function, scale_name, scale)
        if not 0 < width < math.inf:
            raise ValueError(f"{function}: {name} times {scale_name} leaves the range of float64: {rule!r} * {scale!r}")
    arguments.above_zero(function, scale_name, scale)


def chosen(
    function: str, name: str, x: Array, rule: str | float, scale: float, seed: int = 0, backend: str = "auto"
) -> Bandwidth:
    """Return the bandwidth of a checked array by a checked rule."""
    if not isinstance(rule, str):
        return Bandwidth(float(rule) * float(scale), "given", 0, True, 0.0)
    n = int(x.shape[0])
    if n < 2:
        raise ValueError(f"{function}: bandwidth={rule!r} needs at least 2 rows, got n = {n}")
    exact = n <= EXACT_ROWS
    rng = np.random.default_rng(seed)
    rows = x if exact else x[np.sort(rng.choice(n, EXACT_ROWS, replace=False))]
    m = min(n, EXACT_ROWS)
    distances = _distances(function, name, rows, backend, exact=exact)
    stderr = 0.0
    if not exact:
        groups = rng.permutation(m).reshape(_GROUPS, -1)
        parts = [rule_of_distances(distances[_places(np.sort(group), m)], len(group), rule) for group in groups]
        stderr = float(scale * np.std(parts, ddof=1) / math.sqrt(_GROUPS) * math.sqrt(1 - m / n))
    value = rule_of_distances(distances, m, rule)
    if value == 0:
        what = "all" if not distances.any() else "most"
        raise ValueError(
            f"{function}: bandwidth={rule!r} is 0 for {name}, {what} pairs of its rows are equal"
            + ("" if what == "all" else "; give the bandwidth as a number")
        )
    return Bandwidth(float(scale * value), rule, m, exact, stderr)


def _distances(function: str, name: str, rows: Array, backend: str, *, exact: bool) -> NDArray[Any]:
    """Return the distances over i < j, flat."""
    if gpu_arrays.is_asked_for({name: rows}, backend):
        backends.resolve("gram_sums", backend, arrays={name: rows}, precision="exact")
        return _on_gpu(function, name, rows, exact=exact)
    kernel = backends.resolve_gram_values(backend)
    array = arguments.to_numpy(rows) if kernel.backend == "reference" else rows
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            values: NDArray[Any] = kernel.kernel([array], kernel="distance")["values"][0]
    except ValueError as error:
        if "overflow" in str(error):
            raise _overflow(function, name) from None
        text = _REFUSED.sub(f"{function}: {name} ", str(error))
        # rows of a sample have other numbers
        text = text if exact else re.sub(r" in rows \d+\.\.\d+", "", text)
        raise arguments.advise_on_nonfinite(ValueError(text), rows) from None
    if not np.isfinite(values).all():
        raise _overflow(function, name)
    return values


def _on_gpu(function: str, name: str, rows: Array, *, exact: bool) -> NDArray[Any]:
    """Return the same of rows on a GPU; this waits for it."""
    values, first_bad = bandwidth_rules.distances(gpu_arrays.tensor(rows))
    n = int(rows.shape[0])
    if first_bad < n:
        error = gpu_arrays.nonfinite(function, name, first_bad, n)
        # rows of a sample have other numbers
        text = str(error) if exact else re.sub(r" in rows \d+\.\.\d+", "", str(error))
        raise arguments.advise_on_nonfinite(ValueError(text), rows)
    if not np.isfinite(values).all():
        raise _overflow(function, name)
    return values


def _overflow(function: str, name: str) -> ValueError:
    return ValueError(f"{function}: distances between the rows of {name} overflow; scale the data down")


def _places(rows: NDArray[np.int64], m: int) -> NDArray[np.int64]:
    """Return where the distances between some of m rows lie among those of all."""
    first, second = np.triu_indices(len(rows), 1)
    i, j = rows[first], rows[second]
    return np.asarray(i * (2 * m - i - 1) // 2 + j - i - 1)


def rule_of_distances(distances: NDArray[Any], m: int, rule: str) -> float:
    """Return what a rule takes of the distances over i < j of m rows, which it puts into another order."""
    if rule == "median":
        count = len(distances)
        return float(_middle(distances, (count - 1) // 2, count // 2).mean())
    # of m^2 squares m are the zeros of the diagonal, all others come twice
    first, second = ((index - m) // 2 for index in ((m * m - 1) // 2, m * m // 2))
    squares = _middle(distances, max(first, 0), max(second, 0)) ** 2
    squares[[first < 0, second < 0]] = 0
    return math.sqrt(squares.mean())


def _middle(values: NDArray[Any], first: int, second: int) -> NDArray[np.float64]:
    values.partition(first)
    # NumPy is far slower at two places than at one
    return np.array([values[first], values[second:].min()], dtype=np.float64)


def distances(rows: torch.Tensor) -> tuple[NDArray[np.float64], int]:
    """Return the distances over i < j of a few rows, flat, and the first row that is not finite, in one wait.

    Peak extra bytes: 32 m^2 + 16 m p for m rows.
    """
    import torch

    m = int(rows.shape[0])
    values = rows.to(torch.float64)
    bad = torch.isfinite(values).all(dim=1).to(torch.int8).argmin()
    bad = torch.where(torch.isfinite(values[bad]).all(), m, bad)
    # about one of the rows: less is lost of distances that are small beside their lengths
    values = values - values[:1]
    squares = (values * values).sum(dim=1)
    full = (squares[:, None] + squares[None, :] - 2 * (values @ values.T)).clamp(min=0)
    above = torch.ones((m, m), dtype=torch.bool, device=rows.device).triu(1)
    return full[above].sqrt().cpu().numpy(), int(bad)
