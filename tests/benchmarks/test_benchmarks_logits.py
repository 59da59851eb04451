"""What judges the benchmarks over logits: their truth, their operations, and that a wrong answer is seen."""

import importlib
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.special import logsumexp, rel_entr, softmax

import gramless as gl
from support import bounds

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"

# sizes are chosen when the benchmarks are imported
with pytest.MonkeyPatch.context() as patch:
    patch.setenv("GRAMLESS_BENCH_TINY", "1")
    patch.syspath_prepend(str(FOLDER))
    base = importlib.import_module("benchmarks.base")
    comparison = importlib.import_module("benchmarks.comparison")
    logits = importlib.import_module("benchmarks.logits")
    peers_distance = importlib.import_module("benchmarks.peers_distance")
    peers_logits = importlib.import_module("benchmarks.peers_logits")
    report = importlib.import_module("benchmarks.report")
    rows = importlib.import_module("benchmarks.rows")

# more rows than are checked
SHAPE = (50, 150, 12)


@pytest.fixture(autouse=True)
def tiny_children(monkeypatch):
    monkeypatch.setenv("GRAMLESS_BENCH_TINY", "1")


@pytest.fixture
def small_blocks(monkeypatch):
    # two sizes, the last one short; children, which draw the same data, know nothing of it
    monkeypatch.setattr(logits, "BLOCK_ROWS", 70)


def models(dtype="float32", data="apart"):
    return logits.two_models(*SHAPE, dtype, difference=logits.DIFFERENCES[data])


def textbook(given):
    """All logits of the sampled rows in float64."""
    few = logits.sampled(SHAPE[0])
    h1, w1, h2, w2 = (np.asarray(array, dtype=np.float64) for array in given)
    return h1[few] @ w1.T, h2[few] @ w2.T


def same(found, expected):
    """Up to the rounding of logarithms, which are below 10."""
    scale = np.maximum(np.abs(expected), 1.0)
    return bounds.scaled_error(found, expected, scale) <= bounds.algebra(10.0)


@pytest.mark.parametrize("dtype", base.DTYPES)
@pytest.mark.parametrize("data", ["apart", "near"])
def test_truth_of_two_models_is_the_textbook(dtype, data, small_blocks):
    given = models(dtype, data)
    found = logits.true_pairs(given)
    z1, z2 = textbook(given)
    p, q = softmax(z1, axis=1), softmax(z2, axis=1)
    expected = {
        "kl_pq": rel_entr(p, q).sum(1),
        "kl_qp": rel_entr(q, p).sum(1),
        "logit_distance": np.sqrt(SHAPE[1]) * (z1 - z2).std(1),
        "js": (rel_entr(p, (p + q) / 2) + rel_entr(q, (p + q) / 2)).sum(1) / 2,
        "tv": np.maximum(p - q, 0).sum(1),
    }
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert same(found[name], values), name


@pytest.mark.parametrize("dtype", base.DTYPES)
def test_truth_of_one_model_is_the_textbook(dtype, small_blocks):
    given = models(dtype)
    found = logits.true_one(given.h1, given.w1)
    z, _ = textbook(given)
    p = softmax(z, axis=1)
    expected = {
        "lse": logsumexp(z, axis=1),
        "entropy": -rel_entr(p, np.ones_like(p)).sum(1),
        "renyi2": -np.log((p**2).sum(1)),
    }
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert same(found[name], values), name


def test_near_models_differ_by_the_kl_that_is_promised():
    near = logits.two_models(50, 2000, 64, "float32", difference=logits.DIFFERENCES["near"])
    assert round(math.log10(logits.true_pairs(near)["kl_pq"].mean())) == -4


def wrong(values):
    """One sampled row off by 1 %."""
    values = values.copy()
    values[-1] *= 1.01
    return values


@pytest.mark.parametrize("name", ["delta_p", "delta_q", "delta_square"])
def test_a_wrong_sum_of_two_models_is_seen(name):
    given = models()
    truth, state = logits.true_pairs(given), gl.logit_pairs(*given)
    assert base.agrees(logits.pairs_error(state, truth), "float32")
    state = replace(state, **{name: wrong(getattr(state, name))})
    assert not base.agrees(logits.pairs_error(state, truth), "float32")


@pytest.mark.parametrize("name", ["js", "tv"])
def test_a_wrong_divergence_is_seen(name):
    given = models()
    truth, state = logits.true_pairs(given), gl.logit_pairs(*given, divergences=True)
    assert base.agrees(logits.divergences_error(state, truth), "float32")
    state = replace(state, **{name: wrong(getattr(state, name))})
    assert not base.agrees(logits.divergences_error(state, truth), "float32")


@pytest.mark.parametrize("name", ["lse", "mean", "lse2"])
def test_a_wrong_sum_of_one_model_is_seen(name):
    given = models()
    truth, state = logits.true_one(given.h1, given.w1), gl.logsumexp(given.h1, given.w1)
    assert base.agrees(logits.one_error(state, truth), "float32")
    state = replace(state, **{name: wrong(getattr(state, name))})
    assert not base.agrees(logits.one_error(state, truth), "float32")


