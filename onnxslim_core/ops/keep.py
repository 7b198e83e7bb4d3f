"""Operators that keep every element to itself: activations, casts, normalisation by stored statistics, Q and DQ."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxslim_core import graph as verbs
from onnxslim_core.ops.consts import Consts, evaluate
from onnxslim_core.ops.cut import Cut
from onnxslim_core.ops.flow import Flow, Rule

__all__ = ["NUMERIC", "RULES"]


def _label(flow: Flow, node: ir.Node) -> None:
    labels = flow.labels(node.inputs[0])
    if labels is None:
        flow.freeze(node, "its input is constant")
        return
    flow.set(node.outputs[0], labels)
    for value in node.outputs[1:]:
        flow.set(value, labels)


def _value(consts: Consts, node: ir.Node) -> None:
    x = consts.get(node.inputs[0])
    if x is None:
        return
    others = [None if value is None else consts.operand(value) for value in node.inputs[1:]]
    if any(value is not None and other is None for value, other in zip(node.inputs[1:], others, strict=True)):
        return
    found = evaluate(node, [x, *others], consts.opset)
    if found is not None and np.shape(found[0]) == x.shape:
        consts.set(node.outputs[0], np.where(np.isnan(x), np.nan, found[0]))


def _same(consts: Consts, node: ir.Node) -> None:
    if (x := consts.get(node.inputs[0])) is not None:
        consts.set(node.outputs[0], x)


def _zero(consts: Consts, node: ir.Node) -> None:
    """Dropout in training draws what it keeps; zero stays zero."""
    if (x := consts.get(node.inputs[0])) is not None:
        consts.set(node.outputs[0], np.where(x == 0, 0.0, np.nan))


def _label_batchnorm(flow: Flow, node: ir.Node) -> None:
    labels = flow.labels(node.inputs[0])
    constant = all(flow.is_constant(value) for value in node.inputs[1:5])
    training = verbs.attribute(node, "training_mode", 0) or not verbs.attribute(node, "spatial", 1)
    if labels is None or not constant or training:
        flow.freeze(node, "it computes statistics of its input, or its parameters are computed")
        return
    flow.set(node.outputs[0], labels)
    if labels.ndim > 1 and labels.shape[1] > 1:
        column = labels.take([0], axis=0).reshape(labels.shape[1], -1)
        if labels.shape[0] == 1 and (column == column[:, :1]).all():
            for index in range(1, 5):
                flow.use(node, index, 0, np.ascontiguousarray(column[:, 0]), "carry")
        else:
            flow.unseen.append(labels)


def _cut_batchnorm(cut: Cut, node: ir.Node) -> None:
    if (keep := cut.keeps(node.outputs[0]).get(1)) is not None:
        for index in range(1, 5):
            cut.constant(node, index, {0: keep})


def _value_batchnorm(consts: Consts, node: ir.Node) -> None:
    """A channel of scale zero is its shift, whatever comes in."""
    parameters = [consts.operand(value) for value in node.inputs[1:5]]
    if any(parameter is None for parameter in parameters):
        return
    x, labels = consts.full(verbs.first_input(node)), consts.flow.labels(node.outputs[0])
    assert labels is not None
    if x.ndim < 2:
        return
    scale, shift, mean, var = (np.reshape(p, (1, -1) + (1,) * (x.ndim - 2)) for p in parameters if p is not None)
    epsilon = float(verbs.attribute(node, "epsilon", 1e-5))
    with np.errstate(all="ignore"):
        found = np.where(scale == 0, shift, (x - mean) * scale / np.sqrt(var + epsilon) + shift)
    if labels.shape[1] > 1 or found.shape[1] == 1:
        consts.set(node.outputs[0], found)


def _label_scaled(flow: Flow, node: ir.Node) -> None:
    """QuantizeLinear and DequantizeLinear of an activation: scales per tensor, or per channel along `axis`."""
    labels = flow.labels(node.inputs[0])
    plain = flow.is_constant(node.inputs[1]) or flow.shape(node.inputs[1]) in ((), (1,))
    if labels is None or verbs.attribute(node, "block_size", 0) or not plain:
        flow.freeze(node, "its input is constant, or its scales are computed or per block")
        return
    flow.set(node.outputs[0], labels)
    axis = int(verbs.attribute(node, "axis", 1)) % max(labels.ndim, 1)
    if flow.shape(node.inputs[1]) not in ((), (1,)) and labels.shape[axis] == labels.size > 1:
        for index in range(1, len(node.inputs)):
            if node.inputs[index] is not None:
                flow.use(node, index, 0, labels.reshape(-1), "carry")


def _cut_scaled(cut: Cut, node: ir.Node) -> None:
    rank = len(cut.flow.shape(node.outputs[0]))
    keep = cut.keeps(node.outputs[0]).get(int(verbs.attribute(node, "axis", 1)) % max(rank, 1))
    if keep is not None and cut.flow.shape(node.inputs[1]) not in ((), (1,)):
        for index in range(1, len(node.inputs)):
            cut.constant(node, index, {0: keep})


NUMERIC = (
    *("Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Ceil", "Celu", "Clip", "Cos", "Cosh", "Elu", "Erf"),
    *("Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Log", "Mish", "Neg", "Reciprocal", "Relu"),
    *("Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Swish", "Tan"),
    *("Tanh", "ThresholdedRelu"),
)
_OPAQUE = ("IsInf", "IsNaN", "Not", "BitwiseNot", "CastLike")
RULES = {
    **{op: Rule(_label, None, _value) for op in NUMERIC},
    **{op: Rule(_label) for op in _OPAQUE},
    "Identity": Rule(_label, None, _same),
    "Dropout": Rule(_label, None, _zero),
    "Cast": Rule(_label),
    "BatchNormalization": Rule(_label_batchnorm, _cut_batchnorm, _value_batchnorm),
    "QuantizeLinear": Rule(_label_scaled, _cut_scaled),
    "DequantizeLinear": Rule(_label_scaled, _cut_scaled),
}
