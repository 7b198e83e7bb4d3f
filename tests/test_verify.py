"""The verifier: silent on sound models, and each check says no to a graph that only it catches."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxslim_core.model import load
from onnxslim_core.verify import CHECKS, STRUCTURE, Interface, verify

FLOAT = TensorProto.FLOAT


def info(name: str, shape: list[int | str] | None, kind: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def body(result: str) -> onnx.GraphProto:
    return helper.make_graph([helper.make_node("Add", ["h", "w"], [result])], "body", [], [info(result, ["N", 4])])


def sound() -> ir.Model:
    """A MatMul, and an If whose branches capture its result and its bias."""
    nodes = [
        helper.make_node("MatMul", ["x", "m"], ["h"], name="mul"),
        helper.make_node("If", ["c"], ["i"], name="if", then_branch=body("t"), else_branch=body("e")),
        helper.make_node("Relu", ["i"], ["y"], name="relu"),
    ]
    weights = [
        numpy_helper.from_array(np.ones((300, 4), np.float32), "m"),
        numpy_helper.from_array(np.ones(4, np.float32), "w"),
    ]
    inputs = [info("x", ["N", 300]), info("c", [], TensorProto.BOOL)]
    graph = helper.make_graph(nodes, "g", inputs, [info("y", ["N", 4]), info("h", ["N", 4])], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return load(model).ir


def node(model: ir.Model, name: str) -> ir.Node:
    return next(n for n in model.graph if n.name == name)


def branch(model: ir.Model, name: str) -> ir.Graph:
    return node(model, "if").attributes[name].as_graph()


def reversed_nodes(model: ir.Model) -> None:
    relu = node(model, "relu")
    model.graph.remove(relu)
    model.graph.insert_before(node(model, "if"), relu)


def captured_too_late(model: ir.Model) -> None:
    mul = node(model, "mul")
    model.graph.remove(mul)
    model.graph.append(mul)


def named_twice(model: ir.Model) -> None:
    node(model, "if").outputs[0].name = "h"


def unread_twice(model: ir.Model) -> None:
    for _ in range(2):
        twin = ir.node("Neg", [model.graph.inputs[0]])
        twin.outputs[0].name = "twin"
        model.graph.append(twin)


def weight_named_like_a_value(model: ir.Model) -> None:
    node(model, "if").outputs[0].name = "w"


def reads_a_removed_value(model: ir.Model) -> None:
    node(model, "relu").replace_input_with(0, ir.Value(name="gone", type=ir.TensorType(ir.DataType.FLOAT)))


def reads_a_removed_node(model: ir.Model) -> None:
    inner = branch(model, "then_branch")
    orphan = ir.node("Neg", [inner[0].inputs[0]])
    orphan.outputs[0].name = "orphan"
    inner[0].replace_input_with(1, orphan.outputs[0])


def returns_a_removed_value(model: ir.Model) -> None:
    model.graph.outputs[1] = ir.Value(name="h")


def lost_its_data(model: ir.Model) -> None:
    model.graph.initializers["w"].const_value = None


def reads_from_the_other_branch(model: ir.Model) -> None:
    add = branch(model, "then_branch")[0]
    extra = ir.node("Neg", [add.inputs[0]])
    extra.outputs[0].name = "extra"
    branch(model, "else_branch").insert_before(branch(model, "else_branch")[0], extra)
    add.replace_input_with(0, extra.outputs[0])


def shadowed_by_a_weight(model: ir.Model) -> None:
    tensor = ir.tensor(np.zeros(4, np.float32), name="w")
    value = ir.Value(name="w", const_value=tensor, shape=ir.Shape([4]), type=ir.TensorType(ir.DataType.FLOAT))
    branch(model, "then_branch").register_initializer(value)


def defined_outside_as_well(model: ir.Model) -> None:
    branch(model, "then_branch")[0].outputs[0].name = "i"


def cut_without_its_shape(model: ir.Model) -> None:
    model.graph.initializers["m"].const_value = ir.tensor(np.ones((300, 3), np.float32), name="m")


def cast_without_its_type(model: ir.Model) -> None:
    model.graph.initializers["w"].const_value = ir.tensor(np.ones(4, np.float16), name="w")


def cut_on_one_side_only(model: ir.Model) -> None:
    value = model.graph.initializers["w"]
    value.const_value, value.shape = ir.tensor(np.ones(3, np.float32), name="w"), ir.Shape([3])


def large_weight_cut_on_one_side_only(model: ir.Model) -> None:
    value = model.graph.initializers["m"]
    value.const_value, value.shape = ir.tensor(np.ones((299, 4), np.float32), name="m"), ir.Shape([299, 4])


def no_such_operator(model: ir.Model) -> None:
    node(model, "relu").op_type = "Rellu"


def stale_shape(model: ir.Model) -> None:
    node(model, "if").outputs[0].shape = ir.Shape(["N", 5])
    node(model, "if").outputs[0].type = ir.TensorType(ir.DataType.FLOAT)


BROKEN: list[tuple[Callable[[ir.Model], None], str, str]] = [
    (reversed_nodes, "sorted", "Relu 'relu' comes before If 'if'"),
    (captured_too_late, "sorted", "comes before MatMul 'mul', whose 'h'"),
    (named_twice, "single assignment", "'h' is defined twice"),
    (unread_twice, "single assignment", "'twin' is defined twice"),
    (weight_named_like_a_value, "single assignment", "'w' is defined twice"),
    (reads_a_removed_value, "no dangling value", "'gone'"),
    (reads_a_removed_node, "no dangling value", "'orphan'"),
    (returns_a_removed_value, "no dangling value", "output 'h'"),
    (lost_its_data, "no dangling value", "'w' has no data"),
    (reads_from_the_other_branch, "captures intact", "'extra' from a graph that is not around it"),
    (shadowed_by_a_weight, "captures intact", "another value of that name is nearer"),
    (shadowed_by_a_weight, "unique names", "'w' is defined in a body"),
    (defined_outside_as_well, "unique names", "'i' is defined in a body"),
    (cut_without_its_shape, "weights fit", "'m' is declared as [300,4] and holds [300, 3]"),
    (cast_without_its_type, "weights fit", "'w' is declared as FLOAT and holds FLOAT16"),
    (cut_on_one_side_only, "types infer", ""),
    (large_weight_cut_on_one_side_only, "types infer", ""),
    (no_such_operator, "types infer", "Rellu"),
    (stale_shape, "types infer", ""),
]


def test_a_sound_model_passes_every_check() -> None:
    model = sound()
    assert verify(model, Interface.of(model)) == []


@pytest.mark.parametrize(("breaks", "check", "words"), BROKEN, ids=lambda x: getattr(x, "__name__", None))
def test_broken_graphs_are_caught(breaks: Callable[[ir.Model], None], check: str, words: str) -> None:
    model = sound()
    interface = Interface.of(model)
    breaks(model)
    found = verify(model, interface)
    assert any(line.startswith(f"{check}: ") and words in line for line in found), found
    assert all("\n" not in line for line in found)


def test_every_check_has_an_example_that_only_it_catches() -> None:
    """A check that nobody can witness would be deleted."""
    alone = set()
    for breaks, _, _ in BROKEN:
        model = sound()
        breaks(model)
        names = {check.name for check in STRUCTURE if check.run(model)}
        if not names and verify(model):
            names = {"types infer"}
        if len(names) == 1:
            alone |= names
    assert alone == {check.name for check in CHECKS}


CHANGES: list[tuple[str, Callable[[ir.Model], object]]] = [
    ("outputs were 'y', 'h' and are 'h', 'y'", lambda m: m.graph.outputs.reverse()),
    ("outputs were 'y', 'h' and are 'y'", lambda m: m.graph.outputs.pop()),
    ("inputs were 'x', 'c' and are 'x', 'z'", lambda m: setattr(m.graph.inputs[1], "name", "z")),
    ("input was .*FLOAT.* and is .*DOUBLE", lambda m: setattr(m.graph.inputs[0], "type", ir.TensorType(ir.DataType.DOUBLE))),
    (r"input was .*\('N', 300\).* and is .*\('M', 300\)", lambda m: setattr(m.graph.inputs[0], "shape", ir.Shape(["M", 300]))),
    ("input was .* and is .*None", lambda m: setattr(m.graph.inputs[0], "shape", None)),
]  # fmt: skip


@pytest.mark.parametrize(("words", "change"), CHANGES, ids=lambda x: x if isinstance(x, str) else "")
def test_a_changed_interface_is_named(words: str, change: Callable[[ir.Model], object]) -> None:
    import re

    model = sound()
    interface = Interface.of(model)
    change(model)
    found = interface.problems(model)
    assert len(found) == 1
    assert re.search(words, found[0])
    assert f"interface: {found[0]}" in verify(model, interface)


def test_what_did_not_infer_before_proves_nothing() -> None:
    """Files with wrong value_info are common and run; a pass is not blamed for them (T26)."""
    model = sound()
    stale_shape(model)
    assert not Interface.of(model).infers
    assert verify(model, Interface.of(model)) == []
    assert verify(model)
    assert verify(model, Interface.of(model, may_infer=True))


def test_other_domains_are_not_judged() -> None:
    graph = helper.make_graph(
        [helper.make_node("Magic", ["x"], ["h"], domain="com.vendor"), helper.make_node("Relu", ["h"], ["y"])],
        "g",
        [info("x", [2])],
        [info("y", [2])],
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.vendor", 1)]
    assert verify(load(helper.make_model(graph, opset_imports=imports, ir_version=8)).ir) == []


def test_sibling_bodies_may_repeat_names() -> None:
    model = sound()
    branch(model, "else_branch")[0].outputs[0].name = "t"
    assert verify(model) == []


def test_weights_are_not_read() -> None:
    """Verifying costs nothing per weight: the large ones never become part of a proto."""
    model = sound()

    def read() -> ir.TensorProtocol:
        raise AssertionError("a large weight was read")

    value = model.graph.initializers["m"]
    value.const_value = ir.LazyTensor(read, dtype=ir.DataType.FLOAT, shape=ir.Shape([300, 4]), name="m")
    assert verify(model, Interface.of(model)) == []


def test_structure_is_checked_in_linear_time() -> None:
    """16,000 nodes in well under a second; printed, and bounded so loosely that only a quadratic check fails."""
    nodes = [helper.make_node("Add", [f"v{i}", "w"], [f"v{i + 1}"]) for i in range(16_000)]
    weights = [numpy_helper.from_array(np.ones(2, np.float32), "w")]
    graph = helper.make_graph(nodes, "g", [info("v0", [2])], [info("v16000", [2])], weights)
    model = load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)).ir
    start = time.perf_counter()
    assert [problem for check in STRUCTURE for problem in check.run(model)] == []
    seconds = time.perf_counter() - start
    print(f"structural checks of 16,000 nodes: {seconds:.2f} s")
    assert seconds < 10
