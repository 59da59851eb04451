"""The shape of the tree: every kernel under one name and one signature in every room, imports that only go down.

Each rule is a function of source text, so that each is also shown to complain.
"""

import ast
import importlib
import inspect
import re
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from gramless import _dispatch, ops

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "python" / "gramless"
PACKAGE_SOURCES = sorted(PACKAGE.rglob("*.py"))
STEMS = {stem: tuple(backends) for stem, backends in _dispatch.BACKENDS.items()}


def relative(path):
    return path.relative_to(ROOT).as_posix()


# every kernel under one name in every room

KERNEL_ROOMS = {
    "reference": "python/gramless/reference/{}.py",
    "cpu": "csrc/kernels/{}.cpp",
    "cuda": "python/gramless/_triton/{}.py",
}
CHECK_ROOMS = ("tests/kernels/test_{}.py", "benchmarks/benchmarks/bench_{}.py")
# what a kernel in C++ has besides
CPU_ROOMS = ("csrc/bindings/{}.cpp", "csrc/tests/test_{}.cpp")


def rooms_of(stem, backends):
    rooms = [KERNEL_ROOMS[backend] for backend in backends] + list(CHECK_ROOMS)
    return [room.format(stem) for room in rooms + list(CPU_ROOMS if "cpu" in backends else ())]


def orphans(stems, names, room):
    """Files of a room that belong to no stem with that backend; a leading underscore marks shared device code."""
    return [name for name in names if not name.startswith("_") and room not in stems.get(name, ())]


@pytest.mark.parametrize("stem", STEMS)
def test_stem_stands_in_every_room(stem):
    assert [room for room in rooms_of(stem, STEMS[stem]) if not (ROOT / room).is_file()] == []
    assert callable(getattr(ops, stem))


@pytest.mark.parametrize("room", KERNEL_ROOMS)
def test_no_kernel_file_without_a_stem(room):
    pattern = Path(KERNEL_ROOMS[room].format("*"))
    names = [path.stem for path in (ROOT / pattern.parent).glob(pattern.name)]
    assert orphans(STEMS, names, room) == []


def test_every_stem_has_a_definition():
    assert [stem for stem, backends in STEMS.items() if "reference" not in backends] == []


def test_orphans_are_seen():
    stems = {"moments": ("reference", "cpu")}
    assert orphans(stems, ["moments", "topk", "_tile"], "cpu") == ["topk"]
    assert orphans(stems, ["moments"], "cuda") == ["moments"]


# one signature in every room

STUB = ast.parse((PACKAGE / "_core.pyi").read_text(encoding="utf-8"))


def stub_parameters(tree, name):
    """Positional and keyword-only names of the last definition (the last overload) of a function in a stub."""
    definitions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
    arguments = definitions[-1].args
    positional = [argument.arg for argument in arguments.posonlyargs + arguments.args]
    return positional, [argument.arg for argument in arguments.kwonlyargs]


def parameters(function, without=("backend",)):
    """Positional and keyword-only names of a Python function, less the choice of backend."""
    kept = [p for p in inspect.signature(function).parameters.values() if p.name not in without]
    return [p.name for p in kept if p.kind is not p.KEYWORD_ONLY], [p.name for p in kept if p.kind is p.KEYWORD_ONLY]


def defaults(function):
    return {p.name: p.default for p in inspect.signature(function).parameters.values() if p.name != "backend"}


def kernel(stem, backend):
    room = {"reference": "gramless.reference", "cuda": "gramless._triton"}[backend]
    return getattr(importlib.import_module(f"{room}.{stem}"), stem)


@pytest.mark.parametrize("stem", STEMS)
def test_signatures_agree(stem):
    public = getattr(ops, stem)
    # products have one precision on the host
    on_host = parameters(public, without=("backend", "precision"))
    for backend in STEMS[stem]:
        if backend == "cpu":
            assert stub_parameters(STUB, stem) == on_host
            continue
        assert parameters(kernel(stem, backend)) == (parameters(public) if backend == "cuda" else on_host)
        assert defaults(kernel(stem, backend)).items() <= defaults(public).items()


