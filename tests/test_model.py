"""Models go in and out without loss, are never changed behind their owner's back, and are written whole or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxslim_core import _files
from onnxslim_core import model as model_module
from onnxslim_core._emit import write_node
from onnxslim_core.errors import InternalError, InvalidModel, MeasureError, ModelError
from onnxslim_core.model import Model, load, save, wrap
from onnxslim_core.verify import verify
from tests.oracles import run, session

FLOAT = TensorProto.FLOAT


def info(name: str, shape: list[int | str | None] | None = None, kind: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def weight(name: str, *shape: int, seed: int = 0) -> onnx.TensorProto:
    return numpy_helper.from_array(np.random.default_rng(seed).standard_normal(shape).astype(np.float32), name)


def model_of(graph: onnx.GraphProto, **options: object) -> onnx.ModelProto:
    options.setdefault("opset_imports", [helper.make_opsetid("", 17)])
    options.setdefault("ir_version", 8)
    return helper.make_model(graph, **options)


def net(width: int = 64) -> onnx.ModelProto:
    """The product x @ w + b, with weights that are large enough for external data."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Add", ["h", "b"], ["y"])]
    return model_of(
        helper.make_graph(
            nodes,
            "net",
            [info("x", ["N", 32])],
            [info("y", ["N", width])],
            [weight("w", 32, width), weight("b", width)],
        )
    )


def meta(holder: object, *pairs: str) -> None:
    for pair in pairs:
        holder.metadata_props.add(key=pair, value=f"value of {pair}")  # type: ignore[attr-defined]


def sparse(name: str) -> onnx.SparseTensorProto:
    values = numpy_helper.from_array(np.array([1.5, -2], np.float32), name)
    return helper.make_sparse_tensor(values, numpy_helper.from_array(np.array([0, 5], np.int64), ""), [2, 3])


def branch(weight_name: str, result: str) -> onnx.GraphProto:
    """A body that reads the outer value `h` and holds a weight of its own."""
    graph = helper.make_graph(
        [helper.make_node("Add", ["h", weight_name], [result], name=f"add/{result}")],
        f"body of {result}",
        [],
        [info(result, [2, 3])],
        [weight(weight_name, 2, 3, seed=5)],
        doc_string="a body",
    )
    meta(graph, "body")
    return graph


