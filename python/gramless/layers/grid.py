"""`LayerGrid`: similarity of all pairs of layers from a stream of batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .._base import arguments
from .._base.process_group import Agreement
from ..accumulators.base import Accumulator
from ..ops import backends
from .exact import ExactGrid
from .minibatch import WEIGHTS, MinibatchGrid
from .names import named_layers, sides
from .similarity_matrix import SimilarityMatrix
from .tiles import GridKernel

if TYPE_CHECKING:
    from typing import Self

__all__ = ["LayerGrid"]

MODES = ("exact", "minibatch")


class LayerGrid(Accumulator[Any]):
    """CKA between all pairs of layers of two models, or of one, from a stream of batches.

    Parameters
    ----------
    mode : {"exact", "minibatch"}
        "exact" holds the cross moments of every pair; the result does not depend on the batches, the kernel is linear.
        "minibatch" averages the unbiased HSIC of each batch (Nguyen, Raghu and Kornblith 2021, arXiv:2010.15327); it
        holds a few numbers for each pair, and gives standard errors.
    kernel : {"linear", "rbf"}
        The kernel of all layers.
    bandwidth : float or {"median", "kornblith"}, optional
        Of the rbf kernel, exp(-d^2 / (2 bandwidth^2)): a number for all layers, or the rule that gives every layer its
        own in each batch, as in `gramless.bandwidth`. Default: "median".
    bandwidth_scale : float
        Factor of the bandwidth.
    weights : {"rows", "equal"}
        How batches count in the average: by their rows, or each the same, as other implementations have it.
    max_bytes : int, optional
        The most memory to take, for sums and kernel values. Default: what the machine and its control groups have free.
    precision : {"fast", "high", "exact"}
        As in `gramless.moments`, like backend.
    backend : {"auto", "reference", "cpu", "cuda"}
        A named backend never falls back to another.
    progress : bool
        Show a progress bar for each update of mode "exact", which is one step.

    Notes
    -----
    Sums of tensors on a GPU stay there, and `update` does not wait for it: layers that are not finite are told by what
    reads the sums, and `reset` takes them away. An update of mode "minibatch" can be captured in a CUDA graph once one
    has run; each replay adds what then lies where its tensors lay. A grid belongs to one CUDA stream.

    "exact": for widths p of the layers of x and q of y 16 (sum p^2 + sum q^2 + sum p q) bytes: the sums, and their next
    value while an update is under way. Per row 2 sum p q flops for the pairs; self terms are computed once per layer.

    "minibatch": 48 bytes for each pair of layers, however many batches. A batch of n rows of l layers takes n^2 sum p
    + n^2 l^2 / 2 flops, and up to 64 MiB of kernel values; larger batches go by blocks of rows. Products are float32
    unless a layer is float64. Batches of fewer than 4 rows wait for the next one; what is left of them at the end is
    not counted, with a warning.

    The standard error of a value is that of the average over batches like these: batches are taken as independent
    draws from one population, so shuffle data that is sorted by class or document. It comes from how the batches differ
    (delta method), is NaN for fewer than 2 of them, and is itself rough for fewer than 10. It holds no bias: the ratio
    of averages is off by about 1 / (number of rows), and the expectation of an rbf value with a bandwidth by rule is
    that of batches of this size.

    Examples
    --------
    >>> import numpy as np
    >>> import gramless as gl
    >>> rng = np.random.default_rng(0)
    >>> grid = gl.LayerGrid()
    >>> for _ in range(3):
    ...     x = rng.standard_normal((50, 4))
    ...     _ = grid.update({"in": x, "out": x[:, :2]}, {"other": -x})
    >>> print(grid.finalize())
    unbiased cka of 2 x 1 layers, n = 150
        other
    in  1.000
    out 0.624

    >>> grid = gl.LayerGrid("minibatch", kernel="rbf")
    >>> for _ in range(20):
    ...     x = rng.standard_normal((50, 4))
    ...     _ = grid.update({"in": x, "out": x[:, :2]}, {"other": -x})
    >>> print(grid.finalize())
    unbiased rbf cka of 2 x 1 layers, n = 1000
                 other
    in  1.000 +- 0.000
    out 0.670 +- 0.018
    """

    def __init__(
        self,
        mode: str = "exact",
        *,
        kernel: str = "linear",
        bandwidth: float | str | None = None,
        bandwidth_scale: float = 1.0,
        weights: str = "rows",
        max_bytes: int | None = None,
        precision: str = "high",
        backend: str = "auto",
        progress: bool = False,
    ) -> None:
        function = "LayerGrid"
        arguments.choice(function, "mode", mode, MODES)
        chosen = GridKernel.checked(function, kernel, bandwidth, bandwidth_scale)
        arguments.choice(function, "weights", weights, WEIGHTS)
        arguments.choice(function, "precision", precision, backends.PRECISIONS)
        backends.check_backend(function, backend)
        if max_bytes is not None:
            arguments.positive(function, "max_bytes", max_bytes)
        self._grid: ExactGrid | MinibatchGrid
        if mode == "minibatch":
            self._grid = MinibatchGrid(chosen, weights, max_bytes, precision, backend)
        elif kernel != "linear" or weights != "rows":
            raise ValueError(
                f"{function}: mode='exact' has kernel='linear' and no weights, got kernel={kernel!r}, "
                f"weights={weights!r}; use mode='minibatch', or cka_matrix for arrays that are in memory as a whole"
            )
        else:
            self._grid = ExactGrid(max_bytes, precision, backend, progress=progress)

    def __repr__(self) -> str:
        x, y = sides(self._grid.names)
        mode = "exact" if isinstance(self._grid, ExactGrid) else "minibatch"
        return f"LayerGrid({mode!r}, n={self.n}, layers={len(x)} x {len(y)})"

    def update(self, xs: Any, ys: Any = None) -> Self:
        """Add the rows of one batch.

        Parameters
        ----------
        xs : dict or list of arrays of shape (n, p), float16, bfloat16, float32 or float64
            The layers of one model. A list gets the names "0", "1", ...; p may differ between layers.
        ys : dict or list of arrays of shape (n, q), optional
            The layers of the other model. Without it, xs against itself.

        Raises
        ------
        TypeError, ValueError, RuntimeError
            As `gramless.moments`, and ValueError if layers are missing, unknown or of other width than before.
        MemoryError
            If the sums or kernel values do not fit; the message says what they need.
        """
        function = self._name("update")
        self._grid.add(function, named_layers(function, xs, ys))
        return self

    def finalize(self, *, estimator: str = "unbiased") -> SimilarityMatrix:
        """Return CKA of all pairs for all rows so far; more rows may follow.

        A layer against itself is 1. A layer without CKA, such as a constant one, has NaN in its row, and one warning
        names all of these.

        Parameters
        ----------
        estimator : {"unbiased", "biased", "feature_corrected"}
            As in `gramless.cka`; mode "minibatch" has the first alone.

        Raises
        ------
        ValueError
            If there are no rows yet, or n < 4 (biased: n < 2).
        """
        return self._grid.result(self._name("finalize"), estimator)

    def state_dict(self) -> dict[str, Any]:
        """Return a flat dict of copied arrays, which saves without pickle."""
        return self._grid.state_dict()

    @property
    def n(self) -> int:
        """Number of rows so far, with those that wait for the next batch."""
        return self._grid.n

    @property
    def nbytes(self) -> int:
        """Bytes held by the sums, and by up to 3 rows that wait for the next batch."""
        return self._grid.nbytes

    # the rows are those of the grid, and all that depends on its mode is asked of it

    @property
    def _state(self) -> Any:
        return self._grid._state

    @_state.setter
    def _state(self, state: Any) -> None:
        self._grid._state = state

    def _refuse_other(self, function: str, other: Any) -> None:
        theirs = other._grid if isinstance(other, LayerGrid) else None
        if not isinstance(theirs, type(self._grid)):
            found = type(other).__name__ if theirs is None else "one of another mode"
            raise TypeError(f"{function}: expected another LayerGrid of the same mode, got {found}")
        self._grid._refuse_other(function, theirs)

    def _joined(self, function: str, mine: Any, theirs: Any) -> Any:
        return self._grid._joined(function, mine, theirs)

    def _loaded(self, function: str, state: Mapping[str, Any]) -> Any:
        return self._grid._loaded(function, state)

    def _layout(self, state: Any) -> str:
        return self._grid._layout(state)

    def _reduced(self, function: str, agreed: Agreement, group: Any) -> Any:
        return self._grid._reduced(function, agreed, group)
