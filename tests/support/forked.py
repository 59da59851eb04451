"""Python programs in processes forked from one that has imported what takes seconds to import.

Each has memory, modules and threads of its own, as a process started from nothing has. What a program imports, the
environment or the first import of the package decide of it is tested by `memory.run`, which starts one from nothing.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

# none of them may start a thread, which would not live on in a fork
_IMPORTED = ("numpy", "scipy.linalg", "torch", "torch.distributed", "gramless", "support.cases", "support.bounds")
_FIXED = {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
_STREAMS = ("stdin", "stdout", "stderr")


def run(program: str, arguments: Sequence[Sequence[str]] = ((),), timeout: float = 120.0) -> list[str]:
    """Run a program once for each list of arguments, all at the same time, and give back what each printed."""
    with tempfile.TemporaryDirectory() as folder:
        call = {"program": program, "arguments": [[*map(str, words)] for words in arguments], "folder": folder}
        told = _template().ask(call, timeout)
        for index in told["order"]:
            status = told["status"][str(index)]
            assert status == 0, f"process {index} ended with {status}\n{_printed(folder, index, 'stderr')}"
        return [_printed(folder, index, "stdout") for index in range(len(arguments))]


def _printed(folder: str, index: int, stream: str) -> str:
    return Path(folder, f"{index}.{stream}").read_text()


@cache
def _template() -> _Template:
    template = _Template()
    atexit.register(template.end)
    return template


class _Template:
    def __init__(self) -> None:
        from support import memory

        self._process = subprocess.Popen(
            [sys.executable, "-c", "from support import forked\nforked.serve()"],
            env=memory.environment() | _FIXED,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # its group is what a time limit ends
            start_new_session=True,
        )

    def ask(self, call: dict[str, Any], timeout: float) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(call).encode() + b"\n")
        self._process.stdin.flush()
        if not select.select([self._process.stdout], [], [], timeout)[0]:
            self.end()
            raise TimeoutError(f"after {timeout} s still running:\n{call['program']}")
        told: dict[str, Any] = json.loads(self._process.stdout.readline())
        return told

    def end(self) -> None:
        _template.cache_clear()
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        # closes its pipes, too
        self._process.communicate()


def serve() -> None:
    """Fork for each line of the standard input, and tell how the forks ended."""
    for module in _IMPORTED:
        __import__(module)
    # a collection in a fork would touch, and so copy, all of that
    gc.freeze()
    for line in sys.stdin:
        call = json.loads(line)
        running: dict[int, int] = {}
        for index, words in enumerate(call["arguments"]):
            pid = os.fork()
            if pid == 0:
                os._exit(_become(call["program"], words, call["folder"], index))
            running[pid] = index
        print(json.dumps(_awaited(running)), flush=True)


def _become(program: str, words: list[str], folder: str, index: int) -> int:
    for number, stream in enumerate(_STREAMS):
        path = os.devnull if stream == "stdin" else f"{folder}/{index}.{stream}"
        opened = os.open(path, os.O_RDONLY if stream == "stdin" else os.O_WRONLY | os.O_CREAT, 0o600)
        os.dup2(opened, number)
        os.close(opened)
    sys.argv = ["-c", *words]
    status = 0
    try:
        exec(compile(program, "<program>", "exec"), {"__name__": "__main__"})
    except BaseException:
        traceback.print_exc()
        status = 1
    # all that an interpreter does at its end but to free what was imported, which takes a second
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return status


def _awaited(running: dict[int, int]) -> dict[str, Any]:
    """Wait for forks; one that fails ends the others, which might wait for it."""
    order, status = [], {}
    while running:
        pid, code = os.wait()
        index = running.pop(pid)
        order.append(index)
        status[index] = os.waitstatus_to_exitcode(code)
        if status[index]:
            for other in running:
                os.kill(other, signal.SIGKILL)
    return {"order": order, "status": status}
