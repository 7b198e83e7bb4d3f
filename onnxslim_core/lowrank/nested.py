"""Least squares on the first m of M regressors, for every m, out of one Cholesky factor.

    K = Z'Z,  C = Z'Y,  K = L L',  y = L^-1 C:   the error with the first m regressors is  Y'Y - sum_{i <= m} y_i^2

Regressors are ordered so that a lower rank uses a leading block; its coefficients are K_mm^-1 C_m. They are here what
a first factor makes of the input at every tap of what follows it (`behind`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxslim_core.lowrank.whitened import whiten

__all__ = ["Nested", "behind", "norms"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Nested:
    """Leading least squares problems.

    Attributes:
        gram: K, M x M, definite.
        cross: C, M x n.
        solved: y = L^-1 C, M x n.
    """

    gram: Floats
    cross: Floats
    solved: Floats

    @classmethod
    def of(cls, gram: Floats, cross: Floats) -> Nested:
        """Factor once; where K is not definite its diagonal grows until it is."""
        gram = (gram + gram.T) / 2
        step = 1e-12 * float(np.trace(gram)) / len(gram)
        for _ in range(12):
            try:
                lower = np.linalg.cholesky(gram)
                break
            except np.linalg.LinAlgError:
                gram = gram + step * np.eye(len(gram))
                step *= 10
        else:
            raise ValueError("the regressors are no sample of anything")
        return cls(gram, cross, np.linalg.solve(lower, cross))

    def gain(self) -> Floats:
        """Squared answers that each regressor explains beyond those before it, (M,)."""
        return np.asarray(np.sum(np.square(self.solved), axis=1))

    def coefficients(self, count: int) -> Floats:
        """The best coefficients of the first `count` regressors, count x n."""
        return np.asarray(np.linalg.solve(self.gram[:count, :count], self.cross[:count]))


def behind(weight: Floats, taps: int, gram: Floats | None, penalty: float, limit: int) -> tuple[Floats, Nested, float]:
    """A first factor that does not look at the taps, and least squares on what it makes of the input at each of them.

    Args:
        weight: (m taps) x n, rows ordered (m, taps).
        taps: Positions that the second factor sums over.
        gram: (m taps) x (m taps); None takes the identity.
        penalty: As in `whitened.whiten`.
        limit: At most so many columns.

    Returns:
        The leading R columns of the matrix [m, (taps, n)] in the metric of the input, mean over the taps: m x R. The
        regression on them, regressors ordered (R, taps). The squared answers that there are to explain.
    """
    depth, outputs = weight.shape
    rows = depth // taps
    mean = None
    if gram is not None:
        windows = gram.reshape(rows, taps, rows, taps)
        mean = np.mean([windows[:, t, :, t] for t in range(taps)], axis=0)
    found = whiten(weight.reshape(rows, taps * outputs), mean, penalty)
    count = max(min(found.s.size, limit), 1)
    first = np.ascontiguousarray(found.u[:, :count])
    metric = np.eye(depth) if gram is None else gram + penalty * np.eye(depth)
    columns = metric.reshape(depth, rows, taps)
    passed = np.stack([columns[:, :, t] @ first for t in range(taps)], axis=2)
    half = passed.reshape(rows, taps, count, taps)
    inner = np.stack([np.tensordot(first, half[:, t], (0, 0)) for t in range(taps)], axis=1)
    size = count * taps
    cross = passed.reshape(depth, size).T @ weight
    return first, Nested.of(inner.reshape(size, size), cross), float(np.sum(weight * (metric @ weight)))


def norms(rows: Floats) -> Floats:
    """Of each row; 1 for a row of zeros, so that it can be divided by."""
    found = np.linalg.norm(rows, axis=1)
    return np.where(found > 0, found, 1.0)
