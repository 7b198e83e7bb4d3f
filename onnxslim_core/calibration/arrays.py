"""Arrays from .npz and .npy files and folders of them; of large files only the rows that are asked for are read."""

from __future__ import annotations

import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from onnxslim_core.calibration.columns import Array
from onnxslim_core.errors import DataError

__all__ = ["Member", "read_npy", "read_npz"]

WHOLE = 2**24
"""Arrays of up to so many bytes are read at once."""

LARGEST = 2**40
"""No array of a file may say that it has more bytes."""

_HEADER = (ValueError, TypeError, KeyError, AttributeError, OverflowError, SyntaxError, tokenize.TokenError)
_BROKEN = (*_HEADER, OSError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error, struct.error)
_BROKEN_ZIP = (*_BROKEN, RuntimeError, NotImplementedError)  # encrypted, or packed in an unknown way


@dataclass(frozen=True, slots=True)
class Member:
    """One array of a .npz, read from beginning to end and never held whole, since most of them are packed.

    Attributes:
        path: The .npz.
        name: Of the member.
        shape: As its header says.
        dtype: As its header says.
        fortran: Its bytes run along the first axis first, so that no row can be read alone.
    """

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool = False

    def rows(self, starts: Sequence[int], length: int) -> np.ndarray:
        """Blocks of `length` rows from ascending starts, joined; (len(starts) * length, ...)."""
        if self.fortran:
            array = self.whole()
            return np.concatenate([array[start : start + length] for start in starts])
        size = self.dtype.itemsize * math.prod(self.shape[1:])
        found = np.empty((len(starts) * length, *self.shape[1:]), self.dtype)
        view = found.reshape(len(starts) * length, -1).view(np.uint8) if found.size else found
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(self.name) as stream:
                _header(stream)
                at = 0
                for number, start in enumerate(starts):
                    _skip(stream, (start - at) * size)
                    block = _exactly(stream, length * size)
                    if found.size:
                        view[number * length : (number + 1) * length] = np.frombuffer(block, np.uint8).reshape(
                            length, -1
                        )
                    at = start + length
        except _BROKEN_ZIP as err:
            raise DataError(f"cannot read data '{self.path}': {err}") from err
        return found

    def whole(self) -> np.ndarray:
        """All of it."""
        try:
            with np.load(self.path, allow_pickle=False) as archive:
                return np.asarray(archive[self.name.removesuffix(".npy")])
        except _BROKEN_ZIP as err:
            raise DataError(f"cannot read data '{self.path}': {err}") from err


def read_npz(path: Path) -> dict[str, Array]:
    """The arrays of a .npz by name; large ones as `Member`.

    Raises:
        DataError: if the file is missing, broken, or holds Python objects.
    """
    found: dict[str, Array] = {}
    try:
        with path.open("rb") as file:
            if not zipfile.is_zipfile(file):
                hint = "save arrays by input name: numpy.savez"
                raise DataError(f"cannot read data '{path}': broken, or no .npz file", hint)
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                with archive.open(info) as stream:
                    shape, fortran, dtype = _header(stream)
                member = Member(path, info.filename, shape, dtype, fortran)
                size = _checked(member)
                found[info.filename.removesuffix(".npy")] = member if size > WHOLE else member.whole()
    except FileNotFoundError as err:
        raise DataError(f"no such data file: '{path}'") from err
    except _BROKEN_ZIP as err:
        raise DataError(f"cannot read data '{path}': {err}") from err
    return found


def read_npy(path: Path) -> np.ndarray:
    """A .npy, mapped into memory: rows are read as they are asked for.

    Raises:
        DataError: if the file is missing, broken, or holds Python objects.
    """
    try:
        return np.asanyarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except FileNotFoundError as err:
        raise DataError(f"no such data file: '{path}'") from err
    except _BROKEN as err:
        hint = "save a plain array by numpy.save" if "pickle" in str(err) or "object" in str(err).lower() else None
        raise DataError(f"cannot read data '{path}': {err}", hint) from err


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = npy.read_magic(stream)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which may be code")
    return shape, fortran and len(shape) > 1, dtype


def _checked(member: Member) -> int:
    """The bytes that an array says it has."""
    size = member.dtype.itemsize * math.prod(member.shape)
    if size > LARGEST or any(axis < 0 for axis in member.shape):
        raise ValueError(f"array '{member.name}' says it has {size} bytes")
    return size


def _skip(stream: IO[bytes], count: int) -> None:
    while count > 0:
        block = stream.read(min(count, 2**20))
        if not block:
            raise EOFError("it ends too early")
        count -= len(block)


def _exactly(stream: IO[bytes], count: int) -> bytes:
    parts = []
    while count > 0:
        block = stream.read(min(count, 2**20))
        if not block:
            raise EOFError("it ends too early")
        parts.append(block)
        count -= len(block)
    return b"".join(parts)
