"""The public names: exactly `__all__`, each with an example that runs, as do all other examples of the package."""

import doctest
import importlib
import pkgutil
from types import ModuleType

import pytest

import gramless

PUBLIC = [name for name in gramless.__all__ if not name.startswith("_")]


def package_modules():
    names = [info.name for info in pkgutil.walk_packages(gramless.__path__, "gramless.")]
    return ["gramless", *(name for name in names if name not in ("gramless.__main__", "gramless._core"))]


def run_examples(thing, name):
    """Run the examples of one object, each with nothing but what it imports itself: (failed, attempted)."""
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    module = thing if isinstance(thing, ModuleType) else False
    for test in doctest.DocTestFinder(exclude_empty=True).find(thing, name, module=module, globs={}):
        runner.run(test)
    return runner.failures, runner.tries


def test_all_is_the_public_surface():
    visible = {
        name
        for name, value in vars(gramless).items()
        if not name.startswith("_") and not (isinstance(value, ModuleType) and name not in PUBLIC)
    }
    assert len(set(PUBLIC)) == len(PUBLIC)
    assert visible - {"annotations"} <= set(PUBLIC)
    assert set(PUBLIC) <= set(dir(gramless))


def parts_of(name):
    """A public function or class, or the functions of a public module."""
    public = getattr(gramless, name)
    if not isinstance(public, ModuleType):
        return [(name, public)]
    own = {key: value for key, value in vars(public).items() if getattr(value, "__module__", "") == public.__name__}
    parts = [(f"{name}.{key}", value) for key, value in own.items() if callable(value) and not key.startswith("_")]
    assert parts, f"{name} has no functions"
    return parts


@pytest.mark.parametrize("name", PUBLIC)
def test_public_name_has_a_running_example(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for part, public in parts_of(name):
        failed, attempted = run_examples(public, part)
        assert attempted > 0, f"{part} has no example"
        assert failed == 0


@pytest.mark.parametrize("name", package_modules())
def test_examples_of_the_module_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_examples(importlib.import_module(name), name)[0] == 0


def test_example_runner_sees_failure_and_absence(capsys):
    def wrong():
        """
        >>> 1 + 1
        3
        """

    def silent():
        """Nothing to run."""

    assert run_examples(wrong, "wrong") == (1, 1)
    assert run_examples(silent, "silent") == (0, 0)
    assert "Expected" in capsys.readouterr().out
