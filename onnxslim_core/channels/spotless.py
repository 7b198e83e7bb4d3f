"""A look at the weights that tells in a glance where no channel can be idle, before anything is traced.

Over operators that are known to hand on what they are given, a channel can be zero, constant or unread only where a
weight has a row or column of zeros or a scale a zero, and two channels can be equal only where two rows or columns are.
Most trained networks have none of that. Whatever else is in a graph is left to the analysis (`idle.find_idle`).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxslim_core import graph as verbs

__all__ = ["is_spotless"]

_SCALING = frozenset({"Mul", "Div", "BatchNormalization", "LayerNormalization"})
"""Where a constant zero makes a constant of what it meets."""
_SUMS = frozenset({"Conv", "Gemm", "MatMul"})
_TWO_SIDED = frozenset({"Add", "Sub", "Mul", "Div", "MatMul", "Gemm"})
"""Either side may be the constant one."""
_BLOCK = 2**20
"""Elements that are looked at at a time."""
_HANDED_ON = frozenset(
    (
        *("Identity", "Transpose", "Reshape", "Flatten", "MaxPool", "AveragePool", "GlobalAveragePool"),
        *("Relu", "LeakyRelu", "Sigmoid", "Tanh", "Erf", "Gelu", "HardSwish", "HardSigmoid", "Elu", "Selu"),
        *("Softplus", "Softmax", "LogSoftmax", "Sqrt", "Exp", "Neg", "Abs", "Clip", "Concat", "GlobalMaxPool"),
    )
)
"""Every element of the input counts in the result, and nothing is added that would be constant."""


def is_spotless(model: ir.Model) -> bool:
    """True where no channel is zero, constant, unread or the copy of another; False where one may be."""
    seen: dict[tuple[ir.Value, bool], bool] = {}
    for node in model.graph:
        kind = node.op_type
        if node.domain not in verbs.STANDARD or len(node.outputs) != 1:
            return False
        if not node.outputs[0].uses() and not node.outputs[0].is_graph_output():
            return False
        constants = [v for v in node.inputs if v is not None and v.producer() is None and v.is_initializer()]
        if kind in _HANDED_ON:
            # a constant that is moved about is one under another name; bounds and shapes are none
            if any(v in constants for v in (node.inputs if kind == "Concat" else node.inputs[:1])):
                return False
            continue
        if kind not in _SCALING and kind not in _SUMS and kind not in ("Add", "Sub"):
            return False
        data = node.inputs[:2] if kind in _TWO_SIDED else node.inputs[:1]
        if all(v in constants for v in data):
            return False
        if kind in ("Add", "Sub"):
            continue
        for value in (v for v in node.inputs[:2] if v in constants):
            key = value, kind in _SCALING or verbs.attribute(node, "group", 1) > 1
            if key not in seen:
                seen[key] = (kind in _SCALING or _has_distinct_rows(value)) and (not key[1] or _has_no_zero(value))
            if not seen[key]:
                return False
    return True


def _has_no_zero(value: ir.Value) -> bool:
    """What holds for a scale, and for a grouped kernel, whose columns are other channels in each group."""
    array = verbs.array_of(value)
    return array is not None and array.dtype.kind == "f" and bool(np.isfinite(array).all() and array.all())


def _has_distinct_rows(value: ir.Value) -> bool:
    """True where rows and columns have different sums of squares, none of them zero: none is zero or like another."""
    array = verbs.array_of(value)
    if array is None or array.dtype not in (np.float32, np.float64) or array.ndim < 2 or 0 in array.shape:
        return False
    flat = array.reshape(*array.shape[:2], -1)
    step = max(1, _BLOCK // (flat.size // len(flat)))
    rows, columns = [], np.zeros(flat.shape[1])
    for start in range(0, len(flat), step):  # a large weight is not spelled out in float64 as a whole
        squares = np.square(flat[start : start + step], dtype=np.float64)
        # what is equal is added up in the same order, so its sums are equal to the last bit
        rows.append(squares.reshape(len(squares), -1).sum(axis=1))
        columns += squares.sum(axis=2).sum(axis=0)
    for sums in (np.sort(np.concatenate(rows)), np.sort(columns)):
        if not np.isfinite(sums).all() or sums[0] == 0 or (sums[1:] == sums[:-1]).any():
            return False
    return True
