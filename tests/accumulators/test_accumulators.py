"""Every accumulator under one contract, and what only some of them promise."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gramless as gl
from gramless.states.moments import MomentState
from support import bounds, cases, contract, judge, oracle
from support.backends import Backend, as_torch
from support.contract import Subject
from support.subjects import PAIR, logit_pairs_subject, pair_rows

LAYERS = ("in", "mid", "out")


def layer_rows() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    rng = np.random.default_rng(8)
    latent = rng.standard_normal((260, 5))
    widths = {"in": 6, "mid": 9, "out": 4}
    return tuple(
        {f"{side}.{k}": latent @ rng.standard_normal((5, p)) + rng.standard_normal((260, p)) for k, p in widths.items()}
        for side in "ab"
    )


def state_values(state: MomentState) -> dict[str, np.ndarray]:
    """The state about a fixed pivot: which one it chose is not part of the contract."""
    flat = state.translate(np.full(13, 0.5), np.full(7, -0.5)).to_dict()
    return {key: value for key, value in flat.items() if key != "format" and not key.endswith("pivot")}


def state_scales(rows: contract.Rows) -> dict[str, np.ndarray]:
    x, y = rows
    extremes = [(x.min(0), y.max(0)), (x.max(0), y.min(0)), (np.full(13, 0.5), np.full(7, -0.5))]
    scales = oracle.translation_scales(x, y, *extremes)
    own = MomentState.from_dict(gl.moments(x, y, backend="reference").to_dict()).to_dict()
    names = {key: judge.kernel_names({key: None}) for key in own if key != "format" and not key.endswith("pivot")}
    return {key: scales[next(iter(name))] if key != "n" else np.array(260) for key, name in names.items()}


def matrix_values(matrix: gl.SimilarityMatrix) -> dict[str, np.ndarray]:
    return {"values": matrix.values, "n": matrix.n, "layers": "/".join(matrix.layers_x + matrix.layers_y)}


def grid_subject(name: str, rows: contract.Rows) -> Subject:
    xs, ys = rows
    first = next(iter(xs))
    count = len(xs if ys is None else ys)
    bad = {k: np.full_like(v[:9], np.nan) if k == first else v[:9] for k, v in xs.items()}
    ys_of_bad = contract.cut(ys, 0, 9)
    return Subject(
        name,
        gl.LayerGrid,
        rows,
        matrix_values,
        lambda _: {"values": np.full((len(xs), count), bounds.CKA_TERMS), "n": np.array(1.0)},
        (
            (({k: v[:, :-1] for k, v in xs.items()}, ys), ValueError, "features"),
            (({k: v for k, v in xs.items() if k != first}, ys), ValueError, "missing: x/"),
            ((xs | {"extra": xs[first]}, ys), ValueError, "unknown: x/extra"),
            (({k: v[:5] if k == first else v[:6] for k, v in xs.items()}, ys), ValueError, "number of rows"),
            ((bad, ys_of_bad), ValueError, "non-finite"),
            ((3, ys), TypeError, "layers"),
        ),
    )  # fmt: skip


def logit_distance_subject(h1: np.ndarray, h2: np.ndarray) -> Subject:
    rng = np.random.default_rng(9)
    pair = gl.UnembeddingPair(rng.standard_normal((30, 13)), rng.standard_normal((30, 7)))
    poisoned = h2[:9].copy()
    poisoned[5, 2] = np.inf

    def numbers(value: float, stderr: float, mean_square: float, n: int) -> dict[str, np.ndarray]:
        made = {"value": value, "stderr": stderr, "mean_square": mean_square, "n": n}
        return {name: np.array(float(number)) for name, number in made.items()}

    whole = gl.LogitDistance(pair).update(h1, h2).finalize()
    return Subject(
        "LogitDistance",
        lambda: gl.LogitDistance(pair),
        (h1, h2),
        lambda result: numbers(**vars(result)),
        lambda _: numbers(**vars(whole)),
        (
            ((h1[:5], h2[:6]), ValueError, "same number of rows"),
            ((h1[:5, :12], h2[:5]), ValueError, "hidden size 13"),
            ((h1[:5], h2[:5, :3]), ValueError, "hidden size 7"),
            ((h1[:9], poisoned), ValueError, "h2 has non-finite values in row 5"),
            ((h1[:5].astype(np.int64), h2[:5]), TypeError, "dtype"),
            ((h1[:5], h2[0]), ValueError, "2-d"),
            (("rows", h2[:5]), TypeError, "array"),
        ),
    )


def subjects() -> list[Subject]:
    x, y = pair_rows()
    xs, ys = layer_rows()
    poisoned = x[:9].copy()
    poisoned[5, 2] = np.nan
    return [
        Subject(
            "Moments",
            gl.Moments,
            (x, y),
            state_values,
            state_scales,
            (
                ((x[:5], y[:6]), ValueError, "same number of rows"),
                ((x[:5, :12], y[:5]), ValueError, "features"),
                ((x[:5], y[:5, :3]), ValueError, "features"),
                ((poisoned, y[:9]), ValueError, "non-finite"),
                ((x[:5].astype(np.int64), y[:5]), TypeError, "dtype"),
                ((x[:5], y[0]), ValueError, "2-d"),
                (("rows", y[:5]), TypeError, "array"),
            ),
        ),
        logit_distance_subject(x, y),
        logit_pairs_subject(x, y),
        grid_subject("LayerGrid of two models", (xs, ys)),
        grid_subject("LayerGrid of one model", (xs, None)),
    ]


class TestContract(contract.AccumulatorContract):
    @pytest.fixture(params=subjects(), ids=str)
    def subject(self, request: pytest.FixtureRequest) -> Subject:
        return request.param


@pytest.mark.parametrize("subject", subjects(), ids=str)
class TestNames:
    """What all share speaks in the name of the class that the caller knows."""

    def test_another_kind(self, subject: Subject) -> None:
        kind = type(subject.make()).__name__
        what = f"{kind} of the same mode" if kind == "LayerGrid" else kind
        with pytest.raises(TypeError, match=rf"^{kind}\.merge: expected another {what}, got str$"):
            subject.make().merge("rows")

    def test_no_rows(self, subject: Subject) -> None:
        kind = type(subject.make()).__name__
        with pytest.raises(ValueError, match=rf"^{kind}\.finalize: no rows yet, update first$"):
            subject.make().finalize()

    def test_no_processes(self, subject: Subject) -> None:
        kind = type(subject.make()).__name__
        with pytest.raises(RuntimeError, match=rf"^{kind}\.all_reduce: .* is not initialised; call init_"):
            subject.make().all_reduce()

    def test_other_state(self, subject: Subject) -> None:
        kind = type(subject.make()).__name__
        with pytest.raises(TypeError, match=rf"^{kind}\.load_state_dict: expected a dict, got list$"):
            subject.make().load_state_dict([1])


@pytest.mark.filterwarnings("ignore:overflow encountered in square:RuntimeWarning")
@pytest.mark.parametrize("make", [logit_distance_subject, logit_pairs_subject])
def test_rows_whose_squares_overflow_come_back(make: Callable[[np.ndarray, np.ndarray], Subject]) -> None:
    subject = make(*pair_rows())
    full, restored = contract.fed(subject, [tuple(1e90 * rows for rows in subject.rows)]), subject.make()
    restored.load_state_dict(full.state_dict())
    bounds.assert_same_dicts(restored.state_dict(), full.state_dict(), "restored")
    assert np.inf in subject.values(restored.finalize()).values()


class TestMoments:
    @pytest.mark.parametrize("dtype", list(cases.DTYPES))
    def test_is_the_state_of_one_pass(self, backend: Backend, dtype: str) -> None:
        x, y = PAIR.arrays(dtype)
        one = gl.Moments(backend=backend.name).update(x, y).finalize()
        bounds.assert_same_dicts(one.to_dict(), gl.moments(x, y, backend=backend.name).to_dict(), "one update")

    @pytest.mark.parametrize("dtype", list(cases.DTYPES))
    @pytest.mark.parametrize("size", [1, 3, 50, 128])
    def test_stream_is_no_worse_than_naive(self, backend: Backend, size: int, dtype: str) -> None:
        x, y = PAIR.arrays(dtype)
        stream = gl.Moments(backend=backend.name)
        for start in range(0, len(x), size):
            stream.update(x[start : start + size], y[start : start + size])
        judge.assert_state(stream.finalize(), x, y)

    @pytest.mark.parametrize(("n", "size"), [(200, 64), (203, 50), (201, 50)])
    def test_an_uneven_last_batch_counts_as_its_rows(self, n: int, size: int) -> None:
        """Peers that average over batches divide by zero on a last batch of 3, or weigh it like a full one."""
        x, y = (a[:n] for a in PAIR.arrays("fp64"))
        stream = gl.Moments()
        for start in range(0, n, size):
            stream.update(x[start : start + size], y[start : start + size])
        bounds.assert_relative(gl.cka(stream.finalize()), oracle.dense_cka(x, y), bounds.SAME_FP64)

    @given(st.lists(st.integers(1, 260), max_size=8, unique=True), st.sampled_from(sorted(cases.DTYPES)))
    def test_any_cut_gives_the_same_cka(self, cuts: list[int], dtype: str) -> None:
        x, y = PAIR.arrays(dtype)
        stream = gl.Moments()
        for a, b in zip(np.split(x, sorted(cuts)), np.split(y, sorted(cuts)), strict=True):
            stream.update(a, b)
        bounds.assert_relative(gl.cka(stream.finalize()), gl.cka(x, y), bounds.bound_for(x.dtype))

    def test_dtypes_may_change_between_batches(self) -> None:
        x, y = PAIR.arrays("fp64")
        stream = gl.Moments()
        seen_x, seen_y = [], []
        for start, dtype in zip(range(0, 260, 65), ("bf16", "fp64", "fp32", "fp16"), strict=True):
            a, b = (z[start : start + 65].astype(cases.DTYPES[dtype]) for z in (x, y))
            stream.update(a, b)
            seen_x.append(a.astype(np.float64))
            seen_y.append(b.astype(np.float64))
        truth = oracle.dense_cka(np.concatenate(seen_x), np.concatenate(seen_y))
        bounds.assert_relative(gl.cka(stream.finalize()), truth, bounds.FIRST_FP32)

    def test_torch_batches(self) -> None:
        x, y = PAIR.arrays("bf16")
        stream = gl.Moments()
        for start in range(0, 260, 100):
            stream.update(as_torch(x[start : start + 100]), as_torch(y[start : start + 100]))
        bounds.assert_relative(gl.cka(stream.finalize()), oracle.dense_cka(x, y), bounds.FIRST_FP32)

    def test_a_reused_buffer(self) -> None:
        """Loaders overwrite their buffers: nothing of a batch may be read after update returns."""
        x, y = PAIR.arrays("fp32")
        buffer_x, buffer_y = np.empty((65, 13), np.float32), np.empty((65, 7), np.float32)
        stream = gl.Moments()
        for start in range(0, 260, 65):
            buffer_x[...], buffer_y[...] = x[start : start + 65], y[start : start + 65]
            stream.update(buffer_x, buffer_y)
        buffer_x[...] = np.nan
        judge.assert_state(stream.finalize(), x, y)

    def test_state_dict_is_that_of_the_state(self) -> None:
        x, y = PAIR.arrays("fp64")
        stream = gl.Moments().update(x, y)
        bounds.assert_same_dicts(stream.state_dict(), stream.finalize().to_dict(), "state_dict")
        assert MomentState.from_dict(stream.state_dict()).n == 260

    def test_what_it_hands_out_cannot_change_it(self) -> None:
        x, y = PAIR.arrays("fp64")
        stream = gl.Moments().update(x, y)
        before = stream.state_dict()
        state = stream.finalize()
        for part in (state.x, state.y, state.cross):
            for name, value in vars(part).items():
                if name != "n":
                    with pytest.raises(ValueError, match="read-only"):
                        value[...] = 0.0
        torch_stream = gl.Moments()
        torch_stream.load_state_dict({key: torch.from_numpy(value.copy()) for key, value in before.items()})
        torch_stream.finalize().x.second[...] = 0.0
        for kept in (stream, torch_stream):
            found = {key: np.asarray(value) for key, value in kept.state_dict().items()}
            bounds.assert_same_dicts(found, before, "after writing into the result")

    def test_repr(self) -> None:
        x, y = PAIR.arrays("fp64")
        assert repr(gl.Moments()) == "Moments(n=0)"
        assert repr(gl.Moments().update(x, y)) == "Moments(n=260, p=13, q=7)"
        for mode in ("exact", "minibatch"):
            assert repr(gl.LayerGrid(mode)) == f"LayerGrid({mode!r}, n=0, layers=0 x 0)"
            assert repr(gl.LayerGrid(mode).update([x, y], [x])) == f"LayerGrid({mode!r}, n=260, layers=2 x 1)"
            assert repr(gl.LayerGrid(mode).update([x, y, x])) == f"LayerGrid({mode!r}, n=260, layers=3 x 3)"

    def test_merging_into_each_other_at_once(self) -> None:
        """Two threads that each wait for what the other holds would hang."""
        x, y = PAIR.arrays("fp64")
        streams = [gl.Moments().update(x, y) for _ in range(2)]

        def merge(k: int) -> None:
            streams[k].merge(streams[1 - k])

        with ThreadPoolExecutor(2) as pool:
            for _ in range(20):
                for stream in streams:
                    stream.reset()
                    stream.update(x, y)
                for job in [pool.submit(merge, k) for k in range(2)]:
                    job.result(timeout=30)
                assert sorted(stream.n for stream in streams) in ([520, 520], [520, 780])

    def test_rows_are_counted(self) -> None:
        x, y = PAIR.arrays("fp64")
        stream = gl.Moments().update(x[:1], y[:1])
        assert stream.finalize().n == 1
        assert stream.update(x[1:4], y[1:4]).finalize().n == 4
        with pytest.raises(ValueError, match="n = 1"):
            gl.cka(gl.Moments().update(x[:1], y[:1]).finalize())

    def test_interruption_keeps_the_rows_so_far(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from gramless import ops

        x, y = PAIR.arrays("fp64")
        stream = gl.Moments().update(x[:100], y[:100])
        before = stream.state_dict()

        def interrupted(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(ops, "moments", interrupted)
            with pytest.raises(KeyboardInterrupt):
                stream.update(x[100:], y[100:])
        bounds.assert_same_dicts(stream.state_dict(), before, "after an interruption")


class TestLayerGridStream:
    @pytest.mark.parametrize("modes", [("exact", "minibatch"), ("minibatch", "exact")])
    def test_another_mode_is_refused(self, modes: tuple[str, str]) -> None:
        mine, theirs = (gl.LayerGrid(mode).update(*layer_rows()) for mode in modes)
        before = mine.state_dict()
        with pytest.raises(TypeError, match=r"^LayerGrid\.merge: .* of the same mode, got one of another mode$"):
            mine.merge(theirs)
        with pytest.raises(ValueError, match=r"^LayerGrid\.load_state_dict: expected a state of format"):
            mine.load_state_dict(theirs.state_dict())
        bounds.assert_same_dicts(mine.state_dict(), before, "after refusals")

    @pytest.mark.parametrize("when", ["in the kernel", "before the sums are added"])
    def test_interruption_keeps_the_rows_so_far(self, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
        """No layer may be ahead of the others."""
        from gramless import ops
        from gramless.states.layer_table import LayerTable

        xs, ys = layer_rows()
        first, second = contract.pieces((xs, ys), (160, 100))
        grid = gl.LayerGrid().update(*first)
        before = grid.state_dict()

        def interrupted(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(
                *((ops, "layer_moments") if when == "in the kernel" else (LayerTable, "added_to")), interrupted
            )
            with pytest.raises(KeyboardInterrupt):
                grid.update(*second)
        bounds.assert_same_dicts(grid.state_dict(), before, "after an interruption")

    def test_stream_is_the_matrix(self, backend: Backend) -> None:
        xs, ys = layer_rows()
        grid = gl.LayerGrid(backend=backend.name)
        for batch in contract.pieces((xs, ys), (100, 3, 157)):
            grid.update(*batch)
        want = gl.cka_matrix(xs, ys, backend=backend.name).values
        bounds.assert_within_algebra(grid.finalize().values, want, np.full_like(want, bounds.CKA_TERMS))
