"""Operators in which values depend on each other along some axes: reductions, norms, Softmax, pools, resizing."""

from __future__ import annotations

import pytest

from tests.ops.cases import VIEWS, Case, check

_ONE = "x N,3,H,W | w 10,3,1,1 | z 4,10,1,1"
_MEANS = ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceLogSumExp")
_SUMS = ("ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSum")

REDUCTIONS = [
    *(
        Case(
            f"{op} over space",
            "x N,3,3,2 | w 10,3,1,1 | z 4,10,1,1 | int64 ax 2",
            f"a = Conv(x, w) p = Sigmoid(a) r = {op}(p, ax) y = Conv(r, z)",
            10,
            opset=18,
            arrays={"ax": [-1, 2]},
        )
        for op in (*_MEANS, *_SUMS)
    ),
    *(
        Case(
            f"{op} over channels",
            "x N,3,3,2 | w 10,3,1,1 | v 5,1,1,1 | z 4,5,1,1",
            f"a = Conv(x, w) p = Sigmoid(a) r = {op}<axes=[1]>(p) c = Conv(r, v) y = Conv(c, z)",
            5 if op in (*_MEANS, "ReduceLogSum") else 15,
            opset=11,
        )
        for op in (*_MEANS, *_SUMS)
    ),
    Case(
        "sum over channels and space that drops the axes",
        "x N,3,6,7 | w 10,3,1,1 | v 1,5 | z 5,4 | int64 ax 3 | int64 u 1",
        "a = Conv(x, w) r = ReduceSum<keepdims=0>(a, ax) s = Unsqueeze(r, u) c = MatMul(s, v) y = MatMul(c, z)",
        15,
        arrays={"ax": [1, 2, 3], "u": [1]},
    ),
    Case(
        "sum over everything",
        "x 1,3,6,7 | w 10,3,1,1 | v 1,1,1,5 | z 5,4",
        "a = Conv(x, w) r = ReduceSum(a) c = MatMul(r, v) y = MatMul(c, z)",
        15,
    ),
    Case(
        "sum over nothing",
        _ONE,
        "a = Conv(x, w) r = ReduceSum<noop_with_empty_axes=1>(a) y = Conv(r, z)",
        10,
    ),
    *(
        Case(
            f"{op} over the width of heads",
            "x N,T,3 | w 3,12 | v 3,12 | int64 s 4 | int64 ax 1 | z 3,4",
            f"a = MatMul(x, w) b = MatMul(x, v) m = Mul(a, b) m1 = Reshape(m, s) r = {op}<keepdims=0>(m1, ax) y = MatMul(r, z)",
            3,
            opset=18,
            arrays={"s": [0, 0, 3, 4], "ax": [-1]},
        )
        for op in ("ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare")
    ),
    Case(
        "axes from an input of the model stay",
        "x N,3,6,7 | int64 x2 1 | w 10,3,1,1 | z 4,10,1,1",
        "a = Conv(x, w) r = ReduceSum(a, x2) y = Conv(a, z) y1 = Relu(r)",
        0,
        arrays={"x2": [2]},
    ),
]

