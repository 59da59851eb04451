"""all_reduce over gloo on the loopback interface: what every process ends with is the state of all rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gramless as gl
from gramless._states import MomentState
from support import bounds, cases, forked

TIMEOUT = 120
ROWS = cases.Case("distributed", "", 120, 9, 6)

PREAMBLE = """
import datetime, os, sys
import numpy as np
import torch.distributed as dist
import gramless as gl
from support import cases

rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world,
                        timeout=datetime.timedelta(seconds=60))
x, y = cases.Case("distributed", "", 120, 9, 6).arrays("fp64")
"""
EPILOGUE = """
dist.barrier()
dist.destroy_process_group()
"""


def launch(program: str, world: int, folder: Path) -> list[str]:
    """Run a program in `world` processes and give back what each printed."""
    arguments = [(str(rank), str(world), str(folder)) for rank in range(world)]
    return forked.run(PREAMBLE + program + EPILOGUE, arguments, TIMEOUT)


def states(folder: Path, world: int, kind: Any = MomentState) -> list[Any]:
    found = []
    for rank in range(world):
        with np.load(folder / f"{rank}.npz") as arrays:
            found.append(kind.from_dict(dict(arrays)))
    return found


SUM = """
for index, cuts in enumerate({cuts}):
    mine = slice(cuts[rank], cuts[rank + 1])
    stream = gl.Moments()
    if cuts[rank] < cuts[rank + 1]:
        stream.update(x[mine], y[mine])
    assert stream.all_reduce() is stream
    os.makedirs(f"{{folder}}/{{index}}", exist_ok=True)
    np.savez(f"{{folder}}/{{index}}/{{rank}}.npz", **stream.state_dict())
"""
# where the rows are cut: processes with one row or none, wherever they stand
TWO = ((0, 50, 120), (0, 1, 120), (0, 0, 120), (0, 120, 120))
THREE = ((0, 40, 77, 120), (0, 0, 60, 120), (0, 70, 70, 120), (0, 0, 120, 120), (0, 0, 0, 120))


@pytest.mark.parametrize("shares", [TWO, THREE], ids=["2", "3"])
def test_every_process_ends_with_all_rows(tmp_path: Path, shares: tuple[tuple[int, ...], ...]) -> None:
    x, y = ROWS.arrays("fp64")
    want = gl.moments(x, y)
    world = len(shares[0]) - 1
    launch(SUM.format(cuts=shares), world, tmp_path)
    for index, cuts in enumerate(shares):
        found = states(tmp_path / str(index), world)
        for state in found:
            assert state.n == 120, cuts
            bounds.assert_same_dicts(state.to_dict(), found[0].to_dict(), f"two processes at {cuts}")
            bounds.assert_relative(gl.cka(state), gl.cka(want), bounds.SAME_FP64, str(cuts))
            moved = state.translate(want.x.pivot, want.y.pivot)
            for got, truth in ((moved.x, want.x), (moved.y, want.y), (moved.cross, want.cross)):
                scale = np.full_like(truth.second, np.abs(truth.second).max())
                bounds.assert_within_algebra(got.second, truth.second, scale, str(cuts))


def test_no_process_has_rows(tmp_path: Path) -> None:
    program = """
stream = gl.Moments().all_reduce()
try:
    stream.finalize()
except ValueError as error:
    print(error)
"""
    assert all("no rows" in out for out in launch(program, 2, tmp_path))


def test_more_rows_may_follow(tmp_path: Path) -> None:
    program = """
stream = gl.Moments().update(x[rank * 30 : rank * 30 + 30], y[rank * 30 : rank * 30 + 30])
stream.all_reduce()
stream.update(x[60:], y[60:])
np.savez(f"{folder}/{rank}.npz", **stream.state_dict())
"""
    launch(program, 2, tmp_path)
    for state in states(tmp_path, 2):
        bounds.assert_relative(gl.cka(state), gl.cka(*ROWS.arrays("fp64")), bounds.SAME_FP64)


@pytest.mark.parametrize("empty", [None, 0, 2])
def test_grids(tmp_path: Path, empty: int | None) -> None:
    program = f"""
cuts = {{None: (0, 30, 90, 120), 0: (0, 0, 90, 120), 2: (0, 30, 120, 120)}}[{empty}]
a, b = cuts[rank], cuts[rank + 1]
grid = gl.LayerGrid()
if a < b:
    grid.update({{"first": x[a:b], "second": x[a:b, :4] ** 2}}, [y[a:b]])
