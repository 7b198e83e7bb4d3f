"""The border with onnx-graphsurgeon: what goes over it runs the same, what cannot is refused by name."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxslim_core import surgeon
from onnxslim_core.errors import InvalidModel, UnsupportedModel
from onnxslim_core.model import load
from onnxslim_core.verify import verify
from tests.oracles import run

FLOAT = TensorProto.FLOAT


def info(name: str, shape: list[int | str] | None = None, kind: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, [2] if shape is None else shape)


def body(result: str, *, weight: str = "w") -> onnx.GraphProto:
    return helper.make_graph([helper.make_node("Add", ["x", weight], [result])], "body", [], [info(result)])


def plain() -> onnx.ModelProto:
    """Nothing in it that onnx-graphsurgeon would lose."""
    nodes = [
        helper.make_node("Add", ["x", "w"], ["h"], name="add"),
        helper.make_node("Concat", ["h", "h"], ["y"], name="concat", axis=0),
    ]
    weights = [numpy_helper.from_array(np.array([1, 2], np.float32), "w")]
    graph = helper.make_graph(nodes, "g", [info("x")], [info("y", [4])], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


FEEDS = {"x": np.array([1, -1], np.float32)}


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """Warnings of the border, as if nothing had been said before."""
    monkeypatch.setattr(surgeon, "_said", set())
    caplog.set_level(logging.WARNING, logger="onnxslim_core.surgeon")
    return caplog


def test_there_and_back_is_the_same_model(warnings: pytest.LogCaptureFixture) -> None:
    graph = load(plain()).to_surgeon()
    assert isinstance(graph, gs.Graph)
    back = load(graph)
    assert verify(back.ir) == []
    proto = back.to_proto()
    assert [n.op_type for n in proto.graph.node] == ["Add", "Concat"]
    assert (proto.ir_version, list(proto.opset_import)) == (8, list(plain().opset_import))
    np.testing.assert_array_equal(run(proto, FEEDS)[0], run(plain(), FEEDS)[0])
    assert not warnings.records


def test_a_graph_made_by_hand_comes_in() -> None:
    """Unsorted, without an IR version, with the standard domain by its other name (T05, T09, T20)."""
    x, h = gs.Variable("x", np.float32, ["N", 3]), gs.Variable("h", np.float32)
    y = gs.Variable("y", np.float32, ["N", 4])
    w = gs.Constant("w", np.ones((3, 4), np.float32))
    late = gs.Node("Relu", inputs=[h], outputs=[y], domain="ai.onnx")
    early = gs.Node("MatMul", inputs=[x, w], outputs=[h])
    graph = gs.Graph([late, early], [x], [y], opset=17)
    model = load(graph)
    proto = model.to_proto()
    assert [n.op_type for n in proto.graph.node] == ["MatMul", "Relu"]
    assert [(o.domain, o.version) for o in proto.opset_import] == [("", 17)]
    assert proto.ir_version == 10
    assert proto.graph.input[0] == info("x", ["N", 3])
    np.testing.assert_array_equal(run(proto, {"x": np.ones((2, 3), np.float32)})[0], np.full((2, 4), 3, np.float32))
    assert [node.op for node in graph.nodes] == ["Relu", "MatMul"]
    assert graph.ir_version is None


def test_foreign_domains_are_imported_and_the_graph_is_left_alone() -> None:
    source = plain()
    graph = gs.import_onnx(source)
    graph.nodes[0].domain = "com.vendor"
    proto = load(graph).to_proto()
    assert [(o.domain, o.version) for o in proto.opset_import] == [("", 17), ("com.vendor", 1)]
    assert [(o.domain, o.version) for o in source.opset_import] == [("", 17)]


def test_a_pass_written_for_onnx_graphsurgeon_works_in_between() -> None:
    graph: Any = load(plain()).to_surgeon()
    add = next(node for node in graph.nodes if node.op == "Add")
    add.op = "Sub"
    graph.tensors()["w"].values = np.array([3, 4], np.float32)
    np.testing.assert_array_equal(run(load(graph).to_proto(), FEEDS)[0], [-2, -5, -2, -5])


def test_a_graph_that_cannot_be_written_is_an_invalid_model() -> None:
    x, y = gs.Variable("x", np.float32, [2]), gs.Variable("y", np.float32, [2])
    with pytest.raises(InvalidModel, match="cannot be written") as caught:
        load(gs.Graph([gs.Node("Relu", attrs={"bad": object()}, inputs=[x], outputs=[y])], [x], [y]))
    assert "\n" not in str(caught.value)
    with pytest.raises(InvalidModel, match="nothing makes"):
        load(gs.Graph([], [x], [y]))


def test_the_source_is_never_changed() -> None:
    source = plain()
    model = load(source)
    graph: Any = model.to_surgeon()
    graph.tensors()["w"].name = "renamed"
    graph.nodes[0].name = "renamed"
    load(graph)
    assert model.to_proto() == source == plain()


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    """That library logs to stdout, where a program's results go."""
    source = plain()
    source.graph.node[1].name = "add"  # two nodes of one name, of which it would warn
    source.graph.initializer[0].data_type = TensorProto.BFLOAT16
    source.graph.initializer[0].raw_data = bytes(4)
    load(load(source).to_surgeon())
    assert capfd.readouterr().out == ""


