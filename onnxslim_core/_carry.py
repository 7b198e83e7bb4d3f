"""Protos to graphs: what onnx_ir drops or raises on is carried around it.

A type, attribute or initializer that onnx_ir 1.1 cannot hold is taken off the proto and put on the graph as one of
three small objects, which copies and rewrites take along like any other type, attribute or tensor:

- `CarriedType`: map, opaque and incomplete types, as the type of a value;
- `CarriedAttribute`: sparse tensors, exotic types and strings that are not UTF-8, as the value of an attribute;
- `SparseTensor`: a sparse initializer, which reads as a dense array and is written sparse unless somebody replaces it.

Training information travels in the main graph's `meta`. `_emit` writes all of it back.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import cast

import onnx
import onnx_ir as ir

from onnxslim_core._tensors import SparseTensor, inline, map_tensors_of
from onnxslim_core._wellformed import Limits, examine, kind_of, quote
from onnxslim_core.errors import InvalidModel, UnsupportedModel
from onnxslim_core.graph import bodies, is_op, label_of

__all__ = ["EXTERNAL_KEY", "TRAINING_KEY", "CarriedAttribute", "CarriedType", "from_proto", "locations"]

_ATTR = onnx.AttributeProto
TRAINING_KEY = "onnxslim_core.training_info"
"""In the main graph's `meta`: TrainingInfoProtos, serialized."""
EXTERNAL_KEY = "onnxslim_core.external_data"
"""In the main graph's `meta`: the model came with external data."""

Open = Callable[[onnx.TensorProto], ir.TensorProtocol]
"""How a tensor in external data is opened."""


@dataclass(frozen=True, slots=True)
class CarriedType:
    """The type of a value as serialized TypeProto; to onnx_ir it is a type of unknown elements."""

    data: bytes
    denotation: str | None = None

    @property
    def dtype(self) -> ir.DataType:
        """Undefined: there is no one element type."""
        return ir.DataType.UNDEFINED

    @property
    def elem_type(self) -> ir.DataType:
        """Undefined, as `dtype`."""
        return ir.DataType.UNDEFINED


@dataclass(frozen=True, slots=True)
class CarriedAttribute:
    """An attribute as serialized AttributeProto."""

    data: bytes


@dataclass(slots=True)
class _Taken:
    """What is taken off one graph (or function) of a proto and put on its onnx_ir twin."""

    types: dict[str, CarriedType] = field(default_factory=dict)
    sparse: dict[str, SparseTensor] = field(default_factory=dict)
    attributes: dict[tuple[int, str], ir.Attr] = field(default_factory=dict)
    untyped: dict[tuple[int, str], int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.types or self.sparse or self.attributes or self.untyped)


_Owner = onnx.GraphProto | onnx.FunctionProto


def from_proto(
    proto: onnx.ModelProto, limits: Limits, open_external: Open | None = None, *, owned: bool = True
) -> ir.Model:
    """A checked and sorted onnx_ir model that shares nothing with the proto.

    Args:
        proto: Anything.
        limits: What is refused for its size.
        open_external: Opens a tensor in external data; None refuses them.
        owned: The proto may be changed; where False it is copied first, if something must be taken off it.

    Raises:
        InvalidModel: if it breaks the specification or a limit.
        UnsupportedModel: if it holds something that cannot be carried.
    """
    found = examine(proto, limits)
    model = _read(proto, open_external or _refuse_external, owned=owned)
    if found.unsorted:
        _sort(model)
    return model


def _refuse_external(tensor: onnx.TensorProto) -> ir.TensorProtocol:
    raise UnsupportedModel(f"tensor {quote(tensor.name)} is in external data, but the graph is in memory")


def _read(proto: onnx.ModelProto, open_external: Open, *, owned: bool) -> ir.Model:
    """The model of a proto that `examine` let pass; see `from_proto`."""
    owners = list(_owners(proto))
    taken = [_look(owner) for owner in owners]
    if any(taken):
        if not owned:
            ours = onnx.ModelProto()
            ours.CopyFrom(proto)
            proto, owners = ours, list(_owners(ours))
        for owner, record in zip(owners, taken, strict=True):
            _take(owner, record)
    external = deque(open_external(t) for owner in owners for t in _tensor_protos(owner) if _is_external(t))
    saw_external = bool(external)
    try:
        with warnings.catch_warnings(action="ignore"):  # of unknown keys in external data
            model = ir.from_proto(proto)
    except (ir.serde.SerdeError, NotImplementedError, TypeError, ValueError, KeyError) as err:
        cause: BaseException = err
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise UnsupportedModel(f"the model cannot be read: {str(cause)[:200]}") from err
    for owner, graph, record in zip(owners, _twins(model), taken, strict=True):
        _put_back(owner, graph, record)
        _free(graph, external)
    if proto.training_info:
        model.graph.meta[TRAINING_KEY] = tuple(t.SerializeToString(deterministic=True) for t in proto.training_info)
    if saw_external:
        model.graph.meta[EXTERNAL_KEY] = True
    return model


