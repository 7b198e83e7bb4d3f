"""Bodies that are known to run exactly once: an If whose condition is constant."""

from __future__ import annotations

import onnx_ir as ir

from onnxslim_core.errors import InternalError
from onnxslim_core.graph import Names, attribute, bodies, label_of, name_node, remove, replace

__all__ = ["inline_branch", "unique_names"]


def unique_names(model: ir.Model, names: Names) -> int:
    """Give every value its own name across all scopes, and every node a name; returns how many were given.

    Names of the graph's inputs, outputs and weights stay. Names that repeat in the two branches of an If are legal,
    but in the way of whoever moves nodes between scopes.
    """
    seen: set[str] = {str(v.name) for v in (*model.graph.inputs, *model.graph.outputs)} | set(model.graph.initializers)
    count, graphs = 0, [model.graph]
    fixed = set(model.graph.outputs)
    while graphs:
        graph = graphs.pop()
        own = [] if graph is model.graph else [*graph.inputs, *graph.initializers.values()]
        for node in graph:
            if not node.name:
                name_node(node, names.new(node.op_type))
                count += 1
            own.extend(v for v in node.outputs if v.name or v.uses() or v.is_graph_output())
            graphs.extend(bodies(node))
        for value in own:
            if value in fixed:
                continue
            if not value.name or value.name in seen:
                value.name = names.new(value.name or "value")
                count += 1
            seen.add(value.name)
    return count


def inline_branch(node: ir.Node, condition: bool, names: Names) -> list[ir.Node]:
    """Put the branch of an If that always runs in the If's place; the other one goes.

    Args:
        node: An If of the standard domain; names are unique across scopes.
        condition: The value of its constant condition.
        names: Of the model.

    Returns:
        The nodes that moved, in order, without those of their bodies.
    """
    branch, graph = attribute(node, "then_branch" if condition else "else_branch"), node.graph
    if not isinstance(branch, ir.Graph) or not isinstance(graph, ir.Graph):
        raise InternalError("has no branch to put in its place", label_of(node))
    results = list(branch.outputs)
    branch.outputs.clear()
    for value in list(branch.initializers.values()):
        branch.initializers.pop(str(value.name))
        graph.register_initializer(value)
    moved = list(branch)
    branch.remove(moved)
    graph.insert_before(node, moved)
    for old, new in zip(node.outputs, results, strict=True):
        if old.uses() or old.is_graph_output():
            replace(old, new, names)
    remove(node)
    return moved
