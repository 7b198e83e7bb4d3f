"""Gemm, MatMul and embeddings."""

from __future__ import annotations

import pytest

from tests.ops.cases import VIEWS, Case, check

CASES = [
    Case("gemm", "x N,3 | w 3,10 | b 10 | z 10,4", "a = Gemm(x, w, b) r = Relu(a) y = Gemm(r, z)", 10),
    Case(
        "gemm transposed, scaled",
        "x N,3 | w 10,3 | b 1,10 | z 4,10 | c 4",
        "a = Gemm<transB=1, alpha=0.5, beta=2.0>(x, w, b) r = Tanh(a) y = Gemm<transB=1, beta=0.5>(r, z, c)",
        10,
    ),
    Case("gemm with a scalar as bias", "x N,3 | w 3,10 | b [] | z 10,4", "a = Gemm(x, w, b) y = Gemm(a, z)", 10),
    Case(
        "gemm with a bias per row",
        "x 5,3 | w 3,10 | b 5,1 | z 10,4",
        "a = Gemm(x, w, b) y = Gemm(a, z)",
        10,
    ),
    Case(
        "gemm with a full bias",
        "x 5,3 | w 3,10 | b 5,10 | z 10,4",
        "a = Gemm(x, w, b) y = Gemm(a, z)",
        10,
    ),
    Case(
        "gemm with a transposed activation",
        "x 3,5 | w 3,10 | z 10,4",
        "a = Gemm<transA=1>(x, w) r = Relu(a) t = Transpose(r) y = Gemm<transA=1>(t, z)",
        10,
    ),
    Case(
        "gemm with its weights on the left",
        "x 3,5 | w 10,3 | b 10,1 | v 10,7 | z 4,7",
        "a = Gemm(w, x, b) r = Relu(a) c = Gemm<transA=1>(v, r) y = Gemm<transB=0>(z, c)",
        17,
    ),
    Case(
        "gemm of two activations",
        "x N,3 | x2 5,3 | w 3,10 | v 3,10 | z 5,4",
        "a = Gemm(x, w) c = Gemm(x2, v) e = Gemm<transB=1>(a, c) y = Gemm(e, z)",
        10,
    ),
    Case(
        "gemm with a computed bias",
        "x N,3 | w 3,10 | v 3,10 | z 10,4",
        "c = Gemm(x, v) a = Gemm(x, w, c) r = Relu(a) y = Gemm(r, z)",
        10,
    ),
    Case("matmul", "x N,T,3 | w 3,10 | b 10 | z 10,4", "a = MatMul(x, w) s = Add(a, b) y = MatMul(s, z)", 10),
    Case(
        "matmul with its weights on the left",
        "x N,3,T | w 10,3 | z 4,10",
        "a = MatMul(w, x) r = Relu(a) y = MatMul(z, r)",
        10,
    ),
    Case(
        "matmul over a vector",
        "x 3 | w 3,10 | z 10,4",
        "a = MatMul(x, w) r = Tanh(a) y = MatMul(r, z)",
        10,
    ),
    Case(
        "matmul that ends in a vector",
        "x N,T,3 | w 3,10 | z 10",
        "a = MatMul(x, w) r = Relu(a) y = MatMul(r, z)",
        10,
    ),
    Case(
        "matmul that begins with a vector",
        "x N,3,T | w 10,3 | z 10",
        "a = MatMul(w, x) r = Relu(a) y = MatMul(z, r)",
        10,
    ),
    Case(
        "matmul per batch entry",
        "x 5,T,3 | w 5,3,10 | z 5,10,4",
        "a = MatMul(x, w) r = Relu(a) y = MatMul(r, z)",
        10,
    ),
    Case(
        "matmul per batch entry that is a channel",
        "x N,3,T,7  | k 5,3,1,1 | v 5,7,8 | z 5,8,4 | u 6,5,1,1",
        "a = Conv(x, k) c = MatMul(a, v) r = Relu(c) e = MatMul(r, z) y = Conv(e, u)",
        8,
    ),
    Case(
        "two activations",
        "x N,T,3 | w 3,10 | v 3,10",
        "a = MatMul(x, w) c = MatMul(x, v) t = Transpose<perm=[0,2,1]>(c) y = MatMul(a, t)",
        10,
    ),
    Case(
        "attention",
        "x N,T,12 | q 12,15 | k 12,15 | v 12,21 | o 21,12 | int64 s 4 | int64 u 4 | int64 e 3",
        "a = MatMul(x, q) a1 = Reshape(a, s) a2 = Transpose<perm=[0,2,1,3]>(a1) "
        "c = MatMul(x, k) c1 = Reshape(c, s) c2 = Transpose<perm=[0,2,3,1]>(c1) "
        "d = MatMul(x, v) d1 = Reshape(d, u) d2 = Transpose<perm=[0,2,1,3]>(d1) "
        "m = MatMul(a2, c2) p = Softmax(m) h = MatMul(p, d2) h1 = Transpose<perm=[0,2,1,3]>(h) "
        "f = Reshape(h1, e) y = MatMul(f, o)",
        (12, 3),
        arrays={"s": [0, 0, 3, 5], "u": [0, 0, 3, 7], "e": [0, 0, 21]},
    ),
    Case(
        "embedding",
        "int64 x N,T | table 9,10 | z 10,4",
        "a = Gather(table, x) r = Relu(a) y = MatMul(r, z)",
        10,
    ),
    Case(
        "tied embedding",
        "int64 x N,T | table 9,10 | w 10,10 ",
        "a = Gather(table, x) r = MatMul(a, w) t = Transpose<perm=[1,0]>(table) s = Add(r, a) y = MatMul(s, t)",
        10,
    ),
    Case(
        "embedding of several axes",
        "int64 x N,T | table 9,5,10 | z 10,4",
        "a = Gather(table, x) r = Relu(a) y = MatMul(r, z)",
        10,
    ),
]


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_smaller_model_equals_the_masked_one(case: Case, view: str) -> None:
    check(case, view)
