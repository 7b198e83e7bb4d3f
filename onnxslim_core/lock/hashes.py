"""Models as graphs that name their weights by hash."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

import onnx
import onnx_ir as ir
from google.protobuf.message import Message  # type: ignore[import-untyped]

from onnxslim_core import _carry, _emit, _tensors
from onnxslim_core.lock.record import Side
from onnxslim_core.model import Model

__all__ = ["Hashed", "by_hash", "sha256_of"]

_INLINE = 64
"""Weights of fewer bytes stay in the graph: their hash would not be shorter."""


class Hashed:
    """The weights of models by the sha256 of their bytes; a tensor is read once, however often it is asked for."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[str, ir.TensorProtocol]] = {}

    def __call__(self, tensor: ir.TensorProtocol) -> str:
        """The sha256 of the little-endian bytes of a weight, in hex."""
        if id(tensor) not in self._known:  # the tensor is held, so that its id stays its own
            self._known[id(tensor)] = hashlib.sha256(_tensors.buffer_of(tensor)).hexdigest(), tensor
        return self._known[id(tensor)][0]

    def graph(self, model: ir.Model, told: Callable[[str, str, ir.TensorProtocol], None] | None = None) -> bytes:
        """A model without weights, serialized: each one is external data located at its hash.

        Weights in attributes and those of few bytes stay in the graph.

        Args:
            model: The model.
            told: Called for each weight with (name, hash, tensor). Where it is given, weights that share a tensor keep
                sharing it: the offset says which of the tensors of equal bytes it is.
        """
        numbers: dict[str, dict[int, int]] = {}

        def put(tensor: ir.TensorProtocol, name: str, proto: onnx.TensorProto) -> None:
            if not by_hash(tensor):
                _tensors.embed(tensor, name, proto)
                return
            _tensors.header(tensor, name, proto)
            proto.data_location = onnx.TensorProto.EXTERNAL
            digest = self(tensor)
            proto.external_data.add(key="location", value=digest)
            if told is not None:
                same = numbers.setdefault(digest, {})
                proto.external_data.add(key="offset", value=str(same.setdefault(id(tensor), len(same))))
                told(name, digest, tensor)

        return _written(_emit.write(model, put))

    def side(self, model: Model, name: str, sha256: str | None, graph: bytes | None = None) -> Side:
        """What a lock says of a model; where `graph` is given, it is hashed as it is instead of one written here."""
        proto = onnx.ModelProto.FromString(self.graph(model.ir))
        _forget_names(proto)
        whole = graph or _written(proto)
        _forget_metadata(proto)
        external = bool(model.ir.graph.meta.get(_carry.EXTERNAL_KEY))
        return Side(name, sha256, sha256_of(whole), sha256_of(_written(proto)), model.nbytes, external)


def by_hash(tensor: ir.TensorProtocol) -> bool:
    """Whether an initializer is named by its hash, rather than kept in the graph."""
    return tensor.nbytes >= _INLINE and tensor.dtype != ir.DataType.STRING


def sha256_of(data: bytes) -> str:
    """In hex."""
    return hashlib.sha256(data).hexdigest()


def _written(proto: Message) -> bytes:
    data: bytes = proto.SerializeToString(deterministic=True)
    return data


def _messages(proto: Message) -> Iterator[Message]:
    """A message and all within it."""
    pending = [proto]
    while pending:
        message = pending.pop()
        yield message
        for entry, value in message.ListFields():
            if entry.message_type is not None:
                pending.extend([value] if isinstance(value, Message) else value)


def _forget_names(proto: onnx.ModelProto) -> None:
    """Drop the names of tensors in attributes: nobody reads them, and copies of a graph share those tensors."""
    for message in _messages(proto):
        if isinstance(message, onnx.AttributeProto):
            for tensor in (message.t, *message.tensors) if message.HasField("t") else message.tensors:
                tensor.ClearField("name")


def _forget_metadata(proto: onnx.ModelProto) -> None:
    """Drop what no answer depends on."""
    for name in ("producer_name", "producer_version", "domain", "model_version"):
        proto.ClearField(name)
    for message in _messages(proto):
        for name in ("doc_string", "metadata_props"):
            if name in message.DESCRIPTOR.fields_by_name:
                message.ClearField(name)
