"""What the gram_sums kernel takes: memory by its formula, whatever n is; threads, which change no bit; and an end."""

from __future__ import annotations

import numpy as np
import pytest

import gramless as gl
from gramless import _core
from support import backends, bounds, cases, grams, memory

ROWS = """
rng = np.random.default_rng(0)
x = rng.standard_normal(({n}, {p}), dtype=np.float32).astype(np.{dtype})
y = rng.standard_normal(({n}, {q}), dtype=np.float32).astype(np.{dtype})
widths = {{"kernel": "rbf", "bandwidth_x": {widths}, "bandwidth_y": {widths}}}
"""
CALL = "gl.gram_sums({x}, {y}, **widths, backend={backend!r})"
# sizes of csrc/kernels/gram_sums.cpp and its headers
TILE, CHUNK, LINE = 288, 256, 64


def result_bytes(n: int, widths: int) -> int:
    """What the caller keeps: row sums and diagonals of both arrays, and a few sums."""
    return 8 * widths * (4 * n + 7)


def scratch_bytes(n: int, p: int, q: int, item: int, widths: int, threads: int) -> int:
    """Two blocks of packed rows, two tiles for each thread, and the sums over rows and columns of each tile."""
    rows = min(n, _core.gram_block_rows(p, q))
    packed = 2 * rows * (item * (p + q + 2 * CHUNK) + 2 * (item + 8))
    tiles = threads * 2 * TILE * (TILE + LINE // item) * item
    across = 4 + rows // TILE
    return packed + tiles + 2 * 16 * widths * across**2 * TILE


def peak(n: int, p: int, q: int, dtype: str, widths: int, threads: int, backend: str = "cpu") -> int:
    prepare = ROWS.format(n=n, p=p, q=q, dtype=dtype, widths=[3.0 + k for k in range(widths)])
    call, warm = (CALL.format(x=f"x{part}", y=f"y{part}", backend=backend) for part in ("", "[:300, :16]"))
    return memory.peak_extra_bytes(prepare, call, warm, threads)


def assert_within(found: int, formula: int) -> None:
    allowed = bounds.MEMORY_FACTOR * formula + bounds.MEMORY_SLACK_BYTES
    assert found <= allowed, f"peak {found:,} bytes, the formula gives {formula:,}"


class TestMemory:
    @pytest.mark.parametrize(("threads", "widths"), [(1, 1), (4, 3)])
    @pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
    def test_keeps_to_its_formula(self, dtype: str, threads: int, widths: int) -> None:
        n, p, q = 4000, 700, 300
        item = 8 if dtype == "float64" else 4
        with backends.threads(threads):
            said = _core.gram_scratch_bytes(n, p, q, float64=item == 8, bandwidths=widths)
        assert said <= bounds.MEMORY_FACTOR * scratch_bytes(n, p, q, item, widths, threads)
        found = peak(n, p, q, dtype, widths, threads)
        assert_within(found, result_bytes(n, widths) + said)
        assert found >= said // 3, "nothing was measured"

    def test_rows_cost_their_sums_alone(self) -> None:
        """Some rows of very many: no matrix, no copy of the rows."""
        prepare = """
x = np.broadcast_to(np.float32(1), (3_000_000, 64))
widths = {"kernel": "rbf", "bandwidth_x": 1.0, "block_rows": 500, "pairs": [[0, 0], [0, 5999]]}
"""
        call = "gl.gram_sums(x, **widths, backend='cpu')"
        found = memory.peak_extra_bytes(prepare, call, "gl.gram_sums(x[:600, :], **{**widths, 'pairs': [[0, 1]]})")
        n = 3_000_000
        assert_within(found, 8 * 2 * n + scratch_bytes(500, 64, 0, 4, 1, 1))

    def test_a_pass_over_files_holds_no_file(self, tmp_path: object) -> None:
        """Pages of the files may be resident, a copy of them may not; merging takes a second state and a third."""
        n, p = 6000, 500
        for name in "xy":
            np.save(tmp_path / f"{name}.npy", np.random.default_rng(0).standard_normal((n, p)).astype(np.float32))
        prepare = f"""
x, y = (np.load({str(tmp_path)!r} + f"/{{name}}.npy", mmap_mode="r") for name in "xy")
"""
        call = "gl.GramSums({x}, {y}, kernel='rbf', bandwidth=30.0, checkpoint={path!r}).run()"
        path = str(tmp_path / "pass.npz")
        found = memory.peak_extra_bytes(
            prepare, call.format(x="x", y="y", path=path), call.format(x="x[:300]", y="y[:300]", path=path + ".warm")
        )
        pages, hashed = 2 * 4 * n * p, 2 << 24
        scratch = scratch_bytes(n, p, p, 4, 1, 1)
        assert_within(found, pages + 4 * result_bytes(n, 1) + scratch + hashed)

    def test_the_reference_keeps_to_its_formula(self) -> None:
        n, p, q = 1200, 40, 30
        assert_within(peak(n, p, q, "float32", 1, 1, "reference"), 64 * n * n + 8 * n * (p + q))

    @pytest.mark.parametrize("n", [900, 4000])
    def test_explain_says_what_is_measured(self, n: int) -> None:
        x, y = np.zeros((n, 300), np.float32), np.zeros((n, 200), np.float32)
        said = gl.explain("gram_sums", x, y, kernel="rbf", backend="cpu")
        found = peak(n, 300, 200, "float32", 1, gl.get_num_threads())
        assert_within(found, said.peak_extra_bytes)
        assert found >= said.peak_extra_bytes // 4


class TestThreads:
    @pytest.mark.parametrize("kernel", grams.KERNELS)
    def test_count_does_not_change_a_bit(self, kernel: str) -> None:
        """Blocks of several tiles, and a short last block."""
        x, y = cases.Case("gram_threads", "", 1500, 20, 9).arrays("fp32")
        for keywords in ({}, {"block_rows": 700}):
            results = []
            for count in (1, 2, 7):
                with backends.threads(count):
                    results.append(gl.gram_sums(x, y, **grams.arguments(x, y, kernel), **keywords).to_dict())
            for result in results[1:]:
                bounds.assert_same_dicts(result, results[0], kernel)

    @pytest.mark.parametrize("dtype", ["bf16", "fp64"])
    def test_neither_in_float64_nor_of_half_types(self, dtype: str) -> None:
        x, y = cases.Case("gram_threads", "", 1500, 20, 9).arrays(dtype)
        results = []
        for count in (1, 2, 7):
            with backends.threads(count):
                results.append(gl.gram_sums(x, y, **grams.arguments(x, y, "rbf")).to_dict())
        for result in results[1:]:
            bounds.assert_same_dicts(result, results[0], dtype)

    def test_interruption(self) -> None:
        """Ctrl-C ends a long call within moments, and the next call works."""
        program = """
import os, signal, threading, time
import numpy as np
import gramless as gl
rows = np.broadcast_to(np.float32(1), (2_000_000, 64))
gl.gram_sums(rows[:1000], kernel="distance")
threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
start = time.monotonic()
try:
    gl.gram_sums(rows, kernel="distance", backend="cpu")
except KeyboardInterrupt:
    print("interrupted")
x = np.random.default_rng(0).standard_normal((100, 5))
print("then", round(gl.cka(x, x, kernel="rbf"), 6))
"""
        assert memory.run(program, timeout=60).split() == ["interrupted", "then", "1.0"]
