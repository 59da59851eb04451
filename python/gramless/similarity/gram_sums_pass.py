"""A full pass over all pairs of rows, strip by strip: it shows progress, and goes on after an interruption."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import time
import uuid
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import ops
from .._base import arguments, saved_state
from .._base.arrays import Array
from .._base.progress import progress_bar
from .._version import __version__
from ..ops import backends
from ..states.gram import GramState
from . import bandwidth_rules
from .bandwidth_rules import Bandwidth

if TYPE_CHECKING:
    from typing import Self

FORMAT = "gramless.gram_pass/1"
# least time between two writes of the checkpoint
SAVE_SECONDS = 5.0
_HASHED_BYTES = 16 << 20
# what numpy raises for a file that is cut off, is no archive of arrays, or says that it is larger than it is
_UNREADABLE = (
    AttributeError, EOFError, KeyError, MemoryError, OSError, RuntimeError, TypeError, ValueError, struct.error,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip


class GramSums:
    """All pairs of rows of x and y, a strip of them at a time; finalizing gives a `GramState`.

    A strip is all pairs (I, J), J >= I, of blocks of rows with one I. ``gl.cka(x, y, kernel=...)`` is this pass, to the
    last bit.

    Parameters
    ----------
    x : array of shape (n, p), float16, bfloat16, float32 or float64
        NumPy, also memory-mapped, torch on the CPU or a GPU, or anything with DLPack. Never copied, never changed.
    y : array of shape (n, q), optional
        The other representation of the same rows.
    kernel : {"linear", "rbf", "laplacian", "polynomial", "cosine", "distance"}
        As in `gramless.gram_sums`, like degree and coef0.
    bandwidth : {"median", "kornblith"} or number, or a sequence of these, optional
        As in `gramless.bandwidth`, taken of x and of y; several are computed in one pass. Default: "median".
    bandwidth_scale : float
        What all bandwidths are multiplied by.
    degree : int
        Degree of the polynomial kernel.
    coef0 : float
        Constant of the polynomial kernel.
    precision : {"fast", "high", "exact"}
        As in `gramless.gram_sums`.
    backend : {"auto", "reference", "cpu", "cuda"}
        A named backend never falls back to another.
    progress : bool
        Show a progress bar over the strips.
    checkpoint : path, optional
        An ``.npz`` file that holds what has been accumulated, written in one step every few seconds, at the end, and
        on an interruption. If it is there already, the pass goes on from it, with the same bits in the end.

    Attributes
    ----------
    bandwidth_x, bandwidth_y : tuple of Bandwidth
        The bandwidths and where they are from; empty for kernels without.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As `gramless.gram_sums` and `gramless.bandwidth`; and ValueError if the checkpoint cannot be read, or is of
        other data, other parameters or another version.
    FileNotFoundError
        If the folder of the checkpoint does not exist.

    Notes
    -----
    n^2 (p + q) flops. 32 n s bytes for s bandwidths, three times that while strips are merged, and two blocks of rows:
    nothing grows with n^2, nor with the files that memory-mapped arrays lie in. Rules take their own memory before. A
    checkpoint takes one more read of x and y, since it is bound to all their values.

    Examples
    --------
    >>> import numpy as np
    >>> import gramless as gl
    >>> rng = np.random.default_rng(0)
    >>> x = rng.standard_normal((500, 8))
    >>> y = x + rng.standard_normal((500, 8))
    >>> state = gl.GramSums(x, y, kernel="rbf", bandwidth=["median", 1.0]).run()
    >>> state
    GramState(n=500, kernel='rbf', bandwidths=2)
    >>> [round(gl.cka(state.select(k)), 3) for k in range(2)]
    [0.477, 0.078]
    """

    def __init__(
        self,
        x: Array,
        y: Array | None = None,
        *,
        kernel: str,
        bandwidth: Any = None,
        bandwidth_scale: float = 1.0,
        degree: int = 3,
        coef0: float = 1.0,
        precision: str = "high",
        backend: str = "auto",
        progress: bool = False,
        checkpoint: str | os.PathLike[str] | None = None,
    ) -> None:
        function = type(self).__name__
        several = isinstance(bandwidth, list | tuple) or (isinstance(bandwidth, np.ndarray) and bandwidth.ndim > 0)
        rules = list(bandwidth) if several else ["median" if bandwidth is None else bandwidth]
        arguments.gram_kernel(function, kernel, "unbiased", bandwidth, degree, coef0)
        if kernel not in arguments.WITH_BANDWIDTH:
            rules = []
        elif not rules:
            raise ValueError(f"{function}: expected at least one bandwidth, got none")
        for rule in rules:
            bandwidth_rules.check(function, "bandwidth", rule, bandwidth_scale, "bandwidth_scale")
        backends.check_backend(function, backend, "gram_sums")
        arguments.choice(function, "precision", precision, backends.PRECISIONS)
        given = {name: a for name, a in (("x", x), ("y", y)) if a is not None}
        self._arrays = {name: arguments.rows(function, name, a, on_gpu=True) for name, a in given.items()}
        self._n = arguments.same_rows(function, self._arrays)
        self._precision = precision
        self._backend = backends.resolve("gram_sums", backend, arrays=self._arrays, precision=precision).backend
        p, q = (*(int(a.shape[1]) for a in self._arrays.values()), 0)[:2]
        self._block = backends.gram_block_rows(self._backend, p, q, precision)
        self._progress = progress
        self._path = None if checkpoint is None else _file(function, checkpoint)
        found = {
            name: tuple(
                bandwidth_rules.chosen(function, name, a, rule, bandwidth_scale, backend=backend) for rule in rules
            )
            for name, a in self._arrays.items()
        }
        self.bandwidth_x: tuple[Bandwidth, ...] = found["x"]
        self.bandwidth_y: tuple[Bandwidth, ...] = found.get("y", ())
        self._kernel: dict[str, Any] = {"kernel": kernel, "degree": degree, "coef0": float(coef0)}
        for name, widths in found.items():
            self._kernel[f"bandwidth_{name}"] = np.array([w.value for w in widths]) if widths else None
        # strips that are done, and their sums, always replaced together
        self._done: tuple[int, GramState | None] = (0, None)
        self._saved = time.monotonic()
        self._marks = self._describe() if self._path else ""
        if self._path and self._path.exists():
            self._done = self._load(self._path)

    @property
    def n(self) -> int:
        """Number of rows."""
        return self._n

    @property
    def strips(self) -> int:
        """Number of strips of the pass."""
        return -(-self._n // self._block)

    @property
    def strips_done(self) -> int:
        """Number of strips that have been accumulated."""
        return self._done[0]

    @property
    def nbytes(self) -> int:
        """Bytes held by the sums."""
        state = self._done[1]
        return 0 if state is None else state.nbytes

    def update(self) -> Self:
        """Accumulate the next strip; nothing happens after the last one.

        Raises
        ------
        ValueError, RuntimeError
            As `gramless.gram_sums`. What has been accumulated is kept.
        """
        strip, before = self._done
        if strip == self.strips:
            return self
        others = np.arange(strip, self.strips)
        pairs = np.stack([np.full_like(others, strip), others], axis=1)
        part = ops.gram_sums(
            *self._arrays.values(),
            **self._kernel,
            block_rows=self._block,
            pairs=pairs,
            precision=self._precision,
            backend=self._backend,
        )
        self._done = (strip + 1, part if before is None else before.merge(part))
        if self._path and (strip + 1 == self.strips or time.monotonic() - self._saved >= SAVE_SECONDS):
            self._save(self._path)
        return self

    def run(self) -> GramState:
        """Accumulate all strips that are left, and return the state.

        Raises
        ------
        ValueError, RuntimeError
            As `gramless.gram_sums`. After these, or an interruption, what has been accumulated is kept, and written to
            the checkpoint: running again goes on.
        """
        try:
            strips = range(self.strips_done, self.strips)
            for _ in progress_bar(strips, "strips of row pairs", shown=self._progress):
                self.update()
        except BaseException:
            if self._path and self.strips_done:
                self._save(self._path)
            raise
        return self.finalize()

    def finalize(self) -> GramState:
        """Return the state of all pairs of rows.

        Raises
        ------
        ValueError
            If strips are left.
        """
        done, state = self._done
        if state is None or done < self.strips:
            raise ValueError(
                f"{type(self).__name__}.finalize: {done} of {self.strips} strips are done, run the others first"
            )
        return state

    def _describe(self) -> str:
        """Return all that the bits of the result depend on, as a text."""
        kernel = {
            key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in self._kernel.items()
        }
        code = {"version": __version__, "backend": self._backend, "block_rows": self._block}
        if self._backend == "cuda":
            code["precision"] = self._precision
        if self._backend == "cpu":
            code["instruction set"] = backends.core_or_raise(type(self).__name__).isa_level()
        data = {name: _fingerprint(a) for name, a in self._arrays.items()}
        return json.dumps({"data": data, "parameters": code | kernel})

    def _save(self, path: Path) -> None:
        """Write the checkpoint; what keeps it from being written does not end the pass."""
        try:
            self._write(path)
        except OSError as error:
            warnings.warn(
                f"{type(self).__name__}: the checkpoint {path} cannot be written: {error}", RuntimeWarning, stacklevel=3
            )
        self._saved = time.monotonic()

    def _write(self, path: Path) -> None:
        """Write beside the place of the checkpoint first, so that it is whole at any time."""
        done, state = self._done
        if state is None:
            return
        marks = {"pass.format": FORMAT, "pass.marks": self._marks, "pass.strips": done}
        flat: dict[str, Any] = marks | state.to_dict()
        fresh = path.with_name(f"{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.part")
        try:
            with fresh.open("wb") as file:
                np.savez(file, **flat)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(path)
        finally:
            fresh.unlink(missing_ok=True)

    def _load(self, path: Path) -> tuple[int, GramState]:
        """Return what a checkpoint of this very pass holds."""
        function = type(self).__name__
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                flat = {key: archive[key] for key in archive.files}
        except _UNREADABLE as error:
            raise ValueError(f"{function}: cannot read the checkpoint {path}: {error}") from None
        found = flat.pop("pass.format", np.asarray("none"))
        if str(found) != FORMAT:
            raise ValueError(f"{function}: expected the checkpoint {path} of format {FORMAT!r}, got {str(found)!r}")
        self._compare(function, path, str(flat.pop("pass.marks", "")))
        try:
            done = saved_state.whole(function, flat, "pass.strips")
            state = GramState.from_dict({key: value for key, value in flat.items() if key != "pass.strips"})
        except (TypeError, ValueError) as error:
            raise ValueError(f"{function}: the checkpoint {path} is damaged: {error}") from None
        left = max(0, self._n - done * self._block)
        counted = self._n * (self._n - 1) // 2 - left * (left - 1) // 2
        if state.n != self._n or not 0 < done <= self.strips or state.pairs != counted:
            raise ValueError(f"{function}: the checkpoint {path} is damaged: it does not hold the strips that it says")
        return done, state

    def _compare(self, function: str, path: Path, marks: str) -> None:
        """Refuse a checkpoint of another pass, and say what is different."""
        if marks == self._marks:
            return
        try:
            theirs, ours = json.loads(marks), json.loads(self._marks)
            different = [name for name in ours["data"] if theirs["data"].get(name) != ours["data"][name]]
            if different or theirs["data"].keys() != ours["data"].keys():
                what = f"other data ({', '.join(different) or 'other arrays'})"
            else:
                theirs, ours = theirs["parameters"], ours["parameters"]
                changed = [f"{key} {theirs.get(key)}, not {ours[key]}" for key in ours if theirs.get(key) != ours[key]]
                what = f"other parameters ({'; '.join(changed)})"
        except (ValueError, KeyError, TypeError, AttributeError):
            what = "something else"
        raise ValueError(f"{function}: the checkpoint {path} is of {what}; give another path, or remove it")


def _file(function: str, checkpoint: str | os.PathLike[str]) -> Path:
    path = Path(checkpoint)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{function}: the folder of the checkpoint {path} does not exist")
    if path.is_dir():
        raise ValueError(f"{function}: expected a file for the checkpoint, got the folder {path}")
    return path


def _fingerprint(x: Array) -> dict[str, Any]:
    """Return shape, dtype and a hash of all values."""
    n, p = map(int, x.shape)
    digest = hashlib.sha256()
    step = max(1, _HASHED_BYTES // (8 * p))
    for first in range(0, n, step):
        part = x[first : first + step]
        digest.update(arguments.to_numpy(part.cpu() if arguments.gpu_of(x) else part).tobytes())
    return {"shape": [n, p], "dtype": str(x.dtype).removeprefix("torch."), "values": digest.hexdigest()}
