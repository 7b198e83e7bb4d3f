"""What a BatchNormalization remembers tells a wrong preprocessing from a right one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxslim_core.calibration.plausible import USUAL, distance, first_memory, unlike_training
from onnxslim_core.calibration.source import Source, open_source
from onnxslim_core.calibration.spec import DataInput, DataSpec
from onnxslim_core.model import Model, load

Image = pytest.importorskip("PIL.Image")


def pictures(count: int, seed: int) -> np.ndarray:
    """Smooth random images; uint8 [count, 24, 24, 3]."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((count, 24, 24, 3))
    smooth = np.cumsum(np.cumsum(noise, axis=1), axis=2)
    smooth = (smooth - smooth.mean(axis=(1, 2), keepdims=True)) / smooth.std(axis=(1, 2), keepdims=True)
    return np.asarray(np.clip(smooth * 60 + 120, 0, 255), np.uint8)


def trained(entry: DataInput, norm: bool = True) -> Model:
    """Conv and BatchNormalization whose memory is of other pictures behind a preprocessing."""
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((8, 3, 3, 3)).astype(np.float32)
    nodes = [helper.make_node("Conv", ["x", "w"], ["a"], "conv")]
    nodes += [helper.make_node("BatchNormalization", ["a", "g", "t", "m", "v"], ["y"], "norm")] if norm else []
    plain = {"w": weight, **{key: np.ones(8, np.float32) for key in ("g", "t", "m", "v")}}

    def proto() -> onnx.ModelProto:
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 24, 24])
        y = helper.make_tensor_value_info("y" if norm else "a", TensorProto.FLOAT, ["n", 8, 22, 22])
        held = [numpy_helper.from_array(array, name) for name, array in plain.items() if norm or name == "w"]
        graph = helper.make_graph(nodes, "net", [x], [y], held)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    if norm:
        assert entry.scale is not None
        x = pictures(60, 7).transpose(0, 3, 1, 2) / entry.scale
        for numbers, operate in ((entry.mean, np.subtract), (entry.std, np.divide)):
            x = operate(x, np.reshape(numbers or (0.0 if operate is np.subtract else 1.0,), (1, -1, 1, 1)))
        windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(2, 3))
        answers = np.einsum("nchwij,ocij->nohw", windows, weight)
        plain["m"] = answers.mean(axis=(0, 2, 3)).astype(np.float32)
        plain["v"] = answers.var(axis=(0, 2, 3)).astype(np.float32)
    return load(proto())


def images(path: Path, model: Model, entry: DataInput) -> Source:
    path.mkdir(exist_ok=True)
    for number, pixels in enumerate(pictures(8, 3)):
        Image.fromarray(pixels).save(path / f"{number}.png")
    return open_source(path, model, DataSpec(inputs={"x": entry}))


@pytest.mark.parametrize("right", list(USUAL))
@pytest.mark.parametrize("used", list(USUAL))
def test_names_the_preprocessing_that_the_network_was_trained_behind(tmp_path: Path, right: str, used: str) -> None:
    model = trained(USUAL[right])
    source = images(tmp_path / "p", model, USUAL[used])
    said = unlike_training(model.ir, source)
    if used == right:
        assert said == ""
    else:
        assert f"'{right}' in [data.inputs]" in said and "'norm'" in said


def test_arrays_far_from_training_are_warned_of() -> None:
    model = trained(USUAL["range = [0, 1]"])
    rows = {"x": pictures(8, 3).transpose(0, 3, 1, 2).astype(np.float32)}
    assert "SCALED OTHERWISE" in unlike_training(model.ir, open_source(rows, model))
    right = open_source({"x": rows["x"] / np.float32(255)}, model)
    assert unlike_training(model.ir, right) == ""
    node = first_memory(model.ir)
    assert node is not None and distance(model.ir, node, list(right)) < 0.5


def test_nothing_to_say_without_a_memory(tmp_path: Path) -> None:
    model = trained(USUAL["scale = 1"], norm=False)
    assert first_memory(model.ir) is None
    assert unlike_training(model.ir, images(tmp_path / "p", model, USUAL["range = [0, 1]"])) == ""
