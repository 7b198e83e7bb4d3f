"""quantize: what becomes int8, what stays in float and why, what mends the rounding, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxslim_core.passes import pass_class

from onnxslim_core.model import load, wrap
from onnxslim_core.quant.draft import Draft
from onnxslim_core.quant.equalize import equalize
from onnxslim_core.quant.judge import Judge
from onnxslim_core.quant.mend import mend
from onnxslim_core.rewrite import Change, Context, Sample


class Net:
    """A graph under construction, with seeded weights."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def put(self, name: str, array: np.ndarray) -> str:
        self.weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def op(self, kind: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def conv(self, x: str, name: str, out: int, into: int, size: int = 3, **attributes: Any) -> str:
        array = self.rng.normal(0, (2 / (into * size * size)) ** 0.5, (out, into, size, size))
        self.put(f"{name}.w", array.astype(np.float32))
        self.put(f"{name}.b", self.rng.normal(0, 0.1, out).astype(np.float32))
        given = {"kernel_shape": [size] * 2, "pads": [size // 2] * 4, **attributes}
        return self.op("Conv", [x, f"{name}.w", f"{name}.b"], name, **given)

    def model(
        self, x: Sequence[str | int], y: Sequence[str | int], outputs: Sequence[str] = ("y",), opset: int = 17
    ) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, y) for name in outputs],
            self.weights,
        )
        made: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
        return made


def residual(opset: int = 17) -> onnx.ModelProto:
    """A stem, a residual block with a depthwise Conv and Clip, a pool, a Gemm head."""
    net = Net()
    stem = net.op("Relu", [net.conv("x", "stem", 16, 3)], "stem.r")
    a = net.conv(stem, "a", 24, 16, 1)
    if opset >= 11:
        net.put("lo", np.array(0, np.float32)), net.put("hi", np.array(6, np.float32))
        a = net.op("Clip", [a, "lo", "hi"], "a.c")
    d = net.op("Relu", [net.conv(a, "d", 24, 1, 3, group=24)], "d.r")
    b = net.conv(d, "b", 16, 24, 1)
    s = net.op("Add", [b, stem], "s")
    p = net.op("MaxPool", [s], "p", kernel_shape=[2, 2], strides=[2, 2])
    f = net.op("Flatten", [net.op("GlobalAveragePool", [p], "gap")], "f")
    net.put("fc", net.rng.normal(0, 0.3, (7, 16)).astype(np.float32))
    net.put("fb", net.rng.normal(0, 0.3, 7).astype(np.float32))
    net.op("Gemm", [f, "fc", "fb"], "y", transB=1)
    return net.model(["n", 3, 12, 10], ["n", 7], opset=opset)


def samples(count: int = 24, seed: int = 1, shape: tuple[int, ...] = (1, 3, 12, 10)) -> list[Sample]:
    rng = np.random.default_rng(seed)
    size = rng.uniform(0.5, 2, (count, *[1] * len(shape)))
    return [{"x": each} for each in (rng.normal(size=(count, *shape)) * size).astype(np.float32)]


def answers(model: onnx.ModelProto, feeds: Sequence[Sample], optimize: bool = True) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [np.concatenate(column) for column in zip(*(session.run(None, dict(feed)) for feed in feeds), strict=True)]


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = (each.reshape(len(each), -1).astype(np.float64) for each in (a, b))
    return float(np.mean(np.sum(a * b, 1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)))


def quantized(
    model: onnx.ModelProto, feeds: Sequence[Sample], context: dict[str, Any] | None = None, **options: Any
) -> tuple[onnx.ModelProto, list[Change]]:
    held = load(model)
    given = {"samples": feeds, "samples_are_real": True, **(context or {})}
    changes = pass_class("quantize")(**{"measure": "never", **options}).run(held.ir, Context(**given))
    after = held.to_proto()
    onnx.checker.check_model(after, full_check=True)
    return after, changes


def kinds(model: onnx.ModelProto, tmp_path: Path) -> list[str]:
    """Operators of the graph that onnxruntime really runs."""
    options = ort.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "run.onnx"), 4
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]


