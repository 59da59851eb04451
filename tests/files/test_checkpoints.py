"""A comparison that is cut off goes on where it stopped, to the same last bit, and never on other inputs."""

import itertools
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from gramless.cli import main
from gramless.files import checkpoint as files_checkpoint
from gramless.files import compare_layers, layer_source
from gramless.files.compare_layers import compare_files
from gramless.layers.exact import ExactGrid
from gramless.layers.grid import LayerGrid
from support import memory

N = 1000


@pytest.fixture
def files(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    # chunks of 256 rows, the last one shorter
    monkeypatch.setattr(layer_source, "CHUNK_BYTES", 256 * 4 * 10)
    for name in "ab":
        np.savez(tmp_path / f"{name}.npz", **{f"h{k}": rng.standard_normal((N, k), np.float32) + k for k in (2, 3)})
    return tmp_path / "a.npz", tmp_path / "b.npz"


def interrupted_after(monkeypatch, updates):
    """Ctrl-C in the middle of an update."""
    real, count = ExactGrid._batch, itertools.count()

    def update(self, *arguments):
        if next(count) == updates:
            raise KeyboardInterrupt
        return real(self, *arguments)

    monkeypatch.setattr(ExactGrid, "_batch", update)


@pytest.mark.parametrize("updates", [1, 2, 3])
def test_an_interrupted_run_goes_on_to_the_same_bits(files, tmp_path, updates):
    expected = compare_files(*files)
    path = tmp_path / "sums"
    with pytest.MonkeyPatch.context() as patch:
        interrupted_after(patch, updates)
        with pytest.raises(KeyboardInterrupt, match=rf"{256 * updates} of 1000 rows are done; .*sums"):
            compare_files(*files, checkpoint=path)
    assert path.exists()
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        update = LayerGrid.update
        patch.setattr(LayerGrid, "update", lambda self, xs, ys: seen.append(len(xs["h2"])) or update(self, xs, ys))
        got = compare_files(*files, checkpoint=path)
    assert seen == [256, 256, 256, 232][updates:]
    np.testing.assert_array_equal(got.values, expected.values)
    # a comparison that is complete leaves nothing behind
    assert {p.name for p in tmp_path.iterdir()} == {"a.npz", "b.npz"}


def test_interruption_before_the_first_chunk_or_without_checkpoint(files, tmp_path, monkeypatch):
    interrupted_after(monkeypatch, 0)
    with pytest.raises(KeyboardInterrupt):
        compare_files(*files, checkpoint=tmp_path / "sums")
    assert not (tmp_path / "sums").exists()
    interrupted_after(monkeypatch, 0)
    with pytest.raises(KeyboardInterrupt):
        compare_files(*files)


def test_checkpoints_are_written_on_the_way(files, tmp_path, monkeypatch):
    monkeypatch.setattr(compare_layers, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(compare_layers, "CHECKPOINT_SHARE", 0)
    saved = []
    real = files_checkpoint.Checkpoint.save
    monkeypatch.setattr(
        files_checkpoint.Checkpoint, "save", lambda self, state: saved.append(int(state["n"])) or real(self, state)
    )
    compare_files(*files, checkpoint=tmp_path / "sums")
    assert saved == [256, 512, 768]


def stopped(files, path, **options):
    with pytest.MonkeyPatch.context() as patch:
        interrupted_after(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            compare_files(*files, checkpoint=path, **options)
    return path


def test_a_checkpoint_of_other_inputs_is_refused(files, tmp_path):
    path = stopped(files, tmp_path / "sums")
    a, b = files
    with pytest.raises(ValueError, match=r"sums: a checkpoint of another comparison \(input 1, input 2 differ\)"):
        compare_files(b, a, checkpoint=path)
    with pytest.raises(ValueError, match=r"\(rows of a chunk, input 2 differ\)"):
        compare_files(a, checkpoint=path)
    with pytest.raises(ValueError, match=r"\(input 2 differs\); delete it to start again"):
        compare_files(a, b, layers_b="h3", checkpoint=path)
    with np.load(b) as old:
        changed = dict(old)
    changed["h3"][0, 0] += 1
    np.savez(b, **changed)
    with pytest.raises(ValueError, match=r"\(input 2 differs\)"):
        compare_files(a, b, checkpoint=path)
    assert path.exists()


def test_inputs_may_move(files, tmp_path):
    expected = compare_files(*files)
    path = stopped(files, tmp_path / "sums")
    (tmp_path / "there").mkdir()
    moved = [file.rename(tmp_path / "there" / file.name) for file in files]
    np.testing.assert_array_equal(compare_files(*moved, checkpoint=path).values, expected.values)


def test_the_estimator_may_change(files, tmp_path):
    path = stopped(files, tmp_path / "sums")
    got = compare_files(*files, checkpoint=path, estimator="biased")
    np.testing.assert_array_equal(got.values, compare_files(*files, estimator="biased").values)


@pytest.mark.parametrize("content", [b"", b"hello", "npz", "npy", "cut", "bomb"])
def test_what_is_no_checkpoint_is_refused_and_kept(files, tmp_path, content):
    path = tmp_path / "sums"
    if content == "npz":
        np.savez(tmp_path / "x.npz", x=np.ones(3))
        content = (tmp_path / "x.npz").read_bytes()
    elif content == "npy":
        np.save(tmp_path / "x.npy", np.ones(3))
        content = (tmp_path / "x.npy").read_bytes()
    elif content == "cut":
        content = stopped(files, path).read_bytes()[:-100]
    elif content == "bomb":
        arrays_in = {files_checkpoint.KEY: np.array("{}"), "n": np.zeros(10**6)}
        np.savez_compressed(tmp_path / "x.npz", **arrays_in)
        content = (tmp_path / "x.npz").read_bytes()
    path.write_bytes(content)
    with pytest.raises(ValueError, match="sums: not a gramless checkpoint: "):
        compare_files(*files, checkpoint=path)
    assert path.read_bytes() == content


def changed(path, **entries):
    """Write other entries into a checkpoint."""
    with np.load(path) as arrays_in:
        found = dict(arrays_in) | entries
    with path.open("wb") as file:
        np.savez(file, **found)


HOSTILE = {
    "a width that overflows": {"layout": np.array('[["x/h2", 1e400]]')},
    "a deep layout": {"layout": np.array("[" * 100_000)},
    "more rows than there are": {"n": np.array(256 * 5)},
    "a part of a chunk": {"n": np.array(255)},
    "negative rows": {"n": np.array(-256)},
    "huge rows": {"n": np.array(10.0**300)},
    "deep marks": {files_checkpoint.KEY: np.array("[" * 100_000)},
    "marks of another kind": {files_checkpoint.KEY: np.array("3")},
    "other layers": {"format": np.array("gramless.moments/1")},
    "a matrix of another shape": {"pairs.norms": np.zeros((9, 9))},
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_checkpoints_are_one_line(files, tmp_path, capsys, case):
    path = stopped(files, tmp_path / "sums")
    changed(path, **HOSTILE[case])
    content = path.read_bytes()
    assert main.main(["compare", *map(str, files), "--checkpoint", str(path)]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"gramless: error: {path}: not a gramless checkpoint: ")
    assert path.read_bytes() == content


def test_checkpoints_of_batches(files, tmp_path, monkeypatch):
    options = {"batch_size": 100, "kernel": "rbf", "bandwidth": 2.0}
    expected = compare_files(*files, **options)
    path = tmp_path / "sums"
    real, count = LayerGrid.update, itertools.count()

    def update(self, xs, ys):
        if next(count) == 3:
            raise KeyboardInterrupt
        return real(self, xs, ys)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LayerGrid, "update", update)
        with pytest.raises(KeyboardInterrupt, match="300 of 1000 rows are done"):
            compare_files(*files, checkpoint=path, **options)
    for other in (
        {"batch_size": 150},
        {"kernel": "linear", "bandwidth": None},
        {"bandwidth": 3.0},
        {"weights": "equal"},
    ):
        with pytest.raises(ValueError, match="sums: a checkpoint of another comparison"):
            compare_files(*files, checkpoint=path, **options | other)
    got = compare_files(*files, checkpoint=path, **options)
    np.testing.assert_array_equal(got.values, expected.values)
    np.testing.assert_array_equal(got.stderr, expected.stderr)
    assert not path.exists()


def test_a_write_that_fails_keeps_the_old_checkpoint(files, tmp_path, monkeypatch):
    path = stopped(files, tmp_path / "sums")
    before = path.read_bytes()
    monkeypatch.setattr(compare_layers, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        compare_files(*files, checkpoint=path)
    assert path.read_bytes() == before
    assert {p.name for p in tmp_path.iterdir()} == {"a.npz", "b.npz", "sums"}


def test_bad_places(files, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"sums: the folder .*gone does not exist"):
        compare_files(*files, checkpoint=tmp_path / "gone" / "sums")
    with pytest.raises(ValueError, match=r"checkpoint .*: expected a file, got a folder"):
        compare_files(*files, checkpoint=tmp_path)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    for name in ("pipe", "dangling"):
        with pytest.raises(ValueError, match=f"checkpoint .*{name}: expected a regular file"):
            compare_files(*files, checkpoint=tmp_path / name)


SLOW = """
import sys, time
from gramless.files import layer_source
from gramless.cli.main import main
from gramless.layers.grid import LayerGrid

layer_source.CHUNK_BYTES = 256 * 4 * 10
update = LayerGrid.update

def slow(self, xs, ys):
    update(self, xs, ys)
    if self.n == 512 and "slow" in sys.argv:
        print("halfway", flush=True)
        time.sleep(60)

LayerGrid.update = slow
sys.exit(main([word for word in sys.argv[1:] if word != "slow"]))
"""


@pytest.mark.parametrize("checkpoint", [True, False])
def test_ctrl_c_on_the_command_line(files, tmp_path, checkpoint):
    words = ["compare", *map(str, files), *(["--checkpoint", str(tmp_path / "sums")] if checkpoint else [])]
    start = [sys.executable, "-c", SLOW, *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": memory.environment()}
    with subprocess.Popen([*start, "slow"], **pipes) as child:
        assert child.stdout.readline() == "halfway\n"
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=60)
    assert child.returncode == 130
    assert out == ""
    if checkpoint:
        where = tmp_path / "sums"
        assert err == f"gramless: interrupted: 512 of 1000 rows are done; the same call goes on from {where}\n"
    else:
        assert err == "gramless: interrupted\n"
    done = subprocess.run(start, capture_output=True, text=True, env=memory.environment(), check=True)
    fresh = compare_files(*files)
    assert f"{fresh.values[0, 0]:.3f}" in done.stdout
    assert not (tmp_path / "sums").exists()
