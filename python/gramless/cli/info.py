"""What this installation can do."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform

from rich.console import Console

from .._version import __version__
from ..ops import backends as ops_backends
from .text_tables import print_lines

LIBRARIES = ("numpy", "scipy", "safetensors", "torch", "triton", "matplotlib", "scikit-learn")


def describe() -> list[str]:
    """Describe version, CPU kernels, backends and libraries, one per line. It loads neither torch nor triton.

    Examples
    --------
    >>> from gramless.cli.info import describe
    >>> describe()[0].split()[0]
    'gramless'
    """
    lines = [f"gramless {__version__}, Python {platform.python_version()}, {platform.machine()}"]
    try:
        from .. import _core
    except ImportError as error:
        lines.append(f"CPU kernels: not available, the compiled module cannot be loaded: {error}")
    else:
        levels = ", ".join(_core.isa_levels())
        lines.append(f"CPU kernels: {_core.isa_level()} (of {levels}), {_core.get_num_threads()} threads")
        units = ", ".join(_core.bf16_units()) or "none"
        lines.append(f"bfloat16 unit: {_core.bf16_unit()} (of {units})")
    for stem, backends in ops_backends.BACKENDS.items():
        chosen = ops_backends.resolve(stem, "auto").backend
        lines.append(f"kernel {stem}: runs on {chosen}")
        lines += [f"  {backend}: {_told(stem, backend)}" for backend in backends]
    lines.append("libraries:")
    for name in LIBRARIES:
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            version = "not installed"
        lines.append(f"  {name} {version}")
    return lines


def _told(stem: str, backend: str) -> str:
    """Say whether a backend can be used, and if not, why."""
    if backend == "cuda":
        absent = [name for name in ("torch", "triton") if importlib.util.find_spec(name) is None]
        return f"not available: needs {' and '.join(absent)}" if absent else "for tensors on a GPU"
    try:
        ops_backends.resolve(stem, backend)
    except RuntimeError as error:
        return f"not available: {error}"
    return "available"


def print_info(console: Console) -> None:
    """Print what this installation can do."""
    print_lines(console, *describe())
