"""Models that tripped the program up once: each is compressed, and has to answer as before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxslim_core.passes import pass_class

from onnxslim_core.errors import ModelError
from onnxslim_core.model import load
from onnxslim_core.pipeline import Result, compress
from onnxslim_core.rewrite import Context

INT64, STRING = TensorProto.INT64, TensorProto.STRING


def text(body: str, opset: int = 17) -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> {body}')


def answers(model: onnx.ModelProto, feeds: dict[str, Any]) -> list[Any]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


def squeezed(model: onnx.ModelProto) -> Result:
    """Compressed by the exact recipe; no step may have been taken back."""
    result = compress(model, measure_latency=False)
    assert not [(s.name, s.reason) for s in result.report.steps if s.outcome == "rolled back"]
    return result


def test_a_tiny_model_without_node_names_gets_smaller_not_bigger() -> None:
    model = text("g (float[1,3] x) => (float[1,3] y) { a = Relu(x) b = Identity(a) c = Neg(b) y = Abs(c) }")
    result = squeezed(model).model.to_proto()
    assert [node.op_type for node in result.graph.node] == ["Relu", "Neg", "Abs"]
    assert result.ByteSize() < model.ByteSize()


def test_a_tiny_model_with_nothing_to_do_stays_as_small_as_it_is() -> None:
    model = text("g (float[1,3] x) => (float[1,3] y) { a = Relu(x) y = Abs(a) }")
    assert squeezed(model).model.to_proto().ByteSize() <= model.ByteSize()


def test_folding_that_costs_a_tiny_model_bytes_does_not_take_the_rest_back() -> None:
    model = text(
        "g (float[2,3] x, int64[2] s) => (float[a,b] y)"
        " { i = Identity(x) j = Identity(i) z = Shape(j) t = Max(z, s) y = Expand(j, t) }"
    )
    result = squeezed(model).model.to_proto()
    assert "Identity" not in {node.op_type for node in result.graph.node}
    assert result.ByteSize() <= 1.01 * model.ByteSize()
    feeds = {"x": np.ones((2, 3), np.float32), "s": np.array([2, 3])}
    np.testing.assert_array_equal(answers(model, feeds)[0], answers(result, feeds)[0])


def test_nodes_get_names_where_there_is_room_for_them() -> None:
    weights = numpy_helper.from_array(np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32), "w")
    model = text("g (float[1,64] x) => (float[1,64] y) { a = MatMul(x, w) y = Relu(a) }")
    model.graph.initializer.append(weights)
    assert all(node.name for node in squeezed(model).model.to_proto().graph.node)


def test_constant_strings_are_left_alone() -> None:
    words = [numpy_helper.from_array(np.array(["a", "é"], dtype=object), name) for name in "ab"]
    nodes = [
        helper.make_node("StringConcat", ["a", "b"], ["c"]),
        helper.make_node("Reshape", ["c", "shape"], ["y"]),
    ]
    shape, result = (helper.make_tensor_value_info(n, t, s) for n, t, s in (("shape", INT64, [1]), ("y", STRING, None)))
    graph = helper.make_graph(nodes, "g", [shape], [result], words)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    found = answers(squeezed(model).model.to_proto(), {"shape": np.array([-1])})[0]
    assert found.tolist() == ["aa", "éé"]


@pytest.mark.parametrize("operator", ["Mod", "Div"])
def test_random_inputs_that_do_not_run_are_drawn_again(operator: str) -> None:
    """Of eight draws some divide by zero; the model is none the worse for that."""
    model = text(f"g (int64[4] x, int64[1] d) => (int64[4] y) {{ i = Identity(d) y = {operator}(x, i) }}")
    result = squeezed(model)
    assert result.report.verified
    assert result.report.data.judging >= 1


def test_channels_are_not_asked_about_nodes_of_unknown_shape() -> None:
    """Nothing runs here, since no random pads fit: then the shapes around Pad are not known."""
    model = text(
        'g (float[1,2,3,4] x, int64[8] pads) => (float[1,2,a,b] y) { y = Pad <mode = "reflect"> (x, pads) }', 18
    )
    result = compress(model, measure_latency=False)
    assert [s.outcome for s in result.report.steps if s.name == "remove_idle"] != ["rolled back"]


def test_channels_are_not_asked_about_constants_that_were_not_folded() -> None:
    model = text(
        "g (float[1,3,4,4] x) => (float[1,3,4,4] y) <float[1,3,1,1] w = {1, 2, 3}> "
        "{ p = Pad(w, pads) s = Slice(p, zero, three, one) y = Mul(x, s) }"
    )
    for name, values in {"pads": [0, 1, 0, 0, 0, 0, 0, 0], "zero": [0], "three": [3], "one": [1]}.items():
        model.graph.initializer.append(numpy_helper.from_array(np.array(values), name))
    loaded = load(model)
    pass_class("remove_idle")(round_to=1).run(loaded.ir, Context())
    feeds = {"x": np.ones((1, 3, 4, 4), np.float32)}
    np.testing.assert_array_equal(answers(model, feeds)[0], answers(loaded.to_proto(), feeds)[0])


def test_an_operator_that_its_opset_deprecates_is_no_obstacle() -> None:
    """PyTorch writes GroupNormalization at opset 18, where onnx calls it deprecated and onnxruntime runs it."""
    model = text(
        "g (float[1,3,4,4] x) => (float[1,8,4,4] y) <float[8,3,1,1] w, float[4] s, float[4] b> "
        "{ c = Conv(x, w) i = Identity(c) y = GroupNormalization <num_groups = 4> (i, s, b) }",
        18,
    )
    fill(model, {"w": (8, 3, 1, 1), "s": (4,), "b": (4,)})
    squeezed(model)


def test_statistics_per_element_are_left_alone() -> None:
    """BatchNormalization with spatial=0 (opset 8) has one scale per element, not per channel."""
    shapes = dict.fromkeys("gbm", (8, 3, 3))
    model = text(
        "g (float[1,3,3,3] x) => (float[1,8,3,3] y) "
        "{ c = Conv(x, w) i = Identity(c) y = BatchNormalization <spatial = 0> (i, g, b, m, v) }",
        8,
    )
    fill(model, {"w": (8, 3, 1, 1), **shapes})
    model.graph.initializer.append(numpy_helper.from_array(np.ones((8, 3, 3), np.float32), "v"))
    squeezed(model)


def test_statistics_of_a_training_step_are_not_those_on_record() -> None:
    """In training mode a constant channel is normalized by its own mean, so only its shift is left of it."""
    weight = np.random.default_rng(0).standard_normal((8, 3, 1, 1)).astype(np.float32)
    weight[:4] = 0
    model = text(
        "g (float[1,3,4,4] x) => (float[1,2,4,4] y) "
        "{ c = Conv(x, w, b) n, rm, rv = BatchNormalization <training_mode = 1> (c, g, s, m, v)"
        " r = Relu(n) y = Conv(r, w2) }",
        15,
    )
    fill(model, {"b": (8,), "g": (8,), "s": (8,), "m": (8,), "w2": (2, 8, 1, 1)})
    model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    model.graph.initializer.append(numpy_helper.from_array(np.full(8, 4, np.float32), "v"))
    loaded = load(model)
    feeds = {"x": np.random.default_rng(1).standard_normal((1, 3, 4, 4)).astype(np.float32)}
    pass_class("remove_idle")(round_to=1).run(loaded.ir, Context(samples=[feeds]))
    np.testing.assert_allclose(answers(model, feeds)[0], answers(loaded.to_proto(), feeds)[0], rtol=1e-5, atol=1e-5)


def fill(model: onnx.ModelProto, shapes: dict[str, tuple[int, ...]]) -> None:
    """Random weights."""
    del model.graph.initializer[:]
    for seed, (name, shape) in enumerate(shapes.items()):
        array = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))


def test_the_weights_of_another_model_are_not_overwritten(tmp_path: Path) -> None:
    """The source's own data file may be called what the result's would be."""
    model = text("g (float[1,64] x) => (float[1,64] y) { a = MatMul(x, w) i = Identity(a) y = Relu(i) }")
    fill(model, {"w": (64, 64)})
    onnx.save(model, tmp_path / "source.onnx", save_as_external_data=True, location="out.onnx.data")
    weights = (tmp_path / "out.onnx.data").read_bytes()
    result = compress(tmp_path / "source.onnx", measure_latency=False)
    with pytest.raises(ModelError, match=r"out\.onnx\.data"):
        result.save(tmp_path / "out.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.onnx.data", "source.onnx"]
    assert (tmp_path / "out.onnx.data").read_bytes() == weights
    result.save(tmp_path / "other.onnx")
    result.save(tmp_path / "other.onnx")  # its own may be replaced


def test_parameters_of_different_lengths_are_left_to_the_runtime() -> None:
    """An invalid BatchNormalization; nothing of a run may break on it but onnxruntime."""
    model = text(
        "g (float[1,3,4,4] x) => (float[1,8,4,4] y) { c = Conv(x, w) y = BatchNormalization(c, g, b, m, v) }", 9
    )
    fill(model, {"w": (8, 3, 1, 1), "g": (8,), "b": (8,), "m": (8,), "v": (16,)})
    loaded = load(model)
    assert not [c for c in pass_class("fuse_batchnorm")().run(loaded.ir, Context()) if c.applied]
