"""Channels brought to one size before they share a grid.

    y_i' = y_i / s_i    rows of every layer that makes channel i are divided by s_i, columns of every reader multiplied

A tensor has one scale, so a channel a tenth as large as the largest has a tenth of the steps. Where only functions with
f(s x) = s f(x) lie between two layers (Relu, pooling, sums) the scales can be moved into the weights, which have one
scale per output channel anyway: exact in real arithmetic (Nagel et al., "Data-Free Quantization Through Weight
Equalization and Bias Correction", ICCV 2019, 4.1); a Clip does not allow it. A depthwise reader takes any scales at no
cost; for one that sums over channels the exponent is one half, which shares the burden between values and weights
(Xiao et al., "SmoothQuant", ICML 2023, 4).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxslim_core import graph as verbs
from onnxslim_core.quant.layout import BOUND, linear_nodes
from onnxslim_core.quant.ranges import Spread

__all__ = ["equalize"]

Floats = NDArray[np.float64]

_KEEP = ("AveragePool", "GlobalAveragePool", "Identity", "LeakyRelu", "MaxPool", "Relu")
_GATES = ("HardSigmoid", "Sigmoid")
_SMALLEST = 1 / 64
_ROOM = 1.25
"""A channel is not brought up to the very size of the largest: other samples may go further."""


@dataclass(slots=True, eq=False)
class _Group:
    """Tensors whose channels have one vector of scales."""

    values: dict[ir.Value, None] = field(default_factory=dict)
    makers: list[ir.Node] = field(default_factory=list)
    readers: list[ir.Node] = field(default_factory=list)
    pinned: bool = False


class _Groups:
    """A union-find over values."""

    def __init__(self) -> None:
        self._parent: dict[ir.Value, ir.Value] = {}
        self.pinned: set[ir.Value] = set()

    def find(self, value: ir.Value) -> ir.Value:
        parent = self._parent.setdefault(value, value)
        while parent is not self._parent[parent]:
            parent = self._parent[parent]
        self._parent[value] = parent
        return parent

    def unite(self, values: Iterable[ir.Value]) -> None:
        first, *rest = (self.find(value) for value in values)
        for other in rest:
            self._parent[other] = first

    def pin(self, values: Iterable[ir.Value | None]) -> None:
        self.pinned.update(value for value in values if value is not None)


def equalize(model: ir.Model, spreads: Mapping[ir.Value, Spread]) -> int:
    """Move scales between layers, in place; returns how many groups of tensors were changed.

    Args:
        model: The float model, BatchNormalization fused.
        spreads: What was seen of its activations, per channel; no longer true afterwards.
    """
    count = 0
    linear = [node for node in linear_nodes(model) if node.op_type in ("Conv", "Gemm")]
    for group in _groups(model, linear, spreads):
        scales = _scales(group, spreads)
        if scales is None or np.allclose(scales, 1):
            continue
        for node in group.makers:
            _scale_rows(model, node, 1 / scales)
        for node in group.readers:
            _scale_columns(model, node, scales)
        count += 1
    return count


def _groups(model: ir.Model, linear: list[ir.Node], spreads: Mapping[ir.Value, Spread]) -> list[_Group]:
    groups, chosen = _Groups(), set(linear)
    groups.pin(model.graph.inputs)
    groups.pin(model.graph.outputs)
    for node in model.graph:
        out, given = (node.outputs[0] if node.outputs else None), list(node.inputs)
        if node in chosen and out is not None and _owns_weights(node):
            groups.unite([out])
            groups.unite([given[0]])  # type: ignore[list-item]
        elif out is not None and len(node.outputs) == 1 and (tied := _tied(node, spreads)):
            groups.unite(tied)
            groups.pin(value for value in given if value not in tied)
        else:
            groups.pin([*given, *node.outputs])
        for body in verbs.bodies(node):
            groups.pin(value for inner in verbs.all_nodes(body) for value in inner.inputs)
    return _gathered(groups, model, chosen)


def _gathered(groups: _Groups, model: ir.Model, linear: set[ir.Node]) -> list[_Group]:
    found: dict[ir.Value, _Group] = {}
    values = [v for node in model.graph for v in (*node.inputs, *node.outputs) if v is not None]
    for value in [*model.graph.inputs, *dict.fromkeys(values)]:
        group = found.setdefault(groups.find(value), _Group())
        group.values[value] = None
        group.pinned |= value in groups.pinned
        if value.producer() in linear:
            group.makers.append(value.producer())  # type: ignore[arg-type]
        group.readers += [node for node, index in verbs.users_of(value)[0] if node in linear and index == 0]
    return [group for group in found.values() if not group.pinned and group.makers and group.readers]


def _owns_weights(node: ir.Node) -> bool:
    """True where nobody else reads the weights and the bias."""
    return all(value is None or len(value.uses()) == 1 for value in node.inputs[1:])


def _tied(node: ir.Node, spreads: Mapping[ir.Value, Spread]) -> list[ir.Value]:
    """The values around a node that must have the same scales; empty where none can be moved through it."""
    out, first = node.outputs[0], node.inputs[0] if node.inputs else None
    if first is None or node.domain not in verbs.STANDARD:
        return []
    if node.op_type in _KEEP:
        return [first, out]
    if node.op_type == "Flatten" and verbs.attribute(node, "axis", 1) == 1:
        before, after = spreads.get(first), spreads.get(out)
        if before is None or after is None or after.rank != 2 or before.lows.shape != after.lows.shape:
            return []
        return [first, out] if before.lows.size else []
    if node.op_type == "Add" and len({_channels(value, spreads) for value in (*node.inputs, out)}) == 1:
        return [first, node.inputs[1], out] if _channels(out, spreads) else []  # type: ignore[list-item]
    if node.op_type == "Mul":
        gates = [value for value in node.inputs if value is not None and verbs.is_op(value.producer(), *_GATES)]
        others = [value for value in node.inputs if value is not None and value not in gates]
        if len(gates) == 1 and len(others) == 1 and _channels(others[0], spreads) == _channels(out, spreads):
            source = gates[0].producer().inputs[0]  # type: ignore[union-attr]
            return [others[0], out] if source is not others[0] else []
    return []


def _channels(value: ir.Value | None, spreads: Mapping[ir.Value, Spread]) -> int:
    """Channels of an activation with at least one more axis behind them; 0 where that is not known."""
    spread = spreads.get(value) if value is not None else None
    return len(spread.lows) if spread is not None and spread.rank >= 3 else 0


def _scales(group: _Group, spreads: Mapping[ir.Value, Spread]) -> Floats | None:
    """One scale per channel, at most 1; None where the channels do not fit."""
    seen = [spreads[value] for value in group.values if value in spreads]
    widths = {len(spread.lows) for spread in seen}
    if len(widths) != 1 or 0 in widths:
        return None
    (width,) = widths
    if any(_width(node, True) != width for node in group.makers):
        return None
    if any(_width(node, False) != width for node in group.readers):
        return None
    rounded = [spreads[value] for value in group.values if value in spreads and not _is_bounded(value)]
    sizes = [np.maximum(np.abs(spread.lows), np.abs(spread.highs)) for spread in rounded]
    if not sizes or any(not np.isfinite(size).all() or not size.max() for size in sizes):
        return None
    share = np.max([size / size.max() for size in sizes], axis=0)
    summed = [node for node in group.readers if not _is_depthwise(node)]
    scales = np.minimum(share * _ROOM, 1.0)
    if summed:
        columns = np.max([_columns(node) for node in summed], axis=0)
        scales = np.sqrt(scales) / np.sqrt(np.maximum(columns, 1e-4))
        scales = scales / scales.max()
    scales = np.maximum(scales, _SMALLEST)
    return np.asarray(scales)


def _is_bounded(value: ir.Value) -> bool:
    """True where nobody sees a value before a Relu or Clip has cut it."""
    users, is_output = verbs.users_of(value)
    return len(users) == 1 and not is_output and verbs.is_op(users[0][0], *BOUND)


def _weights(node: ir.Node) -> NDArray[np.generic]:
    array = verbs.array_of(node.inputs[1])
    assert array is not None
    return array


def _is_depthwise(node: ir.Node) -> bool:
    return node.op_type == "Conv" and _weights(node).shape[1] == 1 and int(verbs.attribute(node, "group", 1)) > 1


def _width(node: ir.Node, outputs: bool) -> int:
    """Output or input channels of a linear node."""
    shape = _weights(node).shape
    if node.op_type == "Gemm":
        return int(shape[0] if outputs == bool(verbs.attribute(node, "transB", 0)) else shape[1])
    return int(shape[0] if outputs else shape[1] * int(verbs.attribute(node, "group", 1)))


def _columns(node: ir.Node) -> Floats:
    """How large the weights of each input channel are beside the largest of the same output channel."""
    array = np.abs(np.asarray(_weights(node), np.float64))
    axis = 1 if node.op_type == "Gemm" and not verbs.attribute(node, "transB", 0) else 0
    others = tuple(i for i in range(array.ndim) if i != axis)
    largest = np.maximum(array.max(axis=others, keepdims=True), 1e-30)
    groups = int(verbs.attribute(node, "group", 1)) if node.op_type == "Conv" else 1
    shares = array / largest
    if node.op_type == "Gemm":
        return np.asarray(shares.max(axis=axis))
    split = shares.reshape(groups, array.shape[0] // groups, array.shape[1], -1)
    return np.asarray(split.max(axis=(1, 3)).reshape(-1))


def _scale_rows(model: ir.Model, node: ir.Node, factors: Floats) -> None:
    """Multiply what a layer makes, channel by channel."""
    array = np.asarray(_weights(node), np.float64)
    axis = 1 if node.op_type == "Gemm" and not verbs.attribute(node, "transB", 0) else 0
    _put(model, node, 1, array * factors.reshape([-1 if i == axis else 1 for i in range(array.ndim)]))
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        _put(model, node, 2, np.asarray(verbs.array_of(node.inputs[2]), np.float64) * factors)


def _scale_columns(model: ir.Model, node: ir.Node, factors: Floats) -> None:
    """Multiply what a layer makes of each input channel."""
    array = np.asarray(_weights(node), np.float64)
    if node.op_type == "Gemm":
        _put(model, node, 1, array * (factors if verbs.attribute(node, "transB", 0) else factors[:, None]))
        return
    groups = int(verbs.attribute(node, "group", 1))
    split = array.reshape(groups, array.shape[0] // groups, array.shape[1], -1)
    _put(model, node, 1, (split * factors.reshape(groups, 1, -1, 1)).reshape(array.shape))


def _put(model: ir.Model, node: ir.Node, index: int, array: Floats) -> None:
    old = node.inputs[index]
    assert old is not None and isinstance(node.graph, ir.Graph)
    made = verbs.add_constant(node.graph, verbs.Names(model), array.astype(np.float32), str(old.name))
    verbs.replace_input(node, index, made)
    if (idle := verbs.idle_source(old)) is not None:
        verbs.remove(idle)
