"""What remove_idle finds: every way for a channel not to count, judged by onnxruntime and by the widths that are left.

A case plants idle channels and says which widths the weights have afterwards. The smaller model has to answer the same
to 1e-5 at every size, and a second run has to find nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import onnx
import pytest
from onnxslim_core.passes import pass_class

from onnxslim_core.model import load
from onnxslim_core.rewrite import Change, Context, Kind
from onnxslim_core.verify import Interface, infers, verify
from tests import oracles
from tests.ops.cases import Case


@dataclass(frozen=True)
class Planted:
    """A graph with idle channels.

    Attributes:
        name: What is planted.
        tensors: As in `tests.ops.cases`.
        body: As there.
        plant: Weight -> what is done to its random values: `zero AXIS: i j`, `copy AXIS: i=j` (entry i becomes a copy
            of entry j), `set AXIS: i=VALUE`, several of them with `;` between; a number alone is the value of all.
        shapes: Weight -> its shape afterwards; every other weight has to keep its own.
        nodes: Operators afterwards, where that is worth a look.
        opset: Of the standard domain.
        bound: Largest relative difference; None is what exact passes promise.
    """

    name: str
    tensors: str
    body: str
    plant: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]
    nodes: tuple[str, ...] = ()
    opset: int = 17
    outputs: Mapping[str, str] = field(default_factory=dict)
    bound: float | None = None

    def __str__(self) -> str:
        return self.name.replace(" ", "-")

    @property
    def case(self) -> Case:
        plain = Case(self.name, self.tensors, self.body, 0, self.opset)
        arrays = {
            name: planted(plain.array(name, plain.declared[name][0], [int(d) for d in plain.declared[name][1]]), text)
            for name, text in self.plant.items()
        }
        return Case(self.name, self.tensors, self.body, 0, self.opset, arrays, self.outputs)


def planted(array: np.ndarray, text: str) -> np.ndarray:
    """A copy of a weight with idle entries in it; see `Planted.plant`."""
    array = array.copy()
    if ":" not in text:
        return np.full_like(array, float(text))
    for step in text.split(";"):
        what, _, entries = step.partition(":")
        kind, axis = what.split()
        rows = np.moveaxis(array, int(axis), 0)
        for entry in entries.split():
            place, _, value = entry.partition("=")
            rows[int(place)] = rows[int(value)] if kind == "copy" else float(value or 0)
    return array


def slim(
    model: onnx.ModelProto, round_to: int | str = 1, feed: Mapping[str, np.ndarray] | None = None
) -> tuple[onnx.ModelProto, list[Change]]:
    """The model after remove_idle, valid by the verifier and by inference."""
    held = load(model)
    interface = replace(Interface.of(held.ir), infers=not infers(held.ir))
    changes = pass_class("remove_idle")(round_to=round_to).run(held.ir, Context(samples=[feed] if feed else []))
    assert not (problems := verify(held.ir, interface)), problems
    after = held.to_proto()
    onnx.shape_inference.infer_shapes(after, check_type=True, strict_mode=True)
    return after, changes


def shapes_of(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the weights, without shapes and indices."""
    return {t.name: tuple(t.dims) for t in model.graph.initializer if t.data_type != onnx.TensorProto.INT64}


def check(case: Planted) -> onnx.ModelProto:
    """Widths, answers at several sizes and seeds, idempotence."""
    before, feeds = case.case.model, case.case.feeds()
    after, changes = slim(before, feed=feeds[0])
    expected = {name: case.shapes.get(name, shape) for name, shape in shapes_of(before).items()}
    found = {name: shape for name, shape in shapes_of(after).items() if name in expected}
    assert found == expected, changes
    for seed in range(3):
        rng = np.random.default_rng(seed)
        drawn = [
            {
                k: np.asarray(rng.standard_normal(v.shape) + 0.3, v.dtype) if v.dtype.kind == "f" else v
                for k, v in f.items()
            }
            for f in feeds
        ]
        kind = Kind.ALGEBRAIC if case.bound is None else Kind.LOSSY
        oracles.assert_equal(before, after, kind, drawn, tolerance=case.bound)
    if case.nodes:
        assert tuple(node.op_type for node in after.graph.node) == case.nodes
    again, more = slim(after, feed=feeds[0])
    assert not [change for change in more if change.applied], more
    assert again.SerializeToString(deterministic=True) == after.SerializeToString(deterministic=True)
    return after