def test_stub_matches_the_compiled_module():
    core = importlib.import_module("gramless._core")
    declared = {node.name for node in STUB.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    assert {name for name, value in vars(core).items() if callable(value) and not name.startswith("_")} == declared


def test_signature_readers_see_a_difference():
    stub = ast.parse("def f(x: int, *, pivot: int, backend: str) -> int: ...")
    assert stub_parameters(stub, "f") == (["x"], ["pivot", "backend"])
    assert parameters(lambda x, *, pivot, backend: None) == (["x"], ["pivot"])


# imports go down only


class Import(NamedTuple):
    target: str  # absolute module, or module.name of a from-import
    top_level: bool  # runs when the module is imported
    line: int


class Floor(NamedTuple):
    internal: frozenset[str]
    external: frozenset[str] = frozenset()
    lazy: frozenset[str] = frozenset()  # only inside a function or under TYPE_CHECKING


def floor(internal, external="", lazy=""):
    return Floor(frozenset(internal.split()), frozenset(external.split()), frozenset(lazy.split()))


BELOW_INTEGRATIONS = (
    "layers similarity random_features independence estimates kernel_pass gram_pass accumulators bandwidths measures"
    " logit_comparison logit_stream logit_distance distance_stream unembedding identifiability bounds"
    " ops _gram _logits _logit_checks _states _checks _arrays _explain _costs _dispatch _device _processes"
    " grids _memory"
)
IMPORT_TABLE = {
    "__init__": floor(f"{BELOW_INTEGRATIONS} _core _version"),
    "__main__": floor("integrations"),
    "integrations": floor(
        f"{BELOW_INTEGRATIONS} integrations _matrix _progress _version _core",
        "numpy rich safetensors array_api_compat",
        "torch matplotlib sklearn pandas scipy ml_dtypes threadpoolctl",
    ),
    "losses": floor("accumulators measures ops _states _checks", "torch"),
    "layers": floor("grids accumulators _processes _device _matrix _progress _memory _checks _dispatch"),
    "grids": floor(
        "grids accumulators measures bandwidths ops _states _tables _processes _matrix _progress _memory"
        " _device _checks _dispatch",
        "numpy",
    ),
    "similarity": floor("random_features independence estimates kernel_pass measures _gram _states _checks"),
    "random_features": floor("accumulators estimates kernel_pass _states _checks", "numpy"),
    "independence": floor(
        "estimates kernel_pass measures ops _gram _progress _states _checks _dispatch", "numpy", "scipy"
    ),
    "estimates": floor("kernel_pass measures ops _gram _checks", "numpy"),
    "kernel_pass": floor("gram_pass bandwidths ops _gram _states _checks _dispatch"),
    "gram_pass": floor("bandwidths ops _gram _progress _checks _dispatch _version", "numpy"),
    "bandwidths": floor("_device _checks _dispatch", "numpy"),
    "bounds": floor("identifiability measures _checks", "numpy"),
    "identifiability": floor(
        "identifiability _reflections estimates accumulators measures ops _states _checks _arrays",
        "numpy array_api_compat",
        "scipy",
    ),
    "logit_stream": floor(
        "accumulators ops _unread_pairs _head_weights _processes"
        " _comparison _row_values _logits _states _device _checks _dispatch",
        "numpy",
    ),
    "_head_weights": floor("_logit_checks _checks _arrays", "numpy"),
    "logit_comparison": floor(
        "ops _unread_pairs _comparison _row_values _logit_checks _logits _progress _device _checks _arrays _dispatch",
        "numpy",
    ),
    "_unread_pairs": floor(
        "logit_ops _arrivals _logit_faults _logit_checks _logits _device _checks _arrays _dispatch", "numpy", "torch"
    ),
    "_arrivals": floor("", "numpy", "torch"),
    "_comparison": floor("_row_values", "numpy"),
    "_row_values": floor("measures _sketch _logits _checks _arrays", "numpy"),
    "_sketch": floor("", "numpy"),
    "logit_distance": floor("unembedding _factors ops _logit_checks _device _checks _dispatch", "numpy"),
    "distance_stream": floor(
        "unembedding accumulators _device_rows _processes _row_values _states _device _checks _dispatch", "numpy"
    ),
    "unembedding": floor(
        "_device_weights _device_rows _factors _pair_files _logit_checks _states _device _checks _dispatch", "numpy"
    ),
    "_device_weights": floor("_factors _device _checks _dispatch", "numpy", "torch"),
    "_device_rows": floor("_logit_checks _device _checks _dispatch", "numpy", "torch"),
    "_pair_files": floor("_factors _checks", "numpy", "safetensors"),
    "_reflections": floor("", "numpy", "scipy"),
    "_factors": floor("ops _reflections _logit_checks _progress _states _checks _dispatch", "numpy", "torch scipy"),
    "_explain": floor(
        "_explain_logits layers similarity independence estimates kernel_pass ops grids bandwidths"
        " _costs _memory _checks _dispatch"
    ),
    "_explain_logits": floor(
        "_gpu_logit_costs _logit_costs logit_comparison logit_distance _factors ops"
        " _costs _row_values _logits _logit_checks _device _checks _dispatch",
        "numpy",
    ),
    "_gpu_logit_costs": floor("_logit_costs _factors _costs _dispatch"),
    "_logit_costs": floor("logit_distance unembedding _factors _row_values _sketch _costs _dispatch"),
    "_costs": floor("random_features bandwidths _checks _dispatch"),
    "_gram": floor("_states _checks", "numpy"),
    "accumulators": floor("ops _states _tables _processes _device _dispatch _checks", "", "torch"),
    "_processes": floor("_checks", "numpy", "torch"),
    "measures": floor("measures _gram _logits _states _checks", "numpy scipy array_api_compat"),
    "ops": floor("logit_ops _device _checks _dispatch _gram _states", "numpy", "torch"),
    "logit_ops": floor("_logit_calls _logits _logit_checks _device _checks _dispatch", "numpy"),
    "_logit_calls": floor("_logit_faults _logit_checks _device _checks _dispatch", "numpy"),
    "_logit_faults": floor("_logit_checks _device _checks", "numpy"),
    "_logits": floor("", "numpy"),
    "_logit_checks": floor("_checks _arrays", "numpy"),
    "_dispatch": floor("_checks"),
    "_device": floor("_checks", "numpy", "torch"),
    "_tables": floor("_states _device _checks"),
    "_matrix": floor("_checks", "numpy", "pandas"),
    "_progress": floor("", lazy="rich"),
    "_memory": floor("", lazy="torch"),
    "_states": floor("_checks", "numpy array_api_compat"),
    "_checks": floor("_arrays", "numpy array_api_compat"),
    "_arrays": floor("", "numpy", "torch"),
    "_version": floor(""),
    "reference": floor("reference", "numpy"),
    "_triton": floor("_triton", "numpy torch triton"),
}
# the dispatcher reaches the kernels inside the branch it has chosen, the matrix its plot when asked for one
LAZY_INTERNAL = {"_dispatch": {"reference", "_core", "_triton"}, "_matrix": {"integrations"}}
STANDARD = frozenset(sys.stdlib_module_names)


def is_type_checking(test):
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def is_dynamic_import(node):
    called = isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "import_module")
    return called and node.args and isinstance(node.args[0], ast.Constant)


