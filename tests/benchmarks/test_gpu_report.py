"""The report on a GPU: it runs as a whole in Triton's interpreter, and shows no speed where an answer is wrong."""

import importlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support import bounds, device

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"

# sizes are chosen when the benchmarks are imported
with pytest.MonkeyPatch.context() as patch:
    patch.setenv("GRAMLESS_BENCH_TINY", "1")
    patch.syspath_prepend(str(FOLDER))
    base = importlib.import_module("benchmarks.base")
    grids = importlib.import_module("benchmarks.grids")
    rbf = importlib.import_module("benchmarks.rbf")
    compiled = importlib.import_module("benchmarks.compiled")
    gpu_compiler = importlib.import_module("benchmarks.gpu_compiler")
    gpu_data = importlib.import_module("benchmarks.gpu_data")
    gpu_device = importlib.import_module("benchmarks.gpu_device")
    gpu_gram = importlib.import_module("benchmarks.gpu_gram")
    gpu_grid = importlib.import_module("benchmarks.gpu_grid")
    gpu_moments = importlib.import_module("benchmarks.gpu_moments")
    gpu_peers = importlib.import_module("benchmarks.gpu_peers")
    gpu_rows = importlib.import_module("benchmarks.gpu_rows")
    gpu_tables = importlib.import_module("benchmarks.gpu_tables")
    gpu_report = importlib.import_module("gpu_report")

needs_triton = pytest.mark.skipif(not device.has_triton(), reason="Triton is not for this kind of machine")

HOST = gpu_device.Device("cpu", True)
TIMES = ("seconds", "tflops", "gemm_tflops", "gemm_fraction", "floor_seconds", "times_floor", "ratio")
TORCH_CHUNKS = {"torch-chunks", "torch-compiled", "torch-float32", "torch-tf32"}
NAMES = {
    "moments": {"gramless", "torch-bfloat16", "torch-float32", "torch-tf32"},
    "gram_sums": {"gramless", "torch-blocks", "torch-compiled", "torch-naive"},
    "grid": {"gramless", "gramless-graph", "torch-bmm", "torch-bmm-graph", "pytorch-cka", "pytorch-cka-float32"},
    "logit_pairs": {"gramless", "gramless-64MiB", "gramless-unread", *TORCH_CHUNKS},
    "logsumexp": {"gramless", "gramless-unread", *TORCH_CHUNKS},
    "logit_distance": {"gramless", "gramless-pass", "torch-moments", "torch-chunks", "torch-compiled"},
}
PRECISIONS = {name: {"fast", "high"} for name in NAMES} | {
    "logit_pairs": {"high"},
    "logsumexp": {"high"},
    "logit_distance": {"fast", "high", "exact"},
}
# that are measured if they are installed
OPTIONAL = {"keops", "liger-jsd", "cce", "cce-lse"}
# its products of bfloat16 have results in bfloat16, and lose what is between them
MAY_BE_OFF = {"pytorch-cka"}


def run(*arguments, program=None):
    """The command in a process of its own, or a program that ends with it."""
    command = (
        [str(FOLDER / "gpu_report.py")]
        if program is None
        else ["-c", f"import sys\nsys.path.insert(0, {str(FOLDER)!r})\n{program}"]
    )
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    return subprocess.run([sys.executable, *command, *arguments], env=environment, capture_output=True, text=True)


def written(path):
    return json.loads(path.read_text())


@needs_triton
def test_everything_runs_without_a_gpu(tmp_path):
    path = tmp_path / "report.json"
    done = run("--interpret", "--suite", *NAMES, "--json", str(path))
    report = written(path)
    assert (done.returncode, report["errors"]) == (0, {}), done.stdout + done.stderr
    assert report.keys() == {"machine", "gpu", "quick", "rounds", "targets", "errors", *NAMES}
    assert report["gpu"]["triton"]
    for suite, names in NAMES.items():
        rows = report[suite]
        assert {row["name"] for row in rows} - OPTIONAL == names
        assert {row["precision"] for row in rows if row["ours"]} == PRECISIONS[suite]
        for row in rows:
            assert row.keys() == set(gpu_rows.GpuRow._fields)
            # nothing is timed in an interpreter
            assert {row[name] for name in TIMES} == {None}
            assert row["failed"] is None or row["name"] in OPTIONAL
            assert row["agrees"] or row["name"] in MAY_BE_OFF | OPTIONAL
            assert row["failed"] or row["error"] is not None or row["sums_error"] is not None
    assert {target["met"] for target in report["targets"]} == {None}


