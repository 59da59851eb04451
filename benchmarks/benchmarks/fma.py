"""The rate of fused multiply-adds on registers alone: what no matrix product on these cores can exceed."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
import threading
import time
from pathlib import Path

from .base import TINY

# twenty chains hide the latency of two FMA units at any width, and fit the registers of AVX-512 and of AVX2 with VL
_SOURCE = """
typedef REAL vec __attribute__((vector_size(WIDTH)));
enum { LANES = WIDTH / sizeof(REAL), CHAINS = 20 };
long fma_rounds(long rounds, REAL *sink) {
    vec acc[CHAINS], factor, term;
    for (int lane = 0; lane < LANES; lane++) { factor[lane] = (REAL)0.999; term[lane] = (REAL)0.001; }
    for (int i = 0; i < CHAINS; i++) acc[i] = term * (REAL)i;
    for (long round = 0; round < rounds; round++) {
        _Pragma("GCC unroll 20")
        for (int i = 0; i < CHAINS; i++) acc[i] = acc[i] * factor + term;
    }
    vec total = acc[0];
    for (int i = 1; i < CHAINS; i++) total += acc[i];
    for (int lane = 0; lane < LANES; lane++) sink[lane] = total[lane];
    return rounds * CHAINS * LANES * 2;
}
"""
_WIDTHS = {"avx512f": 64, "avx2": 32}
# pieces of about 5 ms: some of them run when threads that started on the same core have been parted, and the threads of
# OpenBLAS, which spin after a product, have gone to sleep
_ROUNDS = 1_000 if TINY else 2_000_000
_PIECES = 10 if TINY else 40


class FmaPeak:
    """Measures with a C program of a few lines; `available` is False where no compiler is installed.

    Parameters
    ----------
    dtype
        ``"float32"`` or ``"float64"``.
    threads
        Number of threads that multiply at the same time.
    """

    def __init__(self, dtype: str, threads: int) -> None:
        self.threads = threads
        self._loop = None
        compiler = shutil.which("cc")
        if compiler is None:
            return
        flags = Path("/proc/cpuinfo")
        known = flags.read_text().split() if flags.exists() else []
        width = next((width for flag, width in _WIDTHS.items() if flag in known), 16)
        real = {"float32": "float", "float64": "double"}[dtype]
        with tempfile.TemporaryDirectory() as folder:
            source, library = Path(folder, "fma.c"), Path(folder, "fma.so")
            source.write_text(_SOURCE)
            options = ["-O2", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC"]
            defines = [f"-DREAL={real}", f"-DWIDTH={width}"]
            command = [compiler, *options, *defines, "-o", str(library), str(source)]
            if subprocess.run(command, capture_output=True, check=False).returncode == 0:
                self._loop = ctypes.CDLL(str(library)).fma_rounds
                self._loop.restype = ctypes.c_long
                self._loop.argtypes = [ctypes.c_long, ctypes.c_void_p]

    @property
    def available(self) -> bool:
        return self._loop is not None

    def gflops(self, rounds: int = _ROUNDS) -> float:
        """10^9 operations per second: the rate of the quickest piece of any thread while all run, times the threads."""
        loop = self._loop
        if loop is None:
            return float("nan")
        barrier = threading.Barrier(self.threads)
        rates: list[float] = []

        def work() -> None:
            sink = (ctypes.c_double * 16)()
            barrier.wait()
            for _ in range(_PIECES):
                start = time.perf_counter()
                count = loop(rounds, sink)
                rates.append(count / (time.perf_counter() - start) / 1e9)

        workers = [threading.Thread(target=work) for _ in range(self.threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return self.threads * max(rates)
