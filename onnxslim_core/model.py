"""Models in and out: files, bytes, protos and graphs of other libraries <-> `Model`.

The only module that opens a model file. A file is untrusted: it is checked against the specification and against
`Limits` before anything is built from it, its external data is read only from inside its folder, and every failure is a
`ModelError` of one line. What a caller relies on: names, order, types and declared shapes of inputs and outputs stay;
metadata, doc strings, domains, attributes, opset and IR version survive. One thing is changed by default and noted: an
initializer that is also listed as an input becomes a plain constant, since onnxruntime neither folds nor fuses it
otherwise.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import onnx_ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from onnxslim_core import _carry, _emit, _files, _tensors
from onnxslim_core._copies import copy_model
from onnxslim_core._wellformed import Limits, quote
from onnxslim_core.errors import InvalidModel, ModelError
from onnxslim_core.graph import all_nodes, label_of
from onnxslim_core.rewrite import Change
from onnxslim_core.verify import STRUCTURE, out_of_order

__all__ = ["DEFAULT_LIMITS", "LARGE", "Limits", "Model", "files_of", "load", "save", "tell_nodes_apart", "wrap"]

DEFAULT_LIMITS = Limits()
LARGE = 2**28
"""Bytes of weights from which on a model goes to onnxruntime as a file, and is never open beside another one."""


@dataclass(slots=True)
class Model:
    """A model at work.

    Attributes:
        ir: The graph that passes rewrite in place.
        source: The file it came from, or None.
        notes: What loading itself changed.
    """

    ir: onnx_ir.Model
    source: Path | None = None
    notes: list[Change] = field(default_factory=list)
    _sealed: bool = field(default=False, repr=False, compare=False)
    _written: list[bytes | memoryview] | None = field(default=None, repr=False, compare=False)
    _nbytes: int | None = field(default=None, repr=False, compare=False)
    _file: Path | None = field(default=None, repr=False, compare=False)
    """A file that holds this very model, while it is sealed."""

    def __getstate__(self) -> tuple[onnx_ir.Model, Path | None, list[Change]]:
        """What a copy in another process, or a deep one, takes along: not what was written or mapped, nor the seal."""
        return self.ir, self.source, self.notes

    def __setstate__(self, state: tuple[onnx_ir.Model, Path | None, list[Change]]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    def seal(self, sealed: bool = True) -> None:
        """Say that the graph does not change for now, so that it is written once for all who ask for its bytes."""
        self._sealed = sealed
        if not sealed:
            self.forget()

    def forget(self) -> None:
        """Say that the graph was changed while it was sealed: what was written of it is out of date."""
        self._written = self._nbytes = self._file = None

    def pieces(self) -> list[bytes | memoryview]:
        """The bytes of the model as one file, whatever its size; weights are views of where they lie."""
        found = _files.pieces(self.ir) if self._written is None else self._written
        if self._sealed:
            self._written = found
        return found

    def bare(self) -> bytes:
        """The bytes of a model file without the weights of the main graph, from what was written anyway."""
        return _files.bare(self.pieces())

    def digest(self) -> str | None:
        """Of the bytes that `session_source` gives; None for a large model."""
        return None if self._goes_by_path() else _files.digest(self.pieces())

    def _goes_by_path(self) -> bool:
        return self.nbytes >= LARGE or _files.needs_external(self.ir)

    def copy(self, *, sealed: bool = False) -> Model:
        """An independent graph with shared weights; `meta` of nodes and values is kept.

        Args:
            sealed: Whether the copy is sealed with what was written of this one, for a caller that says `forget`.
        """
        copy = Model(copy_model(self.ir), self.source, list(self.notes), sealed)
        if sealed:
            copy._written, copy._nbytes, copy._file = self._written, self._nbytes, self._file
        return copy

    def to_proto(self) -> onnx.ModelProto:
        """The model as a proto that holds its weights.

        Raises:
            ModelError: if that is more than 2 GB.
        """
        if _files.needs_external(self.ir):
            raise ModelError(f"the weights take {self.nbytes} bytes, more than a proto can hold", "use save()")
        return _emit.write(self.ir)

    def to_ir(self) -> onnx_ir.Model:
        """An independent onnx_ir model with shared weights."""
        return copy_model(self.ir)

    def to_surgeon(self) -> Any:
        """The model as an `onnx_graphsurgeon.Graph`; see `surgeon.from_ir` for what that loses."""
        from onnxslim_core import surgeon

        return surgeon.from_ir(self.ir)

    @property
    def nbytes(self) -> int:
        """Bytes of all weights, those in Constant nodes and bodies included; a shared one counts once."""
        found = self._nbytes
        if found is None:
            found = sum({id(t): t.nbytes for t in _tensors.tensors_of(self.ir)}.values())
        if self._sealed:
            self._nbytes = found
        return found

    @contextlib.contextmanager
    def session_source(self) -> Iterator[bytes | str]:
        """What `onnxruntime.InferenceSession` accepts: bytes, or of a large model the path of a file.

        The file is the one that the model came from, where it still holds this very model; else one that goes
        afterwards. onnxruntime maps what is beside such a file, so that a large model is in memory once.
        """
        if not self._goes_by_path():
            yield b"".join(self.pieces())
            return
        if self._sealed and self._file is not None:
            yield str(self._file)
            return
        with tempfile.TemporaryDirectory(prefix="onnxslim-") as folder:
            path = Path(folder, "model.onnx")
            _files.write_external(self.ir, path)
            yield str(path)


def wrap(graph: onnx_ir.Model) -> Model:
    """An onnx_ir model as a `Model`, without a copy and without a check."""
    return Model(graph)


def load(
    source: Any,
    *,
    external_data_root: str | Path | None = None,
    keep_feedable: bool = False,
    limits: Limits = DEFAULT_LIMITS,
) -> Model:
    """Open a model; the source is never changed.

    Args:
        source: A path, bytes, `onnx.ModelProto`, `onnx_ir.Model`, PyTorch's `ONNXProgram`, `onnx_graphsurgeon.Graph`,
            or a `Model`.
        external_data_root: A folder outside the model's own that its external data may lead into.
        keep_feedable: Keep initializers that are also inputs as inputs.
        limits: What is refused before memory is spent on it.

    Raises:
        ModelError: if it cannot be read.
        InvalidModel: if it breaks the specification or a limit.
        UnsupportedModel: if it holds something that cannot be carried, which is named.
    """
    path: Path | None = None
    root = None if external_data_root is None else Path(external_data_root)
    notes: list[Change] = []
    if isinstance(source, Model):
        graph, path, notes = copy_model(source.ir), source.source, list(source.notes)
    elif isinstance(source, onnx_ir.Model):
        graph = _adopt(source, root, limits)
    elif type(source).__module__.partition(".")[0] == "onnx_graphsurgeon":
        from onnxslim_core import surgeon

        graph = surgeon.to_ir(source)
    elif isinstance(source, onnx.ModelProto):
        graph = _from_proto(source, None, root, limits, owned=False)
    elif isinstance(source, (bytes, bytearray, memoryview)):
        graph = _from_proto(_parse(bytes(source), "the model"), None, root, limits, owned=True)
    elif isinstance(source, (str, os.PathLike)):
        path = Path(source)
        proto = _parse(_files.read_bytes(path, limits), quote(str(path), limit=1000))
        graph = _from_proto(proto, path, root, limits, owned=True)
    elif isinstance(inner := getattr(source, "model", None), onnx_ir.Model):  # PyTorch's ONNXProgram
        graph = _adopt(inner, root, limits)
    else:
        raise ModelError(
            f"a {type(source).__name__} is not a model",
            "pass a path, bytes, onnx.ModelProto, onnx_ir.Model, ONNXProgram or onnx_graphsurgeon.Graph",
        )
    if not keep_feedable:
        notes += _make_constant(graph)
    found = Model(graph, path, notes)
    if not isinstance(source, Model) and root is None and not notes and graph.graph.meta.get(_carry.EXTERNAL_KEY):
        found._file = path
    return found


def files_of(path: str | Path, external_data_root: str | Path | None = None) -> list[Path]:
    """A model's file, and those that its weights are in; of a file that is no model itself alone.

    Args:
        path: The file.
        external_data_root: As for `load`.
    """
    path = Path(path)
    try:
        data = _files.read_bytes(path, DEFAULT_LIMITS)
        if b"location" not in data:  # the key of what is elsewhere
            return [path]
        proto = _parse(data, "the model")
    except ModelError:  # to be told by `load`
        return [path]
    folders = [path.parent, *([] if external_data_root is None else [Path(external_data_root)])]
    return [path, *(folder / name for name in _carry.locations(proto) for folder in folders)]


def tell_nodes_apart(model: Model) -> None:
    """Give nodes that share a name names of their own, which is noted: onnxruntime loads no file that has such."""
    seen: set[str] = set()
    again = []
    for node in all_nodes(model.ir.graph):
        if node.name and node.name in seen:
            again.append(node)
        seen.add(node.name or "")
    for number, node in enumerate(again):
        while (name := f"{node.name}_{number}") in seen:
            number += len(again)
        seen.add(name)
        node.name = name
    if again:
        action = f"gave {len(again)} nodes names of their own that had the name of another"
        model.notes.append(Change("load", (label_of(again[0]),), action, details={"count": len(again)}))
        model.seal(False)


def _parse(data: bytes, what: str) -> onnx.ModelProto:
    if not data:
        raise InvalidModel(f"{what} is empty")
    try:
        proto: onnx.ModelProto = onnx.ModelProto.FromString(data)
    except DecodeError as err:
        raise InvalidModel(f"{what} is not an ONNX model: it cannot be decoded", _guess(data)) from err
    return proto


def _guess(data: bytes) -> str | None:
    """What a file is that is no ONNX model, as far as its first bytes tell."""
    if data.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer: fetch the file with git lfs pull"
    if data.startswith(b"PK"):
        return "it is a zip archive, perhaps a PyTorch checkpoint: export it to ONNX first"
    if data[:1024].lstrip()[:1] in (b"<", b"{"):
        return "it looks like text"
    return None


def _from_proto(
    proto: onnx.ModelProto, path: Path | None, root: Path | None, limits: Limits, *, owned: bool
) -> onnx_ir.Model:
    folder = None if path is None else path.parent
    return _carry.from_proto(proto, limits, _files.ExternalData(folder, root), owned=owned)


def _adopt(source: onnx_ir.Model, root: Path | None, limits: Limits) -> onnx_ir.Model:
    """A checked copy of somebody else's graph, whose weights are shared but whose names are our own.

    Renaming an initializer renames its tensor in onnx_ir, so every tensor is wrapped anew (arrays are not copied).
    """
    problems = [p for check in STRUCTURE if check.name != "sorted" for p in check.run(source)]
    if problems:
        raise InvalidModel(problems[0])
    files: dict[Path | None, _files.ExternalData] = {}

    def ours(tensor: onnx_ir.TensorProtocol) -> onnx_ir.TensorProtocol:
        if not isinstance(tensor, onnx_ir.ExternalTensor):
            return _tensors.wrapped(tensor)
        graph_folder = Path(os.fspath(tensor.base_dir)) if os.fspath(tensor.base_dir) else None
        store = files.setdefault(graph_folder, _files.ExternalData(graph_folder, root))
        shape = [int(d) for d in tensor.shape.numpy()]
        location, offset = os.fspath(tensor.location), tensor.offset or 0
        return store.open(location, offset, tensor.length, tensor.dtype, shape, tensor.name)

    if out_of_order(source):  # only a sorted graph can be copied, so this one goes through a proto, without its `meta`
        proto = _emit.write(source, lambda tensor, name, empty: _tensors.embed(ours(tensor), name, empty))
        return _from_proto(proto, None, root, limits, owned=True)
    graph = copy_model(source)
    _tensors.map_tensors(graph, ours)
    if files:
        graph.graph.meta[_carry.EXTERNAL_KEY] = True
    return graph


def _make_constant(model: onnx_ir.Model) -> list[Change]:
    """Take initializers off the inputs.

    Raises:
        InvalidModel: if one is declared with another element type than it holds.
    """
    graph = model.graph
    feedable = [v for v in graph.inputs if str(v.name) in graph.initializers]
    if not feedable:
        return []
    for value in feedable:
        assert value.const_value is not None
        if value.dtype not in (None, value.const_value.dtype):
            raise InvalidModel(
                f"{quote(str(value.name))} is declared as {value.dtype} and holds {value.const_value.dtype}"
            )
        graph.inputs.remove(value)
        value.shape = onnx_ir.Shape(value.const_value.shape.numpy())
    model.ir_version = max(model.ir_version, 4)
    action = f"made {len(feedable)} initializers constant that are also listed as inputs"
    where = tuple(str(v.name) for v in feedable)
    return [Change("load", where, action, details={"count": len(feedable)})]


def save(
    model: object,
    path: str | Path,
    *,
    check: Callable[[Path], None] | None = None,
    external_data: bool | None = None,
) -> None:
    """Write a model: whole or not at all.

    Args:
        model: A `Model`, or what `load` takes.
        path: The target; it may be the file that the model came from.
        check: Called with the path of the finished temporary file; what it raises stops the replacement.
        external_data: Weights in `NAME.data` beside the file; None does so where the model came like that or needs
            more than 2 GB.

    Raises:
        ModelError: if the target cannot be written, or 2 GB do not suffice without external data.
    """
    held = model if isinstance(model, Model) else load(model, keep_feedable=True)
    target = Path(path)
    external = external_data
    if external is None:
        external = bool(held.ir.graph.meta.get(_carry.EXTERNAL_KEY)) or _files.needs_external(held.ir)
    _files.replace_files(
        target,
        lambda fresh: _write_files(held, fresh, external),
        check,
    )


def _write_files(model: Model, path: Path, external: bool) -> None:
    if external:
        _files.write_external(model.ir, path)
    else:
        _files.write_pieces(model.pieces(), path)
