"""Operators in which values along some axes depend on each other: reductions, norms, Softmax, pooling, resizing.

A sum over removed zeros is unchanged: ReduceSum and the L1 and L2 norms over channels are sinks, not mixes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from onnxslim_core import graph as verbs
from onnxslim_core.ops.atoms import Labels
from onnxslim_core.ops.consts import Consts
from onnxslim_core.ops.cut import Cut
from onnxslim_core.ops.flow import Flow, Rule, axes_of

__all__ = ["RULES"]


def _reduced(flow: Flow, node: ir.Node, labels: Labels) -> list[int] | None:
    given = (len(node.inputs) > 1 and node.inputs[1] is not None) or verbs.attribute(node, "axes") is not None
    if not given and verbs.attribute(node, "noop_with_empty_axes", 0):
        return []
    axes = axes_of(flow, node, labels.ndim)
    if axes == [] and not verbs.attribute(node, "noop_with_empty_axes", 0):
        return list(range(labels.ndim))
    return axes


def _squeezed(node: ir.Node, labels: np.ndarray, axes: Sequence[int]) -> np.ndarray:
    if verbs.attribute(node, "keepdims", 1):
        return labels
    return labels.reshape([size for axis, size in enumerate(labels.shape) if axis not in axes])


def _label_reduce(flow: Flow, node: ir.Node) -> None:
    labels = flow.labels(node.inputs[0])
    axes = None if labels is None else _reduced(flow, node, labels)
    if labels is None or axes is None:
        flow.freeze(node, "the axes it reduces are computed")
        return
    if node.op_type in ("ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare"):
        if any(labels.shape[axis] > 1 for axis in axes):
            rest = [axis for axis in range(labels.ndim) if axis not in axes]
            rows = np.ascontiguousarray(labels.transpose([*rest, *axes]))
            flow.sink(node, 0, rows.reshape(int(np.prod([labels.shape[a] for a in rest], dtype=np.int64)), -1), None)
        labels = flow.atoms.contract(labels, axes)
    elif flow.widths and node.op_type == "ReduceMean":
        if any(labels.shape[axis] > 1 for axis in axes):
            flow.averages.append(node)
        labels = flow.atoms.contract(labels, axes)
    else:
        labels = flow.atoms.mix(labels, axes)
    flow.set(node.outputs[0], _squeezed(node, labels, axes))


def _value_reduce(consts: Consts, node: ir.Node) -> None:
    """A channel that is constant keeps its value under mean, maximum and minimum over other axes; zero under sums."""
    x, labels = consts.get(node.inputs[0]), consts.flow.labels(node.inputs[0])
    axes = None if labels is None else _reduced(consts.flow, node, labels)
    if x is None or axes is None:
        return
    if node.op_type in ("ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceProd"):
        x = np.where((x == 0).all(axis=tuple(axes), keepdims=True), 0.0, np.nan)
    elif node.op_type not in ("ReduceMean", "ReduceMax", "ReduceMin") or any(x.shape[axis] > 1 for axis in axes):
        return
    consts.set(node.outputs[0], _squeezed(node, x, axes))


def _over(axes: Callable[[Flow, ir.Node, int], Sequence[int]]) -> Callable[[Flow, ir.Node], None]:
    """A rule that mixes the axes given by a function of the node and its rank."""

    def label(flow: Flow, node: ir.Node) -> None:
        labels = flow.labels(node.inputs[0])
        if labels is None:
            flow.freeze(node, "its input is constant")
            return
        if node.op_type == "MaxPool" and len(node.outputs) > 1 and node.outputs[1].uses():
            flow.freeze(node, "its indices count elements of all channels")
            return
        mixed = flow.atoms.mix(labels, [axis % labels.ndim for axis in axes(flow, node, labels.ndim)])
        for value in node.outputs:
            rank = len(flow.shapes.shape.get(value, ()))
            if rank == labels.ndim:
                flow.set(value, mixed)
        for index, other in enumerate(node.inputs[1:], 1):
            if flow.is_constant(other):
                flow.carry(node, index, mixed)

    return label


def _softmax_axes(flow: Flow, node: ir.Node, rank: int) -> Sequence[int]:
    if flow.opset >= 13:
        return [int(verbs.attribute(node, "axis", -1))]
    return range(int(verbs.attribute(node, "axis", 1)) % rank, rank)


def _axis(default: int) -> Callable[[Flow, ir.Node, int], Sequence[int]]:
    return lambda flow, node, rank: [int(verbs.attribute(node, "axis", default))]


def _space(flow: Flow, node: ir.Node, rank: int) -> Sequence[int]:
    return range(2, rank)


def _places(flow: Flow, node: ir.Node, rank: int) -> Sequence[int]:
    return [0, *range(2, rank)]


def _label_grid_sample(flow: Flow, node: ir.Node) -> None:
    """Every channel is read at the places that the grid says; what the grid is made of stays."""
    labels, grid = flow.labels(node.inputs[0]), flow.labels(node.inputs[1])
    if labels is None or grid is None:
        flow.freeze(node, "its input or its grid is constant")
        return
    flow.atoms.mix(grid, range(grid.ndim))
    flow.set(node.outputs[0], flow.atoms.mix(labels, _places(flow, node, labels.ndim)))


def _cumulated(flow: Flow, node: ir.Node, rank: int) -> Sequence[int]:
    axis = flow.known(node.inputs[1])
    return range(rank) if axis is None else [int(axis.reshape(-1)[0])]


def _label_group_norm(flow: Flow, node: ir.Node) -> None:
    """Channels of one group depend on each other; scale and bias are per group before opset 21, then per channel."""
    labels = flow.labels(node.inputs[0])
    if labels is None or not (flow.is_constant(node.inputs[1]) and flow.is_constant(node.inputs[2])):
        flow.freeze(node, "its scale and bias are computed")
        return
    labels = flow.atoms.mix(labels, [axis for axis in range(labels.ndim) if axis != 1])
    if labels.size > 1:
        groups = labels.reshape(int(verbs.attribute(node, "num_groups")), -1)
        flow.atoms.mix(groups, [1])
        flow.atoms.note(groups)
        per_group = flow.shape(node.inputs[1])[0] == len(groups)
        for index in (1, 2):
            flow.use(node, index, 0, groups[:, 0] if per_group else labels.reshape(-1), "carry")
    flow.set(node.outputs[0], labels)


def _cut_group_norm(cut: Cut, node: ir.Node) -> None:
    keep = cut.keeps(node.outputs[0]).get(1)
    if keep is None:
        return
    groups = int(verbs.attribute(node, "num_groups"))
    kept = np.unique(keep // (cut.flow.shape(node.outputs[0])[1] // groups))
    for index in (1, 2):
        cut.constant(node, index, {0: kept if cut.flow.shape(node.inputs[index])[0] == groups else keep})
    verbs.set_attribute(node, "num_groups", len(kept))


def _instance_cut(cut: Cut, node: ir.Node) -> None:
    if (keep := cut.keeps(node.outputs[0]).get(1)) is not None:
        for index in (1, 2):
            cut.constant(node, index, {0: keep})


def _label_instance(flow: Flow, node: ir.Node) -> None:
    labels = flow.labels(node.inputs[0])
    if labels is None or not (flow.is_constant(node.inputs[1]) and flow.is_constant(node.inputs[2])):
        flow.freeze(node, "its scale and bias are computed")
        return
    labels = flow.atoms.mix(labels, [0, *range(2, labels.ndim)])
    flow.set(node.outputs[0], labels)
    if labels.size > 1:
        for index in (1, 2):
            flow.use(node, index, 0, labels.reshape(-1), "carry")


def _value_norm(consts: Consts, node: ir.Node) -> None:
    """What is zero everywhere, or scaled by zero, comes out as its shift.

    Any other constant would, too, in real arithmetic; rounding of its mean is divided by the root of epsilon.
    """
    x = consts.full(verbs.first_input(node))
    scale, shift = consts.operand(node.inputs[1]), consts.operand(node.inputs[2])
    groups = int(verbs.attribute(node, "num_groups", x.shape[1]))
    if scale is None or shift is None or x.size != x.shape[1] or x.shape[1] % groups:
        return
    if x.size % scale.size or x.size % shift.size:
        return  # no channel of the input is labelled, but there are several
    zero = np.repeat((x == 0).reshape(groups, -1).all(axis=1), x.size // groups)
    scale, shift = (np.repeat(each, x.size // each.size) for each in (scale, shift))
    consts.set(node.outputs[0], np.where(zero | (scale == 0), shift, np.nan).reshape(x.shape))


def _pool_value(consts: Consts, node: ir.Node) -> None:
    """A constant channel stays so, but for the zeros that an average counts at its padded border."""
    x = consts.get(node.inputs[0])
    if x is None or any(size > 1 for size in x.shape[2:]):
        return
    automatic = str(verbs.attribute(node, "auto_pad", "NOTSET"))
    padded = any(verbs.attribute(node, "pads", ())) or automatic.startswith("SAME")
    if node.op_type == "AveragePool" and padded and verbs.attribute(node, "count_include_pad", 0):
        x = np.where(x == 0, 0.0, np.nan)
    if node.op_type in ("LpPool", "GlobalLpPool"):
        x = np.where(x == 0, 0.0, np.nan)
    consts.set(node.outputs[0], x)


def _label_resize(flow: Flow, node: ir.Node) -> None:
    labels, value = flow.labels(node.inputs[0]), node.outputs[0]
    if labels is None:
        flow.freeze(node, "its input is constant")
        return
    targets = [given for given in node.inputs[1:] if given is not None and 0 not in flow.shapes.shape.get(given, ())]
    if labels.size > 1 and any(flow.known(given) is None for given in targets):
        flow.freeze(node, "the size it is to have is computed from data")
        return
    before, after = flow.shape(node.inputs[0]), flow.shape(value)
    flow.set(value, flow.atoms.mix(labels, [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]))


def _cut_resize(cut: Cut, node: ir.Node) -> None:
    """`sizes` names every axis, or those in `axes`; `scales` of untouched axes are 1 and stay so."""
    keeps, rank = cut.keeps(node.outputs[0]), len(cut.flow.shape(node.outputs[0]))
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        axes = [axis % rank for axis in verbs.attribute(node, "axes", tuple(range(rank)))]
        cut.entries(node, 3, {i: len(keeps[axis]) for i, axis in enumerate(axes) if axis in keeps})


def _value_resize(consts: Consts, node: ir.Node) -> None:
    """Interpolation of a constant channel is that constant, unless it extrapolates."""
    x = consts.get(node.inputs[0])
    roi = str(verbs.attribute(node, "coordinate_transformation_mode", "")) == "tf_crop_and_resize"
    if x is not None and not roi and all(size == 1 for size in x.shape[2:]):
        consts.set(node.outputs[0], x)


_REDUCE = Rule(_label_reduce, None, _value_reduce)
_POOL = Rule(_over(_space), None, _pool_value)
RULES = {
    **{
        f"Reduce{name}": _REDUCE
        for name in ("Sum", "L1", "L2", "SumSquare", "Mean", "Max", "Min", "Prod", "LogSum", "LogSumExp")
    },
    **dict.fromkeys(("MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"), _POOL),
    **{op: Rule(_over(_softmax_axes)) for op in ("Softmax", "LogSoftmax", "Hardmax")},
    "TopK": Rule(_over(_axis(-1))),
    "CumSum": Rule(_over(_cumulated)),
    "MeanVarianceNormalization": Rule(_over(lambda flow, node, rank: verbs.attribute(node, "axes", (0, 2, 3)))),
    "ReverseSequence": Rule(_over(lambda flow, node, rank: [0, 1])),  # batch_axis and time_axis are these two
    "Trilu": Rule(_over(lambda flow, node, rank: [-2, -1])),
    "LRN": Rule(_over(lambda flow, node, rank: [1])),
    "GroupNormalization": Rule(_label_group_norm, _cut_group_norm, _value_norm),
    "InstanceNormalization": Rule(_label_instance, _instance_cut, _value_norm),
    "RoiAlign": Rule(_over(_places)),
    "GridSample": Rule(_label_grid_sample),
    "Resize": Rule(_label_resize, _cut_resize, _value_resize),
    "Upsample": Rule(_label_resize, None, _value_resize),
}


def _label_arg(flow: Flow, node: ir.Node) -> None:
    labels = flow.labels(node.inputs[0])
    if labels is None:
        flow.freeze(node, "its input is constant")
        return
    axis = int(verbs.attribute(node, "axis", 0)) % labels.ndim
    flow.set(node.outputs[0], _squeezed(node, flow.atoms.mix(labels, [axis]), [axis]))


RULES |= {"ArgMax": Rule(_label_arg), "ArgMin": Rule(_label_arg)}
