"""Every benchmark runs once at tiny size, states its units, and reports no speed where the answer is wrong."""

import importlib
import inspect
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest

from support import bounds, memory

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
BENCHMARKS = FOLDER / "benchmarks"
KINDS = ("timeraw_", "time_", "peakmem_", "track_")
# may be absent: asv skips them; everything else must run here
OPTIONAL_PEERS = ("pytorch-cka", "torch-cka")

# sizes are chosen when the benchmarks are imported
with pytest.MonkeyPatch.context() as patch:
    patch.setenv("GRAMLESS_BENCH_TINY", "1")
    patch.syspath_prepend(str(FOLDER))
    base = importlib.import_module("benchmarks.base")
    comparison = importlib.import_module("benchmarks.comparison")
    fma = importlib.import_module("benchmarks.fma")
    grids = importlib.import_module("benchmarks.grids")
    peers_linear = importlib.import_module("benchmarks.peers_linear")
    rbf = importlib.import_module("benchmarks.rbf")
    report = importlib.import_module("benchmarks.report")
    tables = importlib.import_module("benchmarks.tables")
    worker = importlib.import_module("benchmarks.worker")
    names = sorted(f"benchmarks.{path.stem}" for path in BENCHMARKS.glob("bench_*.py"))
    modules = {name: importlib.import_module(name) for name in names}


def is_suite(value, module):
    """What asv takes for benchmarks: concrete classes, and functions of certain names."""
    if getattr(value, "__module__", None) != module:
        return False
    return (inspect.isclass(value) and not inspect.isabstract(value)) or (
        inspect.isfunction(value) and value.__name__.startswith(KINDS)
    )


SUITES = {
    f"{name.rpartition('.')[2]}.{suite.__name__}": suite
    for name, module in modules.items()
    for suite in vars(module).values()
    if is_suite(suite, name)
}


@pytest.fixture(autouse=True)
def tiny_children(monkeypatch):
    monkeypatch.setenv("GRAMLESS_BENCH_TINY", "1")


def benchmarks_of(suite):
    """Name and attribute of everything that asv would run."""
    if not inspect.isclass(suite):
        return {suite.__name__: suite}
    return {name: value for name, value in inspect.getmembers(suite, inspect.isfunction) if name.startswith(KINDS)}


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
    ours = {
        "bench_compare.CompareFiles",
        "bench_grid.MinibatchGrid",
        "bench_gram_sums.GramSums",
        "bench_logit_distance.Factor",
        "bench_logit_distance.FactorRows",
        "bench_logit_pairs.Divergences",
        "bench_logit_pairs.LogitPairs",
        "bench_logsumexp.LogSumExp",
        "bench_moments.Moments",
    }
    peers = {f"bench_peers.{name}Peers" for name in ("Linear", "Rbf", "Grid", "Logit", "Distance")}
    assert ours | peers | {"bench_moments.Streaming", "bench_import.timeraw_import"} <= set(SUITES)


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


def textbook(k, m):
    """Unbiased CKA from products with a matrix of ones (Song et al. 2012, equation 5)."""
    n = len(k)
    ones = np.ones((n, n))
    k, m = (a * (1 - np.eye(n)) for a in (k, m))

    def hsic(a, b):
        product = np.trace(a @ b) + a.sum() * b.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * np.trace(a @ b @ ones)
        return product / (n * (n - 3))

    return hsic(k, m) / math.sqrt(hsic(k, k) * hsic(m, m))


def linear_gram(x):
    centred = x - x.mean(0, dtype=np.float64)
    return centred @ centred.T


def rbf_gram(x):
    x = x.astype(np.float64)
    distances = np.square(x[:, None] - x[None]).sum(2)
    return np.exp(-distances / (2 * rbf.bandwidth(x.shape[1]) ** 2))


GRAMS = {"linear": linear_gram, "rbf": rbf_gram}


@pytest.mark.parametrize("dtype", base.DTYPES)
@pytest.mark.parametrize("offset", [0.0, 10.0])
def test_truth_is_the_textbook(dtype, offset, monkeypatch):
    # blocks of two sizes, the last one short
    monkeypatch.setattr(base, "BLOCK_ROWS", 70)
    monkeypatch.setattr(rbf, "BLOCK_ROWS", 70)
    x, y = base.activations(150, 7, 12, dtype, offset=offset)
    truths = {"linear": base.true_cka(x, y), "rbf": rbf.true_rbf_cka(x, y)}
    for kernel, truth in truths.items():
        bounds.assert_relative(truth, textbook(*map(GRAMS[kernel], (x, y))), bounds.SAME_FP64, kernel)


@pytest.mark.parametrize("kernel", GRAMS)
def test_grid_truth_is_the_textbook(kernel):
    xs, ys = grids.grid_layers(2, 30, 8, offset=3.0)
    found = grids.true_grid(xs, ys, kernel)
    for i, j in np.ndindex(2, 2):
        bounds.assert_relative(found[i, j], textbook(*map(GRAMS[kernel], (xs[i], ys[j]))), bounds.SAME_FP64)


