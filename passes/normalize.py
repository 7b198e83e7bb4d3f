"""Say the same with less: what does nothing goes, what is there twice is kept once.

Nodes are sorted and named, functions written out in place, and then, until nothing changes: Identity, Dropout in
inference mode, and Cast, Transpose, Reshape, Flatten, Expand, Slice, Tile, Pad and Concat that change nothing are taken
out; CastLike to a known type becomes Cast; a known element of a split sequence becomes Slice or Gather; an If whose
condition is constant gives way to its branch; what a Loop hands from round to round as it is, such as weights, is read
from outside; equal weights and equal nodes are merged (random ones never are); nodes, optional outputs, weights,
functions and opset imports that nobody uses go; so do declared shapes of inner values that cannot be true.

    y = Identity(x)                  ->  x
    y = Dropout(x), inference        ->  x
    f(x) + f(x)                      ->  t + t,  t = f(x)

Exact: every bit of every answer stays. Sizes and types are proven from the inputs' declarations and the weights, never
from declared shapes in between. Names, order, types and shapes of inputs and outputs stay, and so do metadata and doc
strings of what stays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import onnx_ir as ir
from onnx import defs

from onnxslim_core._functions import inline_functions, same_opsets
from onnxslim_core.errors import InternalError, InvalidModel
from onnxslim_core.graph import STANDARD, Names, all_nodes, attribute, bodies, is_op, label_of, opset_of, remove
from onnxslim_core.rewrite import Change, Context, Kind

from ._control import unique_names
from ._facts import Dim, Facts, learn_all
from ._merge import deterministic, merge_nodes, merge_weights
from ._record import records
from ._tidy import NEEDS_FACTS, Tidy, idle_nodes, inference_mode

__all__ = ["Normalize"]

_ROUNDS = 100
"""Each round undoes at least one level of nesting; nobody nests deeper."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Normalize:
    """Bring a graph into one plain form, without changing a bit of its answers."""

    name: ClassVar[str] = "normalize"
    kind: ClassVar[Kind] = Kind.BITWISE
    guards: ClassVar[tuple[Callable[[Any, Any], str | None], ...]] = (deterministic, inference_mode, same_opsets)

    def run(self, model: ir.Model, context: Context) -> list[Change]:
        """Change the model in place.

        Raises:
            InvalidModel: if its nodes depend on each other in a circle.
        """
        done: dict[str, list[str]] = {}
        refused: dict[tuple[str, str], list[str]] = {}
        saved = 0
        on_functions = tuple(g for g in self.guards if g is same_opsets)
        _note(done, "inlined", "function", inline_functions(model, on_functions, refused))
        _note(done, "sorted", "graph", _sort(model))
        names = Names(model)
        if count := unique_names(model, names):
            done[f"named {count} values and nodes"] = ["graph"]
        facts = _facts(model)
        _note(done, "dropped false", "shape", _drop_false_shapes(model, facts))
        for _ in range(_ROUNDS):
            tidy, merged, bytes_saved = self._round(model, names, facts)
            facts = _facts(model) if tidy.learned else facts
            saved += bytes_saved
            refused |= tidy.refused
            for action, places in (tidy.done | merged).items():
                done.setdefault(action, []).extend(places)
            if not any((tidy.done | merged).values()):
                break
        else:
            raise InternalError("does not come to an end", self.name)
        _note(done, "removed unused", "opset import", _drop_imports(model))
        return records(self.name, done, refused, saved)

    def _round(self, model: ir.Model, names: Names, facts: Facts) -> tuple[Tidy, dict[str, list[str]], int]:
        """One round: the rules, what was done by merging and removing, and the bytes of the weights that went."""
        opset = opset_of(model)
        tidy = Tidy(names, facts, opset, self.guards)
        tidy.run(model.graph)
        merged: dict[str, list[str]] = {}
        _note(merged, "merged equal", "weight", (found := merge_weights(model.graph))[0])
        nodes = merge_nodes(model.graph, names, lambda node: tidy.refuses(node, deterministic))
        _note(merged, "merged equal", "node", nodes)
        idle: list[str] = []
        saved = found[1] + _sweep(model.graph, opset, idle)
        _note(merged, "removed unused", "node or weight", idle)
        return tidy, merged, saved


def _facts(model: ir.Model) -> Facts:
    """The facts about a model, where any rule reads them or any shape is declared that they may belie."""
    needed = any(
        node.op_type in NEEDS_FACTS or any(value.shape is not None for value in node.outputs)
        for node in all_nodes(model.graph)
    )
    return learn_all(model) if needed else Facts(model)


