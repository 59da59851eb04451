"""Squared distances of rows by the factor of two unembeddings, on a GPU: a chunk of rows is packed, and multiplied.

Cost: at N = 16384, D = 8192, bfloat16 and "high" 2.5e12 flops, three times what "fast" takes, beside which 4e8 bytes of
planes and as many of hidden states are little. The factor is held in float64, and in the planes of each precision that
was asked for: 8 and 2 or 4 bytes of D^2 values. Peak extra bytes: _launch.WORKSPACE_BYTES, or planes of 128 rows.
Numerics: rows and factor are in units of powers of 2 (`_factor_pack`). "high" holds 16 bits of each value, "fast" 8, so
that a squared distance is off by 2e-5 or 8e-3 of what cancels in it, at the most. Rows in which that is over 32 or 8
times the distance are done again in float64. Which ones is known on the device alone: a second round of launches finds
none, and ends, where there are none.
Rejected: a warning that tells of such rows, where the host has digits to spare; three planes, six products of all rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ..tiles import launch, packed_rows
from ..tiles.launch import cdiv
from .pack import NO_ROW, Basis, Planes, States, pack
from .products import FACTOR_ROWS, FEATURES, partials_of
from .row_sums import NUMBERS as NUMBERS
from .row_sums import add_rows as add_rows
from .row_sums import settle

# the most that may cancel in a row before it is done again: the root of sums of (u_j c_j)^2 over the distance
MOST_CANCELLED = {"fast": 8.0, "high": 32.0}


@dataclass(frozen=True)
class Found:
    """What is found of rows on the device."""

    squares: torch.Tensor  # (N,) float64, squared distances
    cancelled: torch.Tensor  # (N,) float64, the root of what cancels over that
    first_bad: torch.Tensor  # (2,) int64, the first row of either array that is not finite


class DeviceFactor:
    """A factor on a device: in float64, and in the planes of each precision that was asked for."""

    def __init__(self, matrix: torch.Tensor, d1: int, d2: int, biased: bool) -> None:
        """Take a factor (r, D), float64, which is copied."""
        device, self.count = matrix.device, int(matrix.shape[0])
        split = cdiv(d1, FEATURES) * FEATURES
        width = split + cdiv(d2 + biased, FEATURES) * FEATURES
        rows = max(1, cdiv(self.count, FACTOR_ROWS)) * FACTOR_ROWS
        exact = torch.zeros((1, rows, width), dtype=torch.float64, device=device)
        exact[0, : self.count, :d1] = matrix[:, :d1]
        exact[0, : self.count, split : split + d2 + biased] = matrix[:, d1:]
        # without a copy of the matrix
        units = _powers(torch.maximum(exact[0].amax(dim=0), -exact[0].amin(dim=0)))
        exact /= units
        self.basis = Basis(d1, d2, biased, split, width, units, _squared_lengths(exact[0]))
        self.spans = _spans(exact[0])
        self._planes = {"exact": (exact, _made(device))}

    @property
    def precisions(self) -> tuple[str, ...]:
        """Those in which it is there."""
        return tuple(self._planes)

    def matrix(self) -> torch.Tensor:
        """Return the factor that was given, but for values beyond the range of float64 in the unit of their column."""
        basis, (exact, _) = self.basis, self._planes["exact"]
        values = exact[0, : self.count] * basis.units
        return torch.cat([values[:, : basis.d1], values[:, basis.split :][:, : basis.d2 + basis.biased]], dim=1)

    def planes(self, precision: str) -> torch.Tensor:
        """Return the factor (terms, rows, width) as products take it, on the current stream."""
        exact, made = self._planes["exact"]
        _after(made, exact.device)
        if precision not in self._planes:
            shape = (packed_rows.terms_of(precision), *exact.shape[1:])
            planes = torch.empty(shape, dtype=torch.bfloat16, device=exact.device)
            for start in range(0, shape[1], FACTOR_ROWS):
                own = slice(start, start + FACTOR_ROWS)
                rest = exact[0, own].float()
                for plane in planes:
                    plane[own] = rest
                    rest -= plane[own]
            self._planes[precision] = planes, _made(exact.device)
        planes, made = self._planes[precision]
        _after(made, exact.device)
        return planes

    def rows(
        self, h1: torch.Tensor, h2: torch.Tensor, mask: torch.Tensor | None, precision: str, first: int = 0
    ) -> Found:
        """Return what is found of all rows, without a wait; rows that do not count are zero.

        Rows are numbered from the first; of faults there is NO_ROW where there are none.
        """
        n, device = int(h1.shape[0]), h1.device
        if torch.float64 in (h1.dtype, h2.dtype):
            precision = "exact"
        found = Found(
            torch.empty(n, dtype=torch.float64, device=device),
            torch.empty(n, dtype=torch.float64, device=device),
            torch.full((2,), NO_ROW, dtype=torch.int64, device=device),
        )
        if n == 0:
            return found
        # units and spans are read before planes are
        self.planes(precision)
        states = States(h1, h2, mask)
        chunk = _Chunk(self, states, precision)
        for start in range(0, n, chunk.rows):
            stop = min(start + chunk.rows, n)
            bad = chunk.measure(states, found, start, stop, first + start)
            torch.minimum(found.first_bad, bad, out=found.first_bad)
        return found


class _Chunk:
    """Memory for some rows at a time."""

    def __init__(self, factor: DeviceFactor, states: States, precision: str) -> None:
        self.factor, self.precision = factor, precision
        basis, device = factor.basis, states.h1.device
        # what is of bfloat16 is so in any unit, but no difference of such values
        given = [h.dtype == torch.bfloat16 for h in (states.h1, states.h2)]
        alone = precision != "high" or (all(given) and not basis.differences)
        self.lower = 0 if alone else basis.split if given[1] else basis.width
        item = 8 if precision == "exact" else 2
        per_row = item * (basis.width + self.lower)
        rows = max(1, launch.WORKSPACE_BYTES // (per_row * packed_rows.ROWS))
        self.rows = min(cdiv(int(states.h1.shape[0]), packed_rows.ROWS), rows) * packed_rows.ROWS
        self.exact_rows = max(1, self.rows * per_row // (8 * basis.width * packed_rows.ROWS)) * packed_rows.ROWS
        # rows that are done again in float64 take the same memory, a few at a time
        held = max(self.rows * per_row, self.exact_rows * 8 * basis.width)
        self.memory = torch.empty(held, dtype=torch.uint8, device=device)
        self.numbers = torch.empty((2, self.rows), dtype=torch.float64, device=device)
        self.wanted = torch.empty(self.rows, dtype=torch.int32, device=device)

    def measure(self, states: States, found: Found, start: int, stop: int, first: int) -> torch.Tensor:
        """Write what is found of some rows, and return the first ones at fault."""
        bad = self._round(states, found, start, stop, self.wanted, first)
        if self.precision != "exact":
            for begin in range(start, stop, self.exact_rows):
                wanted = self.wanted[begin - start : begin - start + self.exact_rows]
                self._round(states, found, begin, min(begin + self.exact_rows, stop), wanted, None)
        return bad

    def _round(
        self, states: States, found: Found, start: int, stop: int, wanted: torch.Tensor, first: int | None
    ) -> torch.Tensor:
        """Write what is found of some rows, numbered from the first; or with None, in float64, of those wanted."""
        again = first is None
        precision = "exact" if again else self.precision
        rows = cdiv(stop - start, packed_rows.ROWS) * packed_rows.ROWS
        factor, planes, own = self.factor, self._planes(rows, precision), slice(start, stop)
        wanted = wanted[:rows]
        taken = wanted if again else None
        bad = pack(states[own], factor.basis, planes, taken, first or 0)
        basis, held = factor.basis, factor.planes(precision)
        partials = partials_of(planes, held, factor.spans, factor.count, basis.split, precision, taken)
        most = None if again else MOST_CANCELLED.get(precision, math.inf)
        settle(partials, planes, found.squares[own], found.cancelled[own], wanted, most)
        return bad

    def _planes(self, rows: int, precision: str) -> Planes:
        """Return planes of so many rows in this memory."""
        width, units, terms = self.factor.basis.width, *self.numbers[:, :rows]
        dtype = packed_rows.dtype_of(precision)
        lower = 0 if precision == "exact" else self.lower
        held = self.memory[: rows * (width + lower) * dtype.itemsize].view(dtype)
        below = held[rows * width :].view(rows, lower) if lower else None
        return Planes(held[: rows * width].view(rows, width), below, units, terms)


def _made(device: torch.device) -> torch.cuda.Event | None:
    """Return an event that says when what is made so far on the current stream is there."""
    return torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None


def _after(made: torch.cuda.Event | None, device: torch.device) -> None:
    """Let the current stream wait for an event; the stream that is captured into a graph may not, and has it behind."""
    if made is not None and not torch.cuda.is_current_stream_capturing():
        torch.cuda.current_stream(device).wait_event(made)


def _powers(sizes: torch.Tensor) -> torch.Tensor:
    """Return the powers of 2 at or below numbers of at least 0, 1 for 0."""
    # the bits of the exponent
    powers = (sizes.view(torch.int64) & (0x7FF << 52)).view(torch.float64)
    return torch.where(sizes > 0, powers.clamp_min(torch.finfo(torch.float64).tiny), 1.0)


def _squared_lengths(matrix: torch.Tensor) -> torch.Tensor:
    """Return the squared lengths of the columns, without a square of the matrix."""
    lengths: torch.Tensor = torch.linalg.vector_norm(matrix, dim=0)
    return lengths.square()


def _spans(matrix: torch.Tensor) -> torch.Tensor:
    """Return the first column (2, rows) of each row that is not zero and the one after the last; width, 0 of none."""
    width = int(matrix.shape[1])
    filled = (matrix != 0).to(torch.uint8)
    some = filled.amax(dim=1) > 0
    first = torch.where(some, filled.argmax(dim=1), width)
    last = torch.where(some, width - filled.flip(1).argmax(dim=1), 0)
    return torch.stack([first, last]).to(torch.int32)
