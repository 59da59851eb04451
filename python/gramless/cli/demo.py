"""A whole comparison on real data: networks that learn to read digits. It needs scikit-learn and matplotlib."""

from __future__ import annotations

import os
import shlex
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console

from .._base.text import decimal
from ..files.compare_layers import compare_files
from ..layers.heatmap import heatmap
from ..layers.similarity_matrix import SimilarityMatrix
from .text_tables import legend, matrix_lines, print_lines

Activations = dict[str, npt.NDArray[np.float32]]

# images to learn from; the others are held out
TRAINING = 1000
EPOCHS = 40
MODELS: dict[str, tuple[int, int]] = {"seed_a": (1, 64), "seed_b": (2, 64), "wide_c": (3, 256)}
HIDDEN = 3


def run_demo(out: str | os.PathLike[str], console: Console) -> dict[str, SimilarityMatrix]:
    """Train three small networks on the digits of scikit-learn, and compare their layers on held-out images.

    Two networks differ in their seed alone, the third is four times as wide. The folder gets the activations of each
    (``.npz``, with ids), and a heat map and a ``.json`` file of each comparison. Nothing is downloaded.

    Parameters
    ----------
    out : path
        Folder, made if it is missing.
    console : rich Console
        Where the tables are printed.

    Returns
    -------
    dict of str to SimilarityMatrix
        ``"seed_a_vs_seed_b"`` and ``"seed_a_vs_wide_c"``, values of shape (5, 5).

    Raises
    ------
    ModuleNotFoundError
        If scikit-learn or matplotlib is not installed.
    OSError
        If the folder cannot be made or written.

    Notes
    -----
    Takes a few seconds on two cores.

    Examples
    --------
    >>> import io
    >>> from rich.console import Console
    >>> from gramless.cli.demo import run_demo
    >>> matrices = run_demo("out", Console(file=io.StringIO()))
    >>> matrices["seed_a_vs_seed_b"].values.shape
    (5, 5)
    """
    folder = Path(out)
    _check_libraries()
    folder.mkdir(parents=True, exist_ok=True)

    start = time.perf_counter()
    images, labels, ids = _digits()
    for name, (seed, width) in MODELS.items():
        network = _train(images[:TRAINING], labels[:TRAINING], seed, width)
        layers = _forward(network, images[TRAINING:])
        right = np.mean(np.argmax(layers["logits"], axis=1) == labels[TRAINING:])
        arrays: dict[str, Any] = {**layers, "ids": ids[TRAINING:]}
        np.savez(folder / f"{name}.npz", **arrays)
        print_lines(console, f"trained {name}: {HIDDEN} hidden layers of {width}, {right:.1%} of held-out digits right")

    matrices: dict[str, SimilarityMatrix] = {}
    for other, what in (("seed_b", "another seed"), ("wide_c", "another seed and four times the width")):
        paths = [folder / f"{name}.npz" for name in ("seed_a", other)]
        matrix = compare_files(*paths)
        name = f"seed_a_vs_{other}"
        matrices[name] = matrix
        matrix.save(folder / f"{name}.json")
        heatmap(matrix, folder / f"{name}.png", name_x="seed_a", name_y=other)
        print_lines(console, f"\nseed_a (rows) against {other} (columns): {what}\n")
        print_lines(console, *matrix_lines(matrix, console.width), "", *legend(matrix), "", meaning(matrix))
    print_lines(
        console, f"\n{matrix.estimator} CKA, n = {matrix.n} held-out images, {time.perf_counter() - start:.1f} s in all"
    )
    print_lines(console, f"activations, heat maps and .json files are in {folder}{os.sep}; next, for instance:\n")
    command = ["gramless", "compare", *(str(folder / f"{name}.npz") for name in ("seed_b", "wide_c"))]
    print_lines(console, shlex.join(command))
    return matrices


def meaning(matrix: SimilarityMatrix) -> str:
    """Say in one sentence what a matrix between two models with the same layers shows."""
    learned = [i for i, name in enumerate(matrix.layers_x) if name != "input"]
    best = matrix.best_columns()
    same = sum(best[i] == i for i in learned)
    near = sum(best[i] in (i - 1, i + 1) for i in learned)
    counterparts = float(np.mean([matrix.values[i, i] for i in learned]))
    others = float(np.mean([matrix.values[i, j] for i in learned for j in learned if i != j]))
    if same == len(learned):
        verdict = "the networks learned much the same steps in the same order"
    elif same + near == len(learned):
        verdict = "the networks learned similar steps in the same order, but neighbouring layers are hard to tell apart"
    else:
        verdict = "depth alone does not tell which layers correspond"
    return (
        f"{same} of {len(learned)} learned layers are most similar to their counterpart, {near} to a neighbour of it "
        f"(mean CKA of counterparts {decimal(counterparts)}, of other pairs {decimal(others)}): {verdict}."
    )


def _check_libraries() -> None:
    import importlib.util

    missing = [name for name in ("sklearn", "matplotlib") if importlib.util.find_spec(name) is None]
    if missing:
        named = " and ".join(missing).replace("sklearn", "scikit-learn")
        raise ModuleNotFoundError(f'the demo needs {named}: pip install "gramless[demo]"')


def _digits() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Images (1797, 64) in [0, 1], labels and ids, shuffled."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    return (images[order] / 16).astype(np.float32), labels[order].astype(np.int64), order.astype(np.int64)


def _train(images: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], seed: int, width: int) -> Any:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier
    from threadpoolctl import threadpool_limits

    network = MLPClassifier((width,) * HIDDEN, batch_size=50, max_iter=EPOCHS, random_state=seed)
    # batches are small: a second BLAS thread gains nothing, and on a busy machine costs a factor of ten
    with threadpool_limits(1), warnings.catch_warnings():
        # a fixed number of passes is what is wanted
        warnings.simplefilter("ignore", ConvergenceWarning)
        return network.fit(images, labels)


def _forward(network: Any, images: npt.NDArray[np.float32]) -> Activations:
    """All layers of a network, by hand: scikit-learn gives its last one alone."""
    layers: Activations = {"input": images}
    h = images
    for depth, (w, b) in enumerate(zip(network.coefs_, network.intercepts_, strict=True), 1):
        h = (h @ w + b).astype(np.float32)
        if depth <= HIDDEN:
            h = np.maximum(h, 0)
        layers[f"relu{depth}" if depth <= HIDDEN else "logits"] = h
    return layers
