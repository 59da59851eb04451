"""Layers on disk give what the same arrays in memory give, by any format, cut in any way, in bounded memory."""

import warnings

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

import gramless as gl
from gramless.files import layer_source
from gramless.files.compare_layers import compare_files, open_layers, rows_per_chunk
from gramless.files.formats import natural_key
from support import bounds, memory

N = 1000


@pytest.fixture
def layers():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((N, 4)) @ rng.standard_normal((4, 12)) + rng.standard_normal((N, 12)) / 4
    return {"relu10": x.astype(np.float32), "relu9": x[:, :5].astype(np.float16), "input": np.tanh(x @ x[:12])}


def columns_first(layers):
    return {name: np.asfortranarray(x) for name, x in layers.items()}


def swapped(layers):
    return {name: x.astype(x.dtype.newbyteorder()) for name, x in layers.items()}


WRITERS = {
    "npz": lambda path, layers: np.savez(path, **layers),
    "npz-compressed": lambda path, layers: np.savez_compressed(path, **layers),
    "npz-fortran": lambda path, layers: np.savez(path, **columns_first(layers)),
    "npz-compressed-fortran": lambda path, layers: np.savez_compressed(path, **columns_first(layers)),
    "npz-big-endian": lambda path, layers: np.savez(path, **swapped(layers)),
    "npz-compressed-fortran-big-endian": lambda path, layers: np.savez_compressed(
        path, **columns_first(swapped(layers))
    ),
    "safetensors": lambda path, layers: save_file(layers, path),
}


def gathered(source, rows, start=0):
    parts = [{name: x.copy() for name, x in chunk.items()} for chunk in source.chunks(rows, start)]
    assert all(len(x) == rows for part in parts[:-1] for x in part.values())
    return {name: np.concatenate([part[name] for part in parts]) for name in source.names}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("rows", [1, 7, 256, N, 5 * N])
def test_chunks_are_the_rows(tmp_path, layers, writer, rows):
    path = tmp_path / f"acts.{writer.split('-')[0]}"
    WRITERS[writer](path, layers)
    with open_layers(path) as source:
        assert source.n == N
        assert source.widths == {"relu10": 12, "relu9": 5, "input": 12}
        assert source.dtypes == {"relu10": "float32", "relu9": "float16", "input": "float64"}
        for start in (0, 321):
            for name, x in gathered(source, rows, start).items():
                assert x.dtype == layers[name].dtype
                np.testing.assert_array_equal(x, layers[name][start:])


def test_names_keep_file_order_or_natural_order(tmp_path, layers):
    np.savez(tmp_path / "a.npz", **layers)
    save_file(layers, tmp_path / "a.safetensors")
    assert open_layers(tmp_path / "a.npz").names == ("relu10", "relu9", "input")
    assert open_layers(tmp_path / "a.safetensors").names == ("input", "relu9", "relu10")


def test_natural_order():
    names = ["shard-10", "shard-9", "shard-2", "a", "shard-010", "", "3", "20"]
    assert sorted(names, key=natural_key) == ["", "3", "20", "a", "shard-2", "shard-9", "shard-010", "shard-10"]
    # longer than what int() accepts
    assert sorted(["9" * 9000, "8" * 9000], key=natural_key)[0][0] == "8"


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
@pytest.mark.parametrize("fortran", [False, True])
def test_npy_is_one_layer(tmp_path, layers, version, fortran):
    path = tmp_path / "block.0.npy"
    with path.open("wb") as file:
        np.lib.format.write_array(file, np.array(layers["input"], order="F" if fortran else "C"), version=version)
    with open_layers(path) as source:
        assert source.names == ("block.0",)
        np.testing.assert_array_equal(gathered(source, 300)["block.0"], layers["input"])


def test_bfloat16_is_widened_exactly(tmp_path):
    # every bit pattern but those of NaN, which casts may change
    bits = np.arange(1 << 16, dtype=np.uint16)
    x = bits[(bits & 0x7FFF) <= 0x7F80].view(ml_dtypes.bfloat16).reshape(-1, 2)
    save_file({"h": x}, tmp_path / "a.safetensors")
    with open_layers(tmp_path / "a.safetensors") as source:
        got = gathered(source, 1000)["h"]
    assert source.dtypes == {"h": "bfloat16"}
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got.view(np.uint32), x.astype(np.float32).view(np.uint32))


