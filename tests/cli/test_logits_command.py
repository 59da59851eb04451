"""``gramless logits``: every kind of input gives the numbers of the library, and every mistake one line."""

import csv
import json
import math
import signal
import subprocess
import sys
import time

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import torch
from safetensors.torch import save_file

import gramless as gl
from gramless.cli import main
from gramless.files import compare_logits
from gramless.files.compare_logits import compare_logit_files
from gramless.files.layer_source import CHUNK_BYTES
from support import bounds, memory
from support.command_line import GRAMLESS, failed, run, shell

N, V, D1, D2 = 500, 60, 9, 6
RNG = np.random.default_rng(0)
H1, W1, B1 = (a.astype(np.float32) for a in (RNG.random((N, D1)), RNG.standard_normal((V, D1)), RNG.random(V)))
H2, W2 = H1[:, :D2] + np.float32(0.1), W1[:, :D2] + np.float32(0.2)
TARGETS = RNG.integers(0, V, N)
TARGETS[::7] = -100

# both unembeddings of the test of Ctrl-C, and half a batch
RESIDENT_AT_WORK = 130 << 20


@pytest.fixture
def files(tmp_path):
    np.savez(tmp_path / "a.npz", hidden=H1, unembedding=W1, bias=B1, more=np.arange(3))
    np.savez(tmp_path / "b.npz", hidden=H2, unembedding=W2)
    np.save(tmp_path / "targets.npy", TARGETS)
    return str(tmp_path / "a.npz"), str(tmp_path / "b.npz")


@pytest.fixture
def targets(tmp_path):
    return str(tmp_path / "targets.npy")


def expected(**options):
    return gl.compare_logits(H1, W1, H2, W2, b1=B1, **options)


def assert_same(got, want, bound=bounds.SAME_FP64):
    assert (got.n, got.labels, got.n_targets) == (want.n, want.labels, want.n_targets)
    assert got.stderr.keys() == want.stderr.keys()
    for name, error in want.stderr.items():
        bounds.assert_relative(getattr(got, name), getattr(want, name), bound, name)
        bounds.assert_relative(got.stderr[name], error, bound, f"stderr of {name}")


def test_prints_all_numbers(files, capsys):
    assert main.main(["logits", *files]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0] == f"A  {files[0]}: 500 rows, 9 wide, 60 labels, with bias"
    assert lines[1] == f"B  {files[1]}: 500 rows, 6 wide, 60 labels"
    assert lines[3:-4] == expected().lines()
    assert "p is A, q is B" in out
    assert "500 rows, 60 labels, same rows taken on trust (no ids), " in lines[-1]
    assert err == ""


def test_options(files, targets, tmp_path, capsys):
    out = tmp_path / "out.json"
    words = ["--temperature", "0.5", "--softcap-a", "3", "--softcap-b", "4", "--vocab-size", "50", "--no-divergences"]
    aims = tmp_path / "few.npy"
    np.save(aims, np.where(TARGETS < 50, TARGETS, -1).astype(np.int16))
    words += ["--targets", str(aims), "--ignore-index", "-100", "--batch-rows", "64", "--json", str(out)]
    assert main.main(["logits", *files, *words]) == 0
    want = expected(
        labels=np.arange(50), targets=np.load(aims), ignore_index=-100, temperature=0.5, softcap1=3, softcap2=4,
        divergences=False,
    )  # fmt: skip
    found = json.loads(out.read_text())
    assert (found["inputs"], found["version"]) == (list(files), gl.__version__)
    assert (found["n"], found["labels"], found["n_targets"]) == (want.n, 50, want.n_targets)
    for name, error in want.stderr.items():
        bounds.assert_relative(found[name], getattr(want, name), bounds.SAME_FP64, name)
        bounds.assert_relative(found["stderr"][name], error, bounds.SAME_FP64, name)
    assert found["js"] is None
    assert capsys.readouterr().out.endswith(f"wrote {out}\n")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_dtypes_and_formats(tmp_path, dtype):
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    h1, w1, h2, w2 = (a.astype(kind) for a in (H1, W1, H2, W2))
    want = gl.compare_logits(h1, w1, h2, w2, b1=B1.astype(kind))
    for name, arrays in (
        ("a", {"hidden": h1, "unembedding": w1, "bias": B1.astype(kind)}),
        ("b", {"hidden": h2, "unembedding": w2}),
    ):
        tensors = {key: torch.from_numpy(a.astype(np.float32)).to(getattr(torch, dtype)) for key, a in arrays.items()}
        if dtype == "float64":
            tensors = {key: torch.from_numpy(a) for key, a in arrays.items()}
        save_file(tensors, tmp_path / f"{name}.safetensors")
    assert_same(compare_logit_files(tmp_path / "a.safetensors", tmp_path / "b.safetensors"), want)
    if dtype == "bfloat16":
        return
    np.savez_compressed(tmp_path / "a.npz", hidden=np.asfortranarray(h1), unembedding=w1, bias=B1.astype(kind))
    np.save(tmp_path / "h2.npy", np.asfortranarray(h2))
    np.save(tmp_path / "w2.npy", np.asfortranarray(w2).astype(kind.newbyteorder(">")))
    got = compare_logit_files(tmp_path / "a.npz", tmp_path / "h2.npy", unembedding_b=tmp_path / "w2.npy", batch_rows=99)
    assert_same(got, want)


