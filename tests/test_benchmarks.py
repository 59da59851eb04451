"""Every benchmark runs once at tiny size, states its units, and reports no speed where the answer is wrong."""

import importlib
import inspect
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest

from support import memory

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
BENCHMARKS = FOLDER / "benchmarks"
KINDS = ("timeraw_", "time_", "peakmem_", "track_")
# may be absent: asv skips them; everything else must run here
OPTIONAL_PEERS = ("pytorch-cka", "torch-cka")

# sizes are chosen when the benchmarks are imported
with pytest.MonkeyPatch.context() as patch:
    patch.setenv("GRAMLESS_BENCH_TINY", "1")
    patch.syspath_prepend(str(FOLDER))
    base = importlib.import_module("benchmarks.base")
    fma = importlib.import_module("benchmarks.fma")
    peers = importlib.import_module("benchmarks.peers")
    report = importlib.import_module("benchmarks.report")
    worker = importlib.import_module("benchmarks.worker")
    names = sorted(f"benchmarks.{path.stem}" for path in BENCHMARKS.glob("bench_*.py"))
    SUITES = {
        f"{name.rpartition('.')[2]}.{suite.__name__}": suite
        for name in names
        for suite in vars(importlib.import_module(name)).values()
        if getattr(suite, "__module__", None) == name and (inspect.isclass(suite) or suite.__name__.startswith(KINDS))
    }


@pytest.fixture(autouse=True)
def tiny_children(monkeypatch):
    monkeypatch.setenv("GRAMLESS_BENCH_TINY", "1")


def benchmarks_of(suite):
    """Name and attribute of everything that asv would run."""
    if not inspect.isclass(suite):
        return {suite.__name__: suite}
    return {name: value for name, value in vars(suite).items() if name.startswith(KINDS)}


def combinations(suite):
    return list(itertools.product(*getattr(suite, "params", ())))


@pytest.fixture(scope="module")
def caches():
    return {}


def cached(suite, label, caches):
    """What setup_cache gives, made once per class as asv does."""
    if not hasattr(suite, "setup_cache"):
        return ()
    if label not in caches:
        caches[label] = suite().setup_cache()
    return (caches[label],)


CASES = [
    pytest.param(label, name, values, id="-".join([label, name, *map(str, values)]))
    for label, suite in SUITES.items()
    for name in benchmarks_of(suite)
    for values in combinations(suite)
]


@pytest.mark.parametrize(("label", "name", "values"), CASES)
def test_benchmark_runs(label, name, values, caches, request):
    suite = SUITES[label]
    instance = suite() if inspect.isclass(suite) else None
    arguments = (*cached(suite, label, caches), *values)
    if hasattr(instance, "teardown"):
        request.addfinalizer(lambda: instance.teardown(*arguments))
    if hasattr(instance, "setup"):
        try:
            instance.setup(*arguments)
        except NotImplementedError as absent:
            if values[0] not in OPTIONAL_PEERS:
                raise
            pytest.skip(str(absent))
    result = getattr(instance, name, suite)(*arguments)
    if name.startswith("timeraw_"):
        code, setup = (result, "") if isinstance(result, str) else result
        memory.run(f"{setup}\n{code}")
    if name.startswith("track_"):
        assert isinstance(result, (int, float))
        assert math.isfinite(result)
        assert result >= 0


def test_suites_were_found():
    classes = {"bench_compare.CompareFiles", "bench_moments.Moments", "bench_moments.Streaming", "bench_peers.Peers"}
    assert classes | {"bench_import.timeraw_import"} <= set(SUITES)


def complaints(suite):
    """A time stands with memory, the fraction of the GEMM rate and the error; a tracked number has a unit."""
    found = benchmarks_of(suite)
    missing = [name for name, value in found.items() if name.startswith("track_") and not hasattr(value, "unit")]
    if inspect.isclass(suite) and any(name.startswith("time") for name in found):
        if not any(name.startswith(("peakmem_", "track_peak_bytes")) for name in found):
            missing.append("track_peak_bytes")
        missing += [name for name in ("track_gemm_fraction", "track_error") if name not in found]
    return missing


