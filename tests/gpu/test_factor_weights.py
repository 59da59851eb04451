"""The factor of two unembeddings that lie on a GPU: the one of the host, with its fingerprint, errors and files."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gramless as gl
from gramless._base import arguments, gpu_arrays
from gramless._triton.factor import factorization
from gramless._triton.tiles import launch
from gramless.predictions import stacked_weights
from support import backends, bounds, cases, device
from support.backends import Backend
from support.factors import BACKEND, rows
from support.heads import assert_rows, factor_by, models, near, truth

# (V, d1, d2); d1 = d2 is the difference basis, and V <= D keeps the rows themselves
SHAPES = (
    (50, 7, 7),
    (50, 7, 5),
    (400, 65, 63),
    (300, 64, 64),
    (6, 5, 2),
    (30, 20, 20),
    (2, 1, 1),
    (1, 2, 2),
    (9, 4, 4),
)


def pair_of(w1: np.ndarray, w2: np.ndarray, **more: Any) -> gl.UnembeddingPair:
    return gl.UnembeddingPair(device.tensor(w1), device.tensor(w2), backend=BACKEND, **more)


def assert_same_factor(got: gl.UnembeddingPair, want: gl.UnembeddingPair) -> None:
    """Whatever the signs of its rows."""
    assert (repr(got), got.fingerprint) == (repr(want), want.fingerprint)
    assert got.factor.shape == want.factor.shape
    assert got.factor.dtype == np.float64
    assert got.factor.flags.c_contiguous
    assert not got.factor.flags.writeable
    squares, scale = (pair.factor.T @ pair.factor for pair in (got, want)), np.linalg.norm(want.factor, axis=0)
    assert bounds.scaled_error(*squares, np.outer(scale, scale) + (scale == 0)) <= bounds.SAME_FP64


class TestFactor:
    @pytest.mark.parametrize("biased", [False, True], ids=["", "biased"])
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_is_that_of_the_host(self, gpu_backend: Backend, shape: tuple[int, ...], biased: bool) -> None:
        _, w1, _, w2 = models(*shape, 1, "fp32")
        bias = {"b1": np.linspace(-3, 2, shape[0]), "b2": np.geomspace(1, 9, shape[0])} if biased else {}
        assert_same_factor(pair_of(w1, w2, **bias), gl.UnembeddingPair(w1, w2, **bias))

    @pytest.mark.parametrize("method", ["gram", "qr"])
    @pytest.mark.parametrize("shape", [s for s in SHAPES if s[0] > s[1] + s[2] + 1], ids=str)
    def test_both_ways(
        self, gpu_backend: Backend, shape: tuple[int, ...], method: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        factor_by(method, monkeypatch)
        h1, w1, h2, w2 = models(*shape, 4)
        b1 = np.linspace(-3, 2, shape[0]) ** 3
        pair = pair_of(w1, w2, b1=b1)
        assert pair.method == method
        assert_same_factor(pair, gl.UnembeddingPair(w1, w2, b1=b1))
        assert_rows(pair.squared_distances(h1, h2), truth(h1, w1, h2, w2, b1))
        assert_rows(rows(pair, h1, h2), truth(h1, w1, h2, w2, b1))

    @pytest.mark.parametrize(("dtype", "other"), [*((d, d) for d in cases.DTYPES), *cases.MIXED])
    @pytest.mark.parametrize("sizes", [(6, 6), (7, 3)], ids=str)
    def test_dtypes(self, gpu_backend: Backend, dtype: str, other: str, sizes: tuple[int, int]) -> None:
        h1, w1, h2, w2 = models(200, *sizes, 7, dtype, other)
        pair = pair_of(w1, w2)
        assert_same_factor(pair, gl.UnembeddingPair(w1, w2))
        assert_rows(pair.squared_distances(h1, h2), truth(h1, w1, h2, w2))

    @pytest.mark.parametrize("name", backends.LAYOUTS)
    @pytest.mark.parametrize("dtype", ["fp32", "bf16"])
    def test_layouts(self, gpu_backend: Backend, name: str, dtype: str) -> None:
        _, w1, _, w2 = models(200, 7, 6, 1, dtype)
        laid = pair_of(*(backends.layouts(w)[name] for w in (w1, w2)))
        assert_same_factor(laid, gl.UnembeddingPair(w1, w2))

    @pytest.mark.parametrize("method", ["gram", "qr"])
    @pytest.mark.parametrize("ratio", [1e-2, 1e-4, 1e-6])
    def test_near_equal_models_are_resolved(
        self, gpu_backend: Backend, ratio: float, method: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        factor_by(method, monkeypatch)
        h1, w1, h2, w2 = near(400, 24, 30, ratio, "fp32")
        assert_rows(pair_of(w1, w2).squared_distances(h1, h2), truth(h1, w1, h2, w2))

    @pytest.mark.parametrize("case", ["equal", "dead", "offset", "duplicated", "rotated"])
    def test_hard_weights(self, gpu_backend: Backend, case: str) -> None:
        """Where the host needs reflections, or leaves rows out, so does the GPU."""
        h1, w1, h2, w2 = models(400, 12, 12, 8)
        if case == "equal":
            w2 = w1
        elif case == "dead":
            w1[:, 1], w1[:, 4], w2[:, 1] = 0.0, 7.25, 0.0
        elif case == "offset":
            w1, w2 = w1 + 1e4, w2 - 3e4
        elif case == "duplicated":
            w1, w2 = (np.repeat(w[:4], 100, axis=0) for w in (w1, w2))
        else:
            w2 = w1 @ np.linalg.qr(np.random.default_rng(9).standard_normal((12, 12)))[0]
        got, want = pair_of(w1, w2), gl.UnembeddingPair(w1, w2)
        assert (got.method, got.fingerprint) == (want.method, want.fingerprint)
        assert got.method == ("qr" if case in ("duplicated", "rotated") else "gram")
        assert_rows(got.squared_distances(h1, h2), truth(h1, w1, h2, w2))
        if case == "equal":
            assert got.factor.shape == (12, 24)
            bounds.assert_same_bits(got.squared_distances(h1, h1), np.zeros(8))

    @pytest.mark.parametrize("size", [0, 8 * 7 * 128])
    def test_blocks_of_labels(self, gpu_backend: Backend, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
        _, w1, _, w2 = models(300, 9, 7, 1)
        want = gl.UnembeddingPair(w1, w2)
        monkeypatch.setattr(launch, "WORKSPACE_BYTES", size)
        monkeypatch.setattr(factorization, "_LEAST_ROWS", 65)
        for method in ("gram", "qr"):
            factor_by(method, monkeypatch)
            assert_rows(
                pair_of(w1, w2).squared_distances(*models(1, 9, 7, 5)[::2]),
                want.squared_distances(*models(1, 9, 7, 5)[::2]),
            )
            assert pair_of(w1, w2).fingerprint == want.fingerprint

    @pytest.mark.parametrize("labels", [None, np.arange(0, 300, 2)], ids=["all", "every other"])
    def test_labels_and_masked_ones(self, gpu_backend: Backend, labels: np.ndarray | None) -> None:
        _, w1, _, w2 = models(300, 9, 6, 1)
        rng = np.random.default_rng(2)
        b1, b2 = rng.standard_normal(300), rng.standard_normal(300)
        masked = np.arange(300) % 7 == 2
        b1[masked], b2[masked], w1[masked] = -np.inf, -np.inf, np.nan
        more = {"b1": b1, "b2": b2, "labels": labels}
        got, want = pair_of(w1, w2, **more), gl.UnembeddingPair(w1, w2, **more)
        assert_same_factor(got, want)
        bounds.assert_same_dicts({"given": got.to_dict().get("given")}, {"given": want.to_dict().get("given")})

    def test_runs_agree_to_the_bit(self, gpu_backend: Backend) -> None:
        _, w1, _, w2 = models(300, 20, 15, 1, "fp32")
        bounds.assert_same_bits(pair_of(w1, w2).factor, pair_of(w1, w2).factor)


class TestInverse:
    """What decides between moments and reflections."""

    @pytest.mark.parametrize("conditioning", [1e0, 1e3, 1e7])
    @pytest.mark.parametrize("width", [1, 2, 40])
    def test_norm_is_estimated(self, width: int, conditioning: float) -> None:
        rng = np.random.default_rng([width, 3])
        turn = np.linalg.qr(rng.standard_normal((width, width)))[0]
        matrix = turn * np.geomspace(1, conditioning, width) @ turn.T
        upper = np.linalg.cholesky(matrix).T
        got = float(factorization._inverse_norm(device.tensor(np.ascontiguousarray(upper))))
        want = np.abs(np.linalg.inv(matrix)).sum(axis=0).max()
        assert want / 3 <= got <= want * (1 + bounds.SAME_FP64 * conditioning)

    def test_a_matrix_without_a_root_is_told_of(self) -> None:
        """It is estimated all the same, as nobody waits for what was found."""
        w = device.tensor(np.repeat(np.random.default_rng(4).standard_normal((50, 1)), 3, axis=1))
        weights = factorization.Weights(w[:, :1], w[:, 1:], None, None)
        root = factorization.by_moments(weights, torch.zeros_like(w[0]))
        assert int(root.failed) != 0 or not float(root.inverse) < 1 / np.finfo(np.float64).eps


class TestFaults:
    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("count", [200, 10], ids=["moments", "rows"])
    @pytest.mark.parametrize("name", ["w1", "w2"])
    def test_values_that_are_not_finite(self, gpu_backend: Backend, name: str, count: int, value: float) -> None:
        _, w1, _, w2 = models(count, 9, 6, 1, "fp32")
        {"w1": w1, "w2": w2}[name][7, 3] = value
        with pytest.raises(ValueError, match=rf"^UnembeddingPair: {name} has non-finite values in row 7$") as told:
            pair_of(w1, w2)
        with pytest.raises(ValueError, match=f"^{told.value}$"):
            gl.UnembeddingPair(w1, w2)
        labels = np.setdiff1d(np.arange(count), [7])
        assert pair_of(w1, w2, labels=labels).labels == count - 1

    def test_rows_are_named_by_their_labels(self, gpu_backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(stacked_weights, "BLOCK_ROWS", 64)
        _, w1, _, w2 = models(400, 9, 6, 1, "fp16")
        w1[301], w2[300] = np.inf, np.nan
        with pytest.raises(ValueError, match=r"w1 has non-finite values in row 301 \(float16 holds at most 65504"):
            pair_of(w1, w2, labels=np.arange(1, 400, 4))
        with pytest.raises(ValueError, match="w2 has non-finite values in row 300 "):
            pair_of(w1, w2, labels=np.arange(0, 400, 4))

    def test_overflow(self, gpu_backend: Backend) -> None:
        _, w1, _, w2 = models(200, 9, 6, 1)
        with pytest.raises(ValueError, match=r"^UnembeddingPair: sums over the labels overflow"):
            pair_of(1e200 * w1, w2)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"labels": [50]}, "from 0 to 49, got 50"),
            ({"labels": [1, 1]}, "once"),
            ({"b1": np.zeros(3)}, "b1 of shape"),
            ({"b1": np.full(50, np.nan)}, "b1"),
            ({"b1": np.full(50, -np.inf)}, "masks every label"),
            ({"b1": np.r_[np.zeros(49), -np.inf]}, "label 49 is masked .* in one model only"),
        ],
        ids=lambda value: None,
    )
    def test_bad_arguments(self, gpu_backend: Backend, change: dict, message: str) -> None:
        _, w1, _, w2 = models(50, 4, 3, 1, "fp32")
        with pytest.raises(ValueError, match=f"^UnembeddingPair: .*({message})"):
            pair_of(w1, w2, **change)

    def test_weights_on_two_devices(self, monkeypatch: pytest.MonkeyPatch) -> None:
        _, w1, _, w2 = models(50, 4, 3, 1, "fp32")
        monkeypatch.setattr(arguments, "gpu_of", lambda a: "cuda:1" if a is w1 else "")
        with pytest.raises(RuntimeError, match="w1 and w2 on the same device, got w1 on cuda:1 and w2 on the host"):
            gl.UnembeddingPair(w1, w2)


class TestBetweenDevices:
    @pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
    @pytest.mark.parametrize("case", ["plain", "labels", "biased", "few"])
    def test_files(self, gpu_backend: Backend, tmp_path: Path, suffix: str, case: str) -> None:
        """Made there, used on the host, and back."""
        h1, w1, h2, w2 = models(10 if case == "few" else 200, 9, 6, 8, "fp32")
        more = {"labels": {"labels": [5, 100, 3, *range(20, 60)]}, "biased": {"b1": np.arange(200.0)}}.get(case, {})
        made = pair_of(w1, w2, **more)
        made.save(tmp_path / f"a{suffix}")
        found = gl.UnembeddingPair.load(tmp_path / f"a{suffix}")
        found.check(w1, w2, more.get("b1"))
        bounds.assert_same_dicts(found.to_dict(), made.to_dict())
        bounds.assert_same_bits(found.squared_distances(h1, h2), made.squared_distances(h1, h2))
        bounds.assert_same_bits(rows(found, h1, h2), rows(made, h1, h2))

    @pytest.mark.parametrize("used", [False, True])
    @pytest.mark.parametrize("shape", [(200, 9, 6), (200, 70, 70), (9, 4, 4)], ids=str)
    def test_the_host_has_it_once_it_asks(self, gpu_backend: Backend, shape: tuple[int, ...], used: bool) -> None:
        """To the bit, also once the device has it in the form that products take."""
        h1, w1, h2, w2 = models(*shape, 8, "fp32")
        bias = np.linspace(-3, 2, shape[0])
        pair, other = (pair_of(w1, np.float32(1e-3) * w2, b1=bias) for _ in "ab")
        if used:
            rows(pair, h1, h2)
        assert pair._held._matrix is None
        assert pair.nbytes == other.nbytes > 8 * other.factor.size
        bounds.assert_same_bits(pair.factor, other.factor)
        bounds.assert_same_bits(pickle.loads(pickle.dumps(pair)).factor, other.factor)

    def test_copies_leave_the_device_behind(self, gpu_backend: Backend) -> None:
        h1, w1, h2, w2 = models(200, 9, 6, 8, "fp32")
        pair = pair_of(w1, w2)
        want, size = rows(pair, h1, h2), len(pickle.dumps(gl.UnembeddingPair(w1, w2)))
        assert len(pickle.dumps(pair)) == size
        for other in (pickle.loads(pickle.dumps(pair)), copy.deepcopy(pair), copy.copy(pair)):
            bounds.assert_same_bits(rows(other, h1, h2), want)
            bounds.assert_same_bits(other.factor, pair.factor)

    def test_check_reads_the_device(self, gpu_backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
        _, w1, _, w2 = models(200, 9, 6, 1, "bf16")
        pair, tensors = gl.UnembeddingPair(w1, w2), [device.tensor(w) for w in (w1, w2)]
        for module in (arguments, gpu_arrays):
            monkeypatch.setattr(module, "gpu_of", lambda a: "cuda:0" if isinstance(a, torch.Tensor) else "")
        monkeypatch.setattr(stacked_weights.Columns, "fingerprint", None)
        pair.check(*tensors)
        for side, row, column in ((0, 199, 8), (1, 0, 0)):
            changed = [w.clone() for w in tensors]
            changed[side][row, column] = 2.0
            with pytest.raises(ValueError, match="other weights"):
                pair.check(*changed)

    @pytest.mark.parametrize("dtype", cases.DTYPES)
    @pytest.mark.parametrize("width", [1, 3, 4, 5, 513])
    def test_fingerprints_are_those_of_the_bytes(self, gpu_backend: Backend, dtype: str, width: int) -> None:
        """Of any bits, those of NaN and of signs among them."""
        item = cases.DTYPES[dtype].itemsize
        bits = np.random.default_rng([item, width]).integers(0, 256, (2, 11, width * item), dtype=np.uint8)
        w1, w2 = bits.view(cases.DTYPES[dtype])
        plain = stacked_weights.Columns("f", w1, w2, None, None, None)
        tensors = [torch.from_numpy(w.view(f"i{item}")).view(getattr(torch, w.dtype.name)) for w in (w1, w2)]
        place = "cuda" if device.label() == "cuda" else "cpu"
        there = stacked_weights.Columns("f", *(w.to(place) for w in tensors), None, None, None)
        from gramless.predictions import gpu_factorization

        assert gpu_factorization.fingerprint_on_gpu(there, BACKEND) == plain.fingerprint()
