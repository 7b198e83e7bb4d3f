"""Channels that can go without changing the answer: zero, unread, constant and duplicate ones.

A class of channels is idle where at every sum it contributes nothing (its value is zero there, or its weights are),
or a known constant c. A constant goes into the bias of the sum, `b += W[:, k] * c_k`, where the sum sees no padding;
at a padded Conv all constants of one set of sums are merged into one that stays, `W[:, r] += W[:, k] * c_k / c_r`,
which is exact at the border too (T57). Of classes that hold the same at every sum one stays, `W[:, a] += W[:, b]`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxslim_core import graph as verbs
from onnxslim_core.channels.biases import add_shifts, shifts_of
from onnxslim_core.channels.boxes import Classes, Outcome, View, free_share
from onnxslim_core.channels.groups import ChannelGraph
from onnxslim_core.channels.numbers import Numbers
from onnxslim_core.channels.removal import remove_atoms
from onnxslim_core.channels.sums import Sum, arranged, rewritten, sums_of
from onnxslim_core.ops.consts import Consts
from onnxslim_core.ops.flow import Flow
from onnxslim_core.ops.table import rule_of

__all__ = ["Idle", "Known", "find_idle", "idle_weight", "remove_idle_classes"]

Flags = NDArray[np.bool_]
Floats = NDArray[np.float64]


@dataclass(slots=True)
class Idle:
    """Idle classes by how they can go; every class is in one of them at most.

    Attributes:
        sums: Every sum, with what was found out about it.
        numbers: For each of them the number of every channel (see `numbers`); shape (rows, k).
        zero: Contributes nothing anywhere.
        constant: Contributes a constant that goes into biases.
        merged: Class -> the class that takes over its constant at padded sums.
        duplicate: Class -> the class that holds the same.
        unfit: Classes of the last three kinds whose removal makes a number that its type cannot hold.
    """

    sums: Sequence[Sum] = ()
    numbers: Sequence[Floats] = ()
    zero: list[int] = field(default_factory=list)
    constant: list[int] = field(default_factory=list)
    merged: dict[int, int] = field(default_factory=dict)
    duplicate: dict[int, int] = field(default_factory=dict)
    unfit: set[int] = field(default_factory=set)

    def kinds(self) -> dict[int, str]:
        """For every class that can go the word for the report; those that are cheapest to take out come first."""
        found = dict.fromkeys(self.zero, "zero")
        found |= dict.fromkeys((*self.constant, *self.merged), "constant")
        return found | dict.fromkeys(self.duplicate, "duplicate")


class Known:
    """What is known about the values of a walk, whatever the view: found out once for all of them.

    Args:
        flow: The walk.
    """

    def __init__(self, flow: Flow) -> None:
        self._flow = flow

    @cached_property
    def consts(self) -> Consts:
        """Constant channels."""
        return Consts(self._flow, rule_of)

    @cached_property
    def numbers(self) -> Numbers:
        """Equal channels."""
        return Numbers(self._flow)


def find_idle(channels: ChannelGraph, known: Known | None = None) -> Idle:
    """Which free classes can go exactly, and how.

    Args:
        channels: The graph.
        known: Of its walk, where the caller has looked at another view of it already.
    """
    known = Known(channels.flow) if known is None else known
    sums = sums_of(channels, known.consts)
    zero, constant, mergeable = (_free(channels) for _ in range(3))
    for each in sums:
        settled = np.isfinite(each.values) & (each.weights is not None)
        _forbid(zero, each.classes, each.counts)
        _forbid(constant, each.classes, each.counts & ~(settled & each.plain))
        _forbid(mergeable, each.classes, each.counts & ~(settled & _is_own(each)))
    constant &= ~zero
    idle = Idle(sums, zero=np.flatnonzero(zero).tolist(), constant=np.flatnonzero(constant).tolist())
    _merge_constants(idle, mergeable & ~zero & ~constant)
    _find_duplicates(channels, idle, known)
    _find_unfit(channels, idle)
    return idle


def idle_weight(flow: Flow, consts: Consts) -> View | None:
    """The view that lets most idle weight go, where an array can be cut along several axes; None where none can.

    An atom is taken for idle by itself, before anything is decided. That finds widths of heads beside a table that has
    one column per head, which any view that counts what is free would keep whole.
    """
    of = flow.atoms.classes()
    if not any(_varies_twice(of[array]) for array in flow.atoms.boxes):
        return None
    apart = ChannelGraph(flow, Classes(of, np.zeros(len(of), np.bool_), {}))
    idle, products = np.ones(len(of), np.bool_), []
    for each in sums_of(apart, consts):
        known = np.isfinite(each.values) & (each.weights is not None) & each.plain
        if each.weights is None:
            products.append(each)
        else:
            _forbid(idle, each.classes, each.counts & ~known)
    rows = {row.tobytes() for each in products for row in each.classes}
    ends = rows & _ends(flow, of, idle, rows)
    for each in products:
        active = [row.tobytes() not in ends for row in each.classes]
        _forbid(idle, each.classes, each.counts & np.array(active)[:, None])
    idle = idle[of]

    def view(outcome: Outcome) -> tuple[float, ...]:
        active = np.zeros(len(of), np.bool_)
        active[outcome.classes[~idle[outcome.atoms]]] = True
        goes = ~outcome.pinned & ~active[outcome.classes]
        return float(outcome.mass[goes].sum()), free_share(outcome)

    return view


def _ends(flow: Flow, of: NDArray[np.int32], idle: Flags, products: set[bytes]) -> set[bytes]:
    """Rows that are summed for what goes by itself: queries and keys of a head whose values are idle."""
    rels = [(of[rel.coarse], of[rel.fine]) for rel in flow.atoms.rels]
    dead = np.zeros(len(of), np.bool_)
    for coarse, fine in rels:
        own = np.array([row.tobytes() in products for row in fine])
        dead[coarse[idle[fine].all(axis=1) & ~own]] = True
    return {row.tobytes() for coarse, fine in rels for row in fine[dead[coarse]]}


def _varies_twice(classes: NDArray[np.int32]) -> bool:
    return sum(bool((classes != classes.take([0], axis=i)).any()) for i in range(classes.ndim)) > 1


def _free(channels: ChannelGraph) -> Flags:
    """Classes of which a group may lose some."""
    found = np.zeros(len(channels.classes.of), np.bool_)
    for group in channels.groups:
        found[group.classes[group.free]] = True
    return found


def _forbid(allowed: Flags, classes: NDArray[np.int32], where: Flags) -> None:
    allowed[classes[where]] = False


def _is_plain(each: Sum) -> bool:
    """True where the weights of a sum lie in the file as they are: int8 weights behind a scale stay int8 (T49)."""
    return each.weights is not None and verbs.array_of(each.node.inputs[each.sink.weight or 0]) is not None


def _is_own(each: Sum) -> bool:
    """True where nobody else reads the weights, so that new ones take no more room (T22)."""
    value = each.node.inputs[each.sink.weight or 0]
    return _is_plain(each) and value is not None and len(value.uses()) == 1


# ---------------------------------------------------------------------- constants next to padding
def _merge_constants(idle: Idle, candidates: Flags) -> None:
    """A constant class takes over those that count at no other sums; of equals, the largest numbers do."""
    places: dict[int, dict[tuple[int, int], float]] = {}
    for number, each in enumerate(idle.sums):
        for row, k in np.argwhere(candidates[each.classes] & each.counts).tolist():
            at = places.setdefault(int(each.classes[row, k]), {})
            at[number, row] = max(at.get((number, row), 0.0), abs(float(each.values[row, k])))
    keeps: dict[tuple[int, int], list[int]] = {}
    for root in sorted(places, key=lambda root: (-len(places[root]), -min(places[root].values()), root)):
        at = places[root]
        keep = next((other for other in keeps.get(next(iter(at)), ()) if at.keys() <= places[other].keys()), None)
        if keep is not None:
            idle.merged[root] = keep
            continue
        for place in at:
            keeps.setdefault(place, []).append(root)


# ---------------------------------------------------------------------- duplicates
def _find_duplicates(channels: ChannelGraph, idle: Idle, known: Known) -> None:
    """Classes that hold the same at the same sums, each of them with weights that can be added up."""
    idle.numbers = [arranged(channels, known.numbers, each.sink) for each in idle.sums]
    able = np.ones(len(channels.classes.of), np.bool_)
    able[[*idle.kinds(), *idle.merged.values()]] = False
    for labels in channels.flow.unseen:
        able[channels.of(labels)] = False
    held = [np.zeros((0, 4))]
    for number, (each, own) in enumerate(zip(idle.sums, idle.numbers, strict=True)):
        _forbid(able, each.classes, each.counts & (np.isnan(own) | (not _is_plain(each))))
        row = np.broadcast_to(np.arange(len(own))[:, None], own.shape)
        columns = (each.classes, np.full(own.shape, number), row, own)
        held.append(np.stack([column[each.counts] for column in columns], axis=1).astype(np.float64))
    table = np.concatenate(held)
    table = table[able[table[:, 0].astype(np.int64)]]
    table = table[np.lexsort(table.T[::-1])]
    roots, starts = np.unique(table[:, 0].astype(np.int64), return_index=True)
    free, first = _free(channels), dict[bytes, int]()
    same = {
        root: part[:, 1:].tobytes() for root, part in zip(roots.tolist(), np.split(table, starts[1:]), strict=False)
    }
    for root in sorted(same, key=lambda root: (bool(free[root]), root)):
        keep = first.setdefault(same[root], root)
        if keep != root and free[root]:
            idle.duplicate[root] = keep


# ---------------------------------------------------------------------- what is moved from one channel to another
def _moves(idle: Idle, number: int, chosen: set[int]) -> Iterator[tuple[int, tuple[int, int], tuple[int, int], float]]:
    """At one sum: (class that goes, its place, the place that takes its weights over, the factor for them)."""
    each = idle.sums[number]
    if each.weights is None:
        return

    def places(root: int) -> list[tuple[int, int]]:
        return [(row, k) for row, k in np.argwhere((each.classes == root) & each.counts).tolist()]

    for root in sorted(chosen & set(np.unique(each.classes).tolist())):
        if (keep := idle.merged.get(root)) is not None:
            largest = {place[0]: place for place in sorted(places(keep), key=lambda p: abs(each.values[p]))}
            for place in places(root):
                target = largest[place[0]]
                yield root, place, target, float(each.values[place] / each.values[target])
        elif (keep := idle.duplicate.get(root)) is not None:
            own = idle.numbers[number]
            sources, targets = (sorted(places(r), key=lambda p: (p[0], own[p], p[1])) for r in (root, keep))
            for place, target in zip(sources, targets, strict=True):
                yield root, place, target, 1.0


def _find_unfit(channels: ChannelGraph, idle: Idle) -> None:
    """Classes whose constants or copies, all signs alike, do not fit into the type of what takes them over (T30)."""
    wanted = {*idle.merged, *idle.duplicate}
    for number, each in enumerate(idle.sums):
        if each.weights is None:
            continue
        weights = np.abs(each.weights.astype(np.float64))
        constant = set(idle.constant) & set(each.classes[each.counts].tolist())
        size = replace(each, values=np.abs(each.values), weights=weights.astype(each.weights.dtype))
        if not all(shift.fits for shift in shifts_of(channels, [size], constant)):
            idle.unfit |= constant
        moved = list(_moves(idle, number, wanted))
        for _, source, target, ratio in moved:
            weights[target] += weights[source] * abs(ratio)
        if weights.max(initial=0.0) > float(np.finfo(each.weights.dtype).max):
            idle.unfit |= {root for root, *_ in moved}


# ---------------------------------------------------------------------- removal
def remove_idle_classes(channels: ChannelGraph, idle: Idle, chosen: set[int]) -> int:
    """Take chosen idle classes out, with their constants moved to where they belong; returns the bytes saved."""
    made: dict[tuple[ir.Value, bytes], ir.Value] = {}
    for number in range(len(idle.sums)):
        _move_weights(channels, idle, number, chosen, made)
    shifts = shifts_of(channels, idle.sums, chosen & set(idle.constant))
    gone = channels.gone(sorted(chosen))
    saved = remove_atoms(channels, gone)
    add_shifts(channels, shifts, gone)
    return saved


def _move_weights(
    channels: ChannelGraph, idle: Idle, number: int, chosen: set[int], made: dict[tuple[ir.Value, bytes], ir.Value]
) -> None:
    """`W[:, keep] += W[:, root] * ratio` in float64, as new constants; nodes that shared one share the new one."""
    each, moves = idle.sums[number], list(_moves(idle, number, chosen))
    if not moves or each.weights is None:
        return
    weights = each.weights.astype(np.float64)
    for _, source, target, ratio in moves:
        weights[target] += each.weights[source].astype(np.float64) * ratio
    index = each.sink.weight or 0
    value, array = each.node.inputs[index], rewritten(each, weights)
    assert value is not None
    key = (value, array.tobytes())
    if key not in made:
        graph = verbs.owner_of(value)
        assert isinstance(graph, ir.Graph)
        made[key] = verbs.add_constant(graph, verbs.Names(channels.flow.model), array, str(value.name))
        channels.flow.adopt(made[key], value)
    verbs.replace_constant(each.node, index, made[key])
