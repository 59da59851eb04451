"""Options of the command line; nothing else is loaded for them."""

from __future__ import annotations

import argparse
import sys
from typing import Any, NoReturn

from .._version import __version__
from .logits_options import add_logits
from .standard_output import output_named

MAX_THREADS = 1024
INPUTS = """\
what A and B may be:
  a .npy file            one layer, named after the file
  a .npz or .safetensors file
                         one layer per entry; compressed is fine
  a folder of files, all of one of these formats
                         row shards of the same layers, put together in natural
                         order (shard-2 before shard-10), each with the same
                         entries, widths and dtypes; .npy shards are one layer,
                         named after the folder
  a folder of such folders, one array per file
                         one layer per folder, named after it

Layers are matrices (n, p) of float16, bfloat16, float32 or float64, and row i of A
and of B must be the same sample. What is named "ids" (1-d integers or strings: an
entry, ids.npy beside .npy shards, a folder of shards beside those of the layers), or
a file given with --ids-a and --ids-b, proves it: ids must agree row by row.

Files are read once, in chunks of about 64 MB. The rbf kernel without --batch-size,
and --null, hold all rows in memory, and have no checkpoint.
"""


class _Parser(argparse.ArgumentParser):
    """Errors are one line, the same for all commands."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (see {self.prog} --help)")

    def _print_message(self, message: str, file: Any = None) -> None:
        # argparse's own keeps quiet about what cannot be written
        with output_named():
            (file or sys.stdout).write(message)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = _Parser(prog="gramless", description="How similar are two models? Exact CKA by streaming.")
    parser.add_argument("--version", action="version", version=f"gramless {__version__}")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="{compare,logits,demo,info}")

    compare = commands.add_parser(
        "compare",
        help="CKA between all layers of two models, from activations on disk",
        description="CKA between all layers of two models (or of one), from activations on disk.",
        epilog=INPUTS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    compare.add_argument("a", metavar="A", help="activations of one model: a file or a folder, see below")
    compare.add_argument("b", metavar="B", nargs="?", help="of the other model; without it, A against itself")
    compare.add_argument("--measure", choices=("cka",), default="cka", help="what is compared (default: cka)")
    compare.add_argument(
        "--estimator",
        choices=("unbiased", "biased", "feature_corrected"),
        default="unbiased",
        help="of HSIC (default: unbiased, which can be slightly negative)",
    )
    compare.add_argument(
        "--kernel", choices=("linear", "rbf"), default="linear", help="of all layers (default: linear)"
    )
    compare.add_argument(
        "--bandwidth",
        metavar="RULE",
        type=_number_or_rule,
        help='of the rbf kernel: a number, or "median" (default) or "kornblith" of each layer, in each batch if any',
    )
    compare.add_argument(
        "--bandwidth-scale", metavar="X", type=float, default=1.0, help="factor of the bandwidth (default: 1)"
    )
    compare.add_argument(
        "--batch-size",
        metavar="N",
        type=int,
        help="average over batches of N rows, with standard errors, for rows in no order (default: all rows at once)",
    )
    compare.add_argument(
        "--weights", choices=("rows", "equal"), default="rows", help="how batches count in the average (default: rows)"
    )
    compare.add_argument(
        "--null",
        choices=("permutation",),
        help="show each value beside its mean and 95 %% quantile over random permutations of the rows",
    )
    compare.add_argument("--permutations", metavar="N", type=int, default=200, help="of --null (default: %(default)s)")
    compare.add_argument("--seed", metavar="N", type=int, default=0, help="of --null (default: %(default)s)")
    for side in "ab":
        compare.add_argument(f"--layers-{side}", metavar="GLOB", help=f"only the layers of {side.upper()} that match")
    for side in "ab":
        compare.add_argument(f"--ids-{side}", metavar="FILE", help=f"ids of the rows of {side.upper()} (.npy)")
    for form, what in (
        ("json", "the matrix and its inputs"),
        ("csv", "the matrix"),
        ("plot", "a heat map (.png, ...)"),
    ):
        compare.add_argument(f"--{form}", metavar="FILE", help=f"write {what}")
    compare.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="save the sums now and then, go on from them if the file exists; it is removed on success",
    )
    compare.add_argument(
        "--threads", metavar="N", type=int, help=f"threads of the CPU kernels, up to {MAX_THREADS} (default: all cores)"
    )
    compare.add_argument("--no-progress", action="store_true", help="no progress bar (a pipe never gets one)")

    add_logits(commands, MAX_THREADS)

    demo = commands.add_parser(
        "demo",
        help="train three small networks on handwritten digits and compare their layers",
        description="Train three small networks on handwritten digits, and compare their layers. It needs no network.",
    )
    demo.add_argument(
        "--out", metavar="DIR", default="gramless-demo", help="folder for the results (default: %(default)s)"
    )

    commands.add_parser("info", help="version, CPU kernels, backends and installed libraries")
    return parser


def _number_or_rule(word: str) -> float | str:
    try:
        return float(word)
    except ValueError:
        return word
