"""What is left of every tensor, and the one place where a constant is made smaller.

`Cut` knows, for every labelled tensor, which indices stay along each axis. Rules ask it for `keeps` and hand it the
inputs of their node that have to follow. Every smaller array is made by `constant`, cached by value and keeps, so
that a weight read twice is cut once and a weight whose readers differ is copied, never cut in place (T22, T58).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxslim_core import graph as verbs
from onnxslim_core.errors import InternalError
from onnxslim_core.ops.expressions import cut_operands
from onnxslim_core.ops.flow import Flow

__all__ = ["Cut", "Keep"]

Keep = NDArray[np.int64]
"""Ascending indices that stay along an axis."""


class Cut:
    """A removal under way.

    Args:
        flow: The walk that gave the labels.
        gone: For every atom whether it goes; shape (atoms,), bool.
        names: Fresh names of the model.
    """

    def __init__(self, flow: Flow, gone: NDArray[np.bool_], names: verbs.Names) -> None:
        self.flow = flow
        self.opset = flow.opset
        self.names = names
        self._gone = gone
        self._keeps: dict[ir.Value, dict[int, Keep]] = {}
        self._kept: dict[int, dict[int, Keep]] = {}
        self._made: dict[tuple[ir.Value, tuple[tuple[int, bytes], ...]], ir.Value] = {}
        self._small: dict[tuple[ir.Graph, str, tuple[int, ...], bytes], ir.Value] = {}
        self.renamed: list[tuple[ir.Value, ir.Value]] = []
        self.copied: list[tuple[ir.Node, ir.Node]] = []

    # ------------------------------------------------------------------ what stays
    def kept(self, labels: NDArray[np.int32]) -> dict[int, Keep]:
        """Indices that stay, for each axis of a label array that loses some.

        Raises:
            InternalError: if what is left would not be a box, or would be empty.
        """
        gone = self._gone[labels]
        if not gone.any():
            return {}
        wide = [axis for axis, size in enumerate(gone.shape) if size > 1]
        if len(wide) == 1 and not gone.all():
            return {wide[0]: np.flatnonzero(~gone.reshape(-1))}
        keeps: dict[int, Keep] = {}
        rest = gone
        for axis in range(gone.ndim):
            others = tuple(i for i in range(gone.ndim) if i != axis)
            whole = gone.all(axis=others) if others else gone
            if whole.all():
                raise InternalError("nothing would be left of a tensor")
            if whole.any():
                keeps[axis] = np.flatnonzero(~whole)
                rest = rest.take(keeps[axis], axis=axis)
        if rest.any():
            raise InternalError("what is left of a tensor would be no box")
        return keeps

    def keeps(self, value: ir.Value | None) -> dict[int, Keep]:
        """Indices of an activation that stay, for each axis that loses some; empty where nothing goes."""
        if value is None or value in self.flow.constants or value not in self.flow.table:
            return {}
        found = self._keeps.get(value)
        if found is None:
            labels = self.flow.table[value]  # one array for a whole run of activations
            try:
                found = self._kept.get(id(labels))
                found = self._kept.setdefault(id(labels), self.kept(labels)) if found is None else found
            except InternalError as err:
                raise InternalError(str(err), f"'{value.name}'") from err
            self._keeps[value] = found
        return found

    def size(self, value: ir.Value, axis: int) -> int:
        """The size that an axis of an activation has afterwards."""
        keep = self.keeps(value).get(axis)
        return self.flow.shape(value)[axis] if keep is None else len(keep)

    def touches(self, node: ir.Node) -> bool:
        """True where an input or output of the node loses something."""
        return any(self.keeps(v) for v in (*node.inputs, *node.outputs) if v is not None)

    # ------------------------------------------------------------------ what follows
    def constant(self, node: ir.Node, index: int, keeps: Mapping[int, Keep]) -> None:
        """Let input `index` of the node read the same constant, cut to these indices along these axes."""
        value = node.inputs[index]
        if value is None or not keeps:
            return
        verbs.replace_input(node, index, self.smaller(value, keeps, node))

    def carried(self, node: ir.Node, index: int, result: Mapping[int, Keep], rank: int) -> None:
        """Cut a constant operand like the result it is broadcast against, along its axes longer than 1."""
        shape = self.flow.shape(node.inputs[index])
        own = {axis - rank + len(shape): keep for axis, keep in result.items()}
        self.constant(node, index, {axis: keep for axis, keep in own.items() if axis >= 0 and shape[axis] > 1})

    def vector(self, node: ir.Node, index: int, values: Sequence[int] | NDArray[np.integer]) -> None:
        """Give a node a new constant vector as input `index`; int64 where it is no array."""
        array = values if isinstance(values, np.ndarray) else np.asarray(values, np.int64)
        assert isinstance(node.graph, ir.Graph)
        verbs.replace_input(node, index, self.numbers(node.graph, array, f"{node.name or node.op_type}/sizes"))

    def numbers(self, graph: ir.Graph, array: NDArray[np.integer], hint: str) -> ir.Value:
        """A constant of sizes or indices; equal ones of a graph are one, so that a file does not grow by them."""
        key = (graph, array.dtype.str, array.shape, array.tobytes())
        if key not in self._small:
            self._small[key] = verbs.add_constant(graph, self.names, array, hint)
        return self._small[key]

    def entries(self, node: ir.Node, index: int, new: Mapping[int, int]) -> None:
        """Change single entries of a shape vector; a computed one is scaled, so that it stays computed."""
        value = node.inputs[index]
        if value is None or not new:
            return
        known = self.flow.known(value)
        if known is None:
            raise InternalError("a shape is computed from data", verbs.label_of(node))
        target = np.array(known).reshape(-1)  # Slice has its bounds in int32 or int64
        if verbs.array_of(value) is None:
            scale = {entry: (size, int(target[entry])) for entry, size in new.items()}
            verbs.replace_input(node, index, self.scaled(value, scale, node, before=True))
            return
        if any(target[entry] != size for entry, size in new.items()):
            target[list(new)] = list(new.values())
            self.vector(node, index, target)

    def scaled(
        self, computed: ir.Value, scale: Mapping[int, tuple[int, int]], node: ir.Node, *, before: bool
    ) -> ir.Value:
        """A computed vector of sizes with some entries multiplied by p / q; made beside a node.

        A channel axis of 10 that loses 4 becomes `10 * 6 / 10`; an axis that holds channels times a symbolic size is
        right at every value of that size, which a number written in its place would not be. The division is exact.
        """
        graph = node.graph
        assert isinstance(graph, ir.Graph)
        known = self.flow.known(computed)
        shape = self.flow.shape(computed) if known is None else known.shape
        dtype = np.dtype(np.int64) if known is None else known.dtype  # the shape of what depends on data is not known
        factors = np.ones((2, math.prod(shape)), dtype)
        for entry, (size, full) in scale.items():
            common = math.gcd(size, full)
            factors[:, entry] = (size // common, full // common) if full else (size, 1)
        for op, factor in (("Mul", factors[0]), ("Div", factors[1])):
            if (factor == 1).all():
                continue
            operand = self.numbers(graph, factor.reshape(shape), f"{computed.name}/{op}")
            made = ir.node(op, [computed, operand])
            made.name = self.names.new(f"{computed.name}/{op}")
            computed = made.outputs[0]
            computed.name = self.names.new(f"{made.name}_output")
            computed.type = ir.TensorType(ir.DataType.from_numpy(dtype))
            if before:
                graph.insert_before(node, made)
            else:
                graph.insert_after(node, made)
                node = made
        return computed

    # ------------------------------------------------------------------ constants
    def smaller(self, value: ir.Value, keeps: Mapping[int, Keep], before: ir.Node) -> ir.Value:
        """The constant, cut; made once for each set of indices."""
        key = (value, tuple(sorted((axis, np.asarray(keep, np.int64).tobytes()) for axis, keep in keeps.items())))
        if key not in self._made:
            self._made[key] = self._make(value, dict(keeps), before)
        return self._made[key]

    def _make(self, value: ir.Value, keeps: dict[int, Keep], before: ir.Node) -> ir.Value:
        array, producer = verbs.array_of(value), value.producer()
        graph = verbs.owner_of(value) or before.graph
        assert isinstance(graph, ir.Graph)
        if array is not None:
            made = verbs.add_constant(graph, self.names, take(array, keeps), str(value.name))
            made.metadata_props.update(value.metadata_props)
            made.doc_string = value.doc_string
            self.renamed.append((value, made))
            return made
        assert producer is not None
        inputs = cut_operands(self, producer, value, keeps)
        if inputs is None:
            return self._gather(value, keeps, producer)
        copy = ir.Node(producer.domain, producer.op_type, inputs, list(producer.attributes.values()))
        verbs.name_node(copy, self.names.new(f"{producer.name or producer.op_type}/cut"))
        copy.outputs[0].name = self.names.new(f"{value.name}/cut")
        copy.outputs[0].type = value.type
        graph.insert_after(producer, copy)
        self.copied.append((producer, copy))
        return copy.outputs[0]

    def _gather(self, value: ir.Value, keeps: dict[int, Keep], producer: ir.Node) -> ir.Value:
        graph = producer.graph
        assert isinstance(graph, ir.Graph)
        for axis, keep in sorted(keeps.items()):
            indices = self.numbers(graph, np.asarray(keep, np.int64), f"{value.name}/kept")
            node = ir.node("Gather", [value, indices], {"axis": axis})
            node.name = self.names.new(f"{value.name}/Gather")
            node.outputs[0].name = self.names.new(f"{value.name}/cut")
            node.outputs[0].type = value.type
            graph.insert_after(producer, node)
            value, producer = node.outputs[0], node
        return value


def take(array: np.ndarray, keeps: Mapping[int, Keep]) -> np.ndarray:
    """The array with only these indices along these axes; always a copy."""
    for axis, keep in keeps.items():
        array = np.take(array, keep, axis=axis)
    return np.ascontiguousarray(array)
