"""Predictions in the report on a GPU: truths, what peers are asked, and what targets are judged by."""

import importlib
import math
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from support import bounds

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"

# sizes are chosen when the benchmarks are imported
with pytest.MonkeyPatch.context() as patch:
    patch.setenv("GRAMLESS_BENCH_TINY", "1")
    patch.syspath_prepend(str(FOLDER))
    logits = importlib.import_module("benchmarks.logits")
    gpu_device = importlib.import_module("benchmarks.gpu_device")
    gpu_logit_data = importlib.import_module("benchmarks.gpu_logit_data")
    gpu_logit_distance = importlib.import_module("benchmarks.gpu_logit_distance")
    gpu_logit_peers = importlib.import_module("benchmarks.gpu_logit_peers")
    gpu_logits = importlib.import_module("benchmarks.gpu_logits")
    gpu_rows = importlib.import_module("benchmarks.gpu_rows")

torch = pytest.importorskip("torch")
HOST = gpu_device.Device("cpu", True)


def models_of(data="apart", dtype="float32", n=20):
    return gpu_logit_data.two_models(n, 150, 12, dtype, data, HOST)


def as_arrays(models):
    return logits.Models(*(a.double().numpy() for a in models))


@pytest.fixture
def small_blocks(monkeypatch):
    # two sizes, the last one short
    monkeypatch.setattr(gpu_logit_data.parts, "__defaults__", (70,))
    monkeypatch.setattr(gpu_logit_data, "TRUE_ROWS", 7)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("data", ["apart", "near", "nearer"])
def test_truths_of_two_models_are_those_of_the_other_suites(data, dtype, small_blocks):
    models = models_of(data, dtype)
    truth = gpu_logit_data.true_pairs(models)
    assert (truth.rows == np.arange(20)).all()
    known = logits.true_pairs(as_arrays(models))
    for name, values in known.items():
        # KL of near models has the rounding of the logarithms that it is the difference of
        scale = truth.values["entropy_p"] if name.startswith(("kl", "js")) else values
        assert bounds.scaled_error(truth.values[name], values, scale) <= bounds.SAME_FP64


def test_truths_of_one_model_are_those_of_the_other_suites(small_blocks):
    h, w, _, _ = models_of()
    targets = torch.arange(20) * 7
    truth = gpu_logit_data.true_one(h, w, targets)
    known = logits.true_one(*(a.double().numpy() for a in (h, w)))
    known["cross_entropy"] = known["lse"] - (h.double() * w[targets].double()).sum(1).numpy()
    assert truth.values.keys() == known.keys()
    assert truth.worst(known) <= bounds.SAME_FP64


def test_near_models_are_as_near_as_promised():
    truth = gpu_logit_data.true_pairs(gpu_logit_data.two_models(64, 4096, 64, "bfloat16", "near", HOST))
    assert round(math.log10(truth.values["kl_pq"].mean())) == -4


def test_some_rows_stand_for_all():
    models = models_of()
    few, every = (gpu_logit_data.true_pairs(models, most) for most in (5, None))
    assert (few.rows[0], few.rows[-1], len(few.rows)) == (0, 19, 5)
    assert few.worst(every.values) <= bounds.SAME_FP64


@pytest.mark.parametrize("value", [math.nan, 9.0])
@pytest.mark.parametrize("name", ["kl_pq", "js"])
def test_one_wrong_row_is_seen(name, value):
    truth = gpu_logit_data.true_pairs(models_of(), 5)
    found = {key: np.full(20, math.nan) for key in ("kl_pq", "js")}
    for key, values in found.items():
        values[truth.rows] = truth.values[key]
    assert truth.worst(found) == 0
    found[name][truth.rows[3]] = value
    assert not truth.worst(found) <= gpu_rows.TOLERANCE["fast"]


def test_the_factor_of_torch_is_one_for_near_equal_models():
    models = models_of("nearer")
    truth = gpu_logit_data.true_pairs(models, 5)
    factor = gpu_logit_peers.torch_factor(models.w1, models.w2)
    assert gpu_logit_distance.torch_factor_errors(factor, models, truth).answer <= bounds.LOGIT_DISTANCE


