"""The walk over a graph that labels every activation: the first half of the channel graph."""

from __future__ import annotations

import onnx_ir as ir

from onnxslim_core import graph as verbs
from onnxslim_core.errors import UnsupportedModel
from onnxslim_core.measure.shapes import concrete_shapes
from onnxslim_core.ops.atoms import Reason
from onnxslim_core.ops.bodies import captures
from onnxslim_core.ops.flow import Flow, ShapesLike, is_constant_op
from onnxslim_core.ops.table import rule_of
from onnxslim_core.rewrite import Sample

__all__ = ["trace"]

_MOST = 2**24
"""Entries of an axis that are told apart."""


def trace(model: ir.Model, sample: Sample | None, shapes: ShapesLike | None = None, *, widths: bool = False) -> Flow:
    """Label every activation of the main graph and of its bodies.

    Args:
        model: The model; its nodes have to be sorted.
        sample: Feeds whose sizes stand for symbolic dimensions; None where every size is fixed.
        shapes: Concrete shapes, where the caller has them already.
        widths: Whether norms and means over channels may lose some; see `ops.norms`.

    Raises:
        UnsupportedModel: where an input has no size that is known.
    """
    shapes = concrete_shapes(model, sample, bodies_too=True) if shapes is None else shapes
    flow = Flow(model, shapes, verbs.opset_of(model), lambda node: _visit(flow, node), widths)
    graph = model.graph
    flow.constants.update(v for v in graph.initializers.values() if not v.is_graph_input())
    for value in graph.inputs:
        if value not in shapes.shape and value.dtype is not None and value.type is not None:
            raise UnsupportedModel(f"the sizes of input '{value.name}' are not known", "give them with --shape")
        _pin_input(flow, value)
    for node in graph:
        _visit(flow, node)
    for value in graph.outputs:
        labels = flow.labels(value)
        if labels is not None and value in flow.table:
            flow.atoms.pin(labels, Reason(f"output '{value.name}'", "an output of the model keeps its shape"))
    return flow


def _pin_input(flow: Flow, value: ir.Value) -> None:
    shape = flow.shapes.shape.get(value)
    if shape is not None:
        own = flow.atoms.fresh(1)
        flow.atoms.pin(own, Reason(f"input '{value.name}'", "an input of the model keeps its shape"))
        flow.table[value] = own.reshape((1,) * len(shape))


def _visit(flow: Flow, node: ir.Node) -> None:
    _label(flow, node)
    flow.nodes.append(node)


def _label(flow: Flow, node: ir.Node) -> None:
    if verbs.bodies(node):
        _enter(flow, node)
        return
    read = node.inputs[:1] if verbs.is_op(node, "CastLike") else node.inputs
    if is_constant_op(node) and all(v is None or _constant(flow, v) for v in read):
        flow.constants.update(node.outputs)
        if any(v in flow.sized for v in read):
            flow.sized.update(node.outputs)
        return
    if node.outputs and all(v in flow.shapes.value for v in node.outputs):
        flow.constants.update(node.outputs)
        flow.sized.update(node.outputs)
        return
    rule = rule_of(node)
    if rule is None:
        name = f"{node.domain}::{node.op_type}" if node.domain not in verbs.STANDARD else node.op_type
        flow.freeze(node, f"{name} is not understood")
    elif any(v not in flow.shapes.shape for v in (*node.inputs, *node.outputs) if v is not None and _is_read(v)):
        flow.freeze(node, "the shape of what it reads or makes is not known")
    elif (longest := _longest(flow, node)) > _MOST:
        flow.freeze(node, f"an axis of {longest} elements is longer than channels are looked at")
    else:
        flow.atoms.author = verbs.label_of(node)
        flow.ruled.add(node)
        rule.label(flow, node)


def _longest(flow: Flow, node: ir.Node) -> int:
    """Of the axes of all that it reads and makes; a weight without elements may declare any length."""
    found = [flow.shapes.shape.get(v, ()) for v in (*node.inputs, *node.outputs) if v is not None]
    return max((max(shape, default=0) for shape in found), default=0)


def _enter(flow: Flow, node: ir.Node) -> None:
    """Walk the bodies of a node; of one that is not understood all stays."""
    rule = rule_of(node)
    if rule is not None:
        flow.atoms.author = verbs.label_of(node)
        flow.ruled.add(node)
        rule.label(flow, node)
        return
    for body in verbs.bodies(node):
        flow.freeze(node, "its body reads it", [v for v in captures(body) if v in flow.table])


def _is_read(value: ir.Value) -> bool:
    return value.producer() is None or bool(value.uses()) or value.is_graph_output()


def _constant(flow: Flow, value: ir.Value) -> bool:
    return value in flow.constants or value in flow.shapes.value
