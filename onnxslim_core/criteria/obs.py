"""Group optimal brain surgeon: the channel goes whose loss the others can make up for best.

With G = (H + l I)^-1 and the least-squares weights W of a consumer, removing the weights b of a channel costs exactly

    tr( W_b' (G_bb)^-1 W_b ),   then   W -= G_:b (G_bb)^-1 W_b,   G -= G_:b (G_bb)^-1 G_b:

(Hassibi and Stork, 1993; in groups: Frantar and Alistarh, Optimal Brain Compression, NeurIPS 2022, eq. 8; for whole
structures: Kurtic et al., ZipLM, NeurIPS 2023). One run gives the order of removal and the error of every width.
Errors of several consumers are added, each over the variance of what it answers for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxslim_core.calibration.consumers import Consumer, weights_of
from onnxslim_core.calibration.moments import Moments

__all__ = ["Curve", "removal_curve"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """The order in which classes go, and what is lost with the first r of them gone.

    Attributes:
        order: Classes, the first to go first; (r,).
        error: `error[r]`: summed squared error over the variance of the targets, with r classes gone; (r + 1,).
    """

    order: NDArray[np.int32]
    error: Floats

    def scores(self, classes: NDArray[np.int32]) -> Floats:
        """The place of each class in the order, (classes,); those that never go come last."""
        place = {int(root): float(number) for number, root in enumerate(self.order)}
        return np.array([place.get(int(root), float(len(self.order))) for root in classes])


class _Eliminator:
    """One consumer under removal."""

    def __init__(self, consumer: Consumer, moments: Moments, classes: NDArray[np.int32], ridge: float | None) -> None:
        relative = moments.ridge if ridge is None else ridge
        h = moments.h + np.eye(len(moments.h)) * max(relative * np.trace(moments.h) / len(moments.h), 1e-12)
        self.inverse = np.linalg.inv(h)
        self.weights = weights_of(consumer.node)
        self.scale = 1.0 / max(float(moments.v.sum()), 1e-12)
        self.columns = {int(root): consumer.columns(int(root)) for root in classes}

    def losses(self, roots: NDArray[np.int32]) -> Floats:
        """What the removal of each class would add, all classes at once where their blocks are of one size."""
        blocks = [self.columns[int(root)] for root in roots]
        if len({len(block) for block in blocks}) == 1:
            return self._batch(np.stack(blocks)) * self.scale
        return np.array([self._batch(block[None])[0] for block in blocks]) * self.scale

    def _batch(self, blocks: NDArray[np.int64]) -> Floats:
        if blocks.shape[1] == 0:
            return np.zeros(len(blocks))
        inner = self.inverse[blocks[:, :, None], blocks[:, None, :]]
        rows = self.weights[blocks]
        found: Floats = np.maximum(np.sum(rows * np.linalg.solve(inner, rows), axis=(1, 2)), 0.0)
        return found

    def remove(self, root: int) -> None:
        """Take a class out and let the others make up for it."""
        block = self.columns[root]
        if not len(block):
            return
        column = self.inverse[:, block]
        solved = np.linalg.solve(self.inverse[np.ix_(block, block)], np.hstack([self.weights[block], column.T]))
        n = self.weights.shape[1]
        self.weights -= column @ solved[:, :n]
        self.inverse -= column @ solved[:, n:]
        # what is gone must not come back through rounding
        self.weights[block] = 0.0
        self.inverse[block] = 0.0
        self.inverse[:, block] = 0.0
        self.inverse[block, block] = 1.0


def removal_curve(
    consumers: Sequence[tuple[Consumer, Moments]],
    classes: NDArray[np.int32],
    keep: int = 1,
    ridge: float | None = None,
) -> Curve:
    """Remove class after class, the cheapest first, until `keep` are left.

    Args:
        consumers: All sums that read the classes, each with the moments of its input and the variance of its target.
        classes: The classes that may go, (m,).
        keep: How many stay.
        ridge: Relative to the mean of h's diagonal; None: as `Moments.ridge` says.
    """
    parts = [_Eliminator(consumer, moments, classes, ridge) for consumer, moments in consumers]
    alive = np.array(classes, np.int32)
    order: list[int] = []
    error = [0.0]
    while len(alive) > keep:
        losses = np.sum([part.losses(alive) for part in parts], axis=0)
        cheapest = int(np.argmin(losses))
        root = int(alive[cheapest])
        for part in parts:
            part.remove(root)
        order.append(root)
        error.append(error[-1] + float(losses[cheapest]))
        alive = np.delete(alive, cheapest)
    return Curve(np.array(order, np.int32), np.array(error))
