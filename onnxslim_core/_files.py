"""Files in and out: bounded reads, external data inside the model's folder, writes that happen whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxslim_core import _emit, _tensors
from onnxslim_core._paths import is_name, keep_mode, landing, open_regular, reason, scratch
from onnxslim_core._wellformed import Limits, quote
from onnxslim_core.errors import InvalidModel, ModelError

__all__ = [
    "ExternalData",
    "digest",
    "digest_of_file",
    "needs_external",
    "pieces",
    "read_bytes",
    "replace_files",
    "write_external",
    "write_pieces",
]

logger = logging.getLogger(__name__)

_EXTERNAL_FROM = 1024
"""Initializers of at least this many bytes go into the data file; smaller ones are read by shape inference."""
_PAGE_FROM, _PAGE = 65_536, 4096
"""Tensors this large start on a page, as the specification advises, so that a runtime can map them."""
_PROTO_LIMIT = 2**31 - 1
_RESIDENT = 2**27
"""Bytes of external data that may be read until those before them are let go."""


def _shown(path: Path) -> str:
    return quote(str(path), limit=1000)


def read_bytes(path: Path, limits: Limits) -> bytes:
    """The content of a model file.

    Raises:
        ModelError: if it cannot be read or is too large.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > limits.file_bytes:
                raise InvalidModel(
                    f"{_shown(path)} has {size} bytes, more than {limits.file_bytes}",
                    "keep the weights in external data" if size > _PROTO_LIMIT else None,
                )
            return file.read(limits.file_bytes + 1)
    except (OSError, ValueError) as err:
        why = reason(err) if isinstance(err, OSError) else str(err)
        raise ModelError(f"cannot read model {_shown(path)}: {why}") from err


class _Mapped(ir.Tensor[np.ndarray]):
    """A view of a mapped file, which says when it is read."""

    __slots__ = ("_read",)

    def __init__(self, view: ir.Tensor[np.ndarray], read: Callable[[int], None]) -> None:
        super().__init__(view.raw, dtype=view.dtype, shape=view.shape, name=view.name)
        self._read = read

    @property
    def raw(self) -> np.ndarray:
        self._read(self.nbytes)
        return super().raw

    def numpy(self) -> np.ndarray:
        self._read(self.nbytes)
        return super().numpy()

    def __array__(self, dtype: Any = None) -> np.ndarray:
        self._read(self.nbytes)
        return super().__array__(dtype)


class ExternalData:
    """Opens tensors in external data, each file mapped once, and none outside of the allowed folder.

    What was read is let go from time to time, so that a file larger than the memory can be worked on: the system reads
    it again where somebody asks again.

    Args:
        folder: The model's folder, against which locations are resolved; None for a model without a file.
        root: The folder that resolved paths must stay in; None means `folder`.
    """

    def __init__(self, folder: Path | None, root: Path | None) -> None:
        self._folder = folder
        self._root = root
        self._maps: dict[Path, mmap.mmap | bytes] = {}
        self._touched = 0

    def __call__(self, proto: onnx.TensorProto) -> ir.TensorProtocol:
        """The tensor, as a view of its mapped file.

        Raises:
            InvalidModel: if the location, offset or length is not allowed.
        """
        what = f"tensor {quote(proto.name)}"
        entries = {entry.key: entry.value for entry in proto.external_data}
        dtype = ir.DataType(proto.data_type)
        if dtype == ir.DataType.STRING:
            raise InvalidModel(f"{what} keeps strings in external data")
        tensor = self.open(
            entries.get("location", ""),
            _whole(entries.get("offset") or "0", "offset", what),
            _whole(entries["length"], "length", what) if entries.get("length") else None,
            dtype,
            list(proto.dims),
            proto.name,
        )
        if proto.doc_string:
            tensor.doc_string = proto.doc_string
        tensor.metadata_props.update((entry.key, entry.value) for entry in proto.metadata_props)
        return tensor

    def open(
        self, location: str, offset: int, length: int | None, dtype: ir.DataType, shape: list[int], name: str
    ) -> ir.Tensor | ir.PackedTensor:  # type: ignore[type-arg]
        """A tensor by its place in a file; see `__call__`."""
        what = f"tensor {quote(name)}"
        count = 1
        for dim in shape:
            count *= dim
        needed = (count * dtype.bitwidth + 7) // 8
        if length is not None and length != needed:
            raise InvalidModel(f"{what} has a length of {length} bytes where its shape asks for {needed}")
        data = self._map(self._resolve(location, what), what)
        if offset + needed > len(data):
            raise InvalidModel(
                f"{what} ends at byte {offset + needed} of {quote(location)}, which has {len(data)} bytes"
            )
        view = _tensors.from_buffer(memoryview(data)[offset : offset + needed], dtype, shape, name, what)
        return _Mapped(view, self._read) if type(view) is ir.Tensor and needed >= _PAGE_FROM else view

    def _read(self, count: int) -> None:
        """Note that so many bytes are about to be read."""
        self._touched += count
        if self._touched > _RESIDENT and hasattr(mmap, "MADV_DONTNEED"):
            for mapped in self._maps.values():
                if isinstance(mapped, mmap.mmap):
                    mapped.madvise(mmap.MADV_DONTNEED)
            self._touched = count

    def _resolve(self, location: str, what: str) -> Path:
        if not location or "\0" in location:
            raise InvalidModel(f"{what} has no usable location of its external data: {quote(location)}")
        if os.path.isabs(location) or Path(location).drive:
            raise InvalidModel(f"{what} has an absolute path to its external data: {quote(location)}")
        if self._folder is None and self._root is None:
            raise ModelError(
                f"{what} is in external data {quote(location)}, but the model has no folder",
                "load it from a file, or pass external_data_root",
            )
        bases = [base for base in (self._folder, self._root) if base is not None]
        if not bases[-1].is_dir():
            raise ModelError(f"{_shown(bases[-1])} is no folder that external data could be in")
        try:
            allowed = [base.resolve(strict=True) for base in bases]
            for base in bases:
                path = (base / location).resolve()
                if path.is_file() or base is bases[-1]:
                    break
        except (OSError, RuntimeError) as err:
            raise InvalidModel(f"the external data {quote(location)} of {what} cannot be found") from err
        if not any(path.is_relative_to(folder) for folder in allowed):
            raise InvalidModel(
                f"the external data {quote(location)} of {what} leaves the model's folder",
                "if you trust the model, name the folder it leads to: --external-data-root DIR",
            )
        return path

    def _map(self, path: Path, what: str) -> mmap.mmap | bytes:
        if path not in self._maps:
            try:
                with open_regular(path) as file:
                    size = os.fstat(file.fileno()).st_size
                    self._maps[path] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
            except OSError as err:
                raise ModelError(f"cannot read the external data {_shown(path)} of {what}: {reason(err)}") from err
        return self._maps[path]


