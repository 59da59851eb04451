"""Predictions on a GPU in each precision: what rounding may change, chunks of the workspace, and that nobody waits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from gramless import ops
from gramless._base import arguments, gpu_arrays
from gramless._triton import logit_pairs, logsumexp
from gramless._triton.logits import chunks
from gramless.measures import logits as values
from gramless.ops import backends, logit_arguments
from gramless.states.logits import LogitPairState, LogitState
from support import bounds, device, gpu_grids, logit_truth, logits
from support.backends import Backend
from support.selection import at_night

STEM = "logit_pairs"
PRECISIONS = ("fast", "high", "exact")
CASE = logits.Case("gpu_logits", "", 40, 1500, 70, 33, options=logits.OPTIONS[4].options)
KINDS = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32, "fp64": torch.float64}


@pytest.fixture
def pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of few rows and labels, where the workspace is small."""
    monkeypatch.setattr(chunks, "_MOST_ROWS", 1)
    monkeypatch.setattr(chunks, "_LEAST_ROWS", 1)
    monkeypatch.setattr(chunks, "_LEAST_LABELS", 1)


def tensors(inputs: logits.Inputs) -> list[torch.Tensor]:
    return [device.tensor(a) for a in inputs.arrays]


def run(inputs: logits.Inputs, **keywords: Any) -> dict[str, Any]:
    """The kernel, its results in NumPy."""
    flat = logit_pairs.logit_pairs(*tensors(inputs), **(dict(inputs.options) | keywords))
    return gpu_arrays.on_host(flat)


def terms(h: np.ndarray, w: np.ndarray) -> np.ndarray:
    """The sums of absolute terms of all logits."""
    return np.abs(h.astype(np.float64)) @ np.abs(w.astype(np.float64)).T


