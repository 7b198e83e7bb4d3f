"""Operators that only move elements: the operator itself is run on the label array.

Each has one function `moved(flow, node, array)` that moves an array shaped like labels; labels and constant values
go through the same one. Reshape works per block of axes with equal product, so that unlabelled blocks stay 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxslim_core import graph as verbs
from onnxslim_core.errors import InternalError
from onnxslim_core.ops.atoms import Labels
from onnxslim_core.ops.consts import Consts
from onnxslim_core.ops.cut import Cut
from onnxslim_core.ops.flow import Flow, Rule, axes_of
from onnxslim_core.ops.product import EMBEDDING

__all__ = ["RULES", "reshaped"]

Array = NDArray[np.generic]
Move = Callable[[Flow, ir.Node, Array], list[Array] | None]


def _rule(move: Move, cut: Callable[[Cut, ir.Node], None] | None = None, also: tuple[int, ...] = ()) -> Rule:
    """A rule for an operator with one moved input; `also`: inputs that may not depend on data, as a cut sets them."""

    def label(flow: Flow, node: ir.Node) -> None:
        labels = flow.labels(node.inputs[0])
        if labels is None:
            flow.freeze(node, "its input is constant")
            return
        given = [value for value in (node.inputs[i] for i in also if i < len(node.inputs)) if value is not None]
        fed = labels.size > 1 and any(flow.known(value) is None for value in given)
        results = None if fed else move(flow, node, labels)
        if results is None:
            flow.freeze(node, "where it moves elements is computed from data")
            return
        for value, result in zip(node.outputs, results, strict=True):
            flow.set(value, np.asarray(result, np.int32))

    def value(consts: Consts, node: ir.Node) -> None:
        x = consts.get(node.inputs[0])
        results = None if x is None else move(consts.flow, node, x)
        for output, result in zip(node.outputs, results or (), strict=False):
            consts.set(output, np.asarray(result, np.float64))

    return Rule(label, cut, value)


# ---------------------------------------------------------------------- Reshape
def _blocks(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Axes before and after, cut into the smallest runs with equal product."""
    blocks: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        left, right = [i] if i < len(before) else [], [j] if j < len(after) else []
        p, q = before[i] if left else 1, after[j] if right else 1
        i, j = i + len(left), j + len(right)
        while p != q:
            if p < q and i < len(before):
                p, i = p * before[i], i + 1
                left.append(i - 1)
            elif j < len(after):
                q, j = q * after[j], j + 1
                right.append(j - 1)
            else:
                raise InternalError("shapes before and after a Reshape do not agree")
        blocks.append((left, right))
    return blocks


def reshaped(array: Array, before: Sequence[int], after: Sequence[int]) -> Array:
    """An array shaped like labels of a tensor of shape `before`, for the tensor reshaped to `after`."""
    if 0 in before:
        return array.reshape(-1)[:1].reshape((1,) * len(after))
    full, result = list(array.shape), [1] * len(after)
    for left, right in _blocks(before, after):
        if any(array.shape[axis] > 1 for axis in left):
            for axis in left:
                full[axis] = before[axis]
            for axis in right:
                result[axis] = after[axis]
    return np.broadcast_to(array, full).reshape(result)


def _reshape(flow: Flow, node: ir.Node, array: Array) -> list[Array] | None:
    if math.prod(flow.shape(node.inputs[0])) != math.prod(flow.shape(node.outputs[0])):
        return None
    return [reshaped(array, flow.shape(node.inputs[0]), flow.shape(node.outputs[0]))]


def _cut_reshape(cut: Cut, node: ir.Node) -> None:
    """Entries of 0 and -1 that still hold stay (T37)."""
    keeps, shape = cut.keeps(node.outputs[0]), cut.flow.known(node.inputs[1])
    x = node.inputs[0]
    assert x is not None
    if not cut.touches(node):
        return
    if shape is None:
        raise InternalError("a shape is computed from data", verbs.label_of(node))
    new: dict[int, int] = {}
    copies = not verbs.attribute(node, "allowzero", 0)
    for axis, entry in enumerate(np.asarray(shape).reshape(-1)):
        size = cut.size(node.outputs[0], axis)
        if entry == 0 and copies:
            if cut.size(x, axis) != size:
                new[axis] = size
        elif entry != -1 and axis in keeps:
            new[axis] = size
    cut.entries(node, 1, new)


