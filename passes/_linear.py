"""The weights of Conv, ConvTranspose, Gemm, MatMul and BatchNormalization, seen by their channels.

What a scale on the outputs, a scale on the inputs or a shift of the inputs does to a weight, whatever its layout:

    Conv           [O, I/group, kernel...]     output o reads the inputs of its group
    ConvTranspose  [I, O/group, kernel...]     the mirror image
    Gemm           [I, O], or [O, I] where transB = 1
    MatMul         [I, O]
    BatchNormalization  gamma, [O]
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxslim_core.graph import attribute, is_op

__all__ = ["by_input", "by_output", "inputs_of", "outputs_of", "response"]


def inputs_of(node: ir.Node, shape: tuple[int, ...]) -> int:
    """Channels that a node reads, from the shape of its weight."""
    if is_op(node, "Conv"):
        return shape[1] * _groups(node)
    return shape[1] if _is_transposed(node) else shape[0]


def outputs_of(node: ir.Node, shape: tuple[int, ...]) -> int:
    """Channels that a node makes, from the shape of its weight."""
    if is_op(node, "ConvTranspose"):
        return shape[1] * _groups(node)
    if is_op(node, "Gemm", "MatMul"):
        return shape[0] if _is_transposed(node) else shape[1]
    return shape[0]


def by_output(node: ir.Node, weight: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """The weight with output channel o multiplied by factors[o]; one factor counts for all."""
    factors = np.broadcast_to(factors, outputs_of(node, weight.shape))
    if is_op(node, "ConvTranspose"):
        factors = _over_groups(node, factors, weight.shape[0])
    if not is_op(node, "Gemm", "MatMul") or _is_transposed(node):
        factors = _to_rank(factors, weight.ndim)
    return np.asarray(weight * factors)


def by_input(node: ir.Node, weight: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """The weight with input channel i multiplied by factors[i]; one factor counts for all."""
    factors = np.broadcast_to(factors, inputs_of(node, weight.shape))
    if is_op(node, "Conv"):
        factors = _over_groups(node, factors, weight.shape[0])
    if not _is_transposed(node):
        factors = _to_rank(factors, weight.ndim)
    return np.asarray(weight * factors)


def response(node: ir.Node, weight: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """What each output gains when input channel i is shifted by shift[i] everywhere; for Conv, Gemm and MatMul.

    For a Conv this holds where no zero is padded: out[o] = sum over i and kernel of W[o, i, ...] * shift[i].
    """
    moved = by_input(node, weight, shift)
    if is_op(node, "Conv"):
        return np.asarray(moved.reshape(moved.shape[0], -1).sum(axis=1))
    alpha = float(attribute(node, "alpha", 1.0)) if is_op(node, "Gemm") else 1.0
    return np.asarray(alpha * moved.sum(axis=1 if _is_transposed(node) else 0))


def _groups(node: ir.Node) -> int:
    return int(attribute(node, "group", 1))


def _is_transposed(node: ir.Node) -> bool:
    return is_op(node, "Gemm") and bool(attribute(node, "transB", 0))


def _over_groups(node: ir.Node, factors: np.ndarray, rows: int) -> np.ndarray:
    """Per-channel factors of the second weight axis, [rows, channels / group]: each row sees those of its group."""
    groups = _groups(node)
    return np.repeat(factors.reshape(groups, -1), rows // groups, axis=0)


def _to_rank(array: np.ndarray, rank: int) -> np.ndarray:
    return array.reshape(array.shape + (1,) * (rank - array.ndim))
