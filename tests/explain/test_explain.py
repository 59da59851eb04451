"""What `explain` says of each way to a measure is what runs, what that reads, and what it takes of memory."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import gramless as gl
from gramless import ops
from gramless.explain import costs
from gramless.ops import backends as ops_backends
from gramless.similarity import bandwidth_rules, pair_sampling, permutation_null, random_features
from support import backends, bounds, cases, memory
from support.backends import as_torch

RBF = {"kernel": "rbf", "bandwidth": 3.0}
NULL = {"null": "permutation", "n_permutations": 5}
NARROW = cases.Case("explain_narrow", "", 70, 6, 4)
# linear kernels go by tiles
WIDE = cases.Case("explain_wide", "", 14, 30, 20)
# two blocks of rows
BLOCKS = cases.Case("explain_blocks", "", 900, 1300, 1200)


@dataclass
class Work:
    """What the kernels were given: flops, and bytes of the rows that they read."""

    flops: int = 0
    read: int = 0
    stems: tuple[str, ...] = ()

    def add(self, stem: str, flops: int, read: int) -> None:
        self.flops += int(flops)
        self.read += int(read)
        self.stems += (stem,)


def row_bytes(*arrays: Any) -> int:
    return sum(a.shape[1] * a.dtype.itemsize for a in arrays)


def of_moments(work: Work, x: Any, y: Any, *, self_terms: bool = True, **_: Any) -> None:
    (n, p), q = x.shape, y.shape[1]
    own = p * (p + 1) + q * (q + 1) if self_terms else 0
    work.add("moments", n * (own + 2 * p * q), n * row_bytes(x, y))


def of_gram_sums(
    work: Work, x: Any, y: Any, *, block_rows: int | None = None, pairs: Any = None, backend: str, **_: Any
) -> None:
    """Every pair of blocks is multiplied, half of it on the diagonal; blocks are packed when they change."""
    n, (p, q) = x.shape[0], (x.shape[1], y.shape[1])
    size = block_rows or ops_backends.gram_block_rows(ops_backends.resolve("gram_sums", backend).backend, p, q)
    count = -(-n // size)
    rows = [min(size, n - k * size) for k in range(count)]
    flops, read, packed = 0, 0, -1
    blocks = np.stack(np.triu_indices(count), axis=1) if pairs is None else pairs
    for i, j in blocks:
        flops += (1 if i == j else 2) * rows[i] * rows[j] * (p + q)
        read += (rows[i] if i != packed else 0) + (rows[j] if i != j else 0)
        packed = i
    work.add("gram_sums", flops, read * row_bytes(x, y))


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    """Count the work of the kernels, of random features and of kernel matrices that are held."""
    done = Work()

    def spy(owner: Any, name: str, count: Callable[..., None]) -> None:
        real = getattr(owner, name)

        def call(*arguments: Any, **keywords: Any) -> Any:
            count(*arguments, **keywords)
            return real(*arguments, **keywords)

        monkeypatch.setattr(owner, name, call)

    spy(ops, "moments", lambda *a, **k: of_moments(done, *a, **k))
    spy(ops, "gram_sums", lambda *a, **k: of_gram_sums(done, *a, **k))
    resolve, held = ops_backends.resolve_gram_values, permutation_null._by_held_kernels

    def of_values(backend: str) -> Any:
        chosen = resolve(backend)

        def kernel(layers: list, **keywords: Any) -> dict:
            for x in layers:
                done.add("gram_values", len(x) ** 2 * x.shape[1], len(x) * row_bytes(x))
            return chosen.kernel(layers, **keywords)

        return ops_backends.Choice(chosen.backend, chosen.why, kernel)

    def looked_up(request: Any, state: Any, x: Any, y: Any) -> Any:
        hsic_of = held(request, state, x, y)

        def counted(order: Any) -> float:
            done.add("look-ups", state.n**2, 0)
            return hsic_of(order)

        return counted

    monkeypatch.setattr(ops_backends, "resolve_gram_values", of_values)
    monkeypatch.setattr(permutation_null, "_by_held_kernels", looked_up)
    return done


def features_spied(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are read once, for their features: the moments read these."""
    real, moments = random_features.RandomFeatures._features, ops.moments

    def features(self: Any, function: str, name: str, x: Any, first: int) -> Any:
        work.add("features", 2 * x.shape[0] * x.shape[1] * self._frequencies, x.shape[0] * row_bytes(x))
        return real(self, function, name, x, first)

    def of_features(x: Any, y: Any, **keywords: Any) -> Any:
        before = work.read
        state = moments(x, y, **keywords)
        work.read = before
        return state

    monkeypatch.setattr(random_features.RandomFeatures, "_features", features)
    monkeypatch.setattr(ops, "moments", of_features)


