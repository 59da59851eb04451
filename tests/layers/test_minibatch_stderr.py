"""Standard errors from batches: they cover the truth as often as they say, and are those of the textbook formulas."""

from __future__ import annotations

import numpy as np
import pytest

import gramless as gl
from support import bounds, grids

REPETITIONS = 300
# 95 % of a normal distribution lie within so many standard deviations
NORMAL = 1.959963984540054
MIX_X = np.array([[1.0, 0.5, 0.0], [0.0, 1.0, 0.5], [0.0, 0.0, 1.0]])
MIX_Y = np.array([[1.0, 0.0], [0.5, 1.0], [0.0, 0.7]])


def simulate(sizes: tuple[int, ...], share: float, **keywords: object) -> tuple[np.ndarray, np.ndarray]:
    """CKA and standard errors of repetitions: each a pair of layers of normal rows, all of them in one grid."""
    rng = np.random.default_rng(0)
    values, errors = [], []
    for _ in range(3):
        grid = gl.LayerGrid("minibatch", **keywords)
        for n in sizes:
            u = rng.standard_normal((REPETITIONS // 3, n, 3))
            v = rng.standard_normal((REPETITIONS // 3, n, 2))
            grid.update(list(u @ MIX_X), list(share * u @ MIX_Y + v))
        matrix = grid.finalize()
        values.append(np.diag(matrix.values))
        errors.append(np.diag(matrix.stderr))
    return np.concatenate(values), np.concatenate(errors)


def true_cka(share: float) -> float:
    """Linear CKA of the population, |Sxy|^2 / (|Sxx| |Syy|)."""
    xx, xy = MIX_X.T @ MIX_X, share * MIX_X.T @ MIX_Y
    yy = share**2 * MIX_Y.T @ MIX_Y + np.eye(2)
    return float((xy**2).sum() / np.sqrt((xx**2).sum() * (yy**2).sum()))


class TestCoverage:
    """Of 300 intervals of plus and minus 1.96 standard errors, 95 % hold the value of the population."""

    @pytest.mark.parametrize(
        ("sizes", "share", "weights"),
        [
            ((16,) * 60, 0.7, "rows"),
            ((16,) * 60, 0.0, "rows"),
            ((24, 16, 8) * 20, 0.7, "rows"),
            ((24, 16, 8) * 20, 0.7, "equal"),
        ],
        ids=["equal sizes", "independent", "by rows", "equal weights"],
    )
    def test_of_the_population(self, sizes: tuple[int, ...], share: float, weights: str) -> None:
        values, errors = simulate(sizes, share, weights=weights)
        bounds.assert_coverage(np.abs(values - true_cka(share)) <= NORMAL * errors)

    def test_of_a_kernel_without_closed_form(self) -> None:
        """The standard errors are the standard deviation of the values, which are about the mean of all of them."""
        values, errors = simulate((16,) * 40, 0.7, kernel="rbf", bandwidth=2.0)
        bounds.assert_coverage(np.abs(values - values.mean()) <= NORMAL * errors)

    def test_intervals_that_are_too_short_or_too_long_are_seen(self) -> None:
        values, errors = simulate((16,) * 30, 0.7)
        for factor in (2 / 3, 3 / 2):
            with pytest.raises(AssertionError, match="coverage"):
                bounds.assert_coverage(np.abs(values - true_cka(0.7)) <= factor * NORMAL * errors)


class TestFormulas:
    def hsics(self) -> tuple[np.ndarray, list[tuple[grids.Layers, grids.Layers]]]:
        parts = grids.batches(grids.layers(n=960), (24,) * 40)
        return np.stack([grids.hsic_grid([*xs.values(), *ys.values()], "linear", None) for xs, ys in parts]), parts

    def test_streamed_is_two_pass(self) -> None:
        """Of 40 batches, in float64: one pass over batches that are forgotten loses nothing."""
        hsics, parts = self.hsics()
        grid = gl.LayerGrid("minibatch")
        for part in parts:
            grid.update(*part)
        _, want = grids.cka_of_batches(hsics, 3, np.full(40, 24.0))
        for got, truth in zip(grid.finalize().stderr.ravel(), want.ravel(), strict=True):
            bounds.assert_relative(got, truth, bounds.SAME_FP64)

    def test_jackknife(self) -> None:
        """Leaving out one batch after the other gives the same, to the first order in the number of batches."""
        hsics, parts = self.hsics()
        _, want = grids.cka_of_batches(hsics, 3, np.ones(40))
        left_out = [grids.cka_of_batches(np.delete(hsics, k, axis=0), 3, np.ones(39))[0] for k in range(40)]
        jackknife = np.sqrt(39 / 40 * ((left_out - np.mean(left_out, axis=0)) ** 2).sum(axis=0))
        got = gl.cka_matrix(
            *({k: np.concatenate([part[side][k] for part in parts]) for k in parts[0][side]} for side in (0, 1)),
            batch_size=24,
        ).stderr
        assert (np.abs(got / jackknife - 1) <= 2 / len(parts)).all()
        bounds.assert_within_algebra(got, want, np.full_like(want, bounds.CKA_TERMS))

    def test_weights_by_rows_are_those_of_copies(self) -> None:
        """HSIC of more rows has less variance: three batches in one, or one by one, have about the same error."""
        _, errors = simulate((16,) * 60, 0.7)
        _, joined = simulate((16,) * 30 + (48,) * 10, 0.7)
        assert 1 / bounds.STDERR_FACTOR <= errors.mean() / joined.mean() <= bounds.STDERR_FACTOR

    def test_one_batch_has_none(self) -> None:
        xs, ys = grids.layers()
        grid = gl.LayerGrid("minibatch").update(xs, ys)
        assert np.isnan(grid.finalize().stderr).all()
        assert np.isfinite(grid.update(xs, ys).finalize().stderr).all()

    def test_batches_that_are_all_the_same_have_no_error(self) -> None:
        xs, ys = grids.layers()
        grid = gl.LayerGrid("minibatch").update(xs, ys).update(xs, ys).update(xs, ys)
        want = gl.cka_matrix(xs, ys).values
        bounds.assert_within_algebra(grid.finalize().values, want, np.full_like(want, bounds.CKA_TERMS))
        assert (grid.finalize().stderr == 0).all()

    def test_are_printed_beside_the_values(self) -> None:
        grid = gl.LayerGrid("minibatch")
        for part in grids.batches(grids.layers(n=90), (30, 30, 30)):
            grid.update(*part)
        matrix = grid.finalize()
        assert f"{matrix.values[1, 0]:.3f} +- {matrix.stderr[1, 0]:.3f}" in str(matrix)
