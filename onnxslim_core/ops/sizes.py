"""Operators that speak about sizes: what they compute are no channels, and it must not change when channels go.

After a removal, Shape of a smaller tensor is scaled back to the old sizes (`Cut.scaled`), so that shape arithmetic goes
on as before, and every Reshape, Expand or Resize at its end is told its own new sizes.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from onnxslim_core import graph as verbs
from onnxslim_core.ops.cut import Cut
from onnxslim_core.ops.flow import Flow, Rule

__all__ = ["RULES"]


def _label(flow: Flow, node: ir.Node) -> None:
    flow.plain(node)


def _cut_shape(cut: Cut, node: ir.Node) -> None:
    keeps, shape = cut.keeps(node.inputs[0]), cut.flow.shape(node.inputs[0])
    start, end, _ = slice(verbs.attribute(node, "start", 0), verbs.attribute(node, "end")).indices(len(shape))
    _restore(cut, node, {axis - start: (shape[axis], len(keeps[axis])) for axis in range(start, end) if axis in keeps})


def _cut_size(cut: Cut, node: ir.Node) -> None:
    keeps, shape = cut.keeps(node.inputs[0]), cut.flow.shape(node.inputs[0])
    if keeps:
        before = math.prod(shape[axis] for axis in keeps)
        _restore(cut, node, {0: (before, math.prod(len(keep) for keep in keeps.values()))})


def _restore(cut: Cut, node: ir.Node, scale: dict[int, tuple[int, int]]) -> None:
    """Let everyone who reads the sizes read what they were before."""
    value = node.outputs[0]
    readers, is_output = verbs.users_of(value)
    if not scale or not (readers or is_output):
        return
    restored = cut.scaled(value, scale, node, before=False)
    cut.flow.restored[restored] = value
    for reader, index in readers:
        verbs.replace_input(reader, index, restored)
    if is_output:
        ((first, index),) = verbs.users_of(value)[0]
        verbs.replace(value, restored, cut.names)
        verbs.replace_input(first, index, value)


RULES = {
    "Shape": Rule(_label, _cut_shape),
    "Size": Rule(_label, _cut_size),
    **{op: Rule(_label) for op in ("ConstantOfShape", "Range", "EyeLike", "Constant")},
}
