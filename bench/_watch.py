"""Where the time of a program goes: in onnxruntime, in BLAS, or elsewhere."""

from __future__ import annotations

import linecache
import sys
import threading
from collections import Counter
from typing import Self


class Watch:
    """Where a thread's time goes, by the line it is at every few milliseconds.

    A line is onnxruntime's where it is in its Python wrapper, and BLAS's where it multiplies matrices or calls
    numpy's linear algebra; what holds the interpreter's lock for long is seen late, so shares are estimates.
    """

    MARKS = (" @ ", "@=", "matmul", "linalg", "einsum", "tensordot", "np.dot", "syrk", "gemm", "cho_", "eigh", "solve(")

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()
        self.target, self.over = threading.get_ident(), threading.Event()
        self.thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()

    def _look(self) -> None:
        while not self.over.wait(0.002):
            frame = sys._current_frames().get(self.target)
            if frame is None:
                continue
            file = frame.f_code.co_filename
            line = linecache.getline(file, frame.f_lineno or 0)  # between two lines there is no number
            if "onnxruntime_inference_collection" in file:
                self.seen["onnxruntime"] += 1
            elif "linalg" in file or any(mark in line for mark in self.MARKS):
                self.seen["blas"] += 1
            else:
                self.seen["other"] += 1

    def shares(self) -> dict[str, float]:
        """By kind."""
        total = max(sum(self.seen.values()), 1)
        return {kind: round(count / total, 3) for kind, count in sorted(self.seen.items())}