@pytest.mark.parametrize("suffix", ["npz", "safetensors", "npy"])
def test_folder_of_shards(tmp_path, layers, suffix):
    folder = tmp_path / "acts"
    folder.mkdir()
    # the natural order is not the alphabetical one, and a chunk spans several shards
    for i, rows in enumerate(np.array_split(np.arange(N), 12)):
        path = folder / f"shard-{i}.{suffix}"
        part = {name: np.ascontiguousarray(x[rows]) for name, x in layers.items()}
        if suffix == "npy":
            np.save(path, np.asfortranarray(part["input"]) if i % 2 else part["input"])
        else:
            WRITERS[suffix](path, part)
    (folder / ".hidden").write_text("not a shard")
    with open_layers(folder) as source:
        assert source.n == N
        assert len(source.files) == 12
        assert "12 row shards" in str(source)
        for name, x in gathered(source, 300).items():
            np.testing.assert_array_equal(x, layers["input" if suffix == "npy" else name])
    assert source.names[0] == ("acts" if suffix == "npy" else source.names[0])


def test_folder_of_folders(tmp_path, layers):
    for name, x in layers.items():
        folder = tmp_path / "acts" / name
        folder.mkdir(parents=True)
        for i, part in enumerate(np.array_split(x, 3)):
            np.save(folder / f"{i}.npy", part)
    with open_layers(tmp_path / "acts") as source:
        assert source.names == ("input", "relu9", "relu10")
        for name, x in gathered(source, 333).items():
            np.testing.assert_array_equal(x, layers[name])


def test_layers_are_chosen_before_they_are_judged(tmp_path, layers):
    np.savez(tmp_path / "a.npz", **layers, labels=np.arange(N), images=np.zeros((N, 2, 2), np.float32))
    with open_layers(tmp_path / "a.npz", "relu*") as source:
        assert source.names == ("relu10", "relu9")
    with pytest.raises(ValueError, match=r"a\.npz: no layer matches 'conv\*'; it holds relu10, relu9, input"):
        open_layers(tmp_path / "a.npz", "conv*")


def test_files_are_closed_by_an_iterator_that_is_left_early(tmp_path, layers):
    np.savez_compressed(tmp_path / "a.npz", **layers)
    # pytest turns the warning about a file that was not closed into an error
    with open_layers(tmp_path / "a.npz") as source:
        chunks = source.chunks(10)
        next(chunks)
    with pytest.raises(StopIteration):
        next(chunks)


def test_chunks_refuse_nonsense(tmp_path, layers):
    np.savez(tmp_path / "a.npz", **layers)
    with open_layers(tmp_path / "a.npz") as source:
        for rows, start in ((0, 0), (5, -1)):
            with pytest.raises(ValueError, match="expected rows >= 1 and start >= 0"):
                next(source.chunks(rows, start))


@pytest.mark.parametrize(
    ("width", "dtype", "rows"),
    [
        (1, np.float32, 65536),
        (1024, np.float32, 16384),
        (1024, np.float64, 8192),
        (1000, np.float32, 16640),
        (100_000, np.float32, 256),
        (300_000, np.float64, 111),
    ],
)
def test_rows_of_a_chunk(tmp_path, width, dtype, rows):
    np.save(tmp_path / "a.npy", np.zeros((1, width), dtype))
    assert rows_per_chunk(open_layers(tmp_path / "a.npy")) == rows


def test_a_row_that_is_too_wide(tmp_path):
    path = tmp_path / "a.npy"
    with path.open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (4, 1 << 25)}
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + (4 << 27))
    with pytest.raises(ValueError, match=r"a\.npy: one row of all layers takes 134,217,728 bytes"):
        compare_files(path)


