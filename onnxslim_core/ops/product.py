"""Gemm, MatMul, what quantization and fusion make of them, and embedding Gather.

With a constant on one side the other side is summed (a sink) and the constant makes fresh channels. Two activations
meet in [batch..., M, N, K]: joined there, then summed over K, so that heads and head widths stay apart. Quantized
products sum x - zero point; their scales and zero points have one entry, or one per column of a constant on the right.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxslim_core import graph as verbs
from onnxslim_core.ops.atoms import Labels
from onnxslim_core.ops.consts import Consts, array_of
from onnxslim_core.ops.conv import product
from onnxslim_core.ops.cut import Cut
from onnxslim_core.ops.flow import Flow, Rule
from onnxslim_core.ops.join import join

__all__ = ["EMBEDDING", "RULES", "from_rows", "weight_rows"]

Array = NDArray[np.generic]


@dataclass(frozen=True, slots=True)
class _Form:
    """Which inputs of an operator are what.

    Attributes:
        sides: The left and the right operand.
        bias: What is added; None where nothing can be.
        flips: Whether `transA` and `transB` turn the operands.
        columns: Scales and zero points of the right operand, one or one per column.
        rows: Those of the left operand, and of the result.
        zeros: Zero points of both operands.
    """

    sides: tuple[int, int] = (0, 1)
    bias: int | None = None
    flips: bool = False
    columns: tuple[int, ...] = ()
    rows: tuple[int, ...] = ()
    zeros: tuple[int | None, int | None] = (None, None)


_PLAIN = _Form()
_FORMS = {
    "Gemm": _Form(bias=2, flips=True),
    "FusedGemm": _Form(bias=2, flips=True),
    "FusedMatMul": _Form(flips=True),
    "MatMulInteger": _Form(rows=(2,), columns=(3,), zeros=(2, 3)),
    "QLinearMatMul": _Form((0, 3), rows=(1, 2, 6, 7), columns=(4, 5), zeros=(2, 5)),
    "MatMulIntegerToFloat": _Form(bias=6, rows=(2, 4), columns=(3, 5), zeros=(4, 5)),
    "DynamicQuantizeMatMul": _Form(bias=4, columns=(2, 3), zeros=(None, 3)),
    "QGemm": _Form((0, 3), bias=6, flips=True, rows=(1, 2, 7, 8), columns=(4, 5), zeros=(2, 5)),
}


def _form(node: ir.Node) -> _Form:
    return _FORMS.get(node.op_type, _PLAIN)


def _given(node: ir.Node, index: int | None) -> ir.Value | None:
    return node.inputs[index] if index is not None and index < len(node.inputs) else None


def _flipped(node: ir.Node, side: int) -> bool:
    return _form(node).flips and bool(verbs.attribute(node, "transB" if side else "transA", 0))


def _axes(node: ir.Node, constant: int, rank: int) -> tuple[int, int]:
    """The axes of the constant side (made, summed); negative, so that batch axes do not matter."""
    if rank == 1:
        return (0, -1)
    return (-1, -2) if (constant == 1) != _flipped(node, constant) else (-2, -1)


def _side(node: ir.Node, array: Array, side: int, rank: int) -> Array:
    """An array shaped like the labels of one operand, in the rank of the result, as MatMul sees it."""
    if array.ndim > 1 and _flipped(node, side):
        array = array.swapaxes(-1, -2)
    if array.ndim == 1:
        array = array.reshape((1, -1) if side == 0 else (-1, 1))
    return array.reshape((1,) * (rank - array.ndim) + array.shape)


def _spread(node: ir.Node, array: Array, side: int, rank: int) -> Array:
    """The same in [batch..., M, N, K]: the left operand is 1 along N, the right one along M."""
    array = _side(node, array, side, rank)
    return np.expand_dims(array, rank - 1) if side == 0 else np.expand_dims(array.swapaxes(-1, -2), rank - 2)


def _label(flow: Flow, node: ir.Node) -> None:
    form = _form(node)
    left, right = (node.inputs[index] for index in form.sides)
    if flow.is_constant(left) and flow.is_constant(right):
        flow.freeze(node, "both sides are constant")
        return
    constant = 1 if flow.is_constant(right) else 0 if flow.is_constant(left) else None
    if not _is_plain(flow, node, constant):
        flow.freeze(node, "its scales are per row, or it turns its batch axes")
        return
    shapes = [flow.shape(left), flow.shape(right)]
    rank = max(2, len(shapes[0]), len(shapes[1]))
    k = shapes[0][-2 if _flipped(node, 0) else -1]
    macs = int(np.prod(flow.shape(node.outputs[0]), dtype=np.int64)) * k
    if constant is None:
        result = _two_activations(flow, node, rank, macs)
    else:
        result = _with_constant(flow, node, constant, rank, macs)
    drop = [axis for axis, shape in ((rank - 2, shapes[0]), (rank - 1, shapes[1])) if len(shape) == 1]
    result = result.reshape([size for axis, size in enumerate(result.shape) if axis not in drop])
    bias = _given(node, form.bias)
    if form.bias is not None and bias is not None:
        if flow.is_constant(bias):
            flow.carry(node, form.bias, result)
        else:
            third = flow.labels(bias)
            assert third is not None
            result, _ = join(flow.atoms, result, flow.shape(node.outputs[0]), third, flow.shape(bias))
    flow.set(node.outputs[0], result)


def _long(flow: Flow, node: ir.Node, indices: tuple[int, ...]) -> list[int]:
    """Those of these inputs that have more than one entry."""
    given = [(index, _given(node, index)) for index in indices]
    return [index for index, value in given if value is not None and int(np.prod(flow.shape(value))) > 1]


def _is_plain(flow: Flow, node: ir.Node, constant: int | None) -> bool:
    """False for scales and zero points that no rule is written for."""
    form = _form(node)
    if any(verbs.attribute(node, name, 0) for name in ("transBatchA", "transBatchB")) or _long(flow, node, form.rows):
        return False
    long = _long(flow, node, form.columns)
    return not long or (constant == 1 and all(flow.is_constant(node.inputs[index]) for index in long))


def _with_constant(flow: Flow, node: ir.Node, constant: int, rank: int, macs: int) -> Labels:
    form = _form(node)
    weight, other = form.sides[constant], form.sides[1 - constant]
    given = flow.labels(node.inputs[other])
    assert given is not None
    labels = np.asarray(_side(node, given, 1 - constant, rank), np.int32)
    summed, made = (rank - 1, rank - 1) if constant == 1 else (rank - 2, rank - 2)
    w_shape = flow.shape(node.inputs[weight])
    out_axis, in_axis = _axes(node, constant, len(w_shape))
    if labels.shape[summed] > 1:
        rest = [axis for axis in range(rank) if axis != summed]
        rows = np.ascontiguousarray(labels.transpose([*rest, summed])).reshape(-1, labels.shape[summed])
        if (rows == rows[:1]).all():
            rows = rows[:1]
        shared = len(w_shape) <= 2 or int(np.prod(w_shape[:-2], dtype=np.int64)) == 1
        axis = in_axis % len(w_shape) if len(rows) == 1 and shared else None
        flow.sink(node, other, rows, weight, axis, zero=form.zeros[1 - constant])
    rest_labels = flow.atoms.contract(labels, [summed])
    if len(w_shape) == 1:
        flow.work(node, macs, rest_labels.reshape(-1), *_row_factor(labels, summed))
        return rest_labels
    new = flow.make(node, weight, out_axis % len(w_shape))
    for index in _long(flow, node, form.columns):
        flow.use(node, index, len(flow.shape(node.inputs[index])) - 1, new, "carry")
    flow.work(node, macs, new, rest_labels.reshape(-1), *_row_factor(labels, summed))
    return flow.atoms.grid(rest_labels, new, made)


def _row_factor(labels: Labels, axis: int) -> list[Labels]:
    others = tuple(i for i in range(labels.ndim) if i != axis)
    first = labels.transpose((*others, axis)).reshape(-1, labels.shape[axis])[0]
    return [np.ascontiguousarray(first)] if first.size > 1 else []


def _two_activations(flow: Flow, node: ir.Node, rank: int, macs: int) -> Labels:
    """[batch..., M, 1, K] meets [batch..., 1, N, K]."""
    form = _form(node)
    spread, shapes = [], []
    for side, index in enumerate(form.sides):
        labels, shape = flow.labels(node.inputs[index]), flow.shape(node.inputs[index])
        assert labels is not None
        spread.append(np.asarray(_spread(node, labels, side, rank), np.int32))
        shapes.append(_spread(node, np.broadcast_to(np.int8(0), shape), side, rank).shape)
    joined, _ = join(flow.atoms, spread[0], shapes[0], spread[1], shapes[1])
    flow.atoms.note(joined)
    if joined.shape[-1] > 1:
        rows = np.ascontiguousarray(joined).reshape(-1, joined.shape[-1])
        for side, index in enumerate(form.sides):
            flow.sink(node, index, rows, None, zero=form.zeros[side])
    flow.work(node, macs, joined.reshape(-1))
    return flow.atoms.contract(joined, [rank])[..., 0]


def _cut(cut: Cut, node: ir.Node) -> None:
    form, flow = _form(node), cut.flow
    result = cut.keeps(node.outputs[0])
    out_rank = len(flow.shape(node.outputs[0]))
    for constant, weight in enumerate(form.sides):
        value, other = node.inputs[weight], node.inputs[form.sides[1 - constant]]
        if value is None or not flow.is_constant(value):
            continue
        shape, other_shape = flow.shape(value), flow.shape(other)
        out_axis, in_axis = _axes(node, constant, len(shape))
        summed = -1 if (constant == 1) != _flipped(node, 1 - constant) or len(other_shape) == 1 else -2
        keeps = {}
        keep = cut.keeps(other).get(len(other_shape) + summed)
        if keep is not None:
            keeps[in_axis % len(shape)] = keep
        if len(shape) > 1:
            made = out_rank - 1 if constant == 1 or len(other_shape) == 1 else out_rank - 2
            if (keep := result.get(made)) is not None:
                keeps[out_axis % len(shape)] = keep
                for index in _long(flow, node, form.columns):
                    cut.constant(node, index, {len(flow.shape(node.inputs[index])) - 1: keep})
        for axis in range(len(shape) - 2):
            if shape[axis] > 1 and (keep := result.get(axis - len(shape) + out_rank)) is not None:
                keeps[axis] = keep
        cut.constant(node, weight, keeps)
    if form.bias is not None and flow.is_constant(_given(node, form.bias)):
        cut.carried(node, form.bias, result, out_rank)


def weight_rows(flow: Flow, node: ir.Node, constant: int) -> np.ndarray | None:
    """The weights as [1, summed, made]; None where they are not at hand or have batch axes."""
    array = array_of(flow, node.inputs[constant])
    if array is None or array.dtype.kind != "f" or array.ndim > 2:
        return None
    if array.ndim == 1:
        return array.reshape(1, -1, 1)
    _, in_axis = _axes(node, constant, array.ndim)
    return (array if in_axis % 2 == 0 else array.T)[None]


def from_rows(node: ir.Node, constant: int, rows: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of `weight_rows`: weights of the shape that the node reads."""
    if len(shape) == 1:
        return rows.reshape(shape)
    _, in_axis = _axes(node, constant, len(shape))
    return np.ascontiguousarray(rows[0] if in_axis % 2 == 0 else rows[0].T)