def lose(model: onnx.ModelProto, what: str) -> None:
    graph = model.graph
    if what == "metadata":
        graph.node[0].metadata_props.add(key="k", value="v")
    elif what == "doc strings":
        graph.node[0].doc_string = "doc"
    elif what == "the model's domain or version":
        model.domain = "org.example"
    elif what == "quantization annotations":
        entry = graph.quantization_annotation.add(tensor_name="h")
        entry.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="w")
    elif what == "denotations":
        graph.input[0].type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    elif what == "training information":
        model.training_info.add()
    elif what == "unused initializers":
        graph.initializer.append(numpy_helper.from_array(np.ones(1, np.float32), "nobody"))
    else:
        node = helper.make_node("If", ["c"], ["z"], then_branch=body("a"), else_branch=body("b"))
        graph.node.append(node)
        graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))


@pytest.mark.parametrize(
    "what",
    [
        "metadata",
        "doc strings",
        "the model's domain or version",
        "quantization annotations",
        "denotations",
        "training information",
        "unused initializers",
        "the sharing of weights that several bodies read",
    ],
)
def test_what_is_dropped_is_said_once(what: str, warnings: pytest.LogCaptureFixture) -> None:
    source = plain()
    lose(source, what)
    model = load(source)
    for _ in range(3):
        model.to_surgeon()
    assert [r.getMessage() for r in warnings.records] == [f"onnx-graphsurgeon drops from this model: {what}"]


def test_a_default_of_an_input_is_dropped_with_a_word(warnings: pytest.LogCaptureFixture) -> None:
    source = plain()
    source.graph.input.append(info("w"))
    load(source, keep_feedable=True).to_surgeon()
    assert "inputs that have a default" in warnings.text


def attribute(**fields: object) -> onnx.AttributeProto:
    return onnx.AttributeProto(name="bad", **fields)  # type: ignore[arg-type]


A = onnx.AttributeProto
TENSOR = numpy_helper.from_array(np.ones(2, np.float32), "t")
REFUSED_ATTRIBUTES = {
    "TYPE_PROTO": helper.make_attribute("bad", helper.make_tensor_type_proto(FLOAT, [2])),
    "SPARSE_TENSOR": helper.make_attribute(
        "bad", helper.make_sparse_tensor(TENSOR, numpy_helper.from_array(np.array([0, 1])), [4])
    ),
    "TENSORS": attribute(type=A.TENSORS, tensors=[TENSOR]),
    "GRAPHS": attribute(type=A.GRAPHS, graphs=[body("z")]),
    "an empty list": attribute(type=A.INTS),
    "not UTF-8": attribute(type=A.STRING, s=b"\xff"),
    "type INT4": helper.make_attribute("bad", helper.make_tensor("t", TensorProto.INT4, [2], [1, 2])),
}


@pytest.mark.parametrize("what", REFUSED_ATTRIBUTES)
def test_attributes_that_it_loses_or_crashes_on_are_refused(what: str) -> None:
    source = plain()
    source.graph.node[0].attribute.append(REFUSED_ATTRIBUTES[what])
    with pytest.raises(UnsupportedModel, match=what) as caught:
        load(source).to_surgeon()
    assert "'bad' of node 'add'" in str(caught.value)


@pytest.mark.parametrize(
    "kind",
    [
        helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(FLOAT, [])),
        helper.make_optional_type_proto(helper.make_tensor_type_proto(FLOAT, [2])),
        helper.make_sparse_tensor_type_proto(FLOAT, [2]),
        helper.make_sequence_type_proto(helper.make_sequence_type_proto(helper.make_tensor_type_proto(FLOAT, [2]))),
    ],
    ids=lambda kind: kind.WhichOneof("value"),
)
def test_types_that_it_loses_or_crashes_on_are_refused(kind: onnx.TypeProto) -> None:
    source = plain()
    source.graph.input.append(helper.make_value_info("odd", kind))
    with pytest.raises(UnsupportedModel, match="cannot hold the type of 'odd'"):
        load(source).to_surgeon()


def test_weights_that_it_cannot_write_are_refused() -> None:
    """It writes FLOAT8E4M3FNUZ as FLOAT8E4M3FN, and cannot store 4-bit values it has read (T04)."""
    for kind in (TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT4E2M1, TensorProto.FLOAT8E4M3FNUZ):
        source = plain()
        source.graph.initializer.append(helper.make_tensor("odd", kind, [2], [1, 0]))
        with pytest.raises(UnsupportedModel, match="initializer 'odd' of type"):
            load(source).to_surgeon()


def test_functions_come_along() -> None:
    source = plain()
    source.opset_import.add(domain="d", version=1)
    relu = helper.make_node("Relu", ["a"], ["b"])
    source.functions.append(helper.make_function("d", "F", ["a"], ["b"], [relu], [helper.make_opsetid("", 17)]))
    source.graph.node[0].output[0] = "g"
    source.graph.node.insert(1, helper.make_node("F", ["g"], ["h"], domain="d", name="call"))
    back = load(load(source).to_surgeon()).to_proto()
    np.testing.assert_array_equal(run(back, FEEDS)[0], run(source, FEEDS)[0])
    source.functions[0].overload = source.graph.node[1].overload = "fast"
    source.ir_version = 10
    with pytest.raises(UnsupportedModel, match="overload"):
        load(source).to_surgeon()