NORMS = [
    Case("softmax over channels", _ONE, "a = Conv(x, w) s = Softmax<axis=1>(a) y = Conv(s, z)", 0),
    Case("softmax over space", _ONE, "a = Conv(x, w) s = Softmax<axis=-1>(a) y = Conv(s, z)", 10),
    Case("softmax of old flattens (T39)", _ONE, "a = Conv(x, w) s = Softmax<axis=3>(a) y = Conv(s, z)", 10, opset=11),
    Case("softmax of old over all", _ONE, "a = Conv(x, w) s = Softmax(a) y = Conv(s, z)", 0, opset=11),
    Case("log softmax", _ONE, "a = Conv(x, w) s = LogSoftmax<axis=2>(a) y = Conv(s, z)", 10),
    Case("hardmax", _ONE, "a = Conv(x, w) s = Hardmax<axis=2>(a) y = Conv(s, z)", 10),
    Case("lp normalization of space", _ONE, "a = Conv(x, w) s = LpNormalization<axis=3>(a) y = Conv(s, z)", 10),
    Case("lp normalization of channels", _ONE, "a = Conv(x, w) s = LpNormalization<axis=1, p=1>(a) y = Conv(s, z)", 10),
    Case(
        "layer norm over channels stays",
        "x N,T,3 | w 3,10 | s 10 | b 10 | v 10,5 | z 5,4",
        "a = MatMul(x, w) n = LayerNormalization(a, s, b) c = MatMul(n, v) y = MatMul(c, z)",
        5,
    ),
    Case(
        "layer norm over space",
        "x N,3,6,7 | w 10,3,1,1 | s 7 | z 4,10,1,1",
        "a = Conv(x, w) n = LayerNormalization<axis=-1>(a, s) y = Conv(n, z)",
        10,
    ),
    Case(
        "layer norm of each head",
        "x N,T,3 | w 3,12 | s 4 | b 4 | int64 h 4 | int64 e 3 | z 12,5",
        "a = MatMul(x, w) a1 = Reshape(a, h) n = LayerNormalization(a1, s, b) a2 = Reshape(n, e) y = MatMul(a2, z)",
        3,
        arrays={"h": [0, 0, 3, 4], "e": [0, 0, 12]},
    ),
    Case(
        "rms norm of each head",
        "x N,T,3 | w 3,12 | s 4 | int64 h 4 | int64 e 3 | z 12,5",
        "a = MatMul(x, w) a1 = Reshape(a, h) n = RMSNormalization(a1, s) a2 = Reshape(n, e) y = MatMul(a2, z)",
        3,
        opset=23,
        arrays={"h": [0, 0, 3, 4], "e": [0, 0, 12]},
    ),
    Case(
        "norm written out, over space",
        _ONE + " | eps []",
        "a = Conv(x, w) m = ReduceMean<axes=[2,3]>(a) d = Sub(a, m) q = Mul(d, d) v = ReduceMean<axes=[2,3]>(q) e = Add(v, eps) "
        "s = Sqrt(e) n = Div(d, s) y = Conv(n, z)",
        10,
        arrays={"eps": 0.01},
    ),
    Case(
        "instance norm",
        _ONE + " | s 10 | b 10",
        "a = Conv(x, w) n = InstanceNormalization(a, s, b) r = Relu(n) y = Conv(r, z)",
        10,
    ),
    Case(
        "group norm",
        "x N,3,H,W | w 12,3,1,1 | s 12 | b 12 | z 4,12,1,1",
        "a = Conv(x, w) n = GroupNormalization<num_groups=3>(a, s, b) r = Relu(n) y = Conv(r, z)",
        3,
        opset=21,
    ),
    Case(
        "group norm of old, parameters per group",
        "x N,3,H,W | w 12,3,1,1 | s 3 | b 3 | z 4,12,1,1",
        "a = Conv(x, w) n = GroupNormalization<num_groups=3>(a, s, b) r = Relu(n) y = Conv(r, z)",
        3,
        opset=18,
    ),
    Case(
        "group norm written as instance norm of groups",
        "x N,3,6,7 | w 12,3,1,1 | s 3 | b 3 | int64 g 3 | int64 h 4 | sc 12,1,1 | z 4,12,1,1",
        "a = Conv(x, w) a1 = Reshape(a, g) n = InstanceNormalization(a1, s, b) a2 = Reshape(n, h) m = Mul(a2, sc) y = Conv(m, z)",
        3,
        arrays={"g": [0, 3, -1], "h": [0, 12, 6, 7]},
    ),
    Case("local response norm", _ONE, "a = Conv(x, w) n = LRN<size=3>(a) y = Conv(n, z)", 0),
    Case("mean variance norm over space", _ONE, "a = Conv(x, w) n = MeanVarianceNormalization(a) y = Conv(n, z)", 10),
    Case(
        "mean variance norm over channels",
        _ONE,
        "a = Conv(x, w) n = MeanVarianceNormalization<axes=[1,2,3]>(a) y = Conv(n, z)",
        0,
    ),
]