ZEROS = [
    Planted(
        "filters without bias",
        "x N,3,H,W | A 8,3,3,3 | B 5,8,3,3",
        "h = Conv<pads=[1,1,1,1]>(x, A) r = Relu(h) y = Conv<pads=[1,1,1,1]>(r, B)",
        {"A": "zero 0: 1 6"},
        {"A": (6, 3, 3, 3), "B": (5, 6, 3, 3)},
    ),
    Planted(
        "columns of the consumer",
        "x N,3,H,W | A 8,3,3,3 | a 8 | B 5,8,3,3",
        "h = Conv(x, A, a) r = Sigmoid(h) y = Conv<pads=[1,1,1,1]>(r, B)",
        {"B": "zero 1: 0 7"},
        {"A": (6, 3, 3, 3), "a": (6,), "B": (5, 6, 3, 3)},
    ),
    Planted(
        "columns that only one of two consumers ignores stay",
        "x N,3,H,W | A 8,3,3,3 | B 5,8,3,3 | C 4,8,1,1",
        "h = Conv(x, A) r = Relu(h) y = Conv(r, B) y2 = Conv(r, C)",
        {"B": "zero 1: 0 7", "C": "zero 1: 2 7"},
        {"A": (7, 3, 3, 3), "B": (5, 7, 3, 3), "C": (4, 7, 1, 1)},
    ),
    Planted(
        "columns of ConvTranspose, Gemm and MatMul",
        "x N,3,6,5 | A 8,3,1,1 | T 8,7,3,3 | G 9,7 | g 9 | M 9,5",
        "h = Conv(x, A) t = ConvTranspose<strides=[2,2]>(h, T) p = GlobalAveragePool(t) f = Flatten(p)"
        " e = Gemm<transB=1>(f, G, g) y = MatMul(e, M)",
        {"T": "zero 0: 3", "G": "zero 1: 0 6", "M": "zero 0: 4"},
        {"A": (7, 3, 1, 1), "T": (7, 5, 3, 3), "G": (8, 5), "g": (8,), "M": (8, 5)},
    ),
    Planted(
        "filters in a residual stream: both branches have to be zero",
        "x N,3,H,W | S 8,3,3,3 | A 6,8,3,3 | B 8,6,3,3 | Z 5,8,1,1",
        "s = Conv(x, S) r = Relu(s) a = Conv<pads=[1,1,1,1]>(r, A) q = Relu(a) b = Conv<pads=[1,1,1,1]>(q, B)"
        " t = Add(b, r) u = Relu(t) y = Conv(u, Z)",
        {"S": "zero 0: 1 2", "B": "zero 0: 2 3"},
        {"S": (7, 3, 3, 3), "A": (6, 7, 3, 3), "B": (7, 6, 3, 3), "Z": (5, 7, 1, 1)},
    ),
    Planted(
        "behind a gate",
        "x N,3,H,W | A 8,3,3,3 | D 4,8,1,1 | d 4 | E 8,4,1,1 | e 8 | Z 5,8,3,3",
        "h = Conv(x, A) r = Relu(h) p = GlobalAveragePool(r) a = Conv(p, D, d) b = Relu(a) c = Conv(b, E, e)"
        " g = Sigmoid(c) m = Mul(r, g) y = Conv<pads=[1,1,1,1]>(m, Z)",
        {"A": "zero 0: 0 3"},
        {"A": (6, 3, 3, 3), "D": (4, 6, 1, 1), "E": (6, 4, 1, 1), "e": (6,), "Z": (5, 6, 3, 3)},
    ),
    Planted(
        "everything: one channel stays",
        "x N,3,H,W | A 8,3,3,3 | B 5,8,3,3",
        "h = Conv(x, A) r = Relu(h) y = Conv(r, B)",
        {"A": "zero 0: 0 1 2 3 4 5 6 7"},
        {"A": (1, 3, 3, 3), "B": (5, 1, 3, 3)},
    ),
    Planted(
        "scales of a BatchNormalization without shift",
        "x N,3,H,W | A 8,3,3,3 | s 8 | t 8 | m 8 | v 8 | B 5,8,3,3",
        "h = Conv(x, A) n = BatchNormalization(h, s, t, m, v) r = Relu(n) y = Conv<pads=[1,1,1,1]>(r, B)",
        {"s": "zero 0: 2 5", "t": "zero 0: 2; set 0: 5=-1.5", "v": "set 0: 0=1 1=1 2=1 3=1 4=1 5=1 6=1 7=1"},
        {"A": (6, 3, 3, 3), "B": (5, 6, 3, 3), **dict.fromkeys("stmv", (6,))},
    ),
    Planted(
        "a factor of zero",
        "x N,3,H,W | A 8,3,3,3 | a 8 | k 8,1,1 | B 5,8,3,3",
        "h = Conv(x, A, a) m = Mul(h, k) y = Conv<pads=[1,1,1,1]>(m, B)",
        {"k": "zero 0: 1"},
        {"A": (7, 3, 3, 3), "a": (7,), "k": (7, 1, 1), "B": (5, 7, 3, 3)},
    ),
    Planted(
        "a whole group and a position in every group",
        "x N,3,H,W | A 12,3,1,1 | G 9,4,3,3 | Z 5,9,1,1",
        "h = Conv(x, A) r = Relu(h) g = Conv<group=3, pads=[1,1,1,1]>(r, G) y = Conv(g, Z)",
        {"G": "zero 0: 3 4 5; zero 1: 2"},
        {"A": (6, 3, 1, 1), "G": (6, 3, 3, 3), "Z": (5, 6, 1, 1)},
    ),
    Planted(
        "outputs of groups, the same position in each",
        "x N,6,H,W | G 12,2,3,3 | Z 5,12,1,1",
        "g = Conv<group=3, pads=[1,1,1,1]>(x, G) r = Relu(g) y = Conv(r, Z)",
        {"G": "zero 0: 1 5 9 2"},
        {"G": (9, 2, 3, 3), "Z": (5, 9, 1, 1)},
    ),
    Planted(
        "columns that every reader of a shared weight ignores",
        "x N,3,H,W | x2 N,3,H,W | A 8,3,3,3 | Z 5,8,1,1",
        "h = Conv(x, A) r = Relu(h) y = Conv(r, Z) k = Conv(x2, A) q = Tanh(k) y2 = Conv(q, Z)",
        {"Z": "zero 1: 1 4"},
        {"A": (6, 3, 3, 3), "Z": (5, 6, 1, 1)},
    ),
    Planted(
        "behind a weight that is transposed, named again and cast",
        "x N,4 | float16 A 9,4 | float16 a 9 | B 5,9",
        "c = Cast<to=1>(A) i = Identity(c) t = Transpose(i) d = Cast<to=1>(a) h = Gemm(x, t, d) r = Relu(h)"
        " u = Transpose(B) y = MatMul(r, u)",
        {"A": "zero 0: 1 2 3", "a": "zero 0: 1; set 0: 2=-3 3=0.5", "B": "zero 1: 8"},
        {"A": (5, 4), "a": (5,), "B": (5, 5)},
    ),
    Planted(
        "int8 weights stay int8",
        "x N,4 | int8 A 9,4 | s 9 | B 9,5",
        "w = DequantizeLinear<axis=0>(A, s) h = Gemm<transB=1>(x, w) r = Relu(h) y = MatMul(r, B)",
        {"A": "zero 0: 1 6"},
        {"A": (7, 4), "s": (7,), "B": (7, 5)},
    ),
]

DEAD = {"A": "zero 0: 1 5", "a": "set 0: 1=0.7 5=-0.4"}
SMALLER = {"A": (6, 3, 3, 3), "a": (6,)}
ONE = "x N,3,H,W | A 8,3,3,3 | a 8 | B 5,8,1,1 | b 5"
CARRIERS = (
    "Relu(h)",
    "Sigmoid(h)",
    "HardSwish(h)",
    "HardSigmoid<alpha=0.3>(h)",
    "LeakyRelu<alpha=0.2>(h)",
    "Elu(h)",
    "Softplus(h)",
    "Tanh(h)",
    "Clip(h, lo, hi)",
    "Clip(h, lo)",
    "PRelu(h, p)",
    "Add(h, p)",
    "Mul(p, h)",
    "Sub(p, h)",
    "Div(h, p)",
    "Sum(h, p)",
    "Identity(h)",
    "MaxPool<kernel_shape=[2,2], pads=[1,1,1,1]>(h)",
    "AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>(h)",
    "AveragePool<kernel_shape=[2,3], strides=[2,2], count_include_pad=1>(h)",
    "AveragePool<kernel_shape=[2,2], strides=[2,2], ceil_mode=1>(h)",
    'AveragePool<kernel_shape=[2,2], strides=[2,2], auto_pad="SAME_UPPER">(h)',
    "AveragePool<kernel_shape=[2,2], strides=[2,2], ceil_mode=1, count_include_pad=1>(h)",
    "ReduceMean<axes=[2,3]>(h)",
    "GlobalAveragePool(h)",
    'Resize<mode="linear">(h, , scales)',
    'Resize<mode="nearest", coordinate_transformation_mode="asymmetric">(h, , scales)',
    "Transpose<perm=[0,1,3,2]>(h)",
    "Slice(h, first, far, first)",
    "BatchNormalization(h, s, t, m, v)",
)
OPERANDS = {"p": "8,1,1", "lo": "[]", "hi": "[]", "scales": "4", "first": "1", "far": "1", **dict.fromkeys("stmv", "8")}
VALUES = {
    "lo": "-0.2",
    "hi": "0.5",
    "scales": "set 0: 0=1 1=1 2=2 3=1.5",
    "first": "set 0: 0=2",
    "far": "set 0: 0=5",
    "v": "set 0: 0=1 1=1.5 2=1 3=0.5 4=1 5=1 6=2 7=1",
}


