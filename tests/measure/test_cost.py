"""MACs, parameters, bytes and memory, against counts by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.helper
import onnx_ir as ir
import pytest
from onnx import TensorProto, numpy_helper, parser

from onnxslim_core.measure.cost import cost, params_of, profile
from onnxslim_core.model import Model, load
from onnxslim_core.ops.macs import macs


def _load(text: str, **weights: np.ndarray) -> Model:
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]>\n{text}')
    model.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in weights.items())
    return load(model)


def _floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


MACS = [
    # 6 x 5 outputs of 8 channels, each a sum over 4/2 channels of 3 x 2
    ("Conv", {"group": 2}, [(1, 4, 8, 6), (8, 2, 3, 2), (8,)], [(1, 8, 6, 5)], 8 * 6 * 5 * 2 * 3 * 2),
    ("ConvTranspose", {}, [(2, 4, 5, 5), (4, 3, 2, 2)], [(2, 3, 6, 6)], 2 * 4 * 25 * 3 * 4),
    ("ConvInteger", {}, [(1, 4, 5, 5), (8, 4, 1, 1)], [(1, 8, 5, 5)], 8 * 25 * 4),
    ("QLinearConv", {}, [(1, 4, 5, 5), (), (), (8, 4, 3, 3)], [(1, 8, 5, 5)], 8 * 25 * 36),
    ("Gemm", {}, [(2, 5), (5, 7)], [(2, 7)], 70),
    ("Gemm", {"transA": 1, "transB": 1}, [(5, 2), (7, 5), (7,)], [(2, 7)], 70),
    ("MatMul", {}, [(3, 2, 5), (5, 7)], [(3, 2, 7)], 210),
    ("MatMul", {}, [(5,), (5,)], [()], 5),
    ("MatMulInteger", {}, [(2, 5), (5, 7)], [(2, 7)], 70),
    ("QLinearMatMul", {}, [(2, 5), (), (), (5, 7)], [(2, 7)], 70),
    ("Einsum", {"equation": "bij,jk->bik"}, [(3, 2, 5), (5, 7)], [(3, 2, 7)], 210),
    ("Einsum", {"equation": "...ij, ...jk -> ...ik"}, [(4, 3, 2, 5), (5, 7)], [(4, 3, 2, 7)], 840),
    ("Einsum", {"equation": "ii->i"}, [(3, 3)], [(3,)], 0),
    # two directions, 4 gates of 6 units: 10 steps of a batch of 3 by (5 + 6) inputs
    ("LSTM", {"hidden_size": 6}, [(10, 3, 5), (2, 24, 5), (2, 24, 6)], [(10, 2, 3, 6)], 30 * 2 * 24 * 11),
    ("GRU", {"hidden_size": 6}, [(10, 3, 5), (1, 18, 5), (1, 18, 6)], [(10, 1, 3, 6)], 30 * 18 * 11),
    ("Attention", {}, [(2, 4, 6, 8), (2, 4, 9, 8), (2, 4, 9, 3)], [(2, 4, 6, 3)], 2 * 4 * 6 * 9 * (8 + 3)),
    (
        "Attention",
        {"q_num_heads": 4, "kv_num_heads": 2},
        [(2, 6, 32), (2, 9, 16), (2, 9, 16)],
        [(2, 6, 32)],
        2 * 6 * 9 * 64,
    ),
    ("Relu", {}, [(1, 4)], [(1, 4)], 0),
    ("Conv", {}, [None, (8, 4, 3, 3)], [None], 0),
]


@pytest.mark.parametrize(("op", "attributes", "inputs", "outputs", "wanted"), MACS)
def test_macs_by_hand(
    op: str,
    attributes: dict[str, Any],
    inputs: list[tuple[int, ...] | None],
    outputs: list[tuple[int, ...] | None],
    wanted: int,
) -> None:
    names = [f"i{k}" for k in range(len(inputs))]
    node = ir.serde.deserialize_node(onnx.helper.make_node(op, names, ["o"], **attributes))
    assert macs(node, inputs, outputs) == wanted


def test_a_foreign_operator_with_a_standard_name_does_not_count() -> None:
    node = ir.serde.deserialize_node(onnx.helper.make_node("MatMul", ["a", "b"], ["o"], domain="com.vendor"))
    assert macs(node, [(2, 3), (3, 4)], [(2, 4)]) == 0


NET = """g (float[n, 3, 8, 8] x) => (float[n, 10] y) {
    c = Conv<pads = [1, 1, 1, 1]>(x, W, b)
    r = Relu(c)
    p = GlobalAveragePool(r)
    f = Flatten(p)
    y = Gemm(f, V)
}"""


def test_counts_of_a_small_net() -> None:
    model = _load(NET, W=_floats(4, 3, 3, 3), b=_floats(4), V=_floats(4, 10))
    found = cost(model, {"x": _floats(2, 3, 8, 8)})
    assert found.macs == 2 * 4 * 64 * 27 + 2 * 40
    assert found.params == 108 + 4 + 40
    assert found.nodes == 5
    # at the Relu: two feature maps, and the input, which the caller holds throughout
    assert found.peak_activation_bytes == 4 * (2 * (2 * 4 * 64) + 2 * 3 * 64)
    assert [(layer.op, layer.params, layer.shape) for layer in found.layers][:2] == [
        ("Conv", 112, (2, 4, 8, 8)),
        ("Relu", 0, (2, 4, 8, 8)),
    ]
    assert sum(layer.macs for layer in found.layers) == found.macs
    assert not found.has_bodies
    assert found.unknown_shapes == 0
    assert abs(found.bytes - len(model.to_proto().SerializeToString())) < 300


def test_without_a_sample_symbolic_sizes_count_nothing_and_say_so() -> None:
    found = cost(_load(NET, W=_floats(4, 3, 3, 3), b=_floats(4), V=_floats(4, 10)), None)
    assert found.macs == 0
    assert found.unknown_shapes > 0
    assert found.params == 152


def test_what_is_a_parameter() -> None:
    text = """g (float[2, 3] x) => (float[2, 3] y) {
        k = Constant<value = float[3] {1, 2, 3}>()
        list = Constant<value_floats = [1.0, 2.0]>()
        a = Add(x, k)
        b = Add(a, s)
        c = MatMul(b, w)
        d = Cast<to = 1>(q)
        e = Add(c, d)
        f = Add(e, k)
        y = Reshape(f, to)
    }"""
    model = _load(
        text,
        s=np.array(2.0, np.float32),
        w=_floats(3, 3),
        q=np.ones((2, 3), np.int8),
        to=np.array([2, 3]),
    )
    # k once though it is read twice, w and the int8 q; neither the single number, the list of settings nor the shape
    assert params_of(model.ir) == 3 + 9 + 6


def test_a_weight_that_two_nodes_read_counts_once() -> None:
    text = "g (float[2, 3] x) => (float[2, 3] y) { a = MatMul(x, w)\n y = MatMul(a, w) }"
    found = cost(_load(text, w=_floats(3, 3)), None)
    assert found.params == 9
    assert [layer.params for layer in found.layers] == [9, 0]


def test_weights_in_bodies_count_and_their_macs_are_said_to_be_missing() -> None:
    then = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["p"])],
        "then",
        [],
        [onnx.helper.make_tensor_value_info("p", TensorProto.FLOAT, [2, 3])],
        [numpy_helper.from_array(_floats(3, 3), "w")],
    )
    other = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["x"], ["q"])],
        "else",
        [],
        [onnx.helper.make_tensor_value_info("q", TensorProto.FLOAT, [2, 3])],
    )
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other)],
        "g",
        [
            onnx.helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3]),
            onnx.helper.make_tensor_value_info("c", TensorProto.BOOL, []),
        ],
        [onnx.helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3])],
    )
    model = load(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8))
    found = cost(model, {"x": _floats(2, 3), "c": np.array(True)})
    assert found.params == 9
    assert found.macs == 0
    assert found.has_bodies
    # x lives until the If, whose body reads it
    assert found.peak_activation_bytes == 24 + 1 + 24


def test_the_profile_names_operators_and_its_shares_add_up() -> None:
    model = _load(NET, W=_floats(4, 3, 3, 3), b=_floats(4), V=_floats(4, 10))
    rows = profile(model, {"x": _floats(1, 3, 8, 8)}, calls=3)
    assert any("Conv" in row.op for row in rows)
    assert sum(row.share for row in rows) == pytest.approx(1)
    assert [row.microseconds for row in rows] == sorted((row.microseconds for row in rows), reverse=True)


def test_functions_count_as_if_they_were_written_out() -> None:
    text = """
    <ir_version: 9, opset_import: ["": 18, "own": 1]> g (float[1,3,8,8] x, float[4,3,1,1] w) => (float[1,4,8,8] y) {
      y = own.twice(x, w)
    }
    <domain: "own", opset_import: ["": 18, "own": 1]> twice (x, w) => (y) { a = own.once(x, w)  y = Neg(a) }
    <domain: "own", opset_import: ["": 18]> once (x, w) => (y) { a = Relu(x)  y = Conv(a, w) }
    """
    model = load(parser.parse_model(text))
    sample = {"x": np.zeros((1, 3, 8, 8), np.float32), "w": np.zeros((4, 3, 1, 1), np.float32)}
    found = cost(model, sample)
    assert (found.macs, found.nodes, found.unknown_shapes) == (3 * 4 * 64, 3, 0)
    assert len(model.ir.functions) == 2 and len(model.ir.graph) == 1
