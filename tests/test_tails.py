"""The tail of a network under other weights says what the whole network says under them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxslim_core.calibration.answers import Answers
from onnxslim_core.calibration.consumers import bias_of, put_weights, weights_of
from onnxslim_core.calibration.tails import Tails
from onnxslim_core.measure.session import open_session, run
from onnxslim_core.model import load, wrap

RNG = np.random.default_rng(0)


def _net() -> ir.Model:
    """Convolutions with a shortcut, then a Gemm and a MatMul: every kind of linear node."""
    from onnx import TensorProto, helper, numpy_helper

    def weight(name: str, *shape: int) -> Any:
        return numpy_helper.from_array(RNG.normal(size=shape).astype(np.float32) * 0.4, name)

    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"], name="first", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["r"], name="relu"),
        helper.make_node("Conv", ["r", "w1", "b1"], ["c"], name="second", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c", "r"], ["s"], name="sum"),
        helper.make_node("GlobalAveragePool", ["s"], ["g"], name="pool"),
        helper.make_node("Flatten", ["g"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "w2", "b2"], ["h"], name="gemm", transB=1, alpha=2.0),
        helper.make_node("MatMul", ["h", "w3"], ["y"], name="matmul"),
    ]
    weights = [weight("w0", 5, 3, 3, 3), weight("w1", 5, 5, 3, 3), weight("b1", 5), weight("w2", 7, 5)]
    weights += [weight("b2", 7), weight("w3", 7, 4)]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 6, 6])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])
    graph = helper.make_graph(nodes, "net", [x], [y], weights)
    return load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)).ir


@pytest.mark.parametrize("name", ["first", "second", "gemm", "matmul"])
def test_a_tail_answers_like_the_whole_network(name: str) -> None:
    model = _net()
    batches = [{"x": RNG.normal(size=(4, 3, 6, 6)).astype(np.float32)} for _ in range(3)]
    nodes = {str(node.name): node for node in model.graph}
    tails = Tails(
        model, batches, [[node] for key, node in nodes.items() if key in ("first", "second", "gemm", "matmul")]
    )
    weights = weights_of(nodes[name])
    other = weights * RNG.uniform(0.5, 1.0, weights.shape)
    bias = np.asarray(RNG.normal(size=weights.shape[1]))
    found = tails.lost({nodes[name]: (other, bias)})

    changed = model.clone()
    put_weights(changed, next(node for node in changed.graph if node.name == name), other, bias)
    before, after = ([run(open_session(wrap(each)), batch) for batch in batches] for each in (model, changed))
    expected = np.concatenate([a["y"] for a in after]), np.concatenate([b["y"] for b in before])
    by_hand = np.square(expected[0] - expected[1]).sum() / np.square(expected[1] - expected[1].mean(axis=0)).sum()
    assert found == pytest.approx(by_hand, rel=1e-3)
    assert by_hand > 1e-3, "a change that does not show proves nothing"


def test_the_same_weights_lose_nothing_and_two_nodes_lose_together() -> None:
    model = _net()
    batches = [{"x": RNG.normal(size=(4, 3, 6, 6)).astype(np.float32)}]
    second = next(node for node in model.graph if node.name == "second")
    bias = RNG.normal(size=5)
    tails = Tails(model, batches, [[second]])
    own = bias_of(second, 5)
    assert tails.lost({second: (weights_of(second), own)}) < 1e-10
    assert tails.lost({second: (weights_of(second), own + bias)}) > 1e-3


def test_what_is_made_within_a_body_is_not_looked_for_outside() -> None:
    from onnx import TensorProto, helper, numpy_helper

    def branch(name: str, op: str) -> object:
        nodes = [
            helper.make_node(op, ["a"], [f"{name}_i"]),
            helper.make_node("Add", [f"{name}_i", f"{name}_c"], [name]),
        ]
        out = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        one = numpy_helper.from_array(np.ones(4, np.float32), f"{name}_c")
        return helper.make_graph(nodes, name, [], [out], [one])

    flag = numpy_helper.from_array(np.array([0.0], np.float32), "nought")
    weight = numpy_helper.from_array(RNG.normal(size=(6, 4)).astype(np.float32), "w")
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="matmul"),
        helper.make_node("ReduceMax", ["x"], ["m"], keepdims=0),
        helper.make_node("Squeeze", ["nought"], ["z"]),
        helper.make_node("Greater", ["m", "z"], ["flag"]),
        helper.make_node("If", ["flag"], ["y"], then_branch=branch("t", "Relu"), else_branch=branch("e", "Neg")),
    ]
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, s]) for n, s in (("x", 6), ("y", 4))]
    graph = helper.make_graph(nodes, "net", ports[:1], ports[1:], [flag, weight])
    model = load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)).ir
    node = next(each for each in model.graph if each.name == "matmul")
    batches = [{"x": RNG.normal(size=(2, 6)).astype(np.float32)} for _ in range(4)]
    tails = Tails(model, batches, [[node]])
    assert tails.lost({node: (weights_of(node), np.zeros(4))}) < 1e-10
    assert tails.lost({node: (0 * weights_of(node), np.zeros(4))}) > 0.1


def test_boxes_do_not_hide_scores() -> None:
    boxes, scores = RNG.normal(size=(8, 4, 50)) * 300, RNG.uniform(size=(8, 6, 50))
    before = {"y": np.concatenate([boxes, scores], axis=1).astype(np.float32)}
    spoiled = {"y": np.concatenate([boxes, np.zeros_like(scores)], axis=1).astype(np.float32)}
    assert Answers([before]).lost([before]) == 0
    assert Answers([before]).lost([spoiled]) > 0.5
