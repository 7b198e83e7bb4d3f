"""The gate: what each key decides, what can never pass, how timing is decided, and the views of a verdict."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxslim_core.errors import BudgetError, DataError, MeasureError, ModelError, RecipeError
from onnxslim_core.measure.fidelity import OutputFidelity
from onnxslim_core.recipe import Budget, OutputBudget
from onnxslim_core.verdict import Row, Verdict, gate
from onnxslim_core.verdict.job import differences, domains
from onnxslim_core.verdict.judge import ANSWERS, RATIOS, Facts, check_judges, decide_timing, judge, pool

GOOD = OutputFidelity(
    kind="float", answers=4, cosine=0.99, centred_cosine=0.98, relative_l2=0.1, max_abs=0.2, top1=0.9, error=0.1
)
LABELS = OutputFidelity(kind="exact", answers=4, equal=False, equal_share=0.75, error=0.25)


def facts(**changes: Any) -> Facts:
    figures = changes.pop("figures", {"logits": GOOD})
    given: dict[str, Any] = {
        "outputs": [name for name in figures if "." not in name],
        "interface": [],
        "figures": figures,
        "default": {},
        "reference_default": {},
        "parts": {},
        "not_finite": [],
        "metric": None,
        "ratios": dict.fromkeys(RATIOS, (100.0, 80.0)),
        "domains": frozenset({""}),
        "opset": 17,
        "real_data": True,
        "samples": 4,
    }
    return Facts(**{**given, **changes})


def limits(key: str, value: Any) -> Budget:
    return dataclasses.replace(Budget(), **{key: value})


def changed(figure: str, value: Any) -> OutputFidelity:
    return dataclasses.replace(GOOD, **{figure: value})


def row(budget: Budget, found: Facts, key: str) -> Row:
    return next(entry for entry in judge(budget, found) if entry.key == key)


def verdict(rows: Sequence[Row], **changes: Any) -> Verdict:
    given = {"reference": "a.onnx", "candidate": "b.onnx", "data": "4 samples", "real_data": True, "samples": 4}
    return Verdict(**{"rows": tuple(rows), **given, **changes})


# ---------------------------------------------------------------------------------------------------- judging

KEYS: list[tuple[str, Any, Any]] = [
    ("min_cosine", 0.99, 0.991),
    ("min_centred_cosine", 0.98, 0.981),
    ("max_relative_l2", 0.1, 0.099),
    ("max_abs", 0.2, 0.199),
    ("min_top1_agreement", 0.9, 0.901),
    ("max_size_ratio", 0.8, 0.799),
    ("max_params_ratio", 0.8, 0.799),
    ("max_macs_ratio", 0.8, 0.799),
    ("max_memory_ratio", 0.8, 0.799),
    ("min_metric", 0.7, 0.701),
    ("max_metric_drop", 0.05, 0.049),
    ("allowed_domains", ("ai.onnx",), ("com.vendor",)),
    ("max_opset", 17, 16),
]


@pytest.mark.parametrize(("key", "met", "broken"), KEYS, ids=[entry[0] for entry in KEYS])
def test_each_key_passes_at_its_limit_and_fails_beyond(key: str, met: Any, broken: Any) -> None:
    found = facts(metric=(0.75, 0.7))
    met = 0.75 - 0.7 if key == "max_metric_drop" else met
    assert row(limits(key, met), found, key).verdict == "pass"
    assert row(limits(key, broken), found, key).verdict == "fail"


def test_every_key_of_a_budget_is_judged() -> None:
    """A key that is added to Budget and forgotten here would be a limit that nobody keeps."""
    settings = {"require_data", "allow_inconclusive", "output", "max_latency_ratio"}
    assert {field.name for field in dataclasses.fields(Budget)} - settings == {entry[0] for entry in KEYS}
    own = {field.name for field in dataclasses.fields(OutputBudget)} - {"axis", "parts"}
    assert own == set(ANSWERS)


@pytest.mark.parametrize(("key", "met"), [entry[:2] for entry in KEYS if entry[0] != "allowed_domains"])
def test_absent_figure_never_passes(key: str, met: Any) -> None:
    bare = facts(
        figures={"logits": OutputFidelity(kind="float", answers=0)},
        ratios=dict.fromkeys(RATIOS, (None, None)),
        opset=None,
    )
    entry = row(limits(key, met), bare, key)
    assert (entry.verdict, entry.found) == ("fail", None)
    assert entry.note


@pytest.mark.parametrize(
    ("key", "value"),
    [(key, value) for key in ANSWERS for value in (math.nan, -math.inf if key.startswith("min_") else math.inf)],
)
def test_figure_that_is_no_number_never_passes(key: str, value: float) -> None:
    found = facts(figures={"a": GOOD, "b": changed(ANSWERS[key], value)})
    limit = -1.0 if key.startswith("min_") else 1e9
    assert row(limits(key, limit), found, key).verdict == "fail"


@pytest.mark.parametrize("pair", [(math.nan, math.nan), (0.7, math.nan), (math.nan, 0.7), (0.7, math.inf)])
def test_metric_that_is_no_number_never_passes(pair: tuple[float, float]) -> None:
    rows = judge(Budget(min_metric=-9.0, max_metric_drop=9.0), facts(metric=pair))
    assert "fail" in {entry.verdict for entry in rows if "metric" in entry.key}


@pytest.mark.parametrize("pair", [(0, 0), (0, 5), (None, 5), (5, None), (math.nan, 1), (5, math.nan), (5, math.inf)])
def test_ratio_of_nothing_never_passes(pair: tuple[float | None, float | None]) -> None:
    found = facts(ratios=dict.fromkeys(RATIOS, pair))
    for key in RATIOS:
        assert row(limits(key, 10.0), found, key).verdict == "fail"


def test_always_judges_interface_and_finite_answers() -> None:
    budget = Budget(max_opset=17)
    assert [entry.verdict for entry in judge(budget, facts())] == ["pass"] * 3
    assert row(budget, facts(interface=["input x is gone"]), "interface").verdict == "fail"
    assert row(budget, facts(not_finite=["logits: 3"]), "finite").verdict == "fail"
    assert row(budget, facts(figures={}), "finite").verdict == "fail"
    assert row(budget, facts(samples=0), "finite").verdict == "fail"


def test_worst_output_decides_and_is_named() -> None:
    found = facts(figures={"a": GOOD, "b": dataclasses.replace(GOOD, cosine=0.5)})
    entry = row(Budget(min_cosine=0.9), found, "min_cosine")
    assert (entry.verdict, entry.found) == ("fail", 0.5)
    assert "b" in entry.note


def test_limit_of_its_own_takes_an_output_out_of_the_general_one() -> None:
    found = facts(figures={"a": GOOD, "b": dataclasses.replace(GOOD, cosine=0.5)})
    budget = Budget(min_cosine=0.9, output={"b": OutputBudget(min_cosine=0.4)})
    assert row(budget, found, "min_cosine").verdict == "pass"
    assert row(budget, found, "output.b.min_cosine").verdict == "pass"
    strict = Budget(min_cosine=0.4, output={"b": OutputBudget(min_cosine=0.6)})
    assert row(strict, found, "output.b.min_cosine").verdict == "fail"


def test_general_limit_with_no_output_left_fails() -> None:
    budget = Budget(min_cosine=0.9, output={"logits": OutputBudget(min_cosine=0.4)})
    assert row(budget, facts(), "min_cosine").verdict == "fail"


def test_parts_are_judged_in_place_of_their_output() -> None:
    figures = {"out": GOOD, "out.boxes": GOOD, "out.scores": dataclasses.replace(GOOD, cosine=0.6)}
    found = facts(figures=figures, parts={"out": ["boxes", "scores"]})
    for budget in (Budget(min_cosine=0.9), Budget(output={"out": OutputBudget(min_cosine=0.9)})):
        entry = next(entry for entry in judge(budget, found) if entry.key.endswith("min_cosine"))
        assert (entry.verdict, entry.found) == ("fail", 0.6)
        assert "out.scores" in entry.note


def test_limit_for_an_output_that_is_not_there_is_an_error() -> None:
    with pytest.raises(BudgetError, match="logitz"):
        judge(Budget(output={"logitz": OutputBudget(min_cosine=0.9)}), facts())


def test_own_limit_on_an_output_without_the_figure_fails() -> None:
    budget = Budget(output={"label": OutputBudget(min_cosine=0.5)})
    assert row(budget, facts(figures={"label": LABELS}), "output.label.min_cosine").verdict == "fail"


def test_integers_must_be_equal_or_a_share_of_them_be_allowed() -> None:
    found = facts(figures={"logits": GOOD, "label": LABELS})
    assert row(Budget(min_cosine=0.9), found, "equal").verdict == "fail"
    same = dataclasses.replace(LABELS, equal=True, equal_share=1.0)
    assert row(Budget(min_cosine=0.9), facts(figures={"a": GOOD, "label": same}), "equal").verdict == "pass"
    shared = Budget(min_cosine=0.9, output={"label": OutputBudget(min_top1_agreement=0.7)})
    assert [entry.verdict for entry in judge(shared, found)].count("fail") == 0
    assert row(Budget(min_top1_agreement=0.7), found, "min_top1_agreement").found == 0.75
    assert row(Budget(min_top1_agreement=0.8), found, "min_top1_agreement").verdict == "fail"


def test_default_session_breaks_a_limit_that_the_reference_keeps() -> None:
    bad = dataclasses.replace(GOOD, cosine=0.1)
    budget = Budget(min_cosine=0.9)
    assert row(budget, facts(default={"logits": bad}), "min_cosine").verdict == "fail"
    assert (
        row(budget, facts(default={"logits": bad}, reference_default={"logits": GOOD}), "min_cosine").verdict == "fail"
    )
    # onnxruntime's optimizer breaks the reference as well: not the candidate's doing
    assert (
        row(budget, facts(default={"logits": bad}, reference_default={"logits": bad}), "min_cosine").verdict == "pass"
    )


def test_require_data_refuses_random_inputs() -> None:
    budget = Budget(require_data=True, min_cosine=0.9)
    assert row(budget, facts(real_data=False), "require_data").verdict == "fail"
    assert row(budget, facts(), "require_data").verdict == "pass"


@pytest.mark.parametrize(
    "budget", [Budget(), Budget(require_data=True, allow_inconclusive=True), Budget(output={"a": OutputBudget()})]
)
def test_budget_that_judges_nothing_is_an_error(budget: Budget) -> None:
    with pytest.raises(BudgetError, match="nothing"):
        check_judges(budget)


# ---------------------------------------------------------------------------------------------------- timing


@dataclasses.dataclass(frozen=True)
class Timed:
    ratio: float
    low: float
    high: float


def timed(*timings: Timed) -> tuple[Callable[[float, int], Timed], list[float], Callable[[], float]]:
    """A stopwatch that gives these timings one after the other, the last one for ever."""
    asked: list[float] = []

    def measure(seconds: float, turn: int) -> Timed:
        asked.append(seconds)
        return timings[min(turn, len(timings) - 1)]

    return measure, asked, lambda: sum(asked)


OPEN = Timed(1.05, 0.9, 1.2)


def test_timing_passes_only_with_the_whole_interval_within() -> None:
    measure, asked, clock = timed(Timed(1.0, 0.98, 1.05))
    assert decide_timing(1.05, measure, 60, clock=clock)[0].verdict == "pass"
    assert len(asked) == 1


def test_timing_fails_with_the_whole_interval_beyond() -> None:
    measure, asked, clock = timed(Timed(1.2, 1.051, 1.4))
    assert decide_timing(1.05, measure, 60, clock=clock)[0].verdict == "fail"
    assert len(asked) == 1


def test_open_timing_is_measured_longer_until_it_is_decided() -> None:
    measure, asked, clock = timed(OPEN, OPEN, Timed(1.0, 0.99, 1.01))
    assert decide_timing(1.05, measure, 60, clock=clock)[0].verdict == "pass"
    assert asked == sorted(asked)
    assert len(asked) == 3


def test_equal_timings_together_are_narrower() -> None:
    one, two = pool([OPEN]), pool([OPEN, OPEN])
    assert one is not None
    assert two is not None
    assert (one.ratio, one.low, one.high) == (1.05, 0.9, 1.2)
    assert two.ratio == pytest.approx(1.05)
    assert math.log(two.high / two.low) == pytest.approx(math.log(one.high / one.low) / math.sqrt(2))


def test_timings_that_disagree_stay_open() -> None:
    """Each alone is sure of its answer; together they must not be."""
    fast, slow = Timed(0.9, 0.89, 0.91), Timed(1.2, 1.19, 1.21)
    together = pool([fast, slow])
    assert together is not None
    assert together.low < 0.95
    assert together.high > 1.15


def test_pooled_intervals_hold_what_they_promise() -> None:
    """Of a thousand pooled intervals about 950 hold the true ratio."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(1000):
        errors = rng.uniform(0.01, 0.05, 3)
        centres = rng.normal(0.0, errors)
        timings = [Timed(*np.exp([c, c - 1.96 * e, c + 1.96 * e])) for c, e in zip(centres, errors, strict=True)]
        together = pool(timings)
        assert together is not None
        held += together.low <= 1.0 <= together.high
    assert 935 <= held <= 990


