"""Values from TOML as typed options: what fits a type, and every mistake as one line with the nearest valid name."""

from __future__ import annotations

import ast
import difflib
import enum
import inspect
import itertools
import math
import textwrap
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from onnxslim_core._paths import open_regular, reason
from onnxslim_core.errors import RecipeError

__all__ = [
    "Errors",
    "field_docs",
    "finite",
    "fit",
    "nearest",
    "read_text",
    "read_toml",
    "shown",
    "some",
    "take",
    "type_words",
]


_LARGEST = 2**20
"""Bytes of a file that people write."""


class Errors:
    """Collects mistakes, one line each, and raises them together."""

    def __init__(self, origin: str) -> None:
        self.origin = origin
        self.lines: list[str] = []

    def add(self, where: str, text: str) -> None:
        """Note one mistake at a place of the file."""
        self.lines.append(": ".join(part for part in (self.origin, where, " ".join(text.split())) if part))

    def unknown(self, where: str, key: str, kind: str, known: Iterable[str], of: str = "") -> None:
        """Note an unknown name, with the nearest one that exists."""
        owner = f" of {of}" if of else ""
        self.add(where, f"unknown {kind} '{key}'{owner}{nearest(key, list(known))}")

    def keys(self, where: str, table: Mapping[str, object], known: Sequence[str], kind: str = "key") -> None:
        """Note every key of a table that is not known."""
        for key in table:
            if key not in known:
                self.unknown(where, key, kind, known)

    def check(self, kind: type[RecipeError]) -> None:
        """Raise what was noted.

        Raises:
            RecipeError: (or the given kind) with all lines in `errors`.
        """
        if not self.lines:
            return
        if len(self.lines) == 1:
            raise kind(self.lines[0], errors=self.lines)
        raise kind(f"{self.origin}: {len(self.lines)} errors", "\n".join(self.lines), self.lines)


def nearest(word: str, known: list[str]) -> str:
    """The end of a message about an unknown word: the nearest known one, or all of them."""
    close = difflib.get_close_matches(word, known, 1, 0.6)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; known: {', '.join(known)}" if known else ""


def finite(value: object) -> float | None:
    """A finite float, or None where the value is something else (TOML knows nan and inf; no limit may be one)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def fit(value: object, hint: Any) -> tuple[bool, Any]:
    """Whether a TOML value is of a field's type, and the value as that type (list to tuple, text to Enum)."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        options = (fit(value, option) for option in typing.get_args(hint))
        return next((found for found in options if found[0]), (False, None))
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in typing.get_args(hint)), value
    if origin is tuple:
        return _fit_tuple(value, typing.get_args(hint))
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        found = next((member for member in hint if value in (member.value, member)), None)
        return found is not None, found
    if hint is float:
        number = finite(value)
        return number is not None, number
    if hint is int:
        return _whole(value) is not None, value
    if hint in (bool, str):
        return isinstance(value, hint), value
    return hint in (Any, object), value


def _fit_tuple(value: object, args: tuple[Any, ...]) -> tuple[bool, Any]:
    if not isinstance(value, list | tuple):
        return False, None
    each = [args[0]] * len(value) if args[1:] == (Ellipsis,) else list(args)
    if len(each) != len(value):
        return False, None
    fits = [fit(item, hint) for item, hint in zip(value, each, strict=True)]
    return all(ok for ok, _ in fits), tuple(item for _, item in fits)


def type_words(hint: Any) -> str:
    """What a message calls a type: 'a number', 'one of "l1", "l2"'."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(type_words(option) for option in typing.get_args(hint) if option is not type(None))
    if origin is Literal or (isinstance(hint, type) and issubclass(hint, enum.Enum)):
        choices = typing.get_args(hint) if origin is Literal else [member.value for member in hint]
        words = ", ".join(repr(choice) for choice in choices)
        return words if len(choices) == 1 else f"one of {words}"
    if origin is tuple:
        return f"a list of {type_words(typing.get_args(hint)[0])}"
    plain = {float: "a number", int: "an integer", bool: "true or false", str: "text"}
    return plain.get(hint, "something else")


def some(hint: Any) -> Any:
    """A harmless value of a type, which stands in for one that is missing; None where there is no telling."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return next(iter(hint))
    if origin in (typing.Union, types.UnionType):
        return some(args[0])
    return args[0] if origin is Literal else () if origin is tuple else _HARMLESS.get(hint)


_HARMLESS: dict[Any, Any] = {float: 0.5, int: 1, bool: False, str: ""}


def field_docs(cls: type) -> dict[str, str]:
    """The string under each field, which Python does not keep, read from the source."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    except (OSError, TypeError, SyntaxError):
        return {}
    found: dict[str, str] = {}
    body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
    for statement, following in itertools.pairwise(body):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            found[statement.target.id] = " ".join(str(following.value.value).split())
    return found


def shown(value: object) -> str:
    return f"'{value}'" if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else repr(value)


def take(
    table: Mapping[str, Any], key: str, hint: Any, where: str, errors: Errors, found: dict[str, Any], to: str = ""
) -> None:
    """Copy a key of the right type into `found`, note one of a wrong type."""
    if key not in table:
        return
    fits, value = fit(table[key], hint)
    if fits:
        found[to or key] = value
    else:
        errors.add(where, f"'{key}' is {shown(table[key])}, not {type_words(hint)}")


def read_text(path: Path, kind: type[RecipeError]) -> str:
    try:
        with open_regular(path) as file:
            data = file.read(_LARGEST + 1)
        if len(data) > _LARGEST:
            raise kind(f"cannot read '{path}': it has more than {_LARGEST >> 20} MB, which no recipe or budget has")
        return data.decode("utf-8-sig")
    except FileNotFoundError as err:
        raise kind(f"no such file: '{path}'") from err
    except OSError as err:
        raise kind(f"cannot read '{path}': {reason(err)}") from err
    except ValueError as err:  # no UTF-8, or a path with a null character
        raise kind(f"cannot read '{path}': {err}") from err


def read_toml(text: str, origin: str, kind: type[RecipeError]) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as err:
        raise kind(f"{origin}: not TOML: {err}") from err
