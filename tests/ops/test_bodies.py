"""If, Loop and Scan: channels within bodies, through captures, through branches and from round to round."""

from __future__ import annotations

import pytest

from tests.ops.cases import VIEWS, Case, check

_CELL = (
    "m = MatMul(h, r) m2 = MatMul(p, w) o = Add(m, m2) g1, g2 = Split<axis=-1>(o, two) s1 = Sigmoid(g1) t1 = Tanh(g2) "
    "u1 = Mul(c, s1) c2 = Add(u1, t1) v1 = Tanh(c2) h2 = Mul(v1, s1) "
)
"""One round of a recurrent cell of two gates: `p` comes in, `h` and `c` are its states."""

_LOOP = (
    "Loop(five, , {first}, {first}) <body = b (int64 i, bool on, float[] h, float[] c) => "
    "(bool on2, float[] h2, float[] c2, float[] all) {{ on2 = Identity(on) p = Gather<axis=0>(e, i) {cell} "
    "all = Identity(h2) }}>"
)
_WEIGHTS = "w 8,10 | r 5,10 | int64 two 2 | int64 five []"
_VALUES = {"two": [5, 5], "five": 5}


CASES = [
    Case(
        "branches that capture a channel and answer with it",
        "x N,3,H,W | bool x2 [] | w 10,3,1,1 | v 6,10,1,1 | z 4,6,1,1",
        "a = Conv(x, w) c = If(x2) <then_branch = t () => (float[] p) { p = Relu(a) }, "
        "else_branch = e () => (float[] q) { q = Neg(a) }> d = Conv(c, v) r = Relu(d) y = Conv(r, z)",
        16,
        arrays={"x2": True},
    ),
    Case(
        "branches with weights of their own",
        "x N,3,H,W | bool x2 [] | w 10,3,1,1 | v 6,10,1,1 | v2 9,10,1,1 | u 6,9,1,1 | z 4,6,1,1",
        "a = Conv(x, w) c = If(x2) <then_branch = t () => (float[] p) { p = Conv(a, v) }, "
        "else_branch = e () => (float[] q) { q1 = Conv(a, v2) q2 = Relu(q1) q = Conv(q2, u) }> y = Conv(c, z)",
        25,
        arrays={"x2": False},
    ),
    Case(
        "branches that join what they capture",
        "x N,3,H,W | bool x2 [] | w 10,3,1,1 | v 10,3,1,1 | z 4,10,1,1",
        "a = Conv(x, w) b = Conv(x, v) c = If(x2) <then_branch = t () => (float[] p) { p = Identity(a) }, "
        "else_branch = e () => (float[] q) { q = Identity(b) }> y = Conv(c, z)",
        10,
        arrays={"x2": True},
    ),
    Case(
        "a branch that answers with a constant",
        "x 1,3,6,7 | bool x2 [] | w 10,3,1,1 | v 6,10,1,1 | k 1,6,6,7 | z 4,6,1,1 ",
        "a = Conv(x, w) c = If(x2) <then_branch = t () => (float[] p) { p = Conv(a, v) }, "
        "else_branch = e () => (float[] q) { q = Identity(k) }> y = Conv(c, z)",
        10,
        arrays={"x2": True},
    ),
    Case(
        "a branch in a branch",
        "x N,3,H,W | bool x2 [] | bool x3 [] | w 10,3,1,1 | v 6,10,1,1 | u 6,10,1,1 | z 4,6,1,1",
        "a = Conv(x, w) c = If(x2) <then_branch = t () => (float[] p) { p = If(x3) <then_branch = t2 () => (float[] p2) "
        "{ p2 = Conv(a, v) }, else_branch = e2 () => (float[] q2) { q2 = Conv(a, u) }> }, "
        "else_branch = e () => (float[] q) { q1 = Conv(a, u) q = Relu(q1) }> y = Conv(c, z)",
        16,
        arrays={"x2": True, "x3": False},
    ),
    Case(
        "one weight within and without",
        "x N,3,H,W | bool x2 [] | w 10,3,1,1 | v 6,10,1,1 | z 4,6,1,1 | z2 5,6,1,1",
        "a = Conv(x, w) c = If(x2) <then_branch = t () => (float[] p) { p1 = Conv(a, v) p = Conv(p1, z) }, "
        "else_branch = e () => (float[] q) { q1 = Conv(a, v) q = Conv(q1, z) }> d = Conv(a, v) y1 = Conv(d, z2) "
        "y = Identity(c)",
        16,
        arrays={"x2": True},
    ),
    Case(
        "states of a loop, constant at first",
        f"x 5,N,3 | k 3,8 | zero 2,5 | {_WEIGHTS} | z 5,4".replace("x 5,N,3", "x 5,2,3"),
        f"e = MatMul(x, k) h9, c9, all9 = {_LOOP.format(first='zero', cell=_CELL)} y = MatMul(all9, z) y2 = MatMul(h9, z)",
        13,
        arrays={**_VALUES, "zero": [[0.1, -0.2, 0.3, 0.5, -0.4]] * 2},
    ),
    Case(
        "states of a loop, zeros of a computed number",
        f"x 5,N,3 | k 3,8 | int64 i [] | int64 w5 1 | int64 one 1 | {_WEIGHTS} | z 5,4",
        "e = MatMul(x, k) s = Shape(x) n = Gather<axis=0>(s, one) sh = Concat<axis=0>(n, w5) f = ConstantOfShape(sh) "
        f"h9, c9, all9 = {_LOOP.format(first='f', cell=_CELL)} y = MatMul(all9, z) y2 = MatMul(c9, z)",
        13,
        arrays={**_VALUES, "one": [1], "w5": [5], "i": 0},
    ),
    Case(
        "states of a loop, made by another layer",
        f"x 5,2,3 | x2 2,7 | k 3,8 | q 7,5 | {_WEIGHTS} | z 5,4",
        f"e = MatMul(x, k) f = MatMul(x2, q) h9, c9, all9 = {_LOOP.format(first='f', cell=_CELL)} y = MatMul(all9, z)",
        13,
        arrays=_VALUES,
    ),
    Case(
        "states of a scan that reads piece by piece",
        f"x 5,2,3 | k 3,8 | zero 2,5 | {_WEIGHTS} | z 5,4",
        "e = MatMul(x, k) h9, c9, all9 = Scan<num_scan_inputs=1, body = b (float[2,5] h, float[2,5] c, float[2,8] p) => "
        f"(float[2,5] h2, float[2,5] c2, float[2,5] all) {{ {_CELL} all = Identity(h2) }}>(zero, zero, e) "
        "y = MatMul(all9, z) y2 = MatMul(h9, z)",
        13,
        arrays=_VALUES,
    ),
    Case(
        "a scan along another axis, its answers stacked along a third",
        f"x 2,5,3 | k 3,8 | zero 2,5 | {_WEIGHTS} | z 5,4",
        "e = MatMul(x, k) h9, c9, all9 = Scan<num_scan_inputs=1, scan_input_axes=[1], scan_output_axes=[1], "
        "body = b (float[2,5] h, float[2,5] c, float[2,8] p) => (float[2,5] h2, float[2,5] c2, float[2,5] all) "
        f"{{ {_CELL} all = Identity(h2) }}>(zero, zero, e) y = MatMul(all9, z) y2 = MatMul(c9, z)",
        13,
        arrays=_VALUES,
    ),
    Case(
        "a state that grows keeps what it is made of",
        "x N,3,7 | w 10,3,1 | int64 three [] | z 4,10,1",
        "a = Conv(x, w) g = Loop(three, , a) <body = b (int64 i, bool on, float[] s) => (bool on2, float[] s2) "
        "{ on2 = Identity(on) s2 = Concat<axis=2>(s, a) }> y = Conv(g, z)",
        0,
        arrays={"three": 3},
    ),
]


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_smaller_model_equals_the_masked_one(case: Case, view: str) -> None:
    check(case, view)
