"""Sums over all pairs of rows that several processes hold, by torch.distributed.

Blocks of rows go round a ring while each process takes the pairs of its own rows with those that have come. Of P
processes each sees P // 2 others: every pair of blocks is taken once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import ops
from .._base import arguments, gpu_arrays
from .._base.arrays import Array
from .._base.process_group import agree_on_layout, gather, raise_on_all_ranks
from ..states.gram import GramSide, GramState

if TYPE_CHECKING:
    import torch


# rows that centre and offset are taken from, as in a pass over all rows
_SAMPLED_ROWS = 7
_MOST_BLOCK_ROWS = 8192
# numbers of a state of which the largest counts
_WORST = ("eps", "error")


def gram_sums(
    x: Array,
    y: Array | None = None,
    *,
    group: Any = None,
    kernel: str = "linear",
    bandwidth_x: Any = None,
    bandwidth_y: Any = None,
    degree: int = 3,
    coef0: float = 1.0,
    block_rows: int = _MOST_BLOCK_ROWS,
    precision: str = "high",
    backend: str = "auto",
) -> GramState:
    """Sum kernel matrices over all pairs of the rows of all processes; every process of the group calls it.

    Parameters
    ----------
    x : array of shape (n_r, p), float16, bfloat16, float32 or float64
        The rows of this process, any number of them, in the order of the processes: NumPy or torch, on the CPU with
        gloo, on the GPU of this process with nccl.
    y : array of shape (n_r, q), optional
        The other representation of the same rows.
    group : torch.distributed.ProcessGroup, optional
        Default: all processes.
    kernel, bandwidth_x, bandwidth_y, degree, coef0, precision, backend
        As in `gramless.gram_sums`, the same in all processes.
    block_rows : int
        Rows of the pieces that pairs are taken of, which bounds the memory of the kernel.

    Returns
    -------
    GramState
        That of all rows, in every process, the same bits in each.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As `gramless.gram_sums`, if torch.distributed is not initialised, or if processes differ in what they give. An
        error of one process is one in all of them, and none is left waiting.

    Notes
    -----
    (p + q) n^2 / P flops in each of P processes, as many bytes sent as half of all rows take, and the rows of two other
    processes held. States are added in the order of processes, so that runs of as many processes agree to the bit.

    Examples
    --------
    In each process of ``torchrun --nproc-per-node 8``::

        from gramless import distributed

        torch.distributed.init_process_group()
        state = distributed.gram_sums(x, y, kernel="rbf", bandwidth_x=3.0, bandwidth_y=4.0)
        print(gramless.cka(state))
    """
    function = "gram_sums"
    # refuses processes outside of the group
    agree_on_layout(function, 0, "", group)
    options = {"kernel": kernel, "degree": degree, "coef0": coef0, "precision": precision}
    failure: Exception | None = None
    tensors: dict[str, torch.Tensor] = {}
    text = ""
    try:
        arguments.positive(function, "block_rows", block_rows)
        given = {name: a for name, a in (("x", x), ("y", y)) if a is not None}
        arrays = {name: arguments.rows(function, name, a, allow_empty=True, on_gpu=True) for name, a in given.items()}
        arguments.same_rows(function, arrays)
        tensors = {name: gpu_arrays.tensor(a).contiguous() for name, a in arrays.items()}
        widths = {
            f"bandwidth_{name}": None if width is None else np.atleast_1d(np.asarray(width, np.float64)).tolist()
            for name, width in (("x", bandwidth_x), ("y", bandwidth_y))
        }
        shapes = {name: [int(a.shape[1]), str(a.dtype)] for name, a in tensors.items()}
        text = json.dumps([shapes, block_rows, options, widths])
    except (TypeError, ValueError, RuntimeError) as error:
        failure = error
    raise_on_all_ranks(function, failure, group)
    n = int(next(iter(tensors.values())).shape[0])
    # refuses processes that give something else; those without rows give it, too
    agree_on_layout(function, 1, text, group)
    edges = _edges(n, group)
    if edges[-1] == 0:
        raise ValueError(f"{function}: expected at least one row in some process, got none")
    ring = _Ring(edges, group)
    samples = {f"sample_{name}": _sample(a, ring) for name, a in tensors.items()}
    keywords = options | samples | {"bandwidth_x": bandwidth_x, "bandwidth_y": bandwidth_y, "backend": backend}
    sums = _Sums(edges[-1])
    try:
        for visiting, source in ring.visits(list(tensors.values())):
            if failure is None:
                try:
                    _add_pairs(sums, ring, list(tensors.values()), visiting, source, block_rows, keywords)
                except (TypeError, ValueError, RuntimeError) as error:
                    # the others still need the rows that pass through here
                    failure = error
    finally:
        ring.finish()
    raise_on_all_ranks(function, failure, group)
    return sums.reduced(ring, y is not None, options)


@dataclass
class _Ring:
    """Where the rows of each process lie among all, and the blocks that go round."""

    edges: list[int]
    group: Any

    def __post_init__(self) -> None:
        import torch.distributed as dist

        self.rank, self.size = dist.get_rank(self.group), dist.get_world_size(self.group)
        self._pending: list[Any] = []

    def visits(self, own: list[torch.Tensor]) -> Iterator[tuple[list[torch.Tensor], int]]:
        """Yield the rows of this process, then those of others, while the next ones are under way."""
        here, source = own, self.rank
        for step in range(self.size // 2 + 1):
            last = step == self.size // 2
            coming = (source - 1) % self.size
            arriving = here if last else self._exchange(here, coming)
            yield here, source
            self.finish()
            here, source = arriving, coming

    def finish(self) -> None:
        """Wait for what is under way."""
        for work in self._pending:
            work.wait()
        self._pending = []

    def _exchange(self, here: list[torch.Tensor], coming: int) -> list[torch.Tensor]:
        """Start to send rows to the next process and to receive those of the one before."""
        import torch
        import torch.distributed as dist

        rows = self.edges[coming + 1] - self.edges[coming]
        arriving = [torch.empty((rows, a.shape[1]), dtype=a.dtype, device=a.device) for a in here]
        after, before = (self._global((self.rank + way) % self.size) for way in (1, -1))
        operations = [
            dist.P2POp(send, tensor.view(torch.uint8), peer, self.group)
            for send, tensors, peer in ((dist.isend, here, after), (dist.irecv, arriving, before))
            for tensor in tensors
            if tensor.numel()
        ]
        self._pending = dist.batch_isend_irecv(operations) if operations else []
        return arriving

    def _global(self, rank: int) -> int:
        import torch.distributed as dist

        return rank if self.group is None else dist.get_global_rank(self.group, rank)


class _Sums:
    """Sums over the pairs that one process takes, for the rows of all."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.pairs = 0
        self.eps = 0.0
        self.error = 0.0
        self.arrays: dict[str, NDArray[np.float64]] = {}
        self.fixed: dict[str, NDArray[np.float64]] = {}

    def add(self, part: GramState, places: Sequence[tuple[int, int]]) -> None:
        """Add the sums of a few rows, whose places among all rows are given piece by piece."""
        self.pairs += part.pairs
        self.eps, self.error = max(self.eps, part.eps), max(self.error, part.error)
        sides = {"x": part.x} if part.y is None else {"x": part.x, "y": part.y}
        for name, side in sides.items():
            self.fixed |= {f"{name}.bandwidth": side.bandwidth, f"{name}.offset": side.offset}
            self._add(f"{name}.square", side.square)
            for key in ("rows", "diagonal"):
                values = getattr(side, key)
                whole = self.arrays.setdefault(f"{name}.{key}", np.zeros((len(side.bandwidth), self.n)))
                start = 0
                for first, stop in places:
                    whole[:, first:stop] += values[:, start : start + stop - first]
                    start += stop - first
        if part.product is not None:
            self._add("product", part.product)

    def _add(self, key: str, values: NDArray[np.float64]) -> None:
        self.arrays[key] = self.arrays.get(key, 0.0) + values

    def reduced(self, ring: _Ring, paired: bool, options: dict[str, Any]) -> GramState:
        """Return the sums of all processes, added in their order: the same bits everywhere."""
        numbers = {key: np.array(getattr(self, key)) for key in ("pairs", *_WORST)}
        # a process without rows has no sums
        filled = [found for found in gather(self.arrays | self.fixed | numbers, ring.group) if "x.square" in found]
        total = filled[0]
        for found in filled[1:]:
            total |= {key: total[key] + found[key] for key in self.summed(total)}
            total |= {key: np.maximum(total[key], found[key]) for key in _WORST}

        def side(name: str) -> GramSide:
            return GramSide(**{field.name: total[f"{name}.{field.name}"] for field in fields(GramSide)})

        return GramState(
            n=self.n,
            kernel=options["kernel"],
            degree=options["degree"],
            coef0=float(options["coef0"]),
            pairs=int(total["pairs"]),
            eps=float(total["eps"]),
            error=float(total["error"]),
            x=side("x"),
            y=side("y") if paired else None,
            product=total.get("product"),
        )

    @staticmethod
    def summed(arrays: Iterable[str]) -> list[str]:
        """Return the names of what adds up."""
        return [key for key in arrays if key not in _WORST and not key.endswith(("bandwidth", "offset"))]


