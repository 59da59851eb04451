"""The commands of the command line, by name; what a command needs is loaded when it runs."""

from __future__ import annotations

import argparse

from ..ops.threads import set_num_threads
from .console import make_console
from .parser import MAX_THREADS


def run(arguments: argparse.Namespace) -> None:
    """Run the command that was asked for, with the threads that it asks for."""
    threads = getattr(arguments, "threads", None)
    if threads is not None:
        if not 1 <= threads <= MAX_THREADS:
            raise ValueError(f"--threads: expected 1 to {MAX_THREADS}, got {threads}")
        set_num_threads(threads)
    if arguments.command == "compare":
        from .compare_command import run_compare

        run_compare(arguments, make_console())
    elif arguments.command == "logits":
        from .logits_command import run_logits

        run_logits(arguments, make_console())
    elif arguments.command == "demo":
        from .demo import run_demo

        run_demo(arguments.out, make_console())
    else:
        from .info import print_info

        print_info(make_console())
