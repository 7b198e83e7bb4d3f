"""What the functions of the Python interface are handed: of the right kind and range, or one line that says so.

The command line checks its options itself, a recipe its keys; this is for what comes from Python.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from onnxslim_core.errors import RecipeError

__all__ = ["check_run", "globs", "numbers", "seconds", "sizes", "table", "whole"]


def whole(name: str, value: Any, low: int = 0) -> int:
    """A whole number, numpy's included, not below the lowest.

    Raises:
        RecipeError: if it is none.
    """
    found = None
    if not isinstance(value, bool) and hasattr(value, "__index__"):
        found = operator.index(value)
    if found is None or found < low:
        raise RecipeError(f"{name} is {value!r}", f"a whole number from {low}")
    return found


def seconds(name: str, value: Any) -> float:
    """A time that is neither zero nor endless.

    Raises:
        RecipeError: if it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise RecipeError(f"{name} is {value!r}", "a number of seconds above 0")
    return float(value)


def numbers(name: str, value: Any) -> tuple[float, ...]:
    """Several numbers.

    Raises:
        RecipeError: if it is anything else, one number included.
    """
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise RecipeError(f"{name} is {value!r}", "a list of numbers")
    found = tuple(value)
    if any(isinstance(each, bool | str) or not hasattr(each, "__float__") for each in found):
        raise RecipeError(f"{name} is {value!r}", "a list of numbers")
    return found


def globs(name: str, value: Any) -> tuple[str, ...]:
    """Globs over names; a text is one glob.

    Raises:
        RecipeError: if it is anything else.
    """
    found = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Iterable) else (None,)
    if not all(isinstance(each, str) for each in found):
        raise RecipeError(f"{name} is {value!r}", "a list of globs over names")
    return found


def table(name: str, value: Mapping[str, Any] | None) -> dict[str, Any]:
    """Entries by the name of an input; None is none.

    Raises:
        RecipeError: if it is anything else.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise RecipeError(f"{name} is a {type(value).__name__}", "a dict by the names of inputs")
    return dict(value)


def sizes(shapes: Mapping[str, Sequence[int]] | None) -> dict[str, tuple[int, ...]]:
    """The sizes of inputs by name.

    Raises:
        RecipeError: if they are anything else.
    """
    found = table("shapes", shapes)
    for name, shape in found.items():
        if isinstance(shape, str) or not isinstance(shape, Iterable):
            raise RecipeError(f"the shape of input '{name}' is {shape!r}", "a list of sizes")
        found[name] = tuple(whole(f"a size of input '{name}'", size) for size in shape)
    return found


def check_run(*, threads: Any, seed: Any) -> None:
    """How onnxruntime runs and what is drawn; a seed of None is that of somebody else.

    Raises:
        RecipeError: if either is out of range.
    """
    whole("threads", threads, 1)
    if seed is not None:
        whole("seed", seed)
