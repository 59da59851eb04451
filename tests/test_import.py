"""Importing is cheap, and the package under test is the installed one: complete, with few requirements."""

import re
import statistics
import sys
from importlib import metadata, resources
from pathlib import Path

import gramless
from support import memory

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "triton", "matplotlib", "sklearn", "pandas")
# a guard against a heavy import slipping in, not a measurement: benchmarks/benchmarks/bench_import.py measures
MAX_IMPORT_SECONDS = 0.5


def loaded_after(statement):
    return memory.run(f"import sys\n{statement}\nprint(*(name for name in {HEAVY} if name in sys.modules))").split()


def test_import_loads_no_heavy_library():
    assert loaded_after("import gramless") == []


def test_a_heavy_library_would_be_seen():
    assert loaded_after("import pandas") == ["pandas"]


def test_import_is_fast():
    program = "import time\nstart = time.perf_counter()\nimport gramless\nprint(time.perf_counter() - start)"
    assert statistics.median(float(memory.run(program)) for _ in range(5)) < MAX_IMPORT_SECONDS


def test_sources_do_not_shadow_the_installed_package():
    assert ROOT / "python" not in [Path(entry).resolve() for entry in sys.path if entry]


def test_installed_package_is_complete():
    files = resources.files(gramless)
    assert [name for name in ("py.typed", "_core.pyi") if not files.joinpath(name).is_file()] == []
    assert metadata.version("gramless") == gramless.__version__


def test_requirements_are_few():
    required = [line for line in metadata.requires("gramless") if "extra ==" not in line]
    names = {re.match(r"[\w-]+", line).group() for line in required}
    assert names == {"array-api-compat", "numpy", "rich", "safetensors", "scipy"}


def test_command_is_installed():
    (command,) = metadata.entry_points(group="console_scripts", name="gramless")
    assert callable(command.load())
