"""Files nobody should trust: each is refused in one line, by a class that says what it is, before memory is spent."""

from __future__ import annotations

import os
import random
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxslim_core.errors import InvalidModel, ModelError, SlimError, UnsupportedModel
from onnxslim_core.model import Limits, load

FLOAT = TensorProto.FLOAT


def info(name: str, shape: list[int] | None = None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, FLOAT, [2] if shape is None else shape)


def model_of(nodes: list[onnx.NodeProto], initializers: list[onnx.TensorProto] | None = None) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "g", [info("x")], [info("y")], initializers or [])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def good() -> onnx.ModelProto:
    w = numpy_helper.from_array(np.array([1, 2], np.float32), "w")
    return model_of([helper.make_node("Add", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])], [w])


def refused(source: object, kind: type[ModelError], words: str, **options: object) -> ModelError:
    with pytest.raises(ModelError, match=words) as caught:
        load(source, **options)  # type: ignore[arg-type]
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400
    return caught.value


def test_the_model_that_the_broken_ones_are_made_from_is_good() -> None:
    assert load(good()).to_proto() == good()


# --- files that are no models ----------------------------------------------------------------------------------------


def test_bytes_that_are_no_model(tmp_path: Path) -> None:
    whole = good().SerializeToString()
    cases = {
        "empty": (b"", InvalidModel, "is empty"),
        "text": (b"this is a text file, not a model\n" * 40, InvalidModel, "not an ONNX model"),
        "html": (b"<!DOCTYPE html><html>", InvalidModel, "not an ONNX model"),
        "truncated": (whole[: len(whole) // 2], InvalidModel, "not an ONNX model"),
        "zip": (b"PK\x03\x04" + bytes(60), InvalidModel, "not an ONNX model"),
        "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", InvalidModel, "not an ONNX model"),
        "zeros": (bytes(1000), InvalidModel, "not an ONNX model"),
        "no graph": (onnx.ModelProto(ir_version=8).SerializeToString(), InvalidModel, "no graph"),
        "a tensor": (numpy_helper.from_array(np.ones(3)).SerializeToString(), InvalidModel, "ONNX model|no graph"),
    }
    for name, (data, kind, words) in cases.items():
        refused(data, kind, words)
        (tmp_path / name).write_bytes(data)
        refused(tmp_path / name, kind, words)
    assert "git lfs pull" in str(refused(tmp_path / "lfs", InvalidModel, "lfs").hint)


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    refused(tmp_path / "missing.onnx", ModelError, "No such file")
    refused(tmp_path, ModelError, "directory|regular file")
    refused("", ModelError, "cannot read")
    refused("a\0b", ModelError, "cannot read|null")
    refused(42, ModelError, "not a model")
    refused(None, ModelError, "not a model")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes and devices")
def test_pipes_and_devices_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", ModelError, "not a regular file")
    refused("/dev/zero", ModelError, "not a regular file")


def test_files_above_the_limit_are_not_read(tmp_path: Path) -> None:
    with (tmp_path / "huge.onnx").open("wb") as file:
        file.truncate(3 * 2**30)  # a hole, not three gigabytes
    tracemalloc.start()
    error = refused(tmp_path / "huge.onnx", InvalidModel, "more than 2147483647")
    assert tracemalloc.get_traced_memory()[1] < 10**6
    tracemalloc.stop()
    assert "external data" in str(error.hint)


def test_random_damage_never_gets_past_us() -> None:
    """Bits flipped, bytes cut out, blocks copied: either it still is a model, or it is refused in one line."""
    rng, whole = random.Random(5), good().SerializeToString()
    outcomes = set()
    for _ in range(1500):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 2, 6))):
            at = rng.randrange(len(data))
            kind = rng.randrange(3)
            if kind == 0:
                data[at] = rng.randrange(256)
            elif kind == 1:
                del data[at : at + rng.randrange(1, 5)]
            else:
                data[at:at] = data[rng.randrange(len(data)) :][: rng.randrange(1, 9)]
        try:
            load(bytes(data)).to_proto()
            outcomes.add("model")
        except SlimError as err:
            assert "\n" not in str(err)
            outcomes.add(type(err).__name__)
    assert {"model", "InvalidModel"} <= outcomes


