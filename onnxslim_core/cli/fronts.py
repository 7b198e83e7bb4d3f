"""`compress --pareto`: several models in one call."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxslim_core._paths import landing
from onnxslim_core.cli.frame import OK, SAID_NO, Shell, check_targets, write_text
from onnxslim_core.errors import RecipeError

if TYPE_CHECKING:
    from rich.console import Console

    from onnxslim_core.front import Front
    from onnxslim_core.recipe import Recipe

__all__ = ["targets_of", "write_front"]


def targets_of(text: str | None) -> tuple[float, ...]:
    """The shares of `--targets 0.9,0.8`.

    Raises:
        RecipeError: if one is no number.
    """
    from onnxslim_core.front import TARGETS

    if text is None:
        return TARGETS
    try:
        return tuple(float(word) for word in text.split(","))
    except ValueError as err:
        raise RecipeError(f"--targets '{text[:60]}' is no list of shares", "such as --targets 0.8,0.6,0.4") from err


def write_front(
    shell: Shell, model: str, output: str, recipe: Recipe, targets: tuple[float, ...], locks: bool, **options: Any
) -> int:
    """Run the recipe at every target, write the models that are worth it, and show all."""
    from onnxslim_core.front import numbered, pareto
    from onnxslim_core.report import json_text, plain

    report, source, read = options.pop("report"), options.pop("data"), options.pop("sources")
    names = numbered(output, len(targets) + 1)
    beside = [f"{name}.lock" for name in names] if locks else []
    made = [*names, *(f"{landing(name)}.data" for name in names), *beside, report]
    check_targets(*made, sources=read, models=(model,), root=options["external_data_root"])
    with shell.progress() as tell:
        front = pareto(
            model, recipe, targets, data=source, threads=shell.threads, seed=shell.seed, progress=tell, **options
        )
        front.save(output, locks=locks)
    document = plain(front.document(output))
    if report is not None:
        write_text(report, json_text(document) + "\n")
    shell.emit(document)
    shell.show(lambda console: _print(console, front, output))
    if not front.passed:
        shell.say(f"nothing was written: no target makes a {Path(output).name} that meets the budget")
        return SAID_NO
    shell.tell_stale(*_left_over(front, output), *([] if locks else (f"{name}.lock" for name in front.paths(output))))
    return OK


def _left_over(front: Front, output: str) -> Iterator[Path]:
    """Members of an earlier front that was longer: their numbers follow on those of this one."""
    from onnxslim_core.front import numbered

    following = (numbered(output, number)[-1] for number in itertools.count(len(front.best) + 1))
    return itertools.takewhile(Path.exists, following)


def _print(console: Console, front: Front, output: str) -> None:
    """A row per target; what is not on the front says why."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    files = {id(point): path.name for point, path in zip(front.best, front.paths(output), strict=True)}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for title in ("loss", "time", "interval", "MACs", "size"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    for point in front.points:
        latency = point.result.report.latency
        table.add_row(
            point.name,
            "?" if point.loss != point.loss else f"{point.loss:.4g}",
            "" if point.time is None else f"x {point.time:.3f}",
            "" if latency is None else f"{latency.low:.3f} to {latency.high:.3f}",
            "" if point.macs is None else f"x {point.macs:.3f}",
            f"x {point.size:.3f}",
            f"[dim]{escape(point.why)}[/]" if point.why else f"[green]{escape(files[id(point)])}[/]",
        )
    console.print(table)
    metric = any(point.result.report.fidelity and point.result.report.fidelity.metric for point in front.points)
    loss = "by how much the metric falls" if metric else "1 - cosine of the worst output"
    console.print(f"[dim]loss: {loss}; all against the original, one after the other[/]", highlight=False)
