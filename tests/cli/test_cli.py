"""The command line as users meet it: text, files, exit codes, pipes, terminals and one line for every mistake."""

import csv
import json
import os
import pty
import re
import subprocess

import numpy as np
import pytest

import gramless as gl
from gramless.cli import info, main
from gramless.files.compare_layers import compare_files
from support import memory
from support.command_line import GRAMLESS, failed, run

N = 500


def test_compare_prints_the_matrix(files, capsys):
    assert main.main(["compare", *files]) == 0
    out, err = capsys.readouterr()
    matrix = compare_files(*files)
    lines = out.splitlines()
    assert lines[:2] == [f"A  {files[0]}: 2 layers, 500 rows", f"B  {files[1]}: 3 layers, 500 rows"]
    assert lines[3].split() == ["one", "two", "three"]
    for line, name, row in zip(lines[4:6], matrix.layers_x, matrix.values, strict=True):
        cells = [f"{value:.3f}{'*' if value == row.max() else ''}" for value in row]
        assert line.split() == [name, *cells]
    assert lines[-2] == "* best match of the row"
    assert re.fullmatch(r"unbiased CKA, n = 500, same rows taken on trust \(no ids\), \d+\.\d s", lines[-1])
    assert err == ""


def test_options_reach_the_comparison(files, capsys, tmp_path):
    target = tmp_path / "m.json"
    threads = gl.get_num_threads()
    words = ["--estimator", "biased", "--layers-a", "f*", "--layers-b", "t*", "--json", str(target), "--threads", "1"]
    try:
        assert main.main(["compare", *files, *words]) == 0
        assert gl.get_num_threads() == 1
    finally:
        gl.set_num_threads(threads)
    matrix = gl.SimilarityMatrix.load(target)
    expected = compare_files(*files, estimator="biased", layers_a="f*", layers_b="t*")
    assert (matrix.layers_x, matrix.layers_y, matrix.estimator) == (("first",), ("two", "three"), "biased")
    np.testing.assert_array_equal(matrix.values, expected.values)
    assert "biased CKA" in capsys.readouterr().out


def test_a_dead_layer_is_a_warning_and_null(tmp_path, capsys):
    np.savez(tmp_path / "a.npz", live=np.random.default_rng(0).random((9, 2)), dead=np.ones((9, 2)))
    assert main.main(["compare", str(tmp_path / "a.npz"), "--json", str(tmp_path / "m.json")]) == 0
    out, err = capsys.readouterr()
    assert err.startswith("gramless: warning: ")
    assert "dead is constant" in err
    assert err.count("\n") == 1
    assert json.loads((tmp_path / "m.json").read_text())["values"][1] == [None, None]
    assert re.search(r"^dead +- +-$", out, re.MULTILINE)


def test_ids(tmp_path, capsys):
    x = np.random.default_rng(0).random((9, 2))
    np.savez(tmp_path / "a.npz", h=x, ids=np.arange(9))
    np.savez(tmp_path / "b.npz", h=x)
    np.save(tmp_path / "ids.npy", np.arange(9))
    a, b = str(tmp_path / "a.npz"), str(tmp_path / "b.npz")
    assert main.main(["compare", a, b]) == 0
    out, err = capsys.readouterr()
    assert err == f"gramless: warning: {a} has ids, {b} has none: the order of rows was not checked\n"
    assert "taken on trust" in out
    assert main.main(["compare", a, b, "--ids-b", str(tmp_path / "ids.npy")]) == 0
    out, err = capsys.readouterr()
    assert (err, "same rows by their ids" in out) == ("", True)
    np.save(tmp_path / "ids.npy", np.arange(9)[::-1])
    message = failed(capsys, "compare", a, b, "--ids-b", tmp_path / "ids.npy")
    assert message.startswith("the rows are not the same samples in the same order: row 0 is 0 in ")


def test_errors_are_one_line(files, tmp_path, capsys):
    a, b = files
    gone = tmp_path / "gone.npy"
    assert failed(capsys, "compare", gone) == f"{gone}: no such file or folder"
    np.savez(tmp_path / "short.npz", h=np.ones((N - 1, 2)))
    assert "expected the same number of rows" in failed(capsys, "compare", a, tmp_path / "short.npz")
    np.save(tmp_path / "few.npy", np.random.default_rng(0).random((3, 2)))
    assert "4" in failed(capsys, "compare", tmp_path / "few.npy")
    assert failed(capsys, "compare", a, "--ids-a", a) == "--layers-b, --ids-a and --ids-b need B"
    for count in (-1, 0, 1025, 10**30):
        expected = f"--threads: expected 1 to 1024, got {count}"
        assert failed(capsys, "compare", a, b, f"--threads={count}") == expected
    assert "no layer matches 'x*'" in failed(capsys, "compare", a, b, "--layers-b", "x*")


@pytest.mark.parametrize(
    "words",
    [["compare"], ["frobnicate"], ["compare", "a", "b", "c"], ["compare", "a", "--threads", "two"], ["demo", "--no"]],
)
def test_usage_errors_are_one_line(capsys, words):
    assert re.search(r" \(see gramless( \w+)? --help\)$", failed(capsys, *words))


