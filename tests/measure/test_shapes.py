"""Concrete shapes and shape arithmetic, against onnxruntime."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx.helper
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, numpy_helper, parser

from onnxslim_core.measure.evaluate import LIMIT, evaluate
from onnxslim_core.measure.shapes import concrete_shapes


def _parse(text: str) -> onnx.ModelProto:
    return parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>\n{text}')


def _session(model: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _arrays(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Every value of the main graph, by a run that lists all of them as outputs."""
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    del copy.graph.output[:]
    names = [name for node in copy.graph.node for name in node.output if name]
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return dict(zip(names, _session(copy).run(names, dict(feeds)), strict=True))


def _check(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> tuple[Any, dict[str, ir.Value]]:
    """All shapes and types agree with a run, and all known arrays with its arrays."""
    graph = ir.serde.deserialize_model(model)
    found = concrete_shapes(graph, feeds)
    values = {str(v.name): v for node in graph.graph for v in node.outputs}
    for name, array in _arrays(model, feeds).items():
        if not isinstance(array, np.ndarray):
            assert values[name] not in found.shape
            continue
        assert found.shape[values[name]] == array.shape, name
        assert found.dtype[values[name]].numpy() == array.dtype, name
        if (known := found.value.get(values[name])) is not None:
            np.testing.assert_array_equal(known, array, err_msg=name)
            assert known.dtype == array.dtype
    return found, values


FLATTEN = """
g (float[n, 3, h, w] x) => (float[n, k] y) <float[4, 3, 3, 3] W> {
    c = Conv<pads = [1, 1, 1, 1]>(x, W)
    s = Shape(c)
    zero = Constant<value = int64 {0}>()
    batch = Gather<axis = 0>(s, zero)
    axes = Constant<value = int64[1] {0}>()
    first = Unsqueeze(batch, axes)
    rest = Constant<value = int64[1] {-1}>()
    to = Concat<axis = 0>(first, rest)
    y = Reshape(c, to)
}"""


def _with_weights(model: onnx.ModelProto, seed: int = 0) -> onnx.ModelProto:
    """The parser takes typed names after the interface as value_info; here they become seeded initializers."""
    rng = np.random.default_rng(seed)
    for info in list(model.graph.value_info):
        shape = [d.dim_value for d in info.type.tensor_type.shape.dim]
        array = rng.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, info.name))
    del model.graph.value_info[:]
    return model


def test_follows_sizes_through_shape_arithmetic() -> None:
    model = _with_weights(_parse(FLATTEN))
    found, values = _check(model, {"x": np.zeros((2, 3, 5, 7), np.float32)})
    assert found.value[values["to"]].tolist() == [2, -1]
    assert values["c"] not in found.value
    assert not found.seen


def test_takes_the_sizes_of_the_sample() -> None:
    model = _with_weights(_parse(FLATTEN))
    for shape in ((1, 3, 4, 4), (3, 3, 6, 2)):
        _check(model, {"x": np.zeros(shape, np.float32)})


def test_without_a_sample_symbolic_sizes_stay_unknown_and_nothing_is_run() -> None:
    graph = ir.serde.deserialize_model(_with_weights(_parse(FLATTEN)))
    found = concrete_shapes(graph, None)
    values = {str(v.name): v for node in graph.graph for v in node.outputs}
    assert values["c"] not in found.shape
    assert values["to"] not in found.value


def test_stale_value_info_is_not_believed() -> None:
    model = _parse("g (float[2, 3] x) => (float[2, 3] y) { a = Relu(x)\n y = Relu(a) }")
    model.graph.value_info.append(onnx.helper.make_tensor_value_info("a", TensorProto.FLOAT, [9, 9]))
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 7
    _check(model, {"x": np.ones((2, 3), np.float32)})


def test_missing_opset_import_of_a_foreign_domain_does_not_hide_the_rest() -> None:
    model = _parse("g (float[2, 3] x) => (float[2, 3] y) { a = Relu(x)\n b = com.microsoft.Gelu(a)\n y = Relu(b) }")
    graph = ir.serde.deserialize_model(model)
    del graph.opset_imports["com.microsoft"]
    found = concrete_shapes(graph, None)
    assert found.shape[graph.graph[0].outputs[0]] == (2, 3)


