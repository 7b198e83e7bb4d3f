"""FuseBatchNorm beyond its page: the record for scoring, float16, the journal, and generated chains."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnxslim_core.passes.fuse_batchnorm import FuseBatchNorm

from onnxslim_core.channels.records import BATCHNORM, BatchNormRecord
from onnxslim_core.errors import RecipeError
from onnxslim_core.model import wrap
from onnxslim_core.rewrite import Change, Context, Kind
from tests import oracles, pages

CHAIN = """g (float[N,3,5,6] x) => (float[N,4,5,6] y)
    <float[4,3,1,1] W, float[4] s, float[4] t, float[4] m, float[4] v, float[4,1,1] p, float q>
    { c = Conv(x, W)  d = BatchNormalization(c, s, t, m, v)  e = Mul(d, p)  f = Sub(q, e)  y = Relu(f) }"""


def _proto(text: str, **arrays: str) -> onnx.ModelProto:
    lines = "".join(f"{name}: {how}\n" for name, how in {"v": "uniform 0.5 2", **arrays}.items() if name in text)
    (case,) = pages.read_cases("fuse_batchnorm", f"## case\n```before\n{text}\n```\n```arrays\n{lines}```\n")
    return case.before


def _run(model: ir.Model, **options: Any) -> list[Change]:
    changes: list[Change] = FuseBatchNorm(**options).run(model, Context())
    return changes


def _weight(proto: onnx.ModelProto, name: str) -> np.ndarray:
    return next(onnx.numpy_helper.to_array(t) for t in proto.graph.initializer if t.name == name).astype(np.float64)


def _record(model: ir.Model) -> BatchNormRecord:
    (found,) = (node.meta[BATCHNORM] for node in model.graph if BATCHNORM in node.meta)
    assert isinstance(found, BatchNormRecord)
    return found


def test_gamma_and_beta_stay_on_record_and_follow_what_comes_after() -> None:
    proto = _proto(CHAIN)
    model = ir.from_proto(proto)
    _run(model)
    gamma, beta, p, q = (_weight(proto, name).reshape(-1) for name in ("s", "t", "p", "q"))
    record = _record(model)
    assert record.gamma.dtype == record.beta.dtype == np.float64
    assert np.allclose(record.gamma, -p * gamma)
    assert np.allclose(record.beta, q - p * beta)


def test_the_record_is_the_distribution_of_the_fused_output() -> None:
    """Statistics of the data as running statistics: then mean and deviation are beta and |gamma|."""
    proto = _proto(CHAIN)
    x = np.random.default_rng(0).standard_normal((500, 3, 5, 6)).astype(np.float32)
    weight = _weight(proto, "W")[:, :, 0, 0]
    conv = np.einsum("oi,nihw->nohw", weight, x)
    for name, value in (("m", conv.mean((0, 2, 3))), ("v", conv.var((0, 2, 3)))):
        tensor = next(t for t in proto.graph.initializer if t.name == name)
        tensor.CopyFrom(onnx.numpy_helper.from_array(value.astype(np.float32), name))
    model = ir.from_proto(proto)
    _run(model)
    record = _record(model)
    (made,) = (v for node in model.graph if node.op_type == "Conv" for v in node.outputs)
    model.graph.outputs.append(made)
    made.type, made.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(["N", 4, 5, 6])
    fused = oracles.run(ir.to_proto(model), {"x": x})[1]
    assert np.allclose(fused.mean((0, 2, 3)), record.beta, atol=1e-4)
    assert np.allclose(fused.std((0, 2, 3)), np.abs(record.gamma), rtol=1e-3)


def test_the_record_survives_a_copy_of_the_model_and_is_not_written() -> None:
    model = ir.from_proto(_proto(CHAIN))
    _run(model)
    assert np.array_equal(_record(wrap(model).copy().ir).gamma, _record(model).gamma)
    assert b"onnxslim" not in ir.to_proto(model).SerializeToString()


def test_no_record_without_a_batch_normalization() -> None:
    model = ir.from_proto(
        _proto("g (float[N,3] x) => (float[N,4] y) <float[3,4] W, float[4] p> { c = Gemm(x, W)  y = Mul(c, p) }")
    )
    assert _run(model)[0].applied
    assert not any(BATCHNORM in node.meta for node in model.graph)


HALF = """g (float16[N,3,5,6] x) => (float16[N,4,5,6] y)
    <float16[4,3,1,1] W, float16[4] b, float16[4] s, float16[4] t, float16[4] m, float16[4] v>
    { c = Conv(x, W, b)  y = BatchNormalization(c, s, t, m, v) }"""


def test_float16_is_computed_in_float64() -> None:
    """Folded in float16, scale * bias overflows here, though every fused number is small: T30."""
    proto = _proto(HALF, b="constant 30000", m="constant 30000", s="constant 8", v="constant 1")
    scale = np.float16(8) / np.sqrt(np.float16(1) + np.float16(1e-5))
    assert np.isinf(np.float16(30000) * scale)
    model = ir.from_proto(proto)
    assert [c.applied for c in _run(model)] == [True]
    feeds = {"x": np.random.default_rng(0).uniform(-0.1, 0.1, (2, 3, 5, 6)).astype(np.float16)}
    fused = oracles.run(ir.to_proto(model), feeds)[0].astype(np.float64)
    weight, t = _weight(proto, "W")[:, :, 0, 0], _weight(proto, "t")[:, None, None]
    exact = 8 / np.sqrt(1 + 1e-5) * np.einsum("oi,nihw->nohw", weight, feeds["x"].astype(np.float64)) + t
    assert np.abs(fused - exact).max() < 0.01 * np.abs(exact).max()


@pytest.mark.parametrize(
    "arrays", [{"s": "constant 60000", "W": "constant 2"}, {"s": "constant 1e-4", "W": "constant 1e-4"}]
)
def test_float16_that_would_leave_its_range_is_refused(arrays: dict[str, str]) -> None:
    model = ir.from_proto(_proto(HALF, **arrays))
    (change,) = _run(model)
    assert (change.applied, change.guard) == (False, "representable")


def test_bfloat16_is_fused_in_its_own_type() -> None:
    text = HALF.replace("float16", "bfloat16")
    model = ir.from_proto(_proto(text))
    assert [c.applied for c in _run(model)] == [True]
    types = {v.const_value.dtype for v in model.graph.initializers.values() if v.const_value is not None}
    assert types == {ir.DataType.BFLOAT16}


def test_every_batch_normalization_that_stays_says_why() -> None:
    text = """g (float[N,4,5,6] x) => (float[N,4,5,6] y) <float[4] s, float[4] t, float[4] m, float[4] v>
        { a = Relu(x)  d = BatchNormalization(a, s, t, m, v)  y = Tanh(d) }"""
    (change,) = _run(ir.from_proto(_proto(text)))
    assert not change.applied
    assert change.reason == "neither Relu before it nor Tanh after it can take it"


def test_the_journal_names_nodes_in_the_order_of_the_data() -> None:
    (first, *_) = _run(ir.from_proto(_proto(CHAIN)))
    assert first.where == ("Conv -> 'c'", "BatchNormalization -> 'd'")
    assert first.action == "fuse BatchNormalization into the Conv before it"


def test_arithmetic_between_two_linear_nodes_goes_where_it_can() -> None:
    """The Conv before it is read twice, so the scale goes into the one after it."""
    text = """g (float[N,3,5,6] x) => (float[N,2,5,6] y, float[N,4,5,6] z)
        <float[4,3,1,1] W, float[2,4,1,1] U, float[4] s, float[4] t, float[4] m, float[4] v>
        { c = Conv(x, W)  z = Relu(c)  d = BatchNormalization(c, s, t, m, v)  y = Conv(d, U) }"""
    proto = _proto(text)
    model = ir.from_proto(proto)
    changes = _run(model)
    assert [c.action for c in changes] == ["fuse BatchNormalization into the Conv after it"]
    oracles.assert_equal(proto, ir.to_proto(model), Kind.ALGEBRAIC)


def test_old_opsets_broadcast_otherwise_and_are_left_alone() -> None:
    node = onnx.helper.make_node("Mul", ["c", "p"], ["y"], broadcast=1, axis=0)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "W"], ["c"]), node],
        "g",
        [onnx.helper.make_tensor_value_info("x", 1, [4, 3])],
        [onnx.helper.make_tensor_value_info("y", 1, [4, 4])],
        [
            onnx.numpy_helper.from_array(np.ones((3, 4), np.float32), "W"),
            onnx.numpy_helper.from_array(np.ones(4, np.float32), "p"),
        ],
    )
    model = ir.from_proto(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 6)]))
    assert _run(model) == []


def test_a_default_that_a_caller_may_feed_is_no_constant() -> None:
    proto = _proto(CHAIN)
    proto.graph.input.append(onnx.helper.make_tensor_value_info("W", 1, [4, 3, 1, 1]))
    model = ir.from_proto(proto)
    assert {c.guard for c in _run(model) if not c.applied} == {"weights_are_constant"}
    assert "W" in model.graph.initializers


@pytest.mark.parametrize("options", [{"max_scale": 0.0}, {"max_offset": -1.0}, {"max_copy": -1}])
def test_options_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(RecipeError, match="fuse_batchnorm: max_"):
        FuseBatchNorm(**options)


@pytest.mark.parametrize("seed", range(120))
def test_any_chain_answers_the_same(seed: int) -> None:
    """Random affine nodes around random linear ones, constants of every shape that broadcasts, sizes that collide."""
    proto = _Chain(seed).build()
    model = ir.from_proto(proto)
    _run(model)
    after = ir.to_proto(model)
    onnx.checker.check_model(after, full_check=True)
    oracles.assert_equal(proto, after, Kind.ALGEBRAIC)
    assert not [c for c in _run(model) if c.applied]


def test_chains_are_fused_for_the_most_part() -> None:
    """Else the test above would prove little."""
    changes = [change for seed in range(120) for change in _run(ir.from_proto(_Chain(seed).build()))]
    done = {change.action for change in changes if change.applied}
    assert sum(change.applied for change in changes) > len(changes) / 3
    for linear in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        assert {f"fuse {op} into the {linear} before it" for op in ("BatchNormalization", "Mul", "Div")} <= done
        assert any(action.endswith(f"into the {linear} after it") for action in done)


class _Chain:
    """A graph of one to three linear nodes in a row with affine nodes and a few Relus between."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.image = seed % 2 == 0
        self.shape = [2, 4, 6, 7] if self.image else [3, 4]
        self.size = 4
        self.last = "x"
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []

    def one(self, *choices: Any) -> Any:
        return choices[int(self.rng.integers(len(choices)))]

    def constant(self, *dims: int, positive: bool = False) -> str:
        values = self.rng.uniform(0.4, 1.5, dims) * (1 if positive else self.rng.choice([-1.0, 1.0], dims))
        self.weights.append(onnx.numpy_helper.from_array(np.asarray(values, np.float32), f"w{len(self.weights)}"))
        return str(self.weights[-1].name)

    def add(self, op: str, inputs: list[str], **attributes: Any) -> None:
        self.nodes.append(onnx.helper.make_node(op, inputs, [f"t{len(self.nodes)}"], **attributes))
        self.last = self.nodes[-1].output[0]
        if self.rng.random() < 0.1:  # a second reader
            self.nodes.append(onnx.helper.make_node("Abs", [self.last], [f"t{len(self.nodes)}"]))
            self.give(self.nodes[-1].output[0])

    def give(self, name: str) -> None:
        shape = [2, self.size, 6, 7] if self.image else [3, self.size]
        self.outputs.append(onnx.helper.make_tensor_value_info(name, 1, shape))

    def affine(self) -> None:
        op = self.one("BatchNormalization", "Mul", "Add", "Sub", "Div", "Relu")
        size = self.size
        if op == "Relu":
            self.add(op, [self.last])
        elif op == "BatchNormalization":
            parameters = [self.constant(size) for _ in range(3)]
            self.add(op, [self.last, *parameters, self.constant(size, positive=True)])
        else:
            if self.image:
                other = self.constant(*self.one((), (1,), (size, 1, 1), (1, size, 1, 1), (7,), (6, 1), (6, 7)))
            else:
                other = self.constant(*self.one((), (1,), (size,), (1, size), (3, 1)))
            swapped = op != "Div" and self.one(True, False)
            self.add(op, [other, self.last] if swapped else [self.last, other])

    def linear(self) -> None:
        size, out = self.size, self.one(2, 6, 8)
        op = self.one("Conv", "ConvTranspose") if self.image else self.one("Gemm", "MatMul")
        self.size = out
        if op == "MatMul":
            self.add(op, [self.last, self.constant(size, out)])
        elif op == "Gemm":
            turned = self.one(0, 1)
            inputs = [self.last, self.constant(*((out, size) if turned else (size, out)))]
            if self.one(True, True, False):
                inputs.append(self.constant(*self.one((), (1,), (out,), (1, out), (3, 1), (3, out))))
            self.add(op, inputs, transB=turned, alpha=0.5, beta=self.one(0.0, 1.0, 2.0))
        else:
            kernel, group = self.one(1, 3), self.one(1, 2)
            dims = (out, size // group) if op == "Conv" else (size, out // group)
            inputs = [self.last, self.constant(*dims, kernel, kernel)]
            if self.one(True, False):
                inputs.append(self.constant(out))
            self.add(op, inputs, group=group, pads=[kernel // 2] * 4)

    def build(self) -> onnx.ModelProto:
        for _ in range(self.one(1, 2, 3)):
            for _ in range(self.one(0, 1, 2)):
                self.affine()
            self.linear()
            for _ in range(self.one(0, 1, 2)):
                self.affine()
        self.give(self.last)
        inputs = [onnx.helper.make_tensor_value_info("x", 1, self.shape)]
        graph = onnx.helper.make_graph(self.nodes, "chain", inputs, self.outputs, self.weights)
        return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)


def test_a_bias_of_the_wrong_length_is_left_alone() -> None:
    """No runtime takes such a Conv, but shape inference does, so that it comes to us."""
    text = """g (float[1,3,4,4] x) => (float[1,2,4,4] y) <float[2,3,1,1] W, float[5] b, float[2] s, float[2] v>
              { c = Conv(x, W, b)  y = BatchNormalization(c, s, s, s, v) }"""
    changes = _run(ir.from_proto(_proto(text)))
    assert [change.guard for change in changes] == ["bias_is_per_channel"]