class TestRounding:
    @pytest.mark.parametrize("precision", PRECISIONS)
    @pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
    def test_logits_are_those_of_rounded_values(self, gpu_backend: Backend, dtype: str, precision: str) -> None:
        inputs = CASE.inputs(dtype)
        got = run(inputs, precision=precision)
        share = bounds.rounded_once("exact" if dtype != "fp32" else precision, 2, CASE.d1)
        for side, h, w in (("p", inputs.h1, inputs.w1), ("q", inputs.h2, inputs.w2)):
            z, scale = h.astype(np.float64) @ w.astype(np.float64).T, terms(h, w)
            bounds.assert_rounded_once(got[f"top_logit_{side}"], z.max(axis=1), scale.max(axis=1), share, "top")
            rows = np.flatnonzero(inputs.options["targets"] >= 0)
            at = rows, inputs.options["targets"][rows]
            bounds.assert_rounded_once(got[f"target_{side}"][rows], z[at], scale[at], share, "target")
            bounds.assert_rounded_once(
                got[f"lse_{side}"], np.log(np.exp(z).sum(axis=1)), 1 + scale.max(axis=1), share, "lse"
            )

    def test_precisions_differ(self, gpu_backend: Backend) -> None:
        exact = run(CASE.inputs("fp32"), precision="exact")["delta_p"]
        errors = [np.abs(run(CASE.inputs("fp32"), precision=p)["delta_p"] - exact).max() for p in ("fast", "high")]
        assert errors[0] > 50 * errors[1] > 0

    @pytest.mark.parametrize("dtype", ["bf16", "fp16"])
    def test_halves_are_taken_as_given(self, gpu_backend: Backend, dtype: str) -> None:
        inputs = CASE.inputs(dtype)
        bounds.assert_same_dicts(run(inputs, precision="fast"), run(inputs, precision="high"), dtype)

    @pytest.mark.parametrize("precision", PRECISIONS)
    def test_float64_is_exact_whatever_is_asked_for(self, gpu_backend: Backend, precision: str) -> None:
        inputs = logits.TYPICAL.inputs("fp64", "fp32")
        arrays = [device.tensor(a) if gpu_backend.label == "cuda" else a for a in inputs.arrays]
        got = ops.logit_pairs(*arrays, **inputs.options, divergences=True, precision=precision, backend="cuda")
        logit_truth.assert_pairs(got, inputs, divergences=True)

    @pytest.mark.parametrize("precision", PRECISIONS)
    @pytest.mark.parametrize("dtype", ["bf16", "fp32"])
    def test_integers_are_exact(self, gpu_backend: Backend, dtype: str, precision: str) -> None:
        inputs = logits.INTEGERS.inputs(dtype)
        z1, z2 = (h.astype(np.float64) @ w.astype(np.float64).T for h, w in (inputs.arrays[:2], inputs.arrays[2:]))
        got = run(inputs, precision=precision)
        for side, z in (("p", z1), ("q", z2)):
            np.testing.assert_array_equal(got[f"top_{side}"], z.argmax(axis=1))
            np.testing.assert_array_equal(got[f"top_logit_{side}"], z.max(axis=1))
        np.testing.assert_array_equal(got["delta_abs"], np.abs(z1 - z2).sum(axis=1))
        np.testing.assert_array_equal(got["delta_max"], np.abs(z1 - z2).max(axis=1))

    @pytest.mark.parametrize(("dtype", "precision"), [("bf16", "high"), ("fp16", "fast"), ("fp32", "high")])
    def test_kl_of_near_equal_models(self, gpu_backend: Backend, dtype: str, precision: str) -> None:
        """Of a KL of about 1e-4, of the values that were given, in the mean over rows."""
        case = replace(logits.NEAR_KL, dtypes=(dtype,))
        inputs = case.inputs(dtype)
        exact, _ = logit_truth.known(case, dtype)
        state = ops.logit_pairs(
            *(device.tensor(a) if gpu_backend.label == "cuda" else a for a in inputs.arrays),
            divergences=True,
            precision=precision,
            backend="cuda",
        )
        got = logits.row_values(state)
        assert abs(np.log10(exact["kl_pq"].mean() / 1e-4)) < 1
        for key in ("kl_pq", "kl_qp", "js"):
            bounds.assert_relative(got[key].mean(), exact[key].mean(), bounds.NEAR_EQUAL_KL, key)

    @pytest.mark.parametrize("precision", PRECISIONS)
    @pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12])
    def test_no_scale_is_too_small_or_large(self, gpu_backend: Backend, scale: float, precision: str) -> None:
        """Logits of any size: distances are as many digits of them."""
        inputs = logits.TYPICAL.inputs("fp32")
        moved = logits.Inputs(inputs.h1, np.float32(scale) * inputs.w1, inputs.h2, np.float32(scale) * inputs.w2)
        got, want = run(moved, precision=precision), run(logits.Inputs(*inputs.arrays), precision="exact")
        share = bounds.rounded_once(precision, 2, logits.TYPICAL.d1)
        truth = np.sqrt(want["delta_square"]) * scale
        size = scale * np.sqrt((terms(inputs.h1, inputs.w1) + terms(inputs.h2, inputs.w2)).max() ** 2 * 400)
        bounds.assert_rounded_once(np.sqrt(got["delta_square"]), truth, size + 0 * truth, share, "distance")

    def test_equal_models_are_equal_in_every_precision(self, gpu_backend: Backend) -> None:
        inputs = CASE.inputs("fp32").alone
        for precision in PRECISIONS:
            got = run(inputs, divergences=True, precision=precision)
            for key in ("delta_p", "delta_q", "delta_square", "delta_max", "js", "tv"):
                np.testing.assert_array_equal(got[key], 0, err_msg=f"{key}, {precision}")


