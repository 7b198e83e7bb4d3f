"""The table of rewrites: one row per pass, loaded on first use."""

from __future__ import annotations

import importlib
from dataclasses import dataclass

from onnxslim_core.errors import RecipeError
from onnxslim_core.rewrite import Kind, Pass

if __name__ != "onnxslim_core.passes":
    raise ImportError("import onnxslim_core.passes, not " + __name__)

__all__ = ["TABLE", "Row", "pass_class"]


@dataclass(frozen=True, slots=True)
class Row:
    """One pass: its word in a recipe, where it is, what it promises, and how far it has proven itself."""

    name: str
    module: str
    class_name: str
    kind: Kind
    status: str


TABLE = (
    Row("normalize", "normalize", "Normalize", Kind.BITWISE, "preview"),
    Row("fold_constants", "fold_constants", "FoldConstants", Kind.ALGEBRAIC, "preview"),
    Row("fuse_batchnorm", "fuse_batchnorm", "FuseBatchNorm", Kind.ALGEBRAIC, "preview"),
    Row("remove_idle", "remove_idle", "RemoveIdle", Kind.ALGEBRAIC, "preview"),
    Row("prune_channels", "prune_channels", "PruneChannels", Kind.LOSSY, "preview"),
    Row("factorize", "factorize", "Factorize", Kind.LOSSY, "preview"),
)


def pass_class(name: str) -> type[Pass]:
    """The class of a pass by its name in a recipe.

    Raises:
        RecipeError: if there is no such pass.
    """
    for row in TABLE:
        if row.name == name:
            found: type[Pass] = getattr(importlib.import_module(f".{row.module}", __name__), row.class_name)
            return found
    raise RecipeError(f"no pass is called '{name}'", f"known: {', '.join(row.name for row in TABLE)}")