@pytest.mark.parametrize("optimize", [False, True])
def test_answers_stay_near(optimize: bool) -> None:
    model = residual()
    after, (change,) = quantized(model, samples())
    assert change.applied and change.action.startswith("5 of 5")
    fresh = samples(16, seed=9)
    (before,), (now,) = (answers(each, fresh, optimize) for each in (model, after))
    assert cosine(before, now) > 0.998
    weights = [t for t in after.graph.initializer if len(t.dims) >= 2]
    assert {t.data_type for t in weights} == {TensorProto.INT8}
    assert [v.name for v in after.graph.output] == ["y"] and after.graph.output == model.graph.output


def test_nothing_between_the_layers_stays_in_float(tmp_path: Path) -> None:
    found = kinds(quantized(residual(), samples())[0], tmp_path)
    assert found.count("QLinearConv") == 4 and "QGemm" in found and "QLinearAdd" in found
    assert not {"Conv", "Gemm", "Relu", "Clip", "Add", "DequantizeLinear"} & set(found), found
    assert found.count("QuantizeLinear") == 1  # the input


def padded(value: float | None, mode: str = "constant") -> onnx.ModelProto:
    """A shortcut that takes every second pixel and pads channels, as the first ResNets for small images do."""
    net = Net()
    stem = net.op("Relu", [net.conv("x", "stem", 8, 3)], "stem.r")
    for name, array in (("from", [0, 0]), ("to", [99, 99]), ("axes", [2, 3]), ("step", [2, 2])):
        net.put(name, np.array(array, np.int64))
    net.put("pads", np.array([0, 4, 0, 0, 0, 4, 0, 0], np.int64))
    short = net.op("Slice", [stem, "from", "to", "axes", "step"], "short")
    given = ["short", "pads"] if value is None else [short, "pads", net.put("value", np.array(value, np.float32))]
    net.op("Pad", given, "wide", mode=mode)
    a = net.conv(stem, "a", 16, 8, strides=[2, 2])
    s = net.op("Relu", [net.op("Add", [net.conv(a, "b", 16, 16), "wide"], "s")], "s.r")
    net.op("Flatten", [net.op("GlobalAveragePool", [net.conv(s, "c", 6, 16)], "p")], "y")
    return net.model(["n", 3, 12, 10], ["n", 6])


@pytest.mark.parametrize("value", [None, 0.0])
def test_zeros_are_padded_on_the_grid(value: float | None, tmp_path: Path) -> None:
    model = padded(value)
    after, (change,) = quantized(model, samples(), repair="always")
    assert change.applied
    found = kinds(after, tmp_path)
    assert found.count("QuantizeLinear") == 1 and "Pad" in found, "only what comes in is brought to 8 bits"
    for optimize in (False, True):
        (before,), (now,) = (answers(each, samples(16, seed=9), optimize) for each in (model, after))
        assert cosine(before, now) > 0.998


@pytest.mark.parametrize(("value", "mode"), [(0.3, "constant"), (0.0, "edge")])
def test_other_paddings_stay_in_float(value: float, mode: str) -> None:
    model = padded(value, mode)
    after, (change,) = quantized(model, samples())
    assert change.applied
    makers = {name: node.op_type for node in after.graph.node for name in node.output}
    assert makers[next(node for node in after.graph.node if node.op_type == "Pad").input[0]] != "QuantizeLinear"
    (before,), (now,) = (answers(each, samples(16, seed=9)) for each in (model, after))
    assert cosine(before, now) > 0.998


def test_older_opset_is_raised() -> None:
    model = residual(opset=9)
    after, (change,) = quantized(model, samples())
    assert change.applied and after.opset_import[0].version >= 13
    (before,), (now,) = (answers(each, samples(8, seed=9)) for each in (model, after))
    assert cosine(before, now) > 0.998


def test_raising_the_opset_leaves_what_outputs_declare() -> None:
    """Onnx's converter writes the sizes that it infers, and then the whole step was taken back."""
    model = residual(opset=9)
    for size, name in zip(model.graph.output[0].type.tensor_type.shape.dim, ("a", "b"), strict=True):
        size.Clear()
        size.dim_param = name
    after, (change,) = quantized(model, samples())
    assert change.applied
    assert after.graph.output[0] == model.graph.output[0]
    assert after.graph.input[0] == model.graph.input[0]