def carried(body: str) -> Planted:
    """Two dead filters whose bias goes through one node into the bias of a Conv."""
    names = [name for name in OPERANDS if re.search(rf"\b{name}\b", body.split(">")[-1])]
    tensors = "".join(f" | {'int64 ' if name in ('first', 'far') else ''}{name} {OPERANDS[name]}" for name in names)
    cut = {
        name: tuple(6 if n == 8 else n for n in map(int, OPERANDS[name].split(",")))
        for name in names
        if "8" in OPERANDS[name]
    }
    return Planted(
        f"through {body}",
        ONE + tensors,
        f"h = Conv<pads=[1,1,1,1]>(x, A, a) r = {body} y = Conv(r, B, b)",
        DEAD | {name: VALUES[name] for name in names if name in VALUES},
        SMALLER | {"B": (5, 6, 1, 1)} | cut,
        ("Conv", body.split("(")[0].split("<")[0], "Conv"),
    )


GEMM = "x N,4 | A 9,4 | a 9"
DENSE = {"A": "zero 0: 1 6", "a": "set 0: 1=0.7 6=0.4"}
NARROW = {"A": (7, 4), "a": (7,)}
FIRST = "h = Gemm<transB=1>(x, A, a) r = Relu(h) "
BIASES = [
    Planted(
        "a Conv without one",
        ONE[:-6],
        "h = Conv(x, A, a) r = Relu(h) y = Conv(r, B)",
        DEAD,
        SMALLER | {"B": (5, 6, 1, 1)},
        ("Conv", "Relu", "Conv"),
    ),
    Planted(
        "a Conv with a kernel, strides and groups, without padding",
        "x N,3,H,W | A 8,3,1,1 | a 8 | B 6,4,3,3 | b 6",
        "h = Conv(x, A, a) r = Sigmoid(h) y = Conv<group=2, strides=[2,1], dilations=[1,2]>(r, B, b)",
        {"A": "zero 0: 1 5 6", "a": "set 0: 1=0.7 5=-0.4"},
        {"A": (6, 3, 1, 1), "a": (6,), "B": (6, 3, 3, 3)},
    ),
    *(
        Planted(
            f"a Conv of automatic padding {how}",
            "x N,3,H,W | A 8,3,3,3 | a 8 | B 5,8,3,1 | b 5",
            f'h = Conv(x, A, a) r = Relu(h) y = Conv<auto_pad="{how}">(r, B, b)',
            {"A": "zero 0: 1", "a": "set 0: 1=0.7"},
            {"A": (7, 3, 3, 3), "a": (7,), "B": (5, 7, 3, 1)} if how == "VALID" else {},
        )
        for how in ("VALID", "SAME_UPPER", "SAME_LOWER")
    ),
    Planted(
        "of automatic padding around a kernel of one",
        ONE,
        'h = Conv(x, A, a) r = Relu(h) y = Conv<auto_pad="SAME_UPPER", strides=[2,2]>(r, B, b)',
        DEAD,
        SMALLER | {"B": (5, 6, 1, 1)},
    ),
    Planted(
        "an operand of a Conv that is computed",
        "x N,3,6,7 | x2 1,5 | int64 k 1 | A 8,3,1,1 | a 8 | B 5,8,1,1",
        "h = Conv(x, A, a) r = Relu(h) b = Reshape(x2, k) y = Conv(r, B, b)",
        {"A": "zero 0: 1 5", "a": "set 0: 1=0.7 5=-0.4", "k": "5"},
        {"A": (6, 3, 1, 1), "a": (6,), "B": (5, 6, 1, 1)},
        ("Conv", "Relu", "Reshape", "Conv", "Add"),
    ),
    Planted(
        "of Gemm with alpha and beta",
        GEMM + " | B 5,9 | b 5",
        FIRST + "y = Gemm<transB=1, alpha=0.5, beta=3.0>(r, B, b)",
        DENSE,
        NARROW | {"B": (5, 7)},
    ),
    Planted(
        "of Gemm without one", GEMM + " | B 9,5", FIRST + "y = Gemm<alpha=-2.0>(r, B)", DENSE, NARROW | {"B": (7, 5)}
    ),
    *(
        Planted(
            f"of Gemm of shape {shape}",
            f"x 3,4 | A 9,4 | a 9 | B 9,5 | b {shape}",
            FIRST + "y = Gemm<alpha=0.5, beta=-2.0>(r, B, b)",
            DENSE,
            NARROW | {"B": (7, 5), "b": grown},
        )
        for shape, grown in (("[]", (5,)), ("1", (5,)), ("1,5", (1, 5)), ("3,1", (3, 5)), ("3,5", (3, 5)))
    ),
    Planted(
        "of Gemm that counts for nothing",
        GEMM + " | B 9,5 | b 5",
        FIRST + "y = Gemm<beta=0.0>(r, B, b)",
        DENSE,
        NARROW | {"B": (7, 5)},
    ),
    Planted(
        "of Gemm that is computed",
        GEMM + " | x2 N,5 | B 9,5",
        FIRST + "y = Gemm<alpha=0.5, beta=3.0>(r, B, x2)",
        DENSE,
        NARROW | {"B": (7, 5)},
        ("Gemm", "Relu", "Gemm", "Add"),
    ),
    Planted(
        "of Gemm with its weights on the left",
        "x 4,6 | A 9,4 | a 9,1 | B 5,9 | b 5,1",
        "h = Gemm(A, x, a) r = Relu(h) y = Gemm<alpha=0.5>(B, r, b)",
        {"A": "zero 0: 1 6", "a": "set 0: 1=0.7 6=0.4"},
        {"A": (7, 4), "a": (7, 1), "B": (5, 7)},
    ),
    Planted(
        "of a MatMul without Add",
        "x N,T,4 | A 9,4 | a 9 | B 9,5".replace("A 9,4", "A 4,9"),
        "m = MatMul(x, A) h = Add(m, a) r = Relu(h) y = MatMul(r, B)",
        {"A": "zero 1: 1 6", "a": "set 0: 1=0.7 6=0.4"},
        {"A": (4, 7), "a": (7,), "B": (7, 5)},
        ("MatMul", "Add", "Relu", "MatMul", "Add"),
    ),
    *(
        Planted(
            f"of a MatMul with an Add {how}",
            f"x N,T,4 | A 4,9 | a 9 | B 9,5 | b {shape}",
            f"m = MatMul(x, A) h = Add(m, a) r = Relu(h) o = MatMul(r, B) y = Add({how})",
            {"A": "zero 1: 1 6", "a": "set 0: 1=0.7 6=0.4"},
            {"A": (4, 7), "a": (7,), "B": (7, 5), "b": (5,)},
            ("MatMul", "Add", "Relu", "MatMul", "Add"),
        )
        for how, shape in (("o, b", "5"), ("b, o", "5"), ("b, o", "1"))
    ),
    Planted(
        "of a MatMul with an Add that broadcasts",
        "x 1,T,4 | A 4,9 | a 9 | B 9,5 | b 2,1,5",
        "m = MatMul(x, A) h = Add(m, a) r = Relu(h) o = MatMul(r, B) y = Add(o, b)",
        {"A": "zero 1: 1 6", "a": "set 0: 1=0.7 6=0.4"},
        {"A": (4, 7), "a": (7,), "B": (7, 5)},
        ("MatMul", "Add", "Relu", "MatMul", "Add", "Add"),
    ),
    Planted(
        "of a MatMul that is an output beside its Add",
        "x N,T,4 | A 4,9 | a 9 | B 9,5 | b 5",
        "m = MatMul(x, A) h = Add(m, a) r = Relu(h) y = MatMul(r, B) y2 = Add(y, b)",
        {"A": "zero 1: 1 6", "a": "set 0: 1=0.7 6=0.4"},
        {"A": (4, 7), "a": (7,), "B": (7, 5)},
    ),
    Planted(
        "of a MatMul with its weights on the left",
        "x N,4,T | A 9,4 | a 9,1 | B 5,9",
        "m = MatMul(A, x) h = Add(m, a) r = Relu(h) y = MatMul(B, r)",
        {"A": "zero 0: 1 6", "a": "zero 0: 1; set 0: 6=0.4"},
        {"A": (7, 4), "a": (7, 1), "B": (5, 7)},
    ),
    Planted(
        "of a MatMul by a vector",
        "x N,T,4 | A 4,9 | a 9 | B 9",
        "m = MatMul(x, A) h = Add(m, a) r = Relu(h) y = MatMul(r, B)",
        {"A": "zero 1: 1 6", "a": "set 0: 1=0.7 6=0.4"},
        {"A": (4, 7), "a": (7,), "B": (7,)},
    ),
    Planted(
        "of a vector by a vector",
        "x 4 | A 4,9 | a 9 | B 9",
        "m = MatMul(x, A) h = Add(m, a) r = Relu(h) y = MatMul(r, B)",
        {"A": "zero 1: 1 6", "a": "set 0: 1=0.7 6=0.4"},
        {"A": (4, 7), "a": (7,), "B": (7,)},
    ),
    Planted(
        "of a vector on the left",
        "x 4,5 | A 9,4 | a 9,1 | B 9",
        "m = MatMul(A, x) h = Add(m, a) r = Relu(h) y = MatMul(B, r)",
        {"A": "zero 0: 1 6", "a": "set 0: 1=0.7 6=0.4"},
        {"A": (7, 4), "a": (7, 1), "B": (7,)},
    ),
    Planted(
        "after Flatten: every place of a channel has a column",
        "x N,3,6,5 | A 8,3,3,3 | a 8 | B 96,7 | b 7",
        "h = Conv(x, A, a) r = Relu(h) f = Flatten(r) y = Gemm(f, B, b)",
        DEAD,
        SMALLER | {"B": (72, 7)},
    ),
    Planted(
        "after Reshape and Transpose",
        "x N,3,6,5 | A 8,3,3,3 | a 8 | int64 s 3 | B 8,7",
        "h = Conv(x, A, a) r = Relu(h) f = Reshape(r, s) t = Transpose<perm=[0,2,1]>(f) y = MatMul(t, B)",
        DEAD | {"s": "set 0: 0=0 1=8 2=-1"},
        SMALLER | {"B": (6, 7)},
    ),
    Planted(
        "through Upsample",
        ONE + " | s 4",
        'h = Conv<pads=[1,1,1,1]>(x, A, a) r = Upsample<mode="nearest">(h, s) y = Conv(r, B, b)',
        DEAD | {"s": "set 0: 0=1 1=1 2=2 3=2"},
        SMALLER | {"B": (5, 6, 1, 1)},
        opset=9,
    ),
    Planted(
        "through Concat",
        ONE[:-6].replace("B 5,8", "B 5,12") + " | C 4,3,3,3",
        "h = Conv(x, A, a) r = Relu(h) c = Conv(x, C) k = Concat<axis=1>(c, r) y = Conv(k, B)",
        DEAD | {"C": "zero 0: 3"},
        SMALLER | {"B": (5, 9, 1, 1), "C": (3, 3, 3, 3)},
    ),
    Planted(
        "through Add: constants of both sides add up",
        ONE + " | C 8,3,3,3 | c 8",
        "h = Conv(x, A, a) q = Conv(x, C, c) s = Sigmoid(q) k = Add(h, s) r = Relu(k) y = Conv(r, B, b)",
        DEAD | {"C": "zero 0: 1 2", "c": "set 0: 1=0.2"},
        {"A": (7, 3, 3, 3), "a": (7,), "C": (7, 3, 3, 3), "c": (7,), "B": (5, 7, 1, 1)},
    ),
    Planted(
        "behind a gate that is constant too",
        "x N,3,H,W | A 8,3,3,3 | a 8 | D 4,8,1,1 | E 8,4,1,1 | e 8 | Z 5,8,1,1 | z 5",
        "h = Conv(x, A, a) r = Relu(h) p = GlobalAveragePool(r) g = Conv(p, D) b = Relu(g) c = Conv(b, E, e)"
        " g2 = Sigmoid(c) m = Mul(r, g2) y = Conv(m, Z, z)",
        {"A": "zero 0: 1 5", "a": "set 0: 1=0.7 5=0.4", "E": "zero 0: 5 6"},
        {"A": (7, 3, 3, 3), "a": (7,), "D": (4, 7, 1, 1), "E": (7, 4, 1, 1), "e": (7,), "Z": (5, 7, 1, 1)},
    ),
    Planted(
        "of a depthwise Conv without padding",
        "x N,3,H,W | A 8,3,1,1 | a 8 | D 8,1,3,3 | d 8 | B 5,8,1,1",
        "h = Conv(x, A, a) r = Relu(h) c = Conv<group=8>(r, D, d) y = Conv(c, B)",
        {"A": "zero 0: 1 5", "a": "set 0: 1=0.7 5=-0.4"},
        {"A": (6, 3, 1, 1), "a": (6,), "D": (6, 1, 3, 3), "d": (6,), "B": (5, 6, 1, 1)},
    ),
]
PADDED = [
    Planted(
        "constants of a padded Conv are merged into one",
        "x N,3,H,W | A 8,3,3,3 | a 8 | B 5,8,3,3",
        "h = Conv(x, A, a) r = Sigmoid(h) y = Conv<pads=[1,1,1,1]>(r, B)",
        {"A": "zero 0: 1 5 6", "a": "set 0: 1=-9 5=-0.4 6=1.2"},
        {"A": (6, 3, 3, 3), "a": (6,), "B": (5, 6, 3, 3)},
    ),
    Planted(
        "one constant at a padded Conv stays",
        "x N,3,H,W | A 8,3,3,3 | a 8 | B 5,8,3,3",
        "h = Conv(x, A, a) r = Relu(h) y = Conv<pads=[1,1,1,1]>(r, B)",
        {"A": "zero 0: 1 5", "a": "set 0: 1=0.7 5=-0.4"},
        {"A": (7, 3, 3, 3), "a": (7,), "B": (5, 7, 3, 3)},
    ),
    Planted(
        "a padded and a plain reader",
        "x N,3,H,W | A 8,3,3,3 | a 8 | B 5,8,3,3 | C 4,8,1,1",
        "h = Conv(x, A, a) r = Sigmoid(h) y = Conv<pads=[1,1,1,1]>(r, B) y2 = Conv(r, C)",
        {"A": "zero 0: 1 5 6", "B": "zero 1: 6"},
        {"A": (6, 3, 3, 3), "a": (6,), "B": (5, 6, 3, 3), "C": (4, 6, 1, 1)},
    ),
    Planted(
        "another value at each of two padded readers",
        "x N,3,H,W | A 8,3,3,3 | a 8 | B 5,8,3,3 | C 4,8,3,3",
        "h = Conv(x, A, a) r = Sigmoid(h) q = Softplus(h) y = Conv<pads=[1,1,1,1]>(r, B) y2 = Conv<pads=[0,2,0,0]>(q, C)",
        {"A": "zero 0: 1 5 6"},
        {"A": (6, 3, 3, 3), "a": (6,), "B": (5, 6, 3, 3), "C": (4, 6, 3, 3)},
    ),
    Planted(
        "constants of which none counts wherever the other does",
        "x N,3,H,W | A 8,3,3,3 | a 8 | B 5,8,3,3 | C 4,8,3,3 | D 6,8,3,3",
        "h = Conv(x, A, a) r = Relu(h) s = Sigmoid(h) n = Neg(h) m = Relu(n) y = Conv<pads=[1,1,1,1]>(r, B)"
        " y2 = Conv<pads=[1,1,1,1]>(s, C) y3 = Conv<pads=[1,1,1,1]>(m, D)",
        {"A": "zero 0: 1 2 5 6", "a": "set 0: 1=0.7 2=-0.4 5=0.3 6=-0.8"},
        {"A": (6, 3, 3, 3), "a": (6,), "B": (5, 6, 3, 3), "C": (4, 6, 3, 3), "D": (6, 6, 3, 3)},
    ),
    Planted(
        "a constant that counts at fewer places",
        "x N,3,H,W | A 8,3,3,3 | a 8 | B 5,8,3,3 | C 4,8,3,3",
        "h = Conv(x, A, a) r = Relu(h) s = Sigmoid(h) y = Conv<pads=[1,1,1,1]>(r, B) y2 = Conv<pads=[1,1,1,1]>(s, C)",
        {"A": "zero 0: 1 2", "a": "set 0: 1=-0.7 2=0.4"},
        {"A": (7, 3, 3, 3), "a": (7,), "B": (5, 7, 3, 3), "C": (4, 7, 3, 3)},
    ),
    Planted(
        "a ConvTranspose",
        "x N,3,6,7 | A 8,3,3,3 | a 8 | B 8,5,3,3",
        "h = Conv(x, A, a) r = Sigmoid(h) y = ConvTranspose<strides=[2,2], pads=[1,0,0,1], output_padding=[1,0]>(r, B)",
        {"A": "zero 0: 1 5 6"},
        {"A": (6, 3, 3, 3), "a": (6,), "B": (6, 5, 3, 3)},
    ),
    Planted(
        "a ConvTranspose of two groups",
        "x N,3,6,7 | A 8,3,3,3 | a 8 | B 8,5,3,3",
        "h = Conv(x, A, a) r = Sigmoid(h) y = ConvTranspose<group=2, pads=[1,0,0,1]>(r, B)",
        {"A": "zero 0: 1 3 5 7"},
        {"A": (6, 3, 3, 3), "a": (6,), "B": (6, 5, 3, 3)},
    ),
    Planted(
        "constants of two makers",
        "x N,3,H,W | A 8,3,3,3 | a 8 | C 4,3,3,3 | c 4 | B 5,12,3,3",
        "h = Conv(x, A, a) q = Conv(x, C, c) k = Concat<axis=1>(h, q) r = Sigmoid(k) y = Conv<pads=[1,1,1,1]>(r, B)",
        {"A": "zero 0: 1", "C": "zero 0: 3", "a": "set 0: 1=0.2", "c": "set 0: 3=0.3"},
        {"A": (7, 3, 3, 3), "a": (7,), "B": (5, 11, 3, 3)},
    ),
    Planted(
        "of groups, the same position in each",
        "x N,3,H,W | A 8,3,3,3 | a 8 | B 6,4,3,3",
        "h = Conv(x, A, a) r = Sigmoid(h) y = Conv<group=2, pads=[1,1,1,1]>(r, B)",
        {"A": "zero 0: 1 3 5 7"},
        {"A": (6, 3, 3, 3), "a": (6,), "B": (6, 3, 3, 3)},
    ),
    Planted(
        "a Conv of whole groups",
        "x N,3,H,W | A 6,3,1,1 | a 6 | D 12,1,3,3 | Z 5,12,1,1",
        "h = Conv(x, A, a) r = Sigmoid(h) c = Conv<group=6, pads=[1,1,1,1]>(r, D) y = Conv(c, Z)",
        {"A": "zero 0: 1 4", "D": "copy 0: 8=2 9=3"},
        {},
    ),
    Planted(
        "a shared weight is not copied for them",
        "x N,3,H,W | x2 N,3,H,W | A 8,3,3,3 | a 8 | Z 5,8,3,3",
        "h = Conv(x, A, a) r = Sigmoid(h) y = Conv<pads=[1,1,1,1]>(r, Z)"
        " k = Conv(x2, A, a) q = Softplus(k) y2 = Conv<pads=[1,1,1,1]>(q, Z)",
        {"A": "zero 0: 1 4"},
        {},
    ),
]
COPIES = [
    Planted(
        "filters",
        "x N,3,H,W | A 8,3,3,3 | a 8 | B 5,8,3,3",
        "h = Conv(x, A, a) r = Relu(h) y = Conv<pads=[1,1,1,1]>(r, B)",
        {"A": "copy 0: 3=1 4=1 7=6", "a": "copy 0: 3=1 4=1"},
        {"A": (6, 3, 3, 3), "a": (6,), "B": (5, 6, 3, 3)},
    ),
    Planted(
        "with a BatchNormalization",
        "x N,3,H,W | A 8,3,3,3 | s 8 | t 8 | m 8 | v 8 | B 5,8,3,3",
        "h = Conv(x, A) n = BatchNormalization(h, s, t, m, v) r = Relu(n) y = Conv<pads=[1,1,1,1]>(r, B)",
        {"A": "copy 0: 3=1 4=1", "v": "1", **dict.fromkeys("stm", "copy 0: 3=1")},
        {"A": (7, 3, 3, 3), "B": (5, 7, 3, 3), **dict.fromkeys("stmv", (7,))},
    ),
    Planted(
        "through a depthwise pair",
        "x N,3,H,W | A 8,3,1,1 | D 8,1,3,3 | d 8 | p 8,1,1 | B 5,8,1,1",
        "h = Conv(x, A) c = Conv<group=8, pads=[1,1,1,1]>(h, D, d) r = PRelu(c, p) y = Conv(r, B)",
        {"A": "copy 0: 3=1 4=1 5=1", "D": "copy 0: 3=1 4=1 5=1", "d": "copy 0: 3=1 5=1", "p": "copy 0: 3=1 4=1"},
        {"A": (7, 3, 1, 1), "D": (7, 1, 3, 3), "d": (7,), "p": (7, 1, 1), "B": (5, 7, 1, 1)},
    ),
    Planted(
        "through Concat, pooling and a residual Add",
        "x N,3,H,W | A 8,3,1,1 | C 8,3,1,1 | B 5,16,3,3",
        "h = Conv(x, A) q = Conv(x, C) r = Relu(h) s = Add(q, r) p = MaxPool<kernel_shape=[2,2]>(s)"
        " u = AveragePool<kernel_shape=[2,2]>(r) k = Concat<axis=1>(p, u) y = Conv<pads=[1,1,1,1]>(k, B)",
        {"A": "copy 0: 3=1 4=1", "C": "copy 0: 3=1 7=5"},
        {"A": (7, 3, 1, 1), "C": (7, 3, 1, 1), "B": (5, 14, 3, 3)},
    ),
    Planted(
        "of a channel that has to stay",
        "x N,3,H,W | A 8,3,1,1 | int64 o 1 | int64 l 1 | int64 c 1 | B 5,8,3,3",
        "h = Conv(x, A) r = Relu(h) y2 = Slice(r, o, l, c) y = Conv<pads=[1,1,1,1]>(r, B)",
        {"A": "copy 0: 6=1", "o": "5", "l": "8", "c": "1"},
        {"A": (7, 3, 1, 1), "B": (5, 7, 3, 3)},
    ),
    Planted(
        "read twice by one Concat",
        "x N,3,H,W | A 8,3,1,1 | B 5,16,3,3",
        "h = Conv(x, A) k = Concat<axis=1>(h, h) y = Conv(k, B)",
        {"A": "copy 0: 3=1"},
        {"A": (7, 3, 1, 1), "B": (5, 14, 3, 3)},
    ),
    Planted(
        "in another order at each of two activations",
        "x N,3,H,W | A 4,3,1,1 | int64 i 8 | B 5,8,1,1",
        "h = Conv(x, A) r = Relu(h) s = Sigmoid(h) k = Concat<axis=1>(r, s) g = Gather<axis=1>(k, i) y = Conv(g, B)",
        {"A": "copy 0: 3=1", "i": "set 0: 0=0 1=1 2=7 3=2 4=3 5=5 6=6 7=4"},
        {"A": (3, 3, 1, 1), "B": (5, 6, 1, 1)},
    ),
    Planted(
        "taken once and twice",
        "x N,3,H,W | A 4,3,1,1 | int64 i 6 | B 5,6,1,1",
        "h = Conv(x, A) g = Gather<axis=1>(h, i) y = Conv(g, B)",
        {"A": "copy 0: 3=1", "i": "set 0: 0=0 1=1 2=3 3=3 4=2 5=0"},
        {},
    ),
    Planted(
        "of groups: inputs of another group are no copies",
        "x N,3,H,W | A 6,3,1,1 | D 12,1,3,3 | Z 5,12,1,1",
        "h = Conv(x, A) r = Relu(h) c = Conv<group=6, pads=[1,1,1,1]>(r, D) y = Conv(c, Z)",
        {"A": "copy 0: 4=1", "D": "copy 0: 8=2"},
        {},
    ),
    Planted(
        "outputs of one group beside others",
        "x N,6,H,W | G 12,2,3,3 | Z 5,12,1,1",
        "g = Conv<group=3, pads=[1,1,1,1]>(x, G) r = Relu(g) y = Conv(r, Z)",
        {"G": "copy 0: 1=0 5=4 9=8 11=10"},
        {"G": (9, 2, 3, 3), "Z": (5, 9, 1, 1)},
    ),
    Planted(
        "of Gemm and MatMul",
        "x N,4 | A 9,4 | a 9 | B 9,6 | C 6,5",
        'h = Gemm<transB=1>(x, A, a) r = Gelu<approximate="none">(h) m = MatMul(r, B) t = Tanh(m) y = MatMul(t, C)',
        {"A": "copy 0: 3=1 5=1", "a": "copy 0: 3=1", "B": "copy 1: 2=0"},
        {"A": (8, 4), "a": (8,), "B": (8, 5), "C": (5, 5)},
        opset=20,
    ),
    Planted(
        "readers of a shared weight go on sharing it",
        "x N,3,H,W | x2 N,3,H,W | A 8,3,3,3 | a 8 | Z 5,8,3,3",
        "h = Conv(x, A, a) r = Sigmoid(h) y = Conv<pads=[1,1,1,1]>(r, Z)"
        " k = Conv(x2, A, a) q = Softplus(k) y2 = Conv<pads=[1,1,1,1]>(q, Z)",
        {"A": "copy 0: 4=1", "a": "copy 0: 4=1"},
        {"A": (7, 3, 3, 3), "a": (7,), "Z": (5, 7, 3, 3)},
    ),
    Planted(
        "spread over the places of a channel",
        "x N,3,6,5 | A 8,3,3,3 | B 96,7",
        "h = Conv(x, A) r = Relu(h) f = Flatten(r) y = Gemm(f, B)",
        {"A": "copy 0: 3=1"},
        {"A": (7, 3, 3, 3), "B": (84, 7)},
    ),
    Planted(
        "spread over the places of a channel, and then mixed up",
        "x N,3,6,5 | A 4,3,3,3 | int64 i 12 | B 12,7",
        "h = Conv<strides=[2,1]>(x, A) r = Relu(h) p = MaxPool<kernel_shape=[2,1]>(r) f = Flatten(p)"
        " g = Gather<axis=1>(f, i) y = Gemm(g, B)",
        {"A": "copy 0: 3=1", "i": "set 0: 0=11 1=4 2=10 3=3 4=9 5=5 6=0 7=1 8=2 9=6 10=7 11=8"},
        {"A": (3, 3, 3, 3), "B": (9, 7)},
    ),
]


