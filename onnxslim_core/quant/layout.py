"""Which nodes work on 8-bit numbers, once it is said which linear nodes do.

The tables say what onnxruntime's CPU kernels can do with 8 bits, nothing more; which nodes should is measured
(`quant.mixed`). Around the linear nodes that are chosen, everything that lies *between* them follows: a Clip left in
float between two int8 convolutions costs two conversions, and its range is then taken where values are still wide.

    LINEAR  weights as int8 per output channel
    SAME    moves numbers only, so what goes out lies on the grid of what comes in
    OWN     one input, a grid of its own for what comes out
    JOIN    several inputs; one of them at least has to come from an 8-bit node
    BOUND   Relu and Clip: behind an 8-bit node they vanish into the range of its grid
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxslim_core import graph as verbs
from onnxslim_core.quant.ranges import Spread

__all__ = ["BETWEEN", "LINEAR", "Layout", "activations", "channel_axis", "is_quantized", "lay_out", "linear_nodes"]

LINEAR = ("Conv", "Gemm", "MatMul")
SAME = ("Flatten", "MaxPool", "Pad", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")
BOUND = ("Relu", "Clip")
OWN = ("AveragePool", "GlobalAveragePool", "LeakyRelu", "Sigmoid")
JOIN = ("Add", "Concat", "Mul")
BETWEEN = (*SAME, *BOUND, *OWN, *JOIN)
_INTEGER = (
    "QuantizeLinear",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "ConvInteger",
    "MatMulInteger",
    "QLinearConv",
    "QLinearMatMul",
)


@dataclass(frozen=True, slots=True)
class Layout:
    """Where numbers have 8 bits.

    Attributes:
        nodes: The 8-bit nodes.
        rounded: Values that are brought onto a grid, in the order of the graph.
        source: Values that share the grid of another one: moved, but not computed anew.
        inside: Results that stay as they are since the bound behind them is what the grid is for.
    """

    nodes: frozenset[ir.Node]
    rounded: tuple[ir.Value, ...]
    source: Mapping[ir.Value, ir.Value]
    inside: frozenset[ir.Value]

    def root(self, value: ir.Value) -> ir.Value:
        """The value whose range makes the grid of this one."""
        while value in self.source:
            value = self.source[value]
        return value


def is_quantized(model: ir.Model) -> bool:
    """True where a model already works on few bits."""
    return any(node.op_type in _INTEGER or "QLinear" in node.op_type for node in verbs.all_nodes(model.graph))


def channel_axis(node: ir.Node) -> int:
    """The axis of a linear node's weight that counts output channels."""
    if node.op_type == "Gemm":
        return 0 if verbs.attribute(node, "transB", 0) else 1
    return 0 if node.op_type == "Conv" else 1


def linear_nodes(model: ir.Model) -> list[ir.Node]:
    """Nodes of the main graph whose constant float32 weights can be int8, in order."""
    return [node for node in model.graph if _is_linear(node)]


def _is_linear(node: ir.Node) -> bool:
    if not verbs.is_op(node, *LINEAR) or len(node.inputs) < 2 or node.inputs[0] is None:
        return False
    array = verbs.array_of(node.inputs[1])
    if array is None or array.dtype != np.float32 or not np.isfinite(array).all() or not array.size:
        return False
    if verbs.array_of(node.inputs[0]) is not None:
        return False
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    known = verbs.array_of(bias)
    if bias is not None and (known is None or not np.isfinite(known).all()):
        return False
    if node.op_type == "Conv":
        return array.ndim in (3, 4)
    if node.op_type == "MatMul":
        return array.ndim == 2
    plain = not verbs.attribute(node, "transA", 0) and verbs.attribute(node, "alpha", 1.0) == 1.0
    fits = known is None or (
        known.shape == (array.shape[channel_axis(node)],) and verbs.attribute(node, "beta", 1.0) == 1.0
    )
    return array.ndim == 2 and plain and fits


def activations(node: ir.Node) -> list[int]:
    """Which inputs of a node are numbers that flow, and not weights, sizes or bounds."""
    if node.op_type in JOIN:
        return [index for index, value in enumerate(node.inputs) if value is not None]
    return [0]


