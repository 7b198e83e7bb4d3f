"""What stands in a lock, and its file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxslim_core._paths import staged
from onnxslim_core._wellformed import quote
from onnxslim_core.errors import ModelError
from onnxslim_core.lock.archive import Archive, write_archive
from onnxslim_core.model import DEFAULT_LIMITS, Limits
from onnxslim_core.report import plain

if TYPE_CHECKING:
    from pydantic import TypeAdapter

__all__ = ["SCHEMA", "Kept", "Lock", "Record", "Side"]

SCHEMA = 1
_WEIGHTS = "weights/"
_JSON_BYTES = 2**26


@dataclass(frozen=True, slots=True)
class Kept:
    """A weight that is a part of one of the model given.

    Attributes:
        source: sha256 of the bytes of the whole.
        dtype: Its element type, by its number in ONNX.
        shape: Of the whole.
        axes: What was kept of an axis, such as "0-3,7"; the axes that are not here stayed whole.
    """

    source: str
    dtype: int
    shape: tuple[int, ...]
    axes: Mapping[int, str]


@dataclass(frozen=True, slots=True)
class Side:
    """The model given, or the result.

    Attributes:
        model: The name of the file; empty for the result.
        sha256: Of the file; None where the model is large, in several files or was given in memory. Of the result: of
            what is written where that is one file.
        graph: Of the graph with all that it holds.
        content: Of the graph without metadata.
        nbytes: Of the weights.
        external: It keeps its weights in a file of their own.
    """

    model: str
    sha256: str | None
    graph: str
    content: str
    nbytes: int
    external: bool


@dataclass(frozen=True, slots=True)
class Record:
    """What stands in `lock.json`.

    Attributes:
        given: The model that it was made from.
        made: The result.
        outcome: As in the report.
        verified: Whether the answers of the result were compared.
        recipe_sha256: Of the steps and the budget as they were asked for.
        asked: Recipe, budget, seed and other options.
        machine: Processor and versions.
        data: What the decisions were made on, with its digest.
        steps: What each step did and refused.
        weights: For people: "given", "part" or "new" by the name of a weight of the result.
        parts: Weights that are parts of one that was given, by the sha256 of their bytes.
    """

    given: Side
    made: Side
    outcome: str
    verified: bool
    recipe_sha256: str
    asked: Mapping[str, Any]
    machine: Mapping[str, Any]
    data: Mapping[str, Any]
    steps: Sequence[Mapping[str, Any]]
    weights: Mapping[str, str]
    parts: Mapping[str, Kept]
    schema: int = SCHEMA


@cache
def _adapter() -> TypeAdapter[Record]:
    from pydantic import TypeAdapter

    return TypeAdapter(Record)


@dataclass(frozen=True, slots=True)
class Lock:
    """A lock.

    Attributes:
        record: What people read.
        graph: The result without weights, serialized.
        new: The bytes of the weights that the model given does not have, by their sha256.
    """

    record: Record
    graph: bytes = field(repr=False)
    new: Mapping[str, memoryview] = field(repr=False)

    @classmethod
    def open(cls, path: str | Path, limits: Limits = DEFAULT_LIMITS) -> Lock:
        """Read a lock; it may come from anybody. Whether the weights are what they should be is seen when it is used.

        Args:
            path: The file.
            limits: What is refused for its size.

        Raises:
            ModelError: if it is missing, no lock, damaged or of another version.
        """
        from pydantic import ValidationError

        archive, name = Archive(Path(path), "lock"), quote(str(path), limit=1000)
        try:
            raw = json.loads(archive.packed("lock.json", _JSON_BYTES))
            if not isinstance(raw, dict) or raw.get("schema") != SCHEMA:
                found = str(raw.get("schema") if isinstance(raw, dict) else None)
                raise ModelError(f"{name} is a lock of schema {quote(found, 20)}, this version reads {SCHEMA}")
            record = _adapter().validate_python(raw)
        except ValidationError as err:
            first = err.errors()[0]
            told = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
            raise ModelError(f"the lock {name} is damaged: lock.json is wrong at {told[:200]}") from err
        except (ValueError, RecursionError) as err:
            raise ModelError(f"the lock {name} is damaged: lock.json cannot be read") from err
        entries = archive.names(_WEIGHTS)
        new = {entry.removeprefix(_WEIGHTS): archive.stored(entry) for entry in entries}
        return cls(record, archive.packed("graph.onnx", limits.file_bytes), new)

    def save(self, path: str | Path) -> None:
        """Write the lock, whole or not at all; the same lock gives the same bytes.

        Raises:
            OutputError: if it cannot be written.
        """
        with self.staged(path):
            pass

    def staged(self, path: str | Path) -> AbstractContextManager[None]:
        """`save` around the writing of the result: the lock is written first and takes its place last.

        So a full disk leaves neither a result without its lock nor a lock without its result.

        Raises:
            OutputError: if it cannot be written.
        """
        text = json.dumps(plain(self.record), indent=1, allow_nan=False).encode() + b"\n"
        packed = {"lock.json": text, "graph.onnx": self.graph}
        stored = {_WEIGHTS + digest: data for digest, data in sorted(self.new.items())}
        return staged(path, lambda fresh: write_archive(fresh, packed, stored))