grid.all_reduce()
matrix = grid.finalize()
np.savez(f"{{folder}}/{{rank}}.npz", values=matrix.values, names=np.array(matrix.layers_x), n=matrix.n)
"""
    launch(program, 3, tmp_path)
    x, y = ROWS.arrays("fp64")
    want = gl.cka_matrix({"first": x, "second": x[:, :4] ** 2}, [y])
    for rank in range(3):
        with np.load(tmp_path / f"{rank}.npz") as found:
            assert tuple(found["names"]) == want.layers_x
            assert found["n"] == 120
            bounds.assert_within_algebra(found["values"], want.values, np.full((2, 1), bounds.CKA_TERMS))


def test_grids_of_another_order_are_right_or_refused(tmp_path: Path) -> None:
    """The sums travel without their names: layers given in another order must never be added to each other."""
    program = """
layers = {"first": x[:60], "second": x[60:]}
if rank:
    layers = dict(reversed(layers.items()))
grid = gl.LayerGrid().update(layers)
try:
    grid.all_reduce()
except ValueError as error:
    print("refused:", error)
"""
    outputs = launch(program, 2, tmp_path)
    assert all("refused: LayerGrid.all_reduce" in out for out in outputs)


# of 40 rows, batches of 17, 20 and 1; rows left over on one process, on several that make a batch together, on none
SHARES = (((17, 20, 1), (20, 17)), ((20, 3), (17,), (20, 2)), ((), (20, 20)), ((2,), (1,)))


def test_grids_of_batches(tmp_path: Path) -> None:
    program = f"""
for index, shares in enumerate({SHARES}):
    grid = gl.LayerGrid("minibatch", kernel="rbf")
    start = sum(map(sum, shares[:rank]))
    for size in shares[rank] if rank < len(shares) else ():
        rows = slice(start, start + size)
        grid.update({{"first": x[rows], "second": x[rows, :4]}}, [y[rows]])
        start += size
    assert grid.all_reduce() is grid
    np.savez(f"{{folder}}/{{index}}.{{rank}}.npz", **grid.state_dict())
"""
    launch(program, 3, tmp_path)
    x, y = ROWS.arrays("fp64")
    for index, shares in enumerate(SHARES):
        start, merged = 0, gl.LayerGrid("minibatch", kernel="rbf")
        for sizes in shares:
            one = gl.LayerGrid("minibatch", kernel="rbf")
            for size in sizes:
                rows = slice(start, start + size)
                one.update({"first": x[rows], "second": x[rows, :4]}, [y[rows]])
                start += size
            merged.merge(one)
        want = merged.state_dict()
        for rank in range(3):
            with np.load(tmp_path / f"{index}.{rank}.npz") as found:
                bounds.assert_same_dicts(dict(found), want, f"shares {shares}, process {rank}")


def test_grids_of_other_settings_are_refused(tmp_path: Path) -> None:
    """By every process that has rows, and by those without whose settings differ."""
    program = """
for kernels, filled in ((("linear", "rbf"), (0, 1)), (("linear", "rbf"), (0,))):
    grid = gl.LayerGrid("minibatch", kernel=kernels[rank])
    if rank in filled:
        grid.update([x], [y])
    try:
        grid.all_reduce()
    except ValueError as error:
        print("refused:", error)
    print(grid.n)
"""
    first, second = launch(program, 2, tmp_path)
    assert first.count("refused: LayerGrid.all_reduce") == 1
    assert second.count("refused: LayerGrid.all_reduce") == 2
    assert "got {'kernel': 'linear'" in second


def test_other_features_are_an_error_on_every_process(tmp_path: Path) -> None:
    """One process that raises alone would leave the others waiting for ever."""
    program = """
stream = gl.Moments().update(x[:, : 9 - rank], y)
before = stream.state_dict()
try:
    stream.all_reduce()
except ValueError as error:
    print("refused:", error)
assert all(np.array_equal(before[k], v) for k, v in stream.state_dict().items())
"""
    for out in launch(program, 2, tmp_path):
        assert "refused: Moments.all_reduce" in out


def test_groups(tmp_path: Path) -> None:
    program = """
group = dist.new_group([1, 2])
stream = gl.Moments()
if rank:
    stream.update(x[60 * (rank - 1) : 60 * rank], y[60 * (rank - 1) : 60 * rank])
    stream.all_reduce(group)
    print(stream.finalize().n, gl.cka(stream.finalize()).hex())
