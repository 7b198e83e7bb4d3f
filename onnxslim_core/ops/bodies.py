"""If, Loop and Scan: the walk goes through their bodies, with what they capture labelled as it is outside.

What an If answers has the channels of both branches. What a Loop or Scan hands to its next round has the same channels
before, within and after it; they are looked for on one axis, the last, or the second of four and more. What is handed
in otherwise stays. Multiply-adds inside a body are not counted.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from onnxslim_core import graph as verbs
from onnxslim_core.graph import all_nodes, attribute, bodies, is_op, label_of
from onnxslim_core.ops.atoms import Labels, Reason
from onnxslim_core.ops.cut import Cut
from onnxslim_core.ops.flow import Flow, Rule
from onnxslim_core.ops.join import join
from onnxslim_core.ops.recurrent import is_zero

__all__ = ["RULES", "captures", "carried", "handed", "scanned"]

Handed = tuple[tuple[int, ...] | None, ir.DataType | None]


def captures(body: ir.Graph) -> frozenset[ir.Value]:
    """What a body, or one inside it, reads of the graphs around it."""
    inner = all_nodes(body)
    own = {value for node in inner for value in node.outputs} | set(body.inputs) | set(body.initializers.values())
    for node in inner:
        for graph in bodies(node):
            own |= {*graph.inputs, *graph.initializers.values()}
    read = [value for node in inner for value in node.inputs] + list(body.outputs)
    return frozenset(value for value in read if value is not None and value not in own)


def handed(
    node: ir.Node, body: ir.Graph, shapes: Mapping[ir.Value, tuple[int, ...]], dtypes: Mapping[ir.Value, ir.DataType]
) -> dict[ir.Value, Handed]:
    """Shapes and element types of the inputs of a body, from what its node reads."""
    sizes = [None if value is None else shapes.get(value) for value in node.inputs]
    kinds = [None if value is None else dtypes.get(value) for value in node.inputs]
    if is_op(node, "Loop"):  # trip count and condition are read, round number and condition handed in
        sizes, kinds = [(), (), *sizes[2:]], [ir.DataType.INT64, ir.DataType.BOOL, *kinds[2:]]
    for index, axis in scanned(node).items():
        shape = sizes[index]
        sizes[index] = None if shape is None else tuple(np.delete(shape, axis).tolist())
    return dict(zip(body.inputs, zip(sizes, kinds, strict=True), strict=False))


def scanned(node: ir.Node) -> dict[int, int]:
    """For each input of a Scan that is handed in piece by piece the axis along which it is."""
    count = int(attribute(node, "num_scan_inputs", 0)) if is_op(node, "Scan") else 0
    first = len(node.inputs) - count
    return dict(enumerate(attribute(node, "scan_input_axes", (0,) * count), first))


def carried(node: ir.Node, body: ir.Graph) -> list[tuple[ir.Value, ir.Value]]:
    """What a body hands to its next round: (input, output)."""
    if is_op(node, "Loop"):
        count = len(body.inputs) - 2
        return list(zip(body.inputs[2:], body.outputs[1 : 1 + count], strict=True))
    count = len(body.inputs) - len(scanned(node)) if is_op(node, "Scan") else 0
    return list(zip(body.inputs[:count], body.outputs[:count], strict=True))


# ---------------------------------------------------------------------- labels
def _axis(rank: int) -> int:
    """Where the channels of a state are."""
    return rank - 1 if rank < 4 else 1


def _states(node: ir.Node, body: ir.Graph) -> dict[int, tuple[ir.Value, ir.Value]]:
    """For each input of a Loop or Scan that is a state: (input, output) of the body."""
    return dict(enumerate(carried(node, body), 2 if is_op(node, "Loop") else 0))


def _pin(flow: Flow, node: ir.Node, value: ir.Value | None, text: str) -> None:
    if (labels := flow.labels(value)) is not None and value in flow.table:
        flow.atoms.pin(labels, Reason(label_of(node), text))


def _pinned(flow: Flow, node: ir.Node, value: ir.Value, text: str) -> None:
    """A value that stays."""
    if (shape := flow.shapes.shape.get(value)) is not None:
        own = flow.atoms.fresh(1)
        flow.atoms.pin(own, Reason(label_of(node), text))
        flow.table[value] = own.reshape((1,) * len(shape))


def _walk(flow: Flow, body: ir.Graph) -> None:
    flow.constants.update(value for value in body.initializers.values() if not value.is_graph_input())
    for inner in body:
        flow.visit(inner)


def _label_if(flow: Flow, node: ir.Node) -> None:
    branches = bodies(node)
    _pin(flow, node, node.inputs[0], "it decides by it")
    for body in branches:
        _walk(flow, body)
    for value, *results in zip(node.outputs, *(body.outputs for body in branches), strict=True):
        labels = _common(flow, value, results)
        if labels is not None:
            flow.set(value, labels)
            continue
        for result in results:
            _pin(flow, node, result, "its branches do not answer alike")
        _pinned(flow, node, value, "its branches do not answer alike")


def _common(flow: Flow, value: ir.Value, results: list[ir.Value]) -> Labels | None:
    """Labels that both branches agree on; None where one answers with a constant or another shape."""
    shape, labels = flow.shapes.shape.get(value), [flow.labels(result) for result in results]
    if shape is None or any(flow.shapes.shape.get(result) != shape for result in results):
        return None
    found: Labels | None = None
    for each in labels:
        if each is None:
            return None
        found = each if found is None else join(flow.atoms, found, shape, each, shape)[0]
    return found


def _label_loop(flow: Flow, node: ir.Node) -> None:
    (body,) = bodies(node)
    states = {index: labels for index in _states(node, body) if (labels := _state(flow, node, body, index)) is not None}
    pieces = scanned(node)
    for index, value in enumerate(node.inputs):
        if index not in states and index not in pieces:
            _pin(flow, node, value, "its body is handed it")
    for index, value in enumerate(body.inputs):
        if index in states:
            flow.set(value, states[index])
        elif index in pieces and (labels := flow.labels(node.inputs[index])) is not None:
            axis = pieces[index] % labels.ndim
            flow.set(value, flow.atoms.mix(labels, [axis]).squeeze(axis))
        else:
            _pinned(flow, node, value, "its body is handed it")
    _walk(flow, body)
    _hand_on(flow, node, body, states)


def _state(flow: Flow, node: ir.Node, body: ir.Graph, index: int) -> Labels | None:
    """Fresh labels of a state, tied to what it is at first; None for what is no tensor or changes its shape."""
    inner, first = _states(node, body)[index][0], node.inputs[index]
    shape = flow.shapes.shape.get(inner)
    if not shape or first is None or flow.shapes.shape.get(first) != shape or shape[_axis(len(shape))] < 2:
        return None
    axis = _axis(len(shape))
    vector = flow.atoms.fresh(shape[axis])
    labels = vector.reshape([-1 if i == axis else 1 for i in range(len(shape))])
    if flow.is_constant(first):
        flow.use(node, index, axis, vector, "carry")
    if flow.is_constant(first) or is_zero(flow.known, first):
        return labels
    outside = flow.labels(first)
    assert outside is not None
    return join(flow.atoms, labels, shape, outside, shape)[0]


def _hand_on(flow: Flow, node: ir.Node, body: ir.Graph, states: Mapping[int, Labels]) -> None:
    """Tie what comes out of a round to what goes into the next, and label what the node answers."""
    ties = list(_states(node, body).items())
    first = len(body.outputs) - len(node.outputs)  # a Loop's body has its condition in front
    for result in body.outputs[:first]:
        _pin(flow, node, result, "it decides by it")
    for place, value in enumerate(node.outputs):
        result = body.outputs[first + place]
        if place >= len(ties):
            _stack(flow, node, place - len(ties), value, result)
            continue
        index, (inner, _) = ties[place]
        labels, own, shape = states.get(index), flow.labels(result), flow.shapes.shape.get(result)
        if labels is not None and own is not None and shape is not None:
            flow.set(value, join(flow.atoms, labels, shape, own, shape)[0])
            continue
        for each in (inner, result):
            _pin(flow, node, each, "its body hands it on")
        _pinned(flow, node, value, "its body hands it on")


def _stack(flow: Flow, node: ir.Node, number: int, value: ir.Value, result: ir.Value) -> None:
    """What every round adds to: the same channels beside a new axis."""
    labels, shape = flow.labels(result), flow.shapes.shape.get(value)
    if labels is None or shape is None or len(shape) != labels.ndim + 1:
        _pin(flow, node, result, "its body stacks it")
        _pinned(flow, node, value, "its body stacks it")
        return
    axes = attribute(node, "scan_output_axes", ())
    flow.set(value, np.expand_dims(labels, int(axes[number]) % len(shape) if number < len(axes) else 0))


def _cut_loop(cut: Cut, node: ir.Node) -> None:
    """A first state that is constant, or zeros of a computed number, has no channels of its own to follow."""
    (body,) = bodies(node)
    for index, (inner, _) in _states(node, body).items():
        keeps, first = cut.keeps(inner), node.inputs[index]
        if cut.flow.is_constant(first):
            cut.constant(node, index, keeps)
        elif keeps and not cut.keeps(first):
            for axis, keep in keeps.items():
                places = cut.numbers(cut.flow.model.graph, keep, f"{node.name}/kept")
                gather = verbs.add_node(cut.names, "Gather", [first, places], {"axis": axis}, before=node)
                first = gather.outputs[0]
            verbs.replace_input(node, index, first)


RULES = {
    "If": Rule(_label_if),
    "Loop": Rule(_label_loop, _cut_loop),
    "Scan": Rule(_label_loop, _cut_loop),
}
