"""What can be computed ahead, and what of it is worth being stored.

A walk in the order of the graph computes every node whose inputs are constant (nothing is stored yet), and learns the
sizes of the rest, so that Shape of something with known sizes is constant too. Then the values at the border, those
that a node which stays reads, are stored, unless that would make the file bigger than allowed; where one is refused,
its node stays and the values that it reads become the border.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxslim_core.graph import (
    STANDARD,
    Names,
    add_constant,
    attribute,
    bodies,
    is_op,
    label_of,
    own_name,
    remove,
    replace,
)

from ._control import inline_branch
from ._evaluate import evaluate
from ._facts import Facts
from ._merge import deterministic

__all__ = ["Fold", "Growth", "keeps_quantized", "within_bound"]

_ROOM = 1 << 20
"""Bytes that a result may take beyond twice its inputs while it is looked at, stored or not."""

_SHARED = 4096
"""Bytes up to which equal results are stored once; larger ones are left to `normalize`."""

_NARROW = ("INT8", "UINT8", "INT4", "UINT4", "INT2", "UINT2", "FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2")
_NARROW_TYPES = frozenset(int(ir.DataType[name]) for name in _NARROW if name in ir.DataType.__members__)
_WIDE_TYPES = frozenset(
    int(t) for t in (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
)

_OF_DATA = ("Compress", "NonZero", "Unique")
"""Operators whose sizes depend on values and are never more than those of the input."""


@dataclass(frozen=True, slots=True)
class Growth:
    """What storing a value costs.

    Attributes:
        node: That makes the value.
        bytes: More than is freed by it; negative where the file gets smaller.
        allowed: The most.
    """

    node: ir.Node
    bytes: int
    allowed: int


def within_bound(growth: Growth, opset: int) -> str | None:
    """The file must not grow (T50)."""
    if growth.bytes <= growth.allowed:
        return None
    return f"the result would take {growth.bytes} bytes more than it frees, allowed are {growth.allowed}"


def keeps_quantized(node: ir.Node, facts: Facts) -> str | None:
    """Weights of 8 bits or less stay as they are stored (T49)."""
    if is_op(node, "DequantizeLinear"):
        return "the weights are stored in fewer bits"
    if not is_op(node, "Cast", "CastLike") or facts.elem_type(node.inputs[0]) not in _NARROW_TYPES:
        return None
    array = facts.array(node.inputs[0])
    single = array is not None and array.size <= 1  # a zero point is no weight
    wide = facts.elem_type(node.outputs[0]) in _WIDE_TYPES
    return "the weights are stored in fewer bits" if wide and not single else None


@dataclass(slots=True)
class Fold:
    """One round over a model.

    Attributes:
        names: Of the model.
        facts: Filled by `walk`.
        opset: Of the standard domain.
        guards: Those that are switched on.
        max_growth: Bytes that one stored value may add.
        allowance: Bytes that all stored values may add together.
        ahead: The nodes that were computed, in order.
        done: Node names by what was done.
        refused: Node names by (guard, reason).
        saved: Bytes by which the weights shrank.
        news: Something was done that may let more be known than `walk` knew.
    """

    names: Names
    facts: Facts
    opset: int
    guards: tuple[Callable[..., str | None], ...]
    max_growth: int
    allowance: int
    ahead: dict[ir.Node, None] = field(default_factory=dict)
    done: dict[str, list[str]] = field(default_factory=dict)
    refused: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    saved: int = 0
    news: bool = False
    _stored: dict[Hashable, ir.Value] = field(default_factory=dict)

    def note(self, action: str, node: ir.Node) -> None:
        """Put on record what was done."""
        self.done.setdefault(f"{action} {node.op_type}", []).append(label_of(node))

    def leads_on(self) -> bool:
        """Whether another round could find more: of what this one stored, it knew the content itself."""
        waits = any(guard == within_bound.__name__ for guard, _ in self.refused)
        return self.news or waits or any(node.graph is not None for node in self.ahead)

    # Computing

    def walk(self, nodes: Iterable[ir.Node]) -> None:
        """Learn and compute, node by node, bodies included."""
        for node in nodes:
            inner = bodies(node)
            if inner and (branch := self._branch(node)) is not None:
                self.done.setdefault("put the constant branch in the place of If", []).append(label_of(node))
                self.news = True
                self.walk(inline_branch(node, branch, self.names))
                continue
            for body in inner:
                self.facts.enter(body)
                self.walk(body)
            self.facts.learn(node)
            if not inner and node.op_type != "Constant" and self._compute(node):
                self.ahead[node] = None

    def _branch(self, node: ir.Node) -> bool | None:
        """The condition of an If, where it is constant."""
        condition = self.facts.array(node.inputs[0]) if is_op(node, "If") else None
        return bool(condition.reshape(-1)[0]) if condition is not None and condition.size == 1 else None

    def refuses(self, node: ir.Node, guard: Callable[..., str | None], *args: object) -> bool:
        """Ask a guard; its reason goes on record."""
        reason = guard(*args) if guard in self.guards else None
        if reason is not None:
            self.refused.setdefault((guard.__name__, reason), []).append(label_of(node))
        return reason is not None

    def _compute(self, node: ir.Node) -> bool:
        """Compute the outputs of a node; False where they are not constant."""
        if node.domain not in STANDARD or node.overload or not node.outputs:
            return False
        if (attributes := node.attributes.data) and any(attr.is_ref() for attr in attributes.values()):
            return False
        arrays = self._from_sizes(node) or self._from_constants(node)
        if arrays is None:
            return False
        for value, array in zip(node.outputs, arrays, strict=True):
            if value.name:
                known = self.facts.elem_type(value)
                self.facts.set_array(value, array, known or int(ir.DataType.from_numpy(array.dtype)))
        return True

    def _from_sizes(self, node: ir.Node) -> list[np.ndarray] | None:
        """Integers that follow from known sizes, whatever the values are."""
        if len(node.outputs) != 1:
            return None
        value = node.outputs[0]
        vector = self.facts.vector(value)
        if vector is None or not all(isinstance(v, int) for v in vector):
            return None
        sizes, dtype = self.facts.dims(value), self.facts.elem_type(value)
        if sizes is None or dtype is None:
            return None
        shape = () if not sizes else (len(vector),)
        return [np.array(vector, dtype=ir.DataType(dtype).numpy()).reshape(shape)]

    def _from_constants(self, node: ir.Node) -> list[np.ndarray] | None:
        like = is_op(node, "CastLike")
        read = [node.inputs[0]] if like else list(node.inputs)
        for value in read:
            if value is not None and not self.facts.is_constant(value):
                return None
        if not self._is_small(node, read):
            return None
        if self.refuses(node, deterministic, node, self.opset) or self.refuses(node, keeps_quantized, node, self.facts):
            return None
        arrays = [self.facts.array(v) for v in read]
        if not like:
            return evaluate(node, arrays, self.opset)
        target = self.facts.elem_type(node.inputs[1])
        if target is None:
            return None
        options = {"to": target} | {k: attribute(node, k) for k in ("saturate",) if k in node.attributes}
        return evaluate(ir.node("Cast", [], options), arrays, self.opset)

    def _is_small(self, node: ir.Node, read: list[ir.Value | None]) -> bool:
        """False where the result is so much bigger than the inputs that not even a look at it is worth it."""
        if is_op(node, *_OF_DATA):
            return True
        arrays = [a for v in read if (a := self.facts.array(v)) is not None]
        room = _ROOM + 2 * sum(a.nbytes for a in arrays)
        for value in node.outputs:
            if not value.name:
                continue
            sizes, dtype = self.facts.dims(value), self.facts.elem_type(value)
            if sizes is None or dtype is None or not all(isinstance(s, int) for s in sizes):
                return False
            if dtype == ir.DataType.STRING:  # of no fixed size
                return False
            room -= math.ceil(math.prod(s for s in sizes if isinstance(s, int)) * ir.DataType(dtype).itemsize)
        return room >= 0

    # Storing

    def store(self) -> None:
        """Store what shrinks the file or leaves it as it is; then what grows it a little, if all of that is little."""
        for node in list(self.ahead):
            self._settle(node, 0, final=False)
        small = [g for node in self.ahead if self._is_border(node) and (g := self._growth(node)) <= self.max_growth]
        room = self.max_growth if sum(g for g in small if g > 0) <= self.allowance else 0
        for node in list(self.ahead):
            self._settle(node, room, final=True)

    def _is_border(self, node: ir.Node) -> bool:
        return node.graph is not None and any(
            value.is_graph_output() or any(user not in self.ahead for user, _ in value.uses()) for value in node.outputs
        )

    def _settle(self, node: ir.Node, allowed: int, *, final: bool) -> None:
        """Store the outputs of a node at the border; where that is refused for good, look at what it reads."""
        todo = [node]
        while todo:
            node = todo.pop()
            if node not in self.ahead or not self._is_border(node):
                continue
            if not any(value.is_graph_output() for value in node.outputs):  # a name of the interface is made by a node
                growth = Growth(node, self._growth(node), allowed)
                if not final and growth.bytes > allowed:
                    continue
                if growth.bytes <= allowed or not self.refuses(node, within_bound, growth, self.opset):
                    self._put(node, growth.bytes)
                    continue
            del self.ahead[node]
            todo.extend(p for v in node.inputs if v is not None and (p := v.producer()) is not None)

    def weight(self, graph: ir.Graph, array: np.ndarray, hint: str) -> ir.Value:
        """A weight with this content: an equal one that was stored before, or a new one."""
        key = (graph, array.dtype.str, array.shape, array.tobytes() if array.nbytes <= _SHARED else id(array))
        found = self._stored.get(key)
        if found is None or found.graph is not graph:
            found = self._stored[key] = add_constant(graph, self.names, array, hint)
            self.facts.set_array(found, array, int(found.dtype or 0))
        return found

    def _put(self, node: ir.Node, growth: int) -> None:
        """Weights in the place of a node."""
        assert isinstance(node.graph, ir.Graph)
        self.note("folded", node)
        self.saved -= growth
        del self.ahead[node]
        graph, heirs = node.graph, []
        for value in node.outputs:
            array = self.facts.array(value)
            if value.uses() and array is not None:
                known = len(self._stored)
                weight = self.weight(graph, array, f"{value.name}/folded")
                replace(value, weight, self.names)
                if len(self._stored) > known:
                    heirs.append((weight, str(value.name)))
        remove(node)
        for weight, name in heirs:
            weight.name = name  # whose node is gone

    def _growth(self, node: ir.Node) -> int:
        """Bytes of the outputs of a node less what goes with it: itself, and the nodes and weights only it needs."""
        cost = sum(_tensor_size(str(v.name), self.facts.array(v)) for v in node.outputs if v.uses())
        left: dict[ir.Value, int] = {}
        todo = [node]
        while todo:
            current = todo.pop()
            cost -= _node_size(current)
            for value in current.inputs:
                if value is None:
                    continue
                left[value] = left.get(value, len(value.uses())) - 1
                if left[value] or value.is_graph_output() or value.is_graph_input():
                    continue
                producer = value.producer()
                if producer is None and value.const_value is not None and value.is_initializer():
                    cost -= value.const_value.nbytes + len(str(value.name)) + 16
                    continue
                if producer is None or not (producer in self.ahead or is_op(producer, "Constant")):
                    continue
                if all(left.get(v, len(v.uses())) == 0 and not v.is_graph_output() for v in producer.outputs):
                    todo.append(producer)
        return cost


def _tensor_size(name: str, array: np.ndarray | None) -> int:
    """About what an initializer takes in the file."""
    return 0 if array is None else array.nbytes + len(name) + 16 + 2 * array.ndim


def _node_size(node: ir.Node) -> int:
    """About what a node takes in the file, at most."""
    size = 8 + len(own_name(node)) + len(node.op_type)
    size += sum(len(v.name or "") + 2 for v in (*node.inputs, *node.outputs) if v is not None)
    for attr in node.attributes.values():
        size += len(attr.name) + 8
        if attr.type == ir.AttributeType.TENSOR:
            size += attr.value.nbytes
    return size
