"""Reorder beyond its page: subgraphs, other element types, feedable weights, and generated graphs."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper
from onnxslim_core.passes.fuse_batchnorm import FuseBatchNorm
from onnxslim_core.passes.reorder import Reorder

from onnxslim_core.rewrite import Change, Context, Kind
from onnxslim_core.verify import Interface, verify
from tests import oracles, pages


def _proto(text: str, **arrays: str) -> onnx.ModelProto:
    lines = "".join(f"{name}: {how}\n" for name, how in arrays.items())
    (case,) = pages.read_cases("reorder", f"## case\n```before\n{text}\n```\n```arrays\n{lines}```\n")
    return case.before


def _run(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, list[Change]]:
    model = ir.from_proto(proto)
    interface = Interface.of(model)
    changes = Reorder().run(model, Context())
    assert not (problems := verify(model, interface)), problems
    after = ir.to_proto(model)
    onnx.checker.check_model(after, full_check=True)
    return after, changes


def _ops(proto: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in proto.graph.node]


def test_a_part_that_a_body_reads_keeps_its_layout() -> None:
    text = """g (bool k, float[2,3,4] x) => (float[2,4,3] y, float[2,3,4] z) {
        t = Transpose<perm=[0,2,1]>(x)  r = Relu(t)
        y = If(k) <then_branch = a () => (float[2,4,3] p) { p = Neg(r) }, else_branch = b () => (float[2,4,3] q) { q = Abs(r) }>
        z = Transpose<perm=[0,2,1]>(r) }"""
    proto = _proto(text)
    after, changes = _run(proto)
    assert not changes
    assert _ops(after) == _ops(proto)


def test_parts_within_a_body_are_turned_over() -> None:
    text = """g (bool k, float[2,3,4] x) => (float[2,3,4] y) <float[3] c> {
        y = If(k) <
          then_branch = a () => (float[2,3,4] p) {
            t = Transpose<perm=[0,2,1]>(x)  r = Relu(t)  s = Mul(r, c)  p = Transpose<perm=[0,2,1]>(s) },
          else_branch = b () => (float[2,3,4] q) { q = Abs(x) }> }"""
    proto = _proto(text)
    after, changes = _run(proto)
    assert [change.action for change in changes] == ["turn the layout of 2 nodes over: 2 Transposes less"]
    assert [n.op_type for n in after.graph.node[0].attribute[0].g.node] == ["Relu", "Mul"]
    for value in (True, False):
        feeds = {"k": np.array(value), "x": np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)}
        oracles.assert_equal(proto, after, Kind.BITWISE, feeds)


@pytest.mark.parametrize("kind", ["float16", "double", "int32"])
def test_layouts_do_not_ask_for_the_element_type(kind: str) -> None:
    text = f"""g ({kind}[N,3,4] x) => ({kind}[N,3,4] y) <{kind}[3] c> {{
        t = Transpose<perm=[0,2,1]>(x)  r = Abs(t)  s = Mul(c, r)  y = Transpose<perm=[0,2,1]>(s) }}"""
    proto = _proto(text)
    after, _ = _run(proto)
    assert _ops(after) == ["Abs", "Mul"]
    oracles.assert_equal(proto, after, Kind.BITWISE)


def test_constants_that_others_read_are_left_to_them() -> None:
    text = """g (float[N,3,4] x) => (float[N,3,4] y, float[3] z) <float[3] c> {
        t = Transpose<perm=[0,2,1]>(x)  r = Abs(t)  s = Mul(c, r)  y = Transpose<perm=[0,2,1]>(s)  z = Neg(c) }"""
    proto = _proto(text)
    after, _ = _run(proto)
    assert sorted(_ops(after)) == ["Abs", "Mul", "Neg"]
    oracles.assert_equal(proto, after, Kind.BITWISE)


def test_a_default_that_a_caller_may_feed_is_no_constant() -> None:
    text = """g (float[N,3,4] x) => (float[N,5] y) <float[12,5] W> {
        t = Transpose<perm=[0,2,1]>(x)  f = Flatten(t)  y = MatMul(f, W) }"""
    proto = _proto(text)
    proto.graph.input.append(helper.make_tensor_value_info("W", 1, [12, 5]))
    after, changes = _run(proto)
    assert not changes
    assert _ops(after) == ["Transpose", "Flatten", "MatMul"]


def test_the_order_of_transposes_is_not_mixed_up() -> None:
    """Of three axes that all move, a perm and its inverse differ."""
    text = """g (float[2,3,4] x) => (float[2,3,4] y, float[4,2,3] z) {
        a = Transpose<perm=[1,2,0]>(x)  b = Relu(a)  y = Transpose<perm=[2,0,1]>(b)
        c = Transpose<perm=[1,2,0]>(x)  d = Abs(c)  z = Transpose<perm=[1,2,0]>(d) }"""
    proto = _proto(text)
    after, changes = _run(proto)
    assert [change.applied for change in changes] == [True]
    assert sorted(_ops(after)) == ["Abs", "Relu", "Transpose", "Transpose"]
    oracles.assert_equal(proto, after, Kind.BITWISE)


def test_what_a_transpose_hid_is_fused_afterwards() -> None:
    """Why the exact recipe has reorder before fuse_batchnorm."""
    text = """g (float[N,3,6,5] x) => (float[N,4,6,5] y) <float[4,3,1,1] A, float[4] a, float[4] s, float[4,4,1,1] B, float[4] b> {
        c = Conv(x, A)  t = Transpose<perm=[0,2,3,1]>(c)  d = Add(t, a)  e = Mul(d, s)  r = Relu(e)
        u = Transpose<perm=[0,3,1,2]>(r)  f = Conv(u, B)  v = Transpose<perm=[0,2,3,1]>(f)  h = Add(b, v)
        y = Transpose<perm=[0,3,1,2]>(h) }"""
    proto = _proto(text)
    model = ir.from_proto(proto)
    for step in (Reorder(), FuseBatchNorm()):
        step.run(model, Context())
    assert [node.op_type for node in model.graph] == ["Conv", "Relu", "Conv"]
    oracles.assert_equal(proto, ir.to_proto(model), Kind.ALGEBRAIC)


@pytest.mark.parametrize("bounds", [["", "h"], ["l", "h"], ["h", "l"], []])
def test_an_absent_bound_is_none(bounds: list[str]) -> None:
    """Bounds that are out of order are left alone: what is meant then has changed between versions."""
    pool = helper.make_node("MaxPool", ["c"], ["y"], kernel_shape=[2], strides=[2])
    nodes = [helper.make_node("Abs", ["x"], ["a"]), helper.make_node("Clip", ["a", *bounds], ["c"]), pool]
    weights = [numpy_helper.from_array(np.array(v, np.float32), n) for n, v in (("l", 0.25), ("h", 1.5))]
    ends = [helper.make_tensor_value_info(n, 1, [2, 3, s]) for n, s in (("x", 8), ("y", 4))]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    after, _ = _run(proto)
    assert _ops(after) == (["Abs", "Clip", "MaxPool"] if bounds == ["h", "l"] else ["Abs", "MaxPool", "Clip"])
    oracles.assert_equal(proto, after, Kind.BITWISE)


def test_stale_shapes_inside_the_file_are_not_believed() -> None:
    text = """g (float[N,3,1,2] x) => (float[N,6] y) {
        a = Relu(x)  t = Transpose<perm=[0,3,2,1]>(a)  y = Flatten(t) }"""
    proto = _proto(text)
    proto.graph.value_info.append(helper.make_tensor_value_info("a", 1, ["N", 6, 1, 1]))
    model = ir.from_proto(proto)
    assert not Reorder().run(model, Context())


@pytest.mark.parametrize("seed", range(120))
def test_any_net_answers_the_same(seed: int) -> None:
    proto = _Net(seed).build()
    after, changes = _run(proto)
    oracles.assert_equal(proto, after, Kind.ALGEBRAIC)
    oracles.assert_not_bigger(ir.to_proto(ir.from_proto(proto)), after, allowed=150 * len(changes))
    again, more = _run(after)
    assert not more
    assert again.SerializeToString(deterministic=True) == after.SerializeToString(deterministic=True)


def test_nets_are_reordered_for_the_most_part() -> None:
    """Else the test above would prove little."""
    actions = [change.action for seed in range(120) for change in _run(_Net(seed).build())[1]]
    wanted = ("pool before", "average before", "LeakyRelu", "not negative", "join two Transposes", "turn the layout")
    for words in (*wanted, "remove Unsqueeze and Squeeze", "join Reshape", "into the weight", "axes of size 1"):
        assert sum(words in action for action in actions) > 1, words


class _Net:
    """A graph of pools, activations, Transposes and Reshapes, in which much undoes itself, and some nearly does."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.outputs: list[str] = []
        self.values: list[tuple[str, tuple[int, ...]]] = []

    def one(self, *choices: Any) -> Any:
        return choices[int(self.rng.integers(len(choices)))]

    def constant(self, array: np.ndarray) -> str:
        self.weights.append(numpy_helper.from_array(array, f"w{len(self.weights)}"))
        return str(self.weights[-1].name)

    def floats(self, *dims: int) -> str:
        return self.constant(self.rng.uniform(-1, 1, dims).astype(np.float32))

    def integers(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def add(self, op: str, inputs: list[str], shape: tuple[int, ...], **attributes: Any) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], **attributes))
        self.values.append((name, shape))
        if self.rng.random() < 0.04:
            self.outputs.append(name)
        return name

    def last(self) -> tuple[str, tuple[int, ...]]:
        return self.values[-1] if self.rng.random() < 0.85 else self.values[int(self.rng.integers(len(self.values)))]

    def unary(self) -> None:
        x, shape = self.last()
        op = self.one("Relu", "Relu", "Sigmoid", "Abs", "Neg", "LeakyRelu", "Elu", "Clip")
        inputs = [x, self.floats(), ""][:2] if op == "Clip" else [x]
        self.add(op, inputs, shape)

    def scale(self) -> None:
        x, shape = self.last()
        form = self.one((), (1,), shape[-1:], (1,) * len(shape), shape[1:2] + (1,) * (len(shape) - 2), shape[1:])
        operands = [x, self.floats(*form)]
        self.add(self.one("Add", "Mul", "Max", "Min", "Sub"), operands[:: self.one(1, -1)], shape)

    def join(self) -> None:
        x, shape = self.last()
        other = self.one(*[name for name, s in self.values if s == shape])
        if self.one(True, False):
            self.add("Add", [x, other], shape)
            return
        axis = int(self.rng.integers(1, len(shape)))
        wide = tuple(2 * s if i == axis else s for i, s in enumerate(shape))
        self.add("Concat", [x, other], wide, axis=self.one(axis, axis - len(shape)))

    def leaky(self) -> None:
        x, shape = self.last()
        factor = self.constant(np.float32(self.one(0.25, 0.2, 1.5)).reshape(self.one((), (1,))))
        scaled = self.add("Mul", [x, factor], shape)
        self.add("Max", [scaled, x][:: self.one(1, -1)], shape)

    def transpose(self) -> None:
        x, shape = self.last()
        rest = list(range(1, len(shape)))
        perm = [0, *(rest[1:] + rest[:1])] if self.one(True, False) else [0, *(rest[-1:] + rest[:-1])]
        if len(rest) == 3 and self.one(True, False, False):
            perm = self.one([0, 1, 3, 2], [0, 2, 1, 3])
        self.add("Transpose", [x], tuple(shape[axis] for axis in perm), perm=perm)

    def pool(self) -> None:
        x, shape = self.last()
        if len(shape) != 4 or min(shape[2:]) < 3:
            return
        op = self.one("MaxPool", "MaxPool", "AveragePool", "GlobalAveragePool")
        if op == "GlobalAveragePool":
            self.add(op, [x], (*shape[:2], 1, 1))
            return
        kernel, step, pad = self.one(2, 3), self.one(1, 2, 2), self.one(0, 0, 1)
        attributes: dict[str, Any] = {"kernel_shape": [kernel] * 2, "strides": [step] * 2, "pads": [pad] * 4}
        if op == "AveragePool" and self.one(True, False):
            attributes["count_include_pad"] = 1
        size = tuple((s + 2 * pad - kernel) // step + 1 for s in shape[2:])
        self.add(op, [x], (*shape[:2], *size), **attributes)

    def conv(self) -> None:
        x, shape = self.last()
        if len(shape) != 4:
            return
        out = self.one(3, 8, 9)
        inputs = [x, self.floats(out, shape[1], 1, 1), *([self.floats(out)] if self.one(True, False) else [])]
        self.add("Conv", inputs, (shape[0], out, *shape[2:]))

    def view(self) -> None:
        x, shape = self.last()
        how = self.one("squeeze", "reshape", "flatten")
        if how == "squeeze":
            axis = self.integers(self.one(1, 2))
            wide = self.add("Unsqueeze", [x, axis], shape)
            self.add("Squeeze", [wide, self.one(axis, axis)], shape)
            self.values.remove((wide, shape))
            return
        size = int(np.prod(shape[1:]))
        flat = self.add("Reshape", [x, self.integers(self.one(0, -1, shape[0]), size)], (shape[0], size))
        self.values.remove((flat, (shape[0], size)))
        if how == "flatten":
            out = self.one(2, 5)
            self.add("MatMul", [flat, self.floats(size, out)], (shape[0], out))
            return
        target = [self.one(0, shape[0]), *shape[1:]]
        target[self.one(1, len(target) - 1)] = -1
        self.add("Reshape", [flat, self.integers(*target)], shape)

    def matrix(self) -> None:
        """A layout that a matrix sees flattened."""
        x, shape = self.last()
        perm = [0, *range(2, len(shape)), 1]
        if len(shape) < 3:
            return
        t = self.add("Transpose", [x], tuple(shape[axis] for axis in perm), perm=perm)
        size = int(np.prod(shape[1:]))
        flat = self.add("Flatten", [t], (shape[0], size))
        self.values = [value for value in self.values if value[0] not in (t, flat)]
        turned, out = self.one(0, 1), self.one(2, 5)
        inputs = [flat, self.floats(*((out, size) if turned else (size, out))), self.floats(out)]
        self.outputs.append(self.add("Gemm", inputs, (shape[0], out), transB=turned))
        self.values.pop()

    def build(self) -> onnx.ModelProto:
        shape = self.one((2, 3, 7, 6), (2, 3, 7, 6), (2, 4, 5))
        self.values.append(("x", shape))
        steps = (self.unary, self.unary, self.scale, self.join, self.leaky, self.transpose, self.transpose, self.pool)
        for _ in range(12):
            self.one(*steps, self.pool, self.conv, self.view, self.matrix)()
        self.outputs.append(self.add("Neg", [self.values[-1][0]], self.values[-1][1]))
        inputs = [helper.make_tensor_value_info("x", 1, shape)]
        outputs = [helper.make_tensor_value_info(name, 1, None) for name in dict.fromkeys(self.outputs)]
        graph = helper.make_graph(self.nodes, "net", inputs, outputs, self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        model = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
        del model.graph.value_info[:]
        return model