def test_foreign_operators_are_looked_up_in_a_run_and_trusted() -> None:
    text = """
    g (float[n, 4] x) => (float[m] y) {
        a = com.microsoft.Gelu(x)
        b = com.microsoft.BiasGelu(a, bias)
        s = Shape(b)
        total = ReduceProd<keepdims = 1>(s)
        y = Reshape(b, total)
    }"""
    model = _parse(text)
    model.graph.initializer.append(numpy_helper.from_array(np.ones(4, np.float32), "bias"))
    found, values = _check(model, {"x": np.ones((3, 4), np.float32)})
    assert found.value[values["total"]].tolist() == [12]
    assert not found.seen


def test_sizes_that_depend_on_data_are_seen_but_no_constants() -> None:
    text = """
    g (float[n] x) => (int64[m] y) {
        i = NonZero(x)
        s = Shape(i)
        y = Add(s, s)
    }"""
    model = _parse(text)
    found, values = _check(model, {"x": np.array([1, 0, 2], np.float32)})
    assert values["i"] in found.seen
    assert values["s"] not in found.value
    assert values["y"] not in found.value


def test_defaults_that_a_caller_may_replace_are_no_constants() -> None:
    text = "g (float[2, 6] x, int64[2] to) => (float[3, 4] y) { y = Reshape(x, to) }"
    model = _parse(text)
    model.graph.initializer.append(numpy_helper.from_array(np.array([3, 4]), "to"))
    graph = ir.serde.deserialize_model(model)
    found = concrete_shapes(graph, {"x": np.ones((2, 6), np.float32)})
    assert found.shape[graph.graph[0].outputs[0]] == (3, 4)
    assert graph.graph.inputs[1] not in found.value


def test_bodies_and_sequences_do_not_stop_the_rest() -> None:
    text = """
    g (float[n, 4] x, bool c) => (float[k, 4] y) {
        parts = SplitToSequence<axis = 0>(x)
        zero = Constant<value = int64 {0}>()
        first = SequenceAt(parts, zero)
        z = If (c) <
            then_branch = t () => (float[a, 4] p) { p = Relu(x) },
            else_branch = e () => (float[b, 4] q) { q = Concat<axis = 0>(x, x) }
        >
        y = Concat<axis = 0>(z, first)
    }"""
    model = _parse(text)
    for flag, rows in ((True, 4), (False, 7)):
        found, values = _check(model, {"x": np.ones((3, 4), np.float32), "c": np.array(flag)})
        assert found.shape[values["y"]] == (rows, 4)
        assert values["z"] in found.seen
        assert values["parts"] not in found.shape


def test_the_model_is_not_changed() -> None:
    model = _parse("g (float[n] x) => (int64[m] y) { i = NonZero(x)\n y = Squeeze(i) }")
    graph = ir.serde.deserialize_model(model)
    before = ir.serde.serialize_model(graph).SerializeToString()
    concrete_shapes(graph, {"x": np.ones(3, np.float32)})
    assert ir.serde.serialize_model(graph).SerializeToString() == before


def test_a_deep_chain_is_walked_in_linear_time() -> None:
    nodes = [onnx.helper.make_node("Relu", [f"v{i}"], [f"v{i + 1}"]) for i in range(3000)]
    info = [onnx.helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 2]) for n in ("v0", "v3000")]
    model = onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", info[:1], info[1:]))
    graph = ir.serde.deserialize_model(model)
    begin = time.perf_counter()
    found = concrete_shapes(graph, {"v0": np.ones((5, 2), np.float32)})
    assert len(found.shape) == 3001
    assert time.perf_counter() - begin < 20  # a hang, not a timing


