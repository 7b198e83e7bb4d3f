"""Operators that keep every element to itself."""

from __future__ import annotations

import pytest

from tests.ops.cases import VIEWS, Case, check

_ONE = "x N,3,H,W | w 10,3,1,1 | z 4,10,1,1"


def _unary(call: str, opset: int = 20, before: str = "a") -> Case:
    op = call.split("<")[0].split("(")[0]
    text = call if "(" in call else f"{call}({before})"
    return Case(op, _ONE, f"a = Conv(x, w) p = Softplus(a) u = Sigmoid(a) m = {text} y = Conv(m, z)", 10, opset)


CASES = [
    *(_unary(op) for op in ("Abs", "Atan", "Ceil", "Celu", "Cos", "Elu", "Erf", "Exp", "Floor", "Gelu")),
    *(
        _unary(op)
        for op in ("HardSigmoid", "HardSwish", "LeakyRelu<alpha=0.3>", "Mish", "Neg", "Relu", "Round", "Selu")
    ),
    *(_unary(op) for op in ("Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Tan", "Tanh")),
    *(_unary(op, before="u") for op in ("Acos", "Asin", "Atanh", "Asinh", "Cosh", "ThresholdedRelu<alpha=0.5>")),
    *(_unary(op, before="p") for op in ("Log", "Reciprocal", "Sqrt")),
    _unary("Identity"),
    _unary("Dropout"),
    Case(
        "Acosh",
        _ONE + " | one []",
        "a = Conv(x, w) p = Softplus(a) s = Add(p, one) m = Acosh(s) y = Conv(m, z)",
        10,
        arrays={"one": 1.5},
    ),
    Case("Swish", _ONE, "a = Conv(x, w) m = Swish(a) y = Conv(m, z)", 10, opset=24),
    Case(
        "clip",
        _ONE + " | lo [] | hi []",
        "a = Conv(x, w) m = Clip(a, lo, hi) y = Conv(m, z)",
        10,
        arrays={"lo": -0.2, "hi": 0.9},
    ),
    Case(
        "clip without a lower end",
        _ONE + " | hi []",
        "a = Conv(x, w) m = Clip(a, , hi) y = Conv(m, z)",
        10,
        arrays={"hi": 0.3},
    ),
    Case("clip by attributes", _ONE, "a = Conv(x, w) m = Clip<min=-0.3, max=0.6>(a) y = Conv(m, z)", 10, opset=9),
    Case("cast there and back", _ONE, "a = Conv(x, w) h = Cast<to=10>(a) m = Cast<to=1>(h) y = Conv(m, z)", 10),
    Case(
        "cast like another",
        _ONE + " | double like []",
        "a = Conv(x, w) h = CastLike(a, like) r = Relu(h) m = Cast<to=1>(r) y = Conv(m, z)",
        10,
    ),
    Case(
        "is it no number, and not",
        _ONE,
        "a = Conv(x, w) s = Sqrt(a) n = IsNaN(s) p = Not(n) c = Cast<to=1>(p) y = Conv(c, z)",
        10,
    ),
    Case(
        "is it infinite",
        _ONE + " | zero []",
        "a = Conv(x, w) r = Relu(a) l = Log(r) i = IsInf(l) c = Cast<to=1>(i) y = Conv(c, z)",
        10,
        arrays={"zero": 0.0},
    ),
    Case(
        "bitwise not",
        _ONE,
        "a = Conv(x, w) p = Abs(a) i = Cast<to=3>(p) n = BitwiseNot(i) c = Cast<to=1>(n) y = Conv(c, z)",
        10,
        opset=18,
    ),
    Case(
        "dropout with its mask",
        _ONE,
        "a = Conv(x, w) m, mask = Dropout(a) f = Cast<to=1>(mask) s = Mul(m, f) y = Conv(s, z)",
        10,
    ),
    Case(
        "batch normalization",
        _ONE + " | s 10 | t 10 | mean 10 | var 10",
        "a = Conv(x, w) n = BatchNormalization<epsilon=0.01>(a, s, t, mean, var) r = Relu(n) y = Conv(r, z)",
        10,
        arrays={"var": [0.1 * i + 0.2 for i in range(10)]},
    ),
    Case(
        "batch normalization that shares its parameters",
        "x N,3,H,W | w 10,3,1,1 | v 10,3,1,1 | s 10 | t 10 | var 10 | z 4,10,1,1 | u 5,10,1,1",
        "a = Conv(x, w) n = BatchNormalization(a, s, t, t, var) c = Conv(x, v) m = BatchNormalization(c, s, t, t, var) "
        "y = Conv(n, z) y1 = Conv(m, u)",
        20,
        arrays={"var": [0.1 * i + 0.2 for i in range(10)]},
    ),
    Case(
        "batch normalization of a matrix",
        "x N,3 | w 3,10 | s 10 | t 10 | mean 10 | var 10 | z 10,4",
        "a = MatMul(x, w) n = BatchNormalization(a, s, t, mean, var) r = Relu(n) y = MatMul(r, z)",
        10,
        arrays={"var": [0.1 * i + 0.2 for i in range(10)]},
    ),
    Case(
        "batch normalization that learns stays",
        _ONE + " | s 10 | t 10 | mean 10 | var 10",
        "a = Conv(x, w) n, m1, v1 = BatchNormalization<training_mode=1>(a, s, t, mean, var) y = Conv(n, z)",
        0,
        arrays={"var": [0.1 * i + 0.2 for i in range(10)]},
    ),
    Case(
        "quantized per tensor",
        _ONE + " | s [] | uint8 p []",
        "a = Conv(x, w) q = QuantizeLinear(a, s, p) d = DequantizeLinear(q, s, p) y = Conv(d, z)",
        10,
        arrays={"s": 0.02, "p": 120},
    ),
    Case(
        "quantized per channel",
        _ONE + " | s 10 | int8 p 10",
        "a = Conv(x, w) q = QuantizeLinear<axis=1>(a, s, p) d = DequantizeLinear<axis=1>(q, s, p) y = Conv(d, z)",
        10,
        arrays={"s": [0.01 * i + 0.02 for i in range(10)]},
    ),
    Case(
        "quantized along the last axis",
        "x N,T,3 | w 3,10 | s 10 | int8 p 10 | z 10,4",
        "a = MatMul(x, w) q = QuantizeLinear<axis=-1>(a, s, p) d = DequantizeLinear<axis=-1>(q, s, p) y = MatMul(d, z)",
        10,
        arrays={"s": [0.01 * i + 0.02 for i in range(10)]},
    ),
    Case(
        "weights behind DequantizeLinear",
        "x N,3,H,W | int8 w 10,3,3,3 | ws 10 | int8 wz 10 | int32 b 10 | bs 10 | int8 z 4,10,1,1 | zs []",
        "wf = DequantizeLinear<axis=0>(w, ws, wz) bf = DequantizeLinear<axis=0>(b, bs) zf = DequantizeLinear(z, zs) "
        "a = Conv(x, wf, bf) r = Relu(a) y = Conv(r, zf)",
        10,
        arrays={"ws": [0.01 * i + 0.02 for i in range(10)], "bs": [0.02 * i + 0.1 for i in range(10)], "zs": 0.1},
    ),
    Case(
        "weights behind Transpose, Identity and Cast",
        "x N,3,H,W | w 3,3,3,10 | b 10 | double z 4,10,1,1",
        "wt = Transpose<perm=[3,2,0,1]>(w) bi = Identity(b) zf = Cast<to=1>(z) a = Conv(x, wt, bi) r = Relu(a) "
        "y = Conv(r, zf)",
        10,
    ),
    Case(
        "weights behind CastLike, Cast and Mul",
        "x N,T,3 | int8 w 3,10 | s 10 | int8 z 10,4 | u []",
        "wf = CastLike(w, s) ws = Mul(wf, s) zf = Cast<to=1>(z) zs = Mul(u, zf) a = MatMul(x, ws) r = Relu(a) "
        "y = MatMul(r, zs)",
        10,
    ),
    Case(
        "weights in Constant nodes",
        "x N,3 | z 5,2",
        "w = Constant<value = float[3,5] {1., 2., -3., 4., 5., -6., 7., 8., -9., 1., 2., 3., -4., 5., 6.}>() "
        "a = MatMul(x, w) r = Relu(a) y = MatMul(r, z)",
        5,
    ),
    Case(
        "weights behind something that has no rule for constants",
        "x N,3 | w 3,10 | z 10,4",
        "s = Softmax(w) a = MatMul(x, s) r = Relu(a) y = MatMul(r, z)",
        10,
    ),
    Case(
        "weights of one number (light models)",
        "x N,3,H,W | int64 s 4 | int64 t 1 | int64 u 4 | z 4,10,1,1",
        "w = ConstantOfShape<value = float[1] {0.3}>(s) b = ConstantOfShape<value = float[1] {0.2}>(t) a = Conv(x, w, b) "
        "k = ConstantOfShape<value = float[1] {1.5}>(t) k1 = Unsqueeze<axes=[1,2]>(k) m = Mul(a, k1) y = Conv(m, z)",
        10,
        opset=11,
        arrays={"s": [10, 3, 3, 3], "t": [10], "u": [0, 10, 1, 1]},
    ),
    Case(
        "weights expanded, squeezed, and functions of others",
        "x N,3,H,W | w 1,10,3,1,1 | int64 ax 1 | b [] | int64 t 1 | k 1,10 | int64 u 3 | p 10,1,1 | z 4,10,1,1",
        "w1 = Squeeze(w, ax) b1 = Expand(b, t) a = Conv(x, w1, b1) k1 = Reshape(k, u) k2 = Exp(k1) k3 = Max(k2, p) "
        "m = Mul(a, k3) y = Conv(m, z)",
        10,
        arrays={"ax": [0], "t": [10], "u": [10, 1, -1]},
    ),
    Case(
        "weights reshaped",
        "x N,3,H,W | w 90,3 | int64 s 4 | z 4,10,1,1",
        "wr = Reshape(w, s) a = Conv(x, wr) r = Relu(a) y = Conv(r, z)",
        10,
        arrays={"s": [10, 3, 3, 3]},
    ),
    Case(
        "one weight behind two transposes",
        "x N,3 | x2 N,5 | w 10,3 | v 10,5 | z 10,4",
        "t = Transpose(w) a = MatMul(x, t) u = Transpose(v) c = MatMul(x2, u) s = Add(a, c) y = MatMul(s, z)",
        10,
    ),
    Case(
        "an operator nobody knows stays",
        "x N,3,6,6 | w 10,3,1,1 | v 6,10,1,1 | z 4,6,1,1",
        "a = Conv(x, w) d = Det(a) c = Conv(a, v) r = Relu(c) y = Conv(r, z) y1 = Identity(d)",
        6,
    ),
    Case(
        "a weight that a body reads as well is copied",
        "x N,3,H,W | bool x2 [] | w 10,3,1,1 | b 10 | z 4,10,1,1",
        "a = Conv(x, w, b) c = If(x2) <then_branch = t () => (float[] p) { p = Relu(b) }, "
        "else_branch = e () => (float[] q) { q = Neg(b) }> d = ReduceSum(c) r = Relu(a) y = Conv(r, z) y1 = Identity(d)",
        10,
        arrays={"x2": True},
    ),
    Case(
        "a weight that is an output as well is copied",
        "x N,3,H,W | w 10,3,1,1 | b 10 | z 4,10,1,1",
        "a = Conv(x, w, b) r = Relu(a) y = Conv(r, z) y1 = Identity(b)",
        10,
    ),
]


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_smaller_model_equals_the_masked_one(case: Case, view: str) -> None:
    check(case, view)
