"""Layers in int8 as options of a plan, and models and parts written in int8 to be timed.

In an int8 network a layer reads 8-bit numbers and hands them on, and onnxruntime keeps them with the channels last. So
a part in int8 has its conversions cut off at both ends, and its inputs and outputs have the channels last.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from onnxslim_core import graph as verbs
from onnxslim_core.calibration.answers import Answers, answers_of
from onnxslim_core.calibration.batches import first_of
from onnxslim_core.errors import MeasureError, SlimError, UnsupportedModel
from onnxslim_core.graph import label_of
from onnxslim_core.model import load
from onnxslim_core.quant.draft import Draft
from onnxslim_core.quant.layout import is_quantized, linear_nodes
from onnxslim_core.quant.mixed import alone
from onnxslim_core.rewrite import Context, Sample, glob_for
from onnxslim_core.search.plan import Row, Unit
from onnxslim_core.search.segments import Segment

from ._quantize_prepare import prepare

__all__ = [
    "Narrow",
    "Precision",
    "channels_last",
    "in_int8",
    "is_named",
    "narrow_part",
    "precision_units",
    "rows_of",
    "stays",
]

_INPUT = "{}/in_8_bits"
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
    answers = Answers(answers_of(model, asked, context.threads), context.parts)
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
        found.append((Unit(label_of(layer.node), rows_of(layer, loss)), layer))
    return found


def is_named(node: ir.Node, globs: Sequence[str]) -> bool:
    """Whether a glob fits a layer or its weights."""
    names = [str(node.name or ""), *(str(value.name) for value in node.inputs[1:2] if value is not None)]
    return glob_for(names, globs) is not None


def in_int8(
    model: ir.Model, floats: Collection[str], samples: Sequence[Sample], context: Context, *, part: bool = False
) -> ir.Model | None:
    """A copy whose layers are in int8, weights rounded to the nearest: for its time; None where it cannot be written.

    Args:
        model: Float.
        floats: Names of linear nodes that stay in float.
        samples: What ranges are taken from.
        context: For the threads.
        part: Whether this is a part of an int8 network: what it answers is read as 8-bit numbers.
    """
    work = model.clone()
    try:
        prepare(work, context)
        nodes = [node for node in linear_nodes(work) if not stays(node, floats)]
        if not nodes:
            return None
        draft = Draft.of(work, samples, linear=nodes, threads=context.threads)
        return draft.variant(draft.layout(nodes, read=work.graph.outputs if part else ()))
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
    """Whether two nodes are one layer that was split: their weights are called after the same one, a, b (and c).

    Numbers at the end tell nothing: an exporter counts all weights, `onnx::Conv_491` and `onnx::Conv_494`.
    """
    held = [v for node in (first, second) for v in node.inputs[:2] if v is not None and verbs.array_of(v) is not None]
    names = [str(value.name) for value in held]
    if len(names) != 2:
        return False
    ends = [name[-2:] for name in names]
    return names[0][:-2] == names[1][:-2] and ends in (["_a", "_b"], ["_b", "_c"])


def narrow_part(segment: Segment, variants: Sequence[onnx.ModelProto], context: Context) -> Narrow | None:
    """A part and its variants as they are within an int8 network; None where one cannot be written so."""
    found: list[onnx.ModelProto] = []
    sample: dict[str, np.ndarray] = {}
    for proto in (segment.proto, *variants):
        try:
            whole = onnx.shape_inference.infer_shapes(proto).SerializeToString()
            part = in_int8(load(whole).ir, (), [segment.sample], context, part=True)
        except (SlimError, onnx.shape_inference.InferenceError, ValueError):  # the last of parts beyond 2 GB
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
    order = channels_last(array.ndim)
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
    order = channels_last(rank)
    if order != sorted(order):
        made = verbs.add_node(names, "Transpose", [narrow], {"perm": order}, before=last).outputs[0]
    else:
        made = narrow
    made.type = ir.TensorType(ir.DataType.UINT8)
    part.graph.outputs[number] = made
    if not last.outputs[0].uses():
        part.graph.remove(last, safe=True)


def channels_last(rank: int) -> list[int]:
    """The order of axes in which onnxruntime keeps 8-bit tensors of this rank."""
    return [0, *range(2, rank), 1] if rank > 2 else list(range(rank))


def rows_of(layer: Precision, loss: float) -> tuple[Row, Row]:
    """Float or int8: of the two terms of a layer each row lets one count."""
    return Row("float", 0.0, 1.0, other=0.0), Row("int8", loss, 0.0, layer, other=1.0)