I64 = np.int64
CASES: list[tuple[str, list[Any], dict[str, Any]]] = [
    ("Div", [np.array([7, -7, 7, -7], I64), np.array([2, 2, -2, -2], I64)], {}),
    ("Div", [np.array([7.0, -1.0], np.float32), np.array([2.0, 4.0], np.float32)], {}),
    ("Mod", [np.array([7, -7, 7, -7], I64), np.array([3, 3, -3, -3], I64)], {}),
    ("Mod", [np.array([7, -7, 7, -7], I64), np.array([3, 3, -3, -3], I64)], {"fmod": 1}),
    ("Add", [np.array([[1], [2]], I64), np.array([10, 20, 30], I64)], {}),
    ("Sub", [np.array([1, 2], I64), np.array(5, I64)], {}),
    ("Mul", [np.array([2**62, 3], I64), np.array([4, 5], I64)], {}),
    ("Pow", [np.array([2, 3], I64), np.array([5.0, 2.0], np.float32)], {}),
    ("Min", [np.array([1, 5], I64), np.array([3, 3], I64), np.array(2, I64)], {}),
    ("Max", [np.array([1, 5], I64), np.array([[3], [4]], I64)], {}),
    ("Cast", [np.array([1.9, -1.9, 0.0], np.float32)], {"to": TensorProto.INT64}),
    ("Cast", [np.array([0.0, 0.5, -2.0], np.float32)], {"to": TensorProto.BOOL}),
    ("Cast", [np.array([3, 0], I64)], {"to": TensorProto.FLOAT}),
    ("CastLike", [np.array([2.5, 3.5], np.float32), np.array([1], np.int32)], {}),
    ("Gather", [np.array([[1, 2], [3, 4]], I64), np.array(-1, I64)], {"axis": 1}),
    ("Gather", [np.array([5, 6, 7], I64), np.array([[0, 2]], I64)], {"axis": 0}),
    ("Concat", [np.array([[1]], I64), np.array([[2]], I64)], {"axis": -1}),
    ("Slice", [np.arange(10), np.array([8]), np.array([1]), np.array([0]), np.array([-3])], {}),
    ("Slice", [np.arange(10), np.array([-1]), np.array([-(2**63)]), np.array([0]), np.array([-1])], {}),
    ("Slice", [np.arange(10), np.array([2]), np.array([2**63 - 1])], {}),
    ("Slice", [np.arange(12).reshape(3, 4), np.array([1, 0]), np.array([3, 100]), np.array([-1, 0])], {}),
    ("Unsqueeze", [np.arange(4).reshape(2, 2), np.array([0, -1])], {}),
    ("Squeeze", [np.ones((1, 2, 1), I64), np.array([-1])], {}),
    ("Squeeze", [np.ones((1, 2, 1), I64)], {}),
    ("Reshape", [np.arange(12).reshape(3, 4), np.array([0, 2, -1])], {}),
    ("Reshape", [np.zeros((0, 4), I64), np.array([0, 2])], {"allowzero": 1}),
    ("Expand", [np.array([[1], [2]], I64), np.array([3, 1, 2])], {}),
    ("Tile", [np.array([[1, 2]], I64), np.array([2, 3])], {}),
    ("Range", [np.array(10, I64), np.array(3, I64), np.array(-3, I64)], {}),
    ("Range", [np.array(0.5, np.float32), np.array(2.0, np.float32), np.array(0.25, np.float32)], {}),
    ("ConstantOfShape", [np.array([2, 3])], {}),
    ("ConstantOfShape", [np.array([2])], {"value": numpy_helper.from_array(np.array([7], I64))}),
    ("Transpose", [np.arange(6).reshape(1, 2, 3)], {}),
    ("Transpose", [np.arange(6).reshape(1, 2, 3)], {"perm": [1, 2, 0]}),
    ("Where", [np.array([True, False]), np.array([1, 2], I64), np.array([[5], [6]], I64)], {}),
    ("Equal", [np.array([1, 2], I64), np.array([1, 3], I64)], {}),
    ("Not", [np.array([True, False])], {}),
    ("And", [np.array([True, False]), np.array([True, True])], {}),
    ("ReduceProd", [np.array([[2, 3], [4, 5]], I64)], {"axes": [1], "keepdims": 0}),
    ("ReduceSum", [np.array([[2, 3], [4, 5]], I64), np.array([0])], {"keepdims": 1}),
    ("ReduceSum", [np.array([[2, 3], [4, 5]], I64)], {"noop_with_empty_axes": 1}),
    ("ReduceMax", [np.array([[2, 3], [4, 5]], np.float32)], {"axes": [-1]}),
    ("ReduceMean", [np.array([[2, 3], [4, 6]], np.float32)], {}),
    ("Round", [np.array([0.5, 1.5, -2.5], np.float32)], {}),
    ("Floor", [np.array([0.5, -1.5], np.float32)], {}),
    ("Neg", [np.array([3, -4], I64)], {}),
    ("Size", [np.zeros((3, 4), np.float32)], {}),
    ("CumSum", [np.array([1, 2, 3], I64), np.array(0, I64)], {"exclusive": 1}),
    ("ScatterND", [np.zeros(4, I64), np.array([[1], [3]], I64), np.array([7, 8], I64)], {}),
    ("Clip", [np.array([1, 5, 9], I64), np.array(2, I64), np.array(6, I64)], {}),
    ("Split", [np.arange(7), np.array([3, 4])], {"axis": 0}),
]


