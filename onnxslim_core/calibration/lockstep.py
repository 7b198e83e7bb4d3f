"""A graph run over all samples piece by piece, so that weights may change between the pieces.

The walk holds the tensors that later nodes still read, for every batch, and runs each node once: the graph is cut
into pieces at the values that somebody asks for, and each piece is a small model of its own in onnxruntime. A whole
sequential repair thus costs about one pass of the samples through the network.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from onnxslim_core import graph as verbs
from onnxslim_core.calibration.pieces import cut_out, read_by
from onnxslim_core.errors import InternalError
from onnxslim_core.measure.session import open_piece, run
from onnxslim_core.rewrite import Sample

__all__ = ["Walk", "passing"]

_HELD = 1 << 30
"""Bytes that a walk holds at most where it can help it: what would be more is made again each time it is asked for."""


def passing(
    model: ir.Model, batches: Sequence[Sample], values: Sequence[ir.Value], threads: int = 1
) -> Iterator[dict[ir.Value, np.ndarray]]:
    """Tensors of a model that stays as it is, batch after batch: one session, nothing held."""
    inputs = {str(value.name): value for value in model.graph.inputs}
    nodes = _sorted(model, _behind(values, set()))
    session = None
    for batch in batches:
        held = {inputs[name]: array for name, array in batch.items() if name in inputs}
        read = dict.fromkeys(v for node in nodes for v in read_by(node) if v in held)
        made = [value for value in dict.fromkeys(values) if value not in held]
        if session is None and made:
            dtypes = {v: held[v].dtype for v in read}
            session = open_piece(cut_out(model, nodes, read, made, dtypes), threads=threads)
        found = {} if session is None else run(session, {str(v.name): held[v] for v in read})
        yield {value: held[value] if value in held else found[str(value.name)] for value in values}


def _sorted(model: ir.Model, nodes: set[ir.Node]) -> list[ir.Node]:
    return [node for node in model.graph if node in nodes]


def _behind(values: Iterable[ir.Value], done: set[ir.Node]) -> set[ir.Node]:
    """The nodes that have to run, besides these, before the values are there."""
    todo, stack = set[ir.Node](), list(values)
    while stack:
        node = stack.pop().producer()
        if node is None or node in done or node in todo or verbs.is_op(node, "Constant"):
            continue
        todo.add(node)
        stack.extend(read_by(node))
    return todo


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
        return self._sorted(_behind([value], self._done))

    def _sorted(self, nodes: set[ir.Node]) -> list[ir.Node]:
        """Nodes in the order of the graph, which may have got nodes since the walk began."""
        if any(node not in self._order for node in nodes):
            self._order = {node: place for place, node in enumerate(self._model.graph)}
        return sorted(nodes, key=self._order.__getitem__)

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
            self._advance(nodes, [value])
        elif value not in self._held[0]:
            raise InternalError(f"'{value.name}' was dropped before it was asked for")
        return [held[value] for held in self._held]

    def each(self, values: Sequence[ir.Value]) -> Iterator[tuple[np.ndarray, ...]]:
        """Tensors batch by batch; they are held on where memory allows, else made again when they are asked for."""
        nodes = self._sorted(_behind(values, self._done))
        if nodes and self._advance(nodes, values, _HELD):
            nodes = []
        if nodes:
            made = [value for value in values if value not in self._held[0]]
            session, read = self._session(nodes, made)
        for held in self._held:
            found = run(session, {str(v.name): held[v] for v in read}) if nodes else {}
            yield tuple(held[value] if value in held else found[str(value.name)] for value in values)

    def _session(
        self, nodes: Sequence[ir.Node], made: Sequence[ir.Value]
    ) -> tuple[ort.InferenceSession, Sequence[ir.Value]]:
        """Nodes that make these values, ready to run, and what they read of what is held."""
        read = list(dict.fromkeys(v for node in nodes for v in read_by(node) if v in self._held[0]))
        dtypes = {v: self._held[0][v].dtype for v in read}
        return open_piece(cut_out(self._model, nodes, read, made, dtypes), threads=self._threads), read

    def _advance(self, nodes: Sequence[ir.Node], wanted: Sequence[ir.Value], most: int | None = None) -> bool:
        """Run nodes for good; not where more than `most` bytes would be held then, as far as the first batch tells."""
        done, first = self._done | set(nodes), self._held[0]
        made = [v for node in nodes for v in node.outputs if v in wanted or self._is_live(v, done)]
        session, read = self._session(nodes, made)
        found = run(session, {str(v.name): first[v] for v in read})
        if most is not None:
            kept = sum(array.nbytes for value, array in first.items() if self._is_live(value, done))
            if len(self._held) * (kept + sum(found[str(value.name)].nbytes for value in made)) > most:
                return False
        self._done = done
        for number, held in enumerate(self._held):
            found = run(session, {str(v.name): held[v] for v in read}) if number else found
            held.update({value: found[str(value.name)] for value in made})
        for value in read:
            if value not in wanted:
                self._drop(value)
        return True

    def _drop(self, value: ir.Value) -> None:
        if not self._is_live(value):
            for held in self._held:
                held.pop(value, None)

    def _is_live(self, value: ir.Value, done: set[ir.Node] | None = None) -> bool:
        through = self._done if done is None else done
        return self._reserved[value] > 0 or any(
            self._top.get(node, node) not in through for node, _ in verbs.users_of(value)[0]
        )
