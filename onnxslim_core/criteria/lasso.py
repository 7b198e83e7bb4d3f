"""LASSO selection: the channels whose contributions explain the answer under a penalty on how many are used.

    min_b  1/2 b' Q b - q' b + lambda |b|_1,   Q_ij = <Z_i, Z_j>,  q_i = <Z_i, Y>

(He, Zhang, Sun, Channel Pruning for Accelerating Very Deep Neural Networks, ICCV 2017, eq. 1 to 3; one step in b, then
the repair). The whole path over lambda comes from Q and q alone, by least angle regression with the LASSO's
modification (Efron, Hastie, Johnstone, Tibshirani, Annals of Statistics 2004, section 3): a channel may leave the path
again, and the place of a channel is when it first joined. Contributions are not normalised: energy counts.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxslim_core.criteria.curves import Curve, Readers, Setting, contributions, error_along

__all__ = ["curve", "path"]

Floats = NDArray[np.float64]

_DEPENDENT = 1e-8
"""A variable of which the others leave less than this share of its square says nothing of its own."""


def curve(readers: Readers, classes: NDArray[np.int32], setting: Setting) -> Curve:
    """The last to join the path is the first to go; before it those that never join, the least energy first."""
    gram, cross = contributions(readers, classes)
    joined = [number for number, _ in path(gram, cross)]
    first = list(dict.fromkeys(joined))
    never = np.setdiff1d(np.arange(len(classes)), first)
    never = never[np.argsort(np.diag(gram)[never], kind="stable")]
    order = classes[np.concatenate([never, np.array(first[::-1], np.int64)]).astype(np.int64)][: len(classes) - 1]
    return Curve(order, error_along(readers, order, setting.ridge))


def path(gram: Floats, cross: Floats) -> list[tuple[int, float]]:
    """The variables in the order in which they join the LASSO path, each with the lambda at which it does.

    Args:
        gram: Q, (m, m), positive semidefinite.
        cross: q, (m,).
    """
    m = len(cross)
    gram = gram + np.eye(m) * 1e-10 * max(float(np.trace(gram)) / max(m, 1), 1e-300)
    inside = _Active(gram)
    beta, signs, outside = np.zeros(m), np.zeros(m), np.ones(m, np.bool_)
    joined, rest, dropped = list[tuple[int, float]](), cross.copy(), -1
    floor = 1e-10 * float(np.abs(cross).max(initial=0.0))
    for _ in range(8 * m):
        free = np.flatnonzero(outside)
        if dropped < 0 and len(free):
            new = int(free[np.argmax(np.abs(rest[free]))])
            if abs(rest[new]) <= floor:
                break
            outside[new] = False
            if not inside.add(new):
                continue  # those that are in say the same already
            joined.append((new, float(abs(rest[new]))))
            signs[new] = np.sign(rest[new])
            free = free[free != new]
        active = inside.members
        level = float(np.abs(rest[active]).max(initial=0.0))
        if level <= floor:
            break
        if dropped >= 0:
            free = free[free != dropped]
        way = inside.inverse @ signs[active]
        slope = gram[:, active] @ way  # the correlation of what is in falls at rate 1
        step = _until_next(rest[free], slope[free], level)
        leaves, out = _until_zero(beta[active], way)
        dropped = active[leaves] if out < step else -1
        step = min(out, step)
        beta[active] += step * way
        rest -= step * slope
        if dropped >= 0:
            beta[dropped], outside[dropped] = 0.0, True
            inside.drop(leaves)
        elif not len(free):
            break
    return joined


class _Active:
    """The variables that are in, and the inverse of their part of a matrix, kept by bordering."""

    def __init__(self, gram: Floats) -> None:
        self._gram = gram
        self._changes = 0
        self.members: list[int] = []
        self.inverse = np.empty((0, 0))

    def add(self, new: int) -> bool:
        """One joins, at the end; not where it is a combination of those that are in."""
        side = self._gram[self.members, new]
        way = self.inverse @ side
        rest = float(self._gram[new, new] - side @ way)
        if rest <= _DEPENDENT * self._gram[new, new]:
            return False
        way = np.append(way, -1.0)
        self.members.append(new)
        self.inverse = np.pad(self.inverse, (0, 1)) + np.outer(way, way) / rest
        self._refresh()
        return True

    def drop(self, place: int) -> None:
        """One leaves, by its place."""
        side = self.inverse[:, place]
        self.inverse = self.inverse - np.outer(side, side) / side[place]
        self.inverse = np.delete(np.delete(self.inverse, place, 0), place, 1)
        del self.members[place]
        self._refresh()

    def _refresh(self) -> None:
        self._changes += 1
        if self._changes % 100 == 0:  # rounding adds up
            self.inverse = np.asarray(np.linalg.inv(self._gram[np.ix_(self.members, self.members)]), np.float64)


def _until_next(rest: Floats, slope: Floats, level: float) -> float:
    """How far to go until another variable is as correlated as those that are in; all the way where none is."""
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = np.concatenate([(level - rest) / (1 - slope), (level + rest) / (1 + slope), [level]])
    return float(np.min(steps[np.isfinite(steps) & (steps > 1e-14 * level)], initial=level))


def _until_zero(beta: Floats, way: Floats) -> tuple[int, float]:
    """Which variable is the first to pass zero, and how far away that is."""
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = -beta / way
    steps = np.where(np.isfinite(steps) & (steps > 0), steps, np.inf)
    place = int(np.argmin(steps))
    return place, float(steps[place])
