"""Our few verbs over an `onnx_ir` graph.

Identity is the object, never the name. Uses are kept by `onnx_ir` on every write, and an outer value that a
subgraph body captures is the same object there, so `users_of` sees captures without extra work. Every edit of the
program goes through these functions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxslim_core.errors import InternalError

__all__ = [
    "RANDOM",
    "STANDARD",
    "Names",
    "add_behind",
    "add_constant",
    "add_node",
    "all_nodes",
    "array_of",
    "attribute",
    "bodies",
    "drop_given_names",
    "first_input",
    "give_names_back",
    "idle_source",
    "is_op",
    "label_of",
    "name_node",
    "noted",
    "noted_for_file",
    "opset_of",
    "own_name",
    "owner_of",
    "remove",
    "replace",
    "replace_constant",
    "replace_input",
    "reserve_names",
    "set_attribute",
    "users_of",
]

RANDOM = ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")
"""Operators that draw random numbers always; Dropout does so in training."""

STANDARD = ("", "ai.onnx")
"""Both spellings of the standard operator domain."""


_OUR_NAME = "onnxslim_core.our_name"
"""In a node's `meta`: its name is ours."""

_BODIES = frozenset((ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS))


_NOTHING: Mapping[str, Any] = {}


def is_op(node: ir.Node | None, *op_types: str) -> bool:
    """True where the node is a standard operator of one of these types (`com.vendor::Conv` is not a Conv)."""
    return node is not None and node.op_type in op_types and node.domain in STANDARD


def label_of(node: ir.Node) -> str:
    """How a message names a node: its name, else its type and first output, since only a file's names can be found."""
    if name := own_name(node):
        return f"{node.op_type} '{name}'"
    first = next((v.name for v in node.outputs if v.name), "?")
    return f"{node.op_type} -> '{first}'"


def bodies(node: ir.Node) -> Sequence[ir.Graph]:
    """The subgraphs that a node carries as attributes."""
    attributes = node.attributes.data  # the plain dict: this is asked of every node, many times
    if not attributes:
        return ()
    found: list[ir.Graph] = []
    for attr in attributes.values():
        kind = attr.type
        if kind not in _BODIES or attr.is_ref():
            continue
        if kind is ir.AttributeType.GRAPH:
            found.append(attr.as_graph())
        else:
            found.extend(attr.as_graphs())
    return found


def all_nodes(graph: ir.Graph) -> list[ir.Node]:
    """Every node of a graph and of its bodies, outer nodes before the nodes of their bodies."""
    found: list[ir.Node] = []
    for node in graph:
        found.append(node)
        if node.attributes.data:
            for body in bodies(node):
                found += all_nodes(body)
    return found


def noted(owner: ir.Graph | ir.Node | ir.Value) -> Mapping[str, Any]:
    """What is in the `meta` of an object, for those who only look: `meta` itself makes a store where there is none."""
    store = getattr(owner, "_metadata", owner)
    return _NOTHING if store is None else owner.meta


def noted_for_file(owner: ir.Graph | ir.Node | ir.Value | ir.TensorProtocol) -> Mapping[str, str]:
    """As `noted`, of `metadata_props`."""
    props = getattr(owner, "_metadata_props", owner)
    return _NOTHING if props is None else owner.metadata_props


def drop_given_names(graph: ir.Graph) -> None:
    """Take the names off the nodes that had none before `name_node`: a node needs none, and each takes bytes.

    Passes tell nodes by their names, in one model and in another: `give_names_back` before the next one.
    """
    for node in all_nodes(graph):
        if _OUR_NAME in noted(node) and node.name:
            node.meta[_OUR_NAME] = node.name
            node.name = ""  # None would be given a name by the next copy


def reserve_names(model: ir.Model) -> None:
    """Choose a name for every node without one, which `give_names_back` gives it; the file stays as it is."""
    names = Names(model)
    for node in all_nodes(model.graph):
        if not node.name:
            node.meta[_OUR_NAME] = names.new(node.op_type)


def give_names_back(graph: ir.Graph) -> None:
    """Let every node have the name that was taken off it or reserved for it, in copies, too."""
    for node in all_nodes(graph):
        if not node.name and _OUR_NAME in noted(node):
            node.name = str(node.meta[_OUR_NAME])


def own_name(node: ir.Node) -> str:
    """The name that the node came with; empty where it had none."""
    return "" if _OUR_NAME in noted(node) else node.name or ""


def name_node(node: ir.Node, name: str) -> None:
    """Give a name to a node without one."""
    node.name = name
    node.meta[_OUR_NAME] = name


