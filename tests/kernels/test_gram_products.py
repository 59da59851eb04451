"""Products of the kernel values of many layers: every backend against the definition, pair by pair."""

from __future__ import annotations

import numpy as np
import pytest

from support import backends, bounds, oracle
from support.backends import Backend

DTYPES = {"fp32": np.float32, "fp64": np.float64}
# less than a chunk of values, a tail of one, and more than two slabs
COUNTS = (1, 5, 300, 9000)
# a tail of a vector, whole panels, and more layers than a panel is wide
LAYERS = (1, 2, 25, 48, 50)


def gram_products(backend: Backend, values: object, pivots: np.ndarray, split: int) -> dict:
    return backend.kernel("gram_sums", "gram_products")(values, pivots, split)


def values_of(layers: int, m: int, dtype: str, mean: float = 0.7) -> tuple[np.ndarray, np.ndarray]:
    """Kernel values (l, m) of layers of different scales, correlated, and pivots near their means."""
    rng = np.random.default_rng([layers, m])
    made = mean + 0.1 * (0.3 * rng.standard_normal(m) + rng.standard_normal((layers, m)))
    made = (made * np.exp2(rng.integers(-4, 5, layers))[:, None]).astype(DTYPES[dtype])
    return made, made.mean(axis=1).astype(DTYPES[dtype]).astype(np.float64)


def paired(left: np.ndarray, right: np.ndarray, split: int) -> np.ndarray:
    return left[:split] @ (right[split:] if split < len(right) else right).T


