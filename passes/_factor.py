"""A Gemm or MatMul and its weight: found, split in two, and timed alone; the graph side of `factorize`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxslim_core.errors import MeasureError
from onnxslim_core.graph import (
    Names,
    add_constant,
    add_node,
    array_of,
    attribute,
    is_op,
    opset_of,
    remove,
    replace_input,
    set_attribute,
)
from onnxslim_core.lowrank.svd import Decomposition, decompose
from onnxslim_core.measure.shapes import Shapes
from onnxslim_core.ops.macs import macs
from onnxslim_core.rewrite import Context, Timing

from ._affine import FLOATS

__all__ = ["Layer", "layers_of", "measure", "split"]

_NARROW = (ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT4, ir.DataType.UINT4)


@dataclass(slots=True, eq=False)
class Layer:
    """A Gemm or MatMul with a weight that is no activation.

    Attributes:
        node: The node.
        place: Which input the weight is; 0 in `W @ x`.
        weight: The array as the node's formula uses it, d x n (n x d where it stands on the left); None where it is
            computed.
        macs: Of one run at the sample's sizes; 0 where the shapes are not known.
        found: All singular triples, once they are needed.
    """

    node: ir.Node
    place: int
    weight: np.ndarray | None
    macs: int
    found: Decomposition | None = None

    @property
    def size(self) -> int:
        """Elements of the weight."""
        return 0 if self.weight is None else self.weight.size

    def decomposition(self) -> Decomposition:
        """The singular triples, computed once."""
        assert self.weight is not None
        if self.found is None:
            self.found = decompose(self.weight)
        return self.found


def split(node: ir.Node, place: int, factors: Sequence[np.ndarray], names: Names, opset: int) -> None:
    """Let a Gemm or MatMul read the product of its input with one factor, and multiply by the other.

    Args:
        node: Stays as the second of the two, with its name, bias, alpha and beta.
        place: Which input the weight is.
        factors: A (d x r) and B (r x n) with A B ~ the weight as the formula uses it.
        names: Of the model.
        opset: Below 11 a Gemm needs its C.
    """
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    old = node.inputs[place]
    base = str(old.name) if old is not None else node.op_type
    a, b = (add_constant(graph, names, part, f"{base}_{end}") for part, end in zip(factors, "ab", strict=True))
    x = node.inputs[1 - place]
    transposed = is_op(node, "Gemm") and bool(attribute(node, "transA", 0))
    if place == 0:
        first = add_node(names, "MatMul", [b, x], before=node)
    elif is_op(node, "Gemm"):
        inputs = [x, a]
        if opset < 11:  # C is not optional yet
            inputs.append(add_constant(graph, names, np.zeros(1, factors[0].dtype), f"{base}_zero"))
        first = add_node(names, "Gemm", inputs, {"transA": 1} if transposed else {}, before=node)
    else:
        first = add_node(names, "MatMul", [x, a], before=node)
    first.outputs[0].type = node.outputs[0].type
    replace_input(node, 1 - place, first.outputs[0])
    replace_input(node, place, a if place == 0 else b)
    if is_op(node, "Gemm"):
        set_attribute(node, "transA", None)
        set_attribute(node, "transB", None)
    _drop(old)


def _drop(value: ir.Value | None) -> None:
    """Remove a weight nobody reads, and the Transposes and Identities before it."""
    if value is None or value.uses() or value.is_graph_output():
        return
    producer = value.producer()
    if producer is not None:
        remove(producer)
    elif value.graph is not None and value.is_initializer() and not value.is_graph_input():
        value.graph.initializers.pop(str(value.name), None)


def layers_of(model: ir.Model, shapes: Shapes) -> Iterable[Layer]:
    """The Gemm and MatMul nodes of the main graph with a matrix that does not depend on the data."""
    for node in model.graph:
        if not is_op(node, "Gemm", "MatMul") or len(node.inputs) < 2:
            continue
        for place in (1, 0) if is_op(node, "MatMul") else (1,):
            value = node.inputs[place]
            weight = matrix(value)
            if weight is None and not _is_computed(value):
                continue
            if weight is not None and is_op(node, "Gemm") and attribute(node, "transB", 0):
                weight = weight.T
            sizes = [
                [shapes.shape.get(v) if v is not None else None for v in part] for part in (node.inputs, node.outputs)
            ]
            yield Layer(node, place, weight, macs(node, *sizes))
            break


def matrix(value: ir.Value | None) -> np.ndarray | None:
    """A constant matrix of floats, also one behind Identity and Transpose nodes; None where it is something else."""
    turned = False
    while value is not None and is_op(producer := value.producer(), "Identity", "Transpose"):
        assert producer is not None
        turned ^= producer.op_type == "Transpose" and tuple(attribute(producer, "perm", (1, 0))) == (1, 0)
        value = producer.inputs[0]
    if value is None or (value.dtype is not None and value.dtype not in FLOATS):
        return None
    array = array_of(value)
    if array is None or array.ndim != 2 or 0 in array.shape or array.dtype.kind not in "fV":
        return None
    return array.T if turned else array


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


def measure(
    layer: Layer, factors: Sequence[np.ndarray], model: ir.Model, shapes: Shapes, context: Context
) -> Timing | None:
    """Time the layer alone against its two halves, at its real shapes; None where that is not possible."""
    x = layer.node.inputs[1 - layer.place]
    if context.latency is None or x is None or (shape := shapes.shape.get(x)) is None:
        return None
    reference, candidate = (_alone(layer, shape, model) for _ in range(2))
    split(next(iter(candidate.graph)), layer.place, factors, Names(candidate), opset_of(model))
    try:
        return context.latency(reference, candidate)
    except MeasureError:
        return None


def _alone(layer: Layer, shape: tuple[int, ...], model: ir.Model) -> ir.Model:
    """A model of one layer, with its weight as it is used; its input is named unlike those of whole models."""
    assert layer.weight is not None
    node = layer.node
    dtype = ir.tensor(layer.weight).dtype
    x = ir.Value(name="layer/input", shape=ir.Shape(shape), type=ir.TensorType(dtype))
    y = ir.Value(name="y", type=ir.TensorType(dtype))
    weight = ir.Value(name="w", const_value=ir.tensor(np.ascontiguousarray(layer.weight), name="w"))
    inputs = [x, weight] if layer.place == 1 else [weight, x]
    weights = [weight]
    if len(node.inputs) > 2 and (bias := array_of(node.inputs[2])) is not None:
        weights.append(ir.Value(name="c", const_value=ir.tensor(bias, name="c")))
        inputs.append(weights[1])
    attributes = {key: attribute(node, key) for key in ("alpha", "beta", "transA") if key in node.attributes}
    only = ir.node(node.op_type, inputs, attributes, outputs=[y])
    graph = ir.Graph([x], [y], nodes=[only], initializers=weights, opset_imports={"": opset_of(model)}, name="layer")
    return ir.Model(graph, ir_version=min(model.ir_version, 10))