@pytest.mark.parametrize("estimator", ["unbiased", "biased", "feature_corrected"])
def test_comparison_equals_that_in_memory(tmp_path, layers, estimator):
    other = {"out": layers["input"][:, ::-1].copy()}
    np.savez(tmp_path / "a.npz", **layers)
    np.savez_compressed(tmp_path / "b.npz", **columns_first(other))
    got = compare_files(tmp_path / "a.npz", tmp_path / "b.npz", estimator=estimator)
    expected = gl.cka_matrix(layers, other, estimator=estimator)
    np.testing.assert_array_equal(got.values, expected.values)
    assert (got.layers_x, got.layers_y, got.n) == (("relu10", "relu9", "input"), ("out",), N)
    assert (got.measure, got.estimator, got.stderr) == ("cka", estimator, None)


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
@pytest.mark.parametrize("size", [4, 60, 300, N, 2 * N])
def test_batches_equal_those_in_memory(tmp_path, layers, monkeypatch, kernel, size):
    monkeypatch.setattr(layer_source, "CHUNK_BYTES", 256 * sum(x[:1].nbytes for x in layers.values()))
    np.savez_compressed(tmp_path / "a.npz", **layers)
    got = compare_files(tmp_path / "a.npz", batch_size=size, kernel=kernel)
    expected = gl.cka_matrix(layers, batch_size=size, kernel=kernel)
    np.testing.assert_array_equal(got.values, expected.values)
    np.testing.assert_array_equal(got.stderr, expected.stderr)


@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
def test_the_rbf_kernel_over_all_rows(tmp_path, layers, estimator):
    other = {"out": layers["input"][:, ::-1].copy()}
    np.savez(tmp_path / "a.npz", **columns_first(layers))
    save_file(other, tmp_path / "b.safetensors")
    got = compare_files(
        tmp_path / "a.npz", tmp_path / "b.safetensors", kernel="rbf", bandwidth=3.0, estimator=estimator
    )
    expected = gl.cka_matrix(layers, other, kernel="rbf", bandwidth=3.0, estimator=estimator)
    np.testing.assert_array_equal(got.values, expected.values)
    assert (got.measure, got.stderr) == ("rbf cka", None)


def test_a_null_of_a_model_against_itself(tmp_path, layers):
    np.savez(tmp_path / "a.npz", **layers)
    got = compare_files(tmp_path / "a.npz", null="permutation", n_permutations=20)
    np.testing.assert_array_equal(got.null_mean, got.null_mean.T)
    assert not got.within_null.any()
    with pytest.raises(ValueError, match="expected null to be one of 'permutation', got 'gamma'"):
        compare_files(tmp_path / "a.npz", null="gamma")


def test_a_model_against_itself(tmp_path, layers):
    np.savez(tmp_path / "a.npz", **layers)
    got = compare_files(tmp_path / "a.npz")
    np.testing.assert_array_equal(got.values, gl.cka_matrix(layers).values)
    np.testing.assert_array_equal(np.diag(got.values), 1.0)


def test_shards_and_one_file_agree_to_the_last_bit(tmp_path, layers, monkeypatch):
    monkeypatch.setattr(layer_source, "CHUNK_BYTES", sum(x[:256].nbytes for x in layers.values()))
    (tmp_path / "a").mkdir()
    for i, rows in enumerate(np.array_split(np.arange(N), 7)):
        np.savez(tmp_path / "a" / f"{i}.npz", **{name: x[rows] for name, x in layers.items()})
    np.savez(tmp_path / "b.npz", **layers)
    whole, cut = compare_files(tmp_path / "b.npz"), compare_files(tmp_path / "a")
    np.testing.assert_array_equal(whole.values, cut.values)
    for got, expected in zip(whole.values.flat, gl.cka_matrix(layers).values.flat, strict=True):
        bounds.assert_relative(got, expected, bounds.bound_for(np.float32))


def test_a_dead_layer_does_not_lose_the_run(tmp_path, layers):
    np.savez(tmp_path / "a.npz", **layers, dead=np.ones((N, 3), np.float32))
    with pytest.warns(RuntimeWarning, match="dead is constant"):
        got = compare_files(tmp_path / "a.npz")
    assert np.isnan(got.values[3]).all()
    assert np.isfinite(got.values[:3, :3]).all()