ORDERS = [
    Case(
        "top k over space",
        _ONE + " | int64 k 1",
        "a = Conv(x, w) t, i = TopK<axis=3>(a, k) y = Conv(t, z)",
        10,
        arrays={"k": [2]},
    ),
    Case(
        "top k and its indices over channels",
        _ONE + " | int64 k 1 | v 4,2,1,1",
        "a = Conv(x, w) t, i = TopK<axis=1>(a, k) y = Conv(t, v)",
        0,
        arrays={"k": [2]},
    ),
    Case("top k of old", _ONE, "a = Conv(x, w) t, i = TopK<axis=3, k=2>(a) y = Conv(t, z)", 10, opset=9),
    Case(
        "arg max over channels",
        "x N,3,H,W | w 10,3,1,1 | z 4,1,1,1",
        "a = Conv(x, w) i = ArgMax<axis=1>(a) f = Cast<to=1>(i) y = Conv(f, z)",
        0,
    ),
    Case(
        "arg min over space",
        _ONE,
        "a = Conv(x, w) i = ArgMin<axis=2, keepdims=0>(a) f = Cast<to=1>(i) u = Unsqueeze<axes=[2]>(f) y = Conv(u, z)",
        10,
        opset=11,
    ),
    Case(
        "cumulative sum over space",
        _ONE + " | int64 ax []",
        "a = Conv(x, w) c = CumSum(a, ax) y = Conv(c, z)",
        10,
        arrays={"ax": 2},
    ),
    Case(
        "cumulative sum over channels",
        _ONE + " | int64 ax []",
        "a = Conv(x, w) c = CumSum(a, ax) y = Conv(c, z)",
        0,
        arrays={"ax": -3},
    ),
    Case("upper triangle of space", _ONE, "a = Conv(x, w) c = Trilu(a) y = Conv(c, z)", 10),
    Case(
        "reversed sequences",
        "x N,T,3 | w 3,10 | int64 l 1 | int64 one 1 | z 10,4 ",
        "a = MatMul(x, w) n = Shape<start=0, end=1>(x) e = Expand(l, n) "
        "c = ReverseSequence<batch_axis=0, time_axis=1>(a, e) y = MatMul(c, z)",
        10,
        arrays={"l": [3]},
    ),
]

