"""Norms over channels: as a whole they stay; where it is asked for they lose width."""

from __future__ import annotations

import pytest

from tests.ops.cases import VIEWS, Case, check

_BLOCK = "x N,T,3 | w 3,10 | s 10 | b 10 | v 10,7 | z 7,4"
_RESIDUAL = "x N,T,3 | w 3,10 | s 10 | b 10 | u 10,16 | d 16,10 | s2 10 | z 10,4"
_PIECES = (
    "a = MatMul(x, w) m = ReduceMean<axes=[-1]>(a) c = Sub(a, m) q = Pow(c, two) e = ReduceMean<axes=[-1]>(q) "
    "f = Add(e, eps) g = Sqrt(f) h = Div(c, g) i = Mul(h, s) j = Add(i, b) r = Relu(j) y = MatMul(r, z)"
)
_SCALARS = {"two": 2.0, "eps": 1e-5}


CASES = [
    Case(
        "layer norm keeps its width",
        _BLOCK,
        "a = MatMul(x, w) n = LayerNormalization(a, s, b) c = MatMul(n, v) y = MatMul(c, z)",
        7,
    ),
    Case(
        "layer norm may lose width",
        _BLOCK,
        "a = MatMul(x, w) n = LayerNormalization(a, s, b) c = MatMul(n, v) y = MatMul(c, z)",
        17,
        widths=True,
    ),
    Case(
        "RMS norm may lose width",
        _BLOCK.replace("| b 10 ", ""),
        "a = MatMul(x, w) n = RMSNormalization(a, s) c = MatMul(n, v) y = MatMul(c, z)",
        17,
        opset=23,
        widths=True,
    ),
    Case(
        "RMS norm keeps its width",
        _BLOCK.replace("| b 10 ", ""),
        "a = MatMul(x, w) n = RMSNormalization(a, s) c = MatMul(n, v) y = MatMul(c, z)",
        7,
        opset=23,
    ),
    Case(
        "RMS norm before the standard had one",
        _BLOCK.replace("| b 10 ", ""),
        "a = MatMul(x, w) n = SimplifiedLayerNormalization(a, s) c = MatMul(n, v) y = MatMul(c, z)",
        17,
        widths=True,
    ),
    Case(
        "the same keeps its width",
        _BLOCK.replace("| b 10 ", ""),
        "a = MatMul(x, w) n = SimplifiedLayerNormalization(a, s) c = MatMul(n, v) y = MatMul(c, z)",
        7,
    ),
    *(
        Case(
            f"{op} along another axis than that of the channels",
            "x N,3,7 | w 10,3,1 | w2 10,3,1 | s 7 | z 4,10,1 | u 5,10,1",
            f"a = Conv(x, w) d = Conv(x, w2) n, m, i, t = com.microsoft.{op}(a, d, s) y = Conv(n, z) y1 = Conv(t, u)",
            10,
        )
        for op in ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization")
    ),
    Case(
        "a residual stream that may lose width",
        _RESIDUAL,
        "a = MatMul(x, w) n = LayerNormalization(a, s, b) c = MatMul(n, u) r = Relu(c) d1 = MatMul(r, d) "
        "t = Add(a, d1) o = LayerNormalization(t, s2) y = MatMul(o, z)",
        26,
        widths=True,
    ),
    Case(
        "heads that are normalized, which may lose width",
        "x N,T,3 | w 3,12 | s 4 | b 4 | z 12,5 | int64 h 4 | int64 e 3",
        "a = MatMul(x, w) a1 = Reshape(a, h) n = LayerNormalization(a1, s, b) a2 = Reshape(n, e) y = MatMul(a2, z)",
        (4, 3),
        arrays={"h": [0, 0, 3, 4], "e": [0, 0, 12]},
        widths=True,
    ),
    Case(
        "norm written out in pieces",
        "x N,T,3 | w 3,10 | s 10 | b 10 | two [] | eps [] | z 10,4",
        _PIECES,
        0,
        arrays=_SCALARS,
    ),
    Case(
        "norm written out in pieces, which may lose width",
        "x N,T,3 | w 3,10 | s 10 | b 10 | two [] | eps [] | z 10,4",
        _PIECES,
        10,
        arrays=_SCALARS,
        widths=True,
    ),
    Case(
        "mean over channels that may go",
        "x N,3,H,W | w 10,3,1,1 | v 4,10,1,1",
        "a = Conv(x, w) m = ReduceMean<axes=[1]>(a) g = Sigmoid(m) r = Mul(a, g) y = Conv(r, v)",
        10,
        widths=True,
    ),
    Case(
        "a scale that is computed keeps what it scales",
        _BLOCK,
        "a = MatMul(x, w) t = ReduceMax<axes=[0,1], keepdims=0>(a) n = LayerNormalization(a, t, b) c = MatMul(n, v) "
        "y = MatMul(c, z)",
        7,
        widths=True,
    ),
    Case(
        "skip and norm in one",
        "x N,T,3 | w 3,10 | w2 3,10 | s 10 | b 10 | c 10 | v 10,7 | z 7,4 | u 10,5",
        "a = MatMul(x, w) d = MatMul(x, w2) n, m, i, t = com.microsoft.SkipLayerNormalization(a, d, s, b, c) "
        "e = MatMul(n, v) y = MatMul(e, z) y1 = MatMul(t, u)",
        7,
    ),
    Case(
        "skip and RMS norm in one",
        "x N,T,3 | w 3,10 | w2 3,10 | s 10 | v 10,7 | z 7,4 | u 10,5",
        "a = MatMul(x, w) d = MatMul(x, w2) n, m, i, t = com.microsoft.SkipSimplifiedLayerNormalization(a, d, s) "
        "e = MatMul(n, v) y = MatMul(e, z) y1 = MatMul(t, u)",
        7,
    ),
    Case(
        "lp norm of heads",
        "x N,T,3 | w 3,12 | z 12,5 | int64 h 4 | int64 e 3",
        "a = MatMul(x, w) a1 = Reshape(a, h) n = LpNormalization<axis=-1>(a1) a2 = Reshape(n, e) y = MatMul(a2, z)",
        (4, 3),
        arrays={"h": [0, 0, 3, 4], "e": [0, 0, 12]},
    ),
]


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_smaller_model_equals_the_masked_one(case: Case, view: str) -> None:
    check(case, view)
