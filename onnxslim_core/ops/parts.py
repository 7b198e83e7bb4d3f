"""Split, Slice and Gather: parts of a tensor along an axis, in whatever order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxslim_core import graph as verbs
from onnxslim_core.errors import InternalError
from onnxslim_core.ops.cut import Cut
from onnxslim_core.ops.flow import Flow, Rule, axes_of
from onnxslim_core.ops.move import Array, axis_of, moving
from onnxslim_core.ops.product import EMBEDDING

__all__ = ["RULES"]


def _split(flow: Flow, node: ir.Node, array: Array) -> list[Array] | None:
    axis = axis_of(node, array.ndim)
    if array.shape[axis] == 1:
        return [array] * len(node.outputs)
    ends = np.cumsum([flow.shape(value)[axis] for value in node.outputs])
    return list(np.split(array, ends[:-1], axis=axis))


def _cut_split(cut: Cut, node: ir.Node) -> None:
    """Sizes are always written out; an attribute before opset 13, an input since (T38)."""
    axis = axis_of(node, len(cut.flow.shape(node.inputs[0])))
    if not any(axis in cut.keeps(value) for value in node.outputs):
        return
    sizes = [cut.size(value, axis) for value in node.outputs]
    verbs.set_attribute(node, "num_outputs", None)
    if cut.opset < 13:
        verbs.set_attribute(node, "split", sizes)
    else:
        cut.vector(node, 1, sizes)


def _ranges(flow: Flow, node: ir.Node, shape: Sequence[int]) -> dict[int, NDArray[np.int64]] | None:
    """For each sliced axis the indices that a Slice takes; None where they are computed from data."""
    parts: list[list[int] | None] = []
    for index, name in enumerate(("starts", "ends", "axes", "steps"), 1):
        given = verbs.attribute(node, name)
        if given is None and index < len(node.inputs) and node.inputs[index] is not None:
            known = flow.known(node.inputs[index])
            if known is None:
                return None
            given = [int(entry) for entry in known.reshape(-1)]
        parts.append(None if given is None else list(given))
    starts, ends, axes, steps = parts
    if starts is None or ends is None:
        return None
    axes = list(range(len(starts))) if axes is None else [axis % len(shape) for axis in axes]
    steps = [1] * len(starts) if steps is None else steps
    taken: dict[int, NDArray[np.int64]] = {}
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        stop = None if step < 0 and end < -shape[axis] else end
        taken[axis] = np.arange(shape[axis], dtype=np.int64)[start:stop:step]
    return taken


def _slice(flow: Flow, node: ir.Node, array: Array) -> list[Array] | None:
    shape = flow.shape(node.inputs[0])
    ranges = _ranges(flow, node, shape)
    if ranges is None:
        return [array] if _untouched_by(flow, node, array) else None
    for axis, taken in ranges.items():
        if array.shape[axis] > 1:
            array = array.take(taken, axis=axis)
    return [array]


def _untouched_by(flow: Flow, node: ir.Node, array: Array) -> bool:
    """True where the bounds are data, but only of axes without labels."""
    axes = axes_of(flow, node, array.ndim, index=3)
    return axes is not None and all(array.shape[axis] == 1 for axis in axes)


def _cut_slice(cut: Cut, node: ir.Node) -> None:
    x, value = node.inputs[0], node.outputs[0]
    assert x is not None
    shape = cut.flow.shape(x)
    before, after = cut.keeps(x), cut.keeps(value)
    if not before and not after:
        return
    ranges = _ranges(cut.flow, node, shape)
    if ranges is None or not any(axis in before for axis in ranges):
        return
    bounds: dict[int, tuple[int, int]] = {}
    for axis in list(ranges):
        if axis not in before:
            continue
        rank = np.cumsum(np.isin(np.arange(shape[axis]), before[axis])) - 1
        stays = ranges[axis][np.isin(ranges[axis], before[axis])]
        places = rank[stays]
        if len(places) != (len(after[axis]) if axis in after else len(ranges[axis])):
            raise InternalError("a Slice keeps other elements than its labels say", verbs.label_of(node))
        if (np.diff(places) == 1).all():
            bounds[axis] = (int(places[0]), int(places[-1]) + 1)
        else:
            _gather_instead(cut, node, axis, places)
    _write_bounds(cut, node, ranges, bounds, before)


def _gather_instead(cut: Cut, node: ir.Node, axis: int, places: NDArray[np.int64]) -> None:
    """A Slice with a step picks no run of what is left: a Gather in front of it does that axis."""
    graph, x = node.graph, node.inputs[0]
    assert isinstance(graph, ir.Graph)
    indices = cut.numbers(graph, np.asarray(places, np.int64), f"{node.name}/kept")
    gather = verbs.add_node(cut.names, "Gather", [x, indices], {"axis": axis}, before=node)
    gather.outputs[0].type = node.outputs[0].type
    verbs.replace_input(node, 0, gather.outputs[0])


def _write_bounds(
    cut: Cut,
    node: ir.Node,
    ranges: dict[int, NDArray[np.int64]],
    bounds: dict[int, tuple[int, int]],
    cut_axes: dict[int, NDArray[np.int64]],
) -> None:
    """New starts, ends and steps for the axes that lost something; the others keep theirs."""
    axes = list(ranges)
    changed = {position: bounds.get(axis, (0, _FAR)) for position, axis in enumerate(axes) if axis in cut_axes}
    if cut.opset < 10:
        for which, name in enumerate(("starts", "ends")):
            entries = list(verbs.attribute(node, name))
            for position, pair in changed.items():
                entries[position] = pair[which]
            verbs.set_attribute(node, name, entries)
        return
    for which, index in ((0, 1), (1, 2)):
        cut.entries(node, index, {position: pair[which] for position, pair in changed.items()})
    if len(node.inputs) > 4 and node.inputs[4] is not None:
        cut.entries(node, 4, dict.fromkeys(changed, 1))


_FAR = (1 << 31) - 1


def _gather(flow: Flow, node: ir.Node, array: Array) -> list[Array] | None:
    axis = axis_of(node, array.ndim)
    shape = flow.shape(node.inputs[1])
    if array.shape[axis] == 1:
        first = array.take(0, axis=axis)
        return [first.reshape(first.shape[:axis] + (1,) * len(shape) + first.shape[axis:])]
    indices = flow.known(node.inputs[1])
    return None if indices is None else [array.take(np.asarray(indices, np.int64).reshape(shape), axis=axis)]


def _label_gather(flow: Flow, node: ir.Node) -> None:
    if not flow.is_constant(node.inputs[0]):
        _GATHER.label(flow, node)
    elif flow.is_constant(node.inputs[1]):
        flow.freeze(node, "its input is constant")
    else:
        labels = flow.labels(node.inputs[1])
        if labels is not None:
            flow.atoms.mix(labels, range(labels.ndim))
        EMBEDDING.label(flow, node)


def _cut_gather(cut: Cut, node: ir.Node) -> None:
    if cut.flow.is_constant(node.inputs[0]):
        assert EMBEDDING.cut is not None
        EMBEDDING.cut(cut, node)
        return
    x, indices = node.inputs[0], cut.flow.known(node.inputs[1])
    shape = cut.flow.shape(x)
    axis = axis_of(node, len(shape))
    keep = cut.keeps(x).get(axis)
    if keep is None or indices is None:
        return
    indices = np.asarray(indices, np.int64) % shape[axis]
    for own, stays in cut.keeps(node.outputs[0]).items():
        if axis <= own < axis + indices.ndim:
            indices = indices.take(stays, axis=own - axis)
    rank = np.full(shape[axis], -1, np.int64)
    rank[keep] = np.arange(len(keep))
    if (rank[indices] < 0).any():
        raise InternalError("a Gather reads an element that goes", verbs.label_of(node))
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    verbs.replace_input(node, 1, cut.numbers(graph, rank[indices], f"{node.name}/kept"))


_GATHER = moving(_gather)
RULES = {
    "Split": moving(_split, _cut_split, (1,)),
    "Slice": moving(_slice, _cut_slice),
    "Gather": Rule(_label_gather, _cut_gather, _GATHER.value),
}
