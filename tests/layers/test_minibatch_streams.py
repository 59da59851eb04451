"""Grids from batches as streams: rows too few for a batch wait, grids merge in any order, states come back."""

from __future__ import annotations

import copy
import io
import itertools
import warnings

import numpy as np
import pytest

import gramless as gl
from gramless.layers import tiles
from support import bounds, cases, contract, grids
from support.contract import Subject
from support.grids import assert_same_grids, assert_same_matrices, fed

SIZES = (30, 30, 30, 10)
KERNELS = ("linear", "rbf")


class TestCarriedRows:
    @pytest.mark.parametrize("kernel", KERNELS)
    @pytest.mark.parametrize("dtype", list(cases.DTYPES))
    def test_join_the_next_batch(self, kernel: str, dtype: str) -> None:
        sides = grids.layers(dtype, n=60)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            got = fed(grids.batches(sides, (20, 2, 1, 20, 3, 14)), kernel).finalize()
        assert_same_matrices(got, fed(grids.batches(sides, (20, 23, 17)), kernel).finalize(), "carried")

    def test_single_rows_are_batches_of_four(self) -> None:
        sides = grids.layers(n=60)
        want = fed(grids.batches(sides, (4,) * 15)).finalize()
        assert_same_matrices(fed(grids.batches(sides, (1,) * 60)).finalize(), want, "one row at a time")

    def test_what_is_left_is_not_counted_and_says_so(self) -> None:
        sides = grids.layers(n=43)
        grid = fed(grids.batches(sides, (40, 3)))
        assert grid.n == 43
        with pytest.warns(RuntimeWarning, match=r"LayerGrid.finalize: the last 3 rows are left out") as caught:
            got = grid.finalize()
        assert [warning.filename for warning in caught] == [__file__]
        assert got.n == 40
        assert_same_matrices(got, fed(grids.batches(sides, (40, 3))[:1]).finalize(), "without them")

    def test_too_few_rows_for_any_batch(self) -> None:
        grid = fed([grids.batches(grids.layers(), (3, 57))[0]])
        with pytest.raises(ValueError, match=r"LayerGrid.finalize: expected at least 4 rows, got n = 3"):
            grid.finalize()

    def test_are_checked_when_they_come(self) -> None:
        """A row that is not finite must not be refused with the batch after the one that it came with."""
        xs, ys = grids.layers("fp16", n=40)
        grid = fed([(grids.cut(xs, 0, 2), grids.cut(ys, 0, 2))])
        before = grid.state_dict()
        bad = {k: v[2:3].copy() for k, v in xs.items()}
        bad["m"][0, 0] = np.inf
        with pytest.raises(ValueError, match=r"LayerGrid.update: layer x/m: has non-finite values.*65504"):
            grid.update(bad, grids.cut(ys, 2, 3))
        bounds.assert_same_dicts(grid.state_dict(), before, "after a refused row")

    @pytest.mark.parametrize("dtype", ["bf16", "fp64"])
    def test_survive_a_round_trip(self, dtype: str) -> None:
        parts = grids.batches(grids.layers(dtype, n=60), (40, 3, 17))
        for count in (1, 2):
            grid = fed(parts[:count])
            file = io.BytesIO()
            np.savez(file, **grid.state_dict())
            file.seek(0)
            restored = gl.LayerGrid("minibatch")
            with np.load(file, allow_pickle=False) as arrays:
                restored.load_state_dict(arrays)
            for part in parts[count:]:
                grid.update(*part)
                restored.update(*part)
            bounds.assert_same_dicts(restored.state_dict(), grid.state_dict(), "continued")

    def test_of_merged_grids_become_a_batch(self) -> None:
        parts = grids.batches(grids.layers(n=60), (20, 3, 30, 2, 5))
        first, second = fed(parts[:2]), fed(parts[2:4])
        before = second.state_dict()
        first.merge(second)
        bounds.assert_same_dicts(second.state_dict(), before, "the other grid")
        assert first.n == 55
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            merged = first.finalize()
        joined = tuple({k: np.concatenate([parts[1][s][k], parts[3][s][k]]) for k in parts[1][s]} for s in (0, 1))
        assert_same_grids(merged, fed([parts[0], parts[2], joined]).finalize(), "3 and 2 rows are a batch of 5")

    def test_memory_that_they_hold_is_counted(self) -> None:
        parts = grids.batches(grids.layers("fp64"), (30, 3, 27))
        grid = fed(parts[:1])
        without = grid.nbytes
        assert grid.update(*parts[1]).nbytes - without == 8 * 3 * (7 + 12 + 3 + 5 + 16)
        assert grid.update(*parts[2]).nbytes == without


