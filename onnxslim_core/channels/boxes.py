"""Open choices: what still varies along two axes or more has to be cut along one of them.

Removal must leave every tensor a box. Unions that the operators force are done before; what is left is a choice:
keep one axis, unite over the others (whole heads, or the same width in every head; whole groups, or the same
position in every group). Each axis is tried on a copy of its component and the outcome is valued by the caller.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from onnxslim_core.ops.atoms import Atoms, Labels, Reason, Rel, components

__all__ = ["Classes", "Outcome", "View", "free_share", "inner", "settle", "whole"]

Ints = NDArray[np.int32]
Flags = NDArray[np.bool_]
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What one way to decide a component leaves.

    Attributes:
        atoms: The atoms of the component; shape (n,).
        classes: The class of each; shape (n,).
        pinned: Whether it stays; shape (n,).
        mass: Weights that each atom alone stands for; shape (n,). Zero for an atom that only ties others.
    """

    atoms: Ints
    classes: Ints
    pinned: Flags
    mass: NDArray[np.float64]


View = Callable[[Outcome], tuple[float, ...]]
"""The value of an outcome; the largest wins, the first of equals."""


def free_share(outcome: Outcome) -> float:
    """The share of the component's weights that can still go, to six digits."""
    total = float(outcome.mass.sum())
    return round(float(outcome.mass[~outcome.pinned].sum()) / total, 6) if total else 0.0


def whole(outcome: Outcome) -> tuple[float, ...]:
    """Most weights free, then the fewest classes: whole heads and whole groups."""
    return free_share(outcome), -float(len(np.unique(outcome.classes[~outcome.pinned]))), _runs(outcome)


def inner(outcome: Outcome) -> tuple[float, ...]:
    """Most weights free, then the most classes: widths of heads and positions in groups."""
    return free_share(outcome), float(len(np.unique(outcome.classes[~outcome.pinned]))), -_runs(outcome)


def _runs(outcome: Outcome) -> float:
    """How many free neighbours go together: tells 8 whole groups from 8 positions in 8 groups."""
    free = ~outcome.pinned
    classes = outcome.classes[free][np.argsort(outcome.atoms[free])]
    return float((classes[1:] == classes[:-1]).sum())


@dataclass(frozen=True, slots=True, eq=False)
class Classes:
    """What goes together: the class of every atom, and for each class that stays the first reason.

    Attributes:
        of: The class (its smallest atom) of every atom; shape (atoms,).
        pinned: For every atom whether its class stays; shape (atoms,).
        reasons: Class -> why it stays.
    """

    of: Ints
    pinned: Flags
    reasons: dict[int, Reason]


