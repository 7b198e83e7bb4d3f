"""W ~ A B: a matrix as two, a k x k Conv as a k x k one to r channels with a 1 x 1 one behind it.

The optimum in closed form at every rank (`whitened`): r (d + n) multiply-accumulates per position for d n.
For convolutions: Zhang, Zou, He, Sun, TPAMI 2016, 3.1.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, final

import numpy as np
from numpy.typing import NDArray

from onnxslim_core.lowrank.linear import Linear
from onnxslim_core.lowrank.svd import Decomposition, break_even, ranks_up_to

__all__ = ["Channel", "Matrix"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Matrix:
    """Two matrices in the place of one; ranks are (r,)."""

    form: ClassVar[str] = "matrix"

    linear: Linear
    found: Decomposition
    lost: Floats = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "lost", self.found.tail())

    def options(self, grid: int | None) -> list[tuple[int, ...]]:
        """Ranks up to break-even."""
        largest = min(break_even(self.linear.depth, self.linear.outputs), self.found.s.size)
        return [(rank,) for rank in ranks_up_to(largest, grid)]

    def error(self, ranks: tuple[int, ...]) -> float:
        """Sum of the dropped s^2."""
        return float(self.lost[ranks[0] - 1])

    def stages(self, ranks: tuple[int, ...]) -> list[tuple[int, int]]:
        """(d r, positions), (r n, positions)."""
        positions = self.linear.positions(self.linear.after)
        return [(self.linear.depth * ranks[0], positions), (ranks[0] * self.linear.outputs, positions)]

    def parts(self, ranks: tuple[int, ...]) -> list[Floats]:
        """A (d x r) and B (r x n)."""
        factors = self.found.factors(ranks[0])
        return [factors.a, factors.b]

    def dense(self, ranks: tuple[int, ...]) -> Floats:
        """A B."""
        a, b = Matrix.parts(self, ranks)
        return np.asarray(a @ b)


@final
@dataclass(frozen=True, slots=True, eq=False)
class Channel(Matrix):
    """A Conv to r channels and a 1 x 1 Conv; ranks are (r,)."""

    form: ClassVar[str] = "channel"

    def parts(self, ranks: tuple[int, ...]) -> list[Floats]:
        """Kernels [r, c, kernel...] and [n, r, 1...]."""
        a, b = Matrix.parts(self, ranks)
        ones = (1,) * len(self.linear.kernel)
        return [a.T.reshape(ranks[0], self.linear.channels, *self.linear.kernel), b.T.reshape(*b.T.shape, *ones)]
