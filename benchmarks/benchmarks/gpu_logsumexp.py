"""`logsumexp` on a GPU, against torch by chunks, compiled and not, and Cut Cross-Entropy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import gramless as gl
from gramless.measures import logits

from .base import installed
from .gpu_device import BACKEND, Device
from .gpu_logit_data import Truth, as_numpy, given_bytes, true_one, two_models
from .gpu_logit_peers import cce_peers, lse_terms, torch_peers
from .gpu_logits import LARGE, TINY, Shape, torch_errors
from .gpu_rows import OURS, PRODUCTS, Case, Contestant, Errors, GpuRow, Target, measure
from .gpu_tables import LOGITS
from .logits import pair_flops

if TYPE_CHECKING:
    import torch

COLUMNS = LOGITS
TITLE = "logsumexp: what one model predicts"
CCE = "cut-cross-entropy"
PEERS = {CCE: ("cut_cross_entropy",)}
ASKED = "lse"
UNREAD = f"{OURS}-unread"
SHAPES = (LARGE, LARGE._replace(dtype="float32"))
QUICK_SHAPES = tuple(shape._replace(n=2048) for shape in SHAPES)
TINY_SHAPES = (TINY, TINY._replace(dtype="float32"))


def state_errors(state: Any, truth: Truth) -> Errors:
    return Errors(truth.worst({"lse": state.lse, "entropy": logits.entropy(state), "renyi2": logits.renyi2(state)}))


def unread_errors(flat: dict[str, Any], truth: Truth) -> Errors:
    state = {name: value if name == "labels" else value.cpu().numpy() for name, value in flat.items()}
    return state_errors(gl.LogitState(**state), truth)


def value_errors(values: torch.Tensor, truth: Truth, name: str) -> Errors:
    return Errors(truth.worst({name: as_numpy(values)}))


def unread(h: torch.Tensor, w: torch.Tensor) -> Any:
    """The kernel itself, which never waits."""
    from gramless._triton.logsumexp import logsumexp

    return logsumexp(h, w, precision="high")


def contestants(
    h: torch.Tensor, w: torch.Tensor, targets: torch.Tensor, truth: Truth, device: Device
) -> Iterator[Contestant]:
    yield Contestant(OURS, partial(gl.logsumexp, h, w, backend=BACKEND), partial(state_errors, truth=truth))
    yield Contestant(UNREAD, partial(unread, h, w), partial(unread_errors, truth=truth))
    for name, call in torch_peers((h, w), lse_terms, device).items():
        yield Contestant(name, call, partial(torch_errors, truth=truth))
    # its products of float32 have a precision of their own
    if installed(*PEERS[CCE]) and h.element_size() == 2:
        for value, calls in cce_peers(h, w, targets).items():
            for name, call in calls.items():
                yield Contestant(name, call, partial(value_errors, truth=truth, name=value))


def drawn(shape: Shape, device: Device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One model, and a label for each row."""
    import torch

    h, w, _, _ = two_models(shape.n, shape.labels, shape.width, shape.dtype, shape.data, device)
    made = torch.Generator(device.name).manual_seed(1)
    return h, w, torch.randint(shape.labels, (shape.n,), generator=made, device=device.name)


def rows(device: Device, *, quick: bool, rounds: int) -> Iterator[GpuRow]:
    for shape in device.sized(SHAPES, QUICK_SHAPES, TINY_SHAPES, is_quick=quick):
        h, w, targets = drawn(shape, device)
        truth = true_one(h, w, targets)
        products = PRODUCTS["high"] if shape.dtype == "float32" else 1
        amounts = pair_flops(shape.n, shape.labels, shape.width) // 2, products, given_bytes((h, w))
        checked = f"log normaliser, entropy and Renyi entropy of {len(truth.rows)} rows; of peers one of these"
        case = Case(shape.dtype, "high", shape.n, shape.width, *amounts, checked)
        case = case._replace(labels=shape.labels, asked=ASKED, data=shape.data)
        yield from measure(case, list(contestants(h, w, targets, truth, device)), device, rounds)
        # the next model is drawn before these names are bound again
        del h, w, targets, truth


def targets(measured: Sequence[GpuRow], device: Device, *, quick: bool) -> Iterator[Target]:
    h, w, _ = drawn(TINY, device)
    yield Target("logsumexp of tensors never waits for the device", None, device.never_waits(partial(unread, h, w)))
