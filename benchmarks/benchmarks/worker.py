"""One job in a process of its own, with a fixed number of threads, run when asked.

Peers and the machine's GEMM are interleaved with gramless this way: BLAS and OpenMP read their number of threads when
they are loaded, and the memory of a peer is not mixed with ours.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .base import GEMM_SIZE, peak_extra_bytes, seconds

if TYPE_CHECKING:
    from typing import Self

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
# the folder from which this module goes by the name that it has now
SEARCH_PATH = Path(__file__).resolve().parents[__name__.count(".")]


class Job(NamedTuple):
    """The call to be measured, and what makes numbers of its result, which takes no part in the measurement."""

    call: Callable[[], object]
    read: Callable[[Any], Any] = float


class Worker:
    """A child process that holds the inputs of one job.

    Parameters
    ----------
    job, *arguments
        ``"gemm", dtype``, or the name of a module of peers and what its ``prepare`` takes.
    threads
        Threads of the job.
    """

    def __init__(self, job: str, *arguments: object, threads: int) -> None:
        paths = [str(SEARCH_PATH), *(path for path in sys.path if path)]
        variables = dict.fromkeys(THREAD_VARIABLES, str(threads))
        variables |= {"PYTHONPATH": os.pathsep.join(paths), "MPLBACKEND": "agg", "TQDM_DISABLE": "1"}
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._child = subprocess.Popen(
            [sys.executable, "-m", __name__, str(threads), job, json.dumps(arguments)],
            env=os.environ | variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        try:
            self._answer()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._child.kill()
        self._child.communicate()
        self._errors.close()

    def _answer(self) -> dict[str, Any]:
        line = self._child.stdout.readline()
        if not line:
            self._child.wait()
            self._errors.seek(0)
            raise ChildProcessError(f"{self._child.args}: exit {self._child.returncode}\n{self._errors.read()}")
        return json.loads(line)

    def _ask(self, command: str) -> dict[str, Any]:
        self._child.stdin.write(command + "\n")
        self._child.stdin.flush()
        return self._answer()

    def seconds(self) -> float:
        return float(self._ask("seconds")["seconds"])

    def value(self) -> Any:
        """A number, or nested lists of them."""
        return self._ask("value")["value"]

    def peak_extra_bytes(self) -> int:
        return int(self._ask("peak")["bytes"])


def gemm_gflops(worker: Worker) -> float:
    """The rate of one product of two square matrices, in 10^9 operations per second."""
    return 2 * GEMM_SIZE**3 / worker.seconds() / 1e9


def gemm_job(dtype: str) -> Job:
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((GEMM_SIZE, GEMM_SIZE)).astype(dtype) for _ in range(2))
    out = np.empty_like(a)
    return Job(lambda: np.matmul(a, b, out=out))


def prepared(job: str, arguments: list[Any], threads: int) -> Job:
    if job == "gemm":
        return gemm_job(*arguments)
    module = importlib.import_module(f".{job}", __package__)
    made: Job = module.prepare(*arguments, threads=threads)
    return made


def main(threads: str, job: str, arguments: str) -> None:
    # what a peer prints goes to stderr: stdout carries the answers only
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    call, read = prepared(job, json.loads(arguments), int(threads))
    # lazy imports, thread pools and clock frequency settle before anything is measured
    call()
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for command in sys.stdin:
        match command.strip():
            case "seconds":
                answer = {"seconds": seconds(call)}
            case "value":
                answer = {"value": np.asarray(read(call()), dtype=np.float64).tolist()}
            case "peak":
                answer = {"bytes": peak_extra_bytes(call)}
            case other:
                raise ValueError(f"worker: expected seconds, value or peak, got {other}")
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
