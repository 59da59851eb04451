"""What the processes of torch.distributed agree on before they add up sums, and what they gather."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .arrays import Array


class Agreement(NamedTuple):
    """What the processes of a group hold together."""

    n: int
    text: str  # layout of the sums
    source: int  # the first process that has rows
    device: Any  # where tensors are exchanged


def agree_on_layout(function: str, n: int, text: str, group: Any) -> Agreement | None:
    """Return the layout that all processes with rows share, and all their rows; None if there are no rows.

    Raises
    ------
    RuntimeError
        If torch.distributed is not initialised, or this process is not in the group.
    ValueError
        On every process alike, if the texts differ between processes.
    """
    import torch
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError(f"{function}: torch.distributed is not initialised; call init_process_group in each process")
    rank = dist.get_rank(group)
    if rank < 0:
        raise RuntimeError(f"{function}: this process is not in the group")
    device, mine = _device(group), text.encode()
    digest = int.from_bytes(hashlib.sha256(mine).digest()[:7], "big")
    header = torch.tensor([n, len(mine), digest], dtype=torch.int64, device=device)
    headers = torch.stack(_of_all(header, group)).tolist()
    filled = [r for r, (rows, _, _) in enumerate(headers) if rows]
    if not filled:
        return None
    first = filled[0]
    differing = [r for r in filled if headers[r][1:] != headers[first][1:]]
    if differing:
        raise ValueError(
            f"{function}: processes {differing} hold other arrays, order or numbers of features than {first}"
        )
    source = first if group is None else dist.get_global_rank(group, first)
    letters = torch.zeros(headers[first][1], dtype=torch.uint8, device=device)
    if rank == first:
        letters = torch.tensor(list(mine), dtype=torch.uint8, device=device)
    dist.broadcast(letters, source, group=group)
    return Agreement(sum(rows for rows, _, _ in headers), bytes(letters.tolist()).decode(), source, device)


def gather(arrays: Mapping[str, Array], group: Any) -> list[dict[str, NDArray[Any]]]:
    """Return the named arrays of all processes of a group, in their order."""
    import torch

    file, device = io.BytesIO(), _device(group)
    np.savez(file, **arrays)
    mine = torch.frombuffer(file.getbuffer(), dtype=torch.uint8)
    lengths = [int(length) for length in _of_all(torch.tensor([len(mine)], device=device), group)]
    padded = torch.zeros(max(lengths), dtype=torch.uint8, device=device)
    padded[: len(mine)] = mine
    everyone = zip(_of_all(padded, group), lengths, strict=True)
    return [dict(np.load(io.BytesIO(found[:length].cpu().numpy().data))) for found, length in everyone]


def raise_on_all_ranks(function: str, failure: Exception | None, group: Any) -> None:
    """Raise the error of this process, or tell that another has one; no process goes on alone."""
    texts = [
        str(found["error"]) for found in gather({"error": np.array("" if failure is None else _told(failure))}, group)
    ]
    if failure is not None:
        raise failure
    for rank, text in enumerate(texts):
        if text:
            raise RuntimeError(f"{function}: process {rank} has an error: {text}")


def _told(failure: Exception) -> str:
    return f"{type(failure).__name__}: {failure}"


def _of_all(mine: Any, group: Any) -> list[Any]:
    """Return the tensors of all processes of a group, which have one shape, in their order."""
    import torch
    import torch.distributed as dist

    found = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(found, mine, group=group)
    return found


def _device(group: Any) -> Any:
    """Return where the backend of a process group wants its tensors."""
    import torch
    import torch.distributed as dist

    on_gpu = dist.get_backend(group) == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
