"""Threads, forks and signals: the answer has the same bits, nothing hangs, and what is set is what runs."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import gramless as gl
from support import backends, bounds, cases, memory

COUNTS = (1, 2, 7)
# one tile and one chunk; tall (many slabs of rows); wide (many tiles); both
SHAPES = (
    cases.Case("small", "", 100, 20, 9),
    cases.Case("tall", "", 20_001, 24, 17),
    cases.Case("wide_tiles", "", 130, 1100, 600),
    cases.Case("ragged_tiles", "", 1500, 513, 515),
)


@pytest.mark.parametrize("dtype", ["bf16", "fp32", "fp64"])
@pytest.mark.parametrize("case", SHAPES, ids=str)
def test_thread_count_does_not_change_a_bit(case: cases.Case, dtype: str) -> None:
    x, y = case.arrays(dtype)
    results = []
    for count in COUNTS:
        with backends.threads(count):
            assert gl.get_num_threads() == count
            results.append(gl.moments(x, y, backend="cpu").to_dict())
    for count, result in zip(COUNTS[1:], results[1:], strict=True):
        bounds.assert_same_dicts(result, results[0], f"{count} threads against 1")


@pytest.mark.parametrize("case", SHAPES[1:3], ids=str)
def test_the_same_call_gives_the_same_bits(case: cases.Case) -> None:
    x, y = case.arrays("fp32")
    first = gl.moments(x, y, backend="cpu").to_dict()
    for _ in range(5):
        bounds.assert_same_dicts(gl.moments(x, y, backend="cpu").to_dict(), first, "again")


def test_calls_from_several_python_threads() -> None:
    chosen = [(case, dtype) for case in SHAPES for dtype in ("bf16", "fp32", "fp64")]
    serial = [gl.moments(*case.arrays(dtype), backend="cpu").to_dict() for case, dtype in chosen]
    with ThreadPoolExecutor(6) as pool:
        jobs = [pool.submit(gl.moments, *case.arrays(dtype), backend="cpu") for _ in range(3) for case, dtype in chosen]
        results = [job.result(timeout=60).to_dict() for job in jobs]
    for index, result in enumerate(results):
        case, dtype = chosen[index % len(chosen)]
        bounds.assert_same_dicts(result, serial[index % len(chosen)], f"{case} {dtype} beside others")


def test_changing_the_count_while_calls_run() -> None:
    case = SHAPES[3]
    want = gl.moments(*case.arrays("fp32"), backend="cpu").to_dict()
    before = gl.get_num_threads()
    try:
        with ThreadPoolExecutor(3) as pool:
            jobs = [pool.submit(gl.moments, *case.arrays("fp32"), backend="cpu") for _ in range(9)]
            for count in (1, 4, 2, 7, 1, 3):
                gl.set_num_threads(count)
            results = [job.result(timeout=60).to_dict() for job in jobs]
    finally:
        gl.set_num_threads(before)
    for result in results:
        bounds.assert_same_dicts(result, want, "while the count changed")


def test_the_interpreter_is_free_meanwhile() -> None:
    """Another Python thread must get on while the kernel runs, or a training loop would stall."""
    ticks = []
    running = threading.Event()
    rows = np.broadcast_to(np.float32(1), (400_000, 256))

    def work() -> None:
        running.set()
        gl.moments(rows, backend="cpu")
        running.clear()

    with backends.threads(1):
        worker = threading.Thread(target=work)
        worker.start()
        running.wait()
        while running.is_set() and len(ticks) < 1000:
            ticks.append(running.wait(0.001) and threading.Event().wait(0.001))
        worker.join()
    assert len(ticks) > 3


def test_interruption() -> None:
    """Ctrl-C ends a long call within moments, and the next call works."""
    program = """
import os, signal, threading, time
import numpy as np
import gramless as gl
rows = np.broadcast_to(np.float32(1), (40_000_000, 512))
gl.moments(rows[:1000])
threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
start = time.monotonic()
try:
    gl.moments(rows, backend="cpu")
except KeyboardInterrupt:
    print("interrupted after", time.monotonic() - start)
x = np.random.default_rng(0).standard_normal((100, 5))
print("then", round(gl.cka(x, x), 6))
"""
    out = memory.run(program, timeout=20)
    assert "interrupted" in out
    assert "then 1.0" in out


def test_first_calls_from_several_threads_at_once() -> None:
    """What a first call imports may be half there while another thread imports it."""
    program = """
import threading
import numpy as np
import gramless as gl
x = np.random.default_rng(0).standard_normal((50, 5))
together, found = threading.Barrier(4), []
def work():
    together.wait()
    found.append(gl.cka(x, x[:, :3], kernel="rbf"))
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(len(found), len(set(found)))
"""
    for _ in range(3):
        assert memory.run(program, timeout=60) == "4 1\n"


def test_interpreter_ends_under_a_daemon_thread() -> None:
    """A call that is under way when the main thread ends may not bring the process down."""
    program = """
import threading, time
import numpy as np
import gramless as gl
x = np.random.default_rng(0).standard_normal((20_000, 256)).astype(np.float32)
def work():
    while True:
        gl.moments(x)
        gl.gram_sums(x[:3000], kernel="rbf", bandwidth_x=20.0)
