"""Parts of a graph that work on transposed data though they need not: their Transposes vanish at the border.

A *region* is a set of nodes that treat every axis alike (element by element, or Concat along an axis that can be
renamed), joined by the values between them. Reading and writing transposed data, it has Transposes at its border; in
the other layout those go, and others are needed where it meets the rest of the graph. A region is turned over where
that leaves fewer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxslim_core.graph import (
    Names,
    add_constant,
    add_node,
    attribute,
    is_op,
    remove,
    replace,
    replace_input,
    set_attribute,
    users_of,
)

from ._affine import constant
from ._facts import Known

__all__ = ["Region", "permutation", "regions", "turn_over"]

Perm = tuple[int, ...]

_ELEMENTWISE = frozenset(
    (
        *("Relu", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "Elu", "Selu", "Softplus", "Softsign"),
        *("Abs", "Ceil", "Erf", "Exp", "Floor", "Gelu", "Log", "Mish", "Neg", "Reciprocal", "Round", "Sign", "Sqrt"),
        *("Cast", "Clip", "Not", "Add", "Sub", "Mul", "Div", "Max", "Min", "Pow", "Sum", "Where", "PRelu"),
        *("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Xor"),
    )
)
_SHARED = 4096
"""Bytes up to which a constant that another node reads as well is copied in the other layout."""


def permutation(node: ir.Node, known: Known) -> Perm | None:
    """Of a Transpose; None where it is left to the rank, which nobody knows."""
    found = attribute(node, "perm", None)
    if found is not None:
        return tuple(found)
    sizes = known.dims(node.inputs[0])
    return None if sizes is None else tuple(reversed(range(len(sizes))))


def _inverse(perm: Perm) -> Perm:
    return tuple(int(i) for i in np.argsort(perm))


@dataclass(slots=True)
class Region:
    """Nodes in the layout `perm` of what is really meant.

    Attributes:
        perm: What the Transposes before it do.
        nodes: In the order of the graph.
        before: Transposes whose result it reads.
        after: Transposes of its results that undo `perm`.
        entering: Other values that it reads, with their readers inside.
        leaving: Its values that others read, with those readers.
    """

    perm: Perm
    nodes: list[ir.Node]
    before: dict[ir.Node, None] = field(default_factory=dict)
    after: dict[ir.Node, None] = field(default_factory=dict)
    entering: dict[ir.Value, list[tuple[ir.Node, int]]] = field(default_factory=dict)
    leaving: dict[ir.Value, list[tuple[ir.Node, int]]] = field(default_factory=dict)

    def going(self) -> list[ir.Node]:
        """Transposes that nobody needs any more when the region is turned over."""
        inside = set(self.nodes)
        free = [
            t
            for t in self.before
            if not t.outputs[0].is_graph_output() and all(use.node in inside for use in t.outputs[0].uses())
        ]
        return [*free, *self.after]

    def gain(self) -> int:
        """Transposes that go, less those that come."""
        return len(self.going()) - len(self.entering) - len(self.leaving)

    def moves_less(self, known: Known) -> bool:
        """True where what no longer is transposed has at least as many elements, unknown sizes counted as 1."""
        gone = sum(_elements(t.inputs[0], known) for t in self.going())
        return gone >= sum(_elements(value, known) for value in (*self.entering, *self.leaving))


def _elements(value: ir.Value | None, known: Known) -> int:
    return math.prod(size for size in known.dims(value) or () if isinstance(size, int))


def regions(graph: ir.Graph, known: Known, order: dict[ir.Node, float]) -> Iterator[Region]:
    """Every region of a graph that is worth being turned over, one at a time; each may be turned over at once.

    Args:
        graph: Sorted.
        known: Of the model.
        order: Place of each node of the graph.
    """
    seen: set[tuple[ir.Node, Perm]] = set()
    for start in list(order):
        if start.graph is None or not is_op(start, "Transpose") or (perm := permutation(start, known)) is None:
            continue
        for user, _ in users_of(start.outputs[0])[0]:
            if (user, perm) in seen or user not in order or not _fits(user, perm, known):
                continue
            region = _grow(user, perm, known, order)
            seen.update((node, perm) for node in region.nodes)
            if region.gain() > 0 and region.moves_less(known):
                yield region


def _grow(start: ir.Node, perm: Perm, known: Known, order: dict[ir.Node, float]) -> Region:
    """All that is joined to a node by values between nodes that fit."""
    inside, todo = {start}, [start]
    while todo:
        node = todo.pop()
        near = [user for value in node.outputs for user, _ in users_of(value)[0]]
        near += [p for value in node.inputs if value is not None and (p := value.producer()) is not None]
        for other in near:
            if other not in inside and other in order and _fits(other, perm, known):
                inside.add(other)
                todo.append(other)
    region = Region(perm, sorted(inside, key=order.__getitem__))
    for node in region.nodes:
        for index, value in enumerate(node.inputs):
            _enter(region, inside, node, index, value, known)
        users, _ = users_of(node.outputs[0])
        for user, index in users:
            if user in inside:
                continue
            if is_op(user, "Transpose") and user.graph is node.graph and permutation(user, known) == _inverse(perm):
                region.after[user] = None
            else:
                region.leaving.setdefault(node.outputs[0], []).append((user, index))
    return region


def _enter(
    region: Region, inside: set[ir.Node], node: ir.Node, index: int, value: ir.Value | None, known: Known
) -> None:
    """Note where one input of a region's node comes from."""
    if value is None or constant(value) is not None:
        return
    producer = value.producer()
    if producer in inside:
        return
    if producer is not None and is_op(producer, "Transpose") and permutation(producer, known) == region.perm:
        region.before[producer] = None
    else:
        region.entering.setdefault(value, []).append((node, index))


