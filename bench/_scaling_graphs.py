"""Graphs of any number of nodes in three shapes, for scaling.py; every one of them runs, and stays finite.

The residual branches shrink with the number of blocks, so that answers of 64,000 nodes are of the size of the input.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WIDTH = 8
HEADS = 2
SIDE = 6
TOKENS = 5


class Writer:
    """Collects nodes and weights of a graph; one value after the other gets a name by its number."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def op(self, op_type: str, *inputs: str, **attributes: object) -> str:
        """A node; gives the name of what it computes."""
        name = f"/{op_type.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, list(inputs), [f"{name}_out"], name=name, **attributes))
        return f"{name}_out"

    def weight(self, array: np.ndarray) -> str:
        """An initializer; gives its name."""
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def draw(self, *shape: int, scale: float = 1.0) -> str:
        """An initializer of normal random numbers."""
        return self.weight((scale * self.rng.standard_normal(shape)).astype(np.float32))

    def model(self, shape: list[int | str], last: str, rank: int) -> onnx.ModelProto:
        """The model from `x` of that shape to the last value."""
        graph = helper.make_graph(
            self.nodes,
            "scaling",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(last, TensorProto.FLOAT, [None] * rank)],
            self.weights,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def residual(nodes: int, seed: int = 0) -> onnx.ModelProto:
    """Blocks of Conv, BatchNormalization, Relu, Conv, BatchNormalization, Add, Relu, as a very deep ResNet."""
    out = Writer(seed)
    blocks = nodes // 7
    value = "x"
    for _ in range(blocks):
        inner = value
        for half in range(2):
            kernel = out.draw(WIDTH, WIDTH, 3, 3, scale=(9 * WIDTH) ** -0.5)
            inner = out.op("Conv", inner, kernel, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
            scale = blocks**-0.5 if half else 1.0
            parts = (out.draw(WIDTH, scale=scale), out.draw(WIDTH, scale=scale), out.draw(WIDTH))
            variance = out.weight((1 + out.rng.random(WIDTH)).astype(np.float32))
            inner = out.op("BatchNormalization", inner, *parts, variance, epsilon=1e-5)
            inner = inner if half else out.op("Relu", inner)
        value = out.op("Relu", out.op("Add", inner, value))
    return out.model(["n", WIDTH, SIDE, SIDE], value, 4)


def transformer(nodes: int, seed: int = 0) -> onnx.ModelProto:
    """Attention as exporters write it: sizes computed with Shape, Gather and Concat before every Reshape."""
    out = Writer(seed)
    value = "x"
    last_axis, first = out.weight(np.array(WIDTH)), out.weight(np.array(0))
    second, axis = out.weight(np.array(1)), out.weight(np.array([0]))
    heads, size = out.weight(np.array([HEADS])), out.weight(np.array([WIDTH // HEADS]))
    width = out.op("Unsqueeze", last_axis, axis)
    while len(out.nodes) < nodes - 20:
        scale = (43 / nodes) ** 0.5 * WIDTH**-0.5
        gain, shift = out.weight(np.ones(WIDTH, np.float32)), out.draw(WIDTH, scale=0.1)
        normed = out.op("LayerNormalization", value, gain, shift, axis=-1)
        shape = out.op("Shape", normed)
        dims = [out.op("Unsqueeze", out.op("Gather", shape, at, axis=0), axis) for at in (first, second)]
        split = out.op("Concat", *dims, heads, size, axis=0)
        parts = []
        for _ in range(3):
            linear = out.op("MatMul", normed, out.draw(WIDTH, WIDTH, scale=WIDTH**-0.5))
            linear = out.op("Add", out.draw(WIDTH, scale=0.1), linear)
            parts.append(out.op("Transpose", out.op("Reshape", linear, split), perm=[0, 2, 1, 3]))
        scores = out.op("MatMul", parts[0], out.op("Transpose", parts[1], perm=[0, 1, 3, 2]))
        root = out.op(
            "Sqrt", out.op("Cast", out.op("Gather", out.op("Shape", parts[0]), out.weight(np.array(3))), to=1)
        )
        mixed = out.op("MatMul", out.op("Softmax", out.op("Div", scores, root), axis=-1), parts[2])
        joined = out.op("Concat", *dims, width, axis=0)
        merged = out.op("Reshape", out.op("Transpose", mixed, perm=[0, 2, 1, 3]), joined)
        linear = out.op("MatMul", merged, out.draw(WIDTH, WIDTH, scale=scale))
        value = out.op("Add", value, out.op("Add", linear, out.draw(WIDTH, scale=scale)))
        inner = out.op("MatMul", value, out.draw(WIDTH, 2 * WIDTH, scale=WIDTH**-0.5))
        inner = out.op("Relu", out.op("Add", inner, out.draw(2 * WIDTH, scale=0.1)))
        inner = out.op("MatMul", inner, out.draw(2 * WIDTH, WIDTH, scale=scale))
        value = out.op("Add", value, out.op("Identity", inner))
    return out.model(["n", TOKENS, WIDTH], value, 3)


def elementwise(nodes: int, seed: int = 0) -> onnx.ModelProto:
    """Elementwise nodes that share a handful of constants, in chains that fork and meet again."""
    out = Writer(seed)
    value, other = "x", "x"
    grow, shrink = out.weight(np.full(WIDTH, 2, np.float32)), out.weight(np.full(WIDTH, 0.25, np.float32))
    shift, half = out.draw(WIDTH), out.weight(np.array(0.5, np.float32))
    while len(out.nodes) < nodes - 8:
        left = out.op("Add", out.op("Mul", value, grow), shift)
        right = out.op("Tanh", out.op("Sub", other, shift))
        other = out.op("Mul", left, shrink)
        value = out.op("Mul", out.op("Add", out.op("Neg", right), other), half)
    return out.model(["n", WIDTH], out.op("Add", value, other), 2)


SHAPES: dict[str, Callable[[int, int], onnx.ModelProto]] = {
    "residual": residual,
    "transformer": transformer,
    "elementwise": elementwise,
}
