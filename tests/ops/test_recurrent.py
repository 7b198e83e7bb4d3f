"""LSTM, GRU and RNN: features that come in, and hidden units."""

from __future__ import annotations

import pytest

from tests.ops.cases import VIEWS, Case, check

_MOVE = "t = Transpose<perm=[1,0,2]>(e) "
_TAIL = "s = Squeeze(h, one) y = MatMul(s, z)"
_ONE = {"one": [1], "zero": [0]}


def _plain(op: str, gates: int, extra: str = "") -> Case:
    return Case(
        f"{op}",
        f"x N,T,3 | v 3,8 | w 1,{5 * gates},8 | r 1,{5 * gates},5 | b 1,{10 * gates} | int64 one 1 | z 5,4",
        f"e = MatMul(x, v) {_MOVE} h = {op}<hidden_size=5{extra}>(t, w, r, b) {_TAIL}",
        13,
        arrays=_ONE,
    )


CASES = [
    _plain("LSTM", 4),
    _plain("GRU", 3, ", linear_before_reset=1"),
    _plain("RNN", 1),
    Case(
        "last state, cell state and peepholes",
        "x T,N,3 | w 1,20,3 | r 1,20,5 | b 1,40 | p 1,15 | int64 zero 1 | z 5,4 | u 5,2",
        "h, l, c = LSTM<hidden_size=5>(x, w, r, b, , , , p) s = Squeeze(l, zero) q = Squeeze(c, zero) y = MatMul(s, z) "
        "y1 = MatMul(q, u)",
        5,
        arrays=_ONE,
    ),
    Case(
        "both directions",
        "x T,N,3 | w 2,20,3 | r 2,20,5 | b 2,40 | int64 m 3 | z 10,4",
        'h = LSTM<hidden_size=5, direction="bidirectional">(x, w, r, b) s = Transpose<perm=[0,2,1,3]>(h) f = Reshape(s, m) '
        "y = MatMul(f, z)",
        5,
        arrays={"m": [0, 0, -1]},
    ),
    Case(
        "two layers and no bias",
        "x T,N,3 | w 1,15,3 | r 1,15,5 | w2 1,21,5 | r2 1,21,7 | int64 one 1 | z 7,4",
        f"g = GRU<hidden_size=5>(x, w, r) q = Squeeze(g, one) h = GRU<hidden_size=7>(q, w2, r2) {_TAIL}",
        12,
        arrays=_ONE,
    ),
    Case(
        "zeros as state, their number computed",
        "x T,N,3 | w 1,20,3 | r 1,20,5 | int64 i [] | int64 zero 1 | int64 one 1 | int64 five 1 | z 5,4",
        "s0 = Shape(x) n = Gather(s0, one) k = Concat<axis=0>(one, n, five) c = ConstantOfShape(k) "
        "h = LSTM<hidden_size=5>(x, w, r, , , c, c) s = Squeeze(h, one) y = MatMul(s, z)",
        5,
        arrays={"one": [1], "zero": [0], "five": [5], "i": 1},
    ),
    Case(
        "constants as state",
        "x T,1,3 | w 1,20,3 | r 1,20,5 | c 1,1,5 | d 1,1,5 | int64 one 1 | z 5,4",
        f"h = LSTM<hidden_size=5>(x, w, r, , , c, d) {_TAIL}",
        5,
        arrays=_ONE,
    ),
    Case(
        "state from another (encoder and decoder)",
        "x T,N,3 | w 1,15,3 | r 1,15,5 | v 1,15,3 | u 1,15,5 | int64 one 1 | z 5,4",
        f"a, l = GRU<hidden_size=5>(x, w, r) h = GRU<hidden_size=5>(x, v, u, , , l) {_TAIL}",
        5,
        arrays=_ONE,
    ),
    Case(
        "state from the caller stays",
        "x T,N,3 | x2 1,N,5 | w 1,15,3 | r 1,15,5 | int64 one 1 | z 5,4",
        f"h = GRU<hidden_size=5>(x, w, r, , , x2) {_TAIL}",
        0,
        arrays=_ONE,
    ),
]


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_smaller_model_equals_the_masked_one(case: Case, view: str) -> None:
    check(case, view)
