"""What a similarity matrix says of itself: matches, single values, texts, and files that are damaged."""

import json
import sys

import numpy as np
import pytest

import gramless as gl


def matrix(values, layers_x=None, layers_y=None, measure="cka", stderr=None):
    values = np.asarray(values, dtype=np.float64)
    names = [tuple(f"{side}{i}" for i in range(count)) for side, count in zip("ab", values.shape, strict=True)]
    return gl.SimilarityMatrix(values, stderr, layers_x or names[0], layers_y or names[1], 9, measure, "unbiased")


NAMES = ("in", "mid", "out")


@pytest.mark.parametrize(
    ("values", "layers", "expected"),
    [
        # ties within float32 rounding: the same name, then the same position, then the first
        ([[0.5, 0.5, 0.500005]], (("mid",), NAMES), [1]),
        ([[0.9, 0.5, 0.5], [0.5, 0.499995, 0.5]], (("a", "b"), NAMES), [0, 1]),
        ([[0.1, 0.5, 0.5]], (("a",), NAMES), [1]),
        ([[0.5, 0.5001]], (("p",), ("p", "q")), [1]),
        # what only noise can give
        ([[0.3, 1.7, 0.2]], (("a",), NAMES), [0]),
        ([[1.000001, 0.2, 1.1]], (("a",), NAMES), [0]),
        ([[1.7, np.nan, 2.0]], (("a",), NAMES), [None]),
        # a model against itself
        ([[1, 0.8, 0.1], [0.8, 1, 0.7], [0.1, 0.7, 1]], (NAMES, NAMES), [1, 0, 1]),
        ([[1, np.nan, 0.1], [np.nan] * 3, [0.1, np.nan, 1]], (NAMES, NAMES), [2, None, 0]),
        # another model with the same names
        ([[1, 0.8, 0.1], [0.8, 0.9, 0.7], [0.1, 0.7, 1]], (NAMES, NAMES), [0, 1, 2]),
        ([[1, 0.8], [0.7, 1]], (("p", "q"), ("p", "q")), [0, 1]),
        ([[1.0]], (("h",), ("h",)), [0]),
    ],
)
def test_best_match(values, layers, expected):
    found = matrix(values, *layers)
    assert found.best_columns() == expected
    names = [None if j is None else layers[1][j] for j in expected]
    assert found.best_match() == dict(zip(layers[0], names, strict=True))


def test_a_model_against_itself_as_computed():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((100, 6))
    layers = {"in": x, "twice": 2 * x + 1, "half": x[:, :3]}
    assert gl.cka_matrix(layers).best_match() == {"in": "twice", "twice": "in", "half": "in"}
    assert gl.cka_matrix(layers, {k: v + 0.01 * rng.standard_normal(v.shape) for k, v in layers.items()}).best_match()[
        "half"
    ] == ("half")


def test_one_value():
    found = matrix([[0.25, 0.5]], ("a",), ("c", "d"))
    assert found["a", "d"] == 0.5
    assert type(found["a", "d"]) is float
    for names, missing in ((("b", "c"), "'b' among a"), (("a", "a"), "'a' among c, d")):
        with pytest.raises(KeyError, match=f"no layer {missing}"):
            found[names]


def test_no_negative_zero():
    found = matrix([[-0.0004, -0.0006], [-0.0, 0.0]], stderr=np.full((2, 2), 0.0004))
    assert [found.text(i, j) for i, j in np.ndindex(2, 2)] == [
        "0.000 +- 0.000",
        "-0.001 +- 0.000",
        "0.000 +- 0.000",
        "0.000 +- 0.000",
    ]
    assert "-0.000" not in str(found)


def test_pandas_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ModuleNotFoundError, match="to_pandas: pandas is not installed: pip install pandas"):
        matrix([[1.0]]).to_pandas()


@pytest.mark.parametrize("suffix", [".json", ".npz", ".JSON", ".NPZ"])
def test_files_of_any_case(tmp_path, suffix):
    path = tmp_path / f"m{suffix}"
    stderr = np.array([[0.1, np.nan]])
    matrix([[0.25, np.nan]], stderr=stderr).save(path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    loaded = gl.SimilarityMatrix.load(path)
    np.testing.assert_array_equal(loaded.values, [[0.25, np.nan]])
    np.testing.assert_array_equal(loaded.stderr, stderr)


def as_json(**changes):
    return json.dumps(matrix([[0.5]]).to_dict() | changes).encode()


BAD = {
    "empty": b"",
    "not utf-8": b"\xff\xfe",
    "a list": b"[]",
    "a number": b"3",
    "deep": b"[" * 100_000,
    "an endless n": as_json().replace(b'"n": 9', b'"n": 1e400'),
    "no n": as_json(n=None),
    "text for values": as_json(values="abc"),
    "ragged values": as_json(values=[[1], [1, 2]]),
    "nested values": as_json(values=[[[1]]]),
    "objects for values": as_json(values={"a": 1}),
    "huge values": as_json().replace(b"0.5", b"1" + b"0" * 400),
    "too few layers": as_json(layers_x=[]),
    "numbers for layers": as_json(layers_x=3),
    "another format": as_json(format="gramless.moments/1"),
}


@pytest.mark.parametrize("suffix", [".json", ".npz"])
@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_a_value_error(tmp_path, case, suffix):
    path = tmp_path / f"m{suffix}"
    path.write_bytes(BAD[case])
    with pytest.raises(ValueError, match=r"SimilarityMatrix\.load: cannot read"):
        gl.SimilarityMatrix.load(path)


def test_any_flipped_byte_is_read_or_a_value_error(tmp_path):
    path = tmp_path / "m.npz"
    matrix([[0.25, 0.5]], stderr=np.ones((1, 2))).save(path)
    content = path.read_bytes()
    read = 0
    for position in range(0, len(content), 5):
        path.write_bytes(content[:position] + bytes([content[position] ^ 0x5A]) + content[position + 1 :])
        try:
            gl.SimilarityMatrix.load(path)
            read += 1
        except ValueError:
            pass
    assert 0 < read < len(content) / 5
