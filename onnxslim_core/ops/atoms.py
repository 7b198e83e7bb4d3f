"""Atoms and labels: the smallest things that can go, and what ties them together.

An *atom* is one channel, neuron, head slot or hidden unit. Every activation has a *label array*: int32, of the
tensor's rank, each axis either full or 1 (1: does not depend on it). An element of the tensor goes when its atom
goes. Rules of operators speak about labels in four verbs: `unite`, `mix`, `rel` and `contract`.

Unions are only noted here and resolved in one vectorised sweep (`components`), since a rule never needs to know the
classes while labels still flow. Pinning notes atoms with a reason; it never merges classes, so reasons survive.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["FIXED", "Atoms", "Labels", "Reason", "Rel", "compact", "components"]

Labels = NDArray[np.int32]

FIXED = 0
"""The atom of everything that is no channel, such as the result of a sum over all channels; it never goes."""

_MOST_GRID = 1 << 17
"""A grid of fresh atoms larger than this is mixed instead: nobody prunes it, and it would cost more than it tells."""


@dataclass(frozen=True, slots=True)
class Reason:
    """Why something cannot go: the node that froze it, and what it does."""

    node: str
    text: str


@dataclass(frozen=True, slots=True, eq=False)
class Rel:
    """`coarse[i]` goes exactly when all of `fine[i]` go. Shapes (n,) and (n, m)."""

    coarse: Labels
    fine: Labels


def compact(labels: Labels) -> Labels:
    """The same labels with every axis along which they do not vary reduced to 1."""
    for axis, size in enumerate(labels.shape):
        if size > 1:
            first = labels.take([0], axis=axis)
            if (labels == first).all():
                labels = first
    return labels


def components(count: int, left: NDArray[np.int32], right: NDArray[np.int32]) -> NDArray[np.int32]:
    """The smallest member of each atom's class, given pairs that belong together; shape (count,).

    Hooks the larger root under the smaller one and halves paths, all pairs at once; a handful of sweeps suffice.
    """
    root = np.arange(count, dtype=np.int32)
    while left.size:
        a, b = root[left], root[right]
        open_pairs = a != b
        if not open_pairs.any():
            break
        left, right, a, b = left[open_pairs], right[open_pairs], a[open_pairs], b[open_pairs]
        np.minimum.at(root, np.maximum(a, b), np.minimum(a, b))
        while True:
            up = root[root]
            if np.array_equal(up, root):
                break
            root = up
    return root


class Atoms:
    """The book of atoms of one graph: ties, relations, pins, and the arrays that have to stay boxes."""

    def __init__(self) -> None:
        self.count = 1
        self._left: list[Labels] = []
        self._right: list[Labels] = []
        self.rels: list[Rel] = []
        self.pins: list[tuple[Labels, Reason]] = [
            (np.zeros(1, np.int32), Reason("", "not a channel")),
        ]
        self.mixed: list[tuple[Labels, Reason]] = []
        self.author = ""
        self._boxes: dict[bytes, Labels] = {}
        self._vectors: dict[bytes, Labels] = {}

    def fresh(self, count: int) -> Labels:
        """New atoms, as a vector."""
        atoms = np.arange(self.count, self.count + count, dtype=np.int32)
        self.count += count
        return atoms

    def unite(self, a: Labels, b: Labels) -> None:
        """Element by element the same atom; the shapes broadcast."""
        a, b = np.broadcast_arrays(a, b)
        different = a != b
        if different.any():
            self._left.append(a[different])
            self._right.append(b[different])

    def mix(
        self, labels: Labels, axes: Sequence[int], why: str = "values along the channels depend on each other"
    ) -> Labels:
        """Values along these axes depend on each other: unite along them; the result is 1 there."""
        for axis in axes:
            if labels.shape[axis] > 1:
                first = labels.take([0], axis=axis)
                self.unite(labels, first)
                self.mixed.append((first.reshape(-1), Reason(self.author, why)))
                labels = first
        return labels

    def rel(self, coarse: Labels, fine: Labels) -> None:
        """`coarse` (n,) goes exactly when its row of `fine` (n, m) goes."""
        if fine.shape[1] == 1:
            self.unite(coarse, fine[:, 0])
        else:
            self.rels.append(Rel(coarse, fine))

    def contract(self, labels: Labels, axes: Sequence[int]) -> Labels:
        """Summed over these axes: the labels of the result, those axes kept at 1.

        Where the labels vary both along these axes and elsewhere, the result has fresh atoms, each of which goes
        exactly when all that was summed into it goes.
        """
        rank = labels.ndim
        axes = [axis % rank for axis in axes]
        summed = [axis for axis in axes if labels.shape[axis] > 1]
        if not summed:
            return labels
        rest = [axis for axis in range(rank) if axis not in summed]
        shape = [1 if axis in summed else labels.shape[axis] for axis in range(rank)]
        rows = int(np.prod([labels.shape[axis] for axis in rest], dtype=np.int64))
        if rows == 1:
            return np.full(shape, FIXED, np.int32)
        coarse = self.fresh(rows)
        self.rel(coarse, labels.transpose(rest + summed).reshape(rows, -1))
        return coarse.reshape(shape)

    def grid(self, rest: Labels, new: Labels, axis: int) -> Labels:
        """Labels of channels `new` (n,) made along `axis` beside what `rest` (1 on that axis) already labels.

        A fresh atom per element: it goes with its row or with its column, and a row or column goes exactly when all
        its elements go.
        """
        shape = [1] * rest.ndim
        shape[axis] = new.size
        if rest.size == 1 or new.size == 0:
            return new.reshape(shape)
        if rest.size * new.size > _MOST_GRID:
            self.mix(rest, range(rest.ndim))
            return new.reshape(shape)
        flat = self.fresh(rest.size * new.size).reshape(rest.size, new.size)
        self.rel(rest.reshape(-1), flat)
        self.rel(new, np.ascontiguousarray(flat.T))
        full = list(rest.shape)
        full[axis] = new.size
        split = [size for i, size in enumerate(rest.shape) if i != axis]
        return np.ascontiguousarray(np.moveaxis(flat.reshape(*split, new.size), -1, axis)).reshape(full)

    def pin(self, labels: Labels, reason: Reason) -> None:
        """These atoms stay, for this reason."""
        self.pins.append((labels.reshape(-1), reason))

    def note(self, labels: Labels) -> None:
        """This array has to stay a box, and may not become empty."""
        labels = labels.reshape([size for size in labels.shape if size > 1] or [1])
        book = self._boxes if labels.ndim > 1 else self._vectors
        book.setdefault(labels.tobytes() + bytes(str(labels.shape), "ascii"), labels)

    @property
    def boxes(self) -> list[Labels]:
        """Label arrays that vary along two axes or more, without their axes of size 1."""
        return list(self._boxes.values())

    @property
    def vectors(self) -> list[Labels]:
        """Label arrays that vary along one axis at most."""
        return list(self._vectors.values())

    def classes(self) -> NDArray[np.int32]:
        """The class (its smallest atom) of every atom, by the unions alone; shape (count,)."""
        if not self._left:
            return np.arange(self.count, dtype=np.int32)
        return components(self.count, np.concatenate(self._left), np.concatenate(self._right))