def rich() -> onnx.ModelProto:
    """One of everything that a library is known to lose, as canonical as a file can be."""
    nodes = [
        helper.make_node("Relu", ["x", ""], ["h"], name="a/b:c ä", doc_string="doc of a node"),
        helper.make_node("If", ["cond"], ["i"], then_branch=branch("wt", "rt"), else_branch=branch("we", "re")),
        helper.make_node("Constant", [], ["c"], sparse_value=sparse("")),
        helper.make_node("Twice", ["i"], ["t"], domain="my.ops", overload="fast"),
        helper.make_node("Vendor", ["t", "s", "c"], ["v", "", "u"], domain="com.vendor", words=["a", "ü"]),
    ]
    nodes[0].attribute.append(onnx.AttributeProto(name="none", type=onnx.AttributeProto.INTS))
    nodes[0].attribute.append(onnx.AttributeProto(name="raw", type=onnx.AttributeProto.STRING, s=b"\xff\xfe"))
    nodes[0].attribute.append(
        onnx.AttributeProto(name="raws", type=onnx.AttributeProto.STRINGS, strings=[b"\xff", b"a"])
    )
    map_type = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(FLOAT, []))
    nodes[4].attribute.append(helper.make_attribute("maps", helper.make_sequence_type_proto(map_type)))
    nodes[4].attribute.append(helper.make_attribute("optional", helper.make_optional_type_proto(map_type)))
    nodes[4].attribute.append(onnx.AttributeProto(name="sparse", type=onnx.AttributeProto.SPARSE_TENSORS))
    nodes[4].attribute[-1].sparse_tensors.extend([sparse("one"), sparse("two")])
    nodes[4].attribute.append(helper.make_attribute("tensors", [weight("inner", 2), weight("other", 3)]))
    meta(nodes[0], "zeta", "alpha")
    inputs = [info("x", [2, 3]), info("cond", [], TensorProto.BOOL), info("unread", ["N", None, 0, -1])]
    inputs[0].type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    inputs[0].type.denotation = "IMAGE"
    inputs[0].doc_string = "doc of an input"
    meta(inputs[0], "input")
    outputs = [
        helper.make_value_info("v", helper.make_sequence_type_proto(map_type)),
        info("i", [2, 3]),
        helper.make_value_info("u", helper.make_optional_type_proto(helper.make_tensor_type_proto(FLOAT, [2]))),
    ]
    kept = info("h", [2, 3])
    kept.doc_string = "doc of a value"
    meta(kept, "value")
    graph = helper.make_graph(nodes, "g/ü", inputs, outputs, [weight("unused", 4)], "doc of a graph", [kept])
    graph.sparse_initializer.append(sparse("s"))
    graph.initializer[0].doc_string = "doc of a weight"
    meta(graph.initializer[0], "weight")
    graph.quantization_annotation.add(tensor_name="h").quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="k")
    meta(graph, "graph")
    function = helper.make_function(
        "my.ops",
        "Twice",
        ["a"],
        ["b"],
        [helper.make_node("Add", ["a", "a"], ["b"], name="n")],
        [helper.make_opsetid("", 18)],
        ["needed"],
        [helper.make_attribute("default", 2.5)],
        doc_string="doc of a function",
        overload="fast",
        value_info=[info("b", [2, 3])],
    )
    meta(function, "function")
    model = model_of(
        graph,
        functions=[function],
        opset_imports=[
            helper.make_opsetid("", 19),
            helper.make_opsetid("my.ops", 1),
            helper.make_opsetid("com.vendor", 7),
        ],
        ir_version=10,
        producer_name="pytest",
        producer_version="1.0",
        domain="org.example",
        model_version=42,
        doc_string="doc of a model",
    )
    meta(model, "zeta", "alpha")
    training = model.training_info.add()
    training.algorithm.CopyFrom(helper.make_graph([], "step", [], []))
    training.update_binding.add(key="unused", value="unused")
    return model


def typed(kind: int, values: list[Any], dims: list[int]) -> onnx.TensorProto:
    return helper.make_tensor("t", kind, dims, values)


def bytes_equal(a: onnx.TensorProto, b: onnx.TensorProto) -> bool:
    left, right = numpy_helper.to_array(a), numpy_helper.to_array(b)
    if left.dtype.kind in "OS":
        return bool(np.array_equal(left, right))
    return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()


# --- nothing is lost -------------------------------------------------------------------------------------------------


def test_round_trip_keeps_every_field() -> None:
    source = rich()
    assert load(source).to_proto() == source
    assert load(source.SerializeToString()).to_proto() == source


def test_round_trip_through_a_file_keeps_every_field(tmp_path: Path) -> None:
    save(load(rich()), tmp_path / "m.onnx")
    assert onnx.load(tmp_path / "m.onnx") == rich()


def test_copies_keep_every_field() -> None:
    model = load(rich())
    assert model.copy().to_proto() == rich()
    assert load(model).to_proto() == rich()
    assert wrap(model.ir.clone()).to_proto() == rich()
    assert load(model.to_ir()).to_proto() == rich()


def test_single_nodes_are_written_with_what_is_carried() -> None:
    assert [write_node(node) for node in load(rich()).ir.graph] == list(rich().graph.node)


def test_sparse_initializer_reads_as_dense() -> None:
    model = load(rich()).ir
    tensor = model.graph.initializers["s"].const_value
    assert tensor is not None
    np.testing.assert_array_equal(tensor.numpy(), np.array([[1.5, 0, 0], [0, 0, -2]], np.float32))
    constant = next(node for node in model.graph if node.op_type == "Constant").outputs[0]
    found = ir.convenience.get_const_tensor(constant)
    assert found is not None
    np.testing.assert_array_equal(found.numpy(), tensor.numpy())


def test_sparse_initializer_that_is_replaced_becomes_dense() -> None:
    model = load(rich())
    model.ir.graph.initializers["s"].const_value = ir.tensor(np.ones((2, 3), np.float32), name="s")
    proto = model.to_proto()
    assert not proto.graph.sparse_initializer
    assert [t.name for t in proto.graph.initializer] == ["unused", "s"]


