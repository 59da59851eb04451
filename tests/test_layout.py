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

from gramless import ops
from gramless.ops import backends as ops_backends

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "python" / "gramless"
PACKAGE_SOURCES = sorted(PACKAGE.rglob("*.py"))
STEMS = {stem: tuple(backends) for stem, backends in ops_backends.BACKENDS.items()}


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


def kernel(stem, backend, entry=None):
    room = {"reference": "gramless.reference", "cuda": "gramless._triton"}[backend]
    return getattr(importlib.import_module(f"{room}.{stem}"), entry or stem)


# functions that stand beside the one of the stem in every room
ENTRIES = {"layer_moments": "moments"}


@pytest.mark.parametrize("entry", [*STEMS, *ENTRIES])
def test_signatures_agree(entry):
    stem = ENTRIES.get(entry, entry)
    public = getattr(ops, entry)
    # products have one precision on the host
    on_host = parameters(public, without=("backend", "precision"))
    for backend in STEMS[stem]:
        if backend == "cpu":
            assert stub_parameters(STUB, entry) == on_host
            continue
        made = kernel(stem, backend, entry)
        assert parameters(made) == (parameters(public) if backend == "cuda" else on_host)
        assert defaults(made).items() <= defaults(public).items()


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
    for_types: bool  # stands under TYPE_CHECKING, and never runs
    line: int


class Wing(NamedTuple):
    floor: int
    internal: frozenset[str]
    external: frozenset[str] = frozenset()
    lazy: frozenset[str] = frozenset()  # only inside a function or under TYPE_CHECKING


def wing(floor, internal, external="", lazy=""):
    return Wing(floor, frozenset(internal.split()), frozenset(external.split()), frozenset(lazy.split()))


CORE = "_base states ops accumulators measures"
SUBJECTS = f"{CORE} similarity predictions identifiability layers"
# a wing imports from lower floors, and from itself without a circle between modules
WINGS = {
    "_base": wing(1, "", "numpy array_api_compat", "torch rich scipy ml_dtypes"),
    "states": wing(2, "_base", "numpy array_api_compat"),
    "reference": wing(2, "", "numpy"),
    "_triton": wing(2, "", "numpy torch triton"),
    "measures": wing(3, "_base states", "numpy scipy array_api_compat"),
    "ops": wing(3, "_base states", "numpy", "torch"),
    "accumulators": wing(4, "_base states ops", "", "torch"),
    "similarity": wing(5, f"{CORE} _version", "numpy", "torch scipy"),
    "predictions": wing(5, CORE, "numpy", "torch scipy safetensors"),
    "identifiability": wing(5, CORE, "numpy array_api_compat", "scipy"),
    "layers": wing(6, f"{CORE} similarity", "numpy", "torch pandas matplotlib"),
    "distributed": wing(6, f"{CORE} similarity predictions", "numpy", "torch"),
    "explain": wing(7, SUBJECTS, "numpy"),
    "files": wing(7, f"{SUBJECTS} _version", "numpy rich safetensors", "rich ml_dtypes"),
    "cli": wing(
        8, f"{SUBJECTS} explain files distributed _version _core", "numpy rich", "safetensors sklearn threadpoolctl"
    ),
    "": wing(9, f"{SUBJECTS} explain cli _version"),
}
# one module is the door to the rooms of the kernels: it loads them inside the branch that it has chosen
DOOR, ROOMS = "ops/backends.py", {"reference", "_core", "_triton"}
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

    def visit(node, top_level, for_types):
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, top_level, for_types, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            found.extend(Import(f"{module}.{alias.name}", top_level, for_types, node.lineno) for alias in node.names)
        elif is_dynamic_import(node):
            name = node.args[0].value
            found.append(Import(package + name if name.startswith(".") else name, top_level, for_types, node.lineno))
        for field, children in ast.iter_fields(node):
            types_below = for_types or (isinstance(node, ast.If) and is_type_checking(node.test) and field == "body")
            in_function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            below = top_level and not in_function and not types_below
            for child in children if isinstance(children, list) else [children]:
                if isinstance(child, ast.AST):
                    visit(child, below, types_below)

    visit(ast.parse(source), True, False)
    return found


