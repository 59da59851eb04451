"""The logit distance by its ways, against the dense definition, and the stream of it with its standard error."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

import gramless as gl
from gramless.predictions.logit_distance import plan
from support import backends, bounds, cases
from support.backends import Backend
from support.heads import models, near, truth

# sizes V, d1, d2 and N
SHAPES = ((50, 7, 7, 9), (50, 7, 5, 9), (600, 12, 9, 5), (6, 5, 4, 3), (2, 3, 2, 1), (2, 1, 1, 1), (1, 2, 2, 3))
WAYS = ("auto", "factor", "vocabulary")


def assert_distance(got: float, squares: np.ndarray, bound: float = bounds.SAME_FP64) -> None:
    assert type(got) is float
    want = np.sqrt(squares.mean())
    scale = np.array(max(float(want), 1.0) if want == 0 else float(want))
    assert bounds.scaled_error(np.array(got), want, scale) <= bound


@pytest.mark.parametrize("method", WAYS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_is_the_definition(backend: Backend, shape: tuple[int, ...], method: str) -> None:
    h1, w1, h2, w2 = models(*shape)
    b1, b2 = np.linspace(-3, 2, shape[0]), np.geomspace(1, 9, shape[0])
    squares = truth(h1, w1, h2, w2, b1, b2)
    options = {"b1": b1, "b2": b2, "method": method, "backend": backend.name}
    assert_distance(gl.logit_distance(h1, w1, h2, w2, **options), squares)
    assert_distance(gl.logit_distance(h1, w1, h2, w2, temperature=2.5, **options), squares / 2.5**2)
    rows = gl.logit_distance(h1, w1, h2, w2, rows=True, **options)
    assert rows.dtype == np.float64
    assert bounds.scaled_error(rows, np.sqrt(squares), np.maximum(np.sqrt(squares), shape[0] == 1)) <= bounds.SAME_FP64


@pytest.mark.parametrize("method", ["factor", "vocabulary"])
@pytest.mark.parametrize(("dtype", "other"), [*((d, d) for d in cases.DTYPES), *cases.MIXED])
def test_dtypes(backend: Backend, dtype: str, other: str, method: str) -> None:
    """All arithmetic is in float64, so that the same bound holds for all."""
    h1, w1, h2, w2 = models(200, 6, 4, 7, dtype, other)
    options = {"method": method, "backend": backend.name}
    assert_distance(gl.logit_distance(h1, w1, h2, w2, **options), truth(h1, w1, h2, w2))
    tensors = [backends.as_torch(a) for a in (h1, w1, h2, w2)]
    assert_distance(gl.logit_distance(*tensors, **options), truth(h1, w1, h2, w2))


@pytest.mark.parametrize("method", ["factor", "vocabulary"])
@pytest.mark.parametrize("dtype", ["fp32", "fp64"])
@pytest.mark.parametrize("ratio", [1e-2, 1e-4, 1e-6])
def test_near_equal_models_are_resolved(ratio: float, dtype: str, method: str) -> None:
    h1, w1, h2, w2 = near(400, 24, 30, ratio, dtype)
    want = np.sqrt(truth(h1, w1, h2, w2))
    got = gl.logit_distance(h1, w1, h2, w2, rows=True, method=method)
    assert bounds.scaled_error(got, want, want) <= bounds.LOGIT_DISTANCE


@pytest.mark.parametrize("method", WAYS)
@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_equal_models_have_distance_zero(method: str, dtype: str) -> None:
    h, w, *_ = models(300, 8, 8, 20, dtype)
    assert gl.logit_distance(h, w, h, w, method=method) == 0.0


@pytest.mark.parametrize("method", WAYS)
class TestMetric:
    def test_symmetry(self, method: str) -> None:
        h1, w1, h2, w2 = near(300, 9, 8, 1e-3)
        one, two = gl.logit_distance(h1, w1, h2, w2, method=method), gl.logit_distance(h2, w2, h1, w1, method=method)
        bounds.assert_relative(one, two, bounds.SAME_FP64)

    @pytest.mark.parametrize("ratio", [1.0, 1e-4])
    def test_triangle(self, method: str, ratio: float) -> None:
        rng = np.random.default_rng(4)
        h, w = rng.standard_normal((20, 6)), rng.standard_normal((100, 6))
        three = [(h + ratio * rng.standard_normal(h.shape), w + ratio * rng.standard_normal(w.shape)) for _ in range(3)]
        ab, bc, ac = (
            gl.logit_distance(*three[i], *three[j], rows=True, method=method) for i, j in ((0, 1), (1, 2), (0, 2))
        )
        assert (ac <= ab + bc).all()
        assert (ab <= ac + bc).all()

    def test_on_one_line_the_triangle_is_flat(self, method: str) -> None:
        """A sum that is an equality: neither side may be too short."""
        h, w, step, _ = models(100, 6, 6, 20)
        ab, bc, ac = (
            gl.logit_distance(h + a * step, w, h + b * step, w, method=method) for a, b in ((0, 1), (1, 3), (0, 3))
        )
        bounds.assert_relative(ab + bc, ac, bounds.SAME_FP64)


@pytest.mark.parametrize("method", WAYS)
def test_raw_logits_differ_by_their_means(method: str) -> None:
    """The L2 loss of raw logits is the squared distance plus V times the mean of squared means."""
    h1, w1, h2, w2 = models(100, 6, 4, 20)
    delta = h1 @ w1.T - h2 @ w2.T
    raw = np.square(delta).sum(axis=1).mean()
    means = 100 * np.square(delta.mean(axis=1)).mean()
    distance = gl.logit_distance(h1, w1, h2, w2, method=method)
    bounds.assert_relative(distance**2 + means, raw, bounds.SAME_FP64)


@pytest.mark.parametrize("method", WAYS)
def test_labels_masks_and_rows(method: str) -> None:
    h1, w1, h2, w2 = models(300, 9, 6, 40)
    labels = np.random.default_rng(1).permutation(300)[:120]
    b = np.where(np.arange(300) % 5 == 0, -np.inf, 0.5)
    kept = labels[np.isfinite(b[labels])]
    mask = np.arange(40) % 3 > 0
    h1[~mask] = np.nan
    want = truth(h1[mask], w1[kept], h2[mask], w2[kept], b[kept])
    options = {"b1": b, "b2": np.where(np.isfinite(b), 0, b), "labels": labels, "mask": mask, "method": method}
    assert_distance(gl.logit_distance(h1, w1, h2, w2, **options), want)
    assert gl.logit_distance(h1, w1, h2, w2, rows=True, **options).shape == (int(mask.sum()),)


@pytest.mark.parametrize("dtype", ["fp32", "fp64"])
def test_logits_themselves(backend: Backend, dtype: str) -> None:
    rng = np.random.default_rng(3)
    z1, z2 = (rng.standard_normal((700, 90)).astype(cases.DTYPES[dtype]) for _ in range(2))
    b1 = np.linspace(0, 1, 90)
    want = truth(z1, np.eye(90), z2, np.eye(90), b1)
    assert_distance(gl.logit_distance(z1, None, z2, None, b1=b1, backend=backend.name), want)
    # one model's logits beside the other's hidden states
    h1, w1, *_ = models(90, 6, 6, 700, dtype)
    assert_distance(gl.logit_distance(h1, w1, z2, None, backend=backend.name), truth(h1, w1, z2, np.eye(90)))


def test_blocks_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    h1, w1, h2, w2 = models(300, 9, 6, 50)
    module = importlib.import_module("gramless.predictions.logit_distance")
    monkeypatch.setattr(module, "_BLOCK_BYTES", 8 * 9 * 7)
    monkeypatch.setattr(module, "_LEAST_ROWS", 1)
    assert_distance(gl.logit_distance(h1, w1, h2, w2, method="vocabulary"), truth(h1, w1, h2, w2))


class TestChoice:
    @pytest.mark.parametrize(
        ("n", "labels", "width", "path"),
        [
            (16_384, 131_072, 2048, "factor"), (50_000, 128_256, 8192, "factor"), (1000, 128_256, 8192, "vocabulary"),
            (10_000, 100, 100, "factor"), (10_000, 100, 300, "vocabulary"), (10, 10, 10, "vocabulary"),
        ],
    )  # fmt: skip
    def test_is_by_flops(self, n: int, labels: int, width: int, path: str) -> None:
        made = plan(n, labels, width)
        assert made.path == path
        assert (made.path == "factor") == (2 * n * labels > width * (n + labels))
        assert made.flops == min((n + labels) * width**2, 2 * n * labels * width)
        assert f"{made.flops:.3g}" in made.why

    def test_a_factor_that_is_there_is_taken(self) -> None:
        assert plan(10, 100_000, 1000, factored=True)[:2] == ("factor", 10 * 1000**2)

    @pytest.mark.parametrize(("n", "path"), [(40, "factor"), (4, "vocabulary")])
    def test_is_what_runs(self, n: int, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
        h1, w1, h2, w2 = models(300, 9, 6, n)
        other = {"factor": "vocabulary", "vocabulary": "factor"}[path]
        assert plan(n, 300, 15).path == path
        if other == "factor":
            monkeypatch.setattr(gl.UnembeddingPair, "_of", None)
        else:
            monkeypatch.setattr("gramless.ops.logit_pairs", None)
        assert_distance(gl.logit_distance(h1, w1, h2, w2), truth(h1, w1, h2, w2))
        with pytest.raises(TypeError, match="not callable"):
            gl.logit_distance(h1, w1, h2, w2, method=other)


class TestPair:
    def test_needs_no_weights_but_checks_those_it_gets(self) -> None:
        h1, w1, h2, w2 = models(300, 9, 6, 40)
        b = np.linspace(0, 1, 300)
        pair, want = gl.UnembeddingPair(w1, w2, b1=b), truth(h1, w1, h2, w2, b)
        assert_distance(gl.logit_distance(h1, None, h2, None, pair=pair, temperature=2.0), want / 4)
        assert_distance(gl.logit_distance(h1, w1, h2, w2, b1=b, pair=pair, method="factor"), want)
        with pytest.raises(ValueError, match="logit_distance: these are other weights"):
            gl.logit_distance(h1, w1, h2, w2, pair=pair)

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"labels": [1, 2]}, ValueError, "labels are those of the pair"),
            ({"method": "vocabulary"}, ValueError, "takes no pair"),
            ({"w2": None}, ValueError, "both|w1 and w2"),
            ({"w1": None, "w2": None, "b1": np.zeros(300)}, ValueError, "w1 and w2 with their biases"),
            ({"pair": "pair.npz"}, TypeError, "UnembeddingPair, got str"),
        ],
        ids=lambda value: None,
    )
    def test_bad_use_is_refused(self, options: dict, error: type, message: str) -> None:
        h1, w1, h2, w2 = models(300, 9, 6, 40)
        given = {"h1": h1, "w1": w1, "h2": h2, "w2": w2, "pair": gl.UnembeddingPair(w1, w2)} | options
        with pytest.raises(error, match=f"^logit_distance: .*({message})"):
            gl.logit_distance(**given)


H1, W1, H2, W2 = models(50, 4, 3, 8)
BAD = [
    ({"h2": H2[:5]}, ValueError, "same number of rows"),
    ({"h1": H1[:, :3]}, ValueError, "h1 .*same number of features"),
    ({"w2": W2[:40]}, ValueError, "expected the same labels in both models"),
    ({"w2": None, "h2": np.zeros((8, 40))}, ValueError, "expected the same labels in both models|needs w1 and w2"),
    ({"w2": None, "h2": np.zeros((8, 50)), "method": "factor"}, ValueError, "method='factor' needs w1 and w2"),
    ({"h1": H1[:0], "h2": H2[:0]}, ValueError, "row"),
    ({"mask": np.zeros(8, bool)}, ValueError, "expected at least one row that counts"),
    ({"mask": np.ones(7, bool)}, ValueError, "mask of shape"),
    ({"mask": [1, 0]}, TypeError, "mask"),
    ({"temperature": 0}, ValueError, "temperature above 0"),
    ({"temperature": -1.0}, ValueError, "temperature above 0"),
    ({"temperature": np.inf}, ValueError, "temperature"),
    ({"temperature": "hot"}, TypeError, "temperature"),
    ({"method": "fast"}, ValueError, "method to be one of 'auto', 'factor', 'vocabulary'"),
    ({"backend": "gpu"}, ValueError, "backend"),
    ({"labels": [50]}, ValueError, "from 0 to 49, got 50"),
    ({"labels": [1, 1]}, ValueError, "once"),
    ({"b1": np.zeros(3)}, ValueError, "b1 of shape"),
    ({"b1": np.full(50, np.nan)}, ValueError, "b1"),
    ({"b1": np.full(50, -np.inf)}, ValueError, "masks every label"),
    ({"b1": np.r_[np.zeros(49), -np.inf]}, ValueError, "label 49 is masked .* in one model only"),
    ({"w1": W1.astype(int)}, TypeError, "dtype"),
    ({"h1": "rows"}, TypeError, "h1"),
    ({"h2": np.where(np.arange(8)[:, None] == 6, np.nan, H2)}, ValueError, "h2 has non-finite values in row 6"),
    ({"w1": np.where(np.arange(50)[:, None] == 6, np.nan, W1)}, ValueError, "w1 has non-finite values in row"),
]


@pytest.mark.parametrize("method", ["factor", "vocabulary"])
@pytest.mark.parametrize(("change", "error", "message"), BAD, ids=lambda value: None)
def test_bad_input_is_refused(change: dict, error: type, message: str, method: str) -> None:
    given = {"h1": H1, "w1": W1, "h2": H2, "w2": W2, "method": method} | change
    with pytest.raises(error, match=f"^logit_distance: .*({message})"):
        gl.logit_distance(**given)


def test_a_logit_of_minus_infinity_in_one_model_is_refused(backend: Backend) -> None:
    z1, z2 = np.zeros((4, 9)), np.zeros((4, 9))
    z1[2, 3] = -np.inf
    with pytest.raises(ValueError, match="logit_distance: the distance of row 2 is infinite"):
        gl.logit_distance(z1, None, z2, None, backend=backend.name)


class TestStream:
    def test_is_the_distance_with_its_error(self) -> None:
        h1, w1, h2, w2 = models(300, 9, 6, 100)
        squares = truth(h1, w1, h2, w2).astype(np.float64)
        stream = gl.LogitDistance(gl.UnembeddingPair(w1, w2))
        for start in range(0, 100, 33):
            stream.update(h1[start : start + 33], h2[start : start + 33])
        found = stream.finalize()
        bounds.assert_relative(found.value, gl.logit_distance(h1, w1, h2, w2), bounds.SAME_FP64)
        bounds.assert_relative(found.mean_square, squares.mean(), bounds.SAME_FP64)
        error = squares.std(ddof=1) / 10 / (2 * np.sqrt(squares.mean()))
        bounds.assert_relative(found.stderr, error, bounds.SAME_FP64)
        assert (found.n, float(found)) == (100, found.value)

    def test_error_is_the_spread_of_the_distance(self) -> None:
        """Over draws of the rows."""
        rng = np.random.default_rng(8)
        w1, w2 = rng.standard_normal((40, 3)), rng.standard_normal((40, 3))
        pair = gl.UnembeddingPair(w1, w2)
        found = [gl.LogitDistance(pair).update(*rng.standard_normal((2, 60, 3))).finalize() for _ in range(300)]
        spread = np.std([one.value for one in found], ddof=1)
        ratio = np.mean([one.stderr for one in found]) / spread
        assert 1 / bounds.STDERR_FACTOR < ratio < bounds.STDERR_FACTOR

    def test_equal_models_and_single_rows(self) -> None:
        h, w, *_ = models(300, 9, 9, 5)
        equal = gl.LogitDistance(gl.UnembeddingPair(w, w)).update(h, h).finalize()
        assert (equal.value, equal.stderr, equal.n) == (0.0, 0.0, 5)
        one = gl.LogitDistance(gl.UnembeddingPair(w, -w)).update(h[:1], h[:1]).finalize()
        assert one.value > 0
        assert np.isnan(one.stderr)

    def test_rows_that_do_not_count(self) -> None:
        h1, w1, h2, w2 = models(300, 9, 6, 40)
        mask = np.arange(40) % 3 > 0
        pair = gl.UnembeddingPair(w1, w2)
        some = gl.LogitDistance(pair).update(h1, h2, mask=mask).update(h1, h2, mask=~mask & False)
        assert some.finalize() == gl.LogitDistance(pair).update(h1[mask], h2[mask]).finalize()

    def test_other_weights_are_refused(self) -> None:
        h1, w1, h2, w2 = models(300, 9, 6, 40)
        mine = gl.LogitDistance(gl.UnembeddingPair(w1, w2)).update(h1, h2)
        same = gl.LogitDistance(gl.UnembeddingPair(w1, w2)).update(h1, h2)
        other = gl.LogitDistance(gl.UnembeddingPair(w1, -w2)).update(h1, h2)
        assert mine.merge(same).n == 80
        with pytest.raises(ValueError, match=r"LogitDistance.merge: these rows belong to other unembeddings"):
            mine.merge(other)
        with pytest.raises(ValueError, match=r"LogitDistance.load_state_dict: these rows belong to other"):
            mine.load_state_dict(other.state_dict())
        assert mine.n == 80

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"n": np.array(-1)}, "n"), ({"mean": np.array(-1.0)}, "mean square"), ({"n": np.array(0)}, "no 0 rows"),
            ({"square": np.array(np.nan)}, "non-finite"), ({"mean": np.zeros(2)}, "shape"),
            ({"more": np.array(1)}, "more"),
        ],
        ids=str,
    )  # fmt: skip
    def test_other_states_are_refused(self, change: dict, message: str) -> None:
        stream = gl.LogitDistance(gl.UnembeddingPair(W1, W2)).update(H1, H2)
        before = stream.finalize()
        with pytest.raises((TypeError, ValueError), match=message):
            stream.load_state_dict(stream.state_dict() | change)
        assert stream.finalize() == before

    def test_needs_a_pair(self) -> None:
        with pytest.raises(TypeError, match="LogitDistance: expected an UnembeddingPair, got ndarray"):
            gl.LogitDistance(W1)

    def test_says_what_it_holds(self) -> None:
        stream = gl.LogitDistance(gl.UnembeddingPair(W1, W2)).update(H1, H2)
        assert repr(stream).startswith("LogitDistance(n=8, UnembeddingPair(labels=50")
        stream.reset()
        assert stream.n == 0


def test_a_distance_that_overflows_is_refused():
    x, y = np.random.default_rng(5).standard_normal((2, 5, 4))
    with pytest.raises(ValueError, match=r"^logit_distance: logits overflow although the input is finite"):
        gl.logit_distance(x, None, y, None, temperature=1e-310)
