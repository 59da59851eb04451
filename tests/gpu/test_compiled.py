"""What kernels compile to for GPUs that are not here: no spills, the matrix instruction, wide loads, shared memory."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

import gramless
from support import aot

compiled = aot.module("compiled")
launches = aot.module("launches")


def launches_for_targets() -> list:
    """All launches for all targets, of which those run by default that ask most of a GPU."""
    return [
        pytest.param(scenario, target, marks=() if aot.by_default(scenario, target) else pytest.mark.nightly)
        for target in aot.TARGETS
        for scenario in launches.SCENARIOS
    ]


@pytest.mark.parametrize(("scenario", "target"), launches_for_targets())
def test_is_as_fast_as_it_can_be_told_without_a_run(scenario: str, target: str) -> None:
    rows = aot.compiled(scenario, target)
    assert rows, "no kernel was launched"
    assert [one for row in rows for one in row.complaints] == []


def test_all_targets_are_compiled_for() -> None:
    assert set(aot.TARGETS) == set(compiled.TARGETS)


def test_every_kernel_is_compiled_by_default() -> None:
    """For the target whose tiles are its own for each of them."""
    package = Path(gramless.__file__).parent / "_triton"
    defined = set(re.findall(r"def (_\w+_kernel)\(", "".join(path.read_text() for path in package.rglob("*.py"))))
    assert defined - {"_probe_kernel"} == {
        row.kernel for scenario in launches.HEAVIEST["sm_90"] for row in aot.compiled(scenario, "sm_90")
    }


GOOD = compiled.Compiled(
    scenario="a name",
    target="sm_90",
    kernel="_product_kernel",
    constants="BLOCK_I=128",
    warps=8,
    stages=3,
    registers=200,
    spilled=0,
    shared=200_000,
    matrix=("wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16",),
    multiplies="f32",
    wide_loads=12,
    loads=12,
    reads_rows=True,
)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"spilled": 8}, "spills 8 bytes"),
        ({"shared": 250_000}, "shared memory"),
        ({"matrix": ()}, "without the matrix instruction"),
        ({"matrix": ("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32",)}, "of older GPUs"),
        ({"wide_loads": 0}, "less than 16 bytes"),
    ],
    ids=str,
)
def test_what_is_slow_is_seen(change: dict, says: str) -> None:
    assert GOOD.complaints == []
    (one,) = replace(GOOD, **change).complaints
    assert says in one


@pytest.mark.parametrize("text", ["ld.global.v4.b32", "ld.global.L1::evict_last.v2.b64", "global_load_dwordx4"])
def test_wide_loads_are_counted(text: str) -> None:
    assert compiled.WIDE.search(text)
    assert compiled.LOAD.search(text)


@pytest.mark.parametrize("text", ["ld.global.b32", "ld.global.v2.b32", "global_load_dwordx2", "st.global.v4.b32"])
def test_narrow_loads_are_not(text: str) -> None:
    assert not compiled.WIDE.search(text)


def test_copies_to_shared_memory_are_counted() -> None:
    wide, narrow = (
        f"cp.async.c{how}.shared.global [ %r1 + 0 ], [ %rd2 + 0 ], {size}, %r3;"
        for how, size in (("g", "0x10"), ("a", "0x4"))
    )
    assert compiled.WIDE.search(wide)
    assert not compiled.WIDE.search(narrow)
