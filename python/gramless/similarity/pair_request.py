"""The arguments that all measures of two arrays by one kernel share, and the pass over the arrays that they choose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .. import ops
from .._base import arguments
from .._base.arrays import Array
from ..ops import backends
from ..states.gram import GramState
from ..states.moments import CrossMoments, MomentState, SelfMoments
from . import bandwidth_rules
from .gram_sums_pass import GramSums

# defaults of the parameters that only some kernels have
_PARAMETERS = {
    "bandwidth_scale": (1.0, arguments.WITH_BANDWIDTH),
    "degree": (3, ("polynomial",)),
    "coef0": (1.0, ("polynomial",)),
}


@dataclass(frozen=True)
class KernelPass:
    """Arguments as in `gramless.cka`, checked when they are given, before any pass."""

    function: str
    kernel: str
    estimator: str
    bandwidth: str | float | None
    bandwidth_scale: float
    degree: int
    coef0: float
    backend: str
    precision: str = "high"

    def __post_init__(self) -> None:
        arguments.choice(self.function, "estimator", self.estimator, arguments.ESTIMATORS)
        arguments.gram_kernel(self.function, self.kernel, self.estimator, self.bandwidth, self.degree, self.coef0)
        bandwidth_rules.check(self.function, "bandwidth", self._rule, self.bandwidth_scale, "bandwidth_scale")
        for name, (default, kernels) in _PARAMETERS.items():
            value = getattr(self, name)
            if self.kernel not in kernels and value != default:
                raise ValueError(f"{self.function}: kernel={self.kernel!r} has no {name}, got {name}={value!r}")
        arguments.choice(self.function, "precision", self.precision, backends.PRECISIONS)
        backends.check_backend(self.function, self.backend)

    @property
    def _rule(self) -> str | float:
        return "median" if self.bandwidth is None else self.bandwidth

    @property
    def by_rule(self) -> bool:
        """Whether bandwidths come from the data."""
        return self.kernel in arguments.WITH_BANDWIDTH and isinstance(self._rule, str)

    def stem(self, x: Array, y: Array) -> str:
        """Return the kernel that takes the pass over checked arrays."""
        if self.kernel != "linear":
            return "gram_sums"
        if self.estimator == "feature_corrected":
            return "moments"
        return backends.linear_stem(*(int(length) for length in (*x.shape, y.shape[1])))

    def arrays(self, x: Any, y: Any, *, on_gpu: bool = True) -> tuple[Array, Array]:
        """Return both arrays, checked; on the host, unless a GPU will do as well."""
        if self.backend == "cuda" and not on_gpu:
            raise RuntimeError(
                f"{self.function}: permutations and random features read host memory, and have no backend='cuda'"
            )
        if hasattr(type(x), "finalize"):
            raise TypeError(
                f"{self.function}: expected two arrays or a MomentState or GramState, got the accumulator "
                f"{type(x).__name__}; call .finalize() first"
            )
        if isinstance(x, SelfMoments | CrossMoments):
            raise TypeError(f"{self.function}: expected a MomentState, got {type(x).__name__}; pass moments(x, y)")
        if y is None:
            raise TypeError(
                f"{self.function}: expected two arrays or a MomentState or GramState, got {type(x).__name__} alone"
            )
        checked = {name: arguments.rows(self.function, name, a, on_gpu=on_gpu) for name, a in (("x", x), ("y", y))}
        arguments.same_device(self.function, checked)
        arguments.enough_rows(self.function, self.estimator, arguments.same_rows(self.function, checked))
        return checked["x"], checked["y"]

    def resolve(self, stem: str, arrays: Sequence[Array]) -> backends.Choice:
        """Choose the kernel for both arrays, checked."""
        named = dict(zip("xy", arrays, strict=True))
        return backends.resolve(stem, self.backend, arrays=named, precision=self.precision)

    def state(self, x: Any, y: Any) -> MomentState | GramState:
        """Return the state of the pass over two arrays, or the state that x is."""
        if isinstance(x, MomentState | GramState):
            self._check_state(x, y)
            return x
        x, y = self.arrays(x, y)
        if self.stem(x, y) == "moments":
            moments: MomentState = ops.moments(x, y, precision=self.precision, backend=self.backend)
            return moments
        return GramSums(
            x,
            y,
            kernel=self.kernel,
            bandwidth=self.bandwidth,
            bandwidth_scale=self.bandwidth_scale,
            degree=self.degree,
            coef0=self.coef0,
            precision=self.precision,
            backend=self.backend,
        ).run()

    def widths(self, x: Array, y: Array) -> tuple[float | None, float | None]:
        """Return the bandwidths of checked arrays, None for a kernel without."""
        if self.kernel not in arguments.WITH_BANDWIDTH:
            return None, None
        first, second = (
            bandwidth_rules.chosen(self.function, name, a, self._rule, self.bandwidth_scale, backend=self.backend).value
            for name, a in (("x", x), ("y", y))
        )
        return first, second

    def keywords(self, width_x: float | None, width_y: float | None) -> dict[str, Any]:
        """Return the arguments of `gramless.gram_sums` for arrays of these bandwidths."""
        widths = {"bandwidth_x": width_x, "bandwidth_y": width_y}
        shared = ("kernel", "degree", "coef0", "precision", "backend")
        return {name: getattr(self, name) for name in shared} | widths

    def _check_state(self, state: MomentState | GramState, y: Any) -> None:
        """Refuse arguments that contradict a state."""
        kind = type(state).__name__
        if y is not None:
            raise TypeError(f"{self.function}: expected a {kind} alone, got y as well")
        own = state.kernel if isinstance(state, GramState) else "linear"
        if self.bandwidth is not None or self.bandwidth_scale != 1 or self.kernel not in ("linear", own):
            raise ValueError(f"{self.function}: this {kind} is of kernel={own!r} and its own bandwidth, give neither")
        if self.estimator == "feature_corrected" and isinstance(state, GramState):
            raise ValueError(f"{self.function}: estimator='feature_corrected' needs a MomentState, got a GramState")
