"""Differences of two unembeddings as one matrix, read in blocks, with its fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .._base import arguments
from .._base.arrays import Array, Float64
from ..ops import logit_arguments, threads

if TYPE_CHECKING:
    from typing import Self

# rows of one task of a thread, which stay in a core's cache from one use to the next
PIECE_ROWS = 128
# rows of W of one call of the kernel, at least, so that making and adding up D^2 sums costs little beside them
BLOCK_ROWS = 8192
# bits of half a word
_HALF = np.uint64(32)
# bytes of rows that are marked at a time: what is made of them is neither paged in anew nor leaves the cache
_MARKED_BYTES = 1 << 17

# rows that the pivot is the mean of
_PIVOT_ROWS = 255


@dataclass(frozen=True, eq=False)
class Columns:
    """The matrix M (V', D) of two unembeddings, of the labels that count; no more than a block of it is ever held."""

    function: str
    w1: Array  # (V, d1)
    w2: Array  # (V, d2)
    given: NDArray[np.int64] | None  # (.,)  labels that were asked for, in order
    index: NDArray[np.int64] | None  # (V',)  those of them that no bias masks, in order
    biases: tuple[Float64, Float64] | None  # (V',) of each model

    @classmethod
    def checked(cls, function: str, w1: Any, w2: Any, b1: Any, b2: Any, labels: Any) -> Self:
        """Return the columns of checked arguments."""
        heads = [
            logit_arguments.weights(function, w, b, None, number) for number, w, b in (("1", w1, b1), ("2", w2, b2))
        ]
        first, second = heads
        arguments.same_device(function, {"w1": first.w, "w2": second.w})
        logit_arguments.pair(function, first, second)
        given, _ = logit_arguments.labels_of(function, heads, labels)
        if given is not None and len(given) == first.labels:
            given = None
        if first.b is None and second.b is None:
            return cls(function, first.w, second.w, given, given, None)
        b1, b2 = (np.zeros(of.labels) if of.b is None else of.b for of in heads)
        kept = unmasked(function, b1, b2, given)
        index = kept if len(kept) < first.labels else None
        return cls(function, first.w, second.w, given, index, (b1[kept], b2[kept]))

    @property
    def count(self) -> int:
        """Number of labels V' that count."""
        return int(self.w1.shape[0]) if self.index is None else len(self.index)

    @property
    def sizes(self) -> tuple[int, int]:
        """Hidden sizes d1 and d2."""
        return int(self.w1.shape[1]), int(self.w2.shape[1])

    @property
    def width(self) -> int:
        """Number of columns D."""
        return sum(self.sizes) + (self.biases is not None)

    def rows(self, start: int, stop: int) -> tuple[Array, Array]:
        """Return rows of both unembeddings as they are."""
        rows = slice(start, stop) if self.index is None else self.index[start:stop]
        return self.w1[rows], self.w2[rows]

    def left(self, start: int, stop: int) -> Array:
        """Return the columns of W1, of some rows, as they are."""
        return self.w1[start:stop] if self.index is None else self.w1[self.index[start:stop]]

    @np.errstate(over="ignore", invalid="ignore")
    def right(self, w1: Array, w2: Array, start: int, out: Float64) -> None:
        """Write the columns after those of W1, of some rows, in float64."""
        (d1, d2), second = self.sizes, arguments.to_numpy(w2)
        if d1 == d2:
            # the quicker of ways to convert both
            out[:, :d2] = arguments.to_numpy(w1)
            np.subtract(out[:, :d2], second, out=out[:, :d2], dtype=np.float64)
        else:
            np.negative(second, out=out[:, :d2], dtype=np.float64)
        if self.biases is not None:
            one, two = self.biases
            np.subtract(one[start : start + len(out)], two[start : start + len(out)], out=out[:, d2])

    def dense(self, rows: Sequence[int] | NDArray[np.int64]) -> Float64:
        """Return some rows of M."""
        taken = np.asarray(rows) if self.index is None else self.index[rows]
        w1, w2 = self.w1[taken], self.w2[taken]
        d1, d2 = self.sizes
        made = np.empty((len(taken), self.width))
        made[:, :d1] = arguments.to_numpy(w1)
        self.right(w1, w2, 0, made[:, d1:])
        if self.biases is not None:
            made[:, d1 + d2] = self.biases[0][rows] - self.biases[1][rows]
        return made

    @np.errstate(over="ignore", invalid="ignore")
    def pivot(self) -> Float64:
        """Return the mean of a few rows, the value itself where all of them have the same."""
        few = self.dense(self.sampled())
        pivot = np.where((few == few[0]).all(axis=0), few[0], few.mean(axis=0))
        # values that are not finite are refused when their block is read, with their place
        return np.where(np.isfinite(pivot), pivot, 0.0)

    def refuse_nonfinite(self, start: int, stop: int) -> None:
        """Name the first row of a block that is not finite; without one, the sums of the block overflow."""
        raise self.nonfinite_row(start, stop) or self.overflow()

    def nonfinite_row(self, start: int, stop: int) -> ValueError | None:
        """Return an error that names the first row of a block that is not finite."""
        numbers = np.arange(start, stop) if self.index is None else self.index[start:stop]
        rows = (w.cpu() if arguments.is_torch(w) else w for w in self.rows(start, stop))
        return arguments.nonfinite_row(self.function, dict(zip(("w1", "w2"), rows, strict=True)), numbers)

    def overflow(self) -> ValueError:
        """Return the error of unembeddings whose squares overflow."""
        return ValueError(f"{self.function}: sums over the labels overflow; scale the unembeddings down")

    def sampled(self) -> NDArray[np.int64]:
        """Return the places of the labels that the pivot is the mean of, in order."""
        rng = np.random.default_rng(0)
        return np.sort(rng.choice(self.count, min(self.count, _PIVOT_ROWS), replace=False))

    def marked(self) -> Any:
        """Return a SHA-256 of shapes, dtypes, labels and biases, which takes in marks of the rows next."""
        header = {name: [list(w.shape), _dtype(w)] for name, w in (("w1", self.w1), ("w2", self.w2))}
        made = hashlib.sha256(json.dumps(header).encode())
        for part in (self.index, *(self.biases or ())):
            made.update(b"none" if part is None else part.tobytes())
        return made

    def fingerprint(self) -> str:
        """Return what tells these weights from others: a hash of shapes, dtypes, labels, biases and all rows used."""
        made = self.marked()
        with ThreadPoolExecutor(threads.threads_or_one()) as pool:
            for marks in pool.map(lambda piece: row_marks(*self.rows(*piece)), pieces(0, self.count, PIECE_ROWS)):
                made.update(marks)
        return str(made.hexdigest())


def without_zeros(matrix: Float64) -> Float64:
    """Return a matrix without the rows that are zero."""
    kept = matrix.any(axis=1)
    return matrix if kept.all() else np.ascontiguousarray(matrix[kept])


def pieces(start: int, stop: int, rows: int) -> list[tuple[int, int]]:
    """Return the bounds of blocks of so many rows."""
    return list(pairwise([*range(start, stop, rows), stop]))


def slices(count: int, size: int) -> list[slice]:
    """Return slices of this size that cover so many rows."""
    return [slice(start, stop) for start, stop in pieces(0, count, size)]


def unmasked(function: str, b1: Float64, b2: Float64, given: NDArray[np.int64] | None) -> NDArray[np.int64]:
    """Return the labels among those given that no bias masks."""
    given = np.arange(len(b1)) if given is None else given
    masked1, masked2 = (np.isneginf(b[given]) for b in (b1, b2))
    if (masked1 != masked2).any():
        label = int(given[np.flatnonzero(masked1 != masked2)[0]])
        raise ValueError(
            f"{function}: label {label} is masked (bias -inf) in one model only, so that the distance is infinite; "
            "leave such labels out with labels="
        )
    kept: NDArray[np.int64] = given[~masked1]
    return kept


def row_marks(w1: Array, w2: Array) -> bytes:
    """Return 64 bytes for each row, which tell it from any other: four sums over its words in each unembedding.

    They are k1.w, k2.w, k3.v and k4.v modulo 2^64, for words w of 64 bits, their upper halves v, and keys k of random
    words. Rows that differ have the same marks for one choice of keys in 2^66 at most: the lower halves of some w, or
    else some v, differ by less than 2^32, so that one in 2^33 values of the word of either key hides it. The keys are
    known, and so are no defence against rows made to deceive them; SHA-256 of all bytes takes 1.8 times as long
    (Emerald Rapids).
    """
    marks = np.empty((len(w1), 2, 4), np.uint64)
    for side, w in enumerate((w1, w2)):
        words = _words(w)
        first, second, third, fourth = _keys(words.shape[1])
        for start, stop in pieces(0, len(words), max(1, _MARKED_BYTES // (8 * words.shape[1]))):
            some = words[start:stop]
            high = some >> _HALF
            sums = some.dot(first), some.dot(second), high.dot(third), high.dot(fourth)
            marks[start:stop, side] = np.stack(sums, axis=1)
    return marks.tobytes()


@lru_cache(maxsize=4)
def _keys(count: int) -> NDArray[np.uint64]:
    return np.random.PCG64(0).random_raw((4, count))


def _words(w: Array) -> NDArray[np.uint64]:
    """Return the bytes of each row as words, the last filled up with zeros."""
    rows = _bytes(w)
    missing = -rows.shape[1] % 8
    return np.asarray(np.pad(rows, ((0, 0), (0, missing))) if missing else rows).view(np.uint64)


def keys(w: Array) -> NDArray[np.uint64]:
    """Return the keys (4, words) of the rows of an unembedding."""
    item = w.element_size() if arguments.is_torch(w) else w.itemsize
    return _keys(-(-int(w.shape[1]) * item // 8))


def _dtype(w: Array) -> str:
    return str(w.dtype).removeprefix("torch.")


def _bytes(w: Array) -> NDArray[np.uint8]:
    """Return the bytes of each row, in order, without a copy where they lie so."""
    if arguments.is_torch(w):
        import torch

        w = w.contiguous().view(torch.uint8).numpy()
    return np.ascontiguousarray(w).view(np.uint8)
