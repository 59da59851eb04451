"""Hidden states, unembeddings and targets on disk: found and checked by their headers alone."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TypeAlias

from .._base.text import printable
from .folders import open_layers
from .formats import Entry, read_entries
from .layer_source import FLOATS, Layer, LayerSource

if TYPE_CHECKING:
    from typing import Self

PathLike: TypeAlias = "str | os.PathLike[str]"

HIDDEN, UNEMBEDDING, BIAS, LOGITS, TARGETS = "hidden", "unembedding", "bias", "logits", "targets"
KINDS = "float16, bfloat16, float32 or float64"


@dataclass(frozen=True)
class LogitModel:
    """One model on disk: hidden states (N, d) as a source of one layer, unembedding (V, d) and bias (V,)."""

    side: str
    source: LayerSource
    unembedding: Entry | None
    bias: Entry | None

    @property
    def hidden(self) -> Layer:
        """The hidden states, or logits where there is no unembedding."""
        return self.source.layers[0]

    @property
    def labels(self) -> int:
        """Number of labels V."""
        return self.hidden.width if self.unembedding is None else self.unembedding.shape[0]

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that is read."""
        heads = [entry.path for entry in (self.unembedding, self.bias) if entry is not None]
        return tuple(dict.fromkeys([*self.source.files, *heads]))

    def __str__(self) -> str:
        parts = [f"{self.source.n} rows", *([] if self.unembedding is None else [f"{self.hidden.width} wide"])]
        parts += [f"{self.labels} labels", *(["with bias"] if self.bias else [])]
        return f"{printable(self.source.path)}: {', '.join(parts)}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.source.close()


def open_logit_model(
    side: str,
    path: PathLike,
    unembedding: PathLike | None = None,
    bias: PathLike | None = None,
    *,
    logits: bool = False,
) -> LogitModel:
    """Open one model on disk; only headers are read.

    Parameters
    ----------
    side : {"A", "B"}
        How messages call it.
    path : path
        A ``.safetensors`` or ``.npz`` file with "hidden", "unembedding" and maybe "bias". Or hidden states alone: a
        ``.npy`` file, a file or a folder of row shards with "hidden", or a folder of ``.npy`` row shards. Other entries
        are passed over, but for "ids", which names the rows.
    unembedding, bias : path, optional
        Where these are in another file: the path of a file that holds one array or one of this name, or ``file:entry``.
    logits : bool
        The file holds "logits" (N, V) in place of hidden states, and there is no unembedding.

    Raises
    ------
    OSError
        If a file is missing or unreadable.
    ValueError
        If a file is damaged or holds something else, or shapes do not fit. The message names the file.
    """
    if logits and unembedding is not None:
        raise ValueError(f"{side}: logits need no unembedding, got {printable(unembedding)}")
    place = Path(path)
    source = _opened(place, LOGITS if logits else HIDDEN)
    if len(source.layers) != 1:
        raise ValueError(f"{printable(place)}: expected one array of hidden states, got {len(source.layers)} layers")
    found = None if logits else _unembedding(side, place, unembedding)
    model = LogitModel(side, source, found, _bias(place, found, bias))
    if found is not None and found.shape[1] != model.hidden.width:
        raise ValueError(
            f"{found.label}: expected one column for each of the {model.hidden.width} features of the hidden states of "
            f"{side}, got shape {found.shape}"
        )
    if model.bias is not None and model.bias.shape != (model.labels,):
        raise ValueError(
            f"{model.bias.label}: expected one number for each of the {model.labels} labels of {side}, got shape "
            f"{model.bias.shape}"
        )
    return model