def _is_external(tensor: onnx.TensorProto) -> bool:
    return tensor.data_location == onnx.TensorProto.EXTERNAL


def locations(proto: onnx.ModelProto) -> set[str]:
    """The files that its tensors are in, as it names them."""
    found = (t for owner in _owners(proto) for t in _tensor_protos(owner) if _is_external(t))
    return {entry.value for tensor in found for entry in tensor.external_data if entry.key == "location"}


def _owners(proto: onnx.ModelProto) -> Iterator[_Owner]:
    """The graph and its bodies, depth first, then each function and its bodies."""
    for owner in (proto.graph, *proto.functions):
        yield from _with_bodies(owner)


def _with_bodies(owner: _Owner) -> Iterator[_Owner]:
    yield owner
    for node in owner.node:
        for attr in node.attribute:
            kind = _ATTR.UNDEFINED if attr.ref_attr_name else attr.type or kind_of(attr)
            if kind == _ATTR.GRAPH:
                yield from _with_bodies(attr.g)
            elif kind == _ATTR.GRAPHS:
                for body in attr.graphs:
                    yield from _with_bodies(body)


def _twins(model: ir.Model) -> Iterator[ir.Graph | ir.Function]:
    """The same graphs in the same order in the onnx_ir model."""
    yield from _twins_below(model.graph)
    for function in model.functions.values():
        yield from _twins_below(function)


def _twins_below(owner: ir.Graph | ir.Function) -> Iterator[ir.Graph | ir.Function]:
    yield owner
    for node in owner:
        for body in bodies(node):
            yield from _twins_below(body)


def _tensor_protos(owner: _Owner) -> Iterator[onnx.TensorProto]:
    """The tensors of one graph, without those of its bodies, in the order in which `_free` meets them."""
    if isinstance(owner, onnx.GraphProto):
        yield from owner.initializer
    defaults = owner.attribute_proto if isinstance(owner, onnx.FunctionProto) else ()
    for attr in (*defaults, *(attr for node in owner.node for attr in node.attribute)):
        if attr.type == _ATTR.TENSOR and not attr.ref_attr_name:
            yield attr.t
        elif attr.type == _ATTR.TENSORS and not attr.ref_attr_name:
            yield from attr.tensors


def _look(owner: _Owner) -> _Taken:
    """Find what onnx_ir cannot hold."""
    taken = _Taken()
    infos: list[onnx.ValueInfoProto] = list(owner.value_info)
    if isinstance(owner, onnx.GraphProto):
        infos += [*owner.input, *owner.output]
        for sparse in owner.sparse_initializer:
            taken.sparse[sparse.values.name] = SparseTensor(sparse, sparse.values.name)
    for info in infos:
        if not _holds_type(info.type):
            taken.types[info.name] = CarriedType(
                info.type.SerializeToString(deterministic=True), info.type.denotation or None
            )
    for index, node in enumerate(owner.node):
        for attr in node.attribute:
            if attr.ref_attr_name:
                continue
            if attr.type == _ATTR.UNDEFINED:
                taken.untyped[index, attr.name] = kind_of(attr)
            elif not _holds_attribute(attr):
                carried = CarriedAttribute(attr.SerializeToString(deterministic=True))
                value = [carried] if attr.type in (_ATTR.STRINGS, _ATTR.TYPE_PROTOS) else carried
                taken.attributes[index, attr.name] = ir.Attr(attr.name, ir.AttributeType(attr.type), value)
    return taken


def _holds_type(proto: onnx.TypeProto) -> bool:
    kind = proto.WhichOneof("value")
    if kind in ("sequence_type", "optional_type"):
        inner = getattr(proto, kind).elem_type
        return inner.WhichOneof("value") is not None and _has_elements(inner) and _holds_type(inner)
    return kind not in ("map_type", "opaque_type")


def _has_elements(proto: onnx.TypeProto) -> bool:
    kind = proto.WhichOneof("value")
    return kind not in ("tensor_type", "sparse_tensor_type") or getattr(proto, str(kind)).HasField("elem_type")


def _holds_attribute(attr: onnx.AttributeProto) -> bool:
    if attr.type in (_ATTR.SPARSE_TENSOR, _ATTR.SPARSE_TENSORS):
        return False
    if attr.type == _ATTR.TYPE_PROTO:
        return _holds_type(attr.tp)
    if attr.type == _ATTR.TYPE_PROTOS:
        return all(map(_holds_type, attr.type_protos))
    if attr.type == _ATTR.STRING:
        return _is_text(attr.s)
    return attr.type != _ATTR.STRINGS or all(map(_is_text, attr.strings))


