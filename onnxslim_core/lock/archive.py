"""A zip file as a container for files of this program: written streamed, read bounded and in place.

A lock may come from anybody. Nothing is ever unpacked to disk, no name in the archive is used as a path, what is packed
may not grow beyond a bound, and large entries are stored as they are, so that reading one is a view of the mapped file.
"""

from __future__ import annotations

import mmap
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

from onnxslim_core._paths import open_regular
from onnxslim_core._wellformed import quote
from onnxslim_core.errors import ModelError

__all__ = ["Archive", "write_archive"]

GROWTH = 32
"""A packed entry may become so many times as large; what packs better is stored as it is, up to `SMALL`."""
SMALL = 2**22
"""Bytes that an entry may always have."""

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the same content gives the same bytes
_LOCAL_HEADER = 30  # bytes before the name, whose length and that of the extra field stand at 26
_BROKEN = (
    zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, ValueError, KeyError, RuntimeError, OverflowError,
)  # fmt: skip
"""What `zipfile` raises on a file that is no archive, cut short or tampered with."""


def write_archive(path: Path, packed: Mapping[str, bytes], stored: Mapping[str, memoryview]) -> None:
    """Write a new archive; the same content gives the same bytes.

    Args:
        path: A file that is not there yet.
        packed: Entries that are compressed where that helps, by name.
        stored: Entries that stay as they are, by name; they are not copied in memory.
    """
    with zipfile.ZipFile(path, "x", allowZip64=True) as archive:
        for name, text in packed.items():
            ratio = len(text) / max(len(zlib.compress(text, 6)), 1)
            kind = zipfile.ZIP_DEFLATED if len(text) <= SMALL or ratio < GROWTH else zipfile.ZIP_STORED
            archive.writestr(_entry(name, len(text)), text, compress_type=kind, compresslevel=6)
        for name, data in stored.items():
            with archive.open(_entry(name, data.nbytes), "w", force_zip64=data.nbytes >= 2**31) as file:
                file.write(data)


def _entry(name: str, size: int) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, _EPOCH)
    entry.external_attr = (stat.S_IFREG | 0o644) << 16
    entry.file_size = size
    return entry


class Archive:
    """An archive of somebody's, open for reading.

    Args:
        path: The file.
        what: How errors call such a file.

    Raises:
        ModelError: if it cannot be read or is no archive.
    """

    def __init__(self, path: Path, what: str) -> None:
        self._shown = f"{what} {quote(str(path), limit=1000)}"
        self._what = what
        try:
            file = open_regular(path)
            if os.fstat(file.fileno()).st_size == 0:
                raise ModelError(f"{self._shown} is empty")
            self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as err:
            reason = (err.strerror or type(err).__name__) if isinstance(err, OSError) else str(err)
            raise ModelError(f"cannot read {self._shown}: {reason}") from err
        try:
            self._zip = zipfile.ZipFile(file)
        except _BROKEN as err:
            raise self._damaged("it is no archive, or was cut short") from err
        if sum(entry.compress_size for entry in self._zip.infolist()) > len(self._data):
            raise self._damaged("its entries overlap")

    def _damaged(self, how: str) -> ModelError:
        return ModelError(f"{self._shown} is no {self._what}, or is damaged: {how}")

    @property
    def nbytes(self) -> int:
        """Of the whole file."""
        return len(self._data)

    def names(self, prefix: str) -> list[str]:
        """The entries whose name begins with it."""
        return [name for name in self._zip.namelist() if name.startswith(prefix)]

    def packed(self, name: str, limit: int) -> bytes:
        """An entry as bytes.

        Raises:
            ModelError: if there is none, it is damaged or has more than `limit` bytes.
        """
        try:
            entry = self._zip.getinfo(name)
            bound = min(limit, max(SMALL, GROWTH * entry.compress_size))
            if entry.file_size <= bound:
                with self._zip.open(entry) as file:
                    data: bytes = file.read(bound + 1)
                if len(data) == entry.file_size:
                    return data
        except _BROKEN as err:
            raise self._damaged(f"{quote(name)} cannot be read") from err
        raise self._damaged(f"{quote(name)} is larger than it may be")

    def stored(self, name: str) -> memoryview:
        """An entry in place; its content is not checked here.

        Raises:
            ModelError: if there is none, or it does not lie within the file as it is.
        """
        try:
            entry = self._zip.getinfo(name)
            lengths = struct.unpack_from("<HH", self._data, entry.header_offset + 26)
        except _BROKEN as err:
            raise self._damaged(f"{quote(name)} cannot be found") from err
        start = entry.header_offset + _LOCAL_HEADER + sum(lengths)
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise self._damaged(f"{quote(name)} is packed")
        if start + entry.file_size > len(self._data):
            raise self._damaged(f"{quote(name)} ends beyond the file")
        return memoryview(self._data)[start : start + entry.file_size]