def open_targets(word: PathLike, source: LayerSource) -> Layer:
    """Open the targets (N,) of the rows of a source."""
    found = _array(word, TARGETS)
    if len(found.shape) != 1 or found.storage.kind not in "iu" or found.dtype == "bfloat16":
        raise ValueError(
            f"{found.label}: expected targets (N,) of whole numbers, got shape {found.shape} of "
            f"{printable(found.dtype)}"
        )
    if found.shape[0] != source.n:
        raise ValueError(f"{found.label}: {found.shape[0]} targets for {source.n} rows of {printable(source.path)}")
    return Layer(TARGETS, (found,))


def _is_npy(place: Path) -> bool:
    if not place.is_dir():
        return place.suffix.lower() == ".npy"
    return any(child.suffix.lower() == ".npy" and not child.name.startswith(".") for child in place.iterdir())


def _array(word: PathLike, name: str) -> Entry:
    """Find the array that ``file`` or ``file:entry`` names."""
    place, entry = Path(word), None
    if not place.exists() and ":" in os.fspath(word):
        text, _, entry = os.fspath(word).rpartition(":")
        place = Path(text)
    if not place.exists():
        raise FileNotFoundError(f"{printable(place)}: no such file")
    # a pipe would block, a device would never end
    if not place.is_file():
        raise ValueError(f"{printable(place)}: not a regular file")
    found = {array.name: array for array in read_entries(place)}
    if entry is None and len(found) == 1:
        return next(iter(found.values()))
    chosen = found.get(name if entry is None else entry)
    if chosen is None:
        held = ", ".join(map(printable, list(found)[:6])) + (" and others" if len(found) > 6 else "")
        wanted = printable(name if entry is None else entry)
        advice = f"; name another as {printable(place)}:ENTRY" if entry is None else ""
        raise ValueError(f"{printable(place)}: holds no entry named {wanted!r}, it holds {held or 'none'}{advice}")
    return chosen


def _opened(place: Path, name: str) -> LayerSource:
    """Return the one array of a model, in the words of a model."""
    try:
        return open_layers(place, None if _is_npy(place) else name)
    except ValueError as error:
        text = str(error).replace(f"no layer matches '{name}'; it holds", f"holds no entry named {name!r}, it holds")
        if text != str(error):
            other = "; --logits takes logits (N, V) for them" if name == HIDDEN else ""
            raise ValueError(f"{text}; save it under that name{other}") from None
        # one row for each token, and nothing to choose
        text = re.sub(r"; flatten it with .*", "; take tokens for rows, x.reshape(-1, x.shape[-1])", text)
        raise ValueError(text) from None


def _unembedding(side: str, place: Path, given: PathLike | None) -> Entry:
    if given is None:
        held = [] if place.is_dir() or place.suffix.lower() == ".npy" else read_entries(place)
        named = [entry for entry in held if entry.name == UNEMBEDDING]
        if not named:
            raise ValueError(
                f"{printable(place)}: holds no {UNEMBEDDING}; give --unembedding-{side.lower()}, or --logits"
            )
        found = named[0]
    else:
        found = _array(given, UNEMBEDDING)
    if found.dtype not in FLOATS or len(found.shape) != 2 or 0 in found.shape:
        raise ValueError(
            f"{found.label}: expected an unembedding (V, d) of {KINDS}, got shape {found.shape} of "
            f" {printable(found.dtype)}"
        )
    return found


def _bias(place: Path, unembedding: Entry | None, given: PathLike | None) -> Entry | None:
    """Find the bias: where it was said to be, or else beside the unembedding, or the hidden states."""
    found: Entry | None = None
    if given is not None:
        found = _array(given, BIAS)
    elif unembedding is not None:
        paths = dict.fromkeys([unembedding.path, *([place] if place.is_file() else [])])
        held = [entry for path in paths if path.suffix.lower() != ".npy" for entry in read_entries(path)]
        found = next((entry for entry in held if entry.name == BIAS), None)
    if found is not None and (found.dtype not in FLOATS or len(found.shape) != 1):
        raise ValueError(
            f"{found.label}: expected a bias (V,) of {KINDS}, got shape {found.shape} of {printable(found.dtype)}"
        )
    return found
