"""HSIC of batches, averaged, with the moments that standard errors need: as many arrays, however many batches.

The standard error of c = A / sqrt(B C), for weighted means A, B, C of the HSIC of batches, is that of its linear part:
with e = c (a / A - b / (2 B) - c / (2 C)) of one batch, Var(c) = sum w^2 e^2 / W^2 / (1 - sum w^2 / W^2), where
W = sum w. For equal weights the last factor is k / (k - 1); for weights by rows it takes away the bias of variances
that fall as 1 / rows. So second moments with the weights w^2 are kept, about their own mean, as Chan, Golub and LeVeque
(1983) merge them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._base import saved_state
from .._base.arrays import Float64
from ..measures.hsic_from_gram import LEAST_MEAN, MOST_MEAN
from .names import are_sides, sides
from .tiles import GridKernel, GridSums

# means with weights w, then means and second moments with weights w^2; of layers (l,) and of pairs (l1, l2)
_MEANS = {"pairs": 2, "selfs": 1, "rounding": 1, "means": 1, "below_one": 1}
_CENTRES = {"centre_pairs": 2, "centre_selfs": 1}
_SQUARES = {"pair_pair": 2, "pair_x": 2, "pair_y": 2, "x_y": 2, "self_self": 1}
_COUNTS = {"lacking": 1}
_KEYS = _MEANS | _CENTRES | _SQUARES | _COUNTS


@dataclass(frozen=True, eq=False, repr=False)
class BatchTable:
    """Weighted moments of the HSIC of batches, for named layers and their pairs. Never changed in place."""

    names: tuple[str, ...]
    n: int
    batches: int
    weight: float  # sum of w
    square: float  # sum of w^2
    arrays: Mapping[str, Float64]

    @classmethod
    def of(cls, names: Sequence[str], sums: GridSums, *, weight: float = 1.0, biased: bool = False) -> BatchTable:
        """Return the table of one batch."""
        pairs, selfs, rounding = sums.hsic(biased=biased)
        arrays = {
            "pairs": pairs,
            "selfs": selfs,
            "rounding": rounding,
            "means": sums.means,
            "below_one": sums.below_one,
            "centre_pairs": pairs,
            "centre_selfs": selfs,
            "lacking": sums.lacking.astype(np.float64),
        }
        squares = {key: np.zeros(shape) for key, shape in _shapes(names).items() if key in _SQUARES}
        return cls(tuple(names), sums.n, 1, weight, weight**2, arrays | squares)

    @property
    def nbytes(self) -> int:
        """Bytes held by the arrays."""
        return sum(array.nbytes for array in self.arrays.values())

    def in_order(self, names: tuple[str, ...]) -> BatchTable:
        """Return the table with its layers in another order."""
        if names == self.names:
            return self
        order = [self.names.index(name) for name in names]
        (x, y), (old_x, old_y) = sides(names), sides(self.names)
        rows, columns = [old_x.index(order[i]) for i in x], [old_y.index(order[i]) for i in y]
        arrays = {k: a[order] if a.ndim == 1 else a[np.ix_(rows, columns)] for k, a in self.arrays.items()}
        return BatchTable(names, self.n, self.batches, self.weight, self.square, arrays)

    def merge(self, other: BatchTable) -> BatchTable:
        """Return the batches of both, in the order of the first."""
        mine, theirs = self.arrays, other.in_order(self.names).arrays
        weight, square = self.weight + other.weight, self.square + other.square
        share, share_of_squares = other.weight / weight, other.square / square
        arrays = {key: mine[key] + share * (theirs[key] - mine[key]) for key in _MEANS}
        pair = theirs["centre_pairs"] - mine["centre_pairs"]
        own = theirs["centre_selfs"] - mine["centre_selfs"]
        arrays["centre_pairs"] = mine["centre_pairs"] + share_of_squares * pair
        arrays["centre_selfs"] = mine["centre_selfs"] + share_of_squares * own
        x, y = sides(self.names)
        of_x, of_y = own[x][:, None], own[y][None, :]
        between = self.square * share_of_squares
        steps = {"pair_pair": pair**2, "pair_x": pair * of_x, "pair_y": pair * of_y, "x_y": of_x * of_y}
        for key, step in (steps | {"self_self": own**2}).items():
            arrays[key] = mine[key] + theirs[key] + between * step
        arrays["lacking"] = mine["lacking"] + theirs["lacking"]
        return BatchTable(self.names, self.n + other.n, self.batches + other.batches, weight, square, arrays)

    def cka(self) -> tuple[Float64, Float64]:
        """Return CKA and its standard error for all pairs, NaN where a layer has no variation."""
        x, y = sides(self.names)
        pairs, selfs = self.arrays["pairs"], self.arrays["selfs"]
        with np.errstate(invalid="ignore", divide="ignore"):
            roots = np.sqrt(np.where(selfs > 0, selfs, np.nan))
            scale = np.outer(roots[x], roots[y])
            values = pairs / scale
            # everything below is relative to the self terms, so that no square overflows
            of_x, of_y = selfs[x][:, None], selfs[y][None, :]
            off_pair = (self.arrays["centre_pairs"] - pairs) / scale
            off_self = (self.arrays["centre_selfs"] - selfs) / selfs
            linear = off_pair - values * (off_self[x][:, None] + off_self[y][None, :]) / 2
            own = self.arrays["self_self"] / selfs**2
            square = self.arrays["pair_pair"] / scale**2
            square -= values * (self.arrays["pair_x"] / of_x + self.arrays["pair_y"] / of_y) / scale
            square += values**2 * (own[x][:, None] + own[y][None, :] + 2 * self.arrays["x_y"] / scale**2) / 4
            square += self.square * linear**2
            free = 1 - self.square / self.weight**2
            variance = np.maximum(square, 0) / self.weight**2 / free
            errors = np.sqrt(variance if self.batches > 1 else np.full_like(square, np.nan))
        if x == y:
            np.fill_diagonal(values, np.where(np.isnan(np.diagonal(values)), np.nan, 1.0))
            np.fill_diagonal(errors, np.where(np.isnan(np.diagonal(errors)), np.nan, 0.0))
        return values, errors

    def problems(self, kernel: GridKernel, estimator: str) -> dict[str, str]:
        """Return what keeps CKA of a layer from existing, by its name."""
        found: dict[str, str] = {}
        keys = ("selfs", "rounding", "means", "below_one", "lacking")
        for name, *numbers in zip(self.names, *(self.arrays[key].tolist() for key in keys), strict=True):
            own, rounding, mean, below_one, lacking = numbers
            if lacking:
                found[name] = (
                    f"has no bandwidth by the rule {kernel.bandwidth!r} in {lacking:.0f} of {self.batches} batches, "
                    "where most pairs of its rows are equal; give a number"
                )
            elif kernel.name != "linear" and mean < LEAST_MEAN:
                found[name] = (
                    f"has a kernel that is 0 between different rows (mean {mean:.3g}): its bandwidth is too small"
                )
            elif own <= rounding:
                found[name] = (
                    f"is constant, underflows, or has no other variation that the {estimator} estimator can see"
                )
            elif kernel.name != "linear" and below_one < 1 - MOST_MEAN:
                found[name] = (
                    f"has a kernel that is 1 between all rows (1 - mean {below_one:.3g}): its bandwidth is too large; "
                    "kernel='linear' is the limit of large ones"
                )
        return found

    def to_dict(self) -> dict[str, NDArray[Any]]:
        """Return a flat dict of copies of all arrays, numbers among them."""
        numbers = {"batches": self.batches, "weight": self.weight, "weight_square": self.square}
        return {k: np.asarray(v) for k, v in numbers.items()} | {k: array.copy() for k, array in self.arrays.items()}

    @classmethod
    def from_dict(cls, function: str, state: Mapping[str, Any], names: tuple[str, ...], n: int) -> BatchTable:
        """Return the table of such a dict, copied and checked."""
        arrays = {key: saved_state.array(function, state, key, shape) for key, shape in _shapes(names).items()}
        numbers = {key: float(saved_state.array(function, state, key, ())) for key in ("weight", "weight_square")}
        batches = saved_state.whole(function, state, "batches")
        if batches < 1 or min(numbers.values()) <= 0 or n < 4 * batches:
            raise ValueError(f"{function}: the state has no batches")
        return cls(names, n, batches, numbers["weight"], numbers["weight_square"], arrays)


def _shapes(names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    x, y = sides(names)
    return {key: (len(x), len(y)) if dims == 2 else (len(names),) for key, dims in _KEYS.items()}


def encode(widths: Mapping[str, int], settings: Mapping[str, Any]) -> str:
    """Return layers and settings as a text."""
    return json.dumps([list(widths.items()), dict(settings)])


def decode(function: str, text: str) -> tuple[dict[str, int], dict[str, Any]]:
    """Return layers and settings of such a text, checked."""
    try:
        widths, settings = json.loads(text)
        found, made = {str(name): int(width) for name, width in widths}, dict(settings)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{function}: cannot read the layout of the state: {error}") from None
    if not are_sides(list(found)) or min(found.values()) < 1:
        raise ValueError(f"{function}: the layout of the state is not that of a layer grid")
    return found, made
