"""Tests of kernels for a GPU: they run on one where there is one, in the interpreter elsewhere."""

from __future__ import annotations

import pytest

from support import device

# there is no Triton for other machines
collect_ignore_glob = [] if device.has_triton() else ["test_*.py"]


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """All tensors are said to be on a GPU, and all arrays of NumPy on the host."""
    device.say_that_tensors_are_on_a_gpu(monkeypatch)


@pytest.fixture
def forbidden(on_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor may be looked at, and all of them are said to be on a GPU; kernels leave what they find."""
    device.forbid_looks(monkeypatch)


@pytest.fixture
def defined(monkeypatch: pytest.MonkeyPatch) -> None:
    """The definition of predictions in place of their kernel."""
    from gramless import ops
    from support import late_batches

    monkeypatch.setattr(ops, "unread_logit_pairs", late_batches.by_definition)