def lay_out(
    model: ir.Model,
    linear: Collection[ir.Node],
    spreads: Mapping[ir.Value, Spread],
    left: Collection[ir.Node] = (),
    read: Collection[ir.Value] = (),
) -> Layout:
    """Let everything between the chosen linear nodes follow.

    Args:
        model: The float model.
        linear: Linear nodes that are to work on int8.
        spreads: What was seen of the activations; what was not seen stays in float.
        left: Nodes that stay in float whatever lies around them.
        read: Values that some 8-bit node reads that is not in the model: it is a part of another one.
    """
    kept = set(left)
    nodes = {n for n in linear if _seen(n.inputs[0], spreads) and _seen(n.outputs[0], spreads)}
    chosen = set(nodes)
    between = [n for n in model.graph if n not in kept and _can_follow(n, spreads)]
    nodes.update(between)
    waiting = True
    while waiting:  # the greatest set in which every node has a reason to be there
        waiting = False
        for node in [*between, *reversed(between)]:
            if node in nodes and not (_belongs(node, nodes, chosen, read) and _is_worth_it(node, nodes, spreads)):
                nodes.discard(node)
                waiting = True
    return _values(model, nodes, read)


def _seen(value: ir.Value | None, spreads: Mapping[ir.Value, Spread]) -> bool:
    spread = spreads.get(value) if value is not None else None
    return spread is not None and spread.is_float and bool(np.isfinite(spread.low) and np.isfinite(spread.high))


def _can_follow(node: ir.Node, spreads: Mapping[ir.Value, Spread]) -> bool:
    if not verbs.is_op(node, *BETWEEN) or sum(bool(v.uses()) or v.is_graph_output() for v in node.outputs) != 1:
        return False
    if not _seen(node.outputs[0], spreads):
        return False
    given = [node.inputs[index] for index in activations(node)]
    if not all(_seen(v, spreads) or verbs.array_of(v) is not None for v in given):
        return False
    if node.op_type == "MaxPool" and len(node.outputs) > 1:
        return False
    if node.op_type == "Pad" and not _pads_zeros(node):
        return False
    return any(verbs.array_of(v) is None for v in given)


def _pads_zeros(node: ir.Node) -> bool:
    """Zero is on every grid, other constants need not be."""
    value = node.inputs[2] if len(node.inputs) > 2 else None
    known = verbs.array_of(value)
    constant = verbs.attribute(node, "mode", "constant") == "constant"
    return constant and (value is None or (known is not None and not known.any()))


def _belongs(
    node: ir.Node, nodes: Collection[ir.Node], chosen: Collection[ir.Node], read: Collection[ir.Value]
) -> bool:
    made = [v.producer() in nodes for i in activations(node) if (v := node.inputs[i]) is not None and v.producer()]
    if not any(made):
        return False
    first = node.inputs[0]
    maker = first.producer() if first is not None else None
    if node.op_type in BOUND and maker is not None and maker in chosen:
        return True
    return node.outputs[0] in read or any(user in nodes for user, _ in verbs.users_of(node.outputs[0])[0])


def _is_worth_it(node: ir.Node, nodes: Collection[ir.Node], spreads: Mapping[ir.Value, Spread]) -> bool:
    """False for a product with a factor of its own size that was computed in float (x * HardSigmoid(x), say).

    Bringing that factor to 8 bits takes as long as bringing the product there, and rounds once more.
    """
    out = math.prod(spreads[node.outputs[0]].shape)
    return node.op_type != "Mul" or not any(
        v.producer() not in nodes and v in spreads and math.prod(spreads[v].shape) >= out
        for v in (node.inputs[index] for index in activations(node))
        if v is not None and verbs.array_of(v) is None
    )


def _values(model: ir.Model, nodes: Collection[ir.Node], read: Collection[ir.Value]) -> Layout:
    """The values on grids, given the nodes."""
    inside, source = set[ir.Value](), dict[ir.Value, ir.Value]()
    rounded: dict[ir.Value, None] = {}
    for node in model.graph:
        if node not in nodes:
            continue
        for index in activations(node):
            value = node.inputs[index]
            if value is not None and value not in inside:
                rounded[value] = None
        out = node.outputs[0]
        users, is_output = verbs.users_of(out)
        alone = len(users) == 1 and not is_output
        if alone and users[0][0] in nodes and verbs.is_op(users[0][0], *BOUND) and node.op_type not in SAME:
            inside.add(out)
            continue
        if node.op_type in SAME:
            source[out] = node.inputs[0]  # type: ignore[assignment]
        floats = node.op_type in ("Gemm", "MatMul") and out not in read and not any(user in nodes for user, _ in users)
        if not floats:  # these two have kernels that answer in float
            rounded[out] = None
    return Layout(frozenset(nodes), tuple(rounded), source, frozenset(inside))
