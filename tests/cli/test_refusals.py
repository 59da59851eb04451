"""Hostile, broken and misnamed files, each refused with one clear error that names the file; and ids that disagree."""

import contextlib
import io
import json
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
from safetensors.numpy import save_file

from gramless.files import row_ids
from gramless.files.compare_layers import compare_files, open_layers
from gramless.files.formats import read_entries
from support import bounds, memory

X = np.arange(24.0, dtype=np.float32).reshape(8, 3)


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("unpickled",))


def npy(array, **changes):
    """Bytes of a .npy file whose header may lie."""
    file = io.BytesIO()
    header = {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False, "shape": array.shape}
    np.lib.format.write_array_header_1_0(file, header | changes)
    return file.getvalue() + array.tobytes()


def raw_npy(header, version=1, length=None):
    """A .npy header of any text."""
    length = len(header) if length is None else length
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", length) + header


def archive(members, compression=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as target:
        for name, content in members:
            target.writestr(name, content)
    return file.getvalue()


def safetensors(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(dtype="F32", shape=(8, 3), offsets=(0, 96)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def patched(content, old, new):
    assert content.count(old) >= 1
    return content.replace(old, new)


def poked(content, position, value):
    """Change a byte of the first entry of a zip's central directory, and its twin in the local header."""
    changed = bytearray(content)
    changed[content.index(b"PK\x01\x02") + position] = value
    changed[position - 2] = value
    return bytes(changed)


STORED = archive([("h.npy", npy(X))])
PACKED = archive([("h.npy", npy(np.random.default_rng(0).random((99, 9))))], zipfile.ZIP_DEFLATED)
MAGIC = "wrong magic bytes"

FILES = {
    # not what the name says
    "npy-empty": ("a.npy", b"", MAGIC),
    "npy-text": ("a.npy", b"1,2,3\n4,5,6\n" * 9, MAGIC),
    "npy-is-npz": ("a.npy", STORED, "looks like a zip file, as .npz is"),
    "npy-is-safetensors": ("a.npy", safetensors({"h": tensor()}, bytes(96)), "looks like .safetensors"),
    "npz-is-npy": ("a.npz", npy(X), "not a readable .npz .* looks like .npy"),
    "npz-text": ("a.npz", b"hello" * 50, "not a readable .npz"),
    "safetensors-is-npz": ("a.safetensors", STORED, "not a readable .safetensors .* looks like a zip"),
    "safetensors-is-npy": ("a.safetensors", npy(X), "not a readable .safetensors .* looks like .npy"),
    "no-suffix": ("activations", npy(X), "expected a .npy, .npz or .safetensors file"),
    "torch": ("a.pt", STORED, "pickled files are not read: save the tensors with safetensors"),
    # headers of .npy
    "npy-version": ("a.npy", b"\x93NUMPY\x09\x00" + npy(X)[8:], MAGIC),
    "npy-cut-header": ("a.npy", npy(X)[:40], "truncated in the .npy header"),
    "npy-long-header": ("a.npy", raw_npy(b"{}", 2, 1 << 31), "header claims 2147483648 bytes"),
    "npy-code": ("a.npy", raw_npy(b"__import__('os').getcwd()"), "damaged .npy header"),
    "npy-nested": ("a.npy", raw_npy(b"(" * 5000), "damaged .npy header"),
    "npy-negative": ("a.npy", npy(X, shape=(-8, 3)), "damaged .npy header"),
    "npy-bool-shape": ("a.npy", npy(X, shape=(True, 24)), "damaged .npy header"),
    "npy-object": ("a.npy", npy(X, descr="|O") + pickle.dumps(Bomb()), "holds pickled Python objects"),
    "npy-structured": ("a.npy", npy(np.zeros((4, 2), "f4,f4")), "got structured"),
    # sizes
    "npy-truncated": ("a.npy", npy(X)[:-1], r"truncated: shape \(8, 3\) of float32 needs 96 bytes, the file holds 95"),
    "npy-claims": ("a.npy", npy(X, shape=(10**15, 3)), "truncated"),
    "npy-huge": ("a.npy", npy(X, shape=(10**30, 10**30)), "truncated"),
    "npy-two-arrays": ("a.npy", npy(X) + npy(X), "bytes follow the array"),
    "npz-truncated": ("a.npz", STORED[:-30], "not a readable .npz .* truncated"),
    "npz-claims": ("a.npz", archive([("h.npy", npy(X, shape=(99, 3)))]), r"a\.npz: h: truncated"),
    "npz-trailing": ("a.npz", archive([("h.npy", npy(X) + b"x")]), "1 bytes follow the array"),
    "safetensors-truncated": ("a.safetensors", safetensors({"h": tensor()}, bytes(90)), "not a readable .safetensors"),
    "safetensors-trailing": ("a.safetensors", safetensors({"h": tensor()}, bytes(99)), "not a readable .safetensors"),
    "safetensors-shape": ("a.safetensors", safetensors({"h": tensor(shape=(9, 3))}, bytes(96)), "not a readable"),
    "safetensors-header": ("a.safetensors", safetensors(b"{" * 50), "not a readable .safetensors"),
    "safetensors-length": ("a.safetensors", struct.pack("<Q", 1 << 62) + b"{}", "not a readable .safetensors"),
    "safetensors-overlap": (
        "a.safetensors",
        safetensors({"g": tensor(), "h": tensor(offsets=(48, 144))}, bytes(144)),
        "not a readable .safetensors",
    ),
    # members of .npz
    "npz-empty": ("a.npz", archive([]), "holds no layers"),
    "npz-only-ids": ("a.npz", archive([("ids.npy", npy(np.arange(8)))]), "holds no layers"),
    "npz-other": ("a.npz", archive([("h.npy", npy(X)), ("read.me", b"hi")]), "read.me: not an array"),
    "npz-twice": ("a.npz", patched(archive([("h.npy", npy(X)), ("g.npy", npy(X))]), b"g.npy", b"h.npy"), "two arrays"),
    "npz-magic": ("a.npz", archive([("h.npy", b"no array")]), f"h: not a .npy array .{MAGIC}"),
    "npz-pickle": ("a.npz", archive([("h.npy", npy(X, descr="|O"))]), "h: holds pickled Python objects"),
    "npz-method": ("a.npz", poked(STORED, 10, 99), "unreadable zip member"),
    "npz-encrypted": ("a.npz", poked(STORED, 8, 1), "unreadable zip member"),
    # arrays that are no layers
    "int": ("a.npy", npy(np.zeros((4, 2), np.int64)), "expected float16, .* got int64"),
    "bool": ("a.npz", archive([("mask.npy", npy(np.zeros((4, 2), bool)))]), "mask: .* got bool"),
    "complex": ("a.npy", npy(np.zeros((4, 2), complex)), "got complex128"),
    "float128": ("a.npy", npy(np.zeros((4, 2), np.longdouble)), "got float128"),
    "text": ("a.npy", npy(np.zeros((4, 2), "U3")), "got str3"),
    "bfloat16-as-void": ("a.npy", npy(np.zeros((4, 2), "V2")), "cannot name bfloat16"),
    "float8": ("a.safetensors", safetensors({"h": tensor("F8_E4M3", (8, 12))}, bytes(96)), "got F8_E4M3"),
    "1-d": ("a.npy", npy(X[:, 0].copy()), r"expected shape \(n, p\), got \(8,\); x.reshape"),
    "0-d": ("a.npy", npy(np.float32(3)), r"expected shape \(n, p\), got \(\)"),
    "3-d": ("a.npz", archive([("h.npy", npy(np.zeros((4, 2, 2), np.float32)))]), r"h: .* \(4, 2, 2\); flatten it"),
    "no-rows": ("a.npy", npy(X[:0]), "has no rows"),
    "no-features": ("a.npy", npy(X[:, :0]), "has no features"),
    "rows-differ": (
        "a.npz",
        archive([("g.npy", npy(X)), ("h.npy", npy(X[1:])), ("i.npy", npy(X))]),
        "layers have different numbers of rows: g, i: 8; h: 7",
    ),
    "ids-rows": ("a.npz", archive([("h.npy", npy(X)), ("ids.npy", npy(np.arange(7)))]), "h: 8; ids: 7"),
    "ids-float": ("a.npz", archive([("h.npy", npy(X)), ("ids.npy", npy(np.ones(8)))]), "as ids, got shape .8,. of"),
    "ids-2-d": ("a.npz", archive([("h.npy", npy(X)), ("ids.npy", npy(np.ones((8, 1), int)))]), "as ids, got shape"),
    "ids-object": ("a.npz", archive([("h.npy", npy(X)), ("ids.npy", npy(np.arange(8), descr="|O"))]), "holds pickled"),
    "ids-long": (
        "a.npz",
        archive([("h.npy", npy(X)), ("ids.npy", npy(np.zeros(8, "S5000")))]),
        "ids of 5000 bytes, expected 1 to 4096",
    ),
    "terminal": ("a.npz", archive([("\x1b[31mred\x07.npy", npy(X[0]))]), r"a\.npz: \?\[31mred\?: expected shape"),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_file_is_refused(tmp_path, case):
    name, content, match = FILES[case]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=match) as caught:
        compare_files(path)
    text = str(caught.value)
    assert str(path) in text
    assert text.isprintable()
    assert len(text) < 400


DAMAGED = {
    "stored": (archive([("h.npy", npy(np.ones((99, 9))))]), 300),
    "packed": (PACKED, 2000),
    "packed-header": (PACKED, 45),
    "fortran": (archive([("h.npy", npy(np.ones((99, 9)), fortran_order=True))], zipfile.ZIP_DEFLATED), 60),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_content_is_refused(tmp_path, case):
    content, position = DAMAGED[case]
    path = tmp_path / "a.npz"
    path.write_bytes(content[:position] + bytes([content[position] ^ 0xFF]) + content[position + 1 :])
    with pytest.raises(ValueError, match=r"a\.npz: h: (damaged|cannot be unpacked|unreadable|not a \.npy|truncated)"):
        compare_files(path)


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_damaged_members_of_any_compression(tmp_path, compression):
    content = archive([("h.npy", npy(np.random.default_rng(0).random((99, 9))))], compression)
    path = tmp_path / "a.npz"
    for position in range(36, 1000, 7):
        path.write_bytes(content[:position] + bytes([content[position] ^ 0xFF]) + content[position + 1 :])
        with contextlib.suppress(ValueError), open_layers(path) as source:
            list(source.chunks(3))
    path.write_bytes(content[:200] + bytes(200) + content[400:])
    with pytest.raises(ValueError, match=r"a\.npz: h: (damaged|truncated|cannot be unpacked|unreadable)"):
        compare_files(path)


@pytest.mark.parametrize("suffix", ["npy", "npz", "safetensors"])
@pytest.mark.parametrize("moment", ["opened", "half read"])
def test_a_file_that_is_replaced(tmp_path, suffix, moment):
    old, new = ({"h": x} for x in (X, X + 1))
    folder = tmp_path / "a"
    folder.mkdir()
    write = {
        "npy": lambda path, found: np.save(path, found["h"]),
        "npz": lambda path, found: np.savez(path, **found),
        "safetensors": lambda path, found: save_file(found, path),
    }[suffix]
    for i in range(2):
        write(folder / f"{i}.{suffix}", old)
    with open_layers(folder) as source:
        chunks = source.chunks(4)
        if moment == "half read":
            next(chunks)
        write(folder / f"1.{suffix}", new)
        os.utime(folder / f"1.{suffix}", ns=(1, 1))
        with pytest.raises(ValueError, match=rf"1\.{suffix}: changed after its header was read; start again"):
            list(chunks)


@pytest.mark.parametrize("suffix", ["npy", "safetensors"])
def test_a_file_that_shrinks_while_it_is_read(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(npy(X) if suffix == "npy" else safetensors({"h": tensor()}, X.tobytes()))
    with open_layers(path) as source:
        chunks = source.chunks(4)
        next(chunks)
        os.truncate(path, path.stat().st_size - 5)
        with pytest.raises(ValueError, match="truncated: ends 5 bytes early"):
            next(chunks)


def test_missing_and_special_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.npy: no such file or folder"):
        open_layers(tmp_path / "gone.npy")
    os.mkfifo(tmp_path / "pipe.npy")
    with pytest.raises(ValueError, match=r"pipe\.npy: not a regular file"):
        open_layers(tmp_path / "pipe.npy")
    with pytest.raises(ValueError, match="not a regular file"):
        open_layers("/dev/zero")


def shards(folder, contents):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        if isinstance(content, dict):
            shards(folder / name, content)
        else:
            (folder / name).write_bytes(content)


def npz(**members):
    return archive([(f"{name}.npy", npy(array)) for name, array in members.items()])


FOLDERS = {
    "empty": ({}, "the folder is empty"),
    "hidden-only": ({".DS_Store": b""}, "the folder is empty"),
    "mixed-formats": ({"0.npy": npy(X), "1.npz": npz(h=X)}, r"one format .*, got 1\.npz among 2 files"),
    "foreign": ({"0.npy": npy(X), "README.md": b""}, r"got README\.md among 2 files"),
    "only-foreign": ({"README.md": b""}, r"got README\.md among 1 file$"),
    "files-and-folders": ({"0.npy": npy(X), "more": {"0.npy": npy(X)}}, r"got both \(0\.npy and more/\)"),
    "entries": ({"0.npz": npz(g=X, h=X), "1.npz": npz(g=X)}, r"1\.npz: holds g, but the shard 0\.npz holds g, h"),
    "ids-in-some": ({"0.npz": npz(h=X, ids=np.arange(8)), "1.npz": npz(h=X)}, r"1\.npz: holds h, but"),
    "widths": (
        {"0.npy": npy(X), "1.npy": npy(X[:, :2].copy())},
        r"1\.npy: .* rows \(2,\) of float32, but in 0\.npy rows",
    ),
    "dtypes": ({"0.npy": npy(X), "1.npy": npy(X.astype(np.float16))}, r"1\.npy: .* float16, but in 0\.npy"),
    "ids-kinds": (
        {"0.npz": npz(h=X, ids=np.arange(8)), "1.npz": npz(h=X, ids=np.zeros(8, "U1"))},
        r"1\.npz: ids has rows",
    ),
    "no-rows": ({"0.npy": npy(X), "1.npy": npy(X[:0])}, r"1\.npy: .* has no rows"),
    "uneven": (
        {"0.npz": npz(g=X, h=X[1:]), "1.npz": npz(g=X[1:], h=X)},
        r"0\.npz: expected the same rows of all entries in one row shard, got different numbers of rows: g: 8; h: 7",
    ),
    "broken-shard": ({"0.npy": npy(X), "1.npy": npy(X)[:-4]}, r"1\.npy: truncated"),
    "layer-rows": ({"g": {"0.npy": npy(X)}, "h": {"0.npy": npy(X[1:])}}, "different numbers of rows: g: 8; h: 7"),
    "layer-entries": ({"g": {"0.npz": npz(h=X, i=X)}}, "expected one array in each file of a layer's folder, got h, i"),
    "one-layer-per-file": (
        {"fc1.npy": npy(X), "fc2.npy": npy(X[:, :2].copy())},
        "the files of a folder are row shards of the same layers; for one layer per file, give each a folder",
    ),
    "ids-alone": ({"ids.npy": npy(np.arange(8))}, "acts: holds no layers"),
    "ids-twice": (
        {"0.npz": npz(h=X, ids=np.arange(8)), "ids.npy": npy(np.arange(8))},
        "acts: holds ids more than once",
    ),
    "ids-short": ({"0.npy": npy(X), "ids.npy": npy(np.arange(7))}, "acts: 8; ids: 7"),
    "ids-float": ({"h": {"0.npy": npy(X)}, "ids": {"0.npy": npy(np.ones(8))}}, "as ids, got shape .8,. of float64"),
    "layer-empty": ({"g": {}}, "g: the folder is empty"),
    "too-deep": ({"g": {"h": {"0.npy": npy(X)}}}, "g: expected the row shards of one layer, got folders"),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_folder_is_refused(tmp_path, case):
    contents, match = FOLDERS[case]
    shards(tmp_path / "acts", contents)
    with pytest.raises(ValueError, match=match):
        open_layers(tmp_path / "acts")


def test_a_zip_bomb_costs_no_memory():
    # 384 MB of zeros and 192 MB of ids in a file of 3 MB
    prepare = """
import io, os, tempfile, warnings, zipfile
from gramless.files.compare_layers import compare_files
warnings.simplefilter("ignore")
folder = tempfile.TemporaryDirectory()

def make(n):
    path = os.path.join(folder.name, f"{n}.npz")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, descr, shape in (("h", "<f2", (n, 32)), ("ids", "|S32", (n,))):
            with archive.open(name + ".npy", "w", force_zip64=True) as file:
                header = {"descr": descr, "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                for _ in range(n // 1000):
                    file.write(bytes(64_000 if name == "h" else 32_000))
    return path
"""
    call, warm = "compare_files(make(6_000_000), make(6_000_000))", "compare_files(make(1000), make(1000))"
    growth = memory.peak_extra_bytes(prepare, call, warm)
    chunks = 2 * 65536 * 64 + 2 * row_ids.ID_CHUNK_BYTES
    assert growth < bounds.MEMORY_FACTOR * chunks + 4 * bounds.MEMORY_SLACK_BYTES


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.arange(8), "got int64; convert it, or choose the layers"),
        (np.ones(8), "one feature; if it is no layer, choose the layers"),
        (np.ones((8, 2, 2)), "if it is no layer, choose the layers"),
        (np.ones((7, 2)), "h: 8; labels: 7; choose the layers"),
    ],
)
def test_what_is_no_layer_can_be_left_out(tmp_path, labels, words):
    np.savez(tmp_path / "a.npz", h=X, labels=labels)
    with pytest.raises(ValueError, match=words + r" by a pattern \(--layers-a, --layers-b\)"):
        open_layers(tmp_path / "a.npz")
    assert open_layers(tmp_path / "a.npz", "h").names == ("h",)


def test_any_prefix_and_any_flipped_byte_is_read_or_refused(tmp_path):
    path = tmp_path / "a"
    contents = {".npy": npy(X), ".npz": STORED, ".safetensors": safetensors({"h": tensor()}, X.tobytes())}
    rng = np.random.default_rng(0)
    for suffix, content in contents.items():
        variants = [content[:end] for end in range(0, len(content), 3)]
        variants += [
            content[:i] + bytes([byte]) + content[i + 1 :]
            for i, byte in enumerate(rng.integers(256, size=len(content)))
        ]
        for variant in variants:
            path.with_suffix(suffix).write_bytes(variant)
            with contextlib.suppress(ValueError):
                for entry in read_entries(path.with_suffix(suffix)):
                    assert entry.nbytes <= len(content)
                with open_layers(path.with_suffix(suffix)) as source:
                    list(source.chunks(3))
