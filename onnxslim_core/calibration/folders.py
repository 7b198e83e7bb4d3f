"""What a path holds: one file, a folder or a zip of images, a folder of arrays; found without reading contents.

Nothing outside of a folder is read: links that lead out of it are refused. Members of a zip are read into memory one
by one, never unpacked to a disk, and never beyond a limit, whatever their headers say.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal

from onnxslim_core.errors import DataError

__all__ = ["ARRAYS", "IMAGES", "Found", "look"]

IMAGES = frozenset((".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff"))
IMAGES |= {".ppm", ".pgm", ".pbm"}
"""Endings of image files."""

ARRAYS = frozenset((".npz", ".npy"))
"""Endings of array files."""

MOST_FILES = 2_000_000
"""In a folder or zip."""

LARGEST_FILE = 2**28
"""Bytes of an image file, unpacked."""

_HINT = "give a .npz with arrays by input name, a .npy, or a folder or zip of images"


@dataclass(frozen=True, slots=True)
class Found:
    """Files of one kind.

    Attributes:
        kind: "npz", "npy" or "images".
        root: The folder, the zip, or the folder of the one file.
        names: Relative to the root, with slashes, sorted.
        name: What reports call the source.
        is_folder: True for a folder or zip.
    """

    kind: Literal["npz", "npy", "images"]
    root: Path
    names: tuple[str, ...]
    name: str
    is_folder: bool
    _archive: list[zipfile.ZipFile] = field(default_factory=list, compare=False, repr=False)

    def path(self, number: int) -> Path:
        """The path of a file in a folder.

        Raises:
            DataError: if it is a link that leads out of the folder, or no file.
        """
        path = self.root / self.names[number]
        if self.is_folder and path.is_symlink() and not path.resolve().is_relative_to(self.root.resolve()):
            raise DataError(
                f"'{self.names[number]}' in {self.name} is a link that leaves the folder", "copy the file in"
            )
        if not path.is_file():
            raise DataError(f"'{self.names[number]}' in {self.name} is no plain file, or a link to nothing")
        return path

    def read(self, number: int) -> bytes:
        """The bytes of a file.

        Raises:
            DataError: if it cannot be read or is too large.
        """
        name = self.names[number]
        try:
            if self.root.is_dir():
                path = self.path(number)
                size = path.stat().st_size
                data = path.read_bytes() if size <= LARGEST_FILE else b""
            else:
                if not self._archive:
                    self._archive.append(zipfile.ZipFile(self.root))
                # what a header says of the size is not to be trusted: at most so much is unpacked
                with self._archive[0].open(name) as stream:
                    data = stream.read(LARGEST_FILE + 1)
                size = len(data)
        except (OSError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError, KeyError) as err:
            raise DataError(f"cannot read '{name}' in {self.name}: {err}") from err
        if size > LARGEST_FILE:
            raise DataError(f"'{name}' in {self.name} is larger than {LARGEST_FILE >> 20} MB", "leave it out")
        return data


def look(path: Path) -> Found:
    """What a path holds.

    Raises:
        DataError: if there is nothing there, or nothing that is read.
    """
    try:
        if path.is_dir():
            return _settle(path, _walk(path))
        if not path.exists():
            raise DataError(f"no such data file: '{path}'", _HINT)
        if not path.is_file():
            raise DataError(f"data '{path}' is no plain file", "write what comes out of it into one first")
        path.open("rb").close()  # so that what may not be read is not taken for broken
        suffix = path.suffix.lower()
        if suffix == ".zip":
            return _zip(path)
        if suffix in IMAGES | ARRAYS:
            kind: Literal["npz", "npy", "images"] = "images" if suffix in IMAGES else suffix[1:]  # type: ignore[assignment]
            return Found(kind, path.parent, (path.name,), path.name, False)
    except OSError as err:
        raise DataError(f"cannot read data '{err.filename or path}': {err.strerror or err}") from err
    what = f"a {path.suffix} file" if path.suffix else "a file without an ending"
    hint = f"name the function that gives the samples: {path}:FUNCTION" if path.suffix == ".py" else _HINT
    raise DataError(f"data '{path}' is {what}, which is not read", hint)


def _walk(root: Path) -> list[str]:
    """Names of all files below a folder; links to folders are not followed, hidden ones not entered."""
    found: list[str] = []
    for folder, folders, files in os.walk(root, onerror=_raise):
        folders[:] = sorted(each for each in folders if not each.startswith("."))
        inside = Path(folder).relative_to(root)
        found += [(inside / file).as_posix() for file in files]
        if len(found) > MOST_FILES:
            raise DataError(f"folder '{root}' holds more than {MOST_FILES} files")
    return [name for name in found if (root / name).is_file() or (root / name).is_symlink()]


def _raise(err: OSError) -> None:
    """A folder that cannot be read is not empty."""
    raise err


def _zip(path: Path) -> Found:
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except (OSError, zipfile.BadZipFile, EOFError, ValueError, NotImplementedError) as err:
        raise DataError(f"cannot read data '{path}': {err}") from err
    if len(infos) > MOST_FILES:
        raise DataError(f"'{path}' holds more than {MOST_FILES} files")
    if any(info.flag_bits & 1 for info in infos):
        raise DataError(f"cannot read data '{path}': it is encrypted", "unpack it and give the folder")
    names = [info.filename for info in infos if not info.is_dir() and "__MACOSX" not in info.filename]
    if len(set(names)) != len(names):
        raise DataError(f"cannot read data '{path}': it holds several files of one name")
    found = _settle(path, names)
    if found.kind != "images":
        raise DataError(f"data '{path}' is a zip of .{found.kind} files", "unpack it and give the folder")
    return found


def _settle(path: Path, names: list[str]) -> Found:
    """The files of the one kind that there is."""
    names = sorted(name for name in names if not PurePosixPath(name).name.startswith("."))
    kinds: dict[Literal["npz", "npy", "images"], list[str]] = {"npz": [], "npy": [], "images": []}
    for name in names:
        suffix = PurePosixPath(name).suffix.lower()
        if suffix in IMAGES:
            kinds["images"].append(name)
        elif suffix in ARRAYS:
            kinds["npz" if suffix == ".npz" else "npy"].append(name)
    present = {kind: members for kind, members in kinds.items() if members}
    if not present:
        endings = Counter(PurePosixPath(name).suffix.lower() or "no ending" for name in names)
        holds = ", ".join(f"{count} {ending}" for ending, count in endings.most_common(3)) or "nothing"
        raise DataError(f"data '{path}' holds no image, .npz or .npy file (found: {holds})", _HINT)
    if len(present) > 1:
        holds = " and ".join(f"{len(members)} {kind}" for kind, members in present.items())
        raise DataError(f"data '{path}' holds {holds} files", "give a folder with files of one kind")
    kind, members = next(iter(present.items()))
    return Found(kind, path, tuple(members), path.resolve().name, True)