@pytest.mark.parametrize("options", [{}, {"batch_size": 64}, {"kernel": "rbf"}])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_value_that_is_not_finite_is_named(tmp_path, layers, monkeypatch, bad, options):
    monkeypatch.setattr(layer_source, "CHUNK_BYTES", 2 * sum(x[:256].nbytes for x in layers.values()))
    np.savez(tmp_path / "a.npz", **layers)
    layers["relu9"][700, 2] = bad
    np.savez(tmp_path / "b.npz", **layers)
    with pytest.raises(ValueError, match=r"b\.npz: layer relu9 has a non-finite value in row 700$"):
        compare_files(tmp_path / "a.npz", tmp_path / "b.npz", **options)


def test_rows_must_agree_before_any_work(tmp_path, layers, monkeypatch):
    monkeypatch.setattr(gl.LayerGrid, "update", lambda *_: pytest.fail("work was done"))
    np.savez(tmp_path / "a.npz", **layers)
    np.savez(tmp_path / "b.npz", **{name: x[1:] for name, x in layers.items()})
    with pytest.raises(
        ValueError, match=r"same number of rows on both sides, got 1000 in .*a\.npz and 999 in .*b\.npz"
    ):
        compare_files(tmp_path / "a.npz", tmp_path / "b.npz")


def test_a_grid_that_does_not_fit(tmp_path, layers):
    np.savez(tmp_path / "a.npz", **layers)
    with pytest.raises(MemoryError, match="max_bytes is 100 bytes"):
        compare_files(tmp_path / "a.npz", max_bytes=100)


MAKE = """
import os, tempfile, warnings
from gramless.files.compare_layers import compare_files
from safetensors.numpy import save_file

warnings.simplefilter("ignore")
folder = tempfile.TemporaryDirectory()
path = os.path.join(folder.name, "{name}")

def make(n, p, descr="<f4", fortran={fortran}):
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {{"descr": descr, "fortran_order": fortran, "shape": (n, p)}})
        file.truncate(file.tell() + n * p * 4)
    return path
{more}
"""
SAFETENSORS = """
def make(n, p):
    import json
    head = json.dumps({"h": {"dtype": "F32", "shape": [n, p], "data_offsets": [0, 4 * n * p]}}).encode()
    with open(path, "wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        file.truncate(file.tell() + 4 * n * p)
    return path
"""
COMPRESSED = """
def make(n, p):
    import zipfile
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("h.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (n, p)})
            for start in range(0, n, 10000):
                file.write(bytes(4 * p * min(10000, n - start)))
    return path
"""


@pytest.mark.parametrize(
    ("name", "fortran", "more"),
    [
        ("a.npy", False, ""),
        ("a.npy", True, ""),
        ("a.safetensors", False, SAFETENSORS),
        ("a.npz", False, COMPRESSED),
    ],
)
def test_resident_memory_is_bounded_whatever_the_size_of_the_file(name, fortran, more):
    # 614 MB of rows, most of which no disk holds
    call, warm = "compare_files(make(2_400_000, 64))", "compare_files(make(300, 64))"
    prepare = MAKE.format(name=name, fortran=fortran, more=more)
    growth = memory.peak_extra_bytes(prepare, call, warm)
    assert growth < bounds.MEMORY_FACTOR * layer_source.CHUNK_BYTES + 2 * bounds.MEMORY_SLACK_BYTES


def test_batches_keep_resident_memory_bounded():
    # 102 MB of rows
    prepare = MAKE.format(name="a.npy", fortran=False, more="")
    growth = memory.peak_extra_bytes(
        prepare, "compare_files(make(100_000, 256), batch_size=512)", "compare_files(make(1000, 256), batch_size=512)"
    )
    assert growth < bounds.MEMORY_FACTOR * layer_source.CHUNK_BYTES + 2 * bounds.MEMORY_SLACK_BYTES


def test_no_warning_is_left(tmp_path, layers):
    np.savez(tmp_path / "a.npz", **layers)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compare_files(tmp_path / "a.npz", tmp_path / "a.npz", progress=True)
