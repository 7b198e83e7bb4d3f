"""Quantization written down as QuantizeLinear and DequantizeLinear, which onnxruntime fuses into 8-bit kernels.

Every value on a grid gets one pair; 8-bit nodes read what comes out of it, and so does everybody else where the value
is made by an 8-bit node, since nothing finer exists there. A Pad stands between Q and DQ, since onnxruntime fuses it
with neither. Weights are int8 with one scale per output channel, a bias
is int32 with the product of the scales. Names of inputs and outputs stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxslim_core import graph as verbs
from onnxslim_core.quant.grid import Grid, as_float32, on_grid, quantize_bias, quantize_weights, scales_of
from onnxslim_core.quant.layout import Layout, activations, channel_axis

__all__ = ["Rounded", "insert", "rewrite"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Rounded:
    """A linear node's weights on their grid, chosen with more care than the nearest.

    Attributes:
        q: int8, in the node's layout.
        scales: Per output channel.
        bias: Per output channel; None leaves it as it is.
    """

    q: NDArray[np.int8]
    scales: Floats
    bias: Floats | None = None


def insert(
    model: ir.Model, layout: Layout, grids: Mapping[ir.Value, Grid], given: Mapping[ir.Node, Rounded] | None = None
) -> None:
    """Write the layout into the model.

    Args:
        model: Changed in place; its nodes and values are those of the layout. Opset 13 or newer.
        layout: Where numbers have 8 bits.
        grids: For every rounded value that has no source.
        given: Weights that were rounded with more care than to the nearest.
    """
    writer = _Writer(model, layout, grids)
    for node in [node for node in model.graph if node in layout.nodes]:
        writer.constants(node, (given or {}).get(node))
    for value in layout.rounded:
        if verbs.array_of(value) is None:
            writer.pair(value)
    for node in [node for node in model.graph if node in layout.nodes and node.op_type == "Pad"]:
        writer.pad(node)


def rewrite(node: ir.Node, given: Rounded) -> None:
    """Give other weights to a linear node that is written down in 8 bits already, bias included, in place."""
    weight, source = node.inputs[1], node.inputs[0]
    assert weight is not None and source is not None
    scales = given.scales.astype(np.float32)
    _refill(weight, given.q, scales)
    if len(node.inputs) > 2 and node.inputs[2] is not None and given.bias is not None:
        step = verbs.array_of(source.producer().inputs[1])  # type: ignore[union-attr]
        assert step is not None
        both = scales * np.float32(step)
        _refill(node.inputs[2], _as_int32(given.bias, both), both)


def _refill(value: ir.Value, *arrays: NDArray[np.generic]) -> None:
    """Other numbers behind a DequantizeLinear."""
    producer = value.producer()
    assert producer is not None
    for constant, array in zip(producer.inputs, arrays, strict=False):
        assert constant is not None
        constant.const_value = ir.Tensor(np.ascontiguousarray(array), name=constant.name)


def _as_int32(bias: Floats, scales: NDArray[np.float32]) -> NDArray[np.int32]:
    q = np.rint(bias / np.asarray(scales, np.float64))
    return np.asarray(np.clip(q, -(2.0**31) + 1, 2.0**31 - 1), np.int32)


class _Writer:
    """The edit under way."""

    def __init__(self, model: ir.Model, layout: Layout, grids: Mapping[ir.Value, Grid]) -> None:
        self._graph = model.graph
        self._names = verbs.Names(model)
        self._layout = layout
        self._grids = grids
        self._known: dict[object, ir.Value] = {}

    def _constant(self, array: NDArray[np.generic], hint: str) -> ir.Value:
        """An initializer; equal small ones are one, since there are two for every grid."""
        key = (array.dtype.str, array.shape, array.tobytes()) if not array.ndim else object()
        if key not in self._known:
            self._known[key] = verbs.add_constant(self._graph, self._names, array, hint)
        return self._known[key]

    def constants(self, node: ir.Node, given: Rounded | None) -> None:
        """Weights and bias of a linear node, constant operands of a join."""
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            self._weights(node, given)
            return
        for index in activations(node):
            value = node.inputs[index]
            array = verbs.array_of(value)
            if value is None or array is None:
                continue
            grid = self._grids[value]
            q = self._constant(on_grid(array, grid), f"{value.name}/quantized")
            self._swap(node, index, self._dequantize(q, grid, node, f"{value.name}"))

    def _weights(self, node: ir.Node, given: Rounded | None) -> None:
        axis = channel_axis(node)
        weight, source = node.inputs[1], node.inputs[0]
        array = verbs.array_of(weight)
        assert weight is not None and array is not None and source is not None
        grid = self._grids[self._layout.root(source)]
        if given is None:
            bias = verbs.array_of(node.inputs[2]) if len(node.inputs) > 2 else None
            scales = scales_of(array, axis)
            if bias is not None:
                scales = np.maximum(scales, quantize_bias(bias, scales * grid.scale)[1] / grid.scale)
                scales = as_float32(scales)
            given = Rounded(quantize_weights(array, scales, axis), scales)
        self.linear(node, axis, given, grid.scale)

    def linear(self, node: ir.Node, axis: int, given: Rounded, step: float) -> None:
        """Write weights and bias of a layer whose input has this step.

        Args:
            node: The layer.
            axis: Of its weights, which counts output channels.
            given: What to write; a bias of a MatMul has no place.
            step: Scale of the input.
        """
        bias = given.bias
        if bias is None and len(node.inputs) > 2 and node.inputs[2] is not None:
            bias = np.asarray(verbs.array_of(node.inputs[2]), np.float64)
        scales = given.scales.astype(np.float32)
        if bias is not None and node.op_type != "MatMul":
            both = scales * np.float32(step)
            self._swap(node, 2, self._affine(_as_int32(bias, both), both, 0, node, "bias"))
        self._swap(node, 1, self._affine(given.q, scales, axis, node, "weight"))

    def _affine(
        self, q: NDArray[np.generic], scales: NDArray[np.float32], axis: int, node: ir.Node, hint: str
    ) -> ir.Value:
        """DequantizeLinear of an initializer, one scale per slice, no zero point (int32 allows none but zero)."""
        stored = self._constant(q, f"{hint}/quantized")
        scale = self._constant(np.asarray(scales, np.float32), f"{hint}/scale")
        zero = self._constant(np.zeros(len(scales), q.dtype), f"{hint}/zero_point")
        made = verbs.add_node(
            self._names, "DequantizeLinear", [stored, scale, zero], {"axis": axis}, before=node, hint=hint
        )
        return self._typed(made.outputs[0], ir.Shape(q.shape))

    def _dequantize(self, q: ir.Value, grid: Grid, before: ir.Node, hint: str) -> ir.Value:
        made = verbs.add_node(self._names, "DequantizeLinear", [q, *self._steps(grid)], before=before, hint=hint)
        return self._typed(made.outputs[0], q.shape)

    def _steps(self, grid: Grid) -> list[ir.Value]:
        return [
            self._constant(np.asarray(grid.scale, np.float32), "scale"),
            self._constant(np.asarray(grid.zero_point, np.uint8), "zero_point"),
        ]

    def _typed(self, value: ir.Value, shape: ir.Shape | None) -> ir.Value:
        value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), shape
        return value

    def _swap(self, node: ir.Node, index: int, made: ir.Value) -> None:
        old = node.inputs[index] if index < len(node.inputs) else None
        verbs.replace_input(node, index, made)
        if old is not None and (idle := verbs.idle_source(old)) is not None:
            verbs.remove(idle)

    def pad(self, node: ir.Node) -> None:
        """Let a Pad work on the 8-bit numbers themselves: its input and output lie on one grid."""
        before, after = node.inputs[0], [user for user, _ in verbs.users_of(node.outputs[0])[0]]
        source = before.producer() if before is not None else None
        if source is None or not verbs.is_op(source, "DequantizeLinear") or node.outputs[0].is_graph_output():
            return
        if len(after) != 1 or not verbs.is_op(after[0], "QuantizeLinear"):
            return
        verbs.replace_input(node, 0, source.inputs[0])
        verbs.replace_input(node, 2, source.inputs[2])
        node.outputs[0].type = ir.TensorType(ir.DataType.UINT8)
        verbs.replace(after[0].outputs[0], node.outputs[0], self._names)
        verbs.remove(after[0])
        if not source.outputs[0].uses() and not source.outputs[0].is_graph_output():
            verbs.remove(source)

    def pair(self, value: ir.Value) -> None:
        """Q and DQ behind a value."""
        grid = self._grids[self._layout.root(value)]
        producer = value.producer()
        users = verbs.users_of(value)[0]
        inner = [(node, index) for node, index in users if node in self._layout.nodes and index in activations(node)]
        whole = producer in self._layout.nodes
        readers = users if whole else inner
        if not readers and not (whole and value.is_graph_output()):
            return
        quantize = ir.node("QuantizeLinear", [value, *self._steps(grid)])
        dequantize = ir.node("DequantizeLinear", [quantize.outputs[0], *quantize.inputs[1:]])
        for node in (quantize, dequantize):
            verbs.name_node(node, self._names.new(f"{value.name}/{node.op_type}"))
            node.outputs[0].name = self._names.new(f"{node.name}_output_0")
        quantize.outputs[0].type, quantize.outputs[0].shape = ir.TensorType(ir.DataType.UINT8), value.shape
        self._typed(dequantize.outputs[0], value.shape)
        if producer is not None:
            self._graph.insert_after(producer, [quantize, dequantize])
        else:
            self._graph.insert_before(self._graph[0], [quantize, dequantize])
        for node, index in readers:
            node.replace_input_with(index, dequantize.outputs[0])
        if whole and value.is_graph_output():
            verbs.replace(value, dequantize.outputs[0], self._names)
            quantize.replace_input_with(0, value)  # it was a reader of the old output as well
