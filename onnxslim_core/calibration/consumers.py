"""Linear nodes as regression problems: their weights by rows, what they should answer, and how to write weights back.

A consumer is a Conv without groups, a Gemm, or a MatMul with a constant matrix on the right. Its weights are (d, n):
d = channels * taps in the layout of `rows.input_rows`, n output channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxslim_core import graph as verbs
from onnxslim_core.channels.groups import ChannelGraph
from onnxslim_core.ops.flow import Sink

__all__ = ["Consumer", "consumers_of", "is_linear", "kept_outputs", "put_weights", "target_of", "weights_of"]

Floats = NDArray[np.float64]


def is_linear(node: ir.Node) -> bool:
    """True for a node whose weights can be solved for."""
    if not verbs.is_op(node, "Conv", "Gemm", "MatMul") or len(node.inputs) < 2:
        return False
    array = verbs.array_of(node.inputs[1])
    if array is None or array.dtype not in (np.float32, np.float64):
        return False
    if node.op_type == "Conv":
        return int(verbs.attribute(node, "group", 1)) == 1
    return array.ndim == 2 and not verbs.attribute(node, "transA", 0)


def weights_of(node: ir.Node) -> Floats:
    """The weights of a linear node as it uses them; (d, n), float64."""
    array = np.asarray(verbs.array_of(node.inputs[1]), np.float64)
    if node.op_type == "Conv":
        return array.reshape(array.shape[0], -1).T
    if node.op_type == "Gemm":
        array = array * float(verbs.attribute(node, "alpha", 1.0))
        return array.T if verbs.attribute(node, "transB", 0) else array
    return array


def put_weights(model: ir.Model, node: ir.Node, weights: Floats, bias: Floats) -> None:
    """Let a linear node use these weights (d, n) and this bias (n,), as new constants of its own."""
    names, graph = verbs.Names(model), node.graph
    old = verbs.array_of(node.inputs[1])
    assert isinstance(graph, ir.Graph) and old is not None
    layout = weights if node.op_type == "MatMul" else weights.T
    if node.op_type == "Gemm":
        layout = weights.T if verbs.attribute(node, "transB", 0) else weights
        verbs.set_attribute(node, "alpha", None)
        verbs.set_attribute(node, "beta", None)
    made = verbs.add_constant(graph, names, layout.reshape(old.shape).astype(old.dtype), str(node.inputs[1].name))  # type: ignore[union-attr]
    _swap(node, 1, made)
    shift = verbs.add_constant(graph, names, bias.astype(old.dtype), f"{node.name or node.op_type}/bias")
    if node.op_type != "MatMul":
        _swap(node, 2, shift)
        return
    add, value = ir.node("Add", [node.outputs[0], shift]), node.outputs[0]
    add.name, add.outputs[0].name = names.new(f"{node.name}/Add"), names.new(f"{value.name}/shifted")
    add.outputs[0].type = value.type
    graph.insert_after(node, add)
    verbs.replace(value, add.outputs[0], names)
    verbs.replace_input(add, 0, value)


def _swap(node: ir.Node, index: int, made: ir.Value) -> None:
    """Read another constant; where nobody else reads the old one it goes, and the new one takes its name."""
    old = node.inputs[index] if index < len(node.inputs) else None
    verbs.replace_input(node, index, made)
    if old is None or old.producer() is not None or old.uses() or old.is_graph_output() or old.is_graph_input():
        return
    if not isinstance(old.graph, ir.Graph) or old.graph is not made.graph:
        return
    graph, name = old.graph, str(old.name)
    graph.initializers.pop(name, None)
    graph.initializers.pop(str(made.name), None)
    made.name = name
    graph.register_initializer(made)


def target_of(node: ir.Node) -> tuple[ir.Value, ir.Value | None]:
    """What a consumer should answer for: its own output, or the sum it is added into, with the other summand.

    In a residual network the last layer of a block so corrects the whole stream (He et al., ICCV 2017, 3.3).
    """
    value = node.outputs[0]
    readers, is_output = verbs.users_of(value)
    if is_output or len(readers) != 1 or not verbs.is_op(readers[0][0], "Add") or node.op_type == "MatMul":
        return value, None
    add, index = readers[0]
    other = add.inputs[1 - index]
    if other is None or other is value or other.producer() is None or verbs.array_of(other) is not None:
        return value, None
    return add.outputs[0], other


@dataclass(frozen=True, slots=True, eq=False)
class Consumer:
    """A linear node and the classes of its input channels.

    Attributes:
        node: The node.
        classes: Class of each input channel, (m,).
        taps: Weights per input channel and output.
    """

    node: ir.Node
    classes: NDArray[np.int32]
    taps: int

    def columns(self, root: int) -> NDArray[np.int64]:
        """Which of the d rows of the weights belong to a class."""
        places = np.flatnonzero(self.classes == root)
        return (places[:, None] * self.taps + np.arange(self.taps)).reshape(-1)


def consumers_of(channels: ChannelGraph) -> dict[ir.Node, Consumer]:
    """All sums over channels that can be solved for, by node; in the order of the graph."""
    found: dict[ir.Node, Consumer] = {}
    for sink in channels.sinks:
        if sink.weight == 1 and sink.index == 0 and len(sink.labels) == 1 and is_linear(sink.node):
            found[sink.node] = Consumer(sink.node, channels.of(sink.labels[0]), _taps(sink))
    return found


def _taps(sink: Sink) -> int:
    array = verbs.array_of(sink.node.inputs[1])
    return 1 if array is None or sink.node.op_type != "Conv" else int(np.prod(array.shape[2:]))


def kept_outputs(channels: ChannelGraph, gone: NDArray[np.bool_]) -> Mapping[str, NDArray[np.int64]]:
    """For every linear node, by name, which of its output channels stay once these atoms are gone."""
    kept: dict[str, NDArray[np.int64]] = {}
    for node in channels.flow.model.graph:
        labels = channels.flow.table.get(node.outputs[0]) if node.outputs else None
        if labels is None or labels.size == 1 or not is_linear(node):
            continue
        axis = 1 if node.op_type == "Conv" else labels.ndim - 1
        if labels.shape[axis] == labels.size:
            kept[str(node.name)] = np.flatnonzero(~gone[labels.reshape(-1)])
    return kept
