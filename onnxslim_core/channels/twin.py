"""The channel graph of a copy, without analysing it again: same labels, same decisions."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxslim_core.channels.groups import ChannelGraph
from onnxslim_core.channels.trace import trace

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
    pairs = list(zip(model.graph.inputs, copy.graph.inputs, strict=True))
    pairs += [(value, copy.graph.initializers[name]) for name, value in model.graph.initializers.items()]
    for old, new in zip(model.graph, copy.graph, strict=True):
        pairs += list(zip(old.outputs, new.outputs, strict=True))
    return pairs


def twin_of(channels: ChannelGraph, copy: ir.Model) -> ChannelGraph:
    """The channel graph of a copy of the model.

    Args:
        channels: Of the model, which must not have changed since.
        copy: Made by `clone`.
    """
    return ChannelGraph(trace(copy, None, _Moved(channels, copy)), channels.classes)
