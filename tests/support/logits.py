"""Named pairs of models for the kernels over logits, each with the mistake it catches."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Any

import numpy as np

from gramless.measures import logits as values
from gramless.states.logits import OPTIONS as OPTIONS_OF_STATES
from gramless.states.logits import LogitPairState, LogitState
from support.backends import Backend
from support.cases import DTYPES

Models = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
Build = Callable[[np.random.Generator, int, int, int, int], Models]
DIVERGENCES = ("js", "tv")
ARRAYS = ("h1", "w1", "h2", "w2")


def correlated(rng: np.random.Generator, n: int, v: int, d1: int, d2: int, scale: float = 3.0) -> Models:
    """Logits of standard deviation `scale`; the second model has the features of the first, as far as they go."""
    h1, w1 = rng.standard_normal((n, d1)), scale * rng.standard_normal((v, d1)) / np.sqrt(d1)
    h2, w2 = rng.standard_normal((n, d2)), scale * rng.standard_normal((v, d2)) / np.sqrt(d2)
    shared = min(d1, d2)
    h2[:, :shared] = h1[:, :shared] + 0.2 * h2[:, :shared]
    w2[:, :shared] = w1[:, :shared] + 0.2 * w2[:, :shared]
    return h1, w1, h2, w2


def _scaled(scale: float) -> Build:
    return lambda rng, n, v, d1, d2: correlated(rng, n, v, d1, d2, scale)


def _near_equal(size: float) -> Build:
    def build(rng: np.random.Generator, n: int, v: int, d1: int, d2: int) -> Models:
        h, w, _, _ = correlated(rng, n, v, d1, d2)
        return h, w, *(a * (1 + size * rng.standard_normal(a.shape)) for a in (h, w))

    return build


def _outlier(rng: np.random.Generator, n: int, v: int, d1: int, d2: int) -> Models:
    h1, w1, h2, w2 = correlated(rng, n, v, d1, d2)
    for h, w in ((h1, w1), (h2, w2)):
        h[:, 1] = 1e3 * (1 + 0.01 * rng.standard_normal(n))
        w[:, 1] = 0.05 * rng.standard_normal(v)
    return h1, w1, h2, w2


def _integers(rng: np.random.Generator, n: int, v: int, d1: int, d2: int) -> Models:
    shapes = ((n, d1), (v, d1), (n, d2), (v, d2))
    h1, w1, h2, w2 = (rng.integers(-2, 3, shape).astype(np.float64) for shape in shapes)
    return h1, w1, h2, w2


def _one_token(rng: np.random.Generator, case: Case) -> dict[str, Any]:
    b1, b2 = rng.standard_normal(case.v), rng.standard_normal(case.v)
    b1[3], b2[case.v // 2] = 60.0, 80.0
    return {"b1": b1, "b2": b2}


def _biases(rng: np.random.Generator, case: Case) -> dict[str, Any]:
    return {"b1": rng.standard_normal(case.v), "b2": 2 + rng.standard_normal(case.v)}


def _masked_in_both(rng: np.random.Generator, case: Case) -> dict[str, Any]:
    made = _biases(rng, case)
    for b in made.values():
        b[::3] = -np.inf
        b[-5:] = -np.inf
    return made | {"targets": 1 + 3 * rng.integers(0, 5, case.n)}


def _masked_in_one(rng: np.random.Generator, case: Case) -> dict[str, Any]:
    made = _biases(rng, case)
    made["b1"][::7] = -np.inf
    made["b2"][::7] = -np.inf
    made["b2"][1] = -np.inf
    return made


def _masked_in_the_other(rng: np.random.Generator, case: Case) -> dict[str, Any]:
    made = _masked_in_one(rng, case)
    return {"b1": made["b2"], "b2": made["b1"]}


def _masked_and_capped(rng: np.random.Generator, case: Case) -> dict[str, Any]:
    return _masked_in_one(rng, case) | {"softcap1": 5.0, "softcap2": 3.0}


def _some_labels(rng: np.random.Generator, case: Case) -> dict[str, Any]:
    labels = rng.permutation(case.v)[: case.v // 2 + 1]
    return _biases(rng, case) | {"labels": labels, "targets": rng.choice(labels, case.n)}


def _some_rows(rng: np.random.Generator, case: Case) -> dict[str, Any]:
    mask = rng.random(case.n) < 0.4
    mask[-1] = True
    targets = np.where(mask, rng.integers(0, case.v, case.n), -100)
    return {"mask": mask, "targets": targets}


def _some_targets(rng: np.random.Generator, case: Case) -> dict[str, Any]:
    targets = rng.integers(0, case.v, case.n)
    targets[::3] = -1
    targets[:2] = 0, case.v - 1
    return {"targets": targets}


def _hot(rng: np.random.Generator, case: Case) -> dict[str, Any]:
    return _biases(rng, case) | {"temperature": 0.7, "targets": rng.integers(0, case.v, case.n)}


def _soft(rng: np.random.Generator, case: Case) -> dict[str, Any]:
    return _biases(rng, case) | {"softcap1": 5.0, "softcap2": 30.0, "temperature": 1.3}


def _everything(rng: np.random.Generator, case: Case) -> dict[str, Any]:
    chosen = _some_labels(rng, case)
    chosen["b1"][::5] = -np.inf
    chosen["b2"][::5] = -np.inf
    kept = np.setdiff1d(chosen["labels"], np.arange(0, case.v, 5))
    mask = rng.random(case.n) < 0.6
    targets = np.where(mask, rng.choice(kept, case.n), 10**9)
    return _soft(rng, case) | chosen | {"mask": mask, "targets": targets}


def nothing(rng: np.random.Generator, case: Case) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Inputs:
    """Arguments of logit_pairs."""

    h1: np.ndarray
    w1: np.ndarray | None
    h2: np.ndarray
    w2: np.ndarray | None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def arrays(self) -> tuple:
        return self.h1, self.w1, self.h2, self.w2

    @property
    def alone(self) -> Inputs:
        """The first model beside itself."""
        options = {key: value for key, value in self.options.items() if not key.endswith("2")}
        twice = {key.replace("1", "2"): value for key, value in options.items()}
        return Inputs(self.h1, self.w1, self.h1, self.w1, options | twice)

    @property
    def single(self) -> dict[str, Any]:
        """Options of logsumexp of the first model."""
        options = {key: value for key, value in self.options.items() if not key.endswith("2")}
        return {key.removesuffix("1"): value for key, value in options.items()}

    @property
    def compute(self) -> np.dtype:
        """What a kernel computes in."""
        arrays = [a for a in self.arrays if a is not None]
        return np.dtype(np.float64 if any(a.dtype == np.float64 for a in arrays) else np.float32)

    def given(self) -> Inputs:
        """The same with logits, in the precision that kernels compute in."""
        products = [(h @ w.T).astype(self.compute) for h, w in ((self.h1, self.w1), (self.h2, self.w2))]
        return Inputs(products[0], None, products[1], None, self.options)


@dataclass(frozen=True)
class Case:
    name: str
    catches: str
    n: int
    v: int
    d1: int
    d2: int
    build: Build = correlated
    options: Callable[[np.random.Generator, Case], dict[str, Any]] = nothing
    dtypes: tuple[str, ...] = ("fp16", "bf16", "fp32", "fp64")

    def inputs(self, dtype1: str, dtype2: str | None = None) -> Inputs:
        """Read-only, the same at every call."""
        return _inputs(self, dtype1, dtype2 or dtype1)

    def __str__(self) -> str:
        return self.name


@lru_cache(maxsize=128)
def _inputs(case: Case, dtype1: str, dtype2: str) -> Inputs:
    rng = np.random.default_rng(zlib.crc32(case.name.encode()))
    kinds = [DTYPES[dtype1]] * 2 + [DTYPES[dtype2]] * 2
    built = case.build(rng, case.n, case.v, case.d1, case.d2)
    models = [a.astype(kind) for a, kind in zip(built, kinds, strict=True)]
    options = case.options(rng, case)
    for array in [*models, *(value for value in options.values() if isinstance(value, np.ndarray))]:
        array.setflags(write=False)
    return Inputs(*models, options)


SHAPES = (
    (1, 2, 1, 1),
    (2, 3, 5, 1),
    (7, 97, 64, 5),
    (300, 2, 5, 64),
    (300, 3, 1, 5),
    (2, 1000, 300, 64),
    (1, 5003, 5, 5),
    (7, 577, 300, 1),
)
RAGGED = tuple(Case("n{}_v{}_d{}_d{}".format(*shape), "tails of tiles in every direction", *shape) for shape in SHAPES)
LARGE = (
    Case("n300_v700", "several tiles of rows and of labels", 300, 700, 64, 300, dtypes=("bf16", "fp32")),
    Case("n60_v5003", "many tiles of labels", 60, 5003, 64, 5, dtypes=("fp16", "fp32")),
)
WIDE = Case("row_blocks", "rows in several blocks, each with all labels", 650, 7, 5000, 4000, dtypes=("fp32",))
TYPICAL = Case("typical", "the plain case", 33, 400, 24, 17, options=_hot)
EXTREMES = (
    Case("peaked_1e2", "exponentials that under- and overflow about the wrong maximum", 40, 300, 24, 17, _scaled(1e2)),
    Case("peaked_1e3", "the same, where all but one underflow", 40, 300, 24, 17, _scaled(1e3)),
    Case("one_token", "a label with all probability, another in each model", 20, 300, 24, 17, correlated, _one_token),
    Case(
        "near_equal",
        "differences of logits lost in the logits",
        40,
        300,
        24,
        24,
        _near_equal(1e-4),
        dtypes=("fp32", "fp64"),
    ),
    Case("outlier", "a hidden dimension of 1e3", 40, 300, 24, 17, _outlier),
    Case("flat", "logits that hardly differ", 20, 300, 24, 17, _scaled(1e-3)),
)
# of a KL of 1e-4
NEAR_KL = Case(
    "near_kl", "KL as a difference of rounded numbers", 60, 2000, 32, 32, _near_equal(2.5e-3), dtypes=("fp32",)
)
MASKED_IN_ONE = (
    Case("masked_in_one", "infinite KL, and 0 times infinity", 25, 330, 24, 17, correlated, _masked_in_one),
    Case("masked_in_the_other", "the same of the other one", 25, 330, 24, 17, correlated, _masked_in_the_other),
    Case(
        "masked_and_peaked", "infinite, however little the probability", 25, 330, 24, 17, _scaled(1e3), _masked_in_one
    ),
    Case("masked_and_capped", "a masked label that a softcap brings back", 25, 330, 24, 17, options=_masked_and_capped),
)
OPTIONS = (
    Case("biases", "a bias of the wrong label", 25, 330, 24, 17, correlated, _biases),
    Case("masked_in_both", "labels that cannot be, counted nevertheless", 25, 330, 24, 17, correlated, _masked_in_both),
    Case("labels", "positions taken for labels", 25, 330, 24, 17, correlated, _some_labels),
    Case("mask", "rows of the batch taken for rows that count", 60, 330, 24, 17, correlated, _some_rows),
    Case("targets", "rows without a target", 25, 330, 24, 17, correlated, _some_targets),
    Case("temperature", "what is divided by it, and when", 25, 330, 24, 17, correlated, _hot),
    Case("softcap", "the order of bias, softcap and temperature", 25, 330, 24, 17, correlated, _soft),
    Case("everything", "options that meet", 60, 330, 24, 17, correlated, _everything),
)
ALL = RAGGED + LARGE + EXTREMES + OPTIONS + MASKED_IN_ONE
INTEGERS = Case("integers", "any wrong index: logits are exact", 50, 700, 12, 9, _integers)


def single(backend: Backend, inputs: Inputs, **changed: object) -> LogitState:
    """The state of the first model."""
    return backend.logsumexp(inputs.h1, inputs.w1, **(inputs.single | changed))


def pairs(backend: Backend, inputs: Inputs, **changed: object) -> LogitPairState:
    return backend.logit_pairs(*inputs.arrays, **(dict(inputs.options) | changed))


def shares(backend: Backend, inputs: Inputs, state: LogitPairState) -> dict[str, np.ndarray]:
    """Of these inputs in JS and TV of a state of all labels."""
    options = {key: value for key, value in inputs.options.items() if key != "targets"}
    return backend.logit_divergences(*inputs.arrays, state.lse_p, state.lse_q, **options)


def flat(state: LogitState | LogitPairState) -> dict[str, Any]:
    """What a kernel has returned, without the options that it was given."""
    return {field.name: getattr(state, field.name) for field in fields(state) if field.name not in OPTIONS_OF_STATES}


def row_values(state: LogitPairState) -> dict[str, np.ndarray]:
    names = ("kl_pq", "kl_qp", "jeffreys", "js", "tv", "logit_distance", "top1_agreement", "entropy_p", "entropy_q")
    return {name: getattr(values, name)(state) for name in names}
