"""Which linear nodes are calls of one layer, and which layers only weights of their own could mend."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from onnxslim_core.calibration.consumers import Consumer, bias_of, is_linear, put_weights, weights_of
from onnxslim_core.calibration.sharing import layers_of
from onnxslim_core.calibration.study import study
from tests.oracles import run

HEAD = '<ir_version: 8, opset_import: ["" : 17]> g (float[n, 4] a, float[n, 4] b, int64[k] i) => ({outputs}) {{{body}}}'
SIZES = {"w": (4, 4), "u": (4, 4), "p": (4,), "q": (4,)}


def model_of(body: str, outputs: str) -> ir.Model:
    rng = np.random.default_rng(0)
    proto = onnx.parser.parse_model(HEAD.format(body=body, outputs=outputs))
    for name, size in SIZES.items():
        proto.graph.initializer.append(numpy_helper.from_array(rng.normal(size=size).astype(np.float32), name))
    for number, node in enumerate(proto.graph.node):
        node.name = node.name or f"n{number}"
    return ir.from_proto(proto)


def linear(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if is_linear(node)]


TWO = "float[n, 4] y, float[n, 4] z"
TWICE = "y = Gemm(a, w, p)  z = Gemm(b, w, p)"
BESIDE = "k = MatMul(a, w)  y = Add(k, p)  m = MatMul(b, w)  z = Add(p, m)"
ONE = {
    "two Gemms": (TWICE, TWO),
    "without a bias": ("y = Gemm(a, w)  z = Gemm(b, w)", TWO),
    "two MatMuls": ("y = MatMul(a, w)  z = MatMul(b, w)", TWO),
    "the bias in an Add": (BESIDE, TWO),
    "on one input": ("y = Gemm(a, w, p)  r = Relu(a)  z = Gemm(r, w, p)", TWO),
    "of a tower": ("k = Gemm(a, w, p)  m = Gemm(b, w, p)  y = Gemm(k, u, q)  z = Gemm(m, u, q)", TWO),
}


@pytest.mark.parametrize("name", ONE)
def test_calls_of_one_layer_are_solved_together(name: str) -> None:
    model = model_of(*ONE[name])
    nodes = linear(model)
    assert layers_of(nodes) == [tuple(nodes[at : at + 2]) for at in range(0, len(nodes), 2)]


APART = {
    "read by something else": ("y = Gemm(a, w, p)  z = Gather(w, i)", TWO),
    "other biases": ("y = Gemm(a, w, p)  z = Gemm(b, w, q)", TWO),
    "other biases in Adds": ("k = MatMul(a, w)  y = Add(k, p)  m = MatMul(b, w)  z = Add(m, q)", TWO),
    "one bias": ("y = Gemm(a, w, p)  z = Gemm(b, w)", TWO),
    "turned": ("y = Gemm(a, w, p)  z = Gemm<transB = 1>(b, w, p)", TWO),
    "scaled": ("y = Gemm(a, w, p)  z = Gemm<alpha = 2.0>(b, w, p)", TWO),
    "another bias in all": ("y = Gemm(a, w, p)  z = Gemm<beta = 2.0>(b, w, p)", TWO),
    "another operator": ("y = Gemm(a, w)  z = MatMul(b, w)", TWO),
    "one call after the other": ("k = Gemm(a, w, p)  r = Relu(k)  y = Gemm(r, w, p)", "float[n, 4] y"),
    "layers after each other": (
        "k = Gemm(a, w, p)  m = Gemm(b, u, q)  r = Relu(k)  s = Relu(m)  y = Gemm(r, u, q)  z = Gemm(s, w, p)",
        TWO,
    ),
}


@pytest.mark.parametrize("name", APART)
def test_what_cannot_be_solved_together_is_left(name: str) -> None:
    assert layers_of(linear(model_of(*APART[name]))) == []


def test_a_call_that_is_not_given_keeps_its_layer_as_it_is() -> None:
    nodes = linear(model_of(f"{TWICE}  v = Gemm(b, u, q)", f"{TWO}, float[n, 4] v"))
    assert layers_of(nodes[1:]) == [(nodes[2],)]


def test_a_layer_between_the_calls_of_another_that_waits_for_itself_is_solved() -> None:
    body = "k = Gemm(a, w, p)  c = Gemm(k, u, q)  d = Gemm(b, u, q)  y = Gemm(c, w, p)  z = Gemm(d, w, p)"
    nodes = linear(model_of(body, TWO))
    assert layers_of(nodes) == [(nodes[1], nodes[2])]


@pytest.mark.parametrize("name", ["two Gemms", "two MatMuls", "the bias in an Add"])
def test_all_calls_read_the_same_new_constants(name: str) -> None:
    model = model_of(*ONE[name])
    (layer,) = layers_of(linear(model))
    weights = weights_of(layer[0]) * 2
    put_weights(model, layer[0], weights, np.arange(4.0), layer[1:])
    assert layers_of(linear(model)) == [layer]
    assert "w" in model.graph.initializers and len(model.graph.initializers) == 4 + (name == "two MatMuls")
    x = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)
    y, z = run(ir.to_proto(model), {"a": x, "b": -x, "i": np.zeros(1, np.int64)})
    np.testing.assert_allclose(y, x @ weights + np.arange(4), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(z, -x @ weights + np.arange(4), rtol=1e-5, atol=1e-5)
    assert all(bias_of(node, 4).tolist() == [0, 1, 2, 3] for node in layer)


def test_calls_of_one_layer_have_their_moments_in_common() -> None:
    model = model_of(*ONE["two Gemms"])
    consumers = {node: Consumer(node, np.arange(4, dtype=np.int32), 1) for node in linear(model)}
    rng = np.random.default_rng(2)
    a, b = (rng.normal(at, 1, (50, 4)).astype(np.float32) for at in (0, 5))
    first, second = study(model, [{"a": a, "b": b, "i": np.zeros(1, np.int64)}], consumers).values()
    both = np.concatenate([a, b]).astype(np.float64)
    assert first.rows == second.rows == 100
    np.testing.assert_array_equal(first.h, second.h)
    np.testing.assert_allclose(first.h, np.cov(both.T, bias=True), rtol=1e-4)
