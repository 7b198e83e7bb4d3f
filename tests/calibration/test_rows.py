"""Rows, moments and the walk, against onnxruntime and direct sums."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxslim_core import graph as verbs
from onnxslim_core.calibration.consumers import put_weights, weights_of
from onnxslim_core.calibration.lockstep import Walk
from onnxslim_core.calibration.moments import Sums
from onnxslim_core.calibration.rows import draw, input_rows, output_rows


def conv_model(attributes: dict[str, Any], kernel: tuple[int, ...], size: tuple[int, ...]) -> ir.Model:
    rng = np.random.default_rng(3)
    weight = numpy_helper.from_array(rng.normal(size=(5, 3, *kernel)).astype(np.float32), "w")
    bias = numpy_helper.from_array(rng.normal(size=5).astype(np.float32), "b")
    rank = len(size)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w", "b"], ["y"], name="conv", **attributes)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, *size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 5, *[None] * rank])],
        [weight, bias],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def answer(model: ir.Model, feeds: dict[str, np.ndarray]) -> np.ndarray:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, ["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, feeds)[0]
    return found


@pytest.mark.parametrize(
    ("attributes", "kernel", "size"),
    [
        ({}, (3, 2), (7, 9)),
        ({"pads": [1, 0, 2, 3]}, (3, 3), (7, 9)),
        ({"strides": [2, 3], "dilations": [2, 1], "pads": [2, 2, 1, 0]}, (3, 3), (11, 10)),
        ({"auto_pad": "SAME_UPPER", "strides": [2, 2]}, (3, 2), (7, 8)),
        ({"auto_pad": "SAME_LOWER", "strides": [2, 2]}, (3, 2), (8, 7)),
        ({"pads": [1, 1]}, (3,), (9,)),
        ({"pads": [1, 0, 1, 0, 1, 1]}, (2, 3, 2), (4, 5, 6)),
    ],
)
def test_rows_times_weights_are_what_the_conv_answers(
    attributes: dict[str, Any], kernel: tuple[int, ...], size: tuple[int, ...]
) -> None:
    model = conv_model(attributes, kernel, size)
    x = np.random.default_rng(0).normal(size=(4, 3, *size)).astype(np.float32)
    y = answer(model, {"x": x})
    node = model.graph.node(0)
    at = draw(node, y.shape, 10, np.random.default_rng(1))
    rows = input_rows(node, x, at, y.shape[2:])
    bias = verbs.array_of(node.inputs[2])
    assert bias is not None
    np.testing.assert_allclose(rows @ weights_of(node) + bias, output_rows(node, y, at), rtol=1e-4, atol=1e-4)


def test_weights_put_back_give_the_same_answers() -> None:
    model = conv_model({"pads": [1, 1, 1, 1]}, (3, 3), (6, 5))
    x = np.random.default_rng(0).normal(size=(2, 3, 6, 5)).astype(np.float32)
    before = answer(model, {"x": x})
    node = model.graph.node(0)
    bias = verbs.array_of(node.inputs[2])
    assert bias is not None
    put_weights(model, node, weights_of(node) * 2, np.asarray(bias, np.float64) * 2)
    np.testing.assert_allclose(answer(model, {"x": x}), before * 2, rtol=1e-5, atol=1e-5)


def test_moments_are_the_covariances() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(3, 1, (400, 7)).astype(np.float32), rng.normal(-2, 2, (400, 4)).astype(np.float32)
    sums = Sums()
    for start in range(0, 400, 90):
        sums.add(x[start : start + 90], y[start : start + 90])
    moments = sums.moments()
    both = np.cov(np.hstack([x, y]).T.astype(np.float64), bias=True)
    np.testing.assert_allclose(moments.h, both[:7, :7], atol=1e-4)
    np.testing.assert_allclose(moments.c, both[:7, 7:], atol=1e-4)
    np.testing.assert_allclose(moments.v, np.diag(both)[7:], atol=1e-4)
    weights = rng.normal(size=(7, 4))
    residual = (y - y.mean(0)) - (x - x.mean(0)) @ weights
    assert moments.error(weights) == pytest.approx(float(np.square(residual).sum(1).mean()), rel=1e-4)


RESIDUAL = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[n, 4] x, bool c) => (float[n, 4] y) {
  a = Relu(x)
  b = Tanh(a)
  d = Add(a, b)
  e = If (c) <then_branch = t () => (float[n, 4] p) { p = Mul(a, d) }, else_branch = u () => (float[n, 4] q) { q = Neg(b) }>
  y = Add(e, x)
}
"""


def test_a_walk_gives_every_value_of_the_whole_and_runs_each_node_once() -> None:
    proto = onnx.parser.parse_model(RESIDUAL)
    model = ir.from_proto(proto)
    rng = np.random.default_rng(0)
    feeds = [
        {"x": rng.normal(size=(count, 4)).astype(np.float32), "c": np.array(flag)}
        for count, flag in ((2, True), (5, False))
    ]
    whole = ir.from_proto(proto)
    named = {v.name: v for node in model.graph for v in node.outputs}
    walk = Walk(model, feeds)
    for name in ("b", "d", "y"):
        found = walk.value(named[name])
        for batch, array in zip(feeds, found, strict=True):
            whole.graph.outputs[:] = [v for node in whole.graph for v in node.outputs if v.name == name]
            np.testing.assert_allclose(array, answer(whole, batch), rtol=1e-6)
    assert all(walk.has_run(node) for node in model.graph)
    assert walk.missing(named["y"]) == []


def test_an_input_that_hardly_moves_has_the_covariance_it_has() -> None:
    rng = np.random.default_rng(5)
    x = (3 + 1e-4 * rng.normal(size=(2000, 24)) @ rng.normal(size=(24, 24))).astype(np.float32)
    y = (x @ rng.normal(size=(24, 5)).astype(np.float32)).astype(np.float32)
    sums = Sums()
    for start in range(0, len(x), 50):
        sums.add(x[start : start + 50], y[start : start + 50])
    found, wide = sums.moments(), x.astype(np.float64)
    right = np.cov(wide.T, bias=True)
    assert np.abs(found.h - right).max() < 1e-5 * np.abs(right).max()
    assert np.linalg.eigvalsh(found.h)[0] > -1e-6 * np.abs(right).max()
    assert np.allclose(found.mean_x, wide.mean(axis=0), rtol=1e-6)
    assert np.allclose(found.v, y.astype(np.float64).var(axis=0), rtol=1e-4)