def _add_pairs(
    sums: _Sums,
    ring: _Ring,
    own: list[torch.Tensor],
    visiting: list[torch.Tensor],
    source: int,
    block_rows: int,
    keywords: dict[str, Any],
) -> None:
    """Add the pairs of the rows of this process with those of another, or its own."""
    import torch

    mine, theirs = (_pieces(ring.edges[rank], ring.edges[rank + 1], block_rows) for rank in (ring.rank, source))
    for i, a in enumerate(mine):
        for j, b in enumerate(theirs):
            if source == ring.rank and j < i:
                continue
            # opposite processes of an even ring both meet: each takes every other piece
            opposite = 2 * ((ring.rank - source) % ring.size) == ring.size
            if opposite and (i + j) % 2 != (ring.rank > source):
                continue
            first, second = _rows_of(own, a, ring.edges[ring.rank]), _rows_of(visiting, b, ring.edges[source])
            # a block is no smaller than the one after it
            swap = b[1] - b[0] > a[1] - a[0]
            places, parts, pair = ([b, a], [second, first], (0, 1)) if swap else ([a, b], [first, second], (0, 1))
            if source == ring.rank and i == j:
                places, parts, pair = [a], [first], (0, 0)
            arrays = [torch.cat(pieces) if len(pieces) > 1 else pieces[0] for pieces in zip(*parts, strict=True)]
            size = places[0][1] - places[0][0]
            part = ops.gram_sums(*arrays, **keywords, block_rows=size, pairs=np.array([pair]))
            sums.add(part, places)


