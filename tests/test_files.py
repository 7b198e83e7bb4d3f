"""The command line and its files: interrupted, crowded, from a hub's cache, with names of every kind, damaged."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxslim_core.cli import main
from onnxslim_core.errors import ModelError
from onnxslim_core.lock import apply
from onnxslim_core.model import load, save

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "bench"))
from _damage import DAMAGE, built_in  # type: ignore[import-not-found]  # noqa: E402

FLOAT = TensorProto.FLOAT
COMMAND = [sys.executable, "-m", "onnxslim_core", "compress"]


def chain(length: int = 6) -> onnx.ModelProto:
    """Relu, Mul by a constant and Identity in turn."""
    nodes, value = [], "x"
    for number in range(length):
        kind = ("Relu", "Mul", "Identity")[number % 3]
        inputs = [value, "w"] if kind == "Mul" else [value]
        nodes.append(helper.make_node(kind, inputs, [value := f"h{number}"], name=f"n{number}"))
    ports = [helper.make_tensor_value_info(name, FLOAT, ["n", 64]) for name in ("x", value)]
    weight = numpy_helper.from_array(np.linspace(0.5, 1.5, 64, dtype=np.float32), "w")
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def heavy() -> onnx.ModelProto:
    """Some milliseconds a call, so that timing what went (an Identity each) takes seconds."""
    rng = np.random.default_rng(0)
    nodes, weights, value = [], [], "x"
    for number in range(4):
        array = (rng.normal(size=(1024, 1024)) / 32).astype(np.float32)
        weights.append(numpy_helper.from_array(array, f"w{number}"))
        nodes.append(helper.make_node("MatMul", [value, f"w{number}"], [f"m{number}"], name=f"m{number}"))
        nodes.append(helper.make_node("Relu", [f"m{number}"], [f"r{number}"], name=f"r{number}"))
        nodes.append(helper.make_node("Identity", [f"r{number}"], [value := f"i{number}"], name=f"i{number}"))
    ports = [helper.make_tensor_value_info(name, FLOAT, [8, 1024]) for name in ("x", value)]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def answers(path: Path) -> np.ndarray:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    x = np.linspace(-1, 1, 128, dtype=np.float32).reshape(2, 64)
    return np.asarray(session.run(None, {session.get_inputs()[0].name: x})[0])


def compressed(source: Path, target: Path, *options: str) -> int:
    return main(["compress", str(source), "-o", str(target), "--quiet", "--no-latency", *options])


# --- interrupts and neighbours ---------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="a signal that Windows does not send")
@pytest.mark.parametrize("stage", ["onnxslim_core/pipeline", "onnxruntime"])
def test_an_interrupt_ends_with_130_and_leaves_nothing(tmp_path: Path, stage: str) -> None:
    """The timing alone takes longer than the test waits, so that the interrupt always comes in the middle."""
    onnx.save(heavy(), tmp_path / "in.onnx")
    command = [sys.executable, "-v", *COMMAND[1:], str(tmp_path / "in.onnx"), "-o", str(tmp_path / "out.onnx")]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:  # -v tells what is imported, and so how far it is
        if stage in line:
            break
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130, said
    assert "onnxslim-core: interrupted" in said.splitlines()
    assert "Traceback" not in said
    assert [path.name for path in tmp_path.iterdir()] == ["in.onnx"]


def test_two_runs_on_one_output_leave_one_whole_model(tmp_path: Path) -> None:
    sources = [tmp_path / "a.onnx", tmp_path / "b.onnx"]
    target = tmp_path / "out.onnx"
    for number, source in enumerate(sources):
        model = chain(9)
        model.graph.initializer[0].CopyFrom(
            numpy_helper.from_array(np.full(64, number + 2, np.float32), model.graph.initializer[0].name)
        )
        onnx.save(model, source)
    commands = [[*COMMAND, str(source), "-o", str(target), "--no-latency", "--quiet"] for source in sources]
    processes = [subprocess.Popen(command, cwd=ROOT) for command in commands]
    assert [process.wait(120) for process in processes] == [0, 0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.onnx", "b.onnx", "out.onnx", "out.onnx.lock"]
    found = answers(target)
    assert any(np.array_equal(found, answers(source)) for source in sources)


def test_the_output_may_be_the_input(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(chain(), path)
    expected = answers(path)
    assert compressed(path, path) == 0
    assert "Identity" not in {node.op_type for node in onnx.load(path).graph.node}
    np.testing.assert_array_equal(answers(path), expected)


# --- links, and disks that are full ----------------------------------------------------------------------------------


def test_an_output_that_is_a_link_is_written_through(tmp_path: Path) -> None:
    """As a shell's `>` does: the link stays, what it leads to is new; it may also lead to nothing yet."""
    onnx.save(chain(), tmp_path / "m.onnx")
    store = tmp_path / "store"
    store.mkdir()
    (store / "old").write_text("old")
    for link, target in (("o.onnx", "old"), ("r.json", "report"), ("o.lock", "lock")):
        (tmp_path / link).symlink_to(Path("store") / target)
    more = ("--report", str(tmp_path / "r.json"), "--lock", str(tmp_path / "o.lock"))
    assert compressed(tmp_path / "m.onnx", tmp_path / "o.onnx", *more) == 0
    assert all((tmp_path / link).is_symlink() for link in ("o.onnx", "r.json", "o.lock"))
    assert sorted(path.name for path in store.iterdir()) == ["lock", "old", "report"]
    np.testing.assert_array_equal(answers(store / "old"), answers(tmp_path / "m.onnx"))
    assert json.loads((store / "report").read_text())["schema"] == 1
    assert apply(store / "lock", tmp_path / "m.onnx").model.nbytes


