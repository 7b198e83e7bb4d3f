"""The weight of a Conv, Gemm or MatMul as a matrix, wherever it stands."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from onnxslim_core.calibration.consumers import answer_of
from onnxslim_core.graph import array_of, attribute, is_op

__all__ = ["matrix", "shifted", "weight_of"]

_FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def weight_of(node: ir.Node) -> tuple[int, np.ndarray, tuple[int, ...]] | None:
    """The constant weight of a linear layer.

    Returns:
        Which input it is; the array as the formula uses it, d x n (for a Conv: rows ordered channel by channel, tap by
        tap; turned where it is the left operand of a MatMul); the kernel of a Conv, () else. None for other
        operators, grouped convolutions, and weights that are computed, fed, no floats or no matrices.
    """
    if is_op(node, "Conv") and len(node.inputs) > 1:
        value = node.inputs[1]
        if int(attribute(node, "group", 1)) != 1 or not _is_float(value):
            return None
        array = array_of(value)
        if array is None or array.ndim < 3 or 0 in array.shape:
            return None
        return 1, array.reshape(array.shape[0], -1).T, array.shape[2:]
    if not is_op(node, "Gemm", "MatMul") or len(node.inputs) < 2:
        return None
    for place in (1, 0) if is_op(node, "MatMul") else (1,):
        array = matrix(node.inputs[place])
        if array is not None:
            turned = place == 0 or (is_op(node, "Gemm") and attribute(node, "transB", 0))
            return place, array.T if turned else array, ()
    return None


def matrix(value: ir.Value | None) -> np.ndarray | None:
    """A constant matrix of floats, also one behind Identity and Transpose nodes; None where it is something else."""
    turned = False
    while value is not None and is_op(producer := value.producer(), "Identity", "Transpose"):
        assert producer is not None
        turned ^= producer.op_type == "Transpose" and tuple(attribute(producer, "perm", (1, 0))) == (1, 0)
        value = producer.inputs[0]
    if not _is_float(value):
        return None
    array = array_of(value)
    if array is None or array.ndim != 2 or 0 in array.shape or array.dtype.kind not in "fV":
        return None
    return array.T if turned else array


def _is_float(value: ir.Value | None) -> bool:
    return value is not None and (value.dtype is None or value.dtype in _FLOATS)


def shifted(node: ir.Node) -> tuple[ir.Node, int] | None:
    """Where a constant per output can be added without another node, as a node and the number of its input.

    The bias of a Conv or Gemm, there or not, unless it is computed or differs from row to row; the Add of a constant
    behind a MatMul. None where there is no such place.
    """
    if is_op(node, "MatMul"):
        add = answer_of(node).producer()
        if add is None or add is node:
            return None
        return add, next(index for index, value in enumerate(add.inputs) if array_of(value) is not None)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is None:
        return node, 2
    array = array_of(bias)
    # a C with a row of its own per sample would have to be written out
    return (node, 2) if array is not None and math.prod(array.shape[:-1]) == 1 else None
