"""What `sensitivity` found: the record, its JSON, its table and its plot."""

from __future__ import annotations

import io
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxslim_core._paths import write_whole
from onnxslim_core.errors import RecipeError
from onnxslim_core.report import Machine, plain
from onnxslim_core.search.sensitivity import LossCurve, Point, Question

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["SHOWN", "Sensitivity", "require_matplotlib"]

SHOWN = ("loss", "cosine", "top1", "metric")
"""Figures of a point that the table and the plot can show."""

_FORMATS = ("png", "svg", "pdf")
_REASONS = 5
"""Reasons that the table shows."""
_NAMED = 10
"""Curves that a plot names; the others are drawn pale."""


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """What the answers of a model lose by its parts.

    Attributes:
        model: The file's name.
        question: What was asked.
        data: In words, where samples come from.
        decided_on: Samples that chose channels and mended readers.
        measured_on: Others, on which the loss was measured.
        curves: By group and block, in the order of the graph.
        skipped: By name why a group was not asked about.
        baseline: What the user's metric says of the model as it is; None without one.
        warnings: What is to be feared of the samples.
        from_cache: How many of the curves were known from an earlier run.
        machine: Where it ran.
        seconds: How long it took.
    """

    model: str
    question: Question
    data: str
    decided_on: int
    measured_on: int
    curves: tuple[LossCurve, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)
    baseline: float | None = None
    warnings: tuple[str, ...] = ()
    from_cache: int = 0
    machine: Machine | None = None
    seconds: float = 0.0

    def __getitem__(self, name: str) -> LossCurve:
        """The curve of a group or block, by its name.

        Raises:
            KeyError: if there is none of that name.
        """
        for curve in self.curves:
            if curve.name == name:
                return curve
        raise KeyError(name)

    def largest(self, loss: float) -> dict[str, float]:
        """The largest ratio of every group that alone loses no more than this, with all smaller ones; 0 where none.

        Args:
            loss: As `Point.loss`.
        """
        found: dict[str, float] = {}
        for curve in self.curves:
            ratio = 0.0
            for point in curve.points:
                if not point.loss <= loss:  # NaN is no small loss
                    break
                ratio = point.ratio
            found[curve.name] = ratio
        return found

    def document(self) -> dict[str, Any]:
        """The record as plain data, `schema = 1`."""
        return {"schema": 1, "verb": "sensitivity", **plain(self)}

    def to_json(self) -> str:
        """The record as JSON text."""
        return json.dumps(self.document(), indent=2, ensure_ascii=False, allow_nan=False)

    # ------------------------------------------------------------------------------------------ console
    def print_console(self, console: Console, show: str = "") -> None:
        """A row per group and block, a column per ratio.

        Args:
            console: Where it goes.
            show: A word of `SHOWN`; the metric where there is one, else the loss.
        """
        from rich import box
        from rich.markup import escape
        from rich.table import Table

        show = show or ("loss" if self.baseline is None else "metric")
        console.print(f"[bold]{escape(self.model)}[/]  {_TITLES[show]}", highlight=False)
        groups = [curve for curve in self.curves if curve.kind == "group"]
        if groups:
            table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
            table.add_column("group", overflow="fold", min_width=8)
            table.add_column("channels", justify="right", no_wrap=True)
            for ratio in self.question.ratios:
                table.add_column(f"-{100 * ratio:g} %", justify="right", no_wrap=True)
            for curve in groups:
                size = f"{curve.channels} x {curve.unit}" if curve.unit > 1 else str(curve.channels)
                table.add_row(escape(self._named(curve)), size, *(self._cell(point, show) for point in curve.points))
            console.print(table)
        blocks = [curve for curve in self.curves if curve.kind == "block"]
        if blocks:
            table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
            table.add_column("block", overflow="fold", min_width=8)
            for title in ("MACs left", "gone"):
                table.add_column(title, justify="right", no_wrap=True)
            for curve in blocks:
                (point,) = curve.points
                table.add_row(escape(self._named(curve)), f"{100 * point.macs:.1f} %", self._cell(point, show))
            console.print(table)
        if not self.curves:
            console.print("nothing of this model can be asked about", highlight=False)
        reasons = Counter(self.skipped.values())
        for reason, count in reasons.most_common(_REASONS):
            console.print(f"  {count} group{'s' if count > 1 else ''} left out: {escape(reason)}", highlight=False)
        if len(reasons) > _REASONS:
            console.print(f"  {len(reasons) - _REASONS} more reasons: --json", highlight=False)
        if self.baseline is not None:
            console.print(f"metric of the model as it is: {self.baseline:.6g}", highlight=False)
        for warning in self.warnings:
            console.print(f"[yellow]warning[/]: {escape(warning)}", highlight=False)
        asked = self.question
        how = f"criterion {asked.criterion}, repair {asked.repair}"
        how += f"; decided on {self.decided_on}, measured on {self.measured_on} samples of {self.data}"
        known = f", {self.from_cache} of {len(self.curves)} known from before" if self.from_cache else ""
        console.print(escape(f"{how}; {self.seconds:.1f} s{known}"), highlight=False, style="dim")

    def _named(self, curve: LossCurve) -> str:
        """The name, with what was done otherwise than asked."""
        asked = self.question
        odd = [curve.criterion] if curve.criterion not in ("", asked.criterion) else []
        odd += ["not mended"] if not curve.mended and asked.repair != "none" else []
        return _short(curve.name) + (f" ({', '.join(odd)})" if odd else "")

    def _cell(self, point: Point, show: str) -> str:
        if not point.removed:
            return "[dim]-[/]"
        value: float | None = getattr(point, show)
        if value is None:
            return ""
        text = f"{value:.2g}" if show == "loss" else f"{value:.3f}"
        colour = "green" if point.loss <= 0.01 else "yellow" if point.loss <= 0.1 else "red"
        return f"[{colour}]{text}[/]"

    # ------------------------------------------------------------------------------------------ plot
    def save_plot(self, path: str | Path, show: str = "") -> None:
        """Draw the curves, groups on the left and blocks on the right; by matplotlib, the extra `plot`.

        Args:
            path: A .png, .svg or .pdf; written whole or not at all.
            show: As in `print_console`.

        Raises:
            RecipeError: if matplotlib is missing.
            OutputError: if the file cannot be written.
        """
        path = Path(path)
        require_matplotlib(path)
        from matplotlib.figure import Figure

        show = show or ("loss" if self.baseline is None else "metric")
        groups = [curve for curve in self.curves if curve.kind == "group"]
        blocks = [curve for curve in self.curves if curve.kind == "block"]
        figure = Figure(figsize=(12 if blocks else 8, 5), layout="constrained")
        left = figure.add_subplot(1, 2 if blocks else 1, 1)
        named = sorted(groups, key=_worst, reverse=True)[:_NAMED]
        for curve in groups:
            pairs = [(p.removed / curve.channels, _drawn(p, show)) for p in curve.points if p.removed]
            style = {"label": _short(curve.name)} if curve in named else {"color": "0.8", "zorder": 1}
            left.plot(*zip(*pairs, strict=True), marker=".", **style) if pairs else None
        left.set_xlabel("share of the channels that went")
        left.set_xlim(0, 1)
        left.set_ylabel(_TITLES[show])
        left.set_title(f"{self.model}, criterion {self.question.criterion}, repair {self.question.repair}")
        if named:
            left.legend(fontsize="x-small", title=None if len(named) == len(groups) else "the most sensitive")
        if show == "loss" and any(_drawn(p, show) > 0 for curve in groups for p in curve.points if p.removed):
            left.set_yscale("log")
        if blocks:
            right = figure.add_subplot(1, 2, 2)
            right.barh([_short(c.name) for c in blocks], [_drawn(c.points[0], show) for c in blocks])
            right.invert_yaxis()
            right.tick_params(axis="y", labelsize="x-small")
            right.set_xlabel(f"{_TITLES[show]}, the block gone")
        buffer = io.BytesIO()
        figure.savefig(buffer, format=path.suffix[1:].lower(), dpi=150)
        write_whole(path, buffer.getvalue())