def _value(consts: Consts, node: ir.Node) -> None:
    flow = consts.flow
    if flow.is_constant(node.inputs[1]) == flow.is_constant(node.inputs[0]):
        _value_two(consts, node)
        return
    constant = 1 if flow.is_constant(node.inputs[1]) else 0
    rows = weight_rows(flow, node, constant)
    labels = flow.labels(node.inputs[1 - constant])
    if rows is None or labels is None:
        return
    side = _side(node, labels, 1 - constant, max(2, labels.ndim))
    alone = side.size == side.shape[-1 if constant else -2]
    x = consts.get(node.inputs[1 - constant]) if alone else None  # else all that is known is what weighs nothing
    given = np.full(rows.shape[1], np.nan) if x is None else np.broadcast_to(x.reshape(-1), (rows.shape[1],))
    weight = rows.transpose(0, 2, 1)[..., None] * float(verbs.attribute(node, "alpha", 1.0))
    result = product(weight, given.reshape(1, 1, -1), True).reshape(-1)
    if constant == 0 and len(flow.shape(node.inputs[0])) > 1 and labels.ndim > 1:
        result = result[:, None]
    if node.op_type == "Gemm" and len(node.inputs) > 2 and node.inputs[2] is not None:
        bias = consts.operand(node.inputs[2])
        if bias is None:
            return
        result = result + bias * float(verbs.attribute(node, "beta", 1.0))
    rank = len(flow.shape(node.outputs[0]))
    consts.set(node.outputs[0], result.reshape((1,) * (rank - result.ndim) + result.shape))


