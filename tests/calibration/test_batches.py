"""Samples put together: only where the model is seen to take two."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from onnxslim_core.calibration import batches
from onnxslim_core.calibration.batches import stacked


def reshaped(target: list[int], first: int | str = "n") -> ir.Model:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("Reshape", ["r", "shape"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [first, 3, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * len(target))],
        [numpy_helper.from_array(np.array(target, np.int64), "shape")],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


@pytest.mark.parametrize(
    ("target", "first", "together"),
    [([-1, 12], "n", True), ([0, 12], "n", True), ([1, 12], "n", False), ([-1, 12], 1, False)],
)
def test_two_samples_go_together_where_the_model_runs_with_two(
    target: list[int], first: int | str, together: bool
) -> None:
    samples = [{"x": np.full((1, 3, 4), float(number), np.float32)} for number in range(5)]
    model = reshaped(target, first)
    for _ in range(2):
        found = stacked(model, samples, size=4)
        assert [len(batch["x"]) for batch in found] == ([4, 1] if together else [1] * 5)
        assert np.array_equal(np.concatenate([batch["x"] for batch in found])[:, 0, 0], np.arange(5))


def test_fewer_go_together_where_much_lies_between_the_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever looks at all layers of a network holds what all of them answer."""
    samples = [{"x": np.zeros((1, 3, 4), np.float32)} for _ in range(8)]
    monkeypatch.setattr(batches, "_BETWEEN", 3 * 2 * 12 * 4)  # three samples of a Relu and a Reshape of 12 floats
    assert [len(batch["x"]) for batch in stacked(reshaped([-1, 12]), samples)] == [3, 3, 2]
    monkeypatch.setattr(batches, "_BETWEEN", 1)
    assert [len(batch["x"]) for batch in stacked(reshaped([-1, 12]), samples)] == [1] * 8


def test_texts_between_the_layers_have_no_size() -> None:
    text = """
    <ir_version: 10, opset_import: ["": 20]> g (string[n,2] x) => (float[n,2] y) {
      s = StringConcat(x, x)
      e = Equal(s, x)
      y = Cast<to=1>(e)
    }
    """
    model = ir.from_proto(parser.parse_model(text))
    samples = [{"x": np.array([["a", "b"]], object)} for _ in range(3)]
    assert [len(batch["x"]) for batch in stacked(model, samples)] == [3]
