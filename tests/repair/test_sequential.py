"""Least squares and the sequential repair."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxslim_core.calibration.batches import stacked
from onnxslim_core.calibration.consumers import consumers_of, kept_outputs, put_weights, weights_of
from onnxslim_core.calibration.moments import Sums
from onnxslim_core.channels.groups import analyse
from onnxslim_core.channels.removal import remove_atoms
from onnxslim_core.repair.least_squares import solve
from onnxslim_core.repair.sequential import Refit
from onnxslim_core.rewrite import Sample


def test_least_squares_finds_the_line_and_its_bias() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(2, 1, (3000, 6)).astype(np.float32)
    weights, bias = rng.normal(size=(6, 3)), rng.normal(size=3)
    sums = Sums()
    sums.add(x, (x @ weights + bias).astype(np.float32))
    found, shift = solve(sums.moments(), np.zeros((6, 3)), ridge=1e-9)
    np.testing.assert_allclose(found, weights, atol=1e-4)
    np.testing.assert_allclose(shift, bias, atol=1e-3)


def test_a_direction_that_was_never_seen_keeps_its_weights() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 4)).astype(np.float32)
    x[:, 2] = 0
    sums = Sums()
    sums.add(x, x[:, :1])
    found, _ = solve(sums.moments(), np.full((4, 1), 7.0))
    assert found[2, 0] == pytest.approx(7.0, rel=1e-12)


def residual_net(seed: int) -> ir.Model:
    rng = np.random.default_rng(seed)

    def weight(name: str, *shape: int) -> Any:
        fan = int(np.prod(shape[1:])) or 1
        return numpy_helper.from_array(rng.normal(0, (2 / fan) ** 0.5, shape).astype(np.float32), name)

    sizes = {"w0": (8, 3, 3, 3), "w1": (12, 8, 3, 3), "w2": (8, 12, 3, 3), "w3": (10, 8, 3, 3), "w4": (8, 10, 1, 1)}
    pads: dict[str, Any] = {"pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["s0"], name="stem", **pads),
        helper.make_node("Conv", ["s0", "w1"], ["a"], name="a1", **pads),
        helper.make_node("Relu", ["a"], ["ar"], name="ar"),
        helper.make_node("Conv", ["ar", "w2"], ["b"], name="a2", **pads),
        helper.make_node("Add", ["s0", "b"], ["s1"], name="add1"),
        helper.make_node("Conv", ["s1", "w3"], ["c"], name="b1", **pads),
        helper.make_node("Relu", ["c"], ["cr"], name="cr"),
        helper.make_node("Conv", ["cr", "w4"], ["d"], name="b2"),
        helper.make_node("Add", ["d", "s1"], ["s2"], name="add2"),
        helper.make_node("GlobalAveragePool", ["s2"], ["p"], name="p"),
        helper.make_node("Flatten", ["p"], ["f"], name="f"),
        helper.make_node("Gemm", ["f", "fc"], ["y"], name="head", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 9, 9])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 5])],
        [*(weight(name, *shape) for name, shape in sizes.items()), weight("fc", 5, 8)],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def answers(model: ir.Model, feeds: Sequence[Sample]) -> np.ndarray:
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, each)[0] for each in feeds])


def test_a_repaired_network_answers_nearer_to_the_original_on_new_samples() -> None:
    rng = np.random.default_rng(0)
    samples = [{"x": rng.normal(size=(1, 3, 9, 9)).astype(np.float32)} for _ in range(96)]
    model = residual_net(1)
    batches = stacked(model, samples[:64])
    assert [len(batch["x"]) for batch in batches] == [32, 32]
    fresh = stacked(model, samples[64:])
    expected = answers(model, fresh)
    channels = analyse(model, samples[0])
    inner = [g for g in channels.groups if g.name in ("Conv 'a1'", "Conv 'b1'")]
    classes = [int(c) for group in inner for c in group.classes[: group.width // 3]]
    gone = channels.gone(classes)
    nodes = [str(n.name) for n, each in consumers_of(channels).items() if np.isin(each.classes, classes).any()]
    assert nodes == ["a2", "b2"]
    kept, reference = kept_outputs(channels, gone), model.clone()
    remove_atoms(channels, gone)
    cut = np.square(answers(model, fresh) - expected).mean()
    assert Refit(reference, model, batches, kept, nodes).run() == 2
    mended = np.square(answers(model, fresh) - expected).mean()
    assert mended < 0.25 * cut
    np.testing.assert_array_equal(answers(reference, fresh), expected)


def trident(seed: int) -> ir.Model:
    """One Conv on one tensor at two dilations, both added up; and the stem before them."""
    rng = np.random.default_rng(seed)
    sizes = {"w0": (8, 3, 3, 3), "w1": (6, 8, 3, 3), "b1": (6,)}
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["s"], name="stem", pads=[1] * 4),
        helper.make_node("Relu", ["s"], ["r"], name="r"),
        helper.make_node("Conv", ["r", "w1", "b1"], ["near"], name="near", pads=[1] * 4),
        helper.make_node("Conv", ["r", "w1", "b1"], ["far"], name="far", pads=[2] * 4, dilations=[2, 2]),
        helper.make_node("Add", ["near", "far"], ["y"], name="y"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 9, 9])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 6, 9, 9])],
        [numpy_helper.from_array(rng.normal(0, 0.2, size).astype(np.float32), name) for name, size in sizes.items()],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def test_calls_of_one_layer_that_are_added_up_are_solved_on_their_own_answers() -> None:
    """Neither call may have the sum for a target: what the other adds to it is not known before both are solved."""
    rng = np.random.default_rng(0)
    samples = [{"x": rng.normal(size=(1, 3, 9, 9)).astype(np.float32)} for _ in range(64)]
    reference, model = trident(2), trident(2)
    weight = model.graph.initializers["w1"]
    near, far = (node for node in model.graph if node.name in ("near", "far"))
    # spoiled, and found again
    put_weights(model, near, weights_of(near) * 0.5, np.zeros(6), [far])
    job = Refit(reference, model, stacked(model, samples), {}, ["near", "far"], ridge=1e-6)
    assert job.layers == [(near, far)]
    assert job.run() == 2
    assert near.inputs[1] is far.inputs[1] is not weight
    expected = answers(reference, samples)
    np.testing.assert_allclose(answers(model, samples), expected, atol=2e-3 * float(np.abs(expected).max()))
    assert Refit(reference, model, stacked(model, samples), {}, ["near"]).run() == 0
