"""Elementwise operators over several operands: every way to broadcast."""

from __future__ import annotations

import pytest

from tests.ops.cases import VIEWS, Case, check

_TWO = "x N,3,H,W | w 10,3,1,1 | v 10,3,1,1 | z 4,10,1,1"
_ONE = "x N,3,H,W | w 10,3,1,1 | z 4,10,1,1"
_FLOAT = ("Add", "Sub", "Mul", "Div", "Pow", "Mod<fmod=1>", "Min", "Max", "Sum", "Mean", "PRelu")
_COMPARE = ("Greater", "GreaterOrEqual", "Less", "LessOrEqual")
_LOGIC = ("And", "Or", "Xor", "Equal")
_INTEGER = ("BitwiseAnd", "BitwiseOr", "BitwiseXor", 'BitShift<direction="LEFT">')


def _elementwise(op: str, tensors: str = _TWO, before: str = "", call: str = "(a, c)", free: int = 10) -> Case:
    body = f"a = Conv(x, w) c = Conv(x, v) {before} m = {op}{call} y = Conv(m, z)"
    return Case(f"{op} of two activations", tensors, body, free)


CASES = [
    *(_elementwise(op) for op in ("Add", "Sub", "Mul", "Min", "Max", "Sum", "Mean")),
    _elementwise("Div", before="e = Softplus(c)", call="(a, e)"),
    _elementwise("Pow", before="d = Softplus(a) e = Sigmoid(c)", call="(d, e)"),
    _elementwise("Mod", before="d = Exp(a) e = Softplus(c)", call="<fmod=1>(d, e)"),
    *(
        Case(
            f"{op} of two activations",
            _TWO,
            f"a = Conv(x, w) c = Conv(x, v) p = {op}(a, c) m = Cast<to=1>(p) y = Conv(m, z)",
            10,
        )
        for op in ("Greater", "Less", "GreaterOrEqual", "LessOrEqual")
    ),
    *(
        Case(
            f"{op} of two conditions",
            _TWO + " | zero []",
            f"a = Conv(x, w) c = Conv(x, v) p = Greater(a, c) q = Less(a, zero) r = {op}(p, q) m = Cast<to=1>(r) "
            "y = Conv(m, z)",
            10,
            arrays={"zero": 0.0},
        )
        for op in ("And", "Or", "Xor", "Equal")
    ),
    *(
        Case(
            f"{op} of integers",
            _TWO,
            f"a = Conv(x, w) c = Conv(x, v) d = Exp(a) e = Exp(c) i = Cast<to=2>(d) j = Cast<to=2>(e) k = {op}(i, j) "
            "m = Cast<to=1>(k) y = Conv(m, z)",
            10,
            opset=18,
        )
        for op in _INTEGER
    ),
    *(
        Case(
            f"{op} with a constant per channel",
            _ONE + " | b 10,1,1",
            f"a = Conv(x, w) p = Sigmoid(a) m = {op}(p, b) y = Conv(m, z)",
            10,
            arrays={"b": [0.1 * i + 0.2 for i in range(10)]},
        )
        for op in _FLOAT
    ),
    *(
        Case(
            f"{op} with a constant per channel",
            _ONE + " | b 10,1,1",
            f"a = Conv(x, w) p = {op}(b, a) m = Cast<to=1>(p) y = Conv(m, z)",
            10,
        )
        for op in _COMPARE
    ),
    *(
        Case(
            f"{op} with a constant per channel",
            _ONE + " | bool b 10,1,1 | zero []",
            f"a = Conv(x, w) q = Less(a, zero) p = {op}(q, b) m = Cast<to=1>(p) y = Conv(m, z)",
            10,
            arrays={"zero": 0.0, "b": [i % 3 != 1 for i in range(10)]},
        )
        for op in _LOGIC
    ),
    *(
        Case(
            f"{op} with a constant per channel",
            _ONE + " | uint8 b 10,1,1",
            f"a = Conv(x, w) d = Exp(a) i = Cast<to=2>(d) k = {op}(i, b) m = Cast<to=1>(k) y = Conv(m, z)",
            10,
            opset=18,
            arrays={"b": [i % 4 for i in range(10)]},
        )
        for op in _INTEGER
    ),
    *(
        Case(
            f"{op} with the input of the model stays",
            "x N,10,H,W | w 10,10,1,1 | z 4,10,1,1",
            f"a = Conv(x, w) p = Sigmoid(a) q = Sigmoid(x) m = {op}(p, q) y = Conv(m, z)",
            0,
        )
        for op in _FLOAT
    ),
    *(
        Case(
            f"{op} with the input of the model stays",
            "x N,10,H,W | w 10,10,1,1 | z 4,10,1,1",
            f"a = Conv(x, w) p = {op}(a, x) m = Cast<to=1>(p) y = Conv(m, z)",
            0,
        )
        for op in _COMPARE
    ),
    *(
        Case(
            f"{op} with the input of the model stays",
            "x N,10,H,W | w 10,10,1,1 | z 4,10,1,1 | zero []",
            f"a = Conv(x, w) p = Less(a, zero) q = Less(x, zero) r = {op}(p, q) m = Cast<to=1>(r) y = Conv(m, z)",
            0,
            arrays={"zero": 0.0},
        )
        for op in _LOGIC
    ),
    *(
        Case(
            f"{op} with the input of the model stays",
            "x N,10,H,W | w 10,10,1,1 | z 4,10,1,1",
            f"a = Conv(x, w) d = Exp(a) e = Exp(x) i = Cast<to=2>(d) j = Cast<to=2>(e) k = {op}(i, j) m = Cast<to=1>(k) "
            "y = Conv(m, z)",
            0,
            opset=18,
        )
        for op in _INTEGER
    ),
    Case(
        "Where of two constants",
        _ONE + " | k 10,1,1 | l 10,1,1 | zero []",
        "a = Conv(x, w) p = Less(a, zero) m = Where(p, k, l) y = Conv(m, z)",
        10,
        arrays={"zero": 0.0},
    ),
    Case(
        "Where of the input of the model stays",
        "x N,10,H,W | w 10,10,1,1 | z 4,10,1,1 | zero []",
        "a = Conv(x, w) p = Less(a, zero) m = Where(p, x, a) y = Conv(m, z)",
        0,
        arrays={"zero": 0.0},
    ),
    Case(
        "three operands",
        _TWO + " | u 10,3,1,1",
        "a = Conv(x, w) c = Conv(x, v) d = Conv(x, u) m = Sum(a, c, d) y = Conv(m, z)",
        10,
    ),
    Case("the same operand twice", _ONE, "a = Conv(x, w) m = Add(a, a) y = Conv(m, z)", 10),
    Case("constant per channel", _ONE + " | b 10,1,1", "a = Conv(x, w) m = Mul(a, b) y = Conv(m, z)", 10),
    Case(
        "constant per last axis, not per channel (T36)",
        "x N,3,6,10 | w 10,3,1,1 | b 10 | z 4,10,1,1",
        "a = Conv(x, w) m = Mul(a, b) y = Conv(m, z)",
        10,
    ),
    Case(
        "constant per position",
        "x N,3,6,7 | w 10,3,1,1 | b 6,7 | z 4,10,1,1",
        "a = Conv(x, w) m = Add(b, a) y = Conv(m, z)",
        10,
    ),
    Case(
        "constant per channel and position",
        "x N,3,6,7 | w 10,3,1,1 | b 1,10,6,7 | z 4,10,1,1",
        "a = Conv(x, w) m = Add(a, b) y = Conv(m, z)",
        10,
    ),
    Case("scalar", _ONE + " | b []", "a = Conv(x, w) m = Sub(b, a) y = Conv(m, z)", 10),
    Case(
        "constant that makes a channel axis wide",
        "x N,3,H,W | w 1,3,1,1 | b 10,1,1 | z 4,10,1,1",
        "a = Conv(x, w) m = Mul(a, b) y = Conv(m, z)",
        0,
    ),
    Case(
        "constant of a higher rank",
        "x N,3 | w 3,10 | b 2,1,10 | z 10,4",
        "a = MatMul(x, w) m = Add(a, b) y = MatMul(m, z)",
        10,
    ),
    Case(
        "one channel that all meet (spatial attention)",
        "x N,3,H,W | w 10,3,1,1 | v 1,10,3,3 | z 4,10,1,1",
        "a = Conv(x, w) c = Conv<pads=[1,1,1,1]>(a, v) s = Sigmoid(c) m = Mul(a, s) y = Conv(m, z)",
        10,
    ),
    Case(
        "squeeze and excite",
        "x N,3,H,W | w 10,3,1,1 | d 5,10,1,1 | e 5 | u 10,5,1,1 | f 10 | z 4,10,1,1",
        "a = Conv(x, w) g = GlobalAveragePool(a) h = Conv(g, d, e) r = Relu(h) k = Conv(r, u, f) s = HardSigmoid(k) "
        "m = Mul(s, a) y = Conv(m, z)",
        15,
    ),
    Case(
        "squeeze and excite through Gemm and Reshape",
        "x N,3,H,W | w 10,3,1,1 | d 10,5 | u 5,10 | int64 s 4 | z 4,10,1,1",
        "a = Conv(x, w) g = ReduceMean<axes=[2,3], keepdims=0>(a) h = MatMul(g, d) r = Relu(h) k = MatMul(r, u) "
        "q = Sigmoid(k) q1 = Reshape(q, s) m = Mul(a, q1) y = Conv(m, z)",
        15,
        arrays={"s": [0, 10, 1, 1]},
    ),
    Case(
        "slope per channel",
        _ONE + " | p 10,1,1",
        "a = Conv(x, w) m = PRelu(a, p) y = Conv(m, z)",
        10,
    ),
    Case("slope shared", _ONE + " | p 1", "a = Conv(x, w) m = PRelu(a, p) y = Conv(m, z)", 10),
    Case(
        "slope computed",
        _TWO,
        "a = Conv(x, w) c = Conv(x, v) e = Sigmoid(c) m = PRelu(a, e) y = Conv(m, z)",
        10,
    ),
    Case(
        "outer product of two vectors",
        "x N,3 | w 3,10 | v 3,7 | int64 i 3 | int64 j 3 | int64 k 2 | z 70,4",
        "a = MatMul(x, w) a1 = Reshape(a, i) c = MatMul(x, v) c1 = Reshape(c, j) m = Mul(a1, c1) f = Reshape(m, k) "
        "y = MatMul(f, z)",
        0,
        arrays={"i": [0, 10, 1], "j": [0, 1, 7], "k": [0, 70]},
    ),
    Case(
        "a row that every head meets",
        "x N,T,3 | w 3,15 | v 3,5 | int64 s 4 | int64 e 3 | int64 ax 1 | z 15,4",
        "a = MatMul(x, w) a1 = Reshape(a, s) c = MatMul(x, v) c1 = Unsqueeze(c, ax) m = Mul(a1, c1) "
        "e1 = Reshape(m, e) y = MatMul(e1, z)",
        (5, 5),
        arrays={"s": [0, 0, 3, 5], "e": [0, 0, 15], "ax": [2]},
    ),
    Case(
        "choose by a condition on the input",
        "x N,3,H,W | bool x2 N,1,H,W | w 10,3,1,1 | v 10,3,1,1 | z 4,10,1,1",
        "a = Conv(x, w) c = Conv(x, v) m = Where(x2, a, c) y = Conv(m, z)",
        10,
    ),
    Case(
        "mask with a number",
        "x N,3,H,W | bool x2 N,1,H,W | w 10,3,1,1 | low [] | z 4,10,1,1",
        "a = Conv(x, w) m = Where(x2, a, low) y = Conv(m, z)",
        10,
    ),
    Case(
        "the input added to channels",
        "x N,3,H,W | w 3,3,1,1 | v 5,3,1,1 | z 4,5,1,1",
        "a = Conv(x, w) m = Add(a, x) c = Conv(m, v) y = Conv(c, z)",
        5,
    ),
    Case(
        "the input of one channel added to all",
        "x N,1,H,W | w 10,1,1,1 | z 4,10,1,1",
        "a = Conv(x, w) m = Add(a, x) y = Conv(m, z)",
        10,
    ),
]


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_smaller_model_equals_the_masked_one(case: Case, view: str) -> None:
    check(case, view)
