"""Sums over channels: what each sees, and how a constant contribution goes into its bias."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxslim_core import graph as verbs
from onnxslim_core.channels.groups import ChannelGraph
from onnxslim_core.ops import conv, product
from onnxslim_core.ops.atoms import Labels
from onnxslim_core.ops.consts import Consts
from onnxslim_core.ops.flow import Sink

__all__ = ["Shift", "Sum", "add_shifts", "shifts_of", "store_weights", "sums_of"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Sum:
    """What a sum sees.

    Attributes:
        sink: Where it is.
        classes: Its labels as classes; shape (rows, k).
        values: The value of each channel, NaN where it is not known; shape (rows, k).
        weights: Shape (rows, k, outputs and taps); None where the other side is computed, too.
        plain: No padding: a constant channel adds a constant.
    """

    sink: Sink
    classes: NDArray[np.int32]
    values: Floats
    weights: NDArray[np.generic] | None
    plain: bool


@dataclass(frozen=True, slots=True, eq=False)
class Shift:
    """What has to be added to every output channel of a node once channels are gone; (outputs,)."""

    node: ir.Node
    amount: Floats
    labels: Labels | None


def _weights(channels: ChannelGraph, sink: Sink) -> tuple[NDArray[np.generic] | None, bool]:
    node, flow = sink.node, channels.flow
    if sink.weight is None:
        return None, False
    if verbs.is_op(node, "Conv", "ConvTranspose"):
        return conv.weight_rows(flow, node), conv.pads_nothing(node, flow.shape(node.inputs[1])[2:])
    if verbs.is_op(node, "Gemm", "MatMul"):
        return product.weight_rows(flow, node, sink.weight), sink.weight == 1
    return None, False


def sums_of(channels: ChannelGraph, consts: Consts) -> list[Sum]:
    """Every sum over labelled channels, with the values that `consts` knows."""
    found = []
    for sink in channels.sinks:
        value = sink.node.inputs[sink.index]
        assert value is not None
        classes = channels.of(sink.labels)
        weights, plain = _weights(channels, sink)
        if weights is not None and weights.shape[:2] != sink.labels.shape:
            weights, plain = None, False
        found.append(Sum(sink, classes, _values(channels, consts, value, classes), weights, plain))
    return found


def _values(channels: ChannelGraph, consts: Consts, value: ir.Value, classes: NDArray[np.int32]) -> Floats:
    """Values in the layout of a sum; where the layouts differ, by class and only where a class has one value."""
    given = consts.get(value)
    if given is None:
        return np.full(classes.shape, np.nan)
    own = channels.of(channels.flow.table[value]).reshape(-1)
    if np.array_equal(own, classes.reshape(-1)):
        return given.reshape(classes.shape)
    low, high = np.full(len(channels.classes.of), np.inf), np.full(len(channels.classes.of), -np.inf)
    flat = np.where(np.isnan(given), np.inf, given).reshape(-1)
    np.minimum.at(low, own, flat)
    np.maximum.at(high, own, flat)
    return np.where((low == high) & np.isfinite(low), low, np.nan)[classes]


def shifts_of(channels: ChannelGraph, sums: list[Sum], classes: set[int]) -> list[Shift]:
    """What the classes contribute to every sum with constant weights; to be found before they are removed."""
    wanted = np.array(sorted(classes), np.int64)
    shifts = []
    for each in sums:
        hit = np.isin(each.classes, wanted) & np.isfinite(each.values) & (each.values != 0)
        if each.weights is None or not hit.any():
            continue
        outputs = _outputs(channels, each)
        amount = np.einsum("rk,rkn->rn", np.where(hit, each.values, 0.0), np.asarray(each.weights, np.float64))
        node = each.sink.node
        shifts.append(Shift(node, amount.reshape(outputs, -1).sum(axis=1), channels.flow.table.get(node.outputs[0])))
    return shifts


def _outputs(channels: ChannelGraph, each: Sum) -> int:
    node = each.sink.node
    axis = 1 if verbs.is_op(node, "Conv", "ConvTranspose") else -1
    return channels.flow.shape(node.outputs[0])[axis]


def add_shifts(model: ir.Model, shifts: list[Shift], gone: NDArray[np.bool_]) -> None:
    """Add shifts to the biases of their nodes, after the removal of the atoms `gone`."""
    names = verbs.Names(model)
    for shift in shifts:
        amount = shift.amount
        if shift.node.graph is None:
            continue
        if shift.labels is not None and shift.labels.size == len(amount):
            amount = amount[~gone[shift.labels.reshape(-1)]]
        _add_to_bias(shift.node, amount, names)


def _add_to_bias(node: ir.Node, shift: Floats, names: verbs.Names) -> None:
    graph, dtype = node.graph, node.outputs[0].dtype
    assert isinstance(graph, ir.Graph)
    weight = verbs.array_of(node.inputs[1])
    kind = weight.dtype if weight is not None else np.dtype(np.float32) if dtype is None else dtype.numpy()

    def constant(array: Floats) -> ir.Value:
        return verbs.add_constant(graph, names, array.astype(kind), f"{node.name or node.op_type}/bias")

    given = node.inputs[2] if len(node.inputs) > 2 else None
    old = verbs.array_of(given)
    if node.op_type == "MatMul" or (given is not None and old is None):
        _add_after(node, constant(shift if node.op_type != "Conv" else shift.reshape(-1, *_ones(node))), names)
        return
    factor = float(verbs.attribute(node, "alpha", 1.0)) if node.op_type == "Gemm" else 1.0
    base = np.zeros(1) if old is None else np.asarray(old, np.float64)
    if node.op_type == "Gemm":
        base = base * float(verbs.attribute(node, "beta", 1.0))
        verbs.set_attribute(node, "beta", None)
    verbs.replace_input(node, 2, constant(base + shift * factor))


def _ones(node: ir.Node) -> list[int]:
    weight = verbs.array_of(node.inputs[1])
    return [1] * (2 if weight is None else weight.ndim - 2)


def _add_after(node: ir.Node, bias: ir.Value, names: verbs.Names) -> None:
    """`node + bias`, as a new Add that every reader reads."""
    graph, value = node.graph, node.outputs[0]
    assert isinstance(graph, ir.Graph)
    readers, is_output = verbs.users_of(value)
    add = ir.node("Add", [value, bias])
    add.name = names.new(f"{node.name or node.op_type}/Add")
    add.outputs[0].name = names.new(f"{value.name}/shifted")
    add.outputs[0].type = value.type
    graph.insert_after(node, add)
    if is_output:
        verbs.replace(value, add.outputs[0], names)
        verbs.replace_input(add, 0, value)
        return
    for reader, index in readers:
        verbs.replace_input(reader, index, add.outputs[0])


def store_weights(channels: ChannelGraph, sink: Sink, rows: Floats) -> None:
    """Let a node read these weights (rows, k, outputs and taps) as a new constant, in its own layout."""
    node, index = sink.node, sink.weight
    assert index is not None
    value = node.inputs[index]
    old = verbs.array_of(value)
    assert old is not None and value is not None
    if verbs.is_op(node, "Conv", "ConvTranspose"):
        new = conv.from_rows(node, rows, old.shape)
    else:
        new = product.from_rows(node, index, rows, old.shape)
    graph = verbs.owner_of(value)
    assert isinstance(graph, ir.Graph)
    made = verbs.add_constant(graph, verbs.Names(channels.flow.model), new.astype(old.dtype), str(value.name))
    channels.flow.adopt(made, value)
    verbs.replace_input(node, index, made)
