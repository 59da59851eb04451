"""What ``gramless logits`` refuses, each with one clear line that names the file or the option."""

import os
import re

import numpy as np
import pytest

from gramless.cli import main
from gramless.files import compare_logits
from support.command_line import failed

N, V, D1, D2 = 500, 60, 9, 6
RNG = np.random.default_rng(0)
H1, W1, H2, W2 = (RNG.standard_normal(shape).astype(np.float32) for shape in ((N, D1), (V, D1), (N, D2), (V, D2)))
TARGETS = np.where(np.arange(N) % 7 == 0, -100, RNG.integers(0, V, N))


@pytest.fixture
def files(tmp_path):
    np.savez(tmp_path / "a.npz", hidden=H1, unembedding=W1, bias=W1[:, 0], more=np.arange(3))
    np.savez(tmp_path / "b.npz", hidden=H2, unembedding=W2)
    np.save(tmp_path / "targets.npy", TARGETS)
    return str(tmp_path / "a.npz"), str(tmp_path / "b.npz")


def test_values_that_are_not_finite_are_named(tmp_path, files, capsys):
    a, b = files
    h1 = H1.copy()
    h1[350, 2] = np.nan
    np.savez(tmp_path / "x.npz", hidden=h1, unembedding=W1)
    assert failed(capsys, "logits", tmp_path / "x.npz", b, "--batch-rows", "64").endswith(
        "x.npz: hidden has a non-finite value in row 350"
    )
    # but for rows that do not count
    assert TARGETS[350] == -100
    assert (
        main.main(
            ["logits", str(tmp_path / "x.npz"), b, "--targets", str(tmp_path / "targets.npy"), "--ignore-index", "-100"]
        )
        == 0
    )
    h1[351] = np.inf
    np.savez(tmp_path / "x.npz", hidden=h1, unembedding=W1)
    words = ["--targets", str(tmp_path / "targets.npy"), "--ignore-index", "-100"]
    capsys.readouterr()
    assert failed(capsys, "logits", tmp_path / "x.npz", b, *words).endswith("value in row 351")
    for name, arrays in (
        ("unembedding", {"unembedding": np.where(np.arange(V)[:, None] == 5, np.inf, W2)}),
        ("bias", {"unembedding": W2, "bias": np.where(np.arange(V) == 7, np.nan, 0.0)}),
    ):
        np.savez(tmp_path / "y.npz", hidden=H2, **arrays)
        message = failed(capsys, "logits", a, tmp_path / "y.npz")
        assert f"{tmp_path}/y.npz: {name} " in message
        assert "w2" not in message


