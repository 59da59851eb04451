"""Arrays of any library, brought in as NumPy or torch: two-dimensional, floating, and truly in memory."""

from __future__ import annotations

import sys
from typing import Any, NoReturn, TypeAlias

import numpy as np
from numpy.typing import NDArray

# an array of any library that the array API knows
Array: TypeAlias = Any

Float64 = NDArray[np.float64]

FLOATS = ("float16", "bfloat16", "float32", "float64")
# names of hidden states, which come as (batch, tokens, features)
_HIDDEN = ("h", "h1", "h2")
# device codes of DLPack for memory that the host reads directly, and for that of CUDA and ROCm
_HOST_DEVICES = (1, 3)
_GPU_DEVICES = (2, 10)


def rows(function: str, name: str, x: Any, *, allow_empty: bool = False, on_gpu: bool = False) -> Array:
    """Return a 2-d floating array, NumPy or torch, without a copy; on the host, unless a GPU will do as well."""
    # the type is asked, since an instance may say anything of itself
    kind = type(x)
    if issubclass(kind, np.ndarray):
        array = _numpy_rows(function, name, x)
    elif is_torch(x):
        array = _torch_rows(function, name, x, on_gpu)
    elif hasattr(kind, "__dlpack__") and hasattr(kind, "__dlpack_device__"):
        made = _from_dlpack(function, name, x, on_gpu)
        return rows(function, name, made, allow_empty=allow_empty, on_gpu=on_gpu)
    else:
        _refuse_kind(function, name, x)
    shape = tuple(int(length) for length in array.shape)
    if len(shape) != 2:
        advice = "flatten or pool first"
        if name in _HIDDEN and len(shape) > 2:
            advice = f"use {name}.reshape(-1, {shape[-1]}) for one row of each token, and flat mask and targets"
        raise ValueError(f"{function}: {name}: expected a 2-d array (rows, features), got shape {shape}, {advice}")
    if shape[1] == 0 or (shape[0] == 0 and not allow_empty):
        raise ValueError(f"{function}: expected {name} with at least one row and one feature, got shape {shape}")
    return array


def is_torch(x: Any) -> bool:
    """Return whether this is a torch tensor; torch is never imported for it."""
    torch = sys.modules.get("torch")
    tensor = getattr(torch, "Tensor", None)
    return tensor is not None and issubclass(type(x), tensor)


def _numpy_rows(function: str, name: str, x: NDArray[Any]) -> NDArray[Any]:
    # numpy imports this part of itself on first use, and an import can hang in a forked child
    # and while another thread imports it, it is there without its names
    masked = getattr(sys.modules.get("numpy.ma"), "MaskedArray", None)
    if masked is not None and isinstance(x, masked):
        raise TypeError(f"{function}: {name} is a masked array; drop the masked rows and pass a plain array")
    plain = np.asarray(x)
    # the name of a dtype is slow to get
    if plain.dtype.char not in "efd":
        _check_dtype(function, name, plain.dtype.name, f"{name}.astype(np.float32)")
    if not plain.dtype.isnative:
        raise TypeError(f"{function}: {name} has foreign byte order; use {name}.astype(np.{plain.dtype.name})")
    return plain


def gpu_of(x: Array) -> str:
    """Return the name of the GPU that holds an array, "" if the host does."""
    return str(x.device) if is_torch(x) and x.device.type == "cuda" else ""


def _torch_rows(function: str, name: str, x: Any, on_gpu: bool) -> Any:
    torch = sys.modules["torch"]
    if x.layout is not torch.strided:
        raise TypeError(f"{function}: expected a dense tensor for {name}, got layout {x.layout}; use {name}.to_dense()")
    try:
        plain = x.detach() if type(x) is torch.Tensor else _as_plain(torch, x)
    except (RuntimeError, TypeError):
        _refuse_storage(function, name, x)
    _check_dtype(function, name, str(plain.dtype)[6:], f"{name}.float()")
    where = plain.device.type
    if where != "cpu" and not (on_gpu and where == "cuda"):
        _refuse_device(function, name, str(plain.device))
    if not _in_memory(plain):
        _refuse_storage(function, name, x)
    # views of complex tensors may hold the negative of their values
    return plain.resolve_neg() if plain.is_neg() else plain