def test_a_wrong_row_sum_is_seen(monkeypatch):
    monkeypatch.setattr(rbf, "BLOCK_ROWS", 70)
    x, y = base.activations(150, 7, 12, "float32")
    state = rbf.sums(x, y)
    assert base.agrees(rbf.rows_error(state, x, y), "float32")
    state.y.rows[0][-1] += 1
    assert not base.agrees(rbf.rows_error(state, x, y), "float32")


def test_flops_count_symmetric_products_half():
    assert base.flops(10, 3, 3) == 10 * (3 * 4 + 3 * 4 + 2 * 9)
    assert rbf.gram_flops(10, 3, 4) == 10 * 10 * (3 + 4)
    assert grids.grid_flops(2, 10, 3) == 4 * (10 * 11 * 3) + 4 * 2 * (10 * 9 // 2)


def test_ratios_are_those_of_medians():
    assert base.median_ratio([4.0, 1.0, 100.0], [2.0, 2.0, 50.0]) == 2.0


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
TABLES = {
    "moments": {"moments"},
    "gram_sums": {"gram_sums", "gram_sums_large"},
    "grid": {"grid"},
    "logits": {
        "logits",
        "divergences",
        "logit_memory",
        "peers_logits",
        "peers_distance",
        "peers_distance_large",
    },
    "peers": {"peers_linear", "peers_rbf"},
}


def reported(folder, *options):
    """Exit status and what was written to the file."""
    path = folder / "report.json"
    status = report.main([*REPORT, *options, "--json", str(path)])
    return status, json.loads(path.read_text())


@pytest.mark.parametrize("suite", report.SUITES)
def test_report_writes_what_it_prints(suite, tmp_path, capsys):
    status, written = reported(tmp_path, "--suite", suite, "--large")
    assert status == 0
    assert written.pop("machine")["cpu"]
    assert written.keys() == TABLES[suite]
    lines = capsys.readouterr().out.splitlines()
    for rows in written.values():
        assert rows
        for row in rows:
            assert not row["agrees"] or row["gemm_fraction"] > 0
            assert any(line.split()[0] == row.get("peer", row.get("dtype")) for line in lines if line)


def test_several_suites_in_one_run(tmp_path):
    _, written = reported(tmp_path, "--suite", "moments", "gram_sums")
    # the large one only if asked for
    assert written.keys() == {"machine", "moments", "gram_sums"}


def test_wrong_answer_has_no_speed(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(report, "true_cka", lambda x, y: 0.5)
    status, written = reported(tmp_path, "--suite", "moments")
    assert status == 1
    (row,) = written["moments"]
    assert {row[name] for name in ("gflops", "gemm_fraction", "fma_fraction", "times_floor")} == {None}
    assert "WRONG" in capsys.readouterr().out


def test_rows_before_an_interruption_are_kept(monkeypatch, tmp_path):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(report.peers_grid, "compare", interrupted)
    with pytest.raises(KeyboardInterrupt):
        reported(tmp_path, "--suite", "moments", "grid")
    written = json.loads((tmp_path / "report.json").read_text())
    assert (len(written["moments"]), written["grid"]) == (1, [])


def test_missing_dtype_names_the_extra(monkeypatch, capsys):
    monkeypatch.setattr(report, "installed", lambda module: module != "ml_dtypes")
    with pytest.raises(SystemExit):
        report.main(["--suite", "gram_sums"])
    assert "ml_dtypes: pip install '.[bench]'" in capsys.readouterr().err
    # what does not need it is not refused
    assert report.arguments(["--suite", "grid", "peers"]).suite == ["grid", "peers"]


def test_missing_peer_is_named(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(comparison, "installed", lambda module: module not in ("torch", "torch_cka"))
    _, written = reported(tmp_path, "--suite", "peers")
    assert [row["peer"] for row in written["peers_linear"]] == ["gramless", "numpy-gram"]
    assert "torch-cka is left out: torch is not installed" in capsys.readouterr().out


def test_nan_is_no_answer():
    assert not base.agrees(math.nan, "float32")
    assert math.isnan(base.relative_error([1.0, math.nan], [1.0, 1.0]))
    assert report.plain({"a": [math.nan, 1.0]}) == {"a": [None, 1.0]}


def test_peer_with_another_answer_has_no_ratio(monkeypatch):
    monkeypatch.setattr(peers_linear, "PEERS", dict.fromkeys(("gramless", "numpy-gram"), ()))
    monkeypatch.setattr(comparison, "agrees", lambda error, dtype, tolerance: False)
    (ours, peer) = peers_linear.compare(50, 4, 1)
    assert (ours.ratio, peer.ratio, peer.gemm_fraction) == (None, None, None)
    assert "another answer" in tables.line(tables.PEERS, peer)


def test_asv_finds_the_same():
    program = "import sys\nfrom asv_runner.discovery import list_benchmarks\nlist_benchmarks({!r}, sys.stdout)"
    found = {benchmark["name"] for benchmark in json.loads(memory.run(program.format(str(BENCHMARKS))))}
    assert found == {
        f"{label}.{name}" if inspect.isclass(suite) else label
        for label, suite in SUITES.items()
        for name in benchmarks_of(suite)
    }
