"""Grids from batches: what has no value is NaN with one warning, what cannot be is refused, and nothing is lost."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import gramless as gl
from gramless.layers import minibatch
from support import bounds, cases, grids
from support.backends import Backend
from support.grids import fed

SIZES = (30, 30, 30, 10)
KERNELS = ("linear", "rbf")


class TestDeadLayers:
    @pytest.mark.parametrize("kernel", KERNELS)
    @pytest.mark.parametrize("dtype", ["bf16", "fp32", "fp64"])
    def test_nan_and_one_warning(self, backend: Backend, kernel: str, dtype: str) -> None:
        xs, ys = grids.layers(dtype, n=100)
        xs["a"] = np.full_like(xs["a"], 3.25)
        ys["in"] = np.zeros_like(ys["in"])
        grid = fed(grids.batches((xs, ys), SIZES), kernel, backend=backend.name)
        with pytest.warns(RuntimeWarning, match="constant") as caught:
            matrix = grid.finalize()
        assert [warning.filename for warning in caught] == [__file__]
        assert all(name in str(caught[0].message) for name in ("x/a", "y/in"))
        dead = np.array([[False, True], [True, True], [False, True]])
        for array in (matrix.values, matrix.stderr):
            assert np.array_equal(np.isnan(array), dead)
        live = fed(grids.batches(({k: xs[k] for k in "zm"}, {"out": ys["out"]}), SIZES), kernel, backend=backend.name)
        bounds.assert_same_bits(matrix.values[[0, 2], :1].copy(), live.finalize().values, "the live layers")

    def test_dead_in_some_batches_is_not_dead(self) -> None:
        parts = grids.batches(grids.layers(n=100), SIZES)
        for xs, _ in parts[1:]:
            xs["a"] = np.ones_like(xs["a"])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            matrix = fed(parts).finalize()
        assert np.isfinite(matrix.values).all()

    def test_all_rows_but_one_equal(self) -> None:
        """Not constant, yet HSIC_1 of it is 0 in every batch."""
        xs, ys = grids.layers(n=40)
        xs["z"][:] = 0
        xs["z"][[3, 25]] = 1
        with pytest.warns(RuntimeWarning, match="x/z is constant, .* no other variation"):
            values = fed(grids.batches((xs, ys), (20, 20))).finalize().values
        assert np.isnan(values[0]).all()

    @pytest.mark.parametrize("scale", [1e-30, 1e-100])
    def test_underflow(self, scale: float) -> None:
        """Kernel values, or squares of their means, below what float32 or float64 hold."""
        xs, ys = grids.layers("fp32" if scale == 1e-30 else "fp64")
        xs["z"] *= xs["z"].dtype.type(scale)
        with pytest.warns(RuntimeWarning, match="x/z is constant, underflows"):
            values = fed([(xs, ys)]).finalize().values
        assert np.array_equal(np.isnan(values), [[True, True], [False, False], [False, False]])

    @pytest.mark.parametrize(("dtype", "scale"), [("fp32", 1e20), ("fp64", 1e60), ("fp64", 3e75), ("fp64", 1e100)])
    def test_overflow_is_refused(self, dtype: str, scale: float) -> None:
        """Not of the input: refused with the name of the layer, and the batches before are kept."""
        parts = grids.batches(grids.layers(dtype), (30, 30))
        grid = fed(parts[:1])
        before = grid.state_dict()
        parts[1][1]["in"] *= cases.DTYPES[dtype].type(scale)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(ValueError, match=r"LayerGrid.update: layer y/in: kernel values overflow"):
                grid.update(*parts[1])
        bounds.assert_same_dicts(grid.state_dict(), before, "after an overflow")

    @pytest.mark.parametrize(("width", "text"), [(1e-3, "bandwidth is too small"), (1e9, "bandwidth is too large")])
    def test_kernels_that_tell_no_rows_apart(self, width: float, text: str) -> None:
        with pytest.warns(RuntimeWarning, match=text):
            values = fed(grids.batches(grids.layers(), (30, 30)), "rbf", bandwidth=width).finalize().values
        assert np.isnan(values).all()

    def test_no_bandwidth(self) -> None:
        """Most rows equal: their median distance is 0."""
        xs, ys = grids.layers(n=60)
        xs["a"][:25] = xs["a"][0]
        with pytest.warns(
            RuntimeWarning, match=r"x/a has no bandwidth by the rule 'median' in 1 of 2 batches"
        ) as caught:
            values = fed(grids.batches((xs, ys), (30, 30)), "rbf").finalize().values
        assert len(caught) == 1
        assert np.array_equal(np.isnan(values), [[False, False], [True, True], [False, False]])

    @pytest.mark.parametrize("mode", ["exact", "minibatch"])
    def test_nothing_becomes_nan_in_silence(self, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whatever the algebra gives that is no number is NaN, with the names of its layers."""
        from gramless.layers import batch_moments
        from gramless.measures import hsic_from_moments

        grid = gl.LayerGrid(mode).update(*grids.layers())
        with monkeypatch.context() as patch:
            endless = np.full((3, 2), np.inf)
            if mode == "exact":
                patch.setattr(hsic_from_moments, "layer_cka", lambda *_: (endless, {}))
            else:
                patch.setattr(batch_moments.BatchTable, "cka", lambda _: (endless, np.zeros((3, 2))))
            with pytest.warns(RuntimeWarning, match=r"layers x/z and y/out have a value beyond float64") as caught:
                values = grid.finalize().values
        assert len(caught) == 1
        assert np.isnan(values).all()


