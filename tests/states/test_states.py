"""States: merging is concatenation, in any order and about any pivots; a saved state comes back or is refused."""

from __future__ import annotations

import importlib
import itertools
import math
from functools import reduce

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gramless as gl
from gramless.states.moments import MomentState
from support import bounds, cases, judge, oracle

KEYS = judge.ALL_KEYS - {"n", "pivot_x", "pivot_y"}


def state_of(x: np.ndarray, y: np.ndarray, pivots: tuple[np.ndarray, np.ndarray] | None = None) -> MomentState:
    pivot_x, pivot_y = pivots or (None, None)
    return gl.moments(x, y, pivot_x=pivot_x, pivot_y=pivot_y, backend="reference")


def assert_describes(state: MomentState, x: np.ndarray, y: np.ndarray, *passed: tuple[np.ndarray, np.ndarray]) -> None:
    """The state is that of these rows, up to rounding of the terms about every pivot it has passed through."""
    got = judge.kernel_names(state.to_dict())
    assert got["n"] == len(x)
    own = (got["pivot_x"], got["pivot_y"])
    truth = oracle.moments(x, y, *own)
    scale = oracle.translation_scales(x, y, own, *passed)
    for key in KEYS:
        bounds.assert_within_algebra(got[key], truth[key], scale[key], key)


@st.composite
def rows_and_cuts(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, list[int], list[int]]:
    """Rows, where to cut them, and an order of the pieces."""
    n, p, q = draw(st.integers(1, 40)), draw(st.integers(1, 5)), draw(st.integers(1, 4))
    seed = draw(st.integers(0, 2**32 - 1))
    offset, spread = draw(st.sampled_from([0.0, 1.0, 1e3])), draw(st.sampled_from([1e-3, 1.0, 50.0]))
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, p)) * spread + offset
    y = rng.standard_normal((n, q)) - offset
    cuts = sorted(draw(st.lists(st.integers(1, n - 1), max_size=5, unique=True))) if n > 1 else []
    order = draw(st.permutations(range(len(cuts) + 1)))
    return x, y, cuts, list(order)


def pieces(array: np.ndarray, cuts: list[int]) -> list[np.ndarray]:
    return np.split(array, cuts)


class Pretender:
    """What has the attributes of an array, and no numbers."""

    shape, ndim, dtype = (64,), 1, np.dtype(np.float64)


HOSTILE = {
    "not a dict": (lambda d: list(d), TypeError, "dict"),
    "no format": (lambda d: d.pop("format") is not None and d, ValueError, "format"),
    "other format": (lambda d: d | {"format": "gramless.moments/2"}, ValueError, "format"),
    "format of bytes": (lambda d: d | {"format": b"gramless.moments/1"}, ValueError, "format"),
    "no n": (lambda d: d.pop("n") is not None and d, ValueError, "'n'"),
    "negative n": (lambda d: d | {"n": -1}, ValueError, "'n'"),
    "n is a float": (lambda d: d | {"n": 3.5}, ValueError, "'n'"),
    "n is a bool": (lambda d: d | {"n": True}, ValueError, "'n'"),
    "n is a text": (lambda d: d | {"n": "256"}, ValueError, "'n'"),
    "n beyond float64": (lambda d: d | {"n": np.asarray(2**53)}, ValueError, "below 2\\^53"),
    "n beyond everything": (lambda d: d | {"n": 10**400}, ValueError, "below 2\\^53"),
    "a key is no text": (lambda d: d | {3: 1}, TypeError, "keys to be str, got 3"),
    "format is no UTF-8": (lambda d: d | {"format": np.full(3, 255, np.uint8)}, ValueError, "format"),
    "a key is missing": (lambda d: d.pop("cross.second") is not None and d, ValueError, "cross.second"),
    "a key too many": (lambda d: d | {"x.fifths": d["x.sum"]}, ValueError, "x.fifths"),
    "a list": (lambda d: d | {"x.sum": list(d["x.sum"])}, ValueError, "x.sum"),
    "None": (lambda d: d | {"y.pivot": None}, ValueError, "y.pivot"),
    "wrong length": (lambda d: d | {"x.sum": d["x.sum"][:-1]}, ValueError, "x.sum"),
    "would broadcast": (lambda d: d | {"x.sum": d["x.sum"][:1]}, ValueError, "x.sum"),
    "transposed": (lambda d: d | {"cross.second": d["cross.second"].T.copy()}, ValueError, "cross.second"),
    "float32": (lambda d: d | {"x.second": d["x.second"].astype(np.float32)}, TypeError, "x.second"),
    "integers": (lambda d: d | {"x.second": d["x.second"].astype(np.int64)}, TypeError, "x.second"),
    "complex": (lambda d: d | {"x.second": d["x.second"].astype(np.complex128)}, TypeError, "x.second"),
    "objects": (lambda d: d | {"x.second": d["x.second"].astype(object)}, TypeError, "x.second"),
    "no array": (lambda d: d | {"x.sum": Pretender()}, ValueError, "x.sum"),
    "a pivot that is no array": (lambda d: d | {"x.pivot": Pretender()}, ValueError, "x.pivot"),
    "negative norms": (lambda d: d | {"x.norms": np.asarray(-1.0)}, ValueError, "x.norms"),
    "not symmetric": (lambda d: d | {"y.second": np.triu(d["y.second"])}, ValueError, "y.second.*symmetric"),
    "no features": (lambda d: d | {"x.pivot": np.zeros(0)}, ValueError, "x.pivot"),
    "2-d pivot": (lambda d: d | {"x.pivot": d["x.pivot"][None]}, ValueError, "x.pivot"),
}  # fmt: skip


