"""Locks: what a run made comes out again to the byte, without its samples; anything else is one line."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxslim_core as osc
from onnxslim_core.cli import main
from onnxslim_core.demo import FOLDER
from onnxslim_core.errors import ModelError
from onnxslim_core.lock import Lock, apply
from onnxslim_core.lock.archive import Archive, write_archive
from onnxslim_core.lock.parts import _ranges, _selection, indices_of
from onnxslim_core.pipeline import Result, compress_file
from onnxslim_core.recipe import Recipe

DIGITS = FOLDER / "digits.onnx"
SAMPLES = FOLDER / "calibration.npz"
RNG = np.random.default_rng(7)


def recipe(tmp_path: Path, *passes: str) -> Recipe:
    """A recipe of passes, each as the TOML of its table."""
    path = tmp_path / "recipe.toml"
    path.write_text("version = 1\n" + "".join(f"[[pass]]\n{text}\n" for text in passes))
    return Recipe.load(path)


def locked(source: Path, target: Path, how: Recipe | None = None, **options: Any) -> Result:
    """Compress into `target`, with a lock beside it."""
    lock = target.with_name(f"{target.name}.lock")
    return compress_file(source, target, how, lock=lock, measure_latency=False, **options)


def net(path: Path, *, inputs: bool = False, idle: bool = False, version: int = 8, **save: Any) -> Path:
    """Conv, BatchNormalization, Relu, pool, Gemm; `inputs` lists the weights as inputs too."""
    rng = np.random.default_rng(0)
    arrays = {
        "w": rng.standard_normal((16, 3, 3, 3)),
        "g": rng.uniform(0.5, 2, 16),
        "t": rng.standard_normal(16),
        "m": rng.standard_normal(16),
        "v": rng.uniform(0.5, 2, 16),
        "h": rng.standard_normal((16, 4)),
        "hb": rng.standard_normal(4),
    }
    if idle:
        arrays["h"][[2, 5, 6, 9]] = 0  # nobody reads these channels
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c", "g", "t", "m", "v"], ["b"], "norm"),
        helper.make_node("Relu", ["b"], ["r"], "relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flat"),
        helper.make_node("Gemm", ["f", "h", "hb"], ["y"], "head"),
    ]
    if idle:
        nodes[1:3] = [helper.make_node("Relu", ["c"], ["r"], "relu")]
        arrays = {name: arrays[name] for name in ("w", "h", "hb")}
    weights = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()]
    fed = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])]
    fed += [helper.make_tensor_value_info(w.name, TensorProto.FLOAT, w.dims) for w in weights] if inputs else []
    graph = helper.make_graph(
        nodes, "net", fed, [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])], weights
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=version)
    onnx.save(model, path, **save)
    return path


EXTERNAL: dict[str, Any] = {"save_as_external_data": True, "location": "w.bin", "size_threshold": 0}


# ---------------------------------------------------------------------------------------------------- the same bytes


@pytest.mark.parametrize(
    "passes",
    [
        (),
        ('name = "prune_channels"\ncriterion = "obs"\nallocation = "macs"\ntarget = 0.6\nrepair = "least_squares"',),
        ('name = "prune_channels"\ncriterion = "l2"\nratio = 0.1\nround_to = 1\nrepair = "none"',),
        ('name = "factorize"\nenergy = 0.9',),
        ('name = "quantize"\nmeasure = "never"',),
    ],
    ids=["exact", "prune and solve", "prune", "factorize", "quantize"],
)
def test_the_same_bytes_come_out_again(tmp_path: Path, passes: tuple[str, ...]) -> None:
    out = tmp_path / "out.onnx"
    exact = tuple(f'name = "{name}"' for name in ("normalize", "fold_constants", "fuse_batchnorm", "remove_idle"))
    result = locked(DIGITS, out, recipe(tmp_path, *exact, *passes) if passes else None, data=str(SAMPLES))
    assert result.report.outcome == ("compressed" if passes else "exact"), result.report.headline
    shutil.copy(DIGITS, tmp_path / "elsewhere.onnx")  # neither its name nor the samples are needed
    applied = apply(f"{out}.lock", tmp_path / "elsewhere.onnx")
    assert applied.save(tmp_path / "again.onnx") == "loads and runs in onnxruntime"
    assert (tmp_path / "again.onnx").read_bytes() == out.read_bytes()
    assert applied.notes == ()


@pytest.mark.parametrize("feedable", [False, True])
@pytest.mark.parametrize("version", [3, 8])
def test_weights_listed_as_inputs(tmp_path: Path, feedable: bool, version: int) -> None:
    source, out = net(tmp_path / "net.onnx", inputs=True, version=version), tmp_path / "out.onnx"
    locked(source, out, keep_feedable=feedable)
    assert out.read_bytes() != source.read_bytes()
    apply(f"{out}.lock", source).save(tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == out.read_bytes()


def test_external_data_comes_out_as_external_data(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    source = net(tmp_path / "net.onnx", **EXTERNAL)
    locked(source, tmp_path / "a" / "out.onnx")
    apply(tmp_path / "a" / "out.onnx.lock", source).save(tmp_path / "b" / "out.onnx")
    for name in ("out.onnx", "out.onnx.data"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    # how the file keeps its weights is no part of what the model is
    one = net(tmp_path / "one.onnx")
    apply(tmp_path / "a" / "out.onnx.lock", one).save(tmp_path / "b" / "out.onnx")
    assert (tmp_path / "a" / "out.onnx").read_bytes() == (tmp_path / "b" / "out.onnx").read_bytes()


def test_weights_that_share_their_bytes_in_external_data_go_on_sharing(tmp_path: Path) -> None:
    square = RNG.standard_normal((32, 32)).astype(np.float32)
    tensor = numpy_helper.from_array(square, "w")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("MatMul", ["a", "v"], ["y"])]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 32]) for name in "xy")
    graph = helper.make_graph(nodes, "g", [x], [y], [tensor, numpy_helper.from_array(square, "v")])
    source = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(source, tmp_path / "net.onnx", **EXTERNAL)
    (tmp_path / "b").mkdir()
    locked(tmp_path / "net.onnx", tmp_path / "out.onnx")
    apply(tmp_path / "out.onnx.lock", tmp_path / "net.onnx").save(tmp_path / "b" / "out.onnx")
    for name in ("out.onnx", "out.onnx.data"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_result_may_replace_the_model_it_was_made_from(tmp_path: Path) -> None:
    source, copy = net(tmp_path / "net.onnx"), net(tmp_path / "copy.onnx")
    before = source.read_bytes()
    locked(source, source)
    made = source.read_bytes()
    assert made != before
    lock = Lock.open(tmp_path / "net.onnx.lock")
    apply(lock, copy).save(copy)
    assert copy.read_bytes() == made


def test_a_weight_that_only_lost_channels_is_named_by_what_was_kept(tmp_path: Path) -> None:
    source, out = net(tmp_path / "net.onnx", idle=True), tmp_path / "out.onnx"
    locked(source, out, recipe(tmp_path, 'name = "remove_idle"'))
    lock = Lock.open(f"{out}.lock")
    assert sorted(lock.record.weights.values()) == ["part", "part"]
    assert {axis: kept for part in lock.record.parts.values() for axis, kept in part.axes.items()} == {
        0: "0-1,3-4,7-8,10-15"
    }
    assert not lock.new
    apply(lock, source).save(tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == out.read_bytes()


def test_the_same_run_gives_the_same_lock(tmp_path: Path) -> None:
    source = net(tmp_path / "net.onnx")
    locked(source, tmp_path / "a.onnx")
    locked(source, tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx.lock").read_bytes() == (tmp_path / "b.onnx.lock").read_bytes()


def test_a_model_in_memory_has_a_lock_too(tmp_path: Path) -> None:
    proto = onnx.load(net(tmp_path / "net.onnx"))
    result = osc.compress(proto, measure_latency=False)
    lock = result.lock()
    assert lock.record.given.sha256 is None
    assert apply(lock, proto).model.to_proto() == result.model.to_proto()
    with pytest.raises(ModelError, match="does not know the model"):
        replace(result, given=None).lock()


def test_people_read_what_was_decided(tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    how = recipe(tmp_path, 'name = "fuse_batchnorm"', 'name = "factorize"\nenergy = 0.9')
    result = locked(DIGITS, out, how, data=str(SAMPLES))
    with zipfile.ZipFile(f"{out}.lock") as archive:
        told = json.loads(archive.read("lock.json"))
    assert told["given"]["model"] == "digits.onnx"
    assert told["made"]["sha256"] == result.model.digest()
    assert told["data"]["digest"] == result.report.data.digest and told["data"]["digest"]
    assert told["machine"]["versions"]["onnxruntime"] and told["machine"]["cpu"]
    ranks = [c["details"]["rank"] for step in told["steps"] for c in step["changes"] if "rank" in c["details"]]
    assert ranks and "seconds" not in told["steps"][0]


# ---------------------------------------------------------------------------------------------------- refusals


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    """The lock of `net.onnx`, with new weights in it; the folder holds nothing of the run but these two."""
    locked(net(tmp_path / "net.onnx"), tmp_path / "out.onnx")
    (tmp_path / "out.onnx").unlink()
    return tmp_path / "out.onnx.lock"


def content(lock: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(lock) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rewrite(lock: Path, change: Callable[[dict[str, bytes]], None], packed: str = "") -> None:
    entries = content(lock)
    change(entries)
    with zipfile.ZipFile(lock, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data, zipfile.ZIP_DEFLATED if name == packed else zipfile.ZIP_STORED)


def refused(lock: Path, model: str | Path = "net.onnx") -> str:
    """The one line that a damaged lock gives; nothing may have been written."""
    target = lock.with_name("x.onnx")
    with pytest.raises(ModelError) as caught:
        apply(lock, lock.parent / model).save(target)
    assert not target.exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_another_model(tmp_path: Path, lock: Path) -> None:
    other = onnx.load(tmp_path / "net.onnx")
    weight = numpy_helper.to_array(other.graph.initializer[0]).copy()
    weight[0, 0, 0, 0] += 1e-3
    other.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "w"))
    onnx.save(other, tmp_path / "other.onnx")
    assert refused(lock, "other.onnx") == (
        "'other.onnx' is not the model that the lock was made from, which is 'net.onnx'"
    )
    other = onnx.load(tmp_path / "net.onnx")
    other.graph.node[-1].attribute.append(helper.make_attribute("alpha", 2.0))
    onnx.save(other, tmp_path / "other.onnx")
    assert "is not the model that the lock was made from" in refused(lock, "other.onnx")


def test_its_own_result(tmp_path: Path, lock: Path) -> None:
    apply(lock, tmp_path / "net.onnx").save(tmp_path / "out.onnx")
    assert refused(lock, "out.onnx") == "'out.onnx' is the result that was locked already"


def test_other_metadata_is_told(tmp_path: Path, lock: Path) -> None:
    made = apply(lock, tmp_path / "net.onnx").model.to_proto()
    other = onnx.load(tmp_path / "net.onnx")
    other.producer_name, other.doc_string, other.graph.node[0].doc_string = "me", "words", "more"
    other.metadata_props.add(key="k", value="v")
    onnx.save(other, tmp_path / "other.onnx")
    applied = apply(lock, tmp_path / "other.onnx")
    assert "metadata" in applied.notes[0]
    assert applied.model.to_proto() == made


def flipped(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def weight_of(entries: dict[str, bytes]) -> str:
    return max((name for name in entries if name.startswith("weights/")), key=lambda name: len(entries[name]))


def told(entries: dict[str, bytes], change: Callable[[dict[str, Any]], None]) -> None:
    document = json.loads(entries["lock.json"])
    change(document)
    entries["lock.json"] = json.dumps(document).encode()


DAMAGE: dict[str, Callable[[dict[str, bytes]], Any]] = {
    "a flipped bit of a weight": lambda e: e.update({weight_of(e): flipped(e[weight_of(e)])}),
    "a shorter weight": lambda e: e.update({weight_of(e): e[weight_of(e)][:-4]}),
    "a missing weight": lambda e: e.pop(weight_of(e)),
    "a graph that is none": lambda e: e.update({"graph.onnx": b"\xff" * 50}),
    "an empty graph": lambda e: e.update({"graph.onnx": b""}),
    "another graph": lambda e: e.update({"graph.onnx": e["graph.onnx"].replace(b"conv", b"vonc")}),
    "no graph": lambda e: e.pop("graph.onnx"),
    "no record": lambda e: e.pop("lock.json"),
    "a record that is no JSON": lambda e: e.update({"lock.json": e["lock.json"][:-9]}),
    "a record that is nested deep": lambda e: e.update({"lock.json": b"[" * 100_000}),
    "another schema": lambda e: told(e, lambda d: d.update(schema=99)),
    "no result": lambda e: told(e, lambda d: d.pop("made")),
    "a field of another type": lambda e: told(e, lambda d: d.update(weights=3)),
    "another hash of the result": lambda e: told(e, lambda d: d["made"].update(graph="0" * 64)),
    "another hash of the file": lambda e: told(e, lambda d: d["made"].update(sha256="0" * 64)),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_tampered_lock(lock: Path, how: str) -> None:
    rewrite(lock, lambda entries: DAMAGE[how](entries) and None)
    assert "lock" in refused(lock)


def test_a_lock_cut_short_anywhere(lock: Path) -> None:
    data = lock.read_bytes()
    for size in (0, 1, 30, len(data) // 3, len(data) // 2, len(data) - 30, len(data) - 1):
        lock.write_bytes(data[:size])
        assert "lock" in refused(lock)


def test_a_byte_of_the_lock_changed_anywhere(lock: Path) -> None:
    """Either nothing comes of it (a byte that nobody reads), or the lock is refused: never another model."""
    data, good = lock.read_bytes(), apply(lock, lock.parent / "net.onnx").model.to_proto()
    places = np.random.default_rng(0).integers(0, len(data), 200)
    refusals = 0
    for place in places:
        lock.write_bytes(data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :])
        try:
            assert apply(lock, lock.parent / "net.onnx").model.to_proto() == good
        except ModelError:
            refusals += 1
    assert refusals > 50


@pytest.mark.parametrize("name", ["lock.json", "graph.onnx"])
def test_a_bomb_is_not_unpacked(lock: Path, name: str) -> None:
    rewrite(lock, lambda entries: entries.update({name: bytes(2**28)}), packed=name)
    assert lock.stat().st_size < 2**20
    assert "larger than it may be" in refused(lock)


def test_a_weight_that_is_packed_is_not_unpacked(lock: Path) -> None:
    rewrite(lock, lambda entries: entries.update({"weights/0": bytes(2**24)}), packed="weights/0")
    assert "is packed" in refused(lock)


def test_entries_that_overlap(lock: Path) -> None:
    """Many names for the same bytes: the bomb that no ratio of one entry gives away."""
    with zipfile.ZipFile(lock, "a") as archive:
        big = zipfile.ZipInfo("weights/a")
        archive.writestr(big, bytes(2**16))
        for number in range(50):
            twin = zipfile.ZipInfo(f"weights/{number}")
            twin.header_offset, twin.file_size, twin.compress_size = big.header_offset, big.file_size, big.compress_size
            twin.CRC = big.CRC
            archive.filelist.append(twin)
    assert "overlap" in refused(lock)


def test_a_result_far_larger_than_its_parts_is_refused(tmp_path: Path) -> None:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 128]) for name in "xy")
    weight = numpy_helper.from_array(RNG.standard_normal((128, 128)).astype(np.float32), "w")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [weight])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), tmp_path / "net.onnx"
    )
    locked(tmp_path / "net.onnx", tmp_path / "out.onnx")

    def many(entries: dict[str, bytes]) -> None:
        made = onnx.ModelProto.FromString(entries["graph.onnx"])
        for number in range(100):
            twin = made.graph.initializer.add()
            twin.CopyFrom(made.graph.initializer[0])
            twin.name = f"twin{number}"
            next(entry for entry in twin.external_data if entry.key == "offset").value = str(number + 1)
        entries["graph.onnx"] = made.SerializeToString()

    rewrite(tmp_path / "out.onnx.lock", many)
    assert "far larger" in refused(tmp_path / "out.onnx.lock")


def test_a_graph_that_names_files_reads_none(lock: Path) -> None:
    secret = lock.with_name("secret")
    secret.write_bytes(bytes(64))

    def outside(entries: dict[str, bytes]) -> None:
        graph = onnx.ModelProto.FromString(entries["graph.onnx"])
        for tensor in graph.graph.initializer:
            for entry in tensor.external_data:
                entry.value = str(secret) if entry.key == "location" else entry.value
        entries["graph.onnx"] = graph.SerializeToString()

    rewrite(lock, outside)
    assert "neither in it nor in the model" in refused(lock)


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"0": "0-99"}, "indices"),
        ({"0": "1,1,3-4,7-8,10-15"}, "twice"),
        ({"0": "a"}, "no list"),
        ({"9": "0"}, "no axis"),
        ({"0": "5-2"}, "indices"),
        ({"0": "0,1,2"}, "bytes"),
        ({"0": "0-11"}, "not the result"),
    ],
)
def test_parts_that_are_none(tmp_path: Path, axes: dict[str, str], message: str) -> None:
    source = net(tmp_path / "net.onnx", idle=True)
    locked(source, tmp_path / "out.onnx", recipe(tmp_path, 'name = "remove_idle"'))
    lock = tmp_path / "out.onnx.lock"

    def change(document: dict[str, Any]) -> None:
        for part in document["parts"].values():
            part["axes"] = axes

    rewrite(lock, lambda entries: told(entries, change))
    assert message in refused(lock)


def test_what_is_missing_or_no_file(tmp_path: Path, lock: Path) -> None:
    assert "cannot read lock" in refused(tmp_path / "absent.lock")
    (tmp_path / "folder.lock").mkdir()
    assert "cannot read lock" in refused(tmp_path / "folder.lock")
    assert "cannot read model" in refused(lock, "absent.onnx")
    assert "is no lock" in refused(tmp_path / "net.onnx", lock.name)


# ---------------------------------------------------------------------------------------------------- its parts


def test_a_selection_is_found_or_not() -> None:
    whole = RNG.standard_normal((6, 5, 3)).astype(np.float32)
    rows, columns = np.array([0, 2, 5]), np.array([4, 1])
    found = _selection(whole, whole[rows][:, columns])
    assert found is not None
    assert {axis: list(kept) for axis, kept in found.items()} == {0: [0, 2, 5], 1: [4, 1]}
    assert _selection(whole, whole) == {}
    assert _selection(whole, whole[:2] + np.float32(1e-3)) is None
    assert _selection(whole, -whole[:2]) is None
    assert _selection(whole[:2], whole) is None
    assert _selection(np.zeros((4, 4), np.float32), np.zeros((2, 4), np.float32)) is None, "many choices"
    mixed = whole[:2].copy()
    mixed[0, 0], mixed[0, 1] = whole[0, 1], whole[0, 0]
    assert _selection(whole, mixed) is None, "elements are all there, but in other places"
    negative = np.array([[0.0, 1], [2, 3]], np.float32)
    assert _selection(negative, np.array([[-0.0, 1]], np.float32)) is None, "zeros of two signs"
    doubled = np.repeat(whole, 2, axis=2)
    assert _selection(doubled, doubled[1:3]) is None, "every element is there twice"


@pytest.mark.parametrize("indices", [[0], [0, 1, 2], [3, 1, 2, 7], [5, 4, 3], [0, 2, 4]])
def test_indices_as_ranges(indices: list[int]) -> None:
    assert list(indices_of(_ranges(np.array(indices)), 8)) == indices


def test_an_archive_keeps_what_packs_too_well_as_it_is(tmp_path: Path) -> None:
    zeros = bytes(2**23)
    write_archive(tmp_path / "a", {"zeros": zeros}, {"raw": memoryview(b"abc")})
    archive = Archive(tmp_path / "a", "lock")
    assert archive.packed("zeros", 2**30) == zeros
    assert bytes(archive.stored("raw")) == b"abc"
    with pytest.raises(ModelError, match="larger than it may be"):
        archive.packed("zeros", 2**20)


# ---------------------------------------------------------------------------------------------------- the shell


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    net(tmp_path / "net.onnx")
    monkeypatch.chdir(tmp_path)
    yield tmp_path


def test_compress_writes_a_lock_and_apply_takes_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compress", "net.onnx", "-o", "out.onnx", "--no-latency", "-q"]) == 0
    assert main(["apply", "out.onnx.lock", "net.onnx", "-o", "again.onnx", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (folder / "again.onnx").read_bytes() == (folder / "out.onnx").read_bytes()
    assert document["verb"] == "apply" and document["made"]["sha256"] == osc.load("again.onnx").digest()
    assert main(["compress", "net.onnx", "-o", "b.onnx", "--no-latency", "-q", "--lock", "my.lock"]) == 0
    assert main(["compress", "net.onnx", "-o", "c.onnx", "--no-latency", "-q", "--no-lock"]) == 0
    assert {path.name for path in folder.iterdir()} >= {"my.lock", "b.onnx", "c.onnx"}
    assert not (folder / "b.onnx.lock").exists() and not (folder / "c.onnx.lock").exists()


def test_no_lock_where_nothing_is_written(folder: Path) -> None:
    (folder / "b.toml").write_text("[budget]\nmax_size_ratio = 0.01\n")
    assert main(["compress", "net.onnx", "-o", "out.onnx", "--no-latency", "-q", "--budget", "b.toml"]) == 1
    assert not list(folder.glob("out*"))


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        (2, ["compress", "net.onnx", "-o", "o.onnx", "--lock", "o.onnx"]),
        (2, ["compress", "net.onnx", "-o", "o.onnx", "--lock", "net.onnx"]),
        (2, ["compress", "net.onnx", "-o", "o.onnx", "--lock", "a.lock", "--no-lock"]),
        (2, ["compress", "net.onnx", "-o", "o.onnx", "--lock", "nowhere/a.lock"]),
        (2, ["apply", "net.onnx"]),
        (2, ["apply", "bad.lock", "net.onnx", "-o", "bad.lock"]),
        (3, ["apply", "absent.lock", "net.onnx", "-o", "o.onnx"]),
        (3, ["apply", "bad.lock", "net.onnx", "-o", "o.onnx"]),
        (3, ["apply", "net.onnx", "net.onnx", "-o", "o.onnx"]),
    ],
)
def test_wrong_calls(folder: Path, capsys: pytest.CaptureFixture[str], code: int, arguments: list[str]) -> None:
    (folder / "bad.lock").write_bytes(b"PK\x03\x04 and no more")
    before = (folder / "net.onnx").read_bytes()
    assert main(arguments) == code
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("onnxslim-core: ") and all(line.startswith("  hint: ") for line in lines[1:])
    assert not (folder / "o.onnx").exists()
    assert (folder / "net.onnx").read_bytes() == before


def test_who_changes_a_result_of_which_nothing_was_done_has_a_lock_for_what_was_given(tmp_path: Path) -> None:
    source, out = tmp_path / "net.onnx", tmp_path / "out.onnx"
    given, made = ([helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3])] for name in "xy")
    weight = numpy_helper.from_array(np.eye(3, k=1, dtype=np.float32) + 0.5, "w")
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="only")
    graph = helper.make_graph([node], "g", given, made, [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), source)
    result = osc.compress(source, measure_latency=False)
    assert result.report.outcome == "unchanged"
    value = result.model.ir.graph.initializers["w"]
    assert value.const_value is not None
    value.const_value = ir.tensor(2 * value.const_value.numpy(), name="w")
    result.save(out)
    result.lock().save(tmp_path / "out.lock")
    apply(tmp_path / "out.lock", source).save(tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == out.read_bytes() != source.read_bytes()
