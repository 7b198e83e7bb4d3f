"""Equal things become one: nodes that compute the same, and weights that hold the same."""

from __future__ import annotations

import hashlib
import struct
from collections import defaultdict
from collections.abc import Callable, Hashable

import numpy as np
import onnx_ir as ir

from onnxslim_core.graph import RANDOM, STANDARD, Names, array_of, attribute, bodies, is_op, remove, replace

__all__ = ["deterministic", "drops_nothing", "merge_nodes", "merge_weights"]

_PURE_DOMAINS = (*STANDARD, "ai.onnx.ml")
"""Domains whose operators are known to give the same answer to the same question, but for the random ones."""


def deterministic(node: ir.Node, opset: int) -> str | None:
    """A node that draws random numbers answers differently when asked again: so does Dropout in training."""
    if is_op(node, *RANDOM) or (is_op(node, "Dropout") and not drops_nothing(node, opset)):
        return f"{node.op_type} draws random numbers"
    return None


def drops_nothing(node: ir.Node, opset: int) -> bool:
    """True where a Dropout is certain to be in inference mode, in which it hands its input on."""
    if opset >= 12:
        if len(node.inputs) < 3 or node.inputs[2] is None:
            return True
        mode = array_of(node.inputs[2])
        return mode is not None and not mode.any()
    return opset >= 7 or bool(attribute(node, "is_test", 0))


def merge_nodes(graph: ir.Graph, names: Names, stays: Callable[[ir.Node], bool]) -> list[str]:
    """Let equal nodes be computed once, in this graph and in its bodies.

    A body may read what an outer graph has computed already, but nothing moves out of a body. Nodes with bodies, calls
    of functions and operators of foreign domains are left alone.

    Args:
        graph: Sorted.
        names: Of the model.
        stays: Asked about a node that has an equal one: True where it must not be merged.

    Returns:
        The names of the nodes that went.
    """
    gone: list[str] = []
    _merge(graph, (), names, stays, gone)
    return gone


def _merge(
    graph: ir.Graph,
    outer: tuple[dict[Hashable, ir.Node], ...],
    names: Names,
    stays: Callable[[ir.Node], bool],
    gone: list[str],
) -> None:
    known: dict[Hashable, ir.Node] = {}
    scopes = (known, *outer)
    for node in graph:
        for body in bodies(node):
            _merge(body, scopes, names, stays, gone)
        key = _key(node)
        if key is None:
            continue
        twin = known.get(key)
        if twin is None and outer:
            twin = next((found for scope in outer if (found := scope.get(key)) is not None), None)
        if twin is None:
            known[key] = node
            continue
        if stays(node):
            continue
        if twin.graph is not graph and any(v.is_graph_output() for v in node.outputs):
            continue  # an output of a body has to be made in the body
        for old, new in zip(node.outputs, twin.outputs, strict=True):
            replace(old, new, names)
        gone.append(node.name or node.op_type)
        remove(node)


def _key(node: ir.Node) -> Hashable | None:
    """What a node computes, from what; None where that cannot be said."""
    if node.domain not in _PURE_DOMAINS or node.overload:
        return None
    parts = []
    attributes = node.attributes.data
    for name in sorted(attributes) if attributes else ():
        attr = attributes[name]
        value = None if attr.is_ref() else _frozen(attr)
        if value is None:
            return None
        parts.append((name, int(attr.type), value))
    outputs = tuple([bool(v.name) for v in node.outputs])
    return node.op_type, node.domain in STANDARD, outputs, node.inputs, tuple(parts)


def _frozen(attr: ir.Attr) -> Hashable | None:
    """An attribute as something to compare; bytes for floats, so that 0.0 and -0.0 differ and NaN equals itself."""
    kind, kinds = attr.type, ir.AttributeType
    if kind in (kinds.INT, kinds.STRING):
        return (attr.value,)
    if kind == kinds.FLOAT:
        return struct.pack("<d", attr.value)
    if kind in (kinds.INTS, kinds.STRINGS):
        return tuple(attr.value)
    if kind == kinds.FLOATS:
        return np.asarray(attr.value, dtype=np.float64).tobytes()
    if kind == kinds.TENSOR:
        return _content(attr.value)
    return None


def _content(tensor: ir.TensorProtocol) -> Hashable:
    """Element type, shape and a digest of the bytes."""
    if tensor.dtype == ir.DataType.STRING:
        return "strings", tuple(tensor.shape), tuple(tensor.numpy().reshape(-1).tolist())
    digest = hashlib.sha256(tensor.tobytes()).digest()
    return int(tensor.dtype), tuple(tensor.shape), digest


def merge_weights(graph: ir.Graph) -> tuple[list[str], int]:
    """Let equal weights of one graph be stored once; those a caller may feed or read stay.

    Returns:
        The names of the weights that went, and their bytes.
    """
    gone, saved = [], 0
    groups: dict[Hashable, list[ir.Value]] = defaultdict(list)
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is None or value.is_graph_input() or value.is_graph_output():
            continue
        groups[int(tensor.dtype), tuple(tensor.shape)].append(value)
    for group in groups.values():
        if len(group) == 1:
            continue  # most weights are the only one of their shape, and are not read at all
        known: dict[Hashable, ir.Value] = {}
        for value in group:
            assert value.const_value is not None
            first = known.setdefault(_content(value.const_value), value)
            if first is value:
                continue
            value.replace_all_uses_with(first)
            graph.initializers.pop(str(value.name))
            gone.append(str(value.name))
            saved += value.const_value.nbytes
    for node in graph:
        for body in bodies(node):
            inner, inner_saved = merge_weights(body)
            gone, saved = gone + inner, saved + inner_saved
    return gone, saved
