"""The contract of accumulators must catch those that break it: one toy that keeps it, and toys with one fault each."""

from __future__ import annotations

import inspect
import threading
import time
from typing import Any

import numpy as np
import pytest

from support.contract import AccumulatorContract, Subject

FORMAT = b"toy/1"


class Toy:
    """Column sums of x and y."""

    alone = threading.RLock()

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._n, self._sums = 0, None

    def update(self, x: Any, y: Any) -> Toy:
        sums = self._checked(x, y)
        with self.alone:
            if len(x):
                self._sums = sums if self._sums is None else tuple(map(np.add, self._sums, sums))
                self._n += len(x)
        return self

    def _checked(self, x: Any, y: Any) -> tuple[np.ndarray, ...]:
        if len(x) != len(y):
            raise ValueError("toy: number of rows")
        return x.sum(0), y.sum(0)

    def merge(self, other: Toy) -> Toy:
        if not isinstance(other, Toy):
            raise TypeError("merge: not a toy")
        if other._n:
            self._sums = other._sums if self._sums is None else tuple(map(np.add, self._sums, other._sums))
            self._n += other._n
        return self

    def finalize(self) -> tuple[int, np.ndarray]:
        if not self._n:
            raise ValueError("toy: no rows")
        return self._n, np.concatenate(self._sums)

    @property
    def nbytes(self) -> int:
        return sum(s.nbytes for s in self._sums or ())

    def state_dict(self) -> dict:
        arrays = {} if self._sums is None else {"x": self._sums[0].copy(), "y": self._sums[1].copy()}
        return {"format": np.frombuffer(FORMAT, np.uint8).copy(), "n": np.array(self._n)} | arrays

    def load_state_dict(self, state: dict) -> None:
        if not isinstance(state["format"], np.ndarray) or state["format"].tobytes() != FORMAT:
            raise ValueError("toy: format")
        self._n = int(state["n"])
        self._sums = (state["x"].copy(), state["y"].copy()) if self._n else None


class KeepsLastBatchOnly(Toy):
    def update(self, x: Any, y: Any) -> Toy:
        self.reset()
        return super().update(x, y)


class ReturnsNothing(Toy):
    def update(self, x: Any, y: Any) -> None:
        super().update(x, y)


class WeighsBatchesEqually(Toy):
    def _checked(self, x: Any, y: Any) -> tuple[np.ndarray, ...]:
        return tuple(s / max(1, len(x)) for s in super()._checked(x, y))


class DependsOnOrder(Toy):
    def update(self, x: Any, y: Any) -> Toy:
        return super().update(x if self._n else 2 * x, y)


class CountsEmptyBatches(Toy):
    def update(self, x: Any, y: Any) -> Toy:
        super().update(x, y)
        self._n += len(x) == 0
        return self


class MergeForgetsRows(Toy):
    def merge(self, other: Toy) -> Toy:
        n = self._n
        super().merge(other)
        self._n = max(n, other._n)
        return self


class MergeEmptiesTheOther(Toy):
    def merge(self, other: Toy) -> Toy:
        super().merge(other)
        other.reset()
        return self


class MergeTakesAnything(Toy):
    def merge(self, other: Any) -> Toy:
        return super().merge(other) if isinstance(other, Toy) else self


class SumsInPlace(Toy):
    def update(self, x: Any, y: Any) -> Toy:
        sums = self._checked(x, y)
        with self.alone:
            if self._sums is None:
                return super().update(x, y)
            for mine, new in zip(self._sums, sums, strict=True):
                mine += new
            self._n += len(x)
        return self


class LosesRowsToAnotherThread(Toy):
    def update(self, x: Any, y: Any) -> Toy:
        n = self._n
        super().update(x, y)
        time.sleep(1e-4)
        self._n = n + len(x)
        return self


class FinalizeConsumes(Toy):
    def finalize(self) -> tuple[int, np.ndarray]:
        result = super().finalize()
        self.reset()
        return result


class FinalizesNothing(Toy):
    def finalize(self) -> Any:
        return super().finalize() if self._n else (0, np.zeros(5))


class StateIsAView(SumsInPlace):
    def state_dict(self) -> dict:
        arrays = {} if self._sums is None else {"x": self._sums[0], "y": self._sums[1]}
        return super().state_dict() | arrays


class LoadKeepsTheDict(SumsInPlace):
    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self._sums = (state["x"], state["y"]) if state["n"] else None


class LoadsAnyFormat(Toy):
    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state | {"format": np.frombuffer(FORMAT, np.uint8)})


class LoadForgetsRows(Toy):
    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self._n = 1


class NeedsPickle(Toy):
    def state_dict(self) -> dict:
        return super().state_dict() | {"extra": (1, 2)}