ATTENTION = "x N,T,6 | Q 6,12 | K 6,12 | V 6,12 | v 12 | O 12,6 | o 6 | s [] | int64 i 4 | int64 j 3"
HEADS = (
    "q = MatMul(x, Q) q2 = Reshape(q, i) q3 = Transpose<perm=[0,2,1,3]>(q2)"
    " k = MatMul(x, K) k2 = Reshape(k, i) k3 = Transpose<perm=[0,2,3,1]>(k2)"
    " w = MatMul(x, V) w1 = Add(w, v) w2 = Reshape(w1, i) w3 = Transpose<perm=[0,2,1,3]>(w2)"
    " a = MatMul(q3, k3) b = Mul(a, s) c = Softmax(b) d = MatMul(c, w3) e = Transpose<perm=[0,2,1,3]>(d)"
    " f = Reshape(e, j) g = MatMul(f, O) y = Add(g, o)"
)
SIZES = {"i": "set 0: 0=0 1=0 2=3 3=4", "j": "set 0: 0=0 1=0 2=-1"}
HEAD = [
    Planted(
        "a head is dead by its values",
        ATTENTION,
        HEADS,
        SIZES | {"V": "zero 1: 4 5 6 7", "v": "zero 0: 4 5 6 7"},
        {"Q": (6, 8), "K": (6, 8), "V": (6, 8), "v": (8,), "O": (8, 6)},
    ),
    Planted(
        "a head is dead by its projection",
        ATTENTION,
        HEADS,
        SIZES | {"O": "zero 0: 8 9 10 11"},
        {"Q": (6, 8), "K": (6, 8), "V": (6, 8), "v": (8,), "O": (8, 6)},
    ),
    Planted(
        "a width that queries never look at, and one that every head writes to nowhere",
        ATTENTION,
        HEADS,
        SIZES | {"Q": "zero 1: 1 5 9", "O": "zero 0: 2 6 10"},
        {"Q": (6, 9), "K": (6, 9), "V": (6, 9), "v": (9,), "O": (9, 6)},
    ),
    Planted(
        "a width that only two of three heads ignore stays",
        ATTENTION,
        HEADS,
        SIZES | {"Q": "zero 1: 1 5", "V": "zero 1: 1 5", "v": "zero 0: 1 5"},
        {},
    ),
]
GRID = "m = MatMul(x, Q) q = Reshape(m, i) "
SHARED = "x N,T,6 | Q 6,24 | K 6,8 | int64 i 5 | int64 j 5"
KEYS = (
    "q = MatMul(x, Q) q2 = Reshape(q, i) q3 = Transpose<perm=[0,2,3,1,4]>(q2)"
    " k = MatMul(x, K) k2 = Reshape(k, j) k3 = Transpose<perm=[0,2,3,4,1]>(k2) a = MatMul(q3, k3) y = Softmax(a)"
)
FIVE = {"i": "set 0: 0=0 1=0 2=2 3=3 4=4", "j": "set 0: 0=0 1=0 2=2 3=1 4=4"}
SUMMED = [
    Planted(
        "a width of keys that several queries share",
        SHARED,
        KEYS,
        FIVE | {"K": "zero 1: 1 5"},
        {"Q": (6, 18), "K": (6, 6)},
    ),
    Planted(
        "a width that a sum over heads sees as zero in every head",
        "x N,T,6 | Q 6,12 | int64 i 4 | int64 a 1 | O 4,5",
        GRID + "r = ReduceSum<keepdims=0>(q, a) y = MatMul(r, O)",
        {"i": "set 0: 0=0 1=0 2=3 3=4", "a": "2", "Q": "zero 1: 1 5 9"},
        {"Q": (6, 9), "O": (3, 5)},
    ),
]
STAYS = [
    Planted("a width that only one of two keys has not", SHARED, KEYS, FIVE | {"K": "zero 1: 1 6"}, {}),
    Planted(
        "a sum of exponentials of zeros is not zero",
        "x N,3,6,5 | A 8,3,1,1 | B 5,8,1,1",
        "h = Conv(x, A) r = ReduceLogSumExp<axes=[2,3]>(h) y = Conv<pads=[1,1,1,1]>(r, B)",
        {"A": "zero 0: 1"},
        {},
    ),
    Planted(
        "a width that a sum over heads sees as zero in one head",
        "x N,T,6 | Q 6,12 | int64 i 4 | int64 a 1 | O 4,5",
        GRID + "r = ReduceSum<keepdims=0>(q, a) y = MatMul(r, O)",
        {"i": "set 0: 0=0 1=0 2=3 3=4", "a": "2", "Q": "zero 1: 1 6 11"},
        {},
    ),
    Planted(
        "copies in every head that a constant of heads and widths tells apart",
        "x N,T,6 | Q 6,12 | c 3,4 | int64 i 4 | int64 j 3 | O 12,5",
        GRID + "r = Mul(q, c) s = Reshape(r, j) y = MatMul(s, O)",
        {"i": "set 0: 0=0 1=0 2=3 3=4", "j": "set 0: 0=0 1=0 2=-1", "Q": "copy 1: 1=0 5=4 9=8"},
        {},
    ),
    Planted(
        "copies that int8 weights read",
        "x N,4 | A 9,4 | int8 B 9,5 | s []",
        "h = Gemm<transB=1>(x, A) r = Relu(h) w = DequantizeLinear(B, s) y = MatMul(r, w)",
        {"A": "copy 0: 5=4", "s": "0.1"},
        {},
    ),
    Planted(
        "an output of the model",
        "x N,3,H,W | A 8,3,3,3 | B 5,8,1,1",
        "h = Conv(x, A) y = Relu(h) y2 = Conv(y, B)",
        {"A": "zero 0: 1; copy 0: 5=4", "B": "zero 1: 2"},
        {},
    ),
    Planted(
        "what an operator nobody knows reads",
        "x N,3,H,W | A 8,3,3,3 | B 5,8,1,1",
        "h = Conv(x, A) r = MeanVarianceNormalization<axes=[1]>(h) y = Conv(r, B)",
        {"A": "zero 0: 1", "B": "zero 1: 2"},
        {},
    ),
    Planted(
        "an image next to constant channels",
        "x N,3,H,W | A 4,3,1,1 | a 4 | B 5,7,3,3",
        "h = Conv(x, A, a) k = Concat<axis=1>(x, h) y = Conv(k, B)",
        {"A": "zero 0: 1", "B": "zero 1: 0"},
        {"A": (3, 3, 1, 1), "a": (3,), "B": (5, 6, 3, 3)},
    ),
    Planted(
        "copies that another constant tells apart",
        "x N,3,6,5 | A 8,3,1,1 | m 8,6,5 | B 5,8,1,1",
        "h = Conv(x, A) r = Mul(h, m) y = Conv(r, B)",
        {"A": "copy 0: 3=1"},
        {},
    ),
    Planted(
        "copies in two groups of a norm",
        "x N,3,6,5 | A 8,3,1,1 | s 2 | t 2 | B 5,8,3,3",
        "h = Conv(x, A) r = GroupNormalization<num_groups=2>(h, s, t) y = Conv(r, B)",
        {"A": "copy 0: 4=0"},
        {},
        opset=18,
    ),
    Planted(
        "two slices of one channel are two things",
        "x N,3,6,5 | A 4,3,1,1 | int64 o 1 | int64 l 1 | int64 h 1 | int64 c 1 | B 5,8,1,1",
        "g = Conv(x, A) r = Slice(g, o, h, c) q = Slice(g, h, l, c) k = Concat<axis=1>(r, q) y = Conv(k, B)",
        {"A": "copy 0: 3=1", "o": "0", "h": "3", "l": "6", "c": "2"},
        {"A": (3, 3, 1, 1), "B": (5, 6, 1, 1)},
    ),
]


