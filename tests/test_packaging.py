"""The wheel holds the tree and nothing else, under one name, and the package works installed, editable and in place."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "*.egg-info", "results")


def tree() -> set[str]:
    """Every file that belongs to the package, as it is called in a wheel."""
    files = set()
    for folder, prefix in (("onnxslim_core", ""), ("passes", "onnxslim_core/")):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                files.add(prefix + path.relative_to(ROOT).as_posix())
    return files


def import_all() -> str:
    """A script that imports every module of the tree and prints where the package and its passes were found."""
    modules = (name.removesuffix(".py").removesuffix("/__init__") for name in tree() if name.endswith(".py"))
    names = sorted(name.replace("/", ".") for name in modules if not name.endswith("/__main__"))
    return (
        "import importlib, onnxslim_core\n"
        f"for name in {names!r}:\n"
        "    importlib.import_module(name)\n"
        "import onnxslim_core.passes as passes\n"
        "for row in passes.TABLE:\n"
        "    assert passes.pass_class(row.name).__module__ == 'onnxslim_core.passes.' + row.module\n"
        "print(onnxslim_core.__file__)\n"
        "print(passes.__file__)\n"
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist of a copy of the tree, made without a network."""
    folder = tmp_path_factory.mktemp("packaging")
    source = folder / "source"
    shutil.copytree(ROOT, source, ignore=LEFT_OUT)
    command = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--sdist", "--outdir", str(folder / "dist")]
    done = subprocess.run([*command, str(source)], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return folder / "dist"


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (found,) = built.glob("*.whl")
    return found


def run(script: str, cwd: Path, *options: str, **environment: str) -> list[str]:
    """The lines a script prints in a fresh interpreter that sees the folders given and the installed dependencies."""
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **environment}
    command = [sys.executable, *options, "-c", script]
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


def test_wheel_holds_the_tree(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == tree()


def test_wheel_has_one_name(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
        licence = next(name for name in archive.namelist() if name.endswith("/licenses/LICENSE"))
        entry_points = next(name for name in archive.namelist() if name.endswith("entry_points.txt"))
        assert b"Apache License" in archive.read(licence)
        assert b"onnxslim-core = onnxslim_core.__main__:run" in archive.read(entry_points)
    assert {top for top in tops if not top.endswith(".dist-info")} == {"onnxslim_core"}


def test_sdist_holds_tests_and_bench(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"tests/test_packaging.py", "bench/zoo/zoo.toml", "passes/__init__.py", "LICENSE", "README.md"} <= names


def test_works_installed(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    package, passes = run(import_all(), tmp_path, PYTHONPATH=str(site))
    assert Path(package).parent == site / "onnxslim_core"
    assert Path(passes).parent == site / "onnxslim_core" / "passes"


def test_works_editable(tmp_path: Path) -> None:
    """Built by the same hook that `pip install -e .` calls, and activated as a site folder."""
    source, site = tmp_path / "source", tmp_path / "site"
    shutil.copytree(ROOT, source, ignore=LEFT_OUT)
    site.mkdir()
    hook = f"import setuptools.build_meta as b; print(b.build_editable({str(tmp_path)!r}))"
    wheel = tmp_path / run(hook, source)[-1]
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    # without `-S` an editable installation of this project in the running environment would answer instead
    elsewhere = [entry for entry in sys.path if Path(entry).is_dir() and Path(entry).resolve() != ROOT]
    activate = f"import sys, site; sys.path[:] = {[str(site), *elsewhere]!r}; site.addsitedir({str(site)!r})\n"
    package, passes = run(activate + import_all(), tmp_path, "-S", PYTHONPATH="")
    assert Path(package).parent == source / "onnxslim_core"
    assert Path(passes).parent == source / "passes"


def test_works_in_place() -> None:
    package, passes = run(import_all(), ROOT, PYTHONPATH="")
    assert Path(package).parent == ROOT / "onnxslim_core"
    assert Path(passes).parent == ROOT / "passes"


def test_passes_have_one_name() -> None:
    """The folder of the passes cannot be loaded a second time under its own name."""
    done = subprocess.run(
        [sys.executable, "-c", "import passes"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "import onnxslim_core.passes, not passes" in done.stderr


def test_versions_agree(wheel: Path) -> None:
    (version,) = run("import onnxslim_core; print(onnxslim_core.__version__)", ROOT)
    assert wheel.name.split("-")[1] == version
