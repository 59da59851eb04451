"""A similarity matrix as text: in panels that fit the width, so that a wide grid stays readable in 80 columns."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.text import Text

from .._base.text import printable
from ..files.permutation_null import CalibratedMatrix
from ..layers.similarity_matrix import SimilarityMatrix

MIN_LABEL, MAX_LABEL = 12, 36
# what stands beside two names in the list of best matches
BESIDE_NAMES = 12
# a longer name stands in a key below the table, and its number at the column
MAX_COLUMN_LABEL = 9
MIN_COLUMN = 6
BEST_STYLE = "bold green"


def matrix_lines(matrix: SimilarityMatrix, width: int = 80) -> list[Text]:
    """Lay out a matrix as lines of text.

    Parameters
    ----------
    matrix : SimilarityMatrix
        Values of shape (L1, L2).
    width : int
        Columns of the terminal, which lines keep to if there are at least 40.

    Returns
    -------
    list of rich Text
        Panels of as many columns as fit, values with their standard errors or nulls; the best match of each row has a
        star, and a colour where there are colours; a value within its null has a tilde. With several panels, a list of
        the best matches follows.

    Examples
    --------
    >>> import numpy as np
    >>> import gramless as gl
    >>> from gramless.cli.text_tables import matrix_lines
    >>> x = np.random.default_rng(0).standard_normal((100, 6))
    >>> for line in matrix_lines(gl.cka_matrix({"first": x, "second": x[:, :3]})):
    ...     print(line.plain)
             first   second
    first    1.000    0.679*
    second   0.679*   1.000
    """
    limit = max(MIN_LABEL, min(MAX_LABEL, (width - BESIDE_NAMES) // 2))
    (names_x, frame_x), (names_y, frame_y) = (_shortened(names, limit) for names in (matrix.layers_x, matrix.layers_y))
    keyed = max(map(len, names_y)) > MAX_COLUMN_LABEL
    heads = [f"[{j}]" for j in range(1, len(names_y) + 1)] if keyed else names_y
    # where rows and columns are the same layers, the row labels are the key
    shared = keyed and names_x == names_y
    labels = (
        [f"{head:<{len(heads[-1])}} {name}" for head, name in zip(heads, names_x, strict=True)] if shared else names_x
    )
    label_width = max(map(len, labels))
    cells = [[_cell(matrix, i, j) for j in range(len(names_y))] for i in range(len(names_x))]
    column = max(MIN_COLUMN, *map(len, heads), *(len(cell) for row in cells for cell in row))
    best = matrix.best_columns()
    per_panel = max(1, (width - label_width) // (column + 3))

    lines = [
        Text(_cut(f"{axis} are {frame}", width), "dim")
        for axis, frame in (("rows", frame_x), ("columns", frame_y))
        if frame
    ]
    for first in range(0, len(heads), per_panel):
        shown = range(first, min(first + per_panel, len(heads)))
        if first:
            lines.append(Text())
        if per_panel < len(heads):
            lines.append(Text(f"columns {shown[0] + 1} to {shown[-1] + 1} of {len(heads)}", style="dim"))
        head = " " * label_width + "".join(f"  {heads[j]:>{column}} " for j in shown)
        lines.append(Text(head.rstrip(), style="bold"))
        for i, label in enumerate(labels):
            line = Text(f"{label:<{label_width}}")
            for j in shown:
                cell = f"  {cells[i][j]:>{column}}{'*' if best[i] == j else ' '}"
                line.append(cell, style=BEST_STYLE if best[i] == j else "")
            line.rstrip()
            lines.append(line)
    if keyed and not shared:
        lines += [
            Text(),
            *(Text(f"{head:<{len(heads[-1])}} {name}") for head, name in zip(heads, names_y, strict=True)),
        ]
    if per_panel < len(heads):
        lines += [Text(), Text("best match of each row", style="dim")]
        for name, row, column_of_best in zip(names_x, cells, best, strict=True):
            found = "none" if column_of_best is None else f"{names_y[column_of_best]}  {row[column_of_best]}"
            lines.append(Text(f"{name:<{max(map(len, names_x))}}  {found}"))
    return lines


def print_lines(console: Console, *lines: str | Text) -> None:
    """Print lines as they are: not wrapped, no markup."""
    for line in lines:
        console.print(Text(line) if isinstance(line, str) else line, soft_wrap=True)


def legend(matrix: SimilarityMatrix) -> list[str]:
    """Say what the marks and the numbers beside the values in a table are."""
    lines = ["* best match of the row"]
    if matrix.stderr is not None:
        lines.append("+- standard error, for rows in no order")
    if isinstance(matrix, CalibratedMatrix):
        lines.append(f"(mean, 95 % quantile) over {matrix.n_permutations} permutations of the rows")
        lines.append("~ within that null: no higher than its quantile")
    return lines


def _cell(matrix: SimilarityMatrix, i: int, j: int) -> str:
    if np.isnan(matrix.values[i, j]):
        return "-"
    return ("~" if isinstance(matrix, CalibratedMatrix) and matrix.within_null[i, j] else "") + matrix.text(i, j)


def _shortened(names: Sequence[str], limit: int) -> tuple[list[str], str]:
    """Names without the dotted parts that all of them begin or end with, cut if still long; and what was left out."""
    parts = [printable(name).split(".") for name in names]
    before, after = [], []
    while len(parts) > 1 and min(map(len, parts)) > 1 and len({part[0] for part in parts}) == 1:
        before.append(parts[0][0])
        parts = [part[1:] for part in parts]
    while len(parts) > 1 and min(map(len, parts)) > 1 and len({part[-1] for part in parts}) == 1:
        after.append(parts[0][-1])
        parts = [part[:-1] for part in parts]
    frame = ".".join([*before, "*", *reversed(after)]) if before or after else ""
    return [_cut(".".join(part), limit) for part in parts], frame


def _cut(name: str, limit: int) -> str:
    """Leave out the middle of a long name."""
    half = (limit - 2) // 2
    return name if len(name) <= limit else f"{name[:half]}..{name[-half:]}"