class TestMerge:
    @given(rows_and_cuts())
    def test_is_concatenation_in_any_order(self, drawn: tuple) -> None:
        x, y, cuts, order = drawn
        parts = [state_of(a, b) for a, b in zip(pieces(x, cuts), pieces(y, cuts), strict=True)]
        merged = reduce(MomentState.merge, [parts[i] for i in order])
        assert_describes(merged, x, y, *((s.x.pivot, s.y.pivot) for s in parts))

    @given(rows_and_cuts(), st.floats(-100, 100), st.floats(-100, 100))
    def test_different_pivots(self, drawn: tuple, first: float, second: float) -> None:
        x, y, cuts, order = drawn
        about = [(np.full(x.shape[1], v), np.full(y.shape[1], w)) for v, w in ((first, second), (second, first))]
        chosen = itertools.cycle(about)
        parts = [state_of(a, b, next(chosen)) for a, b in zip(pieces(x, cuts), pieces(y, cuts), strict=True)]
        merged = reduce(MomentState.merge, [parts[i] for i in order])
        assert_describes(merged, x, y, *about)
        bounds.assert_same_bits(merged.x.pivot, parts[order[0]].x.pivot, "the pivot of the first")

    @given(rows_and_cuts())
    def test_grouping_does_not_matter(self, drawn: tuple) -> None:
        x, y, cuts, _ = drawn
        parts = [state_of(a, b) for a, b in zip(pieces(x, cuts), pieces(y, cuts), strict=True)]
        right = reduce(lambda done, part: part.merge(done), parts[::-1])
        assert_describes(right, x, y, *((s.x.pivot, s.y.pivot) for s in parts))

    def test_leaves_both_as_they_were(self) -> None:
        x, y = cases.TYPICAL.arrays("fp64")
        first, second = state_of(x[:100], y[:100]), state_of(x[100:], y[100:])
        before = first.to_dict(), second.to_dict()
        first.merge(second)
        bounds.assert_same_dicts(first.to_dict(), before[0], "left")
        bounds.assert_same_dicts(second.to_dict(), before[1], "right")

    def test_no_rows_is_the_identity(self) -> None:
        x, y = cases.TYPICAL.arrays("fp64")
        full = state_of(x, y)
        flat = full.to_dict()
        empty = MomentState.from_dict({k: np.zeros_like(v) if k != "format" else v for k, v in flat.items()})
        bounds.assert_same_dicts(full.merge(empty).to_dict(), flat, "on the right")
        bounds.assert_same_dicts(empty.merge(full).to_dict(), flat, "on the left")
        assert empty.merge(empty).n == 0

    def test_other_widths_and_kinds_are_refused(self) -> None:
        x, y = cases.TYPICAL.arrays("fp64")
        state = state_of(x, y)
        with pytest.raises(ValueError, match="features"):
            state.merge(state_of(x[:, :5], y))
        with pytest.raises(ValueError, match="features"):
            state.merge(state_of(x, y[:, :5]))
        with pytest.raises(TypeError, match="merge: expected a MomentState, got dict"):
            state.merge(state.to_dict())

    @pytest.mark.parametrize("dtype", list(cases.DTYPES))
    def test_of_kernel_states_is_no_worse_than_naive(self, dtype: str) -> None:
        x, y = cases.TYPICAL.arrays(dtype)
        parts = [gl.moments(a, b) for a, b in zip(np.split(x, [3, 90]), np.split(y, [3, 90]), strict=True)]
        judge.assert_state(reduce(MomentState.merge, parts), x, y)


