"""What a clumsy user types, and what a gate must not be fooled by: exit code, one line, nothing left behind."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxslim_core.cli import main


def network(weight: float = 1.0) -> onnx.ModelProto:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[n,4] x) => (float[n,3] y) { h = MatMul(x, w) y = Relu(h) }'
    )
    model.graph.initializer.append(numpy_helper.from_array(np.full((4, 3), weight, np.float32), "w"))
    return model


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    onnx.save(network(), "a.onnx")
    onnx.save(network(float("nan")), "nan.onnx")
    Path("budget.toml").write_text("[budget]\nmin_cosine = 0.9\n")
    Path("size.toml").write_text("[budget]\nmax_size_ratio = 2.0\n")
    return tmp_path


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("onnxslim-core: ")
    assert all(line.startswith("  hint: ") for line in lines[1:])
    return lines[0]


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "x" * 300 + "/o.onnx"])
def test_names_that_no_file_can_have(folder: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    before = sorted(folder.iterdir())
    assert main(["compress", "a.onnx", "-o", name, "--no-latency"]) == 2
    one_line(capsys)
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize("option", [["bench", "a.onnx", "--seconds"], ["gate", "a.onnx", "a.onnx", "--max-seconds"]])
@pytest.mark.usefixtures("folder")
def test_seconds_are_a_number(capsys: pytest.CaptureFixture[str], option: list[str]) -> None:
    assert main([*option, "nan"]) == 2
    assert "not a number" in one_line(capsys)


@pytest.mark.usefixtures("folder")
def test_text_that_calls_itself_npz(capsys: pytest.CaptureFixture[str]) -> None:
    Path("d.npz").write_text("these are no arrays")
    assert main(["compress", "a.onnx", "-o", "o.onnx", "--data", "d.npz"]) == 3
    assert "no .npz file" in one_line(capsys)


def test_exit_codes_are_listed_line_by_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "\\b" not in capsys.readouterr().out


@pytest.mark.parametrize("budget", ["budget.toml", "size.toml"])
@pytest.mark.usefixtures("folder")
def test_answers_that_are_no_numbers_pass_no_gate(capsys: pytest.CaptureFixture[str], budget: str) -> None:
    """Two networks that both answer NaN are equal, and nothing is known of either."""
    assert main(["gate", "nan.onnx", "nan.onnx", "--budget", budget, "--json"]) == 1
    assert "no finite number" in json.dumps(json.loads(capsys.readouterr().out))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.usefixtures("folder")
def test_data_that_is_no_number_passes_no_gate(value: float) -> None:
    data = np.ones((6, 4), np.float32)
    np.savez("good.npz", x=data)
    assert main(["gate", "a.onnx", "a.onnx", "--budget", "budget.toml", "--data", "good.npz", "--quiet"]) == 0
    data[2] = value
    np.savez("bad.npz", x=data)
    assert main(["gate", "a.onnx", "a.onnx", "--budget", "budget.toml", "--data", "bad.npz", "--quiet"]) == 1


def test_a_budget_on_answers_that_are_no_numbers_is_not_met(folder: Path) -> None:
    assert main(["compress", "nan.onnx", "-o", "o.onnx", "--no-latency", "--budget", "budget.toml", "--quiet"]) == 1
    assert not Path("o.onnx").exists()


@pytest.mark.usefixtures("folder")
def test_exact_passes_need_no_numbers_to_prove_that_nothing_changed() -> None:
    assert main(["compress", "nan.onnx", "-o", "o.onnx", "--no-latency", "--quiet"]) == 0
    assert Path("o.onnx").exists()