def test_training_information_goes_with_the_weights_it_trains() -> None:
    model = load(rich())
    assert len(model.to_proto().training_info) == 1
    model.ir.graph.initializers.pop("unused")
    assert not model.to_proto().training_info


TYPED = [
    (TensorProto.FLOAT, [1.5, -0.0], [2]),
    (TensorProto.DOUBLE, [1e300, -2.0], [2]),
    (TensorProto.FLOAT16, [1.5, -2.0, 65504.0], [3]),
    (TensorProto.BFLOAT16, [1.5, -2.0], [2]),
    (TensorProto.FLOAT8E4M3FN, [1.5, -2.0], [2]),
    (TensorProto.FLOAT8E5M2, [1.5], [1]),
    (TensorProto.INT4, [1, -8, 7], [3]),
    (TensorProto.UINT4, [1, 15, 7], [3, 1]),
    (TensorProto.INT8, [-128, 127], [2]),
    (TensorProto.UINT8, [255], []),
    (TensorProto.INT16, [-5], [1]),
    (TensorProto.UINT16, [65535], [1]),
    (TensorProto.INT32, [-(2**31)], [1]),
    (TensorProto.UINT32, [2**32 - 1], [1]),
    (TensorProto.INT64, [-(2**63)], [1]),
    (TensorProto.UINT64, [2**64 - 1], [1]),
    (TensorProto.BOOL, [True, False], [2]),
    (TensorProto.STRING, ["a", "ü"], [2]),
    (TensorProto.COMPLEX64, [1 + 2j, -3j], [2]),
    (TensorProto.FLOAT, [], [0, 3]),
]


@pytest.mark.parametrize(("kind", "values", "dims"), TYPED)
def test_tensors_in_typed_fields_keep_their_bits(kind: int, values: list[object], dims: list[int]) -> None:
    """float16, bfloat16 and bool live in int32_data, 4-bit values two to a byte; all are written as raw_data (T11)."""
    graph = helper.make_graph([], "g", [], [], [typed(kind, values, dims)])
    model = load(model_of(graph))
    written = model.to_proto().graph.initializer[0]
    assert bytes_equal(written, graph.initializer[0])
    assert kind == TensorProto.STRING or not values or written.HasField("raw_data")
    found = model.ir.graph.initializers["t"].const_value
    assert found is not None
    if kind != TensorProto.STRING:
        assert found.numpy().tobytes() == numpy_helper.to_array(graph.initializer[0]).tobytes()


def test_attributes_without_a_type_get_the_one_of_their_field() -> None:
    """The first IR versions did not store the type of an attribute."""
    node = helper.make_node("LeakyRelu", ["x"], ["y"], alpha=0.25)
    node.attribute[0].ClearField("type")
    model = model_of(helper.make_graph([node], "g", [info("x", [2])], [info("y", [2])]))
    out = load(model).to_proto()
    assert out.graph.node[0].attribute[0] == helper.make_attribute("alpha", 0.25)
    assert not node.attribute[0].type


def test_old_function_types_stay_in_the_main_graph() -> None:
    """Before IR version 10 a function's value_info is in the main graph under a long name."""
    function = helper.make_function(
        "d", "F", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], [helper.make_opsetid("", 17)]
    )
    graph = helper.make_graph(
        [helper.make_node("F", ["x"], ["y"], domain="d")], "g", [info("x", [2])], [info("y", [2])]
    )
    graph.value_info.append(info("d::F/b", [2]))
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("d", 1)]
    source = model_of(graph, functions=[function], opset_imports=imports)
    assert load(source).to_proto() == source


def test_no_value_info_for_initializers_unless_it_says_more() -> None:
    source = net()
    plain, telling = info("w", [32, 64]), info("b", [64])
    telling.doc_string = "the bias"
    source.graph.value_info.extend([plain, telling, info("gone", [1])])
    assert [v.name for v in load(source).to_proto().graph.value_info] == ["b"]


