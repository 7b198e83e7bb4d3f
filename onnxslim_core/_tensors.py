"""Tensors between protos, buffers and onnx_ir: views where bytes can be used as they lie, never tied to a proto."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxslim_core._wellformed import quote
from onnxslim_core.errors import InvalidModel
from onnxslim_core.graph import bodies, noted_for_file

__all__ = [
    "SparseTensor",
    "buffer_of",
    "embed",
    "entries_into",
    "from_buffer",
    "graphs_of",
    "header",
    "inline",
    "map_tensors",
    "map_tensors_of",
    "tensors_of",
    "wrapped",
]


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
    array = raw.view(_stored_as(dtype)) if count else np.zeros(0, dtype.numpy())
    return ir.Tensor(array.reshape(shape), dtype=dtype, name=name)


@cache
def _stored_as(dtype: ir.DataType) -> np.dtype[Any]:
    return np.dtype(dtype.numpy()).newbyteorder("<")


_FIELD_OF = {
    **dict.fromkeys(("FLOAT", "COMPLEX64"), "float_data"),
    **dict.fromkeys(("DOUBLE", "COMPLEX128"), "double_data"),
    **dict.fromkeys(("UINT32", "UINT64"), "uint64_data"),
    "INT64": "int64_data",
    "STRING": "string_data",
}
"""Which field holds the elements where raw_data does not; int32_data holds all others."""


_DATA_FIELDS = ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")


def inline(proto: onnx.TensorProto) -> ir.TensorProtocol:
    """A tensor whose data is in the proto, freed from the proto.

    Raises:
        InvalidModel: if the data does not fit the shape and type.
    """
    dtype, shape, name = ir.DataType(proto.data_type), list(proto.dims), proto.name or None
    what = f"tensor {quote(proto.name)}"
    filled = [f for f in _DATA_FIELDS if getattr(proto, f)]
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
    if proto.metadata_props:
        tensor.metadata_props.update((entry.key, entry.value) for entry in proto.metadata_props)
    return tensor  # type: ignore[no-any-return]


def buffer_of(tensor: ir.TensorProtocol) -> memoryview:
    """The little-endian bytes of a tensor, without a copy where it is held as such."""
    raw = tensor.raw if isinstance(tensor, (ir.Tensor, ir.PackedTensor)) else None
    if not isinstance(raw, np.ndarray) or sys.byteorder != "little":
        return memoryview(tensor.tobytes())
    as_stored = isinstance(tensor, ir.PackedTensor) or 8 * raw.itemsize == tensor.dtype.bitwidth
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
    proto.dims.extend(tensor.shape.numpy())
    entries_into(proto.metadata_props, noted_for_file(tensor))


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
            if node.attributes.data:
                pending.extend(bodies(node))


def tensors_of(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """Every tensor of a model: initializers of all graphs and tensors in attributes; shared ones once per place."""
    for graph in graphs_of(model):
        if isinstance(graph, ir.Graph):
            yield from (v.const_value for v in graph.initializers.values() if v.const_value is not None)
        for node in graph:
            for attr in node.attributes.data.values():
                kind = attr.type
                if kind is ir.AttributeType.TENSOR and not attr.is_ref():
                    yield attr.value
                elif kind is ir.AttributeType.TENSORS and not attr.is_ref():
                    yield from attr.value


def entries_into(protos: Any, entries: Mapping[str, str] | None) -> None:
    for key, value in (entries or {}).items():
        protos.add(key=key, value=value)


def map_tensors(model: ir.Model, change: Callable[[ir.TensorProtocol], ir.TensorProtocol]) -> None:
    """Replace every tensor of a model: initializers of all graphs and tensors in attributes."""
    for graph in graphs_of(model):
        map_tensors_of(graph, change)


def map_tensors_of(graph: ir.Graph | ir.Function, change: Callable[[ir.TensorProtocol], ir.TensorProtocol]) -> None:
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
