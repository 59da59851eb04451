from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

GRAM_ROWS_IN_FLOAT64: int
LOGIT_WORKSPACE: int

def gram_sums(
    x: Any,
    y: Any = None,
    *,
    kernel: str = "linear",
    bandwidth_x: NDArray[np.float64] | None = None,
    bandwidth_y: NDArray[np.float64] | None = None,
    degree: int = 3,
    coef0: float = 1.0,
    block_rows: int | None = None,
    pairs: NDArray[np.int64] | None = None,
    sample_x: Any = None,
    sample_y: Any = None,
    nonfinite: str = "raise",
) -> dict[str, Any]: ...
def gram_values(
    layers: Sequence[Any],
    others: Sequence[Any] | None = None,
    *,
    kernel: str = "linear",
    bandwidths: Sequence[float] | None = None,
    pivots: Sequence[NDArray[np.float64]] | None = None,
    degree: int = 3,
    coef0: float = 1.0,
    nonfinite: str = "raise",
) -> dict[str, Any]: ...
def gram_products(values: NDArray[Any], pivots: NDArray[np.float64], split: int) -> dict[str, Any]: ...
def logsumexp(
    h: Any,
    w: Any,
    *,
    b: NDArray[np.float64] | None = None,
    labels: NDArray[np.int64] | None = None,
    mask: NDArray[np.bool_] | None = None,
    targets: NDArray[np.int64] | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    nonfinite: str = "raise",
) -> dict[str, Any]: ...
def logit_pairs(
    h1: Any,
    w1: Any,
    h2: Any,
    w2: Any,
    *,
    b1: NDArray[np.float64] | None = None,
    b2: NDArray[np.float64] | None = None,
    labels: NDArray[np.int64] | None = None,
    mask: NDArray[np.bool_] | None = None,
    targets: NDArray[np.int64] | None = None,
    temperature: float = 1.0,
    softcap1: float | None = None,
    softcap2: float | None = None,
    divergences: bool = False,
    workspace: int | None = None,
    nonfinite: str = "raise",
) -> dict[str, Any]: ...
def logit_divergences(
    h1: Any,
    w1: Any,
    h2: Any,
    w2: Any,
    lse_p: NDArray[np.float64],
    lse_q: NDArray[np.float64],
    *,
    b1: NDArray[np.float64] | None = None,
    b2: NDArray[np.float64] | None = None,
    labels: NDArray[np.int64] | None = None,
    mask: NDArray[np.bool_] | None = None,
    temperature: float = 1.0,
    softcap1: float | None = None,
    softcap2: float | None = None,
    nonfinite: str = "raise",
) -> dict[str, Any]: ...
def logit_block_rows(n: int, labels: int, width: int, *, float64: bool) -> int: ...
def logit_scratch_bytes(
    n: int,
    labels: int,
    widths: Sequence[int],
    *,
    float64: bool,
    on_unit: Sequence[bool],
    most_rows: int | None = None,
) -> int: ...
def gram_block_rows(p: int, q: int) -> int: ...
def gram_scratch_bytes(n: int, p: int, q: int, *, float64: bool, bandwidths: int) -> int: ...
def moments(
    x: Any,
    y: Any = None,
    *,
    pivot_x: NDArray[np.float64] | None = None,
    pivot_y: NDArray[np.float64] | None = None,
    self_terms: bool = True,
    nonfinite: str = "raise",
) -> dict[str, Any]: ...
def layer_moments(
    xs: Sequence[Any],
    ys: Sequence[Any] | None = None,
    *,
    pivots_x: Sequence[NDArray[np.float64]] | None = None,
    pivots_y: Sequence[NDArray[np.float64]] | None = None,
    nonfinite: str = "raise",
) -> dict[str, Any]: ...
def layer_moments_scratch_bytes(
    n: int, widths_x: Sequence[int], widths_y: Sequence[int], *, float64: Sequence[bool]
) -> int: ...
def moments_scratch_bytes(n: int, p: int, q: int, *, float64: bool, self_terms: bool) -> int: ...
def get_num_threads() -> int: ...
def set_num_threads(count: int) -> None: ...
def isa_levels() -> list[str]: ...
def isa_level() -> str: ...
def set_isa_level(name: str) -> None: ...
def bf16_units() -> list[str]: ...
def bf16_unit() -> str: ...
def set_bf16_unit(name: str) -> None: ...
