"""The job `compress`: promises kept, steps taken back alone, budgets, files whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxslim_core import _files, _job, passes, pipeline
from onnxslim_core.errors import BudgetError, DataError, MeasureError, ModelError, RecipeError
from onnxslim_core.measure.latency import Latency
from onnxslim_core.model import Model, load
from onnxslim_core.pipeline import Result, compress, compress_file
from onnxslim_core.recipe import Budget, InputSpec, OutputBudget, Recipe, Step
from onnxslim_core.rewrite import Change, Context, Kind

RNG = np.random.default_rng(0)


def net(width: int = 16, batch: int | str = "n", feedable: bool = False) -> onnx.ModelProto:
    """X [n, 8] -> Gemm -> Relu -> Gemm -> y [n, 4]."""
    rng = np.random.default_rng(1)
    weights = {
        "w1": rng.standard_normal((8, width)),
        "b1": rng.standard_normal(width),
        "w2": rng.standard_normal((width, 4)),
        "b2": rng.standard_normal(4),
    }
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"], name="first"),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("Gemm", ["r", "w2", "b2"], ["y"], name="second"),
    ]
    initializers = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 8])]
    if feedable:
        inputs += [helper.make_tensor_value_info(t.name, TensorProto.FLOAT, t.dims) for t in initializers]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 4])]
    graph = helper.make_graph(nodes, "net", inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def answers(model: bytes | str, x: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


@dataclass(frozen=True)
class Fake:
    """A pass that multiplies the weights of one Gemm, and does what else it is told."""

    name: ClassVar[str] = "fake"
    kind: ClassVar[Kind] = Kind.ALGEBRAIC
    factor: float = 1.0
    node: str = "second"

    def run(self, model: ir.Model, context: Context) -> list[Change]:
        found = next(node for node in model.graph if node.name == self.node)
        for value in found.inputs[1:]:
            assert value is not None and value.const_value is not None
            value.const_value = ir.tensor(value.const_value.numpy() * np.float32(self.factor), name=value.name)
        return [Change(self.name, (self.node,), f"scaled by {self.factor}")]


@dataclass(frozen=True)
class Lossy(Fake):
    name: ClassVar[str] = "lossy"
    kind: ClassVar[Kind] = Kind.LOSSY


@dataclass(frozen=True)
class Narrow:
    """Keeps the first `keep` hidden neurons: smaller, and as wrong as it gets."""

    name: ClassVar[str] = "narrow"
    kind: ClassVar[Kind] = Kind.LOSSY
    keep: int = 4

    def run(self, model: ir.Model, context: Context) -> list[Change]:
        assert context.samples
        init = model.graph.initializers
        cuts: dict[str, Any] = {"w1": np.s_[:, : self.keep], "b1": np.s_[: self.keep], "w2": np.s_[: self.keep]}
        for name, cut in cuts.items():
            tensor = init[name].const_value
            assert tensor is not None
            array = np.ascontiguousarray(tensor.numpy()[cut])
            init[name].const_value = ir.tensor(array, name=name)
            init[name].shape = ir.Shape(array.shape)
        for node in model.graph:
            if node.name in ("first", "relu"):
                node.outputs[0].shape = None
        return [Change(self.name, ("first",), f"kept {self.keep}")]


@dataclass(frozen=True)
class Bloat:
    """Adds an initializer that is read and does nothing."""

    name: ClassVar[str] = "bloat"
    kind: ClassVar[Kind] = Kind.BITWISE

    def run(self, model: ir.Model, context: Context) -> list[Change]:
        found = next(node for node in model.graph if node.name == "relu")
        zeros = ir.Value(
            name="zeros",
            shape=ir.Shape((500, 1, 1)),
            type=ir.TensorType(ir.DataType.FLOAT),
            const_value=ir.tensor(np.zeros((500, 1, 1), np.float32), name="zeros"),
        )
        model.graph.register_initializer(zeros)
        reduce = ir.node("ReduceSum", [zeros], {"keepdims": 0}, name="sum")
        reduce.outputs[0].name = "zero"
        plus = ir.node("Add", [found.outputs[0], reduce.outputs[0]], name="plus")
        plus.outputs[0].name = "plus_output"
        found.outputs[0].replace_all_uses_with(plus.outputs[0])
        plus.replace_input_with(0, found.outputs[0])
        model.graph.insert_after(found, [reduce, plus])
        return [Change(self.name, ("relu",), "bloated")]


@dataclass(frozen=True)
class Break:
    """Leaves a graph that does not load."""

    name: ClassVar[str] = "break_it"
    kind: ClassVar[Kind] = Kind.ALGEBRAIC

    def run(self, model: ir.Model, context: Context) -> list[Change]:
        found = next(node for node in model.graph if node.name == "relu")
        found.op_type = "NoSuchOperator"
        return [Change(self.name, ("relu",), "broke")]


FAKES: tuple[type[Any], ...] = (Fake, Lossy, Narrow, Bloat, Break)


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    real = vars(passes)["pass_class"]
    found: dict[str, type[Any]] = {cls.name: cls for cls in FAKES}
    choose: Callable[[str], Any] = lambda name: found.get(name) or real(name)  # noqa: E731
    monkeypatch.setattr(passes, "pass_class", choose)


def recipe(*steps: tuple[str, dict[str, Any]] | str, **rest: Any) -> Recipe:
    made = [Step(step) if isinstance(step, str) else Step(*step) for step in steps]
    return Recipe(tuple(made), **rest)


def squeeze(model: Any, *args: Any, **options: Any) -> Result:
    return compress(model, *args, **{"measure_latency": False, **options})


def outcomes(result: Result) -> dict[str, str]:
    return {step.name: step.outcome for step in result.report.steps}


def test_exact_by_default_and_the_same_answers(tmp_path: Path) -> None:
    source = net()
    result = squeeze(source)
    assert result.passed and result.exit_code == 0
    assert [step.name for step in result.report.steps] == [
        "normalize",
        "fold_constants",
        "reorder",
        "fuse_activations",
        "fuse_batchnorm",
        "merge_convs",
        "remove_idle",
        "select_idle",
    ]
    assert result.report.verified
    result.save(tmp_path / "out.onnx")
    x = RNG.standard_normal((3, 8)).astype(np.float32)
    np.testing.assert_allclose(
        answers(str(tmp_path / "out.onnx"), x), answers(source.SerializeToString(), x), rtol=1e-5, atol=1e-5
    )


def test_the_source_is_not_changed() -> None:
    source = load(net())
    before = source.to_proto().SerializeToString()
    squeeze(source, recipe(("lossy", {"factor": 2.0})))
    assert source.to_proto().SerializeToString() == before


def test_an_exact_step_that_lies_is_found_and_taken_back() -> None:
    result = squeeze(net(), recipe("normalize", ("fake", {"factor": 1.01}), "fuse_batchnorm"))
    step = result.report.steps[1]
    assert (step.name, step.outcome) == ("fake", "rolled back")
    assert "changed the answers: output 'y' is off by" in step.reason
    assert result.report.fidelity is not None and result.report.fidelity.equal()
    assert result.report.outcome in ("exact", "unchanged")


def test_only_the_liar_is_taken_back() -> None:
    tiny = 1 + 2**-22
    result = squeeze(net(), recipe(("fake", {"factor": tiny}), ("fake", {"factor": 1.5}), ("fake", {"factor": tiny})))
    assert [step.outcome for step in result.report.steps if step.name == "fake"] == ["done", "rolled back", "done"]
    assert result.report.fidelity is not None and result.report.fidelity.equal()


def test_a_step_that_breaks_the_graph_is_taken_back() -> None:
    result = squeeze(net(), recipe("break_it"))
    assert outcomes(result)["break_it"] == "rolled back"
    result.model.to_proto()
    assert result.report.fidelity is not None and result.report.fidelity.equal()


def test_an_exact_step_that_bloats_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_job, "CLEANUP", ("normalize",))  # folding would undo it
    result = squeeze(net(), recipe("bloat", "fuse_batchnorm"))
    assert outcomes(result)["bloat"] == "rolled back"
    assert "bigger" in next(step.reason for step in result.report.steps if step.name == "bloat")
    assert result.report.sizes[1] <= 1.01 * result.report.sizes[0]


def test_lossy_within_budget_is_kept() -> None:
    result = squeeze(net(width=64), recipe(("narrow", {"keep": 60}), budget=Budget(min_cosine=0.5)))
    assert outcomes(result)["narrow"] == "done"
    assert (result.report.outcome, result.passed) == ("compressed", True)
    assert result.report.sizes[1] < result.report.sizes[0]
    assert result.model.ir.graph.initializers["w1"].const_value is not None
    assert result.model.ir.graph.initializers["w1"].const_value.shape == (8, 60)


def test_lossy_over_budget_is_taken_back_alone() -> None:
    budget = Budget(min_cosine=0.999)
    result = squeeze(net(width=64), recipe(("narrow", {"keep": 63}), ("narrow", {"keep": 2}), budget=budget))
    steps = [step for step in result.report.steps if step.name == "narrow"]
    kept = [step.outcome for step in steps]
    assert kept[1] == "rolled back"
    assert "min_cosine" in steps[1].reason
    assert result.passed
    first = squeeze(net(width=64), recipe(("narrow", {"keep": 63}), budget=budget))
    assert kept[0] == outcomes(first)["narrow"]


def test_lossy_that_gains_nothing_is_never_called_compressed() -> None:
    result = squeeze(net(), recipe("normalize", ("lossy", {"factor": 1.001})))
    assert outcomes(result)["lossy"] == "rolled back"
    assert result.report.outcome != "compressed"
    assert result.report.fidelity is not None and result.report.fidelity.equal()


def test_a_cleanup_at_fault_spoils_no_other_step(monkeypatch: pytest.MonkeyPatch) -> None:
    folding: Any = vars(passes)["pass_class"]("fold_constants")
    real: Callable[..., list[Change]] = folding.run

    def wrong(self: Any, model: ir.Model, context: Context) -> list[Change]:
        found = next((node for node in model.graph if node.name == "second" and "spoilt" not in node.meta), None)
        if found is None:
            return real(self, model, context)
        found.meta["spoilt"] = True
        return Fake(factor=2.0).run(model, context)

    monkeypatch.setattr(folding, "run", wrong)
    result = squeeze(net(), recipe("normalize", "fold_constants", ("fake", {"node": "first"})))
    assert outcomes(result) == {"normalize": "nothing to do", "fold_constants": "rolled back", "fake": "done"}


def test_lossy_that_is_faster_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[float] = []

    def fast(*args: Any, **options: Any) -> Latency:
        timed.append(options["seconds"])
        return latency(0.8)

    monkeypatch.setattr(_job, "compare_latency", fast)
    result = compress(net(), recipe(("lossy", {"factor": 1.001})))
    assert outcomes(result)["lossy"] == "done"
    assert result.report.outcome == "compressed"
    assert "1.25 x as fast" in result.report.headline
    assert timed


def latency(ratio: float, spread: float = 0.01) -> Latency:
    return Latency(ratio, ratio - spread, ratio + spread, 1.0, ratio, None, 100, 5, 1, 1, 0.1, "thread")


def test_exact_steps_measured_slower_are_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the state with the second scaling is slow, so only that step goes."""
    tiny = 1 + 2**-22

    def timing(reference: Any, candidate: Any, *args: Any, **options: Any) -> Latency:
        marks = candidate.ir.graph.initializers["w1"].const_value.numpy()
        return latency(1.2 if marks[0, 0] != reference.ir.graph.initializers["w1"].const_value.numpy()[0, 0] else 1.0)

    monkeypatch.setattr(_job, "compare_latency", timing)
    slow = {"factor": 1 + 2**-21, "node": "first"}
    result = compress(net(), recipe("normalize", ("fake", {"factor": tiny}), ("fake", slow)))
    fakes = [step for step in result.report.steps if step.name == "fake"]
    assert [step.outcome for step in fakes] == ["done", "rolled back"]
    assert "measured slower" in fakes[1].reason
    assert result.report.latency is not None and result.report.latency.ratio == 1.0


