"""Numbers that carry what is known of them: a standard error, or what they are where there is nothing to find.

`sampled` estimates HSIC and CKA of all rows from random batches of them, so that the answer takes a part of the n^2
pairs of rows. Rows are put in random order and cut into batches; HSIC_1 within a batch is an unbiased estimate of
HSIC_1 of all rows (Song et al. 2012, JMLR 13, eq. 5: both are means over quadruples of rows). Batches of one order
share no row and leave none out, which takes away the larger part of their variance, that of single rows; the orders, of
which there are several, are independent, and their spread gives the standard error.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import ops
from .._base import arguments
from .._base.annotated_floats import Estimate
from .._base.arrays import Array, Float64
from ..measures.hsic_from_gram import cross_hsic, self_hsic
from .pair_request import KernelPass

if TYPE_CHECKING:
    from ..states.gram import GramState

# rows of a batch, if all rows suffice for enough orders
BATCH_ROWS = 1024
# independent orders of the rows, from which the standard error follows
LEAST_ORDERS = 8


def ratio(cross: Float64, self_x: Float64, self_y: Float64) -> tuple[float, float]:
    """Return CKA from the means of independent estimates (m,) of three HSICs, and its standard error.

    The ratio of means is linearised about them (delta method). The means of the self terms are above 0.
    """
    xy, xx, yy = float(cross.mean()), float(self_x.mean()), float(self_y.mean())
    value = xy / math.sqrt(xx) / math.sqrt(yy)
    moves = cross / math.sqrt(xx) / math.sqrt(yy) - value / 2 * (self_x / xx + self_y / yy)
    return value, mean_error(moves)


def mean_error(values: Float64) -> float:
    """Return the standard error of the mean of independent values (m,); 0 of one value, which is then all there is."""
    if len(values) == 1:
        return 0.0
    return float(values.std(ddof=1)) / math.sqrt(len(values))


def checked_fraction(function: str, fraction: Any) -> float:
    """Return a number above 0 and at most 1."""
    value = arguments.above_zero(function, "fraction", fraction)
    if value > 1:
        raise ValueError(f"{function}: expected fraction of at most 1, got {fraction!r}")
    return value


class BatchPlan(NamedTuple):
    """How rows are cut into batches, and in how many random orders."""

    edges: NDArray[Any]  # (batches of an order + 1,)
    orders: int

    @property
    def sizes(self) -> list[int]:
        """Rows of each batch of an order."""
        return [int(size) for size in np.diff(self.edges)]

    @property
    def pairs(self) -> int:
        """Pairs i != j of rows in the batches of an order."""
        return sum(size * (size - 1) for size in self.sizes)

    @property
    def fraction(self) -> float:
        """The pairs of rows that are computed, of all."""
        n = int(self.edges[-1])
        return self.orders * self.pairs / (n * (n - 1))


def plan_batches(n: int, fraction: float) -> BatchPlan:
    """Return the batches that hold this fraction of all pairs of n rows, or one batch of all rows.

    Batches have fraction n / 8 rows, at most 1024 and at least 4, so that 8 or more orders of all rows are read.
    """
    size = max(arguments.LEAST_ROWS, min(BATCH_ROWS, math.floor(fraction * n / LEAST_ORDERS)))
    plan = BatchPlan(np.linspace(0, n, n // size + 1).astype(int), LEAST_ORDERS)
    plan = plan._replace(orders=max(LEAST_ORDERS, round(fraction * (n * (n - 1)) / plan.pairs)))
    return BatchPlan(np.array([0, n]), 1) if fraction == 1 or plan.fraction >= 1 else plan


def sampled(request: KernelPass, x: Array, y: Array, *, fraction: float, seed: int, normalised: bool) -> Estimate:
    """Return the unbiased HSIC of checked arrays, or CKA if normalised, from this fraction of all pairs of rows.

    8 or more random orders of all rows are read, a batch at a time. Where these hold as many pairs as there are, one
    batch of all rows gives the exact value. The standard error is that of leaving pairs out: the distance to the value
    of these n rows, not of the population that they come from.

    Cost: fraction n^2 (p + q) flops, and fraction n / (rows of a batch) reads of x and y.
    """
    n = int(x.shape[0])
    function, plan = request.function, plan_batches(n, checked_fraction(request.function, fraction))
    keywords = request.keywords(*request.widths(x, y))
    terms, problems = [], []
    for batches in _orders(n, plan.edges, plan.orders, seed):
        total = np.zeros(3)
        for rows in batches:
            found, problem = _hsics(_sums(function, x, y, rows, keywords))
            # batches weigh by their rows, so that every row of an order counts alike
            total += len(rows) / n * found
            problems.append(problem)
        terms.append(total)
    for name in ("x", "y"):
        if all(problem[name] for problem in problems):
            raise ValueError(f"{function}: {name} {problems[0][name]}")
    cross, self_x, self_y = np.array(terms).T
    facts: dict[str, Any] = {"fraction": plan.fraction, "n_batches": len(problems)}
    if normalised:
        value, error = ratio(cross, self_x, self_y)
    else:
        value, error = float(cross.mean()), mean_error(cross)
    return Estimate(value, stderr=error, **facts)


def _orders(n: int, edges: NDArray[Any], orders: int, seed: int) -> Iterator[Iterator[NDArray[np.int64]]]:
    """Yield the batches of each random order of the rows."""
    rng = np.random.default_rng(seed)
    for _ in range(orders):
        order = rng.permutation(n)
        # rows that lie near each other are read in turn, which a file on disk needs
        yield (np.sort(order[a:b]) for a, b in pairwise(edges))


def _sums(function: str, x: Array, y: Array, rows: NDArray[np.int64], keywords: dict[str, Any]) -> GramState:
    """Return the sums of a batch; an error names the function, and no row, since it counts those of the batch."""
    try:
        return ops.gram_sums(x[rows], y[rows], **keywords)
    except ValueError as error:
        text = re.sub(r" in rows \d+\.\.\d+", "", str(error))
        raise ValueError(text.replace("gram_sums", function, 1)) from None


def _hsics(state: GramState) -> tuple[Float64, dict[str, str]]:
    """Return HSIC_1 of (x, y), (x, x) and (y, y), and what keeps the last two from a root, by name."""
    if state.y is None:
        raise ValueError("sampled: expected sums of two arrays")
    self_x, problem_x = self_hsic(state, state.x, "unbiased")
    self_y, problem_y = self_hsic(state, state.y, "unbiased")
    return np.array([cross_hsic(state, "unbiased"), self_x, self_y]), {"x": problem_x, "y": problem_y}
