"""Batches of predictions that a GPU is at work on: launched without a wait, judged when their results are here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import ops
from .._base import arguments, gpu_arrays
from .._base.arrays import try_as_numpy
from .._base.async_host_copies import AsyncHostCopies, Flat
from ..ops import backends, logit_arguments, logit_faults
from ..ops.logit_arguments import NO_TARGET, OutputHead
from ..states.logits import LogitPairState

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Options:
    """How batches are computed."""

    function: str
    labels: NDArray[np.int64] | None
    ignore_index: int | None
    temperature: float
    divergences: bool
    workspace: int | None
    nonfinite: str
    precision: str
    backend: str

    @property
    def keywords(self) -> dict[str, Any]:
        """What `logit_pairs` is told of any rows, but for what values that are not finite do."""
        names = ("labels", "temperature", "divergences", "workspace", "precision", "backend")
        return {name: getattr(self, name) for name in names}


class _Sent(NamedTuple):
    """What is known of a batch before its results are."""

    about: Any
    options: Options
    heads: tuple[OutputHead, OutputHead]  # of all rows that were given, without their values
    labels: int
    rows: NDArray[np.int64] | None  # of these, what was launched; None for all
    late: bool  # whether mask and targets are still to be judged, as some of them come with the results
    mask: Any  # those that do not
    targets: Any


class InFlightBatches:
    """Batches of `logit_pairs` that nobody has waited for, in their order.

    Rows that a mask in host memory leaves out are not computed. A mask or targets on the device are not looked at: they
    come to the host with the results, and what is wrong with them is told there.
    """

    def __init__(self) -> None:
        self._arrivals = AsyncHostCopies()
        self._newest = 0

    def __len__(self) -> int:
        return len(self._arrivals)

    @property
    def labels(self) -> int:
        """Number of labels of the newest batch, 0 if none is pending."""
        return self._newest if self._arrivals else 0

    def launch(
        self, options: Options, heads: Sequence[OutputHead], mask: Any, targets: Any, about: Any, expected: int = 0
    ) -> None:
        """Launch a batch of two checked models and send for its results; this waits for nothing.

        Parameters
        ----------
        options : Options
            How it is computed.
        heads : sequence of Head
            Both models, on one device, or in host memory for Triton's interpreter.
        mask, targets : array of shape (N,) or None
            On the device or in host memory.
        about : object
            What is handed out with the results.
        expected : int
            Number of labels that it must have, 0 for any.

        Raises
        ------
        TypeError, ValueError
            As `gramless.logit_pairs`, for what is known without values from the device.
        RuntimeError
            If arrays are on different devices, the backend is missing, or a CUDA graph is captured.
        """
        arrays = logit_arguments.arrays_by_name(*heads)
        given = {name: a for name, a in (("mask", mask), ("targets", targets)) if arguments.gpu_of(a)}
        arguments.same_device(options.function, arrays | given)
        backends.resolve("logit_pairs", options.backend, arrays=arrays, precision=options.precision)
        device = gpu_arrays.tensor(heads[0].h).device
        _refuse_capture(options.function, device)
        judge = _judged_by_shape if given else _judged
        kept, aims = judge(options, heads, mask, targets)
        # copies: what the caller writes to them next is of another batch
        host = (None if not given or a is None or arguments.gpu_of(a) else try_as_numpy(a) for a in (mask, targets))
        waiting = [None if a is None else a.copy() for a in host]
        rows = None if kept is None or kept.all() else np.flatnonzero(kept)
        shapes = [_without_values(of, biased=bool(given)) for of in heads]
        sent = _Sent(about, options, (shapes[0], shapes[1]), 0, rows, bool(given), *waiting)
        if not (shapes[0].h.shape[0] if rows is None else len(rows)):
            return
        index = None if rows is None else gpu_arrays.to_device(rows, device)
        first, second = (_launched(of, index) for of in heads)
        if aims is not None:
            aims = _chosen(aims if arguments.is_torch(aims) else gpu_arrays.to_device(aims, device), index)
        flat = dict(ops.unread_logit_pairs(first, second, targets=aims, **options.keywords))
        labels = int(flat.pop("labels"))
        if expected not in (0, labels):
            raise ValueError(f"{options.function}: expected {expected} labels, as before, got {labels}")
        if options.nonfinite == "raise":
            flat |= {f"finite{of.number}": _finite_rows(of) for of in (first, second)}
        flat |= {name: aims if name == "targets" else a for name, a in given.items()}
        self._arrivals.send(flat, sent._replace(labels=labels))
        self._newest = labels

    def arrived(self) -> Iterator[tuple[Any, LogitPairState | ValueError]]:
        """Yield what has come: what was handed over with a batch, and its state, or what is wrong with it."""
        yield from map(_read, self._arrivals.arrived())

    def all(self) -> Iterator[tuple[Any, LogitPairState | ValueError]]:
        """Yield all that is pending; this waits for the device."""
        yield from map(_read, self._arrivals.all())


def without_ignored(function: str, mask: Any, targets: Any, ignore_index: Any, n: int) -> Any:
    """Return a mask without the rows whose target is to be ignored.

    Raises
    ------
    TypeError, ValueError
        If ignore_index is no whole number, or there are no targets. What mask and targets are is checked elsewhere.
    """
    if ignore_index is None:
        return mask
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, int | np.integer):
        raise TypeError(f"{function}: expected ignore_index to be an int, got {type(ignore_index).__name__}")
    if targets is None:
        raise ValueError(f"{function}: ignore_index={ignore_index} needs targets")
    found, given = try_as_numpy(targets), None if mask is None else try_as_numpy(mask)
    wrong = found is None or found.dtype.kind not in "iu" or found.shape != (n,)
    if found is None or wrong or (mask is not None and (given is None or given.shape != (n,) or given.dtype != bool)):
        return mask
    kept = found != ignore_index
    return kept if given is None else kept & given


def _judged(options: Options, heads: Sequence[OutputHead], mask: Any, targets: Any) -> tuple[Any, Any]:
    """Return which rows count, None for all, and the target of each, -1 for none: all of it in host memory."""
    n = int(heads[0].h.shape[0])
    mask = without_ignored(options.function, mask, targets, options.ignore_index, n)
    chosen = logit_arguments.choice(options.function, heads, options.labels, mask, targets)
    if chosen.targets is not None:
        counted = np.arange(n) if chosen.mask is None else np.flatnonzero(chosen.mask)
        chosen.targets[counted[chosen.without_target]] = NO_TARGET
    return chosen.mask, chosen.targets


def _judged_by_shape(options: Options, heads: Sequence[OutputHead], mask: Any, targets: Any) -> tuple[Any, Any]:
    """Return which rows to launch, None for all, and their targets as they are, without a look at the device."""
    function, n = options.function, int(heads[0].h.shape[0])
    for name, value, kind, expected in (
        ("mask", mask, "bool", "an array of bool, True for rows that count"),
        ("targets", targets, "int", "whole numbers of shape (N,)"),
    ):
        if not arguments.gpu_of(value):
            continue
        found = str(value.dtype).removeprefix("torch.")
        if kind not in found:
            raise TypeError(f"{function}: expected {name} to be {expected}, got dtype {found}")
        if tuple(value.shape) != (n,):
            raise ValueError(f"{function}: expected {name} of shape {(n,)}, one for each row, got {tuple(value.shape)}")
    kept = None if mask is None or arguments.gpu_of(mask) else logit_arguments.row_mask(function, mask, n)
    if arguments.gpu_of(targets):
        return kept, targets.long()
    without_ignored(function, None, targets, options.ignore_index, n)
    # of no row, so that shape and kind alone are judged
    logit_arguments.choice(function, heads, options.labels, np.zeros(n, dtype=bool), targets)
    return kept, None if targets is None else np.array(try_as_numpy(targets), dtype=np.int64)


def _launched(of: OutputHead, index: torch.Tensor | None) -> OutputHead:
    """Return a model as tensors, of the rows to launch."""
    return replace(of, h=_chosen(gpu_arrays.tensor(of.h), index), w=None if of.w is None else gpu_arrays.tensor(of.w))


def _chosen(rows: torch.Tensor, index: torch.Tensor | None) -> torch.Tensor:
    return rows if index is None else rows.index_select(0, index)


def _finite_rows(of: OutputHead) -> torch.Tensor:
    """Return whether each row is finite; logits that are given may be -inf."""
    import torch

    # NaN is both the least and the most of its row
    least, most = torch.aminmax(of.h, dim=1)
    return (most < torch.inf) if of.w is None else (least > -torch.inf) & (most < torch.inf)


def _without_values(of: OutputHead, *, biased: bool) -> OutputHead:
    """Return what stands for a model when only its shape and dtype are asked for, and its bias if labels are."""
    h, w = (None if a is None else gpu_arrays.tensor(a).to("meta") for a in (of.h, of.w))
    return replace(of, h=h, w=w, b=of.b if biased else None)


def _refuse_capture(function: str, device: torch.device) -> None:
    import torch

    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(f"{function}: a CUDA graph cannot hold this, results of batches are added up on the host")


def _read(arrival: tuple[Flat, _Sent]) -> tuple[Any, LogitPairState | ValueError]:
    """Return the state of a batch that has come, or what is wrong with it."""
    flat, sent = arrival
    try:
        return sent.about, _state(dict(flat), sent)
    except ValueError as error:
        return sent.about, error


def _state(flat: Flat, sent: _Sent) -> LogitPairState:
    first, second = sent.heads
    rows = np.arange(first.h.shape[0]) if sent.rows is None else sent.rows
    if sent.late:
        mask, targets = flat.pop("mask", sent.mask), sent.targets
        if "targets" in flat:
            # those of rows that were left out are not looked at
            targets = np.full(first.h.shape[0], NO_TARGET)
            targets[rows] = flat.pop("targets")
        kept, _ = _judged(sent.options, sent.heads, mask, targets)
        if kept is not None:
            flat = {name: values[kept[rows]] for name, values in flat.items()}
            rows = rows[kept[rows]]
    for of, lse in zip(sent.heads, ("lse_p", "lse_q"), strict=True):
        finite = flat.pop(f"finite{of.number}", None)
        if finite is not None:
            _refuse_nonfinite(sent.options.function, of, np.isnan(flat[lse]), finite, rows)
    if sent.options.nonfinite == "raise":
        logit_faults.refuse_overflow(sent.options.function, flat)
    options = {"temperature": sent.options.temperature, "softcap1": first.softcap, "softcap2": second.softcap}
    fields: dict[str, Any] = {**flat, "labels": sent.labels, **options}
    return LogitPairState(**fields)


def _refuse_nonfinite(
    function: str, of: OutputHead, lost: NDArray[np.bool_], finite: NDArray[np.bool_], rows: NDArray[np.int64]
) -> None:
    """Refuse rows that are NaN, with what is known of their cause."""
    if not lost.any():
        return
    bad = lost & ~finite
    if bad.any():
        error = gpu_arrays.nonfinite(function, f"h{of.number}", int(rows[np.argmax(bad)]), int(of.h.shape[0]))
        raise arguments.advise_on_nonfinite(error, of.h)
    row = f"row {rows[np.argmax(lost)]} of h{of.number}"
    if of.w is None:
        raise ValueError(f"{function}: {row} has no label that can be, or logits that overflow")
    raise ValueError(f"{function}: w{of.number} has non-finite values, or logits of {row} overflow")
