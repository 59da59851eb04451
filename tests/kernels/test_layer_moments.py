"""Moments of many layers in one pass: every backend against the definition of two arrays, and the algebra of states."""

from __future__ import annotations

import numpy as np
import pytest

from gramless import _core, ops
from gramless.reference import moments as definition
from support import backends, bounds, cases, layer_sums
from support.backends import Backend
from support.layer_sums import Arrays, assert_layers, layers, own_sums, pair_sums, pairs, sums

STEM = "moments"


def assert_same(got: object, want: object, what: str) -> None:
    mine, other = got.flat(), want.flat()
    assert set(mine) == set(other)
    for key in other:
        bounds.assert_same_bits(layer_sums.host(mine[key]), layer_sums.host(other[key]), f"{what}: {key}")


class TestValue:
    @pytest.mark.parametrize("paired", [False, True])
    @pytest.mark.parametrize("dtype", list(cases.DTYPES))
    @pytest.mark.parametrize("n", [1, 64, 65, 600])
    def test_is_that_of_each_pair(self, host_backend: Backend, n: int, dtype: str, paired: bool) -> None:
        xs, ys = layers(dtype, n)
        ys = ys if paired else None
        assert_layers(sums(host_backend, xs, ys), xs, ys)

    @pytest.mark.parametrize("paired", [False, True])
    @pytest.mark.parametrize("n", [1, 300])
    def test_on_a_gpu(self, gpu_backend: Backend, n: int, paired: bool) -> None:
        xs, ys = layers("fp32", n)
        ys = ys if paired else None
        assert_layers(sums(gpu_backend, xs, ys), xs, ys)

    def test_of_one_layer(self, backend: Backend) -> None:
        xs, ys = layers("fp32")
        assert_layers(sums(backend, xs[:1]), xs[:1])
        assert_layers(sums(backend, xs[:1], ys[:1]), xs[:1], ys[:1])

    @pytest.mark.parametrize("offset", [1e2, 1e4])
    def test_at_any_distance_from_zero(self, backend: Backend, offset: float) -> None:
        xs, ys = layers("fp32", offset=offset)
        assert_layers(sums(backend, xs, ys), xs, ys)

    def test_of_several_bands(self, host_backend: Backend) -> None:
        rng = np.random.default_rng(0)
        xs = [rng.standard_normal((9001, p)).astype(np.float32) for p in (3, 5)]
        assert_layers(sums(host_backend, xs), xs)

    def test_integers_are_exact(self, backend: Backend) -> None:
        """Small integers about a zero pivot have no rounding anywhere, so every index mistake shows."""
        rng = np.random.default_rng(0)
        sides = [
            [rng.integers(-1, 2, (257, p)).astype(np.float32) for p in widths]
            for widths in (layer_sums.WIDTHS_X, layer_sums.WIDTHS_Y)
        ]
        zeros = [[np.zeros(x.shape[1]) for x in side] for side in sides]
        for xs, ys in ((sides[0], sides[1]), (sides[0], None)):
            own = {"pivots_x": zeros[0]} | ({"pivots_y": zeros[1]} if ys else {})
            got = sums(backend, xs, ys, **own).flat()
            want = definition.layer_moments(xs, ys, **own)
            assert np.array_equal(layer_sums.host(got["pairs.second"]), want["sxy"])
            assert np.array_equal(layer_sums.host(got["x.second"]), want["sxx"])
            assert np.array_equal(layer_sums.host(got["pairs.weighted_x"]), want["weighted_xy"])
            assert np.array_equal(layer_sums.host(got["pairs.norms"]), want["norms_xy"])

    @pytest.mark.parametrize(("first", "second"), cases.MIXED)
    def test_mixed_dtypes(self, backend: Backend, first: str, second: str) -> None:
        """Of layers that are not float64 the sums are those of their own type, whatever others there are."""
        xs, ys = layers(first)[0], layers(second)[1]
        xs[1] = xs[1].astype(cases.DTYPES[second])
        assert_layers(sums(backend, xs, ys), xs, ys)
        assert_layers(sums(backend, xs), xs)

    def test_rows_that_are_far_longer_in_some_layers(self, backend: Backend) -> None:
        xs, ys = layers("fp32", 600)
        for array, row in ((xs[1], 5), (xs[1], 300), (xs[3], 5), (ys[0], 301), (ys[2], 5)):
            array[row] *= np.float32(300)
        assert_layers(sums(backend, xs, ys), xs, ys)
        assert_layers(sums(backend, xs), xs)

    @pytest.mark.parametrize("dtype", ["bf16", "fp32"])
    @pytest.mark.parametrize("scale", [1e-30, 1e30])
    def test_a_layer_whose_powers_float32_cannot_hold(self, host_backend: Backend, scale: float, dtype: str) -> None:
        xs, ys = layers("fp64")
        xs[1] = xs[1] * scale
        xs, ys = ([x.astype(cases.DTYPES[dtype]) for x in side] for side in (xs, ys))
        state = sums(host_backend, xs, ys)
        truth = definition.layer_moments(xs, ys)
        for key, name in {"pairs.norms": "norms_xy", "x.norms": "norms_xx"}.items():
            for got, want in zip(np.ravel(state.flat()[key]), np.ravel(truth[name]), strict=True):
                bounds.assert_relative(got, want, bounds.bound_for(xs[0].dtype), key)

    @pytest.mark.parametrize("dtype", list(cases.DTYPES))
    def test_every_level(self, isa_level: str, dtype: str) -> None:
        xs, ys = layers(dtype)
        assert_layers(sums(Backend("cpu"), xs, ys), xs, ys)
        assert_layers(sums(Backend("cpu"), xs), xs)


