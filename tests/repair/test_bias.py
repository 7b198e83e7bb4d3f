"""Expected values of removed channels: against samples, against closed forms, and against the answers of networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import erf, exp, pi, sqrt

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnxslim_core.passes import pass_class

from onnxslim_core.channels.biases import shifts_of
from onnxslim_core.channels.groups import analyse
from onnxslim_core.channels.sums import sums_of
from onnxslim_core.model import load
from onnxslim_core.repair.bias import Means, expected_shifts
from onnxslim_core.rewrite import Change, Context
from tests import oracles
from tests.ops.cases import Case

Array = np.ndarray

GAMMA = np.array([0.5, -2.0, 1.0, 3.0, 0.0, 1e-3])
BETA = np.array([0.3, -0.5, 2.0, 4.0, 0.7, -0.2])
SAMPLES = 4_000_000

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "y = Relu(z)": lambda z: np.maximum(z, 0),
    "y = Clip(z, zero, six)": lambda z: np.clip(z, 0, 6),
    "y = HardSwish(z)": lambda z: z * np.clip(z / 6 + 0.5, 0, 1),
    "y = Sigmoid(z)": lambda z: 1 / (1 + np.exp(-z)),
    "s = Sigmoid(z) y = Mul(s, z)": lambda z: z / (1 + np.exp(-z)),
    "t = Add(z, three) c = Clip(t, zero, six) d = Div(c, six) y = Mul(z, d)": lambda z: z * np.clip(z + 3, 0, 6) / 6,
    "y = PRelu(z, slope)": lambda z: np.where(z < 0, 0.25 * z, z),
    "r = Relu(z) n = Neg(z) q = Relu(n) y = Add(r, q)": np.abs,
}
CONSTANTS = {"zero": 0.0, "six": 6.0, "three": 3.0, "slope": 0.25}


def normed(body: str, arrays: Mapping[str, object] | None = None, more: str = "") -> Case:
    """A Conv with a BatchNormalization of GAMMA and BETA whose result is z, and a Conv that reads y."""
    given = {"g": GAMMA, "b": BETA, "m": np.zeros(6), "v": np.ones(6), **(arrays or {})}
    words = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    used = {name: value for name, value in CONSTANTS.items() if name in words}
    tensors = "x N,3,H,W | A 6,3,1,1 | g 6 | b 6 | m 6 | v 6 | B 5,6,1,1" + "".join(f" | {name} []" for name in used)
    text = f"a = Conv(x, A) z = BatchNormalization(a, g, b, m, v) {body.replace('y = ', 'u = ')} y = Conv(u, B)"
    return Case("normed", tensors + more, text, 0, arrays=given | used)


def expected(case: Case, *, fused: bool = False) -> Array:
    """What the channels before the last node are expected to be."""
    model = load(case.model).ir
    if fused:
        pass_class("fuse_batchnorm")().run(model, Context())
        assert [node.op_type for node in model.graph].count("BatchNormalization") == 0
    channels = analyse(model, case.feeds()[0])
    last = list(model.graph)[-1].inputs[0]
    found = Means(channels.flow).get(last)
    assert found is not None
    return np.asarray(found.reshape(-1))


@pytest.fixture(scope="module")
def normal() -> Array:
    return np.random.default_rng(0).standard_normal(SAMPLES)


@pytest.mark.parametrize("body", ACTIVATIONS)
def test_expected_value_equals_that_of_four_million_samples(body: str, normal: Array) -> None:
    found, function = expected(normed(body)), ACTIVATIONS[body]
    for value, beta, gamma in zip(found, BETA, GAMMA, strict=True):
        drawn = function(beta + gamma * normal)
        noise = 4 * float(drawn.std()) / sqrt(SAMPLES)
        assert abs(value - drawn.mean()) <= max(1e-3 * abs(drawn.mean()), noise), (beta, gamma)


def _phi(x: float) -> float:
    return exp(-x * x / 2) / sqrt(2 * pi)


def _cdf(x: float) -> float:
    return (1 + erf(x / sqrt(2))) / 2


def test_expected_value_equals_the_closed_forms() -> None:
    relu, clip = expected(normed("y = Relu(z)")), expected(normed("y = Clip(z, zero, six)"))
    for index, (beta, gamma) in enumerate(zip(BETA, np.abs(GAMMA), strict=True)):
        if gamma == 0:
            assert relu[index] == clip[index] == pytest.approx(beta, rel=1e-6)
            continue
        a, low, high = beta / gamma, -beta / gamma, (6 - beta) / gamma
        assert relu[index] == pytest.approx(beta * _cdf(a) + gamma * _phi(a), rel=1e-3, abs=1e-7)
        middle = beta * (_cdf(high) - _cdf(low)) + gamma * (_phi(low) - _phi(high)) + 6 * _cdf(-high)
        assert clip[index] == pytest.approx(middle, rel=1e-3, abs=1e-7)


@pytest.mark.parametrize("body", ACTIVATIONS)
def test_a_fused_batchnorm_promises_the_same(body: str) -> None:
    assert expected(normed(body), fused=True) == pytest.approx(expected(normed(body)), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(("op", "shift"), [("Add", -0.5), ("Sub", 0.5), ("Sum", -0.5)])
def test_a_sum_of_two_is_normal_with_the_sum_of_their_variances(op: str, shift: float) -> None:
    more = " | C 6,3,1,1 | h 6 | c 6 | n 6 | w 6"
    arrays = {"h": np.full(6, 2.0), "c": np.full(6, -0.5), "n": np.zeros(6), "w": np.ones(6)}
    body = f"k = Conv(x, C) q = BatchNormalization(k, h, c, n, w) s = {op}(z, q) y = Relu(s)"
    found = expected(normed(body, arrays, more))
    for value, beta, gamma in zip(found, BETA + shift, np.sqrt(GAMMA**2 + 4), strict=True):
        assert value == pytest.approx(beta * _cdf(beta / gamma) + gamma * _phi(beta / gamma), rel=1e-3)


def test_a_slope_of_each_channel_meets_its_own_channel() -> None:
    slopes = np.linspace(-1, 1, 6)
    found = expected(normed("y = PRelu(z, p)", {"p": slopes}, " | p 6,1,1"))
    positive, negative = (expected(normed(body)) for body in ("y = Relu(z)", "n = Neg(z) y = Relu(n)"))
    assert found == pytest.approx(positive - slopes * negative, abs=1e-6)


def test_what_is_constant_for_sure_is_not_guessed() -> None:
    weight = np.random.default_rng(0).standard_normal((6, 3, 1, 1))
    weight[2] = 0
    arrays = {"A": weight, "m": np.full(6, 0.5), "v": np.full(6, 4.0)}
    found = expected(normed("y = Relu(z)", arrays))
    assert found[2] == pytest.approx(2.0 - 0.5 / 2.0, rel=1e-5)  # (0 - mean) / sqrt(var) * gamma + beta, not E[relu]


# ---------------------------------------------------------------------- on networks
def true_to_its_statistics(body: str, tensors: str, weight: Array) -> onnx.ModelProto:
    """A network whose BatchNormalization tells the truth about its inputs: independent and standard normal."""
    count = len(weight)
    rng = np.random.default_rng(3)
    arrays = {
        "A": weight,
        "g": rng.uniform(0.5, 2, count),
        "b": rng.normal(0, 1, count),
        "m": np.zeros(count),
        "v": np.square(weight).sum(axis=tuple(range(1, weight.ndim))),
    }
    return Case("true", tensors, body, 0, arrays=arrays).model


def pruned(
    model: onnx.ModelProto, feed: Mapping[str, Array], **options: object
) -> tuple[onnx.ModelProto, list[Change]]:
    held = load(model)
    changes = pass_class("prune_channels")(round_to=1, **options).run(held.ir, Context(samples=[feed]))
    return held.to_proto(), changes


KERNEL = "a = Conv(x, A) z = BatchNormalization(a, g, b, m, v) r = Relu(z) "
IMAGE = "x 4,3,17,16 | A 12,3,3,3 | g 12 | b 12 | m 12 | v 12"
READERS = {
    "Conv": (IMAGE + " | B 7,12,3,3", KERNEL + "y = Conv(r, B)"),
    "padded Conv": (IMAGE + " | B 7,12,3,3", KERNEL + "y = Conv<pads=[1,1,1,1]>(r, B)"),
    "grouped Conv": (IMAGE + " | B 8,3,3,3 | c 8", KERNEL + "y = Conv<group=4>(r, B, c)"),
    "ConvTranspose": (IMAGE + " | B 12,7,4,4", KERNEL + "y = ConvTranspose<strides=[2,2]>(r, B)"),
    "ConvTranspose of a stride as wide as its kernel": (
        IMAGE + " | B 12,7,2,3 | c 7",
        KERNEL + "y = ConvTranspose<strides=[2,3]>(r, B, c)",
    ),
    "Gemm behind a pool": (
        IMAGE + " | B 7,12 | c 7",
        KERNEL + "p = GlobalAveragePool(r) f = Flatten(p) y = Gemm<transB=1, alpha=0.5>(f, B, c)",
    ),
    "MatMul": (IMAGE + " | B 12,7", KERNEL + "t = Transpose<perm=[0,2,3,1]>(r) y = MatMul(t, B)"),
    "MatMul from the left": (
        IMAGE + " | B 7,12 | int64 s 3",
        KERNEL + "t = Reshape(r, s) y = MatMul(B, t)",
    ),
}


@pytest.mark.parametrize("reader", READERS)
def test_the_mended_answer_is_closer(reader: str) -> None:
    """What is left is noise around the right mean; a stride's phases of a ConvTranspose have means of their own."""
    tensors, body = READERS[reader]
    weight = np.random.default_rng(1).standard_normal((12, 3, 3, 3))
    model = true_to_its_statistics(body, tensors, weight)
    for tensor in model.graph.initializer:
        if tensor.name == "s":
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.array([4, 12, -1]), "s"))
    feed = {"x": np.random.default_rng(2).standard_normal((4, 3, 17, 16)).astype(np.float32)}
    answer = oracles.run(model, feed)[0]
    errors, shifts = {}, {}
    for repair in ("none", "bias"):
        smaller, changes = pruned(model, feed, repair=repair, ratio=0.5)
        assert any(f"repair {repair}" in change.action for change in changes)
        difference = oracles.run(smaller, feed)[0] - answer
        channel = 1 if answer.ndim == 2 or reader not in ("MatMul",) else -1
        axes = tuple(i for i in range(answer.ndim) if i != channel % answer.ndim)
        errors[repair], shifts[repair] = float(np.square(difference).mean()), np.abs(difference.mean(axis=axes)).max()
    assert errors["bias"] < (0.97 if "Transpose" in reader else 0.7) * errors["none"]
    border = 0.35 if "padded" in reader or reader == "ConvTranspose" else 0.12
    assert shifts["bias"] < border * shifts["none"]