@pytest.fixture
def liger(monkeypatch):
    """A package that computes as its documents say: of a student and its teacher, the mean over rows."""

    def mean(student, teacher, value):
        return gpu_logit_data.pair_values(teacher.double(), student.double())[value].mean()

    class Jsd:
        def __init__(self, jsd_beta):
            self.value = {0.0: "kl_pq", 0.5: "js", 1.0: "kl_qp"}[jsd_beta]

        def __call__(self, h, w, teacher_h, teacher_w, shift_labels):
            return mean(h @ w.T, teacher_h @ teacher_w.T, self.value)

    class KlDiv:
        def __init__(self, reduction):
            assert reduction == "batchmean"

        def __call__(self, h, w, target):
            return mean(h @ w.T, target.log(), "kl_pq")

    folder = "liger_kernel.transformers"
    for name, made in (
        ("fused_linear_jsd", {"LigerFusedLinearJSD": Jsd}),
        ("fused_linear_kl_div", {"LigerFusedLinearKLDivLoss": KlDiv}),
    ):
        module = types.ModuleType(f"{folder}.{name}")
        vars(module).update(made)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    for name in ("liger_kernel", folder):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))


def test_liger_is_asked_for_what_it_is_judged_by(liger):
    models = models_of()
    truth = gpu_logit_data.true_pairs(models, None)
    calls = gpu_logit_peers.liger_peers(models, HOST)
    assert {name for by_name in calls.values() for name in by_name} == {"liger-jsd", "liger-kl", "liger-kl-div"}
    for value, by_name in calls.items():
        for call in by_name.values():
            mean = call()
            assert gpu_logits.mean_errors(mean, truth, value).answer <= gpu_rows.TOLERANCE["high"]
            # the other direction is another answer
            assert gpu_logits.mean_errors(mean, truth, "kl_qp").answer > gpu_logits.LIGER_TOLERANCE


def row(shape, asked, name="gramless", **known):
    """A row that answers rightly, of which nothing else is known."""
    fields = dict.fromkeys(gpu_rows.GpuRow._fields) | shape._asdict() | {"name": name, "asked": asked, "agrees": True}
    fields |= {"ours": name.startswith("gramless"), "precision": "high"} | known
    return gpu_rows.GpuRow(**{key: value for key, value in fields.items() if key in gpu_rows.GpuRow._fields})


def judged(suite, *rows):
    """Which targets are met, by what they promise."""
    return {target.what: target.met for target in suite.targets(rows, HOST, quick=False)}


@pytest.fixture
def full_sizes(monkeypatch):
    # targets of sizes that are full, without a GPU
    monkeypatch.setattr(gpu_device.Device, "sized", lambda self, full, quick, tiny, *, is_quick: full)


@pytest.mark.parametrize(("floors", "met"), [(1.3, [True, True]), (1.45, [False, True]), (1.6, [False, False])])
def test_what_is_promised_of_a_pass(floors, met, full_sizes):
    large = gpu_logits.LARGE
    rows = [
        row(large, asked, times_floor=floors, seconds=floors * 44.5e-3, peak_extra_bytes=690_000_000)
        for asked in (gpu_logits.KL, gpu_logits.JS)
    ]
    small = row(large, gpu_logits.KL, "gramless-64MiB", seconds=0.05, peak_extra_bytes=200_000_000)
    found = judged(gpu_logits, *rows, small)
    for word in ("times the time of its products", "ms (H200)"):
        assert [state for what, state in found.items() if word in what] == met
    assert [state for what, state in found.items() if "less than 700 MB" in what] == [True, True]
    assert [state for what, state in found.items() if "runs with 64 MiB" in what] == [True, None]
    assert [state for what, state in found.items() if "Liger" in what] == [None]


@pytest.mark.parametrize(("ratio", "met"), [(4.5, True), (3.5, False)])
def test_what_is_promised_against_liger(ratio, met, full_sizes):
    ours, peer = (row(gpu_logits.OF_LIGER, gpu_logits.JS, name) for name in ("gramless", "liger-jsd"))
    found = judged(gpu_logits, ours, peer._replace(ratio=ratio))
    assert [state for what, state in found.items() if "Liger" in what] == [met]
    # no wrong answer of ours is quick
    found = judged(gpu_logits, ours._replace(agrees=False), peer)
    assert [state for what, state in found.items() if "Liger" in what] == [False]


@pytest.mark.parametrize(("floors", "seconds", "met"), [(1.9, 4e-3, [True, True]), (2.1, 6e-3, [False, False])])
def test_what_is_promised_of_a_factor(floors, seconds, met, full_sizes):
    large = gpu_logits.LARGE
    rows = [
        row(large, "factor", times_floor=floors),
        row(large, "rows", seconds=seconds),
    ]
    found = judged(gpu_logit_distance, *rows)
    assert [state for what, state in found.items() if "at most" in what] == met
