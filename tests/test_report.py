"""The report: JSON that every parser reads and that reads back, a console view, and no secrets of the machine."""

from __future__ import annotations

import io
import json
import math
import os
import socket
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from onnxslim_core.errors import DataError, OutputError
from onnxslim_core.measure.cost import Cost, Layer
from onnxslim_core.measure.fidelity import Fidelity, OutputFidelity
from onnxslim_core.measure.latency import Interval, Latency
from onnxslim_core.report import (
    Asked,
    DataUsed,
    Machine,
    Report,
    StepRecord,
    headline,
    json_text,
    machine,
    plain,
    readable_bytes,
)
from onnxslim_core.rewrite import Change


def cost(scale: float = 1.0) -> Cost:
    layer = Layer("Conv 'a'", "Conv", int(1000 * scale), 10, (1, 2))
    return Cost(int(1000 * scale), int(500 * scale), int(2000 * scale), 64, 7, (layer,), False, 0)


def record(**changes: Any) -> Report:
    done = Change(
        "prune_channels", ("Conv 'a'",), "removed 4 of 16", bytes_saved=64, details={"kept": 12, "score": 0.5}
    )
    refused = Change("prune_channels", ("Conv [b]",), "remove", reason="an output", guard="is_output")
    base = Report(
        outcome="compressed",
        headline="",
        passed=True,
        asked=Asked(
            "net.onnx", "r.toml", ({"name": "prune_channels", "ratio": 0.25},), {"min_cosine": 0.9}, {"seed": 0}
        ),
        machine=Machine("A CPU", 2, ("AVX2",), "Linux x86_64", {"onnxruntime": "1.32.0"}),
        data=DataUsed("given", "d.npz", 5, 6, "abc", {"x": (1, 3)}),
        verified=True,
        notes=(Change("load", ("w",), "made 1 initializers constant"),),
        steps=(
            StepRecord("normalize", True, "nothing to do"),
            StepRecord("prune_channels", False, "done", "", {"ratio": 0.25}, (done, refused), (9, 7), (2000, 1500)),
        ),
        sizes=(2000, 1500),
        nodes=(9, 7),
        cost_before=cost(),
        cost_after=cost(0.75),
        fidelity=Fidelity(
            outputs={"y": OutputFidelity("float", 6, cosine=0.991, top1=1.0, error=math.nan, nan=(0, 1))},
            samples=6,
            verified=True,
        ),
        latency=Latency(0.8, 0.78, math.inf, 1.0, 0.8, Interval(1.0, 0.99, 1.01), 10, 5, 1, 1, 3.0, "thread"),
        seconds={"load": 0.1},
    )
    return replace(base, **changes)


def shown(report: Report, width: int = 100, **options: Any) -> str:
    stream = io.StringIO()
    report.print_console(Console(file=stream, width=width, **options))
    return stream.getvalue()


def test_json_reads_back_to_the_same_record() -> None:
    text = record().to_json()

    def forbidden(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    raw = json.loads(text, parse_constant=forbidden)
    assert raw["schema"] == 1
    assert raw["latency"]["high"] == "Infinity"
    assert raw["fidelity"]["outputs"]["y"]["error"] == "NaN"
    back = Report.from_json(text)
    assert back.to_json() == text
    assert isinstance(back.steps[1].changes[0], Change)
    assert back.latency is not None and back.latency.high == math.inf
    assert back.fidelity is not None and math.isnan(back.fidelity["y"].error)
    assert back.fidelity["y"].nan == (0, 1)
    assert back.cost_before == cost()


@pytest.mark.parametrize(
    ("text", "needle"),
    [
        ("{", "not JSON"),
        ("[]", "schema"),
        ('{"schema": 2}', "schema is 2"),
        ('{"schema": 1}', "wrong at outcome"),
        (record().to_json().replace('"passed": true', '"passed": "maybe"'), "wrong at passed"),
    ],
)
def test_refuses_what_is_no_report(text: str, needle: str) -> None:
    with pytest.raises(DataError, match=needle):
        Report.from_json(text)


def test_plain_values() -> None:
    class Colour(Enum):
        RED = "red"

    odd = {
        1: np.float32(0.5),
        "a": np.array([[1, 2], [3, 4]]),
        "b": (Colour.RED, Path("some/folder/net.onnx"), {"z", "y"}),
        "c": [np.float64("nan"), -math.inf, np.bool_(True), None],
    }
    found = plain(odd)
    assert found == {
        "1": 0.5,
        "a": [[1, 2], [3, 4]],
        "b": ["red", "net.onnx", ["y", "z"]],
        "c": ["NaN", "-Infinity", True, None],
    }
    json.dumps(found, allow_nan=False)


def test_saves_whole_or_not_at_all(tmp_path: Path) -> None:
    record().save(tmp_path / "r.json")
    assert Report.from_json((tmp_path / "r.json").read_text()).headline == ""
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]
    with pytest.raises(OutputError, match="cannot write"):
        record().save(tmp_path / "no" / "r.json")


