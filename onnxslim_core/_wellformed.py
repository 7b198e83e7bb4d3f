"""What a model proto must look like before anything else touches it, and the limits set for untrusted input.

The walk reads structure only: names, counts, dims and types, never weights. It is linear in the size of the file and
recurses only into bodies, whose nesting is bounded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import onnx
from google.protobuf.unknown_fields import UnknownFieldSet  # type: ignore[import-untyped]

from onnxslim_core.errors import InvalidModel, UnsupportedModel

__all__ = ["KNOWN_TYPES", "Findings", "Limits", "examine", "kind_of", "quote"]

_ATTR = onnx.AttributeProto
KNOWN_TYPES = frozenset(onnx.TensorProto.DataType.values()) - {onnx.TensorProto.UNDEFINED}
"""Numbers of the element types that this version of onnx knows."""
_VALUE_FIELDS = {
    "f": _ATTR.FLOAT,
    "i": _ATTR.INT,
    "s": _ATTR.STRING,
    "t": _ATTR.TENSOR,
    "g": _ATTR.GRAPH,
    "sparse_tensor": _ATTR.SPARSE_TENSOR,
    "tp": _ATTR.TYPE_PROTO,
    "floats": _ATTR.FLOATS,
    "ints": _ATTR.INTS,
    "strings": _ATTR.STRINGS,
    "tensors": _ATTR.TENSORS,
    "graphs": _ATTR.GRAPHS,
    "sparse_tensors": _ATTR.SPARSE_TENSORS,
    "type_protos": _ATTR.TYPE_PROTOS,
}
_CONSTANT = {
    "value": _ATTR.TENSOR,
    "sparse_value": _ATTR.SPARSE_TENSOR,
    "value_float": _ATTR.FLOAT,
    "value_floats": _ATTR.FLOATS,
    "value_int": _ATTR.INT,
    "value_ints": _ATTR.INTS,
    "value_string": _ATTR.STRING,
    "value_strings": _ATTR.STRINGS,
}
"""What a Constant may hold its value in."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What is refused before memory is spent on it. The defaults are far above every real model."""

    file_bytes: int = 2**31 - 1
    """A model file; protobuf ends at 2 GB. External data is not counted."""
    nodes: int = 2_000_000
    """Nodes of all graphs, bodies and functions."""
    values: int = 4_000_000
    """Inputs, outputs, initializers and declared types of one graph."""
    nesting: int = 24
    """Bodies within bodies, and types within types."""
    rank: int = 64
    """Dims of one tensor."""
    elements: int = 2**40
    """Elements of one tensor, as its dims say."""
    dense_elements: int = 2**28
    """Elements of one sparse tensor, when written out in full."""
    name_length: int = 16_384
    """Characters of one name."""


@dataclass(slots=True)
class Findings:
    """What the walk saw.

    Attributes:
        nodes: How many nodes there are, bodies and functions included.
        unsorted: A node reads what a later node makes.
    """

    nodes: int = 0
    unsorted: bool = False


@dataclass(slots=True)
class _Scope:
    """The names of one graph: all of them, and those defined so far."""

    every: set[str] = field(default_factory=set)
    defined: set[str] = field(default_factory=set)


def quote(name: str | bytes, limit: int = 80) -> str:
    """A name as it is safe to print: control characters escaped, long names shortened."""
    if isinstance(name, bytes):
        name = name.decode("utf-8", "replace")
    text = name if len(name) <= limit else f"{name[: limit - 3]}..."
    if text.isprintable():
        return f"'{text}'"
    return "'" + "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text) + "'"


def examine(proto: onnx.ModelProto, limits: Limits) -> Findings:
    """Check a model proto.

    Args:
        proto: The model; it is not changed.
        limits: What is refused for its size.

    Raises:
        InvalidModel: if it breaks the specification or a limit.
        UnsupportedModel: if it holds something that cannot be carried.
    """
    if not proto.HasField("graph"):
        raise InvalidModel("the model has no graph", "is this an ONNX file?")
    if proto.ir_version < 1:
        raise InvalidModel("the model does not say its IR version", "is this an ONNX file?")
    if proto.ir_version >= 3 and not proto.opset_import:
        raise InvalidModel("the model imports no opset")
    _known(proto, "the model")
    _text(proto.producer_name, proto.producer_version, proto.domain, proto.doc_string)
    _entries(proto.metadata_props)
    for configuration in proto.configuration:
        _text(configuration.name, *configuration.device)
    _opsets(proto.opset_import)
    walk = _Walk(limits)
    walk.graph(proto.graph, (), 0)
    walk.functions(proto.functions)
    return walk.found