def _whole(text: str, field: str, what: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise InvalidModel(f"{what} has a wrong {field} in external data: {quote(text)}")
    return int(text)


# --- writing ---------------------------------------------------------------------------------------------------------


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _tag(field: int) -> bytes:
    return _varint(field << 3 | 2)  # wire type 2: length-delimited


_GRAPH = onnx.ModelProto.DESCRIPTOR.fields_by_name["graph"].number
_INITIALIZER = onnx.GraphProto.DESCRIPTOR.fields_by_name["initializer"].number
_RAW_DATA = onnx.TensorProto.DESCRIPTOR.fields_by_name["raw_data"].number


def _pieces(model: ir.Model, put: _emit.Put | None) -> list[bytes | memoryview]:
    """The bytes of a model file in order, weights as views: a message is the concatenation of its fields.

    Args:
        model: The model.
        put: How an initializer is written; None puts its data into the file as it is in memory.
    """
    dense = [v for v in model.graph.initializers.values() if not isinstance(v.const_value, _tensors.SparseTensor)]
    proto = _emit.write(model, put or _tensors.embed, skip={id(v.const_value) for v in dense})
    graph = proto.graph.SerializeToString(deterministic=True)
    proto.ClearField("graph")
    fields: list[bytes | memoryview] = []
    for value in dense:
        tensor, head, data = value.const_value, onnx.TensorProto(), memoryview(b"")
        assert tensor is not None
        if put is not None or tensor.dtype == ir.DataType.STRING:
            (put or _tensors.embed)(tensor, str(value.name), head)
            start = head.SerializeToString(deterministic=True)
        else:
            _tensors.header(tensor, str(value.name), head)
            data = _tensors.buffer_of(tensor)
            start = head.SerializeToString(deterministic=True) + _tag(_RAW_DATA) + _varint(len(data))
        fields += [_tag(_INITIALIZER) + _varint(len(start) + len(data)) + start, data]
    rest = proto.SerializeToString(deterministic=True)
    return [rest, _tag(_GRAPH) + _varint(len(graph) + sum(map(len, fields))), graph, *fields]


def _within_limit(found: list[bytes | memoryview]) -> list[bytes | memoryview]:
    if sum(map(len, found)) > _PROTO_LIMIT:
        raise ModelError("the model needs more than 2 GB in one file", "save it with external data")
    return found


def pieces(model: ir.Model) -> list[bytes | memoryview]:
    """A model as one file, in pieces; no weight is copied, and 2 GB are no limit."""
    return _pieces(model, None)


def bare(parts: Sequence[bytes | memoryview]) -> bytes:
    """Of what `pieces` gave, all but the weights of the main graph: a model file as well."""
    rest, _, graph = parts[:3]
    return b"".join((rest, _tag(_GRAPH), _varint(len(graph)), graph))


def digest(parts: Iterable[bytes | memoryview]) -> str:
    """Of the bytes in order, however they are cut."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part)
    return found.hexdigest()


def digest_of_file(path: Path) -> str:
    """As `digest`, of the bytes of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def needs_external(model: ir.Model) -> bool:
    """True where the weights do not fit into one file, with some room for the rest."""
    return sum(t.nbytes for t in _tensors.tensors_of(model)) > _PROTO_LIMIT - 2**26


def _goes_outside(tensor: ir.TensorProtocol) -> bool:
    return (
        tensor.nbytes >= _EXTERNAL_FROM
        and tensor.dtype != ir.DataType.STRING
        and not isinstance(tensor, _tensors.SparseTensor)
    )


def write_pieces(found: list[bytes | memoryview], path: Path) -> None:
    """Write what `pieces` gave.

    Raises:
        ModelError: if that is more than 2 GB.
    """
    with path.open("xb") as file:
        file.writelines(_within_limit(found))


def write_external(model: ir.Model, path: Path) -> None:
    """Write a model file, and `NAME.data` beside it with the weights, if any is large; nothing of this is atomic."""
    location = path.name + ".data"
    beside = path.with_name(location)
    with beside.open("xb") as data:
        places: dict[int, tuple[int, int, ir.TensorProtocol]] = {}

        def put(tensor: ir.TensorProtocol, name: str, proto: onnx.TensorProto) -> None:
            if not _goes_outside(tensor):
                _tensors.embed(tensor, name, proto)
                return
            _tensors.header(tensor, name, proto)
            if id(tensor) not in places:
                buffer = _tensors.buffer_of(tensor)
                step = _PAGE if len(buffer) >= _PAGE_FROM else 64
                data.write(b"\0" * (-data.tell() % step))
                places[id(tensor)] = data.tell(), len(buffer), tensor
                data.write(buffer)
            offset, length, _ = places[id(tensor)]
            proto.data_location = onnx.TensorProto.EXTERNAL
            for key, value in (("location", location), ("offset", offset), ("length", length)):
                proto.external_data.add(key=key, value=str(value))

        found = _pieces(model, put)
    if not places:  # a file that no model names is in the way of the next run
        beside.unlink()
    write_pieces(found, path)


def replace_files(path: Path, write: Callable[[Path], None], check: Callable[[Path], None] | None) -> None:
    """Write into a fresh folder beside the target, check it there, then move it over the target.

    Args:
        path: The target; of a link what it leads to.
        write: Writes the model to the path it is given, and perhaps `NAME.data` beside it.
        check: Called with the path of what was written; what it raises stops the replacement.

    Raises:
        ModelError: if the target cannot be written.
    """
    named, path = path, landing(path)
    data_name = f"{path.name}.data"
    with _target_errors(path), scratch(path.parent) as folder:
        fresh, old = folder / path.name, folder / "old"
        write(fresh)
        data, target = folder / data_name, path.with_name(data_name)
        if data.exists() and not named.parent.samefile(path.parent):
            raise ModelError(
                f"{_shown(named)} is a link into another folder, where the weights in {quote(data_name)} "
                "would not be found",
                f"write to {_shown(path)}",
            )
        if data.exists() and target.exists() and not _names(path, data_name):
            raise ModelError(
                f"cannot write {_shown(target)}: it is there and not of {_shown(path)}", "use another name"
            )
        for new, existing in ((fresh, path), (data, target)):
            if new.exists():
                keep_mode(new, existing)
        if check is not None:
            check(fresh)
        if not data.exists():
            fresh.replace(path)
            return
        kept = target.exists()
        try:
            if kept:
                target.replace(old)
            data.replace(target)
            fresh.replace(path)
        except BaseException:
            if fresh.exists():  # the model was not replaced, so its old data must come back
                if old.exists():
                    old.replace(target)
                elif not kept:
                    target.unlink(missing_ok=True)
            raise


def _names(path: Path, data_name: str) -> bool:
    """Whether a model file names a data file; else that may hold the weights of another model, perhaps the source."""
    return path.is_file() and data_name.encode() in path.read_bytes()


@contextlib.contextmanager
def _target_errors(path: Path) -> Iterator[None]:
    if not is_name(path):
        raise ModelError(f"{_shown(path)} is no name for a file")
    try:
        if path.exists() and not path.is_file():
            raise ModelError(f"cannot write {_shown(path)}: not a regular file")
        yield
    except OSError as err:
        hint = "the folder does not exist" if err.errno == errno.ENOENT and not path.parent.exists() else None
        raise ModelError(f"cannot write {_shown(path)}: {reason(err)}", hint) from err
