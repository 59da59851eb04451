"""Grids from batches: HSIC of each batch, averaged as Nguyen, Raghu and Kornblith (2021) do."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pytest

import gramless as gl
from gramless.layers import tiles
from support import backends, bounds, cases, grids
from support.backends import Backend, as_torch
from support.grids import assert_grid, assert_same_matrices, fed

SIZES = (30, 30, 30, 10)
KERNELS = ("linear", "rbf")
# of the rbf kernel, the median distance of each batch, and one number for all of them
WIDTHS = (("linear", None), ("rbf", None), ("rbf", 3.0))


class TestValue:
    @pytest.mark.parametrize("dtype", list(cases.DTYPES))
    @pytest.mark.parametrize(("kernel", "width"), WIDTHS)
    def test_against_dense_matrices(self, backend: Backend, kernel: str, width: float | None, dtype: str) -> None:
        """The last batch is smaller than the others, and counts for as much as it has rows."""
        parts = grids.batches(grids.layers(dtype, n=100), SIZES)
        matrix = fed(parts, kernel, bandwidth=width, backend=backend.name).finalize()
        assert_grid(matrix, grids.minibatch(parts, kernel, width), cases.DTYPES[dtype])
        assert (matrix.n, matrix.estimator) == (100, "unbiased")
        assert matrix.measure == ("cka" if kernel == "linear" else "rbf cka")

    @pytest.mark.parametrize("kernel", KERNELS)
    def test_equal_weights_on_request(self, kernel: str) -> None:
        parts = grids.batches(grids.layers(n=100), SIZES)
        matrix = fed(parts, kernel, weights="equal").finalize()
        assert_grid(matrix, grids.minibatch(parts, kernel, weights="equal"), np.float64)
        assert not np.allclose(matrix.values, fed(parts, kernel).finalize().values)

    @pytest.mark.parametrize(("case", "dtype"), cases.with_dtypes(cases.EXTREMES), ids=cases.label)
    @pytest.mark.parametrize("kernel", KERNELS)
    def test_extremes(self, kernel: str, case: cases.Case, dtype: str) -> None:
        """As promised, or where rounding leaves less of the kernel values, within the error of naive ones."""
        x, y = case.arrays(dtype)
        half = len(x) // 2
        parts = grids.batches(({"x": x}, {"y": y}), (half, len(x) - half))
        got, (truth, _) = fed(parts, kernel).finalize().values, grids.minibatch(parts, kernel)
        rounding = max(grids.rounding(a, kernel) for part in parts for side in part for a in side.values())
        allowed = max(bounds.bound_for(x.dtype), bounds.VALUE_FACTOR * rounding)
        bounds.assert_absolute(got[0, 0], truth[0, 0], allowed)

    @pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
    def test_features_of_large_spread_do_not_overflow(self, dtype: str) -> None:
        """Standard deviation 3e4 in bf16 and fp32, as much as fits in fp16."""
        wide = grids.layers(n=100)
        parts = grids.batches(
            tuple({k: (1e4 * v).clip(-6e4, 6e4).astype(cases.DTYPES[dtype]) for k, v in side.items()} for side in wide),
            SIZES,
        )
        assert_grid(fed(parts).finalize(), grids.minibatch(parts), np.float32)

    @pytest.mark.parametrize("scale", [1e-18, 1e-6, 1e6, 1e17])
    @pytest.mark.parametrize("kernel", KERNELS)
    def test_any_scale(self, kernel: str, scale: float) -> None:
        """Of float32, whose products of kernel values would underflow or overflow."""
        parts = grids.batches(
            tuple({k: v * np.float32(scale) for k, v in side.items()} for side in grids.layers("fp32", n=100)), SIZES
        )
        assert_grid(fed(parts, kernel).finalize(), grids.minibatch(parts, kernel), np.float32)

    @pytest.mark.parametrize("blocks", [False, True])
    @pytest.mark.parametrize("kernel", KERNELS)
    @pytest.mark.parametrize("dtype", ["fp32", "fp64"])
    def test_scales_that_are_far_apart(
        self, backend: Backend, dtype: str, kernel: str, blocks: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Layers of 1e-18 beside layers of 1e18 in one grid: each is counted in units of its own."""
        if blocks:
            monkeypatch.setattr(tiles, "VALUES_BYTES", 1)
        scales = {"z": 1e-18, "a": 1.0, "m": 1e18, "out": 1e17, "in": 1e-18}
        sides = tuple({k: v * v.dtype.type(scales[k]) for k, v in side.items()} for side in grids.layers(dtype, n=100))
        parts = grids.batches(sides, SIZES)
        assert_grid(
            fed(parts, kernel, backend=backend.name).finalize(), grids.minibatch(parts, kernel), sides[0]["z"].dtype
        )

    @pytest.mark.parametrize("blocks", [False, True])
    @pytest.mark.parametrize("kernel", KERNELS)
    def test_powers_of_two_change_no_bit(
        self, backend: Backend, kernel: str, blocks: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Of float32, whose squares of kernel values go from 2^-200 to 2^200: all but one of the layers have units."""
        if blocks:
            monkeypatch.setattr(tiles, "VALUES_BYTES", 1)
        exponents = {"z": -50, "a": 0, "m": 50, "out": 26, "in": -49}
        sides = grids.layers("fp32", n=100)
        far = tuple({k: np.ldexp(v, exponents[k]) for k, v in side.items()} for side in sides)
        got, want = (fed(grids.batches(both, SIZES), kernel, backend=backend.name).finalize() for both in (far, sides))
        assert_same_matrices(got, want, "powers of two")

    def test_units(self) -> None:
        """Powers of two near the root of what is far from 1 for its type, and 1 for all else."""
        squares = np.array([0.0, 1.0, 2.0**96, 2.0**97, 3.1 * 2.0**-131, 2.0**-96, np.nan, np.inf])
        assert tiles._units(squares, np.dtype(np.float32)).tolist() == [1, 1, 1, 2.0**48, 2.0**-65, 1, 1, 1]
        assert (tiles._units(squares, np.dtype(np.float64)) == 1).all()

    def test_float32_beside_float64(self) -> None:
        xs, ys = grids.layers(n=60)
        mixed = {k: v.astype(np.float32) for k, v in xs.items()}
        parts = grids.batches((mixed, ys), (30, 30))
        assert_grid(fed(parts).finalize(), grids.minibatch(parts), np.float64)

    @pytest.mark.parametrize("dtype", list(cases.DTYPES))
    def test_torch_layers(self, dtype: str) -> None:
        parts = grids.batches(grids.layers(dtype, n=60), (30, 28, 2))
        torch_parts = [tuple({k: as_torch(v) for k, v in side.items()} for side in part) for part in parts]
        with pytest.warns(RuntimeWarning, match="left out"):
            want = fed(parts).finalize()
        with pytest.warns(RuntimeWarning, match="left out"):
            assert_same_matrices(fed(torch_parts).finalize(), want, "torch")

    @pytest.mark.parametrize("kernel", KERNELS)
    @pytest.mark.parametrize("dtype", ["fp32", "fp64"])
    def test_one_batch_is_the_pairwise_measure(self, kernel: str, dtype: str) -> None:
        xs, ys = grids.layers(dtype)
        matrix = fed([(xs, ys)], kernel).finalize()
        for i, x in enumerate(xs.values()):
            for j, y in enumerate(ys.values()):
                want = gl.cka(x, y, kernel=kernel)
                bounds.assert_relative(matrix.values[i, j], want, bounds.bound_for(x.dtype), f"cell {i}, {j}")
        assert np.isnan(matrix.stderr).all()
        assert str(matrix) == str(gl.cka_matrix(xs, ys, kernel=kernel))

    @pytest.mark.parametrize("kernel", KERNELS)
    def test_tends_to_the_value_of_all_rows(self, kernel: str) -> None:
        """HSIC of a batch has the same expectation whatever its size, so small batches give no other value."""
        sides = grids.layers(n=4000)
        want = gl.cka_matrix(*sides, kernel=kernel, bandwidth=None if kernel == "linear" else 3.0).values
        for size in (8, 64):
            got = gl.cka_matrix(*sides, kernel=kernel, bandwidth=None if kernel == "linear" else 3.0, batch_size=size)
            assert (np.abs(got.values - want) <= bounds.STANDARD_ERRORS * got.stderr).all()

    def test_independent_layers(self) -> None:
        """Independent data: 0 within standard errors, which the biased estimator misses by far."""
        rng = np.random.default_rng(3)
        x, y = rng.standard_normal((2, 1200, 40))
        matrix = gl.cka_matrix([x], [y], batch_size=24)
        assert abs(matrix.values[0, 0]) <= bounds.STANDARD_ERRORS * matrix.stderr[0, 0]
        assert gl.cka(x[:24], y[:24], estimator="biased") > bounds.STANDARD_ERRORS * matrix.stderr[0, 0]


class TestOneModel:
    @pytest.mark.parametrize("kernel", KERNELS)
    @pytest.mark.parametrize("dtype", ["bf16", "fp64"])
    def test_symmetric_with_ones(self, backend: Backend, kernel: str, dtype: str) -> None:
        xs, _ = grids.layers(dtype, n=100)
        parts = [(part, None) for part, _ in grids.batches((xs, xs), SIZES)]
        matrix = fed(parts, kernel, backend=backend.name).finalize()
        assert matrix.layers_x == matrix.layers_y == ("z", "a", "m")
        assert (np.diag(matrix.values) == 1).all()
        assert (np.diag(matrix.stderr) == 0).all()
        for array in (matrix.values, matrix.stderr):
            bounds.assert_same_bits(array.T.copy(), array, "the transpose")

    @pytest.mark.parametrize("kernel", KERNELS)
    def test_is_the_grid_of_two_of_the_same(self, kernel: str) -> None:
        """The same model given twice is computed, not looked up: the diagonal must come out as 1."""
        xs, _ = grids.layers(n=100)
        parts = grids.batches((xs, xs), SIZES)
        one = fed([(part, None) for part, _ in parts], kernel).finalize()
        two = fed(parts, kernel).finalize()
        scale = np.full_like(one.values, bounds.CKA_TERMS)
        bounds.assert_within_algebra(two.values, one.values, scale)
        apart = ~np.eye(3, dtype=bool)
        bounds.assert_within_algebra(two.stderr[apart], one.stderr[apart], scale[apart])


class TestWholeArrays:
    @pytest.mark.parametrize("kernel", KERNELS)
    def test_are_fed_in_batches(self, kernel: str) -> None:
        sides = grids.layers("fp32", n=100)
        want = fed(grids.batches(sides, SIZES), kernel).finalize()
        assert_same_matrices(gl.cka_matrix(*sides, kernel=kernel, batch_size=30), want, "batches of 30")

    @pytest.mark.parametrize(
        ("n", "size", "sizes"), [(93, 30, (30, 30, 33)), (94, 30, (30, 30, 30, 4)), (33, 40, (33,)), (7, 4, (7,))]
    )
    def test_a_small_rest_joins_the_last_batch(self, n: int, size: int, sizes: tuple[int, ...]) -> None:
        sides = grids.layers(n=n)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            got = gl.cka_matrix(*sides, batch_size=size, weights="equal")
        assert_same_matrices(got, fed(grids.batches(sides, sizes), weights="equal").finalize(), str(sizes))
        assert got.n == n

    @pytest.mark.parametrize(("size", "error"), [(3, ValueError), (0, ValueError), (2.0, TypeError), (True, TypeError)])
    def test_size(self, size: object, error: type[Exception]) -> None:
        with pytest.raises(error, match=r"cka_matrix: expected batch_size"):
            gl.cka_matrix(*grids.layers(), batch_size=size)

    def test_what_needs_a_size(self) -> None:
        with pytest.raises(ValueError, match="weights='equal' needs batch_size"):
            gl.cka_matrix(*grids.layers(), weights="equal")

    @pytest.mark.parametrize("estimator", ["biased", "feature_corrected"])
    def test_estimator(self, estimator: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tiles, "gram_values", lambda *_, **__: pytest.fail("work was done"))
        with pytest.raises(ValueError, match="cka_matrix: batches have estimator='unbiased' alone"):
            gl.cka_matrix(*grids.layers(), batch_size=30, estimator=estimator)


class TestBlocks:
    """Batches whose kernel values are many go by pairs of blocks of rows."""

    @pytest.mark.parametrize("dtype", ["bf16", "fp32", "fp64"])
    @pytest.mark.parametrize(("kernel", "width"), WIDTHS)
    def test_same_values(
        self, backend: Backend, kernel: str, width: float | None, dtype: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        parts = grids.batches(grids.layers(dtype, n=120), (70, 50))
        calls = []
        kernel_values = tiles.gram_values
        monkeypatch.setattr(tiles, "VALUES_BYTES", 1)
        monkeypatch.setattr(tiles, "gram_values", lambda *a, **k: calls.append(0) or kernel_values(*a, **k))
        matrix = fed(parts, kernel, bandwidth=width, backend=backend.name).finalize()
        assert_grid(matrix, grids.minibatch(parts, kernel, width), cases.DTYPES[dtype])
        # 70 rows are 5 blocks of at most 16, 50 rows are 4
        assert len(calls) == 15 + 10

    @pytest.mark.parametrize("kernel", KERNELS)
    def test_non_finite_rows_are_named_where_they_are(self, kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tiles, "VALUES_BYTES", 1)
        xs, ys = grids.layers("fp32", n=64)
        xs["a"][41, 3] = np.inf
        with pytest.raises(ValueError, match=r"LayerGrid.update: layer x/a:? has non-finite values in rows") as caught:
            fed([(xs, ys)], kernel, bandwidth=None if kernel == "linear" else 3.0)
        first, last = map(int, re.search(r"rows (\d+)\.\.(\d+)", str(caught.value)).groups())
        assert first <= 41 <= last < first + 16


class TestThreads:
    @pytest.mark.parametrize("kernel", KERNELS)
    @pytest.mark.parametrize("dtype", ["bf16", "fp32", "fp64"])
    def test_count_does_not_change_a_bit(self, kernel: str, dtype: str) -> None:
        rng = np.random.default_rng(0)
        layers = [rng.standard_normal((300, p)).astype(cases.DTYPES[dtype]) for p in (40, 7, 65)]
        results = []
        for count in (1, 2, 7):
            with backends.threads(count):
                results.append(gl.cka_matrix(layers, kernel=kernel, batch_size=130))
        for result in results[1:]:
            assert_same_matrices(result, results[0], "another number of threads")

    def test_nor_do_blocks_that_memory_limits(self) -> None:
        layers = [np.random.default_rng(0).standard_normal((400, 40)) for _ in range(9)]
        results = []
        for count in (1, 7):
            with backends.threads(count):
                results.append(gl.cka_matrix(layers, batch_size=200, max_bytes=1 << 21))
        assert_same_matrices(results[1], results[0], "7 threads")