def _cut_reshape_attribute(cut: Cut, node: ir.Node) -> None:
    """Reshape before opset 5 holds its shape as an attribute."""
    if len(node.inputs) > 1:
        _cut_reshape(cut, node)
        return
    keeps = cut.keeps(node.outputs[0])
    shape = list(verbs.attribute(node, "shape", ()))
    for axis in keeps:
        if shape[axis] > 0:
            shape[axis] = len(keeps[axis])
    verbs.set_attribute(node, "shape", shape)


def _transpose(flow: Flow, node: ir.Node, array: Array) -> list[Array] | None:
    return [array.transpose(verbs.attribute(node, "perm", tuple(reversed(range(array.ndim)))))]


# ---------------------------------------------------------------------- Split, Slice, Gather
def _axis(node: ir.Node, rank: int, default: int = 0) -> int:
    return int(verbs.attribute(node, "axis", default)) % rank


def _split(flow: Flow, node: ir.Node, array: Array) -> list[Array] | None:
    axis = _axis(node, array.ndim)
    if array.shape[axis] == 1:
        return [array] * len(node.outputs)
    ends = np.cumsum([flow.shape(value)[axis] for value in node.outputs])
    return list(np.split(array, ends[:-1], axis=axis))


def _cut_split(cut: Cut, node: ir.Node) -> None:
    """Sizes are always written out; an attribute before opset 13, an input since (T38)."""
    axis = _axis(node, len(cut.flow.shape(node.inputs[0])))
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
    indices = verbs.add_constant(graph, cut.names, np.asarray(places, np.int64), f"{node.name}/kept")
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
    axis = _axis(node, array.ndim)
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
    axis = _axis(node, len(shape))
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
    verbs.replace_input(node, 1, verbs.add_constant(graph, cut.names, rank[indices], f"{node.name}/kept"))


# ---------------------------------------------------------------------- Concat
def _concat_parts(flow: Flow, node: ir.Node, arrays: list[Array | None], constants: list[Array | None]) -> Array:
    """Concat of arrays shaped like labels: full along the axis, broadcast elsewhere."""
    rank = len(flow.shape(node.outputs[0]))
    axis = _axis(node, rank)
    parts = [array if array is not None else constant for array, constant in zip(arrays, constants, strict=True)]
    given = [part for part in parts if part is not None]
    common = [max(part.shape[i] for part in given) for i in range(rank)]
    full = []
    for value, part in zip(node.inputs, parts, strict=True):
        assert part is not None
        common[axis] = flow.shape(value)[axis]
        full.append(np.broadcast_to(part, common))
    return np.concatenate(full, axis=axis)


def _label_concat(flow: Flow, node: ir.Node) -> None:
    rank = len(flow.shape(node.outputs[0]))
    axis = _axis(node, rank)
    arrays = [flow.labels(value) for value in node.inputs]
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
        for index, value in enumerate(node.inputs):
            if flow.is_constant(value):
                flow.carry(node, index, result)
        flow.set(node.outputs[0], result)
        return
    fresh: list[Labels | None] = []
    for index, labels in enumerate(arrays):
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
    axis, start = _axis(node, rank), 0
    for index, value in enumerate(node.inputs):
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
    axis = _axis(node, labels.ndim)
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


# ---------------------------------------------------------------------- Pad, Expand, Tile
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
    pads, x, labels = _pads(flow, node, rank), consts.full(_first(node)), flow.labels(_first(node))
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


def _first(node: ir.Node) -> ir.Value:
    value = node.inputs[0]
    assert value is not None
    return value


def _expand(flow: Flow, node: ir.Node, array: Array) -> list[Array] | None:
    rank = len(flow.shape(node.outputs[0]))
    return [array.reshape((1,) * (rank - array.ndim) + array.shape)]


