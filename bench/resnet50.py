"""How long the channel graph and a removal take on a ResNet-50 of 25 million weights, beside onnxruntime's own session.

    python bench/resnet50.py [--rounds 7]

The network is built here with random weights and BatchNormalization kept. Every figure is a ratio to the time that
onnxruntime takes to create a session of the same file, measured round by round in this process; the target is a half
for the channel graph (shapes included) and two for plan, removal and save together, without verification.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from _common import write_result
from onnx import TensorProto, helper, numpy_helper

STAGES = ((64, 256, 3, 1), (128, 512, 4, 2), (256, 1024, 6, 2), (512, 2048, 3, 2))


class Builder:
    """A small writer of nodes with random weights."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.channels: dict[str, int] = {"image": 3}

    def weight(self, name: str, array: np.ndarray) -> str:
        """Add an initializer."""
        self.weights.append(numpy_helper.from_array(array.astype(np.float32), name))
        return name

    def add(self, op: str, inputs: list[str], name: str, channels: int, **attributes: object) -> str:
        """Add a node with one output named after it."""
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        self.channels[name] = channels
        return name

    def conv(self, x: str, name: str, out: int, size: int, stride: int = 1, relu: bool = True) -> str:
        """Conv, BatchNormalization and, where asked for, Relu."""
        fan = self.channels[x] * size * size
        weight = self.weight(f"{name}.w", self.rng.normal(0, (2 / fan) ** 0.5, (out, self.channels[x], size, size)))
        y = self.add(
            "Conv",
            [x, weight],
            f"{name}.conv",
            out,
            kernel_shape=[size] * 2,
            strides=[stride] * 2,
            pads=[size // 2] * 4,
        )
        drawn = (self.rng.uniform(0.5, 1.5, out), self.rng.normal(0, 0.1, out), self.rng.normal(0, 0.1, out))
        norm = [self.weight(f"{name}.{part}", array) for part, array in zip(("g", "b", "m"), drawn, strict=True)]
        norm.append(self.weight(f"{name}.v", self.rng.uniform(0.5, 1.5, out)))
        y = self.add("BatchNormalization", [y, *norm], f"{name}.bn", out)
        return self.add("Relu", [y], f"{name}.relu", out) if relu else y


def resnet50() -> onnx.ModelProto:
    """ResNet-50 (He et al., CVPR 2016, table 1) with a dynamic batch."""
    build = Builder()
    x = build.conv("image", "stem", 64, 7, 2)
    x = build.add("MaxPool", [x], "pool", 64, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    for stage, (inner, outer, blocks, stride) in enumerate(STAGES):
        for block in range(blocks):
            name, step = f"s{stage}.b{block}", stride if block == 0 else 1
            y = build.conv(x, f"{name}.1", inner, 1)
            y = build.conv(y, f"{name}.2", inner, 3, step)
            y = build.conv(y, f"{name}.3", outer, 1, relu=False)
            if block == 0:
                x = build.conv(x, f"{name}.short", outer, 1, step, relu=False)
            x = build.add("Relu", [build.add("Add", [x, y], f"{name}.add", outer)], f"{name}.relu", outer)
    x = build.add("Flatten", [build.add("GlobalAveragePool", [x], "gap", 2048)], "flat", 2048)
    head = [build.weight("fc.w", build.rng.normal(0, 0.02, (1000, 2048))), build.weight("fc.b", np.zeros(1000))]
    build.add("Gemm", [x, *head], "logits", 1000, transB=1)
    graph = helper.make_graph(
        build.nodes,
        "resnet50",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 224, 224])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 1000])],
        build.weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def timed(work: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds

    from onnxslim_core.passes import pass_class

    from onnxslim_core.channels.groups import analyse
    from onnxslim_core.measure.session import open_session
    from onnxslim_core.model import Model, load, save
    from onnxslim_core.rewrite import Context

    proto = resnet50()
    weights = sum(int(np.prod(w.dims)) for w in proto.graph.initializer)
    sample = {"image": np.zeros((1, 3, 224, 224), np.float32)}
    prune = pass_class("prune_channels")(ratio=0.25, criterion="l2")
    times: dict[str, list[float]] = {"session": [], "channel_graph": [], "plan_remove_save": []}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "resnet50.onnx")
        onnx.save(proto, path)

        def job(model: Model) -> None:
            prune.run(model.ir, Context(samples=[sample]))
            save(model, Path(folder, "out.onnx"))

        for turn in range(rounds + 1):
            model = load(path)
            took = {
                "session": timed(partial(open_session, model, threads=1)),
                "channel_graph": timed(partial(analyse, model.ir, sample)),
                "plan_remove_save": timed(partial(job, model)),
            }
            if turn:  # the first round warms up imports and caches
                for name, seconds in took.items():
                    times[name].append(seconds)
    median = {name: float(np.median(found)) for name, found in times.items()}
    ratios = {
        name: sorted(a / b for a, b in zip(times[name], times["session"], strict=True))
        for name in ("channel_graph", "plan_remove_save")
    }
    result = {
        "weights": weights,
        "rounds": rounds,
        "median_seconds": median,
        "ratio_to_session": {
            name: {"median": float(np.median(found)), "low": found[0], "high": found[-1]}
            for name, found in ratios.items()
        },
        "targets": {"channel_graph": 0.5, "plan_remove_save": 2.0},
    }
    write_result("resnet50", result)


if __name__ == "__main__":
    main()
