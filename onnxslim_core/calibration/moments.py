"""Means and covariances of a linear layer's input and target: all that a criterion or a repair needs of the data.

For any weights W (d, n) the error on the samples is quadratic, `E(W) = V - 2 tr(W' C) + tr(W' H W)`, so no candidate
needs a second look at the data. Products are float32, sums float64; everything is centred, so that the bias is solved
for exactly and never penalised.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

__all__ = ["Moments", "Sums", "answered"]

Floats = NDArray[np.float64]
_SILENT = 1e-3
"""An activation that never is zero (SiLU) counts as zero below this share of its channel's standard deviation."""


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
        zeros: Share of the positions at which each input channel is zero, or as good as, (channels,); None where it
            was not counted.
    """

    rows: int
    mean_x: Floats
    mean_y: Floats
    h: Floats
    c: Floats
    v: Floats
    zeros: Floats | None = None

    @property
    def ridge(self) -> float:
        """The default weight of the penalty, relative to the mean of h's diagonal: more where rows are few."""
        return 1e-4 if self.rows >= 10 * len(self.mean_x) else 1e-2

    def error(self, weights: Floats) -> float:
        """Summed squared error of weights (d, n) with the best bias, per position."""
        return float(self.v.sum() - 2 * np.sum(weights * self.c) + np.sum(weights * (self.h @ weights)))

    def penalty(self, ridge: float | None = None) -> float:
        """The weight of the penalty itself.

        Args:
            ridge: Relative to the mean of h's diagonal; None: `ridge`.
        """
        relative = self.ridge if ridge is None else ridge
        return max(relative * float(np.trace(self.h)) / max(len(self.h), 1), 1e-12)

    def within(self, blocks: tuple[NDArray[np.bool_], NDArray[np.bool_]] | None) -> Moments:
        """The same with what is not of one group set to zero (see `consumers.blocks_of`)."""
        if blocks is None:
            return self
        h = np.where(blocks[0], self.h, 0.0)
        c = np.where(blocks[1], self.c, 0.0) if self.c.shape == blocks[1].shape else self.c
        return replace(self, h=h, c=c)

    def only(self, stays: NDArray[np.bool_]) -> Moments:
        """The same for some of the inputs, (d,); zeros are not counted for them."""
        h = self.h[np.ix_(stays, stays)]
        return replace(self, mean_x=self.mean_x[stays], h=h, c=self.c[stays], zeros=None)


def answered(moments: Moments, weights: Floats, bias: Floats) -> Moments:
    """Moments of an input, with what weights (d, n) and a bias (n,) answer to it as the target."""
    c = moments.h @ weights
    v = np.maximum(np.sum(weights * c, axis=0), 0.0)
    return replace(moments, mean_y=moments.mean_x @ weights + bias, c=c, v=v)


class Sums:
    """Moments under way.

    They are taken around the means of the first rows: of an input that moves little, products around zero leave more
    rounding than variance in float32, and covariances that are not even positive.

    Args:
        taps: Columns of one channel; where it is given, zeros are counted at the middle tap of each.
    """

    def __init__(self, taps: int | None = None) -> None:
        self._taps = taps
        self._rows = 0
        self._parts: list[Floats] = []
        self._origin: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None

    def add(self, x: NDArray[np.float32], y: NDArray[np.float32] | None = None) -> None:
        """Add rows x (r, d) and their targets y (r, n); without targets n is 0."""
        y = np.empty((len(x), 0), np.float32) if y is None else y
        silent = np.zeros(0) if self._taps is None else _silent(x[:, self._taps // 2 :: self._taps])
        if self._origin is None:
            self._origin = x.mean(axis=0), y.mean(axis=0)
        x, y = x - self._origin[0], y - self._origin[1]
        parts = [
            np.asarray(x.sum(axis=0), np.float64),
            np.asarray(y.sum(axis=0), np.float64),
            np.asarray(x.T @ x, np.float64),
            np.asarray(x.T @ y, np.float64),
            np.sum(np.square(y, dtype=np.float64), axis=0),
            silent,
        ]
        self._rows += len(x)
        if not self._parts:
            self._parts = parts
            return
        for total, part in zip(self._parts, parts, strict=True):
            total += part

    def moments(self) -> Moments:
        """What was added, centred."""
        x, y, xx, xy, yy, silent = (part / max(self._rows, 1) for part in self._parts)
        xx -= np.outer(x, x)
        h = (xx + xx.T) / 2
        v = np.maximum(yy - np.square(y), 0.0)
        c, zeros = xy - np.outer(x, y), silent if self._taps is not None else None
        if self._origin is not None:
            x, y = x + self._origin[0], y + self._origin[1]
        return Moments(self._rows, x, y, h, c, v, zeros)


def _silent(x: NDArray[np.float32]) -> Floats:
    """How often each channel (column) is zero, or as good as."""
    return np.asarray(np.count_nonzero(np.abs(x) <= _SILENT * x.std(axis=0), axis=0), np.float64)
