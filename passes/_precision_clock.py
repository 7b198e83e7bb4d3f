"""What layers take in int8, each by itself, beside what they take in float, and what it costs to change between them.

A layer is timed as a part of its own, together with what follows it into int8 (bounds, sums, pools), in float and in
int8. What the call itself takes is measured on a part that does nothing, in turns with the others, and taken off. A
conversion is timed alone, at the size of what is converted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
import onnx_ir as ir

from onnxslim_core import graph as verbs
from onnxslim_core.errors import MeasureError
from onnxslim_core.graph import label_of
from onnxslim_core.measure.pieces import Table, structure
from onnxslim_core.measure.shapes import concrete_shapes
from onnxslim_core.ops.flow import ShapesLike
from onnxslim_core.quant.layout import BETWEEN
from onnxslim_core.rewrite import Context, Sample
from onnxslim_core.search.plan import Costs, Term, Unit, cheapest
from onnxslim_core.search.segments import Segment, part_of

from ._precision import Narrow, Precision, channels_last, narrow_part, rows_of

__all__ = ["INT8", "Edge", "between", "edges_of", "fastest_layers", "in_both", "seconds_of"]

INT8 = 1
"""The column of shares that terms in int8 read."""
_FOLLOWS = (*BETWEEN, "BatchNormalization", "Div")
"""What lies between layers in int8; the last two are gone once a model is prepared for that."""
_LEAST = 0.1
"""Share of what was measured that is left once the call itself is taken off, at least."""


@dataclass(frozen=True, slots=True, eq=False)
class Edge:
    """A tensor between two layers, or between a layer and what always works in float.

    Attributes:
        source: The layer that makes it; None for what works in float.
        reader: The layer that reads it; None for what works in float.
        seconds: To bring it to 8 bits, and back.
    """

    source: ir.Node | None
    reader: ir.Node | None
    seconds: tuple[float, float]


def seconds_of(
    model: ir.Model, nodes: Sequence[ir.Node], shapes: ShapesLike, table: Table, context: Context
) -> dict[ir.Node, tuple[float, float]]:
    """Seconds of every layer in float and in int8, the call itself taken off; what cannot be timed alone is missing.

    Args:
        model: Float.
        nodes: Linear nodes.
        shapes: Of its values.
        table: Where times are kept.
        context: For the threads.
    """
    found: dict[ir.Node, tuple[float, float]] = {}
    followers = _followers(model, nodes)
    known: dict[str, tuple[float, float] | None] = {}
    for number, node in enumerate(nodes):
        context.progress("timing in int8", number, len(nodes))
        segment = part_of(model, shapes, followers[node])
        if segment is None:
            continue
        key = structure(segment.proto)
        if key not in known:
            narrow = narrow_part(segment, (), context)
            known[key] = None if narrow is None else _tried(table, segment, narrow)
        if (pair := known[key]) is not None:
            found[node] = pair
    return found


def _followers(model: ir.Model, nodes: Sequence[ir.Node]) -> dict[ir.Node, list[ir.Node]]:
    """Each layer with the nodes between layers that work on what it made; a sum goes with the last that it adds."""
    able, place = set(nodes), {node: number for number, node in enumerate(model.graph)}
    found: dict[ir.Node, list[ir.Node]] = {node: [node] for node in nodes}
    for node in model.graph:
        if node not in able and verbs.is_op(node, *_FOLLOWS):
            source = _source(node, able, place)
            if source is not None:
                found[source].append(node)
    return found


def _tried(table: Table, segment: Segment, narrow: Narrow) -> tuple[float, float] | None:
    try:
        return _pair(table, segment.proto, narrow.protos[0], narrow.sample)
    except MeasureError:
        return None


def _pair(table: Table, wide: onnx.ModelProto, narrow: onnx.ModelProto, sample: Sample) -> tuple[float, float]:
    """Seconds of two parts, less those of a call that does nothing, made in turns with theirs."""
    nothing = _one_node("Identity", "nothing", (1,), ir.DataType.FLOAT, ir.DataType.FLOAT)
    full, share, call = table.left(wide, [narrow, nothing], {**sample, "nothing": np.zeros(1, np.float32)})
    return full * max(1.0 - call, _LEAST), full * max(share - call, _LEAST * share)


def _one_node(op_type: str, name: str, shape: Sequence[int], into: ir.DataType, out: ir.DataType) -> onnx.ModelProto:
    """A part of one node; a conversion has a grid of 256 steps, and its 8-bit side has the channels last."""
    x = ir.Value(name=name, type=ir.TensorType(into), shape=ir.Shape(shape))
    node = ir.node(op_type, [x], name="only")
    node.outputs[0].name, node.outputs[0].type = "y", ir.TensorType(out)
    graph = ir.Graph([x], node.outputs, nodes=[node], opset_imports={"": 13}, name="part")
    model = ir.Model(graph, ir_version=8)
    if op_type == "Identity":
        return ir.to_proto(model)
    names = verbs.Names(model)
    verbs.replace_input(node, 1, verbs.add_constant(graph, names, np.asarray(1 / 32, np.float32), "scale"))
    verbs.replace_input(node, 2, verbs.add_constant(graph, names, np.asarray(128, np.uint8), "zero_point"))
    order = channels_last(len(shape))
    if len(shape) > 2 and op_type == "QuantizeLinear":
        turned = ir.node("Transpose", [node.outputs[0]], {"perm": order}, name="turned")
        turned.outputs[0].name, turned.outputs[0].type = "y_last", ir.TensorType(out)
        graph.insert_after(node, turned)
        graph.outputs[0] = turned.outputs[0]
    elif len(shape) > 2:
        x.shape = ir.Shape([shape[axis] for axis in order])
        turned = verbs.add_node(names, "Transpose", [x], {"perm": np.argsort(order).tolist()}, before=node)
        verbs.replace_input(node, 0, turned.outputs[0])
    return ir.to_proto(model)


def edges_of(
    model: ir.Model, nodes: Sequence[ir.Node], shapes: ShapesLike, table: Table, context: Context
) -> list[Edge]:
    """The tensors on which a layer and the one before it have to agree, with what it costs where they do not.

    Where several layers make a tensor together (a sum), the last of them stands for all. What does not follow an int8
    layer (`quant.layout`) works in float.

    Args:
        model: Float.
        nodes: The layers that can be int8.
        shapes: Of its values.
        table: Where times are kept.
        context: For the record of progress.
    """
    able = set(nodes)
    place = {node: number for number, node in enumerate(model.graph)}
    found: list[Edge] = []
    read: set[ir.Node] = set()
    for number, node in enumerate(nodes):
        context.progress("timing conversions", number, len(nodes))
        source = _source(node, able, place)
        if source is not None:
            read.add(source)
        shape = shapes.shape.get(node.inputs[0]) if node.inputs[0] is not None else None
        if shape:
            found.append(Edge(source, node, _conversion(shape, table)))
    for node in nodes:
        shape = shapes.shape.get(node.outputs[0])
        if node not in read and shape and node.op_type == "Conv":  # the products answer in float by themselves
            found.append(Edge(node, None, _conversion(shape, table)))
    return found


def _source(node: ir.Node, able: set[ir.Node], place: dict[ir.Node, int]) -> ir.Node | None:
    """The last layer that makes what a layer reads, past everything that would follow it into int8."""
    pending, seen = [node], {node}
    while pending:
        pending.sort(key=place.__getitem__)
        at = pending.pop()
        if at in able and at is not node:
            return at
        if at is not node and not verbs.is_op(at, *_FOLLOWS):
            continue
        makers = {maker for v in at.inputs if v is not None and (maker := v.producer()) is not None}
        pending += [maker for maker in makers - seen if maker in place]
        seen |= makers
    return None


def _conversion(shape: Sequence[int], table: Table) -> tuple[float, float]:
    down = _one_node("QuantizeLinear", "x", shape, ir.DataType.FLOAT, ir.DataType.UINT8)
    up = _one_node("DequantizeLinear", "q", shape, ir.DataType.UINT8, ir.DataType.FLOAT)
    last = [shape[axis] for axis in channels_last(len(shape))]
    values = np.random.default_rng(0).standard_normal(tuple(shape)).astype(np.float32)
    return _pair(table, down, up, {"x": values, "q": np.full(last, 100, np.uint8)})


def in_both(term: Term, unit: int | None, seconds: tuple[float, float] | None) -> list[Term]:
    """A layer's term; where the layer can be int8, one for either, in what it takes by itself.

    Args:
        term: In float, without the choice.
        unit: Of the choice; None where there is none.
        seconds: In float and in int8; None where that is not known: then int8 saves nothing.
    """
    if unit is None:
        return [term]
    factors = (*term.factors, {unit: 1.0})
    wide, narrow = seconds or (term.base, term.base)
    columns = (INT8,) * len(factors)
    return [replace(term, base=wide, factors=factors), replace(term, base=narrow, factors=factors, columns=columns)]


def between(edges: Sequence[Edge], precise: Mapping[ir.Node, int], within: Mapping[ir.Node, int]) -> list[Term]:
    """What it costs where neighbours work on different numbers; nothing where one of them is in a block that goes.

    Args:
        edges: From `edges_of`.
        precise: Units of the layers' choices.
        within: Units of the blocks that layers are in.
    """
    found = []
    for edge in edges:
        sides = edge.source, edge.reader
        gone = {within[node] for node in sides if node is not None and node in within}
        for columns, seconds in zip(((0, INT8), (INT8, 0)), edge.seconds, strict=True):
            pairs = list(zip(sides, columns, strict=True))
            if (None, INT8) in pairs:  # what works in float for good is never the int8 side
                continue
            given = [({precise[node]: 1.0}, column) for node, column in pairs if node is not None]
            given += [({unit: 1.0}, 0) for unit in gone]
            found.append(Term(seconds, tuple(f for f, _ in given), columns=tuple(c for _, c in given)))
    return found


def fastest_layers(model: ir.Model, nodes: Sequence[ir.Node], table: Table, context: Context) -> list[ir.Node]:
    """Those layers that take less time in int8, by parts and with the conversions that the others bring.

    Args:
        model: Float.
        nodes: Linear nodes that can be int8.
        table: Where times are kept.
        context: Samples and threads.
    """
    shapes = concrete_shapes(model, context.samples[0])
    both = seconds_of(model, nodes, shapes, table, context)
    precise = {node: number for number, node in enumerate(nodes)}
    units = [Unit(label_of(node), rows_of(Precision(node), 0.0)) for node in nodes]
    terms = [term for node in nodes for term in in_both(Term(0.0, ()), precise[node], both.get(node))]
    costs = Costs((*terms, *between(edges_of(model, nodes, shapes, table, context), precise, {})))
    table.save()
    starts = ((1,) * len(nodes), (0,) * len(nodes))
    ends = [cheapest(units, costs, start, range(len(nodes))) for start in starts]
    best = min(ends, key=lambda each: costs.total(units, each))
    return [node for node, row in zip(nodes, best, strict=True) if row]