@pytest.mark.parametrize("label", SUITES)
def test_a_time_does_not_stand_alone(label):
    assert complaints(SUITES[label]) == []


def test_the_checker_complains():
    class Alone:
        def time_it(self):
            """No twin."""

        def track_rate(self):
            """No unit."""

    assert complaints(Alone) == ["track_rate", "track_peak_bytes", "track_gemm_fraction", "track_error"]


@pytest.mark.parametrize("dtype", base.DTYPES)
@pytest.mark.parametrize("offset", [0.0, 10.0])
def test_truth_is_the_textbook(dtype, offset, monkeypatch):
    # blocks of two sizes, the last one short
    monkeypatch.setattr(base, "BLOCK_ROWS", 70)
    x, y = base.activations(150, 7, 12, dtype, offset=offset)
    assert base.true_cka(x, y) == pytest.approx(peers.numpy_gram(x, y), rel=1e-9)


def test_flops_count_symmetric_products_half():
    assert base.flops(10, 3, 3) == 10 * (3 * 4 + 3 * 4 + 2 * 9)


def test_peak_is_seen():
    size, slack = 64 << 20, 1 << 20
    peak = base.peak_extra_bytes(lambda: np.ones(size, np.uint8).sum())
    # the kernel's counters were off by -0.09 to +0.14 MB in 60 calls on Linux 6.18
    assert abs(peak - size) < slack


def test_a_failing_worker_says_why():
    with pytest.raises(ChildProcessError, match="no-such-dtype"):
        worker.Worker("gemm", "no-such-dtype", threads=1)


def test_fma_peak_grows_with_threads_or_is_absent():
    peak = fma.FmaPeak("float64", 1)
    assert not peak.available or peak.gflops(rounds=1000) > 0


def test_interleaving_takes_turns():
    order = []
    calls = {name: lambda name=name: order.append(name) or 1.0 for name in "ab"}
    assert base.interleaved(calls, rounds=2) == {"a": [1.0, 1.0], "b": [1.0, 1.0]}
    assert order == ["a", "b", "a", "b"]


REPORT = ["--widths", "8", "--dtypes", "float32", "--threads", "1"]


def test_report_writes_what_it_prints(tmp_path, capsys):
    path = tmp_path / "report.json"
    assert report.main([*REPORT, "--json", str(path)]) == 0
    (row,) = json.loads(path.read_text())["moments"]
    assert row["agrees"]
    assert row["gflops"] > 0
    assert row["gemm_fraction"] > 0
    assert "of GEMM" in capsys.readouterr().out


def test_wrong_answer_has_no_speed(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(report, "true_cka", lambda x, y: 0.5)
    path = tmp_path / "report.json"
    assert report.main([*REPORT, "--json", str(path)]) == 1
    (row,) = json.loads(path.read_text())["moments"]
    assert (row["gflops"], row["gemm_fraction"], row["fma_fraction"]) == (None, None, None)
    assert "WRONG" in capsys.readouterr().out


def test_nan_is_no_answer():
    assert not base.agrees(math.nan, "float32")
    assert report.finite({"a": [math.nan, 1.0]}) == {"a": [None, 1.0]}


def test_peer_with_another_answer_has_no_ratio(monkeypatch):
    monkeypatch.setattr(peers, "agrees", lambda error, dtype: False)
    (ours, peer) = peers.compare(50, 4, 1, names=["numpy-gram"])
    assert (ours.ratio, peer.ratio, peer.gemm_fraction) == (None, None, None)
    table = report.printed(report.peers_table([peer]))
    assert "another answer" in table


def test_asv_finds_the_same():
    program = "import sys\nfrom asv_runner.discovery import list_benchmarks\nlist_benchmarks({!r}, sys.stdout)"
    found = {benchmark["name"] for benchmark in json.loads(memory.run(program.format(str(BENCHMARKS))))}
    assert found == {
        f"{label}.{name}" if inspect.isclass(suite) else label
        for label, suite in SUITES.items()
        for name in benchmarks_of(suite)
    }
