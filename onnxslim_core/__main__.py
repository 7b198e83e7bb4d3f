"""`python -m onnxslim_core` is the command line."""

from __future__ import annotations

import gc
import sys

from onnxslim_core._collect import few_collections


def run() -> int:
    """The command line as a process of its own; returns the exit code."""
    try:
        with few_collections():
            from onnxslim_core.cli import main

            code = main()
            gc.freeze()  # the process ends: nothing is looked through once more
    except KeyboardInterrupt:  # before anything is there that could tell of it
        return 130
    return code


if __name__ == "__main__":
    sys.exit(run())
