"""A Conv without groups, a Gemm or a MatMul as arithmetic: sizes, and how often the sum is done."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Curve", "Linear"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Linear:
    """Sizes of one layer.

    Attributes:
        channels: c; for a matrix d.
        outputs: n.
        kernel: Sizes of the window, one per spatial axis; () for a matrix.
        before: Sizes of the input along the spatial axes; ones where they are not known.
        after: The same of the output.
        rows: How often a matrix is applied; samples at a time of a Conv.
    """

    channels: int
    outputs: int
    kernel: tuple[int, ...] = ()
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    rows: int = 1

    @classmethod
    def of(cls, weight: tuple[int, int], kernel: tuple[int, ...], x: tuple[int, ...], y: tuple[int, ...]) -> Linear:
        """From a weight with the shapes around it.

        Args:
            weight: d and n.
            kernel: Of a Conv; () else.
            x: Shape of the input; () where it is not known.
            y: Shape of the output; () where it is not known.
        """
        rank = len(kernel)
        if not rank:
            return cls(*weight, rows=max(math.prod(y) // weight[1], 1))
        known = len(x) == len(y) == rank + 2
        ones = (1,) * rank
        before, after = (x[2:], y[2:]) if known else (ones, ones)
        return cls(weight[0] // math.prod(kernel), weight[1], kernel, before, after, x[0] if known else 1)

    @property
    def taps(self) -> int:
        """Weights per input channel and output: the product of the kernel."""
        return math.prod(self.kernel)

    @property
    def depth(self) -> int:
        """How many products one output sums: c * taps."""
        return self.channels * self.taps

    @property
    def params(self) -> int:
        """Weights, the bias not counted."""
        return self.depth * self.outputs

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one run."""
        return self.params * self.positions(self.after)

    def positions(self, space: tuple[int, ...]) -> int:
        """How many sums are done over a map of this size."""
        return self.rows * math.prod(space)


class Curve(Protocol):
    """One form of a layer at every rank, out of one decomposition."""

    form: ClassVar[str]

    @property
    def linear(self) -> Linear:
        """The layer."""

    def options(self, grid: int | None) -> list[tuple[int, ...]]:
        """The ranks there are to choose from, without those that save nothing."""

    def error(self, ranks: tuple[int, ...]) -> float:
        """Squared error of the answers, summed over outputs and per position."""

    def stages(self, ranks: tuple[int, ...]) -> list[tuple[int, int]]:
        """(weights, positions) of each node, first to last."""

    def parts(self, ranks: tuple[int, ...]) -> list[Floats]:
        """The weights of each node, first to last: matrices d x r and r x n, or kernels [out, in, taps...]."""

    def dense(self, ranks: tuple[int, ...]) -> Floats:
        """What the nodes amount to together: d x n."""
