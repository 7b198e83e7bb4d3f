"""How what removed channels would have added, a constant, goes into the bias of the node that sums them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxslim_core import graph as verbs
from onnxslim_core.channels.groups import ChannelGraph
from onnxslim_core.channels.sums import Sum
from onnxslim_core.ops.consts import array_of
from onnxslim_core.ops.flow import Flow

__all__ = ["Shift", "add_shifts", "contribution", "shifts_of"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Shift:
    """A bias that takes a constant over.

    Attributes:
        source: The node that sums.
        node: The node that adds the bias: `source`, or an Add that alone reads it; None: an Add has to be made.
        index: The input of `node` that is the bias.
        base: What it is now.
        amount: What is added; both before any channel of it is removed.
        axis: The axis of the bias with the output channels, from the end.
        keeps: For each output channel the atom it goes with; None where none of them goes.
        dtype: To be stored in.
    """

    source: ir.Node
    node: ir.Node | None
    index: int
    base: Floats
    amount: Floats
    axis: int
    keeps: NDArray[np.int32] | None
    dtype: np.dtype[np.floating]

    @property
    def fits(self) -> bool:
        """False where a number may be too large for the type."""
        return bool((np.abs(self.base) + np.abs(self.amount) <= float(np.finfo(self.dtype).max)).all())


def shifts_of(channels: ChannelGraph, sums: Sequence[Sum], classes: set[int]) -> list[Shift]:
    """What the classes contribute to every sum with constant weights; to be found before they are removed."""
    wanted = np.zeros(len(channels.classes.of), np.bool_)
    wanted[np.fromiter(classes, np.int64)] = True
    shifts = []
    for each in sums:
        if each.weights is None:
            continue
        hit = wanted[each.classes] & each.counts & np.isfinite(each.values)
        if hit.any():
            amount = contribution(channels.flow, each, np.where(hit, each.values, 0.0), np.asarray(each.weights))
            shifts.append(_shift(channels.flow, each, amount))
    return shifts


def contribution(flow: Flow, each: Sum, values: Floats, weights: NDArray[np.generic]) -> Floats:
    """What channels of these values (rows, k) add to every output channel, (outputs,), in the mean over positions.

    At a ConvTranspose of stride s a position sees one tap in s.
    """
    node, shape = each.node, flow.shape(each.node.inputs[each.sink.weight or 0])
    outputs, scale = weights.shape[2], float(verbs.attribute(node, "alpha", 1.0))
    if verbs.is_op(node, "Conv"):
        outputs = shape[0]
    if verbs.is_op(node, "ConvTranspose"):
        outputs = shape[1] * len(each.classes)
        scale /= prod(verbs.attribute(node, "strides", (1,)))
    seen = (values != 0).any(axis=0)
    amount = np.einsum("rk,rkn->rn", values[:, seen], np.asarray(weights[:, seen], np.float64))
    return np.asarray(amount.reshape(outputs, -1).sum(axis=1) * scale)


def _shift(flow: Flow, each: Sum, amount: Floats) -> Shift:
    """Where a constant goes: into the node's own bias, into that of an Add behind it, else into a new Add."""
    node, rows = each.node, each.sink.weight == 0
    assert each.weights is not None
    labels, axis = flow.table.get(node.outputs[0]), -1
    keeps = labels.reshape(-1) if labels is not None and labels.size == len(amount) > 1 else None
    kernel = verbs.is_op(node, "Conv", "ConvTranspose")
    dtype: np.dtype[np.floating] = np.dtype(each.weights.dtype)
    if kernel or verbs.is_op(node, "Gemm"):
        given = node.inputs[2] if len(node.inputs) > 2 else None
        base = np.zeros(1) if given is None else array_of(flow, given)
        if base is not None:
            beta = float(verbs.attribute(node, "beta", 1.0))
            base = np.asarray(base, np.float64) * beta if beta else np.zeros(1)
            if rows:
                amount, axis = amount[:, None], -2
            return Shift(node, node, 2, base, amount, axis, keeps, dtype)
    rank = len(flow.shape(node.outputs[0]))
    if len(flow.shape(node.inputs[each.sink.weight or 0])) == 1:
        amount = amount.reshape(())  # a vector makes no channels: one number for all results
    elif rows and rank > 1:
        amount, axis = amount[:, None], -2
    if kernel:
        amount, axis = amount.reshape(-1, *(1,) * (rank - 2)), 1 - rank
    behind = _add_behind(flow, node, amount.size)
    if behind is not None and not kernel:
        add, index, base = behind
        return Shift(node, add, index, base, amount, axis, keeps, dtype)
    return Shift(node, None, 1, np.zeros(()), amount, axis, keeps, dtype)


def _add_behind(flow: Flow, node: ir.Node, outputs: int) -> tuple[ir.Node, int, Floats] | None:
    """An Add of a constant that alone reads a node: the Add, the constant's input and its numbers."""
    readers, is_output = verbs.users_of(node.outputs[0])
    if is_output or len(readers) != 1 or not verbs.is_op(readers[0][0], "Add"):
        return None
    add, index = readers[0][0], 1 - readers[0][1]
    base = array_of(flow, add.inputs[index])
    if base is None or not (base.size == 1 or base.shape[-1] == base.size == outputs):
        return None
    return add, index, np.asarray(base, np.float64)


def add_shifts(channels: ChannelGraph, shifts: Sequence[Shift], gone: NDArray[np.bool_]) -> None:
    """Store these biases, after the removal of the atoms `gone`."""
    names = verbs.Names(channels.flow.model)
    for shift in shifts:
        source, bias = shift.source, shift.base + shift.amount
        graph = source.graph
        if not isinstance(graph, ir.Graph):
            continue
        if shift.keeps is not None and bias.ndim and bias.shape[shift.axis] == len(shift.keeps):
            bias = bias.compress(~gone[shift.keeps], axis=shift.axis)
        made = verbs.add_constant(graph, names, bias.astype(shift.dtype), f"{source.name or source.op_type}/bias")
        if shift.node is None:
            verbs.add_behind(source, made, names)
            continue
        if verbs.is_op(shift.node, "Gemm"):
            verbs.set_attribute(shift.node, "beta", None)
        verbs.replace_constant(shift.node, shift.index, made)