def test_an_input_that_is_an_output_keeps_its_type() -> None:
    graph = helper.make_graph([], "g", [info("x", [2, "N"])], [onnx.ValueInfoProto(name="x")])
    proto = load(model_of(graph)).to_proto()
    assert proto.graph.input[0] == info("x", [2, "N"])


def test_zipmap_goes_through_and_runs(tmp_path: Path) -> None:
    """A scikit-learn classifier returns a sequence of maps, which onnx_ir cannot hold."""
    nodes = [
        helper.make_node(
            "LinearClassifier", ["x"], ["label", "scores"], domain="ai.onnx.ml", coefficients=[1.0, -1, 0.5, 2],
            intercepts=[0.1, 0.2], classlabels_ints=[0, 1], post_transform="SOFTMAX",
        ),
        helper.make_node("ZipMap", ["scores"], ["probabilities"], domain="ai.onnx.ml", classlabels_int64s=[0, 1]),
    ]  # fmt: skip
    map_type = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(FLOAT, []))
    outputs = [
        info("label", ["N"], TensorProto.INT64),
        helper.make_value_info("probabilities", helper.make_sequence_type_proto(map_type)),
    ]
    source = model_of(
        helper.make_graph(nodes, "g", [info("x", ["N", 2])], outputs),
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 2)],
    )
    save(load(source), tmp_path / "m.onnx")
    feeds = {"x": np.array([[1, 2], [3, -4]], np.float32)}
    labels, maps = run(onnx.load(tmp_path / "m.onnx"), feeds)
    expected_labels, expected_maps = run(source, feeds)
    np.testing.assert_array_equal(labels, expected_labels)
    assert maps == expected_maps


def test_device_configurations_come_along() -> None:
    source = net()
    source.ir_version = 11
    source.configuration.add(name="two", num_devices=2, device=["a", "b"])
    entry = source.graph.node[0].device_configurations.add(configuration_id="two", pipeline_stage=1)
    spec = entry.sharding_spec.add(tensor_name="w", device=[0, 1])
    spec.sharded_dim.add(axis=1).simple_sharding.add(dim_value=32, num_shards=2)
    assert load(source).to_proto() == source
    assert load(source).copy().to_proto() == source


def test_a_program_of_pytorch_is_taken_by_its_graph() -> None:
    """PyTorch's exporter returns an object that holds an onnx_ir model, whose weights only know how to be read."""

    class Program:
        model = ir.from_proto(net())

    tensor = Program.model.graph.initializers["w"].const_value
    assert tensor is not None
    array = tensor.numpy()
    lazy = ir.LazyTensor(lambda: ir.tensor(array), dtype=ir.DataType.FLOAT, shape=ir.Shape([32, 64]), name="w")
    Program.model.graph.initializers["w"].const_value = lazy
    assert load(Program()).to_proto() == net()


# --- nobody else's model is changed ----------------------------------------------------------------------------------


def rename_everything(model: Model) -> None:
    for node in model.ir.graph:
        for value in node.outputs:
            value.name = f"{value.name}/new"
    for value in list(model.ir.graph.initializers.values()):
        value.name = f"{value.name}/new"
    model.ir.graph.metadata_props["added"] = "yes"
    model.ir.metadata_props["added"] = "yes"


def test_source_proto_is_never_changed() -> None:
    source = rich()
    before = source.SerializeToString(deterministic=True)
    rename_everything(load(source))
    load(source).to_proto().graph.initializer[0].raw_data = b""
    assert source.SerializeToString(deterministic=True) == before


def test_source_ir_model_is_never_changed() -> None:
    source = ir.from_proto(net())
    before = ir.to_proto(source).SerializeToString(deterministic=True)
    rename_everything(load(source))
    assert ir.to_proto(source).SerializeToString(deterministic=True) == before


def test_copies_are_independent_but_share_weights() -> None:
    model = load(rich())
    node = next(iter(model.ir.graph))
    node.meta["mine"] = node.outputs[0].meta["mine"] = 7
    copy = model.copy()
    twin = next(iter(copy.ir.graph))
    assert twin is not node
    assert twin.meta["mine"] == twin.outputs[0].meta["mine"] == 7
    ours, theirs = (m.ir.graph.initializers["unused"].const_value for m in (model, copy))
    assert ours is theirs
    rename_everything(copy)
    assert model.to_proto() == rich()