_TITLES = {
    "loss": "squared error of the answers over their variance",
    "cosine": "cosine of the answers with the original's",
    "top1": "share of samples with the same first answer",
    "metric": "metric",
}


def require_matplotlib(path: str | Path) -> None:
    """Make sure that a plot can be drawn into such a file, before any long work.

    Raises:
        RecipeError: if matplotlib is not installed, or the ending says no format.
    """
    if Path(path).suffix[1:].lower() not in _FORMATS:
        raise RecipeError(f"'{Path(path).name}' is no name for a plot", f"end it in .{', .'.join(_FORMATS)}")
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as err:
        raise RecipeError("plots need matplotlib, which is not installed", "pip install 'onnxslim-core[plot]'") from err


def _worst(curve: LossCurve) -> float:
    losses: Sequence[float] = [point.loss for point in curve.points if point.removed]
    return max((math.inf if math.isnan(loss) else loss for loss in losses), default=0.0)


def _drawn(point: Point, show: str) -> float:
    value: float | None = getattr(point, show)
    return math.nan if value is None or not math.isfinite(value) else value


def _short(name: str, length: int = 40) -> str:
    """The end of a node's name, which tells more than its beginning."""
    name = name.partition(" '")[2].replace("'", "") if " '/" in name else name
    return name if len(name) <= length else "…" + name[1 - length :]