def test_timing_that_stays_open_is_inconclusive_and_bounded() -> None:
    measure, asked, clock = timed(OPEN)
    entry, timings = decide_timing(1.05, measure, 60, clock=clock)
    assert entry.verdict == "inconclusive"
    assert len(timings) == len(asked) > 1
    assert sum(asked) <= 60 + 3


@pytest.mark.parametrize(
    "timing",
    [
        Timed(math.nan, math.nan, math.nan),
        Timed(1, 0, math.nan),
        Timed(1, 2, 0.5),
        Timed(2, 0.5, 1),
        Timed(-1, -2, -0.5),
    ],
)
def test_broken_timing_fails(timing: Timed) -> None:
    measure, _, clock = timed(timing)
    assert decide_timing(1.05, measure, 10, clock=clock)[0].verdict == "fail"


def test_timing_without_an_upper_end_is_inconclusive() -> None:
    measure, _, clock = timed(Timed(1.0, 0.0, math.inf))
    assert decide_timing(1.05, measure, 10, clock=clock)[0].verdict == "inconclusive"


# ---------------------------------------------------------------------------------------------------- verdicts

ROWS = [
    Row("min_cosine", 0.99, 0.995, "pass", "worst: a|b"),
    Row("output.<x>&\x01.max_abs", 0.1, math.nan, "fail", 'not a number at "<x>&\x01"'),
    Row("max_latency_ratio", 1.05, 1.04, "inconclusive", "straddles"),
]


