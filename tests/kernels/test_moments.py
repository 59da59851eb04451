"""The moments kernel: every backend against the definition. Value, invariance, extremes, errors."""

from __future__ import annotations

import numpy as np
import pytest

import gramless as gl
from support import backends, bounds, cases, judge, oracle
from support.backends import Backend

STEM = "moments"
TYPICAL = cases.TYPICAL


def bits(got: dict, want: dict, what: str) -> None:
    bounds.assert_same_dicts(got, want, what)


class TestValue:
    @pytest.mark.parametrize("dtype", list(cases.DTYPES))
    @pytest.mark.parametrize("case", cases.RAGGED_FEATURES, ids=str)
    def test_ragged_features(self, host_backend: Backend, case: cases.Case, dtype: str) -> None:
        x, y = case.arrays(dtype)
        judge.assert_moments(host_backend.moments(x, y), x, y)

    @pytest.mark.parametrize("dtype", list(cases.DTYPES))
    @pytest.mark.parametrize("case", cases.RAGGED_ROWS, ids=str)
    def test_ragged_rows(self, host_backend: Backend, case: cases.Case, dtype: str) -> None:
        x, y = case.arrays(dtype)
        judge.assert_moments(host_backend.moments(x, y), x, y)

    @pytest.mark.parametrize(("dtype_x", "dtype_y"), cases.MIXED)
    def test_mixed_dtypes(self, backend: Backend, dtype_x: str, dtype_y: str) -> None:
        for first, second in ((dtype_x, dtype_y), (dtype_y, dtype_x)):
            x, y = TYPICAL.arrays(first, second)
            judge.assert_moments(backend.moments(x, y), x, y)

    @pytest.mark.parametrize("dtype", list(cases.DTYPES))
    def test_integers_are_exact(self, backend: Backend, dtype: str) -> None:
        """Small integers about a zero pivot have no rounding anywhere, so every index mistake shows."""
        x, y = cases.INTEGERS.arrays(dtype)
        zero_x, zero_y = np.zeros(x.shape[1]), np.zeros(y.shape[1])
        got = backend.moments(x, y, pivot_x=zero_x, pivot_y=zero_y)
        truth = oracle.moments(x, y, zero_x, zero_y)
        for key, value in truth.items():
            assert np.array_equal(np.asarray(got[key], np.float64), np.asarray(value, np.float64)), key

    @pytest.mark.parametrize("dtype", list(cases.DTYPES))
    def test_keys_and_types(self, backend: Backend, dtype: str) -> None:
        x, y = TYPICAL.arrays(dtype)
        judge.assert_types(backend.moments(x, y))
        judge.assert_types(backend.moments(x))
        judge.assert_types(backend.moments(x, y, self_terms=False))

    @pytest.mark.parametrize("dtype", list(cases.DTYPES))
    def test_second_moments_are_symmetric_to_the_bit(self, backend: Backend, dtype: str) -> None:
        x, y = cases.RAGGED_FEATURES[9].arrays(dtype)
        got = backend.moments(x, y)
        bounds.assert_same_bits(got["sxx"].T.copy(), got["sxx"], "sxx transposed")
        bounds.assert_same_bits(got["syy"].T.copy(), got["syy"], "syy transposed")


