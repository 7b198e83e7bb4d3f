"""Layers that are called several times: linear nodes that read one weight constant, and are solved as one problem.

A siamese network reads two inputs through the same layers, a detector reads maps of several sizes through one head.
Solved each by itself such nodes would get weights of their own: answers that were symmetric no longer are, and the file
holds every copy. Their rows are therefore stacked, `min_W sum_i |X_i W + b - Y_i|^2`, and all go on reading one result.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import onnx_ir as ir

from onnxslim_core import graph as verbs
from onnxslim_core.calibration.consumers import bias_value, constant_of, source_of
from onnxslim_core.calibration.pieces import read_by

__all__ = ["Layer", "layers_of"]

Layer = tuple[ir.Node, ...]
"""The calls of one layer, in the order of the graph: mostly one."""

_FORM = (("group", 1), ("alpha", 1.0), ("beta", 1.0), ("transB", 0))
"""Attributes that say what weights and bias mean; strides and padding only say where they are used."""


def layers_of(nodes: Iterable[ir.Node]) -> list[Layer]:
    """Linear nodes by layer, less those that only weights of their own could mend.

    A layer is left out where something else reads its weights, also a node that is not given; where its calls use them
    in different ways or add different biases; and where its input cannot be known before it is solved, because one call
    waits for another.

    Args:
        nodes: Linear nodes that may be solved for, in the order of the graph.
    """
    by_weight: dict[ir.Value, list[ir.Node]] = {}
    for node in nodes:
        weight = node.inputs[constant_of(node)]
        assert weight is not None
        by_weight.setdefault(weight, []).append(node)
    found = [tuple(calls) for weight, calls in by_weight.items() if _is_one(weight, calls)]
    found = [layer for layer in found if not _waits(layer, {})]
    together = {node: layer for layer in found for node in layer}
    return [layer for layer in found if not _waits(layer, together)]


def _is_one(weight: ir.Value, calls: Sequence[ir.Node]) -> bool:
    """Whether these are all that reads the weights, and use them alike."""
    readers = set(verbs.users_of(weight)[0])
    return readers == {(node, constant_of(node)) for node in calls} and len({_form(node) for node in calls}) == 1


def _form(node: ir.Node) -> tuple[object, ...]:
    said = (verbs.attribute(node, name, default) for name, default in _FORM)
    return node.op_type, constant_of(node), bias_value(node), *said


def _waits(layer: Layer, together: Mapping[ir.Node, Layer]) -> bool:
    """Whether one call comes after another, or after a layer that has to be solved after one.

    Args:
        layer: Its calls.
        together: By node, layers of which all calls are solved at once.
    """
    if len(layer) == 1:
        return False
    seen, stack = set[ir.Node](), [source_of(node) for node in layer]
    while stack:
        node = stack.pop().producer()
        if node in layer:
            return True
        if node is not None and node not in seen:
            calls = together.get(node, (node,))
            seen.update(calls)
            stack.extend(value for each in calls for value in read_by(each))
    return False
