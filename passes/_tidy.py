"""Nodes that do nothing, or say in a roundabout way what one simpler node says. Every bit of every answer stays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxslim_core.graph import (
    Names,
    add_constant,
    add_node,
    array_of,
    attribute,
    bodies,
    is_op,
    label_of,
    owner_of,
    remove,
    replace,
)

from ._control import free_states, inline_branch
from ._facts import Facts
from ._merge import drops_nothing

__all__ = ["NEEDS_FACTS", "NodeGuard", "Tidy", "idle_nodes", "inference_mode"]

NEEDS_FACTS = frozenset(
    {"Cast", "CastLike", "Expand", "Flatten", "Reshape", "Slice", "SequenceAt", "Tile", "Transpose"}
)
"""Operators whose rule reads types or sizes."""


NodeGuard = Callable[[ir.Node, int], str | None]
"""A predicate (node, opset) -> reason for refusal or None."""


def inference_mode(node: ir.Node, opset: int) -> str | None:
    """Dropout in training is no identity."""
    return None if drops_nothing(node, opset) else "it may run in training mode, where it drops at random"


@dataclass(slots=True)
class Tidy:
    """One round over a graph and its bodies.

    Attributes:
        names: Of the model.
        facts: Of the model; what is asked of a value that they do not know is refused.
        opset: Of the standard domain.
        guards: Those that are switched on.
        done: Node names by what was done.
        learned: True where something new can be known now: the contents of a branch, or of a sequence.
        refused: Node names by (guard, reason).
    """

    names: Names
    facts: Facts
    opset: int
    guards: tuple[NodeGuard, ...] = ()
    done: dict[str, list[str]] = field(default_factory=dict)
    learned: bool = False
    refused: dict[tuple[str, str], list[str]] = field(default_factory=dict)

    def run(self, graph: ir.Graph) -> None:
        """Go over the nodes in order."""
        for node in graph:
            for body in bodies(node):
                self.run(body)
            rule = _RULES.get(node.op_type)
            if rule is None or not is_op(node, node.op_type) or node.overload:
                continue
            label, op_type = label_of(node), node.op_type
            if (action := rule(self, node)) is not None:
                self.done.setdefault(f"{action} {op_type}", []).append(label)

    def refuses(self, node: ir.Node, guard: NodeGuard) -> bool:
        """Ask a guard; its reason goes on record."""
        reason = guard(node, self.opset) if guard in self.guards else None
        if reason is not None:
            self.refused.setdefault((guard.__name__, reason), []).append(label_of(node))
        return reason is not None

    def forward(self, node: ir.Node, value: ir.Value | None) -> bool:
        """Let the readers of a node's first output read another value, where no name of the interface is lost."""
        old = node.outputs[0]
        if value is None or any(v.uses() or v.is_graph_output() for v in node.outputs[1:]):
            return False
        if old.is_graph_output() and (
            value.producer() is None or value.is_graph_output() or owner_of(value) is not node.graph
        ):
            return False
        replace(old, value, self.names)
        remove(node)
        return True

    def constant(self, node: ir.Node, array: np.ndarray, hint: str) -> ir.Value:
        """A new weight beside a node."""
        assert isinstance(node.graph, ir.Graph)
        return add_constant(node.graph, self.names, array, f"{node.name or node.op_type}/{hint}")

    def become(self, node: ir.Node, op_type: str, inputs: list[ir.Value | None], **attributes: object) -> bool:
        """Put one node in the place of another."""
        made = add_node(self.names, op_type, inputs, attributes, before=node)
        made.metadata_props.update(node.metadata_props)
        made.doc_string = node.doc_string
        made.outputs[0].type, made.outputs[0].shape = node.outputs[0].type, node.outputs[0].shape
        self.facts.learn(made)
        replace(node.outputs[0], made.outputs[0], self.names)
        remove(node)
        return True


def _identity(tidy: Tidy, node: ir.Node) -> str | None:
    return "removed" if tidy.forward(node, node.inputs[0]) else None


def _dropout(tidy: Tidy, node: ir.Node) -> str | None:
    """In inference y = x."""
    return None if tidy.refuses(node, inference_mode) else _identity(tidy, node)


def _cast(tidy: Tidy, node: ir.Node) -> str | None:
    same = attribute(node, "to") == tidy.facts.elem_type(node.inputs[0])
    return "removed idle" if same and tidy.forward(node, node.inputs[0]) else None


def _cast_like(tidy: Tidy, node: ir.Node) -> str | None:
    source, target = (tidy.facts.elem_type(v) for v in node.inputs[:2])
    if target is None:
        return None
    if source == target and tidy.forward(node, node.inputs[0]):
        return "removed idle"
    saturate = attribute(node, "saturate", None)
    options = {"to": target} if saturate is None else {"to": target, "saturate": saturate}
    return "made a Cast of" if tidy.become(node, "Cast", [node.inputs[0]], **options) else None


def _transpose(tidy: Tidy, node: ir.Node) -> str | None:
    perm, sizes = attribute(node, "perm", None), tidy.facts.dims(node.inputs[0])
    rank = len(perm) if perm is not None else len(sizes) if sizes is not None else None
    if rank is None or (perm is None and rank > 1) or (perm is not None and tuple(perm) != tuple(range(rank))):
        return None
    return "removed idle" if tidy.forward(node, node.inputs[0]) else None


