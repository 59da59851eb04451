"""all_reduce of logit distances whose rows came on a GPU: what is at fault on one process is told by all."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import gramless as gl
from support import bounds, processes
from support.heads import models

PROGRAM = """
from support import device
from support.factors import BACKEND
from support.heads import models

h1, w1, h2, w2 = models(50, 7, 5, 40, "fp32")
pair = gl.UnembeddingPair(w1, w2)

def fed():
    stream = gl.LogitDistance(pair, precision="exact", backend=BACKEND)
    return stream.update(*(device.tensor(h[rank::2]) for h in (h1, h2)))

np.savez(f"{folder}/{rank}.npz", **fed().all_reduce().state_dict())
h1[1, 3] = np.nan
stream = fed()
try:
    stream.all_reduce()
except ValueError as error:
    print(error)
print(stream.n)
"""


def test_sums_and_faults(tmp_path: Path) -> None:
    for out in processes.launch(PROGRAM, 2, tmp_path):
        # and neither has lost its rows
        assert out.splitlines() == ["LogitDistance.all_reduce: h1 has non-finite values in row 0", "20"]
    h1, w1, h2, w2 = models(50, 7, 5, 40, "fp32")
    pair = gl.UnembeddingPair(w1, w2)
    want = gl.LogitDistance(pair).update(h1, h2).finalize()
    for rank in range(2):
        stream = gl.LogitDistance(pair)
        with np.load(tmp_path / f"{rank}.npz") as arrays:
            stream.load_state_dict(arrays)
        found = stream.finalize()
        assert found.n == 40
        bounds.assert_relative(found.value, want.value, bounds.SAME_FP64)
        bounds.assert_relative(found.stderr, want.stderr, bounds.SAME_FP64)
