"""Calls on a GPU that answer one question in turns: checked first, then timed against GEMM, against the floor and ours.

What answers wrongly is not timed. A call that fails is told in its row, and the others go on.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from .base import median_ratio
from .gpu_device import Device, copy_call, gemm_call

OURS = "gramless"
ROUNDS = 5
# a call that takes longer is timed once
SLOW_SECONDS = 5.0
# products of bfloat16 that stand for one, where rows are packed
PRODUCTS = {"fast": 1, "high": 3}
# largest error of an answer: two roundings of 2^-9 or 2^-17, and float32 sums of 1024 products; of a sum, four of
# these, as fourth powers have; of float64, what is promised of a logit distance
TOLERANCE = {"fast": 2.0**-8, "high": 1e-4, "exact": 1e-6}
SUMS_TOLERANCE = {"fast": 2.0**-7, "high": 1e-4, "exact": 1e-6}


class Case(NamedTuple):
    """One question, which all calls of a case answer."""

    dtype: str  # of the data
    precision: str  # what is asked of gramless, and how near every answer has to be
    n: int
    width: int
    flops: int  # least number of operations, symmetric products at half
    products: float  # in the dtype of GEMM, that gramless takes for each
    least_bytes: int  # each input read once
    checked: str  # what the errors are of
    layers: int = 1  # of each of the two models
    labels: int | None = None  # of the vocabulary
    asked: str = ""  # what is to be told of the models, where there are several questions
    data: str = ""  # which models, where there are several
    gemm: str = "bfloat16"  # dtype of the products that rates are compared with
    tolerance: float | None = None  # largest error of an answer, where the precision alone does not tell


class Errors(NamedTuple):
    """Relative to float64; None where it is not known, NaN where an answer is none."""

    answer: float | None  # of unbiased CKA, of a grid the worst pair of layers; the worst of the values of all rows
    sums: float | None = None  # the largest of any sum, in parts of the sum of its terms: a wrong tile hides in a CKA

    def agree(self, precision: str, tolerance: float | None = None) -> bool:
        most = TOLERANCE[precision] if tolerance is None else tolerance
        known = [(self.answer, most), (self.sums, SUMS_TOLERANCE[precision])]
        within = [error <= most for error, most in known if error is not None]
        return bool(within) and all(within)


class Work(NamedTuple):
    """What a call computes that comes to the answer in another way, and is judged by its own operations."""

    flops: int
    products: float


class Contestant(NamedTuple):
    """A call, and what judges its result."""

    name: str
    call: Callable[[], Any]
    errors: Callable[[Any], Errors]
    work: Work | None = None  # if it is not that of the case
    tolerance: float | None = None  # if it is not that of the case

    @property
    def ours(self) -> bool:
        return self.name.startswith(OURS)


class GpuRow(NamedTuple):
    """Medians over rounds, all None where the answer is wrong and where nothing is timed."""

    name: str
    ours: bool
    dtype: str
    precision: str
    n: int
    width: int
    layers: int
    labels: int | None
    asked: str
    data: str
    gemm: str  # dtype of its products
    seconds: float | None
    tflops: float | None  # of the least operations, each multiplication of numbers counted once
    gemm_tflops: float | None  # by cuBLAS, in turns with the call
    gemm_fraction: float | None  # rate of all products over that of GEMM
    floor_seconds: float | None  # of those products at the rate of GEMM, or of the bytes at that of a copy
    times_floor: float | None
    ratio: float | None  # seconds over ours of the same case
    peak_extra_bytes: int | None  # held beyond the data; the result included
    error: float | None  # of the answer, relative to float64
    sums_error: float | None  # the largest of any sum
    checked: str
    agrees: bool
    failed: str | None  # why there is no answer


class Target(NamedTuple):
    """What was promised, and what came of it; None where it was not measured."""

    what: str
    value: float | None
    met: bool | None


def failure(error: BaseException) -> str:
    """The kind of an error and the first line of its text."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


class _Answer(NamedTuple):
    errors: Errors
    agrees: bool
    failed: str | None
    peak: int | None
    slow: bool


