"""Operators that only move elements: the operator itself is run on the label array.

Each has one function `moved(flow, node, array)` that moves an array shaped like labels; labels and constant values
go through the same one. Reshape works per block of axes with equal product, so that unlabelled blocks stay 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxslim_core import graph as verbs
from onnxslim_core.errors import InternalError
from onnxslim_core.ops.consts import Consts
from onnxslim_core.ops.cut import Cut
from onnxslim_core.ops.flow import Flow, Rule

__all__ = ["RULES", "Array", "axis_of", "moving"]

Array = NDArray[np.generic]
Move = Callable[[Flow, ir.Node, Array], list[Array] | None]


def moving(move: Move, cut: Callable[[Cut, ir.Node], None] | None = None, also: tuple[int, ...] = ()) -> Rule:
    """A rule for an operator with one moved input; `also`: inputs that may not depend on data, as a cut sets them."""

    def label(flow: Flow, node: ir.Node) -> None:
        labels = flow.labels(node.inputs[0])
        if labels is None:
            flow.freeze(node, "its input is constant")
            return
        given = [value for value in (node.inputs[i] for i in also if i < len(node.inputs)) if value is not None]
        fed = labels.size > 1 and any(flow.known(value) is None for value in given)
        results = None if fed else move(flow, node, labels)
        if results is None:
            flow.freeze(node, "where it moves elements is computed from data")
            return
        for value, result in zip(node.outputs, results, strict=True):
            flow.set(value, np.asarray(result, np.int32))

    def value(consts: Consts, node: ir.Node) -> None:
        x = consts.get(node.inputs[0])
        results = None if x is None else move(consts.flow, node, x)
        for output, result in zip(node.outputs, results or (), strict=False):
            consts.set(output, np.asarray(result, np.float64))

    return Rule(label, cut, value)


def axis_of(node: ir.Node, rank: int, default: int = 0) -> int:
    """The `axis` of a node, counted from the front."""
    return int(verbs.attribute(node, "axis", default)) % rank


# ---------------------------------------------------------------------- Reshape
def _blocks(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Axes before and after, cut into the smallest runs with equal product."""
    blocks: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        left, right = [i] if i < len(before) else [], [j] if j < len(after) else []
        p, q = before[i] if left else 1, after[j] if right else 1
        i, j = i + len(left), j + len(right)
        while p != q:
            if p < q and i < len(before):
                p, i = p * before[i], i + 1
                left.append(i - 1)
            elif j < len(after):
                q, j = q * after[j], j + 1
                right.append(j - 1)
            else:
                raise InternalError("shapes before and after a Reshape do not agree")
        blocks.append((left, right))
    return blocks


def reshaped(array: Array, before: Sequence[int], after: Sequence[int]) -> Array:
    """An array shaped like labels of a tensor of shape `before`, for the tensor reshaped to `after`."""
    if 0 in before:
        return array.reshape(-1)[:1].reshape((1,) * len(after))
    full, result = list(array.shape), [1] * len(after)
    for left, right in _blocks(before, after):
        if any(array.shape[axis] > 1 for axis in left):
            for axis in left:
                full[axis] = before[axis]
            for axis in right:
                result[axis] = after[axis]
    return np.broadcast_to(array, full).reshape(result)


def _reshape(flow: Flow, node: ir.Node, array: Array) -> list[Array] | None:
    if math.prod(flow.shape(node.inputs[0])) != math.prod(flow.shape(node.outputs[0])):
        return None
    return [reshaped(array, flow.shape(node.inputs[0]), flow.shape(node.outputs[0]))]


def _cut_reshape(cut: Cut, node: ir.Node) -> None:
    """Entries of 0 and -1 that still hold stay (T37)."""
    keeps, shape = cut.keeps(node.outputs[0]), cut.flow.known(node.inputs[1])
    x = node.inputs[0]
    assert x is not None
    if not cut.touches(node):
        return
    if shape is None:
        raise InternalError("a shape is computed from data", verbs.label_of(node))
    new: dict[int, int] = {}
    copies = not verbs.attribute(node, "allowzero", 0)
    for axis, entry in enumerate(np.asarray(shape).reshape(-1)):
        size = cut.size(node.outputs[0], axis)
        if entry == 0 and copies:
            if cut.size(x, axis) != size:
                new[axis] = size
        elif entry != -1 and axis in keeps:
            new[axis] = size
    cut.entries(node, 1, new)


def _cut_reshape_attribute(cut: Cut, node: ir.Node) -> None:
    """Reshape before opset 5 holds its shape as an attribute."""
    if len(node.inputs) > 1:
        _cut_reshape(cut, node)
        return
    keeps = cut.keeps(node.outputs[0])
    shape = list(verbs.attribute(node, "shape", ()))
    for axis in keeps:
        if shape[axis] > 0:
            shape[axis] = len(keeps[axis])
    verbs.set_attribute(node, "shape", shape)


def _transpose(flow: Flow, node: ir.Node, array: Array) -> list[Array] | None:
    return [array.transpose(verbs.attribute(node, "perm", tuple(reversed(range(array.ndim)))))]


# ---------------------------------------------------------------------- Expand, Tile
def _expand(flow: Flow, node: ir.Node, array: Array) -> list[Array] | None:
    rank = len(flow.shape(node.outputs[0]))
    return [array.reshape((1,) * (rank - array.ndim) + array.shape)]


