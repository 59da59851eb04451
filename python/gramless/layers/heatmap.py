"""Heat maps of similarity matrices. It needs matplotlib, which is loaded when a plot is asked for."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from .._base.text import decimal, printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .similarity_matrix import SimilarityMatrix

# inches of a cell: with its value in it, or without
CELL_WITH_VALUE, CELL = 0.46, 0.17
# more layers than this leave no room for values in the cells, or for a label at each
MAX_WITH_VALUES, MAX_LABELS = 16, 80
MAX_LABEL = 32
# inches of the colour bar
MIN_BAR, MAX_BAR, BAR_WIDTH, BAR_GAP = 1.3, 4.0, 0.14, 0.14
ABBREVIATIONS = ("cca", "cka", "hsic", "rbf")
BAD_COLOUR, MARK_COLOUR = "#d9d9d9", "#e6332a"


def heatmap(
    matrix: SimilarityMatrix,
    path: str | os.PathLike[str] | None = None,
    ax: Any = None,
    *,
    name_x: str = "",
    name_y: str = "",
) -> Any:
    """Draw a similarity matrix, rows downwards, with a red frame around the best match of each row.

    Colours span at least 0 to 1 for CKA and all values in any case: what is negative is shown as negative. Cells
    without a value are grey.

    Parameters
    ----------
    matrix : SimilarityMatrix
        Values of shape (L1, L2), NaN allowed.
    path : path, optional
        Where to save it: ``.png``, ``.pdf``, ``.svg``, ...
    ax : matplotlib Axes, optional
        Where to draw it. Default: a figure of its own, sized so that labels stay readable.
    name_x, name_y : str
        Names of the two models, for the axes.

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ModuleNotFoundError
        If matplotlib is not installed.
    ValueError
        If the format is not one that matplotlib knows.

    Examples
    --------
    >>> import matplotlib
    >>> matplotlib.use("agg")
    >>> import numpy as np
    >>> import gramless as gl
    >>> from gramless.layers.heatmap import heatmap
    >>> x = np.random.default_rng(0).standard_normal((100, 6))
    >>> ax = heatmap(gl.cka_matrix({"first": x, "second": x[:, :3]}), "cka.png")
    >>> ax.get_title()
    'n = 100, framed: best match of the row'
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.patches import Rectangle
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f'heatmap: {error.name} is not installed: pip install "gramless[plot]"') from error

    rows, columns = matrix.values.shape
    with_values = max(rows, columns) <= MAX_WITH_VALUES
    bar_ax = None
    if ax is None:
        cell = CELL_WITH_VALUE if with_values else CELL
        ax, bar_ax = _axes_of(_shown_figure() if path is None else Figure(), columns * cell, rows * cell)

    low, high = _limits(matrix)
    masked = np.ma.masked_invalid(matrix.values)
    ax.set_facecolor(BAD_COLOUR)
    image = ax.imshow(masked, cmap="viridis", vmin=low, vmax=high, interpolation="nearest", aspect="equal")
    font = 7.5 if with_values else 6.0
    _label(ax.xaxis, matrix.layers_y, font, upright=columns > MAX_WITH_VALUES)
    _label(ax.yaxis, matrix.layers_x, font)
    ax.tick_params(length=2, width=0.5)
    ax.set_xlabel(printable(name_y), fontsize=9, parse_math=False)
    ax.set_ylabel(printable(name_x), fontsize=9, parse_math=False)
    grey = ", grey: no value" if masked.mask.any() else ""
    ax.set_title(f"n = {matrix.n:,}, framed: best match of the row{grey}", fontsize=9)
    for spine in ax.spines.values():
        spine.set_linewidth(0.5)

    if with_values:
        _write_values(ax, masked, low, high)
    width = 1.6 if with_values else 0.9
    for i, j in enumerate(matrix.best_columns()):
        if j is not None:
            corner = (j - 0.5, i - 0.5)
            ax.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=MARK_COLOUR, linewidth=width, clip_on=False))

    bar = ax.figure.colorbar(image, ax=None if bar_ax is not None else ax, cax=bar_ax)
    bar.set_label(f"{spelled(matrix.measure)} ({matrix.estimator.replace('_', '-')})", fontsize=8)
    bar.ax.tick_params(labelsize=7, length=2, width=0.5)
    bar.outline.set_linewidth(0.5)
    if path is not None:
        ax.figure.savefig(path, dpi=200, bbox_inches="tight")
    return ax


def _axes_of(figure: Any, width: float, height: float) -> tuple[Any, Any]:
    """Lay out a map of the given size in inches, and a colour bar of readable height beside it."""
    bar = min(max(height, MIN_BAR), MAX_BAR)
    left, below, right, above = 1.3, 1.2, 1.0, 0.4
    total = (left + width + right, below + max(height, bar) + above)
    figure.set_size_inches(total)
    top = total[1] - above
    boxes = ((left, top - height, width, height), (left + width + BAR_GAP, top - bar, BAR_WIDTH, bar))
    map_ax, bar_ax = (figure.add_axes((x / total[0], y / total[1], w / total[0], h / total[1])) for x, y, w, h in boxes)
    return map_ax, bar_ax


def _shown_figure() -> Any:
    """Make a figure that a notebook or a window shows."""
    import matplotlib.pyplot as plt

    return plt.figure()


def _limits(matrix: SimilarityMatrix) -> tuple[float, float]:
    finite = matrix.values[np.isfinite(matrix.values)]
    least, most = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    high = max(1.0, most) if matrix.measure.endswith("cka") else most
    low = min(0.0, least)
    return low, high if high > low else low + 1.0


def _label(axis: Any, names: Sequence[str], font: float, *, upright: bool = False) -> None:
    step = -(-len(names) // MAX_LABELS)
    shown = [_elided(printable(name)) for name in names][::step]
    axis.set_ticks(range(0, len(names), step), labels=shown)
    turned = axis.axis_name == "x" and (upright or max(map(len, shown)) > 6)
    for label in axis.get_ticklabels():
        label.set(fontsize=font, parse_math=False, rotation=90 if turned else 0)


def _write_values(ax: Any, values: Any, low: float, high: float) -> None:
    for i, j in zip(*np.nonzero(~np.ma.getmaskarray(values)), strict=True):
        value = float(values[i, j])
        # the upper part of the colour map is light
        colour = "black" if (value - low) / (high - low) > 0.6 else "white"
        ax.text(j, i, decimal(value, 2), ha="center", va="center", fontsize=7.5, color=colour)


def _elided(name: str) -> str:
    half = (MAX_LABEL - 2) // 2
    return name if len(name) <= MAX_LABEL else f"{name[:half]}..{name[-half:]}"


def spelled(measure: str) -> str:
    """Spell a measure as people do.

    Examples
    --------
    >>> from gramless.layers.heatmap import spelled
    >>> spelled("rbf cka"), spelled("mean_cca")
    ('RBF CKA', 'mean CCA')
    """
    words = measure.replace("_", " ").split()
    return " ".join(word.upper() if word in ABBREVIATIONS else word for word in words)