class TestPivot:
    @pytest.mark.parametrize("dtype", list(cases.DTYPES))
    @pytest.mark.parametrize("rows", [1, 5, 63, 64, 65, 257])
    def test_is_the_mean_of_the_first_rows(self, backend: Backend, rows: int, dtype: str) -> None:
        x, y = cases.EXTREMES[0].arrays(dtype)
        x, y = x[:rows], y[:rows]
        got = backend.moments(x, y)
        judge.assert_pivot(got["pivot_x"], x)
        judge.assert_pivot(got["pivot_y"], y)

    @pytest.mark.parametrize("dtype", list(cases.DTYPES))
    def test_given(self, backend: Backend, dtype: str) -> None:
        x, y = TYPICAL.arrays(dtype)
        rng = np.random.default_rng(1)
        pivot_x, pivot_y = rng.standard_normal(x.shape[1]), rng.standard_normal(y.shape[1])
        got = backend.moments(x, y, pivot_x=pivot_x, pivot_y=pivot_y)
        judge.assert_moments(got, x, y)
        compute = oracle.compute_dtype(x, y)
        bounds.assert_pivot_rounding(got["pivot_x"], pivot_x, np.abs(pivot_x), compute)
        bounds.assert_pivot_rounding(got["pivot_y"], pivot_y, np.abs(pivot_y), compute)

    def test_given_in_float64_is_used_as_it_is(self, backend: Backend) -> None:
        x, y = TYPICAL.arrays("fp64")
        pivot = np.random.default_rng(1).standard_normal(x.shape[1])
        got = backend.moments(x, y, pivot_x=pivot)
        bounds.assert_same_bits(got["pivot_x"], pivot, "pivot_x")
        judge.assert_pivot(got["pivot_y"], y)

    def test_given_is_not_written_to(self, backend: Backend) -> None:
        x, y = TYPICAL.arrays("fp32")
        pivot = np.random.default_rng(1).standard_normal(x.shape[1])
        before = pivot.copy()
        got = backend.moments(x, y, pivot_x=pivot)
        got["pivot_x"][...] = 0
        bounds.assert_same_bits(pivot, before, "the given pivot")

    @pytest.mark.parametrize("dtype", list(cases.DTYPES))
    def test_far_from_the_data(self, backend: Backend, dtype: str) -> None:
        """A pivot that does not help must still be subtracted, not approximated."""
        x, y = TYPICAL.arrays(dtype)
        got = backend.moments(x, y, pivot_x=np.full(x.shape[1], 1e3), pivot_y=np.full(y.shape[1], -1e3))
        judge.assert_moments(got, x, y)


class TestPartialCalls:
    @pytest.mark.parametrize("dtype", list(cases.DTYPES))
    def test_without_y(self, backend: Backend, dtype: str) -> None:
        x, y = cases.RAGGED_FEATURES[8].arrays(dtype)
        alone, full = backend.moments(x), backend.moments(x, y)
        judge.assert_moments(alone, x, y, judge.X_KEYS)
        bits(alone, {key: full[key] for key in judge.X_KEYS}, "x alone against x beside y")

    @pytest.mark.parametrize("dtype", list(cases.DTYPES))
    def test_without_self_terms(self, backend: Backend, dtype: str) -> None:
        x, y = cases.RAGGED_FEATURES[13].arrays(dtype)
        full = backend.moments(x, y)
        pivots = {"pivot_x": full["pivot_x"], "pivot_y": full["pivot_y"]}
        part = backend.moments(x, y, self_terms=False, **pivots)
        assert set(part) == judge.CROSS_ONLY_KEYS
        judge.assert_entries(part, x, y, pivots["pivot_x"], pivots["pivot_y"])
        bits(part, {key: full[key] for key in judge.CROSS_ONLY_KEYS}, "cross terms alone")

    def test_x_against_itself(self, backend: Backend) -> None:
        x, _ = TYPICAL.arrays("fp32")
        got = backend.moments(x, x)
        judge.assert_moments(got, x, x)
        bounds.assert_no_worse_than_naive(
            got["sxy"], got["sxx"], got["sxx"], compute=np.float32, scale=np.abs(got["sxx"]).max() * np.ones((64, 64))
        )

    @pytest.mark.parametrize("dtype", list(cases.DTYPES))
    def test_swapping_sides_swaps_the_answer(self, backend: Backend, dtype: str) -> None:
        x, y = cases.RAGGED_FEATURES[5].arrays(dtype)
        one, two = backend.moments(x, y), backend.moments(y, x)
        for key, other in (("sxx", "syy"), ("sum_x", "sum_y"), ("cubes_x", "cubes_y"), ("weighted_xx", "weighted_yy")):
            bounds.assert_same_bits(one[key], two[other], key)
        judge.assert_entries(
            {"sxy": two["sxy"].T, "weighted_xy": two["weighted_yx"]}, x, y, one["pivot_x"], one["pivot_y"]
        )