POOLS = [
    *(
        Case(f"{op}", _ONE, f"a = Conv(x, w) p = {op}(a) y = Conv(p, z)", 10)
        for op in ("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool<p=2>")
    ),
    *(
        Case(
            f"{op} with pads",
            _ONE,
            f"a = Conv(x, w) p = {op}<kernel_shape=[3,2], strides=[2,1], pads=[1,0,1,1], ceil_mode=1>(a) y = Conv(p, z)",
            10,
            opset=18,
        )
        for op in ("MaxPool", "AveragePool", "LpPool")
    ),
    Case(
        "max pool whose indices are read stays",
        _ONE + " | v 6,10,1,1 | u 4,6,1,1",
        "a = Conv(x, w) p, i = MaxPool<kernel_shape=[2,2]>(a) f = Cast<to=1>(i) c = Conv(p, v) y = Conv(c, u) y1 = Relu(f)",
        6,
    ),
    Case(
        "max pool with indices that nobody reads",
        _ONE,
        "a = Conv(x, w) p, i = MaxPool<kernel_shape=[2,2]>(a) y = Conv(p, z)",
        10,
    ),
    Case(
        "resize by scales",
        _ONE + " | s 4",
        'a = Conv(x, w) p = Resize<mode="linear">(a, , s) y = Conv(p, z)',
        10,
        arrays={"s": [1, 1, 2, 1.5]},
    ),
    Case(
        "resize to sizes",
        "x 1,3,6,7 | w 10,3,1,1 | z 4,10,1,1 | int64 s 4",
        'a = Conv(x, w) p = Resize<mode="nearest">(a, , , s) y = Conv(p, z)',
        10,
        arrays={"s": [1, 10, 9, 8]},
    ),
    Case(
        "resize to the size of another",
        "x N,3,H,W | w 10,3,1,1 | v 6,3,2,2 | z 4,16,1,1 | int64 two 1 | int64 four 1 | int64 zero 1",
        "a = Conv(x, w) b = Conv<strides=[2,2]>(x, v) s = Shape(b) n = Slice(s, zero, two) t = Shape(a) "
        "h = Slice(t, two, four) e = Concat<axis=0>(n, h) p = Resize(b, , , e) m = Concat<axis=1>(a, p) y = Conv(m, z)",
        16,
        arrays={"two": [2], "four": [4], "zero": [0]},
    ),
    Case(
        "resize named axes",
        _ONE + " | int64 s 2",
        "a = Conv(x, w) p = Resize<axes=[3,2]>(a, , , s) y = Conv(p, z)",
        10,
        opset=18,
        arrays={"s": [9, 8]},
    ),
    Case(
        "resize channels",
        "x N,3,H,W | w 5,3,1,1 | z 4,10,1,1 | s 4",
        "a = Conv(x, w) p = Resize(a, , s) y = Conv(p, z)",
        0,
        arrays={"s": [1, 2, 1, 1]},
    ),
    Case(
        "upsample",
        _ONE + " | s 4",
        "a = Conv(x, w) p = Upsample(a, s) y = Conv(p, z)",
        10,
        opset=9,
        arrays={"s": [1, 1, 2, 3]},
    ),
    Case(
        "upsample of old", _ONE, "a = Conv(x, w) p = Upsample<scales=[1.0,1.0,2.0,2.0]>(a) y = Conv(p, z)", 10, opset=8
    ),
]

SAMPLES = [
    Case(
        "regions of interest",
        "x 1,3,6,7 | w 10,3,1,1 | rois 3,4 | int64 idx 3 | z 4,10,1,1",
        "a = Conv(x, w) r = RoiAlign<output_height=2, output_width=3>(a, rois, idx) y = Conv(r, z)",
        10,
        arrays={"rois": [[0, 0, 4, 5], [1, 1, 5, 3], [2, 0, 6, 4]], "idx": [0, 0, 0]},
    ),
    Case(
        "grid sample",
        "x N,3,H,W | x2 N,4,5,2 | w 10,3,1,1 | z 4,10,1,1",
        "a = Conv(x, w) g = Tanh(x2) r = GridSample(a, g) y = Conv(r, z)",
        10,
    ),
    Case(
        "regions of interest across channels stay",
        "x 1,3,6,7 | w 10,3,1,1 | rois 3,4 | int64 idx 3 | z 5,4",
        "a = Conv(x, w) t = Transpose<perm=[0,2,3,1]>(a) r = RoiAlign<output_height=2, output_width=5>(t, rois, idx) "
        "y = MatMul(r, z)",
        0,
        arrays={"rois": [[0, 0, 4, 5], [1, 1, 5, 3], [2, 0, 6, 4]], "idx": [0, 0, 0]},
    ),
    Case(
        "grid sample by channels",
        "x N,3,6,7 | w 2,3,1,1 | v 10,3,1,1 | z 4,10,1,1",
        "a = Conv(x, v) g = Conv(x, w) t = Transpose<perm=[0,2,3,1]>(g) u = Tanh(t) r = GridSample(a, u) y = Conv(r, z)",
        10,
    ),
    Case(
        "grid sample across channels stays",
        "x N,3,6,7 | x2 N,4,5,2 | w 10,3,1,1 | z 5,4",
        "a = Conv(x, w) t = Transpose<perm=[0,2,3,1]>(a) g = Tanh(x2) r = GridSample(t, g) y = MatMul(r, z)",
        0,
    ),
]