def _as_plain(torch: Any, x: Any) -> Any:
    with torch._C.DisableTorchFunctionSubclass():
        return torch.Tensor.as_subclass(x, torch.Tensor).detach()


def _in_memory(tensor: Any) -> bool:
    """Return whether all elements lie in memory; the storage of a tensor may be freed, shrunk or only pretended."""
    try:
        if tensor.is_nested:
            return False
        count = tensor.numel()
        if count == 0:
            return True
        if not tensor.is_contiguous():
            steps = zip(tensor.shape, tensor.stride(), strict=True)
            count = 1 + sum((length - 1) * stride for length, stride in steps)
        storage = tensor.untyped_storage()
        if storage.device.type not in ("cpu", "cuda"):
            return False
        end = (tensor.storage_offset() + count) * tensor.element_size()
        return bool(end <= storage.nbytes() and tensor.data_ptr() != 0)
    except RuntimeError:
        return False


def _from_dlpack(function: str, name: str, x: Any, on_gpu: bool) -> Array:
    try:
        kind, index = (int(part) for part in x.__dlpack_device__())
        if kind in _HOST_DEVICES:
            return _host_dlpack(x)
        if on_gpu and kind in _GPU_DEVICES:
            import torch

            return torch.utils.dlpack.from_dlpack(x)
    except Exception as error:
        found = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise TypeError(f"{function}: cannot read {name} ({type(x).__name__}) through DLPack: {found}") from error
    return _refuse_device(function, name, f"DLPack type {kind}, index {index}")


def _host_dlpack(x: Any) -> Array:
    try:
        return np.from_dlpack(x)
    except (BufferError, RuntimeError, TypeError, ValueError):
        torch = sys.modules.get("torch")
        if torch is None:
            raise
        # numpy has no bfloat16 of its own
        return torch.from_dlpack(x)


def _refuse_kind(function: str, name: str, x: Any) -> NoReturn:
    kind = type(x)
    advice = f"np.asarray({name}, dtype=np.float32)"
    if hasattr(kind, "to_numpy"):
        advice = f"{name}.to_numpy()"
    elif hasattr(kind, "toarray"):
        advice = f"{name}.toarray()"
    found = f"the class {x.__name__}" if isinstance(x, type) else f"{kind.__name__}; use {advice}"
    raise TypeError(
        f"{function}: expected {name} to be a NumPy array, a torch tensor or an array with DLPack, got {found}"
    )


def _refuse_storage(function: str, name: str, x: Any) -> NoReturn:
    raise TypeError(
        f"{function}: {name} ({type(x).__name__}) has no values in memory: freed, nested, or made by "
        "torch.func or FakeTensorMode; pass a plain dense tensor"
    )


def _refuse_device(function: str, name: str, device: str) -> NoReturn:
    raise RuntimeError(
        f"{function}: {name} is on device {device}, which {function} has no kernel for; move it to host memory first"
    )


def _check_dtype(function: str, name: str, dtype: str, advice: str) -> None:
    if dtype not in FLOATS:
        known = ", ".join(FLOATS[:-1]) + f" or {FLOATS[-1]}"
        # a cast would drop what other arrays hold
        use = f"; use {advice}" if dtype.startswith(("bool", "int", "uint", "float")) else ""
        raise TypeError(f"{function}: expected {name} of dtype {known}, got {dtype}{use}")


def to_numpy(x: Array) -> NDArray[Any]:
    """Return a host array as NumPy, without a copy but for bfloat16 tensors, which become float32."""
    if not is_torch(x):
        return np.asarray(x)
    return np.asarray((x.float() if "bfloat16" in str(x.dtype) else x).numpy())


def try_as_numpy(value: Any) -> NDArray[Any] | None:
    """Return a small array or list as NumPy, None if it cannot be read as one."""
    try:
        return np.asarray(to_numpy(value.detach().cpu()) if is_torch(value) else value)
    except Exception:
        return None
