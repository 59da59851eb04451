"""Fill fresh heap memory with bytes that make a read before a write visible (glibc; elsewhere nothing happens)."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# 0x7f bytes: NaN in float16, 3.4e38 in float32 and bfloat16, 1.4e306 in float64: any of them ruins a sum
FILL = 0x7F
_M_PERTURB = -6


def available() -> bool:
    return sys.platform == "linux" and hasattr(ctypes.CDLL(None), "gnu_get_libc_version")


@contextmanager
def poisoned_allocations() -> Iterator[None]:
    """Every malloc inside returns memory full of FILL bytes."""
    if not available():
        yield
        return
    libc = ctypes.CDLL(None)
    # glibc stores the complement of the byte it is given
    libc.mallopt(_M_PERTURB, FILL ^ 0xFF)
    try:
        yield
    finally:
        libc.mallopt(_M_PERTURB, 0)
