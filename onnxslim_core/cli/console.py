"""The console of a stream: its width, and nothing out of a model that a terminal would obey."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TextIO

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook
from rich.segment import Segment

from onnxslim_core.cli.frame import visible

__all__ = ["open_console"]


def open_console(stream: TextIO) -> Console:
    """A console that prints text as it is, names of any kind too; only its own colours are colours."""
    # a log file is no terminal of 80 columns; COLUMNS still decides where it is set
    wide = not stream.isatty() and "COLUMNS" not in os.environ
    console = Console(file=stream, width=120 if wide else None, soft_wrap=False)
    console.push_render_hook(_Visible())
    return console


class _Visible(RenderHook):
    """Makes all text `visible` before the console adds colours."""

    def process_renderables(self, renderables: Iterable[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """What is printed in place of what was given."""
        return [_Escaped(each) for each in renderables]


@dataclass(frozen=True, slots=True)
class _Escaped:
    inner: ConsoleRenderable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        for segment in console.render(self.inner, options):
            yield segment if segment.control else segment._replace(text=visible(segment.text))
