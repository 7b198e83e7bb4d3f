"""Means and covariances of a linear layer's input and target: all that a criterion or a repair needs of the data.

For any weights W (d, n) the error on the samples is quadratic, `E(W) = V - 2 tr(W' C) + tr(W' H W)`, so no candidate
needs a second look at the data. Products are float32, sums float64; everything is centred, so that the bias is solved
for exactly and never penalised.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Moments", "Sums"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """Centred moments.

    Attributes:
        rows: How many positions were seen.
        mean_x: (d,)
        mean_y: (n,)
        h: X'X / rows - mean_x mean_x', (d, d), symmetric.
        c: X'Y / rows - mean_x mean_y', (d, n).
        v: The variance of each target, (n,).
    """

    rows: int
    mean_x: Floats
    mean_y: Floats
    h: Floats
    c: Floats
    v: Floats

    @property
    def ridge(self) -> float:
        """The default weight of the penalty, relative to the mean of h's diagonal: more where rows are few."""
        return 1e-4 if self.rows >= 10 * len(self.mean_x) else 1e-2

    def error(self, weights: Floats) -> float:
        """Summed squared error of weights (d, n) with the best bias, per position."""
        return float(self.v.sum() - 2 * np.sum(weights * self.c) + np.sum(weights * (self.h @ weights)))


class Sums:
    """Moments under way."""

    def __init__(self) -> None:
        self._rows = 0
        self._parts: list[Floats] = []

    def add(self, x: NDArray[np.float32], y: NDArray[np.float32]) -> None:
        """Add rows x (r, d) and their targets y (r, n)."""
        parts = [
            np.sum(x, axis=0, dtype=np.float64),
            np.sum(y, axis=0, dtype=np.float64),
            np.asarray(x.T @ x, np.float64),
            np.asarray(x.T @ y, np.float64),
            np.sum(np.square(y, dtype=np.float64), axis=0),
        ]
        self._rows += len(x)
        if not self._parts:
            self._parts = parts
            return
        for total, part in zip(self._parts, parts, strict=True):
            total += part

    def moments(self) -> Moments:
        """What was added, centred."""
        x, y, xx, xy, yy = (part / max(self._rows, 1) for part in self._parts)
        h = xx - np.outer(x, x)
        return Moments(self._rows, x, y, (h + h.T) / 2, xy - np.outer(x, y), np.maximum(yy - np.square(y), 0.0))
