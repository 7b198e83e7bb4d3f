"""Imports go one way, and the command line's `--help` and `--version` load nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

ORDER = (
    ("__main__",),
    ("cli",),
    ("demo",),
    ("front",),
    ("pipeline", "verdict"),
    ("recipe",),
    ("passes",),
    ("search",),
    ("criteria", "repair", "lowrank", "quant"),
    ("calibration",),
    ("channels",),
    ("lock",),
    ("report",),
    ("measure",),
    ("ops",),
    ("model",),
    ("surgeon",),
    ("rewrite",),
    ("verify",),
    ("_carry",),  # protos <-> graphs; the verifier writes a proto too
    ("graph",),
    ("errors",),
)
"""Rooms from left to right; a room may import any room to its right, and no room of its own column but itself.

A module of the package whose name begins with `_` is a part of the rooms that import it: what it imports counts as
imported by them.
"""

COLUMN = {room: index for index, column in enumerate(ORDER) for room in column}
HEAVY = {"onnx", "onnx_ir", "onnxruntime", "onnx_graphsurgeon", "scipy", "sklearn", "torch", "PIL"}


def sources() -> list[Path]:
    return sorted([*(ROOT / "onnxslim_core").rglob("*.py"), *(ROOT / "passes").rglob("*.py")])


def module_name(path: Path) -> str:
    """`passes/x.py` is `onnxslim_core.passes.x`; a package is called by its folder."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[0] == "passes":
        parts.insert(0, "onnxslim_core")
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str | None:
    """The room of a module of ours; None for the package itself and for foreign modules."""
    first, _, rest = module.partition(".")
    return rest.split(".")[0] if first == "onnxslim_core" and rest else None


def imported(tree: ast.AST, module: str, is_package: bool) -> Iterator[tuple[int, str, int]]:
    """Every (line, absolute name, level) a file imports, lazily or not; `from a import b` counts as `a.b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, 0
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.split(".") if is_package else module.split(".")[:-1]
                package = package[: len(package) - node.level + 1]
                base = ".".join([*package, *([base] if base else [])])
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}", node.level


def is_part(room: str | None) -> bool:
    return room is not None and room.startswith("_") and not room.startswith("__")


@cache
def rooms_behind(part: str, seen: tuple[str, ...] = ()) -> frozenset[str]:
    """The rooms that a part imports, through other parts too."""
    assert part not in seen, f"parts import each other: {' -> '.join((*seen, part))}"
    path = ROOT / "onnxslim_core" / f"{part}.py"
    found: set[str] = set()
    for _, name, _ in imported(ast.parse(path.read_text(encoding="utf-8")), f"onnxslim_core.{part}", False):
        target = room_of(name)
        if target is not None and not target.startswith("__"):
            found |= rooms_behind(target, (*seen, part)) if is_part(target) else {target}
    return frozenset(found)


def violations(text: str, module: str, is_package: bool = False) -> list[str]:
    """What a file with this text would do against the order of imports."""
    room, found = room_of(module), []
    for line, name, level in imported(ast.parse(text), module, is_package):
        if level and room != "passes":
            found.append(f"{module}:{line}: relative import of {name}")
        if not level and room == "passes" and name.startswith("onnxslim_core.passes"):
            found.append(f"{module}:{line}: a sibling of passes imported absolutely: {name}")
        target = room_of(name)
        if target is None or target == room or target.startswith("__version"):
            continue
        for behind in sorted(rooms_behind(target)) if is_part(target) else [target]:
            if behind not in COLUMN:
                found.append(f"{module}:{line}: imports {name}, which is no room")
            elif room is not None and not is_part(room) and COLUMN[behind] <= COLUMN[room]:
                found.append(f"{module}:{line}: {room} imports {behind} by {name}")
    return found


@pytest.mark.parametrize("path", sources(), ids=module_name)
def test_imports_go_one_way(path: Path) -> None:
    module = module_name(path)
    room = room_of(module)
    assert room is None or room in COLUMN or is_part(room), f"{room} has no place in the order"
    assert room is None or not is_part(room) or rooms_behind(room) <= COLUMN.keys()
    assert violations(path.read_text(encoding="utf-8"), module, path.name == "__init__.py") == []


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("onnxslim_core.graph", "from onnxslim_core.model import load"),
        ("onnxslim_core.graph", "def f():\n    import onnxslim_core.cli"),
        ("onnxslim_core.pipeline", "from onnxslim_core import verdict"),
        ("onnxslim_core.criteria.l2", "from onnxslim_core.repair import table"),
        ("onnxslim_core.report", "from .measure import cost"),
        ("onnxslim_core.passes.factorize", "from onnxslim_core.passes import pass_class"),
        ("onnxslim_core.errors", "from onnxslim_core import compress"),
    ],
)
def test_order_catches(module: str, text: str) -> None:
    assert violations(text, module)


def test_order_catches_a_way_through_a_part() -> None:
    parts = {p.stem: rooms_behind(p.stem) for p in (ROOT / "onnxslim_core").glob("_*.py") if is_part(p.stem)}
    part, behind = next((name, min(rooms, key=COLUMN.__getitem__)) for name, rooms in parts.items() if rooms)
    assert violations(f"from onnxslim_core.{part} import x", f"onnxslim_core.{behind}")
    assert violations(f"from onnxslim_core.{part} import x", "onnxslim_core.cli") == []


def test_order_allows_the_right() -> None:
    assert violations("from onnxslim_core.graph import replace\nimport onnx", "onnxslim_core.model") == []
    assert violations("from ._weights import scale\nfrom . import pass_class", "onnxslim_core.passes.x") == []
    assert violations("from onnxslim_core.measure.cost import macs", "onnxslim_core.measure.latency") == []


def test_border_modules() -> None:
    """onnx-graphsurgeon stays in surgeon.py, onnx.helper in model.py, and no file needs what is only an extra."""
    for path in sources():
        module = module_name(path)
        for line, name, _ in imported(ast.parse(path.read_text(encoding="utf-8")), module, path.name == "__init__.py"):
            where = f"{module}:{line} imports {name}"
            assert not name.startswith("onnx_graphsurgeon") or room_of(module) == "surgeon", where
            assert not name.startswith("onnx.helper") or room_of(module) == "model", where
            assert name.split(".")[0] not in {"torch", "sklearn", "onnxsim", "onnxslim", "onnxscript"}, where


@pytest.mark.parametrize("arguments", [[], ["--help"], ["--version"]], ids=["import", "help", "version"])
def test_command_line_starts_light(arguments: list[str]) -> None:
    script = (
        "import sys\n"
        "import onnxslim_core.cli as cli\n"
        f"arguments = {arguments!r}\n"
        "try:\n"
        "    sys.argv = ['onnxslim-core', *arguments]\n"
        "    assert not arguments or cli.main() == 0\n"
        "except SystemExit as leave:\n"
        "    assert not leave.code, leave.code\n"
        f"print('LOADED', *sorted(set(sys.modules) & {HEAVY!r}))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "LOADED"
    if arguments:
        assert len(done.stdout.splitlines()) > 1, "prints something"
