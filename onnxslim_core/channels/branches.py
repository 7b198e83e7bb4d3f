"""Residual branches: what is added to a stream, and can be dropped whole because the stream goes on without it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxslim_core import graph as verbs
from onnxslim_core.graph import Names

__all__ = ["Branch", "branches_of", "drop", "in_copy"]


@dataclass(frozen=True, slots=True, eq=False)
class Branch:
    """`Add(shortcut, result)`, where everything that makes the result serves nothing else and starts at the shortcut.

    Attributes:
        add: The node at the end.
        shortcut: The stream; of the shape of the sum.
        result: What the branch adds to it.
        nodes: All nodes of the branch, in the order of the graph.
        place: Which input of the Add the result is.
    """

    add: ir.Node
    shortcut: ir.Value
    result: ir.Value
    nodes: tuple[ir.Node, ...]
    place: int

    @property
    def name(self) -> str:
        """The name of the node at the end."""
        return verbs.label_of(self.add)


def branches_of(model: ir.Model, shapes: dict[ir.Value, tuple[int, ...]]) -> list[Branch]:
    """All branches of the main graph whose shortcut is the very tensor that they start from, in the order of the graph.

    Args:
        model: The model.
        shapes: Concrete shapes; an Add that broadcasts its shortcut cannot lose the other operand.
    """
    order = {node: place for place, node in enumerate(model.graph)}
    found = []
    for node in model.graph:
        if not verbs.is_op(node, "Add"):
            continue
        for place in (0, 1):
            result, shortcut = node.inputs[place], node.inputs[1 - place]
            if result is None or shortcut is None or result is shortcut or result.producer() is None:
                continue
            if shortcut.producer() is None and shortcut not in model.graph.inputs:
                continue  # a bias
            if shapes.get(shortcut) is None or shapes.get(shortcut) != shapes.get(node.outputs[0]):
                continue
            nodes = _exclusive(result, node, order)
            if nodes and any(value is shortcut for each in nodes for value in each.inputs):
                found.append(Branch(node, shortcut, result, tuple(nodes), place))
                break
    return found


def _exclusive(result: ir.Value, add: ir.Node, order: dict[ir.Node, int]) -> list[ir.Node]:
    """The nodes that nothing but this value needs; none where a part of it is an output, or has a body."""
    inside: set[ir.Node] = set()
    waiting = {result.producer()}
    while waiting:
        # the last one in the order: by then all that might read it has been looked at
        node = max((each for each in waiting if each is not None), key=lambda each: order.get(each, -1))
        waiting.discard(node)
        if node not in order or verbs.is_op(node, "Constant"):
            continue
        alone = True
        for value in node.outputs:
            users, is_output = verbs.users_of(value)
            others = [user for user, _ in users if user not in inside and not (user is add and value is result)]
            alone &= not is_output and not others
        if not alone:
            continue
        inside.add(node)
        waiting |= {v.producer() for v in node.inputs if v is not None and v.producer() is not None}
    return sorted(inside, key=order.__getitem__)


def drop(model: ir.Model, branch: Branch) -> int:
    """Take a branch out; the readers of the sum read the stream. Returns how many nodes went.

    A Relu after the sum goes too where the stream comes out of a Relu, since the second changes nothing.
    """
    names = Names(model)
    result = branch.add.outputs[0]
    users, is_output = verbs.users_of(result)
    # an earlier branch may be gone, and with it the stream as this one knew it
    shortcut = branch.add.inputs[1 - branch.place]
    assert shortcut is not None
    source = shortcut.producer()
    if not is_output and len(users) == 1 and verbs.is_op(users[0][0], "Relu") and verbs.is_op(source, "Relu"):
        result = users[0][0].outputs[0]
    last = result.producer()
    assert last is not None
    verbs.replace(result, shortcut, names)
    return verbs.remove(last)


def in_copy(model: ir.Model, branches: Sequence[Branch]) -> list[Branch]:
    """The same branches in a copy, or in the model as it is by now; without their nodes.

    Args:
        model: Where nodes have the names that they had.
        branches: Found before.
    """
    ends = {branch.add.name for branch in branches}
    adds = {node.name: node for node in model.graph if node.name in ends}
    found = []
    for branch in branches:
        add = adds[branch.add.name]
        result, shortcut = add.inputs[branch.place], add.inputs[1 - branch.place]
        assert result is not None and shortcut is not None
        found.append(Branch(add, shortcut, result, (), branch.place))
    return found
