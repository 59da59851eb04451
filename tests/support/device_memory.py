"""The most bytes of tensors that a call holds at a time: on a GPU those of its memory, in the interpreter of torch."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from gramless._triton.tiles import launch as tiles_launch
from support import bounds, device


def peak_extra_bytes(call: Callable[[], Any]) -> int:
    """The most bytes of tensors that there are while a call runs, beyond those before."""
    if device.label() == "cuda":
        # cuBLAS and others keep what they take once
        call()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    # nothing that earlier calls have left may go in between
    gc.collect()
    with (
        _arrays_are_copied(),
        _nothing_lingers(),
        profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen,
    ):
        call()
    changes = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = np.cumsum([event.nbytes() for event in sorted(changes, key=lambda event: event.start_ns())])
    return int(held.max(initial=0))


def assert_said(said: int, call: Callable[[], Any], *, to_the_byte: bool = False) -> None:
    """What a call takes is what is said of it, in the interpreter also to the byte."""
    measured = peak_extra_bytes(call)
    share, slack = (bounds.MEMORY_FACTOR - 1, bounds.MEMORY_SLACK_BYTES)
    if device.label() != "cuda":
        share, slack = 0.0 if to_the_byte else bounds.INTERPRETED_MEMORY_SHARE, 0
    assert abs(said - measured) <= share * measured + slack, (said, measured)


@contextmanager
def _arrays_are_copied() -> Iterator[None]:
    """Arrays of NumPy that become tensors are copied, as on their way to a GPU."""
    from_numpy, as_tensor = torch.from_numpy, torch.as_tensor

    def copied(array: Any, **options: Any) -> torch.Tensor:
        made = as_tensor(array, **options)
        return made.clone() if isinstance(array, np.ndarray) else made

    with (
        mock.patch.object(torch, "from_numpy", lambda array: from_numpy(array).clone()),
        mock.patch.object(torch, "as_tensor", copied),
    ):
        yield


@contextmanager
def _nothing_lingers() -> Iterator[None]:
    """The interpreter leaves cycles behind, which hold the tensors of a launch."""
    launch = tiles_launch.launch

    def collected(*arguments: Any, **keywords: Any) -> None:
        launch(*arguments, **keywords)
        gc.collect()

    gc.freeze()
    try:
        with mock.patch.object(tiles_launch, "launch", collected):
            yield
    finally:
        gc.unfreeze()