threading.Thread(target=work, daemon=True).start()
time.sleep(0.5)
print("end")
"""
    for _ in range(3):
        assert memory.run(program, timeout=60) == "end\n"


FORK = """
import os, signal, sys
import numpy as np
import gramless as gl
x = np.random.default_rng(0).standard_normal((3000, 300)).astype(np.float32)
gl.set_num_threads(4)
def work():
    # the kernel alone: the BLAS of NumPy does not survive a fork in the middle of a product
    return float(gl.moments(x, x[:, ::-1], backend="cpu").cross.second.sum())
{before}
reader, writer = os.pipe()
child = os.fork()
if child == 0:
    signal.alarm(30)
    os.write(writer, work().hex().encode())
    os._exit(0)
_, status = os.waitpid(child, 0)
assert status == 0, f"the child ended with {{status}}"
assert float.fromhex(os.read(reader, 100).decode()) == work()
print("same", flush=True)
# a thread that is still busy is not waited for
os._exit(0)
"""


@pytest.mark.parametrize("before", ["", "work()"], ids=["pool not made", "pool in use before"])
def test_a_forked_child_computes(before: str) -> None:
    assert memory.run(FORK.format(before=before), timeout=60).strip() == "same"


def test_a_child_forked_while_another_thread_computes() -> None:
    program = FORK.format(
        before="""
import threading
def busy():
    while True:
        work()
work()
threading.Thread(target=busy, daemon=True).start()
"""
    )
    assert memory.run(program, timeout=60).strip() == "same"


def test_data_loader_workers() -> None:
    program = """
import numpy as np
import torch
import gramless as gl

class Pairs(torch.utils.data.Dataset):
    def __len__(self):
        return 6
    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        x = rng.standard_normal((500, 40)).astype(np.float32)
        return gl.cka(x, x[:, :20] + 1.0)

want = [Pairs()[i] for i in range(6)]
loader = torch.utils.data.DataLoader(Pairs(), batch_size=2, num_workers=2, multiprocessing_context="fork", timeout=60)
got = torch.cat(list(loader)).tolist()
assert got == want, (got, want)
print("same")
"""
    assert memory.run(program, timeout=120).strip() == "same"


def test_beside_torch_threads() -> None:
    """Both pools in one process, in turns."""
    import torch

    x, y = (backends.as_torch(a) for a in SHAPES[3].arrays("fp32"))
    want = gl.cka(x, y, backend="cpu")
    for _ in range(3):
        torch.mm(x.T, y)
        assert gl.cka(x, y, backend="cpu") == want


@pytest.mark.parametrize("variable", ["GRAMLESS_NUM_THREADS", "OMP_NUM_THREADS"])
def test_count_from_the_environment(variable: str) -> None:
    out = memory.run("import gramless as gl; print(gl.get_num_threads())", **{variable: "3"})
    assert out.strip() == "3"


def test_own_variable_comes_first() -> None:
    out = memory.run(
        "import gramless as gl; print(gl.get_num_threads())", GRAMLESS_NUM_THREADS="5", OMP_NUM_THREADS="3"
    )
    assert out.strip() == "5"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_default_count_honours_affinity() -> None:
    program = """
import os
os.environ.pop("OMP_NUM_THREADS", None)
os.environ.pop("GRAMLESS_NUM_THREADS", None)
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import gramless as gl
print(gl.get_num_threads())
"""
    assert memory.run(program).strip() == "1"


class TestLevels:
    @pytest.mark.parametrize("level", backends.isa_levels())
    def test_from_the_environment(self, level: str) -> None:
        program = """
import numpy as np
from gramless import _core
x = np.arange(12, dtype=np.float32).reshape(4, 3)
print(_core.isa_level(), _core.moments(x, pivot_x=np.zeros(3))["sxx"].sum())
"""
        rows = np.arange(12.0).reshape(4, 3)
        assert memory.run(program, GRAMLESS_ISA=level).split() == [level, str((rows.T @ rows).sum())]

    def test_a_level_that_is_not_there_is_an_error(self) -> None:
        program = """
import numpy as np
import gramless as gl
x = np.ones((5, 3))
try:
    gl.moments(x)
except (ValueError, RuntimeError) as error:
    print(error)
"""
        assert "avx9000" in memory.run(program, GRAMLESS_ISA="avx9000")

    def test_the_best_is_the_default(self) -> None:
        out = memory.run("from gramless import _core; print(_core.isa_level(), *_core.isa_levels())", GRAMLESS_ISA="")
        used, *offered = out.split()
        assert used == offered[-1]
        assert "scalar" in offered


def test_reading_a_stream_that_other_threads_fill_and_reset() -> None:
    """What is read is the stream between two updates, or an empty one; never a half of it."""
    x = np.ones((8, 3))
    stream, done = gl.Moments(), threading.Event()

    def fill() -> None:
        while not done.is_set():
            for _ in range(3):
                stream.update(x, 2 * x)
            stream.reset()

    with ThreadPoolExecutor(2) as pool, backends.threads(1):
        jobs = [pool.submit(fill) for _ in range(2)]
        try:
            for _ in range(500):
                state = stream.state_dict()
                n = int(state["n"])
                assert n % 8 == 0
                if n:
                    bounds.assert_same_bits(state["y.pivot"] + state["y.sum"] / n, np.full(3, 2.0), "the mean")
                assert repr(stream).startswith("Moments(n=")
                assert stream.nbytes in (0, gl.moments(x, x).nbytes)
        finally:
            done.set()
        for job in jobs:
            job.result(timeout=30)