class TestMerge:
    @pytest.mark.parametrize("kernel", KERNELS)
    @pytest.mark.parametrize("weights", ["rows", "equal"])
    def test_in_any_order(self, kernel: str, weights: str) -> None:
        parts = grids.batches(grids.layers(n=100), SIZES)
        want = fed(parts, kernel, weights=weights).finalize()
        for order in itertools.permutations(range(4)):
            first, *others = (fed([parts[index]], kernel, weights=weights) for index in order)
            for other in others:
                first.merge(other)
            assert_same_grids(first.finalize(), want, str(order))

    def test_of_layers_in_another_order(self) -> None:
        parts = grids.batches(grids.layers(n=60), (30, 20, 10))
        want = fed(parts).finalize()
        turned = [({k: xs[k] for k in ("m", "z", "a")}, {k: ys[k] for k in ("in", "out")}) for xs, ys in parts]
        assert_same_grids(fed(parts[:1]).merge(fed(turned[1:])).finalize(), want, "merged")
        assert_same_matrices(fed([parts[0], *turned[1:]]).finalize(), want, "later batches")

    def test_of_one_model_in_another_order(self) -> None:
        parts = grids.batches(grids.layers(n=60), (30, 20, 10))
        want = fed([(xs, None) for xs, _ in parts]).finalize()
        turned = fed([({k: xs[k] for k in ("m", "z", "a")}, None) for xs, _ in parts[1:]])
        assert_same_grids(fed([(parts[0][0], None)]).merge(turned).finalize(), want, "merged")

    @pytest.mark.parametrize(
        "other", [{"kernel": "rbf"}, {"weights": "equal"}, {"kernel": "rbf", "bandwidth": 2.0}], ids=str
    )
    def test_of_other_settings_is_refused(self, other: dict) -> None:
        parts = grids.batches(grids.layers(), (30, 30))
        grid, theirs = fed(parts[:1]), gl.LayerGrid("minibatch", **other).update(*parts[1])
        before = grid.state_dict()
        with pytest.raises(ValueError, match=r"LayerGrid.merge: expected the same settings"):
            grid.merge(theirs)
        with pytest.raises(ValueError, match=r"LayerGrid.load_state_dict: expected a state of settings"):
            grid.load_state_dict(theirs.state_dict())
        bounds.assert_same_dicts(grid.state_dict(), before, "after a refused merge")

    def test_of_other_layers_or_mode_is_refused(self) -> None:
        xs, ys = grids.layers()
        grid = fed([(xs, ys)])
        with pytest.raises(ValueError, match="missing: x/z"):
            grid.merge(fed([({k: v for k, v in xs.items() if k != "z"}, ys)]))
        with pytest.raises(ValueError, match=r"changed number of features: x/z 7 to 6"):
            grid.merge(fed([(xs | {"z": xs["z"][:, :6]}, ys)]))
        with pytest.raises(TypeError, match="one of another mode"):
            grid.merge(gl.LayerGrid().update(xs, ys))


