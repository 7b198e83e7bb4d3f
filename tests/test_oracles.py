"""The judges must be able to say no."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from onnxslim_core.rewrite import Kind
from tests import oracles

TEXT = """
<ir_version: 8, opset_import: ["":17]>
net (float[N,3] x) => (float[N,4] y, float[N,4] z, int64[1] n) <int64[1] first = {0}, int64[1] last = {1}> {
  h = MatMul(x, W)
  y = Add(h, b)
  z = Tanh(y)
  s = Shape(x)
  n = Slice(s, first, last)
}
"""


def net(w: np.ndarray | None = None, text: str = TEXT) -> onnx.ModelProto:
    rng = np.random.default_rng(3)
    weight, bias = rng.standard_normal((3, 4)).astype(np.float32), rng.standard_normal(4).astype(np.float32)
    model = parser.parse_model(text)
    model.graph.initializer.append(numpy_helper.from_array(weight if w is None else w, "W"))
    model.graph.initializer.append(numpy_helper.from_array(bias, "b"))
    return model


def one_weight_off(model: onnx.ModelProto) -> None:
    weight = numpy_helper.to_array(model.graph.initializer[2]).copy()
    weight[1, 2] *= 1.01
    model.graph.initializer[2].CopyFrom(numpy_helper.from_array(weight, "W"))


def outputs_swapped(model: onnx.ModelProto) -> None:
    model.graph.node[1].output[0], model.graph.node[2].output[0] = "t", "y"
    model.graph.node[2].input[0] = "t"
    model.graph.node.append(onnx.helper.make_node("Identity", ["t"], ["z"]))


def output_order_swapped(model: onnx.ModelProto) -> None:
    first, second = list(model.graph.output)[:2]
    kept = model.graph.output[2]
    outputs = [onnx.ValueInfoProto.FromString(v.SerializeToString()) for v in (second, first, kept)]
    del model.graph.output[:]
    model.graph.output.extend(outputs)


def dtype_changed(model: onnx.ModelProto) -> None:
    model.graph.node[4].output[0] = "wide"
    model.graph.node.append(onnx.helper.make_node("Cast", ["wide"], ["n"], to=onnx.TensorProto.INT32))
    model.graph.output[2].type.tensor_type.elem_type = onnx.TensorProto.INT32


def shape_broadcast(model: onnx.ModelProto) -> None:
    """One more axis, that no comparison by broadcasting would notice."""
    axes = numpy_helper.from_array(np.array([0], dtype=np.int64), "axes")
    model.graph.initializer.append(axes)
    model.graph.node[1].output[0] = "flat"
    model.graph.node.insert(2, onnx.helper.make_node("Unsqueeze", ["flat", "axes"], ["y"]))
    for output in list(model.graph.output)[:2]:
        output.type.tensor_type.ClearField("shape")


def count_off_by_one(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array([1], dtype=np.int64), "one"))
    model.graph.node[4].output[0] = "short"
    model.graph.node.append(onnx.helper.make_node("Add", ["short", "one"], ["n"]))


def becomes_nan(model: onnx.ModelProto) -> None:
    model.graph.node[1].output[0] = "t"
    model.graph.node.insert(2, onnx.helper.make_node("Div", ["t", "t"], ["one"]))
    model.graph.node.insert(3, onnx.helper.make_node("Log", ["t"], ["log"]))
    model.graph.node.insert(4, onnx.helper.make_node("Add", ["log", "one"], ["y"]))


FAULTS = (
    one_weight_off,
    outputs_swapped,
    output_order_swapped,
    dtype_changed,
    shape_broadcast,
    count_off_by_one,
    becomes_nan,
)


@pytest.mark.parametrize("kind", [Kind.BITWISE, Kind.ALGEBRAIC])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.__name__)
def test_says_no_to(fault: Callable[[onnx.ModelProto], None], kind: Kind) -> None:
    model = net()
    fault(model)
    with pytest.raises(AssertionError):
        oracles.assert_equal(net(), model, kind)


@pytest.mark.parametrize("kind", [Kind.BITWISE, Kind.ALGEBRAIC])
def test_says_yes_to_the_same_model(kind: Kind) -> None:
    oracles.assert_equal(net(), net(), kind)


def test_values_are_compared_even_if_the_declared_shape_hides_the_change() -> None:
    """Both declare no shape: only the arrays themselves can tell."""
    before, after = net(), net()
    shape_broadcast(after)
    for output in list(before.graph.output)[:2]:
        output.type.tensor_type.ClearField("shape")
    with pytest.raises(AssertionError, match="shape"):
        oracles.assert_equal(before, after, Kind.ALGEBRAIC)


def test_rounding_is_algebraic_but_not_bitwise() -> None:
    weight = np.random.default_rng(3).standard_normal((3, 4)).astype(np.float32)
    moved = net(np.nextafter(weight, np.float32(np.inf)))
    oracles.assert_equal(net(), moved, Kind.ALGEBRAIC)
    with pytest.raises(AssertionError, match="bit by bit"):
        oracles.assert_equal(net(), moved, Kind.BITWISE)


def test_bitwise_sees_the_sign_of_zero() -> None:
    def constant(zero: str) -> onnx.ModelProto:
        text = f"g (float[1] x) => (float[1] y) <float[1] c = {{{zero}}}> {{ y = Min(c, c) }}"
        return parser.parse_model('<ir_version: 8, opset_import: ["":17]>' + text)

    with pytest.raises(AssertionError, match="bit by bit"):
        oracles.assert_equal(constant("0.0"), constant("-0.0"), Kind.BITWISE)


def test_lossy_needs_a_bound_and_holds_it() -> None:
    model = net()
    one_weight_off(model)
    with pytest.raises(AssertionError, match="declares"):
        oracles.assert_equal(net(), model, Kind.LOSSY)
    oracles.assert_equal(net(), model, Kind.LOSSY, tolerance=0.1)


def test_float64_sees_what_float32_cannot() -> None:
    def blur(model: onnx.ModelProto) -> onnx.ModelProto:
        weight = numpy_helper.to_array(model.graph.initializer[2]) * (1 + 1e-7)
        model.graph.initializer[2].CopyFrom(numpy_helper.from_array(weight, "W"))
        return model

    blurred = net()
    weight = numpy_helper.to_array(blurred.graph.initializer[2]) * np.float32(1 + 1e-7)
    oracles.assert_equal(net(), net(weight.astype(np.float32)), Kind.ALGEBRAIC)
    oracles.assert_equal_in_float64(net(), lambda model: model)
    with pytest.raises(AssertionError, match="scale"):
        oracles.assert_equal_in_float64(net(), blur)


def test_symbolic_dims_run_at_three_sizes() -> None:
    sizes = {feed["x"].shape for feed in oracles.runnable_feeds(net())}
    assert len(sizes) == 3


def test_a_model_that_runs_at_no_size_proves_nothing() -> None:
    text = "g (float[2,3] x, float[2,3] y) => (float[2,3] z) { z = MatMul(x, y) }"
    model = parser.parse_model('<ir_version: 8, opset_import: ["":17]>' + text)
    with pytest.raises(Exception, match=r"MatMul|runs at no size"):
        oracles.assert_equal(model, model, Kind.BITWISE)


def test_a_bigger_model_is_told_apart() -> None:
    bigger = net()
    bigger.graph.initializer.append(numpy_helper.from_array(np.zeros(100, dtype=np.float32), "idle"))
    with pytest.raises(AssertionError, match="grew by"):
        oracles.assert_not_bigger(net(), bigger)
    oracles.assert_not_bigger(bigger, net())
