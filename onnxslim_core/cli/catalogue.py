"""What `passes` shows: each pass by its own words and options."""

from __future__ import annotations

import dataclasses
import enum
import inspect
import sys
import typing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from onnxslim_core._options import field_docs
from onnxslim_core.report import plain

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Option", "Page", "all_passes", "one_pass", "print_list", "print_page"]


@dataclass(frozen=True, slots=True)
class Option:
    """One option of a pass: its name, type in words, default and meaning."""

    name: str
    type: str
    default: Any
    help: str


@dataclass(frozen=True, slots=True)
class Page:
    """One pass.

    Attributes:
        kind: "bitwise", "algebraic" or "lossy"; "not loaded" in a list, of a pass of another package.
        status: "preview", "stable" or "foreign".
        summary: Its first sentence.
        text: All that it says about itself.
        options: As fields of the pass.
        guards: Names of what it refuses by; empty for a whole-graph pass.
    """

    name: str
    kind: str
    status: str
    summary: str
    text: str
    options: tuple[Option, ...]
    guards: tuple[str, ...]


def all_passes() -> list[Page]:
    """Every pass of the table, in its order, and what other packages bring along, whose code a list does not run."""
    from onnxslim_core.passes import TABLE, foreign_passes

    summary = "Comes with another package: give its name to load it and see more."
    ours = [one_pass(row.name) for row in TABLE]
    return ours + [Page(name, "not loaded", "foreign", summary, "", (), ()) for name in foreign_passes()]


def one_pass(name: str) -> Page:
    """One pass by its name in a recipe.

    Raises:
        RecipeError: if there is no such pass, or its package cannot load it.
    """
    from onnxslim_core.passes import TABLE, pass_class
    from onnxslim_core.rewrite import Kind

    cls = pass_class(name)
    status = next((row.status for row in TABLE if row.name == name), "foreign")
    # a file of ours is one pass, and says all of it; of a foreign one nothing is known but its class or function
    text = inspect.cleandoc((status != "foreign" and sys.modules[cls.__module__].__doc__) or cls.__doc__ or "")
    kind = cls.kind if isinstance(cls.kind, Kind) else cls().kind  # a function's is an option
    summary = " ".join(text.split("\n\n")[0].split())
    guards = tuple(str(getattr(guard, "__name__", guard)) for guard in getattr(cls, "guards", ()))
    return Page(name, kind.value, status, summary, text, _options(cls), guards)


def _options(cls: type) -> tuple[Option, ...]:
    hints, helps = typing.get_type_hints(cls), field_docs(cls)
    return tuple(
        Option(f.name, _words(hints[f.name]), plain(_default(f)), helps.get(f.name, ""))
        for f in dataclasses.fields(cls)
        if f.init
    )


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def _words(hint: Any) -> str:
    """A type as one would say it: 'float', 'l1 | l2', 'list of str'."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return " | ".join(str(member.value) for member in hint)
    if origin is typing.Literal:
        return " | ".join(map(str, parts))
    if origin is tuple:
        return f"list of {_words(parts[0])}"
    if origin is not None and parts:
        return " | ".join("none" if part is type(None) else _words(part) for part in parts)
    return str(getattr(hint, "__name__", hint))


def print_list(console: Console, pages: list[Page]) -> None:
    """All passes, one line each."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("pass", "promises", "status", "what it does"):
        table.add_column(title, no_wrap=title != "what it does")
    for page in pages:
        colour = {"lossy": "yellow", "not loaded": "dim"}.get(page.kind, "green")
        table.add_row(escape(page.name), f"[{colour}]{page.kind}[/]", page.status, escape(page.summary))
    console.print(table)
    console.print("bitwise: every bit of the answers is equal; algebraic: equal in real arithmetic; lossy: measured")


def print_page(console: Console, page: Page) -> None:
    """One pass: its own words, its options, what it refuses."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    console.print(f"[bold]{escape(page.name)}[/] ({page.kind}, {page.status})\n")
    console.print(page.text, markup=False, highlight=False)
    if page.options:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for title in ("option", "type", "default", ""):
            table.add_column(title, overflow="fold")
        for option in page.options:
            shown = "none" if option.default is None else str(option.default)
            table.add_row(*map(escape, (option.name, option.type, shown, option.help)))
        console.print()
        console.print(table)
    if page.guards:
        console.print("refuses by: " + ", ".join(page.guards), highlight=False)
