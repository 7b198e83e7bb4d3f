"""What layers take in int8, each by itself, beside what they take in float, and what it costs to change between them.

A layer is timed as a part of its own, in float and in int8 (QDQ, as `quantize` writes it). In an int8 network a layer
reads 8-bit numbers and hands them on, and onnxruntime keeps them with the channels last. So an int8 part has its
conversions cut off at both ends, and its inputs and outputs have the channels last. What the call itself takes is
measured on a part that does nothing, and taken off. A conversion is timed alone, at the size of what is converted.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import onnx
import onnx_ir as ir

from onnxslim_core import graph as verbs
from onnxslim_core.calibration.answers import Answers, answers_of
from onnxslim_core.errors import MeasureError, SlimError, UnsupportedModel
from onnxslim_core.graph import label_of
from onnxslim_core.measure.pieces import Table, structure
from onnxslim_core.model import load
from onnxslim_core.ops.flow import ShapesLike
from onnxslim_core.quant.draft import Draft
from onnxslim_core.quant.layout import BETWEEN, is_quantized, linear_nodes
from onnxslim_core.quant.mixed import alone
from onnxslim_core.rewrite import Context, Sample
from onnxslim_core.search.plan import Row, Unit
from onnxslim_core.search.segments import Segment, part_of

from ._quantize_prepare import prepare

__all__ = [
    "Edge",
    "Narrow",
    "Precision",
    "edges_of",
    "in_int8",
    "narrow_part",
    "precision_units",
    "seconds_of",
    "stays",
]

_INPUT = "{}/in_8_bits"
_LEAST = 0.1
"""Share of what was measured that is left once the call itself is taken off, at least."""


_SEEN = 64
"""Samples from which ranges are taken where only the damage of single layers is asked for."""
_ASKED = 32
"""Samples on which that damage is measured."""


@dataclass(frozen=True, slots=True, eq=False)
class Precision:
    """A layer that works in int8.

    Attributes:
        node: The layer.
    """

    node: ir.Node

    @property
    def name(self) -> str:
        """Of the layer."""
        return str(self.node.name)


@dataclass(frozen=True, slots=True, eq=False)
class Narrow:
    """A part in int8.

    Attributes:
        protos: The part, and then its variants.
        sample: One call's inputs.
    """

    protos: list[onnx.ModelProto]
    sample: Sample


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


def precision_units(
    model: ir.Model, fit: Sequence[Sample], probe: Sequence[Sample], ignored: Sequence[str], context: Context
) -> list[tuple[Unit, Precision]]:
    """Per layer that can be int8: in float or not, with what that loses by itself, rounded to the nearest.

    Args:
        model: Float.
        fit: Batches that ranges are taken from.
        probe: Batches on which the loss is measured.
        ignored: Globs over nodes and weights that stay in float.
        context: For the threads.

    Returns:
        Nothing for a model that works on few bits already, or cannot be brought to the opset of int8.
    """
    if is_quantized(model):
        return []
    work = model.clone()
    try:
        prepare(work, context)
    except UnsupportedModel:
        return []
    mine = {str(node.name): node for node in model.graph}
    nodes = [n for n in linear_nodes(work) if n.name in mine and not is_named(n, ignored)]
    asked = first_of(probe, _ASKED)
    answers = Answers(answers_of(model, asked, context.threads))
    if not nodes or not answers:
        return []

    def lost(variant: ir.Model) -> float:
        return answers.lost(answers_of(variant, asked, context.threads))

    try:
        draft = Draft.of(work, first_of(fit, _SEEN), linear=nodes, threads=context.threads)
        losses = alone(draft, lost, (), context.progress)
    except MeasureError:
        return []
    found = []
    for node, loss in losses.items():
        layer = Precision(mine[str(node.name)])
        rows = (Row("float", 0.0, 1.0, other=0.0), Row("int8", loss, 0.0, layer, other=1.0))
        found.append((Unit(label_of(layer.node), rows), layer))
    return found


def first_of(batches: Sequence[Sample], count: int) -> list[Sample]:
    """So many batches that they hold at least `count` samples, where there are so many."""
    found, held = list[Sample](), 0
    for batch in batches:
        if held >= count:
            break
        found.append(batch)
        held += next((len(array) for array in batch.values() if np.ndim(array)), 1)
    return found


def is_named(node: ir.Node, globs: Sequence[str]) -> bool:
    """Whether a glob fits a layer or its weights."""
    names = [str(node.name or ""), *(str(value.name) for value in node.inputs[1:2] if value is not None)]
    return any(fnmatchcase(name, glob) for name in names for glob in globs)


def in_int8(model: ir.Model, floats: Collection[str], samples: Sequence[Sample], context: Context) -> ir.Model | None:
    """A copy whose layers are in int8, weights rounded to the nearest: for its time; None where it cannot be written.

    Args:
        model: Float.
        floats: Names of linear nodes that stay in float.
        samples: What ranges are taken from.
        context: For the threads.
    """
    work = model.clone()
    try:
        prepare(work, context)
        nodes = [node for node in linear_nodes(work) if not stays(node, floats)]
        if not nodes:
            return None
        draft = Draft.of(work, samples, linear=nodes, threads=context.threads)
        return draft.variant(draft.layout(nodes))
    except SlimError:
        return None


def stays(node: ir.Node, floats: Collection[str]) -> bool:
    """Whether a layer, or the layer that it became the first half of, is among those that stay in float."""
    while str(node.name) not in floats:
        readers = verbs.users_of(node.outputs[0])[0]
        if len(readers) != 1 or readers[0][0].op_type != node.op_type or not _is_factor(node, readers[0][0]):
            return False
        node = readers[0][0]
    return True


def _is_factor(first: ir.Node, second: ir.Node) -> bool:
    """Whether two nodes are one layer that was split: their weights are called after the same one."""
    held = [v for node in (first, second) for v in node.inputs[:2] if v is not None and verbs.array_of(v) is not None]
    names = [str(value.name) for value in held]
    return len(names) == 2 and all("_" in name for name in names) and names[0][:-1] == names[1][:-1]


def narrow_part(segment: Segment, variants: Sequence[onnx.ModelProto], context: Context) -> Narrow | None:
    """A part and its variants as they are within an int8 network; None where one cannot be written so."""
    found: list[onnx.ModelProto] = []
    sample: dict[str, np.ndarray] = {}
    for proto in (segment.proto, *variants):
        try:
            whole = onnx.shape_inference.infer_shapes(proto).SerializeToString()
            part = in_int8(load(whole).ir, (), [segment.sample], context)
        except SlimError:
            return None
        if part is None or not is_quantized(part):
            return None
        names = verbs.Names(part)
        for value in list(part.graph.inputs):
            _open_input(part, value, np.asarray(segment.sample[str(value.name)]), sample, names)
        for number, value in enumerate(part.graph.outputs):
            _open_output(part, number, value, names)
        found.append(ir.to_proto(part))
    return Narrow(found, {**segment.sample, **sample})


def _open_input(
    part: ir.Model, value: ir.Value, array: np.ndarray, sample: dict[str, np.ndarray], names: verbs.Names
) -> None:
    """Let the part read 8-bit numbers, channels last, where it would bring them to 8 bits itself."""
    readers = [node for node, _ in value.uses()]
    if len(readers) != 1 or not verbs.is_op(readers[0], "QuantizeLinear"):
        return
    name = _INPUT.format(value.name)
    order = _channels_last(array.ndim)
    numbers = np.clip(np.rint(array * 40 + 128), 0, 255).astype(np.uint8)
    sample[name] = np.ascontiguousarray(numbers.transpose(order))
    made = ir.Value(name=name, type=ir.TensorType(ir.DataType.UINT8), shape=ir.Shape(sample[name].shape))
    part.graph.inputs[part.graph.inputs.index(value)] = made
    source = made
    if order != sorted(order):
        back = [int(axis) for axis in np.argsort(order)]
        source = verbs.add_node(names, "Transpose", [made], {"perm": back}, before=readers[0]).outputs[0]
    verbs.replace(readers[0].outputs[0], source, names)
    verbs.remove(readers[0])


def _open_output(part: ir.Model, number: int, value: ir.Value, names: verbs.Names) -> None:
    """Let the part answer in 8-bit numbers, channels last, where it would bring them back itself."""
    last = value.producer()
    if not verbs.is_op(last, "DequantizeLinear") or last is None or last.inputs[0] is None:
        return
    narrow = last.inputs[0]
    if verbs.users_of(value)[0] or narrow.producer() is None:
        return
    rank = len(value.shape) if value.shape is not None else 0
    order = _channels_last(rank)
    if order != sorted(order):
        made = verbs.add_node(names, "Transpose", [narrow], {"perm": order}, before=last).outputs[0]
    else:
        made = narrow
    made.type = ir.TensorType(ir.DataType.UINT8)
    part.graph.outputs[number] = made
    if not last.outputs[0].uses():
        part.graph.remove(last, safe=True)


def _channels_last(rank: int) -> list[int]:
    return [0, *range(2, rank), 1] if rank > 2 else list(range(rank))


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
    call = _call(table)
    found: dict[ir.Node, tuple[float, float]] = {}
    known: dict[str, tuple[float, float] | None] = {}
    for number, node in enumerate(nodes):
        context.progress("timing in int8", number, len(nodes))
        segment = part_of(model, shapes, [node])
        if segment is None:
            continue
        key = structure(segment.proto)
        if key not in known:
            narrow = narrow_part(segment, (), context)
            known[key] = None if narrow is None else _pair(table, segment, narrow, call)
        if (pair := known[key]) is not None:
            found[node] = pair
    return found


def _pair(table: Table, segment: Segment, narrow: Narrow, call: float) -> tuple[float, float]:
    full, share = table.left(segment.proto, narrow.protos, narrow.sample)
    return _without(full, call), _without(full * share, call)


def _without(seconds: float, call: float) -> float:
    return max(seconds - call, _LEAST * seconds)


def _call(table: Table) -> float:
    """Seconds of a call that does nothing."""
    nothing = _one_node("Identity", "x", (1,), ir.DataType.FLOAT, ir.DataType.FLOAT)
    return table.left(nothing, (), {"x": np.zeros(1, np.float32)})[0]


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
    order = _channels_last(len(shape))
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
    call = _call(table)
    found: list[Edge] = []
    read: set[ir.Node] = set()
    for number, node in enumerate(nodes):
        context.progress("timing conversions", number, len(nodes))
        source = _source(node, able, place)
        if source is not None:
            read.add(source)
        shape = shapes.shape.get(node.inputs[0]) if node.inputs[0] is not None else None
        if shape:
            found.append(Edge(source, node, _conversion(shape, table, call)))
    for node in nodes:
        shape = shapes.shape.get(node.outputs[0])
        if node not in read and shape and node.op_type == "Conv":  # the products answer in float by themselves
            found.append(Edge(node, None, _conversion(shape, table, call)))
    return found


def _source(node: ir.Node, able: set[ir.Node], place: dict[ir.Node, int]) -> ir.Node | None:
    """The last layer that makes what a layer reads, past everything that would follow it into int8."""
    pending, seen = [node], {node}
    while pending:
        pending.sort(key=place.__getitem__)
        at = pending.pop()
        if at in able and at is not node:
            return at
        if at is not node and not verbs.is_op(at, *BETWEEN):
            continue
        makers = {maker for v in at.inputs if v is not None and (maker := v.producer()) is not None}
        pending += [maker for maker in makers - seen if maker in place]
        seen |= makers
    return None


def _conversion(shape: Sequence[int], table: Table, call: float) -> tuple[float, float]:
    down = _one_node("QuantizeLinear", "x", shape, ir.DataType.FLOAT, ir.DataType.UINT8)
    up = _one_node("DequantizeLinear", "q", shape, ir.DataType.UINT8, ir.DataType.FLOAT)
    sample = {"x": np.random.default_rng(0).standard_normal(tuple(shape)).astype(np.float32)}
    last = [shape[axis] for axis in _channels_last(len(shape))]
    full, share = table.left(down, [up], {**sample, "q": np.full(last, 100, np.uint8)})
    return _without(full, call), _without(full * share, call)
