"""Operators that move elements: Reshape and its kin, Split, Slice, Gather, Concat, Pad, Expand, Tile, depth and space."""

from __future__ import annotations

import pytest

from tests.ops.cases import VIEWS, Case, check

_ONE = "x N,3,H,W | w 10,3,1,1 | z 4,10,1,1"
_MAX, _MIN = (1 << 63) - 1, -(1 << 63)

RESHAPES = [
    Case(
        "reshape that splits the channels and joins them again",
        "x N,3,6,W | w 12,3,1,1 | int64 s 5 | int64 t 4 | z 4,12,1,1",
        "a = Conv(x, w) b = Reshape(a, s) c = Relu(b) d = Reshape(c, t) y = Conv(d, z)",
        (4, 3),
        arrays={"s": [0, 3, 4, 6, -1], "t": [0, 12, 6, -1]},
    ),
    Case(
        "reshape with zeros and minus one on the channels",
        "x N,3,6,7 | w 10,3,1,1 | int64 s 3 | int64 t 4 | z 4,10,1,1",
        "a = Conv(x, w) b = Reshape(a, s) c = Relu(b) d = Reshape(c, t) y = Conv(d, z)",
        10,
        arrays={"s": [0, -1, 42], "t": [0, 0, 6, 7]},
    ),
    Case(
        "reshape that copies a size from another axis",
        "x 10,3 | w 3,10 | int64 s 3 | z 10,4",
        "a = MatMul(x, w) b = Reshape(a, s) c = Relu(b) y = MatMul(c, z)",
        10,
        arrays={"s": [0, 1, 10]},
    ),
    Case(
        "reshape that allows zero",
        "x 2,3,6,7 | w 10,3,1,1 | int64 s 3 | int64 t 4 | z 4,10,1,1",
        "a = Conv(x, w) b = Reshape<allowzero=1>(a, s) c = Relu(b) d = Reshape(c, t) y = Conv(d, z)",
        10,
        arrays={"s": [2, 10, 42], "t": [0, 0, 6, 7]},
    ),
    Case(
        "channel shuffle",
        "x N,3,6,7 | w 12,3,1,1 | int64 s 5 | int64 t 4 | g 12,1,3,3 | v 15,4,1,1 | z 4,15,1,1",
        "a = Conv(x, w) b = Reshape(a, s) c = Transpose<perm=[0,2,1,3,4]>(b) d = Reshape(c, t) e = Conv<group=12>(d, g) "
        "f = Conv<group=3>(e, v) y = Conv(f, z)",
        (9, 3),
        arrays={"s": [0, 4, 3, 6, 7], "t": [0, -1, 6, 7]},
    ),
    Case(
        "flatten before a Gemm",
        "x N,3,6,7 | w 10,3,1,1 | z 420,4",
        "a = Conv(x, w) r = Relu(a) f = Flatten(r) y = Gemm(f, z)",
        10,
    ),
    Case(
        "flatten at a negative axis",
        "x N,3,6,7 | w 10,3,1,1 | z 420,4",
        "a = Conv(x, w) f = Flatten<axis=-3>(a) y = MatMul(f, z)",
        10,
    ),
    Case(
        "flatten at the last axis",
        "x N,6,3 | w 3,10 | z 10,4",
        "a = MatMul(x, w) f = Flatten<axis=2>(a) y = MatMul(f, z)",
        10,
    ),
    Case(
        "flatten in channels-last order",
        "x N,3,6,7 | w 10,3,1,1 | int64 s 2 | z 420,4",
        "a = Conv(x, w) t = Transpose<perm=[0,2,3,1]>(a) f = Reshape(t, s) y = Gemm(f, z)",
        10,
        arrays={"s": [-1, 420]},
    ),
    Case(
        "reshape to computed sizes",
        _ONE + " | int64 zero [] | int64 ax 1 | int64 minus 1",
        "a = Conv(x, w) s = Shape(a) n = Gather(s, zero) n1 = Unsqueeze(n, ax) c = Constant<value_ints=[10]>() "
        "t = Concat<axis=0>(n1, c, minus) b = Reshape(a, t) r = Relu(b) u = Reshape(r, s) y = Conv(u, z)",
        10,
        arrays={"zero": 0, "ax": [0], "minus": [-1]},
    ),
    Case(
        "reshape to a computed product of the channels and a symbolic size",
        _ONE + " | int64 one [] | int64 two [] | int64 three [] | int64 ax 1 | int64 minus 1 | int64 zero 1",
        "a = Conv(x, w) s = Shape(a) c = Gather(s, one) h = Gather(s, two) k = Gather(s, three) p = Mul(c, h) "
        "q = Mul(p, k) q1 = Unsqueeze(q, ax) t = Concat<axis=0>(minus, q1) b = Reshape(a, t) r = Relu(b) "
        "u = Reshape(r, s) y = Conv(u, z)",
        10,
        arrays={"one": 1, "two": 2, "three": 3, "ax": [0], "minus": [-1], "zero": [0]},
    ),
    Case(
        "reshape to a computed half of the channels",
        "x N,3,H,W | w 10,3,1,1 | z 4,10,1,1 | int64 one 1 | int64 two 1 | int64 four 1 | int64 zero 1 | v 4,10,1,1",
        "a = Conv(x, w) s = Shape(a) n = Slice(s, zero, one) c = Slice(s, one, two) c2 = Div(c, two) hw = Slice(s, two, four) "
        "t = Concat<axis=0>(n, two, c2, hw) b = Reshape(a, t) r = Relu(b) u = Reshape(r, s) y = Conv(u, z)",
        (5, 2),
        arrays={"zero": [0], "one": [1], "two": [2], "four": [4]},
    ),
    Case(
        "squeeze and unsqueeze",
        "x N,3,T | w 10,3,5 | int64 ax 1 | z 10,4",
        "a = Conv(x, w) g = ReduceMax<axes=[2]>(a) s = Squeeze(g, ax) u = Unsqueeze(s, ax) v = Squeeze(u, ax) y = MatMul(v, z)",
        10,
        arrays={"ax": [2]},
    ),
    Case(
        "squeeze of everything and by attribute",
        "x 1,3 | w 3,10 | z 10,4",
        "a = MatMul(x, w) s = Squeeze(a) u = Unsqueeze<axes=[0,2]>(s) v = Squeeze<axes=[-1]>(u) y = MatMul(v, z)",
        10,
        opset=11,
    ),
    Case(
        "transpose without perm",
        "x 5,3 | w 3,10 | z 4,10",
        "a = MatMul(x, w) t = Transpose(a) y = MatMul(z, t)",
        10,
    ),
]

