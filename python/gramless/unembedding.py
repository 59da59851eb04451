"""Two unembeddings as one small factor, with which the logit distance of a row no longer depends on the vocabulary."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from . import _checks, _logit_checks
from ._checks import Array
from ._dispatch import check_backend
from ._factors import EPS, Columns, Factor, factor, without_zeros
from ._pair_files import SUFFIXES, checksum, failed, opened
from ._states import saved

if TYPE_CHECKING:
    from typing import Self

FORMAT = "gramless.unembedding_pair/2"
METHODS = ("gram", "qr", "rows")
# relative error of a squared distance that is not worth a warning
RESOLVED = 1e-6
# rounding of a squared distance in units of eps times what cancels; the most seen is 15
_ROUNDINGS = 32.0
# rows of the factor that are multiplied at a time: what is left of its zeros is little
_FACTOR_ROWS = 256
# bytes of the hidden states that are held in float64, and the fewest rows of them; products take no more
_BLOCK_BYTES = 1 << 23
_LEAST_ROWS = 256

Float64 = NDArray[np.float64]


class UnembeddingPair:
    """What the logit distance needs of two unembeddings: a factor R with ||R [h1; h2]|| = ||C (z1 - z2)|| for any row.

    z1 = W1 h1 + b1 and z2 = W2 h2 + b2 are logits, and C takes their mean over the labels out. R is computed once, for
    any number of rows.

    Parameters
    ----------
    w1, w2 : array of shape (V, d1) and (V, d2), float16, bfloat16, float32 or float64
        Unembeddings of the same V labels in the same order; d1 and d2 may differ. Read in blocks, never copied whole.
    b1, b2 : array of shape (V,), optional
        Biases. Labels masked in both models (-inf) are left out.
    labels : int array of shape (labels,), optional
        The labels to compare, each once. Default: all.
    backend : {"auto", "reference", "cpu"}
        As in `gramless.moments`.
    progress : bool
        Show a progress bar on standard error.

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
        R in its basis, D = d1 + d2, plus 1 with a bias, r <= D. Read-only.
    fingerprint : str
        Hash of shapes, dtypes, labels, biases and the bytes of all rows used. Any change of these gives another one,
        but for one choice in 2^66 of the keys of the hash; weights made to deceive it may not.
    nbytes : int
        Bytes held.

    Raises
    ------
    TypeError
        If an argument is no array, or of a wrong dtype.
    ValueError
        If the numbers of labels differ, labels are out of range or given twice, a label is masked in one model only,
        or all are masked; if values are not finite, or their squares overflow.
    RuntimeError
        If an array is not in host memory.

    Notes
    -----
    V D^2 flops and one read of the weights; 3 V D^2 and two reads where second moments would lose too many digits: that
    is decided by the inverse of the moments of unit columns, so that their rounding stays below 1e-7 of every squared
    distance (eps sqrt(D) ||G^-1|| at most 1e-7). Peak extra bytes: 24 D^2, and a block of 8 max(8192, D) (d2 + 1).

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
    >>> bool(np.allclose(pair.rows(h1, h2), (delta**2).sum(axis=1), rtol=1e-9))
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
        found = factor(columns, backend, progress=progress)
        self._fill(columns.sizes, columns.count, columns.given, columns.biases is not None, found)

    def _fill(
        self, sizes: tuple[int, int], labels: int, given: NDArray[np.int64] | None, biased: bool, found: Factor
    ) -> None:
        self.d1, self.d2 = sizes
        self.labels, self.method, self.fingerprint = labels, found.method, found.fingerprint
        self.basis = "difference" if self.d1 == self.d2 else "plain"
        self._given, self._biased = given, biased
        self.factor = found.matrix
        self.factor.flags.writeable = False
        # columns of each panel that are not all zero: half of them of a triangle, none of W1 - W2 for equal weights
        self._panels: list[tuple[slice, slice]] = []
        for start in range(0, len(self.factor), _FACTOR_ROWS):
            rows = slice(start, start + _FACTOR_ROWS)
            used = np.flatnonzero(self.factor[rows].any(axis=0))
            self._panels.append((rows, slice(int(used[0]), int(used[-1]) + 1)))
        self._lengths = np.einsum("ij,ij->j", self.factor, self.factor)

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
        held = (self.factor, self._lengths) + (() if self._given is None else (self._given,))
        return sum(array.nbytes for array in held)

    def rows(self, h1: Array, h2: Array, *, mask: Any = None) -> Float64:
        """Return the squared distance of the centred logits of each row.

        Parameters
        ----------
        h1, h2 : array of shape (N, d1) and (N, d2), float16, bfloat16, float32 or float64
            Hidden states of the same rows, also none.
        mask : bool array of shape (N,), optional
            Rows that count. Default: all.

        Returns
        -------
        float64 array of shape (N',)
            At least 0; one value for each row that counts.

        Raises
        ------
        TypeError, ValueError, RuntimeError
            If shapes or dtypes do not fit, or values are not finite.

        Warns
        -----
        RuntimeWarning
            If the terms of a row cancel so far that rounding may exceed 1e-6 of its value; it says how many digits are
            left. The sum over the labels itself has no more.

        Notes
        -----
        N D^2 flops in float64, where the factor is triangular, and 16 MiB; for D > 4096, 2048 D bytes and 8 MiB.
        Relative error about 1e-15 times what cancels, which for near-equal models is nothing.
        """
        return self._squares("UnembeddingPair.rows", h1, h2, mask)

    def _squares(self, function: str, h1: Any, h2: Any, mask: Any = None) -> Float64:
        arrays = {name: _checks.rows(function, name, h, allow_empty=True) for name, h in (("h1", h1), ("h2", h2))}
        n = _checks.same_rows(function, arrays)
        for (name, h), size in zip(arrays.items(), (self.d1, self.d2), strict=True):
            if int(h.shape[1]) != size:
                width = f"the hidden size {size} of its unembedding"
                raise ValueError(f"{function}: expected {name} with {width}, got shape {tuple(h.shape)}")
        chosen = None if mask is None else _logit_checks.row_mask(function, mask, n)
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
        if not np.isfinite(squares).all():
            raise ValueError(f"{function}: squared distances overflow; scale the data down")
        if unresolved:
            digits = 0 if worst >= 1 else int(-np.log10(worst))
            warnings.warn(
                f"{function}: the logits of both models nearly cancel in {unresolved} of {len(kept)} rows; "
                f"{digits} digits of their distance are left in float64",
                RuntimeWarning,
                stacklevel=3,
            )
        return squares

    def _read(
        self, function: str, arrays: Mapping[str, Array], rows: Any, numbers: NDArray[np.int64], out: Float64
    ) -> None:
        """Write rows in the basis of the factor, and refuse those that are not finite."""
        d1, d2 = self.d1, self.d2
        h1, h2 = (h[rows] for h in arrays.values())
        first, second = _checks.to_numpy(h1), _checks.to_numpy(h2)
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
        error = _checks.nonfinite_row(function, dict(zip(arrays, (h1, h2), strict=True)), numbers)
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
        if given.fingerprint() != self.fingerprint:
            raise ValueError(
                f"{function}: these are other weights than those of the factor, {self!r}; "
                "make a new gramless.UnembeddingPair of them"
            )

    def to_dict(self) -> dict[str, Array]:
        """Return a flat dict of arrays, which saves without pickle."""
        arrays = {"factor": self.factor.copy()} | ({} if self._given is None else {"given": self._given.copy()})
        texts = {"format": FORMAT, "method": self.method, "fingerprint": self.fingerprint}
        texts |= {"checksum": checksum(self.factor)}
        return saved(arrays, n=self.labels, d1=self.d1, d2=self.d2, biased=int(self._biased), **texts)

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Self:
        """Return the pair of a dict made by `to_dict`, copied.

        Raises
        ------
        TypeError, ValueError
            If the dict is not one of these.
        """
        function = "UnembeddingPair.from_dict"
        labels = _checks.state_header(function, state, FORMAT)
        d1, d2, biased = (_checks.state_whole(function, state, key) for key in ("d1", "d2", "biased"))
        method, fingerprint = (_checks.state_text(function, state, key) for key in ("method", "fingerprint"))
        _checks.choice(function, "method", method, METHODS)
        width, rows = d1 + d2 + biased, np.shape(state.get("factor", ()))[:1]
        if not (labels and d1 and d2 and rows) or rows[0] > min(width, labels) or biased > 1:
            raise ValueError(f"{function}: no factor of {labels} labels, d1 = {d1} and d2 = {d2} has {rows} rows")
        matrix = np.ascontiguousarray(_checks.state_array(function, state, "factor", (rows[0], width)))
        if _checks.state_text(function, state, "checksum") != checksum(matrix):
            raise ValueError(f"{function}: 'factor' is not the one that was saved, its checksum differs")
        known = {"format", "n", "d1", "d2", "biased", "method", "fingerprint", "checksum", "factor", "given"}
        _checks.no_other_keys(function, state, known)
        given = np.array(state["given"]) if "given" in state else None
        if given is not None and (given.dtype != np.int64 or given.ndim != 1 or (np.diff(given, prepend=-1) < 1).any()):
            raise ValueError(f"{function}: expected 'given' to be distinct labels in order")
        made = cls.__new__(cls)
        found = Factor(without_zeros(matrix), method, fingerprint)
        made._fill((d1, d2), labels, given, bool(biased), found)
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
        suffix = _checks.path_suffix("UnembeddingPair.save", path, SUFFIXES)
        try:
            # numpy gives a path without .npz another name
            with Path(path).open("wb") as file:
                if suffix == ".npz":
                    np.savez(file, **self.to_dict())
                    return
                from safetensors.numpy import save

                file.write(save(self.to_dict()))
        except OSError as error:
            raise failed("save: cannot write", path, error) from None

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
        suffix = _checks.path_suffix("UnembeddingPair.load", path, SUFFIXES)
        with opened("load: cannot read", path, "rb") as file:
            try:
                if suffix == ".safetensors":
                    from safetensors.numpy import load_file

                    return cls.from_dict(load_file(path))
                with np.load(file, allow_pickle=False) as arrays:
                    # it is never compressed, so it cannot unpack to more than its size
                    if sum(info.file_size for info in arrays.zip.infolist()) > os.fstat(file.fileno()).st_size:
                        raise ValueError("written by something else")
                    return cls.from_dict(dict(arrays))
            except Exception as error:
                # what a damaged file makes its parsers raise has no useful bound
                why = str(error).removeprefix("UnembeddingPair.from_dict: ")
                raise ValueError(f"UnembeddingPair.load: cannot read {os.fspath(path)!r}: {why}") from error
