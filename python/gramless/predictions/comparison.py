"""What a comparison of predictions ends in: values with their standard errors, as attributes, as text and for JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from .._base.arrays import Float64
from .row_statistics import SKETCHED, SQUARED, TARGETS, RowTable

FORMAT = "gramless.logit_comparison/1"
# exp of what is larger overflows
_LARGEST = 709.0
# from where on whole numbers of two digits are long
_LONG = 99_500
# what to_dict tells of the values of rows
SHARES = (0.05, 0.25, 0.5, 0.75, 0.95)

_TITLES = {
    "kl_pq": "KL(p||q)",
    "kl_qp": "KL(q||p)",
    "jeffreys": "Jeffreys",
    "js": "JS",
    "tv": "total variation",
    "logit_distance": "logit distance, rms",
    "logit_l1": "logit L1",
    "top1_agreement": "top-1 agreement",
    "entropy_p": "entropy of p",
    "entropy_q": "entropy of q",
    "cross_entropy_pq": "cross entropy of p, q",
    "cross_entropy_qp": "cross entropy of q, p",
    "nll_p": "target, -ln p",
    "nll_q": "target, -ln q",
    "perplexity_p": "perplexity of p",
    "perplexity_q": "perplexity of q",
}


@dataclass(frozen=True, eq=False, repr=False)
class LogitComparison:
    """How two models predict the same rows: p is model 1, q is model 2, in natural logarithms.

    Values are means over rows. What was not computed is None: js and tv without divergences; nll and perplexity without
    targets. A value that is infinite in a row is infinite: such as KL(p||q), where a label is masked in model 2 only.

    Parameters
    ----------
    n : int
        Number of rows.
    labels : int
        Number of labels.
    kl_pq, kl_qp : float
        KL(p||q) and KL(q||p), at least 0 up to rounding.
    jeffreys : float
        Their sum.
    js : float or None
        Jensen-Shannon divergence, from 0 to ln 2.
    tv : float or None
        Total variation, from 0 to 1.
    logit_distance : float
        Root of the mean squared distance of label-centred logits. It grows as the root of the number of labels.
    logit_l1 : float
        Mean over rows and labels of abs(z1 - z2).
    top1_agreement : float
        Share of the rows where both models predict the same label first.
    entropy_p, entropy_q : float
        From 0 to ln V.
    cross_entropy_pq, cross_entropy_qp : float
        E_p[-ln q] and E_q[-ln p].
    nll_p, nll_q : float or None
        -ln p and -ln q of the target, over the rows that have one.
    perplexity_p, perplexity_q : float or None
        exp of these.
    n_targets : int
        Number of rows that have a target.
    stderr : dict of str to float
        Standard error of each value that is not None, for rows that are independent of each other; it is too small for
        tokens of few texts. That of a mean is the deviation of the rows by the root of their number; those of the root
        in logit_distance and of perplexity follow by the delta method. NaN of one row, and of what is infinite.
    infinite : dict of str to int
        Number of rows where a value is infinite, of those values that are so in any.
    rows : dict of str to float64 array of shape (n,), or None
        Values of each row, if they were kept; logit_distance is its distance, NaN a missing target.

    Examples
    --------
    >>> import numpy as np
    >>> import gramless as gl
    >>> rng = np.random.default_rng(0)
    >>> h1, w1 = rng.standard_normal((200, 8)), rng.standard_normal((500, 8)) / 2
    >>> h2, w2 = h1 + 0.3 * rng.standard_normal((200, 8)), w1
    >>> found = gl.compare_logits(h1, w1, h2, w2)
    >>> found
    LogitComparison(n=200, labels=500, kl_pq=0.08883, kl_qp=0.08814, logit_distance=9.629)
    >>> print(found)
    200 rows, 500 labels; p is model 1, q is model 2
                                 mean         +-     median       95 %
    KL(p||q)                  0.08883    0.00325      0.080       0.17
    KL(q||p)                  0.08814    0.00325      0.078       0.17
    Jeffreys                   0.1770    0.00649       0.16       0.34
    JS                        0.02155   0.000771      0.019      0.042
    total variation            0.1618    0.00298       0.16       0.23
    logit distance, rms         9.629      0.167        9.3         13
    logit L1                   0.3349    0.00580       0.33       0.48
    top-1 agreement            0.5750     0.0350
    entropy of p                5.300     0.0304        5.4        5.9
    entropy of q                5.221     0.0338        5.3        5.9
    cross entropy of p, q       5.389     0.0308        5.4        6.0
    cross entropy of q, p       5.310     0.0341        5.4        6.0
    >>> found.quantiles("kl_pq", [0.5, 0.9]).round(3)
    array([0.08 , 0.154])
    """

    n: int
    labels: int
    kl_pq: float
    kl_qp: float
    jeffreys: float
    js: float | None
    tv: float | None
    logit_distance: float
    logit_l1: float
    top1_agreement: float
    entropy_p: float
    entropy_q: float
    cross_entropy_pq: float
    cross_entropy_qp: float
    nll_p: float | None
    nll_q: float | None
    perplexity_p: float | None
    perplexity_q: float | None
    n_targets: int
    stderr: dict[str, float]
    infinite: dict[str, int]
    rows: dict[str, Float64] | None
    _table: RowTable = field(repr=False)

    @classmethod
    def _of(cls, table: RowTable) -> LogitComparison:
        values: dict[str, Any] = dict.fromkeys(_TITLES)
        stderr: dict[str, float] = {}
        for name, column in table.columns.items():
            if not column.n:
                continue
            mean, error = column.average()
            if name in SQUARED:
                mean = math.sqrt(mean)
                error = error / (2 * mean) if mean else error
            values[name], stderr[name] = mean, error
            if name in TARGETS:
                perplexity = f"perplexity_{name[-1]}"
                values[perplexity] = math.exp(mean) if mean < _LARGEST else math.inf if mean == mean else mean
                stderr[perplexity] = values[perplexity] * error if error else error
        infinite = {name: column.infinite for name, column in table.columns.items() if column.infinite}
        return cls(
            n=table.n,
            labels=table.labels,
            **values,
            n_targets=table.columns["nll_p"].n,
            stderr={name: stderr[name] for name in _TITLES if name in stderr},
            infinite=infinite,
            rows=table.rows(),
            _table=table,
        )

    def quantiles(self, name: str, q: float | Sequence[float] | Float64) -> Any:
        """Return quantiles of a value over rows: the smallest one with at least a share q of all at or below it.

        Parameters
        ----------
        name : str
            A value that rows have: any attribute but top1_agreement and perplexity.
        q : float, or a sequence of these
            Shares from 0 to 1; 0 is the smallest value and 1 the largest.

        Returns
        -------
        float, or float64 array of the shape of q
            Exact if rows were kept, and for the extremes. Else with a relative error of at most 1 % from 1e-12 to 1e6;
            what is smaller is off by less than 1e-12, what is larger counts as the largest.

        Raises
        ------
        ValueError
            If there is no such value, or q is not from 0 to 1.
        """
        known = [key for key, column in self._table.columns.items() if column.n and key != "top1_agreement"]
        if name not in known:
            raise ValueError(f"quantiles: expected name to be one of {', '.join(known)}, got {name!r}")
        shares = np.asarray(q, dtype=np.float64)
        if not ((shares >= 0) & (shares <= 1)).all():
            raise ValueError(f"quantiles: expected q from 0 to 1, got {q}")
        found = np.array([self._table.quantile(name, float(share)) for share in shares.ravel()])
        return float(found[0]) if shares.ndim == 0 else found.reshape(shares.shape)

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={getattr(self, name):.4g}" for name in ("kl_pq", "kl_qp", "logit_distance"))
        return f"LogitComparison(n={self.n}, labels={self.labels}, {values})"

    def __str__(self) -> str:
        models = f"{self.n} rows, {self.labels} labels; p is model 1, q is model 2"
        return "\n".join([models, *self.lines()])

    def lines(self) -> list[str]:
        """Return a table as lines of text: means, standard errors, and medians and 95 % quantiles of the rows.

        Quantiles have two digits, which are what they are good for, unless rows were kept.
        """
        shown = _rough if self.rows is None else partial(_number, digits=3)
        lines = [f"{'':22}{'mean':>11}{'+-':>11}{'median':>11}{'95 %':>11}"]
        for name, title in _TITLES.items():
            value = getattr(self, name)
            if value is None:
                continue
            cells = [_number(value, 4), _number(self.stderr[name], 3)]
            if name in self._table.columns and name != "top1_agreement":
                cells += [shown(quantile) for quantile in self.quantiles(name, [0.5, 0.95])]
            lines.append(f"{title:22}" + "".join(f"{cell:>11}" for cell in cells))
        if self.n_targets not in (0, self.n):
            lines.append(f"targets of {self.n_targets} rows")
        if self.infinite:
            rows = ", ".join(f"{_TITLES[name]} in {count}" for name, count in self.infinite.items())
            lines.append(f"rows that are infinite: {rows}")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and texts, which JSON holds: all but the rows.

        Values, "stderr", "infinite" and "quantiles", by name; None is what is missing, infinite or NaN.
        """
        quantiles = {}
        for name, column in self._table.columns.items():
            if column.n and name != "top1_agreement":
                found = self.quantiles(name, SHARES).tolist()
                quantiles[name] = {str(share): _plain(value) for share, value in zip(SHARES, found, strict=True)}
        return {
            "format": FORMAT,
            "n": self.n,
            "labels": self.labels,
            "n_targets": self.n_targets,
            **{name: _plain(getattr(self, name)) for name in _TITLES},
            "stderr": {name: _plain(error) for name, error in self.stderr.items()},
            "infinite": dict(self.infinite),
            "quantiles": quantiles,
        }


def _number(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:#.{digits}g}".rstrip(".")


def _rough(value: float) -> str:
    """Return the two digits that a sketch knows, as a whole number where that is short."""
    low, high = SKETCHED
    if 0 < value < low or high < value < math.inf:
        return f"<{low:.0e}" if value < low else f">{high:.0e}"
    return f"{float(f'{value:.2g}'):.0f}" if 99.5 <= abs(value) < _LONG else _number(value, 2)


def _plain(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
