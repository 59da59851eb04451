"""The demonstration: real digits, real networks, files that can be compared again, by the line that it prints."""

import io
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
from rich.console import Console

import gramless as gl
from gramless.cli import demo, main
from gramless.files.compare_layers import open_layers
from support import memory

EYE = 0.9 * np.eye(5)
LAYERS = ("input", "relu1", "relu2", "relu3", "logits")


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A run in a folder whose name needs quotes."""
    folder = tmp_path_factory.mktemp("demo") / "a folder; rm *"
    text = io.StringIO()
    matrices = demo.run_demo(folder, Console(file=text, width=80))
    return folder, matrices, text.getvalue()


def test_files(done):
    folder, matrices, _ = done
    pairs = ["seed_a_vs_seed_b", "seed_a_vs_wide_c"]
    expected = {f"{name}.npz" for name in demo.MODELS} | {
        f"{pair}.{kind}" for pair in pairs for kind in ("png", "json")
    }
    assert {path.name for path in folder.iterdir()} == expected
    assert list(matrices) == pairs
    for pair, matrix in matrices.items():
        assert (matrix.layers_x, matrix.layers_y, matrix.n) == (LAYERS, LAYERS, 797)
        np.testing.assert_array_equal(gl.SimilarityMatrix.load(folder / f"{pair}.json").values, matrix.values)
        assert (folder / f"{pair}.png").read_bytes().startswith(b"\x89PNG")


def test_the_networks_learned_and_the_comparison_sees_it(done):
    folder, matrices, _ = done
    rng = np.random.default_rng(0)
    for name, (_, width) in demo.MODELS.items():
        with open_layers(folder / f"{name}.npz") as source:
            assert source.widths == dict(zip(LAYERS, (64, width, width, width, 10), strict=True))
            assert source.ids is not None
        with np.load(folder / f"{name}.npz") as arrays:
            labels = demo._digits()[1][demo.TRAINING :]
            assert np.mean(arrays["logits"].argmax(axis=1) == labels) > 0.9
            # what is alike between networks is what they learned, not their widths
            shuffled = {key: rng.permutation(arrays[key]) for key in LAYERS}
            mixed = gl.cka_matrix(shuffled, {key: arrays[key] for key in LAYERS}).values
            assert all((mixed.max() < matrix.values.min()) for matrix in matrices.values())


def test_the_forward_pass_is_that_of_the_network():
    images, labels, ids = demo._digits()
    network = demo._train(images[:200], labels[:200], seed=0, width=16)
    layers = demo._forward(network, images[200:])
    np.testing.assert_array_equal(network.predict(images[200:]), layers["logits"].argmax(axis=1))
    assert len(np.unique(ids)) == len(images) == 1797
    assert all((layers[f"relu{depth}"] >= 0).all() for depth in (1, 2, 3))


def test_text_and_the_next_command(done):
    folder, matrices, text = done
    lines = text.splitlines()
    assert sum(line.split() == list(LAYERS) for line in lines) == 2
    assert all(demo.meaning(matrix) in lines for matrix in matrices.values())
    assert lines.count("* best match of the row") == 2
    words = shlex.split(lines[-1])
    assert words[:2] == ["gramless", "compare"]
    assert words[2:] == [str(folder / "seed_b.npz"), str(folder / "wide_c.npz")]
    # as it would be pasted into a shell
    pasted = f'gramless() {{ {shlex.quote(sys.executable)} -m gramless "$@"; }}; {lines[-1]}'
    run = subprocess.run(["bash", "-c", pasted], capture_output=True, text=True, env=memory.environment(), check=True)
    assert "same rows by their ids" in run.stdout


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (EYE, "4 of 4 learned layers are most similar to their counterpart, 0 to a neighbour of it "),
        (EYE, "mean CKA of counterparts 0.900, of other pairs 0.000.: the networks learned much the same steps"),
        (np.full((5, 5), -1e-5), "4 of 4 learned .*, 0 to .*mean CKA of counterparts 0.000, of other pairs 0.000"),
        (EYE[[0, 1, 3, 2, 4]], "2 of 4 .*, 2 to a neighbour of it .*: .* neighbouring layers are hard to tell apart"),
        (EYE[[4, 3, 2, 1, 0]], "1 of 4 .*, 0 to a neighbour of it .*: depth alone does not tell"),
    ],
)
def test_meaning_follows_the_numbers(values, words):
    matrix = gl.SimilarityMatrix(values, None, LAYERS, LAYERS, 9, "cka", "unbiased")
    assert re.search(
        words.replace("(", r"\(").replace(")", r"\)") if ".*" not in words else words, demo.meaning(matrix)
    )


@pytest.mark.parametrize("missing", ["sklearn", "matplotlib"])
def test_missing_libraries_are_one_line(tmp_path, monkeypatch, capsys, missing):
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else real(name))
    assert main.main(["demo", "--out", str(tmp_path / "out")]) == 2
    out, err = capsys.readouterr()
    named = {"sklearn": "scikit-learn"}.get(missing, missing)
    assert (out, err) == ("", f'gramless: error: the demo needs {named}: pip install "gramless[demo]"\n')
    assert not (tmp_path / "out").exists()


def test_a_file_in_the_place_of_the_folder(tmp_path, capsys):
    (tmp_path / "out").write_text("mine")
    assert main.main(["demo", "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == f"gramless: error: {tmp_path / 'out'}: File exists\n"
    assert (tmp_path / "out").read_text() == "mine"