# --- graphs that are no graphs ---------------------------------------------------------------------------------------


def edit(change: Callable[[onnx.ModelProto], object]) -> onnx.ModelProto:
    model = good()
    change(model)
    return model


def body(result: str, *nodes: onnx.NodeProto) -> onnx.GraphProto:
    return helper.make_graph(list(nodes), "body", [], [info(result)])


def branching(then: onnx.GraphProto) -> onnx.ModelProto:
    neg = body("n", helper.make_node("Neg", ["h"], ["n"]))
    model = model_of(
        [
            helper.make_node("Relu", ["x"], ["h"]),
            helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=neg),
        ]
    )
    model.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    return model


def nested(depth: int) -> onnx.ModelProto:
    inner = body("b0", helper.make_node("Relu", ["x"], ["b0"]))
    for level in range(1, depth):
        inner = body(f"b{level}", helper.make_node("If", ["c"], [f"b{level}"], then_branch=inner, else_branch=inner))
        while level > 4 and len(inner.node[0].attribute) > 1:
            del inner.node[0].attribute[1]  # one branch is enough, two would double the size at each level
    return branching(inner)


def deep_type(depth: int) -> onnx.ModelProto:
    model = good()
    kind = model.graph.input[0].type
    kind.Clear()
    for _ in range(depth):
        kind = kind.sequence_type.elem_type
    kind.tensor_type.elem_type = FLOAT
    return model


def tensor(**fields: object) -> onnx.TensorProto:
    proto = TensorProto(name="w", data_type=FLOAT, dims=[2])
    for name, value in fields.items():
        if name in ("dims", "float_data", "int64_data"):
            proto.ClearField(name)
            getattr(proto, name).extend(value)
        else:
            setattr(proto, name, value)
    return proto


def with_weight(proto: onnx.TensorProto) -> onnx.ModelProto:
    return edit(lambda m: m.graph.initializer[0].CopyFrom(proto))


def with_sparse(indices: np.ndarray, dims: list[int]) -> onnx.ModelProto:
    def change(model: onnx.ModelProto) -> None:
        del model.graph.initializer[:]
        values = numpy_helper.from_array(np.ones(2, np.float32), "w")
        model.graph.sparse_initializer.add(values=values, indices=numpy_helper.from_array(indices), dims=dims)

    return edit(change)


def recursive_functions() -> onnx.ModelProto:
    model = good()
    model.opset_import.add(domain="d", version=1)
    for name, called in (("F", "G"), ("G", "F")):
        node = helper.make_node(called, ["a"], ["b"], domain="d")
        model.functions.append(helper.make_function("d", name, ["a"], ["b"], [node], [helper.make_opsetid("d", 1)]))
    return model


