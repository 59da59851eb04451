"""Models whose labels lie in several processes, as those of tensor-parallel heads do, by torch.distributed.

Each process has a slice of the labels and the hidden states of the same rows. Its pass leaves a state of each row;
these are gathered and merged in the order of the processes, which gives all of them the same bits.
"""

from __future__ import annotations

from typing import Any

from .._base.arrays import Array
from ..predictions.batching import numbered
from ..predictions.compare import LogitComparison
from ..predictions.stream import LogitPairs
from ..states.logits import LogitPairState, LogitState
from .vocabulary_session import Session
from .vocabulary_slice import log_sums


def logsumexp(
    h: Array,
    w: Array | None,
    *,
    group: Any = None,
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
    """Log-sum-exp over the labels of all processes, each of which has a slice; every process of the group calls it.

    Parameters
    ----------
    h : array of shape (N, d)
        Hidden states, of the same rows in all processes.
    w : array of shape (V_r, d) or None
        The rows of the unembedding that this process has, at least one, in the order of the processes. None: h holds
        their logits (N, V_r).
    b : array of shape (V_r,), optional
        Bias of these labels; it may mask all of them.
    group : torch.distributed.ProcessGroup, optional
        Default: all processes.
    labels, mask, targets, temperature, softcap, nonfinite, precision, backend
        As in `gramless.logsumexp`, the same in all processes. Labels and targets are numbers among all labels.

    Returns
    -------
    LogitState
        That of all labels, in every process, the same bits in each.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As `logit_pairs`.
    """
    options = {"temperature": temperature, "nonfinite": nonfinite, "precision": precision, "backend": backend}
    given = {"labels": labels, "mask": mask, "targets": targets}
    session = Session.opened("logsumexp", group, [(h, w, b, softcap)], given, options)
    return session.merged(session.together(lambda: log_sums(session.part)), session.part)


def logit_pairs(
    h1: Array,
    w1: Array | None,
    h2: Array,
    w2: Array | None,
    *,
    group: Any = None,
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
    """Compare two models over the labels of all processes, each of which has a slice; every process calls it.

    Parameters
    ----------
    h1, h2 : array of shape (N, d1) and (N, d2)
        Hidden states, of the same rows in all processes: on the CPU with gloo, on the GPU of this process with nccl.
        That they are the same is judged by a sample of 64 rows.
    w1, w2 : array of shape (V_r, d1) and (V_r, d2), or None
        The rows of the unembeddings that this process has, at least one, in the order of the processes; that no label
        is in two of them is taken on trust. None: the hidden states hold their logits (N, V_r).
    b1, b2 : array of shape (V_r,), optional
        Biases of these labels; they may mask all of them.
    group : torch.distributed.ProcessGroup, optional
        Default: all processes.
    labels, mask, targets, temperature, softcap1, softcap2, divergences, nonfinite, precision
        As in `gramless.logit_pairs`, the same in all processes. Labels and targets are numbers among all labels.
    workspace, backend
        As in `gramless.logit_pairs`.

    Returns
    -------
    LogitPairState
        That of all labels, in every process, the same bits in each; `gramless.LogitPairs.add` makes a stream of such.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As `gramless.logit_pairs`, if torch.distributed is not initialised, or if processes differ in what they give. An
        error of one process is one in all of them, and none is left waiting.

    Notes
    -----
    Each process does the flops of its slice, with divergences twice. It receives 152 bytes for each row from every
    other one, and with divergences 16 more; until they are merged, it holds them all.

    Examples
    --------
    In each process of ``torchrun --nproc-per-node 8``, which has the labels from first to last::

        from gramless import distributed

        torch.distributed.init_process_group()
        stream = gramless.LogitPairs()
        for h1, h2 in batches:
            head = (h1, w1[first:last], h2, w2[first:last])
            stream.add(distributed.logit_pairs(*head, divergences=True))
        print(stream.finalize())
    """
    options = {"temperature": temperature, "nonfinite": nonfinite, "precision": precision, "backend": backend}
    given = {"labels": labels, "mask": mask, "targets": targets}
    heads = [(h1, w1, b1, softcap1), (h2, w2, b2, softcap2)]
    session = Session.opened("logit_pairs", group, heads, given, options, divergences=divergences, workspace=workspace)
    return session.pairs(session.part)


def compare_logits(
    h1: Array,
    w1: Array | None,
    h2: Array,
    w2: Array | None,
    *,
    group: Any = None,
    b1: Array | None = None,
    b2: Array | None = None,
    labels: Any = None,
    mask: Any = None,
    targets: Any = None,
    ignore_index: int | None = None,
    temperature: float = 1.0,
    softcap1: float | None = None,
    softcap2: float | None = None,
    divergences: bool = True,
    keep_rows: bool = False,
    workspace: int | None = None,
    batch_rows: int | None = None,
    nonfinite: str = "raise",
    precision: str = "high",
    backend: str = "auto",
) -> LogitComparison:
    """Compare what two models predict over the labels of all processes; every process of the group calls it.

    Parameters
    ----------
    h1, w1, h2, w2, b1, b2, group, labels, mask, targets
        As in `logit_pairs`.
    ignore_index, temperature, softcap1, softcap2, divergences, batch_rows, nonfinite, precision
        As in `gramless.compare_logits`, the same in all processes.
    keep_rows, workspace, backend
        As in `gramless.compare_logits`.

    Returns
    -------
    LogitComparison
        That of all labels, in every process, the same bits in each.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As `logit_pairs`, and ValueError if no row counts, or ignore_index is given without targets.

    Examples
    --------
    In each process of ``torchrun --nproc-per-node 8``, which has the labels from first to last::

        from gramless import distributed

        torch.distributed.init_process_group()
        head = (h1, w1[first:last], h2, w2[first:last])
        print(distributed.compare_logits(*head))
    """
    function = "compare_logits"
    options = {"temperature": temperature, "nonfinite": nonfinite, "precision": precision, "backend": backend}
    given = {"labels": labels, "mask": mask, "targets": targets, "ignore_index": ignore_index}
    heads = [(h1, w1, b1, softcap1), (h2, w2, b2, softcap2)]
    session = Session.opened(
        function, group, heads, given, options, divergences=divergences, workspace=workspace, batch_rows=batch_rows
    )
    if not len(session.part.counted):
        raise ValueError(f"{function}: expected at least one row that counts, got none")
    made_with: dict[str, Any] = {"temperature": temperature, "softcap1": softcap1, "softcap2": softcap2}
    stream = LogitPairs(divergences=session.divergences, keep_rows=bool(keep_rows), **made_with)
    for start in range(0, session.part.given, session.batch_rows):
        part = session.part.batch(slice(start, start + session.batch_rows))
        if not len(part.counted):
            continue
        try:
            stream.add(session.pairs(part))
        except (TypeError, ValueError, RuntimeError) as error:
            # also one that another process tells of
            raise numbered(function, error, start) from None
    return stream.finalize()