def _is_text(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _take(owner: _Owner, taken: _Taken) -> None:
    """Take off what was found, leaving placeholders that keep names and order."""
    infos: list[onnx.ValueInfoProto] = list(owner.value_info)
    if isinstance(owner, onnx.GraphProto):
        infos += [*owner.input, *owner.output]
        owner.ClearField("sparse_initializer")
        owner.initializer.extend(
            onnx.TensorProto(name=name, data_type=onnx.TensorProto.FLOAT, dims=[0]) for name in taken.sparse
        )
    for info in infos:
        if info.name in taken.types:
            info.ClearField("type")
    for (index, name), kind in taken.untyped.items():
        next(a for a in owner.node[index].attribute if a.name == name).type = kind
    for index, name in taken.attributes:
        attr = next(a for a in owner.node[index].attribute if a.name == name)
        attr.Clear()
        attr.name, attr.type = name, _ATTR.INT


def _put_back(owner: _Owner, graph: ir.Graph | ir.Function, taken: _Taken) -> None:
    if isinstance(owner, onnx.GraphProto):
        _mend_outputs(owner, graph)
    if not taken:
        return
    nodes = list(graph)
    for (index, name), attr in taken.attributes.items():
        node = nodes[index]
        node.attributes[name] = attr
        if name == "sparse_value" and is_op(node, "Constant"):
            proto = onnx.AttributeProto.FromString(attr.value.data)
            node.outputs[0].const_value = SparseTensor(proto.sparse_tensor, node.outputs[0].name)
    values = {v.name: v for node in nodes for v in node.outputs}
    values.update((v.name, v) for v in graph.inputs)
    if isinstance(graph, ir.Graph):
        values.update(graph.initializers)
    for value_name, tensor in taken.sparse.items():
        value = values[value_name]
        value.const_value, value.shape, value.type = tensor, ir.Shape(tensor.shape.numpy()), ir.TensorType(tensor.dtype)
    for value_name, type_ in taken.types.items():
        if value_name in values:
            values[value_name].type = cast("ir.TypeProtocol", type_)  # its dtype is read-only


def _mend_outputs(owner: onnx.GraphProto, graph: ir.Graph | ir.Function) -> None:
    """An input that is also an output keeps the input's type, where onnx_ir takes the output's even if it has none."""
    inputs = {info.name: info for info in owner.input}
    for info in owner.output:
        if not info.HasField("type") and info.name in inputs:
            value = next(v for v in graph.inputs if v.name == info.name)
            ir.serde.deserialize_value_info_proto(inputs[info.name], value)


def _free(graph: ir.Graph | ir.Function, external: deque[ir.TensorProtocol]) -> None:
    """Replace the tensors that are views of the proto, so that it can go, and those in external data."""

    def freed(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        if isinstance(tensor, ir.TensorProtoTensor):  # nearly all of them
            return inline(tensor.raw)
        if isinstance(tensor, ir.ExternalTensor):
            return external.popleft()
        if isinstance(tensor, ir.StringTensor):
            return inline(ir.serde.serialize_tensor(tensor))  # which checks the number of strings
        return tensor

    map_tensors_of(graph, freed)
    for value in graph.initializers.values() if isinstance(graph, ir.Graph) else ():
        if value.const_value is not None and not value.is_graph_input() and not value.is_graph_output():
            value.shape = ir.Shape(value.const_value.shape.numpy())


def _sort(model: ir.Model) -> None:
    """Sort nodes so that each comes after what it reads.

    Raises:
        InvalidModel: if nodes wait for each other in a circle.
    """
    try:
        model.graph.sort()
        for function in model.functions.values():
            function.sort()
    except ValueError as err:
        raise InvalidModel(f"nodes form a cycle{_in_cycle(model)}") from err


def _in_cycle(model: ir.Model) -> str:
    """Names a node of a cycle in the main graph, if that is where it is."""
    waiting = {node: {p for v in node.inputs if v is not None and (p := v.producer())} for node in model.graph}
    ready = [node for node, sources in waiting.items() if not sources & waiting.keys()]
    users: dict[ir.Node, list[ir.Node]] = {}
    for node, sources in waiting.items():
        for source in sources:
            users.setdefault(source, []).append(node)
    while ready:
        node = ready.pop()
        waiting.pop(node, None)
        for user in users.get(node, ()):
            waiting[user].discard(node)
            if not waiting[user] & waiting.keys():
                ready.append(user)
    return f" through {quote(label_of(next(iter(waiting))))}" if waiting else ""
