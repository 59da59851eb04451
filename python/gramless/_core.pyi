from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK_WIDTH: int
CHUNK_ROWS: int

def moments(
    x: Any,
    y: Any = None,
    *,
    pivot_x: NDArray[np.float64] | None = None,
    pivot_y: NDArray[np.float64] | None = None,
    self_terms: bool = True,
    nonfinite: str = "raise",
) -> dict[str, Any]: ...
def get_num_threads() -> int: ...
def set_num_threads(count: int) -> None: ...
def isa_levels() -> list[str]: ...
def isa_level() -> str: ...
def set_isa_level(name: str) -> None: ...
