"""Models that load and contradict themselves: what does not run, or in a body that nobody entered, stays as it is."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxslim_core.passes.remove_idle import RemoveIdle

from onnxslim_core.channels.trace import trace
from onnxslim_core.cli import main
from onnxslim_core.errors import InternalError
from onnxslim_core.model import load
from onnxslim_core.pipeline import compress

FLOAT = TensorProto.FLOAT
RNG = np.random.default_rng(5)


def weight(name: str, *shape: int) -> onnx.TensorProto:
    return numpy_helper.from_array(RNG.standard_normal(shape).astype(np.float32), name)


def info(name: str, shape: list[int] | None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, FLOAT, shape)


def model_of(
    nodes: list[onnx.NodeProto], weights: list[onnx.TensorProto], size: list[int], out: int = 4
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "g", [info("x", size)], [info("y", [None] * out)], weights)  # type: ignore[list-item]
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def flat_weight() -> onnx.ModelProto:
    """The second Conv has a weight of one axis, which onnxruntime sees only when it runs."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="first"),
        helper.make_node("Unique", ["sizes"], ["shape"], name="hide"),
        helper.make_node("ConstantOfShape", ["shape"], ["v"], name="fill"),
        helper.make_node("Conv", ["a", "v"], ["b"], name="second"),
        helper.make_node("Relu", ["b"], ["y"], name="last"),
    ]
    sizes = numpy_helper.from_array(np.array([4], np.int64), "sizes")
    return model_of(nodes, [weight("w", 4, 3, 1, 1), sizes], [1, 3, 5, 5])


def wrong_branch() -> onnx.ModelProto:
    """An If of which nobody sees the second branch; in that a Gemm has a bias that fits nothing."""
    then = helper.make_graph([helper.make_node("Relu", ["x"], ["t"])], "then", [], [info("t", [None, 6])])  # type: ignore[list-item]
    gemm = [helper.make_node("Gemm", ["x", "w", "c"], ["e"], name="odd")]
    other = helper.make_graph(gemm, "else", [], [info("e", [None, None])])  # type: ignore[list-item]
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["m"], keepdims=0),
        helper.make_node("Less", ["m", "far"], ["near"]),
        helper.make_node("If", ["near"], ["y"], then_branch=then, else_branch=other, name="branch"),
    ]
    far = numpy_helper.from_array(np.array(1e6, np.float32), "far")
    return model_of(nodes, [weight("w", 6, 6), weight("c", 5, 5), far], [1, 6], 2)


@pytest.mark.parametrize("make", [flat_weight, wrong_branch])
def test_a_pass_that_meets_a_contradiction_is_refused(
    make: Callable[[], onnx.ModelProto], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    path.write_bytes(make().SerializeToString())
    assert main(["compress", str(path), "-o", str(out), "--quiet", "--no-latency", "--no-lock"]) == 0
    assert capsys.readouterr().err == ""
    onnx.checker.check_model(onnx.load(out))


def failing(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object) -> None:
        raise IndexError("tuple index out of range")

    monkeypatch.setattr(RemoveIdle, "run", run)


def test_the_report_names_the_pass_and_keeps_what_the_others_did(monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch)
    result = compress(flat_weight(), measure_latency=False)
    step = next(step for step in result.report.steps if step.name == "remove_idle")
    assert step.outcome == "refused" and "contradictory" in step.reason


def test_where_all_of_the_model_runs_it_is_our_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch)
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], name="only")]
    with pytest.raises((InternalError, IndexError)):
        compress(model_of(nodes, [weight("w", 4, 3, 1, 1)], [1, 3, 5, 5]), measure_latency=False)


def test_an_axis_of_a_weight_without_elements_may_be_of_any_length() -> None:
    """No label is made for channels that nobody could ever run."""
    long = onnx.TensorProto(name="w", data_type=FLOAT, dims=[0, 620757248])
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="first"),
        helper.make_node("Concat", ["a", "a"], ["b"], axis=1, name="both"),
        helper.make_node("Relu", ["b"], ["y"], name="last"),
    ]
    model = load(model_of(nodes, [long], [2, 0], 2))
    tracemalloc.start()
    flow = trace(model.ir, None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**25
    assert any("620757248" in reason.text for reason in flow.frozen)


def test_texts_that_onnxruntime_cannot_tell_of_come_in_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its Python package prints what failed, and tries again, where it is not told to leave that."""
    node = helper.make_node("Normalizer", ["x"], ["y"], domain="ai.onnx.ml", norm=b"M\xffX", name="odd")
    model = model_of([node], [], [1, 3], 2)
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    path = tmp_path / "in.onnx"
    path.write_bytes(model.SerializeToString())
    assert main(["compress", str(path), "-o", str(tmp_path / "out.onnx"), "--quiet", "--no-latency"]) == 3
    told = capfd.readouterr()
    assert told.out == "" and len([line for line in told.err.splitlines() if not line.startswith("  hint")]) == 1