class TestChunks:
    @pytest.mark.parametrize("workspace", [1, 3 << 20, None])
    @pytest.mark.parametrize("dtype", ["bf16", "fp64"])
    def test_the_workspace_changes_rounding_only(
        self, gpu_backend: Backend, pieces: None, dtype: str, workspace: int | None
    ) -> None:
        case = logits.Case("chunks", "labels of one row in several chunks", 300, 1500, 5, 9, options=CASE.options)
        inputs = case.inputs(dtype)
        got = run(inputs, divergences=True, workspace=workspace)
        want = logit_truth.known(case, dtype)
        state = LogitPairState(**got)
        logit_truth.assert_pairs(state, inputs, want, divergences=True)

    def test_one_model_in_chunks(self, gpu_backend: Backend, pieces: None, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(chunks, "WORKSPACE_BYTES", 1)
        inputs = CASE.inputs("fp64")
        flat = logsumexp.logsumexp(*tensors(inputs)[:2], **inputs.single)
        logit_truth.assert_single(LogitState(**gpu_arrays.on_host(flat)), inputs)

    @pytest.mark.parametrize("whole", [False, True])
    @pytest.mark.parametrize("tile", [(128, 256), (64, 128), (128, 512)], ids=str)
    @pytest.mark.parametrize("numbers", [0, 10**5, 8 * 2**20, 64 * 2**20])
    @pytest.mark.parametrize(("n", "labels"), [(1, 2), (300, 50257), (16384, 131072), (10**6, 1000)])
    def test_shapes_keep_to_the_workspace(
        self, n: int, labels: int, numbers: int, tile: tuple[int, int], whole: bool
    ) -> None:
        rows, columns = chunks.shape_of(n, labels, tile, numbers, whole=whole)
        assert rows % tile[0] == 0 == columns % tile[1]
        assert rows > 0 < columns
        # one tile there always is
        assert rows * columns <= max(numbers, tile[0] * tile[1])
        assert rows < n + tile[0]
        assert columns < labels + tile[1]

    def test_all_labels_of_many_rows_where_they_are_read_again(self) -> None:
        """512 MiB of two models at the size of the target: what JS reads again is there."""
        whole = chunks.shape_of(16384, 131072, (128, 256), 2**26, whole=True)
        once = chunks.shape_of(16384, 131072, (128, 256), 2**26, whole=False)
        assert whole == (512, 131072)
        assert once == (2048, 32768)


class TestResults:
    @pytest.mark.parametrize("precision", ["high", *at_night("fast", "exact")])
    def test_the_same_again_and_in_any_layout(self, gpu_backend: Backend, precision: str) -> None:
        inputs = CASE.inputs("fp32")
        want = run(inputs, divergences=True, precision=precision)
        bounds.assert_same_dicts(run(inputs, divergences=True, precision=precision), want, "again")
        moved = [np.asfortranarray(inputs.h1), np.repeat(inputs.w1, 2, axis=1)[:, ::2], inputs.h2[::-1], inputs.w2]
        turned = logits.Inputs(moved[0], moved[1], np.ascontiguousarray(moved[2])[::-1], moved[3], inputs.options)
        bounds.assert_same_dicts(run(turned, divergences=True, precision=precision), want, "layout")

    def test_stay_on_the_device_in_float64(self, gpu_backend: Backend) -> None:
        arrays = tensors(CASE.inputs("bf16"))
        flat = logit_pairs.logit_pairs(*arrays, divergences=True)
        for key, value in flat.items():
            if key != "labels":
                assert value.device == arrays[0].device
                assert value.dtype == (torch.int64 if key.startswith("top_") and "logit" not in key else torch.float64)

    def test_targets_of_no_label_have_none(self, gpu_backend: Backend) -> None:
        """Whatever the targets of a stream are, which nobody has looked at."""
        inputs = logits.TYPICAL.inputs("fp32")
        targets = np.resize([-100, -1, 3, 399, 400, 10**12], logits.TYPICAL.n)
        for labels in (None, np.arange(3, 400)):
            got = run(logits.Inputs(*inputs.arrays), targets=torch.from_numpy(targets), labels=labels)
            np.testing.assert_array_equal(np.isnan(got["target_p"]), ~np.isin(targets, [3, 399]))

    def test_divergences_of_slices(self, gpu_backend: Backend) -> None:
        inputs = CASE.inputs("fp32")
        whole = run(logits.Inputs(*inputs.arrays), divergences=True, precision="exact")
        h1, w1, h2, w2 = tensors(inputs)
        shares = [
            logit_pairs.logit_divergences(
                h1,
                w1[part],
                h2,
                w2[part],
                *(torch.as_tensor(whole[k], device=h1.device) for k in ("lse_p", "lse_q")),
                precision="exact",
            )
            for part in (slice(0, 700), slice(700, None))
        ]
        for key in ("js", "tv"):
            got = sum(share[key] for share in shares).cpu().numpy()
            bounds.assert_within_algebra(got, whole[key], 1 + np.abs(whole["lse_p"]), key)


class TestNoWait:
    def test_kernels(self, forbidden: None) -> None:
        h, w = torch.zeros((30, 8)), torch.zeros((900, 8))
        options = {"labels": np.arange(5, 800), "targets": torch.zeros(30, dtype=torch.int64), "temperature": 2.0}
        flat = logit_pairs.logit_pairs(h, w, h, w, b1=np.zeros(900), b2=np.zeros(900), divergences=True, **options)
        with pytest.raises(AssertionError, match="waited"):
            flat["js"].cpu()
        logsumexp.logsumexp(h, w, b=np.zeros(900), mask=np.arange(30) > 3, softcap=3.0, **options)

    def test_checked_models(self, forbidden: None) -> None:
        h, w = torch.zeros((30, 8)), torch.zeros((900, 8))
        heads = [logit_arguments.head("f", h, w, None, None, number) for number in "12"]
        flat = ops.unread_logit_pairs(*heads, divergences=True, targets=torch.zeros(30, dtype=torch.int64))
        with pytest.raises(AssertionError, match="waited"):
            float(flat["js"][0])


class TestCapture:
    """What training loops do with kernels: on a GPU, replay them from a CUDA graph."""

    @pytest.mark.parametrize("guard", gpu_grids.GUARDS)
    def test_nothing_waits(self, gpu_backend: Backend, guard: str) -> None:
        arrays = tensors(logits.TYPICAL.inputs("bf16"))
        # the first call compiles
        logit_pairs.logit_pairs(*arrays, divergences=True, softcap1=5.0, temperature=2.0)
        gpu_grids.GUARDS[guard](
            lambda: logit_pairs.logit_pairs(*arrays, divergences=True, softcap1=5.0, temperature=2.0)
        )

    @pytest.mark.parametrize("repeat", gpu_grids.REPEATS)
    def test_the_same_results_again(self, gpu_backend: Backend, repeat: str) -> None:
        arrays = tensors(logits.TYPICAL.inputs("bf16"))
        want = gpu_arrays.on_host(logit_pairs.logit_pairs(*arrays, divergences=True))
        found: dict[str, Any] = {}
        gpu_grids.REPEATS[repeat](lambda: found.update(logit_pairs.logit_pairs(*arrays, divergences=True)))
        bounds.assert_same_dicts(gpu_arrays.on_host(found), want, repeat)


class TestPublic:
    """Through the functions that users call, on tensors."""

    BACKEND = "auto" if device.label() == "cuda" else "cuda"

    def test_all_options_are_those_of_the_host(self, gpu_backend: Backend) -> None:
        inputs = logits.OPTIONS[-1].inputs("fp32")
        got = ops.logit_pairs(*tensors(inputs), **inputs.options, divergences=True, backend=self.BACKEND)
        want = logits.pairs(Backend("reference"), inputs, divergences=True)
        assert isinstance(got.js, np.ndarray)
        np.testing.assert_array_equal(got.top_p, want.top_p)
        share = bounds.rounded_once("high", 2, inputs.h1.shape[1])
        for name in ("kl_pq", "js", "logit_distance"):
            one, other = (getattr(values, name)(state) for state in (got, want))
            bounds.assert_rounded_once(one, other, 100 + 0 * other, share, name)

    def test_faults_are_named_as_on_the_host(self, gpu_backend: Backend) -> None:
        h1, w1, h2, w2 = tensors(CASE.inputs("bf16"))
        w2[700, 3] = float("nan")
        with pytest.raises(ValueError, match=r"logit_pairs: w2 has non-finite values in rows 512\.\.767"):
            ops.logit_pairs(h1, w1, h2, w2, backend=self.BACKEND)
        kept = np.delete(np.arange(1500), 700)
        assert np.isfinite(ops.logit_pairs(h1, w1, h2, w2, labels=kept, backend=self.BACKEND).lse_q).all()
        lse = np.zeros(40)
        with pytest.raises(ValueError, match=r"logit_divergences: w2 has non-finite values in rows 512\.\.767"):
            ops.logit_divergences(h1, w1, h2, w2, lse, lse, backend=self.BACKEND)

    def test_devices_must_agree(self, gpu_backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
        inputs = CASE.inputs("fp32")
        monkeypatch.setattr(arguments, "gpu_of", lambda a: "cuda:0" if a is inputs.w2 else "")
        with pytest.raises(RuntimeError, match="h1 and w2 on the same device, got h1 on the host and w2 on cuda:0"):
            ops.logit_pairs(*inputs.arrays)

    @pytest.mark.parametrize("backend", ["cpu", "reference"])
    def test_backends_of_the_host_say_so(self, monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
        monkeypatch.setattr(arguments, "gpu_of", lambda _: "cuda:0")
        with pytest.raises(RuntimeError, match=f"backend='{backend}' reads host memory"):
            ops.logit_pairs(*CASE.inputs("fp32").arrays, backend=backend)

    def test_precision(self) -> None:
        with pytest.raises(ValueError, match="precision to be one of 'fast', 'high', 'exact', got 'low'"):
            ops.logsumexp(*CASE.inputs("fp32").arrays[:2], precision="low")
        assert backends.PRECISIONS == PRECISIONS
