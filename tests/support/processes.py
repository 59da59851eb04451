"""Programs that run in several processes of torch.distributed, with gloo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from gramless.states.moments import MomentState
from support import forked

TIMEOUT = 120

PREAMBLE = """
import datetime, os, sys
import numpy as np
import torch.distributed as dist
import gramless as gl
from support import cases

rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world,
                        timeout=datetime.timedelta(seconds=60))
x, y = cases.Case("distributed", "", 120, 9, 6).arrays("fp64")
"""
EPILOGUE = """
dist.barrier()
dist.destroy_process_group()
"""


def launch(program: str, world: int, folder: Path) -> list[str]:
    """Run a program in `world` processes and give back what each printed."""
    arguments = [(str(rank), str(world), str(folder)) for rank in range(world)]
    return forked.run(PREAMBLE + program + EPILOGUE, arguments, TIMEOUT)


def states(folder: Path, world: int, kind: Any = MomentState) -> list[Any]:
    found = []
    for rank in range(world):
        with np.load(folder / f"{rank}.npz") as arrays:
            found.append(kind.from_dict(dict(arrays)))
    return found