class TestTranslate:
    @given(rows_and_cuts(), st.floats(-1e3, 1e3), st.floats(-1e3, 1e3))
    def test_is_the_state_about_the_other_pivot(self, drawn: tuple, to_x: float, to_y: float) -> None:
        x, y, _, _ = drawn
        state = state_of(x, y)
        moved = state.translate(np.full(x.shape[1], to_x), np.full(y.shape[1], to_y))
        assert (moved.x.pivot == to_x).all()
        assert (moved.y.pivot == to_y).all()
        assert_describes(moved, x, y, (state.x.pivot, state.y.pivot))

    @given(rows_and_cuts(), st.floats(-1e3, 1e3))
    def test_composes_and_inverts(self, drawn: tuple, via: float) -> None:
        x, y, _, _ = drawn
        state = state_of(x, y)
        stop = np.full(x.shape[1], via), np.full(y.shape[1], -via)
        back = state.translate(*stop).translate(state.x.pivot, state.y.pivot)
        assert_describes(back, x, y, stop)

    def test_to_its_own_pivot_changes_no_bit(self) -> None:
        state = state_of(*cases.TYPICAL.arrays("fp64"))
        same = state.translate(state.x.pivot.copy(), state.y.pivot.copy())
        bounds.assert_same_dicts(same.to_dict(), state.to_dict(), "its own pivot")

    def test_one_side_only(self) -> None:
        x, y = cases.TYPICAL.arrays("fp64")
        state = state_of(x, y)
        moved = state.translate(state.x.pivot + 3.0, state.y.pivot)
        assert_describes(moved, x, y, (state.x.pivot, state.y.pivot))
        bounds.assert_same_bits(moved.y.second, state.y.second, "the other side")

    @pytest.mark.parametrize("shapes", [((63,), (48,)), ((64,), (1,)), ((1,), (48,))])
    def test_wrong_width_is_refused(self, shapes: tuple) -> None:
        state = state_of(*cases.TYPICAL.arrays("fp64"))
        with pytest.raises(ValueError, match="translate"):
            state.translate(*(np.zeros(shape) for shape in shapes))

    @pytest.mark.parametrize(
        ("bad", "error", "text"),
        [
            (np.full(64, np.nan), ValueError, "non-finite"),
            (np.full(64, np.inf), ValueError, "non-finite"),
            (np.full(64, 1j), TypeError, "real numbers, got dtype complex128"),
            ("a" * 64, TypeError, "real numbers"),
            ([[1.0], [1.0, 2.0]], TypeError, "real numbers, got list"),
            (None, TypeError, "real numbers"),
        ],
        ids=["nan", "inf", "complex", "text", "ragged", "none"],
    )
    def test_what_is_no_pivot_is_refused(self, bad: object, error: type[Exception], text: str) -> None:
        state = state_of(*cases.TYPICAL.arrays("fp64"))
        with pytest.raises(error, match=f"translate: .*pivot_x.*{text}"):
            state.translate(bad, state.y.pivot)
        with pytest.raises(error, match=f"translate: .*pivot.*{text}"):
            state.x.translate(bad)

    def test_pivot_is_copied_from_whatever_holds_it(self) -> None:
        state = state_of(*cases.TYPICAL.arrays("fp64"))
        mine = np.ones(64)
        moved = state.translate(mine, [1] * 48)
        mine[:] = 7.0
        want = state.translate(torch.ones(64), np.ones(48, np.float32))
        bounds.assert_same_dicts(moved.to_dict(), want.to_dict(), "pivots of any kind")

    @given(rows_and_cuts(), st.floats(-100, 100))
    def test_does_not_change_cka(self, drawn: tuple, by: float) -> None:
        x, y, _, _ = drawn
        if len(x) < 8:
            return
        state = state_of(x, y)
        moved = state.translate(state.x.pivot + by * x.std(), state.y.pivot - by * y.std())
        want, got = gl.hsic(state), gl.hsic(moved)
        scale = math.sqrt(gl.hsic(state, estimator="biased") ** 2 + want**2) * (1 + by**4)
        bounds.assert_absolute(got, want, bounds.SAME_FP64 * scale, "hsic")


