"""d_LLV against log-likelihoods written out and searched by loops, and the bound on d_SVD."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

import gramless as gl
from gramless.identifiability import pivot_search
from gramless.measures.identifiability import LogVariances
from support import bounds, cases, memory, two_models

INPUTS = [5, 1, 30, 17]


def likelihoods(models: two_models.Models, b1: object = None, b2: object = None) -> tuple[np.ndarray, np.ndarray]:
    return two_models.log_likelihoods(*models[:2], b1), two_models.log_likelihoods(*models[2:], b2)


def assert_terms(got: object, want: object) -> None:
    for number, (mine, theirs) in enumerate(zip(got, want, strict=True), 1):
        bounds.assert_relative(mine, theirs, bounds.SAME_FP64, f"term {number}")


class TestDefinition:
    @pytest.mark.parametrize("reduction", ["max", "mean"])
    @pytest.mark.parametrize(("labels", "d", "n"), [(4, 1, 40), (5, 2, 9), (9, 3, 60), (7, 5, 33), (12, 12, 40)])
    def test_terms_pivot_and_label_left_out(self, labels: int, d: int, n: int, reduction: str) -> None:
        models = two_models.related(labels, n=n, labels=labels, d=d)
        inputs = list(range(min(d + 1, n)))
        found = gl.d_llv(*models, reduction=reduction, inputs=inputs)
        p, q = likelihoods(models)
        pivot, leave_out, first = two_models.best_pivot(p, q, reduction)
        assert (found.pivot, found.leave_out) == (pivot, leave_out)
        bounds.assert_relative(found.terms[0], first, bounds.SAME_FP64)
        assert_terms(found.terms, two_models.d_llv_terms(p, q, pivot, leave_out, inputs, reduction))

    @pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
    def test_dtypes(self, dtype: str) -> None:
        """16-bit and float32 models are exact inputs; only their normalisers are in float32."""
        models = tuple(a.astype(cases.DTYPES[dtype]) for a in two_models.related(1))
        wide = tuple(a.astype(np.float64) for a in models)
        ways = {"pivot": 2, "leave_out": 7, "inputs": INPUTS}
        for mine, theirs in zip(gl.d_llv(*models, **ways).terms, gl.d_llv(*wide, **ways).terms, strict=True):
            bounds.assert_relative(mine, theirs, bounds.INVARIANCE_FP32)

    def test_biases(self) -> None:
        """They shift the second term, and through the normalisers the first.

        The scales of the others are of differences in which a bias is left out, or is the same for all inputs.
        """
        models = two_models.related(2)
        b1, b2 = np.random.default_rng(0).standard_normal((2, 9))
        ways = {"pivot": 2, "leave_out": 7, "inputs": INPUTS}
        found = gl.d_llv(*models, b1=b1, b2=b2, **ways)
        assert_terms(found.terms, two_models.d_llv_terms(*likelihoods(models, b1, b2), 2, 7, INPUTS))
        plain = gl.d_llv(*models, **ways)
        for mine, theirs in zip(found.terms[:2], plain.terms[:2], strict=True):
            assert bounds.relative_error(mine, theirs) > bounds.SAME_FP64
        assert_terms(found.terms[2:], plain.terms[2:])
        with_ones = [np.concatenate([h, np.ones((len(h), 1))], axis=1) for h in models[::2]]
        with_bias = [np.concatenate([w, b[:, None]], axis=1) for w, b in ((models[1], b1), (models[3], b2))]
        same = gl.d_llv(with_ones[0], with_bias[0], with_ones[1], with_bias[1], **ways)
        assert_terms(same.terms, found.terms)

    def test_other_hidden_size(self) -> None:
        models = two_models.related(3, d2=5)
        found = gl.d_llv(*models, n_inputs=4)
        assert len(found.inputs) == 6
        p, q = likelihoods(models)
        assert (found.pivot, found.leave_out) == two_models.best_pivot(p, q)[:2]
        assert_terms(found.terms, two_models.d_llv_terms(p, q, found.pivot, found.leave_out, list(found.inputs)))

    @pytest.mark.parametrize("combine", ["max", "sum"])
    def test_one_number(self, combine: str) -> None:
        found = gl.d_llv(*two_models.related(4), combine=combine, weight=0.7)
        first, second, third, fourth = found.terms
        parts = [first, second, 0.7 * third, 0.7 * fourth]
        assert found.value == (max(parts) if combine == "max" else sum(parts))
        assert (found.combine, found.weight, found.reduction) == (combine, 0.7, "max")

    def test_weight_is_small_by_default(self) -> None:
        found = gl.d_llv(*two_models.related(4))
        assert found.weight == 1e-5
        assert found.value == max(found.terms[:2])


class TestSearch:
    """Tiles of pairs of labels give what one row after the other gives."""

    @pytest.fixture(autouse=True)
    def small_tiles(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pivot_search, "TILE", 4)

    @pytest.mark.parametrize("reduction", ["max", "mean"])
    @pytest.mark.parametrize("labels", [3, 4, 5, 8, 11])
    @pytest.mark.parametrize("seed", range(3))
    def test_exhaustive(self, labels: int, reduction: str, seed: int) -> None:
        models = two_models.related(20 + seed, labels=labels, d=2, noise=0.8)
        found = gl.d_llv(*models, reduction=reduction)
        pivot, leave_out, first = two_models.best_pivot(*likelihoods(models), reduction)
        bounds.assert_relative(found.terms[0], first, bounds.SAME_FP64)
        # of three labels, exchanging the pivot and the one that is left changes nothing
        assert labels == 3 or (found.pivot, found.leave_out) == (pivot, leave_out)

    @pytest.mark.parametrize("reduction", ["max", "mean"])
    def test_half_of_it_given(self, reduction: str) -> None:
        models = two_models.related(30, labels=7)
        ways = {"inputs": INPUTS, "reduction": reduction}
        every = {
            (p, out): gl.d_llv(*models, pivot=p, leave_out=out, **ways).terms[0]
            for p in range(7)
            for out in range(7)
            if p != out
        }
        for label in range(7):
            found = gl.d_llv(*models, pivot=label, **ways)
            want = min((value, pair) for pair, value in every.items() if pair[0] == label)
            assert (found.terms[0], (found.pivot, found.leave_out)) == want
            found = gl.d_llv(*models, leave_out=label, **ways)
            want = min((value, pair) for pair, value in every.items() if pair[1] == label)
            assert (found.terms[0], (found.pivot, found.leave_out)) == want

    @pytest.mark.parametrize("reduction", ["max", "mean"])
    def test_equal_labels_are_never_compared(self, reduction: str) -> None:
        """A label with the logits of the pivot has no psi: it is left out, or another pivot is found."""
        h1, w1, h2, w2 = (a.copy() for a in two_models.related(31, labels=6))
        for w in (w1, w2):
            w[4] = w[1]
        found = gl.d_llv(h1, w1, h2, w2, reduction=reduction)
        assert found.pivot not in (1, 4) or found.leave_out in (1, 4)
        assert np.isfinite(found.terms).all()
        twin = gl.d_llv(h1, w1, h2, w2, pivot=1, reduction=reduction)
        assert twin.leave_out == 4
        for w in (w1, w2):
            w[5] = w[1]
        others = gl.d_llv(h1, w1, h2, w2, reduction=reduction)
        assert others.pivot in (0, 2, 3)
        with pytest.raises(ValueError, match=r"d_llv: each pivot that may be taken has labels with its own logits"):
            gl.d_llv(h1, w1, h2, w2, pivot=1, reduction=reduction)
        with pytest.raises(ValueError, match=r"d_llv: labels 4, 5 have the logits of the pivot 1 up to a constant"):
            gl.d_llv(h1, w1, h2, w2, pivot=1, leave_out=2, reduction=reduction)
        for w in (w1, w2):
            w[:] = w[1]
        with pytest.raises(ValueError, match="leave them out of w1 and w2"):
            gl.d_llv(h1, w1, h2, w2, reduction=reduction)

    def test_copies_of_all_labels(self) -> None:
        """Distances from products leave rounding where two labels are equal; nothing may be made of it."""
        h1, w1, h2, w2 = two_models.related(35, n=200, labels=3, d=70)
        with pytest.raises(ValueError, match=r"d_llv: each pivot that may be taken has labels with its own logits"):
            gl.d_llv(h1, np.tile(w1, (3, 1)) + 0.1, h2, np.tile(w2, (3, 1)))

    def test_equal_in_one_model_only(self) -> None:
        h1, w1, h2, w2 = (a.copy() for a in two_models.related(32, labels=6))
        w2[4], w2[5] = w2[1], w2[1]
        assert gl.d_llv(h1, w1, h2, w2).pivot in (0, 2, 3)

    def test_equal_up_to_what_no_input_shows(self) -> None:
        """Labels that differ in a direction in which embeddings do not vary have equal logits, up to a constant."""
        h1, w1, h2, w2 = (a.copy() for a in two_models.related(33, labels=6))
        h1[:, 2] = 0.1
        w1[4], w1[5] = w1[1] + [0, 0, 3.0], w1[1] - [0, 0, 1.0]
        with pytest.raises(ValueError, match=r"labels 4, 5 have the logits of the pivot 1"):
            gl.d_llv(h1, w1, h2, w2, pivot=1, leave_out=0)
        assert gl.d_llv(h1, w1, h2, w2).pivot in (0, 2, 3)

    def test_nearly_equal_labels_keep_their_digits(self) -> None:
        """psi of two close labels, from the difference of their squared norms, would have none left."""
        h1, w1, h2, w2 = (a.copy() for a in two_models.related(34, labels=6))
        for w in (w1, w2):
            w[4] = w[1] + 1e-7 * (w[2] - w[3])
        p, q = likelihoods((h1, w1, h2, w2))
        found = gl.d_llv(h1, w1, h2, w2, inputs=INPUTS)
        assert (found.pivot, found.leave_out) == two_models.best_pivot(p, q)[:2]
        close = gl.d_llv(h1, w1, h2, w2, pivot=1, leave_out=0, inputs=INPUTS)
        for mine, theirs in zip(close.terms, two_models.d_llv_terms(p, q, 1, 0, INPUTS), strict=True):
            bounds.assert_relative(mine, theirs, bounds.INVARIANCE_FP32)

    def test_tiles_are_as_exact_as_pairs(self) -> None:
        rng = np.random.default_rng(0)
        w = rng.standard_normal((2, 10, 3))
        w[:, 7:] = w[:, :3] + 1e-6 * rng.standard_normal((2, 3, 3))
        roots = tuple(rng.standard_normal((2, 5, 3)))
        labels = pivot_search.Labels(tuple(w), roots, LogVariances.of(*rng.standard_normal((2, 10, 5))))
        found = np.empty((2, 10, 10))
        for rows, columns, parts in pivot_search._all_pairs(labels):
            found[:, rows[:, None], columns] = parts
            found[:, columns[:, None], rows] = parts[1].T, parts[0].T
        for pivot in range(10):
            others = np.delete(np.arange(10), pivot)
            for mine, theirs in zip(found[:, pivot, others], labels.terms(others, pivot), strict=False):
                bounds.assert_absolute(np.abs(mine / theirs - 1).max(), 0.0, bounds.INVARIANCE_FP64)


class TestInputs:
    def test_the_best_set_is_returned(self) -> None:
        """The published code keeps the first of all sets if none is below 1; here the best is kept, whatever it is."""
        h1, w1, h2, w2 = two_models.related(5, noise=3.0)
        p, q = likelihoods((h1, w1, h2, w2))
        ways = {"pivot": 0, "leave_out": 1}
        above = 0
        for seed in range(8):
            found = gl.d_llv(h1, w1, h2, w2, n_inputs=6, seed=seed, **ways)
            sets = np.random.default_rng(seed).choice(60, (6, 4), replace=False)
            terms = [two_models.d_llv_terms(p, q, 0, 1, list(chosen))[1] for chosen in sets]
            assert found.inputs == tuple(sets[int(np.argmin(terms))])
            bounds.assert_relative(found.terms[1], min(terms), bounds.SAME_FP64)
            above += min(terms) > 1 and int(np.argmin(terms)) > 0
        assert above, "no draw of this test has the case that the published code gets wrong"

    def test_sets_share_no_input_and_the_seed_decides(self) -> None:
        models = two_models.related(6)
        found = gl.d_llv(*models, seed=3)
        assert found.n_inputs == 15
        assert found == gl.d_llv(*models, seed=3)
        assert found.inputs != gl.d_llv(*models, seed=4).inputs
        assert gl.d_llv(*models, inputs=found.inputs).n_inputs == 0
        assert gl.d_llv(*models, inputs=found.inputs).terms == found.terms

    def test_equal_inputs_are_never_compared(self) -> None:
        h1, w1, h2, w2 = (a.copy() for a in two_models.related(7, n=8))
        h1[2:] = h1[2]
        with pytest.raises(ValueError, match="inputs with the logits of another up to a constant are in each of the 2"):
            gl.d_llv(h1, w1, h2, w2)
        with pytest.raises(ValueError, match=r"up to a constant are in inputs 2, 3, 4$"):
            gl.d_llv(h1, w1, h2, w2, inputs=[2, 3, 4])
        assert np.isfinite(gl.d_llv(h1, w1, h2, w2, inputs=[2, 0, 1]).value)


class TestInvariance:
    def test_same_class(self) -> None:
        h, w, _, _ = two_models.related(8)
        found = gl.d_llv(h, w, *two_models.recoordinated(h, w))
        bounds.assert_absolute(found.value, 0.0, bounds.SAME_CLASS)
        for term in found.terms:
            bounds.assert_absolute(term, 0.0, bounds.SAME_CLASS)
        assert gl.d_llv(h, w, h, w).value <= bounds.SAME_CLASS

    def test_coordinates_and_order(self) -> None:
        h1, w1, h2, w2 = two_models.related(9)
        found = gl.d_llv(h1, w1, h2, w2)
        ways = {"inputs": found.inputs}
        moved = gl.d_llv(*two_models.recoordinated(h1, w1), *two_models.recoordinated(h2, w2, 1), **ways)
        mirrored = gl.d_llv(h2, w2, h1, w1, **ways)
        for other in (moved, mirrored):
            assert (other.pivot, other.leave_out) == (found.pivot, found.leave_out)
            for mine, theirs in zip(other.terms, found.terms, strict=True):
                bounds.assert_relative(mine, theirs, bounds.INVARIANCE_FP64)

    @pytest.mark.parametrize("size", [1e-2, 1e-5, 1e-8])
    def test_nearly_equal_models_keep_their_digits(self, size: float) -> None:
        """What differences of second moments lose: the terms shrink with the difference, and keep its digits."""
        h, w, h2, w2 = two_models.related(10)
        near = gl.d_llv(h, w, h + size * h2, w + size * w2, pivot=0, leave_out=1, inputs=INPUTS)
        twice = gl.d_llv(h, w, h + 2 * size * h2, w + 2 * size * w2, pivot=0, leave_out=1, inputs=INPUTS)
        for mine, theirs in zip(near.terms[:2], twice.terms[:2], strict=True):
            bounds.assert_relative(theirs / mine, 2.0, max(40 * size, bounds.INVARIANCE_FP32))

    def test_scale_is_in_the_last_terms_alone(self) -> None:
        """Twice the logits: their log-likelihoods differ by scale and by their normalisers."""
        h, w, _, _ = two_models.related(11)
        found = gl.d_llv(h, w, 2 * h, w, inputs=INPUTS)
        assert found.terms[1] <= bounds.SAME_CLASS
        assert min(found.terms[2:]) > 1

    def test_offset_of_the_embeddings(self) -> None:
        """A mean 1e6 times the spread: the digits of the covariance must not go with it."""
        h1, w1, h2, w2 = two_models.related(12)
        ways = {"pivot": 0, "leave_out": 1, "inputs": INPUTS}
        far = gl.d_llv(h1 + 1e6, w1 - w1.mean(1, keepdims=True), h2, w2, **ways)
        near = gl.d_llv(h1, w1 - w1.mean(1, keepdims=True), h2, w2, **ways)
        for mine, theirs in zip(far.terms, near.terms, strict=True):
            bounds.assert_relative(mine, theirs, bounds.INVARIANCE_FP32)


def test_bound_on_the_dissimilarity_of_representations() -> None:
    """d_SVD <= 2 e^2 for every pair of models, and never by rounding alone."""
    largest = 0.0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        d, noise = int(rng.integers(2, 5)), 10 ** rng.uniform(-4, 0.5)
        models = two_models.related(seed, n=40, labels=d + 4, d=d, noise=noise)
        found = gl.d_llv(*models)
        worst = gl.d_svd(*models, found)
        bound = gl.bounds.d_svd_from_d_llv(max(found.terms[:2]))
        assert worst.value <= bound * (1 + bounds.INEQUALITY)
        largest = max(largest, worst.value / bound)
    assert largest > 0.1, "a bound this loose would pass whatever is computed"


def test_neither_logits_nor_pairs_of_labels_are_held() -> None:
    """N V and V^2 numbers would take 128 MB each; the search holds some tiles, and what is seen of the labels."""
    n, labels, d = 4000, 4000, 8
    prepare = f"""
