"""Constants that a graph computes from others: what to cut of the operands so that the result is cut.

Weights stand behind Identity, Cast, Transpose, DequantizeLinear, Cast and Mul, Reshape, or are made by
ConstantOfShape. Cut there, the file gets smaller; an operator without an answer here has its result gathered instead.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxslim_core import graph as verbs

if TYPE_CHECKING:
    from onnxslim_core.ops.cut import Cut

__all__ = ["cut_operands"]

Inputs = list[ir.Value | None]
Keeps = Mapping[int, NDArray[np.int64]]

_UNARY = (
    *("Identity", "Cast", "CastLike", "Abs", "Ceil", "Clip", "Cos", "Erf", "Exp", "Floor", "Gelu", "LeakyRelu", "Log"),
    *("Neg", "Reciprocal", "Relu", "Round", "Sigmoid", "Sign", "Sin", "Softplus", "Sqrt", "Tanh"),
)
_BROADCAST = ("Add", "Div", "Expand", "Max", "Min", "Mod", "Mul", "Pow", "Sub", "Where")


def cut_operands(cut: Cut, node: ir.Node, value: ir.Value, keeps: Keeps) -> Inputs | None:
    """The inputs of a node whose result, a constant, is cut to `keeps`; None where that is not known."""
    if verbs.is_op(node, *_UNARY):
        return _first(cut, node, keeps)
    if verbs.is_op(node, *_BROADCAST):
        return _broadcast(cut, node, value, keeps)
    if verbs.is_op(node, "Transpose"):
        perm = verbs.attribute(node, "perm", tuple(reversed(range(len(cut.flow.shape(value))))))
        return _first(cut, node, {perm[axis]: keep for axis, keep in keeps.items()})
    if verbs.is_op(node, "DequantizeLinear") and not verbs.attribute(node, "block_size", 0):
        return _dequantize(cut, node, value, keeps)
    if verbs.is_op(node, "Reshape", "Squeeze", "Unsqueeze") and (node.op_type != "Reshape" or len(node.inputs) > 1):
        return _reshape(cut, node, value, keeps)
    if verbs.is_op(node, "Gather"):
        return _gathered(cut, node, keeps)
    if verbs.is_op(node, "GatherND") and not verbs.attribute(node, "batch_dims", 0):
        *places, depth = cut.flow.shape(node.inputs[1])
        if any(axis < len(places) for axis in keeps):
            return None
        return _first(cut, node, {axis - len(places) + depth: keep for axis, keep in keeps.items()})
    if verbs.is_op(node, "ConstantOfShape"):
        inputs: Inputs = list(node.inputs)
        return inputs if _sizes(cut, node, 0, keeps, inputs) else None
    return None


def _first(cut: Cut, node: ir.Node, keeps: Keeps) -> Inputs:
    inputs: Inputs = list(node.inputs)
    assert inputs[0] is not None
    inputs[0] = cut.smaller(inputs[0], keeps, node)
    return inputs


def _gathered(cut: Cut, node: ir.Node, keeps: Keeps) -> Inputs:
    """A table with its rows looked up by a constant: columns are cut in the table, what is looked up in the indices."""
    inputs: Inputs = list(node.inputs)
    data, indices = inputs
    assert data is not None
    assert indices is not None
    first = int(verbs.attribute(node, "axis", 0)) % len(cut.flow.shape(data))
    count = len(cut.flow.shape(indices))
    own = {axis if axis < first else axis - count + 1: keep for axis, keep in keeps.items()
           if not first <= axis < first + count}  # fmt: skip
    picked = {axis - first: keep for axis, keep in keeps.items() if first <= axis < first + count}
    inputs[0] = cut.smaller(data, own, node) if own else data
    inputs[1] = cut.smaller(indices, picked, node) if picked else indices
    return inputs


def _sizes(cut: Cut, node: ir.Node, index: int, keeps: Keeps, inputs: Inputs) -> bool:
    """Give input `index`, a constant vector of sizes, the new ones; False where it is computed."""
    value = inputs[index]
    array = verbs.array_of(value)
    if value is None or array is None or not isinstance(node.graph, ir.Graph):
        return False
    sizes = np.array(array, np.int64)
    for axis, keep in keeps.items():
        if sizes[axis] > 1:  # 0 and -1 of a Reshape and 1 of an Expand still hold
            sizes[axis] = len(keep)
    made = inputs[index] = cut.numbers(node.graph, sizes, str(value.name))
    cut.renamed.append((value, made))
    return True


def _broadcast(cut: Cut, node: ir.Node, value: ir.Value, keeps: Keeps) -> Inputs | None:
    inputs: Inputs = list(node.inputs)
    rank = len(cut.flow.shape(value))
    operands = inputs[:1] if node.op_type == "Expand" else inputs
    for index, operand in enumerate(operands):
        assert operand is not None
        shape = cut.flow.shape(operand)
        own = {axis - rank + len(shape): keep for axis, keep in keeps.items()}
        own = {axis: keep for axis, keep in own.items() if axis >= 0 and shape[axis] > 1}
        if own:
            inputs[index] = cut.smaller(operand, own, node)
    if node.op_type != "Expand":
        return inputs
    length = cut.flow.shape(inputs[1])[0]
    own = {axis - rank + length: keep for axis, keep in keeps.items() if axis - rank + length >= 0}
    return inputs if _sizes(cut, node, 1, own, inputs) else None


def _dequantize(cut: Cut, node: ir.Node, value: ir.Value, keeps: Keeps) -> Inputs:
    inputs = _first(cut, node, keeps)
    axis = int(verbs.attribute(node, "axis", 1)) % max(len(cut.flow.shape(value)), 1)
    for index in (1, 2):
        operand = inputs[index] if index < len(inputs) else None
        if operand is not None and cut.flow.shape(operand) not in ((), (1,)) and axis in keeps:
            inputs[index] = cut.smaller(operand, {0: keeps[axis]}, node)
    return inputs


def _reshape(cut: Cut, node: ir.Node, value: ir.Value, keeps: Keeps) -> Inputs | None:
    """Axes that come through whole: as much stands before them as before, and they are as long."""
    before, after = cut.flow.shape(node.inputs[0]), cut.flow.shape(value)
    places = {(math.prod(before[:axis]), size): axis for axis, size in enumerate(before) if size > 1}
    own = {}
    for axis, keep in keeps.items():
        source = places.get((math.prod(after[:axis]), after[axis]))
        if source is None:
            return None
        own[source] = keep
    shape: Inputs = list(node.inputs)
    if node.op_type == "Reshape" and not _sizes(cut, node, 1, keeps, shape):
        return None
    return [*_first(cut, node, own)[:1], *shape[1:]]
