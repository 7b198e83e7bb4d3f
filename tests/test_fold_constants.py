"""fold_constants on what text cannot say: constants of every type, and what other outputs of a constant node are for."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from onnxslim_core import compress
from tests import oracles

TYPES = sorted(set(TensorProto.DataType.keys()) - {"UNDEFINED", "STRING", "COMPLEX64", "COMPLEX128"})


def folded(model: onnx.ModelProto) -> onnx.ModelProto:
    """By the default recipe, with nobody who takes back what is wrong."""
    return compress(model, verify=False, measure_latency=False).model.to_proto()


@pytest.mark.parametrize("kind", TYPES)
def test_a_constant_cast_to_any_type_answers_the_same(kind: str) -> None:
    nodes = [
        helper.make_node("Cast", ["c"], ["there"], to=TensorProto.DataType.Value(kind)),
        helper.make_node("Cast", ["there"], ["back"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["x", "back"], ["y"]),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [8]) for name in "xy"]
    weights = [numpy_helper.from_array(np.array([0, 1, 1, 0, 1, 0, 0, 1], np.float32), "c")]
    feeds = {"x": np.arange(8, dtype=np.float32)}
    runs = 0
    for opset in (17, 19, 21, 23, 25):  # as types came in
        graph = helper.make_graph(nodes, "g", values[:1], values[1:], weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
        try:
            expected = oracles.run(model, feeds)
        except Exception:  # of onnxruntime, which has no kernel or does not know the type yet
            continue
        runs += 1
        assert np.array_equal(oracles.run(folded(model), feeds)[0], expected[0])
    if kind in ("FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16", "FLOAT8E4M3FN", "FLOAT8E5M2", "INT4", "UINT8", "BOOL"):
        assert runs


@pytest.mark.parametrize(
    ("body", "weights"),
    [
        ("b, d = Split<axis=0>(c) u = Conv(x, w, b) y = Mul(u, d)", {"c": [0, 1], "w": np.ones((1, 2, 1, 1))}),
        ("d, b = Split<axis=0>(c) u = Conv(x, w, b) y = Mul(u, d)", {"c": [1, 0], "w": np.ones((1, 2, 1, 1))}),
        ("k = Squeeze(c, axes) y = Mul(x, k)", {"c": [[[0.5]], [[2.0]]], "axes": np.zeros(0, np.int64)}),
        ("k = Unsqueeze(c, axes) y = Mul(x, k)", {"c": [0.5], "axes": np.zeros(0, np.int64)}),
        (
            "s = Shape(x) k = Squeeze(s, axes) f = Cast<to=1>(k) y = ReduceMax<axes=[0]>(f)",
            {"axes": np.zeros(0, np.int64)},
        ),
    ],
    ids=["zero bias of a split", "the other half", "squeeze of no axes", "unsqueeze of no axes", "of a shape"],
)
def test_a_constant_node_is_what_onnxruntime_says(body: str, weights: dict[str, object]) -> None:
    text = f'<ir_version: 8, opset_import: ["": 13]> g (float[1,2,3,2] x) => (float[] y) {{ {body} }}'
    model = parser.parse_model(text)
    for name, given in weights.items():
        array = np.asarray(given)
        kind = np.int64 if array.dtype == np.int64 and name == "axes" else np.float32
        model.graph.initializer.append(numpy_helper.from_array(array.astype(kind), name))
    model.graph.output[0].type.tensor_type.ClearField("shape")
    feeds = {"x": np.random.default_rng(0).standard_normal((1, 2, 3, 2)).astype(np.float32)}
    expected, found = oracles.run(model, feeds)[0], oracles.run(folded(model), feeds)[0]
    assert expected.shape == found.shape
    assert np.allclose(expected, found)
