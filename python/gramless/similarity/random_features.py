"""Random Fourier features: the RBF kernel as a linear kernel of few features, so that one mergeable pass is enough.

With frequencies w_f drawn from N(0, 1 / sigma^2), k(u, v) = exp(-|u - v|^2 / (2 sigma^2)) is the mean over f of
k_f(u, v) = cos(w_f . (u - v)) = z_f(u) . z_f(v), z_f = (cos w_f . u, sin w_f . u): Rahimi, Recht (2007), NIPS 20. HSIC
is linear in each kernel, so that the mean of HSIC(k_f, l_g) over pairs of frequencies is unbiased. In a self term the
pairs f = g are not: they hold E[k_f^2], not k^2, and are left out, as the feature-corrected estimator does with equal
features.

All pairs follow from second moments. About the means m_f of z_f, |z_f|^2 = 1 gives a_i = |z_f(u_i) - m_f|^2 =
(1 - |m_f|^2) - 2 m_f . (z_f(u_i) - m_f), so that with C the 2 x 2 block of moments of f and g

    P = sum a_i b_i = n (1 - |m_f|^2) (1 - |m_g|^2) + 4 m_f . C m_g,   A = sum a_i = n (1 - |m_f|^2),
    HSIC_1(k_f, l_g) = (|C|^2 - n P / (n - 2) + A B / ((n - 1) (n - 2))) / (n (n - 3)).

The standard error is that of a jackknife over the frequencies of x and over those of y.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._base import arguments
from .._base.annotated_floats import Estimate
from .._base.arrays import Array, Float64
from ..accumulators.moments import Moments
from ..states.moments import MomentState
from .pair_request import KernelPass

# rows whose features are held at a time
CHUNK_ROWS = 4096
SAMPLED_ROWS = 64
# fewer frequencies tell nothing of their spread
LEAST_FEATURES = 8
# how far the mean squared norm of features may be from 1; float32 rounding is far below
_NORM_SLACK = 1e-4


class RandomFeatures:
    """Random Fourier features of the RBF kernel: z(u) . z(v) estimates exp(-|u - v|^2 / (2 bandwidth^2)).

    Parameters
    ----------
    p : int
        Number of features of the arrays to come.
    bandwidth : float
        Sigma, above 0, in units of the data.
    n_features : int
        Number of frequencies, at least 8; each makes two columns.
    seed : int or sequence of int
        Same seed, same frequencies. Two arrays that are compared need two different seeds: what is estimated from
        pairs of independent frequencies is biased otherwise.
    pivot : array of shape (p,), optional
        What to subtract from all rows, which no kernel value depends on: a point near the data saves digits where the
        mean is large against the bandwidth. Streams that are merged need the same one.

    Raises
    ------
    TypeError, ValueError
        If p, n_features, bandwidth, seed or pivot is not as above.

    Notes
    -----
    It holds 8 p n_features bytes. The error of a kernel value falls as 1 / sqrt(n_features).

    Examples
    --------
    >>> import numpy as np
    >>> import gramless as gl
    >>> rng = np.random.default_rng(0)
    >>> x = rng.standard_normal((1000, 5))
    >>> y = x + rng.standard_normal((1000, 5))
    >>> fx, fy = gl.RandomFeatures(5, 3.0, seed=0), gl.RandomFeatures(5, 3.0, seed=1)
    >>> stream = gl.Moments()
    >>> for start in range(0, 1000, 250):
    ...     rows = slice(start, start + 250)
    ...     _ = stream.update(fx.transform(x[rows]), fy.transform(y[rows]))
    >>> value = gl.cka(stream.finalize(), kernel="rbf", method="rff")
    >>> bool(abs(value - gl.cka(x, y, kernel="rbf", bandwidth=3.0)) < 4 * value.stderr)
    True
    """

    def __init__(
        self,
        p: int,
        bandwidth: float,
        n_features: int = 512,
        *,
        seed: int | Sequence[int],
        pivot: Array | None = None,
    ) -> None:
        function = "RandomFeatures"
        arguments.positive(function, "p", p)
        self._width = arguments.above_zero(function, "bandwidth", bandwidth)
        self._frequencies = checked_frequencies(function, n_features)
        seeds = [arguments.seed(function, part) for part in (seed if isinstance(seed, Sequence) else (seed,))]
        self._pivot = np.zeros(p) if pivot is None else np.array(pivot, dtype=np.float64)
        if self._pivot.shape != (p,) or not np.isfinite(self._pivot).all():
            raise ValueError(f"{function}: expected a finite pivot of shape ({p},), got shape {self._pivot.shape}")
        self._weights = np.random.default_rng(seeds).standard_normal((p, n_features)) / self._width

    def __repr__(self) -> str:
        return f"RandomFeatures(p={len(self._pivot)}, bandwidth={self._width}, n_features={self._frequencies})"

    def transform(self, x: Array) -> NDArray[Any]:
        """Return the features of rows, their squared norms 1: cosines, then sines, over sqrt(n_features).

        Parameters
        ----------
        x : array of shape (n, p), float16, bfloat16, float32 or float64
            Rows, also none.

        Returns
        -------
        array of shape (n, 2 n_features)
            NumPy; float64 if x is, else float32.

        Raises
        ------
        TypeError, ValueError, RuntimeError
            As `gramless.moments`, and ValueError if p is another.

        Notes
        -----
        2 n p n_features flops and 8 n n_features bytes, twice that for float64.
        """
        function = "RandomFeatures.transform"
        rows = arguments.rows(function, "x", x, allow_empty=True)
        return self._features(function, "x", rows, 0)

    def _features(self, function: str, name: str, x: Array, first: int) -> NDArray[Any]:
        arguments.same_widths(function, {name: len(self._pivot)}, {name: int(x.shape[1])})
        kind = np.float64 if str(x.dtype).endswith("float64") else np.float32
        # the pivot before the cast, and before the product: what is left of large rows is small
        shifted = (arguments.to_numpy(x).astype(np.float64) - self._pivot).astype(kind)
        count = self._frequencies
        made = np.empty((len(shifted), 2 * count), dtype=kind)
        with np.errstate(over="ignore", invalid="ignore"):
            angles = shifted @ self._weights.astype(kind)
        bad = np.flatnonzero(~np.isfinite(angles).all(axis=1))
        if len(bad):
            row = first + int(bad[0])
            error = ValueError(f"{function}: {name} has non-finite values in row {row}, or values beyond float32")
            raise arguments.advise_on_nonfinite(error, x)
        np.cos(angles, out=made[:, :count])
        np.sin(angles, out=made[:, count:])
        made /= kind(math.sqrt(count))
        return made


def checked_frequencies(function: str, n_features: Any) -> int:
    """Return a number of frequencies that tells of its own error."""
    arguments.positive(function, "n_features", n_features)
    if n_features < LEAST_FEATURES:
        raise ValueError(f"{function}: expected n_features of at least {LEAST_FEATURES}, got {n_features}")
    return int(n_features)


def feature_moments(request: KernelPass, x: Array, y: Array, *, n_features: int, seed: int) -> MomentState:
    """Return the moments of random features of checked arrays, of independent frequencies, in one pass.

    Cost: 2 n n_features (p + q + 8 n_features) flops, one read of x and y, 96 n_features^2 bytes.
    """
    makers = [
        RandomFeatures(int(a.shape[1]), width, n_features, seed=(seed, index), pivot=_sampled_mean(a))
        for index, (a, width) in enumerate(zip((x, y), request.widths(x, y), strict=True))
        if width is not None
    ]
    stream = Moments(backend=request.backend)
    for start in range(0, int(x.shape[0]), CHUNK_ROWS):
        rows = slice(start, start + CHUNK_ROWS)
        parts = zip("xy", (x, y), makers, strict=True)
        stream.update(*(maker._features(request.function, name, a[rows], start) for name, a, maker in parts))
    return stream.finalize()


def hsic(state: MomentState, estimator: str = "unbiased") -> Estimate:
    """HSIC of RBF kernels from the moments of their random features."""
    cross = _pairs("hsic", state, estimator)[0]
    value = float(cross.mean())
    rows, columns = cross.mean(axis=1), cross.mean(axis=0)
    left_x = (len(rows) * value - rows) / (len(rows) - 1)
    left_y = (len(columns) * value - columns) / (len(columns) - 1)
    return Estimate(value, stderr=_jackknife(left_x, left_y), n_features=min(cross.shape))


def cka(state: MomentState, estimator: str = "unbiased") -> Estimate:
    """CKA of RBF kernels from the moments of their random features.

    Raises
    ------
    ValueError
        If x or y is constant, or a self term has no root: too few rows or frequencies for so narrow a bandwidth.
    """
    cross, self_x, self_y = _pairs("cka", state, estimator)
    terms = {"x": _distinct(self_x), "y": _distinct(self_y)}
    for name, (term, _) in terms.items():
        if not term > 0:
            raise ValueError(
                f"cka: {name} has the self term {term:.3g}, which has no root: its rows do not differ, or it needs "
                "more rows or a larger n_features for this bandwidth"
            )
    (xx, left_xx), (yy, left_yy) = terms["x"], terms["y"]
    mean = float(cross.mean())
    value = mean / math.sqrt(xx) / math.sqrt(yy)
    replicates = []
    for means, left, other in ((cross.mean(axis=1), left_xx, yy), (cross.mean(axis=0), left_yy, xx)):
        count = len(means)
        if not (left > 0).all():
            raise ValueError("cka: a self term hangs on one frequency; use a larger n_features")
        replicates.append((count * mean - means) / (count - 1) / np.sqrt(left) / math.sqrt(other))
    return Estimate(value, stderr=_jackknife(*replicates), n_features=min(cross.shape))


def _pairs(function: str, state: MomentState, estimator: str) -> tuple[Float64, Float64, Float64]:
    """Return HSIC of all pairs of frequencies: of x and y, of x, of y; those on the diagonals of the last two are 0."""
    arguments.choice(function, "estimator", estimator, ("unbiased", "biased"))
    arguments.enough_rows(function, estimator, state.n)
    state = state.centred()
    n = state.n
    sides = {}
    for name, side in (("x", state.x), ("y", state.y)):
        mean = np.asarray(side.pivot, dtype=np.float64)
        norm = float(side.trace) / n + float(mean @ mean)
        if len(mean) % 2 or len(mean) < 2 * LEAST_FEATURES or abs(norm - 1) > _NORM_SLACK:
            raise ValueError(
                f"{function}: expected a state of RandomFeatures.transform, got {len(mean)} features of {name} "
                f"with mean squared norm {norm:.6g}"
            )
        # norms of 1 for each frequency by itself
        sides[name] = mean.reshape(2, -1) * math.sqrt(len(mean) / 2)

    def pairs(a: str, b: str, second: Any) -> Float64:
        return _frequency_hsics(n, sides[a], sides[b], np.asarray(second), estimator)

    cross, self_x, self_y = (
        pairs("x", "y", state.cross.second), pairs("x", "x", state.x.second), pairs("y", "y", state.y.second)
    )  # fmt: skip
    np.fill_diagonal(self_x, 0.0)
    np.fill_diagonal(self_y, 0.0)
    return cross, self_x, self_y


def _frequency_hsics(n: int, m: Float64, o: Float64, second: Float64, estimator: str) -> Float64:
    """Return HSIC (f, g) of pairs of frequencies from means m (2, f), o (2, g) and moments about them (2 f, 2 g)."""
    f, g = m.shape[1], o.shape[1]
    blocks = second.reshape(2, f, 2, g) * (math.sqrt(f * g) / n)
    squares = np.einsum("sftg,sftg->fg", blocks, blocks)
    if estimator == "biased":
        return np.asarray(squares * (n / (n - 1)) ** 2)
    a, b = 1 - np.sum(m**2, axis=0), 1 - np.sum(o**2, axis=0)
    means = np.outer(a, b)
    norms = means + 4 * np.einsum("sf,sftg,tg->fg", m, blocks, o, optimize=True)
    return np.asarray(n / (n - 3) * (squares - norms / (n - 2) + means / ((n - 1) * (n - 2))))


def _distinct(pairs: Float64) -> tuple[float, Float64]:
    """Return the mean over pairs of two different frequencies, and the same with each frequency left out (f,)."""
    count = len(pairs)
    total, rows = float(pairs.sum()), pairs.sum(axis=1)
    return total / (count * (count - 1)), (total - 2 * rows) / ((count - 1) * (count - 2))


def _jackknife(*samples: Float64) -> float:
    """Return the standard error of a function of independent samples from its values with one left out."""
    variances = [(len(left) - 1) * float(np.var(left)) for left in samples]
    return math.sqrt(sum(variances))


def _sampled_mean(x: Array) -> Float64:
    n = int(x.shape[0])
    count = min(n, SAMPLED_ROWS)
    rows = arguments.to_numpy(x[np.arange(count) * n // count]).astype(np.float64)
    mean = rows.mean(axis=0)
    # rows that are not finite are refused later, with their place
    return np.where(np.isfinite(mean), mean, 0.0)
