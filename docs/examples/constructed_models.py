"""Pairs of models that a KL divergence, or a canonical correlation, calls equal and that are not.

Run it on the CPU, in seconds: python docs/examples/constructed_models.py [--plot models.png]
docs/constructed_models.md explains the tables that it prints.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence

import numpy as np

import gramless as gl

RADII = (1, 3, 5, 10, 15, 18, 20)
# roles of the seven labels in the second model
ROLES = np.array([5, 0, 2, 4, 6, 1, 3])


def polar(angle: np.ndarray, length: np.ndarray | float) -> np.ndarray:
    """Return points of the plane, one in each row."""
    return np.stack([length * np.cos(angle), length * np.sin(angle)], axis=-1).reshape(-1, 2)


def permuted(radius: float, inputs: int = 500, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Return h1, w1, h2, w2 of two models with seven labels on a circle, which take each other's places.

    Embeddings point at the label of their input, up to pi / 64, in both models (Nielsen et al. 2025, arXiv:2506.03784).
    """
    rng = np.random.default_rng(seed)
    angle = 2 * np.pi * np.arange(7) / 7
    noise = rng.uniform(-np.pi / 64, np.pi / 64, (7, inputs))
    length = 2 + abs(0.01 * rng.standard_normal((7, inputs)))
    h1 = polar(angle[:, None] + noise, length)
    h2 = polar(angle[ROLES][:, None] + noise[ROLES], length)
    return h1, polar(angle, radius), h2, polar(angle[ROLES], radius)


def swapped(inputs: int = 500, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Return two models with the same embeddings in which labels 4 and 5, and 6 and 7, are exchanged.

    Inputs of these labels lie halfway between the two, so that both are equally likely (from the code of Nielsen et al.
    2026, arXiv:2602.15438).
    """
    rng = np.random.default_rng(seed)
    w1 = polar(np.array([0, 1, 2, 3, 10, 16, 20, 26]) * np.pi / 16, 5.5)
    middle = np.array([0, 1, 2, 3, 13, 13, 23, 23]) * np.pi / 16
    angle = middle[:, None] + rng.uniform(-np.pi / 256, np.pi / 256, (8, inputs))
    h = polar(angle, 2 + abs(rng.standard_normal((8, inputs))))
    return h, w1, h, w1[[0, 1, 2, 3, 5, 4, 7, 6]]


def counter_rotated(radius: float = 3, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Return a model, and the same with embeddings turned by +45 degrees and unembeddings by -45 degrees."""
    h, w, _, _ = permuted(radius, seed=seed)
    turn = np.array([[1.0, -1.0], [1.0, 1.0]]) / np.sqrt(2)
    return h, w, h @ turn.T, w @ turn


def same_class(radius: float = 3, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Return a model, and the same after A on embeddings, A^-T on unembeddings, and a vector added to the latter."""
    h, w, _, _ = permuted(radius, seed=seed)
    a = np.array([[2.0, 0.5], [-1.0, 1.5]])
    return h, w, h @ a.T, w @ np.linalg.inv(a) + 3


def table(titles: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table in Markdown."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def circle_table() -> str:
    """Return how the permuted models differ as their labels move outwards."""
    rows = []
    for radius in RADII:
        models = permuted(radius)
        far = gl.d_llv(*models)
        worst = gl.d_svd(*models, pivot=far.pivot, leave_out=far.leave_out, inputs=far.inputs)
        correlation = gl.mean_cca(models[0], models[2])
        predictions = gl.compare_logits(*models)
        rows.append(
            (
                radius,
                f"{predictions.kl_pq:.3g}",
                f"{predictions.logit_distance:.1f}",
                f"{far.value:.3f}",
                f"{correlation:.4f}",
                f"{worst.embeddings:.4f}",
                f"{worst.unembeddings:.4f}",
            )
        )
    measures = ("KL(p‖q)", "logit distance", "d_LLV", "mean_cca(h)", "d_SVD, embeddings", "d_SVD, unembeddings")
    return table(("radius", *measures), rows)


def pair_table() -> str:
    """Return what each measure says of the other pairs."""
    pairs = {
        "permuted, radius 18": permuted(18),
        "swapped": swapped(),
        "counter-rotated": counter_rotated(),
        "same class": same_class(),
    }
    rows = []
    for name, models in pairs.items():
        h1, w1, h2, w2 = models
        predictions = gl.compare_logits(*models)
        values = (
            predictions.kl_pq,
            predictions.kl_qp,
            predictions.logit_distance,
            gl.d_llv(*models).value,
            gl.mean_cca(h1, h2),
            gl.mean_cca(w1, w2),
            np.sqrt(gl.d_rep(*models).least_squares),
        )
        # what rounding leaves of 0 depends on the machine
        rows.append((name, *(f"{value if abs(value) > 1e-9 else 0:.3g}" for value in values)))
    measures = ("KL(p‖q)", "KL(q‖p)", "logit distance", "d_LLV", "mean_cca(h)", "mean_cca(w)", "d_rep, least squares")
    return table(("models", *measures), rows)


def plot(path: str) -> None:
    """Draw both models of the first table, and how their divergence and distance depend on the radius."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), layout="constrained")
    first, second, right = figure.subplots(1, 3)
    h1, w1, h2, w2 = permuted(3, inputs=60)
    for ax, h, w, name in ((first, h1, w1, "model 1"), (second, h2, w2, "model 2")):
        for label in range(7):
            own = slice(60 * label, 60 * (label + 1))
            ax.scatter(*h[own].T, s=6, color=f"C{label}")
            ax.scatter(*w[label], s=120, marker="*", color=f"C{label}", label=str(label))
        ax.set(title=f"{name} (stars: unembeddings)", aspect="equal")
    second.legend(title="label", loc="center", fontsize="small")
    radii = np.arange(1, 21)
    right.semilogy(radii, [gl.compare_logits(*permuted(r)).kl_pq for r in radii], "o-", label="KL(p‖q)")
    right.semilogy(radii, [gl.d_llv(*permuted(r)).value for r in radii], "s-", label="d_LLV")
    right.set(title="same predictions, different models", xlabel="radius of the unembeddings")
    right.legend()
    figure.savefig(path, dpi=120)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables, and draw the picture if a file is named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plot", metavar="FILE", help="where to save the picture; needs matplotlib")
    chosen = parser.parse_args(arguments)
    print(circle_table(), pair_table(), sep="\n\n")
    if chosen.plot:
        plot(chosen.plot)


if __name__ == "__main__":
    main()