def test_inconclusive_fails_unless_the_budget_says_otherwise() -> None:
    rows = [ROWS[0], ROWS[2]]
    assert not verdict(rows).passed
    assert verdict(rows).exit_code == 1
    assert verdict(rows, allow_inconclusive=True).exit_code == 0
    assert not verdict([*rows, ROWS[1]], allow_inconclusive=True).passed


def test_verdict_without_rows_does_not_pass() -> None:
    assert not verdict([]).passed
    assert verdict([]).exit_code == 1


def refuse(word: str) -> Any:
    raise AssertionError(word)


def test_json_is_strict() -> None:
    text = json.dumps(verdict(ROWS).to_json(), allow_nan=False)
    document = json.loads(text, parse_constant=refuse)
    assert document["passed"] is False
    assert [entry["verdict"] for entry in document["rows"]] == ["pass", "fail", "inconclusive"]
    assert document["rows"][1]["found"] == "NaN"


@pytest.mark.parametrize("allowed", [False, True])
def test_junit_counts_what_fails(allowed: bool) -> None:
    suites = ElementTree.fromstring(verdict(ROWS, allow_inconclusive=allowed).to_junit())
    cases = suites.findall("./testsuite/testcase")
    assert len(cases) == len(ROWS) == int(suites.attrib["tests"])
    failures = suites.findall(".//failure")
    skipped = suites.findall(".//skipped")
    assert (len(failures), len(skipped)) == ((1, 1) if allowed else (2, 0))
    for element in (suites, suites[0]):
        assert int(element.attrib["failures"]) == len(failures)
        assert int(element.attrib["skipped"]) == len(skipped)
    assert cases[1].attrib["name"] == "output.<x>&\ufffd.max_abs"