def test_without_statistics_only_what_is_constant_is_mended() -> None:
    case = Case("plain", "x 2,3,6,5 | A 8,3,1,1 | a 8 | B 5,8,1,1", "h = Conv(x, A, a) r = Relu(h) y = Conv(r, B)", 0)
    model = load(case.model).ir
    channels = analyse(model, case.feeds()[0])
    assert expected_shifts(channels, set(channels.groups[0].classes.tolist())) == []


def test_what_float16_cannot_hold_is_left_out() -> None:
    half = dict.fromkeys("gbmv", np.float16)
    arrays: dict[str, object] = {"g": np.ones(6), "b": np.full(6, 100.0), "m": np.zeros(6), "v": np.ones(6)}
    arrays["B"] = np.full((5, 6, 1, 1), 300.0)
    tensors = "float16 x 2,3,6,5 | float16 A 6,3,1,1 | float16 B 5,6,1,1" + "".join(f" | float16 {n} 6" for n in half)
    body = "a = Conv(x, A) z = BatchNormalization(a, g, b, m, v) r = Relu(z) y = Conv(r, B)"
    case = Case("half", tensors, body, 0, arrays=arrays, outputs={"y": "float16"})
    channels = analyse(ir.from_proto(case.model), case.feeds()[0])
    classes = channels.groups[0].classes.tolist()
    assert len(expected_shifts(channels, set(classes[:2]))) == 1
    assert expected_shifts(channels, set(classes)) == []
    (shift,) = shifts_of(channels, sums_of(channels, Means(channels.flow)), set(classes))
    assert not shift.fits
