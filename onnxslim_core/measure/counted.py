"""Outputs of which the data decide the size, such as the boxes that a detector finds."""

from __future__ import annotations

import onnx_ir as ir

from onnxslim_core import graph as verbs

__all__ = ["counted_by_data"]

_COUNTING = ("NonMaxSuppression", "NonZero", "Unique", "Compress", "Loop")


def counted_by_data(model: ir.Model) -> set[str]:
    """The names of outputs that depend on an operator whose results are as long as the data make them."""
    return {str(value.name) for value in model.graph.outputs if _is_counted(value)}


def _is_counted(output: ir.Value) -> bool:
    pending, seen = [output.producer()], set[ir.Node]()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        inner = [other for body in verbs.bodies(node) for other in verbs.all_nodes(body)]
        if any(verbs.is_op(each, *_COUNTING) for each in (node, *inner)):
            return True
        pending += [value.producer() for each in (node, *inner) for value in each.inputs if value is not None]
    return False
