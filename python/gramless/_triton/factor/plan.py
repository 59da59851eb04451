"""What the factor of two unembeddings takes on a GPU, and rows by it, from shapes and dtypes alone."""

from __future__ import annotations

from typing import NamedTuple

import torch

from .. import moments
from ..tiles import launch, packed_rows
from ..tiles.launch import cdiv
from . import factorization
from . import products as factor_products
from .products import FACTOR_ROWS, FEATURES


class Plan(NamedTuple):
    """What rows take."""

    # "exact" of float64
    precision: str
    # products of planes that are taken for one, of columns of h1 and of all others
    products: tuple[int, int]
    # bytes of the factor in float64 units and in planes, of making them, and of the rows themselves
    units: int
    planes: int
    making_units: int
    making_planes: int
    rows: int


def weights_bytes(labels: int, d1: int, d2: int, label_bytes: int, *, biased: bool, indexed: bool) -> int:
    """Return the most bytes at a time while the factor of so many labels is found, by second moments or its few rows.

    Parameters
    ----------
    label_bytes : int
        Of a row of both unembeddings.
    indexed : bool
        Whether not all labels count.
    """
    q, width = d2 + biased, d1 + d2 + biased
    # marks of all rows and their keys, labels that count, and biases
    base = (64 + 8 * indexed + 8 * biased) * labels + 4 * label_bytes
    if labels <= width:
        # is each value finite: its size, and three answers
        return base + (8 + 8 + 3) * labels * width
    rows = min(labels, max(factorization._LEAST_ROWS, _rows_held(q)))
    sums = 8 * (d1 * d1 + 5 * d1 + 1 + q * q + 5 * q + 1 + d1 * q + d1 + q + 1)
    # copies of rows, beside those of the block before
    copies = indexed * label_bytes * rows * (2 if labels >= 2 * rows else 1)
    during = 8 * rows * q + copies + sums + moments.scratch_bytes(rows, d1, q, "exact")
    # second moments, and the root of them or the sums of a block
    return base + 8 * width * width + max(during, 8 * width * width)


def _rows_held(right_width: int) -> int:
    """Return how many rows of M in float64 the workspace holds."""
    return launch.WORKSPACE_BYTES // (8 * right_width * packed_rows.ROWS) * packed_rows.ROWS


def plan(
    n: int,
    count: int,
    d1: int,
    d2: int,
    kinds: tuple[str, str],
    *,
    biased: bool,
    masked: bool,
    precision: str,
    device: str = "",
) -> Plan:
    """Return what rows of these dtypes take by a factor of so many rows, in the interpreter if the device has no name.

    Of rows that cancel so far that they are done again, nothing is said.
    """
    if "float64" in kinds:
        precision = "exact"
    split = cdiv(d1, FEATURES) * FEATURES
    width = split + cdiv(d2 + biased, FEATURES) * FEATURES
    values, given = max(1, cdiv(count, FACTOR_ROWS)) * FACTOR_ROWS * width, count * (d1 + d2 + biased)
    terms = 0 if precision == "exact" else packed_rows.terms_of(precision)
    alone = precision != "high" or (kinds == ("bfloat16", "bfloat16") and d1 != d2)
    lower = 0 if alone else split if kinds[1] == "bfloat16" else width
    per_row = (2 if terms else 8) * (width + lower)
    rows = (
        min(cdiv(n, packed_rows.ROWS), max(1, launch.WORKSPACE_BYTES // (per_row * packed_rows.ROWS)))
        * packed_rows.ROWS
    )
    again = max(1, rows * per_row // (8 * width * packed_rows.ROWS)) * packed_rows.ROWS
    name = launch.architecture(torch.device(device or "cpu"))
    tiles, exact_tiles = (
        cdiv(count, launch.candidates(factor_products.CONFIGS[one], name)[0].block_j) for one in (precision, "exact")
    )
    partials = max((4 if terms else 8) * tiles * rows, 8 * exact_tiles * min(again, rows))
    # planes, a unit, what cancels and whether a row is done again; or results on their way to the host
    chunk = max(max(rows * per_row, again * 8 * width) + (16 + 4) * rows + partials, (16 + 16 * masked) * n)
    return Plan(
        precision,
        (max(terms, 1) + (lower > 0), max(terms, 1) + (lower == width)),
        8 * values,
        2 * terms * values,
        # the matrix as it was given, and which of its values are not zero
        8 * given + 2 * values,
        # of a few rows what is left, also beside what it is made of
        2 * 4 * FACTOR_ROWS * width if terms else 0,
        # results, and the rows that count
        (16 + masked) * n + chunk,
    )