class TestInvariance:
    @pytest.mark.parametrize("paired", [False, True])
    @pytest.mark.parametrize("dtype", ["bf16", "fp64"])
    def test_thread_count_does_not_change_a_bit(self, dtype: str, paired: bool) -> None:
        xs, ys = layers(dtype, 5000)
        found = []
        for count in (1, 2, 7):
            with backends.threads(count):
                found.append(ops.layer_moments(xs, ys if paired else None, backend="cpu"))
        for other in found[1:]:
            assert_same(other, found[0], "another number of threads")

    @pytest.mark.parametrize("others", ["fp32", "fp64"])
    def test_other_layers_do_not_change_a_bit(self, isa_level: str, others: str) -> None:
        xs, ys = layers("fp32")
        more = layers(others, seed=1)[0]
        more[2][7] *= 1000
        cpu = Backend("cpu")
        alone, among = sums(cpu, xs, ys), sums(cpu, [*more, *xs], [*ys, *more])
        for a, b in pairs(alone):
            got, want = pair_sums(among, len(more) + a, b), pair_sums(alone, a, b)
            bounds.assert_same_dicts(got, want, f"layers {a} and {b}")
        for a in range(len(xs)):
            bounds.assert_same_dicts(own_sums(among, len(more) + a), own_sums(alone, a), f"layer {a}")

    def test_self_terms_are_those_of_one_array(self, host_backend: Backend) -> None:
        xs, _ = layers("fp32")
        state = sums(host_backend, xs)
        for place, x in enumerate(xs):
            bounds.assert_same_dicts(own_sums(state, place), host_backend.moments(x), f"layer {place}")

    @pytest.mark.parametrize("layout", backends.LAYOUTS)
    def test_layout_does_not_matter(self, layout: str) -> None:
        xs, ys = layers("bf16")
        want = ops.layer_moments(xs, ys, backend="cpu")
        got = ops.layer_moments([backends.layouts(x)[layout] for x in xs], ys, backend="cpu")
        assert_same(got, want, layout)

    def test_inputs_are_untouched(self, backend: Backend) -> None:
        xs, ys = layers("fp32")
        pivots = [np.ones(x.shape[1]) for x in xs]
        before = [x.copy() for x in [*xs, *ys, *pivots]]
        sums(backend, xs, ys, pivots_x=pivots)
        for x, kept in zip([*xs, *ys, *pivots], before, strict=True):
            bounds.assert_same_bits(x, kept, "an input")

    def test_takes_torch(self) -> None:
        xs, ys = layers("bf16")
        tensors = [[backends.as_torch(x) for x in side] for side in (xs, ys)]
        got = ops.layer_moments(tensors[0], [backends.OnlyDLPack(y) for y in tensors[1]])
        assert_same(got, ops.layer_moments(xs, ys), "tensors")