WRONG = """
from gramless._triton import moments
from benchmarks import gpu_gram
import gpu_report
right = moments.moments
def wrong(*arguments, **keywords):
    found = right(*arguments, **keywords)
    found["sxy"][3, 5] *= 1.5
    return found
def stopped(*arguments, **keywords):
    raise MemoryError("no room")
moments.moments, gpu_gram.true_kernel_sums = wrong, stopped
sys.exit(gpu_report.main())
"""


@needs_triton
def test_a_wrong_kernel_and_a_suite_that_fails(tmp_path):
    path = tmp_path / "report.json"
    options = ["--interpret", "--suite", "gram_sums", "moments", "--json", str(path)]
    done = run(*options, program=WRONG)
    report = written(path)
    assert done.returncode == 1
    ours = [row for row in report["moments"] if row["ours"]]
    assert ours
    assert {row["agrees"] for row in ours} == {False}
    assert done.stdout.count("WRONG") == len(ours)
    assert {target["met"] for target in report["targets"] if target["what"].startswith("moments, ")} == {False}
    assert report["errors"] == {"gram_sums": "MemoryError: no room"}
    assert "gram_sums failed: MemoryError: no room" in done.stdout
    assert report["gram_sums"] == []


def test_without_gramless_it_says_what_to_do():
    done = run("--interpret", program="sys.modules['gramless'] = None\nimport gpu_report\nsys.exit(gpu_report.main())")
    assert done.returncode == 2
    assert "pip install ." in done.stderr


@needs_triton
def test_without_a_gpu_it_says_so(monkeypatch, capsys):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_report.main([]) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert "no GPU" in told
    assert "--interpret" in told


@needs_triton
def test_a_suite_runs_in_a_process_of_its_own():
    part = gpu_report.in_a_process("moments", gpu_report.arguments(["--interpret"]))
    assert part["error"] is None
    assert {row["name"] for row in part["rows"]} == NAMES["moments"]
    assert part["targets"]


@pytest.mark.parametrize("spilled", [0, 8])
def test_what_the_compiler_makes_is_part_of_it(spilled, monkeypatch, capsys):
    row = compiled.Compiled(
        scenario="moments fast",
        target="sm_90",
        kernel="_pack_kernel",
        constants="",
        warps=4,
        stages=3,
        registers=32,
        spilled=spilled,
        shared=64,
        matrix=(),
        multiplies=False,
        wide_loads=2,
        loads=4,
        reads_rows=True,
    )
    monkeypatch.setattr(gpu_compiler, "compile_all", lambda *arguments, **keywords: [row])
    part = gpu_report.run_suite("compiler", HOST, gpu_report.arguments(["--interpret"]))
    assert part["error"] is None
    assert [found["spilled"] for found in part["rows"]] == [spilled]
    (target,) = part["targets"]
    assert target["met"] is (spilled == 0)
    assert ("spills 8 bytes" in capsys.readouterr().out) is (spilled == 8)


def test_a_process_that_dies_is_an_error(monkeypatch):
    class Dead:
        returncode = -11

    monkeypatch.setattr(gpu_report.subprocess, "run", lambda *arguments, **keywords: Dead())
    part = gpu_report.in_a_process("grid", gpu_report.arguments(["--interpret"]))
    assert part == {"rows": [], "targets": [], "error": "its process ended with status -11"}


class Clocked(gpu_device.Device):
    """A device whose calls take as long as they say."""

    def seconds(self, call):
        taken = call()
        return taken if isinstance(taken, float) else 1.0

    def first_call(self, call):
        return call(), 1000, 0.0

    def release(self):
        pass


CASE = gpu_rows.Case("bfloat16", "high", 10, 4, 600, 3, 80, "nothing")


@pytest.fixture
def clocked(monkeypatch):
    monkeypatch.setattr(gpu_device, "GEMM_SIZE", 10)
    monkeypatch.setattr(gpu_device, "COPIED_BYTES", 200)
    return Clocked("cpu", False)


def contestant(name, seconds, error, calls=None, **known):
    def call():
        if calls is not None:
            calls.append(name)
        if seconds is None:
            raise RuntimeError("not enough\nof it")
        return seconds

    return gpu_rows.Contestant(name, call, lambda taken: gpu_rows.Errors(*error), **known)