BROKEN: dict[str, tuple[onnx.ModelProto, type[ModelError], str]] = {
    "cycle": (
        model_of([helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Add", ["a", "x"], ["b"]),
                  helper.make_node("Relu", ["x"], ["y"])]), InvalidModel, "cycle through",
    ),
    "a node that reads itself": (model_of([helper.make_node("Add", ["x", "y"], ["y"])]), InvalidModel, "cycle"),
    "cycle through a capture": (
        branching(body("b", helper.make_node("Add", ["h", "y"], ["b"]))), InvalidModel, "cycle",
    ),
    "made twice": (edit(lambda m: m.graph.node.add(op_type="Neg", input=["x"], output=["h"])), InvalidModel, "'h' is defined twice"),
    "made and fed": (edit(lambda m: m.graph.node.add(op_type="Neg", input=["h"], output=["x"])), InvalidModel, "'x' is defined twice"),
    "two weights of one name": (edit(lambda m: m.graph.initializer.append(m.graph.initializer[0])), InvalidModel, "'w' is defined twice"),
    "two inputs of one name": (edit(lambda m: m.graph.input.append(info("x"))), InvalidModel, "'x' is defined twice"),
    "made again in a body": (branching(body("h", helper.make_node("Neg", ["x"], ["h"]))), InvalidModel, "defined twice, .* in a body"),
    "held again in a body": (
        branching(helper.make_graph([helper.make_node("Add", ["x", "h"], ["b"])], "body", [], [info("b")], [tensor(name="h", float_data=[1, 2])])),
        InvalidModel, "'h' is defined twice, .* in a body",
    ),
    "dangling input": (edit(lambda m: m.graph.node[0].input.append("nowhere")), InvalidModel, "Add -> 'h' reads 'nowhere'"),
    "dangling capture": (branching(body("b", helper.make_node("Neg", ["gone"], ["b"]))), InvalidModel, "reads 'gone'"),
    "dangling output": (edit(lambda m: m.graph.output.append(info("none"))), InvalidModel, "nothing makes the output 'none'"),
    "a body that returns a capture": (branching(body("h")), InvalidModel, "outer value 'h' directly"),
    "no operator": (edit(lambda m: m.graph.node[1].ClearField("op_type")), InvalidModel, "no operator type"),
    "no name": (edit(lambda m: m.graph.input.append(info(""))), InvalidModel, "has no name"),
    "no opset": (edit(lambda m: m.ClearField("opset_import")), InvalidModel, "no opset"),
    "two opsets": (edit(lambda m: m.opset_import.add(domain="ai.onnx", version=3)), InvalidModel, "two versions"),
    "no IR version": (edit(lambda m: m.ClearField("ir_version")), InvalidModel, "IR version"),
    "attribute twice": (
        edit(lambda m: m.graph.node[1].attribute.extend([helper.make_attribute("a", 1), helper.make_attribute("a", 2)])),
        InvalidModel, "twice",
    ),
    "attribute of no type": (edit(lambda m: m.graph.node[1].attribute.add(name="a")), InvalidModel, "does not say its type"),
    "constant without a value": (model_of([helper.make_node("Constant", [], ["y"])]), InvalidModel, "holds no value"),
    "constant of two values": (model_of([helper.make_node("Constant", [], ["y"], value_int=1, value_float=2.0)]), InvalidModel, "one value"),
    "constant of another type": (model_of([helper.make_node("Constant", [], ["y"], value=[1.0, 2.0])]), InvalidModel, "than its name"),
    "bodies too deep": (nested(30), InvalidModel, "nested more than 24"),
    "types too deep": (deep_type(60), InvalidModel, "nested more than 24"),
    "functions that call each other": (recursive_functions(), InvalidModel, "calls itself"),
    "name of a megabyte": (edit(lambda m: setattr(m.graph.node[0], "name", "n" * 2**20)), InvalidModel, "1048576 characters"),
    "NUL in a name": (edit(lambda m: setattr(m.graph.node[0], "name", "a\0b")), InvalidModel, "NUL"),
    "negative dim": (with_weight(tensor(dims=[-2], float_data=[1, 2])), InvalidModel, "negative dim"),
    "dims that overflow": (with_weight(tensor(dims=[2**40, 2**40])), InvalidModel, "too many elements"),
    "dims that overflow beside a zero": (with_weight(tensor(dims=[2**62, 0])), InvalidModel, "too many elements"),
    "too many dims": (with_weight(tensor(dims=[1] * 65, float_data=[1])), InvalidModel, "65 dims"),
    "terabytes without data": (with_weight(tensor(dims=[2**38])), InvalidModel, "0 elements of data"),
    "too little data": (with_weight(tensor(raw_data=b"1234567")), InvalidModel, "7 bytes of data where its shape asks for 8"),
    "too much data": (with_weight(tensor(float_data=[1, 2, 3])), InvalidModel, "3 elements of data"),
    "data in the wrong field": (with_weight(tensor(int64_data=[1, 2])), InvalidModel, "int64_data"),
    "data twice": (with_weight(tensor(float_data=[1, 2], raw_data=bytes(8))), InvalidModel, "float_data"),
    "no element type": (with_weight(tensor(data_type=0)), InvalidModel, "element type 0"),
    "unknown element type": (with_weight(tensor(data_type=99)), InvalidModel, "element type 99"),
    "sparse index outside": (with_sparse(np.array([0, 9], np.int64), [2]), InvalidModel, "outside of its shape"),
    "sparse index negative": (with_sparse(np.array([[-1], [1]], np.int64), [2]), InvalidModel, "outside of its shape"),
    "sparse bomb": (with_sparse(np.array([0, 1], np.int64), [2**20, 2**20]), InvalidModel, "too many elements"),
    "sparse of unequal parts": (with_sparse(np.array([0, 1, 2], np.int64), [4]), InvalidModel, "indices of shape"),
    "a feedable weight of another type": (
        edit(lambda m: m.graph.input.append(helper.make_tensor_value_info("w", TensorProto.INT64, [2]))),
        InvalidModel, "declared as INT64",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_graphs_are_named(name: str) -> None:
    model, kind, words = BROKEN[name]
    before = model.SerializeToString(deterministic=True)
    refused(model, kind, words)
    assert model.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("name", ["cycle", "made twice", "dangling input", "dangling output", "made again in a body"])
def test_broken_onnx_ir_graphs_are_refused_too(name: str) -> None:
    model, _, _ = BROKEN[name]
    try:
        graph = ir.from_proto(model)
    except ir.serde.SerdeError:
        return  # onnx_ir cannot even hold it
    with pytest.raises(InvalidModel):
        load(graph)


def test_text_that_is_not_utf8() -> None:
    """Protobuf hands such text out as bytes, which nobody expects."""
    data = good().SerializeToString()
    for text, where in ((b"Relu", "operator"), (b"\x0a\x01h", "value"), (b"\x12\x01g", "graph")):
        assert text in data, where
        refused(data.replace(text, text[:-1] + b"\xff"), InvalidModel, "UTF-8")


def test_fields_of_a_later_onnx_are_refused_by_name() -> None:
    """Dropping what we do not know would be a loss without a word."""
    data, later = good().SerializeToString(), b"\xc2\x3e\x02hi"  # field 1000, two bytes
    refused(data + later, UnsupportedModel, "the model has a field .number 1000.")
    node = good().graph.node[1].SerializeToString()
    model = good()
    model.graph.node[1].ParseFromString(node + later)
    refused(model, UnsupportedModel, "Relu -> 'y' has a field .number 1000.")


def test_tensors_in_segments_are_refused_by_name() -> None:
    proto = tensor(float_data=[1, 2])
    proto.segment.begin = 0
    refused(with_weight(proto), UnsupportedModel, "initializer 'w' is stored in segments")


def test_control_characters_are_not_printed() -> None:
    model = edit(lambda m: m.graph.node[0].input.append("\x1b[31mred\nline"))
    assert "\\x1b[31mred\\nline" in str(refused(model, InvalidModel, "reads"))


def test_limits_are_the_callers() -> None:
    refused(good(), InvalidModel, "more than 1 nodes", limits=Limits(nodes=1))
    refused(good(), InvalidModel, "more than 2 values", limits=Limits(values=2))
    refused(good(), InvalidModel, "too many elements", limits=Limits(elements=1))
    assert load(good(), limits=Limits(nodes=2, values=3, elements=2)).nbytes == 8


def test_many_declarations_are_refused_in_time() -> None:
    """Five million empty entries in ten megabytes: refused without a walk over them."""
    graph = b"\x6a\x00" * 5_000_000  # value_info, empty
    length = bytes(
        [0x80 | len(graph) & 0x7F, 0x80 | len(graph) >> 7 & 0x7F, 0x80 | len(graph) >> 14 & 0x7F, len(graph) >> 21]
    )
    data = b"\x08\x08" + b"\x42\x02\x10\x11" + b"\x3a" + length + graph
    start = time.perf_counter()
    refused(data, InvalidModel, "declares more than 4000000 values")
    assert time.perf_counter() - start < 20


# --- external data ---------------------------------------------------------------------------------------------------


def outside(folder: Path, **entries: object) -> Path:
    """A model in `folder` whose weight is in external data described by the entries."""
    folder.mkdir(exist_ok=True)
    proto = tensor(data_location=TensorProto.EXTERNAL)
    for key, value in entries.items():
        proto.external_data.add(key=key, value=str(value))
    onnx.save(with_weight(proto), folder / "m.onnx")
    (folder / "w.bin").write_bytes(np.array([0, 1, 2, 3], np.float32).tobytes())
    return folder / "m.onnx"


def test_external_data_that_is_fine(tmp_path: Path) -> None:
    for entries in ({"offset": 4, "length": 8}, {"offset": 8}, {"length": 8, "checksum": "x"}, {}):
        model = load(outside(tmp_path, location="w.bin", **entries))
        start = int(str(entries.get("offset", 0))) // 4
        found = model.ir.graph.initializers["w"].const_value
        assert found is not None
        np.testing.assert_array_equal(found.numpy(), [start, start + 1])
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "w.bin").write_bytes(bytes(8))
    assert load(outside(tmp_path, location="sub/../w.bin")).nbytes == 8
    assert load(outside(tmp_path, location="./sub/w.bin")).nbytes == 8


@pytest.mark.parametrize(
    ("entries", "kind", "words"),
    [
        ({"location": "../secret.bin"}, InvalidModel, "leaves the model's folder"),
        ({"location": "sub/../../secret.bin"}, InvalidModel, "leaves the model's folder"),
        ({"location": "/etc/passwd"}, InvalidModel, "absolute path"),
        ({"location": ""}, InvalidModel, "no usable location"),
        ({}, InvalidModel, "no usable location"),
        ({"location": "a\0b"}, InvalidModel, "no usable location"),
        ({"location": "missing.bin"}, ModelError, "No such file"),
        ({"location": "."}, ModelError, "directory|regular file"),
        ({"location": "w.bin", "offset": "-4"}, InvalidModel, "wrong offset"),
        ({"location": "w.bin", "offset": "1e3"}, InvalidModel, "wrong offset"),
        ({"location": "w.bin", "offset": "9" * 30}, InvalidModel, "wrong offset"),
        ({"location": "w.bin", "offset": 12}, InvalidModel, "ends at byte 20 of 'w.bin', which has 16"),
        ({"location": "w.bin", "offset": 2**62}, InvalidModel, "ends at byte"),
        ({"location": "w.bin", "length": 4}, InvalidModel, "length of 4 bytes where its shape asks for 8"),
        ({"location": "w.bin", "length": 2**62}, InvalidModel, "length"),
        ({"location": "w.bin", "length": "-8"}, InvalidModel, "wrong length"),
    ],
)  # fmt: skip
def test_external_data_that_is_not(
    tmp_path: Path, entries: dict[str, object], kind: type[ModelError], words: str
) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(16))
    (tmp_path / "in" / "sub").mkdir(parents=True)
    refused(outside(tmp_path / "in", **entries), kind, words)