def test_markdown_keeps_its_columns() -> None:
    table = [line for line in verdict(ROWS).to_markdown().splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(ROWS)
    assert {line.replace("\\|", "").count("|") for line in table} == {6}


def test_console_shows_every_row() -> None:
    from rich.console import Console

    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    verdict(ROWS).print_console(console)
    text = console.export_text()
    assert all(word in text for word in ("min_cosine", "inconclusive", "max_latency_ratio", "gate failed"))


# ---------------------------------------------------------------------------------------------------- real models


def network(
    seed: int = 0, noise: float = 0.0, *, output: str = "logits", batch: int | str = "batch", opset: int = 17
) -> onnx.ModelProto:
    rng = np.random.default_rng(seed)
    first = rng.standard_normal((8, 16)).astype(np.float32)
    second = rng.standard_normal((16, 5)).astype(np.float32)
    first += noise * np.random.default_rng(9).standard_normal(first.shape).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "v"], [output]),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 8])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, [batch, 5])],
        [numpy_helper.from_array(first, "w"), numpy_helper.from_array(second, "v")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.npz"
    x = np.random.default_rng(1).standard_normal((12, 8)).astype(np.float32)
    np.savez(path, x=x, label=np.arange(12) % 5)
    return path


def test_same_model_passes_and_says_what_it_was_judged_on(data: Path) -> None:
    budget = Budget(
        min_cosine=0.9999, max_size_ratio=1.0, max_macs_ratio=1.0, max_memory_ratio=1.0, allowed_domains=("ai.onnx",)
    )
    random = gate(network(), network(), budget)
    assert random.passed
    assert not random.real_data
    assert "random" in random.data
    given = gate(network(), network(), budget, data=data)
    assert given.passed
    assert given.real_data
    assert given.samples == 12


def test_perturbed_model_fails_with_the_cosine_that_onnxruntime_gives(data: Path) -> None:
    import onnxruntime as ort

    result = gate(network(), network(noise=0.6), Budget(min_cosine=0.99), data=data)
    x = np.load(data)["x"]
    pair = [ort.InferenceSession(m.SerializeToString()).run(None, {"x": x})[0] for m in (network(), network(noise=0.6))]
    products = [float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b))) for a, b in zip(*pair, strict=True)]
    entry = next(entry for entry in result.rows if entry.key == "min_cosine")
    assert result.exit_code == 1
    assert entry.found == pytest.approx(np.mean(products), abs=1e-5)


