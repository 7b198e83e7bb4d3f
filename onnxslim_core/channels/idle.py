"""Channels that can go without changing the answer: zero, unread, constant and duplicate ones.

A class of channels is idle where at every sum it contributes nothing (its value is zero there, or its weights are),
or a known constant c. A constant goes into the bias of the sum, `b += W[:, k] * c_k`, where the sum sees no padding;
at a padded Conv all constants of one set of sums are merged into one that stays, `W[:, r] += W[:, k] * c_k / c_r`,
which is exact at the border too (T57). Of classes that are made alike everywhere one stays, `W[:, a] += W[:, b]`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from onnxslim_core import graph as verbs
from onnxslim_core.channels.groups import ChannelGraph, signatures
from onnxslim_core.channels.removal import remove_atoms
from onnxslim_core.channels.sums import Sum, add_shifts, shifts_of, store_weights, sums_of
from onnxslim_core.ops.consts import Consts
from onnxslim_core.ops.table import rule_of

__all__ = ["Idle", "find_idle", "remove_idle_classes"]

Flags = NDArray[np.bool_]


@dataclass(slots=True)
class Idle:
    """Idle classes by how they can go; every class is in one of them at most.

    Attributes:
        zero: Contributes nothing anywhere.
        constant: Contributes a constant that goes into biases.
        merged: Class -> the class that takes over its constant at padded sums.
        duplicate: Class -> the class that is made alike.
    """

    zero: list[int] = field(default_factory=list)
    constant: list[int] = field(default_factory=list)
    merged: dict[int, int] = field(default_factory=dict)
    duplicate: dict[int, int] = field(default_factory=dict)

    def kind(self, root: int) -> str:
        """The word for the report."""
        if root in self.merged or root in self.duplicate:
            return "duplicate" if root in self.duplicate else "constant"
        return "zero" if root in set(self.zero) else "constant"

    def all(self) -> list[int]:
        """Every class that can go."""
        return [*self.zero, *self.constant, *self.merged, *self.duplicate]


def find_idle(channels: ChannelGraph) -> Idle:
    """Which free classes can go exactly, and how."""
    count = len(channels.classes.of)
    sums = sums_of(channels, Consts(channels.flow, rule_of))
    zero_ok, const_ok, merge_ok = (np.ones(count, np.bool_) for _ in range(3))
    for each in sums:
        # A row that is one class altogether goes with its result: nothing has to hold there.
        matters = ~(each.classes == each.classes[:, :1]).all(axis=1, keepdims=True)
        nothing = each.values == 0
        if each.weights is not None:
            nothing |= ~each.weights.any(axis=2)
        known = np.isfinite(each.values) & (each.weights is not None)
        _forbid(zero_ok, each.classes, matters & ~nothing)
        _forbid(const_ok, each.classes, matters & ~nothing & ~(known & each.plain))
        _forbid(merge_ok, each.classes, matters & ~nothing & ~known)
    idle = Idle()
    for group in channels.groups:
        free = group.classes[group.free]
        idle.zero += [int(c) for c in free[zero_ok[free]]]
        idle.constant += [int(c) for c in free[const_ok[free] & ~zero_ok[free]]]
        _merge_constants(idle, sums, free[merge_ok[free] & ~const_ok[free]])
    _find_duplicates(channels, idle, sums)
    return idle


def _forbid(allowed: Flags, classes: NDArray[np.int32], where: Flags) -> None:
    allowed[classes[np.broadcast_to(where, classes.shape)]] = False


def _merge_constants(idle: Idle, sums: list[Sum], classes: NDArray[np.int32]) -> None:
    """All but one of these constant classes, where one has a value at every sum that the others use."""
    if len(classes) < 2:
        return
    keep = int(classes[0])
    places = [each for each in sums if keep in each.classes]
    for each in places:
        at = each.values[each.classes == keep]
        if at.size != 1 or at[0] == 0 or each.weights is None:
            return
    for root in classes[1:].tolist():
        if all((each.classes == root).sum() == 1 for each in places):
            idle.merged[int(root)] = keep


# ---------------------------------------------------------------------- duplicates
def _find_duplicates(channels: ChannelGraph, idle: Idle, sums: list[Sum]) -> None:
    """Classes made and carried by equal numbers, summed by constant weights everywhere."""
    taken = set(idle.all()) | set(idle.merged.values())
    mergeable = np.ones(len(channels.classes.of), np.bool_)
    for labels in channels.flow.unseen:
        mergeable[channels.of(labels)] = False
    for each in sums:
        if each.weights is None or verbs.array_of(each.sink.node.inputs[each.sink.weight or 0]) is None:
            mergeable[each.classes] = False
    signature = signatures(channels)
    first: dict[tuple[int, bytes], int] = {}
    for root, digest in _digests(channels).items():
        if root in taken or not mergeable[root] or channels.classes.pinned[root]:
            continue
        keep = first.setdefault((int(signature[root]), digest), root)
        if keep != root:
            idle.duplicate[root] = keep


def _digests(channels: ChannelGraph) -> dict[int, bytes]:
    """For every class of a group with a free class: what makes and carries it, hashed. Unreadable ones are left out."""
    wanted = {int(c) for group in channels.groups for c in group.classes[group.free]}
    hashes = {root: hashlib.blake2b(digest_size=16) for root in wanted}
    unreadable: set[int] = set()
    for number, use in enumerate(channels.uses):
        if use.role == "in":
            continue
        roots = channels.of(use.labels.reshape(-1))
        array = verbs.array_of(use.constant)
        if array is None:
            unreadable.update(roots.tolist())
            continue
        for root, row in zip(roots.tolist(), use.rows(array), strict=True):
            if root in hashes:
                hashes[root].update(number.to_bytes(4, "little"))
                hashes[root].update(row.tobytes())
    return {root: digest.digest() for root, digest in sorted(hashes.items()) if root not in unreadable}


# ---------------------------------------------------------------------- removal
def remove_idle_classes(channels: ChannelGraph, idle: Idle, chosen: set[int]) -> int:
    """Take chosen idle classes out, with their constants moved to where they belong; returns the bytes saved."""
    model, sums = channels.flow.model, sums_of(channels, Consts(channels.flow, rule_of))
    for mapping, scaled in ((idle.merged, True), (idle.duplicate, False)):
        moves = {root: keep for root, keep in mapping.items() if root in chosen}
        if moves:
            _move_weights(channels, sums, moves, scaled)
    shifts = shifts_of(channels, sums, chosen & set(idle.constant))
    gone = channels.gone(sorted(chosen))
    saved = remove_atoms(channels, gone)
    add_shifts(model, shifts, gone)
    return saved


def _move_weights(channels: ChannelGraph, sums: list[Sum], moves: dict[int, int], scaled: bool) -> None:
    """`W[:, keep] += W[:, root] * ratio` at every sum, in float64, as new constants."""
    for each in sums:
        if each.weights is None:
            continue
        where = {root: np.argwhere(each.classes == root) for root in {*moves, *moves.values()}}
        weights = np.array(each.weights, np.float64)
        touched = False
        for root, keep in moves.items():
            for source, target in zip(where[root], where[keep], strict=False):
                ratio = each.values[tuple(source)] / each.values[tuple(target)] if scaled else 1.0
                weights[tuple(target)] += weights[tuple(source)] * ratio
                touched = True
        if touched:
            store_weights(channels, each.sink, weights)
