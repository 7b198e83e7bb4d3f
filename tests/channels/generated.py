"""Random networks: blocks that real ones are made of, wired at random, no two sizes alike where that is possible."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["Net"]


class Net:
    """A network of a few blocks, drawn from a seed.

    Tensors are [N, C, H, W]; `sizes` holds C of those that later blocks may read. With `symbolic` sizes of the batch
    and of space, reshapes use 0, -1 and Shape.
    """

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.symbolic = bool(self.rng.integers(2))
        self.space = (6, 7)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.sizes: dict[str, int] = {"x": 3}
        self._widths = list(self.rng.permutation(np.arange(8, 26)))
        self._count = 0

    def build(self, blocks: int) -> onnx.ModelProto:
        """The model, of a stem, some blocks and heads that read what nobody else does."""
        first = self.activate(self.conv("x"))
        self.sizes = {first: self.sizes[first]}
        for _ in range(blocks):
            makers: list[Callable[[str], str]] = [
                *(self.plain, self.plain, self.residual, self.join, self.dense, self.split, self.excite, self.gate),
                *(self.grouped, self.grouped, self.depthwise, self.shuffle, self.shuffle, self.attention, self.slice),
                *(self.pad, self.mixer, self.spaces, self.normalized, self.gather, self.transposed, self.tokens),
            ]
            known = [*self.sizes.items()][-3:]
            made = makers[self.rng.integers(len(makers))](self.pick())
            self.sizes = dict(known) | {made: self.sizes[made]}  # what lies within a block may have another space
        ends = [*self.sizes][-2:]
        outputs = [self.head(name, index) for index, name in enumerate(ends)]
        self.drop_unread(outputs)
        dims: list[str | int] = ["N", 3, "H", "W"] if self.symbolic else [1, 3, *self.space]
        graph = helper.make_graph(
            self.nodes,
            "generated",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, dims)],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["a", "b", "c", "d"]) for name in outputs],
            self.weights,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)

    def feeds(self) -> list[dict[str, np.ndarray]]:
        """Inputs: one, or of two sizes where sizes are symbolic."""
        shapes = [(1, 3, *self.space), (2, 3, 9, 8)] if self.symbolic else [(1, 3, *self.space)]
        return [{"x": self.rng.standard_normal(shape).astype(np.float32)} for shape in shapes]

    def drop_unread(self, outputs: list[str]) -> None:
        """Leave out what no output needs: a removal drops it too, which would be counted as a saving."""
        read, kept = set(outputs), []
        for node in reversed(self.nodes):
            if read & set(node.output):
                kept.append(node)
                read |= set(node.input)
        self.nodes = kept[::-1]
        self.weights = [weight for weight in self.weights if weight.name in read]

    # ------------------------------------------------------------------ parts
    def pick(self) -> str:
        names = [*self.sizes]
        return names[self.rng.integers(max(len(names) - 2, 0), len(names))]

    def width(self, multiple: int = 1) -> int:
        self._widths = self._widths or list(range(26, 40))
        return int(self._widths.pop()) // multiple * multiple

    def op(self, kind: str, inputs: list[str], channels: int | None = None, outputs: int = 1, **attributes: Any) -> str:
        self._count += 1
        names = [f"{kind}_{self._count}" + (f"_{i}" if outputs > 1 else "") for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, names, names[0], **attributes))
        if channels is not None:
            self.sizes[names[0]] = channels
        return names[0]

    def weight(self, *shape: int, low: float | None = None) -> str:
        scale = 1.0 / np.sqrt(max(math.prod(shape[1:]), 1))
        array = self.rng.standard_normal(shape) * scale if low is None else self.rng.uniform(low, low + 1, shape)
        return self.constant(array.astype(np.float32))

    def constant(self, array: np.ndarray | list[int]) -> str:
        self._count += 1
        made = np.asarray(array, np.int64) if isinstance(array, list) else array
        self.weights.append(numpy_helper.from_array(made, f"k_{self._count}"))
        return self.weights[-1].name

    def conv(self, x: str, out: int | None = None, kernel: int | None = None, group: int = 1) -> str:
        size = self.sizes[x]
        out = out or self.width()
        kernel = kernel or int(self.rng.choice([1, 3]))
        inputs = [x, self.weight(out, size // group, kernel, kernel)]
        if self.rng.integers(2):
            inputs.append(self.weight(out, low=-0.5))
        pads = [kernel // 2] * 4
        made = self.op("Conv", inputs, out, group=group, pads=pads, kernel_shape=[kernel, kernel])
        return self.normalize(made) if self.rng.integers(3) == 0 else made

    def normalize(self, x: str) -> str:
        size = self.sizes[x]
        parameters = [self.weight(size, low=low) for low in (0.5, -0.5, -0.5, 0.5)]
        return self.op("BatchNormalization", [x, *parameters], size)

    def activate(self, x: str) -> str:
        kind = str(self.rng.choice(["Relu", "Sigmoid", "Tanh", "HardSwish", "LeakyRelu", "PRelu", "Identity", "Abs"]))
        inputs = [x, self.weight(self.sizes[x], 1, 1, low=0.1)] if kind == "PRelu" else [x]
        return self.op(kind, inputs, self.sizes[x])

    def head(self, x: str, index: int) -> str:
        kinds = [self.head_conv, self.head_pool] + ([] if self.symbolic else [self.head_flat])
        made = kinds[self.rng.integers(len(kinds))](x, 3 + index)
        self.nodes.append(helper.make_node("Identity", [made], [f"y{index}"]))
        return f"y{index}"

    def head_conv(self, x: str, out: int) -> str:
        return self.op("Conv", [x, self.weight(out, self.sizes[x], 1, 1)])

    def head_pool(self, x: str, out: int) -> str:
        pooled = self.op("ReduceMean", [x, self.constant([2, 3])], keepdims=0)
        made = self.op("MatMul", [pooled, self.weight(self.sizes[x], out)])
        return self.op("Unsqueeze", [made, self.constant([2, 3])])

    def head_flat(self, x: str, out: int) -> str:
        flat = self.op("Flatten", [x])
        made = self.op("Gemm", [flat, self.weight(out, self.sizes[x] * self.space[0] * self.space[1])], transB=1)
        return self.op("Unsqueeze", [made, self.constant([2, 3])])

    # ------------------------------------------------------------------ blocks
    def plain(self, x: str) -> str:
        return self.activate(self.conv(x))

    def residual(self, x: str) -> str:
        inside = self.activate(self.conv(x))
        return self.activate(self.op("Add", [self.conv(inside, self.sizes[x]), x], self.sizes[x]))

    def join(self, x: str) -> str:
        other = self.pick()
        parts = [x, other, self.conv(x)][: int(self.rng.integers(2, 4))]
        return self.op("Concat", parts, sum(self.sizes[part] for part in parts), axis=1)

    def dense(self, x: str) -> str:
        made = self.activate(self.conv(x))
        return self.op("Concat", [made, x], self.sizes[made] + self.sizes[x], axis=1)

    def split(self, x: str) -> str:
        size = self.sizes[x]
        first = int(self.rng.integers(1, size))
        left = self.op("Split", [x, self.constant([first, size - first])], first, outputs=2, axis=1)
        right = left.removesuffix("_0") + "_1"
        self.sizes[right] = size - first
        parts = [self.activate(self.conv(left)), right] + ([left] if self.rng.integers(2) else [])
        return self.op("Concat", parts, sum(self.sizes[part] for part in parts), axis=1)

    def excite(self, x: str) -> str:
        pooled = self.op("GlobalAveragePool", [x], self.sizes[x])
        squeezed = self.op("Relu", [self.conv(pooled, kernel=1)])
        self.sizes[squeezed] = self.sizes[self.nodes[-1].input[0]]
        scale = self.op("Sigmoid", [self.conv(squeezed, self.sizes[x], 1)])
        return self.op("Mul", [x, scale], self.sizes[x])

    def gate(self, x: str) -> str:
        one = self.op("Sigmoid", [self.conv(x, 1)])
        return self.op("Mul", [one, x], self.sizes[x])

    def grouped(self, x: str) -> str:
        groups = int(self.rng.choice([2, 3, 4]))
        inside = self.conv(x, self.width(groups))
        return self.activate(self.conv(inside, self.width(groups), group=groups))

    def depthwise(self, x: str) -> str:
        size = self.sizes[x]
        return self.activate(self.conv(x, size * int(self.rng.integers(1, 3)), 3, group=size))

    def shuffle(self, x: str) -> str:
        groups = int(self.rng.choice([2, 3]))
        inside = self.activate(self.conv(x, self.width(groups)))
        size = self.sizes[inside]
        parts = self.op("Reshape", [inside, self.constant([0, groups, size // groups, -1])])
        turned = self.op("Transpose", [parts], perm=[0, 2, 1, 3])
        back = self.op("Reshape", [turned, self.shape_of(inside)], size)
        return self.conv(back, self.width(groups), group=groups)

    def shape_of(self, x: str) -> str:
        return self.op("Shape", [x]) if self.symbolic else self.constant([0, self.sizes[x], *self.space])

    def attention(self, x: str) -> str:
        heads, key, value = 2, 3 + int(self.rng.integers(3)), 4 + int(self.rng.integers(4))
        q, k, v = (self.conv(x, heads * size, 1) for size in (key, key, value))
        left = self.op("Transpose", [self.op("Reshape", [q, self.constant([0, heads, key, -1])])], perm=[0, 1, 3, 2])
        right = self.op("Reshape", [k, self.constant([0, heads, key, -1])])
        scores = self.op("Softmax", [self.op("MatMul", [left, right])], axis=-1)
        values = self.op(
            "Transpose", [self.op("Reshape", [v, self.constant([0, heads, value, -1])])], perm=[0, 1, 3, 2]
        )
        mixed = self.op("Transpose", [self.op("MatMul", [scores, values])], perm=[0, 1, 3, 2])
        back = self.op("Reshape", [mixed, self.shape_of(v)], heads * value)
        return self.conv(back, self.sizes[x] if self.rng.integers(2) else None, 1)

    def tokens(self, x: str) -> str:
        """A feed-forward block of a transformer, channels last."""
        size, wide = self.sizes[x], self.width()
        last = self.op("Transpose", [x], perm=[0, 2, 3, 1])
        inside = self.op("Relu", [self.op("MatMul", [last, self.weight(size, wide)])])
        made = self.op("Add", [self.op("MatMul", [inside, self.weight(wide, size)]), self.weight(size, low=-0.5)])
        summed = self.op("Add", [last, made])
        return self.op("Transpose", [summed], size, perm=[0, 3, 1, 2])

    def slice(self, x: str) -> str:
        size = self.sizes[x]
        start, step = int(self.rng.integers(0, size // 2)), int(self.rng.choice([1, 2, -1]))
        bounds = (size - 1, -(1 << 31)) if step < 0 else (start, (1 << 31) - 1)
        taken = len(range(size)[bounds[0] : None if step < 0 else bounds[1] : step])
        inputs = [x, *(self.constant([entry]) for entry in (*bounds, 1, step))]
        return self.op("Slice", inputs, taken)

    def pad(self, x: str) -> str:
        before, after = (int(n) for n in self.rng.integers(0, 4, 2))
        wide = self.op("Pad", [x, self.constant([0, before, 0, 0, 0, after, 0, 0])], self.sizes[x] + before + after)
        return self.op("Add", [self.conv(x, self.sizes[wide]), wide], self.sizes[wide])

    def mixer(self, x: str) -> str:
        """A global branch expanded over space and multiplied in."""
        pooled = self.op("ReduceMax", [x, self.constant([2, 3])])
        shape = self.op("Shape", [x]) if self.symbolic else self.constant([1, self.sizes[x], *self.space])
        return self.op("Max", [self.op("Expand", [pooled, shape]), x], self.sizes[x])

    def spaces(self, x: str) -> str:
        wide = self.conv(x, 4 * int(self.rng.integers(2, 5)))
        mode = str(self.rng.choice(["DCR", "CRD"]))
        deep = self.op("DepthToSpace", [wide], self.sizes[wide] // 4, blocksize=2, mode=mode)
        return self.op("MaxPool", [deep], self.sizes[deep], kernel_shape=[2, 2], strides=[2, 2])

    def normalized(self, x: str) -> str:
        size = self.sizes[x]
        if self.rng.integers(2):
            return self.op("InstanceNormalization", [x, self.weight(size, low=0.5), self.weight(size, low=-0.5)], size)
        mean = self.op("ReduceMean", [x, self.constant([2, 3])])
        return self.op("Sigmoid", [self.op("Sub", [x, mean])], size)  # else a mean over space is rounding alone

    def gather(self, x: str) -> str:
        indices = self.rng.integers(-self.sizes[x], self.sizes[x], self.width())
        return self.op("Gather", [x, self.constant(indices.tolist())], len(indices), axis=1)

    def transposed(self, x: str) -> str:
        out = self.width()
        made = self.op("ConvTranspose", [x, self.weight(self.sizes[x], out, 3, 3)], out, pads=[1, 1, 1, 1])
        return self.activate(made)
