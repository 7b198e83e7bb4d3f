"""Timing parts: what counts as equal, when one timing is not enough, and what is kept for the next run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from onnxslim_core.errors import MeasureError
from onnxslim_core.measure.latency import Interval
from onnxslim_core.measure.pieces import Table, cache_folder, settled, structure
from onnxslim_core.rewrite import Context


@dataclass(frozen=True)
class Time:
    ratio: float
    low: float
    high: float


class Clock:
    """Says what it is told to, in turn, and counts how often it is asked."""

    def __init__(self, *times: Time | MeasureError) -> None:
        self.times: Iterator[Time | MeasureError] = iter(times)
        self.asked = 0

    def __call__(self, reference: ir.Model, candidate: ir.Model) -> Time:
        self.asked += 1
        time = next(self.times)
        if isinstance(time, MeasureError):
            raise time
        return time


def part(width: int = 8, *, name: str = "x", seed: int = 0, op: str = "Relu", pads: Sequence[int] = (1, 1)) -> ir.Model:
    """A 1-D Conv and an activation."""
    weight = np.random.default_rng(seed).normal(size=(width, 4, 3)).astype(np.float32)
    w = ir.Value(name=f"{name}.w", const_value=ir.tensor(weight, name=f"{name}.w"))
    x = ir.Value(name=name, shape=ir.Shape([1, 4, 10]), type=ir.TensorType(ir.DataType.FLOAT))
    conv = ir.node("Conv", [x, w], {"pads": list(pads)})
    last = ir.node(op, [conv.outputs[0]])
    last.outputs[0].name = f"{name}.y"
    last.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph([x], last.outputs, nodes=[conv, last], initializers=[w], opset_imports={"": 17}, name=name)
    return ir.Model(graph, ir_version=8)


def becomes(width: int) -> Callable[[ir.Model], bool]:
    """Makes the weight of a part one of another width."""

    def change(model: ir.Model) -> bool:
        (weight,) = model.graph.initializers.values()
        array = np.zeros((width, 4, 3), np.float32)
        weight.shape, weight.const_value = ir.Shape(array.shape), ir.tensor(array, name=weight.name)
        return width > 0

    return change


def ask(table: Table, width: int, name: str = "x", *, fresh: bool = True) -> Interval | None:
    return table.against(part(name=name), becomes(width), f"width {width}", fresh=fresh)


FASTER, SLOWER, UNSURE = Time(0.5, 0.4, 0.6), Time(1.5, 1.2, 1.8), Time(0.9, 0.7, 1.1)


def test_parts_that_differ_in_names_and_weights_alone_are_equal() -> None:
    same = {structure(ir.to_proto(each)) for each in (part(), part(name="z", seed=1))}
    others = {structure(ir.to_proto(each)) for each in (part(), part(9), part(op="Sigmoid"), part(pads=(0, 0)))}
    assert (len(same), len(others)) == (1, 4)


def test_equal_parts_are_timed_once_even_where_they_cannot_run() -> None:
    clock = Clock(UNSURE, MeasureError("does not run"))
    table = Table(latency=clock)
    for name in ("a", "b"):
        found = ask(table, 4, name)
        assert found is not None and (found.low, found.high) == (0.7, 1.1)
        assert ask(table, 2, name) is None
    assert (clock.asked, table.timed) == (2, 2)


def test_what_cannot_be_changed_is_not_timed() -> None:
    assert ask(Table(latency=Clock()), 0) is None


def test_what_is_not_known_is_not_told_where_nothing_is_to_be_timed() -> None:
    assert ask(Table(), 4) is None
    clock = Clock(FASTER)
    table = Table(latency=clock)
    assert ask(table, 4, fresh=False) is None
    assert ask(table, 4) is not None
    assert ask(table, 4, fresh=False) is not None
    assert clock.asked == 1


@pytest.mark.parametrize(
    ("times", "asked", "verdict"),
    [
        ([FASTER], 1, "faster"),
        ([SLOWER], 1, "slower"),
        ([UNSURE, FASTER], 2, "faster"),
        ([Time(0.9, 0.7, 1.1), Time(0.91, 0.7, 1.1), Time(0.89, 0.7, 1.1)], 3, "faster"),
        ([Time(1.1, 0.7, 1.3), Time(1.11, 0.7, 1.3), Time(1.09, 0.7, 1.3)], 3, "slower"),
        ([Time(r, 0.7, 1.3) for r in (0.99, 1.02, 1.0, 0.97, 1.01)], 5, "unsure"),
        ([Time(0.999, 0.7, 1.3)] * 5, 5, "unsure"),
        ([Time(1.2, 0.9, 1.5), Time(0.97, 0.95, 0.99), *[Time(r, 0.9, 1.5) for r in (1.19, 0.98, 1.2)]], 5, "unsure"),
    ],
    ids=["at once", "slower at once", "at second", "together", "slower together", "never", "agreed by chance", "torn"],
)
def test_what_one_timing_does_not_decide_is_timed_again(times: list[Time], asked: int, verdict: str) -> None:
    clock = Clock(*times)
    found = settled(clock, part(), part(4), 5)
    assert clock.asked == asked
    assert ("faster" if found.high < 1 else "slower" if found.low >= 1 else "unsure") == verdict
    assert found.ratio == pytest.approx(float(np.exp(np.mean(np.log([each.ratio for each in times])))))


def test_once_is_enough_unless_more_is_asked_for() -> None:
    clock = Clock(UNSURE, FASTER)
    assert settled(clock, part(), part(4)).high == pytest.approx(1.1)
    assert clock.asked == 1


def test_the_next_run_knows_what_was_decided_and_asks_about_the_rest(tmp_path: Path) -> None:
    first = Table(folder=tmp_path, latency=Clock(FASTER, UNSURE))
    told = [ask(first, width) for width in (4, 2)]
    clock = Clock(SLOWER)
    second = Table(folder=tmp_path, latency=clock)
    assert ask(second, 4, "again") == told[0]
    again = ask(second, 2)
    assert again is not None and again.low == 1.2
    assert clock.asked == 1
    other_threads = Table(2, tmp_path, Clock(SLOWER))
    found = ask(other_threads, 4)
    assert found is not None and found.low == 1.2


def test_a_pass_keeps_on_disk_what_its_context_says(tmp_path: Path) -> None:
    for folder, files in ((None, 0), (tmp_path, 1)):
        ask(Table.of(Context(latency=Clock(FASTER), cache=folder)), 4)
        assert len(list(tmp_path.iterdir())) == files
    found = ask(Table.of(Context(latency=Clock(SLOWER))), 4)
    assert found is not None and found.low == 1.2


def test_where_expensive_results_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ONNXSLIM_CORE_CACHE", raising=False)
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name, **_: tmp_path / name)
    assert cache_folder() == tmp_path / "onnxslim-core"
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name, **_: Path("~/.cache", name))
    assert cache_folder() is None
    monkeypatch.setenv("ONNXSLIM_CORE_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.setenv("ONNXSLIM_CORE_CACHE", "Off")
    assert cache_folder() is None