rng = np.random.default_rng(0)
h = rng.standard_normal(({n}, {d}), dtype=np.float32)
w = rng.standard_normal(({labels}, {d}), dtype=np.float32)
"""
    peak = memory.peak_extra_bytes(prepare, "gl.d_llv(h, w, h, w[::-1])", "gl.d_llv(h[:99], w[:99], h[:99], w[98::-1])")
    tiles = 16 * 8 * pivot_search.TILE**2
    assert peak <= bounds.MEMORY_FACTOR * (tiles + 8 * labels * 2 * d) + bounds.MEMORY_SLACK_BYTES
    assert tiles < 8 * min(n, labels) * labels / 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torch(dtype: torch.dtype) -> None:
    tensors = [torch.tensor(a, dtype=dtype) for a in two_models.related(13)]
    arrays = [a.float().numpy() for a in tensors]
    for mine, theirs in zip(gl.d_llv(*tensors).terms, gl.d_llv(*arrays).terms, strict=True):
        bounds.assert_relative(mine, theirs, bounds.INVARIANCE_FP32)
    assert gl.d_rep(*tensors).value == gl.d_rep(*arrays).value
    assert gl.msvd(*tensors, rows=[3, 0, 1]) == gl.msvd(*arrays, rows=[3, 0, 1])
    assert gl.mean_cca(*tensors[::2]) == gl.mean_cca(*arrays[::2])
    bounds.assert_same_bits(gl.label_similarity(*tensors[:2]), gl.label_similarity(*arrays[:2]))


class TestRefusals:
    MODELS = two_models.related()

    @pytest.mark.parametrize(
        ("changed", "error", "text"),
        [
            ({"reduction": "sum"}, ValueError, "d_llv: expected reduction to be one of 'max', 'mean', got 'sum'"),
            ({"combine": "mean"}, ValueError, "d_llv: expected combine to be one of 'max', 'sum', got 'mean'"),
            ({"weight": -1.0}, ValueError, "d_llv: expected weight of at least 0, got -1.0"),
            ({"weight": "a"}, TypeError, "d_llv: expected weight to be a number, got str"),
            ({"pivot": 9}, ValueError, "d_llv: expected pivot in 0..8, got 9"),
            ({"leave_out": -1}, ValueError, "d_llv: expected leave_out in 0..8, got -1"),
            ({"pivot": True}, TypeError, "d_llv: expected pivot to be an int, got bool"),
            ({"pivot": 3, "leave_out": 3}, ValueError, "d_llv: expected leave_out other than pivot, got 3 for both"),
            ({"inputs": [1]}, ValueError, "d_llv: expected at least 2 inputs, got 1"),
            ({"inputs": [1, 60]}, ValueError, "d_llv: expected inputs in 0..59, got 60"),
            ({"inputs": [1, 2], "n_inputs": 3}, ValueError, "d_llv: expected inputs or n_inputs, got both"),
            ({"n_inputs": 0}, ValueError, "d_llv: expected n_inputs of at least 1, got 0"),
            (
                {"n_inputs": 16},
                ValueError,
                "d_llv: expected at least 64 inputs for n_inputs=16 sets of d + 1 = 4, got N = 60; name some",
            ),
            ({"seed": 1.5}, TypeError, "d_llv: expected seed to be an int, got float"),
            ({"b1": np.zeros(8)}, ValueError, "d_llv: expected b1 of shape (9,), got (8,)"),
            ({"b2": np.full(9, -np.inf)}, ValueError, "d_llv: b2 has non-finite values"),
        ],
    )
    def test_options(self, changed: dict, error: type[Exception], text: str) -> None:
        with pytest.raises(error, match=re.escape(text)):
            gl.d_llv(*self.MODELS, **changed)

    @pytest.mark.parametrize("name", two_models.ARRAYS)
    def test_non_finite(self, name: str) -> None:
        arrays = dict(zip(two_models.ARRAYS, (a.copy() for a in self.MODELS), strict=True))
        arrays[name][3, 1] = np.inf
        with pytest.raises(ValueError, match=rf"d_llv: {name} has non-finite values in rows 0\.\."):
            gl.d_llv(**arrays)

    @pytest.mark.parametrize("measure", [gl.d_llv, gl.d_rep])
    def test_shapes(self, measure: object) -> None:
        h1, w1, h2, w2 = self.MODELS
        name = measure.__name__
        for arguments, text in (
            ((h1, w1, h2[1:], w2), f"{name}: expected h1 and h2 with the same number of rows, got h1 (60, 3) and h2"),
            ((h1, w1, h2, w2[1:]), f"{name}: expected w1 and w2 with the same number of labels, got w1 (9, 3) and w2"),
            ((h1, w1[:, 1:], h2, w2), f"{name}: expected h1 (N, d) and w1 (V, d) with the same d, got h1 (60, 3)"),
            ((h1, w1, h2, w2[0]), f"{name}: w2: expected a 2-d array"),
        ):
            with pytest.raises(ValueError, match=re.escape(text)):
                measure(*arguments)
        with pytest.raises(TypeError, match=f"{name}: expected h1 to be a NumPy array"):
            measure("h", w1, h2, w2)

    def test_too_few(self) -> None:
        h1, w1, h2, w2 = self.MODELS
        with pytest.raises(ValueError, match="expected at least 2 inputs and 3 labels, got N = 60 and V = 2"):
            gl.d_llv(h1, w1[:2], h2, w2[:2])
        with pytest.raises(ValueError, match="expected at least 2 inputs and 3 labels, got N = 1 and V = 9"):
            gl.d_llv(h1[:1], w1, h2[:1], w2)
        with pytest.raises(ValueError, match="expected at least 4 inputs for n_inputs=1"):
            gl.d_llv(h1[:3], w1, h2[:3], w2)


@pytest.mark.parametrize(("scale", "what"), [(1e200, "overflow"), (1e308, "overflow"), (1e-200, "underflow")])
def test_what_overflows_or_underflows_says_so(scale, what):
    h, w = np.random.default_rng(5).standard_normal((2, 20, 3))
    with pytest.raises(ValueError, match=f"^d_llv: .*{what}.*"):
        gl.d_llv(scale * h.clip(-1, 1), w, h, w)


def test_text_names_the_terms_and_what_was_chosen() -> None:
    found = gl.d_llv(*two_models.related())
    lines = str(found).splitlines()
    assert lines[0] == f"d_LLV {found.value:.6g} (max of four terms)"
    assert f"pivot label {found.pivot}, label left out {found.leave_out}" in lines[3]
    assert f"the best of {found.n_inputs} sets" in lines[4]
