"""Operators that speak about sizes."""

from __future__ import annotations

import pytest

from tests.ops.cases import VIEWS, Case, check

_ONE = "x N,3,H,W | w 10,3,1,1 | z 4,10,1,1"

CASES = [
    Case(
        "shape of a channel axis, as a number",
        _ONE + " | int64 one []",
        "a = Conv(x, w) s = Shape(a) c = Gather(s, one) f = Cast<to=1>(c) m = Div(a, f) y = Conv(m, z)",
        10,
        arrays={"one": 1},
    ),
    Case(
        "part of a shape",
        _ONE,
        "a = Conv(x, w) s = Shape<start=-3, end=3>(a) f = Cast<to=1>(s) r = ReduceProd(f) m = Div(a, r) y = Conv(m, z)",
        10,
    ),
    Case(
        "shape that two read",
        _ONE,
        "a = Conv(x, w) s = Shape(a) f = Cast<to=1>(s) r = ReduceMax<keepdims=0>(f) m = Div(a, r) e = Expand(m, s) "
        "y = Conv(e, z)",
        10,
    ),
    Case(
        "shape that is an output of the model",
        _ONE + " | v 6,3,1,1 | u 4,6,1,1",
        "a = Conv(x, w) y1 = Shape(a) c = Conv(x, v) y = Conv(a, z) y2 = Conv(c, u)",
        16,
        outputs={"y1": "int64"},
    ),
    Case(
        "number of elements",
        _ONE + " | v 6,10,1,1 | u 4,6,1,1",
        "a = Conv(x, w) s = Size(a) f = Cast<to=1>(s) m = Div(a, f) c = Conv(m, v) y = Conv(c, u)",
        16,
    ),
    Case(
        "constant of a shape",
        _ONE,
        "a = Conv(x, w) s = Shape(a) k = ConstantOfShape<value = float[1] {0.5}>(s) m = Mul(a, k) y = Conv(m, z)",
        10,
    ),
    Case(
        "range over space",
        _ONE + " | int64 zero [] | int64 one [] | int64 three []",
        "a = Conv(x, w) s = Shape(a) c = Gather(s, three) r = Range(zero, c, one) f = Cast<to=1>(r) m = Add(a, f) y = Conv(m, z)",
        10,
        arrays={"zero": 0, "one": 1, "three": 3},
    ),
    Case(
        "range over channels",
        "x N,3,T | w 10,3,1 | z 4,10,1 | int64 zero [] | int64 one [] | int64 ax 1",
        "a = Conv(x, w) s = Shape(a) c = Gather(s, one) r = Range(zero, c, one) f = Cast<to=1>(r) u = Unsqueeze(f, ax) m = Add(a, u) "
        "y = Conv(m, z)",
        10,
        arrays={"zero": 0, "one": 1, "ax": [1]},
    ),
    Case(
        "identity matrix like an activation",
        "x 6,3 | w 3,10 | z 10,4",
        "a = MatMul(x, w) e = EyeLike(a) m = Add(a, e) y = MatMul(m, z)",
        0,
    ),
]


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_smaller_model_equals_the_masked_one(case: Case, view: str) -> None:
    check(case, view)
