"""Gram states: they merge over pairs of rows, and a saved one comes back or is refused."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import gramless as gl
from support import bounds, grams

X, Y = grams.SMALL.arrays("fp32")
BLOCKS = {"block_rows": 32}


def state_of(kernel: str = "rbf", y: np.ndarray | None = Y, **keywords: object) -> gl.GramState:
    return gl.gram_sums(X, y, **grams.arguments(X, y, kernel) | keywords)


def part(*pair: int, **keywords: object) -> gl.GramState:
    return state_of(**BLOCKS, pairs=[pair], **keywords)


class TestMerge:
    def test_counts_pairs(self) -> None:
        """32 and 28 rows: 496, 896 and 378 pairs."""
        parts = [part(0, 0), part(0, 1), part(1, 1)]
        assert [one.pairs for one in parts] == [496, 896, 378]
        merged = parts[2].merge(parts[0])
        assert (merged.pairs, merged.all_pairs, merged.complete) == (874, 1770, False)
        assert repr(merged) == "GramState(n=60, kernel='rbf', bandwidths=3, pairs=874 of 1770)"
        whole = merged.merge(parts[1])
        assert whole.complete
        assert repr(whole) == "GramState(n=60, kernel='rbf', bandwidths=3)"

    def test_leaves_its_parts_as_they_were(self) -> None:
        one, two = part(0, 0), part(0, 1)
        before = one.to_dict(), two.to_dict()
        one.merge(two)
        bounds.assert_same_dicts(one.to_dict(), before[0], "the left")
        bounds.assert_same_dicts(two.to_dict(), before[1], "the right")

    def test_nothing_is_the_identity(self) -> None:
        whole, nothing = state_of(), state_of(**BLOCKS, pairs=np.zeros((0, 2), int))
        for merged in (whole.merge(nothing), nothing.merge(whole)):
            bounds.assert_same_dicts(merged.to_dict(), whole.to_dict(), "with nothing")

    @pytest.mark.parametrize(
        ("text", "other"),
        [
            ("states with the same kernel, got 'rbf' and 'distance'", {"kernel": "distance"}),
            ("states with the same bandwidths, got 3 and 1", {"bandwidth_x": 1.0, "bandwidth_y": 1.0}),
            ("states with the same bandwidth, got [", {"bandwidth_x": [1.0, 2.0, 3.0]}),
            ("states with the same degree, got 3 and 2", {"degree": 2}),
            ("states with the same coef0, got 0.5 and 0.25", {"coef0": 0.25}),
            ("two states with y or two without, got one of each", {"y": None}),
        ],
        ids=lambda value: value if isinstance(value, str) else None,
    )
    def test_other_states_are_refused(self, text: str, other: dict) -> None:
        with pytest.raises(ValueError, match=re.escape(f"merge: expected {text}")):
            part(0, 0).merge(part(0, 1, **other))

    def test_other_arrays_are_refused(self) -> None:
        with pytest.raises(ValueError, match="merge: expected states with the same n, got 60 and 59"):
            part(0, 0).merge(gl.gram_sums(X[:59], Y[:59], **grams.arguments(X, Y, "rbf"), **BLOCKS, pairs=[(0, 1)]))
        with pytest.raises(TypeError, match="merge: expected a GramState, got dict"):
            part(0, 0).merge(part(0, 1).to_dict())

    def test_more_pairs_than_there_are(self) -> None:
        text = "merge: expected states without common pairs of rows, got 896 and 896 pairs of 1770"
        with pytest.raises(ValueError, match=text):
            part(0, 1).merge(part(0, 1))


class TestSelect:
    def test_each_bandwidth(self) -> None:
        state = state_of()
        for index in range(3):
            one = state.select(index)
            assert one.bandwidths == 1
            bounds.assert_same_bits(one.x.bandwidth, state.x.bandwidth[index : index + 1], "bandwidth")
            bounds.assert_same_bits(one.y.rows, state.y.rows[index : index + 1], "rows")
            bounds.assert_same_bits(one.product, state.product[index : index + 1], "product")
        assert state_of(y=None).select(2).y is None

    @pytest.mark.parametrize("index", [-1, 3])
    def test_no_such_bandwidth(self, index: int) -> None:
        with pytest.raises(IndexError, match=rf"select: expected an index below 3, got {index}"):
            state_of().select(index)


HOSTILE = {
    "not a dict": (lambda d: list(d), TypeError, "dict"),
    "other format": (lambda d: d | {"format": "gramless.moments/1"}, ValueError, "format"),
    "no n": (lambda d: {k: v for k, v in d.items() if k != "n"}, ValueError, "'n'"),
    "other n": (lambda d: d | {"n": 59}, ValueError, "x.rows"),
    "unknown kernel": (lambda d: d | {"kernel": "gauss"}, ValueError, "kernel"),
    "kernel is a number": (lambda d: d | {"kernel": 3}, TypeError, "kernel"),
    "degree 0": (lambda d: d | {"degree": 0}, ValueError, "degree"),
    "coef0 is a text": (lambda d: d | {"coef0": "1"}, ValueError, "coef0"),
    "too many pairs": (lambda d: d | {"pairs": 1771}, ValueError, "1770 pairs"),
    "eps is NaN": (lambda d: d | {"eps": np.nan}, ValueError, "eps"),
    "no bandwidths": (lambda d: d | {"x.bandwidth": np.zeros(0)}, ValueError, "x.bandwidth"),
    "other bandwidths": (lambda d: d | {"x.bandwidth": np.ones(2)}, ValueError, "x.offset"),
    "no product": (lambda d: {k: v for k, v in d.items() if k != "product"}, ValueError, "y.bandwidth"),
    "no y": (lambda d: {k: v for k, v in d.items() if not k.startswith("y.")}, ValueError, "y.bandwidth"),
    "float32": (lambda d: d | {"y.square": np.ones(3, np.float32)}, TypeError, "y.square"),
    "NaN": (lambda d: d | {"x.diagonal": np.full((3, 60), np.nan)}, ValueError, "x.diagonal"),
    "a key too many": (lambda d: d | {"x.columns": np.ones(3)}, ValueError, "x.columns"),
}


class TestSaved:
    @pytest.mark.parametrize("y", [Y, None], ids=["pair", "x alone"])
    @pytest.mark.parametrize("kernel", ["rbf", "linear"])
    def test_round_trip(self, tmp_path: object, kernel: str, y: np.ndarray | None) -> None:
        state = state_of(kernel, y)
        flat = state.to_dict()
        np.savez(tmp_path / "s.npz", **flat)
        save_file(flat, tmp_path / "s.safetensors")
        with np.load(tmp_path / "s.npz", allow_pickle=False) as archive:
            found = [dict(archive), load_file(tmp_path / "s.safetensors"), flat]
        for one in found:
            bounds.assert_same_dicts(gl.GramState.from_dict(one).to_dict(), flat, "saved")

    def test_parts_may_be_saved(self) -> None:
        parts = [gl.GramState.from_dict(part(*pair).to_dict()) for pair in ((0, 0), (0, 1), (1, 1))]
        merged = parts[0].merge(parts[1]).merge(parts[2])
        bounds.assert_relative(gl.cka(merged.select(1)), gl.cka(state_of().select(1)), bounds.SAME_FP64)

    def test_shares_no_memory(self) -> None:
        state = state_of()
        flat, kept = state.to_dict(), state.to_dict()
        restored = gl.GramState.from_dict(flat)
        for value in flat.values():
            value[...] = 9
        bounds.assert_same_dicts(state.to_dict(), kept, "the source")
        bounds.assert_same_dicts(restored.to_dict(), kept, "the restored")

    def test_nbytes(self) -> None:
        """Beside n, for each bandwidth: row sums and diagonals of both, and the sums."""
        assert state_of().nbytes == 3 * (2 * 2 * 8 * 60 + 2 * 3 * 8 + 8)

    @pytest.mark.parametrize("name", HOSTILE)
    def test_hostile_dicts(self, name: str) -> None:
        spoil, error, text = HOSTILE[name]
        with pytest.raises(error, match=rf"^GramState\.from_dict: .*{text}"):
            gl.GramState.from_dict(spoil(state_of().to_dict()))


def test_kernels_without_bandwidths_have_one_that_is_0() -> None:
    state = state_of("distance")
    assert (state.bandwidths, state.x.bandwidth[0]) == (1, 0.0)
    assert replace(state, pairs=5).complete is False
