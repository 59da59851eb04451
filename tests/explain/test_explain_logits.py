"""What `explain` says of predictions is what runs, what that reads, and what it takes of memory."""

from __future__ import annotations

import importlib
import inspect
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import scipy.linalg

import gramless as gl
from gramless import _core
from gramless.explain import logit_costs
from gramless.ops import backends as ops_backends
from gramless.predictions import stacked_weights
from support import backends, cases
from support.heads import models

FUNCTIONS = ("logsumexp", "logit_pairs", "compare_logits", "logit_distance")
# N = 90 rows, V = 300 labels
H1, W1, H2, W2 = models(300, 12, 9, 90, "fp32")
ROWS, LABELS = np.arange(90) % 3 > 0, np.arange(300)[::-7]
MASKED, SLOPE = np.where(np.arange(300) % 5 == 0, -np.inf, 0.5), np.linspace(1, 2, 300)
# as the module, which has the name of its function
DISTANCE = importlib.import_module("gramless.predictions.logit_distance")


def arguments(function: str, h1: Any = H1, w1: Any = W1, h2: Any = H2, w2: Any = W2) -> tuple[Any, ...]:
    return (h1, w1) if function == "logsumexp" else (h1, w1, h2, w2)


def named(value: Any) -> str:
    """The name of a test."""
    return "+".join(value) if isinstance(value, dict) else str(value)


def row_bytes(*arrays: Any) -> int:
    return sum(a.shape[1] * a.dtype.itemsize for a in arrays)