# Channels that stand on an axis which the operator mixes: a matrix product sums over them afterwards.
_ACROSS = "x N,3,6,7 | w 10,3,1,1"
MIXED = [
    *(
        Case(
            f"{call.partition('<')[0]} across channels stays",
            f"{_ACROSS} | z 10,4",
            f"a = Conv(x, w) t = Transpose<perm=[0,2,3,1]>(a) s = Softplus(t) p = {call} y = MatMul(p, z)",
            0,
            opset=opset,
        )
        for call, opset in (
            ("MaxPool<kernel_shape=[1,3], pads=[0,1,0,1]>(s)", 18),
            ("AveragePool<kernel_shape=[1,3], pads=[0,1,0,1]>(s)", 18),
            ("LpPool<kernel_shape=[1,3], pads=[0,1,0,1]>(s)", 18),
            ("Softmax(s)", 18),
            ("LogSoftmax(s)", 18),
            ("Hardmax(s)", 18),
            ("Trilu(s)", 18),
            ("MeanVarianceNormalization(s)", 18),
        )
    ),
    *(
        Case(
            f"{op} across channels stays",
            f"{_ACROSS} | z 6,4",
            f"a = Conv(x, w) t = Transpose<perm=[0,2,3,1]>(a) s = Softplus(t) p = {op}(s) f = Squeeze<axes=[2,3]>(p) y = MatMul(f, z)",
            0,
            opset=11,
        )
        for op in ("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
    ),
    Case(
        "InstanceNormalization across channels stays",
        f"{_ACROSS} | s 6 | b 6 | z 10,4",
        "a = Conv(x, w) t = Transpose<perm=[0,2,3,1]>(a) p = InstanceNormalization(t, s, b) y = MatMul(p, z)",
        0,
    ),
    Case(
        "GroupNormalization across channels stays",
        f"{_ACROSS} | s 6 | b 6 | z 10,4",
        "a = Conv(x, w) t = Transpose<perm=[0,2,3,1]>(a) p = GroupNormalization<num_groups=2>(t, s, b) y = MatMul(p, z)",
        0,
        opset=21,
    ),
    Case(
        "RMSNormalization across channels stays",
        "x N,T,3 | w 3,10 | s 10 | z 10,4",
        "a = MatMul(x, w) n = RMSNormalization(a, s) y = MatMul(n, z)",
        0,
        opset=23,
    ),
    Case(
        "Upsample across channels stays",
        f"{_ACROSS} | sc 4 | z 20,4",
        "a = Conv(x, w) t = Transpose<perm=[0,2,3,1]>(a) p = Upsample(t, sc) y = MatMul(p, z)",
        0,
        opset=9,
        arrays={"sc": [1, 1, 1, 2]},
    ),
    Case(
        "ReverseSequence across channels stays",
        "x 2,3,7 | w 10,3,1 | int64 l 2 | z 10,4",
        "a = Conv(x, w) c = ReverseSequence<batch_axis=0, time_axis=1>(a, l) t = Transpose<perm=[0,2,1]>(c) y = MatMul(t, z)",
        0,
        arrays={"l": [3, 9]},
    ),
    Case(
        "ArgMax over space",
        _ONE,
        "a = Conv(x, w) i = ArgMax<axis=2>(a) f = Cast<to=1>(i) y = Conv(f, z)",
        10,
    ),
    Case(
        "ArgMin across channels stays",
        "x N,3,H,W | w 10,3,1,1 | z 4,1,1,1",
        "a = Conv(x, w) i = ArgMin<axis=1>(a) f = Cast<to=1>(i) y = Conv(f, z)",
        0,
    ),
]

CASES = [*SAMPLES, *MIXED, *REDUCTIONS, *NORMS, *ORDERS, *POOLS]


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_smaller_model_equals_the_masked_one(case: Case, view: str) -> None:
    check(case, view)
