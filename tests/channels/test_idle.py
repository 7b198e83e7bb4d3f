"""What remove_idle finds: every way for a channel not to count, judged by onnxruntime and by the widths that are left.

A case plants idle channels and says which widths the weights have afterwards. The smaller model has to answer the same
to 1e-5 at every size, and a second run has to find nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
import pytest
from onnxslim_core.passes import pass_class

from onnxslim_core.model import load
from onnxslim_core.rewrite import Change, Context, Kind
from onnxslim_core.verify import Interface, verify
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
            of entry j), `set AXIS: i=VALUE`, several of them with `;` between.
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
    for step in text.split(";"):
        what, _, entries = step.partition(":")
        kind, axis = what.split()
        rows = np.moveaxis(array, int(axis), 0)
        for entry in entries.split():
            place, _, value = entry.partition("=")
            rows[int(place)] = {"zero": lambda: 0, "copy": lambda: rows[int(value)], "set": lambda: float(value)}[
                kind
            ]()
    return array


def slim(
    model: onnx.ModelProto, round_to: int | str = 1, feed: Mapping[str, np.ndarray] | None = None
) -> tuple[onnx.ModelProto, list[Change]]:
    """The model after remove_idle, valid by the verifier and by inference."""
    held = load(model)
    interface = Interface.of(held.ir)
    changes = pass_class("remove_idle")(round_to=round_to).run(held.ir, Context(samples=[feed] if feed else []))
    assert not (problems := verify(held.ir, interface)), problems
    after = held.to_proto()
    onnx.shape_inference.infer_shapes(after, check_type=True, strict_mode=True)
    return after, changes


def shapes_of(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the weights; what a pass had to copy has the name of its source."""
    return {t.name.removesuffix("_1"): tuple(t.dims) for t in model.graph.initializer}


def check(case: Planted) -> onnx.ModelProto:
    """Widths, answers at several sizes and seeds, idempotence."""
    before, feeds = case.case.model, case.case.feeds()
    after, changes = slim(before, feed=feeds[0])
    expected = {name: case.shapes.get(name, shape) for name, shape in shapes_of(before).items()}
    found = {name: shape for name, shape in shapes_of(after).items() if name in expected}
    assert found == {name: shape for name, shape in expected.items() if shape}, changes
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

BN = {"v": "set 0: 0=1 1=1.5 2=1 3=0.5 4=1 5=1 6=2 7=1", "s": "zero 0: 2 5"}
DEAD = {"A": "zero 0: 1 5", "a": "set 0: 1=0.7 5=-0.4"}
CONSTANTS = [
    *(
        Planted(
            f"through {op.split('(')[0].split('<')[0]} into a bias",
            f"x N,3,H,W | A 8,3,3,3 | a 8 | B 5,8,3,3 | b 5 | p 8,1,1{more}",
            f"h = Conv<pads=[1,1,1,1]>(x, A, a) r = {op} y = Conv(r, B, b)",
            DEAD,
            {"A": (6, 3, 3, 3), "a": (6,), "B": (5, 6, 3, 3), **({"p": (6, 1, 1)} if "p)" in op else {"p": (8, 1, 1)})},
        )
        for op, more in (
            ("Relu(h)", ""),
            ("Sigmoid(h)", ""),
            ("HardSwish(h)", ""),
            ("HardSigmoid<alpha=0.3>(h)", ""),
            ("LeakyRelu<alpha=0.2>(h)", ""),
            ("Elu(h)", ""),
            ("Softplus(h)", ""),
            ("Clip(h, lo, hi)", " | lo [] | hi []"),
            ("PRelu(h, p)", ""),
            ("Add(h, p)", ""),
            ("Mul(p, h)", ""),
            ("Sub(p, h)", ""),
            ("Identity(h)", ""),
            ("MaxPool<kernel_shape=[2,2], pads=[1,1,1,1]>(h)", ""),
            ("AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>(h)", ""),
            ("AveragePool<kernel_shape=[2,3], strides=[2,2], count_include_pad=1>(h)", ""),
            ("AveragePool<kernel_shape=[2,2], strides=[2,2], ceil_mode=1>(h)", ""),
            ("ReduceMean<axes=[2,3]>(h)", ""),
        )
        if "p)" in op or True
    ),
]


@pytest.mark.parametrize("case", [*ZEROS, *CONSTANTS], ids=str)
def test_finds_and_removes(case: Planted) -> None:
    check(case)