def test_what_is_quantized_already_is_left_alone() -> None:
    once, _ = quantized(residual(), samples())
    twice, (change,) = quantized(once, samples())
    assert change.guard == "still_float" and not change.applied
    assert twice.SerializeToString(deterministic=True) == load(once).to_proto().SerializeToString(deterministic=True)


@pytest.mark.parametrize("real", [False, True])
def test_made_up_samples_are_refused(real: bool) -> None:
    _, (change,) = quantized(residual(), samples() if not real else [], {"samples_are_real": real})
    assert change.guard == "data_given"


@dataclass
class Timing:
    ratio: float
    low: float
    high: float


@pytest.mark.parametrize(("high", "applied"), [(0.9, True), (1.01, False)])
def test_kept_only_where_it_is_measured_faster(high: float, applied: bool) -> None:
    model = residual()
    context = {"latency": lambda a, b: Timing(high - 0.01, 0.7, high)}
    after, (change,) = quantized(model, samples(), context, measure="auto")
    assert change.applied == applied
    if not applied:
        assert change.guard == "measured_faster"
        assert after == load(model).to_proto()


def test_ignored_layers_stay_in_float() -> None:
    after, (change,) = quantized(residual(), samples(), ignored=("stem*", "fc"))
    floats = [t.name for t in after.graph.initializer if len(t.dims) >= 2 and t.data_type == TensorProto.FLOAT]
    assert len(floats) == 2 and change.action.startswith("3 of 3")


def brittle() -> onnx.ModelProto:
    """One layer whose input holds a huge channel that its weights hardly read: no grid suits it."""
    net = Net(3)
    stem = net.op("Relu", [net.conv("x", "stem", 8, 3)], "stem.r")
    scale = np.ones((1, 8, 1, 1), np.float32)
    scale[0, 0] = 3000
    wide = net.op("Mul", [net.conv(stem, "c1", 8, 8), net.put("scale", scale)], "wide")
    c2 = net.conv(wide, "c2", 8, 8)
    weights = numpy_helper.to_array(net.weights[-2]).copy()
    weights[:, 0] *= 1e-4
    net.weights[-2] = numpy_helper.from_array(weights, "c2.w")
    net.op("Relu", [net.conv(net.op("Relu", [c2], "c2.r"), "c3", 8, 8)], "y")
    return net.model(["n", 3, 12, 10], ["n", 8, 12, 10])


def test_the_layer_that_costs_most_stays_in_float() -> None:
    model = brittle()
    after, (change,) = quantized(model, samples(36), repair="never", min_cosine=0.995)
    floats = {t.name for t in after.graph.initializer if len(t.dims) == 4 and t.data_type == TensorProto.FLOAT}
    left = change.details["in_float"]
    assert {"Conv 'c1'", "Conv 'c2'"} >= set(left) and left and floats
    assert set(sorted(change.details["damage_alone"], key=change.details["damage_alone"].__getitem__)[2:]) >= set(left)
    fresh = samples(16, seed=9)
    (before,), (now,) = (answers(each, fresh) for each in (model, after))
    assert cosine(before, now) > 0.995


def test_refused_where_no_layer_can_be_int8() -> None:
    others = ("stem", "c1", "c3")
    _, (change,) = quantized(brittle(), samples(), min_cosine=0.995, repair="never", ignored=others)
    assert change.guard == "near_enough" and not change.applied


def detector() -> onnx.ModelProto:
    """Boxes in pixels and scores below one in one output: [n, 4 + 3, cells]."""
    net = Net(5)
    stem = net.op("Relu", [net.conv("x", "stem", 16, 3)], "stem.r")
    boxes = net.op("Mul", [net.conv(stem, "boxes", 4, 16, 1), net.put("size", np.array(300, np.float32))], "boxes.px")
    scores = net.op("Sigmoid", [net.conv(stem, "scores", 3, 16, 1)], "scores.s")
    joined = net.op("Concat", [boxes, scores], "joined", axis=1)
    net.op("Reshape", [joined, net.put("shape", np.array([0, 7, -1], np.int64))], "y")
    return net.model(["n", 3, 12, 10], ["n", 7, 120])