def users_of(value: ir.Value) -> tuple[list[tuple[ir.Node, int]], bool]:
    """Who reads a value: (node, input index) pairs, in bodies too, and whether it is an output of a graph or a body."""
    return [(use.node, use.idx) for use in value.uses()], value.is_graph_output()


def first_input(node: ir.Node) -> ir.Value:
    """The first input of a node that always has one."""
    value = node.inputs[0]
    assert value is not None
    return value


def opset_of(model: ir.Model, domain: str = "") -> int:
    """The imported version of a domain; 1 where it is not imported."""
    imports = model.graph.opset_imports
    if domain in STANDARD:
        return max((imports[name] for name in STANDARD if name in imports), default=1)
    return imports.get(domain, 1)


def owner_of(value: ir.Value) -> ir.Graph | None:
    """The graph in which a value lives: as input, initializer or node output."""
    producer = value.producer()
    owner = producer.graph if producer is not None else value.graph
    return owner if isinstance(owner, ir.Graph) else None


def attribute(node: ir.Node, name: str, default: Any = None) -> Any:
    """The plain value of an attribute, or the default where it is absent."""
    attr = node.attributes.data.get(name)
    if attr is None or attr.is_ref():
        return default
    value = attr.value
    return tuple(value) if isinstance(value, list) else value


def set_attribute(node: ir.Node, name: str, value: float | str | Sequence[int] | Sequence[float] | None) -> None:
    """Set an attribute, or take it away with None."""
    if value is None:
        node.attributes.pop(name, None)
        return
    node.attributes[name] = ir.convenience.convert_attribute(name, value)


def array_of(value: ir.Value | None) -> np.ndarray | None:
    """The array of an initializer or of a Constant node's output; None where it is computed or may be fed.

    The array is read-only, since it may be a view of a mapped file. An initializer that is also a graph input is a
    default that a caller may replace, so it is no constant.
    """
    if value is None:
        return None
    producer = value.producer()
    if producer is not None:
        if not is_op(producer, "Constant"):
            return None
        given = producer.attributes.get("value")
        if given is not None and not given.is_ref() and given.type == ir.AttributeType.TENSOR:
            return given.value.numpy()  # type: ignore[no-any-return]
        tensor = ir.convenience.get_const_tensor(value)
        return None if tensor is None else tensor.numpy()
    if value.const_value is None or value.is_graph_input() or not value.is_initializer():
        return None
    return value.const_value.numpy()


class Names:
    """Names that no scope of the model uses yet; deterministic, so that the same edits give the same names."""

    def __init__(self, model: ir.Model) -> None:
        self._model = model
        self._taken: set[str] = set()
        self._next: dict[str, int] = {}

    @property
    def _used(self) -> set[str]:
        """Every name; collected when the first new one is asked for, since most passes make none."""
        if not self._taken:
            self._collect()
        return self._taken

    def _collect(self) -> None:
        used, graphs = {""}, [self._model.graph]
        while graphs:
            graph = graphs.pop()
            used.update(v.name for v in (*graph.inputs, *graph.outputs) if v.name)
            used.update(graph.initializers)
            for node in graph:
                used.add(node.name or "")
                for value in node.outputs:
                    used.add(value.name or "")
                if node.attributes.data:
                    graphs.extend(bodies(node))
        self._taken = used

    def new(self, hint: str) -> str:
        """A fresh name that begins with the hint."""
        name, count, used = hint, self._next.get(hint, 1), self._used
        while name in used:
            name, count = f"{hint}_{count}", count + 1
        self._next[hint] = count  # else 16,000 names from one hint would take 16,000 squared steps
        used.add(name)
        return name