def import_complaints(source, path):
    """Imports of a module, given by its path in the package, that its wing may not have."""
    *folders, _ = path.split("/")
    name = folders[0] if folders else ""
    allowed = WINGS[name]
    complaints = []
    for target, top_level, _, line in imports_of(source, ".".join(("gramless", *folders))):
        top, *rest = target.split(".")
        if top in STANDARD:
            continue
        if top == "gramless":
            inner = rest[0] if rest else "the package itself"
            ok = inner in allowed.internal | {name} or (path == DOOR and not top_level and inner in ROOMS)
        else:
            ok = top in allowed.external or (not top_level and top in allowed.lazy)
        if not ok:
            complaints.append(f"line {line}: {path} may not import {target}" + (" at import time" if top_level else ""))
    return complaints


def in_package(path):
    return path.relative_to(PACKAGE).as_posix()


@pytest.mark.parametrize("path", PACKAGE_SOURCES, ids=in_package)
def test_wing_imports_what_it_may(path):
    assert import_complaints(path.read_text(encoding="utf-8"), in_package(path)) == []


def test_wings_import_lower_floors():
    floors = {name: row.floor for name, row in WINGS.items()} | {"_version": 0, "_core": 2}
    assert [(name, lower) for name, row in WINGS.items() for lower in row.internal if floors[lower] >= row.floor] == []


def test_package_holds_wings_and_little_else():
    found = {path.name for path in PACKAGE.iterdir() if path.suffix != ".so" and path.name != "__pycache__"}
    assert found == {name for name in WINGS if name} | {
        "__init__.py",
        "__main__.py",
        "_version.py",
        "_core.pyi",
        "py.typed",
    }


def module_of(path):
    return ".".join(("gramless", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


def circle(edges):
    """A circle of modules that import each other, as a list of names; empty if there is none."""
    done, trail = set(), []

    def visit(name):
        if name in trail:
            return trail[trail.index(name) :]
        if name in done:
            return []
        trail.append(name)
        for other in edges.get(name, ()):
            if found := visit(other):
                return found
        trail.pop()
        done.add(name)
        return []

    return next((found for name in edges if (found := visit(name))), [])


def test_no_circle_of_modules():
    modules = {module_of(path): path for path in PACKAGE_SOURCES if path != PACKAGE / "__init__.py"}
    edges = {}
    for name, path in modules.items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        targets = [
            target if target in modules else target.rpartition(".")[0]
            for target, _, for_types, _ in imports_of(path.read_text(encoding="utf-8"), package)
            if not for_types
        ]
        edges[name] = [target for target in targets if target in modules and target != name]
    assert circle(edges) == []


def test_circles_are_seen():
    assert circle({"a": ["b"], "b": ["c"], "c": []}) == []
    assert circle({"a": ["b"], "b": ["c"], "c": ["b"]}) == ["b", "c"]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("measures/a.py", "from gramless import ops"),
        ("measures/a.py", "from ..ops.moments import moments"),
        ("measures/a.py", "import torch"),
        ("ops/moments.py", "from .. import accumulators"),
        ("ops/moments.py", "from ..accumulators.moments import Moments"),
        ("ops/moments.py", "import torch"),
        ("ops/moments.py", "def f():\n    from gramless import layers"),
        ("ops/moments.py", "def f():\n    from gramless import _core"),
        ("accumulators/base.py", "class A:\n    import torch"),
        ("accumulators/base.py", "if True:\n    import matplotlib"),
        ("ops/backends.py", "from gramless import _core"),
        ("ops/backends.py", "import importlib\ncore = importlib.import_module('gramless._core')"),
        ("states/moments.py", "import gramless"),
        ("reference/moments.py", "import scipy.linalg"),
        ("similarity/one_shot.py", "from gramless.cli import main"),
    ],
)
def test_import_checker_complains(path, source):
    assert len(import_complaints(source, path)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("ops/backends.py", "def f():\n    from gramless import _core"),
        ("ops/moments.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch"),
        ("accumulators/base.py", "def f():\n    import torch.distributed as dist"),
        ("similarity/hsic_test.py", "from .. import ops\nfrom . import pair_request\nimport math"),
    ],
)
def test_import_checker_accepts(path, source):
    assert import_complaints(source, path) == []


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