class TestRefusals:
    @pytest.mark.parametrize("value", [np.nan, np.inf])
    @pytest.mark.parametrize(("side", "place"), [(0, 2), (1, 1)])
    def test_names_the_layer_and_its_rows(self, backend: Backend, side: int, place: int, value: float) -> None:
        sides = layers("fp32", 600)
        sides[side][place][300, 0] = value
        layer = place + len(sides[0]) * side
        with pytest.raises(ValueError, match=rf"layer_moments: layer {layer}: has non-finite values in rows") as caught:
            sums(backend, *sides)
        first, last = str(caught.value).rsplit(" ", 1)[1].split("..")
        assert int(first) <= 300 <= int(last) < 600
        assert caught.value.layer == layer

    def test_propagates(self, backend: Backend) -> None:
        xs, ys = layers("fp32")
        clean = sums(backend, xs, ys)
        xs[1][100, 3] = np.nan
        got = sums(backend, xs, ys, nonfinite="propagate")
        assert np.isnan(pair_sums(got, 1, 0)["sxy"][3]).all()
        assert np.isnan(pair_sums(got, 1, 0)["norms_xy"])
        bounds.assert_same_dicts(pair_sums(got, 0, 1), pair_sums(clean, 0, 1), "another layer")

    def test_overflow(self, host_backend: Backend) -> None:
        x = np.array([[1e160], [-1e160], [2e160], [0.0]])
        with pytest.raises(ValueError, match=r"layer_moments: layer 1: .*overflow"):
            sums(host_backend, [np.ones((4, 2)), x])

    @pytest.mark.parametrize(
        ("xs", "keywords", "match"),
        [
            ([], {}, "at least one layer"),
            ([np.ones((4, 2))], {"ys": []}, "at least one layer"),
            ([np.ones((4, 2)), np.ones((5, 2))], {}, r"xs\[0\] and xs\[1\] with the same number of rows"),
            ([np.ones((4, 2))], {"pivots_x": []}, "expected 1 pivots of xs, got 0"),
            ([np.ones((4, 2))], {"pivots_x": [np.ones(3)]}, r"pivot of xs\[0\] of shape \(2,\)"),
            ([np.ones((4, 2))], {"nonfinite": "ignore"}, "nonfinite"),
        ],
    )
    def test_arguments(self, xs: Arrays, keywords: dict, match: str) -> None:
        with pytest.raises(ValueError, match=match):
            ops.layer_moments(xs, **keywords)

    def test_kernel_checks_what_would_crash_it(self) -> None:
        with pytest.raises(ValueError, match="equal numbers of rows"):
            _core.layer_moments([np.ones((4, 2)), np.ones((5, 2))])
        with pytest.raises(ValueError, match="as many pivots"):
            _core.layer_moments([np.ones((4, 2))], pivots_x=[])
        with pytest.raises(ValueError, match="pivot_x of length 2"):
            _core.layer_moments([np.ones((4, 2))], pivots_x=[np.ones(3)])


class TestStates:
    @pytest.mark.parametrize("paired", [False, True])
    def test_about_other_pivots_and_merged(self, paired: bool) -> None:
        """States of parts of the rows, each about its own pivots, are that of all rows."""
        xs, ys = layers("fp64", offset=2.0)
        parts = [slice(0, 90), slice(90, 300)]
        first, second = (ops.layer_moments([x[p] for x in xs], [y[p] for y in ys] if paired else None) for p in parts)
        whole = ops.layer_moments(xs, ys if paired else None, pivots_x=np_pivots(first.x), **pivots_y(first))
        for got in (first.merge(second), second.added_to(first, first.x.pivot, first.y and first.y.pivot)):
            assert got.n == 300
            for key, value in whole.flat().items():
                scale = np.full_like(value, np.abs(value).max())
                bounds.assert_within_algebra(got.flat()[key], value, scale, key)

    @pytest.mark.parametrize("paired", [False, True])
    def test_in_another_order(self, paired: bool) -> None:
        xs, ys = layers("fp64")
        of_x, of_y = [3, 0, 4, 1, 2], [2, 0, 1]
        got = ops.layer_moments(xs, ys if paired else None).in_order(of_x, of_y)
        want = ops.layer_moments([xs[k] for k in of_x], [ys[k] for k in of_y] if paired else None)
        for key, value in want.flat().items():
            scale = np.full_like(value, np.abs(value).max())
            bounds.assert_within_algebra(got.flat()[key], value, scale, key)


def np_pivots(side: object) -> list[np.ndarray]:
    return [part.pivot for part in side.parts(1)]


def pivots_y(state: object) -> dict:
    return {} if state.y is None else {"pivots_y": np_pivots(state.y)}
