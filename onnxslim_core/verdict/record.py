"""What a gate says, row by row, and its views: console, JSON, JUnit XML, Markdown for a CI page."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from onnxslim_core.report import plain

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["FAIL", "INCONCLUSIVE", "PASS", "Row", "Verdict", "dumps", "shown"]

PASS, FAIL, INCONCLUSIVE = "pass", "fail", "inconclusive"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a verdict.

    Attributes:
        key: The budget key, with the output in front where it is judged apart; `interface` and `finite` are always
            there.
        limit: What is allowed; None for a row that no key of the budget asks for.
        found: What was found; None where it could not be computed.
        verdict: "pass", "fail" or "inconclusive".
        note: How the figure came about, or why there is none.
    """

    key: str
    limit: float | str | None
    found: float | str | None
    verdict: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a gate says, and everything that it says it from.

    Attributes:
        rows: One per key of the budget, and two that are always there.
        reference: Path of the reference, as given.
        candidate: Path of the candidate, as given.
        data: Where the inputs came from, in words.
        real_data: False where the inputs are seeded random numbers.
        samples: How many.
        allow_inconclusive: The budget says that an inconclusive timing is no failure.
        details: Figures behind the rows, for the JSON.
    """

    rows: tuple[Row, ...]
    reference: str
    candidate: str
    data: str
    real_data: bool
    samples: int
    allow_inconclusive: bool = False
    seconds: float = 0.0
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """True where every row passes; a row that is inconclusive passes only if the budget says so."""
        return bool(self.rows) and not any(self.fails(row) for row in self.rows)

    @property
    def exit_code(self) -> int:
        """0 passed, 1 did not."""
        return 0 if self.passed else 1

    def fails(self, row: Row) -> bool:
        """Whether this row alone keeps the gate shut."""
        return not (row.verdict == PASS or (row.verdict == INCONCLUSIVE and self.allow_inconclusive))

    def summary(self) -> str:
        """One line."""
        failed = [row.key for row in self.rows if self.fails(row)]
        count = f"{len(self.rows)} checks"
        return f"passed: {count}" if not failed else f"failed: {len(failed)} of {count}: {', '.join(failed)}"

    # ------------------------------------------------------------------------------------------------ views

    def to_json(self) -> dict[str, Any]:
        """The verdict as JSON; what is not a finite number is written as text ("NaN", "Infinity")."""
        return {
            "schema": 1,
            "verb": "gate",
            "passed": self.passed,
            "exit_code": self.exit_code,
            "summary": self.summary(),
            "reference": self.reference,
            "candidate": self.candidate,
            "data": {"source": self.data, "real": self.real_data, "samples": self.samples},
            "allow_inconclusive": self.allow_inconclusive,
            "rows": [plain(row) for row in self.rows],
            "seconds": round(self.seconds, 3),
            "details": plain(self.details),
        }

    def to_junit(self) -> str:
        """JUnit XML, one test case per row; what fails the gate is a failure, an allowed inconclusive is skipped."""
        failures = sum(self.fails(row) for row in self.rows)
        skipped = sum(row.verdict == INCONCLUSIVE and not self.fails(row) for row in self.rows)
        counts = {"tests": str(len(self.rows)), "failures": str(failures), "errors": "0", "skipped": str(skipped)}
        counts["time"] = f"{self.seconds:.3f}"
        suites = ElementTree.Element("testsuites", {"name": "onnxslim-core gate", **counts})
        suite = ElementTree.SubElement(suites, "testsuite", {"name": _xml(f"gate {self.candidate}"), **counts})
        properties = ElementTree.SubElement(suite, "properties")
        for name, value in (("reference", self.reference), ("candidate", self.candidate), ("data", self.data)):
            ElementTree.SubElement(properties, "property", {"name": name, "value": _xml(value)})
        for row in self.rows:
            attributes = {"classname": "onnxslim-core.gate", "name": _xml(row.key), "time": "0.000"}
            case = ElementTree.SubElement(suite, "testcase", attributes)
            text = _xml(f"{row.key}: found {shown(row.found)}, limit {_limit(row)}" + (row.note and f" ({row.note})"))
            if self.fails(row):
                ElementTree.SubElement(case, "failure", {"type": row.verdict, "message": text}).text = text
            elif row.verdict == INCONCLUSIVE:
                ElementTree.SubElement(case, "skipped", {"message": text})
            else:
                ElementTree.SubElement(case, "system-out").text = text
        ElementTree.indent(suites)
        return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(suites, "unicode") + "\n"

    def to_markdown(self) -> str:
        """A summary for a CI page."""
        said = "passed" if self.passed else "failed"
        lines = [
            f"### Gate {said}: {_code(_file(self.candidate))} against {_code(_file(self.reference))}",
            "",
            "| | check | limit | found | |",
            "| --- | --- | --- | --- | --- |",
        ]
        marks = {PASS: "✅", FAIL: "❌", INCONCLUSIVE: "❔"}
        for row in self.rows:
            cells = (f"{marks[row.verdict]} {row.verdict}", _code(row.key), _limit(row), shown(row.found), row.note)
            lines.append("| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |")
        return "\n".join([*lines, "", f"Judged on {self.data}, in {self.seconds:.1f} s.", ""])

    def print_console(self, console: Console) -> None:
        """The verdict as a table."""
        from rich.markup import escape
        from rich.table import Table

        colours = {PASS: "green", FAIL: "red", INCONCLUSIVE: "yellow"}
        table = Table(title=escape(f"{_file(self.candidate)} against {_file(self.reference)}"), title_justify="left")
        for name in ("check", "limit", "found"):
            table.add_column(name, justify="left" if name == "check" else "right", overflow="fold")
        table.add_column("verdict", no_wrap=True)
        table.add_column("note", overflow="fold")
        for row in self.rows:
            verdict = f"[{colours[row.verdict]}]{row.verdict}[/]"
            table.add_row(escape(row.key), escape(_limit(row)), escape(shown(row.found)), verdict, escape(row.note))
        console.print(table)
        colour = "green" if self.passed else "red"
        console.print(f"[bold {colour}]gate {escape(self.summary())}[/]", highlight=False)
        console.print(escape(f"judged on {self.data}, in {self.seconds:.1f} s"), highlight=False)


def shown(value: float | str | None) -> str:
    """A figure as people read it: all of a whole number, six digits of any other."""
    if value is None:
        return "none"
    if isinstance(value, str | int):
        return str(value)
    return f"{value:.6g}"


def _limit(row: Row) -> str:
    if row.limit is None:
        return "always"
    sign = "≥ " if ".min_" in f".{row.key}" else "≤ " if ".max_" in f".{row.key}" else ""
    return sign + shown(row.limit)


def _file(path: str) -> str:
    return os.path.basename(path) or path


def _code(text: str) -> str:
    return "`" + text.replace("`", "'") + "`"


def _xml(text: str) -> str:
    """Text without the characters that XML 1.0 has no way to write."""
    return re.sub("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text)


def dumps(value: object) -> str:
    """JSON text that every parser takes."""
    return json.dumps(plain(value), indent=2, allow_nan=False)