def splits(layers: int) -> list[int]:
    """From one layer of x to all of them."""
    return sorted({1, 2, 12, layers // 2, layers - 1, layers} & set(range(1, layers + 1)))


def assert_products(got: dict, values: np.ndarray, pivots: np.ndarray, split: int) -> None:
    """No worse than the plain expression in the dtype of the values."""
    layers, m = values.shape
    assert got.keys() == {"products", "squares"}
    assert got["products"].shape == (split, layers - split if split < layers else layers)
    assert got["squares"].shape == (layers,)
    assert {array.dtype for array in got.values()} == {np.dtype(np.float64)}
    wide = values.astype(oracle.WIDE) - pivots.astype(oracle.WIDE)[:, None]
    plain = values - pivots.astype(values.dtype)[:, None]
    sizes = np.abs(wide)
    for key, truth, naive, scale in (
        ("products", paired(wide, wide, split), paired(plain, plain, split), paired(sizes, sizes, split)),
        ("squares", (wide * wide).sum(axis=1), (plain * plain).sum(axis=1), (wide * wide).sum(axis=1)),
    ):
        bounds.assert_no_worse_than_naive(
            got[key], truth, naive, compute=values.dtype, scale=scale, terms=m, what=f"{key}, split {split}"
        )


class TestValue:
    @pytest.mark.parametrize("m", COUNTS)
    @pytest.mark.parametrize("layers", LAYERS)
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_against_the_definition(self, backend: Backend, dtype: str, layers: int, m: int) -> None:
        values, pivots = values_of(layers, m, dtype)
        for split in splits(layers):
            assert_products(gram_products(backend, values, pivots, split), values, pivots, split)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_every_split(self, backend: Backend, dtype: str) -> None:
        values, pivots = values_of(25, 5, dtype)
        for split in range(1, 26):
            assert_products(gram_products(backend, values, pivots, split), values, pivots, split)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_every_level(self, isa_level: str, dtype: str) -> None:
        for layers, split in ((7, 7), (25, 12), (50, 49)):
            values, pivots = values_of(layers, 700, dtype)
            assert_products(gram_products(Backend("cpu"), values, pivots, split), values, pivots, split)

    @pytest.mark.parametrize("mean", [1e2, 1e4])
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_about_a_pivot(self, backend: Backend, dtype: str, mean: float) -> None:
        """What is subtracted costs no digits: its size is in no product."""
        values, pivots = values_of(9, 600, dtype, mean)
        assert_products(gram_products(backend, values, pivots, 4), values, pivots, 4)
        moved = gram_products(backend, values, np.zeros(9), 4)
        assert_products(moved, values, np.zeros(9), 4)
        assert (moved["squares"] > 1000 * gram_products(backend, values, pivots, 4)["squares"]).all()

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_integers_are_exact(self, backend: Backend, dtype: str) -> None:
        """Any wrong index shows."""
        rng = np.random.default_rng(0)
        values, pivots = rng.integers(-3, 4, (29, 5000)).astype(DTYPES[dtype]), rng.integers(-2, 3, 29).astype(float)
        centred = values.astype(np.float64) - pivots[:, None]
        for split in (1, 13, 29):
            got = gram_products(backend, values, pivots, split)
            assert np.array_equal(got["products"], paired(centred, centred, split))
            assert np.array_equal(got["squares"], (centred**2).sum(axis=1))

    def test_no_values(self, backend: Backend) -> None:
        got = gram_products(backend, np.zeros((3, 0), np.float32), np.zeros(3), 1)
        assert np.array_equal(got["products"], np.zeros((1, 2)))
        assert np.array_equal(got["squares"], np.zeros(3))

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_what_is_not_finite_stays_in_its_layer(self, backend: Backend, value: float) -> None:
        values, pivots = values_of(6, 700, "fp32")
        values[2, 600] = value
        for split in (4, 6):
            got, other = gram_products(backend, values, pivots, split), np.ones((split, 6))[:, split % 6 :]
            other[2] = 0
            if split == 6:
                other[:, 2] = 0
            assert np.array_equal(np.isfinite(got["products"]), other == 1)
            assert np.array_equal(np.isfinite(got["squares"]), np.arange(6) != 2)


class TestBits:
    @pytest.mark.parametrize(("layers", "split"), [(25, 12), (50, 50), (50, 1)])
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_threads_change_none(self, dtype: str, layers: int, split: int) -> None:
        values, pivots = values_of(layers, 9000, dtype)
        results = []
        for threads in (1, 2, 7):
            with backends.threads(threads):
                results.append(gram_products(Backend("cpu"), values, pivots, split))
        for result in results[1:]:
            bounds.assert_same_dicts(result, results[0], "threads")

    @pytest.mark.parametrize("m", [300, 9000])
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_of_a_pair_do_not_depend_on_other_layers(self, backend: Backend, dtype: str, m: int) -> None:
        """Nor on the split, nor on which of the two comes first: what is left out of a grid changes nothing in it."""
        values, pivots = values_of(50, m, dtype)
        whole = gram_products(backend, values, pivots, 50)
        bounds.assert_same_bits(whole["products"].T.copy(), whole["products"], "the transpose")
        for split in (1, 17, 49):
            got = gram_products(backend, values, pivots, split)
            bounds.assert_same_bits(got["products"], whole["products"][:split, split:].copy(), f"split {split}")
            bounds.assert_same_bits(got["squares"], whole["squares"], f"squares, split {split}")
        some = [41, 3, 16, 48, 0]
        got = gram_products(backend, values[some], pivots[some], 2)
        bounds.assert_same_bits(got["products"], whole["products"][np.ix_(some[:2], some[2:])].copy(), "some layers")
        bounds.assert_same_bits(got["squares"], whole["squares"][some], "squares of some layers")


class TestLayouts:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("layout", backends.LAYOUTS)
    def test_layout_does_not_matter(self, backend: Backend, layout: str, dtype: str) -> None:
        values, pivots = values_of(18, 530, dtype)
        for split in (1, 11, 18):
            got = gram_products(backend, backends.layouts(values)[layout], pivots, split)
            assert_products(got, values, pivots, split)
            if backend.name != "reference":
                bounds.assert_same_dicts(got, gram_products(backend, values, pivots, split), layout)

    def test_one_layer_and_one_value(self, backend: Backend) -> None:
        """A single row or column is contiguous both ways, whatever its strides say."""
        for shape in ((1, 40), (40, 1)):
            values = np.linspace(-1, 1, 40).reshape(shape)
            for array in (values, np.asfortranarray(values), np.repeat(values, 3, axis=1)[:, ::3]):
                assert_products(gram_products(backend, array, np.zeros(shape[0]), 1), values, np.zeros(shape[0]), 1)

    def test_inputs_are_untouched(self, backend: Backend) -> None:
        values, pivots = values_of(5, 300, "fp32")
        before = values.tobytes(), pivots.tobytes()
        gram_products(backend, values, pivots, 2)
        assert (values.tobytes(), pivots.tobytes()) == before


class TestErrors:
    VALUES = np.zeros((5, 7), np.float32)

    @pytest.mark.parametrize("split", [0, -1, 6])
    def test_split(self, isa_level: str, split: int) -> None:
        with pytest.raises(ValueError, match=r"^gram_products: expected a split from 1 to 5$"):
            gram_products(Backend("cpu"), self.VALUES, np.zeros(5), split)

    @pytest.mark.parametrize("pivots", [np.zeros(4), np.zeros(6), np.zeros((5, 1)), np.zeros(())], ids=np.shape)
    def test_pivots(self, isa_level: str, pivots: np.ndarray) -> None:
        with pytest.raises(ValueError, match=r"^gram_products: expected a pivot for each layer$"):
            gram_products(Backend("cpu"), self.VALUES, pivots, 2)

    @pytest.mark.parametrize(
        ("values", "error", "text"),
        [
            (np.zeros(7, np.float32), ValueError, "expected values as a 2-d array"),
            (np.zeros((5, 7), np.int32), TypeError, "expected values of float16, bfloat16, float32 or float64"),
            ([[0.0]], TypeError, "expected values as an array"),
        ],
        ids=["1-d", "integers", "list"],
    )
    def test_values(self, values: object, error: type[Exception], text: str) -> None:
        with pytest.raises(error, match=rf"^gram_products: {text}"):
            gram_products(Backend("cpu"), values, np.zeros(5), 2)
