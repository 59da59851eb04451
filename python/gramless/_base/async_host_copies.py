"""Results of kernels on their way from a GPU to host memory, without a wait for the device."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

# of pinned host memory and of batches that may be pending
PENDING_BYTES = 64 * 2**20
PENDING_BATCHES = 256

Flat = dict[str, NDArray[Any]]


class _Batch(NamedTuple):
    """One batch of results."""

    about: Any
    kinds: Mapping[str, str]  # dtype of each result
    packed: torch.Tensor  # (results, n) in host memory, the bits of each as int64
    event: Any  # which the device passes when they are there; None of what it has never seen

    @property
    def nbytes(self) -> int:
        return int(self.packed.numel()) * 8


class AsyncHostCopies:
    """Results of a device, batch by batch, which come to host memory behind the caller's back.

    `send` starts a copy into pinned memory on the current stream and returns. `arrived` hands out, in their order, the
    batches that are there. Beyond 64 MiB or 256 batches it waits for the oldest ones: the device is that far behind, so
    that this costs it nothing. The newest batch is never waited for, so that this much comes on top.

    Tensors in host memory, which are those of Triton's interpreter, are not looked at by `send`, and count as there
    when they are waited for.

    Examples
    --------
    >>> import torch
    >>> from gramless._base.async_host_copies import AsyncHostCopies
    >>> results = AsyncHostCopies()
    >>> results.send({"square": torch.arange(3) ** 2, "half": torch.arange(3) / 2}, about="first")
    >>> [(about, flat["square"].tolist()) for flat, about in results.all()]
    [('first', [0, 1, 4])]
    >>> len(results)
    0
    """

    def __init__(self) -> None:
        self._pending: deque[_Batch] = deque()

    def __len__(self) -> int:
        return len(self._pending)

    @property
    def nbytes(self) -> int:
        """Bytes of host memory that pending batches hold."""
        return sum(batch.nbytes for batch in self._pending)

    def send(self, flat: Mapping[str, torch.Tensor], about: Any) -> None:
        """Start to bring tensors of one device to the host, all of shape (n,), whatever their dtypes.

        Peak extra bytes on the device: 8 n for each tensor.
        """
        import torch

        kinds = {name: str(value.dtype).removeprefix("torch.") for name, value in flat.items()}
        packed = torch.stack([_bits(torch, value) for value in flat.values()])
        if packed.device.type == "cpu":
            self._pending.append(_Batch(about, kinds, packed, None))
            return
        here = torch.empty(packed.shape, dtype=packed.dtype, pin_memory=True)
        here.copy_(packed, non_blocking=True)
        self._pending.append(_Batch(about, kinds, here, torch.cuda.current_stream(packed.device).record_event()))

    def arrived(self) -> Iterator[tuple[Flat, Any]]:
        """Yield what has come, and what must no longer be waited for; a batch is gone once the next one is asked for.

        What fails while it has a batch in hand leaves that one pending.
        """
        while self._pending and (self._is_due() or self._has_come()):
            yield self._first()
            self._pending.popleft()

    def all(self) -> Iterator[tuple[Flat, Any]]:
        """Yield all that is pending, as `arrived` does; this waits for the device."""
        while self._pending:
            yield self._first()
            self._pending.popleft()

    def _has_come(self) -> bool:
        event = self._pending[0].event
        return event is not None and bool(event.query())

    def _is_due(self) -> bool:
        return len(self._pending) > 1 and (len(self._pending) > PENDING_BATCHES or self.nbytes > PENDING_BYTES)

    def _first(self) -> tuple[Flat, Any]:
        batch = self._pending[0]
        if batch.event is not None:
            batch.event.synchronize()
        rows = zip(batch.kinds.items(), batch.packed.numpy(), strict=True)
        return {name: _values(row, kind) for (name, kind), row in rows}, batch.about


def _bits(torch: Any, value: torch.Tensor) -> torch.Tensor:
    wide = value.to(torch.float64 if value.dtype.is_floating_point else torch.int64)
    return wide.view(torch.int64)


def _values(row: NDArray[np.int64], kind: str) -> NDArray[Any]:
    if "float" in kind:
        return row.view(np.float64)
    return row != 0 if kind == "bool" else row