def imports_of(source, package):
    """All imports of a module that lives in the given package, relative ones resolved."""
    found = []

    def visit(node, top_level):
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, top_level, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            found.extend(Import(f"{module}.{alias.name}", top_level, node.lineno) for alias in node.names)
        elif is_dynamic_import(node):
            name = node.args[0].value
            found.append(Import(package + name if name.startswith(".") else name, top_level, node.lineno))
        for field, children in ast.iter_fields(node):
            below = top_level and not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            if isinstance(node, ast.If) and is_type_checking(node.test) and field == "body":
                below = False
            for child in children if isinstance(children, list) else [children]:
                if isinstance(child, ast.AST):
                    visit(child, below)

    visit(ast.parse(source), True)
    return found


def import_complaints(source, layer, package="gramless"):
    allowed = IMPORT_TABLE[layer]
    complaints = []
    for target, top_level, line in imports_of(source, package):
        top, *rest = target.split(".")
        if top in STANDARD:
            continue
        if top == "gramless":
            inner = rest[0] if rest else "the package itself"
            ok = inner in allowed.internal or (not top_level and inner in LAZY_INTERNAL.get(layer, ()))
        else:
            ok = top in allowed.external or (not top_level and top in allowed.lazy)
        if not ok:
            complaints.append(
                f"line {line}: {layer} may not import {target}" + (" at import time" if top_level else "")
            )
    return complaints


