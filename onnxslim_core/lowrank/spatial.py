"""A kh x kw Conv as a kh x 1 one to r channels and a 1 x kw one behind it.

    W[c, i, j, n] ~ sum_r A[(c, i), r] B[r, j, n]:   r (c kh + kw n) multiply-accumulates per position for c n kh kw

The columns of A are the leading ones of the matrix [(c, i), (j, n)] in the metric of the input's rows (c, i), the mean
over j (Jaderberg, Vedaldi, Zisserman, BMVC 2014; closed form: Tai et al., Convolutional Neural Networks with Low-rank
Regularization, ICLR 2016, 3.1). B is then solved anew by least squares on what A answers, with the whole covariance
of the input; the columns of lower ranks are leading ones, so that all ranks share one factorization (`nested`).
Stride, padding and dilation of an axis go with its kernel; zeros at the border stay zeros, since A has no bias.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
from numpy.typing import NDArray

from onnxslim_core.lowrank.linear import Linear
from onnxslim_core.lowrank.nested import Nested, behind, norms
from onnxslim_core.lowrank.svd import ranks_up_to

__all__ = ["Spatial"]

Floats = NDArray[np.float64]


@final
@dataclass(frozen=True, slots=True, eq=False)
class Spatial:
    """Two convolutions with flat kernels; ranks are (r,).

    Attributes:
        linear: With a kernel of two axes, both longer than 1.
        first: A, (c kh) x R.
        second: Of B, rows ordered (r, j).
        total: What there is to explain.
    """

    form: ClassVar[str] = "spatial"

    linear: Linear
    first: Floats
    second: Nested
    total: float

    @classmethod
    def of(cls, linear: Linear, weight: Floats, gram: Floats | None, penalty: float = 0.0) -> Spatial:
        """All ranks up to break-even.

        Args:
            linear: Sizes; the kernel has two axes.
            weight: d x n, rows ordered (c, i, j).
            gram: d x d; None takes the identity.
            penalty: As in `whitened.whiten`.
        """
        high, wide = linear.kernel
        limit = linear.params // (linear.channels * high + wide * linear.outputs)
        return cls(linear, *behind(weight, wide, gram, penalty, limit))

    def options(self, grid: int | None) -> list[tuple[int, ...]]:
        """Ranks that save something."""
        return [
            (rank,)
            for rank in ranks_up_to(self.first.shape[1], grid)
            if sum(weights * at for weights, at in self.stages((rank,))) < self.linear.macs
        ]

    def error(self, ranks: tuple[int, ...]) -> float:
        """What the first r columns do not explain."""
        return max(self.total - float(self.second.gain()[: ranks[0] * self.linear.kernel[1]].sum()), 0.0)

    def stages(self, ranks: tuple[int, ...]) -> list[tuple[int, int]]:
        """The first runs at the output's height and the input's width."""
        (rank,), (high, wide) = ranks, self.linear.kernel
        between = (self.linear.after[0], self.linear.before[1])
        return [
            (self.linear.channels * high * rank, self.linear.positions(between)),
            (rank * wide * self.linear.outputs, self.linear.positions(self.linear.after)),
        ]

    def parts(self, ranks: tuple[int, ...]) -> list[Floats]:
        """Kernels [r, c, kh, 1] and [n, r, 1, kw]."""
        a, b = self._factors(ranks[0])
        (high, wide), n = self.linear.kernel, self.linear.outputs
        balance = np.sqrt(norms(b.reshape(ranks[0], -1)) / norms(a.T))
        first = (a * balance).T.reshape(ranks[0], self.linear.channels, high, 1)
        second = (b / balance[:, None, None]).transpose(2, 0, 1).reshape(n, ranks[0], 1, wide)
        return [first, second]

    def dense(self, ranks: tuple[int, ...]) -> Floats:
        """A B, rows ordered (c, i, j)."""
        a, b = self._factors(ranks[0])
        return np.asarray((a @ b.reshape(ranks[0], -1)).reshape(-1, self.linear.outputs))

    def _factors(self, rank: int) -> tuple[Floats, Floats]:
        """A, (c kh) x r, and B, r x kw x n."""
        wide = self.linear.kernel[1]
        return self.first[:, :rank], self.second.coefficients(rank * wide).reshape(rank, wide, -1)