class TestErrors:
    @pytest.mark.parametrize(
        ("keywords", "text"),
        [
            ({"mode": "fast"}, "mode"),
            ({"mode": "minibatch", "kernel": "laplacian"}, "kernel"),
            ({"mode": "minibatch", "kernel": "linear", "bandwidth": 1.0}, "bandwidth"),
            ({"mode": "minibatch", "bandwidth_scale": 2.0}, "kernel='linear' has no bandwidth_scale, got"),
            ({"mode": "minibatch", "kernel": "rbf", "bandwidth": 0.0}, "bandwidth"),
            ({"mode": "minibatch", "kernel": "rbf", "bandwidth": -1.0}, "bandwidth"),
            ({"mode": "minibatch", "kernel": "rbf", "bandwidth": "mode"}, "bandwidth"),
            ({"mode": "minibatch", "kernel": "rbf", "bandwidth_scale": 0}, "bandwidth_scale"),
            ({"mode": "minibatch", "weights": "sizes"}, "weights"),
            ({"mode": "minibatch", "backend": "tpu"}, "backend"),
            ({"mode": "minibatch", "max_bytes": 0}, "max_bytes"),
            ({"mode": "exact", "kernel": "rbf"}, "mode='minibatch', or cka_matrix"),
            ({"mode": "exact", "weights": "equal"}, "no weights"),
        ],
        ids=str,
    )
    def test_arguments(self, keywords: dict, text: str) -> None:
        with pytest.raises(ValueError, match=f"LayerGrid: .*{text}"):
            gl.LayerGrid(**keywords)

    @pytest.mark.parametrize("estimator", ["biased", "feature_corrected", "debiased"])
    def test_estimator(self, estimator: str) -> None:
        grid = fed([grids.layers()])
        with pytest.raises(ValueError, match=f"LayerGrid.finalize: .*{estimator!r}"):
            grid.finalize(estimator=estimator)

    def test_memory(self) -> None:
        sides = grids.layers("fp32")
        with pytest.raises(MemoryError, match=r"LayerGrid.update: this grid needs [\d,]+ bytes .*max_bytes is 1,000"):
            fed([sides], max_bytes=1000)
        with pytest.raises(MemoryError, match=r"cka_matrix: this grid needs [\d,]+ bytes .*max_bytes is 1,000"):
            gl.cka_matrix(*sides, batch_size=30, max_bytes=1000)

    def test_memory_is_asked_for_again_by_larger_batches(self, monkeypatch: pytest.MonkeyPatch) -> None:
        free = [1 << 30, 1000]
        monkeypatch.setattr(minibatch, "available_bytes", lambda: free.pop(0))
        parts = grids.batches(grids.layers("fp32", n=100), (20, 20, 60))
        grid = fed(parts[:2])
        before = grid.state_dict()
        with pytest.raises(MemoryError, match="available is 1,000 bytes"):
            grid.update(*parts[2])
        bounds.assert_same_dicts(grid.state_dict(), before, "after a refused batch")

    def test_memory_of_the_machine(self) -> None:
        wide = np.broadcast_to(np.float32(1), (8, 1 << 45))
        with pytest.raises(MemoryError, match="available is"):
            gl.LayerGrid("minibatch").update([wide])
