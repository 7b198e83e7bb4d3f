"""Does it pay in onnxruntime to let a branch of a shared stream read fewer channels through a Gather?

    python bench/select_channels.py [NAME...] [--ratios 0.25 0.5 0.75] [--seconds 20]
    python bench/zoo/fetch.py light-densenet121
    python bench/select_channels.py light-densenet121

Three nets with random weights are made here: pre-activation ResNets with plain blocks (two 3x3 Convs, 64 to 256
channels at 32x32 to 8x8) and with bottlenecks (256 to 1024 channels at 28x28 to 7x7), and DenseNet-121 at 224x224 as
PyTorch writes it, a Concat per layer; the zoo's has one Concat after the other. Time does not depend on what the
weights are, and what is lost on random ones says nothing about a trained net, so no loss is printed.

Each ratio is tried twice: as the pass decides (every branch timed alone, then the whole) and with every branch cut
(`measure = "never"`). The times beside each other are those of whole models against the original, one thread,
interleaved, with a 95 % interval; the machine's own noise, the original against itself, is printed with them.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from _common import RESULTS, markdown, write_result
from _zoo import models
from onnx import TensorProto, helper, numpy_helper
from onnxslim_core.passes import pass_class

from onnxslim_core.measure.latency import Latency, compare_latency
from onnxslim_core.model import Model, load, wrap
from onnxslim_core.rewrite import Context, Sample

SAMPLES = 24
PROBE_SECONDS = 2.0


class Builder:
    """Nodes and random weights of a net."""

    def __init__(self, size: int) -> None:
        self.size, self.nodes, self.weights = size, list[Any](), list[Any]()
        self.rng = np.random.default_rng(0)

    def add(self, op: str, inputs: Sequence[str], **attributes: Any) -> str:
        name = f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attributes))
        return name

    def weight(self, array: np.ndarray) -> str:
        self.weights.append(numpy_helper.from_array(array.astype(np.float32), f"w{len(self.weights)}"))
        return str(self.weights[-1].name)

    def conv(self, x: str, out: int, into: int, kernel: int = 3, stride: int = 1) -> str:
        w = self.weight(self.rng.normal(0, (2 / (into * kernel**2)) ** 0.5, (out, into, kernel, kernel)))
        return self.add("Conv", [x, w], pads=[kernel // 2] * 4, strides=[stride] * 2)

    def norm_relu(self, x: str, width: int) -> str:
        rng = self.rng
        parts = [rng.uniform(0.2, 1, width), rng.normal(0, 0.2, width), rng.normal(0, 0.2, width)]
        names = [self.weight(part) for part in (*parts, rng.uniform(0.5, 2, width))]
        return self.add("Relu", [self.add("BatchNormalization", [x, *names])])

    def model(self, x: str, width: int) -> onnx.ModelProto:
        pooled = self.add("Flatten", [self.add("GlobalAveragePool", [x])])
        head = self.weight(self.rng.normal(0, width**-0.5, (width, 100)))
        self.nodes.append(helper.make_node("Gemm", [pooled, head], ["y"], name="head"))
        image = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, self.size, self.size])
        answer = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 100])
        graph = helper.make_graph(self.nodes, "net", [image], [answer], self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def resnet(size: int, widths: Sequence[int], blocks: int, bottleneck: bool) -> onnx.ModelProto:
    """He et al., Identity Mappings in Deep Residual Networks, ECCV 2016."""
    b = Builder(size)
    x, into = b.conv("x", widths[0], 3), widths[0]
    for stage, width in enumerate(widths):
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            active = b.norm_relu(x, into)
            shortcut = x if into == width else b.conv(active, width, into, 1, stride)
            inner = width // 4 if bottleneck else width
            y = b.conv(active, inner, into, 1 if bottleneck else 3, 1 if bottleneck else stride)
            y = b.conv(b.norm_relu(y, inner), inner, inner, 3, stride if bottleneck else 1) if bottleneck else y
            y = b.conv(b.norm_relu(y, inner), width, inner, 1 if bottleneck else 3)
            x, into = b.add("Add", [y, shortcut]), width
    return b.model(b.norm_relu(x, into), into)


def densenet(size: int, blocks: Sequence[int], grow: int = 32) -> onnx.ModelProto:
    """Huang et al., Densely Connected Convolutional Networks, CVPR 2017; a Concat per layer, as PyTorch writes it."""
    b = Builder(size)
    x, width = b.norm_relu(b.conv("x", 2 * grow, 3, 7, 2), 2 * grow), 2 * grow
    x = b.add("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    for number, layers in enumerate(blocks):
        parts = [x]
        for _ in range(layers):
            x = b.add("Concat", parts, axis=1) if len(parts) > 1 else parts[0]
            y = b.conv(b.norm_relu(x, width), 4 * grow, width, 1)
            parts.append(b.conv(b.norm_relu(y, 4 * grow), grow, 4 * grow))
            width += grow
        x = b.norm_relu(b.add("Concat", parts, axis=1), width)
        if number + 1 < len(blocks):
            x, width = b.conv(x, width // 2, width, 1), width // 2
            x = b.add("AveragePool", [x], kernel_shape=[2, 2], strides=[2, 2])
    return b.model(x, width)


def filled(name: str) -> onnx.ModelProto:
    """A light model of the zoo, which keeps the shapes of its weights alone, with random weights."""
    ((_, path, _),) = models([name])
    proto = onnx.load(str(path))
    shapes = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    rng = np.random.default_rng(0)
    kept = []
    for node in proto.graph.node:
        if node.op_type != "ConstantOfShape" or node.input[0] not in shapes:
            kept.append(node)
            continue
        shape = shapes[node.input[0]]
        spread = (2 / max(float(np.prod(shape[1:])), 1.0)) ** 0.5
        drawn = rng.normal(0, spread, shape) if len(shape) > 1 else rng.uniform(0.5, 1, shape)
        proto.graph.initializer.append(numpy_helper.from_array(drawn.astype(np.float32), node.output[0]))
    del proto.graph.node[:]
    proto.graph.node.extend(kept)
    return proto


NETS: dict[str, Callable[[], onnx.ModelProto]] = {
    "preact-basic": lambda: resnet(32, (64, 128, 256), 3, bottleneck=False),
    "preact-bottleneck": lambda: resnet(28, (256, 512, 1024), 3, bottleneck=True),
    "densenet121": lambda: densenet(224, (6, 12, 24, 16)),
    "light-densenet121": lambda: filled("light-densenet121"),
}


MADE_HERE = [name for name in NETS if not name.startswith("light-")]


def images(name: str, size: int, count: int) -> list[Sample]:
    """Smooth random images for the input of this name."""
    rng = np.random.default_rng(1)
    small = rng.normal(size=(count, 3, size // 4, size // 4)).repeat(4, axis=2).repeat(4, axis=3)
    return [{name: (image + 0.3 * rng.normal(size=image.shape))[None].astype(np.float32)} for image in small]


def attempt(original: Model, ratio: float, measure: str, feeds: Sequence[Sample], seconds: float) -> dict[str, Any]:
    """The pass once, and the whole timed against the original."""

    def probe(reference: Any, candidate: Any) -> Latency:
        inputs = {str(v.name): v.shape for v in reference.graph.inputs}
        feed: Any = feeds[0]
        if set(inputs) != set(feed):  # a part of the model, of concrete sizes
            rng = np.random.default_rng(0)
            feed = {n: rng.standard_normal(s.numpy()).astype(np.float32) for n, s in inputs.items() if s is not None}
        return compare_latency(wrap(reference), wrap(candidate), feed, threads=1, seconds=PROBE_SECONDS, seed=0)

    held = original.copy()
    context = Context(samples=feeds, samples_are_real=True, latency=probe)
    # what is kept is no matter here: the cheapest criterion and no repair
    options = {"ratio": ratio, "measure": measure, "criterion": "wifv", "repair": "none"}
    changes = pass_class("select_channels")(**options).run(held.ir, context)
    done = [change for change in changes if change.applied]
    found: dict[str, Any] = {
        "ratio": ratio,
        "measure": measure,
        "branches": len({w for change in changes for w in change.where}) or len(changes),
        "cut": len(done),
        "refused": dict(Counter(change.guard for change in changes if not change.applied)),
        "reasons": sorted({change.reason for change in changes if not change.applied and change.where})[:6],
    }
    if done:
        timing = compare_latency(original, held, feeds[0], threads=1, seconds=seconds, seed=0)
        noise = timing.noise
        found["time"] = [round(v, 3) for v in (timing.ratio, timing.low, timing.high)]
        found["noise"] = [round(v, 3) for v in (noise.ratio, noise.low, noise.high)] if noise else []
        found["original_ms"] = round(timing.reference_ms, 3)
    return found


def height_of(proto: onnx.ModelProto, name: str) -> int:
    """Height of the image that a model takes."""
    return next(v.type.tensor_type.shape.dim[2].dim_value for v in proto.graph.input if v.name == name)


def row(name: str, each: dict[str, Any]) -> list[str]:
    """Of the table."""

    def told(key: str) -> str:
        return "{:.2f} ({:.2f} to {:.2f})".format(*each[key]) if each.get(key) else "-"

    how = "as measured" if each["measure"] == "auto" else "everywhere"
    return [name, f"{each['ratio']:g}", how, str(each["cut"]), told("time"), told("noise")]


def main() -> None:
    """Every net at every ratio."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("names", nargs="*", default=MADE_HERE)
    parser.add_argument("--ratios", nargs="*", type=float, default=[0.25, 0.5, 0.75])
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    results: dict[str, list[dict[str, Any]]] = {}
    lines = []
    for name in args.names:
        proto = NETS[name]()
        original = load(proto)
        for step in ("normalize", "fold_constants", "fuse_batchnorm"):
            pass_class(step)().run(original.ir, Context())
        (image,) = original.ir.graph.inputs
        feeds = images(str(image.name), height_of(proto, str(image.name)), SAMPLES)
        results[name] = []
        for ratio in args.ratios:
            for measure in ("auto", "never"):
                results[name].append(attempt(original, ratio, measure, feeds, args.seconds))
                lines.append(row(name, results[name][-1]))
                print(*lines[-1], sep="\t", flush=True)
    columns = ["net", ">ratio", "branches cut", ">how many", "time over the original's", "original over itself"]
    table = markdown(columns, lines)
    write_result("select_channels", {"nets": results}, args.out)
    (args.out / "select_channels.md").write_text("# Selection of channels by a Gather\n\n" + table, encoding="utf-8")


if __name__ == "__main__":
    main()
