"""Each error by its kind and its text: the function, what it expected, and what came."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

import gramless as gl
from support.backends import OnlyDLPack

X = np.random.default_rng(0).standard_normal((128, 6)).astype(np.float32)
Y = np.random.default_rng(1).standard_normal((128, 4)).astype(np.float32)
MEASURES = ("hsic", "cka", "cka_distance")
PAIRED = (*MEASURES, "moments")


def call(function: str, *arguments: object, **keywords: object) -> object:
    return getattr(gl, function)(*arguments, **keywords)


def refuses(error: type[Exception], text: str, function: str, *arguments: object, **keywords: object) -> None:
    with pytest.raises(error, match=re.escape(text)) as caught:
        call(function, *arguments, **keywords)
    message = str(caught.value)
    assert message.startswith(function), f"the message does not name the function: {message}"
    assert "\n" not in message


class OnCuda:
    """An array that says it lives on a GPU."""

    def __dlpack__(self, **_: object) -> object:
        raise RuntimeError("there is no such GPU")

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, 0)


@pytest.mark.parametrize("function", PAIRED)
class TestArrays:
    def test_different_rows(self, function: str) -> None:
        x, y = np.zeros((128, 768), np.float32), np.zeros((127, 64), np.float32)
        text = f"{function}: expected x and y with the same number of rows, got x (128, 768) and y (127, 64)"
        refuses(ValueError, text, function, x, y)

    @pytest.mark.parametrize(
        "bad", [np.zeros(5, np.float32), np.zeros((2, 3, 4), np.float32), np.float32(1)], ids=np.shape
    )
    def test_not_two_dimensional(self, function: str, bad: np.ndarray) -> None:
        for arguments, name in (((bad, Y), "x"), ((X, bad), "y")):
            text = f"{function}: {name}: expected a 2-d array" if isinstance(bad, np.ndarray) else f"expected {name}"
            refuses(ValueError if isinstance(bad, np.ndarray) else TypeError, text, function, *arguments)

    @pytest.mark.parametrize("dtype", ["int64", "int8", "bool", "complex64", "object", "U3", "longdouble"])
    def test_dtype(self, function: str, dtype: str) -> None:
        bad = np.zeros((128, 3)).astype(np.dtype(dtype))
        refuses(TypeError, f"got {bad.dtype.name}", function, bad, Y)
        refuses(TypeError, "expected y of dtype float16, bfloat16, float32 or float64", function, X, bad)

    @pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.complex64, torch.float8_e4m3fn], ids=str)
    def test_torch_dtype(self, function: str, dtype: torch.dtype) -> None:
        refuses(TypeError, str(dtype).removeprefix("torch."), function, torch.zeros((128, 3), dtype=dtype), Y)

    @pytest.mark.parametrize("bad", [[[1.0, 2.0]], "rows", 3.0, {"a": X}, object()], ids=lambda bad: type(bad).__name__)
    def test_kind(self, function: str, bad: object) -> None:
        refuses(TypeError, f"{function}: expected x to be", function, bad, Y)
        refuses(TypeError, f"got {type(bad).__name__}", function, X, bad)

    @pytest.mark.parametrize("shape", [(0, 3), (128, 0), (0, 0)])
    def test_empty(self, function: str, shape: tuple[int, int]) -> None:
        refuses(ValueError, "at least one row and one feature", function, np.zeros(shape, np.float32), Y)

    def test_masked(self, function: str) -> None:
        refuses(TypeError, "masked", function, np.ma.masked_array(X, X > 2), Y)

    def test_sparse(self, function: str) -> None:
        from scipy import sparse

        refuses(TypeError, ".toarray()", function, sparse.random_array((128, 3)), Y)
        refuses(TypeError, "to_dense", function, torch.zeros((128, 3)).to_sparse(), Y)

    def test_another_device(self, function: str) -> None:
        # these have kernels for a GPU, and ask for its memory
        on_gpu = {"hsic": TypeError, "cka": TypeError, "cka_distance": TypeError, "moments": TypeError}
        refuses(on_gpu.get(function, RuntimeError), "DLPack", function, OnCuda(), Y)
        refuses(RuntimeError, "meta", function, X, torch.zeros((128, 3), device="meta"))

    def test_foreign_byte_order(self, function: str) -> None:
        refuses(TypeError, "byte order", function, X.astype(X.dtype.newbyteorder()), Y)

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_non_finite(self, function: str, value: float) -> None:
        bad = X.copy()
        bad[100, 3] = value
        with pytest.raises(ValueError, match=r"x has non-finite values in rows \d+\.\.127"):
            call(function, bad, Y)
        with pytest.raises(ValueError, match=r"y has non-finite values in rows \d+\.\.127"):
            call(function, X, bad)

    def test_half_overflow_gets_advice(self, function: str) -> None:
        bad = X.astype(np.float16)
        bad[3, 3] = np.inf
        with pytest.raises(ValueError, match="65504"):
            call(function, bad, Y)

    def test_backend(self, function: str) -> None:
        refuses(ValueError, "expected backend", function, X, Y, backend="tpu")

    def test_dlpack_of_another_dtype(self, function: str) -> None:
        refuses(TypeError, "int64", function, OnlyDLPack(np.zeros((128, 3), np.int64)), Y)


@pytest.mark.parametrize("function", MEASURES)
class TestMeasures:
    @pytest.mark.parametrize("estimator", ["unbiased", "feature_corrected"])
    @pytest.mark.parametrize("n", [1, 2, 3])
    def test_too_few_rows(self, function: str, n: int, estimator: str) -> None:
        text = f"{function}: estimator={estimator!r} needs at least 4 rows, got n = {n}"
        refuses(ValueError, text, function, X[:n], Y[:n], estimator=estimator)

    def test_too_few_rows_for_biased(self, function: str) -> None:
        refuses(ValueError, "at least 2 rows, got n = 1", function, X[:1], Y[:1], estimator="biased")
        assert np.isfinite(call(function, X[:2], Y[:2], estimator="biased"))

    @pytest.mark.parametrize("estimator", ["unbiased", "biased", "feature_corrected"])
    @pytest.mark.parametrize("value", [0.0, 1.0, 1e-3, -7e4, 0.1])
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_constant(self, function: str, dtype: type, value: float, estimator: str) -> None:
        bad = np.full((128, 5), value, dtype)
        refuses(ValueError, f"{function}: x is constant", function, bad, Y, estimator=estimator)
        refuses(ValueError, f"{function}: y is constant", function, X, bad, estimator=estimator)

    def test_too_few_rows_in_a_state(self, function: str) -> None:
        refuses(ValueError, "got n = 3", function, gl.moments(X[:3], Y[:3]))

    def test_estimator(self, function: str) -> None:
        refuses(ValueError, "'debiased'", function, X, Y, estimator="debiased")

    def test_kernel(self, function: str) -> None:
        text = (
            f"{function}: expected kernel to be one of 'linear', 'rbf', 'laplacian', 'polynomial', 'cosine', 'distance'"
        )
        refuses(ValueError, f"{text}, got 'gauss'", function, X, Y, kernel="gauss")
        for kernel in ("linear", "polynomial", "cosine", "distance"):
            text = f"{function}: kernel={kernel!r} has no bandwidth, got bandwidth=1.0"
            refuses(ValueError, text, function, X, Y, kernel=kernel, bandwidth=1.0)
        text = f"{function}: estimator='feature_corrected' needs kernel='linear', got kernel='rbf'"
        refuses(ValueError, text, function, X, Y, kernel="rbf", estimator="feature_corrected")

    def test_bandwidth(self, function: str) -> None:
        rule = f"{function}: expected bandwidth to be 'median' or 'kornblith' or a number above 0, got 'mean'"
        for kernel in ("rbf", "laplacian"):
            refuses(ValueError, rule, function, X, Y, kernel=kernel, bandwidth="mean")
            for bad in (0, -2.0):
                text = f"{function}: expected bandwidth above 0, got {bad}"
                refuses(ValueError, text, function, X, Y, kernel=kernel, bandwidth=bad)
            text = f"{function}: expected bandwidth to be a number, got list"
            refuses(TypeError, text, function, X, Y, kernel=kernel, bandwidth=[1.0])
            text = f"{function}: expected bandwidth_scale above 0, got 0"
            refuses(ValueError, text, function, X, Y, kernel=kernel, bandwidth_scale=0)

    def test_polynomial(self, function: str) -> None:
        for bad, text in (
            ({"degree": 0}, "degree of at least 1, got 0"),
            ({"coef0": np.nan}, "coef0 to be finite, got nan"),
        ):
            refuses(ValueError, f"{function}: expected {text}", function, X, Y, kernel="polynomial", **bad)

    @pytest.mark.parametrize(
        ("kernel", "change"),
        [
            ("linear", {"bandwidth_scale": 0.5}),
            ("cosine", {"bandwidth_scale": 2.0}),
            ("rbf", {"degree": 2}),
            ("distance", {"coef0": 0.0}),
        ],
    )
    def test_parameters_of_other_kernels(self, function: str, kernel: str, change: dict) -> None:
        ((name, value),) = change.items()
        text = f"{function}: kernel='{kernel}' has no {name}, got {name}={value}"
        refuses(ValueError, text, function, X, Y, kernel=kernel, **change)

    def test_only_one_array(self, function: str) -> None:
        refuses(TypeError, "two arrays or a MomentState", function, X)

    def test_state_and_array(self, function: str) -> None:
        refuses(TypeError, "MomentState", function, gl.moments(X, Y), Y)
        refuses(TypeError, "GramState", function, gl.gram_sums(X, Y), Y)

    def test_state_of_another_kernel(self, function: str) -> None:
        state = gl.gram_sums(X, Y, kernel="distance")
        text = f"{function}: this GramState is of kernel='distance' and its own bandwidth, give neither"
        refuses(ValueError, text, function, state, kernel="rbf")
        refuses(ValueError, text, function, state, kernel="rbf", bandwidth=1.0)
        own = gl.gram_sums(X, Y, kernel="rbf", bandwidth_x=1.0, bandwidth_y=1.0)
        refuses(ValueError, "and its own bandwidth, give neither", function, own, kernel="rbf", bandwidth_scale=2.0)
        refuses(ValueError, "needs a MomentState, got a GramState", function, state, estimator="feature_corrected")

    def test_keywords_only(self, function: str) -> None:
        with pytest.raises(TypeError, match="positional"):
            call(function, X, Y, "linear")


class TestUnbiasedOfNothing:
    def test_all_rows_but_one_equal(self) -> None:
        """Not constant, yet HSIC_1 is zero: the biased estimator answers, the unbiased one says why it cannot."""
        x = np.zeros((20, 3))
        x[7] = 1.0
        refuses(ValueError, "cka: x has no variation", "cka", x, Y[:20])
        assert np.isfinite(gl.cka(x, Y[:20], estimator="biased"))

    def test_feature_corrected_needs_two_features(self) -> None:
        refuses(ValueError, "cka: y has one feature", "cka", X, Y[:, :1], estimator="feature_corrected")


class TestMoments:
    def test_pivots(self) -> None:
        refuses(ValueError, "expected pivot_x of shape (6,), got (5,)", "moments", X, Y, pivot_x=np.zeros(5))
        refuses(ValueError, "expected pivot_y of shape (4,), got (4, 1)", "moments", X, Y, pivot_y=np.zeros((4, 1)))
        refuses(ValueError, "pivot_x has non-finite", "moments", X, Y, pivot_x=np.full(6, np.nan))
        refuses(ValueError, "pivot_y given without", "moments", X, pivot_y=np.zeros(4))

    def test_self_terms(self) -> None:
        refuses(ValueError, "self_terms=False needs y", "moments", X, self_terms=False)
        refuses(ValueError, "self_terms=False needs y", "moments", X, Y, self_terms=False)

    def test_nonfinite(self) -> None:
        refuses(ValueError, "nonfinite", "moments", X, Y, nonfinite="warn")

    def test_overflow_gives_advice(self) -> None:
        with pytest.raises(ValueError, match=r"overflow.*(scale|float64)"):
            gl.moments(X.astype(np.float64) * 1e200, Y)


class TestLayers:
    def test_different_rows(self) -> None:
        refuses(ValueError, "same number of rows", "cka_matrix", {"a": X, "b": X[:5]})
        refuses(ValueError, "same number of rows", "cka_matrix", [X], [Y[:5]])

    def test_not_layers(self) -> None:
        refuses(TypeError, "dict or a list of layers, got ndarray", "cka_matrix", X)
        refuses(TypeError, "dict or a list of layers, got str", "cka_matrix", "layers")
        refuses(ValueError, "at least one layer", "cka_matrix", {})
        refuses(ValueError, "at least one layer", "cka_matrix", [X], [])
        refuses(TypeError, "names", "cka_matrix", {1: X})

    def test_a_bad_layer_is_named(self) -> None:
        bad = X.copy()
        bad[3] = np.nan
        for layers, error in (({"ok": X, "l.7": bad}, ValueError), ({"ok": X, "l.7": X[:, 0]}, ValueError),
                              ({"ok": X, "l.7": X.astype(int)}, TypeError)):  # fmt: skip
            refuses(error, "l.7", "cka_matrix", layers)

    def test_too_few_rows(self) -> None:
        refuses(ValueError, "got n = 3", "cka_matrix", [X[:3]], [Y[:3]])

    def test_memory(self) -> None:
        with pytest.raises(MemoryError, match=r"cka_matrix: .* needs [\d,]+ bytes .* max_bytes is 1,000 bytes"):
            gl.cka_matrix({"a": X, "b": X}, {"c": Y}, max_bytes=1000)
        grid = gl.LayerGrid(max_bytes=1000)
        with pytest.raises(MemoryError, match=r"LayerGrid\.update"):
            grid.update([X], [Y])
        with pytest.raises(ValueError, match="no rows"):
            grid.finalize()

    def test_memory_of_the_machine(self) -> None:
        """A grid beyond any machine is refused before anything is computed."""
        wide = np.broadcast_to(np.float32(1), (4, 2_000_000))
        with pytest.raises(MemoryError, match="available"):
            gl.LayerGrid().update([wide], [wide])

    @pytest.mark.parametrize(("bad", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), (True, TypeError)])
    def test_max_bytes(self, bad: object, error: type[Exception]) -> None:
        with pytest.raises(error, match="max_bytes"):
            gl.LayerGrid(max_bytes=bad)

    def test_mode(self) -> None:
        with pytest.raises(ValueError, match="mode"):
            gl.LayerGrid(mode="fast")

    def test_one_or_two_models_stays(self) -> None:
        grid = gl.LayerGrid().update([X], [Y])
        with pytest.raises(ValueError, match="missing: y/0"):
            grid.update([X])

    def test_merge_of_other_layers(self) -> None:
        grid = gl.LayerGrid().update({"a": X})
        with pytest.raises(ValueError, match="missing: x/a"):
            grid.merge(gl.LayerGrid().update({"b": X}))
        with pytest.raises(TypeError, match="merge"):
            grid.merge(gl.Moments())


class TestControl:
    @pytest.mark.parametrize(
        ("bad", "error"), [(0, ValueError), (-2, ValueError), (1.5, TypeError), (True, TypeError), ("2", TypeError)]
    )
    def test_threads(self, bad: object, error: type[Exception]) -> None:
        before = gl.get_num_threads()
        with pytest.raises(error, match="set_num_threads: expected count"):
            gl.set_num_threads(bad)
        assert gl.get_num_threads() == before

    def test_explain(self) -> None:
        refuses(ValueError, "measure", "explain", "cca", X, Y)
        with pytest.raises(ValueError, match="same number of rows"):
            gl.explain("cka", X, Y[:5])
        with pytest.raises(TypeError, match="expected y"):
            gl.explain("cka", X)
