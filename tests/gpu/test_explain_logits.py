"""What `explain` says of predictions on a GPU is what runs there, and what that reads."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

import gramless as gl
from gramless._triton.factor import factorization
from gramless._triton.factor import rows as factor_rows
from gramless._triton.logits import chunks
from gramless._triton.logits import products as logits_products
from gramless.explain import logit_costs
from support.backends import Backend
from support.logit_calls import arguments, choices, tensors
from support.selection import at_night

FUNCTIONS = ("logsumexp", "logit_pairs", "compare_logits", "logit_distance")
KIB = 1 << 10


@dataclass
class Work:
    """What was multiplied and read: flops of one product of planes, by hidden size, and bytes of arrays of the call."""

    products: Counter = field(default_factory=Counter)
    read: int = 0


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    """Count what the kernels are given."""
    done, products, sum_up = Work(), logits_products.products, chunks.Pass.sum_up
    rows_of, pack = factorization.Weights.rows, factor_rows.pack

    def multiplied(h: torch.Tensor, w: torch.Tensor, *more: Any) -> None:
        rows, labels = more[-1]
        done.products[h.shape[1]] += 2 * rows * labels * h.shape[1]
        done.read += h[:rows].nbytes + w[:labels].nbytes
        products(h, w, *more)

    def summed(self: Any, kernel: Any, chunk: Any, *more: Any) -> int:
        given = [head.h for head in self.heads if head.w is None]
        done.read += sum(chunk.rows * chunk.labels * h.element_size() for h in given)
        return sum_up(self, kernel, chunk, *more)

    def taken(self: Any, *bounds: int) -> Any:
        found = rows_of(self, *bounds)
        done.read += sum(w.nbytes for w in found)
        return found

    def packed(states: Any, *more: Any) -> Any:
        # rows that are done again are an exception
        if more[2] is None:
            done.read += states.h1.nbytes + states.h2.nbytes
        return pack(states, *more)

    monkeypatch.setattr(logits_products, "products", multiplied)
    monkeypatch.setattr(chunks.Pass, "sum_up", summed)
    monkeypatch.setattr(factorization.Weights, "rows", taken)
    monkeypatch.setattr(factor_rows, "pack", packed)
    return done


class TestWork:
    """Flops and bytes read, to the last one."""

    @pytest.mark.parametrize(
        ("function", "names", "keywords"),
        [
            ("logsumexp", "", {}),
            ("logsumexp", "b labels mask targets", {}),
            ("logit_pairs", "b1 labels mask", {}),
            ("logit_pairs", "", {"divergences": True}),
            ("logit_pairs", "b1 targets", {"divergences": True, "workspace": KIB}),
            ("logit_pairs", "labels", {"workspace": KIB}),
            ("compare_logits", "mask", {"batch_rows": 150, "workspace": 2100 * KIB}),
            ("compare_logits", "mask", {"batch_rows": 150, "workspace": 2100 * KIB, "divergences": False}),
            ("logit_distance", "mask labels b1 b2", {"method": "vocabulary"}),
        ],
        ids=str,
    )
    def test_is_what_runs(self, function: str, names: str, keywords: dict, gpu_backend: Backend, work: Work) -> None:
        options = choices(300, 600, names) | keywords | {"backend": gpu_backend.name}
        arrays = arguments(function, *tensors(300, 600, 8, 5, "float32"))
        said = gl.explain(function, *arrays, **options)
        assert work == Work(), "explaining is no work"
        getattr(gl, function)(*arrays, **options)
        # the distance is in float64
        times = 1 if function == "logit_distance" else 3
        assert (said.flops, said.bytes_read) == (times * work.products.total(), work.read)
        assert said.backend == gpu_backend.name
        assert said.path.startswith(f"{function} <- ")

    @pytest.mark.parametrize(
        ("dtypes", "precision", "times", "told"),
        [
            (("float32",), "fast", 1, "as one bfloat16 each"),
            (("float32",), "high", 3, "as two bfloat16 each, in three products"),
            (("float32",), "exact", 1, "in float64"),
            (("float64",), "fast", 1, "in float64"),
            (("bfloat16",), "high", 1, "as given, in bfloat16"),
            (("float16",), "fast", 1, "as given, in float16"),
            (("float16",), "exact", 1, "in float64"),
            (("bfloat16", "float32"), "high", 2, "as one and two bfloat16, in two products"),
            (("float16", "bfloat16"), "high", 2, "as two and one bfloat16, in two products"),
            (("float16", "bfloat16"), "fast", 1, "as one bfloat16 each"),
        ],
        ids=str,
    )
    def test_of_precisions(
        self, dtypes: tuple[str, ...], precision: str, times: int, told: str, gpu_backend: Backend
    ) -> None:
        h1, w1, h2, w2 = tensors(40, 70, 8, 5, *dtypes)
        options = {"precision": precision, "backend": gpu_backend.name}
        said = gl.explain("logit_pairs", h1, w1, h2, w2, **options)
        assert said.flops == times * 2 * 40 * 70 * (8 + 5)
        assert said.why == f"asked for, precision {precision!r}; both models are multiplied {told}"
        lone = gl.explain("logsumexp", h1, w1, **options)
        assert lone.why == said.why.replace("both models", "h and w")

    def test_of_models_of_two_kinds(self, gpu_backend: Backend) -> None:
        arrays = tensors(40, 70, 8, 5, "bfloat16", "bfloat16", "float32", "float32")
        said = gl.explain("logit_pairs", *arrays, backend=gpu_backend.name)
        told = (
            "; h1 and w1 are multiplied as given, in bfloat16; h2 and w2 are multiplied as two bfloat16 each, in three"
        )
        assert said.why.endswith(f"{told} products")
        assert said.flops == 2 * 40 * 70 * (8 + 3 * 5)

    def test_of_no_rows(self, gpu_backend: Backend) -> None:
        h1, w1, h2, w2 = tensors(40, 70, 8, 5, "float32")
        arrays, options = (h1[:0], w1, h2[:0], w2), {"divergences": True, "backend": gpu_backend.name}
        assert gl.logit_pairs(*arrays, **options).n == 0
        said = gl.explain("logit_pairs", *arrays, **options)
        assert (said.flops, said.bytes_read, said.why.count(";")) == (0, 0, 1)

    def test_of_logits_that_are_given(self, gpu_backend: Backend, work: Work) -> None:
        h1, w1, h2, w2 = tensors(40, 70, 8, 5, "float32")
        for second, flops in (((h2, w2), 3 * 2 * 40 * 70 * 5), ((h2 @ w2.T, None), 0)):
            arrays = h1 @ w1.T, None, *second
            for divergences in (False, True):
                options = {"divergences": divergences, "backend": gpu_backend.name}
                work.products.clear()
                work.read = 0
                gl.logit_pairs(*arrays, **options)
                said = gl.explain("logit_pairs", *arrays, **options)
                assert (said.flops, said.bytes_read) == (flops, work.read)
                assert ("; h2 and w2 are multiplied as two" in said.why) == (flops > 0)
                assert not re.search("h1 and w1|both", said.why)
                assert said.why.endswith("logits are read twice, for js and tv") == (divergences and not flops)

    @pytest.mark.parametrize("labels", [None, np.arange(90)])
    def test_of_a_factor(self, labels: Any, gpu_backend: Backend, work: Work) -> None:
        """A product is as on the host, and three of planes stand for it."""
        arrays = tensors(300, 600, 60, 50, "float32")
        options = {"labels": labels, "method": "factor"}
        exact, high, fast = (
            gl.explain("logit_distance", *arrays, **options, precision=precision, backend=gpu_backend.name)
            for precision in ("exact", "high", "fast")
        )
        hosts = gl.explain("logit_distance", *(a.cpu() for a in arrays), **options, backend="cpu")
        assert work == Work(), "explaining is no work"
        assert exact.flops == fast.flops == hosts.flops
        count, width = 600 if labels is None else 90, 60 + 50
        by_rows = 2 * 300 * sum(rows * (stop - start) for rows, start, stop in logit_costs.panels(count, width))
        assert high.flops == exact.flops + 2 * by_rows
        gl.logit_distance(*arrays, **options, backend=gpu_backend.name)
        assert high.bytes_read == exact.bytes_read == work.read
        assert high.path == hosts.path

    def test_of_hidden_states_in_bfloat16(self, gpu_backend: Backend) -> None:
        """They have one plane, their differences two."""
        wide = tensors(300, 400, 60, 50, "float32")
        flops, told = {}, {}
        for name, kinds in (("none", (0, 0)), ("second", (0, 1)), ("both", (1, 1))):
            h1, h2 = (h.to(torch.bfloat16) if narrow else h for h, narrow in zip(wide[::2], kinds, strict=True))
            pair = gl.UnembeddingPair(wide[1].cpu(), wide[3].cpu())
            said = gl.explain("logit_distance", h1, None, h2, None, pair=pair, backend=gpu_backend.name)
            flops[name], told[name] = said.flops, said.why
        # columns of h1 of the rows of a triangle, and those of h2
        left, right = 110 * 60, 110 * 50
        assert flops["none"] == 2 * 300 * 3 * (left + right)
        assert flops["second"] == 2 * 300 * (3 * left + 2 * right)
        assert flops["both"] == 2 * 300 * 2 * (left + right)
        assert "; rows and factor are multiplied as two bfloat16 each, in three products; rows in" in told["none"]
        assert "as two bfloat16 each, in three products, h2 as one, in two; rows in which" in told["second"]
        assert "; rows and factor are multiplied as one and two bfloat16, in two products; rows" in told["both"]
        same = gl.explain("logit_distance", h1, wide[1], h1, wide[1], method="factor", backend=gpu_backend.name)
        assert "as two bfloat16 each, in three products, h2 as one, in two; rows in which" in same.why


class TestWhy:
    @pytest.mark.parametrize("workspace", [1500 * KIB, 3000 * KIB, *at_night(None, KIB)])
    def test_logits_are_kept_if_it_says_so(self, workspace: int | None, gpu_backend: Backend, work: Work) -> None:
        h1, w1, h2, w2 = tensors(300, 600, 8, 5, "float32")
        options = {"divergences": True, "workspace": workspace, "backend": gpu_backend.name}
        said = gl.explain("logit_pairs", h1, w1, h2, w2, **options)
        gl.logit_pairs(h1, w1, h2, w2, **options)
        times = work.products.total() // (2 * 300 * 600 * (8 + 5))
        assert times == (1 if workspace is None or workspace > 2000 * KIB else 2)
        if times == 1:
            assert said.why.endswith(" rows at a time are kept for js and tv")
        else:
            assert "; logits are computed twice, for js and tv: a workspace of 1." in said.why
            assert said.why.endswith(" rows, fewer than 256")

    def test_what_a_factor_may_take(self, gpu_backend: Backend) -> None:
        arrays = tensors(300, 600, 60, 50, "float32")
        said = gl.explain("logit_distance", *arrays, method="factor", backend=gpu_backend.name)
        assert said.path.startswith("logit_distance <- factor by moments h1 (300, 60) float32, w1 (600, 60) float32")
        assert said.why.startswith("asked for, precision 'high'; rows and factor are multiplied as two ")
        assert "; factor: asked for (factor 1.09e+07 flops, vocabulary 3.96e+07); nearly four times" in said.why
        assert said.why.endswith(" if second moments would lose too many digits")
        few = gl.explain("logit_distance", *arrays, method="factor", labels=np.arange(9), backend=gpu_backend.name)
        assert few.path.startswith("logit_distance <- factor by rows h1 ")
        assert few.why.endswith("vocabulary 5.94e+05)")
        wide = gl.explain("logit_distance", *arrays, method="vocabulary", backend=gpu_backend.name)
        assert wide.why.startswith("asked for, precision 'exact'; vocabulary: asked for (factor")

    @pytest.mark.parametrize(
        ("function", "keywords"),
        [
            *[(function, {"precision": "half"}) for function in FUNCTIONS],
            *[(function, {"temperature": 0}) for function in FUNCTIONS],
            *[(function, {"labels": [1, 1]}) for function in FUNCTIONS],
            ("logit_distance", {"labels": [1, 1], "method": "factor"}),
            ("logit_distance", {"b1": np.where(np.arange(70) == 4, -np.inf, 0.0), "method": "vocabulary"}),
            ("logit_distance", {"mask": np.zeros(40, bool), "method": "factor"}),
            ("compare_logits", {"mask": np.zeros(40, bool)}),
            ("compare_logits", {"batch_rows": 0}),
            ("logit_pairs", {"workspace": 0}),
        ],
        ids=str,
    )
    def test_errors_are_those_of_the_function(self, function: str, keywords: dict, gpu_backend: Backend) -> None:
        arrays = arguments(function, *tensors(40, 70, 8, 5, "float32"))
        with pytest.raises((TypeError, ValueError)) as of_function:
            getattr(gl, function)(*arrays, **keywords, backend=gpu_backend.name)
        with pytest.raises(of_function.type, match=f"^{re.escape(str(of_function.value))}$"):
            gl.explain(function, *arrays, **keywords, backend=gpu_backend.name)
