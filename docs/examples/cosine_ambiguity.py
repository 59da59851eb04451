"""The cosine of two label representations is whatever one likes, while no prediction changes.

Run it on the CPU, in seconds: python docs/examples/cosine_ambiguity.py [--plot cosines.png]
docs/constructed_models.md explains the tables that it prints. After Nielsen (2026, arXiv:2603.29488).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence

import numpy as np

import gramless as gl

UNEMBEDDINGS = np.array([[1.0, 0.5], [0.5, 1.0], [-1.0, 0.4], [-0.8, -0.8], [0.9, -1.2]])
# their mean is zero as they are
CENTRED = np.array([[1.4, -1.0], [1.4, 1.0], [-0.9, 0.3], [-1.0, 0.0], [-0.9, -0.3]])
TARGETS = (-1.0, -0.5, 0.0, 0.5, 1.0)


def embeddings(count: int = 1000, seed: int = 0) -> np.ndarray:
    """Return inputs."""
    return np.random.default_rng(seed).standard_normal((count, 2))


def cosine(w: np.ndarray, a: int, b: int) -> float:
    """Return the cosine of two rows."""
    return float(w[a] @ w[b] / np.linalg.norm(w[a]) / np.linalg.norm(w[b]))


def probabilities(h: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Return what the model predicts."""
    z = np.exp(h @ w.T - (h @ w.T).max(axis=1, keepdims=True))
    return z / z.sum(axis=1, keepdims=True)


def table(titles: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table in Markdown."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def translation_table() -> str:
    """Return translations that give labels 0 and 1 any cosine."""
    found = gl.cosine_ambiguity(UNEMBEDDINGS, 0, 1, cosines=TARGETS, h=embeddings())
    rows = [("as given", "0, 0", f"{found.cosine:.3f}", "0")]
    for move, value in zip(found.translations, found.cosines, strict=True):
        change = abs(probabilities(embeddings(), UNEMBEDDINGS) - probabilities(embeddings(), UNEMBEDDINGS + move)).max()
        rows.append(
            ("translated", f"{move[0]:.3f}, {move[1]:.3f}", f"{value + 0:.3f}", "< 1e-14" if change < 1e-14 else change)
        )
    return table(("unembedding", "added to all rows", "cosine of labels 0, 1", "largest change of a probability"), rows)


def coordinate_table() -> str:
    """Return cosines of centred unembeddings after (A, A^-T), beside the label similarity, which stays."""
    h = embeddings()
    rows = []
    for name, a in (
        ("as given", np.eye(2)),
        ("A = diag(1, 4)", np.diag([1.0, 4.0])),
        ("A = diag(4, 1)", np.diag([4.0, 1.0])),
    ):
        moved_h, moved_w = h @ a.T, CENTRED @ np.linalg.inv(a)
        similarity = gl.label_similarity(moved_h, moved_w)
        for i, j in ((0, 1), (1, 2), (2, 4)):
            rows.append((name, f"{i}, {j}", f"{cosine(moved_w, i, j):.3f}", f"{similarity[i, j]:.3f}"))
    return table(("coordinates", "labels", "cosine, centred", "label_similarity"), rows)


def length_table() -> str:
    """Return how often each label is predicted when one unembedding is shortened, which changes no cosine."""
    angle = np.array([0, 1, 2, 3, 4, 5, 7]) * np.pi / 4
    w = 5 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    shorter = w.copy()
    shorter[2] *= 0.4
    h = np.random.default_rng(0).uniform(-6.5, 6.5, (2000, 2))
    rows = []
    for name, v in (("all of length 5", w), ("label 2 of length 2", shorter)):
        counts = np.bincount((h @ v.T).argmax(axis=1), minlength=7)
        rows.append((name, f"{cosine(v, 1, 2):.3f}", *counts))
    return table(("unembedding", "cosine of labels 1, 2", *(f"label {i}" for i in range(7))), rows)


def plot(path: str) -> None:
    """Draw the same five labels under three translations, over the regions in which each is predicted."""
    from matplotlib.figure import Figure

    found = gl.cosine_ambiguity(UNEMBEDDINGS, 0, 1, cosines=(-1.0, 1.0))
    figure = Figure(figsize=(13, 4), layout="constrained")
    axes = figure.subplots(1, 3)
    side = np.linspace(-3, 3, 300)
    points = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
    moves = (np.zeros(2), *found.translations)
    for ax, move, value in zip(axes, moves, (found.cosine, *found.cosines), strict=True):
        w = UNEMBEDDINGS + move
        predicted = (points @ w.T).argmax(axis=1).reshape(300, 300)
        ax.contourf(side, side, predicted, levels=np.arange(-0.5, 5), colors=[f"C{i}" for i in range(5)], alpha=0.25)
        for label, place in enumerate(w):
            ax.annotate("", place, (0, 0), arrowprops={"arrowstyle": "->", "color": f"C{label}", "lw": 2})
            ax.annotate(str(label), 1.12 * place, color=f"C{label}", ha="center", va="center", weight="bold")
        ax.set(xlim=(-3, 3), ylim=(-3, 3), aspect="equal", title=f"cosine of labels 0 and 1: {value:.2f}")
    figure.suptitle("The same predictions for every input")
    figure.savefig(path, dpi=120)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables, and draw the picture if a file is named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plot", metavar="FILE", help="where to save the picture; needs matplotlib")
    chosen = parser.parse_args(arguments)
    print(translation_table(), coordinate_table(), length_table(), sep="\n\n")
    if chosen.plot:
        plot(chosen.plot)


if __name__ == "__main__":
    main()