# --- what loading changes, on record ---------------------------------------------------------------------------------


def feedable() -> onnx.ModelProto:
    source = net()
    source.ir_version = 3
    source.graph.input.extend([info("w", [32, 64]), info("b", ["M"])])
    return source


def test_initializers_among_the_inputs_become_constant_on_record() -> None:
    model = load(feedable())
    proto = model.to_proto()
    assert [v.name for v in proto.graph.input] == ["x"]
    assert proto.ir_version == 4
    assert [(c.pass_name, c.where, c.applied) for c in model.notes] == [("load", ("w", "b"), True)]
    feeds = {"x": np.ones((2, 32), np.float32)}
    np.testing.assert_array_equal(run(proto, feeds)[0], run(feedable(), feeds)[0])


def test_initializers_among_the_inputs_stay_feedable_on_demand() -> None:
    model = load(feedable(), keep_feedable=True)
    assert model.to_proto() == feedable()
    assert not model.notes
    assert load(net()).notes == []


def test_ir_version_is_four_as_soon_as_a_weight_is_no_input() -> None:
    model = load(feedable(), keep_feedable=True)
    model.ir.graph.register_initializer(
        ir.Value(name="new", const_value=ir.tensor(np.ones(1, np.float32)), shape=ir.Shape([1]))
    )
    assert model.to_proto().ir_version == 4


def test_unsorted_nodes_are_sorted_and_sorted_ones_stay() -> None:
    source = net()
    nodes = list(source.graph.node)
    del source.graph.node[:]
    source.graph.node.extend(reversed(nodes))
    assert [n.op_type for n in load(source).to_proto().graph.node] == ["MatMul", "Add"]
    assert [n.op_type for n in load(ir.from_proto(source)).to_proto().graph.node] == ["MatMul", "Add"]
    independent = model_of(
        helper.make_graph(
            [helper.make_node("Relu", ["x"], [f"y{i}"]) for i in (3, 1, 2)],
            "g",
            [info("x", [2])],
            [info(f"y{i}", [2]) for i in range(1, 4)],
        )
    )
    assert load(independent).to_proto() == independent


def test_unsorted_captures_are_sorted() -> None:
    source = rich()
    nodes = list(source.graph.node)
    del source.graph.node[:]
    source.graph.node.extend([nodes[1], nodes[0], *nodes[2:]])  # the body reads `h` before it is made
    assert load(source).to_proto() == rich()


def test_a_chain_of_many_nodes_is_no_recursion() -> None:
    count = 5000
    nodes = [helper.make_node("Relu", [f"v{i}"], [f"v{i + 1}"]) for i in range(count)]
    source = model_of(helper.make_graph(nodes[::-1], "g", [info("v0", [2])], [info(f"v{count}", [2])]))
    model = load(source)
    assert verify(model.ir) == []
    assert [n.input[0] for n in model.to_proto().graph.node][:3] == ["v0", "v1", "v2"]


# --- external data ---------------------------------------------------------------------------------------------------


def with_external(folder: Path, name: str = "m.onnx", data: str = "weights.bin") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(net(), folder / name, save_as_external_data=True, location=data, size_threshold=0)
    return folder / name


def answers(model: Path | bytes | str) -> np.ndarray:
    import onnxruntime as ort

    feeds = {"x": np.linspace(-1, 1, 64, dtype=np.float32).reshape(2, 32)}
    found: np.ndarray = ort.InferenceSession(model).run(None, feeds)[0]
    return found


