"""Attention and rotary embeddings as single nodes."""

from __future__ import annotations

import pytest

from tests.ops.cases import VIEWS, Case, check

_MADE = "a = MatMul(x, q) c = MatMul(x, k) d = MatMul(x, v) "
_HEADS = (
    "a1 = Reshape(a, s) a2 = Transpose<perm=[0,2,1,3]>(a1) c1 = Reshape(c, s) c2 = Transpose<perm=[0,2,1,3]>(c1) "
    "d1 = Reshape(d, u) d2 = Transpose<perm=[0,2,1,3]>(d1) "
)
_BACK = "h1 = Transpose<perm=[0,2,1,3]>(h) f = Reshape(h1, e) y = MatMul(f, o)"
_SIZES = "x N,T,12 | q 12,15 | k 12,15 | v 12,21 | o 21,12"
_SHAPES = {"s": [0, 0, 3, 5], "u": [0, 0, 3, 7], "e": [0, 0, 21]}
_TURN = "cos 9,3 | sin 9,3 | int64 p 1,5"


CASES = [
    Case(
        "heads on an axis of their own",
        f"{_SIZES} | int64 s 4 | int64 u 4 | int64 e 3",
        f"{_MADE}{_HEADS} h = Attention(a2, c2, d2) {_BACK}",
        (12, 3),
        opset=23,
        arrays=_SHAPES,
    ),
    Case(
        "heads beside each other",
        _SIZES,
        f"{_MADE} h = Attention<q_num_heads=3, kv_num_heads=3, is_causal=1>(a, c, d) y = MatMul(h, o)",
        (12, 3),
        opset=23,
    ),
    Case(
        "a scale of its own and a mask",
        f"{_SIZES} | m 5,5".replace("x N,T,12", "x N,5,12"),
        f"{_MADE} h = Attention<q_num_heads=3, kv_num_heads=3, scale=0.3>(a, c, d, m) y = MatMul(h, o)",
        (12, 3),
        opset=23,
    ),
    *(
        Case(
            f"a mask per head, {where}",
            f"x 2,5,12 | q 12,15 | k 12,15 | v 12,21 | o 21,12 | {name} 1,3,5,5",
            f"{_MADE} h = {op}(a, c, d, {', , ' * op.startswith('c')}{name}) y = MatMul(h, o)",
            free,
            opset=23 if op.startswith("A") else 17,
        )
        for op, where, name, free in (
            ("Attention<q_num_heads=3, kv_num_heads=3>", "constant", "m", 3),
            ("Attention<q_num_heads=3, kv_num_heads=3>", "computed", "x2", 12),
            ("com.microsoft.MultiHeadAttention<num_heads=3>", "as a bias", "m", 3),
        )
    ),
    Case(
        "a mask per head for heads on an axis of their own",
        f"{_SIZES} | m 3,5,5 | int64 s 4 | int64 u 4 | int64 e 3".replace("N,T", "2,5"),
        f"{_MADE}{_HEADS} h = Attention(a2, c2, d2, m) {_BACK}",
        3,
        opset=23,
        arrays=_SHAPES,
    ),
    Case(
        "queries that share keys",
        "x N,T,12 | q 12,20 | k 12,10 | v 12,14 | o 28,12",
        f"{_MADE} h = Attention<q_num_heads=4, kv_num_heads=2>(a, c, d) y = MatMul(h, o)",
        12,
        opset=23,
    ),
    Case(
        "answers and keys for the next step keep everything",
        "x N,T,12 | q 12,15 | k 12,15 | v 12,21 | o 21,12 | z 12,6 | w 6,2 ",
        f"{_MADE} h, y1, y2 = Attention<q_num_heads=3, kv_num_heads=3>(a, c, d) g = MatMul(h, o) l = MatMul(g, z) "
        "y = MatMul(l, w)",
        18,
        opset=23,
    ),
    Case(
        "multi-head attention with a bias",
        f"{_SIZES} | b 51",
        f"{_MADE} h = com.microsoft.MultiHeadAttention<num_heads=3>(a, c, d, b) y = MatMul(h, o)",
        (12, 3),
    ),
    Case(
        "multi-head attention over another sequence",
        f"{_SIZES} | x2 N,T,12 ",
        "a = MatMul(x, q) c = MatMul(x2, k) d = MatMul(x2, v) "
        "h = com.microsoft.MultiHeadAttention<num_heads=3, scale=0.4>(a, c, d) y = MatMul(h, o)",
        (12, 3),
    ),
    Case(
        "rotary embedding, heads on an axis of their own",
        f"x 1,5,12 | q 12,18 | k 12,18 | v 12,21 | o 21,12 | int64 s 4 | int64 u 4 | int64 e 3 | {_TURN}",
        f"{_MADE}{_HEADS} a3 = RotaryEmbedding(a2, cos, sin, p) c3 = RotaryEmbedding(c2, cos, sin, p) "
        f"h = Attention(a3, c3, d2) {_BACK}",
        3,
        opset=23,
        arrays={**_SHAPES, "s": [0, 0, 3, 6], "p": [[0, 1, 2, 3, 4]]},
    ),
    Case(
        "rotary embedding, heads beside each other",
        f"x 1,5,12 | q 12,18 | k 12,18 | v 12,21 | o 21,12 | {_TURN}",
        f"{_MADE} a3 = RotaryEmbedding<num_heads=3>(a, cos, sin, p) c3 = RotaryEmbedding<num_heads=3>(c, cos, sin, p) "
        "h = Attention<q_num_heads=3, kv_num_heads=3>(a3, c3, d) y = MatMul(h, o)",
        3,
        opset=23,
        arrays={"p": [[0, 1, 2, 3, 4]]},
    ),
    Case(
        "rotary embedding of com.microsoft",
        f"x 1,5,12 | q 12,18 | k 12,18 | v 12,21 | o 21,12 | {_TURN}",
        f"{_MADE} a3 = com.microsoft.RotaryEmbedding(a, p, cos, sin) c3 = com.microsoft.RotaryEmbedding(c, p, cos, sin) "
        "h = com.microsoft.MultiHeadAttention<num_heads=3>(a3, c3, d) y = MatMul(h, o)",
        3,
        arrays={"p": [[0, 1, 2, 3, 4]]},
    ),
    Case(
        "rotary embedding of com.microsoft with a number of heads",
        "x 1,5,12 | q 12,18 | o 18,12 | cos 9,2 | sin 9,2 | int64 p 1,5",
        "a = MatMul(x, q) a3 = com.microsoft.RotaryEmbedding<num_heads=3, rotary_embedding_dim=4>(a, p, cos, sin) "
        "y = MatMul(a3, o)",
        3,
        arrays={"p": [[0, 1, 2, 3, 4]]},
    ),
]


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_smaller_model_equals_the_masked_one(case: Case, view: str) -> None:
    check(case, view)
