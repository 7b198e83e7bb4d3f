"""Tables of `compare` and `bench` for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from rich.console import Console

    from onnxslim_core.measure.fidelity import Fidelity
    from onnxslim_core.measure.latency import Alone, Latency

__all__ = ["print_alone", "print_fidelity", "print_latency"]


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, title in enumerate(columns):
        table.add_column(title, justify="right" if index else "left", overflow="fold")
    return table


def print_latency(console: Console, latency: Latency, first: str, second: str) -> None:
    """Two models against each other, and the first against itself."""
    table = _table("", "median", "ratio", "95 % interval")
    table.add_row(escape(first), f"{latency.reference_ms:.4g} ms", "1", "")
    interval = f"{latency.low:.3f} to {latency.high:.3f}"
    table.add_row(escape(second), f"{latency.candidate_ms:.4g} ms", f"{latency.ratio:.3f}", interval)
    if (noise := latency.noise) is not None:
        between = f"{noise.low:.3f} to {noise.high:.3f}"
        table.add_row(f"{escape(first)} against itself", "", f"{noise.ratio:.3f}", between)
    console.print(table)
    colours = {"faster": "green", "not slower": "green", "slower": "red"}
    console.print(f"[bold {colours.get(latency.verdict, 'yellow')}]{latency.verdict}[/]", highlight=False)
    console.print(_how(latency, f"{latency.pairs} pairs"), highlight=False, style="dim")


def print_alone(console: Console, alone: Alone, name: str) -> None:
    """One model."""
    table = _table("", "median", "95 % interval")
    table.add_row(escape(name), f"{alone.ms:.4g} ms", f"{alone.low:.4g} to {alone.high:.4g} ms")
    console.print(table)
    console.print(_how(alone, f"{alone.calls} calls"), highlight=False, style="dim")


def _how(timing: Latency | Alone, count: str) -> str:
    threads = "1 thread" if timing.threads == 1 else f"{timing.threads} threads"
    clock = "CPU time of the calling thread" if timing.clock == "thread" else "wall clock"
    sessions = f"{timing.sessions} rounds of fresh sessions"
    return f"{count} in {sessions}, {threads}, batch {timing.batch}, {clock}, {timing.seconds:.1f} s"


def print_fidelity(console: Console, fidelity: Fidelity, data: str) -> None:
    """How far the answers of two models are apart, output by output."""
    names = ("output", "cosine", "centred", "constant", "relative L2", "max abs", "top-1", "IoU", "noise floor")
    table = _table(*names)
    others = []
    for name, figures in fidelity.outputs.items():
        if figures.mismatch:
            others.append(f"[red]{escape(name)}: {escape(figures.mismatch)}[/]")
            continue
        if figures.kind == "exact":
            colour = "green" if figures.equal else "red"
            share = 100 * (figures.equal_share or 0.0)
            others.append(f"{escape(name)}: [{colour}]{share:.4g} % of the elements are equal[/]")
            continue
        values = (figures.cosine, figures.centred_cosine, figures.constant_cosine, figures.relative_l2)
        more = (figures.max_abs, figures.top1, figures.mean_iou, figures.noise_floor)
        table.add_row(escape(name), *map(_figure, (*values, *more)))
    if table.row_count:
        console.print(table)
    for line in (*others, *(f"[red]{escape(line)}[/]" for line in fidelity.not_finite())):
        console.print(line, highlight=False)
    if fidelity.metric is not None:
        before, after = fidelity.metric
        console.print(f"metric: {before:.6g} for the reference, {after:.6g} for the candidate", highlight=False)
    for line in fidelity.blank():
        console.print(f"[yellow]{escape(line)}[/]", highlight=False)
    equal = fidelity.equal() and not fidelity.shows_nothing()
    text = "equal within rounding" if equal else "nothing to compare" if fidelity.shows_nothing() else "not equal"
    console.print(f"[bold {'green' if equal else 'yellow'}]{text}[/], on {escape(data)}", highlight=False)


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"
