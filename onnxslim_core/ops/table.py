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

__all__ = ["RULES", "rule_of"]

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


def rule_of(node: ir.Node) -> Rule | None:
    """The rule of a node; None for an operator that is not understood."""
    return RULES.get(node.op_type if node.domain in STANDARD else f"{node.domain}.{node.op_type}")
