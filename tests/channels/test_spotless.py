"""The look at the weights: what it lets pass has no idle channels, and what it should stop at it stops at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnxslim_core.channels.groups import analyse
from onnxslim_core.channels.idle import find_idle
from onnxslim_core.channels.spotless import is_spotless
from onnxslim_core.model import load


def net(group: int = 1, changed: Mapping[str, np.ndarray] | None = None) -> onnx.ModelProto:
    """Conv, BatchNormalization, Relu, Conv, mean, Gemm, with weights that may be replaced."""
    rng = np.random.default_rng(0)
    weights = {
        "w1": rng.standard_normal((8, 3, 3, 3)),
        "scale": rng.random(8) + 0.5,
        "shift": rng.standard_normal(8),
        "mean": np.zeros(8),
        "var": np.ones(8),
        "w2": rng.standard_normal((8, 8 // group, 3, 3)),
        "w3": rng.standard_normal((8, 5)),
        "b3": np.zeros(5),
    }
    weights.update(changed or {})
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"]),
        helper.make_node("BatchNormalization", ["a", "scale", "shift", "mean", "var"], ["b"]),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("Conv", ["c", "w2"], ["d"], group=group),
        helper.make_node("GlobalAveragePool", ["d"], ["e"]),
        helper.make_node("Flatten", ["e"], ["f"]),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", 1, [1, 3, 9, 9])],
        [helper.make_tensor_value_info("y", 1, [1, 5])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def changed(name: str, at: Any, to: Any, *, group: int = 1) -> onnx.ModelProto:
    """The net with some elements of a weight set; `to` may be the place of others of the same weight."""
    plain = {t.name: numpy_helper.to_array(t) for t in net(group).graph.initializer}
    array = plain[name].copy()
    array[at] = array[to] if isinstance(to, tuple) else to
    return net(group, {name: array})


def count(model: onnx.ModelProto) -> int:
    """Idle classes by the whole analysis."""
    return len(find_idle(analyse(load(model).ir, None)).kinds())


@pytest.mark.parametrize("group", [1, 2, 8])
def test_a_net_without_idle_channels_passes(group: int) -> None:
    model = net(group)
    assert is_spotless(load(model).ir)
    assert count(model) == 0


@pytest.mark.parametrize(
    ("name", "at", "to", "group"),
    [
        ("w1", 2, 0.0, 1),  # a zero filter: constant behind the BatchNormalization
        ("w1", 2, (5,), 1),
        ("scale", 3, 0.0, 1),
        ("w2", (slice(None), 4), 0.0, 1),
        ("w2", 1, 0.0, 1),
        ("w2", (slice(0, 4), 1), 0.0, 2),  # unread in its group only
        ("w3", 6, 0.0, 1),
    ],
)
def test_what_may_be_idle_is_left_to_the_analysis(name: str, at: object, to: object, group: int) -> None:
    model = changed(name, at, to, group=group)
    assert not is_spotless(load(model).ir)


@pytest.mark.parametrize(("name", "at"), [("w1", 2), ("w2", (slice(None), 4)), ("w3", 6)])
def test_the_analysis_finds_something_there(name: str, at: object) -> None:
    assert count(changed(name, at, 0.0)) > 0


def test_operators_that_may_drop_channels_are_left_to_the_analysis() -> None:
    model = net()
    model.graph.node[5].CopyFrom(helper.make_node("Split", ["e"], ["f", "rest"], axis=1, num_outputs=2))
    assert not is_spotless(load(model, keep_feedable=True).ir)


def test_results_that_nobody_reads_are_left_to_the_analysis() -> None:
    model = net()
    model.graph.node.append(helper.make_node("Relu", ["d"], ["unread"]))
    assert not is_spotless(load(model).ir)


def test_large_weights_are_looked_at_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxslim_core.channels.spotless._BLOCK", 100)
    assert is_spotless(load(net()).ir)
    assert not is_spotless(load(changed("w1", 7, (0,))).ir)
    assert not is_spotless(load(changed("w2", (slice(None), 7), 0.0)).ir)