def test_other_interface_is_a_no_and_not_an_error() -> None:
    for other in (network(output="scores"), network(batch=1)):
        result = gate(network(), other, Budget(min_cosine=0.5, max_latency_ratio=5.0))
        assert result.exit_code == 1
        assert next(entry for entry in result.rows if entry.key == "interface").verdict == "fail"


def test_opset_beyond_the_limit_fails() -> None:
    assert gate(network(), network(opset=18), Budget(max_opset=17)).exit_code == 1
    assert gate(network(), network(opset=18), Budget(max_opset=18)).exit_code == 0


def test_candidate_that_answers_nan_fails_whatever_the_budget_asks() -> None:
    broken = network()
    weights = numpy_helper.to_array(broken.graph.initializer[1]).copy()
    weights[0, 0] = np.nan
    broken.graph.initializer[1].CopyFrom(numpy_helper.from_array(weights, "v"))
    result = gate(network(), broken, Budget(max_size_ratio=1.0))
    assert next(entry for entry in result.rows if entry.key == "finite").verdict == "fail"
    assert result.exit_code == 1


def test_user_metric_decides(data: Path) -> None:
    def accuracy(outputs: Mapping[str, np.ndarray], labels: Any) -> float:
        return float((outputs["logits"].argmax(-1) == np.concatenate(labels)).mean())

    x, label = (np.load(data)[key] for key in ("x", "label"))
    import onnxruntime as ort

    truth = ort.InferenceSession(network().SerializeToString()).run(None, {"x": x})[0]
    right = float((truth.argmax(1) == label).mean())
    options: dict[str, Any] = {"data": data, "labels": "label", "metric": accuracy}
    assert gate(network(), network(), Budget(min_metric=right), **options).passed
    assert not gate(network(), network(), Budget(min_metric=right + 0.01), **options).passed
    assert gate(network(), network(), Budget(max_metric_drop=0.0), **options).passed
    assert not gate(network(), network(), Budget(min_metric=0.0), data=data).passed


