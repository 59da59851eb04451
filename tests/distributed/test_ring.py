"""Gram sums of rows that lie in several processes, over gloo on the loopback interface, against one process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import gramless as gl
from gramless.states.gram import GramState
from support import bounds, cases
from support.processes import launch, states

ROWS = cases.Case("distributed", "", 120, 9, 6)
KERNELS = {
    "linear": {},
    "rbf": {"bandwidth_x": [2.0, 9.0], "bandwidth_y": [3.0, 8.0]},
    "polynomial": {"degree": 2},
    "cosine": {},
}

PROGRAM = """
from gramless import distributed
for index, (cuts, kernel, keywords, dtype) in enumerate({calls}):
    mine = slice(cuts[rank], cuts[rank + 1])
    a, b = (v[mine].astype(dtype) for v in (x, y))
    for repeat in range({repeats} if index == 0 else 1):
        state = distributed.gram_sums(a, b, kernel=kernel, block_rows={block}, **keywords)
        os.makedirs(f"{{folder}}/{{index}}/{{repeat}}", exist_ok=True)
        np.savez(f"{{folder}}/{{index}}/{{repeat}}/{{rank}}.npz", **state.to_dict())
"""

# of one call, which end with the same bits
REPEATS = 3

SHARES = {
    1: ((0, 120),),
    2: ((0, 50, 120), (0, 0, 120), (0, 119, 120)),
    3: ((0, 40, 77, 120), (0, 0, 60, 120)),
    4: ((0, 30, 60, 90, 120), (0, 1, 70, 70, 120)),
}


@pytest.mark.parametrize("block", [17, 1000])
@pytest.mark.parametrize("world", list(SHARES))
def test_is_the_state_of_all_rows(tmp_path: Path, world: int, block: int) -> None:
    # every kernel of one share, and each other share with two of them
    pairs = [(SHARES[world][0], kernel) for kernel in KERNELS]
    pairs += [(cuts, kernel) for i, cuts in enumerate(SHARES[world][1:]) for kernel in list(KERNELS)[i % 2 :: 2]]
    calls = [(cuts, kernel, KERNELS[kernel], "float64") for cuts, kernel in pairs]
    calls.append((SHARES[world][0], "rbf", KERNELS["rbf"], "float32"))
    launch(PROGRAM.format(calls=calls, block=block, repeats=REPEATS), world, tmp_path)
    x, y = ROWS.arrays("fp64")
    for index, (cuts, kernel, keywords, dtype) in enumerate(calls):
        want = gl.gram_sums(x.astype(dtype), y.astype(dtype), kernel=kernel, **keywords)
        runs = [
            states(tmp_path / str(index) / str(repeat), world, GramState) for repeat in range(1 if index else REPEATS)
        ]
        for state in (state for run in runs for state in run):
            assert state.complete, (cuts, kernel)
            bounds.assert_same_dicts(state.to_dict(), runs[0][0].to_dict(), f"{kernel} of {cuts} in two processes")
        got = runs[0][0]
        for k in range(want.bandwidths):
            bounds.assert_within_algebra(
                np.array(gl.cka(got.select(k))), np.array(gl.cka(want.select(k))), np.array(bounds.CKA_TERMS)
            )
        for mine, truth in ((got.x, want.x), (got.y, want.y)):
            assert np.array_equal(mine.offset, truth.offset)
            scale = np.full_like(truth.rows, np.abs(truth.rows).max())
            bounds.assert_within_algebra(mine.rows, truth.rows, scale, f"{kernel} rows")
            bounds.assert_within_algebra(mine.diagonal, truth.diagonal, np.abs(truth.diagonal), f"{kernel} diagonal")


def test_of_one_array(tmp_path: Path) -> None:
    program = """
from gramless import distributed
state = distributed.gram_sums(x[rank * 60 : rank * 60 + 60], kernel="distance")
assert state.y is None and state.complete
print(repr(float(state.x.square[0])))
"""
    want = gl.gram_sums(ROWS.arrays("fp64")[0], kernel="distance")
    for out in launch(program, 2, tmp_path):
        bounds.assert_relative(float(out), float(want.x.square[0]), bounds.SAME_FP64)


ERRORS = """
from gramless import distributed
x, y = x[rank * 40 : rank * 40 + 40].copy(), y[rank * 40 : rank * 40 + 40]
keywords = {{"kernel": "rbf", "bandwidth_x": 1.0, "bandwidth_y": 1.0}}
{spoil}
try:
    distributed.gram_sums(x, y, **keywords)
except (TypeError, ValueError, RuntimeError) as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize(
    ("spoil", "there", "elsewhere"),
    [
        ("if rank == 1: x[3, 2] = np.nan", "ValueError gram_sums: x has non-finite values", "process 1 has an error"),
        ("if rank == 2: y = y[:7]", "ValueError gram_sums: expected x and y with the same", "process 2 has an error"),
        ("if rank == 0: x = x.astype(int)", "TypeError gram_sums", "process 0 has an error"),
    ],
)
def test_an_error_of_one_process_is_one_of_all(tmp_path: Path, spoil: str, there: str, elsewhere: str) -> None:
    outputs = launch(ERRORS.format(spoil=spoil), 3, tmp_path)
    assert sum(there in out for out in outputs) >= 1, outputs
    assert sum(f"RuntimeError gram_sums: {elsewhere}" in out for out in outputs) >= 1, outputs
    assert all(there in out or elsewhere in out for out in outputs), outputs


@pytest.mark.parametrize(
    "spoil",
    [
        "if rank == 1: x = x[:, :4]",
        "if rank == 1: x = x.astype(np.float32)",
        'if rank == 1: keywords["bandwidth_y"] = 2.0',
        'if rank == 1: keywords["kernel"] = "laplacian"',
    ],
)
def test_processes_that_differ_are_refused(tmp_path: Path, spoil: str) -> None:
    outputs = launch(ERRORS.format(spoil=spoil), 3, tmp_path)
    assert all("ValueError gram_sums: processes [1] hold other" in out for out in outputs), outputs


def test_no_process_has_rows(tmp_path: Path) -> None:
    outputs = launch(ERRORS.format(spoil="x, y = x[:0], y[:0]"), 2, tmp_path)
    assert all("at least one row in some process" in out for out in outputs), outputs


def test_needs_processes() -> None:
    from gramless.distributed import gram_ring

    with pytest.raises(RuntimeError, match="not initialised"):
        gram_ring.gram_sums(np.eye(5))
