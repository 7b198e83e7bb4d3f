"""Protos in, protos out: what onnx_ir drops or raises on is carried around it.

On the way in, a type, attribute or initializer that onnx_ir 1.1 cannot hold is taken off the proto and put on the
graph as one of three small objects, where copies and rewrites take it along like any other type, attribute or tensor:

- `CarriedType`: map, opaque and incomplete types, as the type of a value;
- `CarriedAttribute`: sparse tensors, exotic types and strings that are not UTF-8, as the value of an attribute;
- `SparseTensor`: a sparse initializer, which reads as a dense array and is written sparse unless somebody replaces it.

Training information travels in the graph's `meta`. On the way out the proto is written here, field by field, with
onnx_ir's serializers for the parts, since its own writer raises on the three, renames shared tensors, adds value_info
for every initializer and sorts metadata.
"""

from __future__ import annotations

import logging
import math
import sys
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import onnx
import onnx_ir as ir

from onnxslim_core._wellformed import Limits, examine, kind_of, quote
from onnxslim_core.errors import InvalidModel, UnsupportedModel
from onnxslim_core.graph import bodies, is_op

logger = logging.getLogger(__name__)

__all__ = [
    "EXTERNAL_KEY",
    "CarriedAttribute",
    "CarriedType",
    "Put",
    "SparseTensor",
    "buffer_of",
    "embed",
    "from_buffer",
    "from_proto",
    "graphs_of",
    "header",
    "inline",
    "map_tensors",
    "read",
    "tensors_of",
    "wrapped",
    "write",
]

_ATTR = onnx.AttributeProto
_TRAINING_KEY = "onnxslim_core.training_info"
EXTERNAL_KEY = "onnxslim_core.external_data"
"""In the main graph's `meta`: the model came with external data."""
_QUANTIZATION_KEY = "quant_parameter_tensor_names"  # where onnx_ir keeps it, in a value's meta
_FUNCTION_TYPES_SINCE = 10  # the IR version from which a function holds its own value_info
_DEVICES_SINCE = 11

Put = Callable[[ir.TensorProtocol, str, onnx.TensorProto], None]
"""How a tensor is written: (tensor, name, empty proto to fill)."""
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


class SparseTensor(ir.LazyTensor):
    """A sparse tensor that reads as a dense one; `data` is its SparseTensorProto, serialized."""

    __slots__ = ("data",)

    def __init__(self, proto: onnx.SparseTensorProto, name: str | None) -> None:
        _check_sparse(proto)
        data = proto.SerializeToString(deterministic=True)
        super().__init__(
            lambda: _dense(data),
            dtype=ir.DataType(proto.values.data_type),
            shape=ir.Shape(proto.dims, frozen=True),
            name=name,
        )
        self.data = data


def _check_sparse(proto: onnx.SparseTensorProto) -> None:
    """Refuse a sparse tensor that could not be read later on: indices are flat, or one row of them per value."""
    what = f"sparse tensor {quote(proto.values.name)}"
    values, indices, dims = inline(proto.values).numpy(), inline(proto.indices).numpy(), tuple(proto.dims)
    bound = np.array([math.prod(dims)] if indices.ndim == 1 else dims, dtype=np.int64)
    rows = indices.reshape(len(indices), -1) if indices.ndim in (1, 2) and indices.size else indices
    if values.ndim != 1 or indices.ndim not in (1, 2) or len(indices) != len(values):
        raise InvalidModel(f"{what} has values of shape {values.shape} and indices of shape {indices.shape}")
    if indices.size and (rows.shape[1] != len(bound) or (rows < 0).any() or (rows >= bound).any()):
        raise InvalidModel(f"{what} has indices outside of its shape {list(dims)}")