@pytest.mark.parametrize("module", [peers_logits, peers_distance])
@pytest.mark.parametrize("chunk", [16, 64])
def test_peers_answer_whatever_the_chunk(module, chunk, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_ROWS", chunk)
    truth = logits.true_pairs(models())
    expected = {
        peers_logits: [truth["kl_pq"], truth["kl_qp"]],
        peers_distance: truth["logit_distance"],
    }[module]
    for name in module.PEERS:
        call, read = module.prepare(name, *SHAPE, "apart", threads=1)
        assert base.agrees(base.relative_error(read(call()), np.asarray(expected)), "float32"), name


def test_operations():
    n, labels, width = 10, 7, 3
    assert logits.pair_flops(n, labels, width) == 2 * (2 * n * labels * width)
    # the moments of 2 d columns, half of them
    assert logits.factor_flops(labels, width) == labels * 36
    assert logits.factor_row_flops(n, width) == n * 36


def test_each_peer_is_judged_by_its_own_operations(monkeypatch):
    monkeypatch.setattr(peers_distance, "PEERS", dict.fromkeys(("gramless", "gramless-pass"), ()))
    work = {}

    def seen(task, peers, threads, rounds):
        work.update(task.work)
        return comparison.take_turns(task, peers, threads, rounds)

    monkeypatch.setattr(peers_distance, "take_turns", seen)
    ours, other = peers_distance.compare(*SHAPE, "apart", 1, rounds=1)
    assert work["gramless"] == (logits.factor_row_flops(SHAPE[0], SHAPE[2]), "float64")
    assert "gramless-pass" not in work
    assert (ours.ratio, ours.labels, ours.data) == (1.0, SHAPE[1], "apart")
    assert other.ratio == other.seconds / ours.seconds


def test_float32_is_another_answer_for_nearer_models(monkeypatch):
    monkeypatch.setattr(peers_distance, "PEERS", dict.fromkeys(("gramless", "gramless-pass"), ()))
    ours, other = peers_distance.compare(*SHAPE, "nearer", 1, rounds=1)
    assert (ours.agrees, other.agrees, other.ratio) == (True, False, None)


def asked(name, dtype="float32", **changed):
    given = models(dtype)
    truth = logits.true_pairs(given)
    call = rows.Asked(name, lambda: gl.logit_pairs(*given), lambda state: logits.pairs_error(state, truth), dtype, 1000)
    return call._replace(**changed)


def in_turns(*calls):
    n, labels, width = SHAPE
    return rows.measure_in_turns(calls, n=n, width=width, labels=labels, threads=1, rounds=1)


def test_calls_are_measured_in_turns():
    first, second, third = in_turns(
        asked("a"), asked("b", dtype="float64"), asked("c", on_fma=False, error=lambda state: 0.5, tolerance=0.7)
    )
    assert [row.name for row in (first, second, third)] == ["a", "b", "c"]
    assert [row.dtype for row in (first, second, third)] == ["float32", "float64", "float32"]
    assert (first.times_first, second.times_first) == (1.0, second.seconds / first.seconds)
    # the GEMM of each dtype
    assert first.gemm_gflops == third.gemm_gflops != second.gemm_gflops
    assert (third.agrees, third.error, third.fma_gflops, third.fma_fraction) == (True, 0.5, None, None)
    assert {row.labels for row in (first, second, third)} == {SHAPE[1]}


def test_a_wrong_call_has_no_speed_and_the_others_no_ratio_to_it():
    first, second = in_turns(asked("a", error=lambda state: 0.5), asked("b"))
    assert (first.gflops, first.gemm_fraction, first.times_first, first.agrees) == (None, None, None, False)
    assert (second.agrees, second.times_first) == (True, None)


def test_bfloat16_has_a_unit_of_its_own_or_none(monkeypatch):
    for unit, expected in (("amx", True), ("none", False)):
        monkeypatch.setattr(logits._core, "bf16_unit", lambda unit=unit: unit)
        assert logits.by_bf16_unit("bfloat16") is expected
        assert not logits.by_bf16_unit("float32")


@pytest.mark.parametrize("text", ["10x20", "10x20x30x40", "ax20x30"])
def test_a_shape_of_logits_has_three_numbers(text, capsys):
    with pytest.raises(SystemExit):
        report.arguments(["--logit-shapes", text])
    assert f"invalid logit_shape value: '{text}'" in capsys.readouterr().err
    assert report.arguments(["--logit-shapes", "10x20x30"]).logit_shapes == [(10, 20, 30)]


def test_float64_is_measured_at_the_first_shape_only():
    options = report.arguments(["--dtypes", "float32", "float64", "--logit-shapes", "10x20x30", "10x20x40"])
    chosen = [report.report_logits.dtypes_of(options, shape) for shape in options.logit_shapes]
    assert chosen == [["float32", "float64"], ["float32"]]
