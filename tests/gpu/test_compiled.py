"""What kernels compile to for GPUs that are not here: no spills, the matrix instruction, wide loads, shared memory."""

from __future__ import annotations

from dataclasses import replace

import pytest

from support import aot

compiled = aot.module("compiled")
launches = aot.module("launches")


@pytest.mark.parametrize("target", aot.TARGETS)
@pytest.mark.parametrize("scenario", launches.SCENARIOS)
def test_is_as_fast_as_it_can_be_told_without_a_run(scenario: str, target: str) -> None:
    rows = [row for row in aot.compiled() if (row.scenario, row.target) == (scenario, target)]
    assert rows, "no kernel was launched"
    assert [one for row in rows for one in row.complaints] == []


def test_all_targets_are_compiled_for() -> None:
    assert set(aot.TARGETS) == set(compiled.TARGETS)


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
