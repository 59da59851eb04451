"""Options of ``gramless logits``; nothing is loaded for them."""

from __future__ import annotations

import argparse
from typing import Any

INPUTS = """\
what A and B may be:
  a .safetensors or .npz file with the entries
      hidden       (N, d)  hidden states, a row for each token
      unembedding  (V, d)  a row for each label
      bias         (V,)    if there is one
  hidden states alone: a .npy file, a file with the entry hidden, or a folder of row
      shards; then --unembedding-a and --unembedding-b say where the others are

FILE is a .npy, .npz or .safetensors file. FILE:ENTRY names one of its arrays, such as
model.safetensors:lm_head.weight

All are float16, bfloat16, float32 or float64; d may differ. Row i of A and of B must
be the same token: ids prove it, as in gramless compare. A bias of -inf masks a label.

Hidden states are read once, in batches of rows; the unembeddings are held in memory,
as they are stored.
"""


def add_logits(commands: Any, most_threads: int) -> None:
    """Add the command to a parser."""
    logits = commands.add_parser(
        "logits",
        help="KL, JS, logit distance and agreement of the predictions of two models",
        description="Compare what two models predict, from hidden states and unembeddings on disk.",
        epilog=INPUTS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    logits.add_argument("a", metavar="A", help="model 1, whose predictions are p, see below")
    logits.add_argument("b", metavar="B", help="model 2, whose predictions are q")
    for side in "ab":
        for name in ("unembedding", "bias"):
            logits.add_argument(f"--{name}-{side}", metavar="FILE", help=f"{name} of {side.upper()}, in another file")
    logits.add_argument("--logits", action="store_true", help="A and B hold logits (N, V), in the entry logits")
    logits.add_argument(
        "--vocab-size", metavar="N", type=int, help="only the first N labels, without those that pad the vocabulary"
    )
    logits.add_argument("--temperature", metavar="T", type=float, default=1.0, help="divides logits (default: 1)")
    for side in "ab":
        logits.add_argument(
            f"--softcap-{side}", metavar="C", type=float, help=f"logits of {side.upper()} go through C tanh(z / C)"
        )
    logits.add_argument("--targets", metavar="FILE", help="labels (N,) of the rows, for perplexity; -1 is none")
    logits.add_argument("--ignore-index", metavar="N", type=int, help="leave out rows with this target, such as -100")
    logits.add_argument(
        "--no-divergences", action="store_true", help="without JS and total variation: up to twice as fast"
    )
    for side in "ab":
        logits.add_argument(f"--ids-{side}", metavar="FILE", help=f"ids of the rows of {side.upper()} (.npy)")
    logits.add_argument("--json", metavar="FILE", help="write the numbers, with quantiles of the rows")
    logits.add_argument("--rows", metavar="FILE", help="write the values of each row (.npz, .csv or .safetensors)")
    logits.add_argument("--batch-rows", metavar="N", type=int, help="rows at a time (default: about 64 MB of them)")
    logits.add_argument(
        "--threads",
        metavar="N",
        type=int,
        help=f"threads of the CPU kernels, up to {most_threads} (default: all cores)",
    )
    logits.add_argument("--no-progress", action="store_true", help="no progress bar (a pipe never gets one)")
