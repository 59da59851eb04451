"""The command line as users meet it: text, files, exit codes, pipes, terminals and one line for every mistake."""

import csv
import importlib.util
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import gramless as gl
from gramless.integrations import cli, info, tables
from gramless.integrations.arrays import compare_files
from support import memory

N = 500
GRAMLESS = [sys.executable, "-m", "gramless"]


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((N, 6))
    np.savez(tmp_path / "a.npz", first=x, second=np.tanh(x @ rng.standard_normal((6, 4))))
    np.savez(tmp_path / "b.npz", one=x[:, :2], two=x + rng.standard_normal((N, 6)), three=x**2)
    return str(tmp_path / "a.npz"), str(tmp_path / "b.npz")


def run(*words, **options):
    return subprocess.run(
        [*GRAMLESS, *map(str, words)], capture_output=True, text=True, env=memory.environment(), check=False, **options
    )


def failed(capsys, *words):
    """The one line of an error."""
    assert cli.main([str(word) for word in words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("gramless: error: ")
    assert err.count("\n") == 1
    return err.removeprefix("gramless: error: ").removesuffix("\n")


def test_compare_prints_the_matrix(files, capsys):
    assert cli.main(["compare", *files]) == 0
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
        assert cli.main(["compare", *files, *words]) == 0
        assert gl.get_num_threads() == 1
    finally:
        gl.set_num_threads(threads)
    matrix = gl.SimilarityMatrix.load(target)
    expected = compare_files(*files, estimator="biased", layers_a="f*", layers_b="t*")
    assert (matrix.layers_x, matrix.layers_y, matrix.estimator) == (("first",), ("two", "three"), "biased")
    np.testing.assert_array_equal(matrix.values, expected.values)
    assert "biased CKA" in capsys.readouterr().out


def test_outputs(files, tmp_path, capsys):
    targets = {form: tmp_path / f"out.{form}" for form in ("json", "csv", "png")}
    words = ["--json", targets["json"], "--csv", targets["csv"], "--plot", targets["png"]]
    assert cli.main(["compare", *files, *map(str, words)]) == 0
    assert capsys.readouterr().out.splitlines()[-3:] == [f"wrote {path}" for path in targets.values()]
    matrix = compare_files(*files)
    found = json.loads(targets["json"].read_text())
    assert found["inputs"] == list(files)
    assert found["version"] == gl.__version__
    assert (found["n"], found["estimator"], found["measure"]) == (N, "unbiased", "cka")
    assert (found["layers_x"], found["layers_y"]) == (["first", "second"], ["one", "two", "three"])
    assert found["values"] == matrix.values.tolist()
    with targets["csv"].open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["layer", "one", "two", "three"]
    assert [[float(cell) for cell in row[1:]] for row in rows[1:]] == matrix.values.tolist()
    assert targets["png"].read_bytes().startswith(b"\x89PNG")


def test_a_dead_layer_is_a_warning_and_null(tmp_path, capsys):
    np.savez(tmp_path / "a.npz", live=np.random.default_rng(0).random((9, 2)), dead=np.ones((9, 2)))
    assert cli.main(["compare", str(tmp_path / "a.npz"), "--json", str(tmp_path / "m.json")]) == 0
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
    assert cli.main(["compare", a, b]) == 0
    out, err = capsys.readouterr()
    assert err == f"gramless: warning: {a} has ids, {b} has none: the order of rows was not checked\n"
    assert "taken on trust" in out
    assert cli.main(["compare", a, b, "--ids-b", str(tmp_path / "ids.npy")]) == 0
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
    assert "expected count of at least 1, got 0" in failed(capsys, "compare", a, b, "--threads", "0")
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

    monkeypatch.setattr("gramless.integrations.folders.read_entries", refuse)
    assert failed(capsys, "compare", files[0]) == f"{files[0]}: Permission denied"


@pytest.mark.parametrize("form", ["json", "csv", "plot", "checkpoint"])
def test_outputs_are_checked_before_the_work(files, tmp_path, capsys, monkeypatch, form):
    monkeypatch.setattr(cli, "compare_sources", lambda *_, **__: pytest.fail("work was done"))
    name = {"plot": "m.png"}.get(form, "m")
    (tmp_path / "folder.png").mkdir()
    before = Path(files[1]).read_bytes()
    wrong = {
        tmp_path / "gone" / name: "does not exist",
        tmp_path / "folder.png": "expected a file, got a folder",
        tmp_path / ("n" * 300 + ".png"): "File name too long",
    }
    if form == "plot":
        wrong[tmp_path / "m.bmp"] = "expected .png, .pdf, .svg"
    else:
        wrong[files[1]] = "would overwrite an input"
    for target, words in wrong.items():
        assert words in failed(capsys, "compare", *files, f"--{form}", target)
    assert Path(files[1]).read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"a.npz", "b.npz", "folder.png"}


def test_outputs_must_differ(files, tmp_path, capsys):
    words = ["--json", tmp_path / "m", "--checkpoint", tmp_path / "x" / ".." / "m"]
    (tmp_path / "x").mkdir()
    assert failed(capsys, "compare", *files, *words).endswith("m: would overwrite --json")


def test_plot_needs_matplotlib_before_the_work(files, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    message = failed(capsys, "compare", *files, "--plot", tmp_path / "m.png")
    assert message == '--plot needs matplotlib: pip install "gramless[plot]"'


def test_a_check_does_not_touch_what_is_there(files, tmp_path, capsys):
    (tmp_path / "m.json").write_text("mine")
    failed(capsys, "compare", files[0], tmp_path / "gone", "--json", tmp_path / "m.json")
    assert "rows" in failed(capsys, "compare", files[0], _short(tmp_path), "--json", tmp_path / "m.json")
    assert (tmp_path / "m.json").read_text() == "mine"


def _short(tmp_path):
    np.save(tmp_path / "short.npy", np.ones((3, 2)))
    return tmp_path / "short.npy"


def test_help_and_version(capsys):
    assert cli.main([]) == 0
    assert "compare" in capsys.readouterr().out
    for words in (["--help"], ["compare", "--help"], ["--version"]):
        with pytest.raises(SystemExit) as stopped:
            cli.main(words)
        assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert "shard-2 before shard-10" in text
    assert text.endswith(f"gramless {gl.__version__}\n")
    assert all(len(line) <= 88 for line in text.splitlines())


def test_info(capsys):
    assert cli.main(["info"]) == 0
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

    real = info._dispatch.resolve
    monkeypatch.setattr(info._dispatch, "resolve", broken)
    monkeypatch.setattr(info.importlib.metadata, "version", lambda _: (_ for _ in ()).throw(_missing()))
    text = "\n".join(info.describe())
    assert "cpu: not available: libgomp.so.1 is missing" in text
    assert "torch not installed" in text


def _missing():
    return info.importlib.metadata.PackageNotFoundError("torch")


def test_commands_load_no_heavy_library(files):
    program = f"""
import sys
from gramless.integrations.cli import main
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


def test_a_reader_that_goes_away(files):
    command = f"{' '.join(GRAMLESS)} compare {files[0]} {files[1]} | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=memory.environment(), check=True)
    assert done.stderr == ""


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
    assert run("compare", *files).stderr == ""


def grid(rows, columns, name="layer"):
    values = np.random.default_rng(0).uniform(-1, 1, (rows, columns))
    layers = [tuple(f"{name}{i}" for i in range(count)) for count in (rows, columns)]
    return gl.SimilarityMatrix(values, None, *layers, 9, "cka", "unbiased")


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("shape", [(1, 1), (5, 5), (12, 12), (60, 60), (3, 40), (40, 3)])
@pytest.mark.parametrize("name", ["h", "model.layers.", "encoder.block.attention.output.", "name_" * 9])
def test_any_grid_fits_the_width_and_is_complete(shape, width, name):
    matrix = grid(*shape, name)
    lines = [line.plain for line in tables.matrix_lines(matrix, width)]
    assert all(len(line) <= width for line in lines)
    table = lines[: lines.index("best match of each row")] if "best match of each row" in lines else lines
    cells = re.findall(r"(?<= )(-?\d\.\d{3})(\*?)", "\n".join(table))
    assert sorted(value for value, _ in cells) == sorted(f"{value:.3f}" for value in matrix.values.flat)
    assert sum(bool(star) for _, star in cells) == shape[0]


def test_long_names_have_a_key():
    square = [line.plain for line in tables.matrix_lines(grid(3, 3, "a_rather_long_name_"), 80)]
    assert square[0].split() == ["[1]", "[2]", "[3]"]
    assert [line.split()[:2] for line in square[1:]] == [[f"[{i + 1}]", f"a_rather_long_name_{i}"] for i in range(3)]
    names = ("quite_a_long_name", "and_another_one")
    matrix = gl.SimilarityMatrix(np.eye(2), None, ("a", "b"), names, 9, "cka", "biased")
    lines = [line.plain for line in tables.matrix_lines(matrix, 80)]
    assert lines[-2:] == ["[1] quite_a_long_name", "[2] and_another_one"]


def test_names_lose_what_they_share():
    matrix = gl.SimilarityMatrix(np.eye(2), None, ("m.h.0.mlp", "m.h.10.mlp"), ("x.a", "y.a"), 9, "cka", "biased")
    lines = [line.plain for line in tables.matrix_lines(matrix, 80)]
    assert lines[:2] == ["rows are m.h.*.mlp", "columns are *.a"]
    assert [line.split() for line in lines[2:]] == [["x", "y"], ["0", "1.000*", "0.000"], ["10", "0.000", "1.000*"]]
