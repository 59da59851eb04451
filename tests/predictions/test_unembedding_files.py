"""The factor of two unembeddings on disk, the weights it belongs to, what it refuses, and the memory that it takes."""

from __future__ import annotations

import copy
import pickle
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

import gramless as gl
from gramless.predictions import stacked_weights
from support import backends, bounds, cases, memory
from support.heads import factor_by, models


class TestFiles:
    @pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".NPZ"])
    @pytest.mark.parametrize("case", ["plain", "labels", "biased", "equal", "few"])
    def test_round_trip(self, tmp_path: Path, suffix: str, case: str) -> None:
        h1, w1, h2, w2 = models(10 if case == "few" else 300, 9, 6 if case == "plain" else 9, 8)
        more = {"labels": {"labels": [5, 200, 3, *range(20, 60)]}, "biased": {"b1": np.arange(300.0)}}.get(case, {})
        if case == "biased":
            more["b2"] = np.where(np.arange(300) == 9, -np.inf, 1.0)
            more["b1"][9] = -np.inf
        pair = gl.UnembeddingPair(w1, w1 if case == "equal" else w2, **more)
        path = tmp_path / f"pair{suffix}"
        pair.save(path)
        found = gl.UnembeddingPair.load(path)
        assert repr(found) == repr(pair)
        assert (found.fingerprint, found.nbytes, found.width) == (pair.fingerprint, pair.nbytes, pair.width)
        bounds.assert_same_bits(found.squared_distances(h1, h2), pair.squared_distances(h1, h2))
        found.check(w1, w1 if case == "equal" else w2, more.get("b1"), more.get("b2"))
        bounds.assert_same_dicts(found.to_dict(), pair.to_dict())

    def test_pickle_and_copy(self) -> None:
        h1, w1, h2, w2 = models(300, 9, 6, 8)
        pair = gl.UnembeddingPair(w1, w2)
        for other in (pickle.loads(pickle.dumps(pair)), copy.deepcopy(pair)):
            bounds.assert_same_bits(other.squared_distances(h1, h2), pair.squared_distances(h1, h2))

    @pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
    def test_damaged_files_are_refused(self, tmp_path: Path, suffix: str) -> None:
        path = tmp_path / f"pair{suffix}"
        gl.UnembeddingPair(*models(300, 9, 6, 8)[1::2]).save(path)
        whole = path.read_bytes()
        for content in (b"", b"hello", whole[: len(whole) // 2], whole[:-5]):
            path.write_bytes(content)
            with pytest.raises(ValueError, match=r"UnembeddingPair\.load: cannot read"):
                gl.UnembeddingPair.load(path)

    def test_pickled_and_compressed_files_are_refused(self, tmp_path: Path) -> None:
        path, state = tmp_path / "pair.npz", gl.UnembeddingPair(*models(300, 9, 6, 8)[1::2]).to_dict()
        np.savez(path, **state | {"factor": np.array([object()])})
        with pytest.raises(ValueError, match="cannot read"):
            gl.UnembeddingPair.load(path)
        np.savez_compressed(path, **state | {"factor": np.zeros((15, 15))})
        with pytest.raises(ValueError, match="written by something else"):
            gl.UnembeddingPair.load(path)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"format": np.frombuffer(b"other/1", np.uint8)}, "format"),
            # its fingerprint was another hash
            ({"format": np.frombuffer(b"gramless.unembedding_pair/1", np.uint8)}, "pair/2', got format"),
            ({"factor": np.zeros((15, 14))}, "shape"),
            ({"factor": np.zeros((99, 15))}, "has"),
            ({"factor": np.zeros((15, 15), np.float32)}, "float64"),
            ({"factor": np.full((15, 15), np.nan)}, "non-finite"),
            ({"d1": np.array(0)}, "d1 = 0"),
            ({"d1": np.array(-1)}, "d1"),
            ({"biased": np.array(2)}, "has"),
            ({"method": np.frombuffer(b"magic", np.uint8)}, "method"),
            ({"given": np.array([3, 2])}, "given"),
            ({"given": np.array([0.5])}, "given"),
            ({"extra": np.array(1)}, "extra"),
            ({"factor": None}, "nothing"),
            ({"fingerprint": None}, "fingerprint"),
        ],
        ids=str,
    )
    def test_other_states_are_refused(self, tmp_path: Path, change: dict, message: str) -> None:
        state = gl.UnembeddingPair(*models(300, 9, 6, 8)[1::2]).to_dict() | change
        state = {key: value for key, value in state.items() if value is not None}
        with pytest.raises((TypeError, ValueError), match=message):
            gl.UnembeddingPair.from_dict(state)
        save_file(state, tmp_path / "pair.safetensors")
        with pytest.raises(ValueError, match="cannot read"):
            gl.UnembeddingPair.load(tmp_path / "pair.safetensors")

    def test_states_are_copies(self) -> None:
        h1, w1, h2, w2 = models(300, 9, 6, 8)
        pair = gl.UnembeddingPair(w1, w2)
        want, state = pair.squared_distances(h1, h2), pair.to_dict()
        restored = gl.UnembeddingPair.from_dict(state)
        state["factor"][:] = 0.0
        for one in (pair, restored):
            bounds.assert_same_bits(one.squared_distances(h1, h2), want)
        with pytest.raises(ValueError, match="read-only"):
            pair.factor[0, 0] = 1.0

    def test_safetensors_holds_plain_arrays(self, tmp_path: Path) -> None:
        path = tmp_path / "pair.safetensors"
        gl.UnembeddingPair(*models(300, 9, 6, 8)[1::2]).save(path)
        assert load_file(path)["factor"].shape == (15, 15)

    @pytest.mark.parametrize("path", ["pair.pt", "pair", "pair.npy"])
    def test_other_suffixes_are_refused(self, tmp_path: Path, path: str) -> None:
        pair = gl.UnembeddingPair(*models(300, 9, 6, 8)[1::2])
        with pytest.raises(ValueError, match=r"UnembeddingPair.save: expected a path that ends in \.safetensors or"):
            pair.save(tmp_path / path)
        with pytest.raises(ValueError, match=r"UnembeddingPair.load: expected a path that ends in \.safetensors or"):
            gl.UnembeddingPair.load(tmp_path / path)

    def test_a_missing_file_is_an_os_error(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            gl.UnembeddingPair.load(tmp_path / "none.npz")


def marks(w1: np.ndarray, w2: np.ndarray) -> np.ndarray:
    """The marks of rows (n, 2, 4), of both unembeddings."""
    return np.frombuffer(stacked_weights.row_marks(w1, w2), np.uint64).reshape(len(w1), 2, 4)


class TestFingerprint:
    def test_any_other_weights_are_refused(self) -> None:
        _, w1, _, w2 = models(1500, 9, 6, 8, "fp32")
        b1 = np.linspace(0, 1, 1500)
        pair = gl.UnembeddingPair(w1, w2, b1=b1)
        pair.check(w1, w2, b1)
        pair.check(torch.from_numpy(w1), np.asfortranarray(w2), b1, np.zeros(1500))
        changed = w2.copy()
        changed[1499, 5] = np.nextafter(changed[1499, 5], np.float32(9))
        swapped = w1[np.r_[1, 0, 2:1500]]
        others = [
            (w1, changed, b1), (swapped, w2, b1), (w1, w2, None), (w1, w2, b1 + 1), (w1.astype(np.float64), w2, b1),
            (w1[:-1], w2[:-1], b1[:-1]), (w2, w1, b1), (w1[:, :-1], w2, b1), (w1, -w2, b1),
        ]  # fmt: skip
        for one, two, b in others:
            with pytest.raises(ValueError, match=r"UnembeddingPair\.check: these are other weights"):
                pair.check(one, two, b)

    @pytest.mark.parametrize("width", [1, 3, 4, 9])
    @pytest.mark.parametrize("dtype", cases.DTYPES.values(), ids=list(cases.DTYPES))
    def test_every_bit_marks_its_row(self, dtype: np.dtype, width: int) -> None:
        rng = np.random.default_rng(width)
        w = rng.standard_normal((3, width)).astype(dtype)
        plain, seen = marks(w, w), set()
        assert len({plain[row].tobytes() for row in range(3)}) == 3
        for bit in range(8 * w[0].nbytes):
            changed = w.copy()
            changed.view(np.uint8)[1, bit // 8] ^= 1 << bit % 8
            for side, found in enumerate((marks(changed, w), marks(w, changed))):
                differ = (found != plain).any(axis=2)
                assert np.argwhere(differ).tolist() == [[1, side]]
                seen.add(found[1].tobytes())
        assert len(seen) == 2 * 8 * w[0].nbytes

    @pytest.mark.parametrize("dtype", cases.DTYPES.values(), ids=list(cases.DTYPES))
    def test_changes_with_a_pattern_mark_every_row(self, dtype: np.dtype) -> None:
        """Signs and powers of two change the upper bits alone, and sums modulo 2^64 lose those first."""
        w = np.random.default_rng(0).standard_normal((200, 64)).astype(dtype)
        signs = np.ones((6, 64))
        for k in range(4):
            signs[k, k::4] = -1
        signs[4, 1::2] = signs[5, [3, 7]] = -1
        others = [w * s.astype(dtype) for s in signs]
        others += [w * dtype.type(2), w * dtype.type(0.5), w[:, ::-1], np.roll(w, 1, axis=1), np.roll(w, 8, axis=1)]
        found = [marks(w, other)[:, 1] for other in (w, *others)]
        for row in range(200):
            assert len({of[row].tobytes() for of in found}) == len(found)

    def test_marks_are_the_sums_that_are_named(self) -> None:
        """In whole numbers of any size, from the bytes."""
        w = np.random.default_rng(0).standard_normal((5, 7)).astype(np.float32)
        keys = stacked_weights._keys(4).tolist()
        for row, got in zip(w, marks(w, -w)[:, 0].tolist(), strict=True):
            content = row.tobytes() + bytes(4)
            words = [int.from_bytes(content[i : i + 8], sys.byteorder) for i in range(0, 32, 8)]
            parts = words, words, [word >> 32 for word in words], [word >> 32 for word in words]
            assert got == [sum(map(int.__mul__, key, part)) % 2**64 for key, part in zip(keys, parts, strict=True)]

    def test_masks_and_labels_belong_to_it(self) -> None:
        _, w1, _, w2 = models(300, 9, 6, 8)
        b = np.where(np.arange(300) < 250, 0.0, -np.inf)
        pair = gl.UnembeddingPair(w1, w2, b1=b, b2=b)
        pair.check(w1, w2, b, b)
        with pytest.raises(ValueError, match="other weights"):
            pair.check(w1, w2)
        some = gl.UnembeddingPair(w1, w2, labels=np.arange(250))
        # labels that it does not use may be anything
        some.check(np.vstack([w1[:250], w2[:50] @ np.ones((6, 9))]), w2)
        assert len({pair.fingerprint, some.fingerprint, gl.UnembeddingPair(w1, w2).fingerprint}) == 3

    def test_does_not_depend_on_the_threads(self) -> None:
        _, w1, _, w2 = models(3000, 9, 9, 8)
        found = set()
        for count in (1, 3):
            with backends.threads(count):
                found.add(gl.UnembeddingPair(w1, w2).fingerprint)
        assert len(found) == 1


W1, W2 = models(50, 4, 3, 8)[1::2]
BAD_HEADS = [
    ((W1, W2[:40]), {}, ValueError, "expected the same labels in both models"),
    ((W1, [[1.0]]), {}, TypeError, "w2"),
    ((W1.astype(int), W2), {}, TypeError, "w1 of dtype"),
    ((W1[0], W2), {}, ValueError, "w1: expected a 2-d array"),
    ((W1[:0], W2[:0]), {}, ValueError, "at least one row"),
    ((W1, W2), {"b1": np.zeros(49)}, ValueError, "b1 of shape"),
    ((W1, W2), {"b2": np.full(50, np.nan)}, ValueError, "b2"),
    ((W1, W2), {"b2": np.full(50, np.inf)}, ValueError, "b2"),
    ((W1, W2), {"b1": "bias"}, TypeError, "b1"),
    ((W1, W2), {"b1": np.full(50, -np.inf)}, ValueError, "masks every label"),
    ((W1, W2), {"b1": np.r_[-np.inf, np.zeros(49)]}, ValueError, "label 0 is masked .* in one model only"),
    ((W1, W2), {"labels": [1, 50]}, ValueError, "from 0 to 49, got 50"),
    ((W1, W2), {"labels": [-1]}, ValueError, "from 0 to 49, got -1"),
    ((W1, W2), {"labels": [1, 2, 1]}, ValueError, "once"),
    ((W1, W2), {"labels": []}, (TypeError, ValueError), "labels"),
    ((W1, W2), {"labels": [0.5]}, TypeError, "labels"),
    ((W1, W2), {"labels": np.ones(50, bool)}, TypeError, "labels"),
    ((W1, W2), {"backend": "gpu"}, ValueError, "backend"),
]


@pytest.mark.parametrize(("heads", "options", "error", "message"), BAD_HEADS, ids=lambda case: None)
def test_bad_heads_are_refused(heads: tuple, options: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=f"^UnembeddingPair: .*({message})"):
        gl.UnembeddingPair(*heads, **options)


@pytest.mark.parametrize("method", ["gram", "qr", "rows"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("side", "row"), [(0, 0), (1, 4999), (0, 4101)])
@pytest.mark.parametrize("sizes", [(4, 4), (4, 3)], ids=str)
def test_nonfinite_weights_are_named(
    sizes: tuple[int, int], side: int, row: int, value: float, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads = list(models(5000, *sizes, 1, "fp32")[1::2])
    heads[side][row, 1] = value
    options = {}
    if method == "rows":
        options = {"labels": [5, row, 7]}
    else:
        factor_by(method, monkeypatch)
    with pytest.raises(ValueError, match=f"UnembeddingPair: w{side + 1} has non-finite values in row {row}$"):
        gl.UnembeddingPair(*heads, **options)


@pytest.mark.parametrize("method", ["gram", "qr"])
def test_overflow_is_told(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    factor_by(method, monkeypatch)
    with pytest.raises(ValueError, match="overflow"):
        gl.UnembeddingPair(1e200 * W1, W2)
    pair = gl.UnembeddingPair(W1, W2)
    with pytest.raises(ValueError, match=r"UnembeddingPair\.squared_distances: squared distances overflow"):
        pair.squared_distances(np.full((3, 4), 1e200), np.zeros((3, 3)))
    pair, most = gl.UnembeddingPair(W1, W1[::-1]), np.full((3, 4), 1.7e308)
    with pytest.raises(ValueError, match=r"UnembeddingPair\.squared_distances: differences of h1 and h2 overflow"):
        pair.squared_distances(most, -most)


H1, H2 = models(50, 4, 3, 8)[::2]
BAD_ROWS = [
    ((H1, H2[:5]), {}, ValueError, "same number of rows"),
    ((H1[:, :3], H2), {}, ValueError, r"expected h1 with the hidden size 4 of its unembedding, got shape \(8, 3\)"),
    ((H1, H1), {}, ValueError, "expected h2 with the hidden size 3"),
    ((H1, "rows"), {}, TypeError, "h2"),
    ((H1[0], H2), {}, ValueError, "2-d"),
    ((H1.astype(int), H2), {}, TypeError, "dtype"),
    ((H1, np.where(np.arange(8)[:, None] == 6, np.nan, H2)), {}, ValueError, "h2 has non-finite values in row 6"),
    ((np.where(np.arange(8)[:, None] == 2, np.inf, H1), H2), {}, ValueError, "h1 has non-finite values in row 2"),
    ((H1, H2), {"mask": np.ones(7, bool)}, ValueError, "mask of shape"),
    ((H1, H2), {"mask": np.ones(8)}, TypeError, "mask"),
]


@pytest.mark.parametrize(("states", "options", "error", "message"), BAD_ROWS, ids=lambda case: None)
def test_bad_rows_are_refused(states: tuple, options: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=rf"^UnembeddingPair\.squared_distances: .*({message})"):
        gl.UnembeddingPair(W1, W2).squared_distances(*states, **options)


def test_float16_overflow_is_advised() -> None:
    w = np.ones((50, 3), np.float16)
    w[7, 0] = np.inf
    with pytest.raises(ValueError, match=r"row 7 .float16 holds at most 65504"):
        gl.UnembeddingPair(w, w)


def test_inputs_stay_as_they_are() -> None:
    given = models(300, 9, 6, 8)
    kept = [a.copy() for a in given]
    h1, w1, h2, w2 = given
    b = np.linspace(0, 1, 300)
    gl.UnembeddingPair(w1, w2, b1=b).squared_distances(h1, h2)
    for a, want in zip((*given, b), (*kept, np.linspace(0, 1, 300)), strict=True):
        bounds.assert_same_bits(a, want)


def test_a_bar_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    gl.UnembeddingPair(W1, W2, progress=True)
    shown = capsys.readouterr()
    assert "labels" in shown.err
    assert not shown.out


def test_says_what_it_is() -> None:
    pair = gl.UnembeddingPair(W1, W2)
    assert repr(pair) == "UnembeddingPair(labels=50, d1=4, d2=3, basis='plain', method='gram')"
    assert pair.nbytes >= pair.factor.nbytes
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pair.squared_distances(H1, H2)


# memory

HEADS = """
rng = np.random.default_rng(0)
w1 = rng.standard_normal(({v}, {d1}), dtype=np.float32)
w2 = w1[:, :{d2}] + np.float32(1e-3) * rng.standard_normal(({v}, {d2}), dtype=np.float32)
"""


def allowed(v: int, d1: int, d2: int, method: str) -> int:
    """The formulas of the docstrings: sums, result and a block."""
    width = d1 + d2
    if method == "qr":
        return 8 * (2 * width**2 + 1024 * width)
    sums = 8 * (d1**2 + d2**2 + d1 * d2)
    # the kernel's own scratch is that of tests/test_memory.py
    scratch = 8 * 288**2 + min(8 * 4096 * width, 32 << 20)
    return sums + max(sums, 8 * width**2) + 8 * max(8192, width) * d2 + scratch


@pytest.mark.parametrize(("d1", "d2", "method"), [(500, 500, "gram"), (500, 300, "qr")])
def test_memory_does_not_grow_with_the_vocabulary(d1: int, d2: int, method: str) -> None:
    warm = f"gl.UnembeddingPair(w1[:3000, :32], w2[:3000, :{32 if d1 == d2 else 16}])"
    v = 20_000
    prepare = HEADS.format(v=v, d1=d1, d2=d2)
    if method == "qr":
        # one of the other's columns is a sum of its own
        prepare += "w2[:, 0] = w2[:, 1] + w2[:, 2]\n"
    peak = memory.peak_extra_bytes(prepare, "gl.UnembeddingPair(w1, w2)", warm)
    formula = allowed(v, d1, d2, "gram") if method == "gram" else max(allowed(v, d1, d2, m) for m in ("gram", "qr"))
    assert peak <= bounds.MEMORY_FACTOR * formula + bounds.MEMORY_SLACK_BYTES, f"{peak:,} against {formula:,}"
    assert peak < 8 * v * (d1 + d2), "as much as the matrix itself in float64"


def test_memory_of_rows() -> None:
    d = 200
    prepare = HEADS.format(v=2000, d1=d, d2=d) + (
        "pair = gl.UnembeddingPair(w1, w2)\nh = rng.standard_normal((300_000, 200), dtype=np.float32)\n"
    )
    peak = memory.peak_extra_bytes(prepare, "pair.squared_distances(h, h)", "pair.squared_distances(h[:9], h[:9])")
    # a block in float64, its products with a panel, and a value for each row with its number
    formula = (1 << 24) + 2 * 8 * 300_000
    assert peak <= bounds.MEMORY_FACTOR * formula + bounds.MEMORY_SLACK_BYTES, f"{peak:,} against {formula:,}"


def test_a_factor_that_was_changed_is_refused():
    w = np.random.default_rng(5).standard_normal((20, 3))
    state = gl.UnembeddingPair(w, w[::-1]).to_dict()
    state["factor"][0, 0] += 1
    with pytest.raises(ValueError, match=r"^UnembeddingPair.from_dict: .* its checksum differs"):
        gl.UnembeddingPair.from_dict(state)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_paths_that_cannot_be_opened_are_named(tmp_path, suffix):
    path = tmp_path / "none" / f"x{suffix}"
    w = np.eye(4, 2)
    with pytest.raises(FileNotFoundError, match=f"^UnembeddingPair.save: cannot write .*x{suffix}': No such file"):
        gl.UnembeddingPair(w, w).save(path)
    with pytest.raises(FileNotFoundError, match=f"^UnembeddingPair.load: cannot read .*x{suffix}': No such file"):
        gl.UnembeddingPair.load(path)