def _judge(case: Case, one: Contestant, device: Device) -> _Answer:
    """Call it once for its answer and its memory, after a call that compiles."""
    device.release()
    try:
        if not device.interpreting:
            one.call()
        result, peak, taken = device.first_call(one.call)
        errors = one.errors(result)
    # whatever stops one of them is no reason to lose the others
    except Exception as error:
        return _Answer(Errors(None), False, failure(error), None, False)
    tolerance = case.tolerance if one.tolerance is None else one.tolerance
    slow = taken is not None and taken > SLOW_SECONDS
    return _Answer(errors, errors.agree(case.precision, tolerance), None, peak, slow)


def measure(case: Case, contestants: Sequence[Contestant], device: Device, rounds: int = ROUNDS) -> list[GpuRow]:
    """Check all, then time those that answer rightly, one turn each per round; ratios are over the first of ours."""
    answers = [_judge(case, one, device) for one in contestants]
    right = [(one, answer.slow) for one, answer in zip(contestants, answers, strict=True) if answer.agrees]
    taken = _timed(right, case.gemm, device, rounds)
    gemm, copied = taken.pop("GEMM", []), taken.pop("copy", [])
    own = taken.get(OURS, [])
    rows = []
    for one, answer in zip(contestants, answers, strict=True):
        times = taken.get(one.name, [])
        seconds = statistics.median(times) if times else None
        flops, products = one.work or Work(case.flops, case.products)
        multiplied = flops * (products if one.ours else 1)
        rate, floor = None, None
        if seconds is not None:
            rate = statistics.median(gemm)
            floor = max(flops * products / rate, case.least_bytes / statistics.median(copied))
        rows.append(
            GpuRow(
                name=one.name,
                ours=one.ours,
                dtype=case.dtype,
                precision=case.precision,
                n=case.n,
                width=case.width,
                layers=case.layers,
                labels=case.labels,
                asked=case.asked,
                data=case.data,
                gemm=case.gemm,
                seconds=seconds,
                tflops=None if seconds is None else flops / seconds / 1e12,
                gemm_tflops=None if rate is None else rate / 1e12,
                gemm_fraction=None if seconds is None or rate is None else multiplied / seconds / rate,
                floor_seconds=floor,
                times_floor=None if seconds is None or floor is None else seconds / floor,
                ratio=median_ratio(times, own) if times and own else None,
                peak_extra_bytes=answer.peak,
                error=answer.errors.answer,
                sums_error=answer.errors.sums,
                checked=case.checked,
                agrees=answer.agrees,
                failed=answer.failed,
            )
        )
    return rows


def _timed(
    contestants: Sequence[tuple[Contestant, bool]], gemm: str, device: Device, rounds: int
) -> dict[str, list[float]]:
    """Seconds of each, by name, and the rates of GEMM and of a copy in the same rounds; nothing if interpreting."""
    taken: dict[str, list[float]] = {}
    if device.interpreting or not contestants:
        return taken
    rates = {"GEMM": gemm_call(device, gemm), "copy": copy_call(device)}
    for turn in range(rounds):
        for name, (call, amount) in rates.items():
            taken.setdefault(name, []).append(amount / device.seconds(call))
        for one, slow in contestants:
            if turn == 0 or not slow:
                taken.setdefault(one.name, []).append(device.seconds(one.call))
    return taken


def reached(
    what: str, row: GpuRow | None, value: float | None, *, least: float | None = None, most: float | None = None
) -> Target:
    """A target of a row: missed if its answer is wrong or missing, not measured if nothing was timed."""
    if row is not None and not row.agrees:
        return Target(what, None, False)
    if value is None:
        return Target(what, None, None)
    return Target(what, value, (least is None or value >= least) and (most is None or value <= most))


def found(rows: Sequence[GpuRow], name: str, **known: Any) -> GpuRow | None:
    """The row of that name and those fields; None if there is none."""
    return next(
        (r for r in rows if r.name == name and all(getattr(r, key) == value for key, value in known.items())), None
    )
