"""Grids of whole arrays: moments and tiles of kernel matrices give the same values, and `explain` tells which runs."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gramless as gl
from gramless import ops
from gramless.layers import cka_matrix as one_shot
from gramless.layers import exact, minibatch, tiles
from gramless.similarity import gram_sums_pass
from support import backends, bounds, cases, grids, memory
from support.backends import Backend

ESTIMATORS = ("unbiased", "biased")


@pytest.fixture
def way(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Make grids go one way, whatever its cost."""
    chosen = one_shot.plan_grid

    def take(path: str) -> None:
        monkeypatch.setattr(one_shot, "plan_grid", lambda *a, **k: dataclasses.replace(chosen(*a, **k), path=path))

    return take


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 16 rows, the smallest."""
    monkeypatch.setattr(tiles, "VALUES_BYTES", 1)


def assert_values(got: gl.SimilarityMatrix, want: gl.SimilarityMatrix, bound: float) -> None:
    assert (got.layers_x, got.layers_y, got.n, got.measure) == (want.layers_x, want.layers_y, want.n, want.measure)
    assert got.stderr is None
    for a, b in zip(got.values.ravel(), want.values.ravel(), strict=True):
        bounds.assert_relative(a, b, bound)


class TestTiles:
    @pytest.mark.parametrize("dtype", list(cases.DTYPES))
    @pytest.mark.parametrize("estimator", ESTIMATORS)
    def test_are_moments(self, backend: Backend, way: Any, estimator: str, dtype: str) -> None:
        sides = grids.layers(dtype)
        keywords = {"estimator": estimator, "backend": backend.name}
        way("moments")
        want = gl.cka_matrix(*sides, **keywords)
        way("gram")
        assert_values(gl.cka_matrix(*sides, **keywords), want, bounds.bound_for(cases.DTYPES[dtype]))

    @pytest.mark.parametrize("dtype", ["bf16", "fp32", "fp64"])
    @pytest.mark.parametrize("estimator", ESTIMATORS)
    @pytest.mark.usefixtures("small_blocks")
    def test_in_blocks_are_moments(self, backend: Backend, way: Any, estimator: str, dtype: str) -> None:
        sides = grids.layers(dtype, n=70)
        keywords = {"estimator": estimator, "backend": backend.name}
        way("moments")
        want = gl.cka_matrix(*sides, **keywords)
        way("gram")
        assert_values(gl.cka_matrix(*sides, **keywords), want, bounds.bound_for(cases.DTYPES[dtype]))

    @pytest.mark.parametrize("blocks", [False, True])
    @pytest.mark.parametrize("estimator", ESTIMATORS)
    @pytest.mark.parametrize(
        "width",
        [{}, {"bandwidth": 2.5}, {"bandwidth": 300.0}, {"bandwidth": "kornblith", "bandwidth_scale": 0.5}],
        ids=str,
    )
    def test_of_rbf_are_the_pairwise_measure(
        self, estimator: str, width: dict, blocks: bool, request: pytest.FixtureRequest
    ) -> None:
        """The second width is far above all distances, so that kernel values are near 1."""
        if blocks:
            request.getfixturevalue("small_blocks")
        xs, ys = grids.layers("fp32", n=70)
        got = gl.cka_matrix(xs, ys, kernel="rbf", estimator=estimator, **width).values
        for i, x in enumerate(xs.values()):
            for j, y in enumerate(ys.values()):
                want = gl.cka(x, y, kernel="rbf", estimator=estimator, **width)
                bounds.assert_relative(got[i, j], want, bounds.FIRST_FP32, f"cell {i}, {j}")

    def test_of_rows_beyond_the_sample_of_a_rule(self) -> None:
        """Above 4096 rows the rule takes a sample, the same one as for two arrays alone."""
        rng = np.random.default_rng(0)
        x = rng.standard_normal((4200, 3)).astype(np.float32)
        y = x[:, :2] + rng.standard_normal((4200, 2)).astype(np.float32)
        got = gl.cka_matrix([x], [y], kernel="rbf").values[0, 0]
        bounds.assert_relative(got, gl.cka(x, y, kernel="rbf"), bounds.FIRST_FP32)

    @pytest.mark.parametrize("estimator", ESTIMATORS)
    @pytest.mark.parametrize("offset", bounds.FIRST_OFFSETS)
    def test_of_any_offset(self, way: Any, estimator: str, offset: float) -> None:
        xs, ys = ({k: v + np.float32(offset) for k, v in side.items()} for side in grids.layers("fp32", n=70))
        way("moments")
        wide = [{k: v.astype(np.float64) for k, v in side.items()} for side in (xs, ys)]
        want = gl.cka_matrix(*wide, estimator=estimator)
        way("gram")
        assert_values(gl.cka_matrix(xs, ys, estimator=estimator), want, bounds.FIRST_FP32)

    @pytest.mark.parametrize("estimator", ESTIMATORS)
    @pytest.mark.parametrize("kernel", ["linear", "rbf"])
    def test_of_one_model(self, way: Any, kernel: str, estimator: str) -> None:
        xs, _ = grids.layers("fp32")
        way("gram")
        matrix = gl.cka_matrix(xs, kernel=kernel, estimator=estimator)
        assert (np.diag(matrix.values) == 1).all()
        bounds.assert_same_bits(matrix.values.T.copy(), matrix.values, "the transpose")

    @pytest.mark.parametrize("estimator", ESTIMATORS)
    @pytest.mark.parametrize("kernel", ["linear", "rbf"])
    @pytest.mark.usefixtures("small_blocks")
    def test_of_dead_layers(self, way: Any, kernel: str, estimator: str) -> None:
        xs, ys = grids.layers("fp32")
        xs["a"] = np.full_like(xs["a"], 0.1)
        way("gram")
        with pytest.warns(RuntimeWarning, match="cka_matrix: no CKA, NaN instead: layer x/a is constant") as caught:
            values = gl.cka_matrix(xs, ys, kernel=kernel, estimator=estimator).values
        assert [warning.filename for warning in caught] == [__file__]
        assert np.array_equal(np.isnan(values), [[False, False], [True, True], [False, False]])

    @pytest.mark.parametrize("kernel", ["linear", "rbf"])
    @pytest.mark.usefixtures("small_blocks")
    def test_thread_count_does_not_change_a_bit(self, way: Any, kernel: str) -> None:
        way("gram")
        sides = grids.layers("fp32", n=70)
        results = []
        for count in (1, 2, 7):
            with backends.threads(count):
                results.append(gl.cka_matrix(*sides, kernel=kernel, estimator="biased").values)
        for result in results[1:]:
            bounds.assert_same_bits(result, results[0], "another number of threads")

    @pytest.mark.usefixtures("small_blocks")
    def test_refuse_rows_that_are_not_finite(self, way: Any) -> None:
        way("gram")
        for value in (np.nan, np.inf):
            xs, ys = grids.layers("fp32")
            ys["in"][50, 2] = value
            with pytest.raises(ValueError, match=r"cka_matrix: layer y/in:? has non-finite values in rows") as caught:
                gl.cka_matrix(xs, ys)
            first, last = map(int, re.search(r"rows (\d+)\.\.(\d+)", str(caught.value)).groups())
            assert first <= 50 <= last < first + 16

    @pytest.mark.usefixtures("small_blocks")
    def test_progress(self, way: Any, capsys: pytest.CaptureFixture) -> None:
        """Bars go to the standard error, so that what a program prints stays its own."""
        way("gram")
        want = gl.cka_matrix(*grids.layers()).values
        assert capsys.readouterr() == ("", "")
        bounds.assert_same_bits(gl.cka_matrix(*grids.layers(), progress=True).values, want, "with a progress bar")
        out, err = capsys.readouterr()
        assert out == ""
        assert "pairs of blocks" in err
        gl.cka_matrix(*grids.layers(), progress=True, batch_size=20)
        assert "batches" in capsys.readouterr().err


def spied(monkeypatch: pytest.MonkeyPatch, n: int) -> list[str]:
    """What is called with the n rows of the data, in order."""
    calls: list[str] = []

    def spy(owner: Any, name: str, label: str, matters: Callable[..., bool] = lambda *_: True) -> None:
        real = getattr(owner, name)

        def call(*arguments: Any, **keywords: Any) -> Any:
            if matters(*arguments):
                calls.append(label)
            return real(*arguments, **keywords)

        monkeypatch.setattr(owner, name, call)

    spy(exact.ExactGrid, "add", "grid of moments")
    spy(minibatch.MinibatchGrid, "add", "batch")
    spy(tiles, "gram_values", "gram_values")
    spy(gram_sums_pass.GramSums, "run", "gram_sums")
    # kernel values have moments, too
    spy(ops, "moments", "moments", lambda x, *_: len(x) == n)
    return calls


def correlated(n: int, *widths: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    latent = rng.standard_normal((n, 3))
    return [(latent @ rng.standard_normal((3, p)) + rng.standard_normal((n, p))).astype(np.float32) for p in widths]


class TestExplain:
    @pytest.mark.parametrize(
        ("n", "width", "keywords", "ran"),
        [
            (300, 20, {}, ["grid of moments"]),
            (40, 200, {}, ["gram_values"]),
            # a little above, and a little below, where tiles take half the flops
            (105, 100, {}, ["grid of moments"]),
            (98, 100, {}, ["gram_values"]),
            (40, 200, {"estimator": "biased"}, ["gram_values"]),
            (40, 200, {"estimator": "feature_corrected"}, ["grid of moments"]),
            (300, 20, {"kernel": "rbf", "bandwidth": 3.0}, ["gram_values"]),
            (300, 20, {"kernel": "rbf"}, ["gram_values"] * 2),
            (300, 400, {"max_bytes": 4 << 20}, ["gram_values"]),
            (103, 20, {"batch_size": 50}, ["batch", "gram_values"] * 2),
            (106, 20, {"batch_size": 50, "kernel": "rbf"}, ["batch", "gram_values", "gram_values"] * 3),
        ],
        ids=str,
    )
    def test_path_of_a_grid_is_what_runs(
        self, n: int, width: int, keywords: dict, ran: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        xs = correlated(n, width, width + 3)
        path = gl.explain("cka_matrix", xs, **keywords).path
        calls = spied(monkeypatch, n)
        gl.cka_matrix(xs, **keywords)
        assert [call for call in calls if call != "moments"] == ran
        assert ("gram_values" in path) == ("gram_values" in ran)
        assert ("moments of 2 layers and 1 pairs" in path) == ("grid of moments" in ran)
        assert (f"{ran.count('batch')} batches" in path) == ("batch" in ran)

    @pytest.mark.parametrize(
        ("n", "keywords"),
        [
            (30, {}),
            (29, {"estimator": "biased"}),
            (31, {}),
            (29, {"estimator": "feature_corrected"}),
            (200, {"kernel": "rbf"}),
            (200, {"kernel": "laplacian", "bandwidth": 2.0}),
            (200, {"kernel": "distance"}),
        ],
        ids=str,
    )
    @pytest.mark.parametrize("measure", ["hsic", "cka", "cka_distance"])
    def test_path_of_a_measure_is_what_runs(
        self, measure: str, n: int, keywords: dict, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        x, y = correlated(n, 20, 40)
        found = gl.explain(measure, x, y, **keywords)
        calls = spied(monkeypatch, n)
        value = getattr(gl, measure)(x, y, **keywords)
        assert np.isfinite(value)
        ran = [call for call in calls if call in ("moments", "gram_sums")]
        assert len(ran) == 1
        assert found.path.startswith(f"{measure} <- {ran[0]} ")

    def test_shows_the_cost_of_both_ways(self) -> None:
        """The figures that the choice is made by, whichever way it goes."""
        n, widths = 300, (20, 23)
        xs = correlated(n, *widths)
        found = gl.explain("cka_matrix", xs)
        by_moments = n * (20 * 21 + 23 * 24 + 2 * 20 * 23)
        by_tiles = n * n * 43 + n * (n - 1) * 3
        assert f"moments {by_moments:.3g} flops" in found.why
        assert f"tiles {by_tiles:.3g} flops" in found.why
        assert "blocks of 300 rows" in found.why
        assert found.flops == by_moments
        assert found.flops < 2 * by_tiles
        few = gl.explain("cka_matrix", correlated(10, 200, 203))
        assert few.flops == 10 * 10 * 403 + 10 * 9 * 3
        assert "gram: less than half the flops of moments" in few.why
        assert "moments" not in gl.explain("cka_matrix", xs, kernel="rbf").why.split("(")[1]

    def test_cost_of_batches(self) -> None:
        xs = correlated(107, 20, 23)
        found = gl.explain("cka_matrix", xs, batch_size=50)
        sizes = (50, 50, 7)
        assert found.flops == sum(n * n * 43 + n * (n - 1) * 3 for n in sizes)
        assert found.bytes_read == 107 * 43 * 4
        assert found.path.endswith("3 batches of 50 rows")

    def test_blocks_are_read_again(self, small_blocks: None) -> None:
        xs = correlated(64, 300, 300)
        assert gl.explain("cka_matrix", xs).bytes_read == 4 * 64 * 600 * 4
        assert gl.explain("cka_matrix", xs, kernel="rbf").bytes_read == (4 + 1) * 64 * 600 * 4

    @pytest.mark.parametrize(
        ("arguments", "keywords"),
        [
            ((), {"batch_size": 3}),
            ((), {"batch_size": 20, "estimator": "biased"}),
            ((), {"kernel": "laplacian"}),
            ((), {"kernel": "rbf", "bandwidth": -1}),
            ((), {"kernel": "rbf", "estimator": "feature_corrected"}),
            ((), {"estimator": "debiased"}),
            ((), {"backend": "tpu"}),
            ((), {"max_bytes": 0}),
            (({"a": np.zeros((3, 4))},), {}),
            (({"a": np.zeros((9, 4)), "b": np.zeros((8, 4))},), {}),
            (({},), {}),
        ],
        ids=str,
    )
    def test_refuses_what_the_grid_refuses(self, arguments: tuple, keywords: dict) -> None:
        xs = arguments[0] if arguments else correlated(60, 5, 6)
        with pytest.raises((TypeError, ValueError)) as of_grid:
            gl.cka_matrix(xs, **keywords)
        with pytest.raises(of_grid.type, match=f"^{re.escape(str(of_grid.value))}$"):
            gl.explain("cka_matrix", xs, **keywords)

    @pytest.mark.parametrize(
        "keywords",
        [
            {"kernel": "rbf", "bandwidth": "mode"},
            {"kernel": "linear", "bandwidth": 1.0},
            {"kernel": "gauss"},
            {"kernel": "rbf", "estimator": "feature_corrected"},
            {"backend": "tpu"},
        ],
        ids=str,
    )
    def test_refuses_what_the_measure_refuses(self, keywords: dict) -> None:
        for x in (correlated(60, 5)[0], correlated(3, 5)[0]):
            with pytest.raises((TypeError, ValueError)) as of_measure:
                gl.cka(x, x, **keywords)
            with pytest.raises(of_measure.type, match=f"^{re.escape(str(of_measure.value))}$"):
                gl.explain("cka", x, x, **keywords)


class TestMemory:
    def test_too_large_either_way(self) -> None:
        with pytest.raises(MemoryError, match=r"cka_matrix: .* max_bytes is 1,000 bytes"):
            gl.cka_matrix(correlated(40, 200, 200), max_bytes=1000)
        with pytest.raises(MemoryError, match=r"cka_matrix: this grid needs [\d,]+ bytes .* max_bytes is 1,000 bytes"):
            gl.cka_matrix(correlated(40, 20, 20), kernel="rbf", max_bytes=1000)

    @pytest.mark.parametrize(
        ("n", "p", "keywords"),
        [
            (256, 768, {"batch_size": 256}),
            (4000, 200, {"kernel": "rbf", "bandwidth": 20.0}),
            (2500, 3000, {"kernel": "rbf", "max_bytes": 100 << 20}),
            (1500, 4000, {"estimator": "biased", "max_bytes": 100 << 20}),
        ],
        ids=str,
    )
    def test_explain_says_what_is_measured(self, n: int, p: int, keywords: dict) -> None:
        """With two threads, of which each packs the rows of a layer."""
        count = 8
        prepare = f"""
rng = np.random.default_rng(0)
xs = [rng.standard_normal(({n}, {p}), dtype=np.float32) for _ in range({count})]
"""
        call = "gl.cka_matrix([x{} for x in xs], **{})"
        small = keywords | ({"batch_size": 30} if "batch_size" in keywords else {})
        peak = memory.peak_extra_bytes(prepare, call.format("", keywords), call.format("[:60, :9]", small), 2)
        with backends.threads(2):
            said = gl.explain("cka_matrix", [np.broadcast_to(np.float32(0), (n, p))] * count, **keywords)
        assert "gram_values" in said.path
        assert peak <= bounds.MEMORY_FACTOR * said.peak_extra_bytes + bounds.MEMORY_SLACK_BYTES
        assert said.peak_extra_bytes <= 2 * peak + bounds.MEMORY_SLACK_BYTES
