"""Conv and ConvTranspose of any rank and group, and what quantization and fusion make of a Conv.

Conv: W is [O, I/g, k...], x is [N, I, s...]; ConvTranspose: W is [I, O/g, k...] (T31). With groups the input is
[g, I/g] and the output [g, O/g]: two more boxes, tied by one atom per group. A depthwise Conv keeps its labels.
ConvInteger and QLinearConv sum x - zero point, so that what removes a channel there is its zero point.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxslim_core import graph as verbs
from onnxslim_core.ops.atoms import FIXED, Labels, Reason
from onnxslim_core.ops.consts import Consts, array_of
from onnxslim_core.ops.cut import Cut, Keep
from onnxslim_core.ops.flow import Flow, Rule
from onnxslim_core.ops.join import join

__all__ = ["RULES", "pads_nothing"]


@dataclass(frozen=True, slots=True)
class _Form:
    """Which inputs of an operator are what; `vectors` have one entry per output channel, or one in all."""

    weight: int = 1
    bias: int = 2
    vectors: tuple[int, ...] = ()
    zero: int | None = None
    """The zero point of x, where x is quantized."""
    added: int | None = None
    """What is added to the result, in com.microsoft.FusedConv."""


_PLAIN = _Form()
_FORMS = {
    "ConvInteger": _Form(vectors=(3,), zero=2),
    "QLinearConv": _Form(weight=3, bias=8, vectors=(4, 5), zero=2),
    "FusedConv": _Form(added=3),
}


def _form(node: ir.Node) -> _Form:
    return _FORMS.get(node.op_type, _PLAIN)


def _given(node: ir.Node, index: int | None) -> ir.Value | None:
    return node.inputs[index] if index is not None and index < len(node.inputs) else None


def _bias(node: ir.Node) -> ir.Value | None:
    return None if node.op_type == "ConvInteger" else _given(node, _form(node).bias)


def _group(node: ir.Node) -> int:
    return int(verbs.attribute(node, "group", 1))


def _transposed(node: ir.Node) -> bool:
    return node.op_type == "ConvTranspose"


def _label(flow: Flow, node: ir.Node) -> None:
    form = _form(node)
    x, weight, y = node.inputs[0], node.inputs[form.weight], node.outputs[0]
    labels = flow.labels(x)
    if labels is None or not all(flow.is_constant(value) for value in (weight, *_vectors(flow, node))):
        flow.freeze(node, "its weights are computed" if labels is not None else "its input is constant")
        return
    if verbs.attribute(node, "channels_last", 0):
        flow.freeze(node, "its channels come last")
        return
    wanted = flow.shape(weight)[0] if _transposed(node) else flow.shape(weight)[1] * _group(node)
    if flow.shape(x)[1] != wanted:  # onnx's shape inference lets that pass
        flow.freeze(node, f"it has weights for {wanted} channels and reads {flow.shape(x)[1]}")
        return
    labels = flow.atoms.mix(labels, [axis for axis in range(labels.ndim) if axis != 1])
    row = labels.reshape(-1) if labels.size > 1 else None
    out = _made(flow, node, row)
    if out is None:
        flow.set(y, np.full((1,) * len(flow.shape(y)), FIXED, np.int32))
        return
    for value, index in _vectors(flow, node).items():
        flow.use(node, index, len(flow.shape(value)) - 1, out, "carry")
    if (bias := _bias(node)) is not None and flow.is_constant(bias):
        flow.carry(node, form.bias, out)
    result = out.reshape([1, -1, *(1 for _ in flow.shape(y)[2:])])
    flow.set(y, _with_added(flow, node, result))


def _vectors(flow: Flow, node: ir.Node) -> dict[ir.Value, int]:
    """Scales and zero points with one entry per output channel, with the index of the input."""
    given = {value: index for index in _form(node).vectors if (value := _given(node, index)) is not None}
    return {value: index for value, index in given.items() if flow.shape(value) not in ((), (1,))}


def _with_added(flow: Flow, node: ir.Node, result: Labels) -> Labels:
    """What a fused Conv adds has the same channels."""
    index = _form(node).added
    added = _given(node, index)
    if index is None or added is None:
        return result
    if flow.is_constant(added):
        flow.carry(node, index, result)
        return result
    labels = flow.labels(added)
    assert labels is not None
    return join(flow.atoms, result, flow.shape(node.outputs[0]), labels, flow.shape(added))[0]


def _made(flow: Flow, node: ir.Node, row: Labels | None) -> Labels | None:
    """Labels of the output channels; None where a depthwise Conv reads what has no channels."""
    x, weight, out_shape = node.inputs[0], _form(node).weight, flow.shape(node.outputs[0])
    groups, flipped = _group(node), _transposed(node)
    places = flow.shape(x) if flipped else out_shape
    macs = int(np.prod(places, dtype=np.int64)) * int(np.prod(flow.shape(node.inputs[weight])[1:], dtype=np.int64))
    if groups == 1:
        out = flow.make(node, weight, 1 if flipped else 0)
        if row is not None:
            flow.sink(node, 0, row.reshape(1, -1), weight, 0 if flipped else 1, zero=_form(node).zero)
        flow.work(node, macs, out, row)
        return out
    if groups != flow.shape(x)[1] or groups != out_shape[1]:
        return _grouped(flow, node, row, out_shape[1], macs)
    if row is not None:
        flow.use(node, weight, 0, row, "carry")
        flow.work(node, macs, row)
    return row


def _grouped(flow: Flow, node: ir.Node, row: Labels | None, count: int, macs: int) -> Labels:
    """Fresh labels of the output channels, tied to the input's group by group."""
    atoms, groups, weight = flow.atoms, _group(node), _form(node).weight
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
        flow.sink(node, 0, inside, weight, 0 if _transposed(node) else None, zero=_form(node).zero)
        if not _transposed(node):
            flow.use(node, weight, 1, inside, "in")
    flow.use(node, weight, *((1, outside) if _transposed(node) else (0, fresh)), "out")
    flow.work(node, macs, fresh, None if row is None else row.reshape(groups, -1))
    return fresh


def _cut(cut: Cut, node: ir.Node) -> None:
    keep_in, keep_out = cut.keeps(node.inputs[0]).get(1), cut.keeps(node.outputs[0]).get(1)
    groups, form = _group(node), _form(node)
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
    cut.constant(node, form.weight, keeps)
    if keep_out is None:
        return
    for value, index in _vectors(cut.flow, node).items():
        cut.constant(node, index, {len(cut.flow.shape(value)) - 1: keep_out})
    if _bias(node) is not None:
        cut.constant(node, form.bias, {0: keep_out})
    if form.added is not None and cut.flow.is_constant(_given(node, form.added)):
        cut.carried(node, form.added, {1: keep_out}, len(cut.flow.shape(node.outputs[0])))


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


RULES = {
    "Conv": Rule(_label, _cut, _value),
    "ConvTranspose": Rule(_label, _cut, _value),
    "ConvInteger": Rule(_label, _cut),
    "QLinearConv": Rule(_label, _cut),
    "com.microsoft.FusedConv": Rule(_label, _cut),
}
