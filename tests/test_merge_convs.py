"""MergeConvs beyond its page: what is measured, element types, and generated graphs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper
from onnxslim_core.passes._merge_probe import Probe
from onnxslim_core.passes.merge_convs import MergeConvs
from onnxslim_core.passes.normalize import Normalize

from onnxslim_core.channels.records import BATCHNORM, BatchNormRecord
from onnxslim_core.errors import MeasureError, RecipeError
from onnxslim_core.rewrite import Change, Context, Kind, apply
from onnxslim_core.verify import Interface, verify
from tests import oracles, pages

NARROW = """g (float[2,40] x) => (float[2,30] y) <float[40,10] A, float[10,30] B, float[40,4000] C, float[30] d>
    { h = MatMul(x, A)  i = MatMul(h, B)  e = MatMul(x, C)  f = ReduceSum(e)  g = Mul(f, d)  y = Add(i, g) }"""
"""A pair that takes 1.7 times the multiply-adds when merged, and 2 kB, in a model of 640 kB."""


def _proto(text: str, **arrays: str) -> onnx.ModelProto:
    lines = "".join(f"{name}: {how}\n" for name, how in arrays.items())
    (case,) = pages.read_cases("merge_convs", f"## case\n```before\n{text}\n```\n```arrays\n{lines}```\n")
    return case.before


@dataclass(frozen=True)
class _Time:
    ratio: float
    low: float
    high: float


class _Clock:
    """A clock that says what it is told, and checks that what it times answers the same."""

    def __init__(self, high: float) -> None:
        self.high = high
        self.calls = 0

    def __call__(self, reference: ir.Model, candidate: ir.Model) -> _Time:
        self.calls += 1
        before, after = ir.to_proto(reference), ir.to_proto(candidate)
        onnx.checker.check_model(before, full_check=True)
        assert len(after.graph.node) < len(before.graph.node)
        oracles.assert_equal(before, after, Kind.ALGEBRAIC)
        return _Time(0.9 * self.high, 0.8 * self.high, self.high)


def _measured(proto: onnx.ModelProto, latency: Any, **options: Any) -> tuple[ir.Model, list[Change]]:
    model = ir.from_proto(proto)
    sample = oracles.runnable_feeds(proto, wanted=1)[0]
    return model, MergeConvs(**options).run(model, Context(samples=(sample,), latency=latency))


def test_more_work_is_done_where_it_is_measured_faster() -> None:
    proto = _proto(NARROW)
    model, changes = _measured(proto, _Clock(0.97))
    assert [change.applied for change in changes] == [True]
    oracles.assert_equal(proto, ir.to_proto(model), Kind.ALGEBRAIC)


def test_more_work_is_refused_with_its_figures_where_it_is_not() -> None:
    _, (change,) = _measured(_proto(NARROW), _Clock(1.01))
    assert change.guard == "pays"
    assert change.reason == "1.71 times the multiply-adds and +2000 bytes, 0.91 of the time (0.81 to 1.01)"


def test_places_of_one_kind_are_timed_once_and_together_stay_below_the_bound() -> None:
    text = """g (float[2,40] x) => (float[2,30] y, float[2,30] z, float[2,30] w)
        <float[40,10] A, float[10,30] B, float[40,10] D, float[10,30] E, float[40,10] F, float[10,30] G, float[40,7000] C>
        { h = MatMul(x, A)  y = MatMul(h, B)  i = MatMul(x, D)  z = MatMul(i, E)
          j = MatMul(x, F)  k = MatMul(j, G)  e = MatMul(x, C)  f = ReduceSum(e)  w = Add(k, f) }"""
    clock = _Clock(0.9)
    _, changes = _measured(_proto(text), clock)
    assert clock.calls == 1
    assert [change.applied for change in changes] == [True, True, False]  # 2 kB each of 1.1 MB
    assert changes[2].reason.endswith("more than is allowed")


@pytest.mark.parametrize("options", [{"measure": "never"}, {}])
def test_nothing_is_done_by_guess(options: dict[str, str]) -> None:
    def fails(reference: ir.Model, candidate: ir.Model) -> _Time:
        raise MeasureError("no")

    _, (change,) = _measured(_proto(NARROW), fails, **options)
    assert change.reason.endswith("not measured" if options else "cannot be measured")


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(RecipeError, match="measure is auto or never"):
        MergeConvs(measure="always")


def test_equal_convs_of_one_input_are_computed_once_by_normalize() -> None:
    text = """g (float[N,3,5,6] x) => (float[N,8,5,6] y) <float[4,3,1,1] A, float[4,3,1,1] B>
        { p = Conv(x, A)  q = Conv(x, B)  y = Concat<axis=1>(p, q) }"""
    proto = _proto(text, A="constant 2", B="constant 2")
    model = ir.from_proto(proto)
    Normalize().run(model, Context())
    assert [node.op_type for node in model.graph] == ["Conv", "Concat"]


def test_float16_is_multiplied_in_float64() -> None:
    """In float16 the product of the weights would overflow on the way: 300 * 300 - 300 * 300."""
    text = (
        "g (float16[2,2] x) => (float16[2,1] y) <float16[2,2] A, float16[2,1] B> { h = MatMul(x, A)  y = MatMul(h, B) }"
    )
    proto = _proto(text, x="uniform 0.01 0.1", A="values 300 300 1 2", B="values 300 -300")
    model = ir.from_proto(proto)
    (change,) = MergeConvs().run(model, Context())
    assert change.applied
    (weight,) = (v.const_value for v in model.graph.initializers.values())
    assert weight is not None
    assert weight.dtype == ir.DataType.FLOAT16
    assert weight.numpy().reshape(-1).tolist() == [0.0, -300.0]


def test_bfloat16_stays_in_its_type() -> None:
    text = "g (bfloat16[2,4] x) => (bfloat16[2,3] y) <bfloat16[4,9] A, bfloat16[9,3] B> { h = MatMul(x, A)  y = MatMul(h, B) }"
    model = ir.from_proto(_proto(text))
    (change,) = MergeConvs().run(model, Context())
    assert change.applied
    assert {v.const_value.dtype for v in model.graph.initializers.values() if v.const_value} == {ir.DataType.BFLOAT16}


def test_a_default_that_a_caller_may_feed_is_no_constant() -> None:
    proto = _proto(
        "g (float[N,4] x) => (float[N,3] y) <float[4,9] A, float[9,3] B> { h = MatMul(x, A)  y = MatMul(h, B) }"
    )
    proto.graph.input.append(helper.make_tensor_value_info("A", 1, [4, 9]))
    model = ir.from_proto(proto)
    assert MergeConvs().run(model, Context()) == []
    assert "A" in model.graph.initializers


def test_the_record_for_scoring_channels_goes_along() -> None:
    text = """g (float[N,3,5,6] x) => (float[N,4,5,6] y) <float[2,3,1,1] A, float[2,3,1,1] B>
        { p = Conv(x, A)  q = Conv(x, B)  y = Concat<axis=1>(p, q) }"""
    model = ir.from_proto(_proto(text))
    for index, node in enumerate(list(model.graph)[:2]):
        node.meta[BATCHNORM] = BatchNormRecord(np.array([1.0, 2.0]) + index, np.array([5.0, 6.0]))
    MergeConvs().run(model, Context())
    (node,) = model.graph
    assert node.meta[BATCHNORM].gamma.tolist() == [1, 2, 2, 3]


def test_old_opsets_broadcast_otherwise_and_are_left_alone() -> None:
    text = '<ir_version: 8, opset_import: ["": 6]> g (float[2,4] x) => (float[2,3] y) <float[4,9] A, float[9,3] B>'
    model = ir.from_proto(_proto(text + "{ h = MatMul(x, A)  y = MatMul(h, B) }"))
    assert MergeConvs().run(model, Context()) == []


# Generated graphs


@pytest.mark.parametrize("willing", [False, True])
@pytest.mark.parametrize("seed", range(60))
def test_any_net_answers_the_same(seed: int, willing: bool) -> None:
    """Chains, sums, Concats and copies with every stride, padding, dilation and group; also where it does not pay."""
    proto = _Net(seed).build()
    model = ir.from_proto(proto)
    interface = Interface.of(model)
    changes = _run(model, willing)
    assert not (problems := verify(model, interface)), problems
    after = ir.to_proto(model)
    onnx.checker.check_model(after, full_check=True)
    oracles.assert_equal(proto, after, Kind.ALGEBRAIC)
    if not willing:
        names = 150 * sum(change.applied for change in changes)  # "Conv/Conv_output_0" instead of "t3"
        oracles.assert_not_bigger(ir.to_proto(ir.from_proto(proto)), after, allowed=names)
        assert not [c for c in _run(model, willing) if c.applied]


def test_nets_are_merged_for_the_most_part() -> None:
    """Else the test above would prove little."""
    actions: list[str] = []
    for seed in range(60):
        model = ir.from_proto(_Net(seed).build())
        actions += [change.action for change in _run(model, willing=True) if change.applied]
    for words in (
        "2 Conv in a row",
        "2 Gemm in a row",
        "2 MatMul in a row",
        "sum of Conv",
        "sum of MatMul",
        "its input",
    ):
        assert sum(words in action for action in actions) > 3, words
    assert sum("Conv beside" in action for action in actions) > 10
    assert sum("copies once" in action for action in actions) > 5


def _run(model: ir.Model, willing: bool) -> list[Change]:
    options = MergeConvs()
    if willing:
        object.__setattr__(options, "_probe", Probe(model, Context(), 0.0, asks=False))
        found: list[Change] = apply(options, model)
        return found
    found = options.run(model, Context())
    return found


class _Net:
    """A graph of two to four blocks, each a place for merging, or nearly one."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.rank = int(self.rng.integers(0, 3))  # spatial axes; 0: matrices
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.outputs: list[str] = []
        self.size = 3

    def one(self, *choices: Any) -> Any:
        return choices[int(self.rng.integers(len(choices)))]

    def constant(self, *dims: int) -> str:
        values = self.rng.uniform(0.3, 1.0, dims) * self.rng.choice([-1.0, 1.0], dims) / max(1, int(np.prod(dims[1:])))
        self.weights.append(numpy_helper.from_array(np.asarray(values, np.float32), f"w{len(self.weights)}"))
        return str(self.weights[-1].name)

    def add(self, op: str, inputs: list[str], **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [f"t{len(self.nodes)}"], **attributes))
        if self.rng.random() < 0.05:  # a second reader
            self.nodes.append(helper.make_node("Abs", [f"t{len(self.nodes) - 1}"], [f"t{len(self.nodes)}"]))
            self.outputs.append(f"t{len(self.nodes) - 1}")
            return f"t{len(self.nodes) - 2}"
        return f"t{len(self.nodes) - 1}"

    def linear(self, x: str, channels: int, out: int, *, same: bool = False, kind: str = "") -> str:
        """One term; `same` keeps the size of the image."""
        if not self.rank:
            return self.matrix(x, channels, out, kind or self.one("MatMul", "Gemm"))
        kernel = [self.one(1, 1, 3, 5 if same else 2) for _ in range(self.rank)]
        group = self.one(1, 1, 1, channels) if out % channels == 0 else 1
        inputs = [x, self.constant(out, channels // group, *kernel)]
        if self.one(True, False):
            inputs.append(self.constant(out))
        attributes: dict[str, Any] = {"group": group}
        if same:
            dilations = [self.one(1, 2) for _ in kernel]
            half = [d * (k - 1) // 2 for d, k in zip(dilations, kernel, strict=True)]
            attributes |= {"pads": half + half, "dilations": dilations}
        else:
            attributes["strides"] = [self.one(1, 1, 2) for _ in kernel]
            padding = self.one("none", "none", "some", "SAME_UPPER", "SAME_LOWER")
            if padding == "some":
                attributes["pads"] = [self.one(0, 1) for _ in kernel * 2]
            elif padding != "none":
                attributes["auto_pad"] = padding
            attributes["dilations"] = [
                self.one(1, 1, 2) if k > 1 and padding in ("none", "some") else 1 for k in kernel
            ]
        return self.add("Conv", inputs, **attributes)

    def matrix(self, x: str, channels: int, out: int, kind: str) -> str:
        if kind == "MatMul":
            made = self.add("MatMul", [x, self.constant(channels, out)])
            if self.one(True, False):
                operands = [made, self.constant(*self.one((), (out,), (1, out)))]
                made = self.add("Add", operands[:: self.one(1, -1)])
            return made
        turned = self.one(0, 1)
        inputs = [x, self.constant(*((out, channels) if turned else (channels, out)))]
        if self.one(True, True, False):
            inputs.append(self.constant(*self.one((), (1,), (out,), (1, out), (2, 1))))
        return self.add("Gemm", inputs, transB=turned, alpha=self.one(1.0, 0.5), beta=self.one(0.0, 1.0, 2.0))

    def chain(self, x: str) -> str:
        hidden, out = self.one(1, 4, 9), self.one(2, 3, 5)
        made = self.linear(self.linear(x, self.size, hidden), hidden, out)
        self.size = out
        return made

    def sum(self, x: str) -> str:
        out = self.one(self.size, self.size, self.size + 2)
        made = self.linear(x, self.size, out, same=True)
        for _ in range(self.one(1, 2)):
            other = x if out == self.size and self.one(True, False) else self.linear(x, self.size, out, same=True)
            if other == x and self.rank and self.one(True, False):
                norm = [self.constant(out) for _ in range(3)]
                self.weights.append(numpy_helper.from_array(np.full(out, 0.7, np.float32), f"w{len(self.weights)}"))
                other = self.add("BatchNormalization", [x, *norm, self.weights[-1].name])
            made = self.add("Add", [made, other][:: self.one(1, -1)])
        self.size = out
        return made

    def concat(self, x: str) -> str:
        parts, total, act = [], 0, self.one("", "Relu", "Sigmoid")
        kind = self.one("MatMul", "Gemm")
        for _ in range(self.one(2, 3)):
            out = self.one(1, 2, 4)
            part = self.linear(x, self.size, out, same=True, kind=kind)
            parts.append(self.add(act, [part]) if act else part)
            total += out
        if self.one(True, False, False):
            parts.insert(self.one(0, 1), x)
            total += self.size
        self.size = total
        return self.add("Concat", parts, axis=1)

    def copies(self, x: str) -> str:
        y = self.add("Tanh", [x])
        parts = self.one([y, y], [y, x, y], [x, y, x, x])
        out = self.one(2, 4)
        made = self.linear(self.add("Concat", parts, axis=self.one(1, -1 - self.rank)), self.size * len(parts), out)
        self.size = out
        return made

    def build(self) -> onnx.ModelProto:
        last = "x"
        for _ in range(self.one(2, 3, 4)):
            last = self.one(self.chain, self.chain, self.sum, self.concat, self.copies)(last)
            if self.one(True, False):
                last = self.add("Relu", [last])
        self.outputs.append(self.add("Neg", [last]))
        spatial = [59, 53][: self.rank]
        inputs = [helper.make_tensor_value_info("x", 1, [2, 3, *spatial])]
        outputs = [helper.make_tensor_value_info(name, 1, None) for name in dict.fromkeys(self.outputs)]
        graph = helper.make_graph(self.nodes, "net", inputs, outputs, self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        model = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
        del model.graph.value_info[:]
        return model