def _drop_false_shapes(model: ir.Model, facts: Facts) -> list[str]:
    """Take off declared shapes of inner values that are wrong: onnxruntime does not mind them, but passes read them."""
    found = []
    for value in (value for node in all_nodes(model.graph) for value in node.outputs if value.shape is not None):
        sizes = None if value.is_graph_output() else facts.dims(value)
        if sizes is not None and _contradicts(value.shape, sizes):
            value.shape = None
            found.append(str(value.name))
    return found


def _contradicts(declared: ir.Shape | None, sizes: Sequence[Dim]) -> bool:
    if declared is None or len(declared) != len(sizes):
        return declared is not None
    return any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in zip(declared, sizes, strict=True))


def _note(done: dict[str, list[str]], verb: str, noun: str, places: list[str]) -> None:
    if places:
        done.setdefault(f"{verb} {noun}", []).extend(places)


def _sort(model: ir.Model) -> list[str]:
    """Sort graphs whose nodes are out of order; returns their names."""
    moved = []
    graphs = [model.graph]
    seen: set[ir.Node] = set()
    while graphs:
        graph = graphs.pop()
        for node in graph:
            if _waits(node, node, seen) or any(_waits(n, node, seen) for body in bodies(node) for n in all_nodes(body)):
                moved.append(graph.name or "graph")
                break
            seen.add(node)
        graphs.extend(body for node in graph for body in bodies(node))
    if not moved:
        return []
    try:
        model.graph.sort()
    except ValueError as err:
        raise InvalidModel("nodes depend on each other in a circle") from err
    return moved


def _waits(reader: ir.Node, node: ir.Node, seen: set[ir.Node]) -> bool:
    """True where a node, or a reader in its bodies, reads what comes later in the node's graph."""
    for value in reader.inputs:
        producer = None if value is None else value.producer()
        if producer is None or producer in seen or producer is node:
            continue
        if producer.graph is node.graph:
            return True
    return False


def _sweep(graph: ir.Graph, opset: int, gone: list[str]) -> int:
    """Remove what nobody reads: nodes, optional outputs, weights; returns the bytes of the weights."""
    for node in idle_nodes(graph):
        gone.append(label_of(node))
        remove(node)
    saved = 0
    for node in graph:
        for body in bodies(node):
            saved += _sweep(body, opset, gone)
        if _trim(node, opset):
            gone.append(label_of(node))
    for name, value in list(graph.initializers.items()):
        if value.uses() or value.is_graph_input() or value.is_graph_output():
            continue
        graph.initializers.pop(name)
        gone.append(name)
        saved += value.const_value.nbytes if value.const_value is not None else 0
    return saved


def _trim(node: ir.Node, opset: int) -> bool:
    """Let go of trailing absent inputs and of optional outputs that nobody reads; True where something changed."""
    if node.domain not in STANDARD or node.overload:
        return False
    changed = False
    if node.inputs and node.inputs[-1] is None:
        least = _least_inputs(node, opset)
        while len(node.inputs) > least and node.inputs[-1] is None:
            node.resize_inputs(len(node.inputs) - 1)
            changed = True
    if len(node.outputs) == 1:  # which is read, else the node would have gone
        return changed
    idle = [index for index, v in enumerate(node.outputs) if v.name and not v.uses() and not v.is_graph_output()]
    optional = _optional_outputs(node, opset) if idle else set()
    for index in optional.intersection(idle):
        node.outputs[index].name = ""
        changed = True
    while len(node.outputs) > 1 and not node.outputs[-1].name and not node.outputs[-1].uses():
        node.resize_outputs(len(node.outputs) - 1)
        changed = True
    return changed


def _least_inputs(node: ir.Node, opset: int) -> int:
    """How many inputs have to be written, absent ones included; all where that is not known."""
    try:
        return int(defs.get_schema(node.op_type, opset, "").min_input)
    except defs.SchemaError:
        return len(node.inputs)


def _optional_outputs(node: ir.Node, opset: int) -> set[int]:
    """Outputs that an operator may do without, and answers the same."""
    if is_op(node, "BatchNormalization") and (opset < 14 or attribute(node, "training_mode", 0)):
        return set()  # before opset 14 the number of outputs switches training on
    try:
        schema = defs.get_schema(node.op_type, opset, "")
    except defs.SchemaError:
        return set()
    optional = defs.OpSchema.FormalParameterOption.Optional
    return {index for index, output in enumerate(schema.outputs) if output.option == optional}


def _drop_imports(model: ir.Model) -> list[str]:
    """Imports of domains that no node and no function is of; the standard one always stays."""
    used = {node.domain for node in all_nodes(model.graph)} | {f.domain for f in model.functions.values()}
    used |= {domain for f in model.functions.values() for domain in f.opset_imports}
    idle = [domain for domain in model.opset_imports if domain not in used and domain not in STANDARD]
    for domain in idle:
        del model.opset_imports[domain]
    return idle