@pytest.mark.parametrize(("op", "arrays", "attributes"), CASES, ids=lambda v: v if isinstance(v, str) else "")
def test_arithmetic_is_that_of_onnxruntime(op: str, arrays: list[np.ndarray], attributes: dict[str, Any]) -> None:
    names = [f"i{k}" for k in range(len(arrays))]
    outputs = ["o0", "o1"] if op == "Split" else ["o0"]
    node = onnx.helper.make_node(op, names, outputs, **attributes)
    infos = [
        onnx.helper.make_tensor_value_info(n, onnx.helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for n, a in zip(names, arrays, strict=True)
    ]
    graph = onnx.helper.make_graph([node], "g", infos, [onnx.ValueInfoProto(name=name) for name in outputs])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    wanted = _session(model).run(outputs, dict(zip(names, arrays, strict=True)))
    found = evaluate(ir.serde.deserialize_model(model).graph[0], arrays, 17)
    assert found is not None
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine.dtype == theirs.dtype
        assert mine.shape == theirs.shape
        np.testing.assert_array_equal(mine, theirs)


REFUSALS: list[tuple[str, list[Any], dict[str, Any]]] = [
    ("Expand", [np.array([1]), np.array([LIMIT + 1])], {}),
    ("Tile", [np.arange(100), np.array([100])], {}),
    ("ConstantOfShape", [np.array([10**9, 10**9])], {}),
    ("Range", [np.array(0), np.array(10**12), np.array(1)], {}),
    ("Add", [np.zeros((4096, 1)), np.zeros((1, 4096))], {}),
    ("Div", [np.array([1]), np.array([0])], {}),
    ("Gather", [np.array([1, 2]), np.array([5])], {"axis": 0}),
    ("Reshape", [np.arange(6), np.array([4, 4])], {}),
    ("RandomNormalLike", [np.zeros(3, np.float32)], {}),
    ("Conv", [np.zeros((1, 1, 3, 3), np.float32), np.zeros((1, 1, 1, 1), np.float32)], {}),
]


@pytest.mark.parametrize(("op", "arrays", "attributes"), REFUSALS, ids=lambda v: v if isinstance(v, str) else "")
def test_what_is_too_large_wrong_random_or_unknown_is_not_evaluated(
    op: str, arrays: list[np.ndarray], attributes: dict[str, Any]
) -> None:
    names = [f"i{k}" for k in range(len(arrays))]
    node = ir.serde.deserialize_node(onnx.helper.make_node(op, names, ["o"], **attributes))
    assert evaluate(node, arrays, 17) is None


def test_a_foreign_operator_with_a_standard_name_is_not_evaluated() -> None:
    node = ir.serde.deserialize_node(onnx.helper.make_node("Add", ["a", "b"], ["o"], domain="com.vendor"))
    assert evaluate(node, [np.array(1), np.array(2)], 17) is None
