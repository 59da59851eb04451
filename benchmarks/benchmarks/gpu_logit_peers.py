"""What users would otherwise run on a GPU for predictions: torch by hand, compiled and not, Liger, Cut Cross-Entropy.

* torch-chunks: logits of some rows of all models, and what is asked of them; sums in float32.
* torch-compiled: the same, all that follows the products in one function for `torch.compile`.
* torch-float32, torch-tf32: torch-chunks in float32, without and with the tensor cores.
* torch-moments: the factor of two unembeddings, by second moments in float64 and their root.
* liger-jsd, liger-kl: `LigerFusedLinearJSD` with beta 0.5 and 0, its forward pass alone, the mean over rows.
* liger-kl-div: `LigerFusedLinearKLDivLoss`, which takes the probabilities of one model; torch makes them.
* cce, cce-lse: `linear_cross_entropy` of `cut_cross_entropy` without a gradient, and the log-sum-exp it is made from.

torch is asked for KL both ways, or with JS for all three, or for the distance; gramless gives the others besides.
Products of bfloat16 have float32 results where this version of torch can do that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from .gpu_data import parts
from .gpu_device import Device
from .gpu_peers import FLOAT32, Multiply, float32_products
from .logits import Models

if TYPE_CHECKING:
    import torch

# of which the logits of a model take 0.5 GB at 131,072 labels
CHUNK_ROWS = 1024
# of chunks of the interpreter's sizes
TINY_ROWS = 16
# rows of a block of unembeddings in float64
MOMENT_ROWS = 8192

Terms = Callable[..., dict[str, Any]]
Call = Callable[[], Any]


def kl_terms(z1: torch.Tensor, z2: torch.Tensor) -> dict[str, torch.Tensor]:
    import torch

    log_p, log_q = (torch.log_softmax(z, dim=1) for z in (z1, z2))
    difference = log_p - log_q
    return {
        "kl_pq": torch.linalg.vecdot(log_p.exp(), difference),
        "kl_qp": -torch.linalg.vecdot(log_q.exp(), difference),
    }


def js_terms(z1: torch.Tensor, z2: torch.Tensor) -> dict[str, torch.Tensor]:
    import torch

    log_p, log_q = (torch.log_softmax(z, dim=1) for z in (z1, z2))
    p, q = log_p.exp(), log_q.exp()
    difference = log_p - log_q
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    return {
        "kl_pq": torch.linalg.vecdot(p, difference),
        "kl_qp": -torch.linalg.vecdot(q, difference),
        "js": (torch.linalg.vecdot(p, log_p - log_m) + torch.linalg.vecdot(q, log_q - log_m)) / 2,
    }


def distance_terms(z1: torch.Tensor, z2: torch.Tensor) -> dict[str, torch.Tensor]:
    import torch

    delta = z1 - z2
    return {"logit_distance": torch.linalg.vector_norm(delta - delta.mean(dim=1, keepdim=True), dim=1)}


def lse_terms(z: torch.Tensor) -> dict[str, torch.Tensor]:
    import torch

    return {"lse": torch.logsumexp(z, dim=1)}


def in_chunks(heads: Sequence[torch.Tensor], multiply: Multiply, rows: int, terms: Terms) -> dict[str, torch.Tensor]:
    """What follows from the logits of each row; heads are hidden states and unembeddings, in turns."""
    import torch

    found: dict[str, list[torch.Tensor]] = {}
    with torch.no_grad():
        for part in parts(len(heads[0]), rows):
            logits = [
                multiply(h[part].to(multiply.dtype), w.to(multiply.dtype).T)
                for h, w in zip(heads[::2], heads[1::2], strict=True)
            ]
            for name, values in terms(*logits).items():
                found.setdefault(name, []).append(values)
        return {name: torch.cat(values) for name, values in found.items()}


def torch_peers(heads: Sequence[torch.Tensor], terms: Terms, device: Device) -> dict[str, Call]:
    """In the products that come nearest to the data."""
    import torch

    # the host has no products of bfloat16 with results in float32
    multiply = Multiply.of(torch.float32 if device.interpreting else heads[0].dtype, device)
    rows = TINY_ROWS if device.interpreting else CHUNK_ROWS
    # compiling for the host takes long, and nothing is timed there
    fused = terms if device.interpreting else torch.compile(terms, dynamic=False)

    def call(terms: Terms, kind: str = "high") -> dict[str, torch.Tensor]:
        with float32_products(kind):
            return in_chunks(heads, multiply, rows, terms)

    if heads[0].dtype == torch.float32:
        made = {name: partial(call, terms, kind) for name, kind in FLOAT32.items()}
    else:
        made = {"torch-chunks": partial(call, terms)}
    return made | {"torch-compiled": partial(call, fused)}


def torch_factor(w1: torch.Tensor, w2: torch.Tensor) -> torch.Tensor:
    """R of R^T R = M^T C M in float64, for M = [w1, w1 - w2], the basis that keeps near-equal models apart."""
    import torch

    width = w1.shape[1] + w2.shape[1]
    second = torch.zeros(width, width, dtype=torch.float64, device=w1.device)
    total = torch.zeros(width, dtype=torch.float64, device=w1.device)
    for part in parts(len(w1), MOMENT_ROWS):
        first = w1[part].double()
        block = torch.cat([first, first - w2[part].double()], dim=1)
        second.addmm_(block.T, block)
        total += block.sum(0)
    second.addr_(total, total, alpha=-1 / len(w1))
    return torch.linalg.cholesky(second).mH


def liger_jsd(models: Models, beta: float) -> torch.Tensor:
    """Mean over rows of JS, or with beta = 0 of KL of model 1, the teacher, to model 2."""
    import torch
    from liger_kernel.transformers.fused_linear_jsd import LigerFusedLinearJSD

    with torch.no_grad():
        return LigerFusedLinearJSD(jsd_beta=beta)(models.h2, models.w2, models.h1, models.w1, None)


def liger_kl_div(models: Models, multiply: Multiply) -> torch.Tensor:
    """Mean over rows of KL of model 1 to model 2."""
    import torch
    from liger_kernel.transformers.fused_linear_kl_div import LigerFusedLinearKLDivLoss

    with torch.no_grad():
        target = torch.softmax(multiply(models.h1, models.w1.T), dim=1)
        return LigerFusedLinearKLDivLoss(reduction="batchmean")(models.h2, models.w2, target)


def liger_peers(models: Models, device: Device) -> dict[str, dict[str, Call]]:
    """By what they answer."""
    multiply = Multiply.of(models.h1.dtype, device)
    return {
        "js": {"liger-jsd": partial(liger_jsd, models, 0.5)},
        "kl_pq": {
            "liger-kl": partial(liger_jsd, models, 0.0),
            "liger-kl-div": partial(liger_kl_div, models, multiply),
        },
    }


def cce(h: torch.Tensor, w: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    import torch
    from cut_cross_entropy import linear_cross_entropy

    with torch.no_grad():
        return linear_cross_entropy(h, w, targets, reduction="none")


def cce_lse(h: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    from cut_cross_entropy.cce_lse_forward import cce_lse_forward_kernel

    return cce_lse_forward_kernel(h, w)


def cce_peers(h: torch.Tensor, w: torch.Tensor, targets: torch.Tensor) -> dict[str, dict[str, Call]]:
    """By what they answer."""
    return {"cross_entropy": {"cce": partial(cce, h, w, targets)}, "lse": {"cce-lse": partial(cce_lse, h, w)}}