def _fits(node: ir.Node, perm: Perm, known: Known) -> bool:
    """True where a node does the same in another layout, with its constants and its axis turned over as well."""
    rank = len(perm)
    if len(node.outputs) != 1 or node.outputs[0].is_graph_output() or not is_op(node, node.op_type):
        return False
    if any(use.node.graph is not node.graph for use in node.outputs[0].uses()):
        return False  # a Transpose for a body would stand in front of it
    if is_op(node, "Concat"):
        return all(_rank(value, known) == rank and constant(value) is None for value in node.inputs)
    if node.op_type not in _ELEMENTWISE:
        return False
    for value in node.inputs:
        if value is None:
            continue
        array = constant(value)
        if array is None and _rank(value, known) != rank:
            return False
        if array is not None and not _can_turn(value, array, rank):
            return False
    return _rank(node.outputs[0], known) == rank


def _can_turn(value: ir.Value, array: np.ndarray, rank: int) -> bool:
    if array.size == 1 and array.ndim <= 1:
        return True
    return array.ndim <= rank and (array.nbytes <= _SHARED or len(value.uses()) == 1)


def _rank(value: ir.Value | None, known: Known) -> int | None:
    sizes = known.dims(value)
    return None if sizes is None else len(sizes)


def turn_over(region: Region, names: Names, known: Known, order: dict[ir.Node, float]) -> None:
    """Let a region work on the data as it is before the Transposes."""
    back, inside = _inverse(region.perm), set(region.nodes)
    entering = _transpose_at_border(region.entering, back, names, order)
    leaving = _transpose_at_border(region.leaving, region.perm, names, order)
    for transpose in region.before:
        for user, index in users_of(transpose.outputs[0])[0]:
            if user in inside:
                replace_input(user, index, transpose.inputs[0])
    for node in region.nodes:
        _turn_node(node, back, region.perm, names)
    for node in (*entering, *region.nodes, *leaving):
        known.relearn(node)
    for transpose in region.after:
        source = transpose.inputs[0]
        assert source is not None
        replace(transpose.outputs[0], source, names)
    for transpose in (*region.after, *region.before):
        if not transpose.outputs[0].uses() and not transpose.outputs[0].is_graph_output():
            remove(transpose)


def _transpose_at_border(
    values: Mapping[ir.Value, list[tuple[ir.Node, int]]], perm: Perm, names: Names, order: dict[ir.Node, float]
) -> list[ir.Node]:
    """A Transpose between each value and these readers of it."""
    found = []
    for value, readers in values.items():
        before = min((node for node, _ in readers), key=order.__getitem__)
        made = add_node(names, "Transpose", [value], {"perm": list(perm)}, before=before)
        made.outputs[0].type = value.type
        order[made] = order[before] - 0.5
        for node, index in readers:
            replace_input(node, index, made.outputs[0])
        found.append(made)
    return found


def _turn_node(node: ir.Node, back: Perm, perm: Perm, names: Names) -> None:
    """Turn over the constants and the axis of one node; its inputs are turned over already."""
    node.outputs[0].shape = None  # what was declared is no longer so
    if is_op(node, "Concat"):
        set_attribute(node, "axis", perm[int(attribute(node, "axis", 1)) % len(perm)])
        return
    for index, value in enumerate(node.inputs):
        array = constant(value)
        if value is None or array is None or (array.size == 1 and array.ndim <= 1):
            continue
        turned = np.transpose(array.reshape((1,) * (len(perm) - array.ndim) + array.shape), back)
        while turned.ndim and turned.shape[0] == 1:
            turned = turned[0]
        assert isinstance(node.graph, ir.Graph)
        made = add_constant(node.graph, names, turned, f"{value.name}_turned")
        replace_input(node, index, made)
        _drop(value)


def _drop(value: ir.Value) -> None:
    if value.uses() or value.is_graph_output():
        return
    if (producer := value.producer()) is not None:
        remove(producer)
    elif value.is_initializer() and not value.is_graph_input() and value.graph is not None:
        value.graph.initializers.pop(str(value.name), None)