@dataclass
class Work:
    """What was multiplied and read: flops, and bytes of arrays of the call."""

    flops: int = 0
    read: int = 0
    calls: int = 0

    def clear(self) -> None:
        self.flops = self.read = self.calls = 0

    def add(self, flops: int, read: int) -> None:
        self.flops += int(flops)
        self.read += int(read)
        self.calls += 1

    def of_logits(self, backend: str, arrays: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        """Of a pass: labels are read for each block of rows, and all of it twice for divergences of no kept logits."""
        hs, ws = arrays[::2], arrays[1::2]
        possible = np.zeros(hs[0].shape[1] if ws[0] is None else len(ws[0]), dtype=bool)
        for bias in (keywords[name] for name in ("b", "b1", "b2") if name in keywords):
            possible |= True if bias is None else bias > -np.inf
        labels = int(possible.sum() if keywords["labels"] is None else possible[keywords["labels"]].sum())
        n = len(hs[0]) if keywords["mask"] is None else int(keywords["mask"].sum())
        widths = [0 if w is None else w.shape[1] for w in ws]
        item = 8 if any(a is not None and a.dtype == np.float64 for a in arrays) else 4
        block, times = n, 1
        if backend != "reference":
            block = _core.logit_block_rows(n, labels, sum(widths), float64=item == 8)
            if keywords.get("divergences"):
                held = (keywords["workspace"] or 64 << 20) // (2 * labels * item)
                times = 1 if held >= n or held >= 64 else 2
                block = min(block, held) if times == 1 else block
        of_rows = sum(labels * h.dtype.itemsize if w is None else row_bytes(h) for h, w in zip(hs, ws, strict=True))
        of_labels = sum(row_bytes(w) for w in ws if w is not None)
        self.add(2 * times * n * labels * sum(widths), times * (n * of_rows + -(-n // block) * labels * of_labels))


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    """Count the work of the kernels, and of the factor of two unembeddings: sums, triangle and products."""
    done, resolve = Work(), ops_backends.resolve
    squares, right, fingerprint = (
        gl.UnembeddingPair._squares,
        stacked_weights.Columns.right,
        stacked_weights.Columns.fingerprint,
    )
    cholesky = scipy.linalg.lapack.dpotrf

    def resolved(stem: str, backend: str, *more: Any, **keywords: Any) -> ops_backends.Choice:
        chosen = resolve(stem, backend, *more, **keywords)

        def kernel(*arrays: Any, **options: Any) -> Any:
            if stem == "moments":
                (n, p), q = arrays[0].shape, arrays[1].shape[1]
                done.add(n * (p * (p + 1) + q * (q + 1) + 2 * p * q), 0)
            else:
                done.of_logits(chosen.backend, arrays, options)
            return chosen.kernel(*arrays, **options)

        return ops_backends.Choice(chosen.backend, chosen.why, kernel)

    def multiplied(self: Any, function: str, h1: Any, h2: Any, mask: Any = None) -> Any:
        n = len(h1) if mask is None else int(mask.sum())
        products = sum(self.factor[rows, columns].size for rows, columns in self._panels)
        done.add(2 * n * products, n * row_bytes(h1, h2))
        return squares(self, function, h1, h2, mask)

    def differences(self: Any, w1: Any, w2: Any, *more: Any) -> None:
        done.add(0, len(w1) * row_bytes(w1, w2))
        right(self, w1, w2, *more)

    def all_read(self: Any, *digests: Any) -> str:
        if not digests:
            done.add(0, self.count * row_bytes(self.w1, self.w2))
        return fingerprint(self, *digests)

    def factored(a: Any, **options: Any) -> Any:
        done.add(len(a) ** 3 // 3, 0)
        return cholesky(a, **options)

    monkeypatch.setattr(ops_backends, "resolve", resolved)
    monkeypatch.setattr(gl.UnembeddingPair, "_squares", multiplied)
    monkeypatch.setattr(stacked_weights.Columns, "right", differences)
    monkeypatch.setattr(stacked_weights.Columns, "fingerprint", all_read)
    monkeypatch.setattr(scipy.linalg.lapack, "dpotrf", factored)
    return done


def assert_is_what_runs(work: Work, function: str, arrays: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    said = gl.explain(function, *arrays, **keywords)
    assert work == Work(), "explaining is no work"
    getattr(gl, function)(*arrays, **keywords)
    assert work.calls
    assert (said.flops, said.bytes_read) == (work.flops, work.read)
    assert said.path.startswith(f"{function} <- ")
    return said


class TestWork:
    """Flops and bytes read, to the last one."""

    @pytest.mark.parametrize(
        ("function", "keywords"),
        [
            *[(function, keywords) for function in FUNCTIONS for keywords in (
                {},
                {"labels": LABELS},
                {"mask": ROWS},
                {"labels": LABELS, "mask": ROWS, "temperature": 2.0},
            )],
            ("logsumexp", {"b": MASKED}),
            ("logsumexp", {"b": MASKED, "labels": LABELS, "targets": np.full(90, -1), "softcap": 3.0}),
            ("logit_pairs", {"b1": MASKED}),
            ("logit_pairs", {"b1": MASKED, "b2": 2 * MASKED, "divergences": True}),
            ("logit_pairs", {"divergences": True, "workspace": 1}),
            ("logit_pairs", {"divergences": True, "workspace": 70 * 2 * 300 * 4}),
            ("compare_logits", {"divergences": False}),
            ("compare_logits", {"batch_rows": 40}),
            ("compare_logits", {"batch_rows": 30, "mask": np.arange(90) // 30 != 1, "keep_rows": True}),
            ("compare_logits", {"batch_rows": 40, "workspace": 1, "targets": np.arange(90), "ignore_index": 3}),
            ("logit_distance", {"method": "vocabulary", "b1": MASKED, "b2": MASKED * SLOPE}),
            ("logit_distance", {"method": "factor", "b1": MASKED, "b2": MASKED * SLOPE}),
            ("logit_distance", {"method": "factor", "labels": np.arange(21)}),
            ("logit_distance", {"method": "factor", "labels": np.arange(22), "rows": True}),
        ],
        ids=named,
    )  # fmt: skip
    def test_is_what_runs(self, function: str, keywords: dict, work: Work, backend: backends.Backend) -> None:
        arrays = arguments(function)
        if function == "logit_distance":
            # rows of the vocabulary are taken in float64
            arrays = tuple(a.astype(np.float64) for a in arrays)
        said = assert_is_what_runs(work, function, arrays, keywords | {"backend": backend.name})
        numpy = keywords.get("method") == "factor" and keywords.get("labels", [0])[-1] == 20
        assert said.backend == ("numpy" if numpy else backend.name)
        assert said.why.startswith("no more labels than columns" if numpy else "asked for")

    @pytest.mark.parametrize(
        ("function", "shapes", "keywords"),
        [
            # several blocks of rows, for each of which labels are read
            ("logsumexp", (10_000, 20, 2, 1), {}),
            ("logit_pairs", (1300, 5, 4000, 4200), {}),
            ("logit_pairs", (1300, 5, 4000, 4200), {"divergences": True, "workspace": 1}),
            ("logit_pairs", (1300, 50, 400, 420), {"divergences": True, "workspace": 200 * 2 * 50 * 4}),
            ("logit_distance", (1300, 5, 2000, 2100), {"method": "vocabulary"}),
            # a factor in several pieces, of several blocks of labels
            ("logit_distance", (20, 20_000, 300, 200), {"method": "factor"}),
            ("logit_distance", (20, 700, 500, 400), {"method": "factor"}),
        ],
        ids=named,
    )
    def test_of_blocks(self, function: str, shapes: tuple[int, ...], keywords: dict, work: Work) -> None:
        n, v, d1, d2 = shapes
        dtype = "fp64" if function == "logit_distance" else "fp32"
        assert_is_what_runs(work, function, arguments(function, *models(v, d1, d2, n, dtype)), keywords)

    @pytest.mark.parametrize("function", FUNCTIONS)
    def test_of_logits_that_are_given(self, function: str, work: Work, backend: backends.Backend) -> None:
        dtype = np.float64 if function == "logit_distance" else np.float32
        arrays = arguments(function, (H1 @ W1.T).astype(dtype), None, (H2 @ W2.T).astype(np.float64), None)
        said = assert_is_what_runs(work, function, arrays, {"backend": backend.name})
        assert said.flops == 0
        assert "logits h" in said.path

    def test_of_logits_beside_hidden_states(self, work: Work) -> None:
        assert_is_what_runs(work, "logit_pairs", (H1, W1, H2 @ W2.T, None), {"labels": LABELS})
        assert work.flops == 2 * 90 * len(LABELS) * 12

    def test_of_rows_that_are_copied(self, monkeypatch: pytest.MonkeyPatch, work: Work) -> None:
        """Those of the vocabulary, block by block in float64, are read as they are."""
        for module in (DISTANCE, logit_costs):
            monkeypatch.setattr(module, "_BLOCK_BYTES", 8 * 12 * 20)
        said = assert_is_what_runs(
            work, "logit_distance", tuple(a.astype(np.float64) for a in (H1, W1, H2, W2)), {"method": "vocabulary"}
        )
        assert said.bytes_read == 90 * 8 * (12 + 9) + 5 * 300 * 8 * (12 + 9)
        narrow = gl.explain("logit_distance", H1, W1, H2, W2, method="vocabulary")
        assert narrow.bytes_read == said.bytes_read // 2
        assert narrow.flops == said.flops

    def test_of_a_pair(self, work: Work, backend: backends.Backend) -> None:
        pair = gl.UnembeddingPair(W1, W2)
        work.clear()
        keywords = {"pair": pair, "mask": ROWS, "backend": backend.name}
        alone = assert_is_what_runs(work, "logit_distance", (H1, None, H2, None), keywords)
        work.clear()
        beside = assert_is_what_runs(work, "logit_distance", (H1, W1, H2, W2), keywords)
        assert beside.bytes_read - alone.bytes_read == W1.nbytes + W2.nbytes
        assert (alone.backend, beside.flops) == ("numpy", alone.flops)
        assert alone.path.startswith(f"logit_distance <- factor of {pair!r} h1 (90, 12) float32")
        assert "the factor is there" in alone.why

    def test_of_no_rows(self, backend: backends.Backend) -> None:
        for function in ("logsumexp", "logit_pairs"):
            arrays = arguments(function, h1=H1[:0], h2=H2[:0])
            said = gl.explain(function, *arrays, backend=backend.name)
            assert said.flops == 0
        assert gl.logit_pairs(H1[:0], W1, H2[:0], W2, divergences=True, backend=backend.name).n == 0
        assert gl.explain("logit_pairs", H1[:0], W1, H2[:0], W2, divergences=True, backend=backend.name).flops == 0

    def test_of_a_state(self, work: Work) -> None:
        state = gl.logit_pairs(H1, W1, H2, W2)
        work.clear()
        said = gl.explain("compare_logits", state)
        gl.compare_logits(state)
        assert (said.flops, work.flops) == (0, 0)
        assert said.bytes_read == state.nbytes
        assert said.path == f"compare_logits <- {state!r}"
        assert gl.explain("compare_logits", state, keep_rows=True).peak_extra_bytes > said.peak_extra_bytes


def poisoned(name: str, arrays: dict[str, Any], row: int) -> str:
    """The array that a pass refuses first where a row of h1 and a label of w1 are NaN."""
    h1, w1 = arrays["h1"].copy(), arrays["w1"].copy()
    h1[row, 0] = w1[0, 0] = np.nan
    names = inspect.signature(getattr(gl, name)).parameters
    wrong = arrays | {"h1": h1, "w1": w1, "h": h1, "w": w1}
    with pytest.raises(ValueError, match="non-finite") as refused:
        getattr(gl, name)(**{key: value for key, value in wrong.items() if key in names})
    return re.search(r" ([hw])1? has non-finite", str(refused.value))[1]


class TestKernel:
    """The kernel itself, asked from outside, since a formula in its stead might be wrong in both."""

    @pytest.mark.parametrize(
        ("function", "n", "v", "d1", "d2", "dtype", "keywords"),
        [
            ("logsumexp", 10_000, 3, 2, 1, "fp32", {}),
            ("logsumexp", 5_000, 3, 1500, 1, "fp32", {}),
            ("logit_pairs", 2_000, 3, 2000, 1500, "fp64", {}),
            ("logit_pairs", 2_000, 3, 2000, 1500, "fp32", {"divergences": True, "workspace": 1}),
            ("logit_pairs", 2_000, 50, 7, 5, "fp32", {"divergences": True, "workspace": 222 * 2 * 50 * 4}),
        ],
        ids=named,
    )
    def test_labels_are_read_so_often(
        self, function: str, n: int, v: int, d1: int, d2: int, dtype: str, keywords: dict
    ) -> None:
        """Rows are packed block by block: labels are refused after the rows of the first block, before all others."""
        arrays = dict(zip(("h1", "w1", "h2", "w2"), models(v, d1, d2, n, dtype), strict=True)) | keywords
        low, high = 0, n
        while high - low > 1:
            row = (low + high) // 2
            low, high = (row, high) if poisoned(function, arrays, row) == "h" else (low, row)
        used = arguments(function, *models(v, d1, d2, n, dtype))
        of_rows, of_labels = sum(h.nbytes for h in used[::2]), sum(w.nbytes for w in used[1::2])
        times = 2 if keywords.get("workspace") == 1 else 1
        assert 1 < high < n
        said = gl.explain(function, *used, **keywords)
        assert said.bytes_read == times * (of_rows + -(-n // high) * of_labels)

    @pytest.mark.parametrize("dtype", ["fp32", "fp64"])
    @pytest.mark.parametrize(("n", "held"), [(90, 90), (90, 89), (90, 64), (90, 63), (40, 40), (40, 39), (90, 0)])
    def test_logits_are_kept_if_it_says_so(self, n: int, held: int, dtype: str) -> None:
        """A second pass adds up block by block, to the bits of logit_divergences; logits that are kept do not."""
        h1, w1, h2, w2 = models(2000, 12, 9, n, dtype)
        workspace = max(1, held * 2 * len(w1) * w1.itemsize)
        options = {"divergences": True, "workspace": workspace}
        state = gl.logit_pairs(h1, w1, h2, w2, **options)
        again = gl.logit_divergences(h1, w1, h2, w2, state.lse_p, state.lse_q)
        twice = bool((state.js == again["js"]).all())
        said = gl.explain("logit_pairs", h1, w1, h2, w2, **options)
        assert said.flops == (2 if twice else 1) * 2 * n * len(w1) * (12 + 9)
        if twice:
            assert "; logits are computed twice, for js and tv: a workspace of " in said.why
            assert said.why.endswith(f"holds those of {held} rows, fewer than {min(n, 64)}")
        else:
            assert said.why.endswith(f"; logits of {held} rows at a time are kept for js and tv")
        assert twice == (held < min(n, 64))


class TestUnits:
    """Of bfloat16: the one in use, or none."""

    @pytest.fixture(params=[*_core.bf16_units(), "none"])
    def unit(self, request: pytest.FixtureRequest) -> Any:
        before = _core.bf16_unit()
        _core.set_bf16_unit(request.param)
        yield request.param
        _core.set_bf16_unit(before)

    @pytest.mark.parametrize("torch", [False, True])
    def test_which_is_in_use(self, unit: str, torch: bool) -> None:
        h, w = (a.astype(cases.DTYPES["bf16"]) for a in (H1, W1))
        if torch:
            h, w = map(backends.as_torch, (h, w))
        how = "widened to float32" if unit == "none" else f"multiplied by {unit}"
        assert gl.explain("logsumexp", h, w).why.endswith(f"; bfloat16 of h and w is {how}")
        both = gl.explain("logit_pairs", h, w, H2, W2).why
        assert both.endswith(f"; bfloat16 of h1 and w1 is {how}")
        wide = gl.explain("compare_logits", H2.astype(np.float64), W2, h, w).why
        assert "; bfloat16 of h2 and w2 is widened to float64; logits of" in wide
        gaps = gl.explain("logit_pairs", h[:, ::2], w[:, ::2], h, w).why
        assert gaps.endswith(f"; bfloat16 of h1 and w1 is widened to float32; bfloat16 of h2 and w2 is {how}")
        assert "bfloat16 of" not in gl.explain("logit_pairs", h, w, h, w, backend="reference").why
        assert "bfloat16 of" not in gl.explain("logit_pairs", h, W1, H1, w).why
        assert "bfloat16 of" not in gl.explain("logsumexp", h, None).why

    def test_packs_half_the_bytes(self, unit: str) -> None:
        h, w = (np.zeros((count, 512), cases.DTYPES["bf16"]) for count in (20_000, 3000))
        narrow = gl.explain("logsumexp", h, w).peak_extra_bytes
        wide = gl.explain("logsumexp", h.astype(np.float32), w).peak_extra_bytes
        assert (narrow == wide) if unit == "none" else (narrow < wide)


class TestWhy:
    def test_both_ways_of_a_distance(self) -> None:
        told = "(factor 1.72e+05 flops, vocabulary 1.13e+06)"
        said = gl.explain("logit_distance", H1, W1, H2, W2)
        assert said.path.startswith("logit_distance <- factor by moments h1 (90, 12) float32, w1 (300, 12) float32")
        assert f"; factor: {told[1:-1]}; three times its flops" in said.why
        asked = gl.explain("logit_distance", H1, W1, H2, W2, method="vocabulary")
        assert asked.path.startswith("logit_distance <- vocabulary by logit_pairs in float64 h1 (90, 12) float32")
        assert asked.why.endswith(f"; vocabulary: asked for {told}")
        few = gl.explain("logit_distance", H1[:3], W1, H2[:3], W2)
        assert few.path.startswith("logit_distance <- vocabulary by logit_pairs")
        assert "; vocabulary: factor " in few.why
        assert gl.explain("logit_distance", H1, W1, H2 @ W2.T, None).why.endswith("; vocabulary: logits are given")

    def test_what_counts(self) -> None:
        said = gl.explain("compare_logits", H1, W1, H2, W2, mask=ROWS, labels=LABELS, batch_rows=50)
        assert said.path == (
            "compare_logits <- logit_pairs of batches of 50 rows of h1 (90, 12) float32, w1 (300, 12) float32, "
            "h2 (90, 9) float32, w2 (300, 9) float32, of which 60 rows and 43 labels count"
        )
        assert gl.explain("logsumexp", H1, W1, b=MASKED).path.endswith("w (300, 12) float32, of which 240 labels count")

    @pytest.mark.parametrize("function", FUNCTIONS)
    def test_torch_arrays_are_the_same(self, function: str) -> None:
        for dtype in cases.DTYPES:
            arrays = arguments(function, *models(300, 12, 9, 90, dtype))
            assert gl.explain(function, *map(backends.as_torch, arrays)) == gl.explain(function, *arrays)
