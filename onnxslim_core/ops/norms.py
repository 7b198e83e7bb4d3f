"""Norms over channels: LayerNormalization, RMSNormalization, and com.microsoft's that add before they normalize.

Mean and variance are of all channels, so that removing one is no mask: in general the channels stay (they are mixed).
Where the walk is asked for it (`Flow.widths`, lossy), the norm is computed over the channels that stay instead, and so
is a ReduceMean over channels, of which exporters build norms. What equals that is the norm with masked statistics:

    mean = sum(m x) / n,  variance = sum(m (x - mean)^2) / n,  m = 1 where a channel stays, n = how many do

LpNormalization is different: zeros add nothing to its sum of powers, so it is a sum over channels like ReduceL2.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxslim_core import graph as verbs
from onnxslim_core.ops.atoms import Labels
from onnxslim_core.ops.cut import Cut
from onnxslim_core.ops.flow import Flow, Rule
from onnxslim_core.ops.join import join

__all__ = ["RULES"]


def _label_layer(flow: Flow, node: ir.Node) -> None:
    labels = flow.labels(node.inputs[0])
    if labels is None or not all(value is None or flow.is_constant(value) for value in node.inputs[1:]):
        flow.freeze(node, "its scale or bias is computed")
        return
    axes = list(range(int(verbs.attribute(node, "axis", -1)) % labels.ndim, labels.ndim))
    statistics = labels
    if flow.widths and any(labels.shape[axis] > 1 for axis in axes):
        flow.averages.append(node)
        statistics = flow.atoms.contract(labels, axes)
    else:
        labels = statistics = flow.atoms.mix(labels, axes)
    _finish(flow, node, labels, statistics)


def _finish(flow: Flow, node: ir.Node, labels: Labels, statistics: Labels) -> None:
    flow.set(node.outputs[0], labels)
    for value in node.outputs[1:3]:
        if len(flow.shapes.shape.get(value, ())) == labels.ndim:
            flow.set(value, statistics)
    for index, other in enumerate(node.inputs[1:], 1):
        if flow.is_constant(other):
            flow.carry(node, index, labels)


def _cut_layer(cut: Cut, node: ir.Node) -> None:
    keeps, rank = cut.keeps(node.outputs[0]), len(cut.flow.shape(node.outputs[0]))
    for index, other in enumerate(node.inputs[1:], 1):
        if cut.flow.is_constant(other):
            cut.carried(node, index, keeps, rank)


def _label_skip(flow: Flow, node: ir.Node) -> None:
    """The sum of input, skip and bias is normalized along the last axis, and may be read as the fourth output."""
    given = [value for value in node.inputs[:2] if value is not None]
    labels = [flow.labels(value) for value in given]
    if any(each is None for each in labels) or not all(
        value is None or flow.is_constant(value) for value in node.inputs[2:]
    ):
        flow.freeze(node, "one of its summands is constant, or its scale or bias is computed")
        return
    joined: Labels | None = None
    for value, each in zip(given, labels, strict=True):
        assert each is not None
        shape = flow.shape(value)
        joined = each if joined is None else join(flow.atoms, joined, flow.shape(given[0]), each, shape)[0]
    assert joined is not None
    mixed = flow.atoms.mix(joined, [joined.ndim - 1])
    _finish(flow, node, mixed, mixed)
    for value in node.outputs[3:]:
        flow.set(value, mixed)


def _label_lp(flow: Flow, node: ir.Node) -> None:
    labels = flow.labels(node.inputs[0])
    if labels is None:
        flow.freeze(node, "its input is constant")
        return
    axis = int(verbs.attribute(node, "axis", -1)) % labels.ndim
    if labels.shape[axis] > 1:
        rows = np.ascontiguousarray(np.moveaxis(labels, axis, -1)).reshape(-1, labels.shape[axis])
        flow.sink(node, 0, rows, None)
    flow.set(node.outputs[0], labels)


_LAYER = Rule(_label_layer, _cut_layer)
_SKIP = Rule(_label_skip)
RULES = {
    **dict.fromkeys(("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"), _LAYER),
    "com.microsoft.SkipLayerNormalization": _SKIP,
    "com.microsoft.SkipSimplifiedLayerNormalization": _SKIP,
    "LpNormalization": Rule(_label_lp),
}