def _dense(data: bytes) -> ir.Tensor[np.ndarray]:
    proto = onnx.SparseTensorProto.FromString(data)
    values, indices = inline(proto.values).numpy(), inline(proto.indices).numpy()
    dense = np.zeros(tuple(proto.dims), dtype=values.dtype)
    if indices.ndim == 2:
        dense[tuple(indices.T)] = values
    else:
        dense.reshape(-1)[indices] = values
    return ir.Tensor(dense, dtype=ir.DataType(proto.values.data_type))


# --- tensors ---------------------------------------------------------------------------------------------------------


def from_buffer(
    buffer: Any, dtype: ir.DataType, shape: Sequence[int], name: str | None, what: str
) -> ir.Tensor[np.ndarray] | ir.PackedTensor[np.ndarray]:
    """A tensor that is a view of little-endian bytes, without a copy.

    Args:
        buffer: Exactly the bytes of the tensor.
        dtype: Element type; those below 8 bits stay packed.
        shape: Dims.
        name: Of the tensor.
        what: How an error calls it.

    Raises:
        InvalidModel: if the number of bytes does not fit the shape.
    """
    raw = np.frombuffer(buffer, dtype=np.uint8)
    count = math.prod(shape)
    expected = (count * dtype.bitwidth + 7) // 8
    if raw.nbytes != expected:
        raise InvalidModel(f"{what} has {raw.nbytes} bytes of data where its shape asks for {expected}")
    if dtype.bitwidth < 8:
        return ir.PackedTensor(raw, dtype, shape=shape, name=name)
    array = raw.view(np.dtype(dtype.numpy()).newbyteorder("<")) if count else np.zeros(0, dtype.numpy())
    return ir.Tensor(array.reshape(shape), dtype=dtype, name=name)


_FIELD_OF = {
    **dict.fromkeys(("FLOAT", "COMPLEX64"), "float_data"),
    **dict.fromkeys(("DOUBLE", "COMPLEX128"), "double_data"),
    **dict.fromkeys(("UINT32", "UINT64"), "uint64_data"),
    "INT64": "int64_data",
    "STRING": "string_data",
}
"""Which field holds the elements where raw_data does not; int32_data holds all others."""


def inline(proto: onnx.TensorProto) -> ir.TensorProtocol:
    """A tensor whose data is in the proto, freed from the proto.

    Raises:
        InvalidModel: if the data does not fit the shape and type.
    """
    dtype, shape, name = ir.DataType(proto.data_type), list(proto.dims), proto.name or None
    what = f"tensor {quote(proto.name)}"
    filled = [
        f
        for f in ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")
        if len(getattr(proto, f))
    ]
    raw = proto.HasField("raw_data")
    count = math.prod(shape)
    wanted = _FIELD_OF.get(dtype.name, "int32_data")
    if filled and (raw or filled != [wanted]):
        raise InvalidModel(f"{what} of type {dtype.name.lower()} holds its data in {' and '.join(filled)}")
    tensor: Any
    if dtype == ir.DataType.STRING:
        if raw or len(proto.string_data) != count:
            raise InvalidModel(f"{what} has {len(proto.string_data)} strings where its shape asks for {count}")
        tensor = ir.StringTensor(list(proto.string_data), shape=ir.Shape(shape), name=name)
    elif raw:
        tensor = from_buffer(proto.raw_data, dtype, shape, name, what)
    else:
        held = len(getattr(proto, wanted))
        per = {"COMPLEX64": 2, "COMPLEX128": 2}.get(dtype.name, 1)
        needed = (count * dtype.bitwidth + 7) // 8 if dtype.bitwidth in (2, 4) else count * per
        if held != needed:
            raise InvalidModel(f"{what} has {held} elements of data where its shape asks for {needed}")
        tensor = from_buffer(ir.TensorProtoTensor(proto).tobytes(), dtype, shape, name, what)
    if proto.doc_string:
        tensor.doc_string = proto.doc_string
    tensor.metadata_props.update((entry.key, entry.value) for entry in proto.metadata_props)
    return tensor  # type: ignore[no-any-return]