class TestStates:
    def states(self) -> tuple[gl.LayerGrid, dict]:
        grid = fed(grids.batches(grids.layers(), (30, 28, 2)))
        return grid, grid.state_dict()

    @pytest.mark.parametrize(
        ("change", "text"),
        [
            ({"n": np.array(500)}, "rows that it counts"),
            ({"n": np.array(2)}, "no batches"),
            ({"batches": np.array(0)}, "batches"),
            ({"batches": np.array(40)}, "batches"),
            ({"weight": np.array(-1.0)}, "batches"),
            ({"pairs": np.zeros((2, 2))}, "pairs"),
            ({"pairs": np.full((3, 2), np.nan)}, "non-finite"),
            ({"carry.1": np.zeros((2, 11))}, "carry.1"),
            ({"carry.1": np.full((2, 12), np.inf)}, "carry.1"),
            ({"carry.0": np.zeros((4, 7))}, "carry.0"),
            ({"carry.0": np.zeros((2, 7), int)}, "carry.0"),
            ({"extra": np.zeros(2)}, "extra"),
            ({"layout": np.frombuffer(b"[[], {}]", np.uint8)}, "layout"),
            ({"layout": np.frombuffer(b'[[["z", 7]], {}]', np.uint8)}, "layout"),
            ({"layout": np.frombuffer(b"[1", np.uint8)}, "layout"),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
    )
    def test_hostile_ones_are_refused(self, change: dict, text: str) -> None:
        grid, state = self.states()
        with pytest.raises((TypeError, ValueError), match=f"LayerGrid.load_state_dict.*({text})"):
            grid.load_state_dict(state | change)
        bounds.assert_same_dicts(grid.state_dict(), state, "after a refused dict")

    def test_missing_keys_are_refused(self) -> None:
        grid, state = self.states()
        for key in state:
            with pytest.raises((TypeError, ValueError), match=r"LayerGrid.load_state_dict"):
                grid.load_state_dict({k: v for k, v in state.items() if k != key})
        bounds.assert_same_dicts(grid.state_dict(), state, "after refused dicts")

    def test_the_other_mode_is_refused(self) -> None:
        grid, state = self.states()
        exact = gl.LayerGrid().update(*grids.layers())
        for one, other in ((grid, exact), (exact, grid)):
            with pytest.raises(ValueError, match="expected a state of format"):
                one.load_state_dict(other.state_dict())
        bounds.assert_same_dicts(grid.state_dict(), state, "after the state of another mode")

    def test_they_do_not_grow(self) -> None:
        parts = grids.batches(grids.layers(n=100), SIZES)
        one, many = fed(parts[:1]), fed(parts * 5)
        assert one.nbytes == many.nbytes
        # the 48 bytes for each pair that the documentation states, and a few numbers for each layer
        assert one.nbytes <= 48 * 6 + 8 * 8 * 5

    def test_interruption_keeps_the_batches_so_far(self, monkeypatch: pytest.MonkeyPatch) -> None:
        parts = grids.batches(grids.layers(), (20, 3, 37))
        grid = fed(parts[:2])
        before = grid.state_dict()
        kernel, calls = tiles.gram_values, itertools.count()

        def interrupted(*arguments: object, **keywords: object) -> object:
            if next(calls) == 3:
                raise KeyboardInterrupt
            return kernel(*arguments, **keywords)

        with monkeypatch.context() as patch:
            patch.setattr(tiles, "gram_values", interrupted)
            patch.setattr(tiles, "VALUES_BYTES", 1)
            with pytest.raises(KeyboardInterrupt):
                grid.update(*parts[2])
        bounds.assert_same_dicts(grid.state_dict(), before, "after an interruption")
        assert_same_matrices(grid.update(*parts[2]).finalize(), fed(parts).finalize(), "and then")


def subjects() -> list[Subject]:
    """Grids of batches, of two models and of one."""
    made = []
    for name, kernel, two in (("two models", "linear", True), ("one model", "rbf", False)):
        xs, ys = grids.layers(n=260)
        poisoned = {k: v[:9].copy() for k, v in xs.items()}
        poisoned["a"][5, 2] = np.nan
        rows: contract.Rows = (xs, ys if two else None)
        shape = (3, 2) if two else (3, 3)
        few = contract.cut(rows[1], 0, 9)
        made.append(
            Subject(
                name,
                lambda kernel=kernel: gl.LayerGrid("minibatch", kernel=kernel),
                rows,
                lambda m: (
                    {"values": m.values, "n": np.array(m.n), "layers": "/".join(m.layers_x + m.layers_y)}
                    | ({} if np.isnan(m.stderr).any() else {"stderr": m.stderr})
                ),
                lambda _, shape=shape: (
                    {key: np.full(shape, bounds.CKA_TERMS) for key in ("values", "stderr")} | {"n": np.array(1.0)}
                ),
                (
                    (({k: v[:, :-1] for k, v in xs.items()}, rows[1]), ValueError, "features"),
                    (({k: v for k, v in xs.items() if k != "z"}, rows[1]), ValueError, "missing: x/z"),
                    ((xs | {"extra": xs["z"]}, rows[1]), ValueError, "unknown: x/extra"),
                    ((xs | {"z": xs["z"][:5]}, rows[1]), ValueError, "number of rows"),
                    ((poisoned, few), ValueError, "x/a.* non-finite"),
                    ((3, rows[1]), TypeError, "layers"),
                ),
            )
        )
    return made


class TestContract(contract.AccumulatorContract):
    """The same contract as other accumulators, for batches that stay the same."""

    sizes = (100, 8, 64, 4, 84)
    sizes_of_threads = (4,) * 65
    test_chunking_does_not_matter = None
    test_single_rows = None

    def whole(self, subject: Subject, sizes: tuple[int, ...]) -> object:
        return contract.fed(subject, contract.pieces(subject.rows, sizes)).finalize()

    @pytest.fixture(params=subjects(), ids=str)
    def subject(self, request: pytest.FixtureRequest) -> Subject:
        return copy.deepcopy(request.param)
