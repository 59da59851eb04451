"""The orders in which kernels take tiles: each tile once, whatever the shape."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from gramless._triton.tiles import launch
from gramless._triton.tiles.order import grouped, grouped_triangle, triangle
from support import device
from support.backends import Backend


@triton.jit
def _orders_kernel(
    out_ptr, start, count, tiles_i, tiles_j, ORDER: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr
):
    pid = start + tl.arange(0, BLOCK)
    if ORDER == 0:
        i, j = grouped(pid, tiles_i, tiles_j, GROUP)
    elif ORDER == 1:
        i, j = triangle(pid)
    else:
        i, j = grouped_triangle(pid, tiles_j, GROUP)
    offs = tl.arange(0, BLOCK)
    tl.store(out_ptr + offs, i, mask=offs < count)
    tl.store(out_ptr + count + offs, j, mask=offs < count)


def order(kind: int, start: int, count: int, tiles_i: int, tiles_j: int, group: int = 8) -> list[tuple[int, int]]:
    """Tiles of programs start, start + 1, ..."""
    place = "cuda" if device.label() == "cuda" else "cpu"
    out = torch.zeros((2, count), dtype=torch.int32, device=place)
    block = triton.next_power_of_2(count)
    launch.launch(
        _orders_kernel, (1,), out, start, count, tiles_i, tiles_j, ORDER=kind, GROUP=group, BLOCK=block, num_warps=4
    )
    return list(zip(*out.tolist(), strict=True))


def upper(tiles: int) -> list[tuple[int, int]]:
    return sorted((i, j) for j in range(tiles) for i in range(j + 1))


@pytest.mark.parametrize("group", [1, 3, 8])
@pytest.mark.parametrize("tiles", [1, 2, 7, 8, 9, 16, 17, 40])
def test_a_triangle_has_each_tile_once(gpu_backend: Backend, tiles: int, group: int) -> None:
    count = tiles * (tiles + 1) // 2
    assert sorted(order(1, 0, count, tiles, tiles)) == upper(tiles)
    assert sorted(order(2, 0, count, tiles, tiles, group)) == upper(tiles)


@pytest.mark.parametrize("group", [1, 3, 8])
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (8, 8), (17, 5)], ids=str)
def test_a_rectangle_has_each_tile_once(gpu_backend: Backend, shape: tuple[int, int], group: int) -> None:
    rows, columns = shape
    found = order(0, 0, rows * columns, rows, columns, group)
    assert sorted(found) == [(i, j) for i in range(rows) for j in range(columns)]


@pytest.mark.parametrize("tiles", [1000, 5792, 16383])
def test_the_rounded_root_of_a_large_triangle(gpu_backend: Backend, tiles: int) -> None:
    """The first and last tiles of a column, where a root that is off by one would show."""
    start = tiles * (tiles + 1) // 2 - 1
    assert order(1, start, 2, tiles, tiles) == [(tiles - 1, tiles - 1), (0, tiles)]


@pytest.mark.parametrize("group", [3, 8])
def test_neighbours_share_their_columns(gpu_backend: Backend, group: int) -> None:
    """Programs that run together read few rows and columns of tiles, which is what the groups are for."""
    before = 4 * group * (4 * group + 1) // 2
    found = order(2, before, group * group, 64, 64, group)
    assert (len({i for i, _ in found}), len({j for _, j in found})) == (group, group)
