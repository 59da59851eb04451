"""What gram_sums holds of an array: the kernel fitted to it, pieces of its rows, packed, and sums over rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..tiles.packed_rows import PackedRows
from .kernel_functions import FittedKernel
from .plan import Piece


@dataclass(frozen=True)
class Block:
    """Packed rows with what kernel values take of one row, in the number of the products."""

    rows: PackedRows
    norms: torch.Tensor


class Side:
    """One array with the kernel fitted to it, the packed rows that are held, and its sums."""

    def __init__(self, array: torch.Tensor, fitted: FittedKernel) -> None:
        self.array, self.fitted = array, fitted
        self.number = torch.float64 if fitted.precision == "exact" else torch.float32
        self.parameters = fitted.parameters.to(self.number)
        shape, device = (len(fitted.offsets), array.shape[0]), array.device
        self.rows = torch.zeros(shape, dtype=torch.float64, device=device)
        self.diagonal = torch.zeros(shape, dtype=torch.float64, device=device)
        self.first_bad, self.first_zero = torch.full((2,), shape[1], dtype=torch.int64, device=device)
        self.held: dict[Piece, Block] = {}

    def keep(self, piece: Piece) -> None:
        """Hold one piece at the most."""
        self.held = {piece: self.held[piece]} if piece in self.held else {}

    def block(self, piece: Piece, padding: int) -> Block:
        """Return these rows packed, a multiple of so many."""
        if piece not in self.held:
            packed = self.fitted.pack(self.array[slice(*piece)], padding)
            self.held[piece] = Block(packed, self.fitted.norms(packed).to(self.number))
            self.first_bad = self._first(self.first_bad, packed.first_bad, piece)
            self.first_zero = self._first(self.first_zero, packed.first_zero, piece)
        return self.held[piece]

    def _first(self, known: torch.Tensor, found: torch.Tensor, piece: Piece) -> torch.Tensor:
        """Return the first of all rows, where one has been found among those of a piece."""
        first, last = piece
        return torch.where(found < last - first, torch.minimum(known, found + first), known)
