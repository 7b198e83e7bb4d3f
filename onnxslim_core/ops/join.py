"""Elementwise operators over several operands, with broadcasting.

Per axis: both vary: the same atoms; one is really of size 1 there: it goes when all it meets goes; one is wide but
unlabelled: the other is mixed; each varies where the other does not: both are mixed. A constant has no labels: it is
cut like the result, on its axes longer than 1 (T36).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxslim_core.ops.atoms import Atoms, Labels
from onnxslim_core.ops.consts import Consts, evaluate
from onnxslim_core.ops.cut import Cut
from onnxslim_core.ops.flow import Flow, Rule

__all__ = ["RULES", "join"]

Shape = Sequence[int]

_FIXED_SIDE = "what it is combined with has no channels that could go"


def join(atoms: Atoms, a: Labels, a_shape: Shape, b: Labels, b_shape: Shape) -> tuple[Labels, tuple[int, ...]]:
    """Labels and shape of a result that depends, element by element, on two operands."""
    rank = max(a.ndim, b.ndim)
    a, a_shape = a.reshape((1,) * (rank - a.ndim) + a.shape), (1,) * (rank - len(a_shape)) + tuple(a_shape)
    b, b_shape = b.reshape((1,) * (rank - b.ndim) + b.shape), (1,) * (rank - len(b_shape)) + tuple(b_shape)
    shape = tuple(max(p, q) if 0 not in (p, q) else 0 for p, q in zip(a_shape, b_shape, strict=True))
    a = atoms.mix(a, [i for i in range(rank) if b.shape[i] == 1 < b_shape[i]], _FIXED_SIDE)
    b = atoms.mix(b, [i for i in range(rank) if a.shape[i] == 1 < a_shape[i]], _FIXED_SIDE)
    only_a = [i for i in range(rank) if a.shape[i] > 1 == b.shape[i]]
    only_b = [i for i in range(rank) if b.shape[i] > 1 == a.shape[i]]
    if only_a and only_b:
        a, b = atoms.mix(a, only_a), atoms.mix(b, only_b)
        only_a = only_b = []
    if only_b:
        a, b, only_a = b, a, only_b
    if not only_a:
        if a.size > 1:
            atoms.unite(a, b)
        return a, shape
    if b.size > 1:
        rest = [i for i in range(rank) if i not in only_a]
        atoms.rel(b.transpose(rest + only_a).reshape(-1), a.transpose(rest + only_a).reshape(b.size, -1))
    return a, shape


def _label(flow: Flow, node: ir.Node) -> None:
    result: Labels | None = None
    shape: tuple[int, ...] = ()
    for value in node.inputs:
        labels = flow.labels(value)
        if labels is None:
            continue
        if result is None:
            result, shape = labels, flow.shape(value)
        else:
            result, shape = join(flow.atoms, result, shape, labels, flow.shape(value))
    if result is None:
        flow.freeze(node, "all its operands are constant")
        return
    rank = len(flow.shape(node.outputs[0]))
    result = result.reshape((1,) * (rank - result.ndim) + result.shape)
    result = _spread(flow, node, result, (1,) * (rank - len(shape)) + tuple(shape))
    for index, value in enumerate(node.inputs):
        if flow.is_constant(value):
            flow.carry(node, index, result)
    flow.set(node.outputs[0], result)


def _spread(flow: Flow, node: ir.Node, result: Labels, shape: Shape) -> Labels:
    """Labels of a number per tensor times a constant vector, as a scale per channel is: one for each of its entries.

    They stay what they are where the result varies otherwise, or where the vector is no channel but a size.
    """
    full = flow.shape(node.outputs[0])
    wide = [axis for axis, (own, size) in enumerate(zip(shape, full, strict=True)) if own == 1 < size]
    constants = [value for value in node.inputs if flow.is_constant(value)]
    if result.size > 1 or len(wide) != 1 or any(value in flow.sized for value in constants):
        return result
    (axis,) = wide
    return flow.atoms.fresh(full[axis]).reshape([-1 if i == axis else 1 for i in range(len(full))])


def _cut(cut: Cut, node: ir.Node) -> None:
    result, rank = cut.keeps(node.outputs[0]), len(cut.flow.shape(node.outputs[0]))
    for index, value in enumerate(node.inputs):
        if cut.flow.is_constant(value):
            cut.carried(node, index, result, rank)


def _value(consts: Consts, node: ir.Node) -> None:
    """Only looked into where an activation is known somewhere, or a factor is zero."""
    flow = consts.flow
    found: list[np.ndarray | None] = []
    any_known = False
    for value in node.inputs:
        if value is None:
            found.append(None)
        elif flow.is_constant(value):
            operand = consts.operand(value)
            if operand is None and node.op_type != "Mul":
                return
            # what is not known, such as a table of positions cut at a computed length, times zero is zero
            operand = np.full((1,) * len(flow.shape(value)), np.nan) if operand is None else operand
            found.append(operand)
            any_known |= node.op_type == "Mul" and not operand.all()
        else:
            any_known |= consts.get(value) is not None
            found.append(consts.full(value))
    if not any_known or node.op_type not in _ARITHMETIC:
        return
    results = evaluate(node, found, consts.opset)
    if results is None:
        return
    result = np.asarray(results[0], np.float64)
    if node.op_type == "Mul":
        zero = np.zeros(result.shape, np.bool_)
        for array in found:
            zero |= np.broadcast_to(array == 0, result.shape) if array is not None else False
        result = np.where(zero, 0.0, result)
    rank = len(flow.shape(node.outputs[0]))
    consts.set(node.outputs[0], result.reshape((1,) * (rank - result.ndim) + result.shape))


_ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div", "Sum", "PRelu"})
_OPS = (
    *("Add", "Sub", "Mul", "Div", "Pow", "Mod", "Min", "Max", "Sum", "Mean", "Where", "PRelu", "And", "Or", "Xor"),
    *("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "BitShift"),
    *("BitwiseAnd", "BitwiseOr", "BitwiseXor"),
)
RULES = {op: Rule(_label, _cut, _value) for op in _OPS}
