"""Conv and ConvTranspose of any rank and group.

Conv: W is [O, I/g, k...], x is [N, I, s...]; ConvTranspose: W is [I, O/g, k...] (T31). With groups the input is
[g, I/g] and the output [g, O/g]: two more boxes, tied by one atom per group. A depthwise Conv keeps its labels.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxslim_core import graph as verbs
from onnxslim_core.ops.atoms import FIXED, Labels, Reason
from onnxslim_core.ops.consts import Consts, array_of
from onnxslim_core.ops.cut import Cut, Keep
from onnxslim_core.ops.flow import Flow, Rule

__all__ = ["RULES", "pads_nothing"]


def _group(node: ir.Node) -> int:
    return int(verbs.attribute(node, "group", 1))


def _transposed(node: ir.Node) -> bool:
    return node.op_type == "ConvTranspose"


def _label(flow: Flow, node: ir.Node) -> None:
    x, weight, y = node.inputs[0], node.inputs[1], node.outputs[0]
    labels = flow.labels(x)
    if labels is None or not flow.is_constant(weight):
        flow.freeze(node, "its weights are computed" if labels is not None else "its input is constant")
        return
    labels = flow.atoms.mix(labels, [axis for axis in range(labels.ndim) if axis != 1])
    row = labels.reshape(-1) if labels.size > 1 else None
    out_shape, groups = flow.shape(y), _group(node)
    places = flow.shape(x) if _transposed(node) else out_shape
    macs = int(np.prod(places, dtype=np.int64)) * int(np.prod(flow.shape(weight)[1:], dtype=np.int64))
    shape = [1, out_shape[1], *(1 for _ in out_shape[2:])]
    if groups == 1:
        out = flow.make(node, 1, 1 if _transposed(node) else 0)
        if row is not None:
            flow.sink(node, 0, row.reshape(1, -1), 1, 0 if _transposed(node) else 1)
        flow.work(node, macs, out, row)
    elif groups == flow.shape(x)[1] == out_shape[1]:
        if row is None:
            flow.set(y, np.full((1,) * len(shape), FIXED, np.int32))
            return
        out = row
        flow.use(node, 1, 0, row, "carry")
        flow.work(node, macs, row)
    else:
        out = _grouped(flow, node, row, out_shape[1], macs)
    if len(node.inputs) > 2 and flow.is_constant(node.inputs[2]):
        flow.carry(node, 2, out)
    flow.set(y, out.reshape(shape))


def _grouped(flow: Flow, node: ir.Node, row: Labels | None, count: int, macs: int) -> Labels:
    """Fresh labels of the output channels, tied to the input's group by group."""
    atoms, groups = flow.atoms, _group(node)
    fresh, tie = atoms.fresh(count), atoms.fresh(groups)
    outside = fresh.reshape(groups, -1)
    atoms.rel(tie, outside)
    atoms.note(outside)
    if row is None:
        atoms.pin(tie, Reason(verbs.label_of(node), "its groups read an input that stays"))
    else:
        inside = row.reshape(groups, -1)
        atoms.rel(tie, inside)
        atoms.note(inside)
        flow.sink(node, 0, inside, 1, 0 if _transposed(node) else None)
        if not _transposed(node):
            flow.use(node, 1, 1, inside, "in")
    flow.use(node, 1, *((1, outside) if _transposed(node) else (0, fresh)), "out")
    flow.work(node, macs, fresh, None if row is None else row.reshape(groups, -1))
    return fresh


