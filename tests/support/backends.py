"""The backends under test. Everything that the package lists must run: nothing here skips."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from support import device

if TYPE_CHECKING:
    from gramless.states.logits import LogitPairState, LogitState


def listed(stem: str | None = None) -> tuple[str, ...]:
    """The host backends of the dispatch table, the compiled one also at its lowest level, and the GPU of a stem."""
    from gramless.ops.backends import BACKENDS

    hosts = [name for name in dict.fromkeys(b for stem in BACKENDS.values() for b in stem) if name != "cuda"]
    gpu = (device.label(),) if stem is not None and device.has_triton() and device.has_kernel(stem) else ()
    return tuple(hosts) + (("cpu-scalar",) if "cpu" in hosts else ()) + gpu


def isa_levels() -> tuple[str, ...]:
    """Instruction sets that the compiled module has here; without it "scalar", so that its tests fail, not vanish."""
    try:
        from gramless import _core
    except ImportError:
        return ("scalar",)
    return tuple(_core.isa_levels())


@contextmanager
def isa(level: str | None) -> Iterator[None]:
    """Force an instruction set; None leaves the choice alone."""
    if level is None:
        yield
        return
    from gramless import _core

    before = _core.isa_level()
    _core.set_isa_level(level)
    try:
        yield
    finally:
        _core.set_isa_level(before)


@contextmanager
def threads(count: int) -> Iterator[None]:
    import gramless as gl

    before = gl.get_num_threads()
    gl.set_num_threads(count)
    try:
        yield
    finally:
        gl.set_num_threads(before)


@dataclass(frozen=True)
class Backend:
    """A backend as the tests see it: the flat dict of a kernel, and the name for the public functions."""

    label: str

    @property
    def name(self) -> str:
        return {"cpu-scalar": "cpu", "interpret": "cuda"}.get(self.label, self.label)

    @property
    def on_device(self) -> bool:
        return self.name == "cuda"

    @property
    def level(self) -> str | None:
        return "scalar" if self.label == "cpu-scalar" else None

    def kernel(self, stem: str, name: str | None = None) -> Callable[..., dict]:
        """A kernel itself, below the checks and the choice of backend; name is that of a second function of a stem.

        One for the GPU takes and returns NumPy like the others, and computes in float64 unless told otherwise.
        """
        rooms = {"reference": f"gramless.reference.{stem}", "cpu": "gramless._core", "cuda": f"gramless._triton.{stem}"}
        function = getattr(importlib.import_module(rooms[self.name]), name or stem)
        return partial(device.call, function) if self.on_device else function

    def array(self, x: np.ndarray) -> object:
        """An array as the public functions take it with this backend: on the GPU where there is one."""
        return device.tensor(x) if self.label == "cuda" else x

    def tensor(self, x: np.ndarray) -> object:
        """The same as a tensor."""
        return device.tensor(x) if self.label == "cuda" else as_torch(x)

    def moments(self, x: object, y: object = None, **keywords: object) -> dict:
        return self.kernel("moments")(x, y, **keywords)

    def gram_sums(self, x: object, y: object = None, **keywords: object) -> dict:
        """The estimated errors that a GPU tells as well are left to tests of its own."""
        found = self.kernel("gram_sums")(x, y, **keywords)
        return {key: value for key, value in found.items() if not key.startswith("error_")}

    def logsumexp(self, *arrays: object, **options: object) -> LogitState:
        return self._of_logits("logsumexp", *arrays, **options)

    def logit_pairs(self, *arrays: object, **options: object) -> LogitPairState:
        return self._of_logits("logit_pairs", *arrays, **options)

    def logit_divergences(self, *arrays: object, **options: object) -> dict[str, np.ndarray]:
        return self._of_logits("logit_divergences", *arrays, **options)

    def _of_logits(self, name: str, *arrays: object, **options: object) -> Any:
        """A public function over logits, of arrays where the backend reads; a GPU computes in float64."""
        from gramless import ops

        if self.on_device:
            arrays = tuple(self.array(a) if isinstance(a, np.ndarray) and a.ndim == 2 else a for a in arrays)
            options = {"precision": "exact"} | options
        return getattr(ops, name)(*arrays, **options, backend=self.name)

    def gram_values(self, layers: list, others: list | None = None, **keywords: object) -> dict:
        return self.kernel("gram_sums", "gram_values")(layers, others, **keywords)

    def __str__(self) -> str:
        return self.label


class OnlyDLPack:
    """A foreign array: nothing but the two DLPack methods."""

    def __init__(self, array: object) -> None:
        self._array = array

    def __dlpack__(self, **keywords: object) -> object:
        return self._array.__dlpack__(**keywords)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._array.__dlpack_device__()


def as_torch(x: np.ndarray) -> object:
    """The same values as a torch CPU tensor, bfloat16 included."""
    import torch

    if x.dtype.name == "bfloat16":
        return torch.from_numpy(x.astype(np.float32)).to(torch.bfloat16)
    return torch.from_numpy(x.copy())


def layouts(x: np.ndarray) -> dict[str, np.ndarray]:
    """The same values in every memory layout a user's slice can have."""
    n, p = x.shape
    wide = np.zeros((2 * n, 3 * p + 1), dtype=x.dtype)
    wide[::2, 1::3][:, :p] = x
    buffer = np.zeros(n * p * x.itemsize + x.itemsize, dtype=np.uint8)
    shifted = buffer[x.itemsize :].view(x.dtype).reshape(n, p)
    shifted[...] = x
    unaligned = np.zeros(n * p * x.itemsize + 1, dtype=np.uint8)[1:].view(x.dtype).reshape(n, p)
    unaligned[...] = x
    readonly = x.copy()
    readonly.setflags(write=False)
    return {
        "c_order": np.ascontiguousarray(x),
        "f_order": np.asfortranarray(x),
        "reversed_rows": np.ascontiguousarray(x[::-1])[::-1],
        "reversed_columns": np.ascontiguousarray(x[:, ::-1])[:, ::-1],
        "sliced": wide[::2, 1::3][:, :p],
        "row_slice": np.concatenate([np.zeros((n, 5), x.dtype), x, np.zeros((n, 3), x.dtype)], axis=1)[:, 5 : 5 + p],
        "offset_by_one_element": shifted,
        "unaligned_by_one_byte": unaligned,
        "read_only": readonly,
    }


LAYOUTS = tuple(layouts(np.zeros((2, 2), np.float32)))
