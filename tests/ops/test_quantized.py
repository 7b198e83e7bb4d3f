"""Quantized sums, ranges that are measured, and what is fused or quantized in com.microsoft."""

from __future__ import annotations

import numpy as np
import pytest

from tests.ops.cases import VIEWS, Case, check

_Q = {"s": 0.05, "zp": 128, "t": 0.04, "wz": 3, "u": 0.1}
_SCALES = "s [] | uint8 zp [] | t [] | int8 wz [] | u [] "
_DYNAMIC = "q, qs, qz = DynamicQuantizeLinear(a) "
_BACK = "f = Cast<to=1>(i) m = Mul(qs, v) y = Mul(f, m) "


def _lstm(name: str, per_gate: bool, tail: str) -> Case:
    shape = "2,20" if per_gate else "2"
    return Case(
        name,
        f"x T,N,3 | v 3,8 | int8 w 2,8,20 | int8 r 2,5,20 | b 2,40 | ws {shape} | int8 wz {shape} | rs {shape} "
        f"| int8 rz {shape} | int64 m 3 | z 10,4",
        'e = MatMul(x, v) h = com.microsoft.DynamicQuantizeLSTM<hidden_size=5, direction="bidirectional">'
        f"(e, w, r, b, , , , , ws, wz, rs, rz) s = Transpose<perm=[0,2,1,3]>(h) f = Reshape(s, m) {tail}",
        13,
        arrays={
            "m": [0, 0, -1],
            "ws": np.linspace(0.05, 0.09, 40 if per_gate else 2),
            "rs": np.linspace(0.05, 0.08, 40 if per_gate else 2),
            "wz": np.zeros(40 if per_gate else 2),
            "rz": np.zeros(40 if per_gate else 2),
        },
    )


