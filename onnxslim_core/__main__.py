"""`python -m onnxslim_core` is the command line."""

from __future__ import annotations

import gc
import sys

_COLLECT_EVERY = (500_000, 20, 1_000)
"""Thresholds of the garbage collector for the whole process: a graph is millions of objects that live until its end."""


def run() -> int:
    """The command line as a process of its own; returns the exit code."""
    try:
        gc.set_threshold(*_COLLECT_EVERY)
        from onnxslim_core.cli import main

        code = main()
        gc.freeze()  # the process ends: nothing is looked through once more
    except KeyboardInterrupt:  # before anything is there that could tell of it
        return 130
    return code


if __name__ == "__main__":
    sys.exit(run())
