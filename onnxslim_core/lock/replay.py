"""Applying a lock."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from onnxslim_core import _carry, _files, _tensors
from onnxslim_core._wellformed import quote
from onnxslim_core.errors import MeasureError, ModelError, RecipeError
from onnxslim_core.lock.hashes import Hashed, sha256_of
from onnxslim_core.lock.parts import Pool, indices_of
from onnxslim_core.lock.record import Lock, Record
from onnxslim_core.measure.inputs import random_samples
from onnxslim_core.measure.session import open_file
from onnxslim_core.model import DEFAULT_LIMITS, LARGE, Limits, Model, load, save, tell_nodes_apart

__all__ = ["Applied", "apply"]

_DAMAGED = "the lock is damaged"
_MULTIPLE = 16
"""The result may have so many times the bytes of the model given and of the lock together."""


@dataclass(frozen=True, slots=True)
class Applied:
    """What `apply` gives.

    Attributes:
        model: The result, bit for bit that of the run.
        record: Of the run.
        notes: What a reader should know.
    """

    model: Model
    record: Record
    notes: tuple[str, ...] = ()

    def save(self, path: str | Path, *, threads: int = 1) -> str:
        """Write the model: whole or not at all, and only if onnxruntime loads it.

        Args:
            path: The target.
            threads: For onnxruntime.

        Returns:
            What onnxruntime did with the file: it is run once on random inputs, where those run.

        Raises:
            ModelError: if it cannot be written.
            MeasureError: if onnxruntime cannot load it.
        """
        told: list[str] = []
        save(self.model, path, check=lambda fresh: told.append(self._check(fresh, threads)))
        return told[0]

    def _check(self, path: Path, threads: int) -> str:
        """The bytes are proven to be those of the run; what can still differ is onnxruntime."""
        if self.record.data.get("kind") == "none":  # it did not run, and perhaps did not load, in that run either
            load(path, keep_feedable=True)
            return "was not run, as in the run that was locked"
        session = open_file(path, threads=threads, large=self.model.nbytes >= LARGE)
        try:
            random_samples(self.model, shapes=self._sizes(), session=session)
        except (MeasureError, RecipeError) as err:
            return f"loads in onnxruntime; not run: {err}"
        return "loads and runs in onnxruntime"

    def _sizes(self) -> dict[str, tuple[int, ...]]:
        """The sizes of inputs that ran when the lock was made, as far as the record says them."""
        shapes = self.record.data.get("shapes")
        found: dict[str, tuple[int, ...]] = {}
        for name, shape in shapes.items() if isinstance(shapes, dict) else ():
            whole = isinstance(shape, list) and all(isinstance(d, int) and 0 <= d < 2**24 for d in shape)
            if whole and math.prod(shape) <= 2**28:
                found[str(name)] = tuple(shape)
        return found


def apply(
    lock: Lock | str | Path,
    model: object,
    *,
    external_data_root: str | Path | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Applied:
    """Do again what a run did, without samples, search or a clock: the same bytes come out, or an error.

    Args:
        lock: A lock or its file.
        model: The model that the run was given: a path, bytes, a proto, a graph or a `Model`; it is not changed.
        external_data_root: A folder from which external data may be read.
        limits: What is refused for its size.

    Raises:
        ModelError: if the lock or the model cannot be read, is damaged, or the lock is of another model.
    """
    lock = lock if isinstance(lock, Lock) else Lock.open(lock, limits)
    given = load(model, external_data_root=external_data_root, keep_feedable=True, limits=limits)
    tell_nodes_apart(given)
    hashed, record = Hashed(), lock.record
    name = given.source.name if given.source is not None else "the model"
    found = hashed.side(given, name, None)
    if found.content == record.made.content != record.given.content:
        raise ModelError(
            f"{quote(name)} is the result that was locked already", f"it was made from {quote(record.given.model)}"
        )
    if found.content != record.given.content:
        raise ModelError(
            f"{quote(name)} is not the model that the lock was made from, which is {quote(record.given.model)}",
            f"content {record.given.content[:16]} was locked, this is {found.content[:16]}"
            + ("" if record.given.sha256 is None else f"; sha256 of the file: {record.given.sha256}"),
        )
    notes = []
    if found.graph != record.given.graph:
        notes.append("the metadata of the model differs from that of the model locked; the result has the latter's")
    made = Model(_Rebuilt(lock, Pool(given.ir, hashed), found.nbytes).model(limits), given.source)
    if record.made.external:
        made.ir.graph.meta[_carry.EXTERNAL_KEY] = True
    else:
        made.ir.graph.meta.pop(_carry.EXTERNAL_KEY, None)
    if sha256_of(hashed.graph(made.ir, lambda *_: None)) != record.made.graph:
        raise ModelError(f"{_DAMAGED}: what it makes is not the result that it names")
    if record.made.sha256 is not None and _files.digest(made.pieces()) != record.made.sha256:
        raise ModelError(f"{_DAMAGED}: what it makes has not the sha256 that it names")
    return Applied(made, record, tuple(notes))


class _Rebuilt:
    """The result of a lock, from the weights of the model given and those in the lock."""

    def __init__(self, lock: Lock, pool: Pool, given_bytes: int) -> None:
        self._lock = lock
        self._pool = pool
        self._made: dict[tuple[str, str], tuple[ir.TensorProtocol, bytes]] = {}
        self._room = _MULTIPLE * (given_bytes + len(lock.graph) + sum(data.nbytes for data in lock.new.values()))

    def model(self, limits: Limits) -> ir.Model:
        """The graph with its weights, checked like any model from outside.

        Raises:
            ModelError: if the lock is damaged.
        """
        try:
            proto = onnx.ModelProto.FromString(self._lock.graph)
        except DecodeError as err:
            raise ModelError(f"{_DAMAGED}: its graph cannot be decoded") from err
        try:
            return _carry.from_proto(proto, limits, self._open)
        except ModelError as err:
            told = str(err)
            raise ModelError(told if told.startswith(_DAMAGED) else f"{_DAMAGED}: {told}") from err

    def _open(self, proto: onnx.TensorProto) -> ir.TensorProtocol:
        """The weight that a graph names."""
        entries = {entry.key: entry.value for entry in proto.external_data}
        digest, header = entries.get("location", ""), _header(proto)
        key = digest, entries.get("offset", "")
        if key in self._made and self._made[key][1] == header:
            return self._made[key][0]
        dtype, what = ir.DataType(proto.data_type), f"weight {quote(proto.name)} of the lock"
        self._room -= (math.prod(proto.dims) * dtype.bitwidth + 7) // 8
        if self._room < 0:
            raise ModelError(f"{_DAMAGED}: its result would be far larger than the model and the lock")
        tensor = _tensors.from_buffer(self._bytes(digest, what), dtype, list(proto.dims), proto.name, what)
        if proto.doc_string:
            tensor.doc_string = proto.doc_string
        tensor.metadata_props.update((entry.key, entry.value) for entry in proto.metadata_props)
        self._made[key] = tensor, header
        return tensor

    def _bytes(self, digest: str, what: str) -> memoryview:
        if digest in self._lock.new:
            return self._lock.new[digest]
        if digest in self._pool.tensors:
            return _tensors.buffer_of(self._pool.tensors[digest])
        if (part := self._lock.record.parts.get(digest)) is None:
            raise ModelError(f"{_DAMAGED}: {what} is neither in it nor in the model")
        source = self._pool.tensors.get(part.source)
        if source is None:
            raise ModelError(f"{_DAMAGED}: {what} is a part of what the model does not have")
        whole = _tensors.from_buffer(
            _tensors.buffer_of(source), ir.DataType(part.dtype), part.shape, None, what
        ).numpy()
        for axis, text in part.axes.items():
            if not 0 <= axis < whole.ndim:
                raise ModelError(f"{_DAMAGED}: {what} has no axis {axis}")
            whole = whole.take(indices_of(text, whole.shape[axis]), axis)
        return np.ascontiguousarray(whole).reshape(-1).view(np.uint8).data


def _header(proto: onnx.TensorProto) -> bytes:
    """All of a tensor but its name, to see whether two names may share one."""
    copy = onnx.TensorProto()
    copy.CopyFrom(proto)
    copy.ClearField("name")
    header: bytes = copy.SerializeToString(deterministic=True)
    return header