class TestWork:
    """Flops and bytes read, to the last one."""

    @pytest.mark.parametrize(
        ("case", "keywords", "path"),
        [
            (NARROW, {}, "moments (70, 6) float32, (70, 4) float32"),
            (NARROW, {"estimator": "feature_corrected"}, "moments (70, 6)"),
            (WIDE, {}, "gram_sums linear (14, 30) float32, (14, 20) float32"),
            (NARROW, RBF, "gram_sums rbf (70, 6)"),
            (NARROW, {"kernel": "rbf"}, "gram_sums rbf (70, 6)"),
            (NARROW, {"kernel": "laplacian", "bandwidth": "kornblith"}, "gram_sums laplacian (70, 6)"),
            (NARROW, {"kernel": "polynomial", "degree": 2, "coef0": 0.5}, "gram_sums polynomial (70, 6)"),
            (BLOCKS, {"kernel": "distance"}, "gram_sums distance (900, 1300)"),
            (NARROW, NULL, "moments (70, 6) float32, (70, 4) float32, 5 permutations by moments"),
            (WIDE, NULL, "gram_sums linear (14, 30) float32, (14, 20) float32, 5 permutations by matrices"),
            (NARROW, NULL | RBF, "gram_sums rbf (70, 6) float32, (70, 4) float32, 5 permutations by matrices"),
            (NARROW, NULL | {"kernel": "rbf", "estimator": "biased"}, "gram_sums rbf (70, 6)"),
            (NARROW, {"fraction": 0.5}, "gram_sums linear of 187 batches of 4 rows, 0.501 of all pairs, of (70, 6)"),
            (NARROW, RBF | {"fraction": 0.5}, "gram_sums rbf of 187 batches of 4 rows, 0.501 of all pairs, of (70, 6)"),
            (NARROW, {"kernel": "rbf", "fraction": 1}, "gram_sums rbf of all rows of (70, 6) float32, (70, 4) float32"),
            (WIDE, {"fraction": 0.9}, "gram_sums linear of all rows of (14, 30)"),
            (NARROW, RBF | {"method": "rff", "n_features": 16}, "moments of 16 random features of (70, 6)"),
            (NARROW, {"kernel": "rbf", "method": "rff"}, "moments of 512 random features of (70, 6)"),
        ],
        ids=str,
    )
    @pytest.mark.parametrize("measure", ["hsic", "cka"])
    def test_is_what_runs(
        self,
        measure: str,
        case: cases.Case,
        keywords: dict,
        path: str,
        work: Work,
        backend: backends.Backend,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        x, y = case.arrays("fp32")
        keywords = keywords | {"backend": backend.name}
        said = gl.explain(measure, x, y, **keywords)
        assert work == Work(), "explaining is no work"
        if keywords.get("method") == "rff":
            features_spied(work, monkeypatch)
        getattr(gl, measure)(x, y, **keywords)
        assert (said.flops, said.bytes_read) == (work.flops, work.read)
        assert said.path.startswith(f"{measure} <- {path}")
        assert said.backend == backend.name
        assert said.why.startswith("asked for")

    @pytest.mark.parametrize(
        ("keywords", "path"),
        [
            ({}, "gram_sums rbf (70, 6) float32, (70, 4) float32, 999 permutations by matrices"),
            ({"n_permutations": 3}, "gram_sums rbf (70, 6) float32, (70, 4) float32, 3 permutations by matrices"),
            ({"null": "gamma"}, "gram_sums rbf (70, 6) float32, (70, 4) float32, gamma null"),
            (
                {"kernel": "linear", "n_permutations": 3},
                "moments (70, 6) float32, (70, 4) float32, 3 permutations by m",
            ),
            ({"kernel": "linear", "null": "gamma"}, "moments (70, 6) float32, (70, 4) float32, gamma null"),
        ],
        ids=str,
    )
    def test_of_a_test_is_what_runs(self, keywords: dict, path: str, work: Work) -> None:
        x, y = NARROW.arrays("fp32")
        said = gl.explain("hsic_test", x, y, **keywords)
        gl.hsic_test(x, y, **keywords)
        assert (said.flops, said.bytes_read) == (work.flops, work.read)
        assert said.path.startswith(f"hsic_test <- {path}")

    @pytest.mark.parametrize("kernel", ["rbf", "linear"])
    def test_beyond_the_rows_that_are_held(self, kernel: str, work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(permutation_null, "HELD_ROWS", 13)
        x, y = WIDE.arrays("fp64")
        said = gl.explain("cka", x, y, kernel=kernel, **NULL)
        gl.cka(x, y, kernel=kernel, **NULL)
        assert (said.flops, said.bytes_read) == (work.flops, work.read)
        assert work.stems.count("gram_sums") == 1 + 5 + 1
        assert said.path.endswith("5 permutations by tiles")
        assert said.why.endswith("; kernel matrices are held up to 13 rows")

    def test_of_rows_in_several_chunks(self, work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
        """Of random features."""
        for module in (random_features, costs):
            monkeypatch.setattr(module, "CHUNK_ROWS", 30)
        features_spied(work, monkeypatch)
        x, y = NARROW.arrays("fp16", "fp64")
        keywords = RBF | {"method": "rff", "n_features": 8}
        gl.cka(x, y, **keywords)
        assert work.stems.count("features") == 2 * 3
        said = gl.explain("cka", x, y, **keywords)
        assert (said.flops, said.bytes_read) == (work.flops, work.read)

    @pytest.mark.parametrize("way", [{}, {"fraction": 0.3}, {"method": "rff"}, {"null": "permutation"}], ids=str)
    def test_of_a_rule_of_a_sample(self, way: dict, work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
        for module in (bandwidth_rules, costs):
            monkeypatch.setattr(module, "EXACT_ROWS", 64)
        if way.get("method") == "rff":
            features_spied(work, monkeypatch)
        x, y = NARROW.arrays("fp32")
        gl.cka(x, y, kernel="rbf", **way)
        said = gl.explain("cka", x, y, kernel="rbf", **way)
        assert (said.flops, said.bytes_read) == (work.flops, work.read)
        given = gl.explain("cka", x, y, kernel="rbf", bandwidth=2.0, **way)
        assert said.flops - given.flops == 64 * 64 * 10
        assert said.bytes_read - given.bytes_read == 64 * 10 * 4
        assert said.path == given.path

    @pytest.mark.parametrize("fraction", [0.001, 0.2, 0.77, 1.0])
    def test_batches_are_those_of_the_estimate(self, fraction: float) -> None:
        x, y = NARROW.arrays("fp32")
        found = gl.cka(x, y, fraction=fraction)
        path = gl.explain("cka", x, y, fraction=fraction).path
        if found.n_batches == 1:
            assert "gram_sums linear of all rows of" in path
        else:
            assert f"{found.n_batches} batches of {pair_sampling.plan_batches(70, fraction).sizes[0]} rows" in path
            assert f"{found.fraction:.3g} of all pairs" in path

    @pytest.mark.parametrize("way", [RBF, NULL | RBF, {"fraction": 0.3}, RBF | {"method": "rff"}], ids=str)
    def test_of_torch_arrays_is_the_same(self, way: dict) -> None:
        for dtype in cases.DTYPES:
            arrays = NARROW.arrays(dtype)
            assert gl.explain("cka", *map(as_torch, arrays), **way) == gl.explain("cka", *arrays, **way)

    def test_of_one_pass(self, work: Work) -> None:
        x, y = BLOCKS.arrays("fp32")
        ops.gram_sums(x, y, kernel="distance", backend="auto")
        said = gl.explain("gram_sums", x, y, kernel="distance")
        assert (said.flops, said.bytes_read) == (work.flops, work.read)
        three = gl.explain("gram_sums", x, y, kernel="rbf", bandwidth_x=[1.0, 2.0, 3.0], bandwidth_y=[1.0, 2.0, 3.0])
        assert (three.flops, three.bytes_read) == (work.flops, work.read)
        assert three.peak_extra_bytes > said.peak_extra_bytes + 2 * 2 * 16 * len(x)


class TestBytes:
    @pytest.mark.parametrize(
        ("measure", "n", "p", "q", "keywords"),
        [
            ("cka", 1500, 1500, 900, {}),
            ("hsic", 3000, 700, 900, {"kernel": "rbf"}),
            ("cka", 9000, 100, 300, RBF | {"method": "rff"}),
            ("cka", 3000, 2000, 300, RBF | {"method": "rff", "n_features": 64}),
            ("cka", 8200, 300, 100, {"kernel": "distance", "fraction": 0.9}),
            ("hsic", 3000, 700, 300, {"kernel": "distance", "fraction": 1}),
            ("cka", 1500, 1200, 900, NULL),
            ("cka", 2500, 100, 700, NULL | {"kernel": "distance"}),
            ("hsic_test", 1500, 100, 90, {"kernel": "polynomial", "n_permutations": 2}),
            ("hsic_test", 4200, 1200, 900, {"kernel": "distance", "n_permutations": 1}),
            ("hsic_test", 4000, 1200, 900, {"kernel": "distance", "null": "gamma"}),
        ],
        ids=str,
    )
    def test_are_what_is_measured(self, measure: str, n: int, p: int, q: int, keywords: dict) -> None:
        prepare = f"""
rng = np.random.default_rng(0)
x = rng.standard_normal(({n}, {p}), dtype=np.float32)
y = rng.standard_normal(({n}, {q}), dtype=np.float32)
"""
        keywords = keywords | ({"bandwidth": 30.0} if "bandwidth" in keywords else {})
        small = keywords | ({"n_features": 8} if "method" in keywords else {})
        call = f"gl.{measure}(x{{0}}, y{{0}}, **{{1}})"
        peak = memory.peak_extra_bytes(prepare, call.format("", keywords), call.format("[:300, :20]", small), 2)
        x, y = (np.broadcast_to(np.float32(0), (n, width)) for width in (p, q))
        with backends.threads(2):
            said = gl.explain(measure, x, y, **keywords).peak_extra_bytes
        assert peak <= bounds.MEMORY_FACTOR * said + bounds.MEMORY_SLACK_BYTES
        assert said <= 2 * peak + bounds.MEMORY_SLACK_BYTES


X, Y = NARROW.arrays("fp32")


class TestErrors:
    @pytest.mark.parametrize(
        ("measure", "keywords"),
        [
            *[(measure, keywords) for measure in ("hsic", "cka") for keywords in (
                {"method": "nystrom"},
                {"method": "rff"},
                {"method": "rff", "kernel": "rbf", "n_features": 7},
                {"method": "rff", "kernel": "rbf", "estimator": "feature_corrected"},
                {"method": "rff", "kernel": "rbf", "fraction": 0.5},
                {"n_features": 64.0},
                {"fraction": 0},
                {"fraction": 1.5},
                {"fraction": "half"},
                {"fraction": 0.5, "estimator": "biased"},
                {"fraction": 0.5, "null": "permutation"},
                {"null": "gamma"},
                {"null": 3},
                {"null": "permutation", "estimator": "feature_corrected"},
                {"n_permutations": 0},
                {"n_permutations": 9.5},
                {"n_permutations": 9},
                {"seed": -1},
                {"degree": 0},
                {"coef0": np.nan},
                {"kernel": "rbf", "bandwidth_scale": 0},
                {"estimator": "debiased"},
                {"backend": "tpu"},
                {"batch_size": 10},
            )],
            *[("hsic_test", keywords) for keywords in (
                {"null": "normal"},
                {"null": None},
                {"n_permutations": 0},
                {"null": "gamma", "n_permutations": 9},
                {"seed": None},
                {"kernel": "sigmoid"},
                {"kernel": "linear", "bandwidth": 1.0},
                {"bandwidth": "mean"},
                {"backend": "tpu"},
                {"estimator": "biased"},
                {"fraction": 0.5},
            )],
            *[("cka_distance", keywords) for keywords in ({"fraction": 0.5}, {"null": "permutation"}, {"degree": 0})],
            ("moments", {"kernel": "linear"}),
            ("gram_sums", {"kernel": "linear", "bandwidth_x": 1.0}),
            ("gram_sums", {"kernel": "rbf", "bandwidth_x": -1.0}),
            ("gram_sums", {"kernel": "polynomial", "degree": 99}),
            ("gram_sums", {"estimator": "biased"}),
        ],
        ids=str,
    )  # fmt: skip
    def test_are_those_of_the_measure(self, measure: str, keywords: dict) -> None:
        with pytest.raises((TypeError, ValueError)) as of_measure:
            getattr(gl, measure)(X, Y, **keywords)
        with pytest.raises(of_measure.type, match=f"^{re.escape(str(of_measure.value))}$"):
            gl.explain(measure, X, Y, **keywords)

    @pytest.mark.parametrize("keywords", [{"weights": "sizes"}, {"weights": "equal"}, {"null": "permutation"}], ids=str)
    def test_are_those_of_a_grid(self, keywords: dict) -> None:
        with pytest.raises((TypeError, ValueError)) as of_grid:
            gl.cka_matrix([X], [Y], **keywords)
        with pytest.raises(of_grid.type, match=f"^{re.escape(str(of_grid.value))}$"):
            gl.explain("cka_matrix", [X], [Y], **keywords)

    @pytest.mark.parametrize(
        ("measure", "arrays", "keywords"),
        [
            ("cka", (X[:3], Y[:3]), {"fraction": 0.5}),
            ("cka", (X, Y[:9]), {"null": "permutation"}),
            ("hsic_test", (X[:3], Y[:3]), {}),
            ("hsic_test", (X, [[1.0]]), {}),
            ("cka", (gl.Moments().update(X, Y), Y), {}),
            ("hsic", (gl.gram_sums(X, Y), Y), {"fraction": 0.5}),
        ],
        ids=str,
    )
    def test_of_arrays_are_those_of_the_measure(self, measure: str, arrays: tuple, keywords: dict) -> None:
        with pytest.raises((TypeError, ValueError)) as of_measure:
            getattr(gl, measure)(*arrays, **keywords)
        with pytest.raises(of_measure.type, match=f"^{re.escape(str(of_measure.value))}$"):
            gl.explain(measure, *arrays, **keywords)

    @pytest.mark.parametrize("measure", ["hsic", "cka", "cka_distance"])
    def test_one_array(self, measure: str) -> None:
        with pytest.raises(TypeError, match=f"^{measure}: expected y$"):
            gl.explain(measure, X)

    def test_parts_of_a_pass(self) -> None:
        for stem, part in (
            ("gram_sums", {"pairs": np.zeros((1, 2), int)}),
            ("gram_sums", {"block_rows": 5}),
            ("moments", {"self_terms": False}),
        ):
            with pytest.raises(
                ValueError, match=f"explain: {stem} is explained for a whole pass, give no {next(iter(part))}"
            ):
                gl.explain(stem, X, Y, **part)
        assert gl.explain("moments", X, Y, self_terms=True) == gl.explain("moments", X, Y, pivot_x=None)