@pytest.mark.parametrize("declared", [False, True])
def test_scores_are_judged_beside_boxes(declared: bool) -> None:
    model = detector()
    parts = {"y": (1, {"boxes": (0, 4), "scores": (4, 7)})} if declared else {}
    held = load(model).ir
    judge = Judge(held, samples(12), min_cosine=0.99, parts=parts)
    blind = load(model)
    for node in blind.ir.graph:  # boxes are right, every score is off
        if node.name == "scores":
            weight = node.inputs[1]
            assert weight is not None and weight.const_value is not None
            weight.const_value = ir.Tensor(-weight.const_value.numpy())
    score = judge.look(blind.ir)
    assert score.parts["y"] > 0.9999 and score.cosine < 0.99 and score.damage > 1
    assert set(score.parts) == {"y", *(("y.boxes", "y.scores") if declared else ("y.first", "y.rest"))}
    after, (change,) = quantized(model, samples(24), {"parts": parts})
    assert change.applied
    (before,), (now,) = (answers(each, samples(8, seed=9)) for each in (model, after))
    assert cosine(before[:, :4], now[:, :4]) > 0.99 and cosine(before[:, 4:], now[:, 4:]) > 0.99


def cancelling() -> onnx.ModelProto:
    """Filters whose taps sum to zero over an input with a large mean: rounding errors do not cancel."""
    net = Net(7)
    stem = net.op("Relu", [net.conv("x", "stem", 12, 3)], "stem.r")
    name = net.conv(stem, "d", 12, 1, 3, group=12)
    weights = numpy_helper.to_array(net.weights[-2]).copy()
    net.weights[-2] = numpy_helper.from_array(weights - weights.mean((2, 3), keepdims=True), "d.w")
    net.op("Relu", [net.conv(name, "c", 8, 12, 1)], "y")
    return net.model(["n", 3, 12, 10], ["n", 8, 12, 10])


def smooth(count: int, seed: int) -> list[Sample]:
    """Neighbours are nearly equal, and each sample has a level of its own."""
    levels = np.random.default_rng(seed).uniform(-8, 8, count)
    return [
        {"x": each["x"] * np.float32(0.2) + np.float32(level)}
        for each, level in zip(samples(count, seed), levels, strict=True)
    ]


def test_mending_rounds_better_than_the_nearest() -> None:
    model, fresh = cancelling(), smooth(16, 9)
    found = load(model).ir
    draft = Draft.of(found, smooth(24, 1))
    layout = draft.layout(draft.linear)
    (before,) = answers(model, fresh)
    errors = []
    for weights in ({}, mend(draft, layout, smooth(24, 1))):
        (now,) = answers(wrap(draft.variant(layout, weights)).to_proto(), fresh)
        errors.append(float(np.square(now - before).mean()))
    assert errors[1] < 0.9 * errors[0], errors


def test_repair_is_only_kept_where_it_helps() -> None:
    with_repair, without = (
        quantized(residual(), samples(), repair=how)[1][0].details["cosine"] for how in ("always", "never")
    )
    assert with_repair >= without


def test_equalization_is_exact_and_levels_channels() -> None:
    net = Net(11)
    a = net.op("Relu", [net.conv("x", "a", 10, 3)], "a.r")
    weights = numpy_helper.to_array(net.weights[-2]).copy()
    net.weights[-2] = numpy_helper.from_array(
        weights * np.geomspace(0.05, 2, 10, dtype=np.float32)[:, None, None, None], "a.w"
    )
    d = net.op("Relu", [net.conv(a, "d", 10, 1, 3, group=10)], "d.r")
    net.conv(net.op("MaxPool", [d], "p", kernel_shape=[2, 2]), "y", 6, 10, 1)
    model = net.model(["n", 3, 12, 10], ["n", 6, "h", "w"])
    held = load(model)
    draft = Draft.of(held.ir, samples())
    spread = draft.spreads[next(n for n in held.ir.graph if n.name == "a.r").outputs[0]].highs
    assert equalize(held.ir, draft.spreads) == 2
    after = held.to_proto()
    (before,), (now,) = (answers(each, samples(8, seed=9), optimize=False) for each in (model, after))
    np.testing.assert_allclose(now, before, rtol=0, atol=2e-5 * np.abs(before).max())
    again = Draft.of(load(after).ir, samples())
    level = next(s.highs for v, s in again.spreads.items() if v.name == "a.r")
    assert level.max() / level.min() < 0.2 * spread.max() / spread.min()


