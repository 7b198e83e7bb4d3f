"""Einsum in the forms that exporters write."""

from __future__ import annotations

import pytest

from tests.ops.cases import VIEWS, Case, check

CASES = [
    Case(
        "a linear layer",
        "x N,T,3 | w 3,10 | z 4,10",
        'a = Einsum<equation="btd,df->btf">(x, w) r = Relu(a) y = Einsum<equation="btf, of -> bto">(r, z)',
        10,
    ),
    Case(
        "a linear layer, weights first, result implied",
        "x N,T,3 | w 10,3 | z 10,4",
        'a = Einsum<equation="fd,btd->btf">(w, x) r = Relu(a) y = Einsum<equation="abc,cd">(r, z)',
        10,
    ),
    Case(
        "attention with weights per head",
        "x N,T,3 | q 3,4,5 | k 3,4,5 | v 3,4,7 | o 4,7,6 | z 6,2",
        'a = Einsum<equation="btd,dhk->bhtk">(x, q) c = Einsum<equation="bsd,dhk->bhsk">(x, k) '
        'e = Einsum<equation="bsd,dhk->bhsk">(x, v) m = Einsum<equation="bhtk,bhsk->bhts">(a, c) p = Softmax(m) '
        'f = Einsum<equation="bhts,bhsk->bthk">(p, e) g = Einsum<equation="bthk,hkd->btd">(f, o) y = MatMul(g, z)',
        (18, 10),
    ),
    Case(
        "attention of heads made by reshape",
        "x N,T,12 | q 12,15 | k 12,15 | v 12,21 | o 21,12 | int64 s 4 | int64 e 3",
        "a = MatMul(x, q) a1 = Reshape(a, s) c = MatMul(x, k) c1 = Reshape(c, s) d = MatMul(x, v) d1 = Reshape(d, s) "
        'm = Einsum<equation="bthk,bshk->bhts">(a1, c1) p = Softmax(m) h = Einsum<equation="bhts,bshk->bthk">(p, d1) '
        "f = Reshape(h, e) y = MatMul(f, o)",
        (12, 3),
        arrays={"s": [0, 0, 3, -1], "e": [0, 0, 21]},
    ),
    Case(
        "outer product",
        "x N,3 | x2 N,3 | w 3,10 | v 3,7 | int64 ax 1 | z 10,4",
        'a = MatMul(x, w) c = MatMul(x2, v) o = Einsum<equation="bi,bj->bij">(a, c) s = ReduceSum<keepdims=0>(o, ax) '
        "y = MatMul(s, z)",
        0,
        arrays={"ax": [2]},
    ),
    Case(
        "sum and transpose of one operand",
        "x N,T,3 | w 3,10 | z 10,4",
        'a = MatMul(x, w) t = Einsum<equation="btc->cb">(a) y = Einsum<equation="cb,cd->bd">(t, z)',
        10,
    ),
    Case(
        "weights per channel",
        "x N,T,3 | w 3,10 | s 10 | z 10,4",
        'a = MatMul(x, w) m = Einsum<equation="btc,c->btc">(a, s) y = MatMul(m, z)',
        10,
    ),
    Case(
        "weights per channel and position",
        "x N,3,H,7 | w 10,3,1,1 | s 10,7 | z 4,10,1,1",
        'a = Conv(x, w) m = Einsum<equation="bchw,cw->bchw">(a, s) y = Conv(m, z)',
        10,
    ),
    Case(
        "an ellipsis",
        "x N,T,3 | w 3,10 | v 10,6 | z 6,4",
        'a = MatMul(x, w) m = Einsum<equation="...c,cd->...d">(a, v) y = MatMul(m, z)',
        16,
    ),
    Case(
        "element by element with the input of the model stays",
        "x N,T,10 | w 10,10 | z 10,4",
        'a = MatMul(x, w) m = Einsum<equation="btc,btc->bct">(a, x) t = Transpose<perm=[0,2,1]>(m) y = MatMul(t, z)',
        0,
    ),
    Case(
        "a letter twice in one term stays",
        "x 5,3 | w 3,5 | z 5,4",
        'a = MatMul(x, w) d = Einsum<equation="ii->i">(a) y = MatMul(d, z)',
        0,
    ),
]


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_smaller_model_equals_the_masked_one(case: Case, view: str) -> None:
    check(case, view)