class TestLayouts:
    @pytest.mark.parametrize("dtype", list(cases.DTYPES))
    @pytest.mark.parametrize("layout", backends.LAYOUTS)
    def test_layout_does_not_matter(self, host_backend: Backend, layout: str, dtype: str) -> None:
        x, y = TYPICAL.arrays(dtype)
        x, y = x[:130, :33], y[:130, :17]
        got = host_backend.moments(backends.layouts(x)[layout], backends.layouts(y)[layout])
        judge.assert_moments(got, x, y)
        if host_backend.name != "reference":
            bits(got, host_backend.moments(np.ascontiguousarray(x), np.ascontiguousarray(y)), layout)

    @pytest.mark.parametrize("dtype", list(cases.DTYPES))
    def test_broadcast_rows_and_columns(self, backend: Backend, dtype: str) -> None:
        x, _ = TYPICAL.arrays(dtype)
        one_row = np.broadcast_to(x[:1, :9], (70, 9))
        one_column = np.broadcast_to(x[:70, :1], (70, 11))
        got = backend.moments(one_row, one_column)
        judge.assert_moments(got, one_row, one_column)
        if backend.name != "reference":
            bits(got, backend.moments(one_row.copy(), one_column.copy()), "stride 0")

    def test_memmap(self, backend: Backend, tmp_path: object) -> None:
        x, y = TYPICAL.arrays("fp32")
        np.save(tmp_path / "x.npy", x)
        mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
        bits(backend.moments(mapped, y), backend.moments(x, y), "memmap")

    def test_byte_order_is_honoured_or_refused(self, backend: Backend) -> None:
        x, y = TYPICAL.arrays("fp32")
        swapped = x.astype(x.dtype.newbyteorder())
        try:
            got = backend.moments(swapped, y)
        except TypeError:
            return
        bits(got, backend.moments(x, y), "swapped bytes")

    @pytest.mark.parametrize("dtype", list(cases.DTYPES))
    def test_inputs_are_untouched(self, backend: Backend, dtype: str) -> None:
        x, y = (a.copy() for a in TYPICAL.arrays(dtype))
        before = x.copy(), y.copy()
        backend.moments(x, y)
        bounds.assert_same_bits(x, before[0], "x")
        bounds.assert_same_bits(y, before[1], "y")


class TestForeignArrays:
    @pytest.mark.parametrize("dtype", list(cases.DTYPES))
    @pytest.mark.parametrize("wrap", [lambda t: t, backends.OnlyDLPack], ids=["torch", "dlpack"])
    def test_torch_and_dlpack(self, backend: Backend, wrap: object, dtype: str) -> None:
        from gramless import ops

        x, y = TYPICAL.arrays(dtype)
        got = ops.moments(wrap(backend.tensor(x)), wrap(backend.tensor(y)), precision="exact", backend=backend.name)
        want = ops.moments(backend.array(x), backend.array(y), precision="exact", backend=backend.name)
        bits(got.to_dict(), want.to_dict(), "foreign array")

    @pytest.mark.parametrize("dtype", list(cases.DTYPES))
    def test_strided_torch(self, backend: Backend, dtype: str) -> None:
        from gramless import ops

        x, y = TYPICAL.arrays(dtype)
        tx, ty = backend.tensor(x), backend.tensor(y)
        got = ops.moments(tx[1::2, 3:40], ty.t().contiguous().t()[1::2], precision="exact", backend=backend.name)
        assert got.n == len(x) // 2
        if backend.name != "reference":
            parts = backend.array(x[1::2, 3:40]), backend.array(y[1::2])
            bits(got.to_dict(), ops.moments(*parts, precision="exact", backend=backend.name).to_dict(), "strided")
        judge.assert_state(got, x[1::2, 3:40], y[1::2])

    def test_gradients_are_detached(self, backend: Backend) -> None:
        from gramless import ops

        x, y = TYPICAL.arrays("fp32")
        leaf, other = backend.tensor(x).requires_grad_(), backend.array(y)
        got = ops.moments(leaf, other, precision="exact", backend=backend.name)
        want = ops.moments(backend.array(x), other, precision="exact", backend=backend.name)
        bits(got.to_dict(), want.to_dict(), "requires grad")
        assert leaf.grad is None

    @pytest.mark.parametrize("dtype", list(cases.DTYPES))
    def test_kernel_takes_dlpack(self, isa_level: str, dtype: str) -> None:
        from gramless import _core

        x, y = TYPICAL.arrays(dtype)
        got = _core.moments(backends.OnlyDLPack(backends.as_torch(x)), backends.as_torch(y))
        bits(got, _core.moments(x, y), f"dlpack at {isa_level}")


