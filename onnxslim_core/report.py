"""The one record of what was done and measured; the console table and the JSON are views of it.

A report names files, never paths, and machines by their processor, never by their host name: it can be handed on.
A figure that is not a number stays readable: JSON holds it as the text "NaN", "Infinity" or "-Infinity".
"""

from __future__ import annotations

import enum
import json
import math
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from onnxslim_core import __version__
from onnxslim_core._paths import write_whole
from onnxslim_core.errors import DataError
from onnxslim_core.measure.cost import Cost
from onnxslim_core.measure.fidelity import Fidelity, OutputFidelity
from onnxslim_core.measure.latency import Latency
from onnxslim_core.measure.processor import processor
from onnxslim_core.rewrite import OVERRIDE_FITS, Change

if TYPE_CHECKING:
    from pydantic import TypeAdapter
    from rich.console import Console
    from rich.table import Table

__all__ = [
    "SCHEMA",
    "Asked",
    "DataUsed",
    "Machine",
    "Report",
    "StepRecord",
    "headline",
    "json_text",
    "machine",
    "plain",
    "readable_bytes",
]

SCHEMA = 1

Outcome = Literal["compressed", "exact", "unchanged", "over budget"]
"""What came of it: lossy and worth it; equal answers and something gained; nothing gained; no result."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Where a figure was measured.

    Attributes:
        cpu: The processor's name.
        cores: That this process may use.
        instruction_sets: Those that decide how onnxruntime computes.
        system: Operating system and architecture.
        versions: Of Python and of the packages whose code ran.
    """

    cpu: str
    cores: int
    instruction_sets: tuple[str, ...]
    system: str
    versions: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Asked:
    """What the user asked for.

    Attributes:
        model: The file's name.
        recipe: The recipe's name.
        steps: Passes in order, each with the options that were given.
        budget: The limits that were set.
        options: Everything else: seed, threads, shapes and so on.
    """

    model: str
    recipe: str
    steps: tuple[Mapping[str, Any], ...]
    budget: Mapping[str, Any] | None
    options: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class DataUsed:
    """What the models were fed.

    Attributes:
        kind: "given", "random" (seeded; says little about real answers) or "none" (nothing runs).
        source: The file's name, or in words.
        deciding: Samples that passes decided with.
        judging: Samples that answers were judged on; none of them was used to decide.
        digest: sha256 of given data.
        shapes: The sizes of the first sample.
        note: Why it is so.
        origins: How many different images or recordings the samples to decide with come from.
        assumed: What was assumed of the preprocessing of images, since nobody said it.
        warnings: What is to be feared of these samples.
    """

    kind: Literal["given", "random", "none"]
    source: str = ""
    deciding: int = 0
    judging: int = 0
    digest: str = ""
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    note: str = ""
    origins: int = 0
    assumed: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step of the job: a pass of the recipe and the cleanup after it.

    Attributes:
        name: The pass; "cleanup" for the one before the first step.
        exact: Whether it promises equal answers.
        outcome: "done", "nothing to do", "rolled back", "refused" or "not run".
        reason: Why it was rolled back, refused or not run.
        changes: What was done and what was refused, in order.
        nodes: Before and after.
        bytes: Of the model, before and after.
        seconds: Spent in the pass; `judging_seconds` in measuring its result.
        figures: What a lossy step was judged by: "OUTPUT: cosine" and the like.
    """

    name: str
    exact: bool
    outcome: str
    reason: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    changes: tuple[Change, ...] = ()
    nodes: tuple[int, int] = (0, 0)
    bytes: tuple[int, int] = (0, 0)
    seconds: float = 0.0
    judging_seconds: float = 0.0
    figures: Mapping[str, float] = field(default_factory=dict)

    @property
    def applied(self) -> list[Change]:
        """What was done."""
        return [change for change in self.changes if change.applied]

    @property
    def refused(self) -> list[Change]:
        """What a user would have expected and was not done."""
        return [change for change in self.changes if not change.applied]


@dataclass(frozen=True, slots=True)
class Report:
    """What was asked, done and measured.

    Attributes:
        outcome: See `Outcome`.
        headline: One line.
        passed: False where a budget was given and is not met.
        breaches: Each limit that is not met, one line each.
        verified: True where the answers were compared in onnxruntime.
        unverified_because: Why not.
        notes: What loading changed.
        sizes: Bytes of the model before, as the file that was given has it, and after.
        fidelity: The result against the original, on the samples for judging.
        latency: Original against result, interleaved; None where it was not measured, `latency_note` says why.
        seconds: Spent, by stage.
    """

    outcome: Outcome
    headline: str
    passed: bool
    asked: Asked
    machine: Machine
    data: DataUsed
    breaches: tuple[str, ...] = ()
    verified: bool = False
    unverified_because: str = ""
    notes: tuple[Change, ...] = ()
    steps: tuple[StepRecord, ...] = ()
    sizes: tuple[int, int] = (0, 0)
    nodes: tuple[int, int] = (0, 0)
    cost_before: Cost | None = None
    cost_after: Cost | None = None
    fidelity: Fidelity | None = None
    latency: Latency | None = None
    latency_note: str = ""
    seconds: Mapping[str, float] = field(default_factory=dict)
    schema: int = SCHEMA

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is to be feared of the samples, and what of the recipe had no effect."""
        idle = [change for step in self.steps for change in step.refused if change.guard == OVERRIDE_FITS]
        told = (f"{each.pass_name}: override of {', '.join(map(repr, each.where))}: {each.reason}" for each in idle)
        return (*self.data.warnings, *told)

    def to_json(self) -> str:
        """The whole record as JSON text; valid for every parser, whatever the figures are."""
        return json_text(plain(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> Report:
        """The record that `to_json` wrote.

        Raises:
            DataError: if the text is no such record.
        """
        from pydantic import ValidationError

        try:
            raw = json.loads(text)
        except ValueError as err:
            raise DataError(f"the report is not JSON: {err}") from err
        if not isinstance(raw, dict) or raw.get("schema") != SCHEMA:
            found = raw.get("schema") if isinstance(raw, dict) else None
            raise DataError(f"not a report of schema {SCHEMA}: schema is {found!r}")
        try:
            return _adapter().validate_python(raw)
        except ValidationError as err:
            first = err.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise DataError(f"the report is wrong at {place}: {first['msg']}") from err

    def save(self, path: str | Path) -> None:
        """Write the JSON, whole or not at all.

        Raises:
            OutputError: if it cannot be written.
        """
        write_whole(path, f"{self.to_json()}\n".encode(errors="backslashreplace"))  # a file's name may be any bytes

    def print_console(self, console: Console | None = None) -> None:
        """The record for people: a verdict in one line, what was measured, what each step did."""
        from rich.console import Console as RichConsole

        console = console or RichConsole(stderr=True)
        console.print(_headline(self))
        for breach in self.breaches:
            console.print(f"  [red]✗[/red] {_escape(breach)}", highlight=False)
        for warning in self.warnings:
            console.print(f"  [yellow]![/yellow] {_escape(warning)}", highlight=False)
        console.print(_measures(self))
        if self.fidelity is not None and self.fidelity.outputs:
            console.print(_fidelity(self.fidelity))
        console.print(_steps(self))
        for line in _footnotes(self):
            console.print(f"[dim]{_escape(line)}[/dim]", highlight=False)


@cache
def _adapter() -> TypeAdapter[Report]:
    from pydantic import TypeAdapter

    return TypeAdapter(Report)


_AS_IT_IS = frozenset((str, int, bool, type(None)))


def plain(value: Any) -> Any:
    """A value as JSON can hold it: records as dicts, arrays as lists, NaN and infinities as text."""
    kind = type(value)
    if kind in _AS_IT_IS:  # nearly all that there is, since a report has a row per node
        return value
    if kind is tuple or kind is list:
        return [entry if type(entry) in _AS_IT_IS else plain(entry) for entry in value]
    if isinstance(value, bool | str):
        return value.value if isinstance(value, enum.Enum) else value
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if isinstance(value, np.generic | np.ndarray):
        return plain(value.tolist())
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if is_dataclass(value) and not isinstance(value, type):
        entries = [(name, getattr(value, name)) for name in _fields_of(type(value))]
        return {name: entry if type(entry) in _AS_IT_IS else plain(entry) for name, entry in entries}
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, Path):
        return value.name
    if isinstance(value, Sequence | set | frozenset):
        return [plain(entry) for entry in (sorted(value) if isinstance(value, set | frozenset) else value)]
    return str(value)


@cache
def _fields_of(kind: type[Any]) -> tuple[str, ...]:
    return tuple(entry.name for entry in fields(kind))


def json_text(value: Any, *, ensure_ascii: bool = True) -> str:
    """What `plain` gave as text, an entry a line; a record in a list is one line, unless it holds others."""
    return _lines(value, json.JSONEncoder(ensure_ascii=ensure_ascii, allow_nan=False).encode, "\n")


def _lines(value: Any, encode: Callable[[Any], str], margin: str) -> str:
    inner = f"{margin}  "
    if isinstance(value, dict) and value:
        entries = [f"{encode(key)}: {_lines(entry, encode, inner)}" for key, entry in value.items()]
        return f"{{{inner}{f',{inner}'.join(entries)}{margin}}}"
    if not _holds_records(value):
        return encode(value)
    if any(map(_has_parts, value[:_LOOKED_AT])):
        entries = [_lines(entry, encode, inner) for entry in value]
        return f"[{inner}{f',{inner}'.join(entries)}{margin}]"
    rows = encode(value)[1:-1].replace('}, {"', f'}},{inner}{{"')  # no text holds this: its quotes are escaped
    return f"[{inner}{rows}{margin}]"


_LOOKED_AT = 64
"""Records of a list that say what all of them are like."""


def _holds_records(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(entry, dict) for entry in value)


def _has_parts(value: Any) -> bool:
    return isinstance(value, dict) and any(isinstance(part, dict) or _holds_records(part) for part in value.values())


# ---------------------------------------------------------------------------------------------------- machine

_PACKAGES = ("onnxruntime", "onnx", "onnx-ir", "numpy")
_SETS = {
    "avx2": "AVX2",
    "fma": "FMA",
    "avx512f": "AVX-512",
    "avx512_vnni": "AVX-512 VNNI",
    "avx_vnni": "AVX-VNNI",
    "avx512_bf16": "AVX-512 BF16",
    "amx_tile": "AMX",
    "asimd": "NEON",
    "asimddp": "NEON dot product",
    "sve": "SVE",
}


def machine() -> Machine:
    """This machine, as far as it matters for a figure."""
    versions = {"python": platform.python_version(), "onnxslim-core": __version__}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    name, flags = processor()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    sets = tuple(label for flag, label in _SETS.items() if flag in flags)
    return Machine(name, cores, sets, f"{platform.system()} {platform.machine()}", versions)


# ---------------------------------------------------------------------------------------------------- words


def headline(report: Report) -> str:
    """The verdict in one line: what came out, how it answers, and what was gained."""
    if report.outcome == "over budget":
        return f"over budget: {len(report.breaches)} limit{'s' * (len(report.breaches) > 1)} not met, nothing to write"
    if report.outcome == "unchanged":
        return "unchanged: nothing was found to gain" + _taken_back(report)
    gains = _gains(report)
    word = "compressed" if report.outcome == "compressed" else "simplified" if gains else "tidied up"
    if report.outcome == "exact" and _taken_back(report):
        word = "exact passes only"
    return f"{word}: {', '.join([*gains, _answers(report)])}" + _taken_back(report)


def _taken_back(report: Report) -> str:
    names = [step.name for step in report.steps if step.outcome == "rolled back"]
    return f"; {', '.join(dict.fromkeys(names))} taken back" if names else ""


def _gains(report: Report) -> list[str]:
    """What became better or worse, in words; only what is sure."""
    words: list[str] = []
    if report.latency is not None:
        ratio, noise = report.latency.ratio, report.latency.noise
        if report.latency.verdict == "faster" and (noise is None or ratio < noise.low):
            words.append(f"{1 / ratio:.2f} x as fast")
        elif report.latency.verdict == "slower":
            words.append(f"but {ratio:.2f} x the time")
    before, after = report.sizes
    if before and abs(after / before - 1) >= 0.001:
        words.append(f"{abs(100 * (1 - after / before)):.1f} % {'smaller' if after < before else 'bigger'}")
    if report.nodes[1] < report.nodes[0] and (not words or after > before):
        fewer = report.nodes[0] - report.nodes[1]
        words.insert(0, f"{fewer} node{'s' * (fewer > 1)} fewer")
    return words


def _answers(report: Report) -> str:
    if report.fidelity is None:
        return "answers unverified"
    if report.outcome == "exact":
        return "no finite answers to compare" if report.fidelity.shows_nothing() else "equal answers"
    outputs = report.fidelity.outputs
    if other := [name for name, figures in outputs.items() if figures.mismatch]:
        return f"answers of another size ({', '.join(other[:3])}{', ...' * (len(other) > 3)})"
    words = []
    scored = {name: figures.cosine for name, figures in outputs.items() if figures.cosine is not None}
    if scored:
        worst = min(scored, key=lambda name: -math.inf if math.isnan(scored[name]) else scored[name])
        words.append(f"cosine {scored[worst]:.4f}" + (f" ({worst})" if len(outputs) > 1 else ""))
    shares = {name: figures.equal_share for name, figures in outputs.items() if figures.equal is False}
    words += [f"{100 * (share or 0.0):.1f} % of {name} equal" for name, share in shares.items()]
    return ", ".join(words) or "answers compared"


# ---------------------------------------------------------------------------------------------------- console


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


_MARKS = {"compressed": "green", "exact": "green", "unchanged": "yellow", "over budget": "red"}


def _headline(report: Report) -> str:
    colour = _MARKS[report.outcome]
    sign = "✓" if report.passed and report.outcome != "unchanged" else "·" if report.passed else "✗"
    return f"[bold {colour}]{sign} {_escape(report.headline)}[/]"


def readable_bytes(count: float) -> str:
    """1536 -> '1.5 KB'; decimal units, as file managers show them."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.2f} {unit}"


def _count(number: float) -> str:
    for unit in ("", " K", " M", " G"):
        if abs(number) < 1000 or unit == " G":
            break
        number /= 1000
    return f"{number:.0f}{unit}" if not unit or number >= 100 else f"{number:.2f}{unit}"


def _change(before: float | None, after: float | None) -> str:
    """The change in per cent; green where it fell."""
    if not before or after is None or not math.isfinite(after / before):
        return ""
    percent = 100 * (after / before - 1)
    if abs(percent) < 0.05:
        return "[dim]=[/dim]"
    return f"[{'green' if percent < 0 else 'red'}]{percent:+.1f} %[/]"


def _measures(report: Report) -> Table:
    """The original beside the result."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for title in ("original", "result", "change"):
        table.add_column(title, justify="right")
    table.add_column("", style="dim")
    if report.latency is not None:
        _latency_row(table, report.latency)
    table.add_row("size", *map(readable_bytes, report.sizes), _change(*report.sizes), "")
    before, after = report.cost_before, report.cost_after
    for label, key in (("parameters", "params"), ("MACs", "macs"), ("peak activations", "peak_activation_bytes")):
        pair = (getattr(before, key, None), getattr(after, key, None))
        if pair == (None, None):
            continue
        show = readable_bytes if key.endswith("bytes") else _count
        table.add_row(label, *(show(number) if number is not None else "?" for number in pair), _change(*pair), "")
    table.add_row("nodes", *map(str, report.nodes), _change(*report.nodes), "")
    return table


def _latency_row(table: Table, latency: Latency) -> None:
    interval = f"x {latency.low:.3f} to {latency.high:.3f}"
    if latency.noise is not None:
        interval += f", noise {latency.noise.low:.3f} to {latency.noise.high:.3f}"
    before, after = _milliseconds(latency)
    table.add_row("time", before, after, _change(1.0, latency.ratio), interval)


def _milliseconds(latency: Latency) -> tuple[str, str]:
    return f"{latency.reference_ms:.3g} ms", f"{latency.candidate_ms:.3g} ms"


def _fidelity(fidelity: Fidelity) -> Table:
    """How the answers compare, a row per output (and part), beside what a constant answer would score."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("answers", overflow="fold")
    for title in ("cosine", "constant", "rel. L2", "max abs", "same top-1", "noise"):
        table.add_column(title, justify="right", style="dim" if title in ("constant", "noise") else "")
    rows = [(name, figures) for name, figures in fidelity.outputs.items()]
    for name, figures in rows[:8]:
        _fidelity_row(table, name, figures)
    if len(rows) > 8:
        table.add_row(f"and {len(rows) - 8} more outputs", *[""] * 6)
    return table


def _fidelity_row(table: Table, name: str, figures: OutputFidelity) -> None:
    if figures.mismatch:
        table.add_row(f"{_escape(name)}: {_escape(figures.mismatch)}", *[""] * 6)
        return
    if figures.equal_share is not None:
        table.add_row(_escape(name), f"{100 * figures.equal_share:.2f} % equal", *[""] * 5)
        return
    top1 = "" if figures.top1 is None else f"{100 * figures.top1:.1f} %"
    table.add_row(
        _escape(name),
        _figure(figures.cosine, 6),
        _figure(figures.constant_cosine, 3),
        _figure(figures.relative_l2, 2, "g"),
        _figure(figures.max_abs, 2, "g"),
        top1,
        _figure(figures.noise_floor, 1, "g"),
    )


def _figure(value: float | None, digits: int, form: str = "f") -> str:
    return "" if value is None else f"{value:.{digits}{form}}"


_STEP_SIGNS = {"done": ("✓", "green"), "rolled back": ("↶", "yellow"), "refused": ("✗", "yellow")}


def _steps(report: Report) -> Table:
    """A row per step: what it did in its own line below, since that is as long as it is."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("step", overflow="fold")
    table.add_column("outcome", no_wrap=True)
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("time", justify="right", no_wrap=True)
    for step in report.steps:
        sign, colour = _STEP_SIGNS.get(step.outcome, ("·", "dim"))
        name = f"[{colour}]{sign}[/] {_escape(step.name)}" + ("" if step.exact else " [dim]lossy[/]")
        told = _told(step)
        counts = [f"{len(step.applied)} done"] if step.applied and step.outcome == "done" else []
        counts += [f"{len(step.refused)} refused"] if step.refused else []
        outcome = ", ".join(counts) if step.outcome == "done" else ", ".join([step.outcome, *counts])
        table.add_row(
            name + (f"\n  [dim]{_escape(told)}[/]" if told else ""),
            f"[{colour}]{outcome}[/]",
            _change(*step.bytes) if step.outcome == "done" else "",
            f"{step.seconds + step.judging_seconds:.1f} s",
        )
    return table


def _told(step: StepRecord) -> str:
    """What a step did, in a line: its reason, or its changes counted by what they are."""
    if step.reason:
        return step.reason
    counts: dict[str, int] = {}
    for change in step.applied:
        counts[change.action] = counts.get(change.action, 0) + 1
    ranked = sorted(counts.items(), key=lambda item: -item[1])
    words = [f"{count} x {action}" if count > 1 else action for action, count in ranked[:3]]
    text = ", ".join(words) + (f" and {len(ranked) - 3} more kinds" if len(ranked) > 3 else "")
    return text if text or not step.refused else f"{step.refused[0].action}: {step.refused[0].reason}"


def _because(note: Change) -> str:
    why = note.reason or note.details.get("found", "")
    return f": {why}" if why else ""


def _footnotes(report: Report) -> list[str]:
    data = report.data
    lines = []
    if data.kind == "given":
        lines.append(f"judged on {data.judging} samples of {data.source}; {data.deciding} others to decide with")
        lines.extend(f"assumed of the preprocessing: {each}" for each in [", ".join(data.assumed)] if each)
    elif data.kind == "random":
        lines.append(f"judged on {data.judging} seeded random inputs, which say little about real answers: give --data")
    if not report.verified:
        lines.append(f"UNVERIFIED: {report.unverified_because}")
    if report.latency_note:
        lines.append(report.latency_note)
    lines.extend(f"on loading: {note.action}" + _because(note) for note in report.notes)
    host = report.machine
    sets = ", ".join(host.instruction_sets)
    total = sum(report.seconds.values())
    lines.append(f"{host.cpu}, {host.cores} cores, {sets}; onnxruntime {host.versions.get('onnxruntime', '?')}")
    lines.append(f"took {total:.1f} s: " + ", ".join(f"{key} {value:.1f}" for key, value in report.seconds.items()))
    return lines