class _Part:
    """A component under trial: classes of its members, numbered from 0, and what ties them."""

    def __init__(self, count: int, pinned: Flags, rels: list[Rel], arrays: list[Labels]) -> None:
        self.root = np.arange(count, dtype=np.int32)
        self.pinned = pinned
        self.rels = rels
        self.arrays = arrays
        self._flat = np.concatenate([array.reshape(-1) for array in arrays] or [np.zeros(0, np.int32)])
        self._starts = np.cumsum([0, *(array.size for array in arrays)])[:-1]

    def copy(self) -> _Part:
        part = copy(self)
        part.pinned = self.pinned.copy()
        return part

    def unite(self, left: Ints, right: Ints) -> None:
        joined = components(len(self.root), left.reshape(-1), right.reshape(-1))
        self.root = joined[self.root]
        stays = np.zeros(len(self.root), np.bool_)
        stays[self.root[self.pinned]] = True
        self.pinned = stays[self.root]

    def pin(self, members: Ints) -> None:
        self.pinned[self.root[members]] = True
        self.pinned = self.pinned[self.root]

    def close(self) -> None:
        """Apply the relations until nothing more follows, and pin what would empty a tensor."""
        while True:
            before = (self.root, self.pinned.sum())
            self._pin_whole()
            for rel in self.rels:
                self._apply(rel)
            if np.array_equal(before[0], self.root) and before[1] == self.pinned.sum():
                return

    def _pin_whole(self) -> None:
        classes = self.root[self._flat]
        low, high = np.minimum.reduceat(classes, self._starts), np.maximum.reduceat(classes, self._starts)
        if not self.pinned[low[low == high]].all():
            self.pin(low[low == high])

    def _apply(self, rel: Rel) -> None:
        fine = self.root[rel.fine]
        uniform = (fine == fine[:, :1]).all(axis=1)
        apart = uniform & (self.root[rel.coarse] != fine[:, 0])
        if apart.any():
            self.unite(self.root[rel.coarse[apart]], fine[apart, 0])
            fine = self.root[rel.fine]
        loose = ~self.pinned[rel.coarse]
        if not loose.any():
            return
        stuck = loose & self.pinned[fine].any(axis=1)
        if len(fine) > 1 and not uniform.all() and (np.sort(fine, axis=1) == np.sort(fine[:1], axis=1)).all():
            stuck |= loose & ~uniform
        if stuck.any():
            self.pin(rel.coarse[stuck])

    def open_array(self) -> tuple[Labels, list[int]] | None:
        """The first array that varies along two axes or more, with those axes."""
        for array in self.arrays:
            if array.ndim < 2:
                continue
            classes = self.root[array]
            if self.pinned[classes].all():
                continue
            axes = [i for i in range(array.ndim) if (classes != classes.take([0], axis=i)).any()]
            if len(axes) > 1:
                return array, axes
        return None

    def choose(self, array: Labels, axes: list[int], keep: int) -> _Part:
        """A copy in which the array varies along one of these axes only."""
        part = self.copy()
        for axis in axes:
            if axis != keep:
                part.unite(part.root[array], part.root[np.broadcast_to(array.take([0], axis=axis), array.shape)])
        part.close()
        return part

    def finish(self) -> None:
        """Pin what relations are left: neither side of one that is still open may go."""
        for rel in self.rels:
            fine = self.root[rel.fine]
            left = ~(fine == fine[:, :1]).all(axis=1)
            if not left.any():
                continue
            shared = len(fine) > 1 and bool((np.sort(fine, axis=1) == np.sort(fine[:1], axis=1)).all())
            self.pin(rel.coarse[left])
            if len(fine) > 1 and not shared:
                self.pin(rel.fine[left].reshape(-1))


def settle(atoms: Atoms, view: View, mass: NDArray[np.float64]) -> Classes:
    """Decide every open choice by a view, component by component.

    Args:
        atoms: The book of atoms.
        view: The value of an outcome.
        mass: Weights that each atom stands for; shape (atoms,).
    """
    of = atoms.classes()
    pinned = np.zeros(atoms.count, np.bool_)
    reasons: dict[int, Reason] = {}
    for members, reason in atoms.pins:
        for root in np.unique(of[members]):
            reasons.setdefault(int(root), reason)
            pinned[root] = True
    book = _Book(of, pinned, mass, view)
    _solve(book, atoms)
    stuck = book.of[book.pinned[book.of]]
    return Classes(book.of, book.pinned[book.of], _reasons(atoms, reasons, book.of, stuck))


class _Book:
    """Classes of all atoms while components are decided one by one."""

    def __init__(self, of: Ints, pinned: Flags, mass: NDArray[np.float64], view: View) -> None:
        self.of = of.copy()
        self.pinned = pinned
        self.mass = mass
        self.view = view
        self.number = np.full(len(of), -1, np.int32)
        self._order = np.argsort(of, kind="stable").astype(np.int32)
        self._starts = np.searchsorted(of[self._order], np.arange(len(of) + 1))

    def atoms_of(self, classes: Ints) -> Ints:
        """The atoms of these classes. Those that a decision joined since are found by their own component alone."""
        return np.concatenate([self._order[self._starts[c] : self._starts[c + 1]] for c in classes.tolist()])


def _is_open(classes: Ints) -> bool:
    return sum(bool((classes != classes.take([0], axis=i)).any()) for i in range(classes.ndim)) > 1


def _reasons(atoms: Atoms, direct: dict[int, Reason], of: Ints, stuck: Ints) -> dict[int, Reason]:
    """Why each class stays: what pinned one of its atoms first, else what mixed its tensor into one, else its ties."""
    found: dict[int, Reason] = {}
    for atom, reason in sorted(direct.items(), key=lambda item: (not item[1].node, item[0])):
        found.setdefault(int(of[atom]), reason)
    for members, reason in atoms.mixed:
        for root in np.unique(of[members]).tolist():
            found.setdefault(root, reason)
    for root in np.unique(stuck).tolist():
        found.setdefault(root, Reason("", "all that a tensor has, or tied to channels that stay"))
    return found


