"""Turn weights shipped as Keras .h5 or PyTorch .pth into raw ONNX graphs, and data shipped as JSON or CSV into .npz.

Only used for the zoo entries that have a `convert` key. BatchNormalization, Dropout-free
activations and SAME padding are written one node per layer, as an exporter would.
"""

from __future__ import annotations

import gzip
import io
import json
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class Graph:
    """A linear builder: every method appends one node and returns its output name."""

    def __init__(self, name: str, opset: int = 13) -> None:
        self.name, self.opset = name, opset
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def weight(self, name: str, value: np.ndarray) -> str:
        self.weights.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(self, op: str, inputs: list[str], name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def save(self, path: Path, x: tuple[str, list], y: str, y_shape: list) -> None:
        info = helper.make_tensor_value_info
        graph = helper.make_graph(
            self.nodes,
            self.name,
            [info(x[0], TensorProto.FLOAT, x[1])],
            [info(y, TensorProto.FLOAT, y_shape)],
            self.weights,
        )
        model = helper.make_model(
            graph,
            producer_name="onnx-zoo-convert",
            opset_imports=[helper.make_opsetid("", self.opset)],
            ir_version=7,
        )
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, path)


def keras_h5(source: Path, target: Path) -> None:
    """Convert a Sequential or (possibly nested) Functional image model; input becomes NCHW."""
    import h5py

    with h5py.File(source, "r") as file:
        config = json.loads(file.attrs["model_config"])["config"]
        weights: dict[str, np.ndarray] = {}

        def collect(key: str, item: Any) -> None:
            if isinstance(item, h5py.Dataset):
                parts = key.removesuffix(":0").split("/")
                weights["/".join(parts[-2:])] = np.asarray(item, np.float32)

        file["model_weights"].visititems(collect)

    graph = Graph(config["name"])
    tensors: dict[str, str] = {}
    shape: list[Any] = []

    def sources(layer: dict, previous: str) -> list[str]:
        inbound = layer.get("inbound_nodes")
        if not inbound:
            return [previous]
        if isinstance(inbound[0], dict):  # Keras 3
            args = inbound[0]["args"][0]
            args = args if isinstance(args, list) else [args]
            return [tensors[a["config"]["keras_history"][0]] for a in args]
        return [tensors[entry[0]] for entry in inbound[0]]

    def run(layers: list[dict], x: str) -> str:
        for layer in layers:
            conf, kind = layer["config"], layer["class_name"]
            name = conf["name"]
            if kind == "InputLayer":
                if not shape:
                    dims = conf.get("batch_shape") or conf["batch_input_shape"]
                    shape.extend(["N", dims[3], dims[1], dims[2]])
            elif kind == "Functional":
                x = run(conf["layers"], sources(layer, x)[0])
            else:
                x = emit(kind, conf, name, sources(layer, x))
            tensors[name] = x
        return x

    def emit(kind: str, conf: dict, name: str, x: list[str]) -> str:
        def w(part: str) -> np.ndarray:
            return weights[f"{name}/{part}"]

        if kind in ("Conv2D", "DepthwiseConv2D"):
            if kind == "Conv2D":
                kernel, group = w("kernel").transpose(3, 2, 0, 1), 1
            else:
                depthwise = weights.get(f"{name}/depthwise_kernel", weights.get(f"{name}/kernel"))
                kernel, group = depthwise.transpose(2, 3, 0, 1), depthwise.shape[2]
            inputs = [x[0], graph.weight(f"{name}.weight", kernel)]
            if conf["use_bias"]:
                inputs.append(graph.weight(f"{name}.bias", w("bias")))
            pad = "SAME_UPPER" if conf["padding"] == "same" else "VALID"
            y = graph.node(
                "Conv",
                inputs,
                name,
                kernel_shape=conf["kernel_size"],
                strides=conf["strides"],
                group=group,
                auto_pad=pad,
            )
            return activate(conf["activation"], y, name)
        if kind == "BatchNormalization":
            parts = {"gamma": "weight", "beta": "bias", "moving_mean": "mean", "moving_variance": "var"}
            stats = [graph.weight(f"{name}.{new}", w(old)) for old, new in parts.items()]
            return graph.node("BatchNormalization", [x[0], *stats], name, epsilon=conf["epsilon"])
        if kind == "Dense":
            inputs = [x[0], graph.weight(f"{name}.weight", w("kernel").T), graph.weight(f"{name}.bias", w("bias"))]
            return activate(conf["activation"], graph.node("Gemm", inputs, name, transB=1), name)
        if kind == "ReLU" and conf.get("max_value") is not None:
            low = graph.weight(f"{name}.min", np.float32(0))
            high = graph.weight(f"{name}.max", np.float32(conf["max_value"]))
            return graph.node("Clip", [x[0], low, high], name)
        if kind in ("ReLU", "Activation"):
            return activate(conf.get("activation", "relu"), x[0], name)
        if kind == "ZeroPadding2D":
            (top, bottom), (left, right) = conf["padding"]
            pads = graph.weight(f"{name}.pads", np.int64([0, 0, top, left, 0, 0, bottom, right]))
            return graph.node("Pad", [x[0], pads], name)
        if kind in ("MaxPooling2D", "AveragePooling2D"):
            return graph.node(
                "MaxPool" if kind[0] == "M" else "AveragePool",
                x[:1],
                name,
                kernel_shape=conf["pool_size"],
                strides=conf["strides"],
            )
        if kind == "GlobalAveragePooling2D":
            return graph.node("Flatten", [graph.node("GlobalAveragePool", x[:1], f"{name}.pool")], name)
        if kind == "Flatten":  # Keras flattens NHWC
            return graph.node("Flatten", [graph.node("Transpose", x[:1], f"{name}.nhwc", perm=[0, 2, 3, 1])], name)
        if kind == "Add":
            return graph.node("Add", x, name)
        if kind in ("Dropout", "Reshape"):
            return x[0]
        raise NotImplementedError(kind)

    def activate(kind: str, x: str, name: str) -> str:
        if kind == "linear":
            return x
        op = {"relu": "Relu", "softmax": "Softmax"}[kind]
        return graph.node(op, [x], f"{name}.{kind}")

    y = run(config["layers"], "input")
    features = graph.weights[-1].dims[0]
    graph.save(target, ("input", shape), y, ["N", features])