class TestSaved:
    def test_round_trip(self) -> None:
        state = state_of(*cases.TYPICAL.arrays("fp64"))
        flat = state.to_dict()
        assert flat["format"].tobytes() == b"gramless.moments/1"
        bounds.assert_same_dicts(MomentState.from_dict(flat).to_dict(), flat, "round trip")
        assert gl.cka(MomentState.from_dict(flat)) == gl.cka(state)

    def test_shares_no_memory(self) -> None:
        state = state_of(*cases.TYPICAL.arrays("fp64"))
        flat = state.to_dict()
        kept = state.to_dict()
        restored = MomentState.from_dict(flat)
        for value in flat.values():
            value[...] = 99
        bounds.assert_same_dicts(state.to_dict(), kept, "the source")
        bounds.assert_same_dicts(restored.to_dict(), kept, "the restored")

    def test_npz(self, tmp_path: object) -> None:
        state = state_of(*cases.TYPICAL.arrays("fp64"))
        np.savez(tmp_path / "s.npz", **state.to_dict())
        with np.load(tmp_path / "s.npz", allow_pickle=False) as loaded:
            restored = MomentState.from_dict(loaded)
        bounds.assert_same_dicts(restored.to_dict(), state.to_dict(), "npz")

    @pytest.mark.parametrize("library", ["numpy", "torch"])
    def test_safetensors(self, tmp_path: object, library: str) -> None:
        files = importlib.import_module(f"safetensors.{library}")
        state = state_of(*cases.TYPICAL.arrays("fp64"))
        own = state if library == "numpy" else TestTorchStates.to_torch(state)
        files.save_file(own.to_dict(), tmp_path / "s.safetensors")
        restored = MomentState.from_dict(files.load_file(tmp_path / "s.safetensors"))
        assert type(restored.x.second) is type(own.x.second)
        bounds.assert_same_dicts(TestTorchStates.to_numpy(restored), state.to_dict(), "safetensors")

    @pytest.mark.parametrize("form", ["gramless.moments/1", np.array("gramless.moments/1")], ids=["text", "0-d text"])
    def test_plain_texts_and_numbers_load_too(self, form: object) -> None:
        flat = state_of(*cases.TYPICAL.arrays("fp64")).to_dict()
        restored = MomentState.from_dict(flat | {"format": form, "n": int(flat["n"])})
        bounds.assert_same_dicts(restored.to_dict(), flat, "texts and numbers")

    def test_rounding_does_not_keep_a_state_from_coming_back(self) -> None:
        """Equal rows far from the first pivot: what their moments cancel to may not pass for nonsense."""
        x = np.full((30, 5), 0.1) + np.linspace(0, 1e3, 5)
        state = gl.moments(x, x, pivot_x=np.zeros(5), pivot_y=np.full(5, -3e3)).translate(x[0], x[0])
        bounds.assert_same_dicts(MomentState.from_dict(state.to_dict()).to_dict(), state.to_dict(), "equal rows")

    def test_nbytes(self) -> None:
        state = state_of(*cases.TYPICAL.arrays("fp64"))
        held = sum(v.nbytes for k, v in state.to_dict().items() if "." in k)
        assert state.nbytes == held
        p, q = 64, 48
        assert held == 8 * (p * p + q * q + p * q + 5 * (p + q) + (p + q) + 3)

    @pytest.mark.parametrize("kind", list(HOSTILE))
    def test_hostile_dicts_are_refused(self, kind: str) -> None:
        spoil, error, message = HOSTILE[kind]
        flat = state_of(*cases.TYPICAL.arrays("fp64")).to_dict()
        with pytest.raises(error, match=message):
            MomentState.from_dict(spoil(flat))


