"""d_rep: the distance of embeddings from the linear map that two unembeddings make of each set of labels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .._base import arguments
from .._base.arrays import Array, Float64
from ..measures import identifiability as _measures
from . import model_pair
from .model_pair import Indices
from .square_roots import float64_blocks, power_of_two, root_of_rows

QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
# part of the sets that the trimmed mean leaves out at either end
TRIMMED = 0.1
# normal numbers begin here
_LEAST = 2.0**-1022
# bytes of the matrices of as many label sets as are taken at once, and of as many rows
_CHUNK_BYTES = 1 << 24


@dataclass(frozen=True)
class LinearDissimilarity:
    """What `gramless.d_rep` returns. Of the sets of labels, only those that are not singular count.

    Parameters
    ----------
    value : float
        The published average: the mean over inputs and label sets of |h1 - A h2|^2, or of its root if not squared.
    median, trimmed_mean : float
        Median over label sets of the mean over inputs, and the mean without the lowest and the highest tenth.
    least_squares : float
        The same mean over inputs for the one A that is fitted to all labels. The one to use.
    quantiles : dict of float to float
        Quantiles over label sets of sigma_min, the smallest singular value of the differences L_1 of unembeddings, on
        which A depends as its reciprocal.
    singular : int
        Label sets that were left out, since L_1 is singular to working precision.
    n_sets : int
        Label sets that count.
    seed : int
        Seed of the label sets.
    squared : bool
        Whether norms are squared.
    values, sigma_min : array of shape (n_sets,)
        The mean over inputs, and sigma_min, of each label set.

    Examples
    --------
    >>> import numpy as np
    >>> import gramless as gl
    >>> rng = np.random.default_rng(0)
    >>> h, w = rng.standard_normal((100, 2)), rng.standard_normal((6, 2))
    >>> found = gl.d_rep(h, w, h + 0.01 * rng.standard_normal((100, 2)), w)
    >>> found.n_sets, found.singular
    (120, 0)
    >>> sorted(found.quantiles)
    [0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0]
    """

    value: float
    median: float
    trimmed_mean: float
    least_squares: float
    quantiles: dict[float, float]
    singular: int
    n_sets: int
    seed: int
    squared: bool
    values: Float64
    sigma_min: Float64

    def __repr__(self) -> str:
        return (
            f"LinearDissimilarity(value={self.value:.6g}, median={self.median:.6g}, "
            f"trimmed_mean={self.trimmed_mean:.6g}, least_squares={self.least_squares:.6g}, "
            f"n_sets={self.n_sets}, singular={self.singular}, squared={self.squared}, seed={self.seed})"
        )


def d_rep(
    h1: Array,
    w1: Array,
    h2: Array,
    w2: Array,
    *,
    pivots: int | None = None,
    combinations: int = 20,
    squared: bool = True,
    seed: int = 0,
) -> LinearDissimilarity:
    """Return the linear identifiability dissimilarity: how far h1 is from A h2, with A as the unembeddings have it.

    Models with equal probabilities have h1 = A h2 with A = L_1^-T L_2^T for the differences L_k of the unembeddings of
    any d labels from that of a pivot (d_rep of Nielsen et al. 2026, arXiv:2602.15438).

    Parameters
    ----------
    h1, h2 : array of shape (N, d), float16, bfloat16, float32 or float64
        Embeddings of the same inputs.
    w1, w2 : array of shape (V, d)
        Unembeddings of the same labels, V > d.
    pivots, combinations : int
        Label sets: this many random pivots, each with so many random sets of d other labels. Default: 20 pivots, or V
        if there are fewer. The paper's code has 7 and 15, 33 and 250, 100 and 200 for V = 7, 33 and 100.
    squared : bool
        False takes |h1 - A h2| instead of its square, which needs all inputs for each label set.
    seed : int
        Of the label sets. They are those that the published code draws with this seed.

    Returns
    -------
    LinearDissimilarity
        At least 0, in the units of h1, squared if squared; 0 if the models are equal up to (A, A^-T) and the same
        vector added to all rows of w. Not symmetric in the two models.

    Raises
    ------
    TypeError
        If an argument is no array, or its dtype is none of the four.
    ValueError
        If shapes do not fit, values are not finite, hidden sizes differ, V <= d, pivots > V, or all label sets are
        singular, as where w1 has equal rows or rows of zeros (padding), or residuals overflow or underflow.

    Notes
    -----
    The published average is no stable statistic: A holds the inverse of a random square matrix, whose squared norm has
    no mean if its entries are Gaussian, so that the few label sets nearest to singular make up all of .value, and
    another seed gives another number, by orders of magnitude. Report .least_squares, or .median, beside it. Distances
    of logits bound them: `gramless.bounds`.

    The published code has two variants. With pivots, combinations and seed as there, .value is that of
    utils/metrics.py::calculate_d_rep if squared=False. dissimilarities/representation_dissimilarity.py::calculate_d_rep
    squares, and divides by the number of label sets twice: it returns .value / .n_sets.

    About 8 (N + V) d^2 + 7 n_sets d^3 flops, and 2 n_sets N d^2 if not squared; one read of the embeddings, and
    100 d^2 bytes and a few blocks of rows.

    Examples
    --------
    >>> import numpy as np
    >>> import gramless as gl
    >>> rng = np.random.default_rng(0)
    >>> h, w, a = (rng.standard_normal(shape) for shape in ((200, 3), (10, 3), (3, 3)))
    >>> gl.d_rep(h, w, h @ a.T, w @ np.linalg.inv(a)).value < 1e-20
    True
    >>> noisy = gl.d_rep(h, w, h + 0.1 * rng.standard_normal((200, 3)), w + 0.1 * rng.standard_normal((10, 3)))
    >>> round(noisy.least_squares, 4), round(noisy.median, 3), noisy.value > 2 * noisy.median
    (0.055, 0.243, True)
    """
    function = "d_rep"
    squared = model_pair.flag(function, "squared", squared)
    arrays = model_pair.pair(function, h1, w1, h2, w2)
    d = model_pair.same_size(function, arrays, "the map A has to be square")
    labels = int(arrays["w1"].shape[0])
    if labels <= d:
        raise ValueError(f"{function}: expected more labels than hidden size, got V = {labels} and d = {d}")
    pivots = min(labels, 20) if pivots is None else pivots
    for name, number in (("pivots", pivots), ("combinations", combinations)):
        arguments.positive(function, name, number)
    if pivots > labels:
        raise ValueError(f"{function}: expected at most V = {labels} pivots, got {pivots}")
    seed = arguments.seed(function, seed)
    root_h, root_w = (root_of_rows(function, {name: arrays[name] for name in (f"{a}1", f"{a}2")}) for a in "hw")
    sides = root_h.second[:, :d], root_h.second[:, d:]
    of_labels = root_w.factor[:, :d], root_w.factor[:, d:]
    powers = _Powers.of(*sides, *of_labels)
    sides = powers.inputs(*sides)

    def mean(maps: Float64) -> Float64:
        maps = np.ldexp(maps, powers.maps)
        if squared:
            return _measures.mean_square_residuals(*sides, maps)
        # rows are read again, now that the maps are known
        return _mean_norms(function, arrays, maps, powers)

    values, smallest, singular = [], [], 0
    for chosen in _chunks(_label_sets(labels, d, pivots, combinations, seed), max(1, _CHUNK_BYTES // (8 * d * d))):
        maps, sigma = _measures.label_maps(*powers.labels(*_differences(arrays, chosen)))
        singular += int((sigma == 0).sum())
        smallest.append(np.ldexp(sigma[sigma > 0], powers.w1))
        values.append(mean(maps))
    if singular == pivots * combinations:
        raise ValueError(
            f"{function}: all {singular} label sets of w1 are singular, as where rows are equal or zero (padding), or "
            "their differences do not span d dimensions"
        )
    fitted = np.asarray(np.linalg.lstsq(*powers.labels(*of_labels), rcond=None)[0][None], np.float64)
    unit = powers.residuals * (2 if squared else 1)
    per_set, of_fit = (_in_units(function, found, unit) for found in (np.concatenate(values), mean(fitted)))
    sigma_min = np.concatenate(smallest)
    if not (np.isfinite(per_set).all() and np.isfinite(of_fit).all() and np.isfinite(per_set.max() * len(per_set))):
        raise ValueError(f"{function}: residuals overflow; scale the data down")
    ends = int(TRIMMED * len(per_set))
    return LinearDissimilarity(
        value=float(per_set.mean()),
        median=float(np.median(per_set)),
        trimmed_mean=float(np.sort(per_set)[ends : len(per_set) - ends].mean()),
        least_squares=float(of_fit[0]),
        quantiles={level: float(np.quantile(sigma_min, level)) for level in QUANTILES},
        singular=singular,
        n_sets=len(per_set),
        seed=seed,
        squared=squared,
        values=per_set,
        sigma_min=sigma_min,
    )


def _label_sets(labels: int, d: int, pivots: int, combinations: int, seed: int) -> Iterator[Indices]:
    """Yield label sets (d + 1,), the pivot first, in the order in which the published code draws them."""
    rng = np.random.default_rng(seed)
    for pivot in rng.choice(labels, pivots, replace=False):
        for _ in range(combinations):
            others = rng.choice(labels - 1, d, replace=False)
            yield np.concatenate([[pivot], others + (others >= pivot)])


def _chunks(label_sets: Iterator[Indices], size: int) -> Iterator[Indices]:
    held: list[Indices] = []
    for chosen in label_sets:
        held.append(chosen)
        if len(held) == size:
            yield np.array(held)
            held = []
    if held:
        yield np.array(held)


@dataclass(frozen=True)
class _Powers:
    """Powers of two by which everything is divided, so that nothing but a result overflows or underflows."""

    h2: int
    w1: int
    w2: int
    residuals: int  # of h1 - A h2

    @classmethod
    def of(cls, h1: Float64, h2: Float64, w1: Float64, w2: Float64) -> _Powers:
        """Return those of square roots of second moments."""
        of_h1, of_h2, of_w1, of_w2 = (power_of_two(a) for a in (h1, h2, w1, w2))
        # what is zero has no size
        ends = [of_h1] if h1.any() else []
        ends += [of_h2 + of_w2 - of_w1] if h2.any() and w1.any() and w2.any() else []
        return cls(of_h2, of_w1, of_w2, max(ends, default=0))

    @property
    def maps(self) -> int:
        """What is left for the maps A to be multiplied by; it is above 0 only where they meet zeros."""
        return min(0, self.h2 + self.w2 - self.w1 - self.residuals)

    def inputs(self, h1: Float64, h2: Float64) -> tuple[Float64, Float64]:
        """Return embeddings scaled."""
        return np.asarray(np.ldexp(h1, -self.residuals)), np.asarray(np.ldexp(h2, -self.h2))

    def labels(self, w1: Float64, w2: Float64) -> tuple[Float64, Float64]:
        """Return differences of unembeddings scaled."""
        return np.asarray(np.ldexp(w1, -self.w1)), np.asarray(np.ldexp(w2, -self.w2))


def _in_units(function: str, scaled: Float64, power: int) -> Float64:
    """Return values in the units of the data; refuse those that underflow."""
    with np.errstate(over="ignore"):
        values = np.asarray(np.ldexp(scaled, power))
    if ((scaled > 0) & (values < _LEAST)).any():
        raise ValueError(f"{function}: residuals underflow; scale the data up")
    return values


@np.errstate(over="ignore", invalid="ignore")
def _differences(arrays: dict[str, Array], chosen: Indices) -> tuple[Float64, Float64]:
    """Return the differences L_1^T and L_2^T (s, d, d) of label sets (s, d + 1)."""
    flat = chosen.reshape(-1)
    rows = [arguments.to_numpy(arrays[name][flat]).astype(np.float64) for name in ("w1", "w2")]
    first, second = (a.reshape(*chosen.shape, -1) for a in rows)
    return first[:, 1:] - first[:, :1], second[:, 1:] - second[:, :1]


@np.errstate(over="ignore", invalid="ignore")
def _mean_norms(function: str, arrays: dict[str, Array], maps: Float64, powers: _Powers) -> Float64:
    """Return the mean over inputs of |h1 - A h2| for maps A (s, d, d), all of them scaled."""
    sums, d = np.zeros(len(maps)), maps.shape[1]
    two = {name: arrays[name] for name in ("h1", "h2")}
    stacked = maps.reshape(-1, d).T
    block_rows = max(1, _CHUNK_BYTES // (8 * max(1, stacked.shape[1])))
    for _, blocks in float64_blocks(function, two, block_rows):
        h1, h2 = powers.inputs(blocks["h1"], blocks["h2"])
        moved = (h2 @ stacked).reshape(-1, len(maps), d)
        sums += np.linalg.norm(h1[:, None] - moved, axis=2).sum(axis=0)
    return sums / int(arrays["h1"].shape[0])