def _opsets(imports: Iterable[onnx.OperatorSetIdProto]) -> None:
    seen: dict[str, int] = {}
    for entry in imports:
        _text(entry.domain)
        domain = "" if entry.domain == "ai.onnx" else entry.domain
        if seen.setdefault(domain, entry.version) != entry.version:
            raise InvalidModel(f"domain {quote(entry.domain)} is imported in two versions")


def _text(*values: object) -> None:
    """Refuse text that is not UTF-8, which protobuf hands out as bytes."""
    for value in values:
        if isinstance(value, bytes):
            raise InvalidModel(f"a text in the model is not UTF-8: {quote(value)}")


_What = str | Callable[[], str]
"""How a message calls something; a function where nearly nobody asks for it, since there is one for every node."""


def _said(what: _What) -> str:
    return what if isinstance(what, str) else what()


def _known(message: Any, what: _What) -> None:
    """Refuse fields that this version of onnx does not know: they would be lost without a word."""
    if unknown := UnknownFieldSet(message):
        number = next(iter(unknown)).field_number
        raise UnsupportedModel(
            f"{_said(what)} has a field (number {number}) that onnx {onnx.__version__} does not know", "update onnx"
        )


def _entries(entries: Iterable[onnx.StringStringEntryProto]) -> None:
    for entry in entries:
        _text(entry.key, entry.value)


