"""One contract for every accumulator: what update, merge, finalize, reset and state_dict promise, whatever they sum."""

from __future__ import annotations

import copy
import io
import pickle
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from support import bounds

Rows = tuple[Any, Any]


@dataclass(frozen=True)
class Subject:
    """An accumulator to be held to the contract.

    `make` gives an empty one. `rows` is the whole data as (x, y) where each side is an array or a dict of arrays.
    `values` turns what finalize returns into a dict of float64 arrays that may be compared. `scales` gives, for the
    same keys, the sum of absolute values of the terms of each element.
    """

    name: str
    make: Callable[[], Any]
    rows: Rows
    values: Callable[[Any], dict[str, np.ndarray]]
    scales: Callable[[Rows], dict[str, np.ndarray]]
    # batches that update must refuse, with the error it raises
    refused: Sequence[tuple[Rows, type[Exception], str]]

    def __str__(self) -> str:
        return self.name


def cut(side: Any, start: int, stop: int) -> Any:
    if side is None:
        return None
    if isinstance(side, dict):
        return {name: rows[start:stop] for name, rows in side.items()}
    return side[start:stop]


def length(side: Any) -> int:
    return len(next(iter(side.values()))) if isinstance(side, dict) else len(side)


def pieces(rows: Rows, sizes: Sequence[int]) -> list[Rows]:
    edges = np.cumsum([0, *sizes])
    assert edges[-1] == length(rows[0]), "the sizes must cover all rows"
    return [tuple(cut(side, a, b) for side in rows) for a, b in pairwise(edges)]


def fed(subject: Subject, batches: Sequence[Rows]) -> Any:
    accumulator = subject.make()
    for batch in batches:
        accumulator.update(*batch)
    return accumulator


def _snapshot(accumulator: Any) -> dict:
    return copy.deepcopy(accumulator.state_dict())


def _assert_close(subject: Subject, got: Any, want: Any, what: str) -> None:
    g, w, s = subject.values(got), subject.values(want), subject.scales(subject.rows)
    assert g.keys() == w.keys(), what
    for key in w:
        if isinstance(w[key], str):
            assert g[key] == w[key], f"{subject}: {what}: {key}"
            continue
        bounds.assert_within_algebra(g[key], w[key], s[key], f"{subject}: {what}: {key}")


def _assert_identical(subject: Subject, got: Any, want: Any, what: str) -> None:
    bounds.assert_same_dicts(subject.values(got), subject.values(want), f"{subject}: {what}")