def measured(device, *contestants, rounds=3, case=CASE):
    return {row.name: row for row in gpu_rows.measure(case, contestants, device, rounds)}


def test_figures_follow_from_times(clocked):
    rows = measured(clocked, contestant("gramless", 0.5, (0.0, 0.0)), contestant("peer", 2.0, (None, 0.0)))
    ours, peer = rows["gramless"], rows["peer"]
    assert (ours.seconds, ours.ratio, peer.ratio, ours.peak_extra_bytes) == (0.5, 1.0, 4.0, 1000)
    # a product of two matrices of 10 x 10, and a copy of 100 bytes, take a second
    bounds.assert_relative(ours.gemm_tflops, 2000e-12, bounds.SAME_FP64)
    bounds.assert_relative(ours.tflops, 1200e-12, bounds.SAME_FP64)
    # ours takes three products for one
    assert (ours.gemm_fraction, peer.gemm_fraction) == (1.8, 0.15)
    # 1800 operations at 2000 per second outweigh 80 bytes at 200
    assert (ours.floor_seconds, ours.times_floor) == (0.9, 0.5 / 0.9)


@pytest.mark.parametrize("error", [(1.0, 0.0), (0.0, 1.0), (math.nan, 0.0), (0.0, math.nan), (None, None)])
@pytest.mark.parametrize("name", ["gramless", "peer"])
def test_a_wrong_answer_is_not_timed(name, error, clocked):
    calls = []
    row = measured(clocked, contestant(name, 0.5, error, calls))[name]
    assert not row.agrees
    assert {getattr(row, field) for field in TIMES} == {None}
    # one to compile, one to judge
    assert len(calls) == 2
    assert ("WRONG" if row.ours else "another answer") in gpu_tables.verdict(row)


def test_a_call_that_answers_in_another_way_has_operations_of_its_own(clocked):
    work = gpu_rows.Work(4000, 2)
    one = contestant("gramless-pass", 4.0, (0.0,), work=work)
    row = measured(clocked, contestant("gramless", 0.5, (0.0,)), one)["gramless-pass"]
    # 8000 operations at 2000 per second, in as long
    assert (row.floor_seconds, row.times_floor, row.gemm_fraction) == (4.0, 1.0, 1.0)
    bounds.assert_relative(row.tflops, 1000e-12, bounds.SAME_FP64)


@pytest.mark.parametrize("error", [0.5, 2.0])
def test_tolerances_of_a_case_and_of_a_call(error, clocked):
    case = CASE._replace(tolerance=1.0)
    rows = measured(
        clocked, contestant("gramless", 0.5, (error,)), contestant("peer", 1.0, (error,), tolerance=4.0), case=case
    )
    assert (rows["gramless"].agrees, rows["peer"].agrees) == (error < 1.0, True)
    # without these, that of the precision
    assert not measured(clocked, contestant("gramless", 0.5, (error,)))["gramless"].agrees


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_rates_are_compared_with_products_of_one_dtype(dtype, clocked, monkeypatch):
    asked = []
    gemm_call = gpu_device.gemm_call
    monkeypatch.setattr(gpu_rows, "gemm_call", lambda device, kind: asked.append(kind) or gemm_call(device, kind))
    row = measured(clocked, contestant("gramless", 0.5, (0.0,)), case=CASE._replace(gemm=dtype))["gramless"]
    assert (row.gemm, asked) == (dtype, [dtype])
    product, _ = gemm_call(clocked, dtype)
    assert str(product().dtype) == f"torch.{dtype}"


def test_a_call_that_fails_is_told_and_stops_no_other(clocked):
    rows = measured(clocked, contestant("gramless", 0.5, (0.0,)), contestant("peer", None, (0.0,)))
    assert rows["gramless"].seconds == 0.5
    assert (rows["peer"].failed, rows["peer"].seconds, rows["peer"].agrees) == ("RuntimeError: not enough", None, False)


def test_targets(clocked):
    right = measured(clocked, contestant("gramless", 0.5, (0.0,)))["gramless"]
    wrong = measured(clocked, contestant("gramless", 0.5, (1.0,)))["gramless"]
    assert gpu_rows.reached("a", right, right.seconds, most=0.6).met
    assert gpu_rows.reached("a", right, right.seconds, most=0.4) == ("a", 0.5, False)
    assert gpu_rows.reached("a", right, right.seconds, least=0.4).met
    assert not gpu_rows.reached("a", right, right.seconds, least=0.6).met
    assert gpu_rows.reached("a", wrong, wrong.seconds, most=0.6).met is False
    assert gpu_rows.reached("a", None, None, most=0.6).met is None


