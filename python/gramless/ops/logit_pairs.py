"""Logits of two models: check the arguments, choose a backend, call it, return a state."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._base import arguments, gpu_arrays
from .._base.arrays import Array
from ..states.logits import LogitPairState
from . import backends, logit_arguments, logit_calls
from .logit_arguments import OutputHead


def logit_pairs(
    h1: Array,
    w1: Array | None,
    h2: Array,
    w2: Array | None,
    *,
    b1: Array | None = None,
    b2: Array | None = None,
    labels: Any = None,
    mask: Any = None,
    targets: Any = None,
    temperature: float = 1.0,
    softcap1: float | None = None,
    softcap2: float | None = None,
    divergences: bool = False,
    workspace: int | None = None,
    nonfinite: str = "raise",
    precision: str = "high",
    backend: str = "auto",
) -> LogitPairState:
    """Compare what two models predict for the same rows over the same labels, in one pass over both.

    p is the prediction of model 1 and q that of model 2: KL both ways, logit distance, agreement and others follow from
    the sums that are returned.

    Parameters
    ----------
    h1 : array of shape (N, d1), float16, bfloat16, float32 or float64
        Hidden states of model 1. NumPy, torch on the CPU or a GPU, or DLPack. Never copied, never changed.
    w1 : array of shape (V, d1) or None
        Its unembedding, one row for each label. None: h1 holds its logits (N, V), which may be -inf.
    h2, w2 : array of shape (N, d2) and (V, d2)
        Those of model 2, of the same rows and labels. d2 and the dtypes may differ.
    b1, b2 : array of shape (V,), optional
        Biases; -inf masks a label. One that both mask is left out; where only one does, the other's KL is infinite, and
        so is the logit distance.
    labels : int array of shape (V',), optional
        Sub-vocabulary: distinct labels, in any order. Default: all.
    mask : bool array of shape (N,), optional
        Rows that count: the result has an entry for each of these N'. Default: all.
    targets : int array of shape (N,), optional
        The label of each row, among those that count, or -1 for none. Those of rows that do not count are not read.
    temperature : float
        What the logits of both models are divided by, above 0.
    softcap1, softcap2 : float, optional
        c above 0 of c tanh(z / c), which logits of each model go through before that; -inf stays -inf. Default: none.
    divergences : bool
        Jensen-Shannon divergence and total variation, too, which need all labels twice.
    workspace : int, optional
        Bytes that logits may take so that these are not computed again for it. Default: 64 MiB.
    nonfinite : {"raise", "propagate"}
        What NaN and infinity do; "propagate" makes what they reach NaN.
    precision : {"fast", "high", "exact"}
        Of products on a GPU: one bfloat16 product of float32 data, three that keep 16 bits of each value, or float64.
        Data that are bfloat16 in both arrays, or float16, are multiplied as they are by all but "exact"; float64 always
        in float64. The host has one precision.
    backend : {"auto", "reference", "cpu", "cuda"}
        A named backend never falls back to another.

    Returns
    -------
    LogitPairState
        float64 arrays of shape (N',); `gramless.measures.logits` reads divergences and distances from them.

    Raises
    ------
    TypeError
        If an argument is of a wrong kind or dtype.
    ValueError
        If shapes do not fit, the models have different rows or labels, labels or targets are out of range, every label
        of a model is masked, temperature or a softcap is not above 0, or values are not finite or overflow.
    RuntimeError
        If arrays are on different devices, or the named backend is missing or reads elsewhere.

    Notes
    -----
    2 N V (d1 + d2) flops, with divergences twice that where the workspace does not hold the logits of 64 rows. Beside
    it, packed rows of h1 and h2, and for each thread a block of labels and two tiles of logits: no N x V array. Logits
    are in float32, if an array is float64 in float64, and sums over tiles in float64. KL is the expectation of z1 - z2,
    so that near-equal models keep their digits. The result does not depend on the number of threads.

    Examples
    --------
    >>> import numpy as np
    >>> import gramless as gl
    >>> from gramless.measures import logits
    >>> rng = np.random.default_rng(0)
    >>> h1, w1 = rng.standard_normal((4, 16)), rng.standard_normal((1000, 16))
    >>> h2, w2 = rng.standard_normal((4, 8)), rng.standard_normal((1000, 8))
    >>> state = gl.logit_pairs(h1, w1, h2, w2, divergences=True)
    >>> state
    LogitPairState(n=4, labels=1000)
    >>> log_p, log_q = (z - np.log(np.exp(z).sum(axis=1, keepdims=True)) for z in (h1 @ w1.T, h2 @ w2.T))
    >>> bool(np.allclose(logits.kl_pq(state), np.sum(np.exp(log_p) * (log_p - log_q), axis=1)))
    True
    >>> bool((logits.js(state) < np.log(2)).all())
    True
    """
    function = "logit_pairs"
    arguments.choice(function, "nonfinite", nonfinite, ("raise", "propagate"))
    arguments.choice(function, "precision", precision, backends.PRECISIONS)
    heat = arguments.above_zero(function, "temperature", temperature)
    if workspace is not None:
        arguments.positive(function, "workspace", workspace)
    first, second = _two(function, (h1, w1, b1, softcap1), (h2, w2, b2, softcap2))
    chosen = logit_arguments.choice(function, [first, second], labels, mask, targets)
    flat = logit_calls.run(
        function,
        backends.resolve(function, backend, arrays=logit_arguments.arrays_by_name(first, second), precision=precision),
        [first, second],
        chosen,
        [],
        b1=first.b,
        b2=second.b,
        targets=chosen.targets,
        temperature=heat,
        softcap1=first.softcap,
        softcap2=second.softcap,
        divergences=bool(divergences),
        workspace=workspace,
        nonfinite=nonfinite,
    )
    made = logit_calls.without_targets(flat, chosen, ("target_p", "target_q"))
    return LogitPairState(**made, temperature=heat, softcap1=first.softcap, softcap2=second.softcap)


def logit_divergences(
    h1: Array,
    w1: Array | None,
    h2: Array,
    w2: Array | None,
    lse_p: NDArray[np.float64],
    lse_q: NDArray[np.float64],
    *,
    b1: Array | None = None,
    b2: Array | None = None,
    labels: Any = None,
    mask: Any = None,
    temperature: float = 1.0,
    softcap1: float | None = None,
    softcap2: float | None = None,
    nonfinite: str = "raise",
    precision: str = "high",
    backend: str = "auto",
) -> dict[str, NDArray[np.float64]]:
    """Shares of these labels in the Jensen-Shannon divergence and the total variation of two models.

    Both need the log normalisers of all labels. Where the vocabulary is in slices, each slice gives its share once
    these are known, and the shares add up.

    Parameters
    ----------
    h1, w1, h2, w2 : array
        As in `logit_pairs`, like the other parameters that it has.
    lse_p, lse_q : float64 array of shape (N',)
        Log normalisers of both models over all labels, of the rows that count.
    b1, b2, labels, mask, temperature, softcap1, softcap2, nonfinite, precision, backend
        As in `logit_pairs`.

    Returns
    -------
    dict
        "js" and "tv", float64 arrays of shape (N',).

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As `logit_pairs`, and if the log normalisers are not finite, or not of the rows that count.

    Notes
    -----
    2 N V (d1 + d2) flops, and the memory of `logit_pairs` without a workspace.

    Examples
    --------
    >>> import numpy as np
    >>> import gramless as gl
    >>> rng = np.random.default_rng(0)
    >>> h1, w1, h2, w2 = (rng.standard_normal((k, 8)) for k in (4, 100, 4, 100))
    >>> slices = [slice(0, 60), slice(60, 100)]
    >>> low, high = (gl.logit_pairs(h1, w1[part], h2, w2[part]) for part in slices)
    >>> whole = low.merge(high.numbered_from(60))
    >>> lse = whole.lse_p, whole.lse_q
    >>> shares = [gl.logit_divergences(h1, w1[part], h2, w2[part], *lse) for part in slices]
    >>> js = gl.logit_pairs(h1, w1, h2, w2, divergences=True).js
    >>> bool(np.allclose(shares[0]["js"] + shares[1]["js"], js))
    True
    """
    function = "logit_divergences"
    arguments.choice(function, "nonfinite", nonfinite, ("raise", "propagate"))
    arguments.choice(function, "precision", precision, backends.PRECISIONS)
    heat = arguments.above_zero(function, "temperature", temperature)
    first, second = _two(function, (h1, w1, b1, softcap1), (h2, w2, b2, softcap2))
    chosen = logit_arguments.choice(function, [first, second], labels, mask)
    given = {"lse_p": lse_p, "lse_q": lse_q}
    return logit_calls.run(
        function,
        backends.resolve(
            "logit_pairs", backend, function, arrays=logit_arguments.arrays_by_name(first, second), precision=precision
        ),
        [first, second],
        chosen,
        [logit_arguments.log_normalisers(function, name, lse, chosen.n, nonfinite) for name, lse in given.items()],
        b1=first.b,
        b2=second.b,
        temperature=heat,
        softcap1=first.softcap,
        softcap2=second.softcap,
        nonfinite=nonfinite,
    )


def _two(function: str, *models: tuple[Any, Any, Any, Any]) -> tuple[OutputHead, OutputHead]:
    first, second = (
        logit_arguments.head(function, h, w, b, softcap, number)
        for (h, w, b, softcap), number in zip(models, "12", strict=True)
    )
    logit_arguments.pair(function, first, second)
    return first, second


def unread_logit_pairs(
    first: OutputHead,
    second: OutputHead,
    *,
    labels: Any = None,
    targets: Any = None,
    temperature: float = 1.0,
    divergences: bool = False,
    workspace: int | None = None,
    precision: str = "high",
    backend: str = "auto",
) -> dict[str, Any]:
    """Return what `logit_pairs` does of checked models on a GPU and all their rows, as tensors, without a wait.

    Rows that something not finite reaches are NaN. Targets (N,) are a tensor there; one that is no label that counts
    has the logit NaN.
    """
    kernel = backends.resolve(
        "logit_pairs", backend, arrays=logit_arguments.arrays_by_name(first, second), precision=precision
    )
    arrays = [array for model in (first, second) for array in model.arrays(kernel.backend)]
    tensors = [None if array is None else gpu_arrays.tensor(array) for array in arrays]
    return kernel.kernel(
        *tensors,
        b1=first.b,
        b2=second.b,
        labels=labels,
        targets=targets,
        temperature=temperature,
        softcap1=first.softcap,
        softcap2=second.softcap,
        divergences=divergences,
        workspace=workspace,
        nonfinite="propagate",
    )
