"""Some nodes of a graph as a model of their own: what they read goes in, what is wanted comes out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from onnxslim_core import graph as verbs
from onnxslim_core._emit import write_node
from onnxslim_core.calibration.consumers import bias_of, constant_of, source_of, stored_weights

__all__ = ["Swap", "cut_out", "read_by", "read_from"]

Swap = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Weights (d, n) and bias (n,) of a linear node, in the layout of `consumers.weights_of`."""


def read_by(node: ir.Node) -> Iterable[ir.Value]:
    """Values that a node reads, also those that its bodies capture; not what is made within them."""
    yield from (v for v in node.inputs if v is not None)
    for body in verbs.bodies(node):
        nodes = list(verbs.all_nodes(body))
        within = {body, *(inner.graph for inner in nodes)}
        yield from (v for inner in nodes for v in inner.inputs if v is not None and verbs.owner_of(v) not in within)


def read_from(nodes: Sequence[ir.Node]) -> list[ir.Value]:
    """What some nodes of one graph read that is made outside of them, constants left out, in the order of reading."""
    inside, graph = set(nodes), nodes[0].graph if nodes else None
    read: dict[ir.Value, None] = {}
    for value in (value for node in nodes for value in read_by(node)):
        source = value.producer()
        constant = source is None and value.const_value is not None and not value.is_graph_input()
        mine = source is not None and (source in inside or verbs.is_op(source, "Constant"))
        if not constant and not mine and verbs.owner_of(value) is graph:
            read[value] = None
    return list(read)


def cut_out(
    model: ir.Model,
    nodes: Sequence[ir.Node],
    read: Iterable[ir.Value],
    made: Iterable[ir.Value],
    dtypes: Mapping[ir.Value, np.dtype],
    swaps: Mapping[ir.Node, Swap] | None = None,
    shapes: Mapping[ir.Value, tuple[int, ...]] | None = None,
) -> onnx.ModelProto:
    """A model of these nodes; their weights are its initializers.

    Args:
        model: Where they stand.
        nodes: In the order of the graph.
        read: What becomes inputs.
        made: What becomes outputs.
        dtypes: Of what is read.
        swaps: Linear nodes that use other weights than their own.
        shapes: Of what is read, to be declared; undeclared where not given.
    """
    proto = onnx.ModelProto(ir_version=min(max(model.ir_version or 8, 4), 10))
    for domain, version in model.opset_imports.items():
        proto.opset_import.add(domain=domain, version=version)
    proto.functions.extend(ir.serde.serialize_function(function) for function in model.functions.values())
    graph = proto.graph
    graph.name = "piece"
    inputs = set[ir.Value]()
    for value in read:
        inputs.add(value)
        info = graph.input.add(name=str(value.name))
        info.type.tensor_type.elem_type = int(ir.DataType.from_numpy(dtypes[value]))
        for size in (shapes or {}).get(value, ()):
            info.type.tensor_type.shape.dim.add(dim_value=size)
    for value in made:
        graph.output.add(name=str(value.name))
    seen: set[ir.Value] = set()
    for node in nodes:
        swap = (swaps or {}).get(node)
        for value in read_by(node) if swap is None else [source_of(node)]:
            if value in seen:
                continue
            seen.add(value)
            if verbs.is_op(value.producer(), "Constant"):
                graph.node.append(write_node(value.producer()))  # type: ignore[arg-type]
            elif value.producer() is None and value.const_value is not None and value not in inputs:
                tensor = ir.serde.serialize_tensor(value.const_value)
                tensor.name = str(value.name)
                graph.initializer.append(tensor)
        if swap is None:
            graph.node.append(write_node(node))
        else:
            _write_swapped(graph, node, *swap)
    return proto


def _write_swapped(
    graph: onnx.GraphProto, node: ir.Node, weights: NDArray[np.float64], bias: NDArray[np.float64]
) -> None:
    """A linear node with weights of its own; what is added to a MatMul is a node, beside the Add that may follow."""
    written, index = write_node(node), constant_of(node)
    old = verbs.array_of(node.inputs[index])
    assert old is not None
    result, source = written.output[0], written.input[1 - index]
    if node.op_type == "MatMul":
        bias = bias - bias_of(node, len(bias))
        bias = bias[:, None] if index == 0 else bias
    kept = [each for each in written.attribute if node.op_type != "Gemm" or each.name not in ("alpha", "beta")]
    del written.attribute[:]
    written.attribute.extend(kept)
    names = f"{result}/swapped_weights", f"{result}/swapped_bias"
    for name, array in zip(names, (stored_weights(node, weights), bias), strict=True):
        graph.initializer.append(onnx.numpy_helper.from_array(array.astype(old.dtype), name))
    del written.input[:]
    written.input.extend([source, names[0]] if index else [names[0], source])
    graph.node.append(written)
    if node.op_type != "MatMul":
        written.input.append(names[1])
        graph.node[-1].CopyFrom(written)
        return
    graph.node[-1].output[0] = f"{result}/unshifted"
    graph.node.add(op_type="Add", input=[f"{result}/unshifted", names[1]], output=[result])
