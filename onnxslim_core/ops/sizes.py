"""Operators that speak about sizes: what they compute are no channels, and it must not change when channels go.

After a removal, Shape of a smaller tensor is scaled back to the old sizes (`Cut.scaled`), so that shape arithmetic goes
on as before, and every Reshape, Expand or Resize at its end is told its own new sizes. Where two operators at the two
ends of a chain undo each other, onnxruntime folds nothing but saves nothing either: they are a few integers.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxslim_core import graph as verbs
from onnxslim_core.errors import InternalError
from onnxslim_core.ops.cut import Cut
from onnxslim_core.ops.flow import Flow, Rule

__all__ = ["RULES"]


def _label(flow: Flow, node: ir.Node) -> None:
    flow.plain(node)


def _cut_shape(cut: Cut, node: ir.Node) -> None:
    keeps, x = cut.keeps(node.inputs[0]), node.inputs[0]
    if not keeps or x is None:
        return
    shape = cut.flow.shape(x)
    start, end, _ = slice(verbs.attribute(node, "start", 0), verbs.attribute(node, "end")).indices(len(shape))
    scale = {axis - start: (shape[axis], len(keeps[axis])) for axis in range(start, end) if axis in keeps}
    readers = verbs.users_of(node.outputs[0])[0]
    if not scale or not readers:
        return
    restored = cut.scaled(node.outputs[0], scale, node, before=False)
    cut.flow.restored[restored] = node.outputs[0]
    for reader, index in readers:
        verbs.replace_input(reader, index, restored)


def _cut_size(cut: Cut, node: ir.Node) -> None:
    if cut.keeps(node.inputs[0]):
        graph = node.graph
        assert isinstance(graph, ir.Graph)
        raise InternalError("the number of elements of a cut tensor is read", verbs.label_of(node))


def _label_size(flow: Flow, node: ir.Node) -> None:
    flow.freeze(node, "it counts the elements of its input")


RULES = {
    "Shape": Rule(_label, _cut_shape),
    "Size": Rule(_label_size, _cut_size),
    **{op: Rule(_label) for op in ("ConstantOfShape", "Range", "EyeLike", "Constant")},
}