def layer_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", PACKAGE_SOURCES, ids=relative)
def test_imports_go_down(path):
    package = ".".join(("gramless", *path.relative_to(PACKAGE).parts[:-1]))
    assert import_complaints(path.read_text(encoding="utf-8"), layer_of(path), package) == []


@pytest.mark.parametrize(
    ("layer", "source"),
    [
        ("measures", "from gramless import ops"),
        ("measures", "from gramless.ops import moments"),
        ("measures", "import torch"),
        ("ops", "from . import accumulators"),
        ("ops", "from .accumulators import Moments"),
        ("ops", "import torch"),
        ("ops", "def f():\n    from gramless import layers"),
        ("accumulators", "class A:\n    import torch"),
        ("accumulators", "if True:\n    import matplotlib"),
        ("_dispatch", "from gramless import _core"),
        ("_dispatch", "import importlib\ncore = importlib.import_module('gramless._core')"),
        ("_states", "import gramless"),
        ("reference", "import scipy.linalg"),
        ("similarity", "from gramless.integrations import cli"),
    ],
)
def test_import_checker_complains(layer, source):
    assert len(import_complaints(source, layer)) == 1


@pytest.mark.parametrize(
    ("layer", "source"),
    [
        ("_dispatch", "def f():\n    from gramless import _core"),
        ("ops", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch"),
        ("accumulators", "def f():\n    import torch.distributed as dist"),
        ("independence", "from . import ops, _states\nimport math"),
    ],
)
def test_import_checker_accepts(layer, source):
    assert import_complaints(source, layer) == []


INCLUDE = re.compile(r'^\s*#include\s+"([^"]+)"', re.MULTILINE)


def include_complaints(source, folder):
    """Own headers that a C++ file takes from a folder above its own."""
    allowed = {"core": ("core",), "kernels": ("core", "kernels")}.get(folder)
    headers = [header for header in INCLUDE.findall(source) if "/" in header]
    return [] if allowed is None else [header for header in headers if header.split("/")[-2] not in allowed]


@pytest.mark.parametrize("folder", ["core", "kernels"])
def test_includes_go_down(folder):
    files = [path for path in (ROOT / "csrc" / folder).iterdir() if path.suffix in (".cpp", ".hpp", ".inl")]
    assert files
    assert {relative(p): c for p in files if (c := include_complaints(p.read_text(encoding="utf-8"), folder))} == {}


def test_include_checker_complains():
    assert include_complaints('#include "kernels/moments.hpp"\n#include <vector>\n', "core") == ["kernels/moments.hpp"]
    assert include_complaints('#include "core/numerics.hpp"\n#include "../core/simd.hpp"\n', "kernels") == []
