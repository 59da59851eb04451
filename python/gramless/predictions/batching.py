"""Rows of two models in batches, and the logit-pair state of each batch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import ops
from ..ops.logit_arguments import OutputHead
from ..states.logits import LogitPairState
from .in_flight_batches import InFlightBatches, Options

# of hidden states, and flops, of the rows of a batch
_BATCH_BYTES, _BATCH_FLOPS = 1 << 26, 1e12
# with fewer rows at a time, reading the unembeddings begins to cost more than what is done with them
LEAST_ROWS = 1024
MOST_ROWS = 65536
# on a GPU, which has its rows at hand: launches and the copies of results are to cost nothing
LEAST_ROWS_ON_GPU = 16384


def rows_at_a_time(labels: int, width: int, row_bytes: int) -> int:
    """Return how many rows of both models make a batch: blocks of 256, so many that more gain nothing.

    Parameters
    ----------
    labels, width : int
        V and d1 + d2.
    row_bytes : int
        Bytes of a row of both hidden states.

    Examples
    --------
    >>> from gramless.predictions.batching import rows_at_a_time
    >>> rows_at_a_time(128_256, 8192, 16384), rows_at_a_time(50257, 1536, 6144), rows_at_a_time(100, 64, 256)
    (1024, 6400, 65536)
    """
    most = min(_BATCH_BYTES / max(row_bytes, 1), _BATCH_FLOPS / (2 * labels * max(width, 1)))
    return min(max(int(most) // 256 * 256, LEAST_ROWS), MOST_ROWS)


def rows_on_gpu(row_bytes: int) -> int:
    """Return how many rows of both models make a batch on a GPU, given the bytes of a row of both hidden states.

    Examples
    --------
    >>> from gramless.predictions.batching import rows_on_gpu
    >>> rows_on_gpu(16384), rows_on_gpu(2048)
    (16384, 32768)
    """
    return min(max(_BATCH_BYTES // max(row_bytes, 1) // 256 * 256, LEAST_ROWS_ON_GPU), MOST_ROWS)


@dataclass(frozen=True)
class Batches:
    """Rows of two checked models in batches, and how to compute them."""

    heads: tuple[OutputHead, OutputHead]
    mask: NDArray[np.bool_] | None
    targets: Any
    size: int
    options: Options

    def on_host(self, starts: Iterable[int]) -> Iterator[LogitPairState]:
        """Yield the state of each batch in which rows count, given their first rows."""
        for start in starts:
            if self.mask is None or self.mask[start : start + self.size].any():
                yield self._state(start)

    def on_gpu(self, starts: Iterable[int]) -> Iterator[LogitPairState]:
        """Yield the same of a GPU, which is given the next batches before those are waited for."""
        on_the_way = InFlightBatches()
        for start in starts:
            on_the_way.launch(self.options, *self._rows(start), start)
            yield from map(self._judged, on_the_way.arrived())
        yield from map(self._judged, on_the_way.all())

    def _judged(self, arrival: tuple[int, LogitPairState | ValueError]) -> LogitPairState:
        start, found = arrival
        if isinstance(found, ValueError):
            # computed again, it is told in more detail
            self._state(start)
            raise numbered(self.options.function, found, start)
        return found

    def _rows(self, start: int) -> tuple[tuple[OutputHead, OutputHead], Any, Any]:
        """Return models, mask and targets of a batch."""
        batch = slice(start, start + self.size)
        first, second = (replace(of, h=of.h[batch]) for of in self.heads)
        mask, targets = (None if rows is None else rows[batch] for rows in (self.mask, self.targets))
        return (first, second), mask, targets

    def _state(self, start: int) -> LogitPairState:
        (first, second), mask, targets = self._rows(start)
        try:
            return ops.logit_pairs(
                first.h,
                first.w,
                second.h,
                second.w,
                b1=first.b,
                b2=second.b,
                mask=mask,
                targets=targets,
                softcap1=first.softcap,
                softcap2=second.softcap,
                nonfinite=self.options.nonfinite,
                **self.options.keywords,
            )
        except (TypeError, ValueError) as error:
            raise numbered(self.options.function, error, start) from None


def width_of(of: OutputHead) -> int:
    """Return the width of the hidden states, 0 for given logits."""
    return 0 if of.w is None else int(of.w.shape[1])


def row_bytes_of(of: OutputHead) -> int:
    """Return the bytes of a row of hidden states or of given logits."""
    kind = str(of.h.dtype)
    return int(of.h.shape[1]) * (8 if "64" in kind else 4 if "32" in kind else 2)


def numbered(function: str, error: Exception, start: int) -> Exception:
    """Return the error of a batch with its name and its rows numbered among all."""

    def moved(found: re.Match[str]) -> str:
        return re.sub(r"\d+", lambda row: str(int(row[0]) + start), found[0])

    text = re.sub(r"(?<=\bh[12] has non-finite values in rows )\d+\.\.\d+|\brow \d+(?= of h[12]\b)", moved, str(error))
    return type(error)(text.replace("logit_pairs", function, 1))
