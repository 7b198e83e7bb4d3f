"""FuseActivations beyond its page: old opsets, the journal, the option, generated chains, order in the recipe."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnxslim_core.passes import pass_class
from onnxslim_core.passes.fuse_activations import FuseActivations

from onnxslim_core.errors import RecipeError
from onnxslim_core.model import load
from onnxslim_core.rewrite import Change, Context, Kind
from tests import oracles, pages

SWISH = """g (float[N,4,5,6] x) => (float[N,4,5,6] y) <float three = {3}, float zero = {0}, float six = {6}>
    { a = Add(x, three)  b = Clip(a, zero, six)  c = Mul(x, b)  y = Div(c, six) }"""
FLOAT = onnx.TensorProto.FLOAT


def _proto(text: str) -> onnx.ModelProto:
    (case,) = pages.read_cases("fuse_activations", f"## case\n```before\n{text}\n```\n")
    return case.before


def _run(proto: onnx.ModelProto, **options: Any) -> tuple[onnx.ModelProto, list[Change]]:
    held = load(proto)
    changes = FuseActivations(**options).run(held.ir, Context())
    return held.to_proto(), changes


def test_journal_names_the_pieces() -> None:
    (change,) = _run(_proto(SWISH))[1]
    assert change.applied
    assert change.action == "fuse Add, Clip, Div into a HardSigmoid"
    assert len(change.where) == 4


def test_old_opsets_broadcast_otherwise_and_are_left_alone() -> None:
    text = """<ir_version: 3, opset_import: ["": 6]>
        g (float[2,3] x) => (float[2,3] y) { c = Constant<value = float {6.0}>()
        b = Clip<min=0.0, max=6.0>(x)  y = Div<broadcast=1>(b, c) }"""
    assert not FuseActivations().run(load(onnx.parser.parse_model(text)).ir, Context())


def test_the_option_is_checked_and_moves_the_bound() -> None:
    with pytest.raises(RecipeError, match="fuse_activations: max_offset must be positive"):
        FuseActivations(max_offset=0.0)
    (change,) = _run(_proto(SWISH), max_offset=0.25)[1]
    assert change.guard == "moderate_offset"


def test_an_integer_network_has_no_refusals() -> None:
    assert not _run(_proto(SWISH.replace("float", "int32")))[1]


def test_nodes_of_another_domain_are_no_pieces() -> None:
    proto = _proto(SWISH)
    proto.opset_import.append(helper.make_opsetid("com.vendor", 1))
    proto.graph.node[1].domain = "com.vendor"
    assert not FuseActivations().run(load(proto).ir, Context())


def test_scales_behind_it_go_into_the_next_conv_only_where_it_stays() -> None:
    """Why the exact recipe has fuse_activations before fuse_batchnorm."""
    text = SWISH.replace("<float three", "<float[4,4,1,1] W, float three").replace(
        "y = Div(c, six)", "d = Div(c, six)  y = Conv(d, W)"
    )

    def nodes(*names: str) -> int:
        held = load(_proto(text))
        for name in names:
            pass_class(name)().run(held.ir, Context())
        return len(held.to_proto().graph.node)

    assert nodes("fuse_activations", "fuse_batchnorm") == 3
    assert nodes("fuse_batchnorm", "fuse_activations") == 4


def _chain(rng: np.random.Generator) -> tuple[onnx.ModelProto, bool]:
    """Pieces in random spellings that make a hard sigmoid or a hard swish; whether arithmetic is among them."""
    nodes: list[onnx.NodeProto] = []
    numbers: dict[str, np.ndarray] = {}
    value = "x"

    def number(one: float) -> str:
        name = f"n{len(numbers)}"
        numbers[name] = np.full([(), (1,), (1, 1)][rng.integers(3)], one, np.float32)
        return name

    def bound(one: float) -> str:
        name = number(one)
        numbers[name] = numbers[name].reshape(())
        return name

    def node(op: str, *inputs: str) -> None:
        nonlocal value
        value = f"v{len(nodes)}"
        nodes.append(helper.make_node(op, list(inputs), [value]))

    def scale(by: float) -> None:
        node("Mul", *rng.permutation([value, number(by)])) if rng.integers(2) else node("Div", value, number(1 / by))

    def shift(by: float) -> None:
        node("Add", *rng.permutation([value, number(by)])) if rng.integers(2) else node("Sub", value, number(-by))

    for _ in range(rng.integers(3)):
        scale(float(rng.choice([-0.5, 0.2, 3.0]))) if rng.integers(2) else shift(float(rng.choice([-1.0, 0.5, 3.0])))
    low = float(rng.choice([-1.0, 0.0]))
    high = low + float(rng.choice([1.0, 2.0, 6.0]))
    if rng.integers(2):
        node("Clip", value, bound(low), bound(high))
    else:
        limits = [("Max", low), ("Min", high)]
        for index in rng.permutation(2):
            op, end = limits[index]
            node("Relu", value) if op == "Max" and end == 0 and rng.integers(2) else node(op, value, number(end))
    if low != 0:
        shift(-low)
    elif rng.integers(2):
        node("Mul", *rng.permutation([value, "x"]))
    if high - low != 1:
        scale(1 / (high - low))
    arithmetic = any(n.op_type in ("Add", "Div", "Mul", "Sub") and {*n.input} & {*numbers} for n in nodes)
    nodes.append(helper.make_node("Identity", [value], ["y"]))
    shape: list[str | int | None] = ["N", 37]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", FLOAT, shape)],
        [helper.make_tensor_value_info("y", FLOAT, shape)],
        [numpy_helper.from_array(array, name) for name, array in numbers.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), arithmetic


def test_generated_chains_become_one_node_and_answer_the_same() -> None:
    found = 0
    for seed in range(300):
        proto, expected = _chain(np.random.default_rng(seed))
        after, changes = _run(proto)
        operators = [node.op_type for node in after.graph.node if node.op_type != "Identity"]
        assert not [change for change in changes if not change.applied], seed
        if expected:
            assert operators in (["HardSigmoid"], ["HardSigmoid", "Mul"]), (seed, operators)
            found += 1
        oracles.assert_equal(proto, after, Kind.ALGEBRAIC, oracles.runnable_feeds(proto, seed))
    assert found > 200
