"""Bodies: an If whose condition is constant runs one branch once; what a Loop hands on unchanged needs no handing."""

from __future__ import annotations

import onnx_ir as ir

from onnxslim_core.errors import InternalError
from onnxslim_core.graph import Names, attribute, bodies, is_op, label_of, name_node, remove, replace

__all__ = ["free_states", "inline_branch", "unique_names"]


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


def free_states(node: ir.Node, names: Names) -> bool:
    """Let the body of a Loop read from outside what every round hands to the next as it is, such as weights.

    Args:
        node: A Loop of the standard domain; names are unique across scopes. A smaller one takes its place.
        names: Of the model.

    Returns:
        Whether there was any.
    """
    body, graph = attribute(node, "body"), node.graph
    if not isinstance(body, ir.Graph) or not isinstance(graph, ir.Graph):
        raise InternalError("has no body", label_of(node))
    places = [place for place in range(len(body.inputs) - 2) if _is_unchanged(node, body, place)]
    if not places:
        return False
    firsts = {place: (body.inputs[place + 2], node.inputs[place + 2]) for place in places}
    for place in reversed(places):
        body.inputs.pop(place + 2)
        body.outputs.pop(place + 1)
    inputs = [value for index, value in enumerate(node.inputs) if index - 2 not in firsts]
    kept = [value for place, value in enumerate(node.outputs) if place not in firsts]
    made = ir.Node(node.domain, node.op_type, inputs, list(node.attributes.values()), num_outputs=max(len(kept), 1))
    name_node(made, names.new(f"{node.name}/smaller"))
    made.metadata_props.update(node.metadata_props)
    graph.insert_before(node, made)
    for old, new in zip(kept, made.outputs, strict=False):
        new.name, new.type, new.shape = names.new(str(old.name)), old.type, old.shape
        replace(old, new, names)
    for place, (inner, first) in firsts.items():
        assert first is not None
        inner.replace_all_uses_with(first)
        replace(node.outputs[place], first, names)
    node.attributes.clear()  # the body is the new node's
    remove(node)
    if not kept:
        remove(made)
    return True


def _is_unchanged(node: ir.Node, body: ir.Graph, place: int) -> bool:
    """True where a state comes out of every round as it went in, and no other state takes it over."""
    inner, result = body.inputs[place + 2], body.outputs[place + 1]
    producer = result.producer()
    source = producer.inputs[0] if producer is not None and is_op(producer, "Identity") else result
    others = [value for index, value in enumerate(body.outputs) if index != place + 1]
    return source is inner and inner not in others and node.inputs[place + 2] is not None
