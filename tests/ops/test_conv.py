"""Conv and ConvTranspose of any rank and group."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxslim_core.channels.groups import analyse
from onnxslim_core.channels.idle import find_idle
from onnxslim_core.model import load
from tests.ops.cases import VIEWS, Case, check

CASES = [
    Case("plain", "x N,3,H,W | w 10,3,3,3 | b 10 | z 4,10,1,1", "a = Conv(x, w, b) r = Relu(a) y = Conv(r, z)", 10),
    Case(
        "stride dilation and pads on one side",
        "x N,3,H,W | w 10,3,3,2 | z 4,10,1,1",
        "a = Conv<strides=[2,1], dilations=[1,2], pads=[1,0,2,1]>(x, w) r = Sigmoid(a) y = Conv(r, z)",
        10,
    ),
    Case(
        "auto pad",
        "x N,3,H,W | w 10,3,3,3 | z 4,10,3,3",
        'a = Conv<auto_pad="SAME_UPPER", kernel_shape=[3,3]>(x, w) y = Conv<auto_pad="SAME_LOWER">(a, z)',
        10,
    ),
    Case("one axis of space", "x N,3,T | w 10,3,3 | b 10 | z 4,10,1", "a = Conv(x, w, b) y = Conv(a, z)", 10),
    Case("three axes of space", "x N,3,4,H,W | w 10,3,3,2,1 | z 4,10,2,1,3", "a = Conv(x, w) y = Conv(a, z)", 10),
    Case(
        "depthwise",
        "x N,3,H,W | w 10,3,1,1 | d 10,1,3,3 | b 10 | z 4,10,1,1",
        "a = Conv(x, w) r = Relu(a) c = Conv<group=10>(r, d, b) y = Conv(c, z)",
        10,
    ),
    Case(
        "depthwise on the input",
        "x N,3,H,W | d 3,1,3,3 | w 10,3,1,1 | z 4,10,1,1",
        "c = Conv<group=3>(x, d) a = Conv(c, w) y = Conv(a, z)",
        10,
    ),
    Case(
        "depthwise that doubles the channels",
        "x N,3,H,W | w 7,3,1,1 | d 14,1,3,3 | b 14 | z 4,14,1,1",
        "a = Conv(x, w) c = Conv<group=7>(a, d, b) y = Conv(c, z)",
        7,
    ),
    Case(
        "groups",
        "x N,5,H,W | w 12,5,1,1 | g 15,4,3,3 | b 15 | z 4,15,1,1",
        "a = Conv(x, w) r = Relu(a) c = Conv<group=3>(r, g, b) y = Conv(c, z)",
        (9, 3),
    ),
    Case(
        "groups on the input",
        "x N,6,H,W | g 15,2,3,3 | z 4,15,1,1",
        "c = Conv<group=3>(x, g) y = Conv(c, z)",
        5,
    ),
    Case(
        "two grouped convs with different groups",
        "x N,5,H,W | w 12,5,1,1 | g 18,4,1,1 | h 8,9,3,3 | z 5,8,1,1",
        "a = Conv(x, w) c = Conv<group=3>(a, g) e = Conv<group=2>(c, h) y = Conv(e, z)",
        11,
    ),
    Case(
        "transposed",
        "x N,3,H,W | w 3,10,3,3 | b 10 | v 10,6,2,2 | z 4,6,1,1",
        "a = ConvTranspose<strides=[2,2], output_padding=[1,1]>(x, w, b) c = ConvTranspose(a, v) y = Conv(c, z)",
        16,
    ),
    Case(
        "transposed in groups",
        "x N,5,H,W | w 12,5,1,1 | g 12,5,3,3 | b 15 | z 4,15,1,1",
        "a = Conv(x, w) c = ConvTranspose<group=3, pads=[1,1,0,0]>(a, g, b) y = Conv(c, z)",
        (9, 3),
    ),
    Case(
        "transposed depthwise, one axis of space",
        "x N,3,T | w 10,3,1 | d 10,1,3 | b 10 | z 4,10,1",
        "a = Conv(x, w) c = ConvTranspose<group=10, strides=[2]>(a, d, b) y = Conv(c, z)",
        10,
    ),
    Case(
        "one weight used by two (siamese trunks)",
        "x N,3,H,W | x2 N,3,H,W | w 10,3,3,3 | v 6,10,1,1 | z 4,12,1,1",
        "a = Conv(x, w) c = Conv(x2, w) e = Conv(a, v) f = Conv(c, v) m = Concat<axis=1>(e, f) y = Conv(m, z)",
        16,
    ),
    Case(
        "one bias used by two (copied, not tied)",
        "x N,3,H,W | w 10,3,3,3 | v 10,3,3,3 | b 10 | z 4,10,1,1 | u 5,10,1,1",
        "a = Conv(x, w, b) c = Conv(x, v, b) y = Conv(a, z) y1 = Conv(c, u)",
        20,
    ),
    Case(
        "one weight used twice, a repeated layer",
        "x N,3,H,W | w 10,3,1,1 | v 10,10,3,3 | z 4,10,1,1",
        "a = Conv(x, w) c = Conv<pads=[1,1,1,1]>(a, v) r = Relu(c) e = Conv<pads=[1,1,1,1]>(r, v) y = Conv(e, z)",
        10,
    ),
    Case(
        "residual",
        "x N,3,H,W | w 10,3,1,1 | v 7,10,3,3 | u 10,7,3,3 | b 10 | z 4,10,1,1",
        "a = Conv(x, w) c = Conv<pads=[1,1,1,1]>(a, v) r = Relu(c) e = Conv<pads=[1,1,1,1]>(r, u, b) s = Add(e, a) "
        "t = Relu(s) y = Conv(t, z)",
        17,
    ),
    Case("computed weights stay", "x N,3,6,7 | xw 10,3,1,1 | z 4,10,1,1", "a = Conv(x, xw) y = Conv(a, z)", 0),
    Case(
        "channels that stand in space stay",
        "x N,3,6,7 | w 10,3,1,1 | v 5,6,3,3 | u 6,5,3,3 | z 10,4",
        "a = Conv(x, w) t = Transpose<perm=[0,2,3,1]>(a) c = Conv<pads=[1,1,1,1]>(t, v) "
        "d = ConvTranspose<pads=[1,1,1,1]>(t, u) y = MatMul(c, z) y1 = MatMul(d, z)",
        0,
    ),
    Case(
        "an output read inside stays",
        "x N,3,H,W | w 10,3,1,1 | v 6,10,1,1 | z 4,6,1,1",
        "y = Conv(x, w) a = Conv(y, v) y1 = Conv(a, z)",
        6,
    ),
]


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_smaller_model_equals_the_masked_one(case: Case, view: str) -> None:
    check(case, view)


@pytest.mark.parametrize("node", ["Conv<group=6>(h, w)", "ConvTranspose<group=6>(h, u)", "Conv(h, v)"])
def test_weights_that_do_not_fit_the_input_are_left_alone(node: str) -> None:
    """Shape inference lets them pass, so that they come to us; onnxruntime refuses to run them."""
    text = f"""<ir_version: 8, opset_import: ["" : 17]> g (float[1,1,5,5] x) => (y)
        <float[6,1,1,1] w = {{1, 2, 3, 4, 5, 6}}, float[2,1,1,1] u = {{1, 2}}, float[1,2,1,1] v = {{1, 2}}>
        {{ h = Relu(x) y = {node} }}"""
    model = load(onnx.parser.parse_model(text).SerializeToString())
    channels = analyse(model.ir, {"x": np.ones((1, 1, 5, 5), np.float32)})
    find_idle(channels)
    assert not any(group.free.any() for group in channels.groups)


@pytest.mark.filterwarnings("error")
def test_infinite_weights_are_met_without_a_word() -> None:
    """Numbers that are none make what they touch unknown; numpy's warnings would stand on the user's console."""
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[1,1,2,2] x) => (y)
        <float[2,1,1,1] w = {0, 1}, float[2] b = {3, 0}, float[2,2,1,1] v = {1, 2, 3, 4}>
        { h = Conv(x, w, b) y = Conv(h, v) }"""
    model = load(onnx.parser.parse_model(text).SerializeToString())
    weight = model.ir.graph.initializers["v"]
    weight.const_value = ir.tensor(np.array([[1, np.inf], [3, 4]], np.float32).reshape(2, 2, 1, 1), name="v")
    find_idle(analyse(model.ir, {"x": np.ones((1, 1, 2, 2), np.float32)}))
