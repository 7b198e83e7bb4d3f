"""Random graphs that are well typed and run: shapes first, then operators that fit them, traps with raised odds.

`models()` draws a `ModelProto`. Axis 0 of the input may be symbolic; every other size is known and small, and different
from the next where that is possible, since equal sizes hide errors. Every step adds nodes to a pool of values and
weights that later steps draw from, so that values are shared, repeated, captured by branches or read by nobody.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

Shape = tuple[int | str, ...]
Draw = Callable[[Any], Any]

OPSET = 17


class Builder:
    """A graph in the making.

    Attributes:
        draw: Of hypothesis.
        nodes: So far, in order.
        weights: Initializers.
        values: Float values with their shapes; axis 0 is the batch.
        constants: Names of float vectors that are weights or computed from weights, with their lengths.
    """

    def __init__(self, draw: Draw) -> None:
        self.draw = draw
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.values: list[tuple[str, Shape]] = []
        self.constants: list[tuple[str, int]] = []
        self._count = 0

    def name(self) -> str:
        """A new name."""
        self._count += 1
        return f"v{self._count}"

    def pick(self, rank: int | None = None) -> tuple[str, Shape]:
        """A value made before, late ones more often than early ones."""
        fitting = [v for v in self.values if rank is None or len(v[1]) == rank]
        back: int = self.draw(st.integers(0, min(3, len(fitting) - 1)))
        return fitting[-1 - back]

    def node(self, op_type: str, inputs: list[str], outputs: int = 1, **attributes: Any) -> list[str]:
        """Add a node; half of them without a name."""
        names = [self.name() for _ in range(outputs)]
        title = f"node/{names[0]}" if self.draw(st.booleans()) else None
        self.nodes.append(helper.make_node(op_type, inputs, names, name=title, **attributes))
        return names

    def add(self, op_type: str, inputs: list[str], shape: Shape, **attributes: Any) -> None:
        """Add a node whose output later steps may read."""
        self.values.append((self.node(op_type, inputs, **attributes)[0], shape))

    def constant(self, array: np.ndarray) -> str:
        """A weight, or a Constant node: exporters write either."""
        tensor = numpy_helper.from_array(array, self.name())
        if self.draw(st.booleans()):
            self.weights.append(tensor)
            return tensor.name
        return self.node("Constant", [], value=tensor)[0]

    def integers(self, *values: int) -> str:
        """A constant vector of int64."""
        return self.constant(np.array(values, dtype=np.int64))

    def floats(self, *shape: int) -> str:
        """A constant of few different numbers, so that equal ones occur, with both zeros among them."""
        kind = self.draw(st.sampled_from(("random", "ones", "zeros", "minus zeros")))
        fixed = {"ones": 1.0, "zeros": 0.0, "minus zeros": -0.0}
        seed = self.draw(st.integers(0, 2))
        random = np.random.default_rng(seed).standard_normal(shape)
        return self.constant((np.full(shape, fixed[kind]) if kind in fixed else random).astype(np.float32))


def _unary(b: Builder) -> None:
    name, shape = b.pick()
    b.add(b.draw(st.sampled_from(("Relu", "Neg", "Tanh", "Identity", "Identity", "Dropout", "Abs"))), [name], shape)


def _dropout_with_inputs(b: Builder) -> None:
    name, shape = b.pick()
    ratio, mode = b.constant(np.array(0.4, dtype=np.float32)), b.constant(np.array(False))
    b.add("Dropout", [name, ratio, mode], shape)


def _scale(b: Builder) -> None:
    """Per channel, per last axis, by one number, and by what no broadcast must hide."""
    name, shape = b.pick()
    size = int(shape[-1]) if len(shape) > 1 else 1
    form = b.draw(st.sampled_from(((), (1,), (size,), (1,) * len(shape))))
    operands = [name, b.floats(*form)]
    if b.draw(st.booleans()):
        operands.reverse()
    b.add(b.draw(st.sampled_from(("Add", "Mul", "Sub", "Max"))), operands, shape)


def _join(b: Builder) -> None:
    """Two values of one shape; often the same one twice."""
    name, shape = b.pick()
    twins = [n for n, s in b.values if s == shape]
    other = b.draw(st.sampled_from(twins))
    if b.draw(st.integers(0, 3)) == 0:
        b.add("Concat", [name, other], (f"{shape[0]}and{shape[0]}", *shape[1:]), axis=0)
        return
    if b.draw(st.booleans()) and len(shape) > 1:
        axis = b.draw(st.integers(1, len(shape) - 1))
        wide = list(shape)
        wide[axis] = 2 * int(shape[axis])
        b.add("Concat", [name, other], tuple(wide), axis=axis)
        return
    b.add(b.draw(st.sampled_from(("Add", "Mul", "Sub"))), [name, other], shape)


def _twin(b: Builder) -> None:
    """A node once more."""
    if not b.nodes:
        return
    node = b.draw(st.sampled_from(b.nodes))
    shapes = dict(b.values)
    if len(node.output) == 1 and node.output[0] in shapes:
        copied = onnx.NodeProto.FromString(node.SerializeToString())
        copied.output[0] = copied.name = b.name()
        b.nodes.append(copied)
        b.values.append((copied.output[0], shapes[node.output[0]]))


def _transpose(b: Builder) -> None:
    name, shape = b.pick()
    perm = [0, *b.draw(st.permutations(range(1, len(shape))))]
    b.add("Transpose", [name], tuple(shape[axis] for axis in perm), perm=perm)


def _reshape(b: Builder) -> None:
    """To the same or to a flat shape; the target a constant, or put together from Shape."""
    name, shape = b.pick()
    rest = [int(s) for s in shape[1:]]
    flat = b.draw(st.booleans())
    tail = [int(np.prod(rest))] if flat else rest
    if tail and b.draw(st.booleans()):
        tail[-1] = -1
    result: Shape = (shape[0], int(np.prod(rest))) if flat else shape
    if b.draw(st.booleans()):
        b.add("Reshape", [name, b.integers(0, *tail)], result)
        return
    (sizes,) = b.node("Shape", [name])
    if b.draw(st.booleans()):
        (batch,) = b.node("Slice", [sizes, b.integers(0), b.integers(1)])
    else:
        (scalar,) = b.node("Gather", [sizes, b.constant(np.array(0, dtype=np.int64))])
        (batch,) = b.node("Unsqueeze", [scalar, b.integers(0)])
    (target,) = b.node("Concat", [batch, *(b.integers(s) for s in tail)], axis=0)
    b.add("Reshape", [name, target], result)


def _by_size(b: Builder) -> None:
    """Divide by a size: arithmetic on what Shape says."""
    name, shape = b.pick()
    axis = b.draw(st.integers(0, len(shape) - 1))
    first = b.draw(st.integers(0, axis))
    (sizes,) = b.node("Shape", [name], start=first) if first else b.node("Shape", [name])
    (size,) = b.node("Gather", [sizes, b.constant(np.array(axis - first, dtype=np.int64))])
    (more,) = b.node("Mul", [size, b.constant(np.array(2, dtype=np.int64))])
    like = b.draw(st.booleans())
    (number,) = b.node("CastLike", [more, name]) if like else b.node("Cast", [more], to=TensorProto.FLOAT)
    b.add("Div", [name, number], shape)


def _cast(b: Builder) -> None:
    name, shape = b.pick()
    if b.draw(st.booleans()):
        b.add("Cast", [name], shape, to=TensorProto.FLOAT)
        return
    (narrow,) = b.node("Cast", [name], to=b.draw(st.sampled_from((TensorProto.INT32, TensorProto.DOUBLE))))
    b.add("CastLike", [narrow, name], shape)


def _slice(b: Builder) -> None:
    """All, a part, or backwards."""
    name, shape = b.pick()
    if len(shape) < 2:
        return
    axis = b.draw(st.integers(1, len(shape) - 1))
    if b.draw(st.integers(0, 3)) == 0:
        inputs = [name, b.integers(0), b.integers(2**40), b.integers(0), b.integers(2)]
        b.add("Slice", inputs, (f"half{shape[0]}", *shape[1:]))
        return
    size = int(shape[axis])
    start, end, step = b.draw(st.sampled_from(((0, 2**40, 1), (1, 2**40, 1), (-1, -(2**40), -1), (0, -1, 2))))
    left = len(range(size)[slice(start, None if abs(end) > size else end, step)])
    if left:
        inputs = [name, b.integers(start), b.integers(end), b.integers(axis), b.integers(step)]
        b.add("Slice", inputs, (*shape[:axis], left, *shape[axis + 1 :]))


def _sequence(b: Builder) -> None:
    name, shape = b.pick()
    if len(shape) < 2:
        return
    axis = b.draw(st.integers(1, len(shape) - 1))
    size = int(shape[axis])
    part = b.draw(st.integers(1, size))
    count = -(-size // part)
    index = b.draw(st.integers(-count, count - 1))
    left = min(part, size - (index % count) * part)
    (sequence,) = b.node("SplitToSequence", [name, b.constant(np.array(part, dtype=np.int64))], axis=axis)
    place = b.constant(np.array(index, dtype=np.int64))
    b.add("SequenceAt", [sequence, place], (*shape[:axis], left, *shape[axis + 1 :]))


def _pad(b: Builder) -> None:
    name, shape = b.pick()
    width = b.draw(st.integers(0, 1))
    pads = [0] * (2 * len(shape))
    pads[-1] = width
    last = shape[-1]
    if isinstance(last, int) and len(shape) > 1:
        b.add("Pad", [name, b.integers(*pads)], (*shape[:-1], last + width))


def _conv(b: Builder) -> None:
    """With a bias, without, or with one that is written as Expand of zero to the length of the weight."""
    if not any(len(s) == 4 for _, s in b.values):
        return
    name, shape = b.pick(4)
    channels = b.draw(st.sampled_from((3, 5)))
    weight = b.floats(channels, int(shape[1]), 1, 1)
    inputs = [name, weight]
    bias = b.draw(st.sampled_from(("none", "weight", "expanded")))
    if bias == "weight":
        inputs.append(b.floats(channels))
    if bias == "expanded":
        (length,) = b.node("Shape", [weight], start=0, end=1)
        (zero,) = b.node("CastLike", [b.constant(np.array(0.0, dtype=np.float32)), name])
        inputs.append(b.node("Expand", [zero, length])[0])
    b.add("Conv", inputs, (shape[0], channels, *shape[2:]))


def _norm(b: Builder) -> None:
    name, shape = b.pick()
    if len(shape) < 3:
        return
    size = int(shape[1])
    positive = b.constant(np.linspace(0.5, 1.5, size).astype(np.float32))
    b.add("BatchNormalization", [name, b.floats(size), b.floats(size), b.floats(size), positive], shape)


def _pool(b: Builder) -> None:
    """The indices are an optional output that nobody reads."""
    if not any(len(s) == 4 for _, s in b.values):
        return
    name, shape = b.pick(4)
    value, _ = b.node("MaxPool", [name], outputs=2, kernel_shape=[1, 1])
    b.values.append((value, shape))


def _weights(b: Builder) -> None:
    """A chain of arithmetic on weights, read by something that stays."""
    name, shape = b.pick()
    size = int(shape[-1]) if len(shape) > 1 else 1
    chain = b.floats(size)
    for _ in range(b.draw(st.integers(1, 3))):
        step = b.draw(st.sampled_from(("Neg", "Add", "Reshape", "Tanh", "Concat", "Expand")))
        if step in ("Neg", "Tanh"):
            (chain,) = b.node(step, [chain])
        elif step == "Add":
            (chain,) = b.node(step, [chain, b.floats(1)])
        elif step == "Concat":
            (chain,) = b.node(step, [chain], axis=0)
        else:
            (chain,) = b.node(step, [chain, b.integers(size)])
    b.add("Mul", [name, chain], shape)


def _large(b: Builder) -> None:
    """Much made of little, and only a number of it is used."""
    name, shape = b.pick()
    (many,) = b.node("ConstantOfShape", [b.integers(900)], value=numpy_helper.from_array(np.ones(1, dtype=np.float32)))
    use = b.draw(st.sampled_from(("one", "sum", "computed")))
    if use == "computed":
        (total,) = b.node("ReduceMax", [name], keepdims=0)
        (many,) = b.node("Min", [many, total])
    if use == "one":
        (few,) = b.node("Slice", [many, b.integers(0), b.integers(1)])
    else:
        (few,) = b.node("ReduceSum", [many, b.integers(0)], keepdims=0)
    b.add("Mul", [name, few], shape)


def _sign_of_zero(b: Builder) -> None:
    """One over zero, cut to plus or minus one."""
    name, shape = b.pick()
    zeros = [b.constant(np.array([z], dtype=np.float32)) for z in b.draw(st.permutations((0.0, -0.0)))]
    for zero in zeros:
        (infinite,) = b.node("Reciprocal", [zero])
        ends = [b.constant(np.array(e, dtype=np.float32)) for e in (-1.0, 1.0)]
        (sign,) = b.node("Clip", [infinite, *ends])
        b.add("Mul", [name, sign], shape)


def _branch(b: Builder) -> None:
    """Both branches capture; names repeat in them; the condition is constant or computed."""
    name, shape = b.pick()
    # onnxruntime 1.32 itself does not run a branch that captures the result of CastLike
    like = {node.output[0] for node in b.nodes if node.op_type == "CastLike"}
    outer = [n for n, s in b.values if s == shape and n not in like]
    if not outer:
        return
    other = b.draw(st.sampled_from(outer))
    branches = []
    for op_type in ("Exp", "Neg"):
        inner = helper.make_node("Tanh", [other], ["inner"])
        last = helper.make_node(op_type, ["inner"], ["result"])
        info = helper.make_tensor_value_info("result", TensorProto.FLOAT, shape)
        branches.append(helper.make_graph([inner, last], "branch", [], [info]))
    if b.draw(st.booleans()):
        condition = b.constant(np.array(b.draw(st.booleans())))
    else:
        (total,) = b.node("ReduceSum", [name], keepdims=0)
        (condition,) = b.node("Greater", [total, b.constant(np.array(0.0, dtype=np.float32))])
    b.add("If", [condition], shape, then_branch=branches[0], else_branch=branches[1])


def _random(b: Builder) -> None:
    """Two draws are equal in no place that counts: what is added is zero, unless they were made one."""
    name, shape = b.pick()
    size = b.integers(64)
    (seed,) = b.node("Expand", [b.constant(np.array(0.5, dtype=np.float32)), size])
    draws = [b.node("RandomUniformLike", [seed])[0] for _ in range(2)]
    (same,) = b.node("Equal", draws)
    (number,) = b.node("Cast", [same], to=TensorProto.FLOAT)
    (least,) = b.node("ReduceMin", [number], keepdims=0)
    b.add("Add", [name, least], shape)


STEPS = (
    *(_unary, _unary, _scale, _scale, _join, _join, _twin, _twin, _reshape, _reshape, _by_size, _weights, _weights),
    *(_transpose, _cast, _slice, _sequence, _pad, _conv, _conv, _norm, _pool, _large, _branch, _random),
    *(_dropout_with_inputs, _sign_of_zero),
)


@st.composite
def models(draw: Draw, most: int = 8) -> onnx.ModelProto:
    """A model of up to `most` steps, with one input and one to three outputs."""
    b = Builder(draw)
    batch = draw(st.sampled_from(("N", 2)))
    shape: Shape = (batch, *draw(st.sampled_from(((3, 4, 5), (3, 4, 5), (6,), (3, 5), (4, 4)))))
    b.values.append(("x", shape))
    for _ in range(draw(st.integers(1, most))):
        draw(st.sampled_from(STEPS))(b)
    made = [v for v in b.values if v[0] != "x"] or [("x", shape)]
    count = min(len(made), draw(st.integers(1, 3)))
    outputs = [made[-1 - i] for i in range(count)]
    if outputs[0][0] == "x":
        b.add("Identity", ["x"], shape)
        outputs = [b.values[-1]]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in outputs]
    graph = helper.make_graph(b.nodes, "drawn", inputs, infos, b.weights)
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", OPSET)])


def renamed(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with other names inside."""
    found: onnx.ModelProto = onnx.ModelProto.FromString(model.SerializeToString())
    fixed = {v.name for v in (*found.graph.input, *found.graph.output)}

    def new(name: str) -> str:
        return name if not name or name in fixed else f"other/{name}"

    def rename(graph: onnx.GraphProto) -> None:
        for tensor in graph.initializer:
            tensor.name = new(tensor.name)
        for value in (*graph.value_info, *graph.output, *graph.input):
            value.name = new(value.name)
        for node in graph.node:
            node.name = ""
            node.input[:] = [new(n) for n in node.input]
            node.output[:] = [new(n) for n in node.output]
            for attr in node.attribute:
                if attr.HasField("g"):
                    rename(attr.g)

    rename(found.graph)
    return found


def shuffled(model: onnx.ModelProto, seed: int) -> onnx.ModelProto:
    """The same model with its nodes in another valid order."""
    found: onnx.ModelProto = onnx.ModelProto.FromString(model.SerializeToString())
    rng = np.random.default_rng(seed)
    left, done = list(found.graph.node), {"", "x"} | {t.name for t in found.graph.initializer}

    def reads(node: onnx.NodeProto) -> set[str]:
        inner = {n for a in node.attribute if a.HasField("g") for i in a.g.node for n in i.input}
        made = {n for a in node.attribute if a.HasField("g") for i in a.g.node for n in i.output}
        return set(node.input) | (inner - made)

    order = []
    while left:
        ready = [node for node in left if reads(node) <= done]
        node = ready[int(rng.integers(len(ready)))]
        left.remove(node)
        order.append(node)
        done |= set(node.output)
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in order]
    del found.graph.node[:]
    found.graph.node.extend(nodes)
    return found
