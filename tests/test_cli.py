"""The command line: exit codes, what goes to which stream, errors in one line, files checked before the work."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxslim_core.cli import main
from onnxslim_core.errors import InternalError

ROOT = Path(__file__).resolve().parent.parent
VERBS = ("demo", "inspect", "compress", "apply", "compare", "bench", "gate", "passes", "sensitivity")


def network(noise: float = 0.0) -> onnx.ModelProto:
    """Conv, BatchNormalization, Relu, pooling and a Gemm head on 1x3x8x8."""
    rng = np.random.default_rng(0)

    def weight(name: str, *shape: int, low: float = -1.0, high: float = 1.0) -> onnx.TensorProto:
        array = rng.uniform(low, high, shape) + noise * rng.standard_normal(shape)
        return numpy_helper.from_array(array.astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c", "g", "t", "m", "v"], ["b"], "norm"),
        helper.make_node("Relu", ["b"], ["r"], "relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flat"),
        helper.make_node("Gemm", ["f", "h", "hb"], ["logits"], "head"),
    ]
    weights = [
        weight("w", 16, 3, 3, 3),
        weight("g", 16, low=0.5, high=2),
        weight("t", 16),
        weight("m", 16),
        weight("v", 16, low=3, high=4),
        weight("h", 16, 4),
        weight("hb", 4),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 8, 8])
    y = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4])
    graph = helper.make_graph(nodes, "net", [x], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    onnx.save(network(), tmp_path / "a.onnx")
    onnx.save(network(noise=0.5), tmp_path / "far.onnx")
    (tmp_path / "broken.onnx").write_bytes(network().SerializeToString()[:-60])
    (tmp_path / "text.onnx").write_text("no model")
    np.savez(tmp_path / "d.npz", x=np.random.default_rng(3).standard_normal((8, 3, 8, 8)).astype(np.float32))
    np.savez(tmp_path / "other.npz", y=np.zeros((8, 3), np.float32))
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04")
    (tmp_path / "b.toml").write_text("[budget]\nmin_cosine = 0.9999\n")
    (tmp_path / "typo.toml").write_text("[budget]\nmin_cosin = 0.99\nmax_abs = 'much'\n")
    (tmp_path / "empty.toml").write_text("[budget]\n")
    (tmp_path / "settings.toml").write_text("[budget]\nrequire_data = true\n")
    (tmp_path / "syntax.toml").write_text("[budget\n")
    (tmp_path / "r.toml").write_text('[[pass]]\nname = "fuse_batchnorm"\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    return tmp_path


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: str) -> tuple[int, str, str]:
        code = main(list(arguments))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def refuse(word: str) -> Any:
    raise AssertionError(f"{word} is not JSON")


def process(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
    command = [sys.executable, "-m", "onnxslim_core", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.Popen(command, text=True, env=environment, **pipes)


# ---------------------------------------------------------------------------------------------------- help


def test_help_lists_every_verb_and_no_other(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    listed = out.partition("Commands:")[2].split("\n")
    assert sorted(line.split()[0] for line in listed if line.strip()) == sorted(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself_and_has_the_common_options(run: Run, verb: str) -> None:
    code, out, _ = run(verb, "--help")
    assert code == 0
    assert all(option in out for option in ("--json", "--threads", "--seed", "--quiet", "--traceback"))


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["compress", "--help"], ["gate", "--help"]])
def test_help_loads_nothing_heavy(arguments: Sequence[str]) -> None:
    heavy = {"onnx", "onnx_ir", "onnxruntime", "scipy", "sklearn", "torch", "numpy"}
    script = f"import sys; from onnxslim_core.cli import main; main({arguments!r}); print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_version_names_what_results_depend_on(run: Run) -> None:
    code, out, _ = run("--version")
    assert code == 0
    assert out.startswith("onnxslim-core ")
    assert f"onnxruntime {ort.__version__}" in out


def test_without_a_verb_is_wrong_usage(run: Run) -> None:
    code, out, err = run()
    assert (code, out) == (2, "")
    assert "Commands:" in err


# ---------------------------------------------------------------------------------------------------- exit codes

WRONG: list[tuple[int, list[str]]] = [
    (1, ["gate", "a.onnx", "far.onnx", "--budget", "b.toml"]),
    (1, ["gate", "a.onnx", "a.onnx", "--budget", "strict.toml"]),
    (2, ["nonsense"]),
    (2, ["gate", "a.onnx"]),
    (2, ["gate", "a.onnx", "a.onnx"]),
    (2, ["compress", "a.onnx"]),
    (2, ["compress", "a.onnx", "-o", "o.onnx", "--wrong"]),
    (2, ["inspect", "a.onnx", "--threads", "0"]),
    (2, ["inspect", "a.onnx", "--seed", "-1"]),
    (2, ["inspect", "a.onnx", "--shape", "x"]),
    (2, ["inspect", "a.onnx", "--shape", "nobody=1x3x8x8"]),
    (2, ["inspect", "a.onnx", "--value", "x"]),
    (2, ["passes", "nothing"]),
    (2, ["compress", "a.onnx", "-o", "o.onnx", "--preset", "nothing"]),
    (2, ["compress", "a.onnx", "-o", "o.onnx", "--recipe", "absent.toml"]),
    (2, ["compress", "a.onnx", "-o", "o.onnx", "--recipe", "b.toml"]),
    (2, ["compress", "a.onnx", "-o", "o.onnx", "--recipe", "r.toml", "--preset", "exact"]),
    (2, ["compress", "a.onnx", "-o", "o.onnx", "--set", "remove_idle.round"]),
    (2, ["compress", "a.onnx", "-o", "o.onnx", "--set", "remove_idle.rounded=1"]),
    (2, ["compress", "a.onnx", "-o", "o.onnx", "--budget", "typo.toml"]),
    (2, ["gate", "a.onnx", "a.onnx", "--budget", "absent.toml"]),
    (2, ["gate", "a.onnx", "a.onnx", "--budget", "typo.toml"]),
    (2, ["gate", "a.onnx", "a.onnx", "--budget", "empty.toml"]),
    (2, ["gate", "a.onnx", "a.onnx", "--budget", "settings.toml"]),
    (2, ["gate", "a.onnx", "a.onnx", "--budget", "syntax.toml"]),
    (3, ["inspect", "absent.onnx"]),
    (3, ["inspect", "text.onnx"]),
    (3, ["inspect", "."]),
    (3, ["bench", "absent.onnx"]),
    (3, ["compare", "a.onnx", "broken.onnx"]),
    (3, ["compress", "absent.onnx", "-o", "o.onnx"]),
    (3, ["gate", "absent.onnx", "a.onnx", "--budget", "b.toml"]),
    (3, ["gate", "a.onnx", "broken.onnx", "--budget", "b.toml"]),
    (3, ["gate", "a.onnx", "a.onnx", "--budget", "b.toml", "--data", "absent.npz"]),
    (3, ["gate", "a.onnx", "a.onnx", "--budget", "b.toml", "--data", "broken.npz"]),
    (3, ["gate", "a.onnx", "a.onnx", "--budget", "b.toml", "--data", "other.npz"]),
]


@pytest.mark.parametrize(
    ("expected", "arguments"), WRONG, ids=lambda entry: " ".join(entry) if isinstance(entry, list) else ""
)
def test_exit_code_and_one_line(folder: Path, run: Run, expected: int, arguments: list[str]) -> None:
    (folder / "strict.toml").write_text("[budget]\nmax_size_ratio = 0.5\n")
    code, out, err = run(*arguments)
    assert code == expected
    if expected >= 2:
        lines = err.splitlines()
        assert lines[0].startswith("onnxslim-core: ")
        assert all(line.startswith("  hint: ") for line in lines[1:])
        assert "Traceback" not in err
        assert out == ""
    assert not (folder / "o.onnx").exists()


def test_every_mistake_of_a_budget_is_told(folder: Path, run: Run) -> None:
    _, _, err = run("gate", "a.onnx", "a.onnx", "--budget", "typo.toml")
    assert "min_cosine" in err
    assert "max_abs" in err


@pytest.mark.parametrize(
    "error", [InternalError("a is b", "pass x, node y"), ValueError("boom"), AssertionError(), SystemExit(0)]
)
def test_our_own_bug_is_4_and_says_how_to_report(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("onnxslim_core.model.load", fail)
    code, out, err = run("inspect", "a.onnx")
    assert (code, out) == (4, "")
    assert err.startswith("onnxslim-core: internal error: ")
    assert "--traceback" in err
    assert len(err.splitlines()) == 2
    code, _, err = run("inspect", "a.onnx", "--traceback")
    assert code == 4
    assert "Traceback" in err


def test_traceback_is_shown_only_when_asked_for(folder: Path, run: Run) -> None:
    assert "Traceback" in run("inspect", "absent.onnx", "--traceback")[2]
    assert "Traceback" not in run("inspect", "absent.onnx")[2]


def test_interrupted_is_130(folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("onnxslim_core.model.load", interrupt)
    code, out, err = run("inspect", "a.onnx")
    assert (code, out) == (130, "")
    assert "interrupted" in err


@pytest.mark.skipif(os.name == "nt", reason="signals are different there")
def test_control_c_stops_a_running_job(folder: Path) -> None:
    (folder / "slow.py").write_text(
        "import pathlib, threading\n"
        "def samples():\n"
        "    pathlib.Path('begun').touch()\n"
        "    threading.Event().wait(600)\n"
    )
    child = process("compare", "a.onnx", "a.onnx", "--data", "slow.py:samples", cwd=folder)
    deadline = time.monotonic() + 60
    while not (folder / "begun").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=60)
    assert child.returncode == 130, err
    assert out == ""
    assert "Traceback" not in err


# ---------------------------------------------------------------------------------------------------- streams

JSON_RUNS = [
    ["inspect", "a.onnx"],
    ["inspect", "a.onnx", "--explain"],
    ["compare", "a.onnx", "far.onnx"],
    ["compare", "a.onnx", "a.onnx", "--data", "d.npz"],
    ["bench", "a.onnx", "--seconds", "0.5"],
    ["bench", "a.onnx", "a.onnx", "--seconds", "0.5"],
    ["gate", "a.onnx", "a.onnx", "--budget", "b.toml"],
    ["gate", "a.onnx", "far.onnx", "--budget", "b.toml"],
    ["compress", "a.onnx", "-o", "o.onnx", "--no-latency"],
    ["passes"],
    ["passes", "fuse_batchnorm"],
    ["inspect", "absent.onnx"],
    ["nonsense"],
]


SHOWN = [run for run in JSON_RUNS[:-2] if run[0] in ("inspect", "gate", "passes") or "far.onnx" in run]


@pytest.mark.parametrize("arguments", JSON_RUNS, ids=" ".join)
def test_json_is_all_there_is_on_stdout(folder: Path, run: Run, arguments: list[str]) -> None:
    code, out, err = run(*arguments, "--json")
    document = json.loads(out, parse_constant=refuse)
    assert document["schema"] == 1
    assert err
    if code >= 2:
        assert document["exit_code"] == code
        assert document["error"]["message"] in err


@pytest.mark.parametrize("arguments", SHOWN, ids=" ".join)
def test_quiet_prints_nothing(folder: Path, run: Run, arguments: list[str]) -> None:
    assert run(*arguments, "--quiet")[1:] == ("", "")


@pytest.mark.parametrize("arguments", SHOWN, ids=" ".join)
def test_results_go_to_stdout(folder: Path, run: Run, arguments: list[str]) -> None:
    code, out, err = run(*arguments)
    assert code in (0, 1)
    assert out
    assert err == ""


@pytest.mark.skipif(os.name == "nt", reason="no SIGPIPE there")
def test_reader_that_leaves_does_not_change_the_verdict(folder: Path) -> None:
    for candidate, expected in (("a.onnx", 0), ("far.onnx", 1)):
        child = process("gate", "a.onnx", candidate, "--budget", "b.toml", cwd=folder)
        assert child.stdout is not None
        child.stdout.close()
        _, err = child.communicate(timeout=60)
        assert (child.returncode, err) == (expected, "")


def test_no_color_is_honoured(folder: Path) -> None:
    def colours(**environment: str) -> bool:
        out, _ = process("passes", cwd=folder, env={"FORCE_COLOR": "1", "TERM": "xterm", **environment}).communicate()
        return "\x1b[32m" in out

    assert colours()
    assert not colours(NO_COLOR="1")


def test_terminal_without_unicode_gets_its_table(folder: Path) -> None:
    child = process("gate", "a.onnx", "a.onnx", "--budget", "b.toml", cwd=folder, env={"PYTHONIOENCODING": "ascii"})
    out, err = child.communicate()
    assert (child.returncode, err) == (0, "")
    assert "min_cosine" in out


# ---------------------------------------------------------------------------------------------------- files

UNWRITABLE = [
    ("-o", "nowhere/o.onnx"),
    ("-o", "."),
    ("-o", os.devnull),
    ("-o", "d.npz"),
    ("-o", "r.toml"),
    ("--report", "nowhere/r.json"),
    ("--report", "a.onnx"),
    ("--report", "o.onnx"),
    ("--report", "./o.onnx"),
]


@pytest.mark.parametrize(("option", "target"), UNWRITABLE)
def test_what_cannot_be_written_is_refused_before_the_work(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch, option: str, target: str
) -> None:
    monkeypatch.setattr("onnxslim_core.pipeline.compress_file", lambda *_, **__: pytest.fail("the work began"))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    arguments = ["compress", "a.onnx", "--data", "d.npz", "--recipe", "r.toml", option, target]
    code, _, err = run(*arguments, *([] if option == "-o" else ["-o", "o.onnx"]))
    assert code == 2, err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_folder_without_permission_is_refused(folder: Path, run: Run) -> None:
    (folder / "locked").mkdir(mode=0o500)
    assert run("compress", "a.onnx", "-o", "locked/o.onnx")[0] == 2


@pytest.mark.parametrize("option", ["--junit", "--markdown"])
def test_gate_refuses_what_it_cannot_write(folder: Path, run: Run, option: str) -> None:
    for target in ("nowhere/f", "b.toml", "a.onnx"):
        code, out, _ = run("gate", "a.onnx", "a.onnx", "--budget", "b.toml", option, target)
        assert (code, out) == (2, "")


# ---------------------------------------------------------------------------------------------------- verbs


def answers(path: Path) -> np.ndarray:
    x = np.random.default_rng(5).standard_normal((6, 3, 8, 8)).astype(np.float32)
    return np.asarray(ort.InferenceSession(path).run(None, {"x": x})[0])


def test_compress_alone_gives_equal_answers_and_less(folder: Path, run: Run) -> None:
    code, out, _ = run("compress", "a.onnx", "-o", "o.onnx", "--no-latency")
    assert code == 0
    np.testing.assert_allclose(answers(folder / "o.onnx"), answers(folder / "a.onnx"), rtol=1e-4, atol=1e-5)
    assert "BatchNormalization" not in [node.op_type for node in onnx.load(folder / "o.onnx").graph.node]
    assert "fuse_batchnorm" in out


def test_compress_takes_recipe_settings_data_budget_and_writes_the_report(folder: Path, run: Run) -> None:
    code, _, _ = run(
        *("compress", "a.onnx", "-o", "o.onnx", "--preset", "balanced", "--data", "d.npz", "--no-latency"),
        *("--set", "prune_channels.criterion=l1", "--report", "r.json", "--seed", "3"),
    )
    assert code == 0
    report = json.loads((folder / "r.json").read_text(), parse_constant=refuse)
    assert report["data"]["kind"] == "given"
    assert report["asked"]["options"]["seed"] == 3
    step = next(step for step in report["asked"]["steps"] if step["name"] == "prune_channels")
    assert step["criterion"] == "l1"


def test_compress_over_budget_writes_nothing(folder: Path, run: Run) -> None:
    (folder / "hard.toml").write_text("[budget]\nmax_size_ratio = 0.01\n")
    code, _, err = run("compress", "a.onnx", "-o", "o.onnx", "--budget", "hard.toml", "--no-latency")
    assert code == 1
    assert "nothing was written" in err
    assert not (folder / "o.onnx").exists()


def test_compress_may_replace_its_source(folder: Path, run: Run) -> None:
    wanted = answers(folder / "a.onnx")
    assert run("compress", "a.onnx", "-o", "a.onnx", "--no-latency")[0] == 0
    np.testing.assert_allclose(answers(folder / "a.onnx"), wanted, rtol=1e-4, atol=1e-5)


def test_gate_writes_its_views(folder: Path, run: Run) -> None:
    from xml.etree import ElementTree

    code, out, _ = run(
        *("gate", "a.onnx", "far.onnx", "--budget", "b.toml", "--data", "d.npz"),
        *("--junit", "v.xml", "--markdown", "v.md", "--json"),
    )
    document = json.loads(out)
    assert code == 1 == document["exit_code"]
    assert document["data"] == {"source": "8 samples of d.npz", "real": True, "samples": 8}
    cases = ElementTree.parse(folder / "v.xml").findall("./testsuite/testcase")
    assert [case.attrib["name"] for case in cases] == [row["key"] for row in document["rows"]]
    assert "Gate failed" in (folder / "v.md").read_text()


def test_gate_takes_a_recipe_for_its_data_and_a_metric_by_name(folder: Path, run: Run) -> None:
    np.savez(folder / "nhwc.npz", pictures=np.full((4, 8, 8, 3), 255, np.uint8), answer=np.zeros(4, int))
    (folder / "data.toml").write_text(
        '[[pass]]\nname = "normalize"\n[data]\nsource = "nhwc.npz"\n'
        '[data.inputs.x]\nfrom = "pictures"\nlayout = "NHWC"\nscale = 255.0\n'
    )
    (folder / "score.py").write_text("def score(outputs, labels):\n    return float(len(labels))\n")
    (folder / "metric.toml").write_text("[budget]\nmin_metric = 4\nrequire_data = true\n")
    fed = json.loads(run("compare", "a.onnx", "a.onnx", "--recipe", "data.toml", "--json")[1])["data"]
    assert fed == {"source": "4 samples of nhwc.npz", "real": True, "samples": 4}
    base = ["gate", "a.onnx", "a.onnx", "--budget", "metric.toml", "--recipe", "data.toml"]
    assert run(*base)[0] == 1
    assert run(*base, "--labels", "answer", "--metric", "score.py:score")[0] == 0
    assert run(*base, "--labels", "answer", "--metric", "score.py:nothing")[0] == 3
    (folder / "score.py").write_text("import sys\nsys.exit(0)\n")
    assert run(*base, "--labels", "answer", "--metric", "score.py:score")[0] == 3


def test_inspect_counts_what_is_there(folder: Path, run: Run) -> None:
    document = json.loads(run("inspect", "a.onnx", "--shape", "x=2x3x8x8", "--json")[1])
    assert document["operators"]["Conv"] == 1
    assert document["inputs"] == [{"name": "x", "type": "FLOAT", "shape": ["batch", 3, 8, 8]}]
    assert document["sizes"] == {"x": [2, 3, 8, 8]}
    assert document["cost"]["macs"] >= 2 * (16 * 64 * 27 + 64)
    assert document["explanation"] is None
    explained = json.loads(run("inspect", "a.onnx", "--explain", "--json")[1])["explanation"]
    assert {(group["size"], group["free"]) for group in explained["groups"]} == {(16, 16), (4, 0)}


def test_inspect_shows_a_model_that_nothing_runs_on(folder: Path, run: Run) -> None:
    model = network()
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 7
    model.graph.node[0].attribute.append(helper.make_attribute("kernel_shape", [9, 9]))
    onnx.save(model, folder / "odd.onnx")
    code, out, _ = run("inspect", "odd.onnx")
    assert code == 0
    assert "not run" in out


def test_passes_shows_options_with_their_meaning(folder: Path, run: Run) -> None:
    from onnxslim_core.passes import TABLE

    listed = json.loads(run("passes", "--json")[1])["passes"]
    assert [page["name"] for page in listed] == [row.name for row in TABLE]
    page = json.loads(run("passes", "prune_channels", "--json")[1])["pass"]
    options = {option["name"]: option for option in page["options"]}
    assert options["criterion"]["default"] == "l2"
    assert all(option["help"] for option in options.values())


def test_compare_and_bench_tell_the_truth(folder: Path, run: Run) -> None:
    same = json.loads(run("compare", "a.onnx", "a.onnx", "--data", "d.npz", "--json")[1])
    far = json.loads(run("compare", "a.onnx", "far.onnx", "--data", "d.npz", "--json")[1])
    assert same["fidelity"]["outputs"]["logits"]["max_abs"] == 0
    x = np.load(folder / "d.npz")["x"]
    pair = [ort.InferenceSession(folder / name).run(None, {"x": x})[0] for name in ("a.onnx", "far.onnx")]
    difference = float(np.abs(pair[0] - pair[1]).max())
    assert far["fidelity"]["outputs"]["logits"]["max_abs"] == pytest.approx(difference, rel=1e-3)
    timed = json.loads(run("bench", "a.onnx", "a.onnx", "--seconds", "0.5", "--json")[1])["latency"]
    assert 0 < timed["low"] <= timed["ratio"] <= timed["high"]
