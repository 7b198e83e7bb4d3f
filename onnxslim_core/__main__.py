"""`python -m onnxslim_core` is the command line."""

from __future__ import annotations

import gc
import sys

from onnxslim_core import _interrupts
from onnxslim_core._collect import few_collections


def run() -> int:
    """The command line as a process of its own; returns the exit code."""
    _interrupts.watch()
    try:
        with few_collections():
            from onnxslim_core.cli import main

            code = main()
            gc.freeze()  # the process ends: nothing is looked through once more
    except BaseException as err:
        if isinstance(err, KeyboardInterrupt) or _interrupts.came():  # before anything is there that could tell of it
            return 130
        raise
    return code


if __name__ == "__main__":
    sys.exit(run())
