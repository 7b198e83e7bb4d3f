"""Linear nodes of every kind as regressions: rows times weights are the answer, and weights put back answer the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxslim_core.calibration.consumers import (
    Consumer,
    answer_of,
    bias_of,
    blocks_of,
    consumers_of,
    is_depthwise,
    is_linear,
    kept_of,
    note_kept,
    put_weights,
    readers_of,
    source_of,
    taps_of,
    unsolvable,
    weights_of,
)
from onnxslim_core.calibration.moments import Sums
from onnxslim_core.calibration.rows import draw, input_rows, output_rows, output_shape
from onnxslim_core.calibration.study import study
from onnxslim_core.channels.boxes import whole
from onnxslim_core.channels.groups import analyse
from onnxslim_core.graph import array_of
from onnxslim_core.repair.table import REPAIRS

RNG = np.random.default_rng(7)


def weight(name: str, *shape: int) -> Any:
    return numpy_helper.from_array(RNG.normal(size=shape).astype(np.float32), name)


def whole_numbers(name: str, *shape: int) -> Any:
    return numpy_helper.from_array(np.ones(shape, np.int32), name)


def model_of(op: str, shape: tuple[int, ...], weights: list[Any], left: bool = False, **attributes: Any) -> ir.Model:
    names = [each.name for each in weights]
    inputs = [names[0], "x"] if left else ["x", *names]
    graph = helper.make_graph(
        [helper.make_node(op, inputs, ["y"], name="node", **attributes)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        weights,
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def answer(model: ir.Model, x: np.ndarray) -> np.ndarray:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, ["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, {"x": x})[0]
    return found


CASES: dict[str, Any] = {
    "grouped": lambda: model_of(
        "Conv", (3, 6, 7, 8), [weight("w", 10, 3, 3, 2), weight("b", 10)], group=2, pads=[1] * 4
    ),
    "grouped, strided": lambda: model_of("Conv", (2, 6, 9, 8), [weight("w", 3, 2, 3, 3)], group=3, strides=[2, 3]),
    "one row": lambda: model_of("Conv", (3, 4, 11), [weight("w", 5, 4, 3), weight("b", 5)], dilations=[2], pads=[2, 1]),
    "volume": lambda: model_of("Conv", (2, 3, 4, 5, 6), [weight("w", 5, 3, 2, 1, 3)], strides=[1, 2, 1]),
    "transposed": lambda: model_of("ConvTranspose", (3, 4, 5, 6), [weight("w", 4, 5, 3, 2), weight("b", 5)]),
    "transposed, strided": lambda: model_of(
        "ConvTranspose",
        (2, 4, 5, 6),
        [weight("w", 4, 5, 3, 4)],
        strides=[2, 3],
        pads=[1, 0, 1, 2],
        output_padding=[1, 0],
    ),
    "transposed, grouped": lambda: model_of(
        "ConvTranspose",
        (2, 6, 5, 4),
        [weight("w", 6, 2, 2, 2), weight("b", 4)],
        group=2,
        strides=[2, 2],
        dilations=[2, 1],
    ),
    "transposed, same": lambda: model_of(
        "ConvTranspose", (2, 3, 5, 4), [weight("w", 3, 4, 3, 2)], strides=[2, 3], auto_pad="SAME_UPPER"
    ),
    "transposed, same, lower": lambda: model_of(
        "ConvTranspose", (2, 3, 5, 4), [weight("w", 3, 4, 5, 4)], strides=[2, 3], auto_pad="SAME_LOWER"
    ),
    "transposed, to a size": lambda: model_of(
        "ConvTranspose", (2, 3, 5, 4), [weight("w", 3, 4, 4, 4)], strides=[2, 2], output_shape=[9, 8]
    ),
    "transposed, one row": lambda: model_of(
        "ConvTranspose", (3, 4, 7), [weight("w", 4, 5, 4)], strides=[2], pads=[1, 1]
    ),
    "matrix on tokens": lambda: model_of("MatMul", (2, 3, 5, 4), [weight("w", 4, 6)]),
    "matrix with an axis of 1": lambda: model_of("MatMul", (3, 5, 4), [weight("w", 1, 4, 6)]),
    "matrix on the left": lambda: model_of("MatMul", (3, 4, 5), [weight("w", 6, 4)], left=True),
    "Gemm": lambda: model_of("Gemm", (7, 4), [weight("w", 6, 4), weight("b", 6)], transB=1, alpha=0.5, beta=2.0),
    "Gemm, turned": lambda: model_of("Gemm", (4, 7), [weight("w", 4, 6), weight("b", 1, 6)], transA=1),
    "Gemm, one bias for all": lambda: model_of("Gemm", (7, 4), [weight("w", 4, 6), weight("b")]),
}


@pytest.mark.parametrize("case", CASES)
def test_rows_times_weights_are_the_answer_and_weights_put_back_give_it_again(case: str) -> None:
    model = CASES[case]()
    node = model.graph.node(0)
    assert is_linear(node)
    shape = tuple(int(size) for size in model.graph.inputs[0].shape)
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    y = answer(model, x)
    weights = weights_of(node)
    bias = bias_of(node, weights.shape[1])
    assert output_shape(node, x.shape, weights.shape[1]) == y.shape
    assert len(weights) % taps_of(node) == 0
    for count in (5, 10_000):
        at = draw(node, y.shape, count, np.random.default_rng(1))
        rows = input_rows(node, x, at, y.shape[2:])
        np.testing.assert_allclose(rows @ weights + bias, output_rows(node, y, at), rtol=1e-4, atol=1e-4)
    assert len(rows) * weights.shape[1] == y.size  # all positions
    put_weights(model, node, weights * 2, bias + 1)
    np.testing.assert_allclose(
        answer(model, x), (y - _spread(y, bias)) * 2 + _spread(y, bias + 1), rtol=1e-4, atol=1e-4
    )


def _spread(y: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """A bias along the axis of y with the output channels, found by its length alone: no two axes are alike."""
    (axis,) = (
        [axis for axis, size in enumerate(y.shape) if size == len(bias)][-1:] if y.ndim < 3 else _channel_axis(y, bias)
    )
    return bias.reshape([-1 if each == axis else 1 for each in range(y.ndim)])


def _channel_axis(y: np.ndarray, bias: np.ndarray) -> list[int]:
    found = [axis for axis, size in enumerate(y.shape) if size == len(bias) and axis > 0]
    return found[:1] if len(found) > 1 and found[0] == 1 else found[-1:]


@pytest.mark.parametrize("case", ["grouped", "transposed, grouped", "transposed, strided", "matrix on the left"])
def test_least_squares_finds_the_weights_again(case: str) -> None:
    model = CASES[case]()
    node = model.graph.node(0)
    shape = tuple(int(size) for size in model.graph.inputs[0].shape)
    rng = np.random.default_rng(0)
    weights = weights_of(node)
    sums = Sums()
    for _ in range(30):
        x = rng.normal(1, 1, shape).astype(np.float32)
        y = answer(model, x)
        at = draw(node, y.shape, 40, rng)
        sums.add(input_rows(node, x, at, y.shape[2:]), output_rows(node, y, at))
    moments = sums.moments().within(blocks_of(node, *weights.shape))
    found, shift = REPAIRS["least_squares"](moments, np.zeros_like(weights), taps_of(node), 1e-9)
    np.testing.assert_allclose(found, weights, atol=1e-3)
    np.testing.assert_allclose(shift, bias_of(node, weights.shape[1]), atol=1e-2)


def fed(model: ir.Model, name: str) -> ir.Model:
    """The same with a weight that a caller may replace."""
    model.graph.inputs.append(model.graph.initializers[name])
    return model


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (lambda: model_of("Gemm", (7, 4), [weight("w", 4, 6), weight("b", 7, 1)]), "differs from row to row"),
        (lambda: model_of("Gemm", (7, 4), [weight("w", 4, 6), weight("b", 7, 6)]), "differs from row to row"),
        (lambda: fed(model_of("Gemm", (7, 4), [weight("w", 4, 6), weight("b", 6)]), "b"), "bias is computed"),
        (lambda: model_of("Gemm", (7, 4), [weight("w", 4, 6), weight("b", 6)], alpha=0.0), "alpha is 0"),
        (lambda: model_of("MatMul", (2, 3, 5, 4), [weight("w", 3, 4, 6)]), "no single matrix"),
        (lambda: model_of("MatMul", (5, 4), [weight("w", 4)]), "no single matrix"),
        (lambda: model_of("MatMul", (4, 6), [weight("w", 1, 5, 4)], left=True), "no single matrix"),
        (lambda: fed(model_of("MatMul", (5, 4), [weight("w", 4, 6)]), "w"), "weights are computed or fed"),
        (lambda: fed(model_of("Conv", (1, 4, 5), [weight("w", 6, 4, 1), weight("b", 6)]), "b"), "bias is computed"),
        (lambda: model_of("MatMul", (5, 4), [whole_numbers("w", 4, 6)]), "weights are int32"),
        (lambda: model_of("RNN", (3, 1, 4), [weight("w", 1, 6, 4), weight("r", 1, 6, 6)]), "no repair solves for"),
    ],
)
def test_what_is_no_regression_is_left_alone(model: Any, why: str) -> None:
    node = model().graph.node(0)
    assert not is_linear(node)
    assert why in str(unsolvable(node))


def test_a_bias_behind_a_product_is_its_own() -> None:
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["m"], name="mm"),
            helper.make_node("Add", ["b", "m"], ["n"], name="add"),
            helper.make_node("Relu", ["n"], ["y"], name="relu"),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [5, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [5, 6])],
        [weight("w", 4, 6), weight("b", 6)],
    )
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    node = model.graph.node(0)
    assert answer_of(node).name == "n"
    weights = weights_of(node)
    put_weights(model, node, weights, np.arange(6.0))
    assert len(model.graph) == 3
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    np.testing.assert_allclose(answer(model, x), np.maximum(x @ weights + np.arange(6.0), 0), rtol=1e-5, atol=1e-5)


def attention() -> ir.Model:
    """Two heads of 3 over 4 tokens: their width is 6, the stream's 5."""
    nodes = [
        *(helper.make_node("MatMul", ["x", f"w{p}"], [p], name=p) for p in "qkv"),
        *(helper.make_node("Reshape", [p, "split"], [f"{p}r"], name=f"{p}r") for p in "qkv"),
        *(helper.make_node("Transpose", [f"{p}r"], [f"{p}t"], name=f"{p}t", perm=[0, 2, 1, 3]) for p in "qv"),
        helper.make_node("Transpose", ["kr"], ["kt"], name="kt", perm=[0, 2, 3, 1]),
        helper.make_node("MatMul", ["qt", "kt"], ["s"], name="scores"),
        helper.make_node("Softmax", ["s"], ["a"], name="a", axis=-1),
        helper.make_node("MatMul", ["a", "vt"], ["c"], name="mix"),
        helper.make_node("Transpose", ["c"], ["ct"], name="ct", perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["ct", "join"], ["j"], name="j"),
        helper.make_node("MatMul", ["j", "wo"], ["o"], name="out"),
        helper.make_node("Add", ["o", "x"], ["r"], name="r"),
        helper.make_node("MatMul", ["r", "wf"], ["y"], name="last"),
    ]
    shapes = {"wq": (5, 6), "wk": (5, 6), "wv": (5, 6), "wo": (6, 5), "wf": (5, 2)}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 2])],
        [
            *(weight(name, *shape) for name, shape in shapes.items()),
            numpy_helper.from_array(np.array([1, 4, 2, 3]), "split"),
            numpy_helper.from_array(np.array([1, 4, 6]), "join"),
        ],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def test_whole_heads_are_read_by_the_projection_alone() -> None:
    model = attention()
    sample = {"x": np.random.default_rng(0).normal(size=(1, 4, 5)).astype(np.float32)}
    channels = analyse(model, sample, view=whole)
    consumers = consumers_of(channels)
    heads = next(group for group in channels.groups if group.free.any() and group.width == 2)
    found = readers_of(channels, heads, consumers)
    assert not isinstance(found, str), found
    assert [each.node.name for each in found] == ["out"]
    assert [len(each.columns(int(root))) for each in found for root in heads.classes] == [3, 3]
    moments = study(model, [sample] * 8, consumers)
    assert set(moments) == set(consumers)