def _label_expand(flow: Flow, node: ir.Node) -> None:
    """Copies that a Reshape turns into channels are channels themselves: keys repeated for each of their queries."""
    _EXPAND.label(flow, node)
    value = node.outputs[0]
    labels, shape = flow.table.get(value), flow.shape(value)
    if labels is None or labels.size == 1 or not any(verbs.is_op(use.node, "Reshape") for use in value.uses()):
        return
    before = (*(1,) * (len(shape) - len(flow.shape(node.inputs[0]))), *flow.shape(node.inputs[0]))
    for axis in range(1, len(shape)):
        copies = shape[axis] if before[axis] == 1 < shape[axis] and labels.shape[axis - 1] > 1 else 1
        if 1 < copies <= _MOST_COPIES and _is_fixed(flow, node.inputs[1], axis - len(shape)):
            labels = flow.atoms.grid(labels, flow.atoms.fresh(copies), axis)
    flow.set(value, labels)


def _is_fixed(flow: Flow, shape: ir.Value | None, entry: int) -> bool:
    """True where an entry (from the end) of a vector of sizes is the same number whatever the sizes of the inputs."""
    if shape not in flow.sized:
        return flow.known(shape) is not None
    node = shape.producer() if shape is not None else None
    if not verbs.is_op(node, "Concat"):
        return False
    assert node is not None
    for part in reversed(node.inputs):
        length = flow.shape(part)[0]
        if -entry <= length:
            return part not in flow.sized and flow.known(part) is not None
        entry += length
    return False


def _cut_expand(cut: Cut, node: ir.Node) -> None:
    keeps, shape = cut.keeps(node.outputs[0]), cut.flow.known(node.inputs[1])
    if not keeps:
        return
    rank = len(cut.flow.shape(node.outputs[0]))
    if shape is None:
        raise InternalError("a shape is computed from data", verbs.label_of(node))
    entries = np.asarray(shape).reshape(-1)
    own = {axis - rank + len(entries): len(keep) for axis, keep in keeps.items()}
    cut.entries(node, 1, {axis: size for axis, size in own.items() if axis >= 0 and entries[axis] != 1})


def _tile(flow: Flow, node: ir.Node, array: Array) -> list[Array] | None:
    before, after = flow.shape(node.inputs[0]), flow.shape(node.outputs[0])
    repeats = [b // a if a and size > 1 else 1 for a, b, size in zip(before, after, array.shape, strict=True)]
    return [np.tile(array, repeats)]


# ---------------------------------------------------------------------- DepthToSpace, SpaceToDepth
def _label_depth_to_space(flow: Flow, node: ir.Node) -> None:
    labels = flow.labels(node.inputs[0])
    if labels is None:
        flow.freeze(node, "its input is constant")
        return
    labels = flow.atoms.mix(labels, [2, 3])
    if labels.shape[1] > 1:
        square = int(verbs.attribute(node, "blocksize", 1)) ** 2
        crd = str(verbs.attribute(node, "mode", "DCR")) == "CRD"
        split = (labels.shape[0], -1, square) if crd else (labels.shape[0], square, -1)
        mixed = flow.atoms.mix(labels.reshape(split), [2 if crd else 1])
        labels = mixed.reshape(labels.shape[0], -1, 1, 1)
    flow.set(node.outputs[0], labels)


def _value_depth_to_space(consts: Consts, node: ir.Node) -> None:
    """Known where the r x r channels that become one all hold the same number."""
    x = consts.get(node.inputs[0])
    if x is None or x.size != x.shape[1]:
        return
    square = int(verbs.attribute(node, "blocksize", 1)) ** 2
    crd = str(verbs.attribute(node, "mode", "DCR")) == "CRD"
    parts = x.reshape(-1, square) if crd else x.reshape(square, -1).T
    consts.set(node.outputs[0], np.where((parts == parts[:, :1]).all(axis=1), parts[:, 0], np.nan).reshape(1, -1, 1, 1))


def _value_space_to_depth(consts: Consts, node: ir.Node) -> None:
    x = consts.get(node.inputs[0])
    if x is not None and x.size == x.shape[1]:
        consts.set(node.outputs[0], np.tile(x, (1, int(verbs.attribute(node, "blocksize", 1)) ** 2, 1, 1)))


def _label_space_to_depth(flow: Flow, node: ir.Node) -> None:
    labels = flow.labels(node.inputs[0])
    if labels is None:
        flow.freeze(node, "its input is constant")
        return
    labels = flow.atoms.mix(labels, [2, 3])
    if labels.shape[1] > 1:
        labels = np.tile(labels, (1, int(verbs.attribute(node, "blocksize", 1)) ** 2, 1, 1))
    flow.set(node.outputs[0], labels)


_EXPAND = moving(_expand, _cut_expand, (1,))
_MOST_COPIES = 256
"""Copies beyond these are no queries of a key."""

RULES = {
    "Reshape": moving(_reshape, _cut_reshape_attribute, (1,)),
    "Flatten": moving(_reshape),
    "Squeeze": moving(_reshape),
    "Unsqueeze": moving(_reshape),
    "Transpose": moving(_transpose),
    "Expand": Rule(_label_expand, _EXPAND.cut, _EXPAND.value),
    "Tile": moving(_tile, None, (1,)),
    "DepthToSpace": Rule(_label_depth_to_space, None, _value_depth_to_space),
    "SpaceToDepth": Rule(_label_space_to_depth, None, _value_space_to_depth),
}
