"""Heat maps: what they show is what the matrix says, at any size, without a display and without surprises."""

import itertools
import sys

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import gramless as gl
from gramless.layers.heatmap import heatmap
from support import memory

mpl.use("agg")


def matrix(rows, columns, low=0.0, high=1.0, measure="cka", names="layer"):
    values = np.random.default_rng(0).uniform(low, high, (rows, columns))
    layers = [tuple(f"{names}{i}" for i in range(count)) for count in (rows, columns)]
    return gl.SimilarityMatrix(values, None, *layers, 500, measure, "unbiased")


def frames(ax):
    """(row, column) of each frame."""
    return [(round(p.get_y() + 0.5), round(p.get_x() + 0.5)) for p in ax.patches]


@pytest.mark.parametrize("shape", [(1, 1), (3, 3), (12, 12), (60, 60), (2, 40), (100, 5)])
def test_best_matches_are_framed_and_labels_are_there(tmp_path, shape):
    shown = matrix(*shape)
    ax = heatmap(shown, tmp_path / "map.png")
    assert frames(ax) == list(enumerate(shown.values.argmax(axis=1)))
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels == (list(shown.layers_x) if shape[0] <= 80 else list(shown.layers_x)[::2])
    values = [text.get_text() for text in ax.texts]
    assert values == ([f"{v:.2f}" for v in shown.values.flat] if max(shape) <= 16 else [])


@pytest.mark.parametrize("count", [12, 60])
def test_labels_do_not_overlap(tmp_path, count):
    ax = heatmap(matrix(count, count, names="model.layers.mlp."), tmp_path / "map.png")
    canvas = FigureCanvasAgg(ax.figure)
    canvas.draw()
    for labels in (ax.get_xticklabels(), ax.get_yticklabels()):
        boxes = [label.get_window_extent(canvas.get_renderer()) for label in labels]
        assert not any(a.overlaps(b) for a, b in itertools.pairwise(boxes))
        # in points: what is printed smaller cannot be read
        assert all(label.get_fontsize() >= 6 for label in labels)


@pytest.mark.parametrize(
    ("low", "high", "measure", "limits"),
    [
        (0.2, 0.9, "cka", (0.0, 1.0)),
        (-0.1, 0.9, "cka", (None, 1.0)),
        (0.5, 1.2, "cka", (0.0, None)),
        (0.0, 7.0, "hsic", (0.0, None)),
        (-3.0, -1.0, "hsic", (None, None)),
    ],
)
def test_limits_hide_nothing(tmp_path, low, high, measure, limits):
    shown = matrix(5, 5, low, high, measure)
    image = heatmap(shown, tmp_path / "map.png").images[0]
    assert image.norm.vmin == (shown.values.min() if limits[0] is None else limits[0])
    assert image.norm.vmax == (shown.values.max() if limits[1] is None else limits[1])


def test_colour_bar_names_measure_and_estimator(tmp_path):
    ax = heatmap(matrix(3, 3), tmp_path / "map.png", name_x="a.npz", name_y="b.npz")
    assert [other.get_ylabel() for other in ax.figure.axes if other is not ax] == ["CKA (unbiased)"]
    assert (ax.get_ylabel(), ax.get_xlabel(), ax.get_title()) == (
        "a.npz",
        "b.npz",
        "n = 500, framed: best match of the row",
    )


def test_missing_values_are_grey_and_unframed(tmp_path):
    shown = matrix(3, 3)
    shown.values[1] = np.nan
    shown.values[2, 0] = np.nan
    ax = heatmap(shown, tmp_path / "map.png")
    assert [row for row, _ in frames(ax)] == [0, 2]
    assert len(ax.texts) == 5
    assert ax.get_title() == "n = 500, framed: best match of the row, grey: no value"
    shown.values[:] = np.nan
    assert frames(heatmap(shown, tmp_path / "map.png")) == []


def test_names_are_text_not_markup(tmp_path):
    names = ("$\\frac{$", "a_b^c", "x" * 99, "\x1b[31mred")
    shown = gl.SimilarityMatrix(np.eye(4), None, names, names, 9, "cka", "unbiased")
    ax = heatmap(shown, tmp_path / "map.png", name_x="$x", name_y="$y$")
    assert [label.get_text() for label in ax.get_yticklabels()][:2] == ["$\\frac{$", "a_b^c"]
    assert ax.get_yticklabels()[2].get_text() == "x" * 15 + ".." + "x" * 15
    assert ax.get_yticklabels()[3].get_text() == "?[31mred"


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_formats(tmp_path, suffix):
    heatmap(matrix(3, 3), tmp_path / f"map.{suffix}")
    assert (tmp_path / f"map.{suffix}").stat().st_size > 1000


def test_unknown_format(tmp_path):
    with pytest.raises(ValueError, match="xyz"):
        heatmap(matrix(3, 3), tmp_path / "map.xyz")


def test_given_axes_are_drawn_on(tmp_path):
    figure = Figure()
    left, right = figure.subplots(1, 2)
    assert heatmap(matrix(3, 3), ax=left) is left
    assert heatmap(matrix(3, 3), tmp_path / "both.png", ax=right) is right
    # two maps and their colour bars
    assert len(figure.axes) == 4


def test_matrix_plots_itself(tmp_path):
    matrix(3, 3).plot(tmp_path / "map.png")
    assert (tmp_path / "map.png").exists()
    import matplotlib.pyplot as plt

    ax = matrix(3, 3).plot()
    assert plt.get_fignums() == [ax.figure.number]
    plt.close(ax.figure)


def test_a_file_needs_no_display_and_no_pyplot(tmp_path):
    program = f"""
import sys
import numpy as np
import gramless as gl
x = np.random.default_rng(0).standard_normal((50, 3))
from gramless.layers import heatmap
print("matplotlib" in sys.modules)
gl.cka_matrix([x]).plot({str(tmp_path / "map.png")!r})
print("matplotlib.pyplot" in sys.modules)
"""
    assert memory.run(program, DISPLAY="", MPLBACKEND="agg").split() == ["False", "False"]


def test_missing_matplotlib_is_one_clear_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "gramless\[plot\]"'):
        heatmap(matrix(3, 3))
