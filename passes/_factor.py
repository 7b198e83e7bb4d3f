"""Layers that can be split: found, and timed alone; the graph side of `factorize`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxslim_core.graph import array_of, attribute, is_op, opset_of
from onnxslim_core.lowrank.forms import Offer, held_error
from onnxslim_core.lowrank.gather import Seen
from onnxslim_core.lowrank.split import split
from onnxslim_core.lowrank.weights import weight_of
from onnxslim_core.measure.pieces import Table
from onnxslim_core.measure.shapes import Shapes
from onnxslim_core.rewrite import Timing

__all__ = ["Layer", "layers_of", "timed"]

_NARROW = (ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT4, ir.DataType.UINT4)


@dataclass(slots=True, eq=False)
class Layer:
    """A Conv, Gemm or MatMul with a weight that is no activation.

    Attributes:
        node: The node.
        place: Which input the weight is; 0 in `W @ x`.
        weight: The array as a sum uses it, d inputs x n outputs; None where it is computed, or belongs to a grouped
            Conv.
        kernel: Of a Conv; () else.
        size: Elements of the weight; 0 where it is computed.
        x: Concrete shape of the input; () where it is not known.
        y: The same of the output.
        offers: What it can become, once that is known.
        seen: What the samples say, once they have had a say in that; the rows held out are what is left of it.
        why: Why they had none, though there are some.
        halved: True once it is split.
    """

    node: ir.Node
    place: int
    weight: np.ndarray | None
    kernel: tuple[int, ...]
    size: int
    x: tuple[int, ...] = ()
    y: tuple[int, ...] = ()
    offers: list[Offer] = field(default_factory=list)
    seen: Seen | None = None
    why: str = ""
    halved: bool = False

    @property
    def sampled(self) -> bool:
        """True where the errors are those of answers, on rows held out."""
        return self.seen is not None

    def judge(self, offer: Offer) -> Offer:
        """An offer with its own error, not an interpolated one."""
        if self.seen is None:
            return offer
        return dataclasses.replace(offer, error=held_error(self.node, offer, self.seen))

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one run; of one position where the shapes are not known."""
        return self.offers[0].curve.linear.macs if self.offers else self.size


def layers_of(model: ir.Model, shapes: Shapes, ops: Iterable[str]) -> Iterable[Layer]:
    """The nodes of the main graph of these types with a weight that does not depend on the data."""
    for node in model.graph:
        if not is_op(node, *ops) or len(node.inputs) < 2:
            continue
        found = weight_of(node)
        if found is not None:
            place, weight, kernel = found
            layer = Layer(node, place, weight, kernel, weight.size)
        else:
            places = (1, 0) if node.op_type == "MatMul" else (1,)
            place = next((place for place in places if _is_computed(node.inputs[place])), -1)
            size = 0
            if is_op(node, "Conv") and int(attribute(node, "group", 1)) > 1:
                array = array_of(node.inputs[1])
                place, size = 1, array.size if array is not None else 0
            if place < 0:
                continue
            layer = Layer(node, place, None, (), size)
        layer.x = _shape(shapes, node.inputs[1 - layer.place])
        layer.y = _shape(shapes, node.outputs[0])
        yield layer


def _shape(shapes: Shapes, value: ir.Value | None) -> tuple[int, ...]:
    return shapes.shape.get(value, ()) if value is not None else ()


def _is_computed(value: ir.Value | None) -> bool:
    """True for a weight that nodes make of int8 constants: DequantizeLinear, or a Cast and what follows it."""
    todo, seen = [value], 0
    quantized = False
    while todo:
        part = todo.pop()
        producer = part.producer() if part is not None else None
        if part is None or array_of(part) is not None:
            quantized |= part is not None and part.dtype in _NARROW
            continue
        seen += 1
        if producer is None or seen > 10:
            return False
        todo.extend(producer.inputs)
    return quantized


def timed(layer: Layer, offer: Offer, model: ir.Model, table: Table) -> Timing | None:
    """The layer alone against what it is split into, at its real shapes; None where that is not possible."""
    if not layer.x or layer.weight is None:
        return None

    def change(alone: ir.Model) -> bool:
        split(alone, next(iter(alone.graph)), dataclasses.replace(offer, mean=None))
        return True

    return table.against(_alone(layer, model), change, f"{offer.form} {offer.ranks}")


def _alone(layer: Layer, model: ir.Model) -> ir.Model:
    """A model of one layer; its input is named unlike those of whole models."""
    assert layer.weight is not None
    node, dtype = layer.node, ir.tensor(layer.weight).dtype
    x = ir.Value(name="layer/input", shape=ir.Shape(layer.x), type=ir.TensorType(dtype))
    y = ir.Value(name="y", type=ir.TensorType(dtype))
    # as the node reads it: behind an Identity or a Transpose it is no constant of its own
    turned = layer.weight if layer.place == 1 else layer.weight.T
    array = array_of(node.inputs[1]) if is_op(node, "Conv") else turned
    assert array is not None
    weight = ir.Value(name="w", const_value=ir.tensor(np.ascontiguousarray(array), name="w"))
    inputs = [x, weight] if layer.place == 1 else [weight, x]
    weights = [weight]
    if len(node.inputs) > 2 and (bias := array_of(node.inputs[2])) is not None:
        weights.append(ir.Value(name="c", const_value=ir.tensor(bias, name="c")))
        inputs.append(weights[1])
    attributes = {key: attribute(node, key) for key in node.attributes if key != "transB"}
    only = ir.node(node.op_type, inputs, attributes, outputs=[y])
    graph = ir.Graph([x], [y], nodes=[only], initializers=weights, opset_imports={"": opset_of(model)}, name="layer")
    return ir.Model(graph, ir_version=min(model.ir_version, 10))
