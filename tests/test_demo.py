"""The demo's files are what they say, and its figures are those that onnxruntime alone gives."""

from __future__ import annotations

import json
from io import StringIO

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from rich.console import Console

from onnxslim_core.demo import FOLDER
from onnxslim_core.demo.run import Demo, demonstrate


@pytest.fixture(scope="module")
def heldout() -> tuple[np.ndarray, np.ndarray]:
    with np.load(FOLDER / "heldout.npz") as file:
        return file["image"], file["label"]


@pytest.fixture(scope="module")
def demo() -> Demo:
    return demonstrate(latency_seconds=2.0)


def digits(model: bytes, images: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    answers: np.ndarray = session.run(None, {"image": images})[0].argmax(1)
    return answers


def test_network_is_a_raw_export() -> None:
    model = onnx.load(str(FOLDER / "digits.onnx"))
    onnx.checker.check_model(model, full_check=True)
    ops = [node.op_type for node in model.graph.node]
    assert {"BatchNormalization", "Add", "Concat", "Gemm"} <= set(ops)
    groups = [a.i for node in model.graph.node for a in node.attribute if a.name == "group"]
    assert max(groups) > 1, "a depthwise Conv"
    assert model.producer_name == "pytorch"
    assert not any(node.doc_string for node in model.graph.node), "no source paths of the exporting machine"


def test_heldout_images_are_not_in_the_calibration(heldout: tuple[np.ndarray, np.ndarray]) -> None:
    with np.load(FOLDER / "calibration.npz") as file:
        seen = {image.tobytes() for image in file["image"]}
        assert file.files == ["image"], "no labels"
    assert not any(image.tobytes() in seen for image in heldout[0])


def test_figures_are_those_of_onnxruntime(demo: Demo, heldout: tuple[np.ndarray, np.ndarray]) -> None:
    images, labels = heldout
    before = digits((FOLDER / "digits.onnx").read_bytes(), images)
    after = digits(demo.result.model.to_proto().SerializeToString(), images)
    assert demo.images == len(labels)
    assert demo.right == (int((before == labels).sum()), int((after == labels).sum()))
    assert demo.same == int((before == after).sum())


def test_is_worth_showing(demo: Demo) -> None:
    report = demo.result.report
    assert demo.result.passed
    assert demo.right[0] >= 0.98 * demo.images, "the shipped network reads digits"
    assert demo.right[1] >= demo.right[0] - 0.02 * demo.images
    assert report.sizes[1] < 0.8 * report.sizes[0]
    assert report.verified


def test_prints_a_table_and_json(demo: Demo) -> None:
    console = Console(file=StringIO(), width=100)
    demo.draw(console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert f"{100 * demo.right[1] / demo.images:.2f} %" in shown
    assert all(step.name in shown for step in demo.result.report.steps if step.name != "cleanup")
    assert max(map(len, shown.splitlines())) <= 200
    document = json.loads(json.dumps(demo.document(), allow_nan=False))
    assert document["heldout"]["right_after"] == demo.right[1]