class TestLevels:
    """Each instruction set of this machine, on shapes around its vector and panel widths."""

    @pytest.mark.parametrize("dtype", list(cases.DTYPES))
    def test_every_level(self, isa_level: str, dtype: str) -> None:
        from gramless import _core

        assert _core.isa_level() == isa_level
        for case in (*cases.RAGGED_FEATURES[1::2], *cases.RAGGED_ROWS[::2]):
            x, y = case.arrays(dtype)
            judge.assert_moments(_core.moments(x, y), x, y)

    @pytest.mark.parametrize("dtype", list(cases.DTYPES))
    def test_integers_at_every_level(self, isa_level: str, dtype: str) -> None:
        self_check = Backend("cpu")
        TestValue().test_integers_are_exact(self_check, dtype)

    def test_unknown_level(self, isa_level: str) -> None:
        from gramless import _core

        with pytest.raises(ValueError, match="isa"):
            _core.set_isa_level("avx9000")
        assert _core.isa_level() == isa_level


class TestExtremes:
    @pytest.mark.parametrize(("case", "dtype"), cases.with_dtypes(cases.EXTREMES), ids=str)
    def test_no_worse_than_naive(self, backend: Backend, case: cases.Case, dtype: str) -> None:
        x, y = case.arrays(dtype)
        judge.assert_moments(backend.moments(x, y), x, y)

    @pytest.mark.parametrize("dtype", list(cases.DTYPES))
    def test_constant_rows_give_exact_zeros(self, backend: Backend, dtype: str) -> None:
        x = np.full((70, 5), 2.5, cases.DTYPES[dtype])
        y = np.full((70, 3), -0.5, cases.DTYPES[dtype])
        got = backend.moments(x, y)
        for key in judge.ALL_KEYS - {"n", "pivot_x", "pivot_y"}:
            assert not np.any(got[key]), key

    @pytest.mark.parametrize("dtype", ["fp32", "fp64"])
    def test_subnormals(self, backend: Backend, dtype: str) -> None:
        tiny = float(np.finfo(cases.DTYPES[dtype]).smallest_subnormal)
        x = (np.arange(80).reshape(40, 2) * tiny).astype(cases.DTYPES[dtype])
        got = backend.moments(x, pivot_x=np.zeros(2))
        bounds.assert_same_bits(got["sum_x"], x.astype(np.float64).sum(axis=0), "sum of subnormals")

    def test_overflow_of_finite_input_is_refused(self, backend: Backend) -> None:
        x = np.array([[1e160], [-1e160], [2e160], [0.0]])
        with pytest.raises(ValueError, match="overflow"):
            backend.moments(x, x)

    @pytest.mark.parametrize("rows", [1, 40])
    @pytest.mark.parametrize("size", [1e14, 1e30])
    def test_overflow_of_float32_is_refused(self, isa_level: str, size: float, rows: int) -> None:
        """Rows too large for float32 that no sample foretells: one is summed by itself, many are refused."""
        from gramless import _core

        x = np.random.default_rng(0).standard_normal((600, 3)).astype(np.float32)
        x[81 : 81 + rows] *= np.float32(size)
        if rows == 1 and size < 1e19:
            got = _core.moments(x)
            truth = float(np.sum(np.sum((x.astype(np.float64) - got["pivot_x"]) ** 2, axis=1) ** 2))
            bounds.assert_relative(float(got["norms_xx"]), truth, bounds.bound_for(x.dtype), "norms")
            return
        with pytest.raises(ValueError, match="overflow float32"):
            _core.moments(x, x)

    @pytest.mark.parametrize("dtype", ["bf16", "fp32"])
    @pytest.mark.parametrize("scale", [1e-30, 1e-10, 1e10, 1e30])
    @pytest.mark.parametrize("n", [6, 300])
    def test_powers_that_float32_cannot_hold(self, backend: Backend, n: int, scale: float, dtype: str) -> None:
        x = np.random.default_rng(0).standard_normal((n, 5)) * scale
        x, y = x.astype(cases.DTYPES[dtype]), (x[:, :3] ** 2 / scale).astype(cases.DTYPES[dtype])
        truth = oracle.dense_cka(x.astype(np.float64) / scale, y.astype(np.float64) / scale)
        got = gl.cka(backend.array(x), backend.array(y), precision="exact", backend=backend.name)
        bounds.assert_relative(got, truth, bounds.bound_for(x.dtype), f"at {scale:g}")


