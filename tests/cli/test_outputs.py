"""What is written: files that never overwrite an input, and a result that no full disk or closed pipe can cost."""

import csv
import importlib.util
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

import gramless as gl
from gramless.cli import compare_command, main
from gramless.files.compare_layers import compare_files
from support import memory
from support.command_line import failed, shell

N = 500


def test_outputs(files, tmp_path, capsys):
    targets = {form: tmp_path / f"out.{form}" for form in ("json", "csv", "png")}
    words = ["--json", targets["json"], "--csv", targets["csv"], "--plot", targets["png"]]
    assert main.main(["compare", *files, *map(str, words)]) == 0
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


@pytest.mark.parametrize("form", ["json", "csv", "plot", "checkpoint"])
def test_outputs_are_checked_before_the_work(files, tmp_path, capsys, monkeypatch, form):
    monkeypatch.setattr(compare_command, "compare_sources", lambda *_, **__: pytest.fail("work was done"))
    suffix = {"plot": ".png"}.get(form, f".{form}")
    (tmp_path / f"folder{suffix}").mkdir()
    os.mkfifo(tmp_path / f"pipe{suffix}")
    (tmp_path / f"dangling{suffix}").symlink_to(tmp_path / "nothing")
    (tmp_path / f"loop{suffix}").symlink_to(tmp_path / f"loop{suffix}")
    (tmp_path / f"hard{suffix}").hardlink_to(files[1])
    (tmp_path / f"soft{suffix}").symlink_to(files[1])
    np.save(tmp_path / "ids.npy", np.arange(N))
    (tmp_path / f"ids{suffix}").hardlink_to(tmp_path / "ids.npy")
    names = {path.name for path in tmp_path.iterdir()}
    contents = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    wrong = {
        tmp_path / "gone" / f"m{suffix}": "does not exist",
        tmp_path / f"folder{suffix}": "expected a file, got a folder",
        tmp_path / ("n" * 300 + suffix): "File name too long",
        **{tmp_path / f"{name}{suffix}": "expected a regular file" for name in ("pipe", "dangling", "loop")},
        **{tmp_path / f"{name}{suffix}": "would overwrite an input" for name in ("hard", "soft", "ids")},
    }
    if form != "checkpoint":
        wrong |= {tmp_path / "m.bmp": "expected a name that ends in .", "": "expected a name that ends in ."}
    for target, words in wrong.items():
        message = failed(capsys, "compare", *files, f"--{form}", target, "--ids-a", tmp_path / "ids.npy")
        assert message.startswith((f"--{form} ", f"{target}: File name"))
        assert words in message
    assert {path.name for path in tmp_path.iterdir()} == names
    assert {path: path.read_bytes() for path in contents} == contents


def test_outputs_must_differ(files, tmp_path, capsys):
    words = ["--json", tmp_path / "m.json", "--checkpoint", tmp_path / "x" / ".." / "m.json"]
    (tmp_path / "x").mkdir()
    assert failed(capsys, "compare", *files, *words).endswith("m.json: would overwrite --json")
    assert not (tmp_path / "m.json").exists()


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


def test_a_reader_that_goes_away_costs_no_output(files, tmp_path):
    target = tmp_path / "m.json"
    # more than a pipe holds, so that writing fails in the middle of the table
    np.savez(tmp_path / "many.npz", **{f"h{i}": np.random.default_rng(i).random((9, 1)) for i in range(99)})
    done = shell('"$@" | true; echo ${PIPESTATUS[0]}', "compare", tmp_path / "many.npz", "--json", target)
    assert (done.stdout, done.stderr) == ("2\n", "")
    assert gl.SimilarityMatrix.load(target).values.shape == (99, 99)


@pytest.mark.parametrize("words", [["info"], ["--help"], ["compare"]])
def test_a_reader_that_goes_away_is_quiet(files, words):
    done = shell('"$@" | true', *words, *(files if words == ["compare"] else ()))
    assert done.stderr == ""


def test_streams_that_are_closed(files, tmp_path):
    target = tmp_path / "m.json"
    done = shell('"$@" >&- ; echo $?', "compare", *files, "--json", target)
    assert (done.stdout, done.stderr) == ("0\n", "")
    assert gl.SimilarityMatrix.load(target).n == N
    done = shell('"$@" 2>&- ; echo $?', "compare", files[0], tmp_path / "gone")
    assert done.stdout == "2\n"
    assert shell('"$@" >&- 2>&- ; echo $?', "info").stdout == "0\n"


FULL = "gramless: error: standard output: cannot be written: No space left on device\n"
needs_a_full_device = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")


@needs_a_full_device
def test_a_full_disk_behind_standard_output(files, tmp_path):
    target = tmp_path / "m.json"
    done = shell('"$@" > /dev/full; echo $?', "compare", *files, "--json", target)
    assert (done.stdout, done.stderr) == ("2\n", FULL)
    assert gl.SimilarityMatrix.load(target).n == N


@needs_a_full_device
@pytest.mark.parametrize("words", [["compare"], ["info"], ["--help"], ["compare", "--help"], ["--version"], []])
def test_standard_output_that_is_full_is_named(files, words):
    done = shell('"$@" > /dev/full; echo $?', *words, *(files if words == ["compare"] else ()))
    assert (done.stdout, done.stderr) == ("2\n", FULL)


@needs_a_full_device
def test_what_fails_first_is_named_on_a_full_disk(files, tmp_path):
    """A file that is refused, or that cannot be written after the table, is more than a table that is lost."""
    done = shell('"$@" > /dev/full; echo $?', "compare", files[0], tmp_path / "gone")
    assert done.stdout == "2\n"
    assert re.fullmatch(r"gramless: error: .*gone.*\n", done.stderr)
    assert "standard output" not in done.stderr


@pytest.mark.parametrize("form", ["json", "csv", "plot"])
def test_a_result_is_not_lost_where_it_cannot_be_written(files, tmp_path, capsys, monkeypatch, form):
    suffixes = {"json": "json", "csv": "csv", "plot": "png"}
    targets = {name: tmp_path / f"m.{suffix}" for name, suffix in suffixes.items()}
    real = compare_command.compare_sources

    def compare(*arguments, **options):
        targets[form].mkdir()
        (tmp_path / "sums").write_bytes(b"")
        return real(*arguments, **options | {"checkpoint": None})

    monkeypatch.setattr(compare_command, "compare_sources", compare)
    words = [word for name, path in targets.items() for word in (f"--{name}", str(path))]
    assert main.main(["compare", *files, *words, "--checkpoint", str(tmp_path / "sums")]) == 2
    out, err = capsys.readouterr()
    assert "* best match of the row" in out
    assert err == f"gramless: error: --{form} {targets[form]}: cannot be written: Is a directory\n"
    assert all(path.stat().st_size for path in targets.values())
    # the sums stay, so that the next call need not begin again
    assert (tmp_path / "sums").exists()


@pytest.mark.parametrize("module", ["rich", "gramless.cli.commands"])
def test_ctrl_c_while_libraries_load(files, module):
    program = f"""
import sys
class Interrupted:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupted())
from gramless.cli.main import main
sys.exit(main(["compare", {files[0]!r}]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=memory.environment(), check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "gramless: interrupted\n")
