"""Concat and Pad: tensors put beside each other, or beside a number."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxslim_core import graph as verbs
from onnxslim_core.ops.atoms import Labels
from onnxslim_core.ops.consts import Consts
from onnxslim_core.ops.cut import Cut
from onnxslim_core.ops.flow import Flow, Rule, axes_of
from onnxslim_core.ops.move import Array, axis_of

__all__ = ["RULES"]


def _tensors(node: ir.Node) -> list[int]:
    """The inputs that are put beside each other; QLinearConcat has scale and zero point behind each."""
    return list(range(2, len(node.inputs), 3)) if node.op_type == "QLinearConcat" else list(range(len(node.inputs)))


def _concat_parts(flow: Flow, node: ir.Node, arrays: list[Array | None], constants: list[Array | None]) -> Array:
    """Concat of arrays shaped like labels: full along the axis, broadcast elsewhere."""
    rank = len(flow.shape(node.outputs[0]))
    axis = axis_of(node, rank)
    parts = [array if array is not None else constant for array, constant in zip(arrays, constants, strict=True)]
    given = [part for part in parts if part is not None]
    common = [max(part.shape[i] for part in given) for i in range(rank)]
    full = []
    for value, part in zip((node.inputs[i] for i in _tensors(node)), parts, strict=True):
        assert part is not None
        common[axis] = flow.shape(value)[axis]
        full.append(np.broadcast_to(part, common))
    return np.concatenate(full, axis=axis)


def _label_concat(flow: Flow, node: ir.Node) -> None:
    rank = len(flow.shape(node.outputs[0]))
    axis = axis_of(node, rank)
    indices = _tensors(node)
    arrays = [flow.labels(node.inputs[index]) for index in indices]
    given = [array for array in arrays if array is not None]
    if not given:
        flow.freeze(node, "all its operands are constant")
        return
    if not _varies(flow, node, given, axis):
        result = given[0]
        for other in given[1:]:
            if other.shape != result.shape:
                other, result = (flow.atoms.mix(side, range(rank)) for side in (other, result))
            if result.size > 1:
                flow.atoms.unite(result, other)
        for index in indices:
            if flow.is_constant(node.inputs[index]):
                flow.carry(node, index, result)
        flow.set(node.outputs[0], result)
        return
    fresh: list[Labels | None] = []
    for index, labels in zip(indices, arrays, strict=True):
        if labels is not None:
            fresh.append(None)
            continue
        new = flow.make(node, index, axis)
        fresh.append(new.reshape([-1 if i == axis else 1 for i in range(rank)]))
    flow.set(node.outputs[0], np.asarray(_concat_parts(flow, node, list(arrays), list(fresh)), np.int32))


def _varies(flow: Flow, node: ir.Node, given: list[Labels], axis: int) -> bool:
    """True where some operand is labelled along the axis, or all are labelled nowhere else (one channel each)."""
    return any(labels.shape[axis] > 1 for labels in given) or (
        len(given) > 1 and all(labels.size == 1 for labels in given) and len({int(x.flat[0]) for x in given}) > 1
    )


def _cut_concat(cut: Cut, node: ir.Node) -> None:
    result = cut.keeps(node.outputs[0])
    rank = len(cut.flow.shape(node.outputs[0]))
    axis, start = axis_of(node, rank), 0
    for index in _tensors(node):
        value = node.inputs[index]
        size = cut.flow.shape(value)[axis]
        if cut.flow.is_constant(value) and result:
            keeps = {i: keep for i, keep in result.items() if i != axis and cut.flow.shape(value)[i] > 1}
            if axis in result:
                inside = result[axis][(result[axis] >= start) & (result[axis] < start + size)] - start
                if len(inside) < size:
                    keeps[axis] = inside
            cut.constant(node, index, keeps)
        start += size


def _value_concat(consts: Consts, node: ir.Node) -> None:
    """Along labelled channels each part keeps its values; elsewhere a channel is constant where all parts agree."""
    flow = consts.flow
    labels = flow.labels(node.outputs[0])
    if labels is None:
        return
    axis = axis_of(node, labels.ndim)
    found: list[Array] = []
    for value in node.inputs:
        assert value is not None
        operand = consts.operand(value) if flow.is_constant(value) else consts.full(value)
        if operand is None:
            operand = np.full((1,) * labels.ndim, np.nan)
        found.append(operand)
    if any(part.ndim != labels.ndim for part in found):
        return
    if labels.shape[axis] > 1:
        consts.set(node.outputs[0], np.asarray(_concat_parts(flow, node, list(found), [None] * len(found)), np.float64))
        return
    widths = [1 if i == axis else max(part.shape[i] for part in found) for i in range(labels.ndim)]
    spread = [
        np.broadcast_to(part, [part.shape[axis] if i == axis else w for i, w in enumerate(widths)]) for part in found
    ]
    consts.set(node.outputs[0], np.concatenate(spread, axis=axis, dtype=np.float64))


def _pads(flow: Flow, node: ir.Node, rank: int) -> list[tuple[int, int]] | None:
    """(before, after) per axis; None where computed from data."""
    given = verbs.attribute(node, "pads", verbs.attribute(node, "paddings"))
    if given is None and len(node.inputs) > 1:
        known = flow.known(node.inputs[1])
        given = None if known is None else [int(entry) for entry in known.reshape(-1)]
    axes = axes_of(flow, node, rank, index=3)
    if given is None or axes is None:
        return None
    pads = [(0, 0)] * rank
    for position, axis in enumerate(axes):
        pads[axis] = (int(given[position]), int(given[position + len(axes)]))
    return pads


def _label_pad(flow: Flow, node: ir.Node) -> None:
    labels, rank = flow.labels(node.inputs[0]), len(flow.shape(node.outputs[0]))
    pads = _pads(flow, node, rank)
    if labels is None or pads is None:
        flow.freeze(node, "its widths are computed from data")
        return
    constant = str(verbs.attribute(node, "mode", "constant")) == "constant"
    for axis, (before, after) in enumerate(pads):
        if labels.shape[axis] == 1 or (before, after) == (0, 0):
            continue
        if not constant or min(before, after) < 0:
            labels = flow.atoms.mix(labels, [axis])
            continue
        shape = list(labels.shape)
        parts = []
        for count in (before, after):
            shape[axis] = count
            new = flow.atoms.fresh(count).reshape([-1 if i == axis else 1 for i in range(rank)])
            parts.append(np.broadcast_to(new, shape))
        labels = np.concatenate([parts[0], labels, parts[1]], axis=axis)
    flow.set(node.outputs[0], labels)


def _cut_pad(cut: Cut, node: ir.Node) -> None:
    shape = cut.flow.shape(node.inputs[0])
    keeps, pads = cut.keeps(node.outputs[0]), _pads(cut.flow, node, len(shape))
    if not keeps or pads is None:
        return
    axes = axes_of(cut.flow, node, len(shape), index=3) or []
    new: dict[int, int] = {}
    for position, axis in enumerate(axes):
        before, after = pads[axis]
        if axis in keeps and (before, after) != (0, 0):
            new[position] = int((keeps[axis] < before).sum())
            new[position + len(axes)] = int((keeps[axis] >= before + shape[axis]).sum())
    if not new:
        return
    for name in ("pads", "paddings"):
        if (entries := verbs.attribute(node, name)) is not None:
            entries = [new.get(i, entry) for i, entry in enumerate(entries)]
            verbs.set_attribute(node, name, entries)
            return
    cut.entries(node, 1, new)


def _value_pad(consts: Consts, node: ir.Node) -> None:
    """New channels hold the pad value; a channel padded in space stays constant only where it is that value."""
    flow, rank = consts.flow, len(consts.flow.shape(node.outputs[0]))
    source = verbs.first_input(node)
    pads, x, labels = _pads(flow, node, rank), consts.full(source), flow.labels(source)
    if pads is None or labels is None:
        return
    if str(verbs.attribute(node, "mode", "constant")) != "constant":
        if all(size == 1 or pads[axis] == (0, 0) for axis, size in enumerate(labels.shape)):
            consts.set(node.outputs[0], x)  # what is copied to the border is that value again
        return
    fill = float(verbs.attribute(node, "value", 0.0))
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        operand = consts.operand(node.inputs[2])
        if operand is None or operand.size != 1:
            return
        fill = float(operand.reshape(-1)[0])
    for axis, (before, after) in enumerate(pads):
        if (before, after) == (0, 0):
            continue
        if labels.shape[axis] > 1 and min(before, after) >= 0:
            widths = [(before, after) if i == axis else (0, 0) for i in range(rank)]
            x = np.pad(x, widths, constant_values=fill)
        else:
            x = np.where(x == fill, fill, np.nan)
    consts.set(node.outputs[0], x)


RULES = {
    "Concat": Rule(_label_concat, _cut_concat, _value_concat),
    "Pad": Rule(_label_pad, _cut_pad, _value_pad),
}
