"""Inequalities between distances of two models, on random models: they hold, and are not so loose that all would."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from scipy import linalg

import gramless as gl
from support import bounds, two_models

SEEDS = range(40)


def random_models(seed: int) -> two_models.Models:
    rng = np.random.default_rng(seed)
    d = int(rng.integers(1, 5))
    labels, n, noise = int(rng.integers(d + 1, 12)), int(rng.integers(20, 60)), 10 ** rng.uniform(-3, 0.7)
    return two_models.related(seed, n=n, labels=labels, d=d, noise=noise)


def assert_at_most(value: float, bound: float) -> float:
    assert value <= bound * (1 + bounds.INEQUALITY) + bounds.SAME_CLASS
    return value / bound


@pytest.mark.parametrize("centred", [True, False])
def test_correlations_bound_the_distance_of_logits_from_below(centred: bool) -> None:
    ratios = []
    for seed in SEEDS:
        models = random_models(seed)
        h1, w1, h2, _ = models
        loose = gl.bounds.logit_distance_from_correlations(h1, w1, h2, centred=centred)
        sharp = gl.bounds.logit_distance_from_correlations(h1, w1, h2, centred=centred, sharp=True)
        distance = math.sqrt(two_models.squared_logit_distance(models, centred))
        assert_at_most(loose, sharp)
        ratios.append(assert_at_most(sharp, distance))
        assert_at_most(sharp, math.sqrt(two_models.squared_logit_distance(models)))
    assert max(ratios) > 0.5


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("d2", [2, 3, 5])
def test_correlations_by_their_definition(centred: bool, d2: int) -> None:
    h1, w1, h2, _ = two_models.related(3, d2=d2)
    z = h1 @ (w1 - w1.mean(axis=0)).T
    if centred:
        z, h2 = z - z.mean(axis=0), h2 - h2.mean(axis=0)
    fitted = h2 @ np.linalg.lstsq(h2, z, rcond=None)[0]
    sharp = gl.bounds.logit_distance_from_correlations(h1, w1, h2, sharp=True, centred=centred)
    bounds.assert_relative(sharp, math.sqrt(((z - fitted) ** 2).sum() / len(z)), bounds.INVARIANCE_FP64)
    left, values, _ = np.linalg.svd(z, full_matrices=False)
    rho = np.zeros(3)
    found = np.linalg.svd(left[:, :3].T @ np.linalg.qr(h2)[0], compute_uv=False)
    rho[: len(found)] = found
    want = math.sqrt((values[:3] ** 2 * (1 - rho**2)).sum() / len(z))
    loose = gl.bounds.logit_distance_from_correlations(h1, w1, h2, centred=centred)
    bounds.assert_relative(loose, want, bounds.INVARIANCE_FP64)


def test_mixed_moments_break_the_inequality() -> None:
    """Eigenvalues about zero with correlations about the mean, as in the published figure, bound nothing."""
    h = np.random.default_rng(0).standard_normal((200, 2)) * [1.0, 0.02] + [0.0, 9.0]
    other = h * [1.0, 0.0] + [0.0, 9.0]
    w = np.array([[1.0, 1.0], [-1.0, 2.0], [0.5, -1.0]])
    distance = math.sqrt(two_models.squared_logit_distance((h, w, other, w)))
    z = h @ (w - w.mean(axis=0)).T
    values = np.linalg.eigvalsh(z.T @ z / len(z))[::-1][:2]
    bases = [np.linalg.svd(a - a.mean(axis=0), full_matrices=False)[0] for a in (h, other)]
    rho = np.linalg.svd(bases[0].T @ bases[1][:, :1], compute_uv=False)[0]
    mixed = math.sqrt(values @ (1 - np.array([0.0, rho]) ** 2))
    assert mixed > distance
    for centred in (True, False):
        assert_at_most(gl.bounds.logit_distance_from_correlations(h, w, other, centred=centred), distance)


def test_label_sets() -> None:
    """The mean of |L_1^T h1 - L_2^T h2|^2 over all sets is 2 d / (V - 1) d_logit^2."""
    ratios = []
    for seed in SEEDS:
        models = random_models(seed)
        labels, d = models[1].shape
        distance = math.sqrt(two_models.squared_logit_distance(models))
        found = gl.d_rep(*models, pivots=labels, combinations=30)
        least = found.quantiles[0.0]
        bound = gl.bounds.d_rep_from_logit_distance(distance, least, d, labels)
        ratios.append(found.median / bound)
        # exact over all sets, so that a sample of them is near it
        weighed = (found.sigma_min**2 * found.values).mean()
        assert weighed <= 2 * gl.bounds.d_rep_from_logit_distance(distance, 1.0, d, labels)
    assert max(ratios) > 1e-3


def test_label_sets_exactly() -> None:
    h1, w1, h2, w2 = models = two_models.related(4, labels=5, d=2)
    gaps = h1 @ w1.T - h2 @ w2.T
    pairs = [((gaps[:, y] - gaps[:, pivot]) ** 2).mean() for pivot in range(5) for y in range(5) if y != pivot]
    distance = math.sqrt(two_models.squared_logit_distance(models))
    bounds.assert_relative(
        gl.bounds.d_rep_from_logit_distance(distance, 1.0, 2, 5), 2 * np.mean(pairs), bounds.SAME_FP64
    )


def test_least_squares() -> None:
    ratios = []
    for seed in SEEDS:
        models = random_models(seed)
        distance = math.sqrt(two_models.squared_logit_distance(models))
        bound = gl.bounds.least_squares_from_logit_distance(distance, models[1])
        ratios.append(assert_at_most(math.sqrt(gl.d_rep(*models, pivots=1, combinations=1).least_squares), bound))
        want = distance / np.linalg.norm(models[1] - models[1].mean(axis=0), -2)
        bounds.assert_relative(bound, want, bounds.INVARIANCE_FP64)
    assert max(ratios) > 0.5
    assert gl.bounds.least_squares_from_logit_distance(0.1, np.ones((5, 2))) == math.inf
    assert gl.bounds.least_squares_from_logit_distance(0.1, np.eye(3)) == math.inf


def test_kl_divergence() -> None:
    """d_logit^2 <= 2 KL / tau, both ways, and the 2 cannot be less."""
    largest = 0.0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        labels = int(rng.integers(2, 8))
        p, q = (rng.dirichlet(np.full(labels, 10 ** rng.uniform(-0.5, 2)), 1) for _ in range(2))
        if seed % 2:
            q = np.exp(np.log(p) + 1e-3 * rng.standard_normal(labels))
            q /= q.sum()
        gap = np.log(p) - np.log(q)
        distance = np.linalg.norm(gap - gap.mean())
        least = min(float(p.min()), float(q.min()))
        for a, b in ((p, q), (q, p)):
            kl = float((a * (np.log(a) - np.log(b))).sum())
            ratio = assert_at_most(distance, gl.bounds.logit_distance_from_kl(kl, least))
            largest = max(largest, ratio)
    assert largest > 0.9


def test_kl_divergence_of_models() -> None:
    for seed in SEEDS:
        h1, w1, h2, w2 = random_models(seed)
        # so that no probability underflows
        models = h1, w1 / np.abs(h1 @ w1.T).max(), h2, 2 * w2 / np.abs(h2 @ w2.T).max()
        logs = [two_models.log_likelihoods(*models[k : k + 2]) for k in (0, 2)]
        least = math.exp(min(a.min() for a in logs))
        distance = math.sqrt(two_models.squared_logit_distance(models))
        assert_at_most(distance, gl.bounds.logit_distance_from_kl(two_models.mean_kl(models), least))


@pytest.mark.parametrize(
    ("name", "arguments", "error", "text"),
    [
        ("logit_distance_from_kl", (-1.0, 0.1), ValueError, "expected kl of at least 0, got -1.0"),
        ("logit_distance_from_kl", (1.0, 0.0), ValueError, "expected least_probability above 0, got 0.0"),
        ("logit_distance_from_kl", (1.0, 0.6), ValueError, "expected least_probability of at most 0.5, got 0.6"),
        ("least_squares_from_logit_distance", (-1.0, np.eye(3)), ValueError, "expected distance of at least 0"),
        ("least_squares_from_logit_distance", (1.0, [1.0]), TypeError, "expected w1 to be a NumPy array"),
        ("d_rep_from_logit_distance", (1.0, 0.0, 2, 5), ValueError, "expected sigma_min above 0, got 0.0"),
        ("d_rep_from_logit_distance", (1.0, 1.0, 5, 5), ValueError, "expected more labels than hidden size"),
        ("d_rep_from_logit_distance", (1.0, 1.0, 2.5, 5), TypeError, "expected d to be an int, got float"),
        ("logit_distance_from_correlations", (np.eye(4), np.eye(3), np.eye(4)), ValueError, "with the same d"),
        ("logit_distance_from_correlations", (np.eye(4), np.eye(4), np.eye(3)), ValueError, "same number of rows"),
        ("d_svd_from_d_llv", (-0.1,), ValueError, "expected epsilon of at least 0, got -0.1"),
        ("d_svd_from_d_llv", (math.nan,), ValueError, "expected epsilon to be finite, got nan"),
    ],
)
def test_refusals(name: str, arguments: tuple, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=re.escape(text)) as caught:
        getattr(gl.bounds, name)(*arguments)
    assert str(caught.value).startswith(f"{name}: ")


def test_bounds_that_overflow_are_infinite():
    assert gl.bounds.d_svd_from_d_llv(1e200) == np.inf
    assert gl.bounds.d_rep_from_logit_distance(1e200, 1.0, 2, 5) == np.inf
    assert gl.bounds.logit_distance_from_kl(1e308, 0.1) == np.inf
    h, w = np.random.default_rng(5).standard_normal((2, 20, 3))
    found = gl.bounds.logit_distance_from_correlations(2.0**660 * h, w, w)
    assert np.isclose(found, 2.0**660 * gl.bounds.logit_distance_from_correlations(h, w, w), rtol=1e-12)


def test_distances_that_overflow_are_refused():
    h, w = np.random.default_rng(5).standard_normal((2, 20, 3))
    with pytest.raises(ValueError, match=r"^logit_distance_from_correlations: logits overflow; scale the data down"):
        gl.bounds.logit_distance_from_correlations(1e200 * h, 1e200 * w, h)
    # four uncorrelated logits of 1e308 each, which is finite, and nothing of them in h2
    signs = linalg.hadamard(8).astype(float)
    for sharp in (True, False):
        with pytest.raises(ValueError, match=r"^logit_distance_from_correlations: the distance overflows; scale the"):
            gl.bounds.logit_distance_from_correlations(
                1e300 * signs[:, 1:5], 1e8 / np.sqrt(8) * signs[:, 1:5], signs[:, 5:6], sharp=sharp
            )
