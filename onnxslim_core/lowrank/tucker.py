"""A Conv as three: 1 x 1 to p channels, the kernel from p to q, 1 x 1 to all outputs (Tucker-2).

    W[c, t, n] ~ sum_pq  A[c, p] G[p, t, q] B[q, n]:   c p + p q taps + q n multiply-accumulates for c n taps

Kim et al., Compression of Deep Convolutional Neural Networks for Fast and Low Power Mobile Applications, ICLR 2016,
3.1, with the two modes in the metric of the data. A: the leading directions of the input channels, by the covariance
of the channels (mean over taps). Given A, core and B together are a reduced-rank regression on what A answers: least
squares from one factorization for all p (`nested`), then the leading directions of its answers, which is exact.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, final

import numpy as np
from numpy.typing import NDArray

from onnxslim_core.lowrank.linear import Linear
from onnxslim_core.lowrank.nested import Nested, behind, norms
from onnxslim_core.lowrank.svd import ranks_up_to

__all__ = ["Tucker"]

Floats = NDArray[np.float64]

_WIDEST = 0.5
"""Share of the input channels up to which there is a first factor: above it the other forms are cheaper."""


@final
@dataclass(frozen=True, slots=True, eq=False)
class Tucker:
    """Three convolutions; ranks are (p, q).

    Attributes:
        linear: A Conv with more than one tap.
        first: A, c x P.
        second: Of the core, rows ordered (p, t).
        total: What there is to explain.
        spectra: By p, once they are needed.
    """

    form: ClassVar[str] = "tucker"

    linear: Linear
    first: Floats
    second: Nested
    total: float
    spectra: dict[int, tuple[Floats, Floats]] = field(default_factory=dict)

    @classmethod
    def of(cls, linear: Linear, weight: Floats, gram: Floats | None, penalty: float = 0.0) -> Tucker:
        """All ranks.

        Args:
            linear: Sizes.
            weight: d x n, rows ordered (c, taps).
            gram: d x d; None takes the identity.
            penalty: As in `whitened.whiten`.
        """
        return cls(linear, *behind(weight, linear.taps, gram, penalty, int(_WIDEST * linear.channels)))

    def options(self, grid: int | None) -> list[tuple[int, ...]]:
        """Pairs on the grid that save something; q is at most n and what p channels can carry."""
        firsts = ranks_up_to(self.first.shape[1], grid)
        lasts = ranks_up_to(self.linear.outputs, grid)
        return [
            (p, q)
            for p in firsts
            for q in lasts
            if q <= p * self.linear.taps and sum(weights * at for weights, at in self.stages((p, q))) < self.linear.macs
        ]

    def error(self, ranks: tuple[int, ...]) -> float:
        """What p channels do not explain, and what q directions of the rest leave out."""
        p, q = ranks
        values = self._spectrum(p)[0]
        return max(self.total - float(values[:q].sum()), 0.0)

    def stages(self, ranks: tuple[int, ...]) -> list[tuple[int, int]]:
        """The first runs at the input's size."""
        p, q = ranks
        before, after = (self.linear.positions(space) for space in (self.linear.before, self.linear.after))
        return [
            (self.linear.channels * p, before),
            (p * q * self.linear.taps, after),
            (q * self.linear.outputs, after),
        ]

    def parts(self, ranks: tuple[int, ...]) -> list[Floats]:
        """Kernels [p, c, 1...], [q, p, kernel...] and [n, q, 1...]."""
        a, core, b = self._factors(*ranks)
        (p, q), ones = ranks, (1,) * len(self.linear.kernel)
        balance = np.sqrt(norms(core.reshape(p, -1)) / norms(a.T))
        core = (core.reshape(p, -1) / balance[:, None]).reshape(-1, q)
        other = np.sqrt(norms(b) / norms(core.T))
        core, b = core * other, b / other[:, None]
        return [
            (a * balance).T.reshape(p, self.linear.channels, *ones),
            core.T.reshape(q, p, *self.linear.kernel),
            b.T.reshape(self.linear.outputs, q, *ones),
        ]

    def dense(self, ranks: tuple[int, ...]) -> Floats:
        """A G B, rows ordered (c, taps)."""
        a, core, b = self._factors(*ranks)
        return np.asarray((a @ (core @ b).reshape(ranks[0], -1)).reshape(-1, self.linear.outputs))

    def _spectrum(self, p: int) -> tuple[Floats, Floats]:
        """Squared answers of the regression on p channels along their principal directions, falling; directions."""
        if p not in self.spectra:
            part = self.second.solved[: p * self.linear.taps]
            values, vectors = np.linalg.eigh(part.T @ part)
            self.spectra[p] = np.maximum(values[::-1], 0.0), vectors[:, ::-1]
        return self.spectra[p]

    def _factors(self, p: int, q: int) -> tuple[Floats, Floats, Floats]:
        """A, c x p; the core, (p taps) x q; B, q x n."""
        directions = self._spectrum(p)[1][:, :q]
        core = self.second.coefficients(p * self.linear.taps) @ directions
        return self.first[:, :p], core, directions.T