class TestNonFinite:
    @pytest.mark.parametrize("dtype", list(cases.DTYPES))
    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("row", [0, 63, 255, 256, 511, 599])
    def test_raises_and_names_argument_and_rows(
        self, host_backend: Backend, row: int, value: float, dtype: str
    ) -> None:
        rng = np.random.default_rng(0)
        x = rng.standard_normal((600, 5)).astype(cases.DTYPES[dtype])
        y = rng.standard_normal((600, 4)).astype(cases.DTYPES[dtype])
        for name, array, column in (("x", x, 4), ("y", y, 0)):
            kept = array[row, column]
            array[row, column] = value
            with pytest.raises(
                ValueError, match=rf"moments: {name} has non-finite values in rows \d+\.\.\d+"
            ) as caught:
                host_backend.moments(x, y)
            first, last = str(caught.value).rsplit(" ", 1)[1].split("..")
            assert int(first) <= row <= int(last) < 600
            array[row, column] = kept

    def test_a_large_finite_value_is_not_taken_for_infinity(self, backend: Backend) -> None:
        x = np.array([[3e38], [3e38], [3e38], [3e38]], np.float32)
        got = backend.moments(x, nonfinite="raise")
        assert not np.any(got["sxx"])

    @pytest.mark.parametrize("dtype", list(cases.DTYPES))
    def test_propagate(self, backend: Backend, dtype: str) -> None:
        x, y = (a.copy() for a in TYPICAL.arrays(dtype))
        x[100, 3] = np.nan
        got = backend.moments(x, y, nonfinite="propagate")
        assert np.isnan(got["sxx"][3]).all()
        assert np.isnan(got["sxy"][3]).all()
        assert np.isnan(got["norms_xx"])
        clean = np.delete(np.arange(x.shape[1]), 3)
        full = backend.moments(*TYPICAL.arrays(dtype))
        bounds.assert_same_bits(got["sxx"][np.ix_(clean, clean)], full["sxx"][np.ix_(clean, clean)], "other columns")
        assert np.isfinite(got["syy"]).all()

    def test_unknown_choice(self, backend: Backend) -> None:
        from gramless import ops

        with pytest.raises(ValueError, match="nonfinite"):
            ops.moments(*TYPICAL.arrays("fp32"), nonfinite="ignore", precision="exact", backend=backend.name)


class TestChunks:
    @pytest.mark.parametrize("dtype", list(cases.DTYPES))
    @pytest.mark.parametrize("sizes", [(255, 1), (1, 255), (100, 56, 100), (7,) * 12 + (172,)], ids=str)
    def test_sum_of_chunks_about_one_pivot(self, backend: Backend, sizes: tuple[int, ...], dtype: str) -> None:
        x, y = TYPICAL.arrays(dtype)
        whole = backend.moments(x, y)
        pivots = {"pivot_x": whole["pivot_x"], "pivot_y": whole["pivot_y"]}
        total = dict.fromkeys(judge.ALL_KEYS - set(pivots), 0)
        start = 0
        for size in sizes:
            part = backend.moments(x[start : start + size], y[start : start + size], **pivots)
            total = {key: total[key] + part[key] for key in total}
            start += size
        judge.assert_moments(total | pivots, x, y)

    def test_many_rows_do_not_drift(self, backend: Backend) -> None:
        """Sums across tiles are in float64: the error may not grow with n as that of float32 sums does."""
        rng = np.random.default_rng(0)
        x = (rng.standard_normal((60_000, 4)) + 3.0).astype(np.float32)
        zero = np.zeros(4)
        got = backend.moments(x, pivot_x=zero)
        d = x.astype(np.float64)
        bounds.assert_no_worse_than_naive(got["sxx"], d.T @ d, d.T @ d, compute=np.float32, what="sxx of many rows")
        bounds.assert_no_worse_than_naive(got["sum_x"], d.sum(0), d.sum(0), compute=np.float32, what="sum of many rows")