CASES = [
    Case(
        "dynamic range and integer conv",
        "x N,3,H,W | w 10,3,3,3 | uint8 k 4,10,3,3 | uint8 kz [] | v 4,1,1",
        f"a = Conv(x, w) {_DYNAMIC} i = ConvInteger<pads=[1,1,1,1]>(q, k, qz, kz) {_BACK}",
        10,
        arrays={"kz": 2},
    ),
    Case(
        "chain of integer convs, bias divided by the scale",
        "x N,3,H,W | w 8,3,1,1 | int8 k 10,8,3,3 | c 10 | v [] | int64 one 4 | int8 k2 4,10,1,1",
        f"a = Conv(x, w) {_DYNAMIC} i = ConvInteger(q, k, qz) m = Mul(qs, v) d = Div(c, m) e = Floor(d) g = Cast<to=6>(e) "
        "h = Reshape(g, one) j = Add(i, h) l = Cast<to=1>(j) n = Mul(l, m) o = Sigmoid(n) "
        "p, ps, pz = DynamicQuantizeLinear(o) r = ConvInteger(p, k2, pz) t = Cast<to=1>(r) y = Mul(t, ps)",
        18,
        arrays={"one": [1, -1, 1, 1], "v": 0.02, "c": np.arange(10) - 5},
    ),
    Case(
        "grouped and depthwise integer convs",
        "x N,3,H,W | w 12,3,1,1 | int8 k 12,1,3,3 | int8 g 9,4,1,1 | int8 z 5,9,1,1 | v []",
        f"a = Conv(x, w) {_DYNAMIC} i = ConvInteger<group=12>(q, k, qz) f = Cast<to=1>(i) m = Mul(f, v) "
        "p, ps, pz = DynamicQuantizeLinear(m) j = ConvInteger<group=3>(p, g, pz) l = Cast<to=1>(j) n = Mul(l, v) "
        "o, os, oz = DynamicQuantizeLinear(n) r = ConvInteger(o, z, oz) y = Cast<to=1>(r)",
        (7, 3),
        arrays={"v": 0.01},
    ),
    Case(
        "dynamic range and integer matmul, scales per column",
        "x N,T,3 | w 3,10 | int8 k 10,7 | v 7 | int8 k2 7,4 | int8 z 4",
        f"a = MatMul(x, w) {_DYNAMIC} i = MatMulInteger(q, k, qz) f = Cast<to=1>(i) m = Mul(qs, v) o = Mul(f, m) r = Relu(o) "
        "p, ps, pz = DynamicQuantizeLinear(r) j = MatMulInteger(p, k2, pz, z) g = Cast<to=1>(j) y = Mul(g, ps)",
        17,
        arrays={"z": [1, 0, 2, -1]},
    ),
    Case(
        "integer matmul of two activations",
        "x N,T,3 | w 3,10 | v 3,10",
        f"a = MatMul(x, w) {_DYNAMIC} b = MatMul(x, v) t = Transpose<perm=[0,2,1]>(b) "
        "p, ps, pz = DynamicQuantizeLinear(t) i = MatMulInteger(q, p, qz, pz) y = Cast<to=1>(i)",
        10,
    ),
    Case(
        "dynamic range, read back as floats",
        "x N,T,3 | w 3,10 | z 10,4",
        f"a = MatMul(x, w) {_DYNAMIC} f = DequantizeLinear(q, qs, qz) y = MatMul(f, z)",
        10,
    ),
    Case(
        "quantized conv, per channel",
        f"x N,3,H,W | w 10,3,3,3 | int8 k 7,10,3,3 | ws 7 | int8 wzs 7 | int32 b 7 | int8 k2 4,7,1,1 | {_SCALES}",
        "a = Conv(x, w) q = QuantizeLinear(a, s, zp) i = QLinearConv<pads=[1,1,1,1]>(q, s, zp, k, ws, wzs, u, zp, b) "
        "j = QLinearConv(i, u, zp, k2, t, wz, u, zp) y = DequantizeLinear(j, u, zp)",
        17,
        arrays={**_Q, "ws": np.linspace(0.02, 0.05, 7), "wzs": np.zeros(7), "b": np.arange(7) * 50},
    ),
    Case(
        "grouped quantized conv",
        f"x N,3,H,W | w 12,3,1,1 | int8 k 9,4,3,3 | int8 k2 4,9,1,1 | {_SCALES}",
        "a = Conv(x, w) q = QuantizeLinear(a, s, zp) i = QLinearConv<group=3>(q, s, zp, k, t, wz, u, zp) "
        "j = QLinearConv(i, u, zp, k2, t, wz, u, zp) y = DequantizeLinear(j, u, zp)",
        (7, 3),
        arrays=_Q,
    ),
    Case(
        "quantized matmul, per column",
        f"x N,T,3 | w 3,10 | int8 k 10,7 | ws 7 | int8 wzs 7 | int8 k2 7,4 | {_SCALES}",
        "a = MatMul(x, w) q = QuantizeLinear(a, s, zp) i = QLinearMatMul(q, s, zp, k, ws, wzs, u, zp) "
        "j = QLinearMatMul(i, u, zp, k2, t, wz, u, zp) y = DequantizeLinear(j, u, zp)",
        17,
        arrays={**_Q, "ws": np.linspace(0.02, 0.05, 7), "wzs": np.zeros(7)},
    ),
    Case(
        "fixed range and integer conv",
        f"x N,3,H,W | w 10,3,3,3 | int8 k 4,10,3,3 | {_SCALES}",
        "a = Conv(x, w) q = QuantizeLinear(a, s, zp) i = ConvInteger(q, k, zp, wz) y = Cast<to=1>(i)",
        10,
        arrays=_Q,
    ),
    Case(
        "fixed range and integer matmuls",
        f"x N,T,3 | w 3,10 | int8 k 10,7 | int8 k2 7,4 | v [] | {_SCALES}",
        "a = MatMul(x, w) q = QuantizeLinear(a, s, zp) i = com.microsoft.MatMulIntegerToFloat(q, k, s, t, zp) "
        "r = QuantizeLinear(i, u, zp) j = MatMulInteger(r, k2, zp) y = Cast<to=1>(j)",
        17,
        arrays=_Q,
    ),
    Case(
        "quantized sums and products",
        f"x N,3,H,W | w 10,3,1,1 | v 10,3,1,1 | int8 z 4,10,1,1 | uint8 c 1,10,1,1 | {_SCALES}",
        "a = Conv(x, w) b = Conv(x, v) q = QuantizeLinear(a, s, zp) r = QuantizeLinear(b, s, zp) "
        "g = com.microsoft.QLinearAdd(q, s, zp, r, s, zp, u, zp) m = com.microsoft.QLinearMul(g, u, zp, r, s, zp, s, zp) "
        "n = com.microsoft.QLinearAdd(m, s, zp, c, t, zp, s, zp) o = com.microsoft.QLinearMul(n, s, zp, c, t, zp, u, zp) "
        "i = QLinearConv(o, u, zp, z, t, wz, u, zp) y = DequantizeLinear(i, u, zp)",
        10,
        arrays=_Q,
    ),
    Case(
        "quantized sum alone",
        f"x N,3,H,W | w 10,3,1,1 | v 10,3,1,1 | int8 z 4,10,1,1 | {_SCALES}",
        "a = Conv(x, w) b = Conv(x, v) q = QuantizeLinear(a, s, zp) r = QuantizeLinear(b, s, zp) "
        "g = com.microsoft.QLinearAdd(q, s, zp, r, s, zp, u, zp) "
        "i = QLinearConv(g, u, zp, z, t, wz, u, zp) y = DequantizeLinear(i, u, zp)",
        10,
        arrays=_Q,
    ),
    Case(
        "choice among constants",
        f"x N,3,H,W | w 10,3,1,1 | int8 z 4,10,1,1 | uint8 c 10,1,1 | uint8 d 10,1,1 | {_SCALES}",
        "a = Conv(x, w) g = Greater(a, u) m = com.microsoft.QLinearWhere(g, c, s, zp, d, s, zp, s, zp) "
        "i = QLinearConv(m, s, zp, z, t, wz, u, zp) y = DequantizeLinear(i, u, zp)",
        10,
        arrays={**_Q, "c": np.arange(10) * 9 + 90, "d": np.arange(10) * 11 + 70},
    ),
    Case(
        "quantized activations",
        f"x N,3,H,W | w 10,3,1,1 | int8 z 4,10,1,1 | {_SCALES}",
        "a = Conv(x, w) q = QuantizeLinear(a, s, zp) "
        "h = com.microsoft.QLinearLeakyRelu<alpha=0.3>(q, s, zp, u, zp) "
        "l = com.microsoft.QLinearSigmoid(h, u, zp, t, zp) "
        "i = QLinearConv(l, t, zp, z, t, wz, u, zp) y = DequantizeLinear(i, u, zp)",
        10,
        arrays=_Q,
    ),
    Case(
        "quantized concat and pooling",
        f"x 1,3,6,8 | w 5,3,1,1 | v 6,3,1,1 | int8 z 4,18,1,1 | uint8 c 1,7,6,8 | fine [] | {_SCALES}",
        "a = Conv(x, w) b = Conv(x, v) q = QuantizeLinear(a, s, zp) r = QuantizeLinear(b, t, zp) "
        "g = com.microsoft.QLinearConcat<axis=1>(u, zp, q, s, zp, r, t, zp, c, s, zp) "
        "h = com.microsoft.QLinearAveragePool<kernel_shape=[2,2]>(g, u, zp, s, zp) "
        "m = com.microsoft.QLinearGlobalAveragePool(h, s, zp, fine, zp) "
        "i = QLinearConv(m, fine, zp, z, t, wz, fine, zp) y = DequantizeLinear(i, fine, zp)",
        18,
        arrays={**_Q, "fine": 0.004},
    ),
    Case(
        "choice between quantized tensors",
        f"x N,3,H,W | w 10,3,1,1 | v 10,3,1,1 | int8 z 4,10,1,1 | uint8 c 1,10,1,1 | {_SCALES}",
        "a = Conv(x, w) b = Conv(x, v) g = Greater(a, b) q = QuantizeLinear(a, s, zp) r = QuantizeLinear(b, s, zp) "
        "n = com.microsoft.QLinearWhere(g, q, s, zp, r, s, zp, s, zp) "
        "m = com.microsoft.QLinearWhere(g, n, s, zp, c, s, zp, s, zp) "
        "i = QLinearConv(m, s, zp, z, t, wz, u, zp) y = DequantizeLinear(i, u, zp)",
        10,
        arrays=_Q,
    ),
    Case(
        "matmul that quantizes its input",
        "x N,T,3 | w 3,10 | int8 k 10,7 | ws 7 | int8 wz 7 | b 7 | uint8 k2 7,4 | uint8 kz [] | s []",
        "a = MatMul(x, w) r = com.microsoft.DynamicQuantizeMatMul(a, k, ws, wz, b) "
        "y = com.microsoft.DynamicQuantizeMatMul(r, k2, s, kz)",
        17,
        arrays={"ws": np.linspace(0.02, 0.05, 7), "wz": np.zeros(7), "kz": 2, "s": 0.03},
    ),
    Case(
        "integer matmul to floats",
        "x N,T,3 | w 3,10 | int8 k 10,7 | ws 7 | b 7 | z 7,4",
        f"a = MatMul(x, w) {_DYNAMIC} r = com.microsoft.MatMulIntegerToFloat(q, k, qs, ws, qz, , b) y = MatMul(r, z)",
        17,
        arrays={"ws": np.linspace(0.02, 0.05, 7)},
    ),
    Case(
        "quantized gemm",
        f"x 5,3 | w 3,10 | int8 k 7,10 | ws 7 | int8 wzs 7 | int32 b 7 | int8 k2 7,4 | {_SCALES}",
        "a = MatMul(x, w) q = QuantizeLinear(a, s, zp) "
        "i = com.microsoft.QGemm<transB=1>(q, s, zp, k, ws, wzs, b, u, zp) "
        "y = com.microsoft.QGemm(i, u, zp, k2, t, wz)",
        17,
        arrays={**_Q, "ws": np.linspace(0.02, 0.05, 7), "wzs": np.zeros(7), "b": np.arange(7) * 30},
    ),
    _lstm("LSTM that quantizes what it reads", False, "y = MatMul(f, z)"),
    _lstm("the same with a scale per gate and unit", True, "g = Relu(f) y = MatMul(g, z)"),
    Case(
        "quantized and read back in the older domain",
        "x N,3,H,W | w 10,3,1,1 | z 4,10,1,1 | s 10 | uint8 p 10",
        "a = Conv(x, w) q = com.microsoft.QuantizeLinear<axis=1>(a, s, p) "
        "d = com.microsoft.DequantizeLinear<axis=1>(q, s, p) y = Conv(d, z)",
        10,
        arrays={"s": np.linspace(0.02, 0.05, 10), "p": np.arange(10) + 120},
    ),
    Case(
        "fused conv and the tensor it adds",
        "x N,3,H,W | w 10,3,1,1 | b 10 | v 10,3,1,1 | z 4,10,1,1",
        'a = Conv(x, v) c = com.microsoft.FusedConv<activation="Relu">(x, w, b, a) y = Conv(c, z)',
        10,
    ),
    Case(
        "fused conv of two layers, grouped and depthwise",
        "x N,3,H,W | w 12,3,1,1 | v 12,1,3,3 | b 12 | g 9,4,1,1 | z 4,9,1,1",
        'a = com.microsoft.FusedConv<activation="Relu">(x, w) '
        'c = com.microsoft.FusedConv<activation="Tanh", group=12>(a, v, b) '
        'd = com.microsoft.FusedConv<activation="LeakyRelu", activation_params=[0.1], group=3>(c, g) y = Conv(d, z)',
        (7, 3),
    ),
    Case(
        "fused matmul, turned and scaled",
        "x N,3,T | w 10,3 | z 10,4 | v 5,10",
        "a = com.microsoft.FusedMatMul<transA=1, transB=1, alpha=0.5>(x, w) r = Relu(a) t = Transpose<perm=[0,2,1]>(r) "
        "y = com.microsoft.FusedMatMul<transA=1>(t, z)",
        10,
    ),
    Case(
        "fused matmul of two activations",
        "x N,T,3 | w 3,10 | v 3,10",
        "a = MatMul(x, w) b = MatMul(x, v) y = com.microsoft.FusedMatMul<transB=1, alpha=0.3>(a, b)",
        10,
    ),
    Case(
        "fused gemm",
        "x 5,3 | w 10,3 | b 10 | z 10,4",
        'a = com.microsoft.FusedGemm<transB=1, activation="Relu">(x, w, b) '
        'y = com.microsoft.FusedGemm<activation="Tanh">(a, z)',
        10,
    ),
    Case(
        "fused activations",
        "x N,T,3 | w 3,10 | b 10 | z 10,4",
        "a = MatMul(x, w) c = com.microsoft.BiasGelu(a, b) d = com.microsoft.FastGelu(c, b) e = com.microsoft.FastGelu(d) "
        "f = com.microsoft.Gelu(e) g = com.microsoft.QuickGelu(f) y = MatMul(g, z)",
        10,
    ),
]


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_smaller_model_equals_the_masked_one(case: Case, view: str) -> None:
    check(case, view)
