"""Launches of the GPU's kernels that `compiled` compiles: a name, and a call on tensors in host memory.

The call computes nothing. Its tensors tell the compiler what those on a GPU would: types, strides, alignment. A line of
the table is a name and such a call; sizes are those of real layers, but for rows, which no kernel is compiled for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

ROWS = 4096


def rows(p: int, dtype: str, n: int = ROWS) -> Any:
    """An array (n, p)."""
    import torch

    return torch.zeros((n, p), dtype=getattr(torch, dtype))


def moments(p: int, q: int, dtype: str, precision: str, **keywords: Any) -> Callable[[], object]:
    def call() -> object:
        from gramless._triton import moments

        return moments.moments(rows(p, dtype), rows(q, dtype) if q else None, precision=precision, **keywords)

    return call


def layer_moments(p: int, dtype: str, precision: str) -> Callable[[], object]:
    """Two layers with one, and with each other."""

    def call() -> object:
        from gramless._triton import moments

        layers = [rows(p, dtype), rows(p, dtype)]
        return [moments.layer_moments(layers, ys, precision=precision) for ys in (layers[:1], None)]

    return call


def gram_sums(
    p: int, q: int, dtype: str, precision: str, kernel: str, *, halves: bool = False, bandwidths: int = 1
) -> Callable[[], object]:
    """One kernel, of all rows or of two blocks of half of them and their mirror."""

    def call() -> object:
        import numpy as np

        from gramless._triton import gram_sums

        arrays = {"x": rows(p, dtype), "y": rows(q, dtype) if q else None}
        given: dict[str, Any] = {"kernel": kernel, "precision": precision}
        if kernel in ("rbf", "laplacian"):
            given |= {f"bandwidth_{name}": np.ones(bandwidths) for name, array in arrays.items() if array is not None}
        if halves:
            given |= {"block_rows": ROWS // 2, "pairs": np.array([[0, 1]])}
        return gram_sums.gram_sums(**arrays, **given)

    return call


def layer_grid(
    p: int, dtype: str, precision: str, kernel: str = "linear", bandwidth: float | str | None = None, n: int = 256
) -> Callable[[], object]:
    """One batch of two layers, of rows that are whole steps if p is a multiple of 64."""

    def call() -> object:
        import torch

        from gramless._triton.layer_grid import grid

        made = grid.Grid(
            "layer_grid",
            [p, p],
            1,
            torch.device("cpu"),
            kernel=kernel,
            bandwidth=bandwidth,
            scale=1.0,
            precision=precision,
        )
        made.update("layer_grid", [rows(p, dtype, n)] * 2, float(n))
        return made

    return call


def logits(
    stem: str, d: int, dtype: str, precision: str, *, dtype_w: str = "", options: bool = False, v: int = 32_768
) -> Callable[[], object]:
    """Predictions over a vocabulary, without JS and TV, or with these and every option."""

    def call() -> object:
        import importlib

        import numpy as np

        kernel = getattr(importlib.import_module(f"gramless._triton.{stem}"), stem)
        heads = [rows(d, dtype, 512), rows(d, dtype_w or dtype, v)] * (2 if stem == "logit_pairs" else 1)
        given: dict[str, Any] = {"precision": precision}
        if options:
            b, numbers = np.zeros(v), ("1", "2") if stem == "logit_pairs" else ("",)
            given |= {f"b{number}": b for number in numbers} | {f"softcap{number}": 30.0 for number in numbers}
            given |= {"targets": np.zeros(512, np.int64), "mask": np.arange(512) > 0, "labels": np.arange(v)}
            given |= {"divergences": True} if stem == "logit_pairs" else {}
        return kernel(*heads, **given)

    return call


def given_logits(stem: str, v: int, dtype: str) -> Callable[[], object]:
    """Predictions of models whose logits are there."""

    def call() -> object:
        import importlib

        kernel = getattr(importlib.import_module(f"gramless._triton.{stem}"), stem)
        return kernel(*[rows(v, dtype, 512), None] * (2 if stem == "logit_pairs" else 1))

    return call


def factor_rows(
    d1: int, d2: int, dtype: str, precision: str, *, biased: bool = False, masked: bool = False
) -> Callable[[], object]:
    """Squared logit distances of a batch by a factor, added to those of a stream."""

    def call() -> object:
        import torch

        from gramless._triton.factor import rows as factor_rows

        width = d1 + d2 + biased
        made = factor_rows.DeviceFactor(torch.zeros((width, width), dtype=torch.float64), d1, d2, biased)
        mask = torch.zeros(ROWS, dtype=torch.bool) if masked else None
        found = made.rows(rows(d1, dtype), rows(d2, dtype), mask, precision)
        return factor_rows.add_rows(None, found.squares, found.cancelled, mask, found.first_bad, 1.0, 1.0)

    return call


def factor_of(d1: int, d2: int, dtype: str) -> Callable[[], object]:
    """The factor of two unembeddings, and their fingerprint."""

    def call() -> object:
        import torch

        from gramless._triton.factor import factorization

        bias = torch.zeros(ROWS, dtype=torch.float64)
        weights = factorization.Weights(rows(d1, dtype), rows(d2, dtype), None, bias)
        words = [-(-d * weights.w1.element_size() // 8) for d in (d1, d2)]
        weights.marks(*(torch.zeros((4, count), dtype=torch.int64) for count in words))
        return factorization.by_moments(weights, torch.zeros(weights.width, dtype=torch.float64))

    return call


SCENARIOS: dict[str, Callable[[], object]] = {
    "moments fast": moments(1024, 768, "bfloat16", "fast"),
    "moments high": moments(1024, 768, "float32", "high"),
    "moments exact": moments(1024, 768, "float64", "exact"),
    "moments of layers, fast": layer_moments(768, "bfloat16", "fast"),
    "moments of layers, high": layer_moments(768, "float32", "high"),
    "moments of layers, exact": layer_moments(768, "float64", "exact"),
    "moments fast, narrow": moments(64, 0, "float16", "fast"),
    "moments high, narrow": moments(48, 64, "bfloat16", "high"),
    "moments exact, narrow": moments(64, 64, "float32", "exact"),
    "gram_sums rbf fast": gram_sums(512, 512, "bfloat16", "fast", "rbf"),
    "gram_sums rbf fast, long rows": gram_sums(4096, 4096, "bfloat16", "fast", "rbf"),
    "gram_sums rbf high": gram_sums(512, 768, "float32", "high", "rbf"),
    "gram_sums rbf high, long rows": gram_sums(4096, 4096, "float32", "high", "rbf"),
    "gram_sums rbf fast, 8 bandwidths": gram_sums(512, 4096, "bfloat16", "fast", "rbf", bandwidths=8),
    "gram_sums rbf high, 8 bandwidths": gram_sums(512, 4096, "float32", "high", "rbf", bandwidths=8),
    "gram_sums rbf exact, 8 bandwidths": gram_sums(512, 512, "float64", "exact", "rbf", bandwidths=8),
    "gram_sums rbf exact": gram_sums(512, 512, "float64", "exact", "rbf"),
    "gram_sums linear high, long rows": gram_sums(4096, 4096, "bfloat16", "high", "linear"),
    "gram_sums laplacian high, halves": gram_sums(512, 4096, "bfloat16", "high", "laplacian", halves=True),
    "gram_sums distance fast, long rows": gram_sums(4096, 2048, "bfloat16", "fast", "distance"),
    "gram_sums cosine high, x alone": gram_sums(1024, 0, "float16", "high", "cosine"),
    "gram_sums polynomial": gram_sums(512, 768, "float32", "high", "polynomial"),
    "layer grid bfloat16": layer_grid(4096, "bfloat16", "high"),
    "layer grid float16, odd rows": layer_grid(4095, "float16", "high"),
    "layer grid high": layer_grid(4096, "float32", "high"),
    "layer grid high, odd rows": layer_grid(4095, "float32", "high"),
    "layer grid fast": layer_grid(4096, "float32", "fast", "rbf", 1.0),
    "layer grid exact": layer_grid(1024, "float64", "exact", "rbf", "median"),
    "layer grid of few rows": layer_grid(1024, "bfloat16", "high", "rbf", "median", n=32),
    "layer grid high of few rows": layer_grid(1024, "float32", "high", "rbf", "kornblith", n=32),
    "logsumexp as given": logits("logsumexp", 4096, "bfloat16", "high"),
    "logsumexp high, all options": logits("logsumexp", 2048, "float32", "high", options=True),
    "logsumexp exact": logits("logsumexp", 1024, "float64", "exact"),
    "logit_pairs as given": logits("logit_pairs", 4096, "bfloat16", "high"),
    "logit_pairs as given, all options": logits("logit_pairs", 2048, "float16", "high", options=True),
    "logit_pairs fast": logits("logit_pairs", 2048, "float32", "fast"),
    "logit_pairs high": logits("logit_pairs", 2048, "float32", "high"),
    "logit_pairs high of two types": logits("logit_pairs", 2048, "float32", "high", dtype_w="bfloat16"),
    "logit_pairs exact, all options": logits("logit_pairs", 1024, "float64", "exact", options=True),
    "logsumexp of logits": given_logits("logsumexp", 32_768, "bfloat16"),
    "logit_pairs of logits": given_logits("logit_pairs", 32_768, "float32"),
    "logsumexp of logits, odd rows": given_logits("logsumexp", 50_257, "bfloat16"),
    "logit distance high": factor_rows(1024, 1024, "bfloat16", "high"),
    "logit distance high, float32": factor_rows(1024, 1024, "float32", "high", masked=True),
    "logit distance high, two sizes": factor_rows(1024, 768, "bfloat16", "high", biased=True),
    "logit distance fast": factor_rows(1024, 1024, "bfloat16", "fast"),
    "logit distance exact": factor_rows(1024, 768, "float64", "exact"),
    "logit distance, factor of bfloat16": factor_of(256, 256, "bfloat16"),
    "logit distance, factor of float32": factor_of(1024, 768, "float32"),
    "logit distance, factor of float64": factor_of(256, 192, "float64"),
}

# of each kernel the launch that asks most of registers and shared memory, for targets with tiles of their own: compiled
# by default, where all launches for all targets are compiled at night
_OWN_TILES = (
    "moments high, narrow",
    "gram_sums rbf high, 8 bandwidths",
    "logit_pairs as given, all options",
    "logit distance high, two sizes",
)
HEAVIEST: dict[str, tuple[str, ...]] = {
    "sm_80": _OWN_TILES,
    "sm_90": (
        *_OWN_TILES,
        "moments high",
        "moments exact",
        "layer grid exact",
        "logsumexp high, all options",
        "logit distance, factor of float32",
    ),
}