def _value_two(consts: Consts, node: ir.Node) -> None:
    """A sum of products of which one factor is always zero is zero; nothing else is known."""
    labels = consts.flow.labels(node.outputs[0])
    if labels is None or (consts.get(node.inputs[0]) is None and consts.get(node.inputs[1]) is None):
        return
    if node.op_type == "Gemm" and len(node.inputs) > 2:
        return
    ranks = [len(consts.flow.shape(value)) for value in node.inputs[:2]]
    rank = max(2, *ranks)
    zero = [_spread(node, consts.full(value), index, rank) == 0 for index, value in enumerate(node.inputs[:2]) if value]
    found = np.where((zero[0] | zero[1]).all(axis=-1), 0.0, np.nan)
    drop = [axis for axis, own in ((rank - 2, ranks[0]), (rank - 1, ranks[1])) if own == 1]
    consts.set(node.outputs[0], found.reshape([size for axis, size in enumerate(found.shape) if axis not in drop]))


def _label_gather(flow: Flow, node: ir.Node) -> None:
    """An embedding: rows of a constant table chosen by computed indices; its columns are channels."""
    table, rank = flow.shape(node.inputs[0]), len(flow.shape(node.outputs[0]))
    axis = int(verbs.attribute(node, "axis", 0)) % len(table)
    if len(table) < 2 or axis == len(table) - 1:
        flow.set(node.outputs[0], flow.atoms.fresh(1).reshape((1,) * rank))
        return
    flow.set(node.outputs[0], flow.make(node, 0, len(table) - 1).reshape((1,) * (rank - 1) + (-1,)))


def _cut_gather(cut: Cut, node: ir.Node) -> None:
    rank = len(cut.flow.shape(node.outputs[0]))
    if (keep := cut.keeps(node.outputs[0]).get(rank - 1)) is not None:
        cut.constant(node, 0, {len(cut.flow.shape(node.inputs[0])) - 1: keep})


EMBEDDING = Rule(_label_gather, _cut_gather)
_OTHER = Rule(_label, _cut)
_FUSED = ("FusedGemm", "FusedMatMul", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QGemm")
RULES = {
    "Gemm": Rule(_label, _cut, _value),
    "MatMul": Rule(_label, _cut, _value),
    **dict.fromkeys(("MatMulInteger", "QLinearMatMul"), _OTHER),
    **{f"com.microsoft.{op}": _OTHER for op in _FUSED},
}
