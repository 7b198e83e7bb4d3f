"""Results that take long, kept on disk as they come, so that what was interrupted goes on where it stopped.

One file per question, one JSON line per result. Lines are appended whole, each with the key of its question and a
checksum of its own; what is torn, foreign or damaged is not read, and is found out anew.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxslim_core.report import plain

__all__ = ["Memory", "key_of"]


def key_of(told: Sequence[object]) -> str:
    """A key for everything that decides a result; what is told is made of plain data and records."""
    text = json.dumps(plain(list(told)), sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class Memory:
    """Results of one question by name.

    Args:
        kind: What kind of question; part of the file's name.
        key: From `key_of`.
        folder: Where files are kept; None keeps nothing.
    """

    def __init__(self, kind: str, key: str, folder: Path | None) -> None:
        self._key = key
        self._path = None if folder is None else folder / f"{kind}-{key[:32]}.jsonl"
        self._known = dict(_entry for line in _lines(self._path) if (_entry := self._read(line)) is not None)

    def get(self, name: str) -> Mapping[str, Any] | None:
        """What is known under a name."""
        return self._known.get(name)

    @property
    def keeps(self) -> bool:
        """Whether what was found so far will be there for the next who asks."""
        return self._path is not None and bool(self._known)

    def put(self, name: str, found: Mapping[str, Any]) -> None:
        """Keep a result, beside what other processes keep meanwhile; a folder that cannot be written keeps nothing."""
        self._known[name] = found
        if self._path is None:
            return
        body = json.dumps([self._key, name, found], sort_keys=True)
        # a line that was torn before ends where this one begins
        data = f"\n{_checksum(body)} {body}\n".encode()
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError:
            self._path = None
            return
        try:
            if os.write(handle, data) < len(data):
                self._path = None
        except OSError:
            self._path = None
        finally:
            os.close(handle)

    def _read(self, line: str) -> tuple[str, Mapping[str, Any]] | None:
        checksum, _, body = line.partition(" ")
        if not body or checksum != _checksum(body):
            return None
        try:
            key, name, found = json.loads(body)
        except ValueError:
            return None
        return (name, found) if key == self._key and isinstance(name, str) and isinstance(found, dict) else None


def _checksum(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()[:16]


def _lines(path: Path | None) -> list[str]:
    try:
        return [] if path is None else path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