else:
    try:
        stream.all_reduce(group)
    except RuntimeError as error:
        print(error)
"""
    outside, *inside = launch(program, 3, tmp_path)
    assert "not in the group" in outside
    assert inside[0] == inside[1]
    n, value = inside[0].split()
    assert int(n) == 120
    bounds.assert_relative(float.fromhex(value), gl.cka(*ROWS.arrays("fp64")), bounds.SAME_FP64)


def test_without_a_process_group() -> None:
    with pytest.raises(RuntimeError, match=r"Moments\.all_reduce: torch.distributed is not initialised"):
        gl.Moments().all_reduce()


def test_logit_distances(tmp_path: Path) -> None:
    program = """
w1, w2 = np.random.default_rng(1).standard_normal((2, 50, 9))
cuts = (0, 30, 30, 120)
rows = slice(cuts[rank], cuts[rank + 1])
stream = gl.LogitDistance(gl.UnembeddingPair(w1, w2))
if rows.start < rows.stop:
    stream.update(x[rows], x[rows][:, ::-1])
assert stream.all_reduce() is stream
np.savez(f"{folder}/{rank}.npz", **stream.state_dict())
other = gl.LogitDistance(gl.UnembeddingPair(w1, w2 + rank)).update(x, x)
try:
    other.all_reduce()
except ValueError as error:
    print(error)
"""
    said = launch(program, 3, tmp_path)
    assert all("LogitDistance.all_reduce: processes [1, 2] hold other" in out for out in said)
    w1, w2 = np.random.default_rng(1).standard_normal((2, 50, 9))
    x, _ = ROWS.arrays("fp64")
    pair = gl.UnembeddingPair(w1, w2)
    want = gl.LogitDistance(pair).update(x, x[:, ::-1]).finalize()
    for rank in range(3):
        stream = gl.LogitDistance(pair)
        with np.load(tmp_path / f"{rank}.npz") as arrays:
            stream.load_state_dict(arrays)
        found = stream.finalize()
        assert found.n == want.n == 120
        bounds.assert_relative(found.value, want.value, bounds.SAME_FP64)
        bounds.assert_relative(found.stderr, want.stderr, bounds.SAME_FP64)


def test_logit_pairs(tmp_path: Path) -> None:
    program = """
w1, w2 = np.random.default_rng(1).standard_normal((2, 50, 9))
cuts = (0, 30, 30, 120)
rows = slice(cuts[rank], cuts[rank + 1])
for keep in (False, True):
    stream = gl.LogitPairs(w1, w2, keep_rows=keep)
    if rows.start < rows.stop:
        stream.update(x[rows], x[rows][:, ::-1], targets=np.arange(120)[rows] % 50)
    assert stream.all_reduce() is stream
    np.savez(f"{folder}/{rank}.{keep}.npz", **stream.state_dict())
other = gl.LogitPairs(w1, w2 + rank).update(x, x)
try:
    other.all_reduce()
except ValueError as error:
    print(error)
"""
    said = launch(program, 3, tmp_path)
    assert all("LogitPairs.all_reduce: processes [1, 2] hold other" in out for out in said)
    w1, w2 = np.random.default_rng(1).standard_normal((2, 50, 9))
    x, _ = ROWS.arrays("fp64")
    for keep in (False, True):
        want = gl.LogitPairs(w1, w2, keep_rows=keep)
        for rows in (slice(0, 30), slice(30, 120)):
            want.update(x[rows], x[rows][:, ::-1], targets=np.arange(120)[rows] % 50)
        for rank in range(3):
            with np.load(tmp_path / f"{rank}.{keep}.npz") as found:
                bounds.assert_same_dicts(dict(found), want.state_dict(), f"process {rank}, keep_rows={keep}")


def test_a_stream_without_rows_takes_none_of_other_models(tmp_path: Path) -> None:
    program = """
w1, w2 = np.random.default_rng(1).standard_normal((2, 50, 9))
for stream in (gl.LogitDistance(gl.UnembeddingPair(w1, w2 + rank)), gl.LogitPairs(w1, w2 + rank)):
    if rank == 0:
        stream.update(x, x)
    try:
        stream.all_reduce()
    except ValueError as error:
        print(error)
    print(stream.n)
"""
    filled, empty = launch(program, 2, tmp_path)
    assert filled.split() == ["120", "120"]
    for kind in ("LogitDistance", "LogitPairs"):
        assert f"{kind}.all_reduce: these rows belong to other unembeddings" in empty
    assert "120" not in empty
