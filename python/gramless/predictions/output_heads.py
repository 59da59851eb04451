"""What a stream of predictions knows of two models before there are rows: unembeddings, biases and labels."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .._base import arguments
from .._base.arrays import Array, try_as_numpy
from ..ops import logit_arguments
from ..ops.logit_arguments import OutputHead

if TYPE_CHECKING:
    from typing import Self

# rows of each unembedding that its fingerprint is taken of
_SAMPLED_ROWS = 64


@dataclass(frozen=True)
class HeadWeights:
    """Unembeddings of the same labels, never copied, None where logits are given; their biases, softcaps and labels."""

    w1: Array | None
    w2: Array | None
    b1: Any
    b2: Any
    softcap1: float | None
    softcap2: float | None
    labels: NDArray[np.int64] | None

    @classmethod
    def checked(cls, function: str, first: tuple[Any, ...], second: tuple[Any, ...], labels: Any) -> Self:
        """Return weights, checked as far as they can be without rows; a model is given as w, b and softcap."""
        heads = {
            number: logit_arguments.weights(function, w, b, softcap, number)
            for number, (w, b, softcap) in zip("12", (first, second), strict=True)
            if w is not None
        }
        if len(heads) == 2:
            logit_arguments.pair(function, *heads.values())
        if heads:
            labels, _ = logit_arguments.labels_of(function, list(heads.values()), labels)
        else:
            labels = _copied(labels)
        w1, w2 = (heads[number].w if number in heads else None for number in "12")
        given = (("1", first[1]), ("2", second[1]))
        b1, b2 = (heads[number].b if number in heads else _copied(b) for number, b in given)
        return cls(w1, w2, b1, b2, first[2], second[2], labels)

    @property
    def arrays(self) -> dict[str, Array]:
        """Unembeddings by name."""
        return {name: w for name, w in (("w1", self.w1), ("w2", self.w2)) if w is not None}

    def heads(self, function: str, arrays: Mapping[str, Array]) -> list[OutputHead]:
        """Return both models with hidden states h1 and h2, which are checked."""
        heads = []
        for number in "12":
            w, b, softcap = (getattr(self, f"{name}{number}") for name in ("w", "b", "softcap"))
            # a bias beside w is checked, and is not copied once more
            made = logit_arguments.head(function, arrays[f"h{number}"], w, b if w is None else None, softcap, number)
            heads.append(made if w is None else replace(made, b=b))
        logit_arguments.pair(function, *heads)
        return heads

    def fingerprint(self) -> str:
        """Return a hash of shapes, dtypes, biases, labels, and the values of some rows of each unembedding.

        Of unembeddings on a GPU this waits for it.
        """
        digest = hashlib.sha256()
        for w in (self.w1, self.w2):
            if w is None:
                digest.update(b"logits;")
                continue
            count, width = map(int, w.shape)
            digest.update(f"{count} {width} {str(w.dtype).removeprefix('torch.')};".encode())
            rows = np.unique(np.linspace(0, count - 1, _SAMPLED_ROWS).astype(np.int64))
            sampled = w[rows.tolist()]
            values = arguments.to_numpy(sampled.cpu() if arguments.gpu_of(w) else sampled)
            digest.update(values.astype(np.float64).tobytes())
        for vector in (self.b1, self.b2, self.labels):
            found = None if vector is None else try_as_numpy(vector)
            digest.update(b"none;" if found is None else f"{found.shape};".encode() + found.tobytes())
        return digest.hexdigest()


def _copied(value: Any) -> Any:
    """Return a copy of what can be read as an array; what is wrong with it is told with the first rows."""
    found = None if value is None else try_as_numpy(value)
    return value if found is None else found.copy()
