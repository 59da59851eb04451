"""Two unembeddings as one small factor, with which the logit distance of a row no longer depends on the vocabulary."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .._base import arguments
from .._base.arrays import Array, Float64
from .._base.gpu_arrays import is_asked_for
from ..ops import logit_arguments
from ..ops.backends import PRECISIONS, check_backend
from ..states.moments import as_flat_arrays
from . import gpu_factorization
from .factorization import EPS, Factor, factor
from .gpu_factor_rows import RESOLVED, HeldFactor, warn_of_cancellation
from .stacked_weights import Columns
from .unembedding_files import SUFFIXES, checksum, opened, parts_of, read, write

if TYPE_CHECKING:
    from typing import Self

FORMAT = "gramless.unembedding_pair/2"
METHODS = ("gram", "qr", "rows")
# rounding of a squared distance in units of eps times what cancels; the most seen is 15
_ROUNDINGS = 32.0
# rows of the factor that are multiplied at a time: what is left of its zeros is little
_FACTOR_ROWS = 256
# bytes of the hidden states that are held in float64, and the fewest rows of them; products take no more
_BLOCK_BYTES = 1 << 23
_LEAST_ROWS = 256


class UnembeddingPair:
    """What the logit distance needs of two unembeddings: a factor R with ||R [h1; h2]|| = ||C (z1 - z2)|| for any row.

    z1 = W1 h1 + b1 and z2 = W2 h2 + b2 are logits, and C takes their mean over the labels out. R is computed once, for
    any number of rows.

    Parameters
    ----------
    w1, w2 : array of shape (V, d1) and (V, d2), float16, bfloat16, float32 or float64
        Unembeddings of the same V labels in the same order, both in host memory or on one GPU; d1 and d2 may differ.
        Read in blocks, never copied whole.
    b1, b2 : array of shape (V,), optional
        Biases. Labels masked in both models (-inf) are left out.
    labels : int array of shape (labels,), optional
        The labels to compare, each once. Default: all.
    backend : {"auto", "reference", "cpu", "cuda"}
        As in `gramless.moments`.
    progress : bool
        Show a progress bar on standard error, of work on the host.

    Attributes
    ----------
    d1, d2 : int
        Hidden sizes.
    labels : int
        Number of labels that count.
    basis : str
        "difference" for d1 = d2: R acts on (h1 - h2, h2), taken in float64, so that near-equal models lose no digits.
        Else "plain". A 1 follows where there is a bias.
    method : str
        "gram": Cholesky of second moments in float64. "qr": Householder reflections. "rows": no more labels than
        columns, whose centred rows are kept.
    factor : float64 array of shape (r, D)
        R in its basis, D = d1 + d2, plus 1 with a bias, r <= D. Read-only, in host memory wherever the weights are.
    fingerprint : str
        Hash of shapes, dtypes, labels, biases and the bytes of all rows used. Any change of these gives another one,
        but for one choice in 2^66 of the keys of the hash; weights made to deceive it may not. The same on any device.
    nbytes : int
        Bytes held in host memory.

    Raises
    ------
    TypeError
        If an argument is no array, or of a wrong dtype.
    ValueError
        If the numbers of labels differ, labels are out of range or given twice, a label is masked in one model only,
        or all are masked; if values are not finite, or their squares overflow.
    RuntimeError
        If w1 and w2 are not on one device, or the named backend is missing or reads elsewhere.

    Notes
    -----
    V D^2 flops and one read of the weights; 3 V D^2 and two reads where second moments would lose too many digits: that
    is decided by the inverse of the moments of unit columns, so that their rounding stays below 1e-7 of every squared
    distance (eps sqrt(D) ||G^-1|| at most 1e-7). Peak extra bytes: 24 D^2, and a block of 8 max(8192, D) (d2 + 1).

    On a GPU the same in float64, 3.7 V D^2 where second moments do not do, and one more read of the weights for their
    fingerprint. Peak extra bytes there: 16 D^2 and 1.5 GiB, or 56 D^2; the factor stays, 8 D^2. A factor that was
    made or loaded elsewhere is copied to a GPU when rows there first need it. Copies and files have it in host memory.

    Examples
    --------
    >>> import numpy as np
    >>> import gramless as gl
    >>> rng = np.random.default_rng(0)
    >>> w1, h1 = rng.standard_normal((1000, 16)), rng.standard_normal((50, 16))
    >>> w2, h2 = w1 + 1e-4 * rng.standard_normal((1000, 16)), h1
    >>> pair = gl.UnembeddingPair(w1, w2)
    >>> pair
    UnembeddingPair(labels=1000, d1=16, d2=16, basis='difference', method='gram')
    >>> delta = h1 @ w1.T - h2 @ w2.T
    >>> delta -= delta.mean(axis=1, keepdims=True)
    >>> bool(np.allclose(pair.squared_distances(h1, h2), (delta**2).sum(axis=1), rtol=1e-9))
    True
    >>> pair.save("pair.safetensors")
    >>> gl.UnembeddingPair.load("pair.safetensors").check(w1, w2)
    """

    def __init__(
        self,
        w1: Array,
        w2: Array,
        *,
        b1: Array | None = None,
        b2: Array | None = None,
        labels: Any = None,
        backend: str = "auto",
        progress: bool = False,
    ) -> None:
        self._make("UnembeddingPair", w1, w2, b1, b2, labels, backend, progress=progress)

    @classmethod
    def _of(
        cls, function: str, w1: Array, w2: Array, b1: Array | None, b2: Array | None, labels: Any, backend: str
    ) -> Self:
        """Return the pair of a function, whose name its errors bear."""
        made = cls.__new__(cls)
        made._make(function, w1, w2, b1, b2, labels, backend, progress=False)
        return made

    def _make(
        self, function: str, w1: Any, w2: Any, b1: Any, b2: Any, labels: Any, backend: str, *, progress: bool
    ) -> None:
        check_backend(function, backend)
        columns = Columns.checked(function, w1, w2, b1, b2, labels)
        if gpu_factorization.are_on_gpu(columns, backend):
            found = gpu_factorization.factor_on_gpu(columns, backend)
        else:
            found = factor(columns, backend, progress=progress)
        self._fill(columns.sizes, columns.count, columns.given, columns.biases is not None, found)

    def _fill(
        self, sizes: tuple[int, int], labels: int, given: NDArray[np.int64] | None, biased: bool, found: Factor
    ) -> None:
        self.d1, self.d2 = sizes
        self.labels, self.method, self.fingerprint = labels, found.method, found.fingerprint
        self.basis = "difference" if self.d1 == self.d2 else "plain"
        self._given, self._biased = given, biased
        # that of second moments was judged for all rows
        rounding = 0.0 if self.method == "gram" else _ROUNDINGS * EPS
        self._held = HeldFactor(found.matrix, (*sizes, biased), rounding)

    @cached_property
    def factor(self) -> Float64:
        """Return the factor; one that was found on a GPU is brought from there when it is first asked for."""
        return self._held.matrix()

    @cached_property
    def _panels(self) -> list[tuple[slice, slice]]:
        # columns of each panel that are not all zero: half of them of a triangle, none of W1 - W2 for equal weights
        found = []
        for start in range(0, len(self.factor), _FACTOR_ROWS):
            rows = slice(start, start + _FACTOR_ROWS)
            used = np.flatnonzero(self.factor[rows].any(axis=0))
            found.append((rows, slice(int(used[0]), int(used[-1]) + 1)))
        return found

    @cached_property
    def _lengths(self) -> Float64:
        return np.asarray(np.einsum("ij,ij->j", self.factor, self.factor))

    def __repr__(self) -> str:
        sizes = f"labels={self.labels}, d1={self.d1}, d2={self.d2}"
        return f"UnembeddingPair({sizes}, basis={self.basis!r}, method={self.method!r})"

    @property
    def width(self) -> int:
        """Number of columns D of the factor."""
        return self.d1 + self.d2 + self._biased

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return 8 * (self._held.count + 1) * self.width + (0 if self._given is None else self._given.nbytes)

    def squared_distances(
        self, h1: Array, h2: Array, *, mask: Any = None, precision: str = "high", backend: str = "auto"
    ) -> Float64:
        """Return the squared distance of the centred logits of each row.

        Parameters
        ----------
        h1, h2 : array of shape (N, d1) and (N, d2), float16, bfloat16, float32 or float64
            Hidden states of the same rows, also none.
        mask : bool array of shape (N,), optional
            Rows that count. Default: all.
        precision : {"fast", "high", "exact"}
            Of products on a GPU: one bfloat16 for each value, two (16 bits), or float64. Hidden states in float64 are
            always "exact"; so is the host.
        backend : {"auto", "reference", "cpu", "cuda"}
            A named backend never falls back to another.

        Returns
        -------
        float64 array of shape (N',)
            At least 0; one value for each row that counts, in host memory.

        Raises
        ------
        TypeError, ValueError, RuntimeError
            If shapes or dtypes do not fit, values are not finite, or h1 and h2 are not on one device.

        Warns
        -----
        RuntimeWarning
            If the terms of a row cancel so far that rounding may exceed 1e-6 of its value; it says how many digits are
            left. The sum over the labels itself has no more.

        Notes
        -----
        N D^2 flops in float64, where the factor is triangular, and 16 MiB; for D > 4096, 2048 D bytes and 8 MiB.
        Relative error about 1e-15 times what cancels, which for near-equal models is nothing.

        On a GPU "high" takes three products of bfloat16 for one, two where that is given; relative error about 1e-5
        times what cancels, of "fast" 4e-3. Rows where more than 32, or 8, times their distance cancels are done again
        in float64. Peak extra bytes there: 512 MiB; held from the first use of a device and a precision on: 8 D^2, and
        2 or 4 D^2 for "fast" or "high".
        """
        function = "UnembeddingPair.squared_distances"
        arguments.choice(function, "precision", precision, PRECISIONS)
        check_backend(function, backend)
        return self._distances(function, h1, h2, mask, precision, backend)

    def _distances(self, function: str, h1: Any, h2: Any, mask: Any, precision: str, backend: str) -> Float64:
        """Return the squared distances of the rows that count, wherever they lie."""
        arrays = self._states(function, h1, h2)
        if not is_asked_for(arrays, backend):
            return self._squares(function, h1, h2, mask)
        squares, errors = self._held.squares(function, arrays, mask, precision, backend)
        self._judge(function, squares, int((errors > RESOLVED).sum()), float(errors.max(initial=0.0)), stacklevel=5)
        return squares

    def _states(self, function: str, h1: Any, h2: Any) -> dict[str, Array]:
        """Return checked hidden states by name."""
        given = (("h1", h1), ("h2", h2))
        arrays = {name: arguments.rows(function, name, h, allow_empty=True, on_gpu=True) for name, h in given}
        arguments.same_rows(function, arrays)
        for (name, h), size in zip(arrays.items(), (self.d1, self.d2), strict=True):
            if int(h.shape[1]) != size:
                width = f"the hidden size {size} of its unembedding"
                raise ValueError(f"{function}: expected {name} with {width}, got shape {tuple(h.shape)}")
        return arrays

    def _squares(self, function: str, h1: Any, h2: Any, mask: Any = None) -> Float64:
        arrays = self._states(function, h1, h2)
        n = int(arrays["h1"].shape[0])
        chosen = None if mask is None else logit_arguments.row_mask(function, mask, n)
        kept = np.arange(n) if chosen is None else np.flatnonzero(chosen)
        squares = np.empty(len(kept))
        size = max(_LEAST_ROWS, _BLOCK_BYTES // (8 * self.width))
        buffer = np.empty((min(size, len(kept)), self.width))
        worst, unresolved = 0.0, 0
        for start in range(0, len(kept), size):
            rows = kept[start : start + size]
            u = buffer[: len(rows)]
            self._read(function, arrays, slice(start, start + size) if mask is None else rows, rows, u)
            out = squares[start : start + size]
            out[:] = 0.0
            for panel, columns in self._panels:
                product = u[:, columns] @ self.factor[panel, columns].T
                out += np.einsum("ij,ij->i", product, product)
                # or the next one would be held beside it
                del product
            if self.method != "gram":
                errors = self._rounding(u, out)
                unresolved += int((errors > RESOLVED).sum())
                worst = max(worst, float(errors.max(initial=0.0)))
        self._judge(function, squares, unresolved, worst)
        return squares

    def _judge(self, function: str, squares: Float64, unresolved: int, worst: float, stacklevel: int = 6) -> None:
        if not np.isfinite(squares).all():
            raise ValueError(f"{function}: squared distances overflow; scale the data down")
        if unresolved:
            warn_of_cancellation(function, unresolved, len(squares), worst, stacklevel)

    def _read(
        self, function: str, arrays: Mapping[str, Array], rows: Any, numbers: NDArray[np.int64], out: Float64
    ) -> None:
        """Write rows in the basis of the factor, and refuse those that are not finite."""
        d1, d2 = self.d1, self.d2
        h1, h2 = (h[rows] for h in arrays.values())
        first, second = arguments.to_numpy(h1), arguments.to_numpy(h2)
        out[:, d1 : d1 + d2] = second
        with np.errstate(over="ignore", invalid="ignore"):
            if self.basis == "difference":
                np.subtract(first, second, out=out[:, :d1], dtype=np.float64)
            else:
                out[:, :d1] = first
            out[:, d1 + d2 :] = 1.0
            sums = out.sum(axis=1)
        if np.isfinite(sums).all():
            return
        error = arguments.nonfinite_row(function, dict(zip(arrays, (h1, h2), strict=True)), numbers)
        if error is not None:
            raise error
        raise ValueError(f"{function}: differences of h1 and h2 overflow; scale the data down")

    def _rounding(self, u: Float64, squares: Float64) -> Float64:
        """Return the relative error that rounding may cause in the squared distance of each row."""
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            terms = np.square(u) @ self._lengths
            cancelled = np.sqrt(terms / squares)
        return np.where(terms == 0, 0.0, _ROUNDINGS * EPS * cancelled)

    def check(self, w1: Array, w2: Array, b1: Array | None = None, b2: Array | None = None) -> None:
        """Refuse other weights than those of the factor.

        Raises
        ------
        ValueError
            If a shape, a dtype, a bias or any value of a row used differs.
        TypeError, RuntimeError
            As for new weights.

        Notes
        -----
        One read of the weights, no copy.
        """
        self._check("UnembeddingPair.check", w1, w2, b1, b2)

    def _check(self, function: str, w1: Any, w2: Any, b1: Any, b2: Any) -> None:
        given = Columns.checked(function, w1, w2, b1, b2, self._given)
        on_gpu = gpu_factorization.are_on_gpu(given, "auto")
        if (gpu_factorization.fingerprint_on_gpu(given, "auto") if on_gpu else given.fingerprint()) != self.fingerprint:
            raise ValueError(
                f"{function}: these are other weights than those of the factor, {self!r}; "
                "make a new gramless.UnembeddingPair of them"
            )

    def to_dict(self) -> dict[str, Array]:
        """Return a flat dict of arrays, which saves without pickle."""
        arrays = {"factor": self.factor.copy()} | ({} if self._given is None else {"given": self._given.copy()})
        texts = {"format": FORMAT, "method": self.method, "fingerprint": self.fingerprint}
        texts |= {"checksum": checksum(self.factor)}
        return as_flat_arrays(arrays, n=self.labels, d1=self.d1, d2=self.d2, biased=int(self._biased), **texts)

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Self:
        """Return the pair of a dict made by `to_dict`, copied.

        Raises
        ------
        TypeError, ValueError
            If the dict is not one of these.
        """
        function = "UnembeddingPair.from_dict"
        made = cls.__new__(cls)
        made._fill(*parts_of(function, state, FORMAT, METHODS))
        return made

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a .safetensors or .npz file, which `load` reads; neither needs pickle.

        Raises
        ------
        ValueError
            If the path ends in neither.
        OSError
            If it cannot be written.
        """
        suffix = arguments.path_suffix("UnembeddingPair.save", path, SUFFIXES)
        write(path, suffix, self.to_dict())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a file that `save` wrote.

        Raises
        ------
        ValueError
            If the file is not one of these.
        OSError
            If it cannot be opened.
        """
        suffix = arguments.path_suffix("UnembeddingPair.load", path, SUFFIXES)
        with opened("load: cannot read", path, "rb") as file:
            try:
                return cls.from_dict(read(path, suffix, file))
            except Exception as error:
                # what a damaged file makes its parsers raise has no useful bound
                why = str(error).removeprefix("UnembeddingPair.from_dict: ")
                raise ValueError(f"UnembeddingPair.load: cannot read {os.fspath(path)!r}: {why}") from error
