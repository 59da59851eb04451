"""Fixtures shared by all tests. A backend that the package lists must run here: there is no skipping."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from support import backends, device, interpreter, poison, selection

# kernels ask once, when they are imported
device.interpret_without_gpu()
interpreter.hasten()

# the same examples on every machine, and no clock: a slow machine is not a failure
settings.register_profile(
    "gramless",
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("gramless")

# a shell that runs the tests in the background ignores Ctrl-C, and the processes that they start would inherit that
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every backend of the stem that a module names in STEM, the host's where it names none."""
    if "backend_label" in metafunc.fixturenames:
        labels = backends.listed(getattr(metafunc.module, "STEM", None))
        metafunc.parametrize("backend_label", labels, scope="session")
    if "host_label" in metafunc.fixturenames:
        metafunc.parametrize("host_label", backends.listed(), scope="session")


# before pytest looks at -m
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    selection.mark_nightly(items)


def prepared(label: str) -> Iterator[backends.Backend]:
    chosen = backends.Backend(label)
    with ExitStack() as stack:
        stack.enter_context(backends.isa(chosen.level))
        stack.enter_context(poison.poisoned_allocations())
        if chosen.on_device:
            stack.enter_context(device.poisoned_tensors())
        yield chosen


@pytest.fixture
def backend(backend_label: str) -> Iterator[backends.Backend]:
    """Reference, cpu, cpu with the lowest instruction set, and the GPU, on memory that is poisoned before use."""
    yield from prepared(backend_label)


@pytest.fixture
def host_backend(host_label: str) -> Iterator[backends.Backend]:
    """The same less the GPU."""
    yield from prepared(host_label)


@pytest.fixture
def gpu_backend() -> Iterator[backends.Backend]:
    """The GPU, or the interpreter that stands for it."""
    yield from prepared(device.label())


@pytest.fixture(params=backends.isa_levels())
def isa_level(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set that this machine can run."""
    with backends.isa(request.param), poison.poisoned_allocations():
        yield str(request.param)


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    """Activations of two small models on disk, 500 rows each."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((500, 6))
    np.savez(tmp_path / "a.npz", first=x, second=np.tanh(x @ rng.standard_normal((6, 4))))
    np.savez(tmp_path / "b.npz", one=x[:, :2], two=x + rng.standard_normal((500, 6)), three=x**2)
    return str(tmp_path / "a.npz"), str(tmp_path / "b.npz")
