"""Which channels are constant: values that travel in arrays shaped like labels, NaN for unknown.

Values move by the same moves as labels and change by the operator itself, so that a dead filter's bias comes through
BatchNormalization, Sigmoid, pooling and Concat as the number it really is. Zero times anything is zero.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from onnxslim_core import graph as verbs
from onnxslim_core._emit import write_node
from onnxslim_core.ops.flow import Flow, Rule

__all__ = ["Consts", "Values", "array_of", "evaluate"]

Values = NDArray[np.float64]

_TRACED = ("Cast", "CastLike", "DequantizeLinear", "Identity", "Mul", "Reshape", "Transpose")
_MOST_OPERAND = 1 << 22
"""A constant operand with more elements than this is not looked into."""


class Consts:
    """Constant channels of every activation, from the graph's start to its end."""

    def __init__(self, flow: Flow, rules: Callable[[ir.Node], Rule | None]) -> None:
        self.flow = flow
        self.opset = flow.opset
        self._known: dict[ir.Value, Values] = {}
        with np.errstate(all="ignore"):  # infinite weights make NaN, which is unknown
            for node in flow.nodes:
                rule = rules(node) if node in flow.ruled else None
                if rule is not None and rule.value is not None:
                    rule.value(self, node)

    def get(self, value: ir.Value | None) -> Values | None:
        """Values of an activation, of the shape of its labels; None where nothing is known."""
        return None if value is None else self._known.get(value)

    def full(self, value: ir.Value) -> Values:
        """The same, all NaN where nothing is known."""
        found = self._known.get(value)
        if found is not None:
            return found
        labels = self.flow.labels(value)
        assert labels is not None
        return np.full(labels.shape, np.nan)

    def operand(self, value: ir.Value | None) -> Values | None:
        """The numbers of a constant operand; None where it is too large or cannot be read."""
        array = array_of(self.flow, value)
        if array is None or array.size > _MOST_OPERAND or array.dtype.kind not in "fiub":
            return None
        return np.asarray(array, np.float64)

    def set(self, value: ir.Value, found: Values) -> None:
        """Note values of a result; what differs along an axis without labels is unknown."""
        labels = self.flow.labels(value)
        if labels is None or found.ndim != labels.ndim:
            return
        for axis, size in enumerate(labels.shape):
            if size == 1 and found.shape[axis] > 1:
                first = found.take([0], axis=axis)
                same = (found == first).all(axis=axis, keepdims=True)
                found = np.where(same, first, np.nan)
        if np.isfinite(found).any():
            self._known[value] = np.array(np.broadcast_to(found, labels.shape))


def array_of(flow: Flow, value: ir.Value | None) -> np.ndarray | None:
    """The numbers of a constant, also of one behind Transpose, Identity, Cast or DequantizeLinear; None for others."""
    found = verbs.array_of(value)
    if found is not None or value is None or value not in flow.constants:
        return found
    node = value.producer()
    if value in flow.traced or value in flow.sized or not verbs.is_op(node, *_TRACED):
        return flow.traced.get(value)
    assert node is not None
    inputs = [array_of(flow, operand) for operand in node.inputs]
    if not any(v is not None and a is None for v, a in zip(node.inputs, inputs, strict=True)):
        is_scaled = verbs.is_op(node, "DequantizeLinear")
        results = [_dequantized(node, *inputs)] if is_scaled else evaluate(node, inputs, flow.opset)
        found = None if results is None or results[0] is None else np.asarray(results[0])
    flow.traced[value] = found
    return found


def _dequantized(
    node: ir.Node, x: np.ndarray | None, scale: np.ndarray | None, zero: np.ndarray | None = None
) -> np.ndarray | None:
    """`(x - zero) * scale` along an axis; onnx's reference implementation has none before opset 19."""
    if x is None or scale is None or verbs.attribute(node, "block_size", 0) or x.dtype.kind not in "iu":
        return None
    shape = [1] * x.ndim
    if scale.size > 1:
        shape[int(verbs.attribute(node, "axis", 1))] = -1
    shifted = x.astype(np.float64) - (0 if zero is None else zero.reshape(shape).astype(np.float64))
    return np.asarray(shifted * scale.reshape(shape), scale.dtype)


def evaluate(node: ir.Node, inputs: list[np.ndarray | None], opset: int) -> list[Any] | None:
    """Run one standard operator in onnx's reference implementation; None where it has none or declines."""
    names = [f"i{k}" if array is not None else "" for k, array in enumerate(inputs)]
    outputs = [f"o{k}" for k in range(len(node.outputs))]
    proto = onnx.NodeProto(op_type=node.op_type, input=names, output=outputs)
    proto.attribute.extend(write_node(node).attribute)
    feeds = {name: array for name, array in zip(names, inputs, strict=True) if name}
    try:
        with np.errstate(all="ignore"):
            return list(_evaluator(proto.SerializeToString(deterministic=True), opset).run(None, feeds))
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError):
        return None


@lru_cache(maxsize=256)
def _evaluator(written: bytes, opset: int) -> ReferenceEvaluator:
    """The evaluator of one node, written with its attributes; a network has few different activations."""
    node = onnx.NodeProto.FromString(written)
    graph = onnx.GraphProto(
        name="one",
        node=[node],
        input=[onnx.ValueInfoProto(name=name) for name in node.input if name],
        output=[onnx.ValueInfoProto(name=name) for name in node.output],
    )
    imports = [onnx.OperatorSetIdProto(version=opset)]
    return ReferenceEvaluator(onnx.ModelProto(ir_version=10, graph=graph, opset_import=imports))