def _solve(book: _Book, atoms: Atoms) -> None:
    """Split into components that share an open box or a relation, and decide each by itself."""
    of, arrays = book.of, [*atoms.boxes, *atoms.vectors]
    groups = [of[array].reshape(-1) for array in atoms.boxes if _is_open(of[array])]
    groups += [np.concatenate([of[rel.coarse], of[rel.fine].reshape(-1)]) for rel in atoms.rels]
    if not groups:
        _pin_whole(of, book.pinned, arrays)
        return
    left = np.concatenate([np.repeat(group[:1], len(group)) for group in groups])
    part_of = components(len(of), left, np.concatenate(groups))
    busy = np.zeros(len(of), np.bool_)
    busy[part_of[np.concatenate(groups)]] = True
    homes: dict[int, tuple[list[Rel], list[Labels]]] = {int(part): ([], []) for part in np.flatnonzero(busy)}
    for rel in atoms.rels:
        homes[int(part_of[of[rel.coarse[0]]])][0].append(rel)
    quiet: list[Labels] = []
    for array in arrays:
        touched = part_of[of[array]].reshape(-1)
        touched = touched[:1] if (touched == touched[0]).all() else np.unique(touched)
        hit = touched[busy[touched]]
        for part in hit.tolist():
            homes[part][1].append(array)
        if not hit.size:
            quiet.append(array)
    _pin_whole(of, book.pinned, quiet)
    for rels, own in homes.values():
        _decide(book, rels, own)


def _pin_whole(of: Ints, pinned: Flags, arrays: list[Labels]) -> None:
    """Pin the class that is all a tensor has."""
    if arrays:
        flat = np.concatenate([of[array].reshape(-1) for array in arrays])
        starts = np.cumsum([0, *(array.size for array in arrays)])[:-1]
        low, high = np.minimum.reduceat(flat, starts), np.maximum.reduceat(flat, starts)
        pinned[low[low == high]] = True


def _decide(book: _Book, rels: list[Rel], arrays: list[Labels]) -> None:
    """One component: number its classes from 0, decide, write down.

    Choices are made one after the other by what each leaves free at once. Where that goes wrong (groups of 3 and of 2
    on one tensor: whole groups look best until both are to be whole; queries of a key look best until the key stays),
    the other orders are tried to their end.
    """
    of, number = book.of, book.number
    everything = [of[array].reshape(-1) for array in arrays]
    everything += [of[rel.coarse] for rel in rels] + [of[rel.fine].reshape(-1) for rel in rels]
    members = np.unique(np.concatenate(everything))
    number[members] = np.arange(len(members), dtype=np.int32)
    part = _Part(
        len(members),
        book.pinned[members],
        [Rel(number[of[rel.coarse]], number[of[rel.fine]]) for rel in rels],
        [number[of[array]] for array in arrays],
    )
    part.close()
    inside = book.atoms_of(members)
    local, mass = number[of[inside]], book.mass[inside]

    def by(view: Callable[[Outcome], _T]) -> Callable[[_Part], _T]:
        return lambda trial: view(Outcome(inside, members[trial.root[local]], trial.pinned[local], mass))

    decided = _settled(part, by(book.view))
    if by(free_share)(decided) < by(free_share)(part):
        array, axes = part.open_array() or (np.zeros(0, np.int32), [])
        begun = [_settled(part.choose(array, axes, keep), by(book.view)) for keep in axes]
        decided = max([decided, _settled(part, by(inner)), _settled(part, by(whole)), *begun], key=by(book.view))
    of[inside] = members[decided.root[local]]
    book.pinned[members] |= decided.pinned
    book.pinned[members[decided.root]] |= decided.pinned


def _settled(part: _Part, value: Callable[[_Part], tuple[float, ...]]) -> _Part:
    """Try every axis of a choice, keep the best, until no choice is open."""
    while (found := part.open_array()) is not None:
        array, axes = found
        part = max((part.choose(array, axes, keep) for keep in axes), key=value)
    part = part.copy()
    part.finish()
    return part