def test_links_and_pipes_as_external_data(tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(16))
    path = outside(tmp_path / "in", location="link.bin")
    (tmp_path / "in" / "link.bin").symlink_to(tmp_path / "secret.bin")
    error = refused(path, InvalidModel, "leaves the model's folder")
    assert "--external-data-root DIR" in str(error.hint)
    assert load(path, external_data_root=tmp_path).nbytes == 8
    refused(path, InvalidModel, "leaves", external_data_root=tmp_path / "in")
    refused(path, ModelError, "is no folder", external_data_root=tmp_path / "no")
    (tmp_path / "in" / "link.bin").unlink()
    (tmp_path / "in" / "link.bin").symlink_to("w.bin")
    assert load(path).nbytes == 8
    (tmp_path / "in" / "link.bin").unlink()
    (tmp_path / "in" / "link.bin").symlink_to("link.bin")
    refused(path, InvalidModel, "cannot be found|leaves")
    (tmp_path / "in" / "link.bin").unlink()
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "in" / "link.bin")
        refused(path, ModelError, "not a regular file")
        path = outside(tmp_path / "in", location="zero")
        (tmp_path / "in" / "zero").symlink_to("/dev/zero")
        refused(path, InvalidModel, "leaves the model's folder")
        refused(path, ModelError, "not a regular file", external_data_root="/dev")


def test_sparse_tensors_and_strings_are_not_external(tmp_path: Path) -> None:
    model = with_sparse(np.array([0, 1], np.int64), [2])
    values = model.graph.sparse_initializer[0].values
    values.ClearField("raw_data")
    values.data_location = TensorProto.EXTERNAL
    values.external_data.add(key="location", value="w.bin")
    onnx.save(model, tmp_path / "m.onnx")
    refused(tmp_path / "m.onnx", UnsupportedModel, "sparse tensor in external data")
    path = outside(tmp_path, location="w.bin")
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer[0].data_type = TensorProto.STRING
    refused(model, InvalidModel, "strings in external data", external_data_root=tmp_path)
