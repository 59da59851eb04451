"""The number of threads of the CPU kernels."""

from __future__ import annotations

from .._base import arguments
from .backends import _load_core, core_or_raise


def threads_or_one() -> int:
    """Return how many threads the CPU kernels use, 1 without the compiled module."""
    core, _ = _load_core()
    return 1 if core is None else int(core.get_num_threads())


def get_num_threads() -> int:
    """Return how many threads the CPU kernels use.

    Returns
    -------
    int
        At least 1. The default is the number of cores that this process may use.

    Raises
    ------
    RuntimeError
        If the compiled module cannot be loaded.

    Examples
    --------
    >>> import gramless as gl
    >>> gl.get_num_threads() >= 1
    True
    """
    return int(core_or_raise("get_num_threads").get_num_threads())


def set_num_threads(count: int) -> None:
    """Set how many threads the CPU kernels use. No result depends on it.

    Parameters
    ----------
    count : int
        At least 1.

    Raises
    ------
    TypeError, ValueError
        If count is not a whole number, or is less than 1.
    RuntimeError
        If the compiled module cannot be loaded.

    Examples
    --------
    >>> import gramless as gl
    >>> before = gl.get_num_threads()
    >>> gl.set_num_threads(1)
    >>> gl.get_num_threads()
    1
    >>> gl.set_num_threads(before)
    """
    arguments.positive("set_num_threads", "count", count)
    core_or_raise("set_num_threads").set_num_threads(count)