def test_kind_names_a_file():
    assert gpu_device.kind("NVIDIA H200") == "nvidia-h200"
    assert gpu_device.kind("AMD Instinct MI300X (VF)") == "amd-instinct-mi300x-vf"


def as_numpy(x):
    return x.double().numpy()


@pytest.fixture
def small_blocks(monkeypatch):
    # two sizes, the last one short
    monkeypatch.setattr(gpu_data, "BLOCK_ROWS", 70)
    monkeypatch.setattr(gpu_data.parts, "__defaults__", (70,))


def test_truths_are_those_of_the_other_suites(small_blocks):
    x, y = gpu_data.activations(150, 12, HOST)
    bounds.assert_relative(
        gpu_data.true_moments(x, y).unbiased_cka(), base.true_cka(as_numpy(x), as_numpy(y)), bounds.SAME_FP64
    )
    sums = gpu_data.true_kernel_sums(x, y)
    cka = rbf.unbiased_cka(150, sums.products.sum(1).tolist(), *sums.sums.numpy())
    bounds.assert_relative(cka, rbf.true_rbf_cka(as_numpy(x), as_numpy(y)), bounds.SAME_FP64)
    xs, ys = gpu_data.layers(2, 30, 8, HOST)
    truth = grids.true_grid([as_numpy(a) for a in xs], [as_numpy(a) for a in ys])
    assert base.relative_error(gpu_data.true_grid_terms(xs, ys).cka(), truth) <= bounds.SAME_FP64


def test_repeated_rows_count_as_often(small_blocks):
    import torch

    x, y = gpu_data.activations(150, 12, HOST)
    found = gpu_data.true_moments(x, y, repeats=2)
    truth = gpu_data.true_moments(torch.cat([x, x]), torch.cat([y, y]))
    assert found.n == truth.n
    assert gpu_data.largest(found.values, truth.values, truth.scales) <= bounds.SAME_FP64


def test_a_wrong_sum_of_products_is_seen_in_a_sample():
    x, y = gpu_data.activations(150, 12, HOST)
    all_pairs = gpu_data.true_kernel_sums(x, y)
    right = gpu_peers.PairSums(all_pairs.sums, all_pairs.products.sum(1))
    sample = gpu_data.true_kernel_sums(x, y, most_rows=50)
    assert not sample.complete
    assert gpu_gram.errors_of(right, sample).sums <= bounds.SAME_FP64
    wrong = right._replace(products=right.products * 1.2)
    assert gpu_gram.errors_of(wrong, sample).sums == math.inf
    assert gpu_gram.errors_of(wrong, all_pairs).sums > bounds.SAME_FP64


def test_offsets_of_a_state_are_undone():
    x, y = gpu_data.activations(150, 12, HOST)
    import gramless as gl

    state = rbf.sums(as_numpy(x), as_numpy(y))
    assert float(state.x.offset[0]) == 1.0
    truth = gpu_data.true_kernel_sums(x, y)
    errors = gpu_gram.errors_of(gpu_gram.state_sums(state, HOST), truth)
    assert max(errors) <= bounds.SAME_FP64
    assert isinstance(gl.cka(state), float)


def test_replays_that_do_not_read_are_seen():
    batches = gpu_grid.Batches.drawn(2, 30, 8, HOST)
    import gramless as gl

    grid = gl.LayerGrid("minibatch")
    frozen = [[a.double().numpy().copy() for a in side] for side in (batches.xs, batches.ys)]
    layers = (batches.xs, batches.ys)

    def errors(call):
        grid.reset()
        replayed = gpu_grid.Replayed(call, HOST)
        replayed()
        batch = [*batches.xs, *batches.ys]
        return gpu_grid.replayed_errors(grid, replayed, batch, batches.terms, batches.others, batches.other_terms)

    assert (
        errors(lambda: grid.update(*[[a.double().numpy() for a in side] for side in layers])).answer <= bounds.SAME_FP64
    )
    assert errors(lambda: grid.update(*frozen)).answer > gpu_rows.TOLERANCE["high"]