def products(seed: int = 0) -> onnx.ModelProto:
    """A network of matrix products."""
    net = Net(seed)
    x = "x"
    for layer in range(3):
        net.put(f"w{layer}", net.rng.normal(0, 0.2, (64, 64)).astype(np.float32))
        net.put(f"b{layer}", net.rng.normal(0, 0.2, 64).astype(np.float32))
        m = net.op("MatMul", [x, f"w{layer}"], f"m{layer}")
        x = net.op("Tanh", [net.op("Add", [m, f"b{layer}"], f"a{layer}")], f"t{layer}")
    net.put("head", net.rng.normal(0, 0.2, (5, 64)).astype(np.float32))
    net.put("hb", net.rng.normal(0, 0.2, 5).astype(np.float32))
    net.op("Flatten", [x], "f", axis=2)
    net.op("Reshape", ["f", net.put("shape", np.array([-1, 64], np.int64))], "r")
    net.op("Gemm", ["r", "head", "hb"], "y", transB=1)
    return net.model(["n", "t", 64], ["m", 5])


def test_matrix_products_are_quantized_call_by_call(tmp_path: Path) -> None:
    model, fresh = products(), samples(8, 9, (1, 6, 64))
    after, (change,) = quantized(model, samples(24, 1, (1, 6, 64)))
    assert change.applied and change.action.startswith("4 of 4")
    (before,), (now,) = (answers(each, fresh) for each in (model, after))
    assert cosine(before, now) > 0.998
    found = kinds(after, tmp_path)
    assert sum(found.count(kind) for kind in ("DynamicQuantizeMatMul", "MatMulIntegerToFloat")) == 4, found


def test_weights_alone_in_int8() -> None:
    model = residual()
    after, (change,) = quantized(model, [], {"samples_are_real": False}, mode="weights")
    assert change.applied and change.bytes_saved > 0
    (before,), (now,) = (answers(each, samples(8, 9)) for each in (model, after))
    assert cosine(before, now) > 0.999
    assert len(after.SerializeToString()) < 0.6 * len(model.SerializeToString())


@pytest.mark.parametrize("method", ["percentile", "mse", "entropy"])
def test_other_ranges(method: str) -> None:
    model = residual()
    after, (change,) = quantized(model, samples(), ranges=method, min_cosine=0.9, repair="never")
    assert change.applied
    (before,), (now,) = (answers(each, samples(8, 9)) for each in (model, after))
    assert cosine(before, now) > 0.95


@pytest.mark.parametrize(("factor", "narrow"), [("large", False), ("small", True)])
def test_a_product_with_a_float_factor_of_its_own_size_stays_in_float(factor: str, narrow: bool) -> None:
    net = Net(6)
    x = net.conv("x", "c1", 8, 3)
    inner = x if factor == "large" else net.op("GlobalAveragePool", [x], "gap")
    gate = net.op("HardSigmoid", [inner], "gate", alpha=1 / 6, beta=0.5)
    net.op("Relu", [net.conv(net.op("Mul", [x, gate], "gated"), "c2", 8, 8)], "y")
    after, (change,) = quantized(net.model(["n", 3, 12, 10], ["n", 8, 12, 10]), samples(36), repair="never")
    assert change.applied
    made = {output: node for node in after.graph.node for output in node.output}
    (product,) = (node for node in after.graph.node if node.op_type == "Mul")
    gates = [made[name].op_type for name in product.input]
    assert gates.count("DequantizeLinear") == (2 if narrow else 1)


def spiked(seed: int, count: int = 48) -> list[Sample]:
    """Samples of which some hold one huge value that no answer depends on."""
    rng, found = np.random.default_rng(seed), list[Sample]()
    for number in range(count):
        x = rng.normal(0, 1, (1, 3, 40, 40)).astype(np.float32)
        x[:, :, 0, 0] = 900.0 * (number % 24 == 0)
        found.append({"x": x})
    return found


