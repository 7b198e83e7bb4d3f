"""Functions that a model brings along, written out where they are called."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, RemoveUnusedFunctionsPass

from onnxslim_core.graph import STANDARD, all_nodes

__all__ = ["FunctionGuard", "inline_functions", "same_opsets", "written_out"]

FunctionGuard = Callable[[ir.Function, ir.Model], str | None]
"""A predicate (function, model) -> reason for refusal or None."""


def same_opsets(function: ir.Function, model: ir.Model) -> str | None:
    """Operators mean what the version says that the function imports, not the one that the model imports."""
    ours = _versions(model.opset_imports)
    for domain, version in _versions(function.opset_imports).items():
        if ours.get(domain, version) != version:
            return f"it imports version {version} of '{domain or 'ai.onnx'}', the model {ours[domain]}"
    return None


def inline_functions(
    model: ir.Model, guards: tuple[FunctionGuard, ...], refused: dict[tuple[str, str], list[str]]
) -> list[str]:
    """Write out every function that can be, wherever it is called; functions that nobody calls go.

    Args:
        model: Changed in place. Nodes that were written out may be without a name, or share one.
        guards: Those that are switched on.
        refused: Gets the names of functions that stay, by (guard, reason).

    Returns:
        The names of the functions that are gone.
    """
    before = {key: f.name for key, f in model.functions.items()}
    if not before:
        return []
    stay: set[ir.Function] = set()
    for function in model.functions.values():
        for guard in guards:
            if (reason := guard(function, model)) is not None:
                refused.setdefault((guard.__name__, reason), []).append(function.name)
                stay.add(function)
        if not _can_inline(function):
            stay.add(function)
    InlinePass(criteria=lambda function: function not in stay)(model)
    RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
    return [name for key, name in before.items() if key not in model.functions]


def written_out(model: ir.Model) -> ir.Model:
    """The model itself where it brings no functions along, else a copy in which all that can be are written out."""
    if not model.functions:
        return model
    found = model.clone()
    inline_functions(found, (), {})
    return found


def _versions(imports: dict[str, int]) -> dict[str, int]:
    return {"" if domain in STANDARD else domain: version for domain, version in imports.items()}


def _can_inline(function: ir.Function) -> bool:
    """False for what `InlinePass` raises on or gets wrong: attributes that are graphs, an output that is an input."""
    if any(value in function.inputs for value in function.outputs):
        return False
    graphs = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    references = (a for node in all_nodes(function.graph) for a in node.attributes.values() if a.is_ref())
    return not any(a.type in graphs for a in (*function.attributes.values(), *references))
