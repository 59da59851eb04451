"""Public functions and accumulators on the kernels of a GPU: values, devices, errors, and that no update waits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import gramless as gl
from gramless._base import arguments
from gramless._triton.tiles import launch
from gramless.similarity import pair_sampling
from support import bounds, cases, device, memory

CASE = cases.Case("gpu_public", "several chunks of a stream", 300, 20, 7)
# the interpreter takes arrays of the host where backend="cuda" is asked for; a GPU takes its tensors by itself
BACKEND = "auto" if device.label() == "cuda" else "cuda"


@pytest.fixture(scope="module")
def arrays() -> tuple[np.ndarray, np.ndarray]:
    x, y = CASE.arrays("fp32")
    return x + np.float32(10), y


@pytest.fixture(scope="module")
def tensors(arrays: tuple[np.ndarray, np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    return device.tensor(arrays[0]), device.tensor(arrays[1])


def spoiled(x: torch.Tensor, row: int, value: float = float("nan")) -> torch.Tensor:
    bad = x.clone()
    bad[row, 0] = value
    return bad


class TestValues:
    @pytest.mark.parametrize("estimator", ["unbiased", "biased", "feature_corrected"])
    @pytest.mark.parametrize("function", ["cka", "hsic"])
    def test_linear(self, arrays: Any, tensors: Any, function: str, estimator: str) -> None:
        want = getattr(gl, function)(*(a.astype(np.float64) for a in arrays), estimator=estimator)
        got = getattr(gl, function)(*tensors, estimator=estimator, precision="exact", backend=BACKEND)
        assert isinstance(got, float)
        bounds.assert_relative(got, want, bounds.SAME_FP64, f"{estimator} {function}")

    @pytest.mark.parametrize("kernel", ["rbf", "laplacian", "polynomial", "cosine", "distance"])
    def test_kernels(self, arrays: Any, tensors: Any, kernel: str) -> None:
        want = gl.cka(*(a.astype(np.float64) for a in arrays), kernel=kernel)
        got = gl.cka(*tensors, kernel=kernel, precision="exact", backend=BACKEND)
        bounds.assert_relative(got, want, bounds.SAME_FP64, kernel)

    def test_of_a_part_of_the_pairs(self, arrays: Any, tensors: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """In two orders of 100 rows, each in 6 batches of 16 or 17."""
        monkeypatch.setattr(pair_sampling, "LEAST_ORDERS", 2)
        wide, tensors = [a[:100].astype(np.float64) for a in arrays], [t[:100] for t in tensors]
        keywords = {"kernel": "rbf", "bandwidth": 5.0, "fraction": 0.3, "seed": 3}
        want = gl.cka(*wide, **keywords)
        got = gl.cka(*tensors, **keywords, precision="exact", backend=BACKEND)
        bounds.assert_relative(float(got), float(want), bounds.SAME_FP64)
        assert got.n_batches == want.n_batches

    @pytest.mark.parametrize("rule", ["median", "kornblith"])
    def test_bandwidth(self, arrays: Any, tensors: Any, rule: str) -> None:
        want = gl.bandwidth(arrays[0].astype(np.float64), rule)
        got = gl.bandwidth(tensors[0], rule, backend=BACKEND)
        bounds.assert_relative(got.value, want.value, bounds.SAME_FP64)

    def test_strips(self, arrays: Any, tensors: Any) -> None:
        want = gl.GramSums(*(a.astype(np.float64) for a in arrays), kernel="rbf", bandwidth=[2.0, 9.0]).run()
        got = gl.GramSums(*tensors, kernel="rbf", bandwidth=[2.0, 9.0], precision="exact", backend=BACKEND).run()
        for k in range(2):
            bounds.assert_relative(gl.cka(got.select(k)), gl.cka(want.select(k)), bounds.SAME_FP64)

    def test_error_of_rounded_rows_is_told(self, tensors: Any) -> None:
        x, y = (torch.cat([t] * 4) for t in tensors)
        keywords = {"kernel": "rbf", "bandwidth_x": 5.0, "bandwidth_y": 5.0, "backend": BACKEND}
        found = {p: gl.gram_sums(x, y, precision=p, **keywords) for p in ("fast", "high", "exact")}
        assert found["fast"].error > found["high"].error > found["exact"].error == 0
        again = gl.GramState.from_dict(found["fast"].to_dict())
        assert again.error == found["fast"].error

    def test_checkpoint_goes_on(self, tensors: Any, tmp_path: Any) -> None:
        keywords = {"kernel": "rbf", "bandwidth": 2.0, "backend": BACKEND, "checkpoint": tmp_path / "pass.npz"}
        want = gl.GramSums(*tensors, **keywords).run()
        again = gl.GramSums(*tensors, **keywords)
        assert again.strips_done == again.strips
        bounds.assert_same_dicts(again.run().to_dict(), want.to_dict(), "from the checkpoint")
        with pytest.raises(ValueError, match=r"other parameters .*precision"):
            gl.GramSums(*tensors, precision="fast", **keywords)


class TestStream:
    @pytest.mark.parametrize("sizes", [(300,), (100, 200), (10, 20, 270), (64, 1, 235)], ids=str)
    def test_is_the_state_of_all_rows(self, arrays: Any, tensors: Any, sizes: tuple[int, ...]) -> None:
        want = gl.cka(*(a.astype(np.float64) for a in arrays))
        stream = gl.Moments(precision="exact", backend=BACKEND)
        start = 0
        for size in sizes:
            stream.update(*(t[start : start + size] for t in tensors))
            start += size
        assert stream.n == 300
        bounds.assert_relative(gl.cka(stream.finalize()), want, bounds.SAME_FP64, str(sizes))

    def test_merge_save_and_load(self, arrays: Any, tensors: Any) -> None:
        want = gl.cka(*(a.astype(np.float64) for a in arrays))
        first, second = (gl.Moments(precision="exact", backend=BACKEND) for _ in "ab")
        first.update(*(t[:100] for t in tensors))
        second.update(*(t[100:] for t in tensors))
        restored = gl.Moments(precision="exact", backend=BACKEND)
        restored.load_state_dict(first.state_dict())
        assert gl.cka(restored.merge(second).finalize()) == gl.cka(first.merge(second).finalize())
        bounds.assert_relative(gl.cka(first.finalize()), want, bounds.SAME_FP64)
        # and with rows of the host
        mixed = gl.Moments().update(*(a[:100].astype(np.float64) for a in arrays)).merge(second)
        bounds.assert_relative(gl.cka(mixed.finalize()), want, bounds.SAME_FP64)

    def test_exact_grid(self, arrays: Any, tensors: Any) -> None:
        x, y = (a.astype(np.float64) for a in arrays)
        want = gl.cka_matrix({"x": x, "half": x[:, ::2]}, {"y": y})
        grid = gl.LayerGrid(precision="exact", backend=BACKEND)
        for rows in (slice(0, 80), slice(80, 300)):
            grid.update({"x": tensors[0][rows], "half": tensors[0][rows, ::2]}, {"y": tensors[1][rows]})
        assert np.abs(grid.finalize().values - want.values).max() <= bounds.SAME_FP64

    def test_pivots_are_kept(self, tensors: Any) -> None:
        """Rows about the pivot of a stream are added as they are, without a shift of all sums."""
        stream = gl.Moments(backend=BACKEND)
        for _ in range(3):
            stream.update(*tensors)
        table = stream._state
        assert table is not None
        assert table.unread is not None
        assert table.unread.rounded


class TestFaults:
    def test_rows_that_are_not_finite(self, tensors: Any) -> None:
        x, y = tensors
        for function in (gl.moments, gl.cka, gl.hsic):
            with pytest.raises(ValueError, match=r"x has non-finite values in rows 0\.\.255"):
                function(spoiled(x, 33), y, backend=BACKEND)
        with pytest.raises(ValueError, match=r"y has non-finite values in rows 256\.\.299"):
            gl.cka(x, spoiled(y, 299, np.inf), kernel="rbf", bandwidth=1.0, backend=BACKEND)
        with pytest.raises(ValueError, match=r"x has non-finite values in rows 0\.\.255"):
            gl.bandwidth(spoiled(x, 0), backend=BACKEND)

    def test_a_stream_tells_when_it_is_read(self, tensors: Any) -> None:
        x, y = tensors
        stream = gl.Moments(backend=BACKEND).update(x, y).update(x, spoiled(y, 7)).update(x, y)
        for read in (stream.finalize, stream.state_dict):
            with pytest.raises(ValueError, match=r"y has non-finite values in rows 256\.\.511"):
                read()
        stream.reset()
        stream.update(x, y)
        assert stream.finalize().n == 300

    def test_a_grid_names_the_layer(self, tensors: Any) -> None:
        x, y = tensors
        grid = gl.LayerGrid(backend=BACKEND).update({"a": x, "b": spoiled(x, 290)}, [y])
        with pytest.raises(ValueError, match=r"LayerGrid\.finalize: x/b has non-finite values in rows 256\.\.299"):
            grid.finalize()

    def test_propagate(self, tensors: Any) -> None:
        state = gl.moments(spoiled(tensors[0], 3), tensors[1], nonfinite="propagate", backend=BACKEND)
        assert not bool(torch.isfinite(torch.as_tensor(state.x.sum)).all())

    def test_overflow(self, tensors: Any) -> None:
        with pytest.raises(ValueError, match="overflow"):
            gl.moments(tensors[0].double() * 1e200, tensors[1].double(), backend=BACKEND)

    def test_zero_rows_have_no_cosine(self, tensors: Any) -> None:
        x = tensors[0].clone()
        x[5] = 0
        with pytest.raises(ValueError, match="row 5 of x is zero"):
            gl.cka(x, tensors[1], kernel="cosine", backend=BACKEND)

    def test_constant(self, tensors: Any) -> None:
        with pytest.raises(ValueError, match="x is constant"):
            gl.cka(torch.ones_like(tensors[0]) * 3.3, tensors[1], backend=BACKEND)

    @pytest.mark.parametrize(
        "call",
        [
            lambda x, y: gl.hsic_test(x, y, backend=BACKEND),
            lambda x, y: gl.cka(x, y, null="permutation", backend=BACKEND),
            lambda x, y: gl.cka(x, y, kernel="rbf", method="rff", backend=BACKEND),
        ],
        ids=["hsic_test", "null", "rff"],
    )
    def test_what_reads_host_memory_says_so(self, tensors: Any, call: Callable[..., Any]) -> None:
        with pytest.raises(RuntimeError, match="host memory"):
            call(*tensors)

    @pytest.mark.parametrize("function", [gl.moments, gl.cka])
    def test_precision(self, tensors: Any, function: Callable[..., Any]) -> None:
        with pytest.raises(ValueError, match="precision to be one of 'fast', 'high', 'exact', got 'low'"):
            function(*tensors, precision="low", backend=BACKEND)
        with pytest.raises(TypeError, match="precision"):
            function(*tensors, precision=None, backend=BACKEND)


class TestDevices:
    def test_an_old_compiler_is_refused(self) -> None:
        program = """
