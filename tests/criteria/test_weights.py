"""Criteria on weights against what their papers say, computed directly; fused and unfused networks rank alike."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import pytest
from onnxslim_core.passes import pass_class

from onnxslim_core.channels.groups import ChannelGraph, Group, analyse
from onnxslim_core.criteria.bn_scale import has_scale
from onnxslim_core.criteria.table import CRITERIA
from onnxslim_core.model import load
from onnxslim_core.rewrite import Context
from tests.ops.cases import Case

WEIGHTS = ("l1", "l2", "geometric_median")


def case(tensors: str, body: str, arrays: Mapping[str, object] | None = None) -> Case:
    return Case("criterion", tensors, body, 0, arrays=arrays or {})


def graph_of(net: Case, *, fused: bool = False) -> ChannelGraph:
    model = load(net.model).ir
    if fused:
        pass_class("fuse_batchnorm")().run(model, Context())
        assert "BatchNormalization" not in {node.op_type for node in model.graph}
    return analyse(model, net.feeds()[0])


def group_of(channels: ChannelGraph, width: int) -> Group:
    (found,) = (group for group in channels.groups if group.width == width)
    return found


def scores(channels: ChannelGraph, criterion: str, width: int, seed: int = 0) -> np.ndarray:
    return CRITERIA[criterion](channels, group_of(channels, width), seed)


def direct(criterion: str, rows: np.ndarray) -> np.ndarray:
    rows = rows.reshape(len(rows), -1).astype(np.float64)
    if criterion == "l1":
        return np.asarray(np.abs(rows).sum(axis=1))
    if criterion == "l2":
        return np.asarray(np.linalg.norm(rows, axis=1))
    return np.array([sum(np.linalg.norm(a - b) for b in rows) for a in rows])


CONV = case("x N,3,H,W | A 9,3,3,2 | a 9 | B 5,9,1,1", "h = Conv(x, A, a) r = Relu(h) y = Conv(r, B)")
NORMED = case(
    "x N,3,H,W | A 9,3,3,2 | g 9 | b 9 | m 9 | v 9 | B 5,9,1,1",
    "h = Conv(x, A) n = BatchNormalization<epsilon=0.01>(h, g, b, m, v) r = Relu(n) y = Conv(r, B)",
    {"v": np.linspace(0.1, 3, 9)},
)


@pytest.mark.parametrize("criterion", WEIGHTS)
def test_a_filter_is_scored_by_its_weights(criterion: str) -> None:
    weight = CONV.array("A", "float", [9, 3, 3, 2])
    assert scores(graph_of(CONV), criterion, 9) == pytest.approx(direct(criterion, weight), rel=1e-6)


@pytest.mark.parametrize("criterion", WEIGHTS)
def test_a_filter_is_scored_with_the_scale_behind_it(criterion: str) -> None:
    weight, gamma = NORMED.array("A", "float", [9, 3, 3, 2]), NORMED.array("g", "float", [9])
    scale = gamma / np.sqrt(np.linspace(0.1, 3, 9) + 0.01)
    wanted = direct(criterion, weight * scale[:, None, None, None])
    assert scores(graph_of(NORMED), criterion, 9) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("criterion", [*WEIGHTS, "bn_scale"])
def test_fused_and_unfused_networks_are_scored_alike(criterion: str) -> None:
    assert scores(graph_of(NORMED, fused=True), criterion, 9) == pytest.approx(
        scores(graph_of(NORMED), criterion, 9), rel=1e-5
    )


@pytest.mark.parametrize("criterion", WEIGHTS)
def test_all_makers_of_a_stream_count(criterion: str) -> None:
    net = case(
        "x N,3,H,W | A 9,3,1,1 | C 4,9,1,1 | D 9,4,1,1 | B 5,9,1,1",
        "h = Conv(x, A) c = Conv(h, C) r = Relu(c) d = Conv(r, D) s = Add(h, d) y = Conv(s, B)",
    )
    parts = [
        direct(criterion, net.array(name, "float", dims)) for name, dims in (("A", [9, 3, 1, 1]), ("D", [9, 4, 1, 1]))
    ]
    wanted = np.hypot(*parts) if criterion == "l2" else parts[0] + parts[1]
    assert scores(graph_of(net), criterion, 9) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("criterion", WEIGHTS)
@pytest.mark.parametrize(
    ("tensors", "body", "axis"),
    [
        ("x N,4 | A 9,4 | B 9,5", "t = Transpose(A) h = MatMul(x, t) y = MatMul(h, B)", 0),
        ("x N,4 | A 4,9 | B 9,5", "t = Identity(A) h = MatMul(x, t) y = MatMul(h, B)", 1),
        ("x N,4 | float16 A 4,9 | B 9,5", "t = Cast<to=1>(A) h = MatMul(x, t) y = MatMul(h, B)", 1),
        (
            "x N,4 | int8 A 9,4 | s 9 | B 9,5",
            "t = DequantizeLinear<axis=0>(A, s) h = Gemm<transB=1>(x, t) y = MatMul(h, B)",
            0,
        ),
        ("x N,4,H,W | A 4,9,2,2 | B 5,9,1,1", "h = ConvTranspose(x, A) y = Conv(h, B)", 1),
    ],
)
def test_weights_are_read_where_they_lie(criterion: str, tensors: str, body: str, axis: int) -> None:
    net = case(tensors, body)
    kind, dims = net.declared["A"]
    rows = np.moveaxis(net.array("A", kind, [int(d) for d in dims]).astype(np.float64), axis, 0)
    if "s" in net.declared:
        rows = rows * net.array("s", "float", [9])[:, None]
    assert scores(graph_of(net), criterion, 9) == pytest.approx(direct(criterion, rows), rel=1e-6)


@pytest.mark.parametrize("criterion", ["l1", "l2"])
def test_a_head_is_scored_by_all_that_makes_it(criterion: str) -> None:
    """Whole groups of a Conv: the class of a group holds its inputs and its outputs."""
    net = case(
        "x N,3,H,W | A 6,3,1,1 | G 12,1,3,3 | B 5,12,1,1", "h = Conv(x, A) g = Conv<group=6>(h, G) y = Conv(g, B)"
    )
    made = direct("l2", net.array("A", "float", [6, 3, 1, 1])) ** 2
    grouped = (direct("l2", net.array("G", "float", [12, 1, 3, 3])) ** 2).reshape(6, 2).sum(axis=1)
    found = scores(graph_of(net), criterion, 6)
    if criterion == "l2":
        assert found == pytest.approx(np.sqrt(made + grouped), rel=1e-6)
    else:
        wanted = direct("l1", net.array("A", "float", [6, 3, 1, 1]))
        wanted = wanted + direct("l1", net.array("G", "float", [12, 1, 3, 3])).reshape(6, 2).sum(axis=1)
        assert found == pytest.approx(wanted, rel=1e-6)


# ---------------------------------------------------------------------- bn_scale
def test_scale_is_that_of_the_node_behind() -> None:
    gamma = NORMED.array("g", "float", [9])
    assert scores(graph_of(NORMED), "bn_scale", 9) == pytest.approx(np.abs(gamma), rel=1e-6)


def test_scale_of_a_stream_is_the_mean_of_its_makers() -> None:
    """Else a stream of many makers would never fall below a threshold that all groups share."""
    ones = {f"{part}{n}": np.ones(7) for n in (1, 2) for part in "bmv"}
    net = case(
        "x N,3,H,W | A 7,3,1,1 | D 7,7,1,1 | B 5,7,1,1" + "".join(f" | {p}{n} 7" for n in (1, 2) for p in "gbmv"),
        "h = Conv(x, A) p = BatchNormalization(h, g1, b1, m1, v1) d = Conv(p, D)"
        " q = BatchNormalization(d, g2, b2, m2, v2) s = Add(p, q) y = Conv(s, B)",
        ones,
    )
    wanted = (np.abs(net.array("g1", "float", [7])) + np.abs(net.array("g2", "float", [7]))) / 2
    assert scores(graph_of(net), "bn_scale", 7) == pytest.approx(wanted, rel=1e-6)
    assert scores(graph_of(net, fused=True), "bn_scale", 7) == pytest.approx(wanted, rel=1e-6)


def test_a_group_without_scale_is_ranked_by_the_norm() -> None:
    channels = graph_of(CONV)
    assert not has_scale(group_of(channels, 9))
    assert has_scale(group_of(graph_of(NORMED), 9))
    assert np.array_equal(scores(channels, "bn_scale", 9), scores(channels, "l2", 9))


def test_scale_follows_a_removal() -> None:
    model = load(NORMED.model).ir
    pass_class("fuse_batchnorm")().run(model, Context())
    options = {"ratio": 0.4, "round_to": 1, "criterion": "bn_scale"}
    pass_class("prune_channels")(**options).run(model, Context(samples=[NORMED.feeds()[0]]))
    channels = analyse(model, NORMED.feeds()[0])
    kept = np.sort(np.abs(NORMED.array("g", "float", [9])))[-6:]
    assert np.sort(scores(channels, "bn_scale", 6)) == pytest.approx(kept, rel=1e-6)


# ---------------------------------------------------------------------- random
def test_random_is_drawn_from_the_seed_and_the_group() -> None:
    net = case("x N,3 | A 3,9 | B 9,8 | C 8,5", "a = MatMul(x, A) b = MatMul(a, B) y = MatMul(b, C)")
    channels = graph_of(net)
    assert np.array_equal(scores(channels, "random", 9, 1), scores(graph_of(net), "random", 9, 1))
    assert not np.array_equal(scores(channels, "random", 9, 1), scores(channels, "random", 9, 2))
    assert not np.array_equal(scores(channels, "random", 9, 1)[:8], scores(channels, "random", 8, 1))


def test_equal_scores_do_not_depend_on_the_model_object() -> None:
    first, second = (ir.from_proto(CONV.model) for _ in range(2))
    for criterion in CRITERIA:
        found = [
            CRITERIA[criterion](channels, group_of(channels, 9), 0)
            for channels in (analyse(model, CONV.feeds()[0]) for model in (first, second))
        ]
        assert np.array_equal(found[0], found[1])