def test_metric_that_leaves_is_no_pass(data: Path) -> None:
    def leave(outputs: object, labels: object) -> float:
        raise SystemExit(0)

    with pytest.raises(DataError, match="SystemExit"):
        gate(network(), network(), Budget(min_metric=0.0), data=data, metric=leave)


def test_errors_are_not_verdicts(tmp_path: Path, data: Path) -> None:
    budget = Budget(min_cosine=0.9)
    empty = tmp_path / "empty.npz"
    np.savez(empty, x=np.zeros((0, 8), np.float32))
    with pytest.raises(DataError):
        gate(network(), network(), budget, data=empty)
    with pytest.raises(ModelError):
        gate(tmp_path / "absent.onnx", network(), budget)
    with pytest.raises(RecipeError):
        gate(network(), network(), budget, data=data, shapes={"x": (1, 8)})
    with pytest.raises(BudgetError):
        gate(network(), network(), Budget(output={"nothing": OutputBudget(min_cosine=0.5)}))
    with pytest.raises(BudgetError):
        gate(network(), network(), Budget())
    unknown = network()
    unknown.graph.node[1].op_type = "NoSuchOperator"
    with pytest.raises((MeasureError, ModelError)):
        gate(network(), unknown, budget)


def test_fast_copy_passes_and_slow_copy_fails() -> None:
    """Twenty times the work: no noise of a shared machine makes that a pass. What is close to the limit: bench/gate.py."""
    heavy = network()
    square = np.eye(16, dtype=np.float32) * np.float32(1.001)
    heavy.graph.initializer.append(numpy_helper.from_array(square, "e"))
    for step in range(300):
        source = "r" if step == 0 else f"s{step - 1}"
        heavy.graph.node.append(helper.make_node("MatMul", [source, "e"], [f"s{step}"]))
    heavy.graph.node[2].input[0] = "s299"
    late = heavy.graph.node[2]
    heavy.graph.node.append(late)
    del heavy.graph.node[2]
    budget = Budget(max_latency_ratio=1.5)
    assert gate(network(), heavy, budget, max_seconds=4).exit_code == 1
    assert gate(heavy, network(), budget, max_seconds=4).exit_code == 0


# ---------------------------------------------------------------------------------------------------- interface


def wrapped(proto: onnx.ModelProto) -> Any:
    import onnx_ir as ir

    return ir.serde.deserialize_model(proto)


def broken_interfaces() -> Iterator[tuple[str, onnx.ModelProto]]:
    yield "fixed batch", network(batch=1)
    yield "other output", network(output="scores")
    typed = network()
    typed.graph.input[0].type.tensor_type.elem_type = TensorProto.DOUBLE
    yield "input type", typed
    rank = network()
    rank.graph.output[0].type.tensor_type.shape.dim.add().dim_value = 1
    yield "rank", rank
    size = network()
    size.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 6
    yield "size", size
    more = network()
    more.graph.input.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, [1]))
    yield "one more input", more


@pytest.mark.parametrize(
    ("name", "candidate"), broken_interfaces(), ids=lambda entry: entry if isinstance(entry, str) else ""
)
def test_broken_interface_is_found(name: str, candidate: onnx.ModelProto) -> None:
    assert differences(wrapped(network()), wrapped(candidate)), name


def test_same_and_wider_interfaces_are_fine() -> None:
    assert differences(wrapped(network()), wrapped(network())) == []
    assert differences(wrapped(network(batch=1)), wrapped(network(batch="n"))) == []
    assert differences(wrapped(network(batch="n")), wrapped(network(batch="m"))) == []


def test_domains_see_bodies_and_one_name_of_the_standard_domain() -> None:
    model = network()
    model.graph.node[0].domain = "ai.onnx"
    body = helper.make_graph(
        [helper.make_node("Vendor", [], ["b"], domain="com.vendor")],
        "body",
        [],
        [helper.make_tensor_value_info("b", TensorProto.FLOAT, None)],
    )
    condition = numpy_helper.from_array(np.array(True), "c")
    model.graph.initializer.append(condition)
    model.graph.node.append(helper.make_node("If", ["c"], ["z"], then_branch=body, else_branch=body))
    model.opset_import.append(helper.make_opsetid("com.vendor", 1))
    assert domains(wrapped(model)) == {"", "com.vendor"}