def test_external_data_is_mapped_and_written_as_external_data(tmp_path: Path) -> None:
    model = load(with_external(tmp_path / "in"))
    tensor = model.ir.graph.initializers["w"].const_value
    assert tensor is not None
    base = tensor.numpy()
    while isinstance(base, np.ndarray) and base.base is not None:
        base = base.base
    assert not tensor.numpy().flags.writeable
    assert not isinstance(base, (np.ndarray, bytes)), "the weights were read, not mapped"
    (tmp_path / "out").mkdir()
    save(model, tmp_path / "out" / "n.onnx")
    assert sorted(os.listdir(tmp_path / "out")) == ["n.onnx", "n.onnx.data"]
    np.testing.assert_array_equal(answers(tmp_path / "out" / "n.onnx"), answers(tmp_path / "in" / "m.onnx"))
    proto = onnx.load(tmp_path / "out" / "n.onnx", load_external_data=False)
    assert {e.value for t in proto.graph.initializer for e in t.external_data if e.key == "location"} == {"n.onnx.data"}


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="asks the system for the pages of files")
def test_weights_that_were_read_are_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading all of a file takes a bounded part of the memory, and what is read again is right."""
    rng = np.random.default_rng(0)
    arrays = {f"w{i}": rng.random((1024, 1024)).astype(np.float32) for i in range(24)}  # 4 MB each
    nodes = [helper.make_node("Add", [f"h{i}" if i else "x", f"w{i}"], [f"h{i + 1}"]) for i in range(24)]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", FLOAT, [1024])],
        [helper.make_tensor_value_info("h24", FLOAT, [1024, 1024])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    onnx.save(helper.make_model(graph), tmp_path / "m.onnx", save_as_external_data=True, location="w.bin")
    monkeypatch.setattr(_files, "_RESIDENT", 2**23)

    def of_files() -> int:
        return int(Path("/proc/self/statm").read_text().split()[2]) * os.sysconf("SC_PAGE_SIZE")

    model = load(tmp_path / "m.onnx")
    before = of_files()
    for _ in range(2):
        for name, value in model.ir.graph.initializers.items():
            assert value.const_value is not None
            np.testing.assert_array_equal(value.const_value.numpy(), arrays[name])
            assert of_files() - before < 2**25


def test_a_large_model_is_run_from_its_own_file_while_it_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = with_external(tmp_path / "in")
    monkeypatch.setattr(model_module, "LARGE", 2**10)
    model = load(path)
    with model.session_source() as source:
        assert source != str(path), "somebody may have changed it meanwhile"
    model = load(path)
    model.seal()
    for other in (load(model), model.copy()):
        other.seal()
        with other.session_source() as source:
            assert isinstance(source, str) and source != str(path)
            np.testing.assert_array_equal(answers(source), answers(path))
    with model.session_source() as source:
        assert source == str(path)
    model.seal(False)
    with model.session_source() as source:
        assert source != str(path)


def test_external_data_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Locations are relative to the model's folder, not to the current one (T10)."""
    path = with_external(tmp_path / "in")
    monkeypatch.chdir(tmp_path)
    np.testing.assert_array_equal(
        numpy_helper.to_array(load(Path("in/m.onnx")).to_proto().graph.initializer[0]),
        numpy_helper.to_array(net().graph.initializer[0]),
    )
    monkeypatch.chdir(path.parent)
    assert load("m.onnx").nbytes == load(net()).nbytes


def test_external_data_is_written_on_demand_or_not_at_all(tmp_path: Path) -> None:
    save(load(with_external(tmp_path)), tmp_path / "one.onnx", external_data=False)
    assert onnx.load(tmp_path / "one.onnx", load_external_data=False) == net()
    save(load(net()), tmp_path / "two.onnx", external_data=True)
    assert (tmp_path / "two.onnx.data").stat().st_size >= 32 * 64 * 4
    np.testing.assert_array_equal(answers(tmp_path / "one.onnx"), answers(tmp_path / "two.onnx"))


def test_hard_links_are_read_and_links_that_leave_need_a_root(tmp_path: Path) -> None:
    """Package managers make hard links, model hubs links out of the model's folder (T66)."""
    path = with_external(tmp_path / "in")
    (tmp_path / "hard").mkdir()
    for name in ("m.onnx", "weights.bin"):
        os.link(path.with_name(name), tmp_path / "hard" / name)
    assert load(tmp_path / "hard" / "m.onnx").nbytes == load(net()).nbytes
    (tmp_path / "hub").mkdir()
    for name in ("m.onnx", "weights.bin"):
        (tmp_path / "hub" / name).symlink_to(path.with_name(name))
    with pytest.raises(InvalidModel, match="leaves the model's folder") as caught:
        load(tmp_path / "hub" / "m.onnx")
    assert "--external-data-root" in str(caught.value.hint)
    assert load(tmp_path / "hub" / "m.onnx", external_data_root=tmp_path / "in").nbytes == load(net()).nbytes