@pytest.mark.parametrize("case", [*ZEROS, *map(carried, CARRIERS), *BIASES, *PADDED, *COPIES, *HEAD, *SUMMED], ids=str)
def test_finds_and_removes(case: Planted) -> None:
    check(case)


@pytest.mark.parametrize("case", STAYS, ids=str)
def test_leaves_alone(case: Planted) -> None:
    check(case)


def test_a_constant_that_dropout_still_changes_stays() -> None:
    case = Planted(
        "dropout in training",
        "x N,3,H,W | A 8,3,1,1 | a 8 | B 5,8,1,1 | r [] | bool t []",
        "h = Conv(x, A, a) d = Dropout(h, r, t) y = Conv(d, B)",
        {"A": "zero 0: 1 2", "a": "set 0: 1=0.7 2=0", "r": "0.5"},
        {},
    ).case
    case = Case(case.name, case.tensors, case.body, 0, arrays={**case.arrays, "t": True})
    after, _ = slim(case.model, feed=case.feeds()[0])
    assert shapes_of(after)["A"] == (7, 3, 1, 1)


def test_readers_of_a_shared_weight_go_on_sharing_it() -> None:
    (case,) = (case for case in COPIES if case.name.startswith("readers of a shared weight"))
    assert shapes_of(check(case)).keys() == {"A", "a", "Z"}


