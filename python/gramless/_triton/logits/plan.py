"""How a pass over logits goes on a GPU, from shapes and dtypes alone: its chunks, its products and its bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from .. import logit_pairs, logsumexp
from ..tiles.launch import WORKSPACE_BYTES, cdiv
from . import chunks as logits_chunks
from .chunks import Head, Pass, Shape, room, shape_of

# by the number of models: numbers of a row that each part leaves, those that are found, and whole numbers made of these
_FIELDS = {1: logsumexp._FIELDS, 2: logit_pairs._FIELDS}
_FOUND = {1: logsumexp._RESULTS, 2: len(logit_pairs._RESULTS)}
_TOPS = {1: 1, 2: 2}


class Model(NamedTuple):
    """The dtypes of one model."""

    h: str
    w: str | None  # None: h holds logits
    biased: bool

    @property
    def planes(self) -> tuple[int, int]:
        """Numbers in bfloat16 of one of h and w in "high"."""
        return 1 + (self.h != "bfloat16"), 1 + (self.w != "bfloat16")

    def without_rows(self, device: torch.device) -> Head:
        """Return what stands for the model when only dtypes and the device are asked for."""
        h = torch.empty((0, 1), dtype=getattr(torch, self.h), device=device)
        return Head(h, None if self.w is None else h.to(getattr(torch, self.w)), None, None)


class Plan(NamedTuple):
    """What a pass will do."""

    # of each model what is multiplied, "" of logits that are given, and how many numbers stand for one of h and w
    ways: tuple[str, ...]
    planes: tuple[tuple[int, int], ...]
    # a chunk
    rows: int
    labels: int
    # bytes of the workspace, rows whose logits it holds, in whole tiles, and as many as it must so that it keeps them
    workspace: int
    fit: int
    least: int
    # bytes of the results, and of all else at a time
    results: int
    scratch: int


def plan(
    n: int,
    labels: int,
    models: Sequence[tuple[str, str | None, bool]],
    *,
    precision: str,
    divergences: bool = False,
    workspace: int | None = None,
    brought: int = 0,
    device: str = "",
) -> Plan:
    """Return what a pass over rows and labels that count will do on a device, in the interpreter if it has no name.

    Parameters
    ----------
    brought : int
        Whole numbers that are brought to the device: rows and labels where not all count, and targets.
    """
    made, place = [Model(*model) for model in models], torch.device(device or "cpu")
    heads = [model.without_rows(place) for model in made]
    wide = precision == "exact" or "float64" in [name for model in made for name in (model.h, model.w)]
    item, multiplied = 8 if wide else 4, [head for head in heads if head.w is not None]
    ways = tuple(logits_chunks._way(head, precision, wide) for head in heads)
    given = WORKSPACE_BYTES if workspace is None else workspace
    shape, fit, least = Shape(n, labels), 0, 0
    if multiplied:
        tile, numbers = room([way for way in ways if way], place, workspace)
        shape = shape_of(n, labels, tile, numbers, whole=divergences)
        fit = numbers // (cdiv(labels, tile[1]) * tile[1]) // tile[0] * tile[0]
        least = min(cdiv(n, tile[0]) * tile[0], logits_chunks._LEAST_ROWS)
    run = Pass(heads, None, None, None, n, labels, wide, precision, 1.0, shape, [], [])
    count = len(made)
    # a tile more behind the last number of each
    chunks = len(multiplied) * (shape.rows * shape.labels + logits_chunks._BLOCK_V)
    biases = sum(model.biased for model in made) * (labels + logits_chunks._BLOCK_V)
    found, tops = 8 * _FOUND[count] * n, 8 * _TOPS[count] * n
    during, last = _of_parts(run, _FIELDS[count], divergences=divergences)
    # tops are made in the end, beside what the last parts have left
    peak = item * (chunks + biases) + 8 * brought + found + max(during, last + tops)
    planes = tuple(model.planes if way == "high" else (1, 1) for way, model in zip(ways, made, strict=True))
    return Plan(ways, planes, *shape, given, fit, least, found + tops, peak - found - tops)


def _of_parts(run: Pass, fields: int, *, divergences: bool) -> tuple[int, int]:
    """Return the bytes of what parts of the labels leave: the most at a time, and those of the last rows."""
    during, earlier = 0, 0
    for _, rows in run.blocks():
        parts = cdiv(run.shape.labels, run._length(rows))
        left = 8 * fields * (1 + parts) * rows
        # of a chunk what its parts leave, its shares, and these beside those of the chunks before
        shares = 8 * 2 * rows * (1 + parts + 1 + (not run.holds_all)) if divergences else 0
        during, earlier = max(during, left + max(earlier, shares)), left
    return during, earlier
