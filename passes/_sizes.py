"""Integer vectors made from sizes: what each operator that computes with them hands on, element by element."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import onnx
import onnx_ir as ir

from onnxslim_core.graph import attribute, is_op

if TYPE_CHECKING:
    from ._facts import Facts

__all__ = ["KEPT", "VECTORS", "Dim", "Vector"]

Dim = int | str
"""A size: known, or a token."""

Vector = tuple[Dim | None, ...]
"""What is known of the elements of an integer scalar or vector; None: nothing."""

KEPT = 4096
"""Elements up to which integer constants are looked into."""


def _shape(facts: Facts, node: ir.Node) -> Vector | None:
    sizes = facts.dims(node.inputs[0])
    if sizes is None:
        return None
    return sizes[slice(attribute(node, "start", 0), attribute(node, "end", None))]


def _size(facts: Facts, node: ir.Node) -> Vector | None:
    sizes = facts.dims(node.inputs[0])
    if sizes is None or not all(isinstance(s, int) for s in sizes):
        return None
    return (math.prod(s for s in sizes if isinstance(s, int)),)


def _same(facts: Facts, node: ir.Node) -> Vector | None:
    """Elements in the same order: Identity, Cast between integers, Squeeze, Unsqueeze, Reshape."""
    if is_op(node, "Cast") and attribute(node, "to") == onnx.TensorProto.INT32:
        vector = facts.vector(node.inputs[0])
        return (
            None if vector is None else tuple(v if not isinstance(v, int) or abs(v) < 2**31 else None for v in vector)
        )
    return facts.vector(node.inputs[0])


def _gather(facts: Facts, node: ir.Node) -> Vector | None:
    vector, indices = facts.vector(node.inputs[0]), facts.array(node.inputs[1])
    if vector is None or indices is None or attribute(node, "axis", 0) not in (0, -1):
        return None
    if indices.size and (indices.min() < -len(vector) or indices.max() >= len(vector)):
        return None
    return tuple(vector[int(i)] for i in indices.reshape(-1))


def _slice(facts: Facts, node: ir.Node) -> Vector | None:
    vector = facts.vector(node.inputs[0])
    if vector is None:
        return None
    if len(node.inputs) < 3:  # before opset 10 the bounds are attributes
        starts, ends = attribute(node, "starts", ()), attribute(node, "ends", ())
        return vector[starts[0] : ends[0]] if len(starts) == len(ends) == 1 else None
    parts = [facts.array(v) for v in node.inputs[1:]]
    if any(v is not None and p is None for v, p in zip(node.inputs[1:], parts, strict=True)):
        return None
    start, end = (int(p.reshape(-1)[0]) if p is not None and p.size == 1 else None for p in parts[:2])
    step = int(parts[3].reshape(-1)[0]) if len(parts) > 3 and parts[3] is not None else 1
    if start is None or end is None or step <= 0:
        return None
    return vector[slice(start, end, step)]


def _concat(facts: Facts, node: ir.Node) -> Vector | None:
    found: list[Dim | None] = []
    for value in node.inputs:
        vector, sizes = facts.vector(value), facts.dims(value)
        if vector is not None:
            found.extend(vector)
            continue
        if sizes is None or len(sizes) != 1 or not isinstance(sizes[0], int) or sizes[0] > KEPT:
            return None
        found.extend([None] * sizes[0])
    return tuple(found)


def _arithmetic(facts: Facts, node: ir.Node) -> Vector | None:
    a, b = facts.vector(node.inputs[0]), facts.vector(node.inputs[1])
    if a is None or b is None or not (len(a) == len(b) or len(a) == 1 or len(b) == 1):
        return None
    length = max(len(a), len(b)) if min(len(a), len(b)) else 0
    wide = facts.elem_type(node.outputs[0]) == onnx.TensorProto.INT64
    left, right = (v * length if len(v) == 1 else v for v in (a, b))
    return tuple(_compute(node.op_type, x, y, wide) for x, y in zip(left, right, strict=True))


def _compute(op_type: str, x: Dim | None, y: Dim | None, wide: bool) -> Dim | None:
    """One element; what could overflow is left to the runtime."""
    if isinstance(x, int) and isinstance(y, int):
        if op_type == "Div" and y == 0:
            return None
        found = x + y if op_type == "Add" else x - y if op_type == "Sub" else x * y
        if op_type == "Div":  # of integers: cuts towards zero
            found = abs(x) // abs(y) if (x < 0) == (y < 0) else -(abs(x) // abs(y))
        return found if abs(found) < (2**62 if wide else 2**31) else None
    if isinstance(x, str) and y == (0 if op_type in ("Add", "Sub") else 1):
        return x
    if isinstance(y, str) and op_type in ("Add", "Mul") and x == (0 if op_type == "Add" else 1):
        return y
    return None


VECTORS: dict[str, Callable[[Facts, ir.Node], Vector | None]] = {
    "Shape": _shape,
    "Size": _size,
    "Identity": _same,
    "Cast": _same,
    "Squeeze": _same,
    "Unsqueeze": _same,
    "Reshape": _same,
    "Gather": _gather,
    "Slice": _slice,
    "Concat": _concat,
    "Add": _arithmetic,
    "Sub": _arithmetic,
    "Mul": _arithmetic,
    "Div": _arithmetic,
}