HALF = {"A": "zero 0: 1 6", "a": "set 0: 1=1.5 6=0.4", "B": "copy 1: 5=4"}


def test_float16() -> None:
    """Judged by what float16 itself does to the answers: its noise floor."""
    check(
        Planted(
            "float16",
            "float16 x 6,4 | float16 A 9,4 | float16 a 9 | float16 B 9,7 | float16 C 7,5 | float16 c 5",
            "h = Gemm<transB=1>(x, A, a) r = Relu(h) m = MatMul(r, B) t = Tanh(m) y = Gemm(t, C, c)",
            HALF,
            {"A": (7, 4), "a": (7,), "B": (7, 6), "C": (6, 5)},
            outputs={"y": "float16"},
        )
    )


@pytest.mark.parametrize(
    "plant",
    [
        {"A": "zero 0: 1", "a": "set 0: 1=1000", "B": "set 0: 1=100"},
        {"A": "copy 0: 2=1", "a": "copy 0: 2=1", "B": "set 0: 1=40000 2=40000"},
    ],
)
def test_numbers_that_float16_cannot_hold_are_refused(plant: dict[str, str]) -> None:
    case = Planted(
        "float16",
        "float16 x 6,4 | float16 A 9,4 | float16 a 9 | float16 B 9,5",
        "h = Gemm<transB=1>(x, A, a) r = Relu(h) y = MatMul(r, B)",
        plant | {"A": f"{plant['A']}; zero 0: 7", "a": f"{plant['a']}; zero 0: 7"},
        {},
        outputs={"y": "float16"},
    )
    after, changes = slim(case.case.model, feed=case.case.feeds()[0])
    assert [(c.guard, c.action) for c in changes if not c.applied] == [("numbers_fit", "remove 1 of 8 channels")]
    assert [c.action for c in changes if c.applied] == ["remove 1 of 9 channels (zero)"]
    assert shapes_of(after)["B"] == (8, 5)