WRONG = {
    "": "the following arguments are required",
    "{a}": "the following arguments are required: B",
    "{a} {t}/gone.npz": "{t}/gone.npz: no such file or folder",
    "{a} {t}/targets.npy": "{t}/targets.npy: expected float16, bfloat16, float32 or float64, got int64",
    "{a} {t}/h.npy": "{t}/h.npy: holds no unembedding; give --unembedding-b, or --logits",
    "{a} {t}/h.npz": "{t}/h.npz: holds no unembedding; give --unembedding-b, or --logits",
    "{a} {t}/w.npz": "{t}/w.npz: holds no entry named 'hidden', it holds unembedding; save it under that name",
    "{a} {t}/short.npz": "expected the same number of rows on both sides, got 500 in {a} and 3 in {t}/short.npz",
    "{a} {t}/h.npy --unembedding-b {a}": "{a}: unembedding: expected one column for each of the 6 features",
    "{a} {t}/h.npy --unembedding-b {a}:more": "{a}: more: expected an unembedding (V, d) of float16",
    "{a} {t}/h.npy --unembedding-b {a}:none": "{a}: holds no entry named 'none', it holds hidden, unembedding, bias",
    "{a} {t}/h.npy --unembedding-b {t}/two.npz": "{t}/two.npz: holds no entry named 'unembedding', it holds u, v; name "
    "another as {t}/two.npz:ENTRY",
    "{a} {t}/h.npy --unembedding-b {t}/gone.npz": "{t}/gone.npz: no such file",
    "{a} {t}/h.npy --unembedding-b {t}/pipe.npy": "{t}/pipe.npy: not a regular file",
    "{a} {b} --bias-b {t}/three.npy": "{t}/three.npy: expected one number for each of the 60 labels of B, got shape",
    "{a} {b} --bias-b {a}:hidden": "{a}: hidden: expected a bias (V,)",
    "{a} {b} --logits": "{a}: holds no entry named 'logits', it holds",
    "{a} {b} --logits --unembedding-b {b}": "{a}: holds no entry named 'logits', it holds",
    "{a} {b} --vocab-size 61": "--vocab-size: expected at most 60, the labels of both models, got 61",
    "{a} {b} --vocab-size 0": "expected --vocab-size of at least 1, got 0",
    "{a} {b} --batch-rows 0": "expected --batch-rows of at least 1, got 0",
    "{a} {b} --temperature -1": "expected temperature above 0, got -1.0",
    "{a} {b} --temperature nan": "expected temperature to be finite, got nan",
    "{a} {b} --softcap-b 0": "expected --softcap-b above 0, got 0.0",
    "{a} {b} --ignore-index 3": "--ignore-index 3 needs --targets",
    "{a} {b} --targets {t}/targets.npy": "expected targets from 0 to 59, or -1 for none, got -100 in row 0; "
    "--ignore-index leaves rows out",
    "{a} {b} --targets {t}/h.npy": "{t}/h.npy: expected targets (N,) of whole numbers, got shape (500, 6) of float32",
    "{a} {b} --targets {a}:more": "{a}: more: 3 targets for 500 rows of {a}",
    "{a} {b} --targets {t}/same.npy --ignore-index 4": "every target is 4, no row counts",
    "{a} {b} --targets {t}/late.npy --batch-rows 90": "expected targets from 0 to 59, or -1 for none, got 60 in row "
    "400; --ignore-index leaves rows out",
    "{a} {b} --threads 0": "--threads: expected 1 to 1024, got 0",
    "{a} {b} --rows {t}/rows.txt": "--rows {t}/rows.txt: expected a name that ends in .npz, .csv, .safetensors",
    "{a} {b} --json {t}/out.txt": "--json {t}/out.txt: expected a name that ends in .json",
    "{a} {b} --rows {b}": "--rows {b}: would overwrite an input",
    "{a} {b} --targets {t}/same.npz --rows {t}/same.npz": "--rows {t}/same.npz: would overwrite an input",
    "{a} {b} --rows {t}/gone/rows.npz": "--rows {t}/gone/rows.npz: the folder {t}/gone does not exist",
}


@pytest.mark.parametrize("words", WRONG)
def test_mistakes_are_one_line(files, tmp_path, capsys, words):
    np.save(tmp_path / "h.npy", H2)
    np.savez(tmp_path / "h.npz", hidden=H2)
    np.savez(tmp_path / "w.npz", unembedding=W2)
    np.savez(tmp_path / "short.npz", hidden=H2[:3], unembedding=W2)
    np.savez(tmp_path / "two.npz", u=W2, v=W2)
    np.save(tmp_path / "three.npy", np.ones(3))
    np.save(tmp_path / "same.npy", np.full(N, 4))
    np.savez(tmp_path / "same.npz", targets=np.full(N, 4))
    np.save(tmp_path / "late.npy", np.where(np.arange(N) == 400, V, 0))
    os.mkfifo(tmp_path / "pipe.npy")
    names = {"a": files[0], "b": files[1], "t": tmp_path}
    message = failed(capsys, "logits", *words.format(**names).split())
    assert message.startswith(WRONG[words].format(**names))


def test_broken_files_are_refused(files, tmp_path, capsys):
    a, b = files
    with open(b, "rb") as file:
        content = file.read()
    place = content.rindex(b"NUMPY") + 200
    (tmp_path / "flipped.npz").write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])
    assert re.match(
        rf"{tmp_path}/flipped\.npz: unembedding: (damaged|unreadable)",
        failed(capsys, "logits", a, tmp_path / "flipped.npz"),
    )
    (tmp_path / "cut.npz").write_bytes(content[:-100])
    assert "not a readable .npz" in failed(capsys, "logits", a, tmp_path / "cut.npz")
    np.save(tmp_path / "object.npy", np.array([[{}]], dtype=object), allow_pickle=True)
    words = ["--unembedding-b", tmp_path / "object.npy"]
    assert "holds pickled Python objects" in failed(capsys, "logits", a, b, *words)
    np.savez(tmp_path / "name.npz", **{"x\x1b[31m": W2, "y": W2})
    message = failed(capsys, "logits", a, b, "--unembedding-b", tmp_path / "name.npz")
    assert "x?[31m" in message


def test_weights_that_do_not_fit(files, capsys, monkeypatch):
    monkeypatch.setattr(compare_logits, "available_bytes", lambda: 1000)
    message = failed(capsys, "logits", *files)
    assert message == (
        f"both unembeddings and a batch of rows need {4 * (V + N) * (D1 + D2):,} bytes in memory, available is 1,000 "
        "bytes; give a smaller --vocab-size or --batch-rows"
    )