import triton
triton.__version__ = "3.4.0"
import numpy as np, gramless as gl
try:
    gl.cka(np.eye(5), np.eye(5), backend="cuda")
except RuntimeError as error:
    print(error)
"""
        assert "expected Triton 3.5 or newer, got 3.4.0" in memory.run(program)

    def test_arrays_of_the_host_need_a_gpu(self, arrays: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(launch, "interpreting", lambda: False)
        with pytest.raises(RuntimeError, match="backend='cuda' needs tensors on a GPU, got arrays in host memory"):
            gl.cka(*arrays, backend="cuda")

    def test_arrays_on_two_devices(self, arrays: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        x, y = arrays
        monkeypatch.setattr(arguments, "gpu_of", lambda a: "cuda:1" if a is y else "")
        with pytest.raises(RuntimeError, match="x and y on the same device, got x on the host and y on cuda:1"):
            gl.moments(x, y)

    @pytest.mark.parametrize("backend", ["cpu", "reference"])
    def test_backends_of_the_host(self, arrays: Any, monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
        monkeypatch.setattr(arguments, "gpu_of", lambda _: "cuda:0")
        with pytest.raises(RuntimeError, match=f"backend='{backend}' reads host memory, .* on cuda:0"):
            gl.moments(*arrays, backend=backend)


class TestNoUpdateWaits:
    def test_moments(self, tensors: Any, forbidden: None) -> None:
        stream = gl.Moments(backend="cuda")
        for size in (10, 20, 100, 300, 300):
            stream.update(*(t[:size] for t in tensors))
        with pytest.raises(AssertionError, match="waited"):
            stream.finalize()

    def test_exact_grid(self, tensors: Any, forbidden: None) -> None:
        grid = gl.LayerGrid(backend="cuda", max_bytes=10**9)
        for size in (10, 100, 300, 300):
            grid.update([tensors[0][:size]], [tensors[1][:size]])
        with pytest.raises(AssertionError, match="waited"):
            grid.finalize()