@pytest.mark.parametrize(
    ("width", "idle", "round_to", "left"),
    [
        (64, 20, "auto", 48),
        (64, 15, "auto", 64),
        (64, 20, 1, 44),
        (64, 20, 8, 48),
        (32, 21, "auto", 12),
        (32, 3, "auto", 32),
        (30, 13, "auto", 30),
        (30, 14, "auto", 16),
        (20, 20, "auto", 4),
        (20, 20, 1, 1),
    ],
)
def test_widths_that_are_left_lie_on_the_grid(width: int, idle: int, round_to: int | str, left: int) -> None:
    case = Planted(
        "grid",
        f"x N,3,H,W | A {width},3,1,1 | a {width} | B 5,{width},3,3",
        "h = Conv(x, A, a) r = Relu(h) y = Conv(r, B)",
        {"A": "zero 0: " + " ".join(map(str, range(idle))), "a": "set 0: 0=-1 1=0.5"},
        {},
    )
    before, feeds = case.case.model, case.case.feeds()
    after, changes = slim(before, round_to, feeds[0])
    found = shapes_of(after)
    assert (found["A"], found["a"], found["B"]) == ((left, 3, 1, 1), (left,), (5, left, 3, 3))
    oracles.assert_equal(before, after, Kind.ALGEBRAIC, feeds)
    refused = {change.guard for change in changes if not change.applied}
    assert refused == ({"width_on_grid"} if round_to != 1 and left > max(width - idle, 1) else set())
    again, more = slim(after, round_to, feeds[0])
    assert not [change for change in more if change.applied]
    assert again.SerializeToString(deterministic=True) == after.SerializeToString(deterministic=True)