# What is fed may be another number the next time, so that nothing may be written in its place.
FED = [
    Case(
        "reshape to sizes that are fed stays",
        "x 1,3,6,7 | int64 x2 3 | w 10,3,1,1 | z 6,4",
        "a = Conv(x, w) b = Reshape(a, x2) r = Relu(b) y = MatMul(r, z)",
        0,
        arrays={"x2": [7, 10, 6]},
    ),
    Case(
        "expand to sizes that are fed stays",
        "x 1,3,6,7 | int64 x2 4 | w 10,3,1,1 | z 4,10,1,1",
        "a = Conv(x, w) g = GlobalAveragePool(a) e = Expand(g, x2) y = Conv(e, z)",
        0,
        arrays={"x2": [1, 10, 3, 2]},
    ),
    Case(
        "split in sizes that are fed stays",
        "x 1,3,6,7 | int64 x2 2 | w 10,3,1,1",
        "a = Conv(x, w) b, c = Split<axis=1>(a, x2) y = ReduceSum(b) y1 = ReduceSum(c)",
        0,
        arrays={"x2": [4, 6]},
    ),
    Case(
        "resize to sizes that are fed stays",
        "x 1,3,6,7 | int64 x2 4 | w 10,3,1,1 | z 4,10,1,1",
        "a = Conv(x, w) b = Resize(a, , , x2) y = Conv(b, z)",
        0,
        arrays={"x2": [1, 10, 8, 9]},
    ),
    Case(
        "slice of space with fed bounds",
        "x 1,3,6,7 | int64 x2 1 | w 10,3,1,1 | int64 s 1 | int64 ax 1 | z 4,10,1,1",
        "a = Conv(x, w) b = Slice(a, s, x2, ax) y = Conv(b, z)",
        10,
        arrays={"x2": [4], "s": [0], "ax": [2]},
    ),
    Case(
        "pad by fed widths stays",
        "x 1,3,6,7 | int64 x2 8 | w 10,3,1,1 | z 4,10,1,1",
        "a = Conv(x, w) b = Pad(a, x2) y = Conv(b, z)",
        0,
        arrays={"x2": [0, 0, 1, 1, 0, 0, 1, 1]},
    ),
]