def _pieces(start: int, stop: int, rows: int) -> list[tuple[int, int]]:
    return [(first, min(first + rows, stop)) for first in range(start, stop, rows)]


def _rows_of(arrays: list[torch.Tensor], place: tuple[int, int], offset: int) -> list[torch.Tensor]:
    return [a[place[0] - offset : place[1] - offset] for a in arrays]


def _edges(n: int, group: Any) -> list[int]:
    """Return the first row of each process among all, and the number of all rows."""
    counts = [int(found["n"]) for found in gather({"n": np.array(n)}, group)]
    return [0, *accumulate(counts)]


def _sample(a: torch.Tensor, ring: _Ring) -> torch.Tensor:
    """Return up to 7 evenly spaced rows of all processes: each row lies in one of them, the others add 0."""
    import torch

    n, start, stop = ring.edges[-1], ring.edges[ring.rank], ring.edges[ring.rank + 1]
    rows = range(0, n, max(1, n // _SAMPLED_ROWS))[:_SAMPLED_ROWS]
    found = np.zeros((len(rows), int(a.shape[1])))
    for index, row in enumerate(rows):
        if start <= row < stop:
            found[index] = a[row - start].double().cpu().numpy()
    whole = np.zeros_like(found)
    for part in gather({"rows": found}, ring.group):
        whole += part["rows"]
    return torch.from_numpy(whole).to(dtype=a.dtype, device=a.device)