def test_machine_names_no_host_and_no_path() -> None:
    here = machine()
    text = json.dumps(plain(here))
    assert here.cores >= 1 and here.cpu
    assert {"python", "onnxslim-core", "onnxruntime", "onnx", "onnx-ir", "numpy"} <= set(here.versions)
    assert socket.gethostname() not in text or len(socket.gethostname()) < 4
    assert os.fspath(Path.home()) not in text


@pytest.mark.parametrize("width", [40, 80, 200])
def test_console_says_what_matters(width: int) -> None:
    report = record(latency=Latency(0.8, 0.78, 0.82, 1.0, 0.8, None, 10, 5, 1, 1, 3.0, "thread"))
    report = replace(report, headline=headline(report))
    text = shown(report, width)
    flat = " ".join(text.split())
    first = " ".join(text.split("original")[0].split())
    assert first.startswith("✓ compressed: 1.25 x as fast, 25.0 % smaller, cosine 0.9910") or width == 40
    for needle in ("prune_channels", "removed 4 of 16", "judged on 6 samples of d.npz", "A CPU", "nothing to do"):
        assert needle in flat or width == 40, needle
    assert max(map(len, text.splitlines())) <= width


def test_names_with_markup_are_shown_as_they_are() -> None:
    step = StepRecord("prune", False, "rolled back", "breaks [bold]y[/] and [/]")
    report = record(steps=(step,), headline="[red]x", breaches=("[/] y",), outcome="over budget", passed=False)
    text = shown(report)
    for needle in ("[red]x", "[/] y", "breaks [bold]y[/] and [/]"):
        assert needle in text


def test_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b[3" in shown(record(headline="x"), force_terminal=True, color_system="standard")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[3" not in shown(record(headline="x"), force_terminal=True, color_system="standard")


@pytest.mark.parametrize(
    ("changes", "needle"),
    [
        ({"outcome": "unchanged"}, "unchanged: nothing was found to gain"),
        ({"outcome": "over budget", "breaches": ("a", "b"), "passed": False}, "over budget: 2 limits not met"),
        ({"outcome": "exact", "latency": None}, "simplified: 25.0 % smaller, equal answers"),
        ({"outcome": "exact", "latency": None, "sizes": (10, 10), "nodes": (9, 8)}, "simplified: 1 node fewer, equal"),
        ({"outcome": "exact", "latency": None, "sizes": (10, 10), "nodes": (8, 8)}, "tidied up: equal answers"),
        ({"fidelity": None, "verified": False}, "answers unverified"),
        ({"latency": Latency(1.2, 1.1, 1.3, 1, 1.2, None, 9, 5, 1, 1, 1.0, "wall")}, "but 1.20 x the time"),
        ({"latency": Latency(0.97, 0.9, 1.05, 1, 1, None, 9, 5, 1, 1, 1.0, "wall")}, "compressed: 25.0 % smaller"),
        ({"steps": (StepRecord("prune", False, "rolled back", "x"),), "outcome": "exact"}, "exact passes only: "),
    ],
)
def test_headline(changes: dict[str, Any], needle: str) -> None:
    assert needle in headline(record(**changes))


def test_readable_bytes() -> None:
    assert [readable_bytes(n) for n in (0, 999, 1000, 1_500_000, 123_456_789, 2e12)] == [
        *("0 B", "999 B", "1.00 KB", "1.50 MB", "123 MB", "2000 GB"),
    ]


def test_text_holds_what_was_given_a_row_a_line_whatever_names_hold() -> None:
    names = ['a}, {"b', "a}, {b", 'say "no"', "two\nlines", "é", ""]
    rows = [{"name": name, "shape": [1, 2]} for name in names]
    steps = [{"name": name, "changes": rows, "options": {name: None}} for name in names]
    told = {"rows": rows, "steps": steps, "none": [], "empty": {}, "one": 1.5, "mixed": [1, {"a": {"b": []}}]}
    for ascii_only in (False, True):
        text = json_text(told, ensure_ascii=ascii_only)
        assert json.loads(text) == told
        lines = [line.strip() for line in text.splitlines()]
        assert sum(line.startswith('{"name": ') for line in lines) == len(names) * (1 + len(names))
    assert json_text(told).isascii()