def buffer_of(tensor: ir.TensorProtocol) -> memoryview:
    """The little-endian bytes of a tensor, without a copy where it is held as such."""
    raw = tensor.raw if isinstance(tensor, (ir.Tensor, ir.PackedTensor)) else None
    if not isinstance(raw, np.ndarray) or sys.byteorder != "little":
        return memoryview(tensor.tobytes())
    as_stored = isinstance(tensor, ir.PackedTensor) or (tensor.dtype.bitwidth >= 8 and raw.nbytes == tensor.nbytes)
    if as_stored and raw.dtype.isnative and raw.flags.c_contiguous:
        return raw.reshape(-1).view(np.uint8).data
    return memoryview(tensor.tobytes())


def header(tensor: ir.TensorProtocol, name: str, proto: onnx.TensorProto) -> None:
    """Write all of a tensor but its data."""
    if name:
        proto.name = name
    if tensor.doc_string:
        proto.doc_string = tensor.doc_string
    proto.data_type = tensor.dtype.value
    proto.dims.extend(int(d) for d in tensor.shape.numpy())
    _strings(proto.metadata_props, tensor.metadata_props)


def embed(tensor: ir.TensorProtocol, name: str, proto: onnx.TensorProto) -> None:
    """Write a tensor with its data."""
    header(tensor, name, proto)
    if tensor.dtype == ir.DataType.STRING:
        proto.string_data.extend(_string_data(tensor))
    else:
        proto.raw_data = bytes(buffer_of(tensor))


def _string_data(tensor: ir.TensorProtocol) -> list[bytes]:
    if isinstance(tensor, ir.StringTensor):
        return list(tensor.string_data())
    return [s if isinstance(s, bytes) else str(s).encode() for s in tensor.numpy().reshape(-1).tolist()]