def _cut(cut: Cut, node: ir.Node) -> None:
    keep_in, keep_out = cut.keeps(node.inputs[0]).get(1), cut.keeps(node.outputs[0]).get(1)
    groups = _group(node)
    first, second = (keep_in, keep_out) if _transposed(node) else (keep_out, keep_in)
    if groups > 1:
        per_group = cut.flow.shape(node.outputs[0] if _transposed(node) else node.inputs[0])[1] // groups
        second = None if second is None else np.unique(second % per_group)
        for value in (node.inputs[0], node.outputs[0]):
            keep = cut.keeps(value).get(1)
            if value is not None and keep is not None:
                groups = len(np.unique(keep // (cut.flow.shape(value)[1] // _group(node))))
        verbs.set_attribute(node, "group", groups)
        if second is not None and len(second) == per_group:
            second = None
    keeps: dict[int, Keep] = {axis: keep for axis, keep in ((0, first), (1, second)) if keep is not None}
    cut.constant(node, 1, keeps)
    if keep_out is not None and len(node.inputs) > 2:
        cut.constant(node, 2, {0: keep_out})


def pads_nothing(node: ir.Node, kernel: tuple[int, ...]) -> bool:
    """True where every output position of a Conv reads real input only."""
    if node.op_type != "Conv":
        return False
    if str(verbs.attribute(node, "auto_pad", "NOTSET")) in ("SAME_UPPER", "SAME_LOWER"):
        return all(size == 1 for size in kernel)
    return not any(verbs.attribute(node, "pads", ()))


def weight_rows(flow: Flow, node: ir.Node) -> np.ndarray | None:
    """The weights as [group, input channel, everything else]; None where they are not at hand."""
    array = array_of(flow, node.inputs[1])
    if array is None or array.dtype.kind != "f":
        return None
    groups = _group(node)
    if _transposed(node):
        return array.reshape(groups, array.shape[0] // groups, -1)
    rows = array.reshape(groups, array.shape[0] // groups, array.shape[1], -1)
    return np.ascontiguousarray(rows.transpose(0, 2, 1, 3)).reshape(groups, array.shape[1], -1)


def from_rows(node: ir.Node, rows: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of `weight_rows`: weights of the shape that the node reads."""
    if _transposed(node):
        return rows.reshape(shape)
    groups = _group(node)
    split = rows.reshape(groups, shape[1], shape[0] // groups, -1)
    return np.ascontiguousarray(split.transpose(0, 2, 1, 3)).reshape(shape)


def _value(consts: Consts, node: ir.Node) -> None:
    array = array_of(consts.flow, node.inputs[1])
    if array is None or array.dtype.kind != "f":
        return
    groups, x = _group(node), consts.get(node.inputs[0])
    if x is not None and x.size != x.shape[1]:
        x = None  # known along other axes than the channels, which a kernel mixes
    channels = consts.flow.shape(node.inputs[0])[1]
    given = np.full(channels, np.nan) if x is None else np.broadcast_to(x.reshape(-1), (channels,))
    if _transposed(node):
        weight = array.reshape(groups, channels // groups, array.shape[1], -1).transpose(0, 2, 1, 3)
    else:
        weight = array.reshape(groups, array.shape[0] // groups, array.shape[1], -1)
    result = product(weight, given.reshape(groups, 1, -1), pads_nothing(node, array.shape[2:])).reshape(-1)
    bias = consts.operand(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else 0.0
    if bias is None:
        return
    consts.set(node.outputs[0], (result + bias).reshape(1, -1, *(1 for _ in array.shape[2:])))


def product(weight: np.ndarray, given: np.ndarray, plain: bool) -> np.ndarray:
    """Sums of weights times channels, NaN where an unknown channel has a weight.

    Args:
        weight: [group, out, in, taps].
        given: [group, 1, in], NaN for unknown.
        plain: Whether a constant channel gives a constant, as it does without padding.
    """
    used = weight.any(axis=3) & (given != 0)
    known = np.isfinite(given) if plain else np.zeros_like(given, np.bool_)
    unknown = (used & ~known).any(axis=2)
    if not plain or not (used & known).any():
        return np.where(unknown, np.nan, 0.0)
    sums = weight.sum(axis=3, dtype=np.float64) * np.where(known, given, 0.0)
    return np.where(unknown, np.nan, sums.sum(axis=2))


RULES = {"Conv": Rule(_label, _cut, _value), "ConvTranspose": Rule(_label, _cut, _value)}
