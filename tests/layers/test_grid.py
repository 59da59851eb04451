"""Grids of layers: every cell is the pairwise measure, names stay with their rows, a dead layer loses only its own."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import gramless as gl
from support import bounds, cases, oracle
from support.backends import Backend, as_torch
from support.grids import layers

ESTIMATORS = ("unbiased", "biased", "feature_corrected")


class TestValue:
    @pytest.mark.parametrize("dtype", list(cases.DTYPES))
    @pytest.mark.parametrize("estimator", ESTIMATORS)
    def test_each_cell_is_the_pairwise_measure(self, backend: Backend, estimator: str, dtype: str) -> None:
        xs, ys = layers(dtype)
        matrix = gl.cka_matrix(xs, ys, estimator=estimator, backend=backend.name)
        assert matrix.values.shape == (3, 2)
        assert matrix.values.dtype == np.float64
        for i, x in enumerate(xs.values()):
            for j, y in enumerate(ys.values()):
                want = gl.cka(x, y, estimator=estimator, backend=backend.name)
                bounds.assert_relative(matrix.values[i, j], want, bounds.bound_for(x.dtype), f"cell {i}, {j}")

    def test_against_dense_grams(self, backend: Backend) -> None:
        xs, ys = layers("fp32")
        got = gl.cka_matrix(xs, ys, backend=backend.name).values
        want = [[oracle.dense_cka(x, y) for y in ys.values()] for x in xs.values()]
        for a, b in zip(got.ravel(), np.ravel(want), strict=True):
            bounds.assert_relative(a, b, bounds.FIRST_FP32)

    @pytest.mark.parametrize("dtype", ["bf16", "fp64"])
    @pytest.mark.parametrize("estimator", ESTIMATORS)
    def test_one_model_against_itself(self, backend: Backend, estimator: str, dtype: str) -> None:
        xs, _ = layers(dtype)
        matrix = gl.cka_matrix(xs, estimator=estimator, backend=backend.name)
        assert matrix.layers_x == matrix.layers_y == ("z", "a", "m")
        assert (np.diag(matrix.values) == 1).all()
        bounds.assert_same_bits(matrix.values.T.copy(), matrix.values, "the transpose")
        for i, a in enumerate(xs.values()):
            for j, b in enumerate(xs.values()):
                if i != j:
                    want = gl.cka(a, b, estimator=estimator, backend=backend.name)
                    bounds.assert_relative(matrix.values[i, j], want, bounds.bound_for(a.dtype))

    @pytest.mark.parametrize("estimator", ["unbiased", "biased"])
    def test_self_grid_is_the_two_sided_grid_of_the_same(self, estimator: str) -> None:
        """The same model given twice is computed, not looked up: the diagonal must come out as 1."""
        xs, _ = layers()
        one = gl.cka_matrix(xs, estimator=estimator).values
        two = gl.cka_matrix(xs, xs, estimator=estimator).values
        bounds.assert_within_algebra(two, one, np.full_like(one, bounds.CKA_TERMS))

    def test_offset_of_a_layer_does_not_matter(self) -> None:
        xs, ys = layers("fp32")
        moved = {k: v + np.float32(1e4) for k, v in xs.items()}
        got = gl.cka_matrix(moved, ys).values
        want = [[oracle.dense_cka(x, y) for y in ys.values()] for x in moved.values()]
        for a, b in zip(got.ravel(), np.ravel(want), strict=True):
            bounds.assert_relative(a, b, bounds.FIRST_FP32)

    def test_one_layer_and_torch_layers(self) -> None:
        xs, ys = layers("bf16")
        want = gl.cka_matrix(xs, ys).values
        got = gl.cka_matrix({k: as_torch(v) for k, v in xs.items()}, {k: as_torch(v) for k, v in ys.items()}).values
        bounds.assert_same_bits(got, want, "torch layers")
        single = gl.cka_matrix([xs["z"]], [ys["in"]])
        assert single.values.shape == (1, 1)


class TestNames:
    def test_are_kept_in_the_order_given(self) -> None:
        xs, ys = layers()
        matrix = gl.cka_matrix(xs, ys)
        assert matrix.layers_x == ("z", "a", "m")
        assert matrix.layers_y == ("out", "in")
        assert (matrix.n, matrix.measure, matrix.estimator, matrix.stderr) == (60, "cka", "unbiased", None)

    def test_rows_move_with_their_names(self) -> None:
        xs, ys = layers()
        want = gl.cka_matrix(xs, ys)
        order = ["m", "z", "a"]
        got = gl.cka_matrix({k: xs[k] for k in order}, ys)
        rows = [want.layers_x.index(k) for k in order]
        bounds.assert_same_bits(got.values, want.values[rows], "reordered rows")

    def test_later_batches_may_give_another_order(self) -> None:
        xs, ys = layers()
        grid = gl.LayerGrid().update({k: v[:30] for k, v in xs.items()}, {k: v[:30] for k, v in ys.items()})
        grid.update({k: xs[k][30:] for k in ("a", "m", "z")}, {k: ys[k][30:] for k in ("in", "out")})
        want = gl.cka_matrix(xs, ys)
        got = grid.finalize()
        assert got.layers_x == want.layers_x
        assert got.layers_y == want.layers_y
        bounds.assert_within_algebra(got.values, want.values, np.full_like(want.values, bounds.CKA_TERMS))

    def test_merge_of_grids_in_another_order(self) -> None:
        xs, ys = layers()
        first = gl.LayerGrid().update({k: v[:30] for k, v in xs.items()}, {k: v[:30] for k, v in ys.items()})
        second = gl.LayerGrid().update({k: xs[k][30:] for k in ("m", "a", "z")}, {k: v[30:] for k, v in ys.items()})
        got = first.merge(second).finalize()
        want = gl.cka_matrix(xs, ys)
        assert got.layers_x == ("z", "a", "m")
        bounds.assert_within_algebra(got.values, want.values, np.full_like(want.values, bounds.CKA_TERMS))

    def test_self_grids_in_another_order(self) -> None:
        """Pairs are stored once, for one order of the names: another order must not lose or transpose them."""
        xs, _ = layers()
        first = gl.LayerGrid().update({k: v[:30] for k, v in xs.items()})
        second = gl.LayerGrid().update({k: xs[k][30:] for k in ("m", "a", "z")})
        streamed = gl.LayerGrid().update({k: v[:30] for k, v in xs.items()})
        streamed.update({k: xs[k][30:] for k in ("m", "a", "z")})
        want = gl.cka_matrix(xs).values
        for got in (first.merge(second).finalize(), streamed.finalize()):
            assert got.layers_x == ("z", "a", "m")
            bounds.assert_within_algebra(got.values, want, np.full_like(want, bounds.CKA_TERMS))

    def test_lists_are_named_by_position(self) -> None:
        xs, ys = layers()
        matrix = gl.cka_matrix(list(xs.values()), tuple(ys.values()))
        assert matrix.layers_x == ("0", "1", "2")
        assert matrix.layers_y == ("0", "1")

    @pytest.mark.parametrize("name", ["x/a", "a.b.c", "", "Ä", "a\nb", "self.0.second"])
    def test_odd_names_survive_a_round_trip(self, name: str) -> None:
        xs, ys = layers()
        grid = gl.LayerGrid().update({name: xs["z"]}, {name: ys["out"], "other": ys["in"]})
        restored = gl.LayerGrid()
        restored.load_state_dict(grid.state_dict())
        got = restored.finalize()
        assert got.layers_x == (name,)
        assert got.layers_y == (name, "other")
        bounds.assert_same_bits(got.values, grid.finalize().values, "odd names")


class TestDeadLayers:
    @pytest.mark.parametrize("estimator", ["unbiased", "biased"])
    def test_nan_and_one_warning(self, backend: Backend, estimator: str) -> None:
        xs, ys = layers()
        xs["a"] = np.full_like(xs["a"], 3.25)
        ys["in"] = np.zeros_like(ys["in"])
        with pytest.warns(RuntimeWarning, match="constant") as caught:
            matrix = gl.cka_matrix(xs, ys, estimator=estimator, backend=backend.name)
        assert len(caught) == 1
        message = str(caught[0].message)
        assert "x/a" in message
        assert "y/in" in message
        dead = np.array([[False, True], [True, True], [False, True]])
        assert np.array_equal(np.isnan(matrix.values), dead)
        want = gl.cka_matrix({k: xs[k] for k in "zm"}, {"out": ys["out"]}, estimator=estimator, backend=backend.name)
        bounds.assert_same_bits(matrix.values[[0, 2], :1].copy(), want.values, "the live layers")

    def test_on_the_diagonal_of_a_self_grid(self) -> None:
        xs, _ = layers()
        xs["m"] = np.ones_like(xs["m"])
        with pytest.warns(RuntimeWarning, match="x/m"):
            values = gl.cka_matrix(xs).values
        assert np.isnan(values[2]).all()
        assert np.isnan(values[:, 2]).all()
        assert np.isfinite(values[:2, :2]).all()

    def test_every_layer_dead(self) -> None:
        with pytest.warns(RuntimeWarning, match="constant"):
            values = gl.cka_matrix([np.ones((9, 2))], [np.ones((9, 3))]).values
        assert np.isnan(values).all()

    def test_dead_in_one_batch_is_not_dead(self) -> None:
        xs, ys = layers()
        quiet = {k: v[:30].copy() for k, v in xs.items()}
        quiet["a"][:] = quiet["a"][0]
        grid = gl.LayerGrid().update(quiet, {k: v[:30] for k, v in ys.items()})
        grid.update({k: v[30:] for k, v in xs.items()}, {k: v[30:] for k, v in ys.items()})
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert np.isfinite(grid.finalize().values).all()


class TestMatrix:
    @pytest.mark.parametrize("suffix", [".json", ".npz"])
    def test_save_and_load(self, tmp_path: object, suffix: str) -> None:
        xs, ys = layers()
        xs["a"] = np.ones_like(xs["a"])
        with pytest.warns(RuntimeWarning, match="x/a"):
            matrix = gl.cka_matrix(xs, ys, estimator="biased")
        path = tmp_path / f"m{suffix}"
        matrix.save(path)
        loaded = gl.SimilarityMatrix.load(path)
        bounds.assert_same_bits(loaded.values, matrix.values, suffix)
        for field in ("layers_x", "layers_y", "n", "measure", "estimator", "stderr"):
            assert getattr(loaded, field) == getattr(matrix, field), field

    @pytest.mark.parametrize("suffix", [".json", ".npz"])
    def test_save_and_load_of_standard_errors(self, tmp_path: object, suffix: str) -> None:
        xs, ys = layers()
        xs["a"] = np.ones_like(xs["a"])
        for size in (20, 60):
            with pytest.warns(RuntimeWarning, match="x/a"):
                matrix = gl.cka_matrix(xs, ys, batch_size=size)
            path = tmp_path / f"m{suffix}"
            matrix.save(path)
            loaded = gl.SimilarityMatrix.load(path)
            bounds.assert_same_bits(loaded.stderr, matrix.stderr, suffix)
            assert str(loaded) == str(matrix)
            assert np.isnan(matrix.stderr[0, 0]) == (size == 60), "one batch has no standard errors"

    @pytest.mark.parametrize("suffix", [".json", ".npz"])
    @pytest.mark.parametrize("content", [b"", b"{}", b"PK\x03\x04", b"[1, 2", b"\x80\x04K\x01.", b"null"], ids=repr)
    def test_files_that_are_something_else(self, tmp_path: object, suffix: str, content: bytes) -> None:
        path = tmp_path / f"m{suffix}"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"SimilarityMatrix\.load: cannot read"):
            gl.SimilarityMatrix.load(path)

    @pytest.mark.parametrize("suffix", [".json", ".npz"])
    def test_truncated_files(self, tmp_path: object, suffix: str) -> None:
        path = tmp_path / f"m{suffix}"
        gl.cka_matrix(*layers()).save(path)
        whole = path.read_bytes()
        for end in range(0, len(whole) - 2, max(1, len(whole) // 23)):
            path.write_bytes(whole[:end])
            with pytest.raises(ValueError, match="cannot read"):
                gl.SimilarityMatrix.load(path)

    def test_pickled_arrays_are_refused(self, tmp_path: object) -> None:
        path = tmp_path / "m.npz"
        np.savez(path, header=np.array([{"format": "x"}], dtype=object), values=np.zeros((1, 1)))
        with pytest.raises(ValueError, match="cannot read"):
            gl.SimilarityMatrix.load(path)

    def test_other_suffix(self, tmp_path: object) -> None:
        matrix = gl.cka_matrix(*layers())
        for path in (tmp_path / "m.pkl", tmp_path / "m"):
            with pytest.raises(ValueError, match=r"\.json or \.npz"):
                matrix.save(path)
            with pytest.raises(ValueError, match=r"\.json or \.npz"):
                gl.SimilarityMatrix.load(path)

    def test_pandas(self) -> None:
        frame = gl.cka_matrix(*layers()).to_pandas()
        assert list(frame.index) == ["z", "a", "m"]
        assert list(frame.columns) == ["out", "in"]

    def test_text(self) -> None:
        text = str(gl.cka_matrix(*layers()))
        for word in ("unbiased", "n = 60", "z", "out"):
            assert word in text

    def test_best_match(self) -> None:
        values = np.array([[0.1, 0.9], [np.nan, 0.2], [np.nan, np.nan]])
        matrix = gl.SimilarityMatrix(values, None, ("a", "b", "c"), ("u", "v"), 9, "cka", "biased")
        assert matrix.best_match() == {"a": "v", "b": "v", "c": None}
