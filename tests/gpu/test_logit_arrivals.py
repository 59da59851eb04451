"""Batches that come late from a GPU: their order, bounds and mergers, and that no update waits for them."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gramless as gl
from gramless import ops
from gramless._base import async_host_copies
from gramless._base.async_host_copies import AsyncHostCopies
from gramless.predictions.row_statistics import RowTable
from support import bounds, contract, device
from support.late_batches import (
    BACKEND,
    BATCHES,
    EXACT,
    H1,
    H2,
    MODELS,
    W1,
    W2,
    N,
    assert_same,
    by_definition,
    fed,
    on_host,
    stream,
    tensors,
)
from support.processes import launch
from support.subjects import logit_pairs_subject, pair_rows


class TestPending:
    def test_with_batches_of_the_host(self, defined: None, on_gpu: None) -> None:
        """In the order in which they came, whatever is still on its way."""
        z1, z2 = H1 @ W1.T, H2 @ W2.T
        made, want = gl.LogitPairs(keep_rows=True, precision="exact"), gl.LogitPairs(keep_rows=True)
        for k, rows in enumerate((*BATCHES, slice(3, 9))):
            made.update(*((z1[rows], z2[rows]) if k % 2 else tensors(z1[rows], z2[rows])))
            want.update(z1[rows], z2[rows])
        state = gl.logit_pairs(z1, None, z2, None, divergences=True)
        got, truth = made.add(state).finalize(), want.add(state).finalize()
        assert_same(got, truth)
        scale = np.full(truth.n, 100.0)
        bounds.assert_within_algebra(got.rows["kl_pq"], truth.rows["kl_pq"], scale, "kl_pq")

    def test_merge(self, defined: None) -> None:
        first, second = fed(BATCHES[:1]), fed(BATCHES[1:])
        got = on_host(BATCHES[:1]).merge(second).finalize()
        assert_same(got, on_host().finalize())
        assert_same(first.merge(second).finalize(), on_host().finalize())
        assert second.n == N - 17

    def test_precision_is_no_part_of_the_state(self, defined: None) -> None:
        made = fed(precision="fast").merge(fed())
        on_host(()).load_state_dict(made.state_dict())
        assert made.n == 2 * N

    def test_other_numbers_of_labels(self, defined: None) -> None:
        made = gl.LogitPairs(**EXACT).update(*tensors(H1, H1))
        with pytest.raises(ValueError, match=r"LogitPairs\.update: expected 9 labels, as before, got 6"):
            made.update(*tensors(H2, H2))
        assert made.finalize().labels == 9

    def test_interruption_keeps_what_is_on_its_way(self, defined: None, monkeypatch: pytest.MonkeyPatch) -> None:
        made = fed()

        def interrupted(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(RowTable, "of", interrupted)
            with pytest.raises(KeyboardInterrupt):
                made.finalize()
        assert made.finalize().to_dict() == fed().finalize().to_dict()

    @pytest.mark.parametrize(("name", "most"), [("PENDING_BATCHES", 3), ("PENDING_BYTES", 4000)])
    def test_is_bounded(self, defined: None, monkeypatch: pytest.MonkeyPatch, name: str, most: int) -> None:
        monkeypatch.setattr(async_host_copies, name, most)
        made, want = stream(), gl.LogitPairs(W1, W2)
        for _ in range(20):
            made.update(*tensors(H1[:7], H2[:7]))
            want.update(H1[:7], H2[:7])
            arrivals = made._pending._arrivals
            assert len(arrivals) <= 3
            assert arrivals.nbytes <= 4000
        assert len(arrivals) > 1
        assert_same(made.finalize(), want.finalize())
        made.update(*tensors(H1, H2))
        assert made._pending._arrivals.nbytes > 4000


class TestContract(contract.AccumulatorContract):
    """What every accumulator promises, in updates that arrive late."""

    @pytest.fixture
    def subject(self, defined: None) -> contract.Subject:
        host = logit_pairs_subject(*pair_rows())
        rng = np.random.default_rng(9)
        w1, w2 = rng.standard_normal((30, 13)), rng.standard_normal((30, 7))
        # what is not finite is told later
        refused = [case for case in host.refused if "non-finite" not in case[2]]
        return contract.Subject(
            "LogitPairs on a GPU", lambda: gl.LogitPairs(w1, w2, **EXACT), host.rows, host.values, host.scales, refused
        )


class Passed:
    """An event of a device that has come so far, or not."""

    def __init__(self) -> None:
        self.passed, self.waited = False, False

    def query(self) -> bool:
        return self.passed

    def synchronize(self) -> None:
        self.waited = not self.passed


class TestArrivals:
    def sent(self, count: int) -> tuple[AsyncHostCopies, list[Passed]]:
        arrivals, events = AsyncHostCopies(), [Passed() for _ in range(count)]
        for k, event in enumerate(events):
            arrivals.send({"k": torch.full((3,), k)}, k)
            arrivals._pending[k] = arrivals._pending[k]._replace(event=event)
        return arrivals, events

    def test_kinds(self) -> None:
        arrivals = AsyncHostCopies()
        given = {
            "f": np.array([np.nan, -0.0, 1e-310]),
            "i": np.array([-1, 2**62 + 1, 7]),
            "b": np.array([True, False, True]),
        }
        arrivals.send({name: torch.from_numpy(a) for name, a in given.items()} | {"h": torch.arange(3).half() / 2}, "x")
        ((flat, about),) = arrivals.all()
        assert about == "x"
        for name, values in given.items():
            bounds.assert_same_bits(flat[name], values, name)
        np.testing.assert_array_equal(flat["h"], [0, 0.5, 1])

    def test_in_order_and_without_a_wait(self) -> None:
        arrivals, events = self.sent(4)
        events[1].passed = True
        assert list(arrivals.arrived()) == []
        events[0].passed = True
        assert [about for _, about in arrivals.arrived()] == [0, 1]
        assert not any(event.waited for event in events)
        assert [(int(flat["k"][0]), about) for flat, about in arrivals.all()] == [(2, 2), (3, 3)]
        assert [event.waited for event in events] == [False, False, True, True]

    def test_too_many(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(async_host_copies, "PENDING_BATCHES", 2)
        arrivals, events = self.sent(5)
        assert [about for _, about in arrivals.arrived()] == [0, 1, 2]
        assert [event.waited for event in events] == [True, True, True, False, False]


@pytest.fixture
def untold(on_gpu: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[gl.LogitPairs]:
    """A stream of which nothing comes; from then on no tensor may be looked at."""
    monkeypatch.setattr(AsyncHostCopies, "_has_come", lambda _: False)
    made = stream()
    with monkeypatch.context() as patch:
        device.forbid_looks(patch)
        yield made


class TestNoUpdateWaits:
    @pytest.mark.parametrize("kinds", [("int64", "bool"), ("int32", None), (None, "bool"), (None, None)], ids=str)
    @pytest.mark.parametrize("here", [True, False])
    def test_update(self, untold: gl.LogitPairs, kinds: tuple[Any, Any], here: bool) -> None:
        made, arrays = untold, tensors(np.ones((N, 9)), np.ones((N, 6)))
        targets, mask = kinds
        given: dict[str, Any] = {"targets": targets and np.zeros(N, targets), "mask": mask and np.arange(N) > 5}
        if not here:
            given = {name: None if a is None else device.tensor(a) for name, a in given.items()}
        for _ in range(5):
            assert made.update(*arrays, **given) is made
        for read in (made.finalize, made.state_dict, lambda: made.n, lambda: pickle.dumps(made)):
            with pytest.raises(AssertionError, match="waited"):
                read()


class TestDevices:
    def test_one_of_them(self, on_gpu: None) -> None:
        text = "expected h1 and w1 on the same device, got h1 on {} and w1 on {}"
        ways = text.format("the host", "cuda:0"), text.format("cuda:0", "the host")
        with pytest.raises(RuntimeError, match=rf"^LogitPairs\.update: {ways[0]}"):
            gl.LogitPairs(*tensors(W1, W2)).update(H1, H2)
        with pytest.raises(RuntimeError, match=rf"^LogitPairs\.update: {ways[1]}"):
            gl.LogitPairs(W1, W2).update(*tensors(H1, H2))
        with pytest.raises(RuntimeError, match=f"^compare_logits: {ways[0]}"):
            gl.compare_logits(H1, device.tensor(W1), H2, W2)

    def test_backends_of_the_host(self, on_gpu: None) -> None:
        for backend in ("cpu", "reference"):
            with pytest.raises(RuntimeError, match=f"backend='{backend}' reads host memory, .* on cuda:0"):
                gl.LogitPairs(*tensors(W1, W2), backend=backend).update(*tensors(H1, H2))

    def test_fingerprints_do_not_tell_devices(self, on_gpu: None) -> None:
        assert stream()._fingerprint == gl.LogitPairs(W1, W2)._fingerprint

    @pytest.mark.parametrize(
        "call", [lambda p: gl.LogitPairs(precision=p), lambda p: gl.compare_logits(*MODELS, precision=p)]
    )
    def test_precision(self, call: Callable[[Any], Any]) -> None:
        with pytest.raises(ValueError, match="precision to be one of 'fast', 'high', 'exact', got 'low'"):
            call("low")
        with pytest.raises(TypeError, match="precision"):
            call(None)

    def test_precision_and_workspace_reach_the_kernel(self, monkeypatch: pytest.MonkeyPatch) -> None:
        told: list[Any] = []

        def noting(*heads: Any, **keywords: Any) -> dict[str, Any]:
            told.append((keywords["precision"], keywords["workspace"]))
            return by_definition(*heads, **keywords)

        monkeypatch.setattr(ops, "unread_logit_pairs", noting)
        fed(precision="fast", workspace=1000).finalize()
        gl.compare_logits(*tensors(*MODELS), precision="exact", workspace=999, backend=BACKEND)
        assert told == [("fast", 1000)] * 3 + [("exact", 999)]


def test_faults_of_one_process_are_told_by_all(tmp_path: Path) -> None:
    program = """
from support import device
device.interpret_without_gpu()
from gramless import ops
from support.late_batches import H1, H2, by_definition, spoiled, stream, tensors
ops.unread_logit_pairs = by_definition
made = stream().update(*tensors(H1, H2))
if rank == 1:
    made.update(*tensors(spoiled(H1, 3), H2))
for _ in range(2):
    try:
        print(made.all_reduce().n)
    except (RuntimeError, ValueError) as error:
        print(error)
"""
    first, second = launch(program, 2, tmp_path)
    assert "process 1 has an error: ValueError: LogitPairs.all_reduce: in update 2, h1 has non-finite values" in first
    assert "LogitPairs.all_reduce: in update 2, h1 has non-finite values" in second
    assert first.splitlines()[1:] == second.splitlines()[1:] == [str(2 * N)]
