"""Ids prove that rows are the same samples in the same order, or say what is wrong."""

import warnings

import numpy as np
import pytest
from safetensors.numpy import save_file

from gramless.files import row_ids
from gramless.files.compare_layers import compare_files, open_layers

X = np.arange(24.0, dtype=np.float32).reshape(8, 3)


def saved(path, named, n=8):
    entries = {"h": X[:n]} | ({} if named is None else {"ids": np.asarray(named)})
    if path.suffix == ".safetensors":
        save_file(entries, path)
    else:
        np.savez(path, **entries)
    return path


@pytest.mark.parametrize(
    ("left", "right", "match"),
    [
        ([0, 1, 2, 3, 4, 5, 6, 7], [0, 1, 2, 4, 3, 5, 6, 7], r"row 3 is 3 in .*a\.npz and 4 in .*b\.npz"),
        (list("abcdefgh"), list("abcdefgx"), "row 7 is 'h' in .* and 'x'"),
        (["id1"] * 8, ["id1"] * 5 + ["id1 "] * 3, "row 5 is 'id1' in .* and 'id1 '"),
        ([b"a"] * 8, [b"b"] * 8, "row 0 is b'a' in .* and b'b'"),
        (list(range(8)), list("01234567"), "ids of different kinds, int64 and str1"),
        ([b"a"] * 8, ["a"] * 8, "ids of different kinds, bytes1 and str1"),
        (np.full(8, -1), np.full(8, 2**64 - 1, np.uint64), "row 0 is -1 in .* and 18446744073709551615"),
    ],
)
def test_ids_that_disagree(tmp_path, monkeypatch, left, right, match):
    monkeypatch.setattr(row_ids, "ID_CHUNK_BYTES", 24)
    with pytest.raises(ValueError, match=match):
        compare_files(saved(tmp_path / "a.npz", left), saved(tmp_path / "b.npz", right))


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_ids_that_agree(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(row_ids, "ID_CHUNK_BYTES", 24)
    a = saved(tmp_path / "a.npz", np.arange(8))
    b = saved(tmp_path / f"b.{suffix}", np.arange(8, dtype=np.uint16))
    compare_files(a, b)
    # longer strings in some shards
    folder = tmp_path / "c"
    folder.mkdir()
    for i, named in enumerate((["x", "y", "z"], ["long", "longer"], ["u", "v", "w"])):
        np.savez(folder / f"{i}.npz", h=X[: len(named)], ids=np.array(named))
    compare_files(folder, saved(tmp_path / "d.npz", ["x", "y", "z", "long", "longer", "u", "v", "w"]))


def test_ids_in_files_of_their_own(tmp_path):
    a, b = saved(tmp_path / "a.npz", None), saved(tmp_path / "b.npz", np.arange(8))
    np.save(tmp_path / "good.npy", np.arange(8))
    np.save(tmp_path / "bad.npy", np.arange(8)[::-1])
    np.save(tmp_path / "short.npy", np.arange(7))
    compare_files(a, b, ids_a=tmp_path / "good.npy")
    compare_files(a, a, ids_a=tmp_path / "good.npy", ids_b=b)
    for name, match in (("bad", "row 0 is 7"), ("short", r"short\.npy: 7 ids for 8 rows of .*a\.npz")):
        with pytest.raises(ValueError, match=match):
            compare_files(a, b, ids_a=tmp_path / f"{name}.npy")
    with pytest.raises(ValueError, match=r"a\.npz: holds no entry named 'ids'; it holds h"):
        compare_files(a, b, ids_a=a)


def test_ids_beside_shards(tmp_path):
    order = np.arange(100, 108)
    flat = {"0": X[:5], "1": X[5:], "ids": order}
    deep = {"h/0": X, "ids/0": order[:3], "ids/1": order[3:]}
    mixed = {"h/0": X, "ids": order}
    for name, content in (("flat", flat), ("deep", deep), ("mixed", mixed)):
        for place, array in content.items():
            path = tmp_path / name / f"{place}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, array)
        with open_layers(tmp_path / name) as source:
            assert (source.names, source.ids.n) == (("flat",) if name == "flat" else ("h",), 8)
            assert {path.name for path in source.files} <= {"0.npy", "1.npy", "ids.npy"}
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            compare_files(tmp_path / name, saved(tmp_path / "b.npz", order))
        with pytest.raises(ValueError, match=r"row 0 is 100 in .* and 107"):
            compare_files(tmp_path / name, saved(tmp_path / "b.npz", order[::-1]))


def test_ids_that_repeat_are_reported_once(tmp_path, monkeypatch):
    monkeypatch.setattr(row_ids, "ID_CHUNK_BYTES", 32)
    a, b = (saved(tmp_path / f"{name}.npz", [1, 2, 3, 3, 1, 5, 5, 5]) for name in "ab")
    with pytest.warns(UserWarning, match=r"a\.npz: the id 3 occurs more than once, so that ids do not prove") as caught:
        compare_files(a, b)
    assert len(caught) == 1


def test_ids_given_for_one_side_alone(tmp_path):
    a, b = saved(tmp_path / "a.npz", None), saved(tmp_path / "b.npz", None)
    np.save(tmp_path / "ids.npy", np.arange(8))
    for options in ({"ids_a": tmp_path / "ids.npy"}, {"ids_b": tmp_path / "ids.npy"}):
        with pytest.raises(ValueError, match=r"has ids, .* has none: .*; give --ids-a and --ids-b, or neither"):
            compare_files(a, b, **options)


def test_ids_on_one_side_are_reported(tmp_path):
    a, b = saved(tmp_path / "a.npz", None), saved(tmp_path / "b.npz", np.arange(8))
    with pytest.warns(UserWarning, match=r"b\.npz has ids, .*a\.npz has none: the order of rows was not checked"):
        compare_files(a, b)
