"""What quantization puts between the sums: ranges that are measured, and operators on 8-bit numbers.

DynamicQuantizeLinear takes its scale from the range of the whole tensor, zero included: channels that are zero do not
change it, others may. So it is on record as a sum over all channels: a removal equals zeros multiplied in at its
input, and what comes out there is the zero point, which ConvInteger and MatMulInteger take for nothing.
Of the QLinear operators of com.microsoft those are here that keep, join or pool; their scales are one number each.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnxslim_core import graph as verbs
from onnxslim_core.ops import join, joints, keep, mix
from onnxslim_core.ops.flow import Flow, Rule

__all__ = ["RULES"]


def _label_dynamic(flow: Flow, node: ir.Node) -> None:
    labels = flow.labels(node.inputs[0])
    if labels is None:
        flow.freeze(node, "its input is constant")
        return
    if labels.size > 1:
        flow.sink(node, 0, labels.reshape(1, -1), None)
    flow.plain(node)
    flow.set(node.outputs[0], labels)


def _scaled(rule: Rule, tensors: Sequence[int]) -> Rule:
    """The rule of the float operator, where every scale and zero point is one constant number."""

    def label(flow: Flow, node: ir.Node) -> None:
        scales = [value for i, value in enumerate(node.inputs) if i not in tensors and value is not None]
        if not all(flow.is_constant(value) and flow.shape(value) in ((), (1,)) for value in scales):
            flow.freeze(node, "its scales are computed or per channel")
            return
        if verbs.attribute(node, "channels_last", 0):
            flow.freeze(node, "its channels come last")
            return
        rule.label(flow, node)

    return Rule(label, rule.cut)


_KEEP, _JOIN = keep.RULES["Relu"], join.RULES["Equal"]
_DOMAIN = "com.microsoft."
RULES = {
    "DynamicQuantizeLinear": Rule(_label_dynamic),
    **{_DOMAIN + op: _scaled(_KEEP, (0,)) for op in ("QLinearSigmoid", "QLinearLeakyRelu")},
    **{_DOMAIN + op: _scaled(_JOIN, (0, 3)) for op in ("QLinearAdd", "QLinearMul")},
    _DOMAIN + "QLinearWhere": _scaled(_JOIN, (0, 1, 4)),
    _DOMAIN + "QLinearConcat": _scaled(joints.RULES["Concat"], range(2, 3000, 3)),
    **{_DOMAIN + f"QLinear{op}": _scaled(mix.RULES[op], (0,)) for op in ("AveragePool", "GlobalAveragePool")},
    **{_DOMAIN + op: keep.RULES[op] for op in ("QuantizeLinear", "DequantizeLinear")},
    # and what is fused of float operators
    **{_DOMAIN + op: Rule(_KEEP.label) for op in ("Gelu", "QuickGelu")},
    **{_DOMAIN + op: Rule(_JOIN.label, _JOIN.cut) for op in ("BiasGelu", "FastGelu")},
}