class _Walk:
    """One pass over a model proto."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.found = Findings()

    def name(self, name: str, what: _What) -> str:
        _text(name)
        if len(name) > self.limits.name_length:
            count = f"{len(name)} characters, more than {self.limits.name_length}"
            raise InvalidModel(f"the name of {_said(what)} has {count}")
        if "\0" in name:
            raise InvalidModel(f"the name of {_said(what)} holds a NUL character: {quote(name)}")
        return name

    def define(self, scope: _Scope, name: str, what: _What) -> None:
        self.name(name, what)
        if name in scope.every:
            raise InvalidModel(f"{quote(name)} is defined twice, the second time as {_said(what)}")
        scope.every.add(name)

    def not_outside(self, name: str, outer: Sequence[_Scope]) -> None:
        """Refuse a name that a body defines again: runtimes differ in which of the two they read."""
        if any(name in above.every for above in outer):
            raise InvalidModel(f"{quote(name)} is defined twice, the second time in a body of the graph")

    def graph(self, graph: onnx.GraphProto, outer: Sequence[_Scope], depth: int) -> None:
        if depth > self.limits.nesting:
            raise InvalidModel(f"bodies are nested more than {self.limits.nesting} deep")
        declared = (graph.input, graph.output, graph.value_info, graph.initializer, graph.sparse_initializer)
        if sum(map(len, declared)) > self.limits.values:
            raise InvalidModel(f"a graph declares more than {self.limits.values} values")
        _known(graph, f"graph {quote(graph.name)}")
        scope = _Scope()
        _text(graph.name, graph.doc_string)
        _entries(graph.metadata_props)
        for annotation in graph.quantization_annotation:
            _text(annotation.tensor_name)
            _entries(annotation.quant_parameter_tensor_names)
        for info in graph.input:
            if not info.name:
                raise InvalidModel(f"an input of graph {quote(graph.name)} has no name")
            self.define(scope, info.name, "an input")
        inputs = set(scope.every)
        self.initializers(graph, scope, inputs)
        for name in scope.every - inputs:
            self.not_outside(name, outer)
        scope.defined |= scope.every
        for info in (*graph.input, *graph.output, *graph.value_info):
            self.info(info)
        self.nodes(graph.node, scope, outer, depth)
        for info in graph.output:
            if info.name not in scope.every:
                self.missing_output(info.name, outer)

    def info(self, info: onnx.ValueInfoProto) -> None:
        _text(info.name, info.doc_string)
        _entries(info.metadata_props)
        self.type(info.type, info.name, 0)

    def missing_output(self, name: str, outer: Sequence[_Scope]) -> None:
        if any(name in scope.every for scope in outer):
            raise InvalidModel(
                f"a body returns the outer value {quote(name)} directly", "put an Identity between them, as ONNX asks"
            )
        raise InvalidModel(f"nothing makes the output {quote(name)}")

    def initializers(self, graph: onnx.GraphProto, scope: _Scope, inputs: set[str]) -> None:
        seen: set[str] = set()
        for tensor in graph.initializer:
            self.tensor(tensor, partial(_initializer, tensor))
            self.initializer(tensor.name, seen, scope, inputs)
        for sparse in graph.sparse_initializer:
            self.sparse(sparse, f"sparse initializer {quote(sparse.values.name)}")
            self.initializer(sparse.values.name, seen, scope, inputs)

    def initializer(self, name: str, seen: set[str], scope: _Scope, inputs: set[str]) -> None:
        if not name:
            raise InvalidModel("an initializer has no name")
        if name in seen:
            raise InvalidModel(f"{quote(name)} is defined twice, the second time as an initializer")
        seen.add(name)
        if name not in inputs:
            self.define(scope, name, "an initializer")

    def nodes(self, nodes: Sequence[onnx.NodeProto], scope: _Scope, outer: Sequence[_Scope], depth: int) -> None:
        self.found.nodes += len(nodes)
        if self.found.nodes > self.limits.nodes:
            raise InvalidModel(f"the model has more than {self.limits.nodes} nodes")
        for node in nodes:
            for name in node.output:
                if not name:
                    continue
                self.define(scope, name, partial(_output_of, node))
                if outer:
                    self.not_outside(name, outer)
        inner = (*outer, scope)
        for node in nodes:
            self.name(node.name, "a node")
            if not node.op_type:
                raise InvalidModel(f"node {quote(node.name)} has no operator type")
            _text(node.op_type, node.domain, node.overload, node.doc_string)
            _entries(node.metadata_props)
            _known(node, partial(_label, node))
            for name in node.input:
                _text(name)
                if name and name not in scope.defined:
                    self.resolve(name, node, inner)
            self.attributes(node, inner, depth)
            if node.device_configurations:
                self.devices(node)
            scope.defined.update(node.output)

    def devices(self, node: onnx.NodeProto) -> None:
        for entry in node.device_configurations:
            specs = entry.sharding_spec
            _text(entry.configuration_id, *(spec.tensor_name for spec in specs))
            if not entry.configuration_id or not all(spec.tensor_name for spec in specs):
                raise InvalidModel(f"{_label(node)} has a device configuration or a sharding without a name")
            for dim in (dim for spec in specs for sharded in spec.sharded_dim for dim in sharded.simple_sharding):
                _text(dim.dim_param)

    def resolve(self, name: str, node: onnx.NodeProto, scopes: Sequence[_Scope]) -> None:
        for scope in reversed(scopes):
            if name in scope.every:
                self.found.unsorted |= name not in scope.defined
                return
        raise InvalidModel(f"{_label(node)} reads {quote(name)}, which nothing makes")

    def attributes(self, node: onnx.NodeProto, scopes: Sequence[_Scope], depth: int) -> None:
        if not node.attribute:
            if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
                raise InvalidModel(f"{_label(node)} holds no value")
            return
        seen: set[str] = set()
        for attr in node.attribute:
            if not attr.name or attr.name in seen:
                raise InvalidModel(f"{_label(node)} has an attribute without a name or twice: {quote(attr.name)}")
            seen.add(self.name(attr.name, "an attribute"))
            self.attribute(attr, partial(_attribute_of, node, attr), scopes, depth)
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
            self.constant(node)

    def constant(self, node: onnx.NodeProto) -> None:
        if len(node.attribute) != 1 or node.attribute[0].name not in _CONSTANT or len(node.output) != 1:
            raise InvalidModel(f"{_label(node)} must hold one value and have one output")
        (attr,) = node.attribute
        if not attr.ref_attr_name and (attr.type or kind_of(attr)) != _CONSTANT[attr.name]:
            raise InvalidModel(f"{quote(attr.name)} of {_label(node)} is of another type than its name says")

    def attribute(self, attr: onnx.AttributeProto, what: _What, scopes: Sequence[_Scope], depth: int) -> None:
        _text(attr.doc_string, attr.ref_attr_name)
        _known(attr, what)
        if attr.ref_attr_name:
            return
        kind: int = attr.type
        if kind == _ATTR.UNDEFINED:
            kind = kind_of(attr)
        if kind == _ATTR.GRAPH:
            self.graph(attr.g, scopes, depth + 1)
        elif kind == _ATTR.GRAPHS:
            for body in attr.graphs:
                self.graph(body, scopes, depth + 1)
        elif kind in (_ATTR.TENSOR, _ATTR.TENSORS):
            for tensor in (attr.t,) if kind == _ATTR.TENSOR else attr.tensors:
                self.tensor(tensor, what)
        elif kind in (_ATTR.SPARSE_TENSOR, _ATTR.SPARSE_TENSORS):
            for sparse in (attr.sparse_tensor,) if kind == _ATTR.SPARSE_TENSOR else attr.sparse_tensors:
                self.sparse(sparse, what)
        elif kind in (_ATTR.TYPE_PROTO, _ATTR.TYPE_PROTOS):
            for tp in (attr.tp,) if kind == _ATTR.TYPE_PROTO else attr.type_protos:
                self.type(tp, _said(what), 0)
        elif kind not in _VALUE_FIELDS.values():
            raise UnsupportedModel(f"{_said(what)} is of the unknown type {kind}")

    def dims(self, dims: Sequence[int], data_type: int, what: _What, most: int) -> None:
        if data_type not in KNOWN_TYPES:
            raise InvalidModel(f"{_said(what)} has the unknown element type {data_type}")
        if len(dims) > self.limits.rank:
            raise InvalidModel(f"{_said(what)} has {len(dims)} dims, more than {self.limits.rank}")
        if dims and min(dims) < 0:
            raise InvalidModel(f"{_said(what)} has a negative dim: {list(dims)}")
        if math.prod(d or 1 for d in dims) > most:
            raise InvalidModel(f"{_said(what)} has too many elements: {'x'.join(map(str, dims))}")

    def tensor(self, tensor: onnx.TensorProto, what: _What) -> None:
        self.name(tensor.name, what)
        _known(tensor, what)
        _text(tensor.doc_string)
        _entries(tensor.metadata_props)
        _entries(tensor.external_data)
        self.dims(tensor.dims, tensor.data_type, what, self.limits.elements)
        if tensor.HasField("segment"):
            raise UnsupportedModel(f"{_said(what)} is stored in segments")
        if tensor.data_location not in (onnx.TensorProto.DEFAULT, onnx.TensorProto.EXTERNAL):
            raise InvalidModel(f"{_said(what)} is at an unknown data location")

    def sparse(self, sparse: onnx.SparseTensorProto, what: _What) -> None:
        for part in (sparse.values, sparse.indices):
            self.tensor(part, what)
            if part.data_location == onnx.TensorProto.EXTERNAL:
                raise UnsupportedModel(f"{_said(what)} is a sparse tensor in external data")
        self.dims(sparse.dims, sparse.values.data_type, what, self.limits.dense_elements)
        if sparse.indices.data_type != onnx.TensorProto.INT64:
            raise InvalidModel(f"{_said(what)} has indices that are not int64")

    def type(self, proto: onnx.TypeProto, what: str, depth: int) -> None:
        """Check element types and nesting of a declared type."""
        if depth > self.limits.nesting:
            raise InvalidModel(f"the type of {quote(what)} is nested more than {self.limits.nesting} deep")
        kind = proto.WhichOneof("value")
        _text(proto.denotation)
        if kind in ("tensor_type", "sparse_tensor_type"):
            tensor = getattr(proto, kind)
            if tensor.elem_type and tensor.elem_type not in KNOWN_TYPES:
                raise InvalidModel(f"{quote(what)} has the unknown element type {tensor.elem_type}")
            for dim in tensor.shape.dim:
                _text(dim.dim_param, dim.denotation)
            if len(tensor.shape.dim) > self.limits.rank:
                raise InvalidModel(f"{quote(what)} has {len(tensor.shape.dim)} dims, more than {self.limits.rank}")
        elif kind in ("sequence_type", "optional_type"):
            self.type(getattr(proto, kind).elem_type, what, depth + 1)
        elif kind == "map_type":
            self.type(proto.map_type.value_type, what, depth + 1)

    def functions(self, functions: Sequence[onnx.FunctionProto]) -> None:
        calls: dict[tuple[str, str, str], set[tuple[str, str, str]]] = {}
        for function in functions:
            _known(function, f"function {quote(function.name)}")
            key = (function.domain, function.name, function.overload)
            what = f"function {quote(function.name)}"
            _text(function.domain, function.overload, function.doc_string, *function.attribute, *function.output)
            _entries(function.metadata_props)
            for info in function.value_info:
                self.info(info)
            if not function.name or key in calls:
                raise InvalidModel(f"{what} has no name or is defined twice")
            self.name(function.name, what)
            _opsets(function.opset_import)
            scope = _Scope()
            for name in function.input:
                self.define(scope, name, f"an input of {what}")
            scope.defined |= scope.every
            for attr in function.attribute_proto:
                self.attribute(attr, f"attribute {quote(attr.name)} of {what}", (), 0)
            self.nodes(function.node, scope, (), 0)
            for name in function.output:
                if name not in scope.every:
                    raise InvalidModel(f"nothing makes the output {quote(name)} of {what}")
            calls[key] = {(n.domain, n.op_type, n.overload) for n in _all_nodes(function.node)}
        _refuse_recursion(calls)


def _all_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterable[onnx.NodeProto]:
    for node in nodes:
        yield node
        for attr in node.attribute:
            if attr.type == _ATTR.GRAPH:
                yield from _all_nodes(attr.g.node)
            elif attr.type == _ATTR.GRAPHS:
                for body in attr.graphs:
                    yield from _all_nodes(body.node)


def _refuse_recursion(calls: dict[tuple[str, str, str], set[tuple[str, str, str]]]) -> None:
    """Refuse functions that call themselves, directly or through others, since inlining them would not end."""
    left = {key: called & calls.keys() for key, called in calls.items()}
    callers: dict[tuple[str, str, str], list[tuple[str, str, str]]] = {}
    for key, called in left.items():
        for call in called:
            callers.setdefault(call, []).append(key)
    leaves = [key for key, called in left.items() if not called]
    while leaves:
        leaf = leaves.pop()
        del left[leaf]
        for caller in callers.get(leaf, ()):
            left[caller].discard(leaf)
            if not left[caller]:
                leaves.append(caller)
    if left:
        raise InvalidModel(f"function {quote(next(iter(left))[1])} calls itself")


def _is_set(attr: onnx.AttributeProto, name: str) -> bool:
    found = attr.DESCRIPTOR.fields_by_name[name]
    return bool(getattr(attr, name)) if found.is_repeated else attr.HasField(name)


def kind_of(attr: onnx.AttributeProto) -> int:
    """The type of an attribute that does not say it, as in the first versions of ONNX, from the field that is set.

    Raises:
        InvalidModel: if no field is set, or several are.
    """
    fields = [name for name in _VALUE_FIELDS if _is_set(attr, name)]
    if len(fields) != 1:
        raise InvalidModel(f"attribute {quote(attr.name)} does not say its type")
    return _VALUE_FIELDS[fields[0]]


def _output_of(node: onnx.NodeProto) -> str:
    return f"an output of {_label(node)}"


def _attribute_of(node: onnx.NodeProto, attr: onnx.AttributeProto) -> str:
    return f"attribute {quote(attr.name)} of {_label(node)}"


def _initializer(tensor: onnx.TensorProto) -> str:
    return f"initializer {quote(tensor.name)}"


def _label(node: onnx.NodeProto) -> str:
    if node.name:
        return f"{node.op_type} {quote(node.name)}"
    return f"{node.op_type} -> {quote(next((name for name in node.output if name), '?'))}"