class CannotBePickled(Toy):
    def __init__(self) -> None:
        super().__init__()
        self._open = lambda: None


class FailsLate(Toy):
    def update(self, x: Any, y: Any) -> Toy:
        self._n += len(x)
        try:
            return super().update(x, y)
        finally:
            self._n -= len(x) if len(x) == len(y) else 0


class WritesIntoItsInput(Toy):
    def update(self, x: Any, y: Any) -> Toy:
        super().update(x, y)
        if x.flags.writeable:
            x *= 2
        return self


class KeepsItsInput(Toy):
    def update(self, x: Any, y: Any) -> Toy:
        self._kept = x
        return super().update(x, y)

    def state_dict(self) -> dict:
        state = super().state_dict()
        return state | ({"x": self._kept.sum(0)} if self._n else {})


class ResetForgetsToCount(Toy):
    def reset(self) -> None:
        self._n, self._sums = getattr(self, "_n", 0), None

    def finalize(self) -> Any:
        if self._sums is None:
            raise ValueError("toy: no rows")
        return super().finalize()


class GrowsWithTheRows(Toy):
    @property
    def nbytes(self) -> int:
        return super().nbytes + self._n


FAULTS = {
    ReturnsNothing: ("test_update_returns_the_accumulator",),
    KeepsLastBatchOnly: ("test_chunking_does_not_matter", "test_single_rows"),
    WeighsBatchesEqually: ("test_chunking_does_not_matter", "test_single_rows"),
    DependsOnOrder: ("test_order_does_not_matter",),
    CountsEmptyBatches: ("test_empty_batch_changes_nothing",),
    MergeForgetsRows: ("test_merge_as_a_tree", "test_usable_after_merge"),
    MergeEmptiesTheOther: ("test_merge_returns_self_and_leaves_the_other", "test_empty_is_the_identity_on_the_left"),
    MergeTakesAnything: ("test_merge_with_another_kind_is_refused",),
    SumsInPlace: ("test_merge_into_an_empty_one_does_not_share_memory",),
    FinalizeConsumes: ("test_finalize_twice_is_the_same", "test_usable_after_finalize"),
    FinalizesNothing: ("test_finalize_of_an_empty_one_says_so",),
    StateIsAView: ("test_state_dict_is_a_copy",),
    LoadKeepsTheDict: ("test_loaded_dict_stays_untouched",),
    LoadsAnyFormat: ("test_failed_load_changes_nothing",),
    LoadForgetsRows: ("test_state_dict_round_trip",),
    NeedsPickle: ("test_state_dict_is_flat_and_plain", "test_saved_files_come_back"),
    LosesRowsToAnotherThread: ("test_threads_lose_no_rows",),
    CannotBePickled: ("test_pickle",),
    FailsLate: ("test_failed_update_changes_nothing",),
    WritesIntoItsInput: ("test_inputs_are_untouched",),
    KeepsItsInput: ("test_inputs_are_not_kept",),
    ResetForgetsToCount: ("test_reset",),
    GrowsWithTheRows: ("test_nbytes",),
}
PLAIN = [
    name
    for name, method in inspect.getmembers(AccumulatorContract, inspect.isfunction)
    if name.startswith("test_") and list(inspect.signature(method).parameters) == ["self", "subject"]
]


def subject_of(kind: type[Toy]) -> Subject:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((260, 3)), rng.standard_normal((260, 2))
    return Subject(
        kind.__name__,
        kind,
        (x, y),
        lambda result: {"n": np.array(float(result[0])), "sums": result[1]},
        lambda _: {"n": np.array(260.0), "sums": np.concatenate([np.abs(x).sum(0), np.abs(y).sum(0)])},
        (((x[:3], y[:4]), ValueError, "number of rows"),),
    )


@pytest.mark.parametrize("name", PLAIN)
def test_a_sound_accumulator_passes(name: str) -> None:
    getattr(AccumulatorContract(), name)(subject_of(Toy))


@pytest.mark.parametrize("fault", FAULTS, ids=lambda kind: kind.__name__)
def test_a_faulty_one_fails(fault: type[Toy]) -> None:
    for name in FAULTS[fault]:
        # any exception fails a test: an assertion of the contract, or pickle's own
        with pytest.raises((AssertionError, AttributeError, TypeError, ValueError, pytest.fail.Exception)):
            getattr(AccumulatorContract(), name)(subject_of(fault))


def test_every_clause_is_broken_by_some_fault() -> None:
    broken = {name for names in FAULTS.values() for name in names}
    spared = {"test_empty_round_trip", "test_empty_is_the_identity_on_the_right"}
    assert set(PLAIN) - broken == spared
