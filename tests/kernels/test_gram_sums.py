"""The gram_sums kernel: every backend against kernel matrices from their definition. Value, blocks, extremes."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest

import gramless as gl
from gramless import ops
from support import backends, bounds, cases, grams
from support.backends import Backend

STEM = "gram_sums"
DTYPES = list(cases.DTYPES)
FEW = grams.SMALL
# kernels that each take another road: none, one with a centre, one of widths, one of norms
ROADS = ("linear", "polynomial", "rbf", "cosine")
EXTREMES = tuple(replace(case, n=min(case.n, 100)) for case in cases.EXTREMES)
# what reads the rows and what becomes of their products are apart, so that not every pair of both is needed
KERNEL_DTYPES = [(kernel, "fp64") for kernel in grams.KERNELS] + [
    ("linear", "bf16"),
    ("rbf", "fp16"),
    ("cosine", "fp32"),
]
FLOAT32_DTYPES = [(kernel, "fp32") for kernel in grams.KERNELS] + [("linear", "bf16"), ("rbf", "fp16")]
LEVEL_CASES = grams.RAGGED[1::3]


def sums(backend: Backend, x: np.ndarray, y: np.ndarray | None, kernel: str, **keywords: object) -> dict:
    return backend.gram_sums(x, y, **grams.arguments(x, y, kernel) | keywords)


class TestValue:
    @pytest.mark.parametrize(("kernel", "dtype"), KERNEL_DTYPES)
    def test_ragged(self, host_backend: Backend, kernel: str, dtype: str) -> None:
        for case in grams.RAGGED:
            grams.assert_case(host_backend.gram_sums, case, dtype, kernel)

    @pytest.mark.parametrize("kernel", grams.KERNELS)
    @pytest.mark.parametrize(("dtype_x", "dtype_y"), cases.MIXED)
    def test_mixed_dtypes(self, backend: Backend, dtype_x: str, dtype_y: str, kernel: str) -> None:
        for first, second in ((dtype_x, dtype_y), (dtype_y, dtype_x)):
            x, y = FEW.arrays(first, second)
            grams.assert_arrays(sums(backend, x, y, kernel), x, y, kernel)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_integers_are_exact(self, backend: Backend, dtype: str) -> None:
        """1 + u.v / 64 of small integers, about medians of integers, is never rounded: every index mistake shows."""
        x, y = replace(cases.INTEGERS, p=64, q=64, name="exact").arrays(dtype)
        got = backend.gram_sums(x, y, kernel="polynomial", degree=1, coef0=1.0)
        k, m = (d @ d.T / 64 for d in (a.astype(np.float64) - grams.centre(a) for a in (x, y)))
        for side, matrix in (("x", k), ("y", m)):
            assert np.array_equal(got[f"diagonal_{side}"][0], np.diagonal(matrix))
            np.fill_diagonal(matrix, 0)
            assert np.array_equal(got[f"rows_{side}"][0], matrix.sum(axis=1))
            assert got[f"sum_{side}{side}"][0] == (matrix * matrix).sum()
        assert got["sum_xy"][0] == (k * m).sum()

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("kernel", grams.KERNELS)
    def test_x_alone(self, backend: Backend, kernel: str, dtype: str) -> None:
        x, y = FEW.arrays(dtype)
        alone, beside = sums(backend, x, None, kernel), sums(backend, x, y, kernel)
        grams.assert_arrays(alone, x, None, kernel)
        bounds.assert_same_dicts(alone, {key: beside[key] for key in alone}, "x alone against x beside y")

    @pytest.mark.parametrize("kernel", grams.KERNELS)
    def test_swapping_sides_swaps_the_answer(self, backend: Backend, kernel: str) -> None:
        x, y = FEW.arrays("fp32")
        one, two = sums(backend, x, y, kernel), sums(backend, y, x, kernel)
        for key in ("rows", "diagonal", "offset"):
            bounds.assert_same_bits(one[f"{key}_x"], two[f"{key}_y"], key)
        bounds.assert_same_bits(one["sum_xx"], two["sum_yy"], "sum_xx")
        bounds.assert_same_bits(one["sum_xy"], two["sum_xy"], "sum_xy")

    @pytest.mark.parametrize("kernel", grams.KERNELS)
    def test_x_against_itself(self, backend: Backend, kernel: str) -> None:
        x, _ = FEW.arrays("fp32")
        got = sums(backend, x, x, kernel)
        for key in ("sum_yy", "sum_xy"):
            bounds.assert_same_bits(got[key], got["sum_xx"], key)

    def test_several_bandwidths_are_as_many_passes(self, backend: Backend) -> None:
        x, y = FEW.arrays("fp32")
        widths = grams.widths(x, "rbf"), grams.widths(y, "rbf")
        whole = backend.gram_sums(x, y, kernel="rbf", bandwidth_x=widths[0], bandwidth_y=widths[1])
        for s in range(len(widths[0])):
            part = slice(s, s + 1)
            one = backend.gram_sums(x, y, kernel="rbf", bandwidth_x=widths[0][part], bandwidth_y=widths[1][part])
            for key in whole.keys() - {"n"}:
                bounds.assert_same_bits(one[key], whole[key][part], f"{key} of bandwidth {s}")

    def test_types(self, backend: Backend) -> None:
        got = sums(backend, *FEW.arrays("bf16"), "rbf")
        assert type(got.pop("n")) is int
        for key, value in got.items():
            assert type(value) is np.ndarray, key
            assert value.dtype == np.float64
            assert value.flags.writeable
            assert value.flags.c_contiguous


class TestFloat32:
    """Blocks of many rows, whose kernel values are computed in float32: a full block, and the tail of the last one."""

    @pytest.mark.parametrize(("kernel", "dtype"), FLOAT32_DTYPES)
    def test_ragged(self, isa_level: str, kernel: str, dtype: str) -> None:
        for case in grams.RAGGED:
            grams.assert_blocks(Backend("cpu").gram_sums, case, dtype, kernel)

    @pytest.mark.parametrize("case", EXTREMES, ids=str)
    @pytest.mark.parametrize("kernel", ["linear", "rbf", "distance", "cosine"])
    def test_extremes(self, isa_level: str, kernel: str, case: cases.Case) -> None:
        dtype = "fp32" if "fp32" in case.dtypes else "bf16"
        grams.assert_blocks(Backend("cpu").gram_sums, case, dtype, kernel)

    @pytest.mark.parametrize("kernel", ["linear", "rbf"])
    def test_whole_tiles(self, isa_level: str, kernel: str) -> None:
        tiles = cases.Case("gram_tiles", "tiles of the full width, and tails of them", 1300, 9, 6)
        grams.assert_case(Backend("cpu").gram_sums, tiles, "fp32", kernel)


class TestLevels:
    """Each instruction set of this machine."""

    @pytest.mark.parametrize(("kernel", "dtype"), KERNEL_DTYPES)
    def test_every_level(self, isa_level: str, kernel: str, dtype: str) -> None:
        from gramless import _core

        assert _core.isa_level() == isa_level
        for case in LEVEL_CASES:
            grams.assert_case(Backend("cpu").gram_sums, case, dtype, kernel)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_integers_at_every_level(self, isa_level: str, dtype: str) -> None:
        TestValue().test_integers_are_exact(Backend("cpu"), dtype)

    @pytest.mark.parametrize("dtype", ["fp32", "fp64"])
    @pytest.mark.parametrize("kernel", ["rbf", "laplacian"])
    def test_exponentials_over_their_whole_range(self, isa_level: str, kernel: str, dtype: str) -> None:
        """Distances from nothing to far beyond the range of numbers: digits where there are any, else 0."""
        steps = np.zeros((grams.ROWS_IN_DOUBLE + 1, 1), cases.DTYPES[dtype])
        steps[1:201, 0] = np.logspace(-4, 3, 200)
        width, pairs = np.ones(1), np.zeros((1, 2), np.int64)
        got = Backend("cpu").gram_sums(steps, kernel=kernel, bandwidth_x=width, block_rows=201, pairs=pairs)
        want = grams.expected(steps, None, kernel, width, counted=grams.counted_pairs(len(steps), 201, pairs))
        grams.assert_sums(got, want, cases.DTYPES[dtype])


class TestBlocks:
    @pytest.mark.parametrize("block_rows", [1, 7, 16, 48, 59, 60, 61, 1000])
    @pytest.mark.parametrize("kernel", ROADS)
    def test_any_block_size(self, backend: Backend, kernel: str, block_rows: int) -> None:
        x, y = FEW.arrays("fp32")
        want = grams.expected_of_case(FEW, "fp32", kernel)
        grams.assert_sums(sums(backend, x, y, kernel, block_rows=block_rows), want, np.float64)

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("pairs", [[[0, 0]], [[1, 2]], [[0, 2], [2, 2]], [[3, 3], [0, 3]]], ids=str)
    @pytest.mark.parametrize("kernel", ROADS)
    def test_some_pairs(self, backend: Backend, kernel: str, pairs: list, dtype: str) -> None:
        """The last block is short; what was not counted is zero."""
        x, y = FEW.arrays(dtype)
        chosen, given = np.array(pairs), grams.arguments(x, y, kernel)
        got = backend.gram_sums(x, y, **given, block_rows=17, pairs=chosen)
        counted = grams.counted_pairs(len(x), 17, chosen)
        want = grams.expected(x, y, kernel, given["bandwidth_x"], given["bandwidth_y"], counted)
        grams.assert_sums(got, want, grams.compute_dtype(x, y, kernel))
        assert not got["rows_x"][:, ~counted.any(axis=1)].any()

    def test_no_pairs(self, backend: Backend) -> None:
        got = sums(backend, *FEW.arrays("fp32"), "linear", block_rows=17, pairs=np.zeros((0, 2), np.int64))
        assert not any(np.any(got[key]) for key in got if key != "n")

    @pytest.mark.parametrize("kernel", grams.KERNELS)
    def test_states_of_all_pairs_merge_in_any_order(self, backend: Backend, kernel: str) -> None:
        x, y = FEW.arrays("fp32")
        given = grams.arguments(x, y, kernel)
        pairs = [(0, 0), (0, 1), (1, 1)]
        arrays = backend.array(x), backend.array(y)
        whole = ops.gram_sums(*arrays, **given, backend=backend.name)
        parts = [
            ops.gram_sums(*arrays, **given, block_rows=32, pairs=np.array([pair]), backend=backend.name)
            for pair in pairs
        ]
        assert not any(part.complete for part in parts)
        for order in permutations(parts):
            merged = order[0].merge(order[1]).merge(order[2])
            assert merged.complete
            flat = merged.to_dict()
            for key, value in whole.to_dict().items():
                if np.ndim(value) and value.dtype == np.float64:
                    scale = np.full(value.shape, np.abs(value).max())
                    bounds.assert_within_algebra(flat[key], value, scale, key)
                else:
                    bounds.assert_same_bits(flat[key], value, key)


class TestLayouts:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("layout", backends.LAYOUTS)
    def test_layout_does_not_matter(self, host_backend: Backend, layout: str, dtype: str) -> None:
        x, y = FEW.arrays(dtype)
        for kernel in ROADS:
            got = sums(host_backend, backends.layouts(x)[layout], backends.layouts(y)[layout], kernel)
            grams.assert_sums(got, grams.expected_of_case(FEW, dtype, kernel), grams.compute_dtype(x, y, kernel))
            if host_backend.name != "reference":
                bounds.assert_same_dicts(got, sums(host_backend, x, y, kernel), layout)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_broadcast_rows_and_columns(self, backend: Backend, dtype: str) -> None:
        x, _ = FEW.arrays(dtype)
        one_row, one_column = np.broadcast_to(x[:1, :9], (60, 9)), np.broadcast_to(x[:, :1], (60, 11))
        for kernel in ROADS:
            got = sums(backend, one_row, one_column, kernel)
            grams.assert_arrays(got, one_row, one_column, kernel)
            if backend.name != "reference":
                bounds.assert_same_dicts(got, sums(backend, one_row.copy(), one_column.copy(), kernel), "stride 0")

    def test_memmap(self, backend: Backend, tmp_path: object) -> None:
        x, y = FEW.arrays("fp32")
        np.save(tmp_path / "x.npy", x)
        mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
        bounds.assert_same_dicts(sums(backend, mapped, y, "rbf"), sums(backend, x, y, "rbf"), "memmap")

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_inputs_are_untouched(self, backend: Backend, dtype: str) -> None:
        x, y = (a.copy() for a in FEW.arrays(dtype))
        for kernel in ROADS:
            sums(backend, x, y, kernel)
        for got, want in zip((x, y), FEW.arrays(dtype), strict=True):
            bounds.assert_same_bits(got, want, "input")

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("wrap", [lambda t: t, backends.OnlyDLPack], ids=["torch", "dlpack"])
    def test_torch_and_dlpack(self, backend: Backend, wrap: object, dtype: str) -> None:
        x, y = FEW.arrays(dtype)
        given = grams.arguments(x, y, "rbf") | {"backend": backend.name}
        got = ops.gram_sums(wrap(backend.tensor(x)), wrap(backend.tensor(y)), **given)
        want = ops.gram_sums(backend.array(x), backend.array(y), **given)
        bounds.assert_same_dicts(got.to_dict(), want.to_dict(), "foreign array")


class TestExtremes:
    @pytest.mark.parametrize("case", EXTREMES, ids=str)
    @pytest.mark.parametrize("kernel", [kernel for kernel in grams.KERNELS if kernel != "polynomial"])
    def test_no_worse_than_naive(self, backend: Backend, kernel: str, case: cases.Case) -> None:
        for dtype in set(case.dtypes) & {"fp64", "bf16"}:
            grams.assert_case(backend.gram_sums, case, dtype, kernel)

    @pytest.mark.parametrize("kernel", ["linear", "rbf", "laplacian", "distance"])
    def test_constant_rows_give_exact_values(self, backend: Backend, kernel: str) -> None:
        """Distances of equal rows are 0, whatever is subtracted: not the rounding of large norms."""
        x = np.full((70, 5), 2.5, np.float32)
        got = backend.gram_sums(x, kernel=kernel, bandwidth_x=np.ones(1) if kernel in grams.WITH_WIDTH else None)
        for key in got.keys() - {"n", "offset_x"}:
            assert not np.any(got[key]), key

    def test_features_of_standard_deviation_3e4(self, backend: Backend) -> None:
        """Squares of such features overflow half types, and kernel values squared are 1e20: float32 holds them."""
        x, y = (np.float32(3e4) * a for a in FEW.arrays("fp32"))
        for kernel in ("linear", "rbf", "laplacian", "distance", "cosine"):
            grams.assert_arrays(sums(backend, x, y, kernel), x, y, kernel)

    @pytest.mark.parametrize("kernel", ["linear", "polynomial"])
    def test_overflow_of_kernel_values_is_refused(self, backend: Backend, kernel: str) -> None:
        x = np.array([[1e90], [-1e90], [2e90], [0.0]])
        with pytest.raises(ValueError, match=r"gram_sums: sums of kernel values overflow; scale"):
            ops.gram_sums(backend.array(x), kernel=kernel, backend=backend.name)

    @pytest.mark.parametrize("kernel", grams.KERNELS)
    def test_overflow_of_norms_is_refused(self, isa_level: str, kernel: str) -> None:
        x = np.array([[1e160], [-1e160], [2e160], [1.0]])
        given = {"bandwidth_x": 1e160} if kernel in grams.WITH_WIDTH else {}
        with pytest.raises(ValueError, match=r"gram_sums: .* overflow; scale"):
            gl.gram_sums(x, kernel=kernel, **given, backend="cpu")

    @pytest.mark.parametrize("kernel", [kernel for kernel in grams.KERNELS if kernel not in ("cosine", "polynomial")])
    def test_overflow_of_float32_is_refused(self, isa_level: str, kernel: str) -> None:
        """A row that no sample sees, so that nothing says beforehand that float64 is needed."""
        x = cases.TYPICAL.arrays("fp32")[0][np.arange(grams.ROWS_IN_DOUBLE + 6) % 256, :5]
        x[7] = 1e30
        given = {"bandwidth_x": 1.0} if kernel in grams.WITH_WIDTH else {}
        with pytest.raises(ValueError, match=r"gram_sums: (sums of kernel values|norms of the rows of x) overflow; "):
            gl.gram_sums(x, kernel=kernel, **given, backend="cpu")

    def test_values_beyond_float32_are_computed_in_float64(self, isa_level: str) -> None:
        rows, _ = cases.TYPICAL.arrays("fp32")
        x = rows[np.arange(grams.ROWS_IN_DOUBLE + 6) % 256, :5]
        small, large = (gl.gram_sums(np.float32(scale) * x, backend="cpu") for scale in (2.0**-40, 2.0**40))
        bounds.assert_same_bits(small.x.rows * 2.0**160, large.x.rows, "scaled rows")
        bounds.assert_same_bits(small.x.square * 2.0**320, large.x.square, "scaled square")


class TestNonFinite:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("row", [0, 255, 256, 599])
    def test_raises_and_names_argument_and_rows(
        self, host_backend: Backend, row: int, value: float, dtype: str
    ) -> None:
        rng = np.random.default_rng(0)
        arrays = {name: rng.standard_normal((600, 4)).astype(cases.DTYPES[dtype]) for name in "xy"}
        for name, array in arrays.items():
            kept = array[row, 3]
            array[row, 3] = value
            with pytest.raises(
                ValueError, match=rf"gram_sums: {name} has non-finite values in rows \d+\.\.\d+"
            ) as caught:
                host_backend.gram_sums(*arrays.values())
            first, last = re.findall(r"\d+", str(caught.value).rsplit(" ", 1)[1])
            assert int(first) <= row <= int(last) < 600
            array[row, 3] = kept

    @pytest.mark.parametrize("kernel", ["rbf", "laplacian", "polynomial", "cosine", "distance"])
    def test_propagate(self, backend: Backend, kernel: str) -> None:
        """NaN stays where it was made: no comparison and no exponential may turn it into a number."""
        x, y = (a.copy() for a in FEW.arrays("fp32"))
        x[50, 3] = np.nan
        widths = {f"bandwidth_{side}": np.ones(1) for side in "xy"} if kernel in grams.WITH_WIDTH else {}
        arrays = backend.array(x), backend.array(y)
        got = ops.gram_sums(*arrays, kernel=kernel, **widths, nonfinite="propagate", backend=backend.name)
        assert np.isnan(got.x.square[0])
        assert np.isnan(got.product[0])
        assert np.isnan(got.x.rows[0]).all()
        assert np.isfinite(got.y.rows).all()

    def test_a_zero_row_has_no_cosine(self, backend: Backend) -> None:
        x, y = (a.copy() for a in FEW.arrays("fp32"))
        y[41] = 0
        with pytest.raises(ValueError, match="gram_sums: row 41 of y is zero, and has no cosine"):
            backend.gram_sums(x, y, kernel="cosine")


class TestErrors:
    X, Y = FEW.arrays("fp32")

    @pytest.mark.parametrize(
        ("error", "text", "keywords"),
        [
            (ValueError, "gram_sums: expected kernel to be one of 'linear'", {"kernel": "gauss"}),
            (ValueError, "gram_sums: kernel='rbf' needs bandwidth_x", {"kernel": "rbf"}),
            (ValueError, "gram_sums: kernel='rbf' needs bandwidth_y", {"kernel": "rbf", "bandwidth_x": 1.0}),
            (ValueError, "gram_sums: kernel='linear' has no bandwidth, got bandwidth_y=2", {"bandwidth_y": 2}),
            (ValueError, "gram_sums: expected degree of at least 1, got 0", {"kernel": "polynomial", "degree": 0}),
            (ValueError, "gram_sums: expected degree of at most 64, got 65", {"kernel": "polynomial", "degree": 65}),
            (ValueError, "gram_sums: expected degree of at most 64", {"kernel": "polynomial", "degree": 2**40}),
            (
                TypeError,
                "gram_sums: expected bandwidth_x to be an array of real numbers",
                {"bandwidth_x": "median", "kernel": "rbf", "bandwidth_y": 1.0},
            ),
            (TypeError, "gram_sums: expected degree to be an int", {"kernel": "polynomial", "degree": 2.5}),
            (ValueError, "gram_sums: expected coef0 to be finite", {"kernel": "polynomial", "coef0": np.inf}),
            (ValueError, "gram_sums: expected block_rows of at least 1, got 0", {"block_rows": 0}),
            (TypeError, "gram_sums: expected block_rows to be an int", {"block_rows": 8.0}),
            (ValueError, "gram_sums: expected pairs to be whole numbers of shape (m, 2)", {"pairs": [0, 1]}),
            (ValueError, "gram_sums: expected pairs to be whole numbers of shape (m, 2)", {"pairs": [[0.0, 1.0]]}),
            (ValueError, "gram_sums: expected each pair of blocks once", {"pairs": [[0, 0], [0, 0]]}),
            (ValueError, "gram_sums: expected nonfinite to be one of", {"nonfinite": "warn"}),
            (ValueError, "gram_sums: expected backend to be one of", {"backend": "tpu"}),
        ],
        ids=lambda value: value if isinstance(value, str) else None,
    )
    def test_arguments(self, error: type[Exception], text: str, keywords: dict) -> None:
        with pytest.raises(error, match=re.escape(text)):
            gl.gram_sums(self.X, self.Y, **keywords)

    @pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf, [], [[1.0]], [1.0, 0.0]], ids=str)
    @pytest.mark.parametrize("kernel", grams.WITH_WIDTH)
    def test_bandwidths(self, kernel: str, bad: object) -> None:
        for name, other in (("bandwidth_x", "bandwidth_y"), ("bandwidth_y", "bandwidth_x")):
            with pytest.raises(
                ValueError, match=rf"gram_sums: expected {name} above 0 and finite, of shape \(s,\), got"
            ):
                gl.gram_sums(self.X, self.Y, kernel=kernel, **{name: bad, other: 1.0})

    def test_numbers_of_bandwidths(self) -> None:
        with pytest.raises(ValueError, match="as many bandwidths of x as of y, got 2 of x and 1 of y"):
            gl.gram_sums(self.X, self.Y, kernel="rbf", bandwidth_x=[1.0, 2.0], bandwidth_y=1.0)
        with pytest.raises(ValueError, match="gram_sums: bandwidth_y given without y"):
            gl.gram_sums(self.X, kernel="rbf", bandwidth_x=1.0, bandwidth_y=1.0)

    @pytest.mark.parametrize("pair", [(-1, 0), (1, 0), (0, 4)])
    def test_pairs_that_are_not_there(self, pair: tuple[int, int]) -> None:
        with pytest.raises(ValueError, match=r"gram_sums: expected pairs \(i, j\) of blocks with 0 <= i <= j < 4"):
            gl.gram_sums(self.X, self.Y, block_rows=17, pairs=[pair])