def test_a_model_without_a_folder_needs_a_root(tmp_path: Path) -> None:
    proto = onnx.load(with_external(tmp_path), load_external_data=False)
    with pytest.raises(ModelError, match="no folder"):
        load(proto)
    assert load(proto.SerializeToString(), external_data_root=tmp_path).to_proto() == net()


def test_external_data_of_an_ir_model_is_read_by_our_rules(tmp_path: Path) -> None:
    """onnx_ir refuses hard links."""
    path = with_external(tmp_path / "in")
    os.link(path.with_name("weights.bin"), tmp_path / "second")
    source = ir.load(path)
    assert load(source).to_proto() == net()
    assert isinstance(source.graph.initializers["w"].const_value, ir.ExternalTensor)


# --- sessions and sizes ----------------------------------------------------------------------------------------------


def test_session_source_is_bytes_while_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(net())
    with model.session_source() as source:
        assert isinstance(source, bytes)
        expected = answers(source)
    monkeypatch.setattr(_files, "_PROTO_LIMIT", 2**26 + 1000)
    with model.session_source() as source:
        assert isinstance(source, str)
        assert Path(source).exists()
        np.testing.assert_array_equal(answers(source), expected)
    assert not Path(source).exists()


def test_too_large_for_a_proto(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = load(net())
    monkeypatch.setattr(_files, "_PROTO_LIMIT", 2**26 + 1000)
    with pytest.raises(ModelError, match="more than a proto can hold") as caught:
        model.to_proto()
    assert "save()" in str(caught.value.hint)
    save(model, tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx.data").exists()
    monkeypatch.setattr(_files, "_PROTO_LIMIT", 1000)
    with pytest.raises(ModelError, match="2 GB"):
        save(model, tmp_path / "one.onnx", external_data=False)
    assert sorted(os.listdir(tmp_path)) == ["m.onnx", "m.onnx.data"]


def test_nbytes_counts_every_weight_once() -> None:
    assert load(net()).nbytes == (32 * 64 + 64) * 4
    model = load(rich())
    assert model.nbytes == 4 * 4 + 2 * 24 + 6 * 4 + (2 + 3) * 4


# --- writing ---------------------------------------------------------------------------------------------------------


def test_saving_is_deterministic_and_stable(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        save(load(rich()), tmp_path / name / "m.onnx")
    first = (tmp_path / "a" / "m.onnx").read_bytes()
    assert first == (tmp_path / "b" / "m.onnx").read_bytes()
    save(load(tmp_path / "a" / "m.onnx"), tmp_path / "b" / "m.onnx")
    assert first == (tmp_path / "b" / "m.onnx").read_bytes()
    assert onnx.ModelProto.FromString(first) == rich()


@pytest.mark.parametrize("external", [False, True])
def test_saving_over_the_source(tmp_path: Path, external: bool) -> None:
    """The weights may be mapped from the very file that is replaced."""
    path = tmp_path / "m.onnx"
    save(load(net()), path, external_data=external)
    model, expected = load(path), answers(path)
    save(model, path)
    save(model, path)
    np.testing.assert_array_equal(answers(path), expected)
    assert len(os.listdir(tmp_path)) == 1 + external
    assert load(path).to_proto() == net()


def test_check_sees_a_model_that_runs_before_the_target_changes(tmp_path: Path) -> None:
    path, seen = tmp_path / "m.onnx", []
    path.write_bytes(b"old")

    def check(fresh: Path) -> None:
        assert path.read_bytes() == b"old"
        seen.append(answers(fresh))

    save(load(net()), path, check=check, external_data=True)
    np.testing.assert_array_equal(seen[0], answers(path))


@pytest.mark.parametrize("error", [MeasureError("it does not run"), KeyboardInterrupt()])
def test_a_failed_check_leaves_everything_as_it_was(tmp_path: Path, error: BaseException) -> None:
    save(load(net(8)), tmp_path / "m.onnx", external_data=True)
    before = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}

    def check(fresh: Path) -> None:
        raise error

    with pytest.raises(type(error)):
        save(load(net(64)), tmp_path / "m.onnx", check=check, external_data=True)
    assert before == {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}


def test_a_failure_between_the_two_files_brings_the_old_data_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "m.onnx"
    save(load(net(32)), target, external_data=True)
    expected = answers(target)
    replace = Path.replace

    def interrupted(self: Path, to: Path) -> Path:
        if to == target:
            raise KeyboardInterrupt
        return replace(self, to)

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(load(net(64)), target, external_data=True)
    monkeypatch.undo()
    np.testing.assert_array_equal(answers(target), expected)
    assert sorted(os.listdir(tmp_path)) == ["m.onnx", "m.onnx.data"]


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    """A limit on the size of files stands in for the disk: the write fails half way."""
    pytest.importorskip("resource")
    script = (
        "import resource, sys; from onnxslim_core.model import load, save\n"
        "from onnxslim_core.errors import ModelError\n"
        "model = load(sys.argv[1]); resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "for external in (False, True):\n"
        "    try: save(model, sys.argv[2], external_data=external)\n"
        "    except ModelError as err: print(err)\n"
    )
    save(load(net()), tmp_path / "in.onnx")
    (tmp_path / "out").mkdir()
    target = tmp_path / "out" / "m.onnx"
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "in.onnx"), str(target)],
        capture_output=True, text=True, check=True, cwd=root,
    )  # fmt: skip
    assert done.stdout == f"cannot write '{target}': File too large\n" * 2
    assert os.listdir(tmp_path / "out") == []


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    model = load(net())
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"")
    for bad in (tmp_path / "folder", tmp_path / "no" / "m.onnx", tmp_path / "file" / "m.onnx", Path("/dev/null"), ""):
        with pytest.raises(ModelError) as caught:
            save(model, bad)
        assert "\n" not in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_read_only(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(ModelError, match="Permission denied"):
            save(load(net()), tmp_path / "m.onnx")
    finally:
        tmp_path.chmod(0o700)


def test_saving_keeps_the_permissions_of_the_target(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    save(load(net()), path)
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask
    path.chmod(0o640)
    save(load(net()), path)
    assert path.stat().st_mode & 0o777 == 0o640


def test_models_load_in_several_threads(tmp_path: Path) -> None:
    path, found = with_external(tmp_path), []
    threads = [threading.Thread(target=lambda: found.append(load(path).to_proto() == net())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 4


def test_saved_models_run_in_a_session_like_any_other(tmp_path: Path) -> None:
    save(load(net()), tmp_path / "m.onnx")
    assert [i.name for i in session(onnx.load(tmp_path / "m.onnx")).get_inputs()] == ["x"]


def test_a_copy_shares_weights_and_keeps_what_is_noted() -> None:
    branch = helper.make_graph([helper.make_node("Add", ["x", "w"], ["t"])], "branch", [], [info("t")])
    other = helper.make_graph([helper.make_node("Neg", ["x"], ["e"])], "other", [], [info("e")])
    node = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=other)
    inputs = [info("x", [4]), info("c", [], TensorProto.BOOL)]
    model = load(model_of(helper.make_graph([node], "g", inputs, [info("y", [4])], [weight("w", 4)])))
    model.ir.graph.node(0).meta["of a node"] = 1
    model.ir.graph.inputs[0].meta["of a value"] = 2
    copy = model.copy()
    assert copy.to_proto() == model.to_proto()
    old, new = model.ir.graph, copy.ir.graph
    assert new.node(0).meta["of a node"] == 1 and new.inputs[0].meta["of a value"] == 2
    assert new.initializers["w"] is not old.initializers["w"]
    assert new.initializers["w"].const_value is old.initializers["w"].const_value
    inner = new.node(0).attributes["then_branch"].as_graph().node(0)
    assert list(inner.inputs) == [new.inputs[0], new.initializers["w"]]  # captured from the copy, not from the original


def test_a_graph_out_of_order_is_not_copied() -> None:
    model = load(net())
    graph = model.ir.graph
    last = graph.node(1)
    graph.remove(last)
    graph.insert_before(graph.node(0), last)
    with pytest.raises(InternalError, match="what no node before it makes"):
        model.copy()
