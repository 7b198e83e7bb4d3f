"""The channel graph of a copy, without analysing it again: same labels, same decisions."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxslim_core.channels.groups import ChannelGraph
from onnxslim_core.channels.trace import trace
from onnxslim_core.graph import bodies

__all__ = ["twin_of"]


class _Moved:
    """The shapes of one model for its copy, value by value."""

    def __init__(self, channels: ChannelGraph, copy: ir.Model) -> None:
        self.shape: dict[ir.Value, tuple[int, ...]] = {}
        self.value: dict[ir.Value, np.ndarray] = {}
        known = channels.flow.shapes
        for old, new in _pairs(channels.flow.model, copy):
            if old in known.shape:
                self.shape[new] = known.shape[old]
            if old in known.value:
                self.value[new] = known.value[old]


def _pairs(model: ir.Model, copy: ir.Model) -> list[tuple[ir.Value, ir.Value]]:
    pairs: list[tuple[ir.Value, ir.Value]] = []
    graphs = [(model.graph, copy.graph)]
    while graphs:
        old_graph, new_graph = graphs.pop()
        pairs += list(zip(old_graph.inputs, new_graph.inputs, strict=True))
        pairs += [(value, new_graph.initializers[name]) for name, value in old_graph.initializers.items()]
        for old, new in zip(old_graph, new_graph, strict=True):
            pairs += list(zip(old.outputs, new.outputs, strict=True))
            graphs += list(zip(bodies(old), bodies(new), strict=True))
    return pairs


def twin_of(channels: ChannelGraph, copy: ir.Model) -> ChannelGraph:
    """The channel graph of a copy of the model.

    Args:
        channels: Of the model, which must not have changed since.
        copy: Made by `clone`.
    """
    return ChannelGraph(trace(copy, None, _Moved(channels, copy), widths=channels.flow.widths), channels.classes)