def test_weights_of_their_own_go_through_no_link_to_another_folder(tmp_path: Path) -> None:
    """They would lie there, and whoever opens the link looks beside the link."""
    onnx.save(heavy(), tmp_path / "m.onnx")
    (tmp_path / "store").mkdir()
    (tmp_path / "o.onnx").symlink_to(tmp_path / "store" / "o.onnx")
    with pytest.raises(ModelError, match="link into another folder"):
        save(load(tmp_path / "m.onnx"), tmp_path / "o.onnx", external_data=True)
    assert not list((tmp_path / "store").iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="no such files there")
@pytest.mark.parametrize("kind", ["device", "pipe", "loop", "stream"])
def test_an_output_that_is_no_plain_file_is_refused(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx.save(chain(), tmp_path / "m.onnx")
    target = tmp_path / "link"
    if kind == "pipe":
        os.mkfifo(tmp_path / "pipe")
    reader, writer = os.pipe()
    leads = {"device": os.devnull, "pipe": "pipe", "loop": "link", "stream": f"/proc/self/fd/{writer}"}
    if kind == "stream" and not Path(leads[kind]).exists():
        pytest.skip("the system shows no streams as files")
    target.symlink_to(leads[kind])
    assert compressed(tmp_path / "m.onnx", target) == 2
    assert compressed(tmp_path / "m.onnx", tmp_path / "o.onnx", "--report", str(target)) == 2
    assert len([line for line in capsys.readouterr().err.splitlines() if "hint" not in line]) == 2
    assert target.is_symlink()
    assert not (tmp_path / "o.onnx").exists()
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize("fails", ["o.onnx", "o.onnx.lock"])
def test_a_result_and_its_lock_are_both_new_or_both_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    onnx.save(chain(), tmp_path / "m.onnx")
    for name in ("o.onnx", "o.onnx.lock"):
        (tmp_path / name).write_text("old")
    module, writer = ("_files", "write_pieces") if fails == "o.onnx" else ("lock.record", "write_archive")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(f"onnxslim_core.{module}.{writer}", full)
    assert compressed(tmp_path / "m.onnx", tmp_path / "o.onnx") == 3
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name != "m.onnx"} == {
        "o.onnx": b"old",
        "o.onnx.lock": b"old",
    }


@pytest.mark.parametrize("option", ["--junit", "--markdown"])
def test_a_full_disk_is_3_whatever_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    onnx.save(chain(), tmp_path / "m.onnx")
    (tmp_path / "b.toml").write_text("[budget]\nmin_cosine = 0.9\n")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    model, budget, out = (str(tmp_path / name) for name in ("m.onnx", "b.toml", "out"))
    assert main(["gate", model, model, "--budget", budget, option, out, "--quiet"]) == 3
    assert "No space left" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# --- hubs ------------------------------------------------------------------------------------------------------------