class _TorchLegacyReader(pickle.Unpickler):
    """Reads tensors of a pre-1.6 torch.save file without torch, running no pickled code."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): lambda *args: args[:4],
        }
        if name in ("FloatStorage", "LongStorage"):
            return name
        return allowed[module, name]

    def persistent_load(self, pid: tuple) -> tuple[str, str]:
        return pid[2], pid[1]


def read_torch_legacy(path: Path) -> dict[str, np.ndarray]:
    with path.open("rb") as stream:
        for _ in range(3):  # magic number, protocol, system info
            pickle.load(stream)
        state = _TorchLegacyReader(stream).load()
        keys = pickle.load(stream)
        dtypes = {key: dtype for (key, dtype), *_ in state.values()}
        storage = {}
        for key in keys:
            count = int.from_bytes(stream.read(8), "little")
            dtype = np.dtype({"FloatStorage": "<f4", "LongStorage": "<i8"}[dtypes[key]])
            storage[key] = np.frombuffer(stream.read(count * dtype.itemsize), dtype)
    tensors = {}
    for name, ((key, _), offset, size, stride) in state.items():
        data = storage[key][offset:]
        steps = [step * data.itemsize for step in stride]
        tensors[name] = np.lib.stride_tricks.as_strided(data, size, steps)
    return tensors


def efficientnet_lite0(source: Path, target: Path) -> None:
    """EfficientNet-Lite0 (no SE, ReLU6), 224x224, with BatchNormalization left unfolded."""
    state = read_torch_legacy(source)
    graph = Graph("efficientnet-lite0")
    low, high = graph.weight("zero", np.float32(0)), graph.weight("six", np.float32(6))

    def conv_bn(x: str, conv: str, bn: str, kernel: int, stride: int, group: int, relu: bool) -> str:
        total = kernel - stride if stride > 1 else kernel - 1  # TF "SAME" for even input sizes
        begin, end = total // 2, total - total // 2
        weight = graph.weight(f"{conv}.weight", state[f"{conv}.weight"])
        x = graph.node(
            "Conv",
            [x, weight],
            conv,
            kernel_shape=[kernel] * 2,
            strides=[stride] * 2,
            pads=[begin, begin, end, end],
            group=group,
        )
        names = [f"{bn}.{part}" for part in ("weight", "bias", "running_mean", "running_var")]
        x = graph.node("BatchNormalization", [x, *(graph.weight(n, state[n]) for n in names)], bn, epsilon=1e-3)
        return graph.node("Clip", [x, low, high], f"{bn}.relu6") if relu else x

    x = conv_bn("input", "_conv_stem", "_bn0", 3, 2, 1, True)
    index = 0
    # repeats, kernel, stride, expansion, output channels
    for repeats, kernel, stride, expand, _ in [
        (1, 3, 1, 1, 16),
        (2, 3, 2, 6, 24),
        (2, 5, 2, 6, 40),
        (3, 3, 2, 6, 80),
        (3, 5, 1, 6, 112),
        (4, 5, 2, 6, 192),
        (1, 3, 1, 6, 320),
    ]:
        for repeat in range(repeats):
            block, skip = f"_blocks.{index}", x
            if expand != 1:
                x = conv_bn(x, f"{block}._expand_conv", f"{block}._bn0", 1, 1, 1, True)
            group = state[f"{block}._depthwise_conv.weight"].shape[0]
            step = stride if repeat == 0 else 1
            x = conv_bn(x, f"{block}._depthwise_conv", f"{block}._bn1", kernel, step, group, True)
            x = conv_bn(x, f"{block}._project_conv", f"{block}._bn2", 1, 1, 1, False)
            if repeat:
                x = graph.node("Add", [x, skip], f"{block}.add")
            index += 1
    x = conv_bn(x, "_conv_head", "_bn1", 1, 1, 1, True)
    x = graph.node("Flatten", [graph.node("GlobalAveragePool", [x], "_pool")], "_flatten")
    fc = [graph.weight("_fc.weight", state["_fc.weight"]), graph.weight("_fc.bias", state["_fc.bias"])]
    x = graph.node("Gemm", [x, *fc], "logits", transB=1)
    graph.save(target, ("input", ["N", 3, 224, 224]), x, ["N", 1000])


def _npz(images: np.ndarray, labels: np.ndarray) -> bytes:
    """Shuffle with a fixed seed and pack as uint8 `images` (N, H, W) and `labels` (N)."""
    order = np.random.default_rng(0).permutation(len(labels))
    stream = io.BytesIO()
    np.savez_compressed(stream, images=images[order].astype(np.uint8), labels=labels[order].astype(np.uint8))
    return stream.getvalue()


def mnist_json(members: list[tuple[str, bytes]]) -> bytes:
    """One JSON file per digit, all pixels of all images in one list of floats in 0..1."""
    images, labels = [], []
    for name, content in members:
        pixels = np.rint(np.float32(json.loads(content)["data"]) * 255).reshape(-1, 28, 28)
        images.append(pixels)
        labels.append(np.full(len(pixels), int(Path(name).stem)))
    return _npz(np.concatenate(images), np.concatenate(labels))


def digits_csv(members: list[tuple[str, bytes]]) -> bytes:
    """scikit-learn's 8x8 digits (0..16): 64 pixels and the label in every row."""
    rows = np.loadtxt(io.BytesIO(gzip.decompress(members[0][1])), delimiter=",")
    return _npz(rows[:, :64].reshape(-1, 8, 8), rows[:, 64])


def lfw_npy(members: list[tuple[str, bytes]]) -> bytes:
    """scikit-image's 100 faces (label 1), then 100 other patches (label 0), 25x25, 0..255."""
    images = np.load(io.BytesIO(members[0][1]))
    return _npz(np.rint(images * 255), np.repeat([1, 0], 100))


DATA_CONVERTERS = {"mnist_json": mnist_json, "digits_csv": digits_csv, "lfw_npy": lfw_npy}
CONVERTERS = {"keras_h5": keras_h5, "efficientnet_lite0": efficientnet_lite0}