def test_widths_of_queries_have_a_reader_that_cannot_be_solved_for() -> None:
    model = attention()
    sample = {"x": np.random.default_rng(0).normal(size=(1, 4, 5)).astype(np.float32)}
    channels = analyse(model, sample)
    consumers = consumers_of(channels)
    answers = [readers_of(channels, group, consumers) for group in channels.groups if group.free.any()]
    assert "MatMul 'scores' reads it, whose weights are computed or fed, not constant" in answers


def test_the_moments_of_a_study_are_those_of_the_layer() -> None:
    model = CASES["grouped"]()
    node = model.graph.node(0)
    assert not is_depthwise(node)
    x = np.random.default_rng(0).normal(size=(3, 6, 7, 8)).astype(np.float32)
    y = answer(model, x)
    consumer = Consumer(node, np.arange(6, dtype=np.int32), taps_of(node))
    found = study(model, [{"x": x}], {node: consumer}, per_sample=10_000)[node]
    flat = y.transpose(1, 0, 2, 3).reshape(10, -1).astype(np.float64)
    np.testing.assert_allclose(found.mean_y, flat.mean(1), atol=1e-4)
    np.testing.assert_allclose(found.v, flat.var(1), rtol=1e-3)
    assert found.error(weights_of(node)) == pytest.approx(0.0, abs=1e-3 * float(found.v.sum()))
    assert source_of(node).name == "x"


def test_what_was_kept_is_told_over_two_cuts_and_a_copy() -> None:
    model = CASES["Gemm"]()
    note_kept(model, {"node": np.array([1, 3, 5])})
    note_kept(model, {"node": np.array([0, 2])})
    assert kept_of(model.clone())["node"].tolist() == [1, 5]
    assert array_of(model.graph.node(0).inputs[1]) is not None