def test_unreadable_file(files, tmp_path, capsys, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", files[0])

    monkeypatch.setattr("gramless.files.folders.read_entries", refuse)
    assert failed(capsys, "compare", files[0]) == f"{files[0]}: Permission denied"


def test_help_and_version(capsys):
    assert main.main([]) == 0
    assert "compare" in capsys.readouterr().out
    for words in (["--help"], ["compare", "--help"], ["--version"]):
        with pytest.raises(SystemExit) as stopped:
            main.main(words)
        assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert "shard-2 before shard-10" in text
    assert text.endswith(f"gramless {gl.__version__}\n")
    assert all(len(line) <= 88 for line in text.splitlines())


def test_info(capsys):
    assert main.main(["info"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"gramless {gl.__version__}, Python ")
    assert f"numpy {np.__version__}" in out
    assert "kernel moments: runs on " in out
    assert "reference: available" in out


def test_info_says_why_a_backend_is_missing(monkeypatch):
    def broken(stem, backend):
        if backend == "cpu":
            raise RuntimeError("libgomp.so.1 is missing")
        return real(stem, backend)

    real = info.ops_backends.resolve
    monkeypatch.setattr(info.ops_backends, "resolve", broken)
    monkeypatch.setattr(info.importlib.metadata, "version", lambda _: (_ for _ in ()).throw(_missing()))
    text = "\n".join(info.describe())
    assert "cpu: not available: libgomp.so.1 is missing" in text
    assert "torch not installed" in text


def _missing():
    return info.importlib.metadata.PackageNotFoundError("torch")


def test_commands_load_no_heavy_library(files):
    program = f"""
import sys
from gramless.cli.main import main
main(["info"])
main(["compare", {files[0]!r}])
print([name for name in ("torch", "triton", "matplotlib", "sklearn", "pandas") if name in sys.modules])
"""
    assert memory.run(program).splitlines()[-1] == "[]"


def test_module_runs_in_a_pipe_without_colours(files):
    done = subprocess.run(
        [*GRAMLESS, "compare", *files],
        capture_output=True,
        env=memory.environment() | {"FORCE_COLOR": "1", "TERM": "xterm-256color", "PYTHONIOENCODING": "ascii"},
        check=True,
    )
    assert b"\x1b" not in done.stdout + done.stderr
    assert done.stderr == b""
    assert done.stdout.startswith(b"A  ")


def test_names_that_the_terminal_cannot_show(tmp_path):
    np.savez(tmp_path / "a.npz", **{"schön\x1b[31m": np.random.default_rng(0).random((9, 2))})
    environment = memory.environment() | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [*GRAMLESS, "compare", str(tmp_path / "a.npz")], capture_output=True, env=environment, check=True
    )
    assert b"sch\\xf6n?[31m" in done.stdout
    assert b"\x1b" not in done.stdout


def in_terminal(words, columns=80):
    """Standard output and error of a run, each on a terminal of its own."""
    pairs = [pty.openpty() for _ in range(2)]
    environment = memory.environment() | {"TERM": "xterm-256color", "COLUMNS": str(columns), "LINES": "25"}
    environment.pop("NO_COLOR", None)
    child = subprocess.Popen([*GRAMLESS, *words], stdout=pairs[0][1], stderr=pairs[1][1], env=environment)
    texts = []
    for _, end in pairs:
        os.close(end)
    for start, _ in pairs:
        text = b""
        # a terminal whose other end is closed gives an error, not an end
        while piece := _read(start):
            text += piece
        os.close(start)
        texts.append(text.decode())
    assert child.wait(timeout=60) == 0
    return texts


def test_messages_speak_of_the_two_models_and_of_options(files, tmp_path, capsys):
    x = np.random.default_rng(0).random((9, 2))
    np.savez(tmp_path / "a.npz", **{"live": x, "y/dead\x1b[31m": np.ones((9, 2))})
    np.savez(tmp_path / "b.npz", live=x, still=np.ones((9, 2)))
    a, b = str(tmp_path / "a.npz"), str(tmp_path / "b.npz")
    assert main.main(["compare", a, b]) == 0
    err = capsys.readouterr().err
    assert err == (
        "gramless: warning: no CKA, NaN instead: layer A/y/dead?[31m is constant; layer B/still is constant\n"
    )
    wrong = {
        "--batch-size 2": "expected --batch-size of at least 4, got 2",
        "--batch-size 4 --estimator biased": "batches have --estimator unbiased alone, and no null, got "
        "--estimator biased",
        "--batch-size 4 --null permutation": "batches have --estimator unbiased alone, and no null, got "
        "--null permutation",
        "--bandwidth 2": "--kernel linear has no bandwidth, got --bandwidth 2.0",
        "--bandwidth-scale 2": "--kernel linear has no --bandwidth-scale, got --bandwidth-scale=2.0",
        "--permutations 9": "--permutations=9 has no effect without --null permutation",
        "--kernel rbf --bandwidth -2": "expected bandwidth above 0, got -2.0",
        "--weights equal": "--weights equal needs batches, give --batch-size",
        "--kernel rbf --checkpoint sums": "--kernel rbf without --batch-size has no checkpoint: it holds all rows at "
        "once",
        "--null permutation --permutations 0": "expected --permutations of at least 1, got 0",
        "--null permutation --seed -1": "expected seed of at least 0, got -1",
    }
    for words, message in wrong.items():
        assert failed(capsys, "compare", a, b, *words.split()) == message
    assert failed(capsys, "compare", f"{tmp_path}/\x1b[31m\n.npy") == f"{tmp_path}/?[31m?.npy: no such file or folder"


def test_rows_that_do_not_fit_into_memory(files, capsys, monkeypatch):
    monkeypatch.setattr("gramless.files.compare_layers.available_bytes", lambda: 1000)
    for words, why in (
        (["--kernel", "rbf"], "--kernel rbf without --batch-size"),
        (["--null", "permutation"], "--null permutation"),
        (["--batch-size", "500"], "--batch-size=500"),
    ):
        message = failed(capsys, "compare", *files, *words)
        assert message.startswith(f"{why} needs 500 rows in memory at once: ")
        assert message.endswith("available is 1,000 bytes; give a smaller --batch-size, or choose fewer layers")


def test_batches_show_standard_errors(files, tmp_path, capsys):
    targets = {"json": tmp_path / "m.json", "csv": tmp_path / "m.csv"}
    options = {"kernel": "rbf", "bandwidth": "kornblith", "bandwidth_scale": 2.0, "batch_size": 50, "weights": "equal"}
    words = [
        word for name, value in (options | targets).items() for word in (f"--{name.replace('_', '-')}", str(value))
    ]
    assert main.main(["compare", *files, *words]) == 0
    out = capsys.readouterr().out
    matrix = compare_files(*files, **options)
    for i, j in np.ndindex(matrix.values.shape):
        assert f" {matrix.values[i, j]:.3f} +- {matrix.stderr[i, j]:.3f}" in out
    assert "+- standard error, for rows in no order" in out
    assert re.search(r"^unbiased RBF CKA, n = 500, batches of 50, same rows", out, re.MULTILINE)
    np.testing.assert_array_equal(gl.SimilarityMatrix.load(targets["json"]).stderr, matrix.stderr)
    with targets["csv"].open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["layer", *matrix.layers_y, *(f"{name} stderr" for name in matrix.layers_y)]
    assert [[float(cell) for cell in row[4:]] for row in rows[1:]] == matrix.stderr.tolist()


def test_values_beside_their_null(tmp_path, capsys):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((N, 6))
    np.savez(tmp_path / "a.npz", signal=x, noise=rng.standard_normal((N, 3)), dead=np.ones((N, 2)))
    np.savez(tmp_path / "b.npz", same=2 * x, part=x[:, :2])
    words = ["--null", "permutation", "--permutations", "50", "--seed", "3", "--csv", str(tmp_path / "m.csv")]
    a, b = str(tmp_path / "a.npz"), str(tmp_path / "b.npz")
    assert main.main(["compare", a, b, *words, "--json", str(tmp_path / "m.json")]) == 0
    out = capsys.readouterr().out
    with pytest.warns(RuntimeWarning, match="dead is constant"):
        matrix = compare_files(a, b, null="permutation", n_permutations=50, seed=3)
    np.testing.assert_array_equal(matrix.within_null, [[False, False], [True, True], [False, False]])
    for i in range(2):
        for j in range(2):
            mark = "~" if i else ""
            assert f" {mark}{matrix.text(i, j)}" in out
    assert "(mean, 95 % quantile) over 50 permutations of the rows\n~ within that null" in out
    found = json.loads((tmp_path / "m.json").read_text())["null"]
    assert (found["kind"], found["n_permutations"], found["seed"]) == ("permutation", 50, 3)
    assert found["pvalue"] == [[1 / 51, 1 / 51], matrix.pvalue[1].tolist(), [None, None]]
    with (tmp_path / "m.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0][3:] == [
        f"{name} {what}" for what in ("null mean", "null quantile", "pvalue") for name in matrix.layers_y
    ]
    value = gl.cka(x, 2 * x, null="permutation", n_permutations=50, seed=3)
    assert matrix.null_mean[0, 0] == value.null_mean
    assert [float(cell) for cell in rows[1][3::2]] == [value.null_mean, value.null_quantile, value.pvalue]


def _read(descriptor):
    try:
        return os.read(descriptor, 1 << 16)
    except OSError:
        return b""


def test_progress_bar_and_colours_on_a_terminal_only(files):
    out, err = in_terminal(["compare", *files])
    assert "\x1b[1;32m" in out
    assert "rows" in err
    assert "500/500" in err
    assert in_terminal(["compare", *files, "--no-progress"])[1] == ""
    # the bars of the library, too
    out, err = in_terminal(["compare", *files, "--null", "permutation", "--permutations", "5"])
    assert "pairs of layers" in err
    assert "6/6" in err
    assert "pairs" not in out
    assert run("compare", *files).stderr == ""
