"""Tables of any size fit the terminal and are complete."""

import re

import numpy as np
import pytest

import gramless as gl
from gramless.cli import text_tables


def grid(rows, columns, name="layer"):
    values = np.random.default_rng(0).uniform(-1, 1, (rows, columns))
    values[0, 0] = -1e-5
    layers = [tuple(f"{name}{i}" for i in range(count)) for count in (rows, columns)]
    return gl.SimilarityMatrix(values, None, *layers, 9, "cka", "unbiased")


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("shape", [(1, 1), (5, 5), (12, 12), (60, 60), (3, 40), (40, 3)])
@pytest.mark.parametrize("name", ["h", "model.layers.", "encoder.block.attention.output.", "name_" * 9])
def test_any_grid_fits_the_width_and_is_complete(shape, width, name):
    matrix = grid(*shape, name)
    lines = [line.plain for line in text_tables.matrix_lines(matrix, width)]
    assert all(len(line) <= width for line in lines)
    table = lines[: lines.index("best match of each row")] if "best match of each row" in lines else lines
    cells = re.findall(r"(?<= )(-?\d\.\d{3})(\*?)", "\n".join(table))
    shown = sorted(f"{value:.3f}".replace("-0.000", "0.000") for value in matrix.values.flat)
    assert sorted(value for value, _ in cells) == shown
    assert sum(bool(star) for _, star in cells) == shape[0]


def test_long_names_have_a_key():
    square = [line.plain for line in text_tables.matrix_lines(grid(3, 3, "a_rather_long_name_"), 80)]
    assert square[0].split() == ["[1]", "[2]", "[3]"]
    assert [line.split()[:2] for line in square[1:]] == [[f"[{i + 1}]", f"a_rather_long_name_{i}"] for i in range(3)]
    names = ("quite_a_long_name", "and_another_one")
    matrix = gl.SimilarityMatrix(np.eye(2), None, ("a", "b"), names, 9, "cka", "biased")
    lines = [line.plain for line in text_tables.matrix_lines(matrix, 80)]
    assert lines[-2:] == ["[1] quite_a_long_name", "[2] and_another_one"]


def test_names_lose_what_they_share():
    matrix = gl.SimilarityMatrix(np.eye(2), None, ("m.h.0.mlp", "m.h.10.mlp"), ("x.a", "y.a"), 9, "cka", "biased")
    lines = [line.plain for line in text_tables.matrix_lines(matrix, 80)]
    assert lines[:2] == ["rows are m.h.*.mlp", "columns are *.a"]
    assert [line.split() for line in lines[2:]] == [["x", "y"], ["0", "1.000*", "0.000"], ["10", "0.000", "1.000*"]]
