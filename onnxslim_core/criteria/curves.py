"""The order in which channels go, and what is lost at every width: the common ground of all criteria on samples.

What is lost without the inputs R of a linear layer, when the others make up for it as well as they can, is

    min_W  V - 2 tr(W' C) + tr(W' H W) + l |W - W0|^2   with W_R = 0,   less the same with R empty,

the ridge towards the weights as they are included. With the inputs sorted so that the last to go comes first, one
Cholesky factor L of H + l I says it for every width: the rows of L^-1 (C + l W0) that belong to R, squared and summed.
So an order is all that a criterion has to find. Errors of several readers are added, each over the variance of what it
answers for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxslim_core.calibration.consumers import Consumer, weights_of
from onnxslim_core.calibration.moments import Moments
from onnxslim_core.channels.groups import ChannelGraph, Group
from onnxslim_core.errors import InternalError

__all__ = [
    "Curve",
    "Readers",
    "Setting",
    "by_score",
    "cholesky",
    "contributions",
    "counted_weights",
    "error_along",
]

Floats = NDArray[np.float64]
Ints = NDArray[np.int32]

Readers = Sequence[tuple[Consumer, Moments]]
"""All sums that read the classes, each with the moments of its input and of what it answers for."""


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """The order in which classes go, and what is lost with the first r of them gone.

    Attributes:
        order: Classes, the first to go first; (r,).
        error: `error[r]`: summed squared error over the variance of the targets, with r classes gone; (r + 1,).
    """

    order: Ints
    error: Floats

    def scores(self, classes: Ints) -> Floats:
        """The place of each class in the order, (classes,); those that never go come last."""
        place = {int(root): float(number) for number, root in enumerate(self.order)}
        return np.array([place.get(int(root), float(len(self.order))) for root in classes])


@dataclass(frozen=True, slots=True, eq=False)
class Setting:
    """What a criterion may want besides the moments.

    Attributes:
        channels: The channel graph.
        group: The group that the classes are of.
        seed: Of everything that is drawn.
        ridge: Relative to the mean of h's diagonal; None: as `Moments.ridge` says.
        measure: What the answers of the whole network lose with these classes gone; None where nobody measures.
    """

    channels: ChannelGraph | None = None
    group: Group | None = None
    seed: int = 0
    ridge: float | None = None
    measure: Callable[[Sequence[int]], float] | None = None


def scale_of(moments: Moments) -> float:
    """What an error of a reader is multiplied with, so that readers can be added."""
    return 1.0 / max(float(moments.v.sum()), 1e-12)


def penalised(consumer: Consumer, moments: Moments, ridge: float | None) -> tuple[Floats, Floats]:
    """H + l I and C + l W0 of the problem above."""
    penalty = moments.penalty(ridge)
    h = moments.h + penalty * np.eye(len(moments.h))
    return h, moments.c + penalty * weights_of(consumer.node)


def error_along(readers: Readers, order: Ints, ridge: float | None = None) -> Floats:
    """What is lost with the first r classes of an order gone, for every r; (len(order) + 1,).

    Args:
        readers: All sums that read the classes.
        order: Classes, the first to go first.
        ridge: Relative to the mean of h's diagonal; None: as `Moments.ridge` says.
    """
    total = np.zeros(len(order) + 1)
    for consumer, moments in readers:
        total += _error_of(consumer, moments, order, ridge) * scale_of(moments)
    return total


def _error_of(consumer: Consumer, moments: Moments, order: Ints, ridge: float | None) -> Floats:
    h, c = penalised(consumer, moments, ridge)
    d, n = c.shape
    step = _steps(consumer, order)
    sort = np.argsort(-step, kind="stable")
    border = float(np.sum(np.square(c)) / max(np.diag(h).min(), 1e-300))
    whole = np.empty((d + n, d + n))
    whole[:d, :d] = h[np.ix_(sort, sort)]
    whole[d:, :d] = c[sort].T
    whole[:d, d:] = c[sort]
    # any border that keeps it definite does: the factor's last rows are (L^-1 C)' whatever stands there
    whole[d:, d:] = np.eye(n) * max(border, 1.0) * 1e3
    squares = np.square(cholesky(whole)[d:, :d])  # (n, d): what each input, taken in this order, explains
    steps = step[sort]
    each = np.zeros((len(order) + 1, n))
    gone = steps <= len(order)
    np.add.at(each, steps[gone], squares.T[gone])
    lost = np.cumsum(each, axis=0)
    if consumer.outputs is not None:  # an output that is gone itself is no loss
        last = _step_of(consumer.outputs, order)
        lost[np.arange(len(order) + 1)[:, None] >= last] = 0.0
    return np.asarray(lost.sum(axis=1))


def cholesky(matrix: Floats) -> Floats:
    """The lower factor; where rounding made the matrix indefinite, of one with a little more on its diagonal."""
    more = 1e-14 * max(float(np.abs(np.diag(matrix)).max()), 1e-300)
    for _ in range(18):
        try:
            return np.asarray(np.linalg.cholesky(matrix), np.float64)
        except np.linalg.LinAlgError:
            matrix = matrix + more * np.eye(len(matrix))
            more *= 10
    raise InternalError("moments are not definite")


def _steps(consumer: Consumer, order: Ints) -> NDArray[np.int64]:
    """For each row of the weights the number of classes gone once it is gone; (d,)."""
    return np.repeat(_step_of(consumer.classes, order), consumer.taps)


def _step_of(classes: Ints, order: Ints) -> NDArray[np.int64]:
    """For each class the number of classes gone once it is; len(order) + 1 where it stays."""
    place = {int(root): number + 1 for number, root in enumerate(order)}
    return np.array([place.get(int(root), len(order) + 1) for root in classes], np.int64)


def by_score(readers: Readers, classes: Ints, scores: Floats, setting: Setting) -> Curve:
    """The curve of an order by scores, (classes,), the lowest first; one class stays."""
    order = classes[np.argsort(scores, kind="stable")][: max(len(classes) - 1, 0)]
    return Curve(order, error_along(readers, order, setting.ridge))


def counted_weights(consumer: Consumer) -> Floats:
    """Weights (d, n) of a reader, zero where the output goes together with the input."""
    weights = weights_of(consumer.node)
    if consumer.outputs is None:
        return weights
    same = np.repeat(consumer.classes, consumer.taps)[:, None] == consumer.outputs
    return np.where(same, 0.0, weights)


def contributions(readers: Readers, classes: Ints, *, centred: bool = True) -> tuple[Floats, Floats]:
    """The Gram matrix of what classes contribute to the answers, and their products with the target.

    With Z_i = X_i W_i, (rows, n), the contribution of class i: Q_ij = <Z_i, Z_j> / rows = tr(W_i' H_ij W_j), and
    q_i = <Z_i, Y> / rows. Without the classes T, and without repair, the squared error is 1_T' Q 1_T.

    Args:
        readers: All sums that read the classes.
        classes: Those that are compared, (m,).
        centred: Whether means are taken out, as where the bias makes up for them.

    Returns:
        Q, (m, m), and q, (m,), each reader over the variance of what it answers for.
    """
    gram, cross = np.zeros((len(classes), len(classes))), np.zeros(len(classes))
    number = {int(root): place for place, root in enumerate(classes)}
    for consumer, moments in readers:
        weights = counted_weights(consumer)
        h = moments.h if centred else moments.h + np.outer(moments.mean_x, moments.mean_x)
        c = moments.c if centred else moments.c + np.outer(moments.mean_x, moments.mean_y)
        home = np.array([number.get(int(root), -1) for root in np.repeat(consumer.classes, consumer.taps)])
        sort = np.argsort(home, kind="stable")[np.count_nonzero(home < 0) :]
        if not sort.size:
            continue
        found, first = np.unique(home[sort], return_index=True)
        product = (weights[sort] @ weights[sort].T) * h[np.ix_(sort, sort)]
        blocks = np.add.reduceat(np.add.reduceat(product, first, axis=0), first, axis=1)
        gram[np.ix_(found, found)] += blocks * scale_of(moments)
        cross[found] += np.add.reduceat(np.sum(weights[sort] * c[sort], axis=1), first) * scale_of(moments)
    return gram, cross
