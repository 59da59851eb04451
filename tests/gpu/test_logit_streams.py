"""Streams of predictions on the kernels of a GPU: values, rows that count, and what is told of those at fault."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

import gramless as gl
from support import bounds, device
from support.late_batches import (
    BACKEND,
    BATCHES,
    EXACT,
    H1,
    H2,
    MASK,
    MODELS,
    TARGETS,
    W1,
    W2,
    N,
    V,
    assert_same,
    fed,
    on_host,
    spoiled,
    stream,
    tensors,
)


class TestReusedArrays:
    """What a caller writes to host arrays after an update is of the next one."""

    @pytest.mark.parametrize("late", ["mask", "targets"])
    def test_mask_and_targets(self, on_gpu: None, defined: None, late: str) -> None:
        given: dict[str, np.ndarray] = {"mask": MASK.copy(), "targets": np.where(TARGETS < 0, -100, TARGETS)}
        want = gl.compare_logits(*MODELS, **given, ignore_index=-100)
        told = given | {late: device.tensor(given[late])}
        made = stream(ignore_index=-100).update(*tensors(H1, H2), **told)
        given["mask"][:], given["targets"][:] = False, V
        assert_same(made.finalize(), want)

    @pytest.mark.parametrize("name", ["b1", "b2", "labels"])
    def test_what_a_stream_of_logits_is_made_with(self, name: str) -> None:
        logits = [h @ w.T for h, w in ((H1, W1), (H2, W2))]
        given = np.arange(3, 20) if name == "labels" else W1[:, 0].copy()
        want = gl.LogitPairs(**{name: given.copy()}).update(*logits).finalize()
        made = gl.LogitPairs(**{name: given})
        given[:] = given[::-1] + 1
        assert_same(made.update(*logits).finalize(), want)


class TestValues:
    """The kernel itself, in a few batches."""

    def test_stream(self) -> None:
        assert_same(fed().finalize(), on_host().finalize())

    def test_options(self, on_gpu: None) -> None:
        options: dict[str, Any] = {"b1": W1[:, 0], "b2": W2[:, 0], "labels": np.arange(4, 25), "temperature": 0.7}
        options |= {"softcap1": 2.0, "softcap2": 4.0, "ignore_index": -100, "divergences": False}
        aims = np.where(TARGETS < 4, -100, np.minimum(TARGETS, 24))
        want = gl.compare_logits(*MODELS, targets=aims, mask=MASK, **options)
        biases = {name: device.tensor(options.pop(name)) for name in ("b1", "b2")}
        made = stream(**biases, labels=device.tensor(options.pop("labels")), **options)
        made.update(*tensors(H1, H2), targets=device.tensor(aims), mask=device.tensor(MASK))
        assert_same(made.finalize(), want)

    def test_comparison(self) -> None:
        want = gl.compare_logits(*MODELS, targets=TARGETS, mask=MASK, keep_rows=True)
        got = gl.compare_logits(
            *tensors(*MODELS), targets=device.tensor(TARGETS), mask=MASK, keep_rows=True, batch_rows=15, **EXACT
        )
        assert_same(got, want)
        for name, rows in want.rows.items():
            np.testing.assert_array_equal(np.isnan(got.rows[name]), np.isnan(rows))
            scale = np.full(len(rows), 100.0)
            bounds.assert_within_algebra(np.nan_to_num(got.rows[name]), np.nan_to_num(rows), scale, name)

    def test_comparison_of_float32(self) -> None:
        models = [a.astype(np.float32) for a in MODELS]
        got, want = gl.compare_logits(*tensors(*models), backend=BACKEND), gl.compare_logits(*models)
        for name in want.stderr:
            bounds.assert_relative(getattr(got, name), getattr(want, name), bounds.INVARIANCE_FP32, name)

    def test_nan_that_is_propagated(self) -> None:
        bad = H1.copy()
        bad[20] = np.nan
        keywords: dict[str, Any] = {"nonfinite": "propagate", "targets": TARGETS, "keep_rows": True}
        got = gl.compare_logits(*tensors(bad, *MODELS[1:]), **keywords, **EXACT)
        want = gl.compare_logits(bad, *MODELS[1:], **keywords)
        assert got.n == N
        for name, rows in want.rows.items():
            np.testing.assert_array_equal(np.isnan(got.rows[name]), np.isnan(rows))
        bounds.assert_relative(got.entropy_q, want.entropy_q, bounds.SAME_FP64)


class TestRowsThatCount:
    """On the host or on the GPU: rows and targets that count are the same."""

    @pytest.mark.parametrize("mask_here", [True, False, None])
    @pytest.mark.parametrize("targets_here", [True, False])
    @pytest.mark.parametrize("ignore_index", [None, 3])
    def test_masks_and_targets(
        self, defined: None, on_gpu: None, mask_here: bool | None, targets_here: bool, ignore_index: int | None
    ) -> None:
        made, want = stream(ignore_index=ignore_index), gl.LogitPairs(W1, W2, ignore_index=ignore_index)
        for rows in BATCHES:
            mask = None if mask_here is None else MASK[rows]
            want.update(H1[rows], H2[rows], mask=mask, targets=TARGETS[rows])
            made.update(
                *tensors(H1[rows], H2[rows]),
                mask=mask if mask_here or mask is None else device.tensor(mask),
                targets=TARGETS[rows].tolist() if targets_here else device.tensor(TARGETS[rows].astype(np.int32)),
            )
        assert_same(made.finalize(), want.finalize())

    def test_rows_that_are_left_out_are_not_looked_at(self, defined: None, on_gpu: None) -> None:
        bad, aims = H1.copy(), np.where(MASK, TARGETS, 10**6)
        bad[~MASK] = np.nan
        for mask in (MASK, device.tensor(MASK)):
            for targets in (aims, device.tensor(aims)):
                made = stream().update(*tensors(bad, H2), mask=mask, targets=targets)
                assert_same(made.finalize(), gl.compare_logits(*MODELS, mask=MASK, targets=TARGETS))

    def test_no_rows(self, defined: None, on_gpu: None) -> None:
        nothing = np.zeros(N, bool)
        made = stream().update(*tensors(H1[:0], H2[:0]))
        for mask in (nothing, device.tensor(nothing)):
            made.update(*tensors(H1, H2), mask=mask)
        assert made.n == 0
        with pytest.raises(ValueError, match=r"LogitPairs\.finalize: no rows yet"):
            made.finalize()

    @pytest.mark.parametrize(
        ("given", "error", "text"),
        [
            ({"mask": MASK[:5]}, ValueError, r"expected mask of shape \(40,\), one for each row, got \(5,\)"),
            (
                {"mask": TARGETS},
                TypeError,
                "expected mask to be an array of bool, True for rows that count, got dtype int",
            ),
            ({"targets": TARGETS[:5]}, ValueError, r"expected targets of shape \(40,\), one for each row, got \(5,\)"),
            (
                {"targets": H1[:, 0]},
                TypeError,
                r"expected targets to be whole numbers of shape \(N,\), got dtype float64",
            ),
            ({"mask": MASK, "targets": H1[:, 0]}, TypeError, "expected targets to be whole numbers"),
        ],
    )
    @pytest.mark.parametrize("here", [True, False])
    def test_wrong_kinds_are_told_at_once(
        self, defined: None, on_gpu: None, given: Any, error: Any, text: str, here: bool
    ) -> None:
        made = fed()
        told = given if here else {name: device.tensor(value) for name, value in given.items()}
        with pytest.raises(error, match=f"LogitPairs.update: {text}"):
            made.update(*tensors(H1, H2), **told)
        assert_same(made.finalize(), on_host().finalize())

    def test_wrong_targets_of_the_host_beside_a_mask_of_the_gpu(self, defined: None, on_gpu: None) -> None:
        with pytest.raises(TypeError, match="expected targets to be whole numbers"):
            stream().update(*tensors(H1, H2), mask=device.tensor(MASK), targets=H1[:, 0])

    def test_ignored_targets_are_needed(self, defined: None, on_gpu: None) -> None:
        with pytest.raises(ValueError, match="ignore_index=3 needs targets"):
            stream(ignore_index=3).update(*tensors(H1, H2), mask=device.tensor(MASK))


# what is wrong with the second of three updates, and what is told of it
FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "h1": ({"h1": spoiled(H1, 12)}, "h1 has non-finite values in rows 0..39"),
    "h2": ({"h2": spoiled(H2, 12, -np.inf)}, "h2 has non-finite values in rows 0..39"),
    "float16": ({"h1": spoiled(H1, 0, np.inf).astype(np.float16)}, "rows 0..39 (float16 holds at most 65504"),
    "of the rows that count": (
        {"h1": spoiled(H1, np.flatnonzero(MASK)[3]), "mask": MASK},
        "h1 has non-finite values in rows 0..39",
    ),
    "overflow": ({"h2": np.full_like(H2, 1.7e308)}, "w2 has non-finite values, or logits of row 0 of h2 overflow"),
    "overflow of the rows that count": (
        {"h2": np.full_like(H2, 1.7e308), "mask": np.arange(N) > 4},
        "w2 has non-finite values, or logits of row 5 of h2 overflow",
    ),
    "targets": (
        {"targets": np.where(np.arange(N) == 9, V, 2)},
        "expected targets from 0 to 29, or -1 for none, got 30 in row 9",
    ),
}


class TestFaults:
    @pytest.mark.parametrize("case", FAULTS)
    def test_told_once_and_left_out(self, defined: None, on_gpu: None, case: str) -> None:
        change, text = FAULTS[case]
        given = {"h1": H1, "h2": H2, "targets": TARGETS} | change
        made, want = stream().update(*tensors(H1, H2)), gl.LogitPairs(W1, W2).update(H1, H2)
        made.update(**{name: device.tensor(a) for name, a in given.items()})
        made.update(*tensors(H1[:7], H2[:7]))
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            made.finalize()
        assert str(caught.value).startswith(f"LogitPairs.finalize: in update 2, {text}") or case == "float16"
        assert text in str(caught.value)
        assert str(caught.value).endswith("; its rows are left out")
        assert made.n == N + 7
        assert_same(made.finalize(), want.update(H1[:7], H2[:7]).finalize())

    def test_weights(self, defined: None) -> None:
        made = gl.LogitPairs(*tensors(spoiled(W1, 4), W2), **EXACT).update(*tensors(H1, H2))
        text = "w1 has non-finite values, or logits of row 0 of h1 overflow"
        with pytest.raises(ValueError, match=rf"LogitPairs\.state_dict: in update 1, {text}"):
            made.state_dict()

    def test_logits(self, defined: None) -> None:
        z1, z2 = H1 @ W1.T, H2 @ W2.T
        nothing, largest = z1.copy(), z1.copy()
        nothing[3], largest[4, 2] = -np.inf, np.inf
        z1[5, :7] = z2[5, :7] = -np.inf
        made = gl.LogitPairs(**EXACT)
        for z, text in (
            (nothing, "row 3 of h1 has no label that can be"),
            (largest, "h1 has non-finite values in rows"),
        ):
            made.update(*tensors(z, z2))
            with pytest.raises(ValueError, match=text):
                made.finalize()
        assert_same(made.update(*tensors(z1, z2)).finalize(), gl.compare_logits(z1, None, z2, None))
        # what lies outside of the labels is at fault for nothing
        nothing[1, V - 1] = np.nan
        made = gl.LogitPairs(labels=np.arange(V - 1), **EXACT).update(*tensors(nothing, z2))
        with pytest.raises(ValueError, match="row 3 of h1 has no label that can be"):
            made.finalize()

    def test_several(self, defined: None) -> None:
        made = stream()
        for row in range(3):
            made.update(*tensors(spoiled(H1, row), H2)).update(*tensors(H1, H2))
        assert made.n == 3 * N
        with pytest.raises(ValueError, match=r"in update 1, .* its rows are left out, as are those of 2 more"):
            made.finalize()
        assert made.finalize().n == 3 * N

    @pytest.mark.parametrize("method", ["reset", "load_state_dict"])
    def test_forgotten(self, defined: None, method: str) -> None:
        made = stream().update(*tensors(spoiled(H1, 3), H2)).update(*tensors(H1, H2))
        getattr(made, method)(*([stream().state_dict()] if method == "load_state_dict" else []))
        assert made.n == 0
        made.update(*tensors(spoiled(H1, 3), H2)).update(*tensors(H1, H2))
        with pytest.raises(ValueError, match="in update 1, "):
            made.finalize()
        assert made.finalize().n == N

    def test_of_the_other_one(self, defined: None) -> None:
        made, other = fed(), stream().update(*tensors(spoiled(H1, 3), H2)).update(*tensors(H1, H2))
        with pytest.raises(ValueError, match=r"LogitPairs\.merge: in update 1, h1 has non-finite"):
            made.merge(other)
        assert made.n == N
        assert made.merge(other).n == 2 * N

    def test_a_copy_tells_it_too(self, defined: None) -> None:
        made = stream().update(*tensors(spoiled(H1, 3), H2)).update(*tensors(H1, H2))
        for each in (copy.copy(made), copy.deepcopy(made), pickle.loads(pickle.dumps(made)), made):
            with pytest.raises(ValueError, match="in update 1, h1 has non-finite"):
                each.finalize()
            assert each.finalize().n == N

    @pytest.mark.parametrize(
        ("change", "text"),
        [
            ({"h2": spoiled(H2, 27)}, r"h2 has non-finite values in rows 20\.\.29$"),
            ({"w1": spoiled(W1, 4)}, r"w1 has non-finite values in rows 0\.\.29$"),
            ({"h1": 1e200 * H1, "w1": 1e200 * W1}, "logits overflow although the input is finite"),
            ({"targets": np.full(N, V)}, "expected targets from 0 to 29, or -1 for none, got 30 in row 0"),
        ],
    )
    def test_comparisons_raise_what_they_do_on_the_host(self, change: Any, text: str) -> None:
        given = dict(zip(("h1", "w1", "h2", "w2"), MODELS, strict=True)) | {"targets": TARGETS} | change
        made = {name: device.tensor(a) for name, a in given.items()}
        for arrays, options in ((given, {}), (made, EXACT)):
            with pytest.raises(ValueError, match=f"^compare_logits: {text}"):
                gl.compare_logits(**arrays, batch_rows=10, **options)
