"""Files as the system has them: only regular ones are read, and what is written takes its place whole or not at all.

Imports nothing heavy: recipes and the command line look at files before anything is loaded.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from onnxslim_core.errors import OutputError

__all__ = ["is_name", "keep_mode", "landing", "open_regular", "reason", "scratch", "staged", "write_whole"]


def reason(err: OSError) -> str:
    """What the system says."""
    return err.strerror or type(err).__name__


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading; never blocks on a pipe and never reads a device."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file")
    return os.fdopen(descriptor, "rb")


def is_name(path: str | Path) -> bool:
    """False for what no file can be called: a folder's end, or a null character in it."""
    return bool(Path(path).name) and "\0" not in str(path)


def landing(path: str | Path) -> Path:
    """Where what is written to a path ends up: a link stays, and the file that it leads to is replaced or made."""
    path = Path(path)
    return Path(os.path.realpath(path)) if os.path.islink(path) else path


@contextlib.contextmanager
def scratch(parent: Path) -> Iterator[Path]:
    """A fresh folder beside a target, so that a file moves out of it in one step; it goes afterwards."""
    folder = Path(tempfile.mkdtemp(prefix=".onnxslim-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def keep_mode(new: Path, existing: Path) -> None:
    """Give a new file the permissions of the one that it replaces."""
    if existing.exists():
        new.chmod(stat.S_IMODE(existing.stat().st_mode))


@contextlib.contextmanager
def staged(path: str | Path, write: Callable[[Path], object]) -> Iterator[None]:
    """Write a file beside its target at once, and move it over the target when the body is through.

    What the body writes and this file are so both new or both as before: what takes room is done before either moves.

    Args:
        path: The target.
        write: Writes to the path that it is given, where nothing is yet.

    Raises:
        OutputError: if it cannot be written.
    """
    target = landing(path)
    with contextlib.ExitStack() as stack:
        with _told(path):
            if target.exists() and not target.is_file():
                raise OSError(errno.EINVAL, "not a regular file")
            fresh = stack.enter_context(scratch(target.parent)) / target.name
            write(fresh)
            keep_mode(fresh, target)
        yield
        with _told(path):
            fresh.replace(target)


@contextlib.contextmanager
def _told(path: str | Path) -> Iterator[None]:
    if not is_name(path):
        raise OutputError(f"{str(path)!r} is no name for a file")
    try:
        yield
    except OSError as err:
        raise OutputError(f"cannot write '{path}': {reason(err)}") from err


def write_whole(path: str | Path, data: bytes) -> None:
    """Write a file, whole or not at all.

    Raises:
        OutputError: if it cannot be written.
    """
    with staged(path, lambda fresh: fresh.write_bytes(data)):
        pass
