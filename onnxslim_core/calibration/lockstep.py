"""A graph run over all samples piece by piece, so that weights may change between the pieces.

The walk holds the tensors that later nodes still read, for every batch, and runs each node once: the graph is cut
into pieces at the values that somebody asks for, and each piece is a small model of its own in onnxruntime. A whole
sequential repair thus costs about one pass of the samples through the network.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import onnx
import onnx_ir as ir

from onnxslim_core import graph as verbs
from onnxslim_core._emit import write_node
from onnxslim_core.errors import InternalError
from onnxslim_core.measure.session import open_piece, run
from onnxslim_core.rewrite import Sample

__all__ = ["Walk"]


class Walk:
    """One model over a fixed list of batches.

    Args:
        model: The model; its weights may be changed between calls, at nodes that have not run.
        batches: Feeds, see `batches.stacked`.
        threads: For onnxruntime.
    """

    def __init__(self, model: ir.Model, batches: Sequence[Sample], threads: int = 1) -> None:
        self._model = model
        self._threads = threads
        self._done: set[ir.Node] = set()
        self._reserved: Counter[ir.Value] = Counter()
        inputs = {str(value.name): value for value in model.graph.inputs}
        self._held: list[dict[ir.Value, np.ndarray]] = [
            {inputs[name]: array for name, array in batch.items() if name in inputs} for batch in batches
        ]
        self._order = {node: place for place, node in enumerate(model.graph)}
        self._top = {
            inner: node for node in model.graph for body in verbs.bodies(node) for inner in verbs.all_nodes(body)
        }

    def __len__(self) -> int:
        return len(self._held)

    def missing(self, value: ir.Value) -> list[ir.Node]:
        """The nodes that still have to run before a value is there, in order."""
        todo, stack, found = set[ir.Node](), [value], []
        while stack:
            node = stack.pop().producer()
            if node is None or node in self._done or node in todo or verbs.is_op(node, "Constant"):
                continue
            todo.add(node)
            found.append(node)
            stack.extend(_read_by(node))
        return sorted(found, key=self._order.__getitem__)

    def has_run(self, node: ir.Node) -> bool:
        """True once the weights of a node no longer matter to this walk."""
        return node in self._done

    def reserve(self, values: Iterable[ir.Value]) -> None:
        """Hold these tensors until each is released as often as it was reserved, whoever has read them by then."""
        self._reserved.update(values)

    def release(self, values: Iterable[ir.Value]) -> None:
        """Undo one reservation of each; what nobody waits for is dropped."""
        for value in values:
            self._reserved[value] -= 1
            self._drop(value)

    def value(self, value: ir.Value) -> list[np.ndarray]:
        """A tensor for every batch; runs what is missing."""
        nodes = self.missing(value)
        if nodes:
            self._run(nodes, value)
        elif value not in self._held[0]:
            raise InternalError(f"'{value.name}' was dropped before it was asked for")
        return [held[value] for held in self._held]

    def _run(self, nodes: list[ir.Node], wanted: ir.Value) -> None:
        inside = set(nodes)
        self._done |= inside
        made = [v for node in nodes for v in node.outputs if v is wanted or self._is_live(v)]
        read = dict.fromkeys(v for node in nodes for v in _read_by(node) if v in self._held[0])
        session = open_piece(_piece(self._model, nodes, read, made, self._held[0]), threads=self._threads)
        for held in self._held:
            found = run(session, {str(v.name): held[v] for v in read})
            held.update({v: found[str(v.name)] for v in made})
        for value in read:
            if value is not wanted:
                self._drop(value)

    def _drop(self, value: ir.Value) -> None:
        if not self._is_live(value):
            for held in self._held:
                held.pop(value, None)

    def _is_live(self, value: ir.Value) -> bool:
        return self._reserved[value] > 0 or any(
            self._top.get(node, node) not in self._done for node, _ in verbs.users_of(value)[0]
        )


def _read_by(node: ir.Node) -> Iterable[ir.Value]:
    """Values that a node reads, in its bodies too."""
    yield from (v for v in node.inputs if v is not None)
    for body in verbs.bodies(node):
        for inner in verbs.all_nodes(body):
            yield from (v for v in inner.inputs if v is not None)


def _piece(
    model: ir.Model,
    nodes: Sequence[ir.Node],
    read: Iterable[ir.Value],
    made: Iterable[ir.Value],
    like: dict[ir.Value, np.ndarray],
) -> onnx.ModelProto:
    """Some nodes as a model: what they read goes in, what is wanted comes out, their weights are initializers."""
    proto = onnx.ModelProto(ir_version=min(max(model.ir_version or 8, 4), 10))
    for domain, version in model.opset_imports.items():
        proto.opset_import.add(domain=domain, version=version)
    proto.functions.extend(ir.serde.serialize_function(function) for function in model.functions.values())
    graph = proto.graph
    graph.name = "piece"
    for value in read:
        info = graph.input.add(name=str(value.name))
        info.type.tensor_type.elem_type = int(ir.DataType.from_numpy(like[value].dtype))
    for value in made:
        graph.output.add(name=str(value.name))
    seen: set[ir.Value] = set()
    for node in nodes:
        for value in _read_by(node):
            if value in seen:
                continue
            seen.add(value)
            if verbs.is_op(value.producer(), "Constant"):
                graph.node.append(write_node(value.producer()))  # type: ignore[arg-type]
            elif value.producer() is None and value.const_value is not None and value not in like:
                tensor = ir.serde.serialize_tensor(value.const_value)
                tensor.name = str(value.name)
                graph.initializer.append(tensor)
        graph.node.append(write_node(node))
    return proto
