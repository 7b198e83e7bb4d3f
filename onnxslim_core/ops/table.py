"""The table of rules: every operator that is understood, by its type in the standard domain.

Operators of another domain stand by their full name, such as `com.microsoft.FusedConv`.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxslim_core.graph import STANDARD
from onnxslim_core.ops import (
    attention,
    bodies,
    conv,
    einsum,
    join,
    joints,
    keep,
    mix,
    move,
    norms,
    parts,
    product,
    quantized,
    recurrent,
    sizes,
)
from onnxslim_core.ops.flow import Rule

__all__ = ["MAKERS", "RULES", "makes_channels", "rule_of"]

RULES: dict[str, Rule] = {
    **conv.RULES,
    **product.RULES,
    **einsum.RULES,
    **recurrent.RULES,
    **join.RULES,
    **keep.RULES,
    **mix.RULES,
    **norms.RULES,
    **attention.RULES,
    **move.RULES,
    **parts.RULES,
    **joints.RULES,
    **sizes.RULES,
    **quantized.RULES,
    **bodies.RULES,
}

MAKERS = frozenset(
    (*conv.RULES, *product.RULES, *einsum.RULES, *recurrent.RULES, "Gather", "Concat", "com.microsoft.QLinearConcat")
)
"""Operators whose constants can make channels (`Flow.make`): a graph without any of them has no channels to choose."""


def rule_of(node: ir.Node) -> Rule | None:
    """The rule of a node; None for an operator that is not understood."""
    return RULES.get(_full_name(node))


def makes_channels(node: ir.Node) -> bool:
    """False for an operator that never makes channels."""
    return _full_name(node) in MAKERS


def _full_name(node: ir.Node) -> str:
    return node.op_type if node.domain in STANDARD else f"{node.domain}.{node.op_type}"
