"""Some nodes of a graph as a model of their own: what they read goes in, what is wanted comes out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from onnxslim_core import graph as verbs
from onnxslim_core._emit import write_node

__all__ = ["Swap", "cut_out", "read_by"]

Swap = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Weights (d, n) and bias (n,) of a linear node, in the layout of `consumers.weights_of`."""


def read_by(node: ir.Node) -> Iterable[ir.Value]:
    """Values that a node reads, in its bodies too."""
    yield from (v for v in node.inputs if v is not None)
    for body in verbs.bodies(node):
        for inner in verbs.all_nodes(body):
            yield from (v for v in inner.inputs if v is not None)


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
        for index, value in enumerate(read_by(node)):
            if value in seen or (swap is not None and index > 0):
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
    """A Conv, Gemm or MatMul with weights of its own; what is added to a MatMul is a node."""
    written = write_node(node)
    source, result = written.input[0], written.output[0]
    old = verbs.array_of(node.inputs[1])
    assert old is not None
    turned = weights if node.op_type == "MatMul" else weights.T
    if node.op_type == "Gemm":
        turned = weights.T if verbs.attribute(node, "transB", 0) else weights
        kept = [each for each in written.attribute if each.name not in ("alpha", "beta")]
        del written.attribute[:]
        written.attribute.extend(kept)
    names = f"{result}/swapped_weights", f"{result}/swapped_bias"
    for name, array in zip(names, (turned.reshape(old.shape), bias), strict=True):
        graph.initializer.append(onnx.numpy_helper.from_array(array.astype(old.dtype), name))
    del written.input[:]
    if node.op_type != "MatMul":
        written.input.extend([source, *names])
        graph.node.append(written)
        return
    written.input.extend([source, names[0]])
    written.output[0] = f"{result}/unshifted"
    graph.node.append(written)
    graph.node.add(op_type="Add", input=[written.output[0], names[1]], output=[result])
