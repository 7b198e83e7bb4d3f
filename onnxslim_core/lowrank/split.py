"""A layer written out as two or three nodes; the graph side of an offer.

The last of them is the node itself: it keeps its name, its output and its bias, so that what reads it is untouched.
Strides, pads and dilations of a Conv go to the node whose kernel runs along their axis; `auto_pad` works axis by axis,
so it is carried along wherever a kernel is longer than 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxslim_core.graph import (
    Names,
    add_constant,
    add_node,
    array_of,
    attribute,
    is_op,
    opset_of,
    remove,
    replace_input,
    set_attribute,
)
from onnxslim_core.lowrank.forms import Offer, shift_of
from onnxslim_core.lowrank.weights import shifted, weight_of

__all__ = ["split", "stored"]


def stored(node: ir.Node, offer: Offer) -> list[np.ndarray]:
    """The weights of the nodes, first to last, in the type of the layer's weight."""
    found = weight_of(node)
    assert found is not None
    with np.errstate(over="ignore"):  # what leaves the type is for the caller to see
        return [part.astype(found[1].dtype) for part in offer.parts()]


def split(model: ir.Model, node: ir.Node, offer: Offer, names: Names | None = None) -> list[ir.Node]:
    """Put two or three nodes in the place of one.

    Args:
        model: Changed in place.
        node: What the offer was made for; stays as the last.
        offer: One of `forms.offers`.
        names: Of the model, where the caller holds them.

    Returns:
        The nodes, first to last.
    """
    found = weight_of(node)
    assert found is not None
    names = names or Names(model)
    parts, shift, old = stored(node, offer), shift_of(node, offer), node.inputs[found[0]]
    if shift is not None:
        _shift_bias(node, shift, names, found[1].dtype)
    if is_op(node, "Conv"):
        nodes = _split_conv(node, offer, parts, names)
    else:
        nodes = _split_matrix(node, found[0], parts, names, opset_of(model))
    _drop(old)
    return nodes


def _split_matrix(node: ir.Node, place: int, parts: Sequence[np.ndarray], names: Names, opset: int) -> list[ir.Node]:
    """Read the product of the input with one factor, and multiply by the other; alpha and beta stay with the second."""
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    base = _name(node, place)
    parts = [part.T for part in parts] if place == 0 else parts
    a, b = (add_constant(graph, names, part, f"{base}_{end}") for part, end in zip(parts, "ab", strict=True))
    x = node.inputs[1 - place]
    transposed = is_op(node, "Gemm") and bool(attribute(node, "transA", 0))
    if place == 0:
        first = add_node(names, "MatMul", [a, x], before=node)
    elif is_op(node, "Gemm"):
        inputs = [x, a]
        if opset < 11:  # C is not optional yet
            inputs.append(add_constant(graph, names, np.zeros(1, parts[0].dtype), f"{base}_zero"))
        first = add_node(names, "Gemm", inputs, {"transA": 1} if transposed else {}, before=node)
    else:
        first = add_node(names, "MatMul", [x, a], before=node)
    first.outputs[0].type = node.outputs[0].type
    replace_input(node, 1 - place, first.outputs[0])
    replace_input(node, place, b)
    if is_op(node, "Gemm"):
        set_attribute(node, "transA", None)
        set_attribute(node, "transB", None)
    return [first, node]


def _split_conv(node: ir.Node, offer: Offer, parts: Sequence[np.ndarray], names: Names) -> list[ir.Node]:
    """Convolutions in a row; the window's axes are each with one of them."""
    graph, rank = node.graph, parts[0].ndim - 2
    assert isinstance(graph, ir.Graph)
    everything = tuple(range(rank))
    axes = {"channel": (everything, ()), "spatial": ((0,), (1,)), "tucker": ((), everything, ())}[offer.form]
    base, x, nodes = _name(node, 1), node.inputs[0], list[ir.Node]()
    settings = [_settings(node, part.shape[2:], mine) for part, mine in zip(parts, axes, strict=True)]
    for number, (part, setting) in enumerate(zip(parts, settings, strict=True)):
        weight = add_constant(graph, names, part, f"{base}_{'abc'[number]}")
        if number + 1 == len(parts):
            replace_input(node, 0, x)
            replace_input(node, 1, weight)
            for key in ("kernel_shape", "strides", "pads", "dilations", "auto_pad"):
                set_attribute(node, key, setting.get(key))
            nodes.append(node)
            continue
        made = add_node(names, "Conv", [x, weight], setting, before=node)
        made.outputs[0].type = node.outputs[0].type
        x = made.outputs[0]
        nodes.append(made)
    return nodes


def _settings(node: ir.Node, kernel: tuple[int, ...], axes: tuple[int, ...]) -> dict[str, str | Sequence[int]]:
    """Attributes of a Conv that does its part of the window along some axes only; what is the default is left out."""
    rank = len(kernel)
    found: dict[str, str | Sequence[int]] = {"kernel_shape": list(kernel)}
    for key, default in (("strides", 1), ("dilations", 1)):
        given = attribute(node, key, (default,) * rank)
        sizes = [int(given[axis]) if axis in axes else default for axis in range(rank)]
        if any(size != default for size in sizes):
            found[key] = sizes
    mode = str(attribute(node, "auto_pad", "NOTSET"))
    if mode not in ("NOTSET", "VALID", "") and axes:
        found["auto_pad"] = mode
    elif mode != "VALID":
        given = attribute(node, "pads", (0,) * (2 * rank))
        pads = [int(given[side]) if side % rank in axes else 0 for side in range(2 * rank)]
        if any(pads):
            found["pads"] = pads
    return found


def _shift_bias(node: ir.Node, shift: np.ndarray, names: Names, dtype: np.dtype) -> None:
    """Add to the bias of a Conv or Gemm, or to what is added behind a MatMul."""
    found = shifted(node)
    assert found is not None
    owner, index = found
    graph = owner.graph
    assert isinstance(graph, ir.Graph)
    old = owner.inputs[index] if len(owner.inputs) > index else None
    factor = float(attribute(node, "beta", 1.0)) if is_op(node, "Gemm") else 1.0
    array = array_of(old)
    if array is None or factor == 0:
        set_attribute(owner, "beta", None)
        bias = shift
    elif array.size == shift.size:
        bias = array.astype(np.float64) + shift.reshape(array.shape) / factor
    else:  # one number for all outputs
        bias = array.astype(np.float64).reshape(-1) + shift / factor
    name = str(old.name) if old is not None else f"{_name(node, 1)}_bias"
    replace_input(owner, index, add_constant(graph, names, bias.astype(dtype), name))
    _drop(old)


def _name(node: ir.Node, place: int) -> str:
    value = node.inputs[place]
    return str(value.name) if value is not None else node.op_type


def _drop(value: ir.Value | None) -> None:
    """Remove a weight nobody reads, and the Transposes and Identities before it."""
    if value is None or value.uses() or value.is_graph_output():
        return
    producer = value.producer()
    if producer is not None:
        remove(producer)
    elif value.graph is not None and value.is_initializer() and not value.is_graph_input():
        value.graph.initializers.pop(str(value.name), None)
