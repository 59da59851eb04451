"""Tests of kernels for a GPU: they run on one where there is one, in the interpreter elsewhere."""

from __future__ import annotations

from support import device

# there is no Triton for other machines
collect_ignore_glob = [] if device.has_triton() else ["test_*.py"]
