"""Log-sum-exp of the logits of one model: check the arguments, choose a backend, call it, return a state."""

from __future__ import annotations

from typing import Any

from .._base import arguments
from .._base.arrays import Array
from ..states.logits import LogitState
from . import backends, logit_arguments, logit_calls


def logsumexp(
    h: Array,
    w: Array | None,
    *,
    b: Array | None = None,
    labels: Any = None,
    mask: Any = None,
    targets: Any = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    nonfinite: str = "raise",
    precision: str = "high",
    backend: str = "auto",
) -> LogitState:
    """Log-sum-exp of the logits of one model, and what else follows from one pass over its labels.

    z = softcap(h w^T + b) / temperature, with softcap(z) = c tanh(z / c).

    Parameters
    ----------
    h : array of shape (N, d), float16, bfloat16, float32 or float64
        Hidden states. NumPy, torch on the CPU or a GPU, or anything with DLPack. Never copied, never changed.
    w : array of shape (V, d) or None
        Unembedding, one row for each label; its dtype may differ. None: h holds the logits (N, V), which may be -inf.
    b : array of shape (V,), optional
        Bias; -inf masks a label, as those that only pad a vocabulary, and it is left out, whatever w holds there.
    labels : int array of shape (V',), optional
        Sub-vocabulary: distinct labels, in any order. Default: all.
    mask : bool array of shape (N,), optional
        Rows that count: the result has an entry for each of these N'. Default: all.
    targets : int array of shape (N,), optional
        The label of each row, among those that count, or -1 for none. Those of rows that do not count are not read.
    temperature : float
        What logits are divided by, above 0.
    softcap : float, optional
        c above 0; -inf stays -inf. Default: none.
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
    LogitState
        float64 arrays of shape (N',); `gramless.measures.logits` reads entropy and others from them.

    Raises
    ------
    TypeError
        If an argument is of a wrong kind or dtype.
    ValueError
        If shapes do not fit, labels or targets are out of range, every label is masked, temperature or softcap is not
        above 0, or values are not finite or overflow.
    RuntimeError
        If arrays are on different devices, or the named backend is missing or reads elsewhere.

    Notes
    -----
    2 N V d flops. Packed rows of h, and for each thread a block of labels and a tile of logits: no N x V array. Logits
    are in float32, for float64 input in float64, and sums over tiles in float64. The result does not depend on the
    number of threads.

    Examples
    --------
    >>> import numpy as np
    >>> import gramless as gl
    >>> rng = np.random.default_rng(0)
    >>> h, w = rng.standard_normal((4, 16)), rng.standard_normal((1000, 16))
    >>> state = gl.logsumexp(h, w)
    >>> state
    LogitState(n=4, labels=1000)
    >>> z = h @ w.T
    >>> bool(np.allclose(state.lse, np.log(np.exp(z).sum(axis=1))))
    True
    >>> bool((state.top == z.argmax(axis=1)).all())
    True
    """
    function = "logsumexp"
    arguments.choice(function, "nonfinite", nonfinite, ("raise", "propagate"))
    arguments.choice(function, "precision", precision, backends.PRECISIONS)
    heat = arguments.above_zero(function, "temperature", temperature)
    model = logit_arguments.head(function, h, w, b, softcap)
    chosen = logit_arguments.choice(function, [model], labels, mask, targets)
    flat = logit_calls.run(
        function,
        backends.resolve(function, backend, arrays=logit_arguments.arrays_by_name(model), precision=precision),
        [model],
        chosen,
        [],
        b=model.b,
        targets=chosen.targets,
        temperature=heat,
        softcap=model.softcap,
        nonfinite=nonfinite,
    )
    made = logit_calls.without_targets(flat, chosen, ("target",))
    return LogitState(**made, temperature=heat, softcap=model.softcap)