def test_a_range_is_drawn_in_where_outliers_do_not_matter() -> None:
    net = Net(4)
    first = net.op("Relu", [net.conv("x", "first", 8, 3, 1)], "first.r")
    bounds = (("from", [1, 1]), ("to", [40, 40]), ("axes", [2, 3]))
    inner = net.op("Slice", [first, *(net.put(name, np.array(at, np.int64)) for name, at in bounds)], "inner")
    net.op("Relu", [net.conv(inner, "last", 8, 8)], "y")
    model = net.model(["n", 3, 40, 40], ["n", 8, 39, 39])
    _, (plain,) = quantized(model, spiked(0), repair="never", ranges="minmax")
    after, (change,) = quantized(model, spiked(0), repair="never")
    assert change.applied and change.details["ranges"] and not change.details["in_float"]
    assert not plain.applied or plain.details["in_float"]
    (before,), (now,) = (answers(each, spiked(9, 8)) for each in (model, after))
    assert cosine(before, now) > 0.99


def test_fewer_samples_do_not_tell_other_columns_apart() -> None:
    """The lower half of a map is empty in the first samples: a margin, and no column of another kind."""
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("Relu", ["x"], ["y"])],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 8, 8])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 8, 8])],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    given = [{"x": np.ones((1, 1, 8, 8), np.float32)} for _ in range(12)]
    for sample in given[:6]:
        sample["x"][:, :, 4:] = 1e-3
    held = load(model).ir
    judge = Judge(held, given, min_cosine=0.99)
    few = judge.fewer(6)
    assert set(Judge(held, given[:6], min_cosine=0.99).look(held).parts) == {"y", "y.first", "y.rest"}
    assert set(judge.look(held).parts) == set(few.look(held).parts) == {"y"}
    assert (judge.answers, few.answers) == (12, 6)


def drowned() -> onnx.ModelProto:
    """A head that reads features beside the same ones a thousandfold, and hears nearly the small ones alone."""
    net = Net(11)
    body = net.op("Relu", [net.conv("x", "stem", 16, 3)], "stem.r")
    body = net.op("Relu", [net.conv(body, "body", 16, 16)], "body.r")
    small = net.op("Flatten", [net.op("GlobalAveragePool", [body], "gap")], "f")
    large = net.op("Mul", [small, net.put("thousand", np.array(1000, np.float32))], "m")
    joined = net.op("Concat", [small, large], "joined", axis=1)
    weights = net.rng.normal(0, 1, (32, 7))
    weights[16:] /= 1e5
    net.op("Gemm", [joined, net.put("fc", weights.astype(np.float32))], "y")
    return net.model(["n", 3, 16, 16], ["n", 7])


def test_a_small_product_that_does_the_damage_stays_in_float() -> None:
    model, given = drowned(), samples(shape=(1, 3, 16, 16))
    after, (change,) = quantized(model, given)
    assert change.details["cheap_in_float"] == change.details["in_float"] == ["Gemm 'y'"]
    assert change.action.startswith("2 of 3")
    fresh = samples(16, seed=9, shape=(1, 3, 16, 16))
    (before,), (now,) = (answers(each, fresh) for each in (model, after))
    assert cosine(before, now) > 0.99
    _, (change,) = quantized(residual(), samples())
    assert "cheap_in_float" not in change.details  # which does no damage


def test_what_a_softmax_hides_is_told_by_its_logarithm() -> None:
    net = Net(3)
    net.put("w", np.eye(4, dtype=np.float32) * 30)
    logits = net.op("MatMul", ["x", "w"], "logits")
    net.op("Softmax", [logits], "y")
    held = load(net.model(["n", 4], ["n", 4])).ir
    sure = [{"x": np.roll(np.array([[2, 1, 0, -1]], np.float32), shift)} for shift in range(12)]
    judge = Judge(held, sure, min_cosine=0.99)
    same = judge.look(held)
    assert same.damage == pytest.approx(0, abs=1e-9) and same.strain == pytest.approx(0, abs=1e-6)
    other = load(net.model(["n", 4], ["n", 4])).ir
    weight = other.graph.initializers["w"]
    weight.const_value = ir.Tensor(np.eye(4, dtype=np.float32) * 30 + 8 * np.float32(np.tri(4, k=-1)))
    score = judge.look(other)
    assert score.damage < 1e-6 and score.cosine > 0.999999  # every answer is 0 or 1 as before
    assert score.strain > 0.5


def test_same_input_gives_the_same_bytes() -> None:
    first, second = (quantized(residual(), samples(), repair="always")[0] for _ in range(2))
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)