PARTS = [
    Case(
        "split",
        "x N,3,H,W | w 10,3,1,1 | int64 s 2 | z 4,6,1,1 | u 5,4,1,1",
        "a = Conv(x, w) b, c = Split<axis=1>(a, s) r = Relu(c) y = Conv(b, z) y1 = Conv(r, u)",
        10,
        arrays={"s": [6, 4]},
    ),
    Case(
        "split in equal parts that meet again",
        "x N,3,H,W | w 10,3,1,1 | z 4,5,1,1",
        "a = Conv(x, w) b, c = Split<axis=1, num_outputs=2>(a) s = Sigmoid(b) m = Mul(s, c) y = Conv(m, z)",
        5,
        opset=18,
    ),
    Case(
        "split by attribute",
        "x N,3,H,W | w 10,3,1,1 | z 4,3,1,1 | u 5,7,1,1",
        "a = Conv(x, w) b, c = Split<axis=-3, split=[3,7]>(a) y = Conv(b, z) y1 = Conv(c, u)",
        10,
        opset=11,
    ),
    Case(
        "split in equal parts of old",
        "x N,3,H,W | w 10,3,1,1 | z 4,5,1,1 | u 5,5,1,1",
        "a = Conv(x, w) b, c = Split<axis=1>(a) y = Conv(b, z) y1 = Conv(c, u)",
        10,
        opset=9,
    ),
    Case(
        "split along space",
        "x N,3,6,7 | w 10,3,1,1 | int64 s 2 | z 4,10,1,1 | u 5,10,1,1",
        "a = Conv(x, w) b, c = Split<axis=2>(a, s) y = Conv(b, z) y1 = Conv(c, u)",
        10,
        arrays={"s": [2, 4]},
    ),
    Case(
        "split and concatenate (C2f)",
        "x N,3,H,W | w 10,3,1,1 | int64 s 2 | v 5,5,3,3 | z 4,15,1,1",
        "a = Conv(x, w) b, c = Split<axis=1>(a, s) d = Conv<pads=[1,1,1,1]>(c, v) r = Relu(d) m = Concat<axis=1>(b, c, r) "
        "y = Conv(m, z)",
        15,
        arrays={"s": [5, 5]},
    ),
    Case(
        "slice of channels",
        "x N,3,H,W | w 10,3,1,1 | int64 s 1 | int64 e 1 | int64 ax 1 | z 4,10,1,1 | u 5,4,1,1",
        "a = Conv(x, w) b = Slice(a, s, e, ax) y = Conv(a, z) y1 = Conv(b, u)",
        10,
        arrays={"s": [3], "e": [7], "ax": [1]},
    ),
    Case(
        "slice to the end, from behind",
        "x N,3,H,W | w 10,3,1,1 | int64 s 1 | int64 e 1 | int64 ax 1 | u 5,4,1,1",
        "a = Conv(x, w) b = Slice(a, s, e, ax) y = Conv(b, u)",
        10,
        arrays={"s": [-4], "e": [_MAX], "ax": [-3]},
    ),
    Case(
        "slice backwards",
        "x N,3,H,W | w 10,3,1,1 | int64 s 1 | int64 e 1 | int64 ax 1 | int64 st 1 | u 5,10,1,1",
        "a = Conv(x, w) b = Slice(a, s, e, ax, st) y = Conv(b, u)",
        10,
        arrays={"s": [-1], "e": [_MIN], "ax": [1], "st": [-1]},
    ),
    Case(
        "slice backwards in steps",
        "x N,3,H,W | w 10,3,1,1 | int64 s 1 | int64 e 1 | int64 ax 1 | int64 st 1 | u 5,4,1,1 | z 4,10,1,1",
        "a = Conv(x, w) b = Slice(a, s, e, ax, st) r = Relu(b) y = Conv(r, u) y1 = Conv(a, z)",
        10,
        arrays={"s": [8], "e": [0], "ax": [1], "st": [-2]},
    ),
    Case(
        "slice in steps, of several axes",
        "x N,3,6,7 | w 10,3,1,1 | int64 s 3 | int64 e 3 | int64 ax 3 | int64 st 3 | u 5,5,1,1 | z 4,10,1,1",
        "a = Conv(x, w) b = Slice(a, s, e, ax, st) r = Relu(b) y = Conv(r, u) y1 = Conv(a, z)",
        10,
        arrays={"s": [1, 1, 0], "e": [_MAX, 10, -1], "ax": [2, 1, 3], "st": [2, 2, 1]},
    ),
    Case(
        "slice without axes",
        "x 2,3,6,7 | w 10,3,1,1 | int64 s 2 | int64 e 2 | u 5,6,1,1",
        "a = Conv(x, w) b = Slice(a, s, e) y = Conv(b, u)",
        10,
        arrays={"s": [0, 2], "e": [_MAX, 8]},
    ),
    Case(
        "slice by attributes",
        "x N,3,H,W | w 10,3,1,1 | u 5,6,1,1 | z 4,4,1,1",
        "a = Conv(x, w) b = Slice<axes=[1], starts=[0], ends=[6]>(a) c = Slice<axes=[1], starts=[6], ends=[2147483647]>(a) "
        "y = Conv(b, u) y1 = Conv(c, z)",
        10,
        opset=9,
    ),
    Case(
        "slice with computed bounds",
        "x N,3,H,W | w 10,3,1,1 | int64 one [] | int64 two 1 | int64 zero 1 | int64 ax 1 | u 5,5,1,1 | v 6,5,1,1",
        "a = Conv(x, w) s = Shape(a) c = Gather(s, ax) h = Div(c, two) b = Slice(a, zero, h, ax) d = Slice(a, h, c, ax) "
        "r = Relu(b) y = Conv(r, u) y1 = Conv(d, v)",
        10,
        arrays={"one": 1, "two": [2], "zero": [0], "ax": [1]},
    ),
    Case(
        "slice of space with computed bounds",
        _ONE + " | int64 two 1 | int64 zero 1 | int64 ax 1",
        "a = Conv(x, w) s = Shape(a) c = Gather(s, ax) h = Div(c, two) b = Slice(a, zero, h, ax) y = Conv(b, z)",
        10,
        arrays={"two": [2], "zero": [0], "ax": [2]},
    ),
    Case(
        "focus: slices of space into channels",
        "x N,3,6,8 | w 10,3,1,1 | int64 s 1 | int64 t 1 | int64 e 1 | int64 ax 1 | int64 st 1 | z 4,20,1,1",
        "a = Conv(x, w) b = Slice(a, s, e, ax, st) c = Slice(a, t, e, ax, st) m = Concat<axis=1>(b, c) y = Conv(m, z)",
        10,
        arrays={"s": [0], "t": [1], "e": [_MAX], "ax": [3], "st": [2]},
    ),
    Case(
        "gather of one channel",
        "x N,3,T | w 10,3,1 | int64 i [] | z 4,10,1 | v 10,4",
        "a = Conv(x, w) b = Gather<axis=1>(a, i) p = ReduceMean<axes=[1]>(b) c = Conv(a, z) y = Identity(c) y1 = Relu(p)",
        9,
        arrays={"i": -3},
    ),
    Case(
        "gather with negative and repeated indices",
        "x N,3,H,W | w 10,3,1,1 | int64 i 5 | z 4,5,1,1 | u 4,10,1,1",
        "a = Conv(x, w) b = Gather<axis=1>(a, i) r = Relu(b) y = Conv(r, z) y1 = Conv(a, u)",
        10,
        arrays={"i": [7, -1, 2, 2, 0]},
    ),
    Case(
        "gather with a table of indices",
        "x N,3,H | w 10,3,1 | int64 i 3,2 | z 6,4 | u 4,10,1 | int64 s 3",
        "a = Conv(x, w) b = Gather<axis=1>(a, i) t = Transpose<perm=[0,3,1,2]>(b) f = Reshape(t, s) y = MatMul(f, z) "
        "y1 = Conv(a, u)",
        (7, 6),
        arrays={"i": [[7, 1], [2, 3], [9, 0]], "s": [0, 0, 6]},
    ),
    Case(
        "gather of a position",
        "x N,T,3 | w 3,10 | int64 i [] | z 10,4",
        "a = MatMul(x, w) b = Gather<axis=1>(a, i) y = MatMul(b, z)",
        10,
        arrays={"i": 0},
    ),
    Case(
        "gather of channels by an input",
        "x N,3,H,W | int64 x2 2 | w 10,3,1,1 | z 4,2,1,1",
        "a = Conv(x, w) b = Gather<axis=1>(a, x2) y = Conv(b, z)",
        0,
    ),
    Case(
        "gather of positions by an input",
        "x N,3,H,W | int64 x2 2 | w 10,3,1,1 | z 4,10,1,1",
        "a = Conv(x, w) b = Gather<axis=2>(a, x2) y = Conv(b, z)",
        10,
    ),
]

