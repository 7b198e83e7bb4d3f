"""A user's own Python: `file.py:function`. It runs only where the caller has made sure that it may."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxslim_core.errors import DataError, RecipeError, SlimError, told

__all__ = ["call_source", "guarded", "load_function", "load_metric"]


def load_function(named: str, folder: Path) -> Callable[..., Any]:
    """The function of `file.py:function`. The file is run: the caller has made sure that it may.

    Args:
        named: The file, relative to the folder, and the function in it.
        folder: Where relative paths start.

    Raises:
        RecipeError: if it is not of that form.
        DataError: if there is no such file or function, or the file fails.
    """
    file, _, function = named.rpartition(":")
    if not file.endswith(".py") or not function:
        raise RecipeError(f"'{named}' is not of the form FILE.py:FUNCTION")
    path = folder / file
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise DataError(f"no such Python file: '{path}'")
    module = importlib.util.module_from_spec(spec)
    guarded(spec.loader.exec_module, f"'{path.name}'")(module)
    found = getattr(module, function, None)
    if not callable(found):
        raise DataError(f"'{path.name}' has no function '{function}'")
    checked: Callable[..., Any] = found
    return checked


def load_metric(given: Callable[..., float] | str | None) -> Callable[..., float] | None:
    """A metric, (outputs, labels) -> float, as a function whose own failures come out as one line.

    Args:
        given: The function, or `file.py:function`; None is none.

    Raises:
        RecipeError: if it is neither.
        DataError: if there is no such function, or its file fails.
    """
    if given is None:
        return None
    if isinstance(given, str):
        given = load_function(given, Path.cwd())
    if not callable(given):
        raise RecipeError(f"a {type(given).__name__} is no metric", "a function (outputs, labels), or FILE.py:FUNCTION")
    return guarded(given, "the metric")


def call_source(named: str, folder: Path) -> Any:
    """What the function of `file.py:function` returns, called without an argument: anything that is taken as data.

    Args:
        named: As for `load_function`.
        folder: Where relative paths start.

    Raises:
        DataError: if there is no such function, or it gives nothing or fails, now or while it gives samples.
    """
    found = guarded(load_function(named, folder), f"'{named}'")()
    if found is None:  # which would stand for "no data was given"
        raise DataError(f"'{named}' returns None, not samples", "return arrays by input name, or samples one by one")
    if isinstance(found, Iterable) and not isinstance(found, str | Path | Mapping | Sequence):
        return _watched(found, f"'{named}'")
    return found


def guarded(function: Callable[..., Any], what: str) -> Callable[..., Any]:
    """A user's function: whatever it does, also `sys.exit(0)`, is neither our bug nor a pass.

    Args:
        function: Called with whatever the result is called with.
        what: What messages call it.
    """

    def call(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except SlimError:
            raise
        except (Exception, SystemExit) as err:
            raise DataError(f"{what} fails when it is run: {told(err)}") from err

    return call


def _watched(samples: Iterable[Any], what: str) -> Iterator[Any]:
    step = guarded(iter(samples).__next__, what)
    while True:
        try:
            yield step()
        except DataError as err:
            if isinstance(err.__cause__, StopIteration):
                return
            raise