def _cut_expand(cut: Cut, node: ir.Node) -> None:
    keeps, shape = cut.keeps(node.outputs[0]), cut.flow.known(node.inputs[1])
    if not keeps:
        return
    rank = len(cut.flow.shape(node.outputs[0]))
    if shape is None:
        raise InternalError("a shape is computed from data", verbs.label_of(node))
    entries = np.asarray(shape).reshape(-1)
    own = {axis - rank + len(entries): len(keep) for axis, keep in keeps.items()}
    cut.entries(node, 1, {axis: size for axis, size in own.items() if axis >= 0 and entries[axis] != 1})


def _tile(flow: Flow, node: ir.Node, array: Array) -> list[Array] | None:
    before, after = flow.shape(node.inputs[0]), flow.shape(node.outputs[0])
    repeats = [b // a if a and size > 1 else 1 for a, b, size in zip(before, after, array.shape, strict=True)]
    return [np.tile(array, repeats)]


# ---------------------------------------------------------------------- DepthToSpace, SpaceToDepth
def _label_depth_to_space(flow: Flow, node: ir.Node) -> None:
    labels = flow.labels(node.inputs[0])
    if labels is None:
        flow.freeze(node, "its input is constant")
        return
    labels = flow.atoms.mix(labels, [2, 3])
    if labels.shape[1] > 1:
        square = int(verbs.attribute(node, "blocksize", 1)) ** 2
        crd = str(verbs.attribute(node, "mode", "DCR")) == "CRD"
        split = (labels.shape[0], -1, square) if crd else (labels.shape[0], square, -1)
        mixed = flow.atoms.mix(labels.reshape(split), [2 if crd else 1])
        labels = mixed.reshape(labels.shape[0], -1, 1, 1)
    flow.set(node.outputs[0], labels)


def _value_depth_to_space(consts: Consts, node: ir.Node) -> None:
    """Known where the r x r channels that become one all hold the same number."""
    x = consts.get(node.inputs[0])
    if x is None or x.size != x.shape[1]:
        return
    square = int(verbs.attribute(node, "blocksize", 1)) ** 2
    crd = str(verbs.attribute(node, "mode", "DCR")) == "CRD"
    parts = x.reshape(-1, square) if crd else x.reshape(square, -1).T
    consts.set(node.outputs[0], np.where((parts == parts[:, :1]).all(axis=1), parts[:, 0], np.nan).reshape(1, -1, 1, 1))


def _value_space_to_depth(consts: Consts, node: ir.Node) -> None:
    x = consts.get(node.inputs[0])
    if x is not None and x.size == x.shape[1]:
        consts.set(node.outputs[0], np.tile(x, (1, int(verbs.attribute(node, "blocksize", 1)) ** 2, 1, 1)))


def _label_space_to_depth(flow: Flow, node: ir.Node) -> None:
    labels = flow.labels(node.inputs[0])
    if labels is None:
        flow.freeze(node, "its input is constant")
        return
    labels = flow.atoms.mix(labels, [2, 3])
    if labels.shape[1] > 1:
        labels = np.tile(labels, (1, int(verbs.attribute(node, "blocksize", 1)) ** 2, 1, 1))
    flow.set(node.outputs[0], labels)


_GATHER = _rule(_gather)
RULES = {
    "Reshape": _rule(_reshape, _cut_reshape_attribute, (1,)),
    "Flatten": _rule(_reshape),
    "Squeeze": _rule(_reshape),
    "Unsqueeze": _rule(_reshape),
    "Transpose": _rule(_transpose),
    "Split": _rule(_split, _cut_split, (1,)),
    "Slice": _rule(_slice, _cut_slice),
    "Gather": Rule(_label_gather, _cut_gather, _GATHER.value),
    "Concat": Rule(_label_concat, _cut_concat, _value_concat),
    "Pad": Rule(_label_pad, _cut_pad, _value_pad),
    "Expand": _rule(_expand, _cut_expand, (1,)),
    "Tile": _rule(_tile, None, (1,)),
    "DepthToSpace": Rule(_label_depth_to_space, None, _value_depth_to_space),
    "SpaceToDepth": Rule(_label_space_to_depth, None, _value_space_to_depth),
}