JOINTS = [
    Case(
        "concatenate",
        "x N,3,H,W | w 10,3,1,1 | v 6,3,1,1 | z 4,16,1,1",
        "a = Conv(x, w) b = Conv(x, v) m = Concat<axis=1>(a, b) r = Relu(m) y = Conv(r, z)",
        16,
    ),
    Case(
        "concatenate at a negative axis with the input",
        "x N,3,H,W | w 10,3,1,1 | z 4,13,1,1",
        "a = Conv(x, w) m = Concat<axis=-3>(x, a) y = Conv(m, z)",
        10,
    ),
    Case(
        "concatenate the same value twice (T23)",
        "x N,3,H,W | w 10,3,1,1 | z 4,20,1,1",
        "a = Conv(x, w) m = Concat<axis=1>(a, a) y = Conv(m, z)",
        10,
    ),
    Case(
        "concatenate with constants",
        "x 1,3,6,7 | w 10,3,1,1 | k 1,5,6,7 | z 4,15,1,1",
        "a = Conv(x, w) m = Concat<axis=1>(k, a) y = Conv(m, z)",
        15,
    ),
    Case(
        "concatenate along space with constants",
        "x 1,3,6,7 | w 10,3,1,1 | k 1,10,2,7 | z 4,10,1,1",
        "a = Conv(x, w) m = Concat<axis=2>(k, a) y = Conv(m, z)",
        10,
    ),
    Case(
        "concatenate a class token",
        "x N,T,3 | w 3,10 | k 1,1,10 | int64 s 3 | z 10,4",
        "a = MatMul(x, w) h = Shape<start=0, end=1>(x) o = Constant<value_ints=[1,1]>() t = Concat<axis=0>(h, o) "
        "e = Expand(k, t) m = Concat<axis=1>(e, a) y = MatMul(m, z)",
        10,
    ),
    Case(
        "concatenate along space",
        "x N,3,H,W | w 10,3,1,1 | v 10,3,1,1 | z 4,10,1,1",
        "a = Conv(x, w) b = Conv(x, v) m = Concat<axis=2>(a, b) y = Conv(m, z)",
        10,
    ),
    Case(
        "concatenate inside a concatenation (dense blocks)",
        "x N,3,H,W | w 10,3,1,1 | v 6,10,1,1 | u 5,16,1,1 | z 4,21,1,1",
        "a = Conv(x, w) b = Conv(a, v) m = Concat<axis=1>(a, b) c = Conv(m, u) n = Concat<axis=1>(m, c) y = Conv(n, z)",
        21,
    ),
    Case(
        "concatenate single channels",
        "x N,3,H,W | w 1,3,1,1 | v 1,3,3,3 | u 5,2,1,1 | z 4,5,1,1",
        "a = Conv(x, w) b = Conv<pads=[1,1,1,1]>(x, v) m = Concat<axis=1>(a, b) c = Conv(m, u) y = Conv(c, z)",
        5,
    ),
    Case("concatenate one thing", _ONE, "a = Conv(x, w) m = Concat<axis=1>(a) y = Conv(m, z)", 10),
    Case(
        "pad space with zeros, reflected, by attribute",
        _ONE + " | int64 p 8",
        'a = Conv(x, w) b = Pad(a, p) c = Pad<mode="reflect">(b, p) d = Pad<mode="edge">(c, p) y = Conv(d, z)',
        10,
        arrays={"p": [0, 0, 1, 2, 0, 0, 0, 1]},
    ),
    Case(
        "pad channels (option A of ResNets)",
        "x N,3,H,W | w 10,3,1,1 | v 17,10,1,1 | int64 p 8 | z 4,17,1,1",
        "a = Conv(x, w) r = Relu(a) b = Conv(r, v) q = Pad(r, p) s = Add(b, q) y = Conv(s, z)",
        17,
        arrays={"p": [0, 3, 0, 0, 0, 4, 0, 0]},
    ),
    Case(
        "pad channels, widths computed",
        "x N,3,H,W | w 10,3,1,1 | v 17,10,1,1 | int64 p 4 | int64 k 4 | int64 o 1 | z 4,17,1,1",
        "a = Conv(x, w) r = Relu(a) b = Conv(r, v) q = Concat<axis=0>(p, k) q1 = Mul(q, o) s = Pad(r, q1) t = Add(b, s) "
        "y = Conv(t, z)",
        17,
        arrays={"p": [0, 3, 0, 0], "k": [0, 4, 0, 0], "o": [1]},
    ),
    Case(
        "pad channels of old, cut a channel off",
        "x N,3,H,W | w 10,3,1,1 | z 4,12,1,1",
        "a = Conv(x, w) b = Pad<pads=[0,2,0,0,0,0,0,1]>(a) y = Conv(b, z)",
        10,
        opset=10,
    ),
    Case(
        "pad named axes with a number",
        _ONE + " | int64 p 2 | v [] | int64 ax 1",
        "a = Conv(x, w) b = Pad(a, p, v, ax) y = Conv(b, z)",
        10,
        opset=18,
        arrays={"p": [1, 2], "ax": [-1], "v": 0.7},
    ),
    Case(
        "pad that cuts channels off",
        "x N,3,H,W | w 10,3,1,1 | int64 p 8 | z 4,9,1,1",
        "a = Conv(x, w) b = Pad(a, p) y = Conv(b, z)",
        0,
        arrays={"p": [0, -1, 0, 0, 0, 0, 0, 0]},
    ),
    Case(
        "expand over space",
        "x N,3,6,7 | w 10,3,1,1 | int64 s 4 | z 4,10,1,1",
        "a = Conv(x, w) g = GlobalMaxPool(a) e = Expand(g, s) m = Add(e, a) y = Conv(m, z)",
        10,
        arrays={"s": [1, 10, 6, 7]},
    ),
    Case(
        "expand over space, computed",
        _ONE,
        "a = Conv(x, w) g = GlobalAveragePool(a) s = Shape(a) e = Expand(g, s) m = Mul(e, a) y = Conv(m, z)",
        10,
    ),
    Case(
        "expand one channel",
        "x N,3,6,7 | w 1,3,1,1 | v 5,10,1,1 | int64 s 4 | z 4,5,1,1",
        "a = Conv(x, w) e = Expand(a, s) c = Conv(e, v) y = Conv(c, z)",
        5,
        arrays={"s": [1, 10, 1, 1]},
    ),
    Case(
        "keys repeated for each of their queries",
        "x N,5,7 | w 7,12 | int64 h 4 | int64 u 1 | int64 s 5 | int64 r 4 | int64 f 3 | z 36,4",
        "a = MatMul(x, w) b = Reshape(a, h) c = Transpose<perm=[0,2,1,3]>(b) d = Unsqueeze(c, u) e = Expand(d, s)"
        " g = Reshape(e, r) t = Transpose<perm=[0,2,1,3]>(g) k = Reshape(t, f) y = MatMul(k, z)",
        (6, 2),
        arrays={"h": [0, 0, 2, 6], "u": [2], "s": [1, 1, 3, 1, 1], "r": [0, 6, -1, 6], "f": [0, 0, 36]},
    ),
    Case(
        "tile channels",
        "x N,3,H,W | w 5,3,1,1 | int64 s 4 | z 4,10,1,1",
        "a = Conv(x, w) e = Tile(a, s) y = Conv(e, z)",
        5,
        arrays={"s": [1, 2, 1, 3]},
    ),
    *(
        Case(
            f"depth to space, {mode}",
            "x N,3,H,W | w 20,3,1,1 | z 4,5,1,1",
            f'a = Conv(x, w) d = DepthToSpace<blocksize=2, mode="{mode}">(a) r = Relu(d) y = Conv(r, z)',
            5,
        )
        for mode in ("DCR", "CRD")
    ),
    Case(
        "space to depth",
        "x N,3,6,8 | w 5,3,1,1 | z 4,20,1,1",
        "a = Conv(x, w) d = SpaceToDepth<blocksize=2>(a) r = Relu(d) y = Conv(r, z)",
        5,
    ),
]

CASES = [*RESHAPES, *FED, *PARTS, *JOINTS]


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_smaller_model_equals_the_masked_one(case: Case, view: str) -> None:
    check(case, view)
