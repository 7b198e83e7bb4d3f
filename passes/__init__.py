"""The table of rewrites: one row per pass, loaded on first use."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import cast

from onnxslim_core.errors import RecipeError, told
from onnxslim_core.rewrite import Kind, Pass
from onnxslim_core.surgeon import as_pass

if __name__ != "onnxslim_core.passes":
    raise ImportError("import onnxslim_core.passes, not " + __name__)

__all__ = ["GROUP", "TABLE", "Row", "foreign_passes", "pass_class"]

GROUP = "onnxslim_core.passes"
"""Entry points of passes that other packages bring along."""


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
    Row("reorder", "reorder", "Reorder", Kind.ALGEBRAIC, "preview"),
    Row("fuse_activations", "fuse_activations", "FuseActivations", Kind.ALGEBRAIC, "preview"),
    Row("fuse_batchnorm", "fuse_batchnorm", "FuseBatchNorm", Kind.ALGEBRAIC, "preview"),
    Row("merge_convs", "merge_convs", "MergeConvs", Kind.ALGEBRAIC, "preview"),
    Row("remove_idle", "remove_idle", "RemoveIdle", Kind.ALGEBRAIC, "preview"),
    Row("select_idle", "select_idle", "SelectIdle", Kind.ALGEBRAIC, "preview"),
    Row("prune_channels", "prune_channels", "PruneChannels", Kind.LOSSY, "preview"),
    Row("select_channels", "select_channels", "SelectChannels", Kind.LOSSY, "preview"),
    Row("slim", "slim", "Slim", Kind.LOSSY, "preview"),
    Row("drop_blocks", "drop_blocks", "DropBlocks", Kind.LOSSY, "preview"),
    Row("factorize", "factorize", "Factorize", Kind.LOSSY, "preview"),
    Row("refit", "refit", "Refit", Kind.LOSSY, "preview"),
    Row("quantize", "quantize", "Quantize", Kind.LOSSY, "preview"),
)


def pass_class(name: str) -> type[Pass]:
    """The class of a pass by its name in a recipe.

    A pass of another package is called `PACKAGE:NAME`; it is an entry point of the group `onnxslim_core.passes`, is
    loaded only when it is asked for by that name, and so cannot shadow one of ours. It is a class like ours, or a
    function written against onnx-graphsurgeon (see `surgeon.as_pass`).

    Raises:
        RecipeError: if there is no such pass, or its package cannot load it.
    """
    for row in TABLE:
        if row.name == name:
            found: type[Pass] = getattr(importlib.import_module(f".{row.module}", __name__), row.class_name)
            return found
    foreign = foreign_passes()
    if name in foreign:
        return _checked(name, _loaded(name, foreign[name]))
    known = ", ".join([*(row.name for row in TABLE), *foreign])
    raise RecipeError(f"no pass is called '{name}'", f"known: {known}")


def foreign_passes() -> dict[str, EntryPoint]:
    """What other packages say that they bring along, by its name in a recipe; nothing of it is loaded."""
    found = {f"{entry.dist.name}:{entry.name}": entry for entry in entry_points(group=GROUP) if entry.dist}
    return dict(sorted(found.items()))


def _loaded(name: str, entry: EntryPoint) -> object:
    try:
        return entry.load()
    except (Exception, SystemExit) as err:  # it runs their code
        package = name.partition(":")[0]
        raise RecipeError(f"'{name}' cannot be loaded: {told(err)}", f"package '{package}' is to blame") from err


def _checked(name: str, found: object) -> type[Pass]:
    if inspect.isfunction(found):
        return as_pass(name, found)
    if isinstance(found, type) and dataclasses.is_dataclass(found) and isinstance(getattr(found, "kind", None), Kind):
        return cast("type[Pass]", found)  # a protocol with class variables cannot be tested for
    raise RecipeError(
        f"'{name}' is no pass",
        "a frozen dataclass with name, kind and run(model, context), or a function of an onnx_graphsurgeon.Graph",
    )
