"""Libraries that are loaded when they are first used, not when somebody else's module names them.

onnx_ir names sympy for arithmetic on symbolic sizes, which nothing here does; loading it took a quarter of a second, a
third of the start of every command.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import LazyLoader
from types import ModuleType

__all__ = ["install"]

_NAMES = frozenset({"sympy", "onnx_ir._symbolic_shapes"})
"""The library, and the module that would use it as soon as it is loaded."""


class _Later(MetaPathFinder):
    """Finds these modules, and has them loaded at the first look at what is in them."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        found = PathFinder.find_spec(fullname, path, target) if fullname in _NAMES else None
        if found is not None and found.loader is not None:
            found.loader = LazyLoader(found.loader)
        return found


def install() -> None:
    """Have it so from now on; what is loaded already stays."""
    if not any(isinstance(finder, _Later) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Later())
