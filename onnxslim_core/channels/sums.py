"""Sums over channels: what each of them sees."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxslim_core import graph as verbs
from onnxslim_core.channels.groups import ChannelGraph
from onnxslim_core.ops import conv, product, recurrent
from onnxslim_core.ops.consts import Consts
from onnxslim_core.ops.flow import Sink

__all__ = ["Sum", "arranged", "rewritten", "sums_of"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Sum:
    """What a sum sees.

    Attributes:
        sink: Where it is.
        classes: Its labels as classes; shape (rows, k).
        values: The value of each channel, NaN where it is not known; shape (rows, k). Where two activations are
            multiplied, zero where either is zero and NaN elsewhere.
        weights: Shape (rows, k, outputs and taps); None where the other side is computed, too.
        plain: No padding: a constant channel adds a constant.
    """

    sink: Sink
    classes: Ints
    values: Floats
    weights: NDArray[np.floating] | None
    plain: bool

    @property
    def node(self) -> ir.Node:
        """The node that sums."""
        return self.sink.node

    @cached_property
    def counts(self) -> NDArray[np.bool_]:
        """Channels that add something which has to be known; shape (rows, k).

        A row that is one class altogether goes with its result: nothing has to hold there.
        """
        found = self.values != 0
        if self.weights is not None:
            found &= self.weights.any(axis=2)
        return np.asarray(found & ~(self.classes == self.classes[:, :1]).all(axis=1, keepdims=True))


def sums_of(channels: ChannelGraph, consts: Consts) -> list[Sum]:
    """Every sum over labelled channels, with the values that `consts` knows."""
    found: dict[ir.Node, list[Sum]] = {}
    for sink in channels.sinks:
        classes = channels.of(sink.labels)
        weights, plain = _weights(channels, sink)
        if weights is not None and weights.shape[:2] != sink.labels.shape:
            weights, plain = None, False
        values = arranged(channels, consts, sink)
        if (
            verbs.is_op(sink.node, *recurrent.RULES)
            and (nothing := recurrent.silent(consts, sink.node, sink.index)) is not None
        ):
            values = np.where(nothing.reshape(values.shape), 0.0, values)
        found.setdefault(sink.node, []).append(Sum(sink, classes, values, weights, plain))
    return [each for same_node in found.values() for each in _of_products(same_node)]


def _of_products(sums: list[Sum]) -> Iterable[Sum]:
    """Two activations that are multiplied and summed: a product is zero where one factor is."""
    if len(sums) != 2 or any(each.weights is not None or each.sink.weight is not None for each in sums):
        return sums
    zero = (sums[0].values == 0) | (sums[1].values == 0)
    return (replace(each, values=np.where(zero, 0.0, np.nan)) for each in sums)


def _weights(channels: ChannelGraph, sink: Sink) -> tuple[NDArray[np.floating] | None, bool]:
    node, flow = sink.node, channels.flow
    if sink.weight is None:
        return None, False
    if verbs.is_op(node, "Conv", "ConvTranspose"):
        return conv.weight_rows(flow, node), conv.pads_nothing(node, flow.shape(node.inputs[1])[2:])
    if verbs.is_op(node, "Gemm", "MatMul"):
        return product.weight_rows(flow, node, sink.weight), True
    return None, False


def arranged(channels: ChannelGraph, consts: Consts, sink: Sink) -> Floats:
    """Values in the layout of a sum; where the layouts differ, by class and only where a class has one value."""
    value = sink.node.inputs[sink.index]
    assert value is not None
    given, classes = consts.get(value), channels.of(sink.labels)
    if given is None:
        return np.full(classes.shape, np.nan)
    own = channels.of(channels.flow.table[value]).reshape(-1)
    if np.array_equal(own, classes.reshape(-1)):
        return given.reshape(classes.shape)
    low, high = np.full(len(channels.classes.of), np.inf), np.full(len(channels.classes.of), -np.inf)
    flat = np.where(np.isnan(given), np.inf, given).reshape(-1)
    np.minimum.at(low, own, flat)
    np.maximum.at(high, own, flat)
    return np.asarray(np.where((low == high) & np.isfinite(low), low, np.nan)[classes])


def rewritten(each: Sum, rows: Floats) -> NDArray[np.generic]:
    """Weights (rows, k, outputs and taps) in the layout and type in which the node reads them."""
    node, index = each.sink.node, each.sink.weight
    assert index is not None
    old = verbs.array_of(node.inputs[index])
    assert old is not None
    if verbs.is_op(node, "Conv", "ConvTranspose"):
        return conv.from_rows(node, rows, old.shape).astype(old.dtype)
    return product.from_rows(node, index, rows, old.shape).astype(old.dtype)
