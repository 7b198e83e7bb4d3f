"""Libraries that onnx_ir names and we do not use, loaded when somebody uses them.

onnx_ir names sympy for arithmetic on symbolic sizes, which nothing here does; loading it took a quarter of a second, a
third of the start of every command. While onnx_ir is loaded, its name for sympy is given to a stand-in that loads the
real one at the first look at it. Nobody else ever gets the stand-in: `importlib.util.LazyLoader`, which would serve
everybody who imports sympy, is not safe with threads before Python 3.11.9 and 3.12.3, and loads `sympy.core` twice.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

__all__ = ["install"]

_READER = "onnx_ir"
_NAMES = ("sympy", "onnx_ir._symbolic_shapes")
"""The library, and the module that would use it as soon as it is loaded."""


class _StandIn(ModuleType):
    """Has what the module of its name has, which is loaded for the first who asks."""

    def __getattr__(self, name: str) -> Any:
        self.leave()
        return getattr(import_module(self.__name__), name)

    def leave(self) -> None:
        """Let the next import of this name find the real module."""
        if sys.modules.get(self.__name__) is self:
            sys.modules.pop(self.__name__, None)


class _Loading(Loader):
    """Loads onnx_ir with stand-ins for what it names."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        given = [_StandIn(name) for name in _NAMES if name not in sys.modules]
        sys.modules.update({each.__name__: each for each in given})
        try:
            self._loader.exec_module(module)
        finally:
            for each in given:
                each.leave()


class _Later(MetaPathFinder):
    """Finds onnx_ir."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        found = PathFinder.find_spec(fullname, path, target) if fullname == _READER else None
        if found is not None and found.loader is not None:
            found.loader = _Loading(found.loader)
        return found


def install() -> None:
    """Have it so from now on; what is loaded already stays."""
    if not any(isinstance(finder, _Later) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Later())