def test_a_lossy_step_that_does_nothing_brings_back_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cleanup after it would do again what was taken back as slower, and it would be called compressed."""
    source = net()
    source.graph.node.insert(1, helper.make_node("Identity", ["h"], ["i"], name="idle"))
    source.graph.node[2].input[0] = "i"

    def timing(reference: Any, candidate: Any, *args: Any, **options: Any) -> Latency:
        return latency(1.0 if any(node.op_type == "Identity" for node in candidate.ir.graph) else 1.2)

    monkeypatch.setattr(_job, "compare_latency", timing)
    monkeypatch.setattr(Narrow, "run", lambda *_: [])
    result = compress(source, recipe("normalize", "narrow"))
    assert outcomes(result) == {"normalize": "rolled back", "narrow": "nothing to do"}
    assert result.report.outcome == "unchanged"


def test_exact_steps_that_slow_a_lossy_result_are_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = 1 + 2**-21

    def timing(reference: Any, candidate: Any, *args: Any, **options: Any) -> Latency:
        ours, theirs = (m.ir.graph.initializers["w1"].const_value.numpy()[0, 0] for m in (reference, candidate))
        return latency(1.2 if ours != theirs else 1.0)

    monkeypatch.setattr(_job, "compare_latency", timing)
    result = compress(net(width=64), recipe(("fake", {"factor": slow, "node": "first"}), "narrow"), verify=False)
    assert outcomes(result) == {"cleanup": "nothing to do", "fake": "rolled back", "narrow": "done"}


def test_a_stage_within_another_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([0.0, 1.0, 5.0, 7.0])
    monkeypatch.setattr("onnxslim_core._job.time.perf_counter", lambda: next(ticks))
    clock = _job.Clock()
    with clock("outer"), clock("inner"):
        pass
    assert clock.seconds == {"inner": 4.0, "outer": 3.0}


def test_labels_that_change_are_told_in_the_headline() -> None:
    source = net(width=64)
    source.graph.node.append(helper.make_node("ArgMax", ["y"], ["label"], axis=1, name="label"))
    source.graph.output.append(helper.make_tensor_value_info("label", TensorProto.INT64, None))
    result = squeeze(
        source, recipe(("narrow", {"keep": 8})), data={"x": RNG.standard_normal((80, 8)).astype(np.float32)}
    )
    assert " % of label equal" in result.report.headline
    kept = squeeze(
        source,
        recipe(("narrow", {"keep": 8})),
        data={"x": RNG.standard_normal((80, 8)).astype(np.float32)},
        budget=Budget(min_top1_agreement=0.999),
    )
    assert outcomes(kept)["narrow"] == "rolled back"


@pytest.mark.parametrize(
    ("ratio", "limit", "allow", "passes"),
    [(0.7, 0.8, False, True), (0.9, 0.8, False, False), (0.8, 0.8, False, False), (0.8, 0.8, True, True)],
)
def test_latency_budget(monkeypatch: pytest.MonkeyPatch, ratio: float, limit: float, allow: bool, passes: bool) -> None:
    timed: list[float] = []

    def timing(*args: Any, **options: Any) -> Latency:
        timed.append(options["seconds"])
        return latency(ratio)

    monkeypatch.setattr(_job, "compare_latency", timing)
    budget = Budget(max_latency_ratio=limit, allow_inconclusive=allow)
    result = compress(net(), recipe("normalize"), budget=budget, latency_seconds=1.0)
    assert result.passed is passes
    assert (max(timed) > 1.0) is (ratio == limit), "measures longer only where it is inconclusive"
    if not passes:
        assert "max_latency_ratio" in result.report.breaches[0]


def test_a_budget_that_cannot_be_met_writes_nothing(tmp_path: Path) -> None:
    onnx.save(net(width=64), tmp_path / "in.onnx")
    out = tmp_path / "out.onnx"
    out.write_bytes(b"old")
    limits = Budget(max_size_ratio=0.5, min_cosine=0.99)
    result = compress_file(
        tmp_path / "in.onnx", out, recipe(("narrow", {"keep": 2})), budget=limits, measure_latency=False
    )
    assert (result.passed, result.exit_code, result.report.outcome) == (False, 1, "over budget")
    assert any("max_size_ratio" in line for line in result.report.breaches)
    assert out.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.onnx", "out.onnx"]
    with pytest.raises(ModelError, match="budget is not met"):
        result.save(out)


@pytest.mark.parametrize(
    ("budget", "needle"),
    [
        (Budget(max_params_ratio=0.9), "max_params_ratio: 1"),
        (Budget(max_macs_ratio=0.9), "max_macs_ratio: 1"),
        (Budget(max_memory_ratio=0.9), "max_memory_ratio: 1"),
        (Budget(max_opset=13), "max_opset: 17, the limit is 13"),
        (Budget(allowed_domains=("com.acme",)), "allowed_domains: 'ai.onnx' is used"),
        (Budget(require_data=True), "require_data"),
        (Budget(min_top1_agreement=0.5, max_abs=1.0), None),
        (Budget(max_size_ratio=1.01, max_params_ratio=1, allowed_domains=("",), max_opset=17), None),
    ],
)
def test_budget_keys(budget: Budget, needle: str | None) -> None:
    result = squeeze(net(), recipe("normalize"), budget=budget)
    assert result.passed is (needle is None)
    if needle is not None:
        assert needle in result.report.breaches[0]


def test_budget_of_parts_judges_them_apart() -> None:
    apart = OutputBudget(min_cosine=0.9, axis=1, parts={"a": (0, 2), "b": (2, 4)})
    result = squeeze(net(), recipe("normalize"), budget=Budget(output={"y": apart}))
    assert result.passed
    assert result.report.fidelity is not None and {"y", "y.a", "y.b"} == set(result.report.fidelity.outputs)
    with pytest.raises(BudgetError, match="no such output"):
        squeeze(net(), recipe("normalize"), budget=Budget(output={"z": OutputBudget(min_cosine=0.9)}))


def test_what_cannot_be_judged_is_refused_first() -> None:
    with pytest.raises(BudgetError, match="--no-verify"):
        squeeze(net(), budget=Budget(min_cosine=0.9), verify=False)
    with pytest.raises(BudgetError, match="--no-latency"):
        squeeze(net(), budget=Budget(max_latency_ratio=0.9))
    with pytest.raises(BudgetError, match="a metric"):
        squeeze(net(), budget=Budget(min_metric=0.9))


def test_no_verify_says_unverified() -> None:
    result = squeeze(net(width=64), recipe(("narrow", {"keep": 4})), verify=False)
    assert not result.report.verified
    assert "--no-verify" in result.report.unverified_because
    assert "unverified" in result.report.headline
    assert outcomes(result)["narrow"] == "done"


def test_metric_on_given_data() -> None:
    rows = RNG.standard_normal((40, 8)).astype(np.float32)
    labels = answers(net(width=64).SerializeToString(), rows).argmax(1)

    def accuracy(outputs: Any, given: Any) -> float:
        return float((outputs["y"].argmax(1) == np.concatenate(given)).mean())

    base = recipe(("narrow", {"keep": 2}))
    plan = replace(base, data=replace(base.data, labels="label"))
    data = {"x": rows, "label": labels}
    budget = Budget(min_metric=0.99)
    result = squeeze(net(width=64), plan, data=data, metric=accuracy, budget=budget)
    assert outcomes(result)["narrow"] == "rolled back"
    assert "min_metric" in next(step.reason for step in result.report.steps if step.name == "narrow")
    assert result.report.fidelity is not None and result.report.fidelity.metric == (1.0, 1.0)
    assert (result.report.data.kind, result.report.data.deciding, result.report.data.judging) == ("given", 20, 20)


def test_deciding_and_judging_samples_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[np.ndarray] = []
    judged: list[np.ndarray] = []
    real = vars(_job)["compare"]

    def spy(reference: Any, candidate: Any, **options: Any) -> Any:
        judged.extend(sample["x"] for sample in reference.samples)
        return real(reference, candidate, **options)

    def look(self: Narrow, model: ir.Model, context: Context) -> list[Change]:
        seen.extend(sample["x"] for sample in context.samples)
        return []

    monkeypatch.setattr(_job, "compare", spy)
    monkeypatch.setattr(Narrow, "run", look)
    for data in (None, {"x": RNG.standard_normal((20, 8)).astype(np.float32)}):
        seen.clear()
        judged.clear()
        job = squeeze(net(), recipe("narrow", ("lossy", {"factor": 1.01})), data=data)
        assert outcomes(job)["narrow"] == "nothing to do"
        assert seen and judged
        judging = job.report.data.judging
        assert all(not np.array_equal(a, b) for a in seen for b in judged[:judging])


def test_where_nothing_runs_only_exact_passes_do() -> None:
    graph = net().graph
    node = helper.make_node("Reshape", ["x", "shape"], ["flat"], name="never")
    graph.node.insert(0, node)
    graph.node[1].input[0] = "flat"
    graph.initializer.append(numpy_helper.from_array(np.array([5, 8]), "shape"))
    graph.input[0].type.tensor_type.shape.dim[0].dim_param = "n"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    result = squeeze(model, recipe("normalize", ("narrow", {"keep": 2})))
    if result.report.data.kind == "random":
        pytest.skip("the ladder found a size")
    assert outcomes(result)["narrow"] == "refused"
    assert not result.report.verified
    assert result.report.data.kind == "none"


def test_shapes_and_values_of_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = replace(recipe("normalize"), inputs={"x": InputSpec((5, 8))})
    assert squeeze(net(), plan).report.data.shapes == {"x": (5, 8)}
    assert squeeze(net(), plan, shapes={"x": (7, 8)}).report.data.shapes == {"x": (7, 8)}
    filled = replace(recipe("normalize"), inputs={"x": InputSpec(None, 2)})
    assert squeeze(net(), filled).report.verified
    with pytest.raises(RecipeError, match="no input is called 'z'"):
        squeeze(net(), shapes={"z": (1,)})


def test_data_that_does_not_fit() -> None:
    with pytest.raises(DataError, match="no array 'x'"):
        squeeze(net(), data={"z": np.zeros((2, 8), np.float32)})


def test_code_in_a_recipe_needs_permission(tmp_path: Path) -> None:
    (tmp_path / "give.py").write_text(
        "import numpy as np\ndef samples():\n    return [{'x': np.full((1, 8), i, np.float32)} for i in range(6)]\n"
    )
    base = recipe("normalize")
    plan = replace(base, data=replace(base.data, source="give.py:samples", folder=tmp_path))
    with pytest.raises(RecipeError, match="is code") as caught:
        squeeze(net(), plan)
    assert caught.value.hint is not None and "--allow-code" in caught.value.hint
    assert squeeze(net(), plan, allow_code=True).report.data.judging == 3


def test_a_model_that_onnxruntime_cannot_load() -> None:
    model = net()
    model.graph.node[1].op_type = "Nothing"
    model.graph.node[1].domain = "com.acme"
    model.opset_import.append(helper.make_opsetid("com.acme", 1))
    with pytest.raises(MeasureError, match="cannot load"):
        squeeze(model)


def test_initializers_listed_as_inputs_are_reported_and_the_reference_keeps_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    references: list[int] = []

    def timing(reference: Any, candidate: Any, *args: Any, **options: Any) -> Latency:
        references.append(len(reference.ir.graph.inputs))
        return latency(0.7)

    monkeypatch.setattr(_job, "compare_latency", timing)
    result = compress(net(feedable=True), recipe("normalize"))
    assert references and set(references) == {5}, "what loading gains counts"
    assert [note.pass_name for note in result.report.notes] == ["load"]
    assert [value.name for value in result.model.ir.graph.inputs] == ["x"]
    kept = squeeze(net(feedable=True), recipe("normalize"), keep_feedable=True)
    assert len(kept.model.ir.graph.inputs) == 5


def test_the_same_input_gives_the_same_bytes() -> None:
    first, second = (squeeze(net(width=64), recipe(("narrow", {"keep": 60}))) for _ in range(2))
    assert first.model.to_proto().SerializeToString() == second.model.to_proto().SerializeToString()


def test_interrupts_pass_through_and_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx.save(net(), tmp_path / "in.onnx")

    def interrupt(self: Fake, model: ir.Model, context: Context) -> list[Change]:
        raise KeyboardInterrupt

    monkeypatch.setattr(Fake, "run", interrupt)
    with pytest.raises(KeyboardInterrupt):
        compress_file(tmp_path / "in.onnx", tmp_path / "out.onnx", recipe("fake"), measure_latency=False)
    assert [path.name for path in tmp_path.iterdir()] == ["in.onnx"]


def test_a_written_file_that_answers_otherwise_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = squeeze(net())
    other = net(width=8).SerializeToString()
    monkeypatch.setattr(_files, "write_pieces", lambda found, path: path.write_bytes(other))
    with pytest.raises(ModelError, match="does not answer like the model in memory"):
        result.save(tmp_path / "out.onnx")
    assert not list(tmp_path.iterdir())


def test_a_file_is_run_again_unless_its_bytes_were_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Path] = []
    real = vars(pipeline)["open_file"]

    def noted(path: Path, **options: Any) -> Any:
        opened.append(path)
        return real(path, **options)

    monkeypatch.setattr(pipeline, "open_file", noted)
    squeeze(net()).save(tmp_path / "same.onnx")
    assert not opened
    result = squeeze(net())
    result.model.ir.producer_name = "somebody else"
    result.save(tmp_path / "other.onnx")
    assert len(opened) == 1
    squeeze(net(), verify=False).save(tmp_path / "unverified.onnx")
    assert len(opened) == 1


def test_a_result_that_was_changed_afterwards_can_be_saved(tmp_path: Path) -> None:
    result = squeeze(net())
    assert result.answers is not None
    result.model.ir = load(net(width=8)).ir
    result.save(tmp_path / "out.onnx")
    x = np.ones((1, 8), np.float32)
    np.testing.assert_array_equal(answers(str(tmp_path / "out.onnx"), x), answers(net(width=8).SerializeToString(), x))


def test_exact_steps_share_one_copy_until_one_is_at_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    copies: list[Model] = []
    real = Model.copy

    def counted(model: Model, **options: bool) -> Model:
        copies.append(real(model, **options))
        return copies[-1]

    monkeypatch.setattr(Model, "copy", counted)
    squeeze(net())
    assert len(copies) == 1
    copies.clear()
    tiny = 1 + 2**-22
    squeeze(net(), recipe(("fake", {"factor": tiny}), ("fake", {"factor": 1.5}), ("fake", {"factor": tiny})))
    # one for all, then one for each and the cleanup before them, then one for what comes after the one left out
    assert len(copies) == 1 + 4 + 1


def test_exact_steps_after_a_lossy_one_leave_what_was_judged_alone() -> None:
    tiny = 1 + 2**-22
    steps = (("fake", {"factor": tiny}), ("lossy", {"factor": 1.2}), ("fake", {"factor": 1.5}), "narrow")
    result = squeeze(net(), recipe(*steps), budget=Budget(max_abs=1e9))
    assert [step.outcome for step in result.report.steps if step.name == "fake"] == ["done", "rolled back"]
    x = RNG.standard_normal((3, 8)).astype(np.float32)
    found = answers(result.model.to_proto().SerializeToString(), x)
    assert np.isfinite(found).all()


def test_overwrites_its_own_source(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(net(), path)
    x = RNG.standard_normal((2, 8)).astype(np.float32)
    before = answers(str(path), x)
    compress_file(path, path, measure_latency=False)
    np.testing.assert_allclose(answers(str(path), x), before, rtol=1e-5, atol=1e-5)


def test_progress_tells_every_step() -> None:
    told: list[str] = []
    squeeze(net(), recipe("normalize", "fuse_batchnorm"), progress=lambda step, done, total: told.append(step))
    assert {"normalize", "fuse_batchnorm"} <= set(told)


def test_a_wrong_declaration_of_an_output_is_kept_and_told() -> None:
    """Folding the shape of a Reshape lets inference see that a declared size is wrong; the step is not to blame."""
    model = net()
    output = model.graph.output[0]
    model.graph.node[2].output[0] = "flat"
    # onnx does not propagate Neg into shapes, so that only folding shows the sizes
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, -2], np.int64), "numbers"))
    model.graph.node.append(helper.make_node("Neg", ["numbers"], ["sizes"], name="sizes"))
    model.graph.node.append(helper.make_node("Reshape", ["flat", "sizes"], ["y"], name="reshape"))
    output.type.tensor_type.shape.dim[1].dim_value = 3
    result = squeeze(model)
    assert "rolled back" not in outcomes(result).values()
    assert any("kept the wrong shape of output 'y'" in note.action for note in result.report.notes)
    assert result.report.fidelity is not None and result.report.fidelity.equal()
    assert "Neg" not in {node.op_type for node in result.model.ir.graph}
    assert str(result.model.ir.graph.outputs[0].shape) == "[n,3]"


def test_external_data_comes_out_as_it_came_in(tmp_path: Path) -> None:
    onnx.save(
        net(width=300), tmp_path / "net.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0
    )
    result = compress_file(tmp_path / "net.onnx", tmp_path / "out.onnx", measure_latency=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.onnx", "out.onnx", "out.onnx.data", "weights.bin"]
    x = RNG.standard_normal((2, 8)).astype(np.float32)
    expected = answers(str(tmp_path / "net.onnx"), x)
    np.testing.assert_allclose(answers(str(tmp_path / "out.onnx"), x), expected, rtol=1e-5, atol=1e-5)
    assert result.report.sizes[0] > 4 * 300 * 12