class AccumulatorContract:
    """Inherit, and give a fixture `subject`."""

    sizes: Sequence[int] = (100, 1, 64, 3, 92)
    sizes_of_threads: Sequence[int] = (2,) * 130

    def whole(self, subject: Subject, sizes: Sequence[int]) -> Any:
        """The result of all rows, however they are fed; override it where batches of these sizes are part of it."""
        assert sum(sizes) == length(subject.rows[0])
        return fed(subject, [subject.rows]).finalize()

    def test_update_returns_the_accumulator(self, subject: Subject) -> None:
        accumulator = subject.make()
        assert accumulator.update(*subject.rows) is accumulator

    def test_chunking_does_not_matter(self, subject: Subject) -> None:
        whole = self.whole(subject, self.sizes)
        _assert_close(subject, fed(subject, pieces(subject.rows, self.sizes)).finalize(), whole, "uneven chunks")

    def test_single_rows(self, subject: Subject) -> None:
        n = length(subject.rows[0])
        whole = self.whole(subject, self.sizes)
        _assert_close(subject, fed(subject, pieces(subject.rows, [1] * n)).finalize(), whole, "one row at a time")

    def test_order_does_not_matter(self, subject: Subject) -> None:
        batches = pieces(subject.rows, self.sizes)
        whole = self.whole(subject, self.sizes)
        _assert_close(subject, fed(subject, batches[::-1]).finalize(), whole, "batches reversed")

    @pytest.mark.parametrize("order", [(0, 1, 2, 3, 4), (4, 3, 2, 1, 0), (2, 0, 4, 1, 3)])
    def test_merge_in_any_order(self, subject: Subject, order: tuple[int, ...]) -> None:
        parts = [fed(subject, [batch]) for batch in pieces(subject.rows, self.sizes)]
        merged = parts[order[0]]
        for index in order[1:]:
            merged = merged.merge(parts[index]) or merged
        _assert_close(subject, merged.finalize(), self.whole(subject, self.sizes), f"merged as {order}")

    def test_merge_as_a_tree(self, subject: Subject) -> None:
        a, b, c, d, e = (fed(subject, [batch]) for batch in pieces(subject.rows, self.sizes))
        a.merge(b)
        d.merge(e)
        c.merge(d)
        a.merge(c)
        _assert_close(subject, a.finalize(), self.whole(subject, self.sizes), "merged as a tree")

    def test_merge_returns_self_and_leaves_the_other(self, subject: Subject) -> None:
        first, second = (fed(subject, [batch]) for batch in pieces(subject.rows, (160, 100)))
        before = _snapshot(second)
        assert first.merge(second) is first
        bounds.assert_same_dicts(second.state_dict(), before, f"{subject}: merge changed its argument")

    def test_empty_is_the_identity_on_the_right(self, subject: Subject) -> None:
        full = fed(subject, [subject.rows])
        before = full.finalize()
        full.merge(subject.make())
        _assert_identical(subject, full.finalize(), before, "merging an empty one")

    def test_empty_is_the_identity_on_the_left(self, subject: Subject) -> None:
        full = fed(subject, [subject.rows])
        empty = subject.make()
        empty.merge(full)
        _assert_identical(subject, empty.finalize(), full.finalize(), "merging into an empty one")

    def test_merge_with_another_kind_is_refused(self, subject: Subject) -> None:
        with pytest.raises(TypeError, match="merge"):
            fed(subject, [subject.rows]).merge(object())

    def test_merge_into_an_empty_one_does_not_share_memory(self, subject: Subject) -> None:
        full = fed(subject, pieces(subject.rows, (160, 100))[:1])
        before = _snapshot(full)
        empty = subject.make()
        empty.merge(full)
        empty.update(*pieces(subject.rows, (160, 100))[1])
        bounds.assert_same_dicts(full.state_dict(), before, f"{subject}: the source of a merge changed")

    def test_empty_batch_changes_nothing(self, subject: Subject) -> None:
        full = fed(subject, [subject.rows])
        before = full.finalize()
        full.update(*(cut(side, 0, 0) for side in subject.rows))
        _assert_identical(subject, full.finalize(), before, "an update with no rows")

    def test_finalize_of_an_empty_one_says_so(self, subject: Subject) -> None:
        with pytest.raises(ValueError, match="no rows"):
            subject.make().finalize()

    def test_finalize_twice_is_the_same(self, subject: Subject) -> None:
        accumulator = fed(subject, [subject.rows])
        _assert_identical(subject, accumulator.finalize(), accumulator.finalize(), "finalize twice")

    def test_usable_after_finalize(self, subject: Subject) -> None:
        first, second = pieces(subject.rows, (160, 100))
        accumulator = fed(subject, [first])
        early = accumulator.finalize()
        kept = copy.deepcopy(subject.values(early))
        accumulator.update(*second)
        bounds.assert_same_dicts(subject.values(early), kept, f"{subject}: a finalized result changed later")
        _assert_identical(
            subject, accumulator.finalize(), fed(subject, [first, second]).finalize(), "finalize in between"
        )

    def test_usable_after_merge(self, subject: Subject) -> None:
        a, b, c = pieces(subject.rows, (100, 60, 100))
        accumulator = fed(subject, [a])
        accumulator.merge(fed(subject, [b]))
        accumulator.update(*c)
        _assert_close(subject, accumulator.finalize(), self.whole(subject, (100, 60, 100)), "update after merge")

    def test_state_dict_round_trip(self, subject: Subject) -> None:
        first, second = pieces(subject.rows, (160, 100))
        accumulator = fed(subject, [first])
        restored = subject.make()
        restored.load_state_dict(accumulator.state_dict())
        _assert_identical(subject, restored.finalize(), accumulator.finalize(), "restored")
        accumulator.update(*second)
        restored.update(*second)
        _assert_identical(subject, restored.finalize(), accumulator.finalize(), "restored and continued")

    def test_state_dict_is_flat_and_plain(self, subject: Subject) -> None:
        state = fed(subject, [subject.rows]).state_dict()
        assert state
        for key, value in state.items():
            assert isinstance(key, str)
            assert isinstance(value, np.ndarray), f"{key} is a {type(value).__name__}"
            assert not value.dtype.hasobject, f"{key} needs pickle"

    def test_saved_files_come_back(self, subject: Subject) -> None:
        accumulator = fed(subject, [subject.rows])
        state = accumulator.state_dict()
        file = io.BytesIO()
        np.savez(file, **state)
        file.seek(0)
        with np.load(file, allow_pickle=False) as arrays:
            npz = dict(arrays)
        for loaded in (npz, safetensors.numpy.load(safetensors.numpy.save(state))):
            restored = subject.make()
            restored.load_state_dict(loaded)
            bounds.assert_same_dicts(restored.state_dict(), state, f"{subject}: saved and loaded")
            _assert_identical(subject, restored.finalize(), accumulator.finalize(), "saved and loaded")

    def test_state_dict_is_a_copy(self, subject: Subject) -> None:
        first, second = pieces(subject.rows, (160, 100))
        accumulator = fed(subject, [first])
        state = accumulator.state_dict()
        kept = copy.deepcopy(state)
        accumulator.update(*second)
        bounds.assert_same_dicts(state, kept, f"{subject}: a saved state changed with a later update")

    def test_loaded_dict_stays_untouched(self, subject: Subject) -> None:
        first, second = pieces(subject.rows, (160, 100))
        state = fed(subject, [first]).state_dict()
        kept = copy.deepcopy(state)
        restored = subject.make()
        restored.load_state_dict(state)
        restored.update(*second)
        bounds.assert_same_dicts(state, kept, f"{subject}: a loaded dict changed with a later update")

    def test_empty_round_trip(self, subject: Subject) -> None:
        restored = fed(subject, [subject.rows])
        restored.load_state_dict(subject.make().state_dict())
        restored.update(*subject.rows)
        _assert_identical(subject, restored.finalize(), fed(subject, [subject.rows]).finalize(), "empty round trip")

    def test_pickle(self, subject: Subject) -> None:
        first, second = pieces(subject.rows, (160, 100))
        accumulator = fed(subject, [first])
        restored = pickle.loads(pickle.dumps(accumulator))
        copied = copy.deepcopy(accumulator)
        accumulator.update(*second)
        for other in (restored, copied):
            other.update(*second)
            _assert_identical(subject, other.finalize(), accumulator.finalize(), "pickled or copied, and continued")

    def test_threads_lose_no_rows(self, subject: Subject) -> None:
        batches = pieces(subject.rows, self.sizes_of_threads)
        accumulator, interval = subject.make(), sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        try:
            with ThreadPoolExecutor(4) as pool:
                list(pool.map(lambda batch: accumulator.update(*batch), batches))
        finally:
            sys.setswitchinterval(interval)
        whole = self.whole(subject, self.sizes_of_threads)
        _assert_close(subject, accumulator.finalize(), whole, "from several threads")

    def test_inputs_are_untouched(self, subject: Subject) -> None:
        rows = copy.deepcopy(subject.rows)
        fed(subject, [rows, rows]).finalize()
        for side, want in zip(rows, subject.rows, strict=True):
            named = side if isinstance(side, dict) else {} if side is None else {"": side}
            for name, array in named.items():
                bounds.assert_same_bits(array, want[name] if isinstance(want, dict) else want, "an input")

    def test_inputs_are_not_kept(self, subject: Subject) -> None:
        rows = copy.deepcopy(subject.rows)
        accumulator = fed(subject, [rows])
        before = _snapshot(accumulator)
        for side in filter(lambda side: side is not None, rows):
            for array in side.values() if isinstance(side, dict) else [side]:
                array.setflags(write=True)
                array[...] = 0
        bounds.assert_same_dicts(accumulator.state_dict(), before, f"{subject}: the accumulator aliases its input")

    def test_failed_update_changes_nothing(self, subject: Subject) -> None:
        first, second = pieces(subject.rows, (160, 100))
        accumulator = fed(subject, [first])
        for batch, error, message in subject.refused:
            before = _snapshot(accumulator)
            with pytest.raises(error, match=message):
                accumulator.update(*batch)
            bounds.assert_same_dicts(accumulator.state_dict(), before, f"{subject}: a refused update left a trace")
        accumulator.update(*second)
        _assert_identical(
            subject, accumulator.finalize(), fed(subject, [first, second]).finalize(), "after refused updates"
        )

    def test_failed_load_changes_nothing(self, subject: Subject) -> None:
        accumulator = fed(subject, [subject.rows])
        before = _snapshot(accumulator)
        hostile = dict(before, format="something/9")
        with pytest.raises(ValueError, match="format"):
            accumulator.load_state_dict(hostile)
        bounds.assert_same_dicts(accumulator.state_dict(), before, f"{subject}: a refused dict left a trace")

    def test_reset(self, subject: Subject) -> None:
        accumulator = fed(subject, [subject.rows])
        accumulator.reset()
        with pytest.raises(ValueError, match="no rows"):
            accumulator.finalize()
        accumulator.update(*subject.rows)
        _assert_identical(subject, accumulator.finalize(), fed(subject, [subject.rows]).finalize(), "after reset")

    def test_nbytes(self, subject: Subject) -> None:
        accumulator = subject.make()
        empty = accumulator.nbytes
        accumulator.update(*subject.rows)
        once = accumulator.nbytes
        held = sum(v.nbytes for v in accumulator.state_dict().values() if isinstance(v, np.ndarray))
        assert empty <= once
        assert once >= held - empty - 1024, "nbytes is less than the arrays of the state"
        accumulator.update(*subject.rows)
        assert accumulator.nbytes == once, "nbytes grows with the rows"