class TestTorchStates:
    """The algebra is written against the array API: a state of torch tensors works like one of NumPy arrays."""

    @staticmethod
    def to_torch(state: MomentState) -> MomentState:
        flat = state.to_dict()
        return MomentState.from_dict({k: torch.from_numpy(v) for k, v in flat.items()})

    @staticmethod
    def to_numpy(state: MomentState) -> dict:
        return {k: np.asarray(v) for k, v in state.to_dict().items()}

    def test_round_trip_keeps_the_library(self) -> None:
        state = state_of(*cases.TYPICAL.arrays("fp64"))
        moved = self.to_torch(state)
        assert isinstance(moved.cross.second, torch.Tensor)
        bounds.assert_same_dicts(self.to_numpy(moved), state.to_dict(), "through torch")

    def test_merge_and_translate(self) -> None:
        x, y = cases.TYPICAL.arrays("fp64")
        first, second = state_of(x[:100], y[:100]), state_of(x[100:], y[100:])
        merged = self.to_torch(first).merge(self.to_torch(second))
        assert isinstance(merged.x.second, torch.Tensor)
        passed = [(s.x.pivot, s.y.pivot) for s in (first, second)]
        assert_describes(MomentState.from_dict(self.to_numpy(merged)), x, y, *passed)
        moved = merged.translate(torch.ones(64, dtype=torch.float64), torch.ones(48, dtype=torch.float64))
        assert isinstance(moved.cross.norms, torch.Tensor)
        assert_describes(MomentState.from_dict(self.to_numpy(moved)), x, y, *passed)

    @pytest.mark.parametrize("estimator", ["unbiased", "biased", "feature_corrected"])
    def test_measures(self, estimator: str) -> None:
        state = state_of(*cases.TYPICAL.arrays("fp64"))
        got = gl.cka(self.to_torch(state), estimator=estimator)
        assert type(got) is float
        bounds.assert_relative(got, gl.cka(state, estimator=estimator), bounds.SAME_FP64)


class TestBeyondFloat64:
    """What over- or underflows in float64 is refused by the measures: no wrong number, and no NaN in silence."""

    @pytest.mark.parametrize("estimator", ["unbiased", "biased", "feature_corrected"])
    @pytest.mark.parametrize("apart", [1e77, 1e80, 1e150])
    def test_rows_too_far_apart(self, apart: float, estimator: str) -> None:
        x, y = cases.TYPICAL.arrays("fp64")
        state = state_of(x, y).merge(state_of(x + apart, y + apart))
        for measure in (gl.cka, gl.hsic):
            with pytest.raises(ValueError, match="overflows"):
                measure(state, estimator=estimator)

    @pytest.mark.parametrize("estimator", ["unbiased", "biased", "feature_corrected"])
    def test_rows_too_small(self, estimator: str) -> None:
        x, y = cases.TYPICAL.arrays("fp64")
        scale = np.finfo(np.float64).tiny ** 0.25
        with pytest.raises(ValueError, match="cka: y is so small that its HSIC underflows"):
            gl.cka(x, y * scale, estimator=estimator)

    def test_what_was_let_in_comes_out(self) -> None:
        x, y = cases.TYPICAL.arrays("fp64")
        bad = np.where(x == x[3, 3], np.nan, x)
        assert math.isnan(gl.cka(gl.moments(bad, y, nonfinite="propagate")))
