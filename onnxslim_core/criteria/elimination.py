"""Classes taken one after the other out of a quadratic problem, or into it, each time the best one.

Two searches are one: with a definite matrix M and rows B, taking block b changes the error by tr(B_b' (M_bb)^-1 B_b)
and leaves M - M_:b (M_bb)^-1 M_b: and B - M_:b (M_bb)^-1 B_b. With M = (H + l I)^-1 and B the least-squares weights it
is optimal brain surgeon: the smallest change goes. With M = H + l I and B = C + l W0 it is orthogonal matching pursuit:
the largest change stays. What was taken is kept as a factor U, M_now = M - U U', so that a step reads U and writes
nothing but the diagonal blocks; the matrix is written anew, for what is left of it, when half of it is gone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from onnxslim_core.calibration.consumers import Consumer
from onnxslim_core.criteria.curves import cholesky

__all__ = ["Elimination", "take_all"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int32]

_ONE_BY_ONE = 128
"""Up to so many classes are taken one at a time; of more, several between two looks at all of them."""
_SHARE = 0.03
"""So many of those that are left."""


class Elimination:
    """One reader of the classes.

    Args:
        consumer: The reader.
        classes: The classes that may be taken, (m,).
        matrix: M, (d, d).
        rows: B, (d, n).
        scale: What changes are multiplied with.
    """

    def __init__(self, consumer: Consumer, classes: Ints, matrix: Floats, rows: Floats, scale: float) -> None:
        blocks = [consumer.columns(int(root)) for root in classes]
        most = max((len(block) for block in blocks), default=0)
        self._inside = np.array([[place < len(block) for place in range(most)] for block in blocks], np.bool_)
        self._inside = self._inside.reshape(len(blocks), most)
        self._at = np.zeros((len(blocks), most), np.int64)
        for number, block in enumerate(blocks):
            self._at[number, : len(block)] = block
        self._matrix, self._rows, self._scale = matrix, np.array(rows), scale
        self._room, self._used = np.empty((0, len(matrix))), 0
        self._same = None if consumer.outputs is None else consumer.outputs == classes[:, None]
        if self._same is not None and not self._same.any():
            self._same = None
        self._blocks = self._gathered(matrix)

    @property
    def _factor(self) -> Floats:
        """What was taken since the matrix was written: (rows taken, d)."""
        return self._room[: self._used]

    def _append(self, factor: Floats) -> None:
        used = self._used + len(factor)
        if used > len(self._room):
            room = np.empty((max(2 * len(self._room), used, 64), self._room.shape[1]))
            room[: self._used] = self._factor
            self._room = room
        self._room[self._used : used] = factor
        self._used = used

    def _gathered(self, matrix: Floats) -> Floats:
        """The diagonal blocks, (m, k, k), the unit matrix where a class has fewer than k rows."""
        both = self._inside[:, :, None] & self._inside[:, None, :]
        found = np.where(both, matrix[self._at[:, :, None], self._at[:, None, :]], 0.0)
        eye = np.eye(self._at.shape[1], dtype=np.bool_)
        found[:, eye] = np.where(self._inside, found[:, eye], 1.0)
        return found

    def changes(self, numbers: NDArray[np.int64]) -> Floats:
        """By how much each of these classes, by number, would change the error; (numbers,)."""
        if not self._at.shape[1]:
            return np.zeros(len(numbers))
        rows = np.where(self._inside[numbers, :, None], self._rows[self._at[numbers]], 0.0)
        solved = np.linalg.inv(self._blocks[numbers]) @ rows
        if self._same is not None:
            solved[np.broadcast_to(self._same[numbers, None, :], solved.shape)] = 0.0
        return np.asarray(np.maximum(np.einsum("mkn,mkn->m", rows, solved), 0.0) * self._scale)

    def part(self, numbers: NDArray[np.int64]) -> Elimination:
        """The same problem for some classes alone."""
        at = self._at[numbers][self._inside[numbers]]
        small = object.__new__(Elimination)
        small._inside = self._inside[numbers]
        small._at = np.zeros_like(self._at[numbers])
        small._at[small._inside] = np.arange(len(at))
        near = self._factor[:, at]
        small._matrix = self._matrix[np.ix_(at, at)] - near.T @ near
        small._rows, small._scale = self._rows[at], self._scale
        small._room, small._used = np.empty((0, len(at))), 0
        small._same = None if self._same is None else self._same[numbers]
        small._blocks = self._blocks[numbers]
        return small

    def take(self, numbers: NDArray[np.int64]) -> None:
        """Take these classes."""
        if self._same is not None:
            self._rows[:, self._same[numbers].any(axis=0)] = 0.0
        self.take_rows(self._at[numbers][self._inside[numbers]])

    def take_rows(self, at: NDArray[np.int64]) -> None:
        """Take these rows of the matrix, of whatever class."""
        if not at.size:
            return
        columns = self._matrix[at] - self._factor[:, at].T @ self._factor
        square = columns[:, at]
        lower = cholesky((square + square.T) / 2)
        new = np.linalg.solve(lower, np.hstack([columns, self._rows[at]]))
        factor, rows = new[:, : len(self._matrix)], new[:, len(self._matrix) :]
        self._rows -= factor.T @ rows
        self._append(np.asarray(factor, np.float64))
        near = np.where(self._inside[:, :, None], factor.T[self._at], 0.0)
        self._blocks -= near @ near.transpose(0, 2, 1)

    def settle(self, left: NDArray[np.int64]) -> None:
        """Forget what is neither among these classes nor outside all of them, where that halves the matrix."""
        stays = np.zeros(len(self._matrix), np.bool_)
        stays[self._at[left][self._inside[left]]] = True
        if not 0 < 2 * np.count_nonzero(stays) <= len(self._matrix) or not self._used:
            return
        near = self._factor[:, stays]
        self._matrix = self._matrix[np.ix_(stays, stays)] - near.T @ near
        self._rows = self._rows[stays]
        self._room, self._used = np.empty((0, len(self._rows))), 0
        moved = np.cumsum(stays) - 1
        self._at = np.where(self._inside, moved[self._at], 0)


def take_all(parts: Sequence[Elimination], count: int, steps: int, *, largest: bool) -> NDArray[np.int64]:
    """Take class after class, each time the one that changes least, or most.

    Above 128 classes some of the best are looked at alone and several of them taken before all are compared again.

    Args:
        parts: One per reader, over the same classes.
        count: How many classes there are.
        steps: How many are taken.
        largest: Whether the largest change is taken.

    Returns:
        Numbers of classes in the order in which they were taken, (steps,).
    """
    left, order, there = np.arange(count), list[int](), np.ones(count, np.bool_)
    while len(order) < steps and len(left):
        changes = np.sum([part.changes(left) for part in parts], axis=0)
        taken = _best(parts, left, changes, steps - len(order), largest)
        for part in parts:
            part.take(taken)
        order += taken.tolist()
        there[taken] = False
        left = np.flatnonzero(there)
        for part in parts:
            part.settle(left)
    return np.array(order, np.int64)


def _best(
    parts: Sequence[Elimination], left: NDArray[np.int64], changes: Floats, steps: int, largest: bool
) -> NDArray[np.int64]:
    batch = min(int(np.ceil(_SHARE * len(left))), steps) if len(left) > _ONE_BY_ONE else 1
    if batch == 1:
        return left[[int(np.argmax(changes) if largest else np.argmin(changes))]]
    near = np.sort(left[np.argsort(-changes if largest else changes, kind="stable")[: 4 * batch]])
    inner = take_all([part.part(near) for part in parts], len(near), batch, largest=largest)
    return near[inner]
