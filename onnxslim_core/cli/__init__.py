"""The shell's way in: verbs, their options, what is printed where, and exit codes.

    frame    what all verbs share: options, errors and exit codes, output, progress
    verbs    one function per verb
    views    tables
    console  where they are printed

Importing this loads click and nothing heavy; a verb imports what it needs when it runs.
"""

from __future__ import annotations

from onnxslim_core.cli.frame import main

__all__ = ["main"]
