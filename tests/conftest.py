"""Fixtures shared by all tests. A backend that the package lists must run here: there is no skipping."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from support import backends, poison

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


@pytest.fixture(params=backends.listed(), scope="session")
def backend_label(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def backend(backend_label: str) -> Iterator[backends.Backend]:
    """Reference, cpu, and cpu with the lowest instruction set, on memory that is poisoned before use."""
    chosen = backends.Backend(backend_label)
    with backends.isa(chosen.level), poison.poisoned_allocations():
        yield chosen


@pytest.fixture(params=backends.isa_levels())
def isa_level(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set that this machine can run."""
    with backends.isa(request.param), poison.poisoned_allocations():
        yield str(request.param)