def test_the_hint_for_a_hubs_cache_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A hub keeps blobs under their hash and links to them from a snapshot; the weights lead out of its folder."""
    blobs, snapshot = tmp_path / "hub" / "blobs", tmp_path / "hub" / "snapshots" / "1"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    onnx.save(chain(), tmp_path / "m.onnx", save_as_external_data=True, location="m.onnx.data", size_threshold=0)
    expected = answers(tmp_path / "m.onnx")
    for name, blob in (("m.onnx", "0123"), ("m.onnx.data", "4567")):
        (tmp_path / name).rename(blobs / blob)
        (snapshot / name).symlink_to(Path("../../blobs") / blob)
    assert compressed(snapshot / "m.onnx", tmp_path / "out.onnx") == 3
    first, hint = capsys.readouterr().err.splitlines()
    assert "leaves the model's folder" in first
    assert "--external-data-root DIR" in hint
    assert compressed(snapshot / "m.onnx", tmp_path / "out.onnx", "--external-data-root", str(blobs)) == 0
    np.testing.assert_array_equal(answers(tmp_path / "out.onnx"), expected)


# --- names -----------------------------------------------------------------------------------------------------------


def test_names_in_any_script(tmp_path: Path) -> None:
    words = ("層/重み", "слой", "שכבה", "a:b", " ", "ﬁ", "e\u0301", "é", "\U0001f600", "'quoted'", "tab\there", "[b]")
    model = chain(len(words))
    for node, word in zip(model.graph.node, words, strict=True):
        node.name = word
        for values in (node.input, node.output):
            for place, name in enumerate(values):
                if name.startswith("h"):
                    values[place] = f"{words[int(name[1:])]}_out"
    model.graph.output[0].name = f"{words[-1]}_out"
    (tmp_path / "模型").mkdir()
    source = tmp_path / "模型" / "ñ.onnx"
    onnx.save(model, source)
    assert compressed(source, tmp_path / "模型" / "наружу.onnx") == 0
    np.testing.assert_array_equal(answers(tmp_path / "模型" / "наружу.onnx"), answers(source))
    assert onnx.load(tmp_path / "模型" / "наружу.onnx").graph.output[0].name == model.graph.output[0].name


@pytest.mark.parametrize("name", ["", "same"])
def test_thousands_of_nodes_of_one_name_or_none_out_of_order(tmp_path: Path, name: str) -> None:
    model = chain(3000)
    nodes = list(model.graph.node)
    for node in nodes:
        node.name = name
    random.Random(0).shuffle(nodes)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, tmp_path / "in.onnx")
    started = time.process_time()
    assert compressed(tmp_path / "in.onnx", tmp_path / "out.onnx") == 0
    assert time.process_time() - started < 30  # about 2 s
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "out.onnx").graph.node)
    assert kinds["Identity"] == 0
    onnx.save(chain(3000), tmp_path / "sorted.onnx")
    np.testing.assert_allclose(answers(tmp_path / "out.onnx"), answers(tmp_path / "sorted.onnx"), rtol=1e-6)


# --- damage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(built_in()))
def test_damaged_files_are_refused_in_a_line_or_answered(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The short version of bench/fuzz.py, which compares the answers, too: fixed seed, no crash, nothing left."""
    data, codes = built_in()[name], Counter[int]()
    for number in range(12):
        for kind, damage in DAMAGE.items():
            damaged = damage(data, random.Random(f"{name} {kind} {number}"))
            if b"Loop" in damaged:
                continue
            (tmp_path / "in.onnx").write_bytes(damaged)
            code = compressed(tmp_path / "in.onnx", tmp_path / "out.onnx")
            said = capsys.readouterr()
            assert code in (0, 2, 3), (kind, number, said.err)
            assert not said.out
            lines = [line for line in said.err.splitlines() if not line.startswith("  hint: ")]
            assert len(lines) == (0 if code == 0 else 1), said.err
            assert (tmp_path / "out.onnx").exists() == (code == 0)
            if code == 0:
                made = apply(tmp_path / "out.onnx.lock", damaged).model
                assert b"".join(made.pieces()) == (tmp_path / "out.onnx").read_bytes()
            (tmp_path / "out.onnx").unlink(missing_ok=True)
            (tmp_path / "out.onnx.lock").unlink(missing_ok=True)
            assert [path.name for path in tmp_path.iterdir()] == ["in.onnx"]
            codes[code] += 1
    assert codes[0] and codes[3]
