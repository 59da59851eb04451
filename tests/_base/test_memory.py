"""Peak extra bytes of every backend against the formula in its header, measured in a process of its own."""

from __future__ import annotations

import numpy as np
import pytest

import gramless as gl
from support import bounds, memory

# sizes of the formulas of csrc/kernels/moments.hpp
BLOCK, CHUNK = 288, 256
BAND_ROWS, BAND_BYTES = 4096, 32 << 20
WARM = "gl.moments({x}[:300, :32], {y}[:300, :32], backend={backend!r})"
ROWS = """
rng = np.random.default_rng(0)
x = rng.standard_normal(({n}, {p}), dtype=np.float32).astype(np.{dtype})
y = rng.standard_normal(({n}, {q}), dtype=np.float32).astype(np.{dtype})
"""


def result_bytes(p: int, q: int) -> int:
    """What the caller keeps: three matrices, and vectors."""
    return 8 * (p * p + q * q + p * q + 6 * (p + q))


def scratch_bytes(backend: str, n: int, p: int, q: int, item: int, threads: int) -> int:
    if backend == "reference":
        return 24 * n * (p + q)
    tiles = threads * 8 * BLOCK * BLOCK
    if p + q <= BLOCK:
        return tiles + threads * item * CHUNK * (p + q)
    rows = min(-(-n // CHUNK) * CHUNK, BAND_ROWS)
    return tiles + min(item * rows * (p + q), BAND_BYTES)


def measured(backend: str, prepare: str, x: str = "x", y: str = "y", threads: int = 1) -> int:
    call = f"gl.moments({x}, {y}, backend={backend!r})"
    return memory.peak_extra_bytes(prepare, call, WARM.format(x=x, y=y, backend=backend), threads)


def assert_within(peak: int, formula: int) -> None:
    allowed = bounds.MEMORY_FACTOR * formula + bounds.MEMORY_SLACK_BYTES
    assert peak <= allowed, f"peak {peak:,} bytes, the formula gives {formula:,}"


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_cpu_keeps_to_its_formula(dtype: str, threads: int) -> None:
    n, p, q = 3000, 1100, 700
    peak = measured("cpu", ROWS.format(n=n, p=p, q=q, dtype=dtype), threads=threads)
    item = 8 if dtype == "float64" else 4
    assert_within(peak, result_bytes(p, q) + scratch_bytes("cpu", n, p, q, item, threads))
    assert peak >= result_bytes(p, q) // 2, "nothing was measured"


def test_reference_keeps_to_its_formula() -> None:
    n, p, q = 6000, 400, 300
    peak = measured("reference", ROWS.format(n=n, p=p, q=q, dtype="float32"))
    assert_within(peak, result_bytes(p, q) + scratch_bytes("reference", n, p, q, 4, 1))


def test_rows_cost_nothing() -> None:
    """The rows are read where they are: a hundred times as many take no more."""
    peaks = [measured("cpu", ROWS.format(n=n, p=96, q=64, dtype="float32")) for n in (3000, 300_000)]
    assert peaks[1] <= peaks[0] + bounds.MEMORY_SLACK_BYTES


@pytest.mark.parametrize(
    ("x", "y"),
    [
        ("np.asfortranarray(x)", "np.asfortranarray(y)"),
        ("x[::-1, ::-1]", "y[::2]"),
        ("torch.from_numpy(x)", "torch.from_numpy(y)"),
        ("torch.from_numpy(x).to(torch.bfloat16)", "torch.from_numpy(y).to(torch.bfloat16).t().contiguous().t()"),
    ],
    ids=["f_order", "strided", "torch", "torch_bf16"],
)
def test_no_layout_or_library_is_copied(x: str, y: str) -> None:
    n, p, q = 60_000, 200, 120
    prepare = (
        "import torch\n" + ROWS.format(n=n, p=p, q=q, dtype="float32") + f"a, b = {x}, {y}\na = a[:len(b)]\ndel x, y\n"
    )
    peak = measured("cpu", prepare, "a", "b")
    assert_within(peak, result_bytes(p, q) + scratch_bytes("cpu", n, p, q, 4, 1))


def test_memmap_is_not_loaded_by_the_kernel_twice(tmp_path: object) -> None:
    """Pages of the file may be resident, a copy of them may not."""
    np.save(tmp_path / "x.npy", np.ones((60_000, 200), np.float32))
    path = str(tmp_path / "x.npy")
    peak = measured("cpu", f"x = np.load({path!r}, mmap_mode='r')\ny = np.ones((60_000, 8), np.float32)\n")
    pages = 60_000 * 200 * 4
    assert_within(peak, pages + result_bytes(200, 8) + scratch_bytes("cpu", 60_000, 200, 8, 4, 1))


def test_cka_holds_no_gram_matrix() -> None:
    n = 60_000
    call = "gl.cka(x, y)"
    peak = memory.peak_extra_bytes(ROWS.format(n=n, p=64, q=48, dtype="float32"), call, "gl.cka(x[:300], y[:300])")
    assert_within(peak, result_bytes(64, 48) + scratch_bytes("cpu", n, 64, 48, 4, 1))
    assert peak < n * n, "even one byte for each pair of rows would be more"


def test_a_stream_holds_two_states() -> None:
    p, q = 900, 700
    prepare = (
        ROWS.format(n=2000, p=p, q=q, dtype="float32")
        + "stream = gl.Moments(backend='cpu')\nfor k in range(3):\n    stream.update(x[:500], y[:500])\n"
    )
    peak = memory.peak_extra_bytes(prepare, "stream.update(x, y)", "gl.moments(x[:300, :32], y[:300, :32])")
    # beside the sums held before: those of the batch, and the next sums, while both are needed
    assert_within(peak, 2 * result_bytes(p, q) + scratch_bytes("cpu", 2000, p, q, 4, 1))


@pytest.mark.parametrize("streamed", [False, True], ids=["first update", "later update"])
def test_a_grid_keeps_to_what_it_says(streamed: bool) -> None:
    """The bytes that a grid asks for before it starts are the bytes that it takes."""
    widths = (400, 300, 500)
    prepare = f"""
rng = np.random.default_rng(0)
xs = [rng.standard_normal((600, p), dtype=np.float32) for p in {widths}]
ys = [rng.standard_normal((600, p), dtype=np.float32) for p in {widths}]
grid = gl.LayerGrid(backend='cpu')
{"grid.update(xs, ys)" if streamed else ""}
"""
    # two updates, since the second one loads modules that the first one does not need
    narrow = "[xs[0][:300, :32]], [ys[0][:300, :32]]"
    warm = f"gl.LayerGrid(backend='cpu').update({narrow}).update({narrow})"
    peak = memory.peak_extra_bytes(prepare, "grid.update(xs, ys)", warm)
    sums = 8 * (2 * sum(p * p for p in widths) + sum(widths) ** 2)
    held = sums if streamed else 0
    scratch = scratch_bytes("cpu", 600, 500, 500, 4, 1)
    assert peak + held <= bounds.MEMORY_FACTOR * 2 * sums + bounds.MEMORY_SLACK_BYTES + scratch


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_explain_says_what_is_measured(backend: str) -> None:
    n, p, q = 4000, 900, 500
    x, y = np.zeros((n, p), np.float32), np.zeros((n, q), np.float32)
    said = gl.explain("moments", x, y, backend=backend)
    threads = gl.get_num_threads()
    peak = measured(backend, ROWS.format(n=n, p=p, q=q, dtype="float32"), threads=threads)
    assert_within(peak, said.peak_extra_bytes)
    formula = result_bytes(p, q) + scratch_bytes(backend, n, p, q, 4, threads)
    assert said.peak_extra_bytes <= bounds.MEMORY_FACTOR * formula
    assert said.flops == n * (p * (p + 1) + q * (q + 1) + 2 * p * q)
    assert said.bytes_read == x.nbytes + y.nbytes
    assert said.backend == backend
