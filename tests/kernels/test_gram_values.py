"""Kernel values of many layers over one batch: every backend against the definition, layer by layer."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from support import backends, bounds, cases, grams
from support.backends import Backend

DTYPES = list(cases.DTYPES)
SIZES = ((1, 1), (2, 5), (31, 33), (48, 16), (65, 49))
WIDTHS = (1, 7, 16, 257)
KERNEL_DTYPES = [(kernel, "fp32") for kernel in grams.KERNELS] + [
    ("linear", "bf16"),
    ("rbf", "fp16"),
    ("distance", "fp64"),
]


def layers(n: int, dtype: str, widths: tuple[int, ...] = WIDTHS, name: str = "") -> list[np.ndarray]:
    return [cases.Case(f"layer{name}{n}_{p}", "", n, p, 1).arrays(dtype)[0] for p in widths]


def keywords(xs: list[np.ndarray], kernel: str, scale: float = 1.5) -> dict:
    found = {"kernel": kernel, "degree": grams.DEGREE, "coef0": grams.COEF0}
    if kernel in grams.WITH_WIDTH:
        found["bandwidths"] = [scale * (grams.typical_distance(x) or 1.0) for x in xs]
    return found


def assert_layers(
    got: dict, xs: list[np.ndarray], zs: list[np.ndarray] | None, kernel: str, scale: float = 1.5
) -> None:
    widths = keywords(xs, kernel, scale).get("bandwidths", [1.0] * len(xs))
    for index, (x, width) in enumerate(zip(xs, widths, strict=True)):
        grams.assert_values(got, x, None if zs is None else zs[index], kernel, width, index)


class TestValue:
    @pytest.mark.parametrize(("kernel", "dtype"), KERNEL_DTYPES)
    def test_above_the_diagonal(self, backend: Backend, kernel: str, dtype: str) -> None:
        for n, _ in SIZES:
            xs = layers(n, dtype)
            assert_layers(backend.gram_values(xs, **keywords(xs, kernel)), xs, None, kernel)

    @pytest.mark.parametrize(("kernel", "dtype"), KERNEL_DTYPES)
    def test_with_other_rows(self, backend: Backend, kernel: str, dtype: str) -> None:
        for n, m in SIZES:
            xs, zs = layers(n, dtype), layers(m, dtype, name="other")
            assert_layers(backend.gram_values(xs, zs, **keywords(xs, kernel)), xs, zs, kernel)

    @pytest.mark.parametrize("kernel", grams.KERNELS)
    def test_every_level(self, isa_level: str, kernel: str) -> None:
        for n, m in SIZES[2:]:
            xs, zs = layers(n, "fp32"), layers(m, "fp32", name="other")
            assert_layers(Backend("cpu").gram_values(xs, **keywords(xs, kernel)), xs, None, kernel)
            assert_layers(Backend("cpu").gram_values(xs, zs, **keywords(xs, kernel)), xs, zs, kernel)

    @pytest.mark.parametrize("scale", [0.4, 30.0])
    @pytest.mark.parametrize("kernel", grams.WITH_WIDTH)
    def test_narrow_and_wide_kernels(self, backend: Backend, kernel: str, scale: float) -> None:
        xs = layers(40, "fp32")
        got = backend.gram_values(xs, **keywords(xs, kernel, scale))
        assert_layers(got, xs, None, kernel, scale)
        assert set(got["offsets"]) == {float(scale > 1)}

    @pytest.mark.parametrize("kernel", ["linear", "rbf", "distance", "cosine"])
    @pytest.mark.parametrize("name", ["offset_1e2", "massive_1e3", "unlike_first_rows", "low_rank"])
    def test_extremes(self, backend: Backend, name: str, kernel: str) -> None:
        case = next(case for case in cases.EXTREMES if case.name == name)
        xs = list(replace(case, n=70).arrays("fp32"))
        assert_layers(backend.gram_values(xs, **keywords(xs, kernel)), xs, None, kernel)

    def test_pivots(self, backend: Backend) -> None:
        """Given ones are subtracted from the rows of both batches as they are."""
        xs, zs = layers(9, "fp64"), layers(5, "fp64", name="other")
        pivots = [np.linspace(-3, 2, x.shape[1]) for x in xs]
        got = backend.gram_values(xs, zs, pivots=pivots)
        for index, (x, z, pivot) in enumerate(zip(xs, zs, pivots, strict=True)):
            want = ((x - pivot) @ (z - pivot).T).ravel()
            scale = (np.abs(x - pivot) @ np.abs(z - pivot).T).ravel()
            bounds.assert_within_algebra(got["values"][index], want, scale, "values about a pivot")

    def test_layers_of_other_dtypes_are_as_wide_as_the_widest(self, backend: Backend) -> None:
        xs = [x.astype(cases.DTYPES[dtype]) for x, dtype in zip(layers(20, "fp64"), DTYPES, strict=True)]
        got = backend.gram_values(xs)
        assert got["values"].dtype == np.float64
        assert backend.gram_values(xs[:3])["values"].dtype == np.float32
        alone = backend.gram_values([x.astype(np.float64) for x in xs], pivots=[np.zeros(x.shape[1]) for x in xs])
        same = backend.gram_values(xs, pivots=[np.zeros(x.shape[1]) for x in xs])
        bounds.assert_same_dicts(same, alone, "mixed layers")


class TestSums:
    @pytest.mark.parametrize("width", [0.5, 2.0, 3.0, 7.0])
    @pytest.mark.parametrize("kernel", grams.WITH_WIDTH)
    def test_sums_of_equal_values_do_not_drift(self, isa_level: str, kernel: str, width: float) -> None:
        """Rounding of one sign adds up: in one sum over the rows of a tile, to 40 times that of a value."""
        x = np.zeros((grams.ROWS_IN_DOUBLE + 6, 1), np.float32)
        x[: len(x) // 2] = 1
        cpu = Backend("cpu")
        found = cpu.gram_values([x], kernel=kernel, bandwidths=[width])
        value = np.float64(found["values"][0].min())
        assert set(found["values"][0].tolist()) == {0.0, value}
        sums_of_rows = len(x) // 2 * value * np.ones(len(x))
        square = np.array([sums_of_rows.sum() * value])
        got = cpu.gram_sums(x, kernel=kernel, bandwidth_x=np.array([width]))
        for what, mine, want in (
            ("rows of values", found["rows"][0], sums_of_rows),
            ("squares of values", found["squares"], square),
            ("rows", got["rows_x"][0], sums_of_rows),
            ("squares", got["sum_xx"], square),
        ):
            bounds.assert_rounded_once(mine, want, np.abs(want), bounds.GRAM_RUN_LOSS, what)

    @pytest.mark.parametrize("kernel", grams.KERNELS)
    def test_are_those_of_gram_sums(self, backend: Backend, kernel: str) -> None:
        xs = layers(60, "fp64")
        given = keywords(xs, kernel)
        got = backend.gram_values(xs, **given)
        widths = given.pop("bandwidths", [None] * len(xs))
        for index, (x, width) in enumerate(zip(xs, widths, strict=True)):
            want = backend.gram_sums(x, **given, bandwidth_x=None if width is None else np.array([width]))
            for key, value in (("rows", want["rows_x"][0]), ("squares", want["sum_xx"][0])):
                scale = np.full(np.shape(value), np.abs(value).max())
                bounds.assert_within_algebra(got[key][index], value, scale, key)
            assert got["offsets"][index] == want["offset_x"][0]

    @pytest.mark.parametrize("count", [1, 2, 9])
    @pytest.mark.parametrize("kernel", ["linear", "rbf"])
    def test_threads_and_the_number_of_layers_change_no_bit(self, kernel: str, count: int) -> None:
        """Few layers share the threads, many have one each."""
        xs = layers(300, "fp32", tuple(range(5, 5 + count)))
        results = []
        for threads in (1, 2, 7):
            with backends.threads(threads):
                results.append(Backend("cpu").gram_values(xs, **keywords(xs, kernel)))
        for result in results[1:]:
            bounds.assert_same_dicts(result, results[0], "threads")
        alone = Backend("cpu").gram_values(xs[-1:], **keywords(xs[-1:], kernel))
        bounds.assert_same_dicts(alone, {key: value[-1:] for key, value in results[0].items()}, "one layer")


class TestLayouts:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("layout", backends.LAYOUTS)
    def test_layout_does_not_matter(self, backend: Backend, layout: str, dtype: str) -> None:
        xs = layers(33, dtype)
        got = backend.gram_values([backends.layouts(x)[layout] for x in xs], **keywords(xs, "rbf"))
        assert_layers(got, xs, None, "rbf")
        if backend.name != "reference":
            bounds.assert_same_dicts(got, backend.gram_values(xs, **keywords(xs, "rbf")), layout)


class TestErrors:
    def test_non_finite_layers_are_named_by_their_place(self, backend: Backend) -> None:
        xs, zs = layers(600, "fp32", (3, 4)), layers(300, "fp32", (3, 4), name="other")
        for arrays, rows in ((xs, "512..599"), (zs, "256..299")):
            bad = arrays[1].copy()
            bad[-1, 2] = np.nan
            kept, arrays[1] = arrays[1], bad
            with pytest.raises(ValueError, match=rf"\b1 has non-finite values in rows {re.escape(rows)}"):
                backend.gram_values(xs, zs)
            assert np.isnan(backend.gram_values(xs, zs, nonfinite="propagate")["squares"][1])
            arrays[1] = kept

    def test_what_does_not_fit_is_refused(self, isa_level: str) -> None:
        from gramless import _core

        xs = layers(8, "fp32", (3, 4))
        for arguments, text in (
            (([],), "at least one layer"),
            (([xs[0], xs[1][:5]],), "equal numbers of rows"),
            ((xs, xs[:1]), "as many others, bandwidths and pivots as layers"),
            ((xs, xs[::-1]), "the same features in others"),
        ):
            with pytest.raises(ValueError, match=text):
                _core.gram_values(*arguments)
        for given, text in (
            ({"kernel": "rbf"}, "expected a bandwidth"),
            ({"kernel": "rbf", "bandwidths": [1.0]}, "as many others, bandwidths and pivots"),
            ({"kernel": "rbf", "bandwidths": [1.0, 0.0]}, "above 0"),
            ({"pivots": [np.zeros(3), np.zeros(5)]}, "pivots of the widths"),
            ({"kernel": "gauss"}, "unknown kernel"),
        ):
            with pytest.raises(ValueError, match=text):
                _core.gram_values(xs, **given)
