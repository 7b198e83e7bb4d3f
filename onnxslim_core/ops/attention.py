"""Attention and rotary embeddings as single nodes: heads and widths stay apart, as they do where they are written out.

Attention (opset 23) takes [B, heads, S, D], or [B, S, heads * D] with the number of heads as an attribute, as
com.microsoft.MultiHeadAttention does. Queries meet keys in [B, heads, S, T, D] and are summed over D (a sink); scores
depend on each other along T and weigh the values. The scale is 1 / sqrt(D) of the original D, so it is written down
once D changes. Left to `freeze`: a cache of keys and values, packed keys, second outputs.
RotaryEmbedding turns entries of a head into each other: whole heads stay free.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from onnxslim_core import graph as verbs
from onnxslim_core.ops.atoms import Labels
from onnxslim_core.ops.cut import Cut
from onnxslim_core.ops.flow import Flow, Rule
from onnxslim_core.ops.join import join

__all__ = ["RULES"]

_OTHERS = {"Attention": (4, 5, 6), "MultiHeadAttention": (6, 7, 8, 9)}
"""Inputs of caches and of lengths."""
_MASKS = {"Attention": 3, "MultiHeadAttention": 5}
"""The input that is added to the scores, [B, heads, S, T] or what broadcasts to it."""


def _given(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _heads(node: ir.Node, index: int) -> int:
    """The number of heads of query (0), key (1) or value (2) where they lie beside each other."""
    if node.op_type == "MultiHeadAttention":
        return int(verbs.attribute(node, "num_heads", 1))
    return int(verbs.attribute(node, "kv_num_heads" if index else "q_num_heads", 1))


def _apart(labels: Labels, size: int, heads: int) -> Labels:
    """Labels of [B, S, heads * D] as [B, heads, S, D]; those of four axes as they are."""
    if labels.ndim == 4:
        return labels
    split = (*labels.shape[:2], heads, size // heads) if labels.shape[2] > 1 else (*labels.shape[:2], 1, 1)
    return labels.reshape(split).transpose(0, 2, 1, 3)


def _beside(labels: Labels, heads: int, width: int) -> Labels:
    """The way back."""
    turned = labels.transpose(0, 2, 1, 3)
    if turned.shape[2:] != (1, 1):
        turned = np.broadcast_to(turned, (*turned.shape[:2], heads, width))
    return turned.reshape(*turned.shape[:2], -1)


def _full(shape: tuple[int, ...], heads: int) -> tuple[int, ...]:
    """A shape as [B, heads, S, D]."""
    return shape if len(shape) == 4 else (shape[0], heads, shape[1], shape[2] // heads)


def _refused(flow: Flow, node: ir.Node) -> str:
    if any(value.uses() or value.is_graph_output() for value in node.outputs[1:]):
        return "more than its answer is read"
    if any(_given(node, index) is not None for index in _OTHERS[node.op_type]):
        return "it has a cache of keys and values"
    values = [_given(node, index) for index in range(3)]
    if any(value is None or flow.labels(value) is None for value in values):
        return "queries, keys or values are constant or packed"
    if len({len(flow.shape(value)) for value in values}) > 1 or len(flow.shape(values[0])) not in (3, 4):
        return "its keys are packed"
    if node.op_type == "MultiHeadAttention":
        bias = _given(node, 3)
        if len(flow.shape(values[0])) != 3 or not (bias is None or flow.is_constant(bias)):
            return "its keys are packed, or its bias is computed"
    return ""


def _label(flow: Flow, node: ir.Node) -> None:
    if why := _refused(flow, node):
        flow.freeze(node, why)
        return
    padding = _given(node, 4) if node.op_type == "MultiHeadAttention" else None
    if (labels := flow.labels(padding)) is not None:
        flow.atoms.mix(labels, range(labels.ndim))
    parts, shapes = [], []
    for index in range(3):
        labels, shape = flow.labels(node.inputs[index]), flow.shape(node.inputs[index])
        assert labels is not None
        parts.append(_apart(labels, shape[-1], _heads(node, index)))
        shapes.append(_full(shape, _heads(node, index)))
    heads = shapes[0][1]
    if heads != shapes[1][1]:  # queries share keys: widths may go, heads stay
        parts = [flow.atoms.mix(part, [1]) for part in parts]
        shapes = [(shape[0], 1, *shape[2:]) for shape in shapes]
    result = _answer(flow, node, parts, shapes, heads)
    if len(flow.shape(node.outputs[0])) == 3:
        result = _beside(result, heads, shapes[2][3])
    flow.set(node.outputs[0], result)


def _answer(flow: Flow, node: ir.Node, parts: list[Labels], shapes: list[tuple[int, ...]], heads: int) -> Labels:
    """Labels of the answer, [B, heads, S, D]."""
    (query, key, value), (q, k, v) = parts, shapes
    joined, _ = join(flow.atoms, query[:, :, :, None], (*q[:3], 1, q[3]), key[:, :, None], (*k[:2], 1, *k[2:]))
    flow.atoms.note(joined)
    if joined.shape[-1] > 1:
        rows = np.ascontiguousarray(joined).reshape(-1, joined.shape[-1])
        flow.sink(node, 0, rows, None)
        flow.sink(node, 1, rows, None)
    scores = _masked(flow, node, flow.atoms.contract(joined, [4])[..., 0], (*q[:3], k[2]))
    scores = flow.atoms.mix(scores, [3])
    weighed, _ = join(
        flow.atoms, scores[:, :, :, None], (*q[:3], 1, k[2]), value.swapaxes(2, 3)[:, :, None], (*v[:2], 1, v[3], v[2])
    )
    flow.atoms.note(weighed)
    result = flow.atoms.contract(weighed, [4])[..., 0]
    if node.op_type == "MultiHeadAttention":
        if _given(node, 3) is not None:
            spread = [_beside(part, heads, shape[3]) for part, shape in zip(parts, shapes, strict=True)]
            vectors = [
                np.broadcast_to(each[:1, :1], (1, 1, heads * shape[3])).reshape(-1)
                for each, shape in zip(spread, shapes, strict=True)
            ]
            flow.use(node, 3, 0, np.concatenate(vectors), "carry")
        return result
    macs = q[0] * heads * q[2] * k[2]
    flow.work(node, macs * q[3], joined.reshape(-1))
    flow.work(node, macs * v[3], result.reshape(-1))
    return result


def _masked(flow: Flow, node: ir.Node, scores: Labels, shape: tuple[int, ...]) -> Labels:
    """Scores joined with what is added to them."""
    index = _MASKS[node.op_type]
    mask = _given(node, index)
    if (labels := flow.labels(mask)) is not None:
        scores, _ = join(flow.atoms, scores, shape, labels, flow.shape(mask))
    elif mask is not None:
        flow.carry(node, index, scores)
    return scores


def _cut(cut: Cut, node: ir.Node) -> None:
    shapes = [cut.flow.shape(value) for value in node.inputs[:3]]
    heads = _heads(node, 0)
    width = _full(shapes[0], heads)[3]
    keeps = [cut.keeps(value).get(len(shape) - 1) for value, shape in zip(node.inputs[:3], shapes, strict=True)]
    left, stay = width, cut.keeps(node.inputs[0]).get(1) if len(shapes[0]) == 4 else None
    if len(shapes[0]) == 4:
        left = width if keeps[0] is None else len(keeps[0])
    elif keeps[0] is not None:
        stay = np.unique(keeps[0] // width)
        kept = len(stay)
        left = len(keeps[0]) // kept
        for name in ("num_heads", "q_num_heads", "kv_num_heads"):
            if verbs.attribute(node, name) is not None and kept < heads:
                verbs.set_attribute(node, name, kept)
    mask = _given(node, _MASKS[node.op_type])
    if stay is not None and cut.flow.is_constant(mask) and len(shape := cut.flow.shape(mask)) > 2 and shape[-3] > 1:
        cut.constant(node, _MASKS[node.op_type], {len(shape) - 3: stay})
    if left != width and not verbs.attribute(node, "scale", 0.0):
        verbs.set_attribute(node, "scale", 1.0 / math.sqrt(width))
    if node.op_type == "MultiHeadAttention" and _given(node, 3) is not None and any(k is not None for k in keeps):
        starts = np.cumsum([0, shapes[0][2], shapes[1][2]])
        every = [np.arange(shape[2]) if keep is None else keep for keep, shape in zip(keeps, shapes, strict=True)]
        cut.constant(node, 3, {0: np.concatenate([start + keep for start, keep in zip(starts, every, strict=True)])})


# ---------------------------------------------------------------------- rotary embeddings
def _turned(flow: Flow, node: ir.Node) -> int:
    """The number of heads of a rotary embedding of three axes."""
    if count := int(verbs.attribute(node, "num_heads", 0)):
        return count
    return flow.shape(node.inputs[0])[2] // (2 * flow.shape(node.inputs[2])[-1])


def _label_rotary(flow: Flow, node: ir.Node) -> None:
    labels = flow.labels(node.inputs[0])
    if labels is None:
        flow.freeze(node, "its input is constant")
        return
    for value in node.inputs[1:]:
        if (other := flow.labels(value)) is not None:
            flow.atoms.mix(other, range(other.ndim))
    if labels.ndim == 4:
        flow.set(node.outputs[0], flow.atoms.mix(labels, [3]))
        return
    size, heads = flow.shape(node.inputs[0])[2], _turned(flow, node)
    mixed = flow.atoms.mix(_apart(labels, size, heads), [3])
    flow.set(node.outputs[0], _beside(mixed, heads, size // heads))


def _cut_rotary(cut: Cut, node: ir.Node) -> None:
    keep = cut.keeps(node.outputs[0]).get(2) if len(cut.flow.shape(node.outputs[0])) == 3 else None
    if keep is not None and verbs.attribute(node, "num_heads", 0):
        width = cut.flow.shape(node.inputs[0])[2] // _turned(cut.flow, node)
        verbs.set_attribute(node, "num_heads", len(keep) // width)


_ATTENTION, _ROTARY = Rule(_label, _cut), Rule(_label_rotary, _cut_rotary)
RULES = {
    "Attention": _ATTENTION,
    "com.microsoft.MultiHeadAttention": _ATTENTION,
    "RotaryEmbedding": _ROTARY,
    "com.microsoft.RotaryEmbedding": _ROTARY,
}