def wrapped(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """The same weights in a tensor object of our own, whose name may be changed."""
    shape, name = [int(d) for d in tensor.shape.numpy()], tensor.name
    ours: Any
    if isinstance(tensor, SparseTensor):
        ours = SparseTensor(onnx.SparseTensorProto.FromString(tensor.data), name)
    elif isinstance(tensor, ir.TensorProtoTensor):
        return inline(tensor.raw)
    elif isinstance(tensor, ir.StringTensor):
        ours = ir.StringTensor(list(tensor.string_data()), shape=ir.Shape(shape), name=name)
    elif isinstance(tensor, ir.PackedTensor):
        ours = ir.PackedTensor(tensor.raw, tensor.dtype, shape=shape, name=name)
    elif type(tensor) is ir.Tensor:
        ours = ir.Tensor(tensor.raw, dtype=tensor.dtype, shape=ir.Shape(shape), name=name)
    else:
        ours = ir.LazyTensor(lambda: tensor, dtype=tensor.dtype, shape=ir.Shape(shape), name=name)
    if tensor.doc_string:
        ours.doc_string = tensor.doc_string
    ours.metadata_props.update(tensor.metadata_props)
    return ours  # type: ignore[no-any-return]


def graphs_of(model: ir.Model) -> Iterator[ir.Graph | ir.Function]:
    """The main graph, the functions, and all bodies in them."""
    pending: list[Any] = [model.graph, *model.functions.values()]
    while pending:
        graph = pending.pop()
        yield graph
        for node in graph:
            for attr in node.attributes.values():
                if attr.is_ref():
                    continue
                if attr.type == ir.AttributeType.GRAPH:
                    pending.append(attr.value)
                elif attr.type == ir.AttributeType.GRAPHS:
                    pending.extend(attr.value)


def tensors_of(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """Every tensor of a model: initializers of all graphs and tensors in attributes; shared ones once per place."""
    for graph in graphs_of(model):
        if isinstance(graph, ir.Graph):
            yield from (v.const_value for v in graph.initializers.values() if v.const_value is not None)
        for node in graph:
            for attr in node.attributes.values():
                if attr.is_ref():
                    continue
                if attr.type == ir.AttributeType.TENSOR:
                    yield attr.value
                elif attr.type == ir.AttributeType.TENSORS:
                    yield from attr.value


# --- proto to graph --------------------------------------------------------------------------------------------------


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


def read(proto: onnx.ModelProto, open_external: Open, *, owned: bool) -> ir.Model:
    """An onnx_ir model that shares nothing with the proto.

    Args:
        proto: A model that `examine` let pass.
        open_external: Opens a tensor in external data.
        owned: The proto may be changed; where False it is copied first, if something must be taken off it.

    Raises:
        InvalidModel: if tensor data does not fit its shape.
        UnsupportedModel: if onnx_ir cannot hold something that is not carried either.
    """
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
        model.graph.meta[_TRAINING_KEY] = tuple(t.SerializeToString(deterministic=True) for t in proto.training_info)
    if saw_external:
        model.graph.meta[EXTERNAL_KEY] = True
    return model


def _is_external(tensor: onnx.TensorProto) -> bool:
    return tensor.data_location == onnx.TensorProto.EXTERNAL


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
        if isinstance(tensor, ir.ExternalTensor):
            return external.popleft()
        if isinstance(tensor, ir.StringTensor):
            return inline(ir.serde.serialize_tensor(tensor))  # which checks the number of strings
        return inline(tensor.raw) if isinstance(tensor, ir.TensorProtoTensor) else tensor

    _map_tensors_of(graph, freed)
    for value in graph.initializers.values() if isinstance(graph, ir.Graph) else ():
        if value.const_value is not None and not value.is_graph_input() and not value.is_graph_output():
            value.shape = ir.Shape(value.const_value.shape.numpy())


def map_tensors(model: ir.Model, change: Callable[[ir.TensorProtocol], ir.TensorProtocol]) -> None:
    """Replace every tensor of a model: initializers of all graphs and tensors in attributes."""
    for graph in graphs_of(model):
        _map_tensors_of(graph, change)


def _map_tensors_of(graph: ir.Graph | ir.Function, change: Callable[[ir.TensorProtocol], ir.TensorProtocol]) -> None:
    if isinstance(graph, ir.Graph):
        for value in graph.initializers.values():
            if value.const_value is not None:
                value.const_value = change(value.const_value)
    owners: list[Any] = [node.attributes for node in graph if node.attributes]
    if isinstance(graph, ir.Function):
        owners.insert(0, graph.attributes)
    for attributes in owners:
        for name, attr in attributes.items():
            if attr.is_ref() or attr.value is None:
                continue
            if attr.type == ir.AttributeType.TENSOR:
                attributes[name] = ir.AttrTensor(name, change(attr.value), doc_string=attr.doc_string)
            elif attr.type == ir.AttributeType.TENSORS:
                tensors = [change(t) for t in attr.value]
                attributes[name] = ir.AttrTensors(name, tensors, doc_string=attr.doc_string)


def from_proto(proto: onnx.ModelProto) -> ir.Model:
    """An onnx_ir model of a proto that holds its weights, as another library exports it; see `read`."""

    def refuse(tensor: onnx.TensorProto) -> ir.TensorProtocol:
        raise UnsupportedModel(f"tensor {quote(tensor.name)} is in external data, but the graph is in memory")

    examine(proto, Limits())
    return read(proto, refuse, owned=True)


# --- graph to proto --------------------------------------------------------------------------------------------------


def write(model: ir.Model, put: Put = embed, *, skip: Collection[int] = ()) -> onnx.ModelProto:
    """The proto of a model; the model is not changed.

    Args:
        model: The model.
        put: How an initializer is written; tensors in attributes are always embedded.
        skip: `id` of the tensors whose initializers in the main graph are left out, for a caller that writes them.

    Raises:
        InvalidModel: if an initializer has no value.
    """
    proto = onnx.ModelProto()
    version = model.ir_version
    inputs = {id(v) for v in model.graph.inputs}
    if version < 4 and any(id(v) not in inputs for v in model.graph.initializers.values()):
        version = 4  # before 4, every initializer is an input too
    proto.ir_version = version
    for name in ("producer_name", "producer_version", "domain", "model_version", "doc_string"):
        if (value := getattr(model, name)) is not None:
            setattr(proto, name, value)
    _opsets(proto.opset_import, model.opset_imports)
    _strings(proto.metadata_props, model.metadata_props)
    for configuration in model.device_configurations:
        proto.configuration.append(ir.serde.serialize_model_configuration(configuration))
    writer = _Writer(put, version)
    writer.graph(proto.graph, model.graph, skip)
    for function in model.functions.values():
        infos = writer.function(proto.functions.add(), function)
        if version < _FUNCTION_TYPES_SINCE:
            for info in infos:
                info.name = f"{function.domain}::{function.name}/{info.name}"
            proto.graph.value_info.extend(infos)
        else:
            proto.functions[-1].value_info.extend(infos)
    _training(model, proto)
    return proto


def _training(model: ir.Model, proto: onnx.ModelProto) -> None:
    infos = [onnx.TrainingInfoProto.FromString(data) for data in model.graph.meta.get(_TRAINING_KEY, ())]
    bound = {entry.key for t in infos for entry in (*t.initialization_binding, *t.update_binding)}
    if bound <= model.graph.initializers.keys():
        proto.training_info.extend(infos)
    else:
        logger.warning("training information is left out, since initializers that it updates are gone")


def _opsets(protos: Any, imports: Mapping[str, int]) -> None:
    for domain, version in imports.items():
        protos.add(domain=domain, version=version)


def _strings(protos: Any, entries: Mapping[str, str] | None) -> None:
    for key, value in (entries or {}).items():
        protos.add(key=key, value=value)


class _Writer:
    """Writes the graphs of one model."""

    def __init__(self, put: Put, ir_version: int) -> None:
        self.put = put
        self.ir_version = ir_version

    def graph(self, proto: onnx.GraphProto, graph: ir.Graph, skip: Collection[int] = ()) -> None:
        if graph.name is not None:
            proto.name = graph.name
        if graph.doc_string is not None:
            proto.doc_string = graph.doc_string
        inputs = {id(v) for v in graph.inputs}
        for value in graph.inputs:
            self.value(proto.input.add(), value)
            self.annotation(proto, value)
        for value in graph.initializers.values():
            if value.const_value is None:
                raise InvalidModel(f"initializer {quote(str(value.name))} has no value")
            if id(value.const_value) not in skip:
                self.initializer(proto, value.const_value, str(value.name))
            if id(value) not in inputs:
                self.annotation(proto, value)
                if value.metadata_props or value.doc_string:
                    self.value(proto.value_info.add(), value)
        for node in graph:
            self.node(proto.node.add(), node)
            for value in node.outputs:
                self.annotation(proto, value)
                if not value.is_graph_output() and _says_something(value):
                    self.value(proto.value_info.add(), value)
        for value in graph.outputs:
            self.value(proto.output.add(), value)
        _strings(proto.metadata_props, graph.metadata_props)

    def initializer(self, proto: onnx.GraphProto, tensor: ir.TensorProtocol, name: str) -> None:
        if isinstance(tensor, SparseTensor):
            sparse = proto.sparse_initializer.add()
            sparse.ParseFromString(tensor.data)
            sparse.values.name = name
        else:
            self.put(tensor, name, proto.initializer.add())

    def annotation(self, proto: onnx.GraphProto, value: ir.Value) -> None:
        if names := value.meta.get(_QUANTIZATION_KEY):
            entry = proto.quantization_annotation.add(tensor_name=str(value.name))
            _strings(entry.quant_parameter_tensor_names, names)

    def value(self, proto: onnx.ValueInfoProto, value: ir.Value) -> None:
        proto.name = value.name or ""
        if isinstance(value.type, CarriedType):
            proto.type.ParseFromString(value.type.data)
        elif value.type is not None:
            ir.serde.serialize_type_into(proto.type, value.type)
        elif value.shape is not None:
            proto.type.tensor_type.SetInParent()
        if value.shape is not None and not isinstance(value.type, CarriedType):
            ir.serde.serialize_shape_into(proto.type, value.shape)
        if value.doc_string is not None:
            proto.doc_string = value.doc_string
        _strings(proto.metadata_props, value.metadata_props)

    def node(self, proto: onnx.NodeProto, node: ir.Node) -> None:
        proto.op_type = node.op_type
        if node.domain:
            proto.domain = node.domain
        if node.name:
            proto.name = node.name
        if node.overload:
            proto.overload = node.overload
        if node.doc_string is not None:
            proto.doc_string = node.doc_string
        _strings(proto.metadata_props, node.metadata_props)
        proto.input.extend("" if v is None else _name(v) for v in node.inputs)
        proto.output.extend(v.name or "" for v in node.outputs)
        for attr in node.attributes.values():
            self.attribute(proto.attribute.add(), attr)
        if self.ir_version >= _DEVICES_SINCE:
            for configuration in node.device_configurations:
                proto.device_configurations.append(ir.serde.serialize_node_device_configuration(configuration))

    def attribute(self, proto: onnx.AttributeProto, attr: ir.Attr) -> None:
        if attr.is_ref():
            ir.serde.serialize_reference_attribute_into(proto, attr)
            return
        value: Any = attr.value
        if isinstance(value, tuple) and len(value) == 1 and isinstance(value[0], CarriedAttribute):
            value = value[0]
        if isinstance(value, CarriedAttribute):
            proto.ParseFromString(value.data)
            return
        if attr.type not in _OWN_KINDS:
            ir.serde.serialize_attribute_into(proto, attr)
            return
        proto.name = attr.name
        proto.type = attr.type.value  # type: ignore[assignment]
        if attr.doc_string:
            proto.doc_string = attr.doc_string
        if attr.type == ir.AttributeType.GRAPH:
            self.graph(proto.g, value)
        elif attr.type == ir.AttributeType.GRAPHS:
            for body in value:
                self.graph(proto.graphs.add(), body)
        elif attr.type == ir.AttributeType.TENSOR:
            embed(value, value.name or "", proto.t)
        else:
            for tensor in value:
                embed(tensor, tensor.name or "", proto.tensors.add())

    def function(self, proto: onnx.FunctionProto, function: ir.Function) -> list[onnx.ValueInfoProto]:
        """Write a function but for its value_info, which is returned."""
        proto.name = function.name
        proto.domain = function.domain
        if function.overload:
            proto.overload = function.overload
        if function.doc_string is not None:
            proto.doc_string = function.doc_string
        _opsets(proto.opset_import, function.opset_imports)
        _strings(proto.metadata_props, function.metadata_props)
        proto.input.extend(str(v.name) for v in function.inputs)
        proto.output.extend(str(v.name) for v in function.outputs)
        for attr in function.attributes.values():
            if attr.value is None:
                proto.attribute.append(attr.name)
            else:
                self.attribute(proto.attribute_proto.add(), attr)
        for node in function:
            self.node(proto.node.add(), node)
        values = [*function.inputs, *(v for node in function for v in node.outputs)]
        infos = [onnx.ValueInfoProto() for _ in filter(_says_something, values)]
        for info, value in zip(infos, filter(_says_something, values), strict=True):
            self.value(info, value)
        return infos


_OWN_KINDS = (
    ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS, ir.AttributeType.TENSOR, ir.AttributeType.TENSORS,
)  # fmt: skip


def _name(value: ir.Value) -> str:
    if not value.name:
        raise InvalidModel("a value that is read has no name")
    return value.name


def _says_something(value: ir.Value) -> bool:
    known = value.type is not None or value.shape is not None or value.metadata_props or value.doc_string
    return bool(value.name and known)