def _same_shape(tidy: Tidy, node: ir.Node) -> str | None:
    """Reshape, Flatten, Expand, Tile: elements stay in order, so equal sizes mean equal tensors."""
    same = tidy.facts.same_shape(node.inputs[0], node.outputs[0])
    return "removed idle" if same and tidy.forward(node, node.inputs[0]) else None


def _slice(tidy: Tidy, node: ir.Node) -> str | None:
    """As much as before, and forwards: everything."""
    steps = node.inputs[4] if len(node.inputs) > 4 else None
    array = array_of(steps)
    if steps is not None and (array is None or (array < 0).any()):
        return None
    return _same_shape(tidy, node)


def _pad(tidy: Tidy, node: ir.Node) -> str | None:
    pads = array_of(node.inputs[1]) if len(node.inputs) > 1 else None
    if len(node.inputs) == 1 and attribute(node, "pads") is not None:  # before opset 11
        pads = np.asarray(attribute(node, "pads"), dtype=np.int64)
    if pads is None or pads.any():
        return None
    return "removed idle" if tidy.forward(node, node.inputs[0]) else None


def _concat(tidy: Tidy, node: ir.Node) -> str | None:
    if len(node.inputs) != 1:
        return None
    return "removed idle" if tidy.forward(node, node.inputs[0]) else None


def _if(tidy: Tidy, node: ir.Node) -> str | None:
    condition = array_of(node.inputs[0])
    if condition is None or condition.size != 1:
        return None
    tidy.learned = True
    inline_branch(node, bool(condition.reshape(-1)[0]), tidy.names)
    return "put the constant branch in the place of"


def _loop(tidy: Tidy, node: ir.Node) -> str | None:
    if not free_states(node, tidy.names):
        return None
    tidy.learned = True
    return "took what no round changes out of"


def _concat_from_sequence(tidy: Tidy, node: ir.Node) -> str | None:
    sequence = node.inputs[0].producer() if node.inputs[0] is not None else None
    if not is_op(sequence, "SequenceConstruct") or attribute(node, "new_axis", 0):
        return None
    assert sequence is not None
    tidy.learned = True
    made = tidy.become(node, "Concat", list(sequence.inputs), axis=attribute(node, "axis"))
    return "made a Concat of" if made else None


def _sequence_at(tidy: Tidy, node: ir.Node) -> str | None:
    """An element at a constant place of a sequence that was just made."""
    place = array_of(node.inputs[1])
    sequence = node.inputs[0].producer() if node.inputs[0] is not None else None
    if place is None or place.size != 1 or sequence is None:
        return None
    index = int(place.reshape(-1)[0])
    tidy.learned = True
    if is_op(sequence, "SequenceConstruct"):
        inside = -len(sequence.inputs) <= index < len(sequence.inputs)
        return "removed" if inside and tidy.forward(node, sequence.inputs[index]) else None
    if not is_op(sequence, "SplitToSequence"):
        return None
    axis, data = attribute(sequence, "axis", 0), sequence.inputs[0]
    split = sequence.inputs[1] if len(sequence.inputs) > 1 else None
    if split is None:  # one element each; keepdims says whether the axis stays
        where = np.array([index] if attribute(sequence, "keepdims", 1) else index, dtype=np.int64)
        tidy.become(node, "Gather", [data, tidy.constant(node, where, "indices")], axis=axis)
        return "made a Gather of"
    bounds = _bounds(tidy, array_of(split), index, data, axis)
    if bounds is None:
        return None
    numbers = {"starts": bounds[0], "ends": bounds[1], "axes": axis}
    parts = [tidy.constant(node, np.array([v], dtype=np.int64), hint) for hint, v in numbers.items()]
    tidy.become(node, "Slice", [data, *parts])
    return "made a Slice of"


def _bounds(
    tidy: Tidy, split: np.ndarray | None, index: int, data: ir.Value | None, axis: int
) -> tuple[int, int] | None:
    """Where an element of SplitToSequence begins and ends: equal parts for a scalar, given lengths for a vector."""
    if split is None:
        return None
    if split.ndim:
        lengths = [int(v) for v in split]
        if not -len(lengths) <= index < len(lengths):
            return None
        index %= len(lengths)
        return sum(lengths[:index]), sum(lengths[: index + 1])
    sizes, part = tidy.facts.dims(data), int(split)
    size = sizes[axis] if sizes is not None else None
    if part <= 0 or not isinstance(size, int):
        return None  # without the size nobody knows whether this element exists
    count = -(-size // part)
    if not -count <= index < count:
        return None
    index %= count
    return index * part, min((index + 1) * part, size)


_RULES: dict[str, Callable[[Tidy, ir.Node], str | None]] = {
    "Cast": _cast,
    "CastLike": _cast_like,
    "Concat": _concat,
    "ConcatFromSequence": _concat_from_sequence,
    "Dropout": _dropout,
    "Expand": _same_shape,
    "Flatten": _same_shape,
    "Identity": _identity,
    "If": _if,
    "Loop": _loop,
    "Pad": _pad,
    "Reshape": _same_shape,
    "SequenceAt": _sequence_at,
    "Slice": _slice,
    "Tile": _same_shape,
    "Transpose": _transpose,
}


def idle_nodes(graph: ir.Graph) -> Iterator[ir.Node]:
    """Nodes of a graph whose outputs nobody reads, last first."""
    for node in reversed(graph):
        if node.outputs and not any(v.uses() or v.is_graph_output() for v in node.outputs):
            yield node
