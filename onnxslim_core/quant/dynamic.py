"""int8 without ranges: activations brought onto a grid at run time, or weights alone kept in int8.

    dynamic   DynamicQuantizeLinear, MatMulInteger, and one Mul with both scales, which onnxruntime fuses to one kernel.
              For networks of matrix products, whose activations differ too much from text to text for fixed ranges.
    weights   DequantizeLinear behind int8 weights: a quarter of the file. What runs is float, and each call pays for
              the conversion, so this is for size.

Source: ONNX DynamicQuantizeLinear (11), MatMulInteger (10), DequantizeLinear (13).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxslim_core import graph as verbs
from onnxslim_core.quant.grid import quantize_weights, scales_of
from onnxslim_core.quant.insert import Rounded
from onnxslim_core.quant.layout import channel_axis, linear_nodes

__all__ = ["Dynamic", "store_weights"]


@dataclass(frozen=True, slots=True)
class Dynamic:
    """A float model of which any set of matrix products can be made dynamic; see `draft.Draft` for the same in static.

    Attributes:
        model: The float model.
        linear: Gemm and MatMul nodes with constant weights on the right.
    """

    model: ir.Model
    linear: Sequence[ir.Node]

    @classmethod
    def of(cls, model: ir.Model, nodes: Collection[ir.Node]) -> Dynamic:
        """All matrix products among these nodes."""
        return cls(model, [node for node in linear_nodes(model) if node in nodes and node.op_type != "Conv"])

    def layout(self, linear: Collection[ir.Node], left: Collection[ir.Node] = ()) -> Collection[ir.Node]:
        """The products themselves: nothing between them follows."""
        return linear

    def variant(self, layout: Collection[ir.Node], weights: Mapping[ir.Node, Rounded] | None = None) -> ir.Model:
        """A copy in which these products are dynamic."""
        clone = self.model.clone()
        pairs = zip(self.model.graph, list(clone.graph), strict=True)
        names = verbs.Names(clone)
        known: dict[ir.Value, Sequence[ir.Value]] = {}
        for node in [new for old, new in pairs if old in layout]:
            _make_dynamic(clone, node, names, known)
        return clone

    def efforts(self) -> dict[ir.Node, float]:
        """About what each product takes in float: its multiply-adds per row."""
        return {node: float(_weight(node).size) for node in self.linear}


def _weight(node: ir.Node) -> np.ndarray:
    array = verbs.array_of(node.inputs[1])
    assert array is not None
    return array


def _make_dynamic(
    model: ir.Model, node: ir.Node, names: verbs.Names, known: dict[ir.Value, Sequence[ir.Value]]
) -> None:
    graph, source, weight = model.graph, node.inputs[0], node.inputs[1]
    assert source is not None and weight is not None
    array, axis = _weight(node), channel_axis(node)
    scales = scales_of(array, axis)
    q = quantize_weights(array, scales, axis)
    stored = verbs.add_constant(graph, names, q.T if axis == 0 else q, f"{weight.name}/quantized")
    scale = verbs.add_constant(graph, names, scales.astype(np.float32), f"{weight.name}/scale")

    def add(op_type: str, inputs: Sequence[ir.Value | None], attributes: Mapping[str, int] | None = None) -> ir.Value:
        made = verbs.add_node(names, op_type, inputs, dict(attributes or {}), before=node)
        return made.outputs[0]

    if source not in known:
        made = verbs.add_node(names, "DynamicQuantizeLinear", [source], before=node, num_outputs=3)
        known[source] = made.outputs
    x, step, zero = known[source]
    product = add("MatMulInteger", [x, stored, zero])
    both = add("Mul", [step, scale])
    answer = add("Mul", [add("Cast", [product], {"to": int(ir.DataType.FLOAT)}), both])
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None:
        answer = add("Add", [answer, bias])
    answer.type, answer.shape = node.outputs[0].type, node.outputs[0].shape
    verbs.replace(node.outputs[0], answer, names)
    verbs.remove(node)


def store_weights(model: ir.Model, nodes: Collection[ir.Node]) -> int:
    """Keep the weights of these linear nodes in int8, in place; returns the bytes saved."""
    names, saved = verbs.Names(model), 0
    done: dict[tuple[ir.Value, int], ir.Value] = {}
    for node in [node for node in model.graph if node in nodes]:
        weight, axis = node.inputs[1], channel_axis(node)
        array = _weight(node)
        assert weight is not None
        if (weight, axis) not in done:
            scales = scales_of(array, axis)
            q = verbs.add_constant(
                model.graph, names, quantize_weights(array, scales, axis), f"{weight.name}/quantized"
            )
            scale = verbs.add_constant(model.graph, names, scales.astype(np.float32), f"{weight.name}/scale")
            made = verbs.add_node(names, "DequantizeLinear", [q, scale], {"axis": axis}, before=node)
            made.outputs[0].type, made.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(array.shape)
            done[weight, axis] = made.outputs[0]
            saved += array.nbytes - array.size - scales.size * 4
        verbs.replace_input(node, 1, done[weight, axis])
        if (idle := verbs.idle_source(weight)) is not None:
            verbs.remove(idle)
    return saved