def add_constant(graph: ir.Graph, names: Names, array: np.ndarray, hint: str) -> ir.Value:
    """Add an initializer. Its shape is stored with it, since both are frozen together."""
    name = names.new(hint)
    tensor = ir.Tensor(np.ascontiguousarray(array) if array.ndim else array, name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def add_node(
    names: Names,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    attributes: Mapping[str, Any] | None = None,
    *,
    before: ir.Node,
    hint: str = "",
    domain: str = "",
    num_outputs: int = 1,
) -> ir.Node:
    """Insert a node before another one, in that node's graph, with fresh node and output names."""
    graph = before.graph
    if graph is None:
        raise InternalError("cannot insert before a node that is in no graph", label_of(before))
    hint = hint or (before.name or before.op_type)
    node = ir.node(op_type, inputs, dict(attributes or {}), domain=domain, num_outputs=num_outputs)
    name_node(node, names.new(f"{hint}/{op_type}"))
    for index, value in enumerate(node.outputs):
        value.name = names.new(f"{node.name}_output_{index}")
    graph.insert_before(before, node)
    return node


def replace_input(node: ir.Node, index: int, value: ir.Value | None) -> None:
    """Make a node read another value; trailing absent inputs are added as needed."""
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    node.replace_input_with(index, value)


def replace_constant(node: ir.Node, index: int, made: ir.Value) -> None:
    """Let a node read a new constant; it takes the name of the old one where nobody else reads that."""
    old = node.inputs[index] if index < len(node.inputs) else None
    replace_input(node, index, made)
    graph = owner_of(made)
    if old is None or graph is None or old.uses() or old.is_graph_output():
        return
    name = str(old.name)
    if graph.initializers.get(name) is old and not old.is_graph_input():
        graph.initializers.pop(name)
        graph.initializers.pop(str(made.name))
        made.name = name
        graph.register_initializer(made)
    elif (producer := old.producer()) is not None and not any(value.uses() for value in producer.outputs):
        remove(producer)


def add_behind(node: ir.Node, bias: ir.Value, names: Names) -> None:
    """`node + bias`, as a new Add that every reader reads."""
    value, graph = node.outputs[0], node.graph
    assert isinstance(graph, ir.Graph)
    readers, is_output = users_of(value)
    add = ir.node("Add", [value, bias])
    add.name = names.new(f"{node.name or node.op_type}/Add")
    add.outputs[0].name = names.new(f"{value.name}/shifted")
    add.outputs[0].type = value.type
    graph.insert_after(node, add)
    if is_output:
        replace(value, add.outputs[0], names)
        replace_input(add, 0, value)
        return
    for reader, index in readers:
        replace_input(reader, index, add.outputs[0])


def replace(old: ir.Value, new: ir.Value, names: Names) -> None:
    """Let every reader of `old`, in bodies too, read `new`; graph outputs keep their names, types and order.

    Where `old` is an output of its graph, the producer of `new` takes the name. Where that is not possible (`new` is
    an input, an initializer, an output already, or lives in another graph), an Identity carries the name.
    """
    if old is new:
        return
    if not old.is_graph_output():
        old.replace_all_uses_with(new)
        return
    graph = owner_of(old)
    producer = old.producer()
    if graph is None or producer is None:
        raise InternalError(f"'{old.name}' is an output that no node makes")
    if new.producer() is None or new.is_graph_output() or owner_of(new) is not graph:
        identity = add_node(names, "Identity", [new], before=producer, hint=str(old.name))
        _be_output(old, identity.outputs[0], names)
        for node, index in users_of(old)[0]:
            node.replace_input_with(index, new)
        return
    _be_output(old, new, names)
    old.replace_all_uses_with(new)


def _be_output(old: ir.Value, new: ir.Value, names: Names) -> None:
    graph = owner_of(old)
    assert graph is not None
    for index, output in enumerate(graph.outputs):
        if output is old:
            graph.outputs[index] = new
    name = old.name
    old.name = names.new(f"{name}/replaced")
    new.name, new.type, new.shape = name, old.type, old.shape
    new.metadata_props.update(old.metadata_props)
    new.doc_string = old.doc_string


def remove(nodes: ir.Node | Iterable[ir.Node]) -> int:
    """Remove nodes and whatever only they needed, initializers included; returns how many nodes went.

    Raises:
        InternalError: if an output of a named node is read by a node that stays.
    """
    pending = [nodes] if isinstance(nodes, ir.Node) else list(nodes)
    going = set(pending)
    for node in pending:
        for value in node.outputs:
            users, is_output = users_of(value)
            if is_output or any(user not in going for user, _ in users):
                raise InternalError(f"removed while '{value.name}' is read", label_of(node))
    count = 0
    while pending:
        node = pending.pop()
        if node.graph is None:
            continue
        sources = _detach(node)
        node.graph.remove(node)
        count += 1
        pending.extend(producer for value in sources if (producer := idle_source(value)) is not None)
    return count


def _detach(node: ir.Node) -> list[ir.Value]:
    """Cut all inputs of a node and of its bodies; returns the values that were read."""
    readers = [node, *(inner for body in bodies(node) for inner in all_nodes(body))]
    sources = dict.fromkeys(v for reader in readers for v in reader.inputs if v is not None)
    for reader in readers:
        for index in range(len(reader.inputs)):
            reader.replace_input_with(index, None)
    return list(sources)


def idle_source(value: ir.Value) -> ir.Node | None:
    """The producer of a value nobody reads any more; an initializer nobody reads is dropped on the way."""
    if value.uses() or value.is_graph_output():
        return None
    producer = value.producer()
    if producer is None:
        if value.is_initializer() and not value.is_graph_input() and value.graph is not None:
            value.graph.initializers.pop(str(value.name), None)
        return None
    return None if any(v.uses() or v.is_graph_output() for v in producer.outputs) else producer