def test_bfloat16_without_its_library(tmp_path, monkeypatch):
    models = {"a": (H1, W1), "b": (H2, W2)}
    for name, (h, w) in models.items():
        save_file(
            {"hidden": torch.from_numpy(h).bfloat16(), "unembedding": torch.from_numpy(w).bfloat16()}, tmp_path / name
        )
        (tmp_path / name).rename(tmp_path / f"{name}.safetensors")
    monkeypatch.setattr(compare_logits, "_bfloat16", lambda: None)
    wide = [a.astype(ml_dtypes.bfloat16).astype(np.float32) for a in (H1, W1, H2, W2)]
    got = compare_logit_files(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert_same(got, gl.compare_logits(*wide))


def test_separate_files_and_entries(tmp_path, capsys):
    shards = tmp_path / "shards"
    shards.mkdir()
    for k in range(11):
        np.save(shards / f"{k}.npy", H1[k * 50 : k * 50 + 50])
    (shards / "10.npy").unlink()
    safetensors.numpy.save_file({"lm_head.weight": W1, "norm": B1, "other": H2}, tmp_path / "model.safetensors")
    np.save(tmp_path / "bias.npy", B1)
    named = tmp_path / "named"
    named.mkdir()
    for k in range(2):
        np.savez(named / f"{k}.npz", hidden=H2[k * 250 : k * 250 + 250], other=H2[k * 250 : k * 250 + 250])
    np.savez(tmp_path / "head.npz", unembedding=W2, bias=-B1)
    words = ["--unembedding-a", f"{tmp_path}/model.safetensors:lm_head.weight", "--bias-a", f"{tmp_path}/bias.npy"]
    words += ["--unembedding-b", f"{tmp_path}/head.npz", "--json", f"{tmp_path}/out.json"]
    assert main.main(["logits", str(shards), str(named), *words]) == 0
    want = gl.compare_logits(H1, W1, H2, W2, b1=B1, b2=-B1)
    found = json.loads((tmp_path / "out.json").read_text())
    for name in want.stderr:
        bounds.assert_relative(found[name], getattr(want, name), bounds.SAME_FP64, name)
    assert "60 labels, with bias" in capsys.readouterr().out


def test_logits_given(tmp_path):
    z1, z2 = H1 @ W1.T, H2 @ W2.T
    z1[:, 3] = z2[:, 3] = -np.inf
    np.savez(tmp_path / "a.npz", logits=z1)
    np.save(tmp_path / "b.npy", z2)
    got = compare_logit_files(tmp_path / "a.npz", tmp_path / "b.npy", logits=True, batch_rows=128)
    assert_same(got, gl.compare_logits(z1, None, z2, None))
    got = compare_logit_files(tmp_path / "a.npz", tmp_path / "b.npy", logits=True, vocab_size=30)
    assert_same(got, gl.compare_logits(z1, None, z2, None, labels=np.arange(30)))


def test_padding_rows(tmp_path):
    np.savez(tmp_path / "a.npz", hidden=H1, unembedding=W1)
    np.savez(tmp_path / "b.npz", hidden=H2, unembedding=np.concatenate([W2, np.full((4, D2), np.nan, np.float32)]))
    with pytest.raises(
        ValueError, match=r"got 60 of .*a\.npz and 64 of .*b\.npz; --vocab-size 60 compares the first 60"
    ):
        compare_logit_files(tmp_path / "a.npz", tmp_path / "b.npz")
    assert_same(
        compare_logit_files(tmp_path / "a.npz", tmp_path / "b.npz", vocab_size=60), gl.compare_logits(H1, W1, H2, W2)
    )


@pytest.mark.parametrize("suffix", ["npz", "csv", "safetensors"])
def test_rows(files, targets, tmp_path, suffix):
    path = tmp_path / f"rows.{suffix}"
    words = ["--rows", str(path), "--targets", targets, "--ignore-index", "-100", "--batch-rows", "99"]
    assert main.main(["logits", *files, *words]) == 0
    if suffix == "npz":
        with np.load(path) as arrays:
            found = dict(arrays)
    elif suffix == "safetensors":
        found = safetensors.numpy.load_file(path)
    else:
        with path.open(newline="") as file:
            head, *lines = csv.reader(file)
        found = dict(zip(head, np.array(lines, dtype=float).T, strict=True))
    want = expected(targets=TARGETS, ignore_index=-100, keep_rows=True).rows
    assert list(found) == ["row", *want] or suffix == "safetensors"
    np.testing.assert_array_equal(found["row"], np.flatnonzero(TARGETS != -100))
    for name, rows in want.items():
        bounds.assert_within_algebra(found[name], rows, np.full(len(rows), 50.0), name)


def test_ids(tmp_path, capsys):
    ids = np.arange(N)
    np.savez(tmp_path / "a.npz", hidden=H1, unembedding=W1, ids=ids)
    np.savez(tmp_path / "b.npz", hidden=H2, unembedding=W2, ids=ids)
    a, b = str(tmp_path / "a.npz"), str(tmp_path / "b.npz")
    assert main.main(["logits", a, b]) == 0
    assert "same rows by their ids" in capsys.readouterr().out
    np.save(tmp_path / "ids.npy", ids[::-1])
    assert "row 0 is 0 in" in failed(capsys, "logits", a, b, "--ids-b", tmp_path / "ids.npy")


def test_a_result_is_not_lost_where_it_cannot_be_written(files, tmp_path, capsys, monkeypatch):
    real = compare_logits.LogitPairs.finalize

    def finalize(self):
        (tmp_path / "rows.npz").mkdir()
        return real(self)

    monkeypatch.setattr(compare_logits.LogitPairs, "finalize", finalize)
    words = ["--rows", str(tmp_path / "rows.npz"), "--json", str(tmp_path / "out.json")]
    assert main.main(["logits", *files, *words]) == 2
    out, err = capsys.readouterr()
    assert "KL(p||q)" in out
    assert err == f"gramless: error: --rows {tmp_path}/rows.npz: cannot be written: Is a directory\n"
    assert json.loads((tmp_path / "out.json").read_text())["n"] == N


def test_infinite_values(tmp_path, files, capsys):
    np.savez(tmp_path / "y.npz", hidden=H2, unembedding=W2, bias=np.where(np.arange(V) == 7, -np.inf, 0.0))
    assert main.main(["logits", files[0], str(tmp_path / "y.npz"), "--json", str(tmp_path / "out.json")]) == 0
    assert "rows that are infinite: KL(p||q) in 500" in capsys.readouterr().out
    found = json.loads((tmp_path / "out.json").read_text())
    assert (found["kl_pq"], found["infinite"]["kl_pq"]) == (None, N)
    assert math.isfinite(found["kl_qp"])


def test_interrupted(files, capsys, monkeypatch):
    real, count = compare_logits.LogitPairs.update, iter(range(9))

    def update(self, *arguments, **options):
        if next(count) == 2:
            raise KeyboardInterrupt
        return real(self, *arguments, **options)

    monkeypatch.setattr(compare_logits.LogitPairs, "update", update)
    assert main.main(["logits", *files, "--batch-rows", "100"]) == 130
    assert capsys.readouterr().err == "gramless: interrupted: 200 of 500 rows were done\n"


def _resident(pid):
    with open(f"/proc/{pid}/status") as lines:
        return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


def test_ctrl_c_does_not_wait_for_the_batch(tmp_path):
    # minutes of work, most of which no disk holds
    for name, n in (("h", 200_000), ("w", 50_000)):
        with open(tmp_path / f"{name}.npy", "wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (n, 256)})
            file.truncate(file.tell() + 1024 * n)
    words = [f"--unembedding-{side}={tmp_path}/w.npy" for side in "ab"]
    child = subprocess.Popen(
        [*GRAMLESS, "logits", tmp_path / "h.npy", tmp_path / "h.npy", *words],
        stderr=subprocess.PIPE,
        env=memory.environment(),
        text=True,
    )
    due = time.monotonic() + 60
    while _resident(child.pid) < RESIDENT_AT_WORK and time.monotonic() < due:
        time.sleep(0.05)
    start = time.monotonic()
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)
    assert time.monotonic() - start < 10
    assert (child.returncode, err.startswith("gramless: interrupted")) == (130, True)


def test_progress_on_a_terminal_only(files, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main.main(["logits", *files, "--batch-rows", "100"]) == 0
    assert "batches of rows" in capsys.readouterr().err
    assert main.main(["logits", *files, "--no-progress"]) == 0
    assert capsys.readouterr().err == ""


def test_loads_no_heavy_library(files):
    program = f"""
import sys
from gramless.cli.main import main
main(["logits", *{files!r}])
print([name for name in ("torch", "triton", "matplotlib", "sklearn", "pandas") if name in sys.modules])
"""
    assert memory.run(program).splitlines()[-1] == "[]"
    assert run("logits", *files).stderr == ""


def test_resident_memory_is_bounded_whatever_the_size_of_the_files():
    # 614 MB of hidden states of each model, most of which no disk holds; 31 MB of unembeddings
    prepare = """
import os, tempfile
from gramless.files.compare_logits import compare_logit_files
folder = tempfile.TemporaryDirectory()

def make(name, n, d):
    path = os.path.join(folder.name, f"{name}{n}.npy")
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (n, d)})
        file.truncate(file.tell() + 4 * n * d)
    return path

def compare(n, v):
    w = make("w", v, 512)
    return compare_logit_files(make("a", n, 512), make("b", n, 512), unembedding_a=w, unembedding_b=w)
"""
    few, many = (memory.peak_extra_bytes(prepare, f"compare({n}, 64)", "compare(300, 64)") for n in (100_000, 300_000))
    assert abs(many - few) < bounds.MEMORY_SLACK_BYTES
    # the rows of a batch, and what the kernel makes of them
    assert many < 2 * CHUNK_BYTES
    # unembeddings once, and the logits of 300 rows
    heads, kept = 2 * 8000 * 512 * 4, 2 * 300 * 8000 * 4
    growth = memory.peak_extra_bytes(prepare, "compare(300, 8000)", "compare(300, 64)")
    assert growth < bounds.MEMORY_FACTOR * (heads + kept) + 2 * bounds.MEMORY_SLACK_BYTES


def test_a_reader_that_goes_away_is_quiet(files):
    done = shell('"$@" | true; echo ${PIPESTATUS[0]}', "logits", *files)
    assert (done.stdout, done.stderr) == ("2\n", "")


def test_standard_output_that_is_full_is_named(files):
    with open("/dev/full", "w") as full:
        done = subprocess.run([*GRAMLESS, "logits", *map(str, files)], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == main.ERROR
    assert "standard output: cannot be written: No space left on device" in done.stderr
