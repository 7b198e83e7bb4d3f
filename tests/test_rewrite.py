"""The engine that runs local rewrites, and the verbs by which every pass edits a graph."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxslim_core import graph as verbs
from onnxslim_core.errors import InternalError
from onnxslim_core.rewrite import Context, Edit, Kind, Match, Rewrite, apply, weight_bytes
from onnxslim_core.verify import Interface, verify
from tests import oracles, pages


def model_of(text: str) -> ir.Model:
    (case,) = pages.read_cases("normalize", f"## x\n```before\n{text}\n```\n")
    return ir.from_proto(case.before)


def node_of(model: ir.Model, op_type: str) -> ir.Node:
    return next(node for node in verbs.all_nodes(model.graph) if node.op_type == op_type)


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in verbs.all_nodes(model.graph)]


def not_of_an_input(m: Match, options: Any) -> str | None:
    source = m.node.inputs[0]
    return "it reads an input of the graph" if source is not None and source.producer() is None else None


@dataclass(frozen=True, slots=True, kw_only=True)
class NegNeg(Rewrite):
    """-(-x) = x."""

    name: ClassVar[str] = "neg_neg"
    kind: ClassVar[Kind] = Kind.BITWISE
    ops: ClassVar[frozenset[str]] = frozenset({"Neg"})

    def match(self, node: ir.Node, model: ir.Model) -> Match | None:
        source = node.inputs[0]
        inner = source.producer() if source is not None else None
        return Match(node, model) if verbs.is_op(inner, "Neg") else None

    def rewrite(self, m: Match, edit: Edit) -> None:
        inner = m.node.inputs[0].producer()  # type: ignore[union-attr]
        edit.replace(m.node.outputs[0], inner.inputs[0])  # type: ignore[arg-type, union-attr]


@dataclass(frozen=True, slots=True, kw_only=True)
class NegToAbs(Rewrite):
    """No truth, but something to count with."""

    name: ClassVar[str] = "neg_to_abs"
    kind: ClassVar[Kind] = Kind.LOSSY
    ops: ClassVar[frozenset[str]] = frozenset({"Neg"})
    guards: ClassVar[Any] = (not_of_an_input,)

    def match(self, node: ir.Node, model: ir.Model) -> Match | None:
        return Match(node, model)

    def rewrite(self, m: Match, edit: Edit) -> None:
        made = edit.node("Abs", list(m.node.inputs), before=m.node)
        edit.replace(m.node.outputs[0], made.outputs[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class Swap(Rewrite):
    """Never comes to an end."""

    name: ClassVar[str] = "swap"
    kind: ClassVar[Kind] = Kind.BITWISE
    ops: ClassVar[frozenset[str]] = frozenset({"Add"})

    def match(self, node: ir.Node, model: ir.Model) -> Match | None:
        return Match(node, model)

    def rewrite(self, m: Match, edit: Edit) -> None:
        first, second = m.node.inputs
        edit.set_input(m.node, 0, second)
        edit.set_input(m.node, 1, first)


CHAIN = "g (float[N,3] x) => (float[N,3] y) { %s y = Relu(%s) }"


def negs(count: int) -> ir.Model:
    names = ["x", *(f"n{i}" for i in range(count))]
    return model_of(CHAIN % (" ".join(f"{b} = Neg({a})" for a, b in itertools.pairwise(names)), names[-1]))


def test_runs_to_a_fixpoint() -> None:
    model = negs(7)
    before = ir.to_proto(model.clone())
    changes = NegNeg().run(model, Context())
    assert ops(model) == ["Neg", "Relu"]
    assert [change.applied for change in changes] == [True] * 3
    oracles.assert_equal(before, ir.to_proto(model), Kind.BITWISE)
    assert not NegNeg().run(model, Context())


def test_takes_time_in_proportion_to_the_nodes() -> None:
    model = negs(4000)
    start = time.perf_counter()
    apply(NegNeg(), model)
    assert ops(model) == ["Relu"]
    assert time.perf_counter() - start < 20  # quadratic work would take minutes


def test_refusal_is_recorded_once_with_its_guard() -> None:
    model = negs(3)
    changes = apply(NegToAbs(), model)
    refusals = [change for change in changes if not change.applied]
    assert len(changes) == 3
    assert [(r.guard, r.reason) for r in refusals] == [("not_of_an_input", "it reads an input of the graph")]
    assert ops(model) == ["Neg", "Abs", "Abs", "Relu"]


def never(m: Match, options: Any) -> str | None:
    return "not this one" if m.node.op_type == "Neg" else None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpMakesAbs(NegNeg):
    """Refuses Neg of Neg; an Exp turns the Neg that it reads into Abs."""

    ops: ClassVar[frozenset[str]] = frozenset({"Neg", "Exp"})
    guards: ClassVar[Any] = (never,)

    def match(self, node: ir.Node, model: ir.Model) -> Match | None:
        source = node.inputs[0]
        inner = source.producer() if source is not None else None
        return Match(node, model) if verbs.is_op(inner, "Neg") else None

    def rewrite(self, m: Match, edit: Edit) -> None:
        value = m.node.inputs[0]
        neg = value.producer()  # type: ignore[union-attr]
        made = edit.node("Abs", list(neg.inputs), before=neg)  # type: ignore[union-attr, arg-type]
        edit.replace(value, made.outputs[0])  # type: ignore[arg-type]


def test_refusal_goes_when_its_place_changes() -> None:
    text = "g (float[N] x) => (float[N] y, float[N] z) { a = Neg(x)  b = Neg(a)  y = Relu(b)  z = Exp(a) }"
    model = model_of(text)
    changes = apply(ExpMakesAbs(), model)
    assert sorted(ops(model)) == ["Abs", "Exp", "Neg", "Relu"]
    assert [change.applied for change in changes] == [True]


def test_rewrites_without_end_are_our_error() -> None:
    model = model_of("g (float[N] x, float[N] w) => (float[N] y) { y = Add(x, w) }")
    with pytest.raises(InternalError, match="does not come to an end"):
        apply(Swap(), model)


def test_foreign_operators_are_no_anchors() -> None:
    text = '<ir_version: 8, opset_import: ["": 17, "com.vendor": 1]>\n'
    text += "g (float[N] x) => (float[N] y) { a = com.vendor.Neg(x)  y = com.vendor.Neg(a) }"
    model = model_of(text)
    assert not apply(NegNeg(), model)


def test_rewrites_in_bodies() -> None:
    model = model_of(
        """g (bool c, float[N] x) => (float[N] y) {
        b = Neg(x)
        y = If(c) <then_branch = t () => (float[N] p) { q = Neg(b)  p = Relu(q) },
                   else_branch = e () => (float[N] r) { r = Tanh(x) }> }"""
    )
    before, interface = ir.to_proto(model.clone()), Interface.of(model)
    apply(NegNeg(), model)
    assert sorted(ops(model)) == ["If", "Relu", "Tanh"]
    assert not verify(model, interface)
    oracles.assert_equal(before, ir.to_proto(model), Kind.BITWISE)


def test_replace_keeps_the_name_of_an_output() -> None:
    model = model_of("g (float[N] x) => (float[N] y, float[N] z) { a = Relu(x)  y = Neg(a)  z = Exp(y) }")
    relu, neg = node_of(model, "Relu"), node_of(model, "Neg")
    verbs.replace(neg.outputs[0], relu.outputs[0], verbs.Names(model))
    verbs.remove(neg)
    assert [v.name for v in model.graph.outputs] == ["y", "z"]
    assert relu.outputs[0].name == "y"
    assert node_of(model, "Exp").inputs[0] is relu.outputs[0]


@pytest.mark.parametrize("source", ["x", "w", "z"])
def test_replace_writes_an_identity_where_a_name_cannot_move(source: str) -> None:
    """From an input, a weight, and a value that is an output already."""
    model = model_of("g (float[2] x) => (float[2] z, float[2] y) <float[2] w> { z = Relu(x)  y = Neg(w)  u = Exp(y) }")
    values = {"x": model.graph.inputs[0], "w": model.graph.initializers["w"], "z": model.graph.outputs[0]}
    interface, old = Interface.of(model), model.graph.outputs[1]
    verbs.replace(old, values[source], verbs.Names(model))
    verbs.remove(node_of(model, "Neg"))
    assert not verify(model, interface)
    assert node_of(model, "Exp").inputs[0] is values[source]
    assert node_of(model, "Identity").inputs[0] is values[source]


def test_replace_when_a_value_is_two_outputs() -> None:
    proto = ir.to_proto(model_of("g (float[2] x) => (float[2] y) { a = Relu(x)  y = Neg(a) }"))
    model = ir.from_proto(proto)
    model.graph.outputs.append(model.graph.outputs[0])
    relu, neg = node_of(model, "Relu"), node_of(model, "Neg")
    verbs.replace(neg.outputs[0], relu.outputs[0], verbs.Names(model))
    assert [v is relu.outputs[0] for v in model.graph.outputs] == [True, True]


def test_remove_takes_what_only_the_node_needed() -> None:
    model = model_of(
        "g (float[2] x) => (float[2] y) <float[2] w, float[2] v> { a = Mul(w, v)  b = Exp(a)  c = Mul(x, b)  y = Add(x, w) }"
    )
    second = next(node for node in model.graph if node.op_type == "Mul" and not node.inputs[0].is_initializer())  # type: ignore[union-attr]
    assert verbs.remove(second) == 3
    assert ops(model) == ["Add"]
    assert list(model.graph.initializers) == ["w"]


def test_remove_detaches_what_a_body_captured() -> None:
    model = model_of(
        """g (bool c, float[2] x) => (float[2] y) {
        a = Exp(x)
        b = If(c) <then_branch = t () => (float[2] p) { p = Relu(a) }, else_branch = e () => (float[2] q) { q = Neg(a) }>
        y = Tanh(x) }"""
    )
    assert verbs.remove(node_of(model, "If")) == 2
    assert ops(model) == ["Tanh"]


def test_remove_refuses_what_is_read() -> None:
    model = model_of("g (float[2] x) => (float[2] y) { a = Exp(x)  y = Neg(a) }")
    for op_type in ("Exp", "Neg"):
        with pytest.raises(InternalError, match="is read"):
            verbs.remove(node_of(model, op_type))


def test_users_are_seen_in_bodies_and_at_outputs() -> None:
    model = model_of(
        """g (bool c, float[2] x) => (float[2] a, float[2] y) {
        a = Exp(x)
        y = If(c) <then_branch = t () => (float[2] p) { p = Relu(a) }, else_branch = e () => (float[2] q) { q = Neg(x) }> }"""
    )
    users, is_output = verbs.users_of(node_of(model, "Exp").outputs[0])
    assert [(node.op_type, index) for node, index in users] == [("Relu", 0)]
    assert is_output


def test_feedable_weight_has_no_array() -> None:
    model = model_of(
        "g (float[2] x, float[2] w) => (float[2] y) <float[2] w = {1, 2}, float[2] v = {3, 4}> { y = Sum(x, w, v) }"
    )
    node = node_of(model, "Sum")
    arrays = [verbs.array_of(value) for value in node.inputs]
    assert arrays[0] is None
    assert arrays[1] is None
    assert np.array_equal(arrays[2], [3, 4])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("value = float[2] {1.5, 2}", [1.5, 2]),
        ("value_float = 1.5", 1.5),
        ("value_floats = [1.5, 2.5]", [1.5, 2.5]),
        ("value_int = 3", 3),
        ("value_ints = [3, 4]", [3, 4]),
    ],
)
def test_array_of_every_form_of_constant(how: str, expected: float | list[float]) -> None:
    text = f"g (float[2] x) => (float[2] y) {{ c = Constant<{how}>()  d = Cast<to=1>(c)  y = Add(x, d) }}"
    found = verbs.array_of(node_of(model_of(text), "Constant").outputs[0])
    assert found is not None
    assert found.shape == np.shape(expected)
    assert np.array_equal(found, expected)


def test_new_names_are_unique_in_all_scopes_and_come_fast() -> None:
    model = model_of(
        """g (bool c, float[2] x) => (float[2] y) <float[2] w> {
        y = If(c) <then_branch = t () => (float[2] p) <float[2] v> { p = Add(x, v) },
                   else_branch = e () => (float[2] q) { q = Add(x, w) }> }"""
    )
    names = verbs.Names(model)
    assert [names.new(n) for n in ("p", "q", "v", "w", "x", "free")] == ["p_1", "q_1", "v_1", "w_1", "x_1", "free"]
    start = time.perf_counter()
    assert len({names.new("same") for _ in range(20_000)}) == 20_000
    assert time.perf_counter() - start < 5


def test_weight_bytes_counts_bodies() -> None:
    model = model_of(
        """g (bool c, float[2] x) => (float[2] y) <float[2] w> {
        y = If(c) <then_branch = t () => (float[2] p) <float[2] v> { p = Add(x, v) },
                   else_branch = e () => (float[2] q) { q = Add(x, w) }> }"""
    )
    assert weight_bytes(model) == 16


def test_edit_set_input_drops_what_is_idle() -> None:
    model = model_of("g (float[2] x) => (float[2] y) <float[2] w> { a = Exp(w)  y = Add(x, a) }")
    edit = Edit(verbs.Names(model))
    add = node_of(model, "Add")
    edit.set_input(add, 1, edit.constant(add, np.ones(2, dtype=np.float32), "ones"))
    assert ops(model) == ["Add"]
    assert list(model.graph.initializers) == ["ones"]
    onnx.checker.check_model(ir.to_proto(model))
