"""What the GPU's kernels compile to, for GPUs that need not be here: `python -m benchmarks.compiled`.

Each scenario of `launches` runs in a process of its own on tensors in host memory, where to launch a kernel is to
compile it, specialised as it would be on the GPU. Registers, spills, shared memory and instructions are read from that.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.tables import Column, head, line


@dataclass(frozen=True)
class Target:
    """A GPU as the compiler sees it, and the bytes of shared memory that a program may have there."""

    maker: str
    arch: int | str
    threads: int
    shared: int


TARGETS = {
    "sm_80": Target("cuda", 80, 32, 166_912),
    "sm_90": Target("cuda", 90, 32, 232_448),
    "sm_100": Target("cuda", 100, 32, 232_448),
    "gfx942": Target("hip", "gfx942", 64, 65_536),
}
MATRIX = re.compile(r"\b(wgmma\.mma_async\S*|tcgen05\.mma\S*|mma\.sync\S*|v_s?mfma\w+)")
DOT = re.compile(r"tt\.dot .*-> tensor<[0-9x]*x(\w+)>")
# loads of 16 bytes or more by a thread, and all of them
WIDE = re.compile(
    r"ld\.global\S*\.v(?:4\.[bfu]32|2\.[bfu]64|8\.[bfu]32)|cp\.async\.c[ag]\.shared\.global[^;]*?,\s*(?:0x10|16)\b"
    r"|cp\.async\.bulk\.tensor|(?:global|buffer)_load(?:_lds)?_dwordx4"
)
LOAD = re.compile(r"ld\.global|cp\.async\.c[ag]\.shared\.global|cp\.async\.bulk\.tensor|(?:global|buffer)_load_")


@dataclass(frozen=True)
class Compiled:
    """One kernel, specialised for the launches of a scenario."""

    scenario: str
    target: str
    kernel: str
    constants: str
    warps: int
    stages: int
    registers: int
    spilled: int
    shared: int
    matrix: tuple[str, ...]
    multiplies: str  # the number that products are summed in, "" where there are none
    wide_loads: int
    loads: int
    reads_rows: bool

    @property
    def complaints(self) -> list[str]:
        """What would make the kernel slow, or would not run."""
        found = []
        if self.spilled:
            found.append(f"spills {self.spilled} bytes")
        if self.shared > TARGETS[self.target].shared:
            found.append(f"takes {self.shared} bytes of shared memory of {TARGETS[self.target].shared}")
        # float64 has no matrix instruction there that would be faster, nor the compiler one
        plain = (self.target, self.multiplies) == ("sm_100", "f64")
        if self.multiplies and not self.matrix and not plain:
            found.append("multiplies without the matrix instruction")
        if self.target == "sm_90" and any(name.startswith("mma.sync") and "f64" not in name for name in self.matrix):
            found.append("has the matrix instruction of older GPUs")
        if self.reads_rows and not self.wide_loads:
            found.append("reads rows by less than 16 bytes at a time")
        return [f"{self.scenario}: {self.kernel} ({self.constants}) for {self.target} {one}" for one in found]


COLUMNS = (
    Column("scenario", 22, lambda row: row.scenario),
    Column("target", 7, lambda row: row.target),
    Column("kernel", 26, lambda row: row.kernel.strip("_").removesuffix("_kernel")),
    Column("warps", 5, lambda row: str(row.warps)),
    Column("stages", 6, lambda row: str(row.stages)),
    Column("regs", 5, lambda row: str(row.registers)),
    Column("spilled", 7, lambda row: str(row.spilled)),
    Column("shared", 7, lambda row: str(row.shared)),
    Column("wide/loads", 10, lambda row: f"{row.wide_loads}/{row.loads}"),
    Column("matrix", 40, lambda row: ", ".join(row.matrix) or "-"),
    Column("constants", 0, lambda row: row.constants),
)


class _Compiler:
    """A driver of no GPU: it tells the target, so that compiling for it is all that a launch can do."""

    def __init__(self, name: str) -> None:
        from triton.backends.compiler import GPUTarget

        target = TARGETS[name]
        self.target = GPUTarget(target.maker, target.arch, target.threads)

    def get_current_target(self) -> object:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def _record(target: str) -> list[tuple[Any, tuple[Any, ...]]]:
    """Make compilations of all launches from now on, whose results and arguments are collected."""
    from triton.runtime import driver

    from gramless._triton.tiles import launch as tiles_launch

    found: list[tuple[Any, tuple[Any, ...]]] = []

    def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **keywords: Any) -> None:
        if 0 not in grid:
            found.append((kernel.warmup(*arguments, grid=grid, **keywords), arguments))

    driver.set_active(_Compiler(target))
    tiles_launch.launch, tiles_launch.architecture = launch, lambda device: target
    return found


def _tool(name: str, *arguments: str) -> str:
    import triton

    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return subprocess.run([path, *arguments], capture_output=True, text=True, check=True).stdout


def _resources(kernel: Any) -> tuple[int, int]:
    """Registers of a thread, and bytes of them that are kept in memory."""
    if "amdgcn" in kernel.asm:
        text = kernel.asm["amdgcn"]
        count, spilled, scratch = (
            int(re.findall(rf"\.{name}:\s+(\d+)", text)[-1])
            for name in ("vgpr_count", "vgpr_spill_count", "private_segment_fixed_size")
        )
        return count, max(4 * spilled, scratch)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = _tool("cuobjdump", "-res-usage", file.name)
    return tuple(max(int(one) for one in re.findall(rf"{name}:(\d+)", usage)) for name in ("REG", "STACK"))


def _reads_rows(arguments: tuple[Any, ...]) -> bool:
    """Whether a tensor among the arguments has rows that can be read by 16 bytes."""
    import torch

    def wide(x: torch.Tensor) -> bool:
        item = x.element_size()
        aligned = all(stride * item % 16 == 0 for stride in x.stride()[:-1]) and x.data_ptr() % 16 == 0
        return x.ndim >= 2 and x.stride(-1) == 1 and aligned and x.shape[-1] * item >= 256

    return any(wide(x) for x in arguments if isinstance(x, torch.Tensor))


def _compiled(scenario: str, target: str, kernel: Any, arguments: tuple[Any, ...]) -> Compiled:
    text = kernel.asm.get("ptx") or kernel.asm["amdgcn"]
    registers, spilled = _resources(kernel)
    constants = {kernel.src.fn.arg_names[index]: value for (index,), value in kernel.src.constants.items()}
    return Compiled(
        scenario=scenario,
        target=target,
        kernel=kernel.src.fn.__name__,
        constants=" ".join(f"{name}={value}" for name, value in constants.items() if name.isupper()),
        warps=kernel.metadata.num_warps,
        stages=kernel.metadata.num_stages,
        registers=registers,
        spilled=spilled,
        shared=kernel.metadata.shared,
        matrix=tuple(sorted(Counter(MATRIX.findall(text)))),
        multiplies=" ".join(sorted(set(DOT.findall(kernel.asm["ttir"])))),
        wide_loads=len(WIDE.findall(text)),
        loads=len(LOAD.findall(text)),
        reads_rows=_reads_rows(arguments),
    )


def compile_here(target: str, only: Sequence[str] = ()) -> list[Compiled]:
    """Compile all scenarios, or those whose name holds one of some texts, in this process: one without interpreter."""
    from benchmarks.launches import SCENARIOS

    found, rows = _record(target), []
    for name, call in SCENARIOS.items():
        if not only or any(text in name for text in only):
            found.clear()
            call()
            # launches of one scenario may share what they compile to
            launches = {kernel.hash: (kernel, arguments) for kernel, arguments in found}
            rows += [_compiled(name, target, *launch) for launch in launches.values()]
    return rows


def compile_all(
    targets: list[str], only: Sequence[str] = (), processes: int = 2, cache: Path | None = None
) -> list[Compiled]:
    """Compile for several targets, each in a process of its own.

    Triton knows again what it has compiled by sources, constants, target and its own version; where no folder is given
    for that, it is thrown away.
    """
    import gramless

    folders = [Path(__file__).resolve().parents[1], Path(gramless.__file__).resolve().parents[1]]
    given = [part for text in only for part in ("--only", text)]
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}

    def one(target: str) -> list[Compiled]:
        with nullcontext(str(cache)) if cache else tempfile.TemporaryDirectory() as folder:
            paths = os.pathsep.join(map(str, folders))
            run = subprocess.run(
                [sys.executable, "-m", "benchmarks.compiled", "--here", target, *given],
                env=kept | {"TRITON_CACHE_DIR": folder, "PYTHONPATH": paths},
                capture_output=True,
                text=True,
            )
        if run.returncode:
            raise RuntimeError(f"compiling for {target} failed:\n{run.stderr}")
        return [Compiled(**row | {"matrix": tuple(row["matrix"])}) for row in json.loads(run.stdout)]

    with ThreadPoolExecutor(processes) as pool:
        return [row for rows in pool.map(one, targets) for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", action="append", choices=TARGETS, help="by default all")
    parser.add_argument("--only", action="append", default=[], help="scenarios whose name holds this text")
    parser.add_argument("--here", choices=TARGETS, help="compile for one target in this process, and print JSON")
    given = parser.parse_args()
    if given.here:
        print(json.dumps([asdict(row) for row in compile_here(given.here, given.only)]))
        return
    rows = compile_all(given.target or list(TARGETS), given.only)
    print(head(COLUMNS))
    for row in rows:
        print(line(COLUMNS, row))
    complaints = [one for row in rows for one in row.complaints]
    print(*complaints, sep="\n")
    sys.exit(bool(complaints))


if __name__ == "__main__":
    main()
